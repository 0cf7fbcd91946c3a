//! Checks what readers saw against what writers did. Pure: knows no service, no clock.
//!
//! Each key is written by one writer at a time, one write after the other, every value unique; so the
//! versions of a key are totally ordered, and linearizability (Herlihy and Wing, 1990) of such a
//! register comes down to four rules, checked in O(n log n): a read returns a version that was written;
//! not one from the future; not one older than the newest that was acknowledged before the read began;
//! and not one older than what an earlier read returned. A read of many keys also has to show the keys
//! that are written together at the same version.

use std::collections::BTreeMap;

/// A moment on one monotonic clock, nanoseconds.
pub type Moment = u64;
/// A number that is written once; `None`: the key is absent.
pub type Value = Option<u64>;

#[derive(Clone, Debug)]
pub struct Write {
    pub value: Value,
    pub invoked_at: Moment,
    /// `None`: the outcome is unknown. No write of this key may follow it.
    pub acknowledged_at: Option<Moment>,
}

#[derive(Clone, Debug)]
pub struct Read {
    pub began_at: Moment,
    pub ended_at: Moment,
    pub value: Value,
    /// For the report: who read, and where.
    pub reader: &'static str,
}

/// What happened to one key. Before its first write a key is absent.
#[derive(Clone, Debug, Default)]
pub struct KeyHistory {
    pub writes: Vec<Write>,
    pub reads: Vec<Read>,
}

/// A read that no order of the operations explains.
#[derive(Debug, PartialEq, Eq)]
pub enum Violation {
    NeverWritten {
        key: i64,
        read: String,
    },
    FromTheFuture {
        key: i64,
        read: String,
    },
    /// A newer version was acknowledged before the read began.
    Stale {
        key: i64,
        read: String,
        versions_behind: usize,
    },
    /// An earlier read had already returned a newer version.
    WentBack {
        key: i64,
        read: String,
    },
    /// Keys that are written together were seen apart.
    Torn {
        keys: (i64, i64),
        read: String,
    },
}

impl Read {
    fn describe(&self) -> String {
        format!("{} read {:?} at {}..{} µs", self.reader, self.value, self.began_at / 1000, self.ended_at / 1000)
    }
}

#[derive(Default)]
pub struct History {
    keys: BTreeMap<i64, KeyHistory>,
    violations: Vec<Violation>,
}

impl History {
    pub fn write(&mut self, key: i64, write: Write) {
        let history = self.keys.entry(key).or_default();
        if let Some(last) = history.writes.last() {
            let ended_at = last.acknowledged_at.expect("no write follows one whose outcome is unknown");
            assert!(ended_at <= write.invoked_at, "writes of one key follow each other");
        }
        history.writes.push(write);
    }

    pub fn read(&mut self, key: i64, read: Read) {
        self.keys.entry(key).or_default().reads.push(read);
    }

    /// One read of the whole map: what it says of each of `keys`; those of `together` are written in one
    /// transaction with the same value.
    pub fn read_whole(&mut self, keys: &[i64], together: &[(i64, i64)], map: &BTreeMap<i64, u64>, read: &Read) {
        for key in keys {
            self.read(*key, Read { value: map.get(key).copied(), ..read.clone() });
        }
        for (one, other) in together {
            if map.get(one) != map.get(other) {
                let values = format!("{:?} and {:?}", map.get(one), map.get(other));
                let read = format!("{} read {values} at {}..{}", read.reader, read.began_at, read.ended_at);
                self.violations.push(Violation::Torn { keys: (*one, *other), read });
            }
        }
    }

    pub fn count_writes(&self) -> usize {
        self.keys.values().map(|history| history.writes.len()).sum()
    }

    /// Everything that cannot be explained.
    pub fn check(mut self) -> Vec<Violation> {
        for (key, history) in self.keys {
            check_key(key, history, &mut self.violations);
        }
        self.violations
    }
}

fn check_key(key: i64, history: KeyHistory, violations: &mut Vec<Violation>) {
    // Version 0 is the absence before the first write; version i is the i-th write's.
    let writes = &history.writes;
    let mut versions: BTreeMap<Value, Vec<usize>> = BTreeMap::from([(None, vec![0])]);
    for (index, write) in writes.iter().enumerate() {
        versions.entry(write.value).or_default().push(index + 1);
    }
    // How many versions were acknowledged before a moment: they are in order of time.
    let acknowledged_before =
        |moment: Moment| writes.partition_point(|write| write.acknowledged_at.is_some_and(|at| at < moment));
    let invoked_by = |moment: Moment| writes.partition_point(|write| write.invoked_at <= moment);

    let mut reads = history.reads;
    reads.sort_by_key(|read| read.began_at);
    for read in &reads {
        let Some(candidates) = versions.get(&read.value) else {
            violations.push(Violation::NeverWritten { key, read: read.describe() });
            continue;
        };
        // Absence may be several versions; the newest that is possible explains the most.
        let newest = invoked_by(read.ended_at);
        let Some(version) = newest_through(candidates, newest) else {
            violations.push(Violation::FromTheFuture { key, read: read.describe() });
            continue;
        };
        let least = acknowledged_before(read.began_at);
        if version < least {
            violations.push(Violation::Stale { key, read: read.describe(), versions_behind: least - version });
        }
    }
    check_monotonic(key, &reads, &versions, &invoked_by, violations);
}

/// A read must not return an older version than a read that ended before it began.
fn check_monotonic(
    key: i64,
    reads: &[Read],
    versions: &BTreeMap<Value, Vec<usize>>,
    invoked_by: &impl Fn(Moment) -> usize,
    violations: &mut Vec<Violation>,
) {
    // By their end: the oldest version that explains each read, so that no doubt becomes a verdict.
    let mut ends: Vec<(Moment, usize)> = Vec::with_capacity(reads.len());
    for read in reads {
        let Some(candidates) = versions.get(&read.value) else { continue };
        ends.push((read.ended_at, candidates.first().copied().unwrap_or(0)));
    }
    ends.sort_unstable();
    let mut seen = 0;
    let mut next_end = ends.iter().peekable();
    for read in reads {
        while let Some((_, version)) = next_end.next_if(|(ended_at, _)| *ended_at < read.began_at) {
            seen = seen.max(*version);
        }
        let Some(candidates) = versions.get(&read.value) else { continue };
        let newest = invoked_by(read.ended_at);
        let version = newest_through(candidates, newest);
        if version.is_some_and(|version| version < seen) {
            violations.push(Violation::WentBack { key, read: read.describe() });
        }
    }
}

/// The last of the ascending versions that is not after `newest`.
fn newest_through(versions: &[usize], newest: usize) -> Option<usize> {
    versions[..versions.partition_point(|version| *version <= newest)].last().copied()
}

fn write(value: u64, invoked_at: Moment, acknowledged_at: Moment) -> Write {
    Write { value: Some(value), invoked_at, acknowledged_at: Some(acknowledged_at) }
}

fn read(value: Value, began_at: Moment, ended_at: Moment) -> Read {
    Read { began_at, ended_at, value, reader: "test" }
}

fn verdict(writes: &[Write], reads: &[Read]) -> Vec<Violation> {
    let mut history = History::default();
    writes.iter().for_each(|one| history.write(1, one.clone()));
    reads.iter().for_each(|one| history.read(1, one.clone()));
    history.check()
}

#[test]
fn a_concurrent_read_may_return_either_version() {
    let writes = [write(1, 10, 20), write(2, 30, 40)];
    assert_eq!(verdict(&writes, &[read(Some(1), 32, 38)]), []);
    assert_eq!(verdict(&writes, &[read(Some(2), 32, 38)]), []);
    assert_eq!(verdict(&writes, &[read(None, 5, 15)]), []);
}

#[test]
fn a_version_older_than_an_acknowledged_one_is_stale() {
    let writes = [write(1, 10, 20), write(2, 30, 40)];
    assert!(matches!(verdict(&writes, &[read(Some(1), 41, 45)])[..], [Violation::Stale { versions_behind: 1, .. }]));
    assert!(matches!(verdict(&writes, &[read(None, 41, 45)])[..], [Violation::Stale { versions_behind: 2, .. }]));
}

#[test]
fn a_version_that_nobody_wrote_or_not_yet_is_told() {
    let writes = [write(1, 10, 20)];
    assert!(matches!(verdict(&writes, &[read(Some(9), 12, 13)])[..], [Violation::NeverWritten { .. }]));
    assert!(matches!(verdict(&writes, &[read(Some(1), 1, 9)])[..], [Violation::FromTheFuture { .. }]));
}

#[test]
fn time_does_not_go_back_between_readers() {
    let writes = [write(1, 10, 20), write(2, 30, 90)];
    let reads = [read(Some(2), 40, 45), read(Some(1), 50, 55)];
    assert!(matches!(verdict(&writes, &reads)[..], [Violation::WentBack { .. }]));
    let overlapping = [read(Some(2), 40, 52), read(Some(1), 50, 55)];
    assert_eq!(verdict(&writes, &overlapping), []);
}

#[test]
fn an_unknown_outcome_may_show_or_not_but_not_flicker() {
    let writes = [write(1, 10, 20), Write { acknowledged_at: None, ..write(2, 30, 0) }];
    assert_eq!(verdict(&writes, &[read(Some(1), 100, 101), read(Some(2), 102, 103)]), []);
    let reads = [read(Some(2), 100, 101), read(Some(1), 102, 103)];
    assert!(matches!(verdict(&writes, &reads)[..], [Violation::WentBack { .. }]));
}

#[test]
fn deletions_are_versions_too() {
    let gone = |invoked_at, acknowledged_at| Write { value: None, ..write(0, invoked_at, acknowledged_at) };
    let writes = [write(1, 10, 20), gone(30, 40), write(2, 50, 60)];
    assert_eq!(verdict(&writes, &[read(None, 45, 46)]), []);
    assert!(matches!(verdict(&writes, &[read(Some(1), 45, 46)])[..], [Violation::Stale { .. }]));
    assert!(matches!(verdict(&writes, &[read(None, 61, 62)])[..], [Violation::Stale { .. }]));
}

#[test]
fn keys_that_are_written_together_are_seen_together() {
    let mut history = History::default();
    let map = BTreeMap::from([(1, 1)]);
    for key in [1, 2] {
        history.write(key, write(1, 10, 20));
    }
    history.read_whole(&[1, 2], &[(1, 2)], &map, &read(None, 12, 13));
    assert!(matches!(history.check()[..], [Violation::Torn { keys: (1, 2), .. }]));
}
