//! The newest alerts in memory, serialised once for all who listen.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use crate::alerts::types::{AlertColumns, StoredAlert};
use crate::http::websocket::text_frame;

/// A session that is further behind than this reads the log.
const RECENT_ALERTS: usize = 1024;
const RECENT_BYTES: usize = 4 * 1024 * 1024;

/// About half of what it takes to serve a session. With more of it alerts wait for nothing; with none, sessions that
/// were served already are woken again for each alert while others still wait for the first.
const PAUSE_PER_SESSION: Duration = Duration::from_micros(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// One alert, ready to be written in each form.
pub struct Entry {
    pub seq: i64,
    pub columns: AlertColumns,
    /// Ends with the object as it came.
    frame: Bytes,
    body_bytes: usize,
    envelope: OnceLock<Bytes>,
    event: OnceLock<Bytes>,
}

impl Entry {
    pub fn new(alert: StoredAlert) -> Self {
        let (frame, body_bytes) = (text_frame(&[&alert.body]), alert.body.len());
        let (envelope, event) = (OnceLock::new(), OnceLock::new());
        Self { seq: alert.seq, columns: alert.columns, frame, body_bytes, envelope, event }
    }

    pub fn bytes(&self) -> usize {
        self.body_bytes
    }

    fn body(&self) -> &[u8] {
        &self.frame[self.frame.len() - self.body_bytes..]
    }

    /// The object as it came, as a frame of a WebSocket.
    pub fn frame(&self) -> &Bytes {
        &self.frame
    }

    /// The object with its number, as a frame of a WebSocket.
    pub fn envelope(&self) -> &Bytes {
        self.envelope
            .get_or_init(|| text_frame(&[format!("{{\"seq\":{},\"alert\":", self.seq).as_bytes(), self.body(), b"}"]))
    }

    /// As a server-sent event. Line breaks stand between tokens only, where spaces mean the same.
    pub fn event(&self) -> &Bytes {
        self.event.get_or_init(|| {
            let mut event = format!("id: {}\ndata: ", self.seq).into_bytes();
            event.extend(self.body().iter().map(|byte| if matches!(byte, b'\r' | b'\n') { b' ' } else { *byte }));
            event.extend_from_slice(b"\n\n");
            event.into()
        })
    }
}

/// What every session watches.
pub struct Hub {
    recent: watch::Sender<Recent>,
}

/// Neighbours without a gap, oldest first.
#[derive(Default)]
pub struct Recent {
    pub entries: VecDeque<Arc<Entry>>,
    bytes: usize,
    /// Where the log ends as far as the follower knows.
    pub last_seq: i64,
    /// Nothing was before them.
    pub is_whole_log: bool,
    /// Raised when the log turned out to be another one.
    pub generation: u64,
}

impl Recent {
    pub fn at(last_seq: i64) -> Self {
        Self { last_seq, is_whole_log: last_seq == 0, ..Self::default() }
    }

    pub fn push(&mut self, entry: Arc<Entry>) {
        self.bytes += entry.bytes();
        self.last_seq = entry.seq;
        self.entries.push_back(entry);
        while self.entries.len() > RECENT_ALERTS || (self.bytes > RECENT_BYTES && self.entries.len() > 1) {
            let Some(oldest) = self.entries.pop_front() else { break };
            self.bytes -= oldest.bytes();
            self.is_whole_log = false;
        }
    }
}

impl Hub {
    pub fn new() -> Self {
        Self { recent: watch::Sender::new(Recent::default()) }
    }

    pub fn last_seq(&self) -> i64 {
        self.recent.borrow().last_seq
    }

    /// How long to let alerts gather between two publications. Each wakes all sessions: with many of them it
    /// is the wake-ups that cost, not the alerts.
    pub fn pause(&self) -> Duration {
        let sessions = u32::try_from(self.recent.receiver_count()).unwrap_or(u32::MAX);
        PAUSE_PER_SESSION.saturating_mul(sessions).min(LONGEST_PAUSE)
    }

    pub fn subscribe(&self) -> watch::Receiver<Recent> {
        self.recent.subscribe()
    }

    /// Whether anybody listens.
    pub fn is_heard(&self) -> bool {
        self.recent.receiver_count() > 0
    }

    /// The follower knows where the log ends, and its newest alerts, oldest first.
    pub fn begin_at(&self, last_seq: i64, mut newest: Vec<Entry>) {
        // Rows may have been deleted: what is behind the last gap are neighbours.
        let count = newest.iter().rev().zip(0..).take_while(|(entry, back)| entry.seq == last_seq - back).count();
        let neighbours = newest.split_off(newest.len() - count);
        let before = last_seq - neighbours.len() as i64;
        let mut begun = Recent::at(before);
        neighbours.into_iter().for_each(|entry| begun.push(Arc::new(entry)));
        self.recent.send_modify(|recent| *recent = Recent { generation: recent.generation, ..begun });
    }

    /// The log is another one, which ends here.
    pub fn replaced_by_one_at(&self, last_seq: i64) {
        self.recent
            .send_modify(|recent| *recent = Recent { generation: recent.generation + 1, ..Recent::at(last_seq) });
    }

    pub fn publish(&self, entries: Vec<Entry>) {
        self.recent.send_modify(|recent| entries.into_iter().for_each(|entry| recent.push(Arc::new(entry))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Timestamp;

    fn entry(seq: i64) -> Entry {
        Entry::new(StoredAlert {
            seq,
            received_at: Timestamp::from_micros(0),
            occurred_at: None,
            source: "http".to_owned(),
            columns: AlertColumns::default(),
            user_name: None,
            body: "{\"a\":\r\n1}".into(),
        })
    }

    #[test]
    fn an_alert_has_its_text_in_each_form() {
        let entry = entry(7);
        assert_eq!(&entry.frame()[2..], b"{\"a\":\r\n1}");
        assert_eq!(&entry.envelope()[2..], b"{\"seq\":7,\"alert\":{\"a\":\r\n1}}");
        assert_eq!(&entry.event()[..], b"id: 7\ndata: {\"a\":  1}\n\n");
        assert_eq!(entry.bytes(), 9);
    }

    #[test]
    fn publications_are_rarer_the_more_sessions_they_wake_up_to_a_point() {
        let hub = Hub::new();
        assert_eq!(hub.pause(), Duration::ZERO);
        let mut sessions: Vec<_> = (0..1000).map(|_| hub.subscribe()).collect();
        assert_eq!(hub.pause(), Duration::from_millis(5));
        sessions.extend((0..9000).map(|_| hub.subscribe()));
        assert_eq!(hub.pause(), LONGEST_PAUSE);
    }

    #[test]
    fn begins_with_the_neighbours_at_the_end_of_the_log() {
        let begun = |last_seq: i64, newest: &[i64]| {
            let hub = Hub::new();
            hub.begin_at(last_seq, newest.iter().copied().map(entry).collect());
            let recent = hub.recent.borrow();
            let seqs: Vec<i64> = recent.entries.iter().map(|entry| entry.seq).collect();
            (seqs, recent.last_seq, recent.is_whole_log)
        };
        assert_eq!(begun(3, &[1, 2, 3]), (vec![1, 2, 3], 3, true));
        assert_eq!(begun(9, &[7, 8, 9]), (vec![7, 8, 9], 9, false));
        assert_eq!(begun(9, &[5, 6, 8, 9]), (vec![8, 9], 9, false));
        assert_eq!(begun(9, &[5, 6]), (vec![], 9, false));
        assert_eq!(begun(0, &[]), (vec![], 0, true));
        assert!(!Hub::new().recent.borrow().is_whole_log, "nothing is known before the follower begins");
    }
}
