//! What was received of one partition and is not stored yet, and the budget that all partitions share.
//! Filled by the polling thread, emptied by the partition's keeper. Knows neither broker nor database.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

use crate::alerts::decode::DecodeError;
use crate::alerts::types::{NewAlert, NewDeadLetter};

/// One batch takes at most so much, but always one message.
const BATCH_MESSAGES: usize = 4_000;
const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// Beyond one of these the consumer is paused, below half of both it goes on.
const HELD_MESSAGES: usize = 20_000;
const HELD_BYTES: usize = 32 * 1024 * 1024;

/// A message that was read.
#[derive(Debug)]
pub struct Received {
    pub offset: i64,
    pub content: Content,
}

#[derive(Debug)]
pub enum Content {
    Alert(Box<NewAlert>),
    /// With the label of its metric.
    DeadLetter(Box<NewDeadLetter>, &'static str),
}

impl Content {
    pub fn dead_letter(letter: NewDeadLetter, error: &DecodeError) -> Self {
        Self::DeadLetter(Box::new(letter), error.label())
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Alert(new) => new.alert.body.len(),
            Self::DeadLetter(letter, _) => letter.raw.len(),
        }
    }
}

/// What goes into one append.
#[derive(Debug, Default)]
pub struct Taken {
    pub alerts: Vec<NewAlert>,
    pub dead_letters: Vec<NewDeadLetter>,
    /// A label of the metric for each dead letter.
    pub reasons: Vec<&'static str>,
    /// The offset behind the last of them.
    pub next: i64,
}

pub struct Inbox {
    state: Mutex<State>,
    arrived: Notify,
    budget: Arc<Budget>,
}

#[derive(Default)]
struct State {
    /// With the moment at which each came.
    messages: VecDeque<(Instant, Received)>,
    bytes: usize,
    /// `None`: shut. Else the lowest offset that may come: what is stored or waits already does not
    /// come a second time, whatever the client library redelivers.
    expected: Option<i64>,
    /// Whether the broker refused the offset to be read next.
    is_out_of_range: bool,
    /// Since when the batch under way waits.
    taken_since: Option<Instant>,
}

/// What a keeper is to do next.
#[derive(Debug)]
pub enum Next {
    Store(Taken),
    /// Everything received is taken, and the broker refuses to go on from here.
    FindPlace,
}

impl Inbox {
    pub fn new(budget: Arc<Budget>) -> Self {
        Self { state: Mutex::default(), arrived: Notify::new(), budget }
    }

    /// From now on takes what begins at `offset`.
    pub fn open(&self, offset: i64) {
        self.empty(Some(offset));
    }

    /// Drops what is in it, and what may still come.
    pub fn shut(&self) {
        self.empty(None);
    }

    fn empty(&self, expected: Option<i64>) {
        let before = std::mem::replace(&mut *self.state.lock(), State { expected, ..State::default() });
        self.budget.give_back(before.messages.len(), before.bytes);
    }

    /// Whether the message is wanted; else it is dropped.
    pub fn push(&self, received: Received) -> bool {
        let bytes = received.content.bytes();
        {
            let mut state = self.state.lock();
            if state.expected.is_none_or(|expected| received.offset < expected) {
                return false;
            }
            state.expected = Some(received.offset + 1);
            state.bytes += bytes;
            state.messages.push_back((Instant::now(), received));
            // Before anyone can take it out and give it back.
            self.budget.take(bytes);
        }
        self.arrived.notify_one();
        true
    }

    /// The offset from which on messages are wanted; `None` while shut.
    pub fn expected(&self) -> Option<i64> {
        self.state.lock().expected
    }

    pub fn report_out_of_range(&self) {
        self.state.lock().is_out_of_range = true;
        self.arrived.notify_one();
    }

    /// Waits for something to do.
    pub async fn next(&self) -> Next {
        loop {
            if let Some(next) = self.take() {
                return next;
            }
            self.arrived.notified().await;
        }
    }

    fn take(&self) -> Option<Next> {
        let mut taken = Taken::default();
        let (mut count, mut bytes) = (0, 0);
        {
            let mut state = self.state.lock();
            let Some((oldest, _)) = state.messages.front() else {
                state.taken_since = None;
                return std::mem::take(&mut state.is_out_of_range).then_some(Next::FindPlace);
            };
            state.taken_since = Some(*oldest);
            while let Some((_, received)) = state.messages.front() {
                let more = received.content.bytes();
                if count > 0 && (count >= BATCH_MESSAGES || bytes + more > BATCH_BYTES) {
                    break;
                }
                let Some((_, received)) = state.messages.pop_front() else { break };
                (count, bytes) = (count + 1, bytes + more);
                taken.next = received.offset + 1;
                match received.content {
                    Content::Alert(new) => taken.alerts.push(*new),
                    Content::DeadLetter(letter, reason) => {
                        taken.dead_letters.push(*letter);
                        taken.reasons.push(reason);
                    }
                }
            }
            state.bytes -= bytes;
        }
        self.budget.give_back(count, bytes);
        Some(Next::Store(taken))
    }

    /// When the oldest message came that is not stored.
    pub fn waiting_since(&self) -> Option<Instant> {
        let state = self.state.lock();
        state.taken_since.or_else(|| state.messages.front().map(|(since, _)| *since))
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.shut();
    }
}

/// How much the inboxes of a consumer hold together.
#[derive(Default)]
pub struct Budget {
    held: Mutex<Held>,
    freed: Condvar,
}

#[derive(Clone, Copy, Default)]
struct Held {
    messages: usize,
    bytes: usize,
}

impl Held {
    fn is_full(&mut self) -> bool {
        self.messages >= HELD_MESSAGES || self.bytes >= HELD_BYTES
    }
}

impl Budget {
    fn take(&self, bytes: usize) {
        let mut held = self.held.lock();
        held.messages += 1;
        held.bytes += bytes;
    }

    fn give_back(&self, messages: usize, bytes: usize) {
        let mut held = self.held.lock();
        held.messages -= messages;
        held.bytes -= bytes;
        drop(held);
        self.freed.notify_all();
    }

    /// Whether there is room; waits for it that long.
    pub fn wait_for_room(&self, patience: Duration) -> bool {
        let mut held = self.held.lock();
        !held.is_full() || !self.freed.wait_while_for(&mut held, Held::is_full, patience).timed_out()
    }

    /// Whether a paused consumer may go on.
    pub fn is_half_empty(&self) -> bool {
        let held = *self.held.lock();
        held.messages < HELD_MESSAGES / 2 && held.bytes < HELD_BYTES / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alerts::types::{AlertColumns, DecodedAlert, Source};

    fn message(offset: i64, bytes: usize) -> Received {
        let alert = DecodedAlert {
            body: vec![b' '; bytes].into(),
            event_id: None,
            occurred_at: None,
            columns: AlertColumns::default(),
            user_name: None,
        };
        let source = Source::Kafka { topic: "alerts".into(), partition: 0, offset };
        Received { offset, content: Content::Alert(Box::new(NewAlert { alert, source })) }
    }

    fn stored(next: Option<Next>) -> Taken {
        match next {
            Some(Next::Store(taken)) => taken,
            other => panic!("expected a batch, got {other:?}"),
        }
    }

    #[test]
    fn takes_nothing_twice_and_nothing_while_shut() {
        let inbox = Inbox::new(Arc::default());
        assert!(!inbox.push(message(5, 1)));
        inbox.open(5);
        assert!(!inbox.push(message(4, 1)));
        assert!(inbox.push(message(5, 1)));
        assert!(!inbox.push(message(5, 1)));
        // A hole is compaction's, or a transaction's marker.
        assert!(inbox.push(message(9, 1)));
        let taken = stored(inbox.take());
        assert_eq!((taken.alerts.len(), taken.next), (2, 10));
        inbox.shut();
        assert!(!inbox.push(message(10, 1)));
    }

    #[test]
    fn a_batch_ends_at_its_limits_but_holds_one_message_at_least() {
        let inbox = Inbox::new(Arc::default());
        inbox.open(0);
        inbox.push(message(0, BATCH_BYTES + 1));
        for offset in 1..=i64::try_from(BATCH_MESSAGES).expect("small") + 1 {
            inbox.push(message(offset, 1));
        }
        assert_eq!(stored(inbox.take()).alerts.len(), 1);
        assert_eq!(stored(inbox.take()).alerts.len(), BATCH_MESSAGES);
        assert_eq!(stored(inbox.take()).alerts.len(), 1);
        assert!(inbox.take().is_none());
    }

    #[test]
    fn another_place_is_looked_for_only_after_everything_received_was_taken() {
        let inbox = Inbox::new(Arc::default());
        inbox.open(0);
        inbox.push(message(0, 1));
        inbox.report_out_of_range();
        assert_eq!(stored(inbox.take()).next, 1);
        assert!(matches!(inbox.take(), Some(Next::FindPlace)));
        assert!(inbox.take().is_none());
    }

    #[test]
    fn a_full_budget_has_room_again_when_half_is_gone() {
        let budget = Arc::new(Budget::default());
        let inbox = Inbox::new(budget.clone());
        inbox.open(0);
        for offset in 0..i64::try_from(HELD_MESSAGES).expect("small") {
            assert!(budget.wait_for_room(Duration::ZERO));
            inbox.push(message(offset, 1));
        }
        assert!(!budget.wait_for_room(Duration::from_millis(1)));
        inbox.take();
        assert!(budget.wait_for_room(Duration::ZERO) && !budget.is_half_empty());
        inbox.shut();
        assert!(budget.is_half_empty());
    }
}
