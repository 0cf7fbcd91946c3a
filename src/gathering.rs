//! Whether it is worth to hold a group back for those who are expected to join it. Pure.
//!
//! Clients who ask one thing after the other ask again as soon as they are answered. What they ask for together costs
//! one round trip, whoever many they are; left alone they split into groups that take turns, of which each pays for
//! its own. So a group waits shortly for those who were just answered; and, after it waited in vain, the next ones do
//! not for longer and longer, so that clients who do not come back at once are hardly ever held up.

use std::time::Duration;

/// How long a group is held back at most. The runtime's timer is up to as much late.
pub const PATIENCE: Duration = Duration::from_millis(1);
/// Groups that are not waited for after a wait in vain, doubled each time up to the longest.
const SHORTEST_REST: u32 = 8;
const LONGEST_REST: u32 = 1024;

#[derive(Default)]
pub struct Gathering {
    rest: u32,
    next_rest: u32,
}

impl Gathering {
    /// Asked once for each group that is smaller than expected.
    pub fn may_wait(&mut self) -> bool {
        let may = self.rest == 0;
        self.rest = self.rest.saturating_sub(1);
        may
    }

    /// A group was held back; `came`: whether it became as large as expected.
    pub fn waited(&mut self, came: bool) {
        self.next_rest = if came { 0 } else { (self.next_rest * 2).clamp(SHORTEST_REST, LONGEST_REST) };
        self.rest = self.next_rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_wait_in_vain_nobody_is_waited_for_for_longer_and_longer() {
        let mut gathering = Gathering::default();
        let mut rests = Vec::new();
        for _ in 0..10 {
            assert!(gathering.may_wait());
            gathering.waited(false);
            let mut rest = 0;
            while gathering.rest > 0 {
                assert!(!gathering.may_wait());
                rest += 1;
            }
            rests.push(rest);
        }
        assert_eq!(rests[..4], [8, 16, 32, 64]);
        assert_eq!(rests.last(), Some(&LONGEST_REST));
    }

    #[test]
    fn those_who_come_are_waited_for_again_and_end_the_doubling() {
        let mut gathering = Gathering::default();
        gathering.waited(false);
        gathering.waited(false);
        gathering.waited(true);
        assert!(gathering.may_wait() && gathering.may_wait());
        gathering.waited(false);
        assert_eq!(gathering.rest, SHORTEST_REST);
    }
}
