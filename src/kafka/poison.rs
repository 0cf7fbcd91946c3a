//! Notices when most of what comes is no alert. Pure.

use std::collections::VecDeque;

/// So many of the newest messages are looked at.
const WINDOW: usize = 1_000;
/// More bad ones than this among them raise the alarm.
const ALARM: usize = WINDOW / 2;
/// Fewer than this end it; lower, so that a rate near the limit is reported once.
const CALM: usize = WINDOW / 4;

#[derive(Default)]
pub struct PoisonWatch {
    newest: VecDeque<bool>,
    bad: usize,
    is_alarmed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Alarm,
    Calm,
}

impl PoisonWatch {
    /// O(1). Tells when the alarm begins and when it ends.
    pub fn see(&mut self, is_bad: bool) -> Option<Change> {
        if self.newest.len() == WINDOW && self.newest.pop_front() == Some(true) {
            self.bad -= 1;
        }
        self.newest.push_back(is_bad);
        self.bad += usize::from(is_bad);
        let is_alarmed = if self.is_alarmed { self.bad >= CALM } else { self.bad > ALARM };
        if std::mem::replace(&mut self.is_alarmed, is_alarmed) == is_alarmed {
            return None;
        }
        Some(if is_alarmed { Change::Alarm } else { Change::Calm })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alarm_begins_above_half_and_ends_once_it_is_calm() {
        let mut watch = PoisonWatch::default();
        let mut feed = |is_bad: bool, count: usize| -> Vec<(usize, Change)> {
            (1..=count).filter_map(|at| watch.see(is_bad).map(|change| (at, change))).collect()
        };
        assert_eq!(feed(true, ALARM), []);
        assert_eq!(feed(true, 300), [(1, Change::Alarm)]);
        // 800 bad ones; they leave the window after 1,000 more, and fewer than 250 remain after 751.
        assert_eq!(feed(false, WINDOW), [(751, Change::Calm)]);
    }
}
