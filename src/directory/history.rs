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
    /// Oldest first.
    steps: Vector<Arc<Step>>,
    ids: usize,
}

/// From one moment of this replica to its next.
struct Step {
    from: Cursor,
    to: Cursor,
    /// Whose entry at `to` is another one than at `from`.
    changed: Box<[i64]>,
    /// Whose entry was written in between, also where it is again what it was: a client that holds a
    /// moment inside the step, given to it by another instance, may have seen the one between.
    written: Box<[i64]>,
}

impl DictHistory {
    pub fn starting_at(floor: Cursor) -> Self {
        Self { floor, steps: Vector::new(), ids: 0 }
    }

    /// With one step more.
    pub fn with(&self, from: Cursor, to: Cursor, changed: Vec<i64>, written: Vec<i64>) -> Self {
        let mut next = self.clone();
        if !changed.is_empty() || !written.is_empty() {
            next.ids += changed.len() + written.len();
            next.steps.push_back(Arc::new(Step { from, to, changed: changed.into(), written: written.into() }));
        }
        while next.ids > REMEMBERED_IDS {
            let Some(step) = next.steps.pop_front() else { break };
            next.ids -= step.changed.len() + step.written.len();
            next.floor = step.to.clone();
        }
        next
    }

    /// The ids that changed after `since`, ascending; `None` when that is too long ago.
    /// O(changes after `since`).
    pub fn find_changes(&self, since: &Cursor) -> Option<Vec<i64>> {
        if !self.floor.is_within(since) {
            return None;
        }
        let mut ids = BTreeSet::new();
        for step in self.steps.iter().rev().take_while(|step| !step.to.is_within(since)) {
            ids.extend(&step.changed);
            if !since.is_within(&step.from) {
                ids.extend(&step.written);
            }
        }
        Some(ids.into_iter().collect())
    }
}
