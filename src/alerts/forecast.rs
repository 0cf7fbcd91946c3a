//! Where the log will end before an append has its turn, so that a store may do the work of the append ahead.
//! A guess of one process, which the store has to check. Knows no store, no tasks and no clock.

use parking_lot::Mutex;

use super::types::NewAlert;

/// One append in the forecast, until it is dropped.
pub struct Place<'a> {
    forecast: &'a Mutex<Forecast>,
    count: Option<i64>,
    /// Where the log ends before it, where that is foretold.
    pub expected: Option<i64>,
    /// The number of its last alert; `None` until it is known.
    pub last: Option<i64>,
}

impl<'a> Place<'a> {
    /// Begins an append of these. The forecast hears of its end when the place is dropped.
    pub fn take(forecast: &'a Mutex<Forecast>, alerts: &[NewAlert]) -> Self {
        let names_events = alerts.iter().any(|new| new.alert.event_id.is_some());
        let count = if names_events { None } else { i64::try_from(alerts.len()).ok() };
        let expected = forecast.lock().begin(count);
        Self { forecast, count, expected, last: None }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.forecast.lock().finish(self.count, self.expected, self.last);
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
        // Behind two, the one before may still be waiting for its turn, and nobody waits for that one.
        let may_go_ahead =
            self.under_way.len() == 1 && self.rested >= self.rest && count.is_some_and(|count| count > 0);
        let ahead = self.end.filter(|_| may_go_ahead);
        self.rested = self.rested.saturating_add(1);
        self.under_way.push(count);
        self.end = self.end.zip(count).map(|(end, count)| end + count);
        ahead
    }

    /// `expected`: what [`Self::begin`] said. `last`: the number of the last alert that was stored.
    fn finish(&mut self, count: Option<i64>, expected: Option<i64>, last: Option<i64>) {
        if let Some(place) = self.under_way.iter().position(|other| *other == count) {
            self.under_way.remove(place);
        }
        let behind: Option<i64> = self.under_way.iter().copied().sum();
        self.end = last.zip(behind).map(|(last, behind)| last + behind);
        if expected.is_some() {
            let foretold = expected.zip(count).map(|(expected, count)| expected + count);
            self.rest = if last == foretold { 0 } else { (2 * self.rest).clamp(LEAST_REST, MOST_REST) };
            self.rested = 0;
        }
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
        forecast.finish(Some(5), None, Some(5));
        forecast.finish(Some(5), None, Some(10));
        assert_eq!(forecast.begin(Some(3)), None, "nothing is under way");
        assert_eq!(forecast.begin(Some(4)), Some(13));
        assert_eq!(forecast.begin(Some(1)), None, "two are under way");
        forecast.finish(Some(3), None, Some(13));
        forecast.finish(Some(4), Some(13), Some(17));
        assert_eq!(forecast.begin(Some(2)), Some(18));
    }

    #[test]
    fn where_repeated_events_may_be_nothing_is_foretold() {
        let mut forecast = Forecast { end: Some(10), ..Forecast::default() };
        forecast.begin(Some(1));
        assert_eq!(forecast.begin(None), None);
        forecast.finish(Some(1), None, Some(11));
        assert_eq!(forecast.begin(Some(1)), None, "nobody knows how many the one under way has");
        forecast.finish(None, None, Some(12));
        assert_eq!(forecast.begin(Some(1)), Some(13));
        assert_eq!(forecast.begin(Some(0)), None);
    }

    #[test]
    fn each_mistake_is_followed_by_a_longer_rest() {
        let mut forecast = Forecast { end: Some(0), ..Forecast::default() };
        let mut last = 0;
        let mut until_ahead = |forecast: &mut Forecast, added: i64| {
            for appends in 0.. {
                forecast.begin(Some(1));
                let expected = forecast.begin(Some(1));
                forecast.finish(Some(1), None, Some(last + 1));
                last += 2 + if expected.is_some() { added } else { 0 };
                forecast.finish(Some(1), expected, Some(last));
                if expected.is_some() {
                    return appends;
                }
            }
            unreachable!("for ever is long")
        };
        // Two appends each; the first that may be made ahead is the second one.
        assert_eq!([7, 7, 7, 7, 0, 0].map(|added| until_ahead(&mut forecast, added)), [0, 1, 2, 4, 8, 0]);
        forecast.begin(Some(1));
        let expected = forecast.begin(Some(1));
        forecast.finish(Some(1), expected, None);
        assert_eq!((expected.is_some(), forecast.end, forecast.rest), (true, None, LEAST_REST), "it failed");
    }
}
