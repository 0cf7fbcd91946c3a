//! One client's place in the log: which alerts it gets next and from where. Pure: no socket, no clock.
//!
//! A session is at a position: everything up to it was handed out or does not match. From there it is
//! served out of the recent alerts while they reach back to its position, else out of the log, so a
//! slow client costs a position and no queue.

use std::sync::Arc;

use super::hub::{Entry, Recent};
use crate::alerts::types::AlertFilter;

/// Handed out at once; then the client has to have taken them.
const BATCH_ALERTS: usize = 256;
pub const BATCH_BYTES: usize = 1024 * 1024;

pub struct Session {
    filter: AlertFilter,
    /// `None`: it has to be shown the newest first.
    position: Option<i64>,
    /// The log that the position is of; `None` before the first look.
    generation: Option<u64>,
}

/// What is to be done for a session.
pub enum Step {
    /// In the order of `seq`, never empty.
    Deliver(Vec<Arc<Entry>>),
    /// Nothing new for it; wait for the hub.
    Wait,
    /// Read the newest matching alerts.
    History,
    /// Read the log from there.
    Replay { after: i64, limit: u32 },
    /// The log was replaced by another one (a restored backup): the position means nothing any more.
    LogReplaced,
}

impl Session {
    pub fn new(filter: AlertFilter, after: Option<i64>) -> Self {
        Self { filter, position: after, generation: None }
    }

    pub fn filter(&self) -> &AlertFilter {
        &self.filter
    }

    pub fn take(&mut self, recent: &Recent) -> Step {
        if *self.generation.get_or_insert(recent.generation) != recent.generation {
            return Step::LogReplaced;
        }
        let Some(position) = self.position else { return Step::History };
        if position >= recent.last_seq {
            return Step::Wait;
        }
        if recent.entries.front().is_none_or(|oldest| oldest.seq > position + 1) {
            return Step::Replay { after: position, limit: BATCH_ALERTS as u32 };
        }
        let mut batch = Vec::new();
        let mut bytes = 0;
        let first = recent.entries.partition_point(|entry| entry.seq <= position);
        for entry in recent.entries.range(first..) {
            if self.filter.matches(&entry.columns) {
                if batch.len() == BATCH_ALERTS || (bytes + entry.bytes() > BATCH_BYTES && !batch.is_empty()) {
                    return Step::Deliver(batch);
                }
                bytes += entry.bytes();
                batch.push(entry.clone());
            }
            self.position = Some(entry.seq);
        }
        if batch.is_empty() { Step::Wait } else { Step::Deliver(batch) }
    }

    /// What the log answered. `is_complete`: nothing that matches is left up to `end`, the end of the log
    /// as it was known before the question.
    pub fn replayed(&mut self, entries: Vec<Arc<Entry>>, is_complete: bool, end: i64) -> Vec<Arc<Entry>> {
        let position = self.position.unwrap_or(0);
        let last = entries.last().map_or(position, |entry| entry.seq).max(position);
        self.position = Some(if is_complete { last.max(end) } else { last });
        entries
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::alerts::types::{AlertColumns, StoredAlert};
    use crate::time::Timestamp;

    const PAGE_BYTES: usize = 20_000;

    fn entry(seq: i64, bytes: usize) -> Arc<Entry> {
        let zone_id = Some(if seq % 3 == 0 { "A".into() } else { "B".into() });
        Arc::new(Entry::new(StoredAlert {
            seq,
            received_at: Timestamp::from_micros(0),
            occurred_at: None,
            source: "http".to_owned(),
            columns: AlertColumns { zone_id, ..AlertColumns::default() },
            user_name: None,
            body: format!("\"{}\"", "x".repeat(bytes)).into(),
        }))
    }

    /// The log, its follower and one session, taking turns in any order.
    struct World {
        log: Vec<Arc<Entry>>,
        recent: Recent,
        session: Session,
        got: Vec<i64>,
    }

    impl World {
        fn append(&mut self, bytes: usize) {
            self.log.push(entry(self.log.len() as i64 + 1, bytes));
        }

        fn follow(&mut self, count: usize) {
            for _ in 0..count {
                if let Some(next) = self.log.get(usize::try_from(self.recent.last_seq).expect("positive")) {
                    self.recent.push(next.clone());
                }
            }
        }

        /// One step of the session; `appended`: comes between the look at the end and the read.
        fn step(&mut self, appended: usize) -> bool {
            let end = self.recent.last_seq;
            let filter = self.session.filter().clone();
            let step = self.session.take(&self.recent);
            for _ in 0..appended {
                self.append(1);
            }
            let matching = |log: &[Arc<Entry>]| -> Vec<Arc<Entry>> {
                log.iter().filter(|entry| filter.matches(&entry.columns)).cloned().collect()
            };
            let delivered = match step {
                Step::Deliver(entries) => entries,
                Step::Wait | Step::LogReplaced => return false,
                Step::History => {
                    let all = matching(&self.log);
                    let newest = all[all.len().saturating_sub(100)..].to_vec();
                    self.session.replayed(newest, true, end)
                }
                Step::Replay { after, limit } => {
                    let all = matching(&self.log[usize::try_from(after).expect("positive")..]);
                    // As the log does it: the budget of bytes may cut a page as well, but not to nothing.
                    let mut bytes = 0;
                    let fits = |(index, entry): &(usize, &Arc<Entry>)| {
                        bytes += entry.bytes();
                        *index == 0 || (*index < limit as usize && bytes <= PAGE_BYTES)
                    };
                    let page: Vec<_> =
                        all.iter().enumerate().take_while(fits).map(|(_, entry)| entry.clone()).collect();
                    let is_complete = page.len() == all.len();
                    self.session.replayed(page, is_complete, end)
                }
            };
            self.got.extend(delivered.iter().map(|entry| entry.seq));
            true
        }
    }

    #[test]
    fn a_position_in_a_log_that_was_replaced_is_not_followed() {
        let mut session = Session::new(AlertFilter::default(), Some(5));
        assert!(matches!(session.take(&Recent::at(5)), Step::Wait));
        let mut restored = Recent::at(3);
        restored.generation = 1;
        assert!(matches!(session.take(&restored), Step::LogReplaced));
    }

    proptest! {
        #[test]
        fn every_matching_alert_comes_once_and_in_order(
            turns in prop::collection::vec((0..4_u8, 1..400_usize), 1..60),
            after in prop::option::of(0..5_i64),
            is_filtered in any::<bool>(),
        ) {
            let filter = AlertFilter { zone_ids: if is_filtered { vec!["A".to_owned()] } else { vec![] }, ..AlertFilter::default() };
            let session = Session::new(filter.clone(), after);
            let mut world = World { log: Vec::new(), recent: Recent::at(0), session, got: Vec::new() };
            (0..5).for_each(|_| world.append(1));
            let mut start = None;
            for (turn, count) in turns {
                match turn {
                    0 => (0..count).for_each(|_| world.append(count * 8)),
                    1 => world.follow(count),
                    _ => {
                        world.step(if turn == 3 { count % 4 } else { 0 });
                        start = start.or(world.got.first().copied());
                    }
                }
            }
            world.follow(world.log.len());
            while world.step(0) {}
            let begin = after.map_or_else(|| world.got.first().copied().unwrap_or(i64::MAX), |after| after + 1);
            let expected: Vec<i64> = world.log.iter().filter(|entry| entry.seq >= begin && filter.matches(&entry.columns)).map(|entry| entry.seq).collect();
            prop_assert_eq!(world.got, expected);
        }
    }
}
