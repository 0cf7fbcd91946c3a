//! Requests as FastAPI's users know them: lax integers, all faults of a request at once, each with
//! where it is. Pure but for the extractor of path parameters.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use axum::extract::{FromRequestParts, Path};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

use super::error::{ApiError, Fault};

/// More faults than anybody reads; a body of a megabyte could have hundreds of thousands.
const MAX_FAULTS: usize = 100;
/// Larger bodies are not shown to their sender again for each field that they lack.
const ECHOED_BYTES: usize = 4096;
const ECHOED_CHARACTERS: usize = 200;

/// The parameters of the path in their order, each percent-decoded once.
pub struct PathTexts(pub Vec<String>);

impl<S: Send + Sync> FromRequestParts<S> for PathTexts {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::<Vec<(String, String)>>::from_request_parts(parts, state).await {
            Ok(Path(pairs)) => Ok(Self(pairs.into_iter().map(|(_, text)| text).collect())),
            Err(rejection) => Err(ApiError::invalid(vec![Fault {
                kind: "value_error",
                loc: vec!["path".into()],
                msg: format!("Value error, {rejection}"),
                input: parts.uri.path().into(),
            }])),
        }
    }
}

impl PathTexts {
    /// A parameter as it stands.
    pub fn text(&self, index: usize) -> &str {
        self.0.get(index).map_or("", String::as_str)
    }

    /// A parameter that is an integer.
    pub fn integer(&self, index: usize, name: &'static str) -> Result<i64, ApiError> {
        path_integer(self.text(index), name)
    }
}

/// An integer in the path.
pub fn path_integer(text: &str, name: &'static str) -> Result<i64, ApiError> {
    // As nearly all are; the long way says what is wrong, and knows more spellings.
    if let Ok(value) = text.parse() {
        return Ok(value);
    }
    let mut faults = Faults::default();
    faults.integer(Location::of("path", name), &text.into()).ok_or_else(|| faults.into_error())
}

/// The query string, every name possibly many times.
pub struct Query {
    pairs: Vec<(String, String)>,
    pub faults: Faults,
}

impl Query {
    pub fn parse(query: Option<&str>) -> Self {
        let pairs: Vec<(String, String)> =
            url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()).into_owned().collect();
        let mut faults = Faults::default();
        // No store can be asked for one.
        for (name, value) in pairs.iter().filter(|(_, value)| value.contains('\0')) {
            let location = Location::of("query", name);
            faults.push("value_error", location, "Value error, NUL is not allowed".to_owned(), &value.as_str().into());
        }
        Self { pairs, faults }
    }

    /// The last value of a name, as FastAPI takes it.
    pub fn find(&self, name: &str) -> Option<&str> {
        self.pairs.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn list(&self, name: &str) -> Vec<String> {
        self.pairs.iter().filter(|(key, _)| key == name).map(|(_, value)| value.clone()).collect()
    }

    /// An integer within bounds, or the default when it is not given.
    pub fn integer(&mut self, name: &'static str, default: i64, bounds: RangeInclusive<i64>) -> i64 {
        let Some(text) = self.find(name).map(str::to_owned) else { return default };
        let location = Location::of("query", name);
        let input = Value::from(text);
        let Some(value) = self.faults.integer(location, &input) else { return default };
        if value < *bounds.start() {
            let msg = format!("Input should be greater than or equal to {}", bounds.start());
            self.faults.push("greater_than_equal", location, msg, &input);
        } else if value > *bounds.end() {
            let msg = format!("Input should be less than or equal to {}", bounds.end());
            self.faults.push("less_than_equal", location, msg, &input);
        }
        value
    }

    /// A boolean word, or the default when it is not given.
    pub fn boolean(&mut self, name: &'static str, default: bool) -> bool {
        let Some(text) = self.find(name).map(str::to_owned) else { return default };
        match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" | "t" | "y" => true,
            "false" | "0" | "no" | "off" | "f" | "n" => false,
            _ => {
                let msg = "Input should be a valid boolean, unable to interpret input".to_owned();
                self.faults.push("bool_parsing", Location::of("query", name), msg, &text.into());
                default
            }
        }
    }

    /// Fails with everything that was wrong.
    pub fn finish(self) -> Result<(), ApiError> {
        self.faults.finish()
    }
}

/// Parses a JSON body.
pub fn parse_json<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, ApiError> {
    let fault =
        |kind, loc: Vec<Value>, msg: String| ApiError::invalid(vec![Fault { kind, loc, msg, input: Value::Null }]);
    if body.is_empty() {
        return Err(fault("missing", vec!["body".into()], "Field required".to_owned()));
    }
    serde_json::from_slice(body).map_err(|error| {
        let offset: usize =
            body.split_inclusive(|byte| *byte == b'\n').take(error.line().saturating_sub(1)).map(<[u8]>::len).sum();
        let loc = vec!["body".into(), (offset + error.column().saturating_sub(1)).into()];
        fault("json_invalid", loc, format!("JSON decode error: {error}"))
    })
}

/// The fields of a JSON object in the body.
pub struct Fields {
    object: Object,
    /// Fields that are JSON by its grammar and still no value: a number that no float holds, half a
    /// surrogate pair, nesting without end. They are faults where somebody asks for them.
    unreadable: BTreeMap<String, Fault>,
    body_bytes: usize,
    pub faults: Faults,
}

/// As it came; of several values of a name the last one counts.
struct Object(Vec<(String, Value)>);

impl Object {
    fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value)
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Object;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut pairs = Vec::with_capacity(4);
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Object(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

impl Fields {
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let (object, unreadable) = match serde_json::from_slice(body) {
            Ok(object) => (object, BTreeMap::new()),
            Err(_) => read_each_field(body)?,
        };
        Ok(Self { object, unreadable, body_bytes: body.len(), faults: Faults::default() })
    }

    pub fn find(&self, name: &str) -> Option<&Value> {
        self.object.get(name)
    }

    /// A field that must be there.
    pub fn required<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&mut Faults, Location<'_>, &Value) -> Option<T>,
    ) -> Option<T> {
        if self.object.get(name).is_some() || self.unreadable.contains_key(name) {
            return self.optional(name, read);
        }
        let whole = self.whole();
        self.faults.push("missing", Location::of("body", name), "Field required".to_owned(), &whole);
        None
    }

    /// A field that may be absent; a null is read like any value.
    pub fn optional<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&mut Faults, Location<'_>, &Value) -> Option<T>,
    ) -> Option<T> {
        if let Some(fault) = self.unreadable.remove(name) {
            self.faults.add(fault);
            return None;
        }
        let value = self.object.get(name)?;
        read(&mut self.faults, Location::of("body", name), value)
    }

    /// A fault of several fields together.
    pub fn refuse(&mut self, msg: &str) {
        let whole = self.whole();
        self.faults.push("value_error", Location::whole("body"), format!("Value error, {msg}"), &whole);
    }

    pub fn finish(self) -> Result<(), ApiError> {
        self.faults.finish()
    }

    /// To be shown to its sender.
    fn whole(&self) -> Value {
        if self.body_bytes > ECHOED_BYTES {
            Value::Null
        } else {
            Value::Object(self.object.0.iter().cloned().collect())
        }
    }
}

/// The long way, for a body that is no object of readable values.
fn read_each_field(body: &[u8]) -> Result<(Object, BTreeMap<String, Fault>), ApiError> {
    let error = match parse_json(body) {
        Ok(other) => ApiError::invalid(vec![Fault {
            kind: "model_attributes_type",
            loc: vec!["body".into()],
            msg: "Input should be a valid dictionary or object to extract fields from".to_owned(),
            input: other,
        }]),
        Err(error) => error,
    };
    let fields: BTreeMap<String, &RawValue> = serde_json::from_slice(body).map_err(|_| error)?;
    let (mut object, mut unreadable) = (Object(Vec::new()), BTreeMap::new());
    for (name, raw) in fields {
        let text = raw.get();
        let error = match serde_json::from_str::<Value>(text) {
            Ok(value) => {
                object.0.push((name, value));
                continue;
            }
            Err(error) => error,
        };
        let (kind, msg) = match text.as_bytes().first() {
            Some(b'"') => ("string_unicode", "Input should be a valid string, as Unicode text".to_owned()),
            Some(b'-' | b'0'..=b'9') => ("finite_number", "Input should be a finite number".to_owned()),
            _ => ("json_invalid", format!("JSON decode error: {error}")),
        };
        let shown: String = text.chars().take(ECHOED_CHARACTERS).collect();
        let loc = Location::of("body", &name).to_loc();
        unreadable.insert(name, Fault { kind, loc, msg, input: shown.into() });
    }
    Ok((object, unreadable))
}

/// Where in a request something stands.
#[derive(Clone, Copy)]
pub struct Location<'a> {
    part: &'static str,
    name: Option<&'a str>,
    index: Option<usize>,
}

impl<'a> Location<'a> {
    /// A whole part of the request: `body`.
    pub fn whole(part: &'static str) -> Self {
        Self { part, name: None, index: None }
    }

    /// What has a name in it.
    pub fn of(part: &'static str, name: &'a str) -> Self {
        Self { part, name: Some(name), index: None }
    }

    fn item(self, index: usize) -> Self {
        Self { index: Some(index), ..self }
    }

    /// As FastAPI shows it.
    fn to_loc(self) -> Vec<Value> {
        let name = self.name.map(Value::from);
        [self.part.into()].into_iter().chain(name).chain(self.index.map(Value::from)).collect()
    }
}

/// What is wrong with a request so far.
#[derive(Default, Debug)]
pub struct Faults(Vec<Fault>);

impl Faults {
    pub fn push(&mut self, kind: &'static str, location: Location<'_>, msg: String, input: &Value) {
        // Before the input is cloned.
        if self.0.len() < MAX_FAULTS {
            self.add(Fault { kind, loc: location.to_loc(), msg, input: input.clone() });
        }
    }

    fn add(&mut self, fault: Fault) {
        if self.0.len() < MAX_FAULTS {
            self.0.push(fault);
        }
    }

    pub fn finish(self) -> Result<(), ApiError> {
        if self.0.is_empty() { Ok(()) } else { Err(self.into_error()) }
    }

    fn into_error(self) -> ApiError {
        ApiError::invalid(self.0)
    }

    /// pydantic's lax integer: `5`, `"5"`, `5.0`, `true`.
    pub fn integer(&mut self, location: Location<'_>, input: &Value) -> Option<i64> {
        let whole = |number: f64| (number.fract() == 0.0).then_some(number);
        let (kind, msg) = match input {
            Value::Bool(value) => return Some(i64::from(*value)),
            Value::Number(number) => {
                if let Some(value) = number.as_i64() {
                    return Some(value);
                }
                match number.as_f64().map(whole) {
                    Some(Some(value)) => return self.within_i64(location, input, value),
                    _ => ("int_from_float", "Input should be a valid integer, got a number with a fractional part"),
                }
            }
            Value::String(text) => {
                let trimmed = text.trim();
                let digits = trimmed
                    .strip_suffix(".0")
                    .or_else(|| {
                        trimmed
                            .split_once('.')
                            .filter(|(_, zeros)| !zeros.is_empty() && zeros.bytes().all(|byte| byte == b'0'))
                            .map(|(whole, _)| whole)
                    })
                    .unwrap_or(trimmed);
                if let Ok(value) = digits.parse::<i64>() {
                    return Some(value);
                }
                let unsigned = digits.strip_prefix(['-', '+']).unwrap_or(digits);
                if !unsigned.is_empty() && unsigned.bytes().all(|byte| byte.is_ascii_digit()) {
                    let value = if digits.starts_with('-') { f64::MIN } else { f64::MAX };
                    return self.within_i64(location, input, value);
                }
                ("int_parsing", "Input should be a valid integer, unable to parse string as an integer")
            }
            _ => ("int_type", "Input should be a valid integer"),
        };
        self.push(kind, location, msg.to_owned(), input);
        None
    }

    fn within_i64(&mut self, location: Location<'_>, input: &Value, value: f64) -> Option<i64> {
        const BOUND: f64 = 9_223_372_036_854_775_808.0;
        if value >= BOUND {
            self.push(
                "less_than_equal",
                location,
                format!("Input should be less than or equal to {}", i64::MAX),
                input,
            );
            return None;
        }
        // Of the numbers that reach this as a float, the bound itself may be one that was rounded to it.
        if value <= -BOUND {
            self.push(
                "greater_than_equal",
                location,
                format!("Input should be greater than or equal to {}", i64::MIN),
                input,
            );
            return None;
        }
        // Exact: in range and without a fraction.
        #[expect(clippy::cast_possible_truncation, reason = "checked above")]
        Some(value as i64)
    }

    /// A finite number; `"1.5"` and `true` count.
    pub fn number(&mut self, location: Location<'_>, input: &Value) -> Option<f64> {
        let value = match input {
            Value::Bool(value) => Some(f64::from(u8::from(*value))),
            Value::Number(number) => number.as_f64(),
            Value::String(text) => match text.trim().parse::<f64>() {
                Ok(value) => Some(value),
                Err(_) => {
                    let msg = "Input should be a valid number, unable to parse string as a number";
                    self.push("float_parsing", location, msg.to_owned(), input);
                    return None;
                }
            },
            _ => {
                self.push("float_type", location, "Input should be a valid number".to_owned(), input);
                return None;
            }
        };
        let finite = value.filter(|value| value.is_finite());
        if finite.is_none() {
            self.push("finite_number", location, "Input should be a finite number".to_owned(), input);
        }
        finite
    }

    /// A text of so many characters without control characters.
    pub fn text(
        &mut self,
        location: Location<'_>,
        input: &Value,
        characters: &RangeInclusive<usize>,
    ) -> Option<String> {
        let Value::String(text) = input else {
            self.push("string_type", location, "Input should be a valid string".to_owned(), input);
            return None;
        };
        let plural = |count: usize| if count == 1 { "character" } else { "characters" };
        let count = text.chars().count();
        if count < *characters.start() {
            let msg = format!("String should have at least {} {}", characters.start(), plural(*characters.start()));
            self.push("string_too_short", location, msg, input);
            return None;
        }
        if count > *characters.end() {
            let msg = format!("String should have at most {} {}", characters.end(), plural(*characters.end()));
            self.push("string_too_long", location, msg, input);
            return None;
        }
        if text.chars().any(char::is_control) {
            self.push("value_error", location, "Value error, control characters are not allowed".to_owned(), input);
            return None;
        }
        Some(text.clone())
    }

    /// A list of texts, repeats dropped.
    pub fn texts(
        &mut self,
        location: Location<'_>,
        input: &Value,
        characters: &RangeInclusive<usize>,
    ) -> Option<Vec<String>> {
        let Value::Array(items) = input else {
            self.push("list_type", location, "Input should be a valid list".to_owned(), input);
            return None;
        };
        let mut seen = std::collections::HashSet::new();
        let mut texts = Vec::with_capacity(items.len());
        let mut is_valid = true;
        for (index, item) in items.iter().enumerate() {
            match self.text(location.item(index), item, characters) {
                Some(text) if seen.insert(text.clone()) => texts.push(text),
                Some(_) => {}
                None => is_valid = false,
            }
        }
        is_valid.then_some(texts)
    }
}

/// A 404 for a thing of the directory.
pub fn not_found(code: &'static str, detail: &str) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, code, detail)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::http::error::Detail;

    fn integer(input: Value) -> Result<i64, &'static str> {
        let mut faults = Faults::default();
        faults.integer(Location::whole("body"), &input).ok_or_else(|| faults.0[0].kind)
    }

    fn faults_of(error: ApiError) -> Vec<Fault> {
        match error.detail {
            Detail::Faults(faults) => faults,
            Detail::Text(text) => panic!("a list of faults, not {text}"),
        }
    }

    #[test]
    fn integers_are_lax_as_in_pydantic() {
        for (input, value) in [
            (json!("1005"), 1005),
            (json!(2.0), 2),
            (json!(true), 1),
            (json!(" 7 "), 7),
            (json!("2.00"), 2),
            (json!(-3), -3),
        ] {
            assert_eq!(integer(input), Ok(value));
        }
        for (input, kind) in [
            (json!("x"), "int_parsing"),
            (json!(""), "int_parsing"),
            (json!(1.5), "int_from_float"),
            (json!(null), "int_type"),
            (json!([1]), "int_type"),
            (json!(9_223_372_036_854_775_808_u64), "less_than_equal"),
            (json!("-9223372036854775809"), "greater_than_equal"),
            (serde_json::from_str("-9223372036854775809").expect("a number"), "greater_than_equal"),
            (json!(1e300), "less_than_equal"),
        ] {
            assert_eq!(integer(input), Err(kind));
        }
        assert_eq!(integer(json!(i64::MAX)), Ok(i64::MAX));
        assert_eq!(integer(json!(i64::MIN)), Ok(i64::MIN));
    }

    #[test]
    fn broken_json_names_its_place() {
        let faults = faults_of(parse_json::<Value>(b"{\"a\":\n nope}").expect_err("broken"));
        assert_eq!(faults[0].kind, "json_invalid");
        assert_eq!(faults[0].loc, [json!("body"), json!(8)]);
    }

    #[test]
    fn a_value_that_cannot_be_read_names_its_field() {
        let nested = format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000));
        let body = format!(r#"{{"a":1e999,"b":"\ud800","c":{nested},"d":1}}"#);
        let mut fields = Fields::parse(body.as_bytes()).unwrap_or_else(|_| panic!("an object"));
        for name in ["a", "b", "c", "d"] {
            assert_eq!(fields.required(name, Faults::integer).is_some(), name == "d");
        }
        let faults = faults_of(fields.finish().expect_err("faults"));
        let named: Vec<(&str, Value)> = faults.into_iter().map(|fault| (fault.kind, fault.loc[1].clone())).collect();
        let expected = [("finite_number", json!("a")), ("string_unicode", json!("b")), ("json_invalid", json!("c"))];
        assert_eq!(named, expected);
    }

    #[test]
    fn a_body_full_of_faults_is_refused_briefly() {
        let mut faults = Faults::default();
        let many = Value::Array(vec![json!(1); 100_000]);
        assert_eq!(faults.texts(Location::whole("body"), &many, &(1..=100)), None);
        assert_eq!(faults.0.len(), MAX_FAULTS);
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_with_a_place_or_read(body in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Err(error) = Fields::parse(&body) {
                prop_assert_eq!(&faults_of(error)[0].loc[0], "body");
            }
        }

        #[test]
        fn any_text_is_an_integer_or_a_fault(text in "\\PC{0,20}|[-+]?[0-9.]{0,30}") {
            let mut faults = Faults::default();
            let value = faults.integer(Location::whole("query"), &Value::from(text));
            prop_assert_eq!(value.is_none(), faults.finish().is_err());
        }
    }
}
