//! From bytes to an alert, or the reason why not. Pure.

use bytes::Bytes;

use super::types::DecodedAlert;

/// What [`decode`] needs to know of the configuration.
#[derive(Clone, Debug)]
pub struct DecodeLimits {
    pub max_bytes: usize,
    /// The zone of timestamps that name none.
    pub timezone: jiff::tz::TimeZone,
}

/// Why bytes are no alert. `Display` tells a person; [`DecodeError::label`] is the metric's label.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("the message is empty")]
    Empty,
}

impl DecodeError {
    pub fn label(&self) -> &'static str {
        "empty"
    }
}

pub fn decode(raw: &Bytes, limits: &DecodeLimits) -> Result<DecodedAlert, DecodeError> {
    let _ = (raw, limits);
    todo!()
}
