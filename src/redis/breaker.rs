//! Keeps calls away from a server that does not answer, so that nobody waits for it in vain.
//! Pure: time is passed in.

use std::time::{Duration, Instant};

/// So many failures in a row open it.
const FAILURES_TO_OPEN: u32 = 5;
/// While it is open, one call is let through this often.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// Closed at first.
#[derive(Debug, Default)]
pub struct Breaker {
    failures_in_a_row: u32,
    /// While open: when the next call is let through.
    next_probe_at: Option<Instant>,
}

impl Breaker {
    /// Whether a call may be made now. While open, who gets a yes is the probe; should it never
    /// report back, the next one comes an interval later all the same.
    pub fn admits(&mut self, now: Instant) -> bool {
        match &mut self.next_probe_at {
            None => true,
            Some(at) if *at <= now => {
                *at = now + PROBE_INTERVAL;
                true
            }
            Some(_) => false,
        }
    }

    pub fn record_success(&mut self) {
        *self = Self::default();
    }

    pub fn record_failure(&mut self, now: Instant) {
        self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
        if self.failures_in_a_row >= FAILURES_TO_OPEN && self.next_probe_at.is_none() {
            self.next_probe_at = Some(now + PROBE_INTERVAL);
        }
    }

    pub fn is_open(&self) -> bool {
        self.next_probe_at.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::default();
        for _ in 0..FAILURES_TO_OPEN {
            breaker.record_failure(now);
        }
        breaker
    }

    #[test]
    fn failures_open_it_only_when_they_come_in_a_row() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        for _ in 0..FAILURES_TO_OPEN - 1 {
            breaker.record_failure(now);
        }
        breaker.record_success();
        for _ in 0..FAILURES_TO_OPEN - 1 {
            breaker.record_failure(now);
        }
        assert!(breaker.admits(now) && !breaker.is_open());
        breaker.record_failure(now);
        assert!(!breaker.admits(now) && breaker.is_open());
    }

    #[test]
    fn an_open_one_lets_one_call_through_each_second_whatever_becomes_of_it() {
        let now = Instant::now();
        let mut breaker = opened(now);
        let admitted = |breaker: &mut Breaker, millis| breaker.admits(now + Duration::from_millis(millis));
        assert!(!admitted(&mut breaker, 999));
        assert!(admitted(&mut breaker, 1000));
        assert!(!admitted(&mut breaker, 1001), "the probe is under way");
        breaker.record_failure(now + Duration::from_millis(1050));
        assert!(!admitted(&mut breaker, 1999));
        assert!(admitted(&mut breaker, 2000));
        assert!(admitted(&mut breaker, 3000), "the last probe never reported back");
    }

    #[test]
    fn a_success_closes_it_at_once() {
        let now = Instant::now();
        let mut breaker = opened(now);
        breaker.record_success();
        assert!(!breaker.is_open() && breaker.admits(now) && breaker.admits(now));
    }
}
