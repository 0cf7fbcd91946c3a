//! People, zones and assignments: what they are, what may be asked of them and what is refused.
//! Pure data; knows no store and no transport.

use std::sync::Arc;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use super::geometry::{Corners, PolygonFault};
use crate::store_error::StoreError;
use crate::time::Timestamp;

/// A known person.
#[derive(Clone, Debug, PartialEq)]
pub struct User {
    /// Our own key, given by the store.
    pub id: i64,
    /// The detectors' key, unique, never changed over HTTP.
    pub global_id: i64,
    pub name: Box<str>,
    /// The assignments in the order they were made.
    pub zone_ids: Box<[Arc<str>]>,
    pub created_at: Timestamp,
    pub updated_at: Option<Timestamp>,
}

/// A named quadrilateral on a floor or camera plane.
#[derive(Clone, Debug, PartialEq)]
pub struct Zone {
    pub zone_id: Arc<str>,
    pub zone_name: Box<str>,
    pub corners: Corners,
    pub created_at: Timestamp,
    pub updated_at: Option<Timestamp>,
}

impl Serialize for Zone {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        const NAMES: [[&str; 2]; 4] = [["x1", "y1"], ["x2", "y2"], ["x3", "y3"], ["x4", "y4"]];
        let mut zone = serializer.serialize_struct("Zone", 12)?;
        zone.serialize_field("zone_id", &self.zone_id)?;
        zone.serialize_field("zone_name", &self.zone_name)?;
        for (names, corner) in NAMES.iter().zip(&self.corners) {
            zone.serialize_field(names[0], &corner[0])?;
            zone.serialize_field(names[1], &corner[1])?;
        }
        zone.serialize_field("created_at", &self.created_at)?;
        zone.serialize_field("updated_at", &self.updated_at)?;
        zone.end()
    }
}

/// A user to be created; names and zones are already validated, repeats dropped.
#[derive(Clone, Debug, PartialEq)]
pub struct NewUser {
    pub global_id: i64,
    pub name: String,
    pub zone_ids: Vec<String>,
}

/// What to change of a user; `None` leaves the field alone.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UserPatch {
    pub name: Option<String>,
    /// Replaces the assignments, in this order.
    pub zone_ids: Option<Vec<String>>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct NewZone {
    pub zone_id: String,
    pub zone_name: String,
    pub corners: Corners,
}

/// What to change of a zone; the result must still be a simple polygon.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ZonePatch {
    pub zone_name: Option<String>,
    /// x and y of each corner.
    pub corners: [[Option<f64>; 2]; 4],
}

/// One change of the directory. Each is one unit of work: all of it happens, or nothing.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    CreateUser(NewUser),
    UpdateUser {
        id: i64,
        patch: UserPatch,
    },
    DeleteUser {
        id: i64,
    },
    /// Replaces the assignments of a user, in this order.
    AssignZones {
        id: i64,
        zone_ids: Vec<String>,
    },
    AddZone {
        id: i64,
        zone_id: String,
    },
    RemoveZone {
        id: i64,
        zone_id: String,
    },
    CreateZone(NewZone),
    UpdateZone {
        zone_id: String,
        patch: ZonePatch,
    },
    DeleteZone {
        zone_id: String,
    },
}

/// What a [`Command`] did.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// `CreateUser`, `UpdateUser`: the user as stored.
    User(User),
    /// `CreateZone`, `UpdateZone`: the zone as stored.
    Zone(Zone),
    /// `AssignZones`, `AddZone`, `RemoveZone`: the assignments as stored, and whether they changed.
    Assignments { zone_ids: Vec<Arc<str>>, changed: bool },
    /// `DeleteUser`, `DeleteZone`.
    Deleted,
}

/// Why a [`Command`] was not carried out; nothing was changed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    #[error("User with global_id {global_id} already exists")]
    UserExists { global_id: i64 },
    #[error("Zone with zone_id {zone_id} already exists")]
    ZoneExists { zone_id: String },
    #[error("User not found")]
    UserNotFound { id: i64 },
    #[error("Zone not found")]
    ZoneNotFound { zone_id: String },
    /// Zones that were named in an assignment and do not exist, in the order they were named.
    #[error("unknown zone: {}", .zone_ids.join(", "))]
    UnknownZones { zone_ids: Vec<String> },
    #[error("{0}")]
    InvalidPolygon(#[from] PolygonFault),
}

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Characters (Unicode scalar values) that a name or a zone id may have.
pub const NAME_CHARACTERS: std::ops::RangeInclusive<usize> = 1..=100;
