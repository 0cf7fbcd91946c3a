//! From bytes to an alert, or the reason why not. Pure. The object's own text is kept; only the fields
//! that filters need are looked at, and none of them can cost the alert.

use std::borrow::Cow;

use bytes::Bytes;
use compact_str::CompactString;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::types::{AlertColumns, DecodedAlert};
use crate::time::Timestamp;

/// What [`decode`] needs to know of the configuration.
#[derive(Clone, Debug)]
pub struct DecodeLimits {
    pub max_bytes: usize,
    /// The zone of timestamps that name none.
    pub timezone: jiff::tz::TimeZone,
}

/// Levels of nesting, the object itself being the first.
pub const MAX_DEPTH: usize = 128;

/// Characters of an event id.
const EVENT_ID_CHARACTERS: std::ops::RangeInclusive<usize> = 1..=200;
/// Longer values are shown, but no filter asks for them; an index could not hold them.
const COLUMN_BYTES: usize = 500;
/// 0001-01-01T00:00:00Z and 9999-12-31T23:59:59.999999Z.
const FIRST_MICROS: i64 = -62_135_596_800_000_000;
const LAST_MICROS: i64 = 253_402_300_799_999_999;

/// Why bytes are no alert. `Display` tells a person; [`DecodeError::label`] is the metric's label.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("the message is empty")]
    Empty,
    #[error("the message has {bytes} bytes, more than the {limit} allowed (ALERTS_MAX_BYTES)")]
    TooLarge { bytes: usize, limit: usize },
    #[error("the message is not UTF-8 from byte {valid_up_to} on")]
    NotUtf8 { valid_up_to: usize },
    #[error("the message is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    #[error("the message is not JSON: {0}")]
    NotJson(String),
    #[error("the message is JSON, but not an object")]
    NotAnObject,
}

impl DecodeError {
    pub fn label(&self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::TooLarge { .. } => "too_large",
            Self::NotUtf8 { .. } => "not_utf8",
            Self::TooDeep => "too_deep",
            Self::NotJson(_) => "not_json",
            Self::NotAnObject => "not_an_object",
        }
    }
}

/// O(bytes).
pub fn decode(raw: Bytes, limits: &DecodeLimits) -> Result<DecodedAlert, DecodeError> {
    if raw.len() > limits.max_bytes {
        return Err(DecodeError::TooLarge { bytes: raw.len(), limit: limits.max_bytes });
    }
    let text = std::str::from_utf8(&raw).map_err(|error| DecodeError::NotUtf8 { valid_up_to: error.valid_up_to() })?;
    let object = text.trim_matches([' ', '\t', '\r', '\n']);
    if object.is_empty() {
        return Err(DecodeError::Empty);
    }
    if depth(object) > MAX_DEPTH {
        return Err(DecodeError::TooDeep);
    }
    let fields = match Fields::of(object) {
        Ok(fields) => fields,
        Err(_) => {
            let _: &RawValue = serde_json::from_str(object).map_err(|error| DecodeError::NotJson(error.to_string()))?;
            if !object.starts_with('{') {
                return Err(DecodeError::NotAnObject);
            }
            // A key that no text can hold (a lone surrogate) leaves the columns empty, nothing more.
            Fields::default()
        }
    };
    let event_id = text_of(fields.event_id)
        .filter(|id| EVENT_ID_CHARACTERS.contains(&id.chars().count()) && !id.contains('\0'))
        .map(CompactString::from);
    let occurred_at = text_of(fields.timestamp).and_then(|text| parse_time(&text, &limits.timezone));
    let columns = AlertColumns {
        zone_id: column(fields.zone_id),
        user_id: column(fields.user_id),
        status: column(fields.status),
        camera_id: column(fields.camera_id),
    };
    let user_name = text_of(fields.user_name).filter(|name| !name.contains('\0')).map(CompactString::from);
    // A slice of it would take memory for being shared.
    let part = (object.len() < raw.len()).then(|| raw.slice_ref(object.as_bytes()));
    Ok(DecodedAlert { body: part.unwrap_or(raw), event_id, occurred_at, columns, user_name })
}

/// The fields that are looked at; of a repeated key the last one counts, as in Python.
#[derive(Default)]
struct Fields<'a> {
    event_id: Option<&'a RawValue>,
    timestamp: Option<&'a RawValue>,
    zone_id: Option<&'a RawValue>,
    user_id: Option<&'a RawValue>,
    user_name: Option<&'a RawValue>,
    status: Option<&'a RawValue>,
    camera_id: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Key {
    EventId,
    Timestamp,
    ZoneId,
    UserId,
    UserName,
    Status,
    CameraId,
    #[serde(other)]
    Other,
}

impl<'a> Fields<'a> {
    /// Checks the grammar of all of it without building anything.
    fn of(object: &'a str) -> serde_json::Result<Self> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Fields<'de>;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields = Fields::default();
                while let Some(key) = map.next_key()? {
                    let value = Some(map.next_value::<&'de RawValue>()?);
                    match key {
                        Key::EventId => fields.event_id = value,
                        Key::Timestamp => fields.timestamp = value,
                        Key::ZoneId => fields.zone_id = value,
                        Key::UserId => fields.user_id = value,
                        Key::UserName => fields.user_name = value,
                        Key::Status => fields.status = value,
                        Key::CameraId => fields.camera_id = value,
                        Key::Other => {}
                    }
                }
                Ok(fields)
            }
        }
        let mut deserializer = serde_json::Deserializer::from_str(object);
        let fields = serde::Deserializer::deserialize_map(&mut deserializer, Visitor)?;
        deserializer.end()?;
        Ok(fields)
    }
}

/// A JSON string's text, where it is one that text can hold.
fn text_of(raw: Option<&RawValue>) -> Option<Cow<'_, str>> {
    let text = raw?.get();
    let inner = text.strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') { String::deserialize(raw?).ok().map(Cow::Owned) } else { Some(Cow::Borrowed(inner)) }
}

/// Text as it is, an integral number as its digits.
fn column(raw: Option<&RawValue>) -> Option<CompactString> {
    let text = raw?.get();
    let value = match text.as_bytes().first()? {
        b'"' => text_of(raw)?,
        b'-' | b'0'..=b'9' => Cow::Borrowed(integral(text)?),
        _ => return None,
    };
    (!value.is_empty() && value.len() <= COLUMN_BYTES && !value.contains('\0')).then(|| CompactString::from(value))
}

/// `5` and `5.0` are both `5`.
fn integral(number: &str) -> Option<&str> {
    let digits = match number.split_once('.') {
        None => number,
        Some((whole, zeros)) if zeros.bytes().all(|byte| byte == b'0') => whole,
        Some(_) => return None,
    };
    let is_integer = digits.strip_prefix('-').unwrap_or(digits).bytes().all(|byte| byte.is_ascii_digit());
    is_integer.then_some(if digits == "-0" { "0" } else { digits })
}

/// The deepest nesting of brackets outside of strings.
fn depth(text: &str) -> usize {
    let (mut deepest, mut open) = (0_usize, 0_usize);
    let mut in_string = false;
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' if in_string => {
                bytes.next();
            }
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                open += 1;
                deepest = deepest.max(open);
            }
            b'}' | b']' if !in_string => open = open.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// ISO 8601, with an offset or in the zone of those that name none; of the years 1 to 9999, which every
/// store and every reader of RFC 3339 can hold.
pub(super) fn parse_time(text: &str, zone: &jiff::tz::TimeZone) -> Option<Timestamp> {
    let text = text.trim();
    let instant = match text.parse::<jiff::Timestamp>() {
        Ok(instant) => instant,
        Err(_) => zone.to_timestamp(text.parse::<jiff::civil::DateTime>().ok()?).ok()?,
    };
    let micros = instant.as_microsecond();
    (FIRST_MICROS..=LAST_MICROS).contains(&micros).then(|| Timestamp::from_micros(micros))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limits() -> DecodeLimits {
        DecodeLimits { max_bytes: 4096, timezone: jiff::tz::TimeZone::UTC }
    }

    fn read(text: &str) -> Result<DecodedAlert, DecodeError> {
        decode(Bytes::copy_from_slice(text.as_bytes()), &limits())
    }

    #[test]
    fn an_alert_keeps_its_own_text() {
        let text = r#"{"b":1.0, "a":12345678901234567890,"big":1e999, "n":"\u0000\ud800"}"#;
        assert_eq!(read(text).expect("an object").body, text);
        assert_eq!(read(&format!(" \n{text}\t")).expect("an object").body, text);
    }

    #[test]
    fn columns_are_read_leniently() {
        let alert = read(
            r#"{"zone_id":5,"user_id":"1004","status":["odd"],"camera_id":7.0,"timestamp":"2026-11-24T10:00:00","event_id":"","user_name":"Ann"}"#,
        )
        .expect("an object");
        assert_eq!(alert.columns.zone_id.as_deref(), Some("5"));
        assert_eq!(alert.columns.user_id.as_deref(), Some("1004"));
        assert_eq!(alert.columns.camera_id.as_deref(), Some("7"));
        assert_eq!(alert.columns.status, None);
        assert_eq!(alert.event_id, None);
        assert_eq!(alert.user_name.as_deref(), Some("Ann"));
        assert_eq!(alert.occurred_at.expect("a time").to_string(), "2026-11-24T10:00:00.000000Z");
    }

    #[test]
    fn keys_are_read_as_python_reads_them() {
        let zone = |text: &str| read(text).expect("an object").columns.zone_id;
        assert_eq!(zone(r#"{"zone_id":1,"zone_id":2}"#).as_deref(), Some("2"), "the last one counts");
        assert_eq!(zone(r#"{"zone\u005fid":"\u0041"}"#).as_deref(), Some("A"), "escapes are the same text");
        assert_eq!(zone(r#"{"\ud800":1,"zone_id":2}"#), None, "a key that no text can hold costs the columns alone");
        assert_eq!(zone(r#"{"zone_id":"\ud800"}"#), None);
        assert_eq!(zone(r#"{"zone_id":-0}"#).as_deref(), Some("0"));
        assert_eq!(zone(r#"{"zone_id":"a\u0000"}"#), None);
    }

    #[test]
    fn a_time_that_no_store_holds_is_no_time() {
        let occurred = |time: &str| read(&format!(r#"{{"timestamp":"{time}"}}"#)).expect("an object").occurred_at;
        assert_eq!(occurred("-009999-01-01T00:00:00Z"), None);
        assert_eq!(occurred("0000-12-31T23:59:59Z"), None);
        assert_eq!(occurred("0001-01-01T00:00:00Z").map(Timestamp::as_micros), Some(FIRST_MICROS));
        assert_eq!(occurred("9999-12-30T00:00:00Z").expect("a time").to_string(), "9999-12-30T00:00:00.000000Z");
    }

    #[test]
    fn what_is_no_alert_says_why() {
        let label = |text: &str| read(text).expect_err(text).label();
        assert_eq!(label(""), "empty");
        assert_eq!(label("NaN"), "not_json");
        assert_eq!(label(r#"{"a":NaN}"#), "not_json");
        assert_eq!(label("[1]"), "not_an_object");
        assert_eq!(label(r#"{"a":1} x"#), "not_json");
        assert_eq!(label(&format!("{{\"a\":\"{}\"}}", "x".repeat(5000))), "too_large");
        let nested = |levels: usize| format!("{}1{}", "{\"a\":".repeat(levels), "}".repeat(levels));
        assert!(read(&nested(MAX_DEPTH)).is_ok());
        assert_eq!(label(&nested(MAX_DEPTH + 1)), "too_deep");
        assert_eq!(decode(Bytes::from_static(b"{\"a\":\"\xff\"}"), &limits()).expect_err("bytes").label(), "not_utf8");
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_alert_or_a_reason(raw in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(alert) = decode(Bytes::from(raw), &limits()) {
                prop_assert!(serde_json::from_slice::<&RawValue>(&alert.body).is_ok());
            }
        }

        #[test]
        fn any_object_is_an_alert(fields in prop::collection::btree_map("zone_id|user_id|status|camera_id|timestamp|event_id|\\PC{0,5}", "\\PC{0,300}", 0..8), number in any::<f64>()) {
            let mut object = serde_json::json!(fields);
            object["iop"] = serde_json::json!(number);
            prop_assert!(read(&object.to_string()).is_ok() || object.to_string().len() > 4096);
        }
    }
}
