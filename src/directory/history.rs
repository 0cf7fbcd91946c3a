//! Which entries of the dict changed lately, so that most clients' deltas need no database. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use imbl::Vector;

use super::cursor::Cursor;

/// How many changed ids are remembered.
const REMEMBERED_IDS: usize = 100_000;

/// The changes between one moment and now; a new one shares with the old.
#[derive(Clone)]
pub struct DictHistory {
    /// Every change after this moment is remembered.
    floor: Cursor,
    /// Oldest first: the moment by which these ids had changed.
    changes: Vector<(Cursor, Arc<[i64]>)>,
    ids: usize,
}

impl DictHistory {
    pub fn starting_at(floor: Cursor) -> Self {
        Self { floor, changes: Vector::new(), ids: 0 }
    }

    /// With the changes that were brought by the step to `cursor`.
    pub fn with(&self, cursor: Cursor, ids: Vec<i64>) -> Self {
        let mut next = self.clone();
        if !ids.is_empty() {
            next.ids += ids.len();
            next.changes.push_back((cursor, ids.into()));
        }
        while next.ids > REMEMBERED_IDS {
            let Some((cursor, ids)) = next.changes.pop_front() else { break };
            next.ids -= ids.len();
            next.floor = cursor;
        }
        next
    }

    /// The ids that changed after `since`, ascending; `None` when that is too long ago.
    /// O(changes after `since`).
    pub fn find_changes(&self, since: &Cursor) -> Option<Vec<i64>> {
        if !self.floor.is_within(since) {
            return None;
        }
        let newer = self.changes.iter().rev().take_while(|(cursor, _)| !cursor.is_within(since));
        let ids: BTreeSet<i64> = newer.flat_map(|(_, ids)| ids.iter().copied()).collect();
        Some(ids.into_iter().collect())
    }
}
