//! When each camera was last heard of. Pure; bounded, whatever the messages say.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

/// So many of the cameras heard of last are reported.
const REPORTED: usize = 100;

#[derive(Default)]
pub struct Cameras {
    last_heard: HashMap<Box<str>, Instant>,
}

impl Cameras {
    /// O(1) amortised.
    pub fn hear(&mut self, camera: &str, at: Instant) {
        if let Some(last_heard) = self.last_heard.get_mut(camera) {
            *last_heard = at;
            return;
        }
        if self.last_heard.len() >= 2 * REPORTED {
            let newest: Vec<_> = self.newest().into_iter().map(|(camera, heard)| (camera.into(), heard)).collect();
            self.last_heard = newest.into_iter().collect();
        }
        self.last_heard.insert(camera.into(), at);
    }

    /// Seconds since each of the newest, by camera.
    pub fn silence(&self, now: Instant) -> BTreeMap<&str, f64> {
        let seconds = |heard: Instant| (now.saturating_duration_since(heard).as_secs_f64() * 10.0).round() / 10.0;
        self.newest().into_iter().map(|(camera, heard)| (camera, seconds(heard))).collect()
    }

    fn newest(&self) -> Vec<(&str, Instant)> {
        let mut all: Vec<_> = self.last_heard.iter().map(|(camera, heard)| (&**camera, *heard)).collect();
        all.sort_by_key(|(_, heard)| std::cmp::Reverse(*heard));
        all.truncate(REPORTED);
        all
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_newest_cameras_are_known_and_no_more() {
        let begin = Instant::now();
        let mut cameras = Cameras::default();
        for second in 0..1_000 {
            cameras.hear(&format!("camera {second}"), begin + Duration::from_secs(second));
            cameras.hear("7", begin + Duration::from_secs(second));
        }
        let silence = cameras.silence(begin + Duration::from_secs(1_000));
        assert_eq!(silence.len(), REPORTED);
        assert_eq!((silence["7"], silence["camera 999"], silence["camera 950"]), (1.0, 1.0, 50.0));
        assert!(cameras.last_heard.len() <= 2 * REPORTED);
    }
}
