//! Any bytes are an alert or a reason why not, in time that grows with their number alone; and an alert
//! keeps a text of its own that decodes to the same.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use unified_backend::alerts::decode::{DecodeLimits, decode};

fuzz_target!(|raw: &[u8]| {
    let limits = DecodeLimits { max_bytes: 64 * 1024, timezone: jiff::tz::TimeZone::UTC };
    if let Ok(alert) = decode(&Bytes::copy_from_slice(raw), &limits) {
        assert_eq!(decode(&alert.body, &limits), Ok(alert));
    }
});
