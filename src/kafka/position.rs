//! Where to begin with a partition. Pure: is told what the log, the broker and the group know.

use crate::config::KafkaConfig;

/// The first offset that the broker still has, and the one that it will give next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    pub low: i64,
    pub high: i64,
}

/// Where a group begins that neither we nor the broker have a position for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    Earliest,
    Latest,
}

impl Reset {
    pub const PROPERTY: &str = "auto.offset.reset";

    /// `None`: the property has a value that means nothing.
    pub fn of(config: &KafkaConfig) -> Option<Self> {
        let given = config.properties.iter().rfind(|(name, _)| name == Self::PROPERTY);
        match given.map(|(_, value)| value.expose().trim().to_ascii_lowercase()).as_deref() {
            None | Some("earliest" | "smallest" | "beginning") => Some(Self::Earliest),
            Some("latest" | "largest" | "end") => Some(Self::Latest),
            Some(_) => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beginning {
    pub offset: i64,
    pub reason: Reason,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Our own position holds.
    Stored,
    /// The group's committed offset, on our first start.
    Committed,
    /// Nobody had a position.
    Policy(Reset),
    /// The broker deleted so many messages before we read them.
    Gap { missed: u64 },
    /// The broker never gave the offset that we are to go on with.
    Recreated { position: i64 },
}

/// `stored`: our own position. `committed`: the group's, asked for only where there is no own.
pub fn begin(stored: Option<i64>, committed: Option<i64>, marks: Watermarks, reset: Reset) -> Beginning {
    let Some(position) = stored.or(committed) else {
        let offset = match reset {
            Reset::Earliest => marks.low,
            Reset::Latest => marks.high,
        };
        return Beginning { offset, reason: Reason::Policy(reset) };
    };
    if position > marks.high {
        return Beginning { offset: marks.low, reason: Reason::Recreated { position } };
    }
    if position < marks.low {
        let missed = marks.low.abs_diff(position);
        return Beginning { offset: marks.low, reason: Reason::Gap { missed } };
    }
    Beginning { offset: position, reason: if stored.is_some() { Reason::Stored } else { Reason::Committed } }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARKS: Watermarks = Watermarks { low: 10, high: 20 };

    fn beginning(stored: Option<i64>, committed: Option<i64>, reset: Reset) -> (i64, Reason) {
        let Beginning { offset, reason } = begin(stored, committed, MARKS, reset);
        (offset, reason)
    }

    #[test]
    fn our_own_position_beats_the_groups() {
        assert_eq!(beginning(Some(12), Some(18), Reset::Latest), (12, Reason::Stored));
        assert_eq!(beginning(Some(10), None, Reset::Latest), (10, Reason::Stored));
        assert_eq!(beginning(Some(20), None, Reset::Earliest), (20, Reason::Stored));
    }

    #[test]
    fn a_first_start_continues_where_the_group_was_and_else_as_configured() {
        assert_eq!(beginning(None, Some(18), Reset::Latest), (18, Reason::Committed));
        assert_eq!(beginning(None, None, Reset::Earliest), (10, Reason::Policy(Reset::Earliest)));
        assert_eq!(beginning(None, None, Reset::Latest), (20, Reason::Policy(Reset::Latest)));
    }

    #[test]
    fn what_retention_deleted_is_counted_exactly() {
        assert_eq!(beginning(Some(3), None, Reset::Latest), (10, Reason::Gap { missed: 7 }));
        assert_eq!(beginning(None, Some(9), Reset::Latest), (10, Reason::Gap { missed: 1 }));
    }

    #[test]
    fn a_position_beyond_the_end_is_another_topics() {
        assert_eq!(beginning(Some(21), None, Reset::Latest), (10, Reason::Recreated { position: 21 }));
        assert_eq!(beginning(None, Some(99), Reset::Latest), (10, Reason::Recreated { position: 99 }));
    }
}
