//! What became of an append whose answer was lost or was a refusal. Pure.

use crate::alerts::types::{PartitionAdvance, PartitionClaim};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The position is where the batch moves it: it was stored.
    Stored,
    /// The position is where the batch found it: it was not stored (yet), and may be repeated.
    Unmoved,
    /// The partition is someone else's, or its position is one that we know nothing of.
    TakenOver,
}

/// `held`: what the log holds for the partition now.
pub fn judge(sent: &PartitionAdvance, held: Option<PartitionClaim>) -> Verdict {
    match held {
        Some(held) if held.epoch != sent.epoch => Verdict::TakenOver,
        Some(held) if held.next == Some(sent.next) => Verdict::Stored,
        Some(held) if held.next == sent.expected_next => Verdict::Unmoved,
        _ => Verdict::TakenOver,
    }
}

/// A partition's row among all positions.
pub fn find(positions: &[(String, i32, PartitionClaim)], topic: &str, partition: i32) -> Option<PartitionClaim> {
    positions.iter().find(|(name, number, _)| *number == partition && name == topic).map(|(_, _, claim)| *claim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_position_tells_what_became_of_a_batch() {
        let sent =
            PartitionAdvance { topic: "alerts".into(), partition: 0, epoch: 4, expected_next: Some(10), next: 15 };
        let held = |epoch, next| Some(PartitionClaim { epoch, next });
        assert_eq!(judge(&sent, held(4, Some(15))), Verdict::Stored);
        assert_eq!(judge(&sent, held(4, Some(10))), Verdict::Unmoved);
        assert_eq!(judge(&sent, held(5, Some(15))), Verdict::TakenOver);
        assert_eq!(judge(&sent, held(5, Some(10))), Verdict::TakenOver);
        assert_eq!(judge(&sent, held(4, Some(12))), Verdict::TakenOver);
        assert_eq!(judge(&sent, held(4, None)), Verdict::TakenOver);
        assert_eq!(judge(&sent, None), Verdict::TakenOver);
    }

    #[test]
    fn a_first_batch_finds_no_position() {
        let sent = PartitionAdvance { topic: "alerts".into(), partition: 0, epoch: 1, expected_next: None, next: 5 };
        assert_eq!(judge(&sent, Some(PartitionClaim { epoch: 1, next: None })), Verdict::Unmoved);
        assert_eq!(judge(&sent, Some(PartitionClaim { epoch: 1, next: Some(5) })), Verdict::Stored);
    }
}
