//! What has to be true of a log that was filled under faults, and of the screens that followed it. Pure:
//! knows no service and no clock.

use std::collections::{BTreeMap, BTreeSet};

/// Something whose entries are numbered from 0 in the order in which they were sent: a key's messages, a
/// partition's offsets, one client's posts.
pub type Lane = String;

/// How much was sent on each lane.
pub type Sent = BTreeMap<Lane, i64>;

/// One entry of the log, as the log holds it or as a screen was shown it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub seq: i64,
    pub lane: Lane,
    pub number: i64,
}

/// What one client was shown, over all its connections, in the order in which it came.
#[derive(Clone, Debug)]
pub struct Screening {
    pub name: String,
    /// Where it asked to begin; `None`: with whatever was newest.
    pub after: Option<i64>,
    pub seen: Vec<Line>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flaw {
    Lost {
        lane: Lane,
        number: i64,
    },
    Doubled {
        lane: Lane,
        number: i64,
        seq: i64,
    },
    /// Nobody sent it.
    Invented {
        lane: Lane,
        number: i64,
        seq: i64,
    },
    /// Stored behind one that was sent later.
    Reordered {
        lane: Lane,
        number: i64,
        seq: i64,
    },
    /// The log's numbers are not 1, 2, 3, …
    Gap {
        expected: i64,
        found: i64,
    },
    /// A screen never showed it.
    Missed {
        screen: String,
        seq: i64,
    },
    Repeated {
        screen: String,
        seq: i64,
    },
    /// Shown behind a later one.
    WentBack {
        screen: String,
        seq: i64,
    },
    /// The log has something else under that number.
    Altered {
        screen: String,
        seq: i64,
    },
}

/// Everything that was sent is stored once, each lane in its order. `lines` in the order of the log.
pub fn check_lanes<'a>(sent: &Sent, lines: impl IntoIterator<Item = &'a Line>) -> Vec<Flaw> {
    let mut flaws = Vec::new();
    let mut stored: BTreeMap<&str, BTreeSet<i64>> = BTreeMap::new();
    for Line { seq, lane, number } in lines {
        let (lane, number, seq) = (lane.clone(), *number, *seq);
        let Some((key, _)) = sent.get_key_value(&lane).filter(|(_, count)| (0..**count).contains(&number)) else {
            flaws.push(Flaw::Invented { lane, number, seq });
            continue;
        };
        let stored = stored.entry(key).or_default();
        let newest = stored.last().copied();
        if !stored.insert(number) {
            flaws.push(Flaw::Doubled { lane, number, seq });
        } else if newest.is_some_and(|newest| newest > number) {
            flaws.push(Flaw::Reordered { lane, number, seq });
        }
    }
    for (lane, count) in sent {
        let stored = stored.remove(lane.as_str()).unwrap_or_default();
        let lost = (0..*count).filter(|number| !stored.contains(number));
        flaws.extend(lost.map(|number| Flaw::Lost { lane: lane.clone(), number }));
    }
    flaws
}

/// The numbers are 1, 2, 3, … in the order of the log.
pub fn check_numbers(log: &[Line]) -> Vec<Flaw> {
    let pairs = (1..).zip(log).find(|(expected, line)| *expected != line.seq);
    pairs.map(|(expected, line)| Flaw::Gap { expected, found: line.seq }).into_iter().collect()
}

/// The client was shown each entry of the log once and in order, from where it began to the end.
pub fn check_screen(screening: &Screening, log: &[Line]) -> Vec<Flaw> {
    let screen = || screening.name.clone();
    let by_seq: BTreeMap<i64, &Line> = log.iter().map(|line| (line.seq, line)).collect();
    let mut flaws = Vec::new();
    let mut shown = BTreeSet::new();
    for line in &screening.seen {
        let newest = shown.last().copied();
        if !shown.insert(line.seq) {
            flaws.push(Flaw::Repeated { screen: screen(), seq: line.seq });
        } else if newest.is_some_and(|newest| newest > line.seq) {
            flaws.push(Flaw::WentBack { screen: screen(), seq: line.seq });
        }
        if by_seq.get(&line.seq) != Some(&line) {
            flaws.push(Flaw::Altered { screen: screen(), seq: line.seq });
        }
    }
    let first = screening.after.map(|after| after + 1).or(screening.seen.first().map(|line| line.seq));
    let missed = by_seq.range(first.unwrap_or(1)..).map(|(seq, _)| *seq).filter(|seq| !shown.contains(seq));
    flaws.extend(missed.map(|seq| Flaw::Missed { screen: screen(), seq }));
    flaws
}

/// A log of one lane with these numbers.
fn log_of(numbers: &[i64]) -> Vec<Line> {
    (1..).zip(numbers).map(|(seq, number)| Line { seq, lane: "a".to_owned(), number: *number }).collect()
}

fn verdict(count: i64, numbers: &[i64]) -> Vec<Flaw> {
    check_lanes(&Sent::from([("a".to_owned(), count)]), &log_of(numbers))
}

fn screening(after: Option<i64>, log: &[Line], seqs: &[i64]) -> Vec<Flaw> {
    let line = |seq: &i64| log.iter().find(|line| line.seq == *seq).expect("in the log").clone();
    let screening = Screening { name: "s".to_owned(), after, seen: seqs.iter().map(line).collect() };
    check_screen(&screening, log)
}

#[test]
fn a_log_of_everything_once_and_in_order_has_no_flaw() {
    assert_eq!(verdict(4, &[0, 1, 2, 3]), []);
    let sent = Sent::from([("a".to_owned(), 2), ("b".to_owned(), 1), ("c".to_owned(), 0)]);
    let mut log = log_of(&[0, 0, 1]);
    log[1].lane = "b".to_owned();
    assert_eq!(check_lanes(&sent, &log), []);
    assert_eq!(check_numbers(&log), []);
}

#[test]
fn what_is_lost_doubled_reordered_or_invented_is_told() {
    let lane = || "a".to_owned();
    assert_eq!(verdict(3, &[0, 2]), [Flaw::Lost { lane: lane(), number: 1 }]);
    assert_eq!(verdict(3, &[0, 1]), [Flaw::Lost { lane: lane(), number: 2 }]);
    assert_eq!(verdict(1, &[]), [Flaw::Lost { lane: lane(), number: 0 }]);
    assert_eq!(verdict(2, &[0, 1, 0]), [Flaw::Doubled { lane: lane(), number: 0, seq: 3 }]);
    assert_eq!(verdict(3, &[0, 2, 1]), [Flaw::Reordered { lane: lane(), number: 1, seq: 3 }]);
    assert_eq!(verdict(1, &[0, 1]), [Flaw::Invented { lane: lane(), number: 1, seq: 2 }]);
    let mut foreign = log_of(&[0, 0]);
    foreign[1].lane = "b".to_owned();
    let sent = Sent::from([(lane(), 1)]);
    assert_eq!(check_lanes(&sent, &foreign), [Flaw::Invented { lane: "b".to_owned(), number: 0, seq: 2 }]);
}

#[test]
fn numbers_that_are_not_dense_are_told() {
    let mut log = log_of(&[0, 1, 2]);
    log.remove(1);
    assert_eq!(check_numbers(&log), [Flaw::Gap { expected: 2, found: 3 }]);
    assert_eq!(check_numbers(&log_of(&[0])[..0]), []);
    log = log_of(&[0, 1]);
    log[1].seq = 1;
    assert_eq!(check_numbers(&log), [Flaw::Gap { expected: 2, found: 1 }]);
}

#[test]
fn a_screen_that_shows_each_once_from_where_it_began_has_no_flaw() {
    let log = log_of(&[0, 1, 2, 3]);
    assert_eq!(screening(None, &log, &[2, 3, 4]), []);
    assert_eq!(screening(Some(0), &log, &[1, 2, 3, 4]), []);
    assert_eq!(screening(Some(4), &log, &[]), []);
}

#[test]
fn a_screen_that_misses_repeats_goes_back_or_alters_is_told() {
    let log = log_of(&[0, 1, 2, 3]);
    let screen = || "s".to_owned();
    assert_eq!(screening(None, &log, &[2, 4]), [Flaw::Missed { screen: screen(), seq: 3 }]);
    assert_eq!(screening(Some(0), &log, &[2, 3, 4]), [Flaw::Missed { screen: screen(), seq: 1 }]);
    assert_eq!(screening(None, &log, &[3]), [Flaw::Missed { screen: screen(), seq: 4 }]);
    assert_eq!(screening(None, &log, &[1, 2, 3, 3, 4]), [Flaw::Repeated { screen: screen(), seq: 3 }]);
    assert_eq!(screening(None, &log, &[1, 3, 2, 4]), [Flaw::WentBack { screen: screen(), seq: 2 }]);
    let mut seen = log.clone();
    seen[2].number = 7;
    let altered = Screening { name: screen(), after: None, seen };
    assert_eq!(check_screen(&altered, &log), [Flaw::Altered { screen: screen(), seq: 3 }]);
}
