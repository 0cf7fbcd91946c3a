//! What a client is sent at once: prepared alerts, the small ones copied together.

use bytes::Bytes;

use super::hub::Entry;

/// Alerts are copied together up to so much; a larger one goes as it is, without a copy.
const PIECE_BYTES: usize = 64 * 1024;
/// Mostly enough for what comes between two looks.
const FIRST_BYTES: usize = 4 * 1024;

/// How a client gets an alert.
pub type Form = fn(&Entry) -> &Bytes;

pub struct Batch {
    pub pieces: Vec<Bytes>,
    pub alerts: usize,
    pub last_seq: i64,
}

pub struct BatchBuilder {
    form: Form,
    pieces: Vec<Bytes>,
    piece: Vec<u8>,
    alerts: usize,
    last_seq: i64,
}

impl BatchBuilder {
    pub fn new(form: Form) -> Self {
        Self { form, pieces: Vec::new(), piece: Vec::new(), alerts: 0, last_seq: 0 }
    }

    pub fn push(&mut self, entry: &Entry) {
        (self.alerts, self.last_seq) = (self.alerts + 1, entry.seq);
        self.push_bytes((self.form)(entry));
    }

    fn push_bytes(&mut self, bytes: &Bytes) {
        if self.piece.len() + bytes.len() > PIECE_BYTES {
            self.end_piece();
        }
        if bytes.len() > PIECE_BYTES {
            self.pieces.push(bytes.clone());
            return;
        }
        if self.piece.is_empty() {
            self.piece.reserve(bytes.len().max(FIRST_BYTES));
        }
        self.piece.extend_from_slice(bytes);
    }

    fn end_piece(&mut self) {
        if !self.piece.is_empty() {
            self.pieces.push(std::mem::take(&mut self.piece).into());
        }
    }

    /// `None`: there is nothing.
    pub fn finish(mut self) -> Option<Batch> {
        self.end_piece();
        let Self { pieces, alerts, last_seq, .. } = self;
        (alerts > 0).then_some(Batch { pieces, alerts, last_seq })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_alerts_share_a_piece_and_large_ones_are_not_copied() {
        let alert = |bytes: usize| Bytes::from(vec![b'x'; bytes]);
        let (small, half, large) = (alert(10), alert(PIECE_BYTES / 2), alert(PIECE_BYTES + 1));
        let mut builder = BatchBuilder::new(Entry::frame);
        for bytes in [&small, &half, &half, &small, &large, &small] {
            builder.push_bytes(bytes);
        }
        builder.end_piece();
        let sizes: Vec<usize> = builder.pieces.iter().map(Bytes::len).collect();
        assert_eq!(sizes, [10 + PIECE_BYTES / 2, PIECE_BYTES / 2 + 10, PIECE_BYTES + 1, 10]);
        assert_eq!(builder.pieces[2].as_ptr(), large.as_ptr());
        assert!(BatchBuilder::new(Entry::frame).finish().is_none());
    }
}
