//! When a client is pinged, and when its silence means that nobody is there. Pure: the time is handed in.

use std::time::{Duration, Instant};

pub struct Pulse {
    interval: Duration,
    heard_at: Instant,
}

impl Pulse {
    pub fn new(interval: Duration, at: Instant) -> Self {
        Self { interval, heard_at: at }
    }

    /// Something of the client came.
    pub fn hear(&mut self, at: Instant) {
        self.heard_at = at;
    }

    /// A write that took so long kept the pings from being sent: the client took it, and owes no answer yet.
    pub fn wrote(&mut self, begun_at: Instant, at: Instant) {
        if at.duration_since(begun_at) > self.interval {
            self.heard_at = at;
        }
    }

    /// Three pings unanswered, and a quarter of the time to a fourth.
    pub fn is_dead(&self, at: Instant) -> bool {
        at.duration_since(self.heard_at) > self.interval * 13 / 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(20);

    #[test]
    fn who_is_silent_for_three_pings_is_dead_and_who_says_anything_is_not() {
        let begin = Instant::now();
        let after = |seconds: u64| begin + Duration::from_secs(seconds);
        let mut pulse = Pulse::new(INTERVAL, begin);
        assert!(!pulse.is_dead(after(65)) && pulse.is_dead(after(66)));
        pulse.hear(after(60));
        assert!(!pulse.is_dead(after(125)) && pulse.is_dead(after(126)));
    }

    #[test]
    fn who_took_a_long_write_owes_no_answer_to_pings_that_were_not_sent() {
        let begin = Instant::now();
        let after = |seconds: u64| begin + Duration::from_secs(seconds);
        let mut pulse = Pulse::new(INTERVAL, begin);
        pulse.wrote(after(10), after(12));
        assert!(pulse.is_dead(after(66)), "a short write says nothing: the kernel takes it for the dead too");
        pulse.wrote(after(10), after(70));
        assert!(!pulse.is_dead(after(130)) && pulse.is_dead(after(136)));
    }
}
