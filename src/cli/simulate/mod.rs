//! `simulate`: a site that publishes alerts, to a service over HTTP or to Kafka.

pub mod site;
mod target;

use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::Value;

use self::site::{Alert, Area, Person, Site};
use self::target::Target;
use super::exit::Failure;
use super::healthcheck::{base_url, client};
use super::serve::Signals;
use super::{Exit, Settings, complain, print, sample};
use crate::directory::geometry::Corners;
use crate::kafka::producer::AlertProducer;
use crate::store_error::describe;
use crate::time::Timestamp;

/// How often what is due is published.
const TICK: Duration = Duration::from_millis(50);
const REPORT_INTERVAL: Duration = Duration::from_secs(5);
/// `POST /alerts` takes no more at once.
const BATCH: usize = 1000;
const OWN_PEOPLE: usize = 20;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long after its end the last alerts may still be on their way.
const GRACE: Duration = Duration::from_secs(5);

/// Simulate a site: people walk through zones, cameras publish alerts
#[derive(clap::Args)]
#[command(after_help = "\
People and zones are those of the service; where it has none, sample ones.

Examples:
  unified-backend simulate
  unified-backend simulate --rate 200 --people 500 --duration 60s --url http://10.0.0.5:8000
  KAFKA_BOOTSTRAP_SERVERS=localhost:9092 unified-backend simulate --kafka")]
pub struct Arguments {
    /// Alerts per second
    #[arg(long, value_name = "N", default_value_t = 10.0, value_parser = parse_rate)]
    rate: f64,
    /// How many people walk; more than there are: the rest are strangers [default: all, at least 20]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    people: Option<u32>,
    /// Stop after so long, e.g. 30s, 5m, 2h [default: on Ctrl-C]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    duration: Option<Duration>,
    /// Address of the service [default: that of the configuration]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Publish to the configured Kafka topic instead of POST /alerts
    #[arg(long)]
    kafka: bool,
    /// The same seed walks the same ways
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

pub async fn run(settings: &Settings, arguments: Arguments) -> anyhow::Result<Exit> {
    let mut signals = Signals::listen()?;
    let url = base_url(settings, arguments.url.clone())?;
    let client = client(REQUEST_TIMEOUT)?;
    let found = fetch(&client, &url).await;
    let mut target = if arguments.kafka {
        let config = settings.load()?;
        let Some(kafka) = &config.kafka else {
            return Err(Failure::unavailable("Kafka is not configured: set KAFKA_BOOTSTRAP_SERVERS=host:port"));
        };
        let producer = AlertProducer::new(kafka).map_err(|error| Failure::unavailable(error.to_string()))?;
        if let Err(error) = producer.ensure_topic().await {
            complain(&error.to_string());
        }
        Target::Kafka(Box::new(producer))
    } else {
        Target::Http { client, url: format!("{url}/alerts") }
    };
    // To Kafka one can publish without a service; to a service that is not there, one cannot.
    let (areas, people) = match found {
        Ok(found) => found,
        Err(error) if arguments.kafka => {
            complain(&format!("{error:#}; sample people and zones are used"));
            (Vec::new(), Vec::new())
        }
        Err(error) => return Err(error),
    };
    let mut site = site_of(areas, people, arguments.people, arguments.seed)?;
    print(&format!("publishing {} alerts a second to {target}", arguments.rate))?;
    let mut count = Count::default();
    let begun_at = Instant::now();
    let publishing = publish(&mut site, &mut target, &arguments, &mut count);
    let overdue = async {
        match arguments.duration {
            Some(duration) => tokio::time::sleep(duration + GRACE).await,
            None => std::future::pending().await,
        }
    };
    let outcome = tokio::select! {
        outcome = publishing => outcome,
        _ = signals.next() => Ok(()),
        () = overdue => Err(Failure::unavailable("the time is over, and the last alerts could not be published")),
    };
    print(&format!("{count} in {:.1} s", begun_at.elapsed().as_secs_f64()))?;
    outcome.map(|()| Exit::Done)
}

/// Until the duration is over.
async fn publish(site: &mut Site, target: &mut Target, arguments: &Arguments, count: &mut Count) -> anyhow::Result<()> {
    let begun_at = Instant::now();
    let mut reported_at = begun_at;
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut owed = 0.0;
    let mut counted_at = begun_at;
    loop {
        ticks.tick().await;
        let now = Instant::now();
        let end = arguments.duration.map(|duration| begun_at + duration);
        let until = end.map_or(now, |end| now.min(end));
        owed += until.saturating_duration_since(counted_at).as_secs_f64() * arguments.rate;
        counted_at = until;
        // After an outage life goes on; it is not made up for in one burst.
        owed = owed.min(arguments.rate.max(1.0));
        while owed >= 1.0 {
            let alerts: Vec<Alert> = (0..BATCH.min(owed as usize)).map(|_| site.next_alert(Timestamp::now())).collect();
            owed -= alerts.len() as f64;
            target.publish(&alerts, count).await?;
        }
        if end.is_some_and(|end| now >= end) {
            return Ok(());
        }
        if reported_at.elapsed() >= REPORT_INTERVAL {
            reported_at = Instant::now();
            print(&count.to_string())?;
        }
    }
}

/// What became of the alerts so far.
#[derive(Default)]
pub struct Count {
    published: u64,
    duplicates: u64,
    rejected: u64,
    failures: u64,
}

impl std::fmt::Display for Count {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} published", self.published)?;
        for (number, what) in
            [(self.duplicates, "duplicates"), (self.rejected, "rejected"), (self.failures, "failed attempts")]
        {
            if number > 0 {
                write!(f, ", {number} {what}")?;
            }
        }
        Ok(())
    }
}

/// `wanted` people of those there are, and strangers where there are not enough.
pub fn site_of(mut areas: Vec<Area>, mut people: Vec<Person>, wanted: Option<u32>, seed: u64) -> anyhow::Result<Site> {
    if areas.is_empty() {
        let zones = sample::zones().into_iter();
        areas = zones
            .map(|zone| Area { zone_id: zone.zone_id, zone_name: zone.zone_name, corners: zone.corners })
            .collect();
    }
    if people.is_empty() {
        let users = sample::users(OWN_PEOPLE).into_iter();
        let person = |user: crate::directory::NewUser| Person {
            global_id: Some(user.global_id),
            name: Some(user.name),
            zone_ids: user.zone_ids,
        };
        people = users.map(person).collect();
    }
    let wanted = wanted.map_or_else(|| people.len().max(OWN_PEOPLE), |wanted| wanted as usize);
    people.resize_with(wanted, Person::default);
    let run = uuid::Uuid::now_v7().simple().to_string();
    Site::new(areas, people, run, seed).ok_or_else(|| anyhow::anyhow!("a site needs zones and people"))
}

async fn fetch(client: &reqwest::Client, url: &str) -> anyhow::Result<(Vec<Area>, Vec<Person>)> {
    #[derive(Deserialize)]
    struct User {
        global_id: i64,
        name: String,
        zone_ids: Vec<String>,
    }
    #[derive(Deserialize)]
    struct Zone {
        zone_id: String,
        zone_name: String,
        #[serde(flatten)]
        rest: serde_json::Map<String, Value>,
    }
    let zones: Vec<Zone> = get(client, &format!("{url}/zones?limit=10000")).await?;
    let users: Vec<User> = get(client, &format!("{url}/users?limit=10000")).await?;
    let areas = zones.into_iter().map(|zone| {
        let coordinate =
            |axis: &str, corner: usize| zone.rest[&format!("{axis}{}", corner + 1)].as_f64().unwrap_or(0.0);
        let corners: Corners = std::array::from_fn(|corner| [coordinate("x", corner), coordinate("y", corner)]);
        Area { zone_id: zone.zone_id.clone(), zone_name: zone.zone_name.clone(), corners }
    });
    let person =
        |user: User| Person { global_id: Some(user.global_id), name: Some(user.name), zone_ids: user.zone_ids };
    Ok((areas.collect(), users.into_iter().map(person).collect()))
}

async fn get<T: serde::de::DeserializeOwned>(client: &reqwest::Client, url: &str) -> anyhow::Result<T> {
    let failed = |error: reqwest::Error| Failure::unavailable(format!("{url}: {}", describe(&error)));
    let response = client.get(url).send().await.map_err(failed)?.error_for_status().map_err(failed)?;
    response.json().await.map_err(failed)
}

fn parse_rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| (0.01..=1e6).contains(rate));
    rate.ok_or_else(|| "a number from 0.01 to 1000000".to_owned())
}

/// `30`, `30s`, `1.5m`, `2h`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let (digits, unit) = match text.strip_suffix(['s', 'm', 'h']) {
        Some(digits) => (digits, &text[digits.len()..]),
        None => (text, "s"),
    };
    let factor = match unit {
        "m" => 60.0,
        "h" => 3600.0,
        _ => 1.0,
    };
    let seconds = digits.parse::<f64>().ok().map(|number| number * factor);
    let seconds = seconds.filter(|seconds| (0.001..=31_536_000.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "a time such as 30s, 5m or 2h".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_unit() {
        assert_eq!(parse_duration("30"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("2h"), Ok(Duration::from_secs(7200)));
        for wrong in ["", "s", "-1s", "1d", "NaN", "inf", "0", "1e300h"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }
}
