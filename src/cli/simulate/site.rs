//! A simulated site: people walk from zone to zone, and cameras tell who is where. Pure: chance is
//! seeded; the time and the name of the run are handed in.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;

use crate::directory::geometry::Corners;
use crate::time::Timestamp;

/// A zone that a camera watches.
#[derive(Clone, Debug)]
pub struct Area {
    pub zone_id: String,
    pub zone_name: String,
    pub corners: Corners,
}

/// Somebody who walks; without a `global_id` nobody whom the detectors know.
#[derive(Clone, Debug, Default)]
pub struct Person {
    pub global_id: Option<i64>,
    pub name: Option<String>,
    /// Where they may be.
    pub zone_ids: Vec<String>,
}

pub struct Site {
    run: String,
    areas: Vec<Area>,
    walkers: Vec<Walker>,
    turn: usize,
    /// How far one moves between two looks of a camera.
    stride: f64,
    frames: Vec<i64>,
    alerts: u64,
    random: StdRng,
}

struct Walker {
    person: Person,
    at: [f64; 2],
    /// Index of the area they are on their way to, and where in it.
    target: usize,
    goal: [f64; 2],
}

/// What a detector publishes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Alert {
    pub event_id: String,
    pub user_id: Option<i64>,
    pub user_name: Option<String>,
    pub camera_id: usize,
    pub zone_id: String,
    pub zone_name: String,
    pub iop: f64,
    pub threshold: f64,
    pub status: &'static str,
    pub timestamp: String,
    pub frame_id: i64,
    pub x: f64,
    pub y: f64,
}

/// So much of a person must be inside a zone to count as being there.
const THRESHOLD: f64 = 0.5;
/// Strides from one end of the site to the other.
const STRIDES_ACROSS: f64 = 40.0;
/// Of a camera, per second.
const FRAMES_PER_STRIDE: i64 = 25;

impl Site {
    /// `None` without an area or a person. `run` makes the event ids of this run its own.
    pub fn new(areas: Vec<Area>, people: Vec<Person>, run: String, seed: u64) -> Option<Self> {
        if areas.is_empty() || people.is_empty() {
            return None;
        }
        let mut random = StdRng::seed_from_u64(seed);
        let walkers = people
            .into_iter()
            .map(|person| {
                let target = choose_target(&areas, &person, &mut random);
                let at = random_point(&areas[target].corners, &mut random);
                Walker { person, at, target, goal: at }
            })
            .collect();
        let bounds = areas
            .iter()
            .flat_map(|area| area.corners)
            .fold([f64::MAX, f64::MIN], |[low, high], [x, y]| [low.min(x).min(y), high.max(x).max(y)]);
        let stride = (bounds[1] - bounds[0]) / STRIDES_ACROSS;
        Some(Self { run, frames: vec![0; areas.len()], areas, walkers, turn: 0, stride, alerts: 0, random })
    }

    /// Lets people walk, one after the other, until one of them is seen in a zone.
    pub fn next_alert(&mut self, now: Timestamp) -> Alert {
        loop {
            let index = self.turn % self.walkers.len();
            self.turn += 1;
            // Whoever arrives is in a zone, and everybody arrives, so this ends.
            if let Some(area) = self.walk(index) {
                return self.report(index, area, now);
            }
        }
    }

    /// One stride; the area in which the walker is then.
    fn walk(&mut self, index: usize) -> Option<usize> {
        let walker = &mut self.walkers[index];
        let way = [walker.goal[0] - walker.at[0], walker.goal[1] - walker.at[1]];
        let distance = way[0].hypot(way[1]);
        if distance > self.stride {
            let part = self.stride / distance;
            walker.at = [walker.at[0] + way[0] * part, walker.at[1] + way[1] * part];
            return self.areas.iter().position(|area| contains(&area.corners, walker.at));
        }
        let arrived_in = walker.target;
        walker.at = walker.goal;
        walker.target = choose_target(&self.areas, &walker.person, &mut self.random);
        walker.goal = random_point(&self.areas[walker.target].corners, &mut self.random);
        Some(arrived_in)
    }

    fn report(&mut self, index: usize, area: usize, now: Timestamp) -> Alert {
        let Self { areas, walkers, random, .. } = self;
        let (zone, Walker { person, at, .. }) = (&areas[area], &walkers[index]);
        let is_partly_seen = random.random_bool(0.1);
        let iop =
            if is_partly_seen { random.random_range(0.1..THRESHOLD) } else { random.random_range(THRESHOLD..1.0) };
        let status = match person.zone_ids.contains(&zone.zone_id) {
            _ if is_partly_seen => "incomplete",
            true => "authorized",
            false => "violation",
        };
        self.alerts += 1;
        self.frames[area] += FRAMES_PER_STRIDE;
        Alert {
            event_id: format!("{}-{}", self.run, self.alerts),
            user_id: person.global_id,
            user_name: person.name.clone(),
            camera_id: area + 1,
            zone_id: zone.zone_id.clone(),
            zone_name: zone.zone_name.clone(),
            iop: rounded(iop),
            threshold: THRESHOLD,
            status,
            timestamp: now.to_string(),
            frame_id: self.frames[area],
            x: rounded(at[0]),
            y: rounded(at[1]),
        }
    }
}

/// Mostly where they may be; curiosity makes the violations.
fn choose_target(areas: &[Area], person: &Person, random: &mut StdRng) -> usize {
    let own: Vec<usize> = (0..areas.len()).filter(|index| person.zone_ids.contains(&areas[*index].zone_id)).collect();
    if !own.is_empty() && random.random_bool(0.8) {
        return own[random.random_range(0..own.len())];
    }
    random.random_range(0..areas.len())
}

/// A point inside; of a sliver that chance does not hit, a corner.
fn random_point(corners: &Corners, random: &mut StdRng) -> [f64; 2] {
    let range = |axis: usize| {
        let values = corners.map(|corner| corner[axis]);
        (values.iter().copied().fold(f64::MAX, f64::min), values.iter().copied().fold(f64::MIN, f64::max))
    };
    let bounds = [range(0), range(1)];
    for _ in 0..64 {
        let point = bounds.map(|(low, high)| low + random.random::<f64>() * (high - low));
        if contains(corners, point) {
            return point;
        }
    }
    corners[0]
}

/// Even-odd rule: a ray to the right crosses the edges an odd number of times.
pub fn contains(corners: &Corners, [x, y]: [f64; 2]) -> bool {
    let mut is_inside = false;
    for (index, [x1, y1]) in corners.iter().enumerate() {
        let [x2, y2] = corners[(index + 1) % corners.len()];
        if (*y1 > y) != (y2 > y) && x < x1 + (y - y1) / (y2 - y1) * (x2 - x1) {
            is_inside = !is_inside;
        }
    }
    is_inside
}

fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use proptest::prelude::*;

    use super::*;

    fn areas() -> Vec<Area> {
        let square = |x: f64, y: f64| [[x, y], [x + 4.0, y], [x + 4.0, y + 4.0], [x, y + 4.0]];
        let area = |id: &str, x, y| Area { zone_id: id.into(), zone_name: id.to_uppercase(), corners: square(x, y) };
        vec![area("a", 0.0, 0.0), area("b", 10.0, 0.0), area("c", 0.0, 10.0)]
    }

    fn people() -> Vec<Person> {
        let known = |global_id, zone: &str| Person {
            global_id: Some(global_id),
            name: Some(format!("P{global_id}")),
            zone_ids: vec![zone.into()],
        };
        vec![known(1, "a"), known(2, "b"), Person::default()]
    }

    fn site(seed: u64) -> Site {
        Site::new(areas(), people(), "run".into(), seed).expect("areas and people")
    }

    #[test]
    fn the_same_seed_makes_the_same_day() {
        let day = |seed| {
            let mut site = site(seed);
            (0..200).map(|second| site.next_alert(Timestamp::from_micros(second))).collect::<Vec<_>>()
        };
        assert_eq!(day(1), day(1));
        assert_ne!(day(1), day(2));
    }

    #[test]
    fn people_are_reported_where_they_are_and_judged_by_their_zones() {
        let mut site = site(7);
        let mut statuses: HashMap<(Option<i64>, &str), usize> = HashMap::new();
        let mut events = HashSet::new();
        for _ in 0..3_000 {
            let alert = site.next_alert(Timestamp::from_micros(0));
            let zone = areas().into_iter().find(|area| area.zone_id == alert.zone_id).expect("a zone of the site");
            let margin = |value: f64, low: f64| (low - 0.001..=low + 4.001).contains(&value);
            assert!(margin(alert.x, zone.corners[0][0]) && margin(alert.y, zone.corners[0][1]), "{alert:?}");
            let may_be = matches!((alert.user_id, alert.zone_id.as_str()), (Some(1), "a") | (Some(2), "b"));
            let expected = if alert.iop < THRESHOLD {
                "incomplete"
            } else if may_be {
                "authorized"
            } else {
                "violation"
            };
            assert_eq!(alert.status, expected, "{alert:?}");
            assert!(events.insert(alert.event_id), "an event id twice");
            *statuses.entry((alert.user_id, alert.status)).or_default() += 1;
        }
        let count = |user, status| statuses.get(&(user, status)).copied().unwrap_or_default();
        assert!(count(Some(1), "authorized") > count(Some(1), "violation") && count(Some(1), "violation") > 0);
        assert!(count(None, "violation") > 0 && count(None, "authorized") == 0);
    }

    #[test]
    fn an_alert_has_the_fields_that_detectors_send() {
        let alert = serde_json::to_string(&site(1).next_alert(Timestamp::from_micros(0))).expect("JSON");
        let fields =
            ["user_id", "user_name", "camera_id", "zone_id", "zone_name", "iop", "threshold", "status", "timestamp"];
        assert!(fields.iter().all(|field| alert.contains(&format!("\"{field}\":"))), "{alert}");
        assert!(alert.contains("1970-01-01T00:00:00.000000Z"), "{alert}");
    }

    #[test]
    fn nobody_or_nowhere_is_no_site() {
        assert!(Site::new(Vec::new(), people(), String::new(), 1).is_none());
        assert!(Site::new(areas(), Vec::new(), String::new(), 1).is_none());
    }

    proptest! {
        #[test]
        fn the_middle_of_a_convex_zone_is_inside_and_what_is_beyond_its_corners_is_not(
            x in -1e6..1e6_f64, y in -1e6..1e6_f64, radii in prop::array::uniform4(0.01..1e3_f64),
        ) {
            let corners = [[x + radii[0], y], [x, y + radii[1]], [x - radii[2], y], [x, y - radii[3]]];
            prop_assert!(contains(&corners, [x, y]));
            prop_assert!(!contains(&corners, [x + radii[0] * 1.01, y]) && !contains(&corners, [x, y - radii[3] * 1.01]));
        }

        #[test]
        fn a_site_of_any_size_goes_on(
            radii in prop::array::uniform4(0.001..1e3_f64), exponent in -300..140_i32, seed: u64,
        ) {
            let radii = radii.map(|radius| radius * 10_f64.powi(exponent));
            let corners = [[radii[0], 0.0], [0.0, radii[1]], [-radii[2], 0.0], [0.0, -radii[3]]];
            let area = Area { zone_id: "z".into(), zone_name: "Z".into(), corners };
            let mut site = Site::new(vec![area], people(), "run".into(), seed).expect("a site");
            for _ in 0..50 {
                site.next_alert(Timestamp::from_micros(0));
            }
        }
    }
}
