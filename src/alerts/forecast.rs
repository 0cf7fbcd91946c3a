//! Where the log will end before an append has its turn, so that a store may do the work of the append ahead.
//! A guess of one process, which the store has to check. Knows no store, no tasks and no clock.

use parking_lot::Mutex;

use super::types::AppendBatch;

/// One append in the forecast, until it is dropped.
pub struct Place<'a> {
    forecast: &'a Mutex<Forecast>,
    id: u64,
    expected: Option<i64>,
    /// What is foretold was wrong: the work that was done ahead is repeated.
    pub is_mistaken: bool,
    /// Where the log ends after it; `None` until it is stored.
    pub last: Option<i64>,
}

impl<'a> Place<'a> {
    /// Begins an append of these. The forecast hears of its end when the place is dropped.
    pub fn take(forecast: &'a Mutex<Forecast>, batch: &AppendBatch) -> Self {
        let count = if batch.names_events() { None } else { i64::try_from(batch.alerts.len()).ok() };
        let (id, expected) = forecast.lock().begin(count);
        Self { forecast, id, expected, is_mistaken: false, last: None }
    }

    /// Where it may be made ahead: where the log will end before it.
    pub fn ahead(&self) -> Option<i64> {
        self.expected.filter(|_| !self.is_mistaken)
    }

    /// It is on its way to the store, so another may be made ahead of it.
    pub fn send(&self) {
        self.forecast.lock().send(self.id);
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut forecast = self.forecast.lock();
        forecast.finish(self.id, self.last);
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
    under_way: Vec<UnderWay>,
    begun: u64,
    /// After a mistake so many appends are not made ahead.
    rest: u32,
    rested: u32,
}

struct UnderWay {
    id: u64,
    /// How many alerts it has; `None`: repeated events may be among them.
    count: Option<i64>,
    is_ahead: bool,
    is_sent: bool,
}

const LEAST_REST: u32 = 2;
const MOST_REST: u32 = 256;

impl Forecast {
    /// Begins an append of so many alerts: its id, and where it may be made ahead the number that it goes on from.
    fn begin(&mut self, count: Option<i64>) -> (u64, Option<i64>) {
        let is_rested = self.rested >= self.rest;
        // The second of two may itself be waiting for the head: it has no number yet that a third could wait for. An
        // ordinary append behind one that is made ahead would take the head before it.
        let may_go_ahead = match self.under_way.as_slice() {
            [before] => before.is_sent && (before.is_ahead || is_rested) && count.is_some_and(|count| count > 0),
            _ => false,
        };
        let ahead = self.end.filter(|_| may_go_ahead);
        self.rested = self.rested.saturating_add(1);
        self.begun += 1;
        self.under_way.push(UnderWay { id: self.begun, count, is_ahead: ahead.is_some(), is_sent: false });
        self.end = self.end.zip(count).map(|(end, count)| end + count);
        (self.begun, ahead)
    }

    fn send(&mut self, id: u64) {
        for one in self.under_way.iter_mut().filter(|one| one.id == id) {
            one.is_sent = true;
        }
    }

    /// `last`: where the log ends after it; `None`: it is not stored, or nobody knows.
    fn finish(&mut self, id: u64, last: Option<i64>) {
        self.under_way.retain(|one| one.id != id);
        let behind: Option<i64> = self.under_way.iter().map(|one| one.count).sum();
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

    impl Forecast {
        fn ending_with(end: i64) -> Self {
            Self { end: Some(end), ..Self::default() }
        }

        fn begin_and_send(&mut self, count: Option<i64>) -> (u64, Option<i64>) {
            let (id, ahead) = self.begin(count);
            self.send(id);
            (id, ahead)
        }
    }

    #[test]
    fn the_second_of_two_appends_may_be_made_ahead() {
        let mut forecast = Forecast::default();
        let (one, ahead) = forecast.begin_and_send(Some(5));
        assert_eq!(ahead, None, "nobody knows where the log ends");
        let (two, ahead) = forecast.begin_and_send(Some(5));
        assert_eq!(ahead, None);
        forecast.finish(one, Some(5));
        forecast.finish(two, Some(10));
        let (one, ahead) = forecast.begin_and_send(Some(3));
        assert_eq!(ahead, None, "nothing is under way");
        let (two, ahead) = forecast.begin_and_send(Some(4));
        assert_eq!(ahead, Some(13));
        let (three, ahead) = forecast.begin_and_send(Some(1));
        assert_eq!(ahead, None, "two are under way");
        forecast.finish(one, Some(13));
        forecast.finish(two, Some(17));
        assert_eq!(forecast.begin_and_send(Some(2)).1, Some(18));
        forecast.finish(three, None);
        assert_eq!(forecast.begin_and_send(Some(2)).1, None, "one failed: perhaps it is stored");
    }

    #[test]
    fn nothing_is_made_ahead_of_what_is_not_on_its_way() {
        let mut forecast = Forecast::ending_with(10);
        forecast.begin(Some(1));
        assert_eq!(forecast.begin(Some(1)).1, None, "it waits for a connection");
    }

    #[test]
    fn where_repeated_events_may_be_nothing_is_foretold() {
        let mut forecast = Forecast::ending_with(10);
        let (one, _) = forecast.begin_and_send(Some(1));
        let (two, ahead) = forecast.begin_and_send(None);
        assert_eq!(ahead, None);
        forecast.finish(one, Some(11));
        let (three, ahead) = forecast.begin_and_send(Some(1));
        assert_eq!(ahead, None, "nobody knows how many the one under way has");
        forecast.finish(two, Some(12));
        assert_eq!(forecast.begin(Some(1)).1, Some(13));
        forecast.finish(three, Some(13));
        assert_eq!(forecast.begin(Some(0)).1, None);
    }

    /// Pairs of appends until the second one is made ahead.
    fn until_ahead(forecast: &mut Forecast, is_mistaken: bool) -> u32 {
        for pairs in 1.. {
            let (one, _) = forecast.begin_and_send(Some(1));
            let (two, ahead) = forecast.begin_and_send(Some(1));
            let end = forecast.end;
            forecast.finish(one, end.map(|end| end - 1));
            forecast.finish(two, end);
            if ahead.is_some() {
                forecast.learn(is_mistaken);
                return pairs;
            }
        }
        unreachable!("for ever is long")
    }

    #[test]
    fn each_mistake_is_followed_by_a_longer_rest() {
        let mut forecast = Forecast::ending_with(0);
        assert_eq!([true, true, true, true].map(|is_mistaken| until_ahead(&mut forecast, is_mistaken)), [1, 2, 3, 5]);
        assert_eq!([false; 5].map(|is_mistaken| until_ahead(&mut forecast, is_mistaken)), [9, 5, 3, 2, 1]);
    }

    #[test]
    fn nobody_rests_behind_one_that_is_made_ahead() {
        let mut forecast = Forecast::ending_with(0);
        let (one, _) = forecast.begin_and_send(Some(1));
        let (two, _) = forecast.begin_and_send(Some(1));
        forecast.finish(one, Some(1));
        let (_, ahead) = forecast.begin_and_send(Some(1));
        assert_eq!(ahead, Some(2));
        forecast.finish(two, Some(2));
        forecast.learn(true);
        assert_eq!(forecast.begin_and_send(Some(1)).1, Some(3));
    }

    #[test]
    fn a_place_that_is_given_up_leaves_no_trace() {
        let forecast = Mutex::new(Forecast::ending_with(7));
        drop(Place::take(&forecast, &AppendBatch::default()));
        assert!(forecast.lock().under_way.is_empty() && forecast.lock().end.is_none());
    }
}
