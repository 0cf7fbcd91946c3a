//! Points in time on the wire: microseconds, infinity included, without a detour through a calendar. Transactions' numbers.

use bytes::BytesMut;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, accepts, to_sql_checked};

use crate::time::Timestamp;

/// 2000-01-01T00:00:00Z, where the server counts from.
const SERVER_EPOCH_MICROS: i64 = 946_684_800_000_000;

#[derive(Debug, Clone, Copy)]
pub struct Time(pub Timestamp);

/// The number of a transaction. It may come a second time after a crash, in another epoch.
#[derive(Debug, Clone, Copy)]
pub struct Xid(pub u64);

type CodecError = Box<dyn std::error::Error + Sync + Send>;

impl<'a> FromSql<'a> for Time {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, CodecError> {
        let micros = i64::from_be_bytes(raw.try_into()?);
        Ok(Self(Timestamp::from_micros(micros.saturating_add(SERVER_EPOCH_MICROS))))
    }

    accepts!(TIMESTAMPTZ);
}

impl ToSql for Time {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, CodecError> {
        out.extend_from_slice(&self.0.as_micros().saturating_sub(SERVER_EPOCH_MICROS).to_be_bytes());
        Ok(IsNull::No)
    }

    accepts!(TIMESTAMPTZ);
    to_sql_checked!();
}

impl<'a> FromSql<'a> for Xid {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, CodecError> {
        Ok(Self(u64::from_be_bytes(raw.try_into()?)))
    }

    accepts!(XID8);
}

impl ToSql for Xid {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, CodecError> {
        out.extend_from_slice(&self.0.to_be_bytes());
        Ok(IsNull::No)
    }

    accepts!(XID8);
    to_sql_checked!();
}
