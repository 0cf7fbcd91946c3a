//! Who waits for which validation. A reader joins the round that is still *collecting*; the driver
//! takes that round before it asks the database, so a reader is never answered from a validation that
//! began before it arrived. Knows no store and no task; time is handed in.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::SetOnce;

use super::super::View;
use crate::store_error::StoreError;

/// So few readers are not worth a validation of their own while another is under way.
const LEAST_HALF: usize = 8;
/// In which the usual number of readers is counted; also how many validations it takes to forget most of a reader.
const PARTS: usize = 64;

/// What a round of readers is told.
pub type Answer = Result<View, StoreError>;

/// Readers who share one answer.
pub struct Round {
    number: u64,
    answer: SetOnce<Answer>,
}

impl Round {
    fn new(number: u64) -> Arc<Self> {
        Arc::new(Self { number, answer: SetOnce::new() })
    }

    /// Cancel-safe: who leaves disturbs nobody.
    pub async fn answered(&self) -> &Answer {
        self.answer.wait().await
    }
}

pub struct Rounds {
    patience: Duration,
    state: Mutex<State>,
}

struct State {
    collecting: Arc<Round>,
    /// When its first reader came; `None` while it has none.
    wanted_since: Option<Instant>,
    /// How many readers it has.
    readers: usize,
    /// Taken by the driver and not answered yet, oldest first.
    taken: VecDeque<Taken>,
    /// How many readers wait when a validation comes back, at most: forgotten slowly, as those who were just answered
    /// are on their way and not seen. In parts of a reader.
    usual_readers: usize,
    /// The collecting round is answered already, and no other follows.
    is_closed: bool,
}

struct Taken {
    /// When its first reader came.
    since: Instant,
    readers: usize,
    round: Arc<Round>,
}

impl State {
    /// Half of those who usually wait. Readers who ask again as soon as they are answered gather in one round;
    /// cut in two, one half is validated while the other is answered.
    fn half(&self) -> usize {
        self.usual_readers.div_ceil(2 * PARTS).max(LEAST_HALF)
    }
}

impl Rounds {
    /// `patience`: how long a reader waits at most.
    pub fn new(patience: Duration) -> Self {
        let state = State {
            collecting: Round::new(1),
            wanted_since: None,
            readers: 0,
            taken: VecDeque::new(),
            usual_readers: 0,
            is_closed: false,
        };
        Self { patience, state: Mutex::new(state) }
    }

    /// The round to wait for, and whether its driver has to be woken.
    pub fn join(&self, now: Instant) -> (Arc<Round>, bool) {
        let mut state = self.state.lock();
        state.wanted_since.get_or_insert(now);
        state.readers += 1;
        (state.collecting.clone(), state.readers == 1 || state.readers == state.half())
    }

    /// Whether half of those who usually wait have come.
    pub fn is_half_full(&self) -> bool {
        let state = self.state.lock();
        state.readers >= state.half()
    }

    /// Whether so many usually wait that their rounds are cut in two.
    pub fn is_busy(&self) -> bool {
        self.state.lock().usual_readers / PARTS >= 2 * LEAST_HALF
    }

    /// How many readers the collecting round has.
    pub fn count_collecting(&self) -> usize {
        self.state.lock().readers
    }

    /// Closes the collecting round, whether or not it has readers; all that arrived so far are in the
    /// returned round or an earlier one.
    pub fn take(&self) -> u64 {
        let mut state = self.state.lock();
        let next = Round::new(state.collecting.number + 1);
        let round = std::mem::replace(&mut state.collecting, next);
        let number = round.number;
        let readers = std::mem::take(&mut state.readers);
        if let Some(since) = state.wanted_since.take() {
            state.taken.push_back(Taken { since, readers, round });
        }
        number
    }

    /// Whether someone waits whom no validation through round `covered` will answer.
    pub fn has_uncovered(&self, covered: u64) -> bool {
        let state = self.state.lock();
        state.wanted_since.is_some() || state.taken.back().is_some_and(|taken| taken.round.number > covered)
    }

    /// Answers every waiting round through `number`.
    pub fn answer_through(&self, number: u64, answer: impl Fn() -> Answer) {
        let answered: Vec<Taken> = {
            let mut state = self.state.lock();
            let waiting = state.readers + state.taken.iter().map(|taken| taken.readers).sum::<usize>();
            state.usual_readers = (state.usual_readers - state.usual_readers / PARTS).max(waiting * PARTS);
            let count = state.taken.partition_point(|taken| taken.round.number <= number);
            state.taken.drain(..count).collect()
        };
        answered.iter().for_each(|taken| taken.round.tell(answer()));
    }

    /// When the longest-waiting reader runs out of patience. `outage_since`: nobody waits longer than
    /// the outage has lasted plus the patience, so a long outage is answered at once.
    pub fn next_deadline(&self, outage_since: Option<Instant>) -> Option<Instant> {
        let state = self.state.lock();
        let first = state.taken.front().map(|taken| taken.since).or(state.wanted_since)?;
        Some(self.deadline(first, outage_since))
    }

    /// Answers those whose time is over.
    pub fn answer_overdue(&self, now: Instant, outage_since: Option<Instant>, answer: impl Fn() -> Answer) {
        let mut overdue = Vec::new();
        {
            let mut state = self.state.lock();
            while state.taken.front().is_some_and(|taken| self.deadline(taken.since, outage_since) <= now) {
                overdue.extend(state.taken.pop_front().map(|taken| taken.round));
            }
            if state.wanted_since.is_some_and(|since| self.deadline(since, outage_since) <= now) {
                state.wanted_since = None;
                state.readers = 0;
                let next = Round::new(state.collecting.number + 1);
                overdue.push(std::mem::replace(&mut state.collecting, next));
            }
        }
        overdue.iter().for_each(|round| round.tell(answer()));
    }

    /// Answers everyone, also those who come later.
    pub fn close(&self, answer: impl Fn() -> Answer) {
        let number = self.take();
        self.answer_through(number, &answer);
        let last = {
            let mut state = self.state.lock();
            state.is_closed = true;
            state.collecting.clone()
        };
        last.tell(answer());
    }

    pub fn is_closed(&self) -> bool {
        self.state.lock().is_closed
    }

    fn deadline(&self, since: Instant, outage_since: Option<Instant>) -> Instant {
        outage_since.map_or(since, |outage| outage.min(since)) + self.patience
    }
}

impl Round {
    fn tell(&self, answer: Answer) {
        if self.answer.set(answer).is_err() {
            tracing::debug!(round = self.number, "a round of readers was answered twice; the first answer counts");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal() -> Answer {
        Err(StoreError::unavailable_because("database", "test"))
    }

    fn is_answered(round: &Round) -> bool {
        round.answer.get().is_some()
    }

    #[test]
    fn a_reader_who_comes_after_the_take_waits_for_the_next_validation() {
        let rounds = Rounds::new(Duration::from_secs(2));
        let now = Instant::now();
        let (early, wake) = rounds.join(now);
        assert!(wake && !rounds.join(now).1, "only the first reader wakes the driver");
        let number = rounds.take();
        let (late, wake) = rounds.join(now);
        assert!(wake);
        rounds.answer_through(number, refusal);
        assert!(is_answered(&early) && !is_answered(&late));
        assert!(rounds.has_uncovered(number));
    }

    #[test]
    fn half_of_those_who_usually_wait_wake_the_driver_again() {
        let rounds = Rounds::new(Duration::from_secs(2));
        let now = Instant::now();
        for _ in 0..100 {
            let woken: Vec<usize> = (1..=64).filter(|_| rounds.join(now).1).collect();
            assert_eq!(woken[0], 1);
            rounds.answer_through(rounds.take(), refusal);
        }
        let woken: Vec<usize> = (1..=64).filter(|_| rounds.join(now).1).collect();
        assert!(woken.len() == 2 && (28..=32).contains(&woken[1]), "{woken:?}");
        assert!(rounds.is_half_full());
        rounds.take();
        assert!(!rounds.is_half_full());
    }

    #[test]
    fn nobody_waits_longer_than_the_patience_or_at_all_in_a_long_outage() {
        let rounds = Rounds::new(Duration::from_secs(2));
        let begin = Instant::now();
        let (taken, _) = rounds.join(begin);
        rounds.take();
        let (collecting, _) = rounds.join(begin + Duration::from_secs(1));
        assert_eq!(rounds.next_deadline(None), Some(begin + Duration::from_secs(2)));
        rounds.answer_overdue(begin + Duration::from_secs(2), None, refusal);
        assert!(is_answered(&taken) && !is_answered(&collecting));
        rounds.answer_overdue(begin + Duration::from_secs(2), Some(begin), refusal);
        assert!(is_answered(&collecting));
        assert!(!rounds.has_uncovered(u64::MAX) && rounds.next_deadline(None).is_none());
    }
}
