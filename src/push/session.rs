//! One client's place in the log: which alerts it gets next and from where. Pure: no socket, no clock.
//!
//! A session is at a position: everything up to it was handed out or does not match. From there it is
//! served out of the recent alerts while they reach back to its position, else out of the log, so a
//! slow client costs a position and no queue.

use super::hub::{Entry, Recent};
use crate::alerts::types::AlertFilter;

/// How many alerts a client that names no position is shown first, if they are not too large together.
pub const HISTORY: u32 = 100;
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
    /// Alerts were handed out, in the order of `seq`, never none.
    Delivered,
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

    /// Whether it has to be shown the newest first.
    pub fn is_new(&self) -> bool {
        self.position.is_none()
    }

    /// Hands out what of the recent alerts comes next.
    pub fn take(&mut self, recent: &Recent, mut deliver: impl FnMut(&Entry)) -> Step {
        if *self.generation.get_or_insert(recent.generation) != recent.generation {
            return Step::LogReplaced;
        }
        let Some(position) = self.position.or_else(|| self.find_beginning(recent)) else { return Step::History };
        self.position = Some(position);
        if position >= recent.last_seq {
            return Step::Wait;
        }
        if recent.entries.front().is_none_or(|oldest| oldest.seq > position + 1) {
            return Step::Replay { after: position, limit: BATCH_ALERTS as u32 };
        }
        let (mut count, mut bytes) = (0, 0);
        let first = recent.entries.partition_point(|entry| entry.seq <= position);
        for entry in recent.entries.range(first..) {
            if self.filter.matches(&entry.columns) {
                if count == BATCH_ALERTS || (bytes + entry.bytes() > BATCH_BYTES && count > 0) {
                    return Step::Delivered;
                }
                (count, bytes) = (count + 1, bytes + entry.bytes());
                deliver(entry);
            }
            self.position = Some(entry.seq);
        }
        if count == 0 { Step::Wait } else { Step::Delivered }
    }

    /// Before the newest matching alerts, if the recent ones hold them all.
    fn find_beginning(&self, recent: &Recent) -> Option<i64> {
        let (mut position, mut count, mut bytes) = (recent.last_seq, 0, 0);
        for entry in recent.entries.iter().rev().filter(|entry| self.filter.matches(&entry.columns)) {
            bytes += entry.bytes();
            if count == HISTORY || (bytes > BATCH_BYTES && count > 0) {
                return Some(position);
            }
            (position, count) = (entry.seq - 1, count + 1);
        }
        (count == HISTORY || recent.is_whole_log).then_some(position)
    }

    /// The log's answer ended at `last`, if it held anything. `is_complete`: nothing that matches is left up
    /// to `end`, the end of the log as it was known before the question.
    pub fn replayed(&mut self, last: Option<i64>, is_complete: bool, end: i64) {
        let last = last.max(self.position).unwrap_or(0);
        self.position = Some(if is_complete { last.max(end) } else { last });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

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
            let got = &mut self.got;
            let step = self.session.take(&self.recent, |entry| got.push(entry.seq));
            for _ in 0..appended {
                self.append(1);
            }
            let matching = |log: &[Arc<Entry>]| -> Vec<Arc<Entry>> {
                log.iter().filter(|entry| filter.matches(&entry.columns)).cloned().collect()
            };
            let (page, is_complete) = match step {
                Step::Delivered => return true,
                Step::Wait | Step::LogReplaced => return false,
                Step::History => {
                    let all = matching(&self.log);
                    (all[all.len().saturating_sub(100)..].to_vec(), true)
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
                    (page, is_complete)
                }
            };
            self.session.replayed(page.last().map(|entry| entry.seq), is_complete, end);
            self.got.extend(page.iter().map(|entry| entry.seq));
            true
        }
    }

    #[test]
    fn a_position_in_a_log_that_was_replaced_is_not_followed() {
        let mut session = Session::new(AlertFilter::default(), Some(5));
        assert!(matches!(session.take(&Recent::at(5), |_| {}), Step::Wait));
        let mut restored = Recent::at(3);
        restored.generation = 1;
        assert!(matches!(session.take(&restored, |_| {}), Step::LogReplaced));
    }

    #[test]
    fn the_newest_that_match_come_first_out_of_memory_if_they_are_all_there() {
        let first = |filter: &str, recent: &Recent| {
            let zone_ids = filter.split_terminator(',').map(str::to_owned).collect();
            let mut session = Session::new(AlertFilter { zone_ids, ..AlertFilter::default() }, None);
            let mut got = Vec::new();
            let step = session.take(recent, |entry| got.push(entry.seq));
            (matches!(step, Step::History), got)
        };
        let recent = |begin: i64, end: i64, bytes: usize| {
            let mut recent = Recent::at(begin);
            (begin + 1..=end).for_each(|seq| recent.push(entry(seq, bytes)));
            recent
        };
        assert_eq!(first("", &recent(0, 150, 1)), (false, (51..=150).collect()));
        assert_eq!(first("A", &recent(0, 400, 1)), (false, (34..=133).map(|third| third * 3).collect()));
        assert_eq!(first("A", &recent(0, 9, 1)), (false, vec![3, 6, 9]));
        assert_eq!(first("C", &recent(0, 9, 1)), (false, vec![]));
        assert_eq!(first("A", &recent(50, 340, 1)), (true, vec![]), "97 of them; older ones are in the log");
        assert_eq!(first("", &recent(50, 340, 1)).1.len(), 100);
        assert_eq!(first("", &recent(50, 60, 300_000)), (false, vec![58, 59, 60]), "1 MiB together");
        assert_eq!(first("", &recent(50, 60, 2_000_000)), (false, vec![60]));
        assert!(first("", &Recent::default()).0, "before the follower has begun");
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
