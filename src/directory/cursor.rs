//! A moment of a database, as a position in its change log and as a client's token. Pure.
//!
//! PostgreSQL: a snapshot `(xmin, xmax, xip)`. What became visible after it are the transactions
//! `xid >= xmax OR xid = ANY(xip)`. SQLite has one writer at a time: an integer, `xip` empty.

use std::fmt;

/// A moment within an epoch. Moments of one epoch are totally ordered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cursor {
    /// Which history: changes when the database was restored, promoted or recovered from a crash.
    pub epoch: i64,
    /// Every transaction below was finished.
    pub xmin: u64,
    /// No transaction from here on had finished.
    pub xmax: u64,
    /// Transactions in `xmin..xmax` that were still running, ascending.
    pub xip: Vec<u64>,
}

/// How many running transactions a token names; with more of them it goes back to `xmin`, which only
/// makes the answer to it larger.
const XIP_IN_TOKEN: usize = 64;

impl Cursor {
    /// Whether everything that was visible at `self` is visible at `other` too.
    pub fn is_within(&self, other: &Self) -> bool {
        self.epoch == other.epoch
            && self.xmax <= other.xmax
            && other.xip.iter().all(|xid| *xid >= self.xmax || self.xip.binary_search(xid).is_ok())
    }

    /// Whether what this transaction did is visible.
    pub fn contains(&self, xid: u64) -> bool {
        xid < self.xmax && self.xip.binary_search(&xid).is_err()
    }

    /// Reads a client's token. `None` for anything that [`Self::fmt`] does not write.
    pub fn parse(token: &str) -> Option<Self> {
        let mut parts = token.split('.');
        let epoch = i64::from_str_radix(canonical(parts.next()?)?, 16).ok()?;
        let xmax = u64::from_str_radix(canonical(parts.next()?)?, 16).ok()?;
        let mut xip = Vec::new();
        for part in parts {
            let xid = u64::from_str_radix(canonical(part)?, 16).ok()?;
            if xid >= xmax || xip.last().is_some_and(|last| *last >= xid) || xip.len() == XIP_IN_TOKEN {
                return None;
            }
            xip.push(xid);
        }
        Some(Self { epoch, xmin: xip.first().copied().unwrap_or(xmax), xmax, xip })
    }
}

fn canonical(digits: &str) -> Option<&str> {
    let lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let leading_zero = digits.len() > 1 && digits.starts_with('0');
    (!digits.is_empty() && !leading_zero && digits.bytes().all(lower_hex)).then_some(digits)
}

/// The token: `epoch.xmax[.xip…]`, hexadecimal.
impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.xip.len() > XIP_IN_TOKEN {
            return write!(f, "{:x}.{:x}", self.epoch, self.xmin);
        }
        write!(f, "{:x}.{:x}", self.epoch, self.xmax)?;
        self.xip.iter().try_for_each(|xid| write!(f, ".{xid:x}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cursors() -> impl Strategy<Value = Cursor> {
        // Also where the 32 bits of the old counter roll over, and at the end of the 64.
        let bases = prop::sample::select(vec![0, u64::from(u32::MAX) - 90, u64::MAX - 1_000]);
        (0..i64::MAX, bases, 100..1000_u64, prop::collection::btree_set(50..100_u64, 0..80)).prop_map(
            |(epoch, base, xmax, xip)| {
                let (xmax, xip): (u64, Vec<u64>) = (base + xmax, xip.into_iter().map(|xid| base + xid).collect());
                Cursor { epoch, xmin: xip.first().copied().unwrap_or(xmax), xmax, xip }
            },
        )
    }

    proptest! {
        #[test]
        fn a_token_never_says_more_than_its_cursor(cursor in cursors()) {
            let parsed = Cursor::parse(&cursor.to_string()).expect("our own token");
            prop_assert!(parsed.is_within(&cursor));
            if cursor.xip.len() <= XIP_IN_TOKEN { prop_assert_eq!(parsed, cursor); }
        }

        #[test]
        fn garbage_is_refused_or_means_itself(token in "[0-9a-f.]{0,24}|\\PC{0,24}") {
            if let Some(cursor) = Cursor::parse(&token) { prop_assert_eq!(cursor.to_string(), token); }
        }
    }
}
