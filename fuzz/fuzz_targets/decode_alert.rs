//! Any bytes are an alert or a reason why not, in time that grows with their number alone; and an alert
//! keeps a text of its own that decodes to the same.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

use self::alerts::decode::{DecodeLimits, decode};

// The decoder's own files: the libraries in C that the service brings do not build with a sanitizer.
#[path = "../../src/alerts"]
#[expect(dead_code, reason = "the decoder needs a part of the vocabulary")]
mod alerts {
    pub mod decode;
    pub mod types;
}

#[path = "../../src/time.rs"]
#[expect(dead_code, reason = "the decoder needs a part of it")]
mod time;

fuzz_target!(|raw: &[u8]| {
    let limits = DecodeLimits { max_bytes: 64 * 1024, timezone: jiff::tz::TimeZone::UTC };
    if let Ok(alert) = decode(Bytes::copy_from_slice(raw), &limits) {
        assert_eq!(decode(alert.body.clone(), &limits), Ok(alert));
    }
});
