//! Users and zones as files: JSON lines, or CSV with a header. What is written here can be read here.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, BufRead, Read, Write};
use std::path::Path;

use serde_json::Value;

use super::exit::Failure;
use crate::directory::geometry::check_polygon;
use crate::directory::{NAME_CHARACTERS, NewZone, User, Zone, json};
use crate::http::error::{ApiError, Detail, Fault};
use crate::http::extract::{Faults, Fields, Location};

/// Told wherever files are.
pub const FORMATS: &str = "\
Formats, by the file's extension or --format:
  jsonl  (.jsonl .ndjson .json) one JSON object a line, as GET /users and GET /zones show them
  csv    (.csv) a header line, then users: global_id,name,zone_ids or
         zones: zone_id,zone_name,x1,y1,x2,y2,x3,y3,x4,y4; the zones of a user are separated by |,
         and a | or \\ that belongs to an id is written \\| or \\\\";

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    Users,
    Zones,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Jsonl,
    Csv,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Users => "users",
            Self::Zones => "zones",
        }
    }

    fn columns(self) -> &'static [&'static str] {
        match self {
            Self::Users => &["global_id", "name", "zone_ids"],
            Self::Zones => &["zone_id", "zone_name", "x1", "y1", "x2", "y2", "x3", "y3", "x4", "y4"],
        }
    }
}

impl Format {
    /// As given, else by the extension; JSON lines for standard input and output.
    pub fn of(path: &Path, given: Option<Self>) -> anyhow::Result<Self> {
        if let Some(format) = given {
            return Ok(format);
        }
        if super::is_standard(path) {
            return Ok(Self::Jsonl);
        }
        let extension = path.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase);
        match extension.as_deref() {
            Some("jsonl" | "ndjson" | "json") => Ok(Self::Jsonl),
            Some("csv") => Ok(Self::Csv),
            _ => Err(Failure::usage(format!("{}: name the format, --format jsonl or csv", path.display()))),
        }
    }
}

/// One record of a file.
pub struct Record {
    /// Where it begins, from 1.
    pub line: u64,
    /// As a JSON object, or why it cannot be read as one.
    pub object: Result<Vec<u8>, String>,
}

pub enum Reader<R> {
    Jsonl { input: io::BufReader<R>, line: u64 },
    Csv { input: csv::Reader<Lines<R>>, columns: Vec<String> },
}

/// Remembers where lines end, up to where they were counted. The parser's own count is that of where
/// it stood, which blank lines and the two characters of a Windows line end put before the record.
pub struct Lines<R> {
    input: R,
    bytes: u64,
    /// Offsets of line ends.
    ends: VecDeque<u64>,
    counted: u64,
}

impl<R> Lines<R> {
    /// Line ends before an offset; offsets must not go back.
    fn count_before(&mut self, offset: u64) -> u64 {
        while self.ends.front().is_some_and(|end| *end < offset) {
            self.ends.pop_front();
            self.counted += 1;
        }
        self.counted
    }
}

impl<R: Read> Read for Lines<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        for (offset, _) in (self.bytes..).zip(&buffer[..count]).filter(|(_, byte)| **byte == b'\n') {
            self.ends.push_back(offset);
        }
        self.bytes += count as u64;
        Ok(count)
    }
}

impl<R: Read> Reader<R> {
    /// Fails where a CSV file has no header that fits.
    pub fn open(input: R, format: Format, kind: Kind) -> anyhow::Result<Self> {
        if format == Format::Jsonl {
            return Ok(Self::Jsonl { input: io::BufReader::new(input), line: 0 });
        }
        let input = Lines { input, bytes: 0, ends: VecDeque::new(), counted: 0 };
        let mut input = csv::ReaderBuilder::new().flexible(true).from_reader(input);
        let columns: Vec<String> = input
            .byte_headers()?
            .iter()
            .map(|name| String::from_utf8_lossy(name).trim_matches(['\u{feff}', ' ', '\t']).to_owned())
            .collect();
        let is_missing = |name: &&&str| **name != "zone_ids" && !columns.iter().any(|column| column == **name);
        let missing: Vec<&str> = kind.columns().iter().filter(is_missing).copied().collect();
        if !missing.is_empty() {
            anyhow::bail!(
                "the first line must name the columns: {} {} missing; needed: {}",
                missing.join(", "),
                if missing.len() == 1 { "is" } else { "are" },
                kind.columns().join(",")
            );
        }
        Ok(Self::Csv { input, columns })
    }

    pub fn next(&mut self) -> io::Result<Option<Record>> {
        match self {
            Self::Jsonl { input, line } => loop {
                let mut bytes = Vec::new();
                if input.read_until(b'\n', &mut bytes)? == 0 {
                    return Ok(None);
                }
                *line += 1;
                let text = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes).trim_ascii();
                if !text.is_empty() {
                    return Ok(Some(Record { line: *line, object: Ok(text.to_vec()) }));
                }
            },
            Self::Csv { input, columns } => {
                let mut row = csv::ByteRecord::new();
                if !input.read_byte_record(&mut row).map_err(io::Error::from)? {
                    return Ok(None);
                }
                // Its own line end is the last byte; those inside of it are in its cells.
                let last = input.position().byte().saturating_sub(1);
                let inside = row.as_slice().iter().filter(|byte| **byte == b'\n').count() as u64;
                let line = (input.get_mut().count_before(last) + 1).saturating_sub(inside);
                Ok(Some(Record { line, object: object_of(columns, &row) }))
            }
        }
    }
}

fn object_of(columns: &[String], row: &csv::ByteRecord) -> Result<Vec<u8>, String> {
    if row.len() > columns.len() {
        return Err(format!("{} fields, but the header names {}", row.len(), columns.len()));
    }
    let mut object = BTreeMap::new();
    for (column, cell) in columns.iter().zip(row) {
        let text = std::str::from_utf8(cell).map_err(|error| format!("{column}: not UTF-8 ({error})"))?;
        let value = match (column.as_str(), text) {
            ("zone_ids", text) => Value::from(split_zone_ids(text)),
            ("zone_id", "") => Value::Null,
            _ => Value::from(text),
        };
        object.insert(column.as_str(), value);
    }
    serde_json::to_vec(&object).map_err(|error| error.to_string())
}

fn split_zone_ids(text: &str) -> Vec<String> {
    if text.is_empty() {
        return Vec::new();
    }
    let mut ids = vec![String::new()];
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '|' => ids.push(String::new()),
            '\\' => ids.last_mut().into_iter().for_each(|id| id.push(characters.next().unwrap_or('\\'))),
            other => ids.last_mut().into_iter().for_each(|id| id.push(other)),
        }
    }
    ids
}

fn join_zone_ids(ids: &[impl AsRef<str>]) -> String {
    let escaped = ids.iter().map(|id| id.as_ref().replace('\\', "\\\\").replace('|', "\\|"));
    escaped.collect::<Vec<_>>().join("|")
}

/// A user as a file has them.
#[derive(Clone, Debug, PartialEq)]
pub struct UserRecord {
    pub global_id: i64,
    pub name: String,
    /// `None`: the file says nothing about them.
    pub zone_ids: Option<Vec<String>>,
}

/// The rules of `POST /users`, but for line breaks and tabs in names.
pub fn read_user(object: &[u8]) -> Result<UserRecord, ApiError> {
    let mut fields = Fields::parse(object)?;
    let global_id = fields.required("global_id", Faults::integer);
    let name = fields.required("name", stored_text);
    let zone_ids = if fields.find("zone_ids").is_some() {
        fields.optional("zone_ids", |faults, location, value| faults.texts(location, value, &NAME_CHARACTERS))
    } else {
        fields.optional("zone_id", |faults, location, value| match value {
            Value::Null => Some(Vec::new()),
            value => faults.text(location, value, &NAME_CHARACTERS).map(|zone_id| vec![zone_id]),
        })
    };
    fields.finish()?;
    match (global_id, name) {
        (Some(global_id), Some(name)) => Ok(UserRecord { global_id, name, zone_ids }),
        _ => Err(ApiError::invalid(Vec::new())),
    }
}

/// The rules of `POST /zones`, but for line breaks and tabs in names.
pub fn read_zone(object: &[u8]) -> Result<NewZone, ApiError> {
    let mut fields = Fields::parse(object)?;
    let zone_id = fields.required("zone_id", |faults, location, value| faults.text(location, value, &NAME_CHARACTERS));
    let zone_name = fields.required("zone_name", stored_text);
    let mut corners = [[0.0; 2]; 4];
    let mut is_complete = true;
    for (coordinate, name) in corners.iter_mut().flatten().zip(&Kind::Zones.columns()[2..]) {
        match fields.required(name, Faults::number) {
            Some(value) => *coordinate = value,
            None => is_complete = false,
        }
    }
    if is_complete && let Err(fault) = check_polygon(&corners) {
        fields.refuse(&fault.to_string());
    }
    fields.finish()?;
    match (zone_id, zone_name) {
        (Some(zone_id), Some(zone_name)) => Ok(NewZone { zone_id, zone_name, corners }),
        _ => Err(ApiError::invalid(Vec::new())),
    }
}

/// SQL and spreadsheets put line breaks and tabs into names; what `export` wrote must come back.
fn stored_text(faults: &mut Faults, location: Location<'_>, value: &Value) -> Option<String> {
    let Value::String(text) = value else { return faults.text(location, value, &NAME_CHARACTERS) };
    let on_one_line = text.replace(['\n', '\r', '\t'], " ");
    faults.text(location, &Value::from(on_one_line), &NAME_CHARACTERS).map(|_| text.clone())
}

/// What is wrong with a record: a line for each fault, with its field and value.
pub fn explain(error: &ApiError) -> Vec<String> {
    match &error.detail {
        Detail::Text(text) => vec![text.clone()],
        Detail::Faults(faults) => faults.iter().map(explain_fault).collect(),
    }
}

fn explain_fault(fault: &Fault) -> String {
    let place: Vec<String> =
        fault.loc.iter().skip(1).map(|part| part.as_str().map_or_else(|| part.to_string(), str::to_owned)).collect();
    let message = fault.msg.trim_start_matches("Value error, ");
    let mut text = match (fault.kind, place.as_slice()) {
        ("json_invalid", _) | (_, []) => message.to_owned(),
        (_, place) => format!("{}: {message}", place.join(".")),
    };
    if !place.is_empty() && !fault.input.is_null() && fault.kind != "missing" {
        let shown = fault.input.to_string();
        let cut: String = shown.chars().take(60).collect();
        let rest = if cut.len() < shown.len() { "…" } else { "" };
        text.push_str(&format!(" (it is {cut}{rest})"));
    }
    text
}

pub enum Writer<W: Write> {
    Jsonl(W),
    Csv(Box<csv::Writer<W>>),
}

impl<W: Write> Writer<W> {
    pub fn open(output: W, format: Format, kind: Kind) -> anyhow::Result<Self> {
        match format {
            Format::Jsonl => Ok(Self::Jsonl(output)),
            Format::Csv => {
                let mut writer = csv::Writer::from_writer(output);
                writer.write_record(kind.columns())?;
                Ok(Self::Csv(Box::new(writer)))
            }
        }
    }

    pub fn write_user(&mut self, user: &User) -> anyhow::Result<()> {
        match self {
            Self::Jsonl(output) => write_line(output, json::write_user(user)),
            Self::Csv(writer) => {
                let (global_id, zone_ids) = (user.global_id.to_string(), join_zone_ids(&user.zone_ids));
                Ok(writer.write_record([global_id.as_str(), &user.name, zone_ids.as_str()])?)
            }
        }
    }

    pub fn write_zone(&mut self, zone: &Zone) -> anyhow::Result<()> {
        match self {
            Self::Jsonl(output) => write_line(output, serde_json::to_vec(zone)?),
            Self::Csv(writer) => {
                let mut row = vec![zone.zone_id.to_string(), zone.zone_name.to_string()];
                // Debug keeps a decimal point, and the shortest digits that read as the same number.
                row.extend(zone.corners.iter().flatten().map(|coordinate| format!("{coordinate:?}")));
                Ok(writer.write_record(row)?)
            }
        }
    }

    pub fn finish(self) -> anyhow::Result<()> {
        match self {
            Self::Jsonl(mut output) => output.flush()?,
            Self::Csv(mut writer) => writer.flush()?,
        }
        Ok(())
    }
}

fn write_line(output: &mut impl Write, mut line: Vec<u8>) -> anyhow::Result<()> {
    line.push(b'\n');
    Ok(output.write_all(&line)?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::time::Timestamp;

    fn user(global_id: i64, name: &str, zone_ids: &[String]) -> User {
        User {
            id: 1,
            global_id,
            name: name.into(),
            zone_ids: zone_ids.iter().map(|zone_id| zone_id.as_str().into()).collect(),
            created_at: Timestamp::from_micros(0),
            updated_at: None,
        }
    }

    fn round_trip(users: &[User], format: Format) -> Vec<UserRecord> {
        let mut bytes = Vec::new();
        let mut writer = Writer::open(&mut bytes, format, Kind::Users).expect("memory");
        users.iter().for_each(|user| writer.write_user(user).expect("memory"));
        writer.finish().expect("memory");
        let mut reader = Reader::open(bytes.as_slice(), format, Kind::Users).expect("a header");
        let mut found = Vec::new();
        while let Some(record) = reader.next().expect("memory") {
            found.push(read_user(&record.object.expect("an object")).expect("valid"));
        }
        found
    }

    #[test]
    fn a_refused_record_tells_field_and_value() {
        let faults = |object: &str| explain(&read_user(object.as_bytes()).expect_err(object));
        assert_eq!(
            faults(r#"{"global_id":"x","name":"","zone_ids":["a",5]}"#),
            [
                "global_id: Input should be a valid integer, unable to parse string as an integer (it is \"x\")",
                "name: String should have at least 1 character (it is \"\")",
                "zone_ids.1: Input should be a valid string (it is 5)",
            ]
        );
        assert_eq!(faults(r#"{"global_id":1}"#), ["name: Field required"]);
        assert!(faults("{nope")[0].starts_with("JSON decode error: key must be a string"), "{:?}", faults("{nope"));
        let crossed = r#"{"zone_id":"z","zone_name":"Z","x1":0,"y1":0,"x2":1,"y2":1,"x3":1,"y3":0,"x4":0,"y4":1}"#;
        let faults = explain(&read_zone(crossed.as_bytes()).expect_err("crossed"));
        assert!(faults[0].starts_with("the edges of the zone cross"), "{faults:?}");
    }

    #[test]
    fn a_csv_file_needs_its_columns_and_tells_lines() {
        let missing = Reader::open("id,name\n".as_bytes(), Format::Csv, Kind::Users).err().expect("no global_id");
        assert!(missing.to_string().contains("global_id is missing"), "{missing}");
        let text = "\u{feff}name,global_id,zone_ids\n\"A\nB\",1,\nC,2,x\\|y|z\nD,3,,,\n\u{1F9D1},4\n";
        let mut reader = Reader::open(text.as_bytes(), Format::Csv, Kind::Users).expect("a header");
        let mut next = || reader.next().expect("memory").expect("a record");
        let read = |record: Record| read_user(&record.object.expect("an object")).expect("valid");
        let first = next();
        assert_eq!((first.line, read(first).name.as_str()), (2, "A\nB"));
        let second = next();
        assert_eq!(second.line, 4);
        assert_eq!(read(second).zone_ids, Some(vec!["x|y".to_owned(), "z".to_owned()]));
        assert_eq!(next().object.expect_err("too long"), "5 fields, but the header names 3");
        let short = read(next());
        assert_eq!((short.name.as_str(), short.zone_ids), ("\u{1F9D1}", None));
    }

    #[test]
    fn lines_are_counted_past_blank_ones_and_in_every_style_of_line_end() {
        for end in ["\n", "\r\n"] {
            let text = ["global_id,name", "1,A", "", "", "2,\"B\nB\"", "3,C", "4,D"].join(end);
            let mut reader = Reader::open(text.as_bytes(), Format::Csv, Kind::Users).expect("a header");
            let lines: Vec<u64> =
                std::iter::from_fn(|| reader.next().expect("memory")).map(|record| record.line).collect();
            assert_eq!(lines, [2, 5, 7, 8], "{end:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            global_id in any::<i64>(),
            name in "[^\\p{Cc}]{1,50}|[\"',;|\\\\\n\r\t\u{1F9D1}a ]{1,20}",
            zone_ids in prop::collection::hash_set("[^\\p{Cc}]{1,8}|[|\\\\,\"]{1,4}", 0..5),
            is_csv: bool,
        ) {
            let zone_ids: Vec<String> = zone_ids.into_iter().collect();
            let format = if is_csv { Format::Csv } else { Format::Jsonl };
            let found = round_trip(&[user(global_id, &name, &zone_ids)], format);
            prop_assert_eq!(found, [UserRecord { global_id, name, zone_ids: Some(zone_ids) }]);
        }

        #[test]
        fn no_bytes_stop_a_reader(bytes in prop::collection::vec(any::<u8>(), 0..200), is_csv: bool) {
            let mut file = if is_csv { b"global_id,name,zone_ids\n".to_vec() } else { Vec::new() };
            file.extend(bytes);
            let format = if is_csv { Format::Csv } else { Format::Jsonl };
            let mut reader = Reader::open(file.as_slice(), format, Kind::Users).expect("a header");
            while let Some(record) = reader.next().expect("memory does not fail") {
                if let Ok(object) = record.object {
                    prop_assert!(read_user(&object).map_or_else(|error| !explain(&error).is_empty(), |_| true));
                }
            }
        }
    }
}
