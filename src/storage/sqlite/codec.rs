//! Columns as our types. The `sqlite3` shell stores any bytes as text: what is no UTF-8 is shown with
//! replacement characters instead of keeping everybody from the whole table.

use std::borrow::Cow;

use rusqlite::types::ValueRef;
use rusqlite::{Result, Row};

use crate::time::Timestamp;

pub fn text<'row>(row: &'row Row<'_>, index: usize) -> Result<Cow<'row, str>> {
    Ok(optional_text(row, index)?.unwrap_or_default())
}

pub fn optional_text<'row>(row: &'row Row<'_>, index: usize) -> Result<Option<Cow<'row, str>>> {
    match row.get_ref(index)? {
        ValueRef::Text(bytes) => Ok(Some(String::from_utf8_lossy(bytes))),
        // The tables are STRICT: what is not text is null.
        _ => Ok(None),
    }
}

pub fn time(row: &Row<'_>, index: usize) -> Result<Timestamp> {
    row.get(index).map(Timestamp::from_micros)
}

pub fn optional_time(row: &Row<'_>, index: usize) -> Result<Option<Timestamp>> {
    row.get::<_, Option<i64>>(index).map(|micros| micros.map(Timestamp::from_micros))
}
