//! The directory in memory: immutable snapshots, swapped whole. Pure.

use std::sync::Arc;

use super::cursor::Cursor;
use super::dict::DictBody;
use super::types::{User, Zone};

pub struct Snapshot {}

impl Snapshot {
    pub fn cursor(&self) -> &Cursor {
        todo!()
    }
    /// O(log n).
    pub fn find_user(&self, id: i64) -> Option<&Arc<User>> {
        let _ = id;
        todo!()
    }
    /// O(log n).
    pub fn find_user_by_global_id(&self, global_id: i64) -> Option<&Arc<User>> {
        let _ = global_id;
        todo!()
    }
    /// By `global_id`; O(log n + limit).
    pub fn list_users(&self, skip: usize, limit: usize) -> Vec<Arc<User>> {
        let _ = (skip, limit);
        todo!()
    }
    /// By `global_id`; O(answer · log n). Empty for an unknown zone.
    pub fn list_users_in_zone(&self, zone_id: &str) -> Vec<Arc<User>> {
        let _ = zone_id;
        todo!()
    }
    pub fn find_zone(&self, zone_id: &str) -> Option<&Arc<Zone>> {
        let _ = zone_id;
        todo!()
    }
    /// By `zone_id`.
    pub fn list_zones(&self, skip: usize, limit: usize) -> &[Arc<Zone>] {
        let _ = (skip, limit);
        todo!()
    }
    pub fn count_users(&self) -> usize {
        todo!()
    }
    pub fn count_zones(&self) -> usize {
        todo!()
    }
    pub fn count_users_in_zone(&self, zone_id: &str) -> usize {
        let _ = zone_id;
        todo!()
    }
    /// Weak entity tag of the dict, with `W/` and quotes: equal on every instance at equal content.
    pub fn dict_etag(&self) -> &str {
        todo!()
    }
    pub fn dict_json(&self) -> DictBody {
        todo!()
    }
    /// One gzip member; deflates chunks that nobody asked for yet, so it may take milliseconds.
    pub fn dict_gzip(&self) -> DictBody {
        todo!()
    }
    /// (global_id, name), ascending.
    pub fn dict_entries(&self) -> impl Iterator<Item = (i64, &str)> {
        std::iter::empty()
    }
    /// Estimated memory.
    pub fn count_bytes(&self) -> usize {
        todo!()
    }
}
