//! Where the log will end before an append has its turn, so that a store may do the work of the append ahead.
//! A guess of one process, which the store has to check. Knows no store, no tasks and no clock.

use parking_lot::Mutex;

use super::types::NewAlert;

/// One append in the forecast, until it is dropped.
pub struct Place<'a> {
    forecast: &'a Mutex<Forecast>,
    count: Option<i64>,
    expected: Option<i64>,
    /// What is foretold was wrong: the work that was done ahead is repeated.
    pub is_mistaken: bool,
    /// Where the log ends after it; `None` until it is stored.
    pub last: Option<i64>,
}

impl<'a> Place<'a> {
    /// Begins an append of these. The forecast hears of its end when the place is dropped.
    pub fn take(forecast: &'a Mutex<Forecast>, alerts: &[NewAlert]) -> Self {
        let names_events = alerts.iter().any(|new| new.alert.event_id.is_some());
        let count = if names_events { None } else { i64::try_from(alerts.len()).ok() };
        let expected = forecast.lock().begin(count);
        Self { forecast, count, expected, is_mistaken: false, last: None }
    }

    /// Where it may be made ahead: where the log will end before it.
    pub fn ahead(&self) -> Option<i64> {
        self.expected.filter(|_| !self.is_mistaken)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut forecast = self.forecast.lock();
        forecast.finish(self.count, self.last);
        if self.expected.is_some() {
            forecast.learn(self.is_mistaken);
        }
    }
}

/// Where the log will end once the appends under way are committed, as far as one process can know: others
/// append too.
#[derive(Default)]
pub struct Forecast {
    end: Option<i64>,
    /// How many alerts each of them has; `None`: repeated events may be among them.
    under_way: Vec<Option<i64>>,
    /// After a mistake so many appends are not made ahead.
    rest: u32,
    rested: u32,
}

const LEAST_REST: u32 = 2;
const MOST_REST: u32 = 1024;

impl Forecast {
    /// Begins an append of so many alerts. Where it may be made ahead: the number that it goes on from.
    fn begin(&mut self, count: Option<i64>) -> Option<i64> {
        // The second of two may itself be waiting for the head: it has no number yet that a third could wait for.
        let may_go_ahead =
            self.under_way.len() == 1 && self.rested >= self.rest && count.is_some_and(|count| count > 0);
        let ahead = self.end.filter(|_| may_go_ahead);
        self.rested = self.rested.saturating_add(1);
        self.under_way.push(count);
        self.end = self.end.zip(count).map(|(end, count)| end + count);
        ahead
    }

    /// `last`: where the log ends after it; `None`: it is not stored, or nobody knows.
    fn finish(&mut self, count: Option<i64>, last: Option<i64>) {
        if let Some(place) = self.under_way.iter().position(|other| *other == count) {
            self.under_way.remove(place);
        }
        let behind: Option<i64> = self.under_way.iter().copied().sum();
        self.end = last.zip(behind).map(|(last, behind)| last + behind);
    }

    /// From an append that was made ahead.
    fn learn(&mut self, is_mistaken: bool) {
        self.rest = if is_mistaken { (2 * self.rest).clamp(LEAST_REST, MOST_REST) } else { self.rest / 2 };
        self.rested = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_of_two_appends_may_be_made_ahead() {
        let mut forecast = Forecast::default();
        assert_eq!(forecast.begin(Some(5)), None, "nobody knows where the log ends");
        assert_eq!(forecast.begin(Some(5)), None);
        forecast.finish(Some(5), Some(5));
        forecast.finish(Some(5), Some(10));
        assert_eq!(forecast.begin(Some(3)), None, "nothing is under way");
        assert_eq!(forecast.begin(Some(4)), Some(13));
        assert_eq!(forecast.begin(Some(1)), None, "two are under way");
        forecast.finish(Some(3), Some(13));
        forecast.finish(Some(4), Some(17));
        assert_eq!(forecast.begin(Some(2)), Some(18));
        forecast.finish(Some(1), None);
        assert_eq!(forecast.begin(Some(2)), None, "one failed: perhaps it is stored");
    }

    #[test]
    fn where_repeated_events_may_be_nothing_is_foretold() {
        let mut forecast = Forecast { end: Some(10), ..Forecast::default() };
        forecast.begin(Some(1));
        assert_eq!(forecast.begin(None), None);
        forecast.finish(Some(1), Some(11));
        assert_eq!(forecast.begin(Some(1)), None, "nobody knows how many the one under way has");
        forecast.finish(None, Some(12));
        assert_eq!(forecast.begin(Some(1)), Some(13));
        assert_eq!(forecast.begin(Some(0)), None);
    }

    #[test]
    fn each_mistake_is_followed_by_a_longer_rest() {
        let mut forecast = Forecast { end: Some(0), ..Forecast::default() };
        // Pairs of appends until the second one is made ahead.
        let mut until_ahead = |is_mistaken: bool| {
            for pairs in 1.. {
                forecast.begin(Some(1));
                let is_ahead = forecast.begin(Some(1)).is_some();
                let end = forecast.end;
                forecast.finish(Some(1), end.map(|end| end - 1));
                forecast.finish(Some(1), end);
                if is_ahead {
                    forecast.learn(is_mistaken);
                    return pairs;
                }
            }
            unreachable!("for ever is long")
        };
        assert_eq!([true, true, true, true].map(&mut until_ahead), [1, 2, 3, 5]);
        assert_eq!([false, false, false, false, false].map(&mut until_ahead), [9, 5, 3, 2, 1]);
    }

    #[test]
    fn a_place_that_is_given_up_leaves_no_trace() {
        let forecast = Mutex::new(Forecast { end: Some(7), ..Forecast::default() });
        drop(Place::take(&forecast, &[]));
        assert!(forecast.lock().under_way.is_empty() && forecast.lock().end.is_none());
    }
}
