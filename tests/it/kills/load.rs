//! Who uses the instances while they suffer: a producer, clients that post, screens that come back. And
//! what the database holds in the end.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::join_all;
use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;

use super::fleet::Living;
use super::ledger::{Flaw, Line, Screening, Sent, check_lanes, check_numbers, check_screen};
use crate::support::backends::Database;

/// Groups take their time after a kill, and a full machine takes its own.
const PATIENCE: Duration = Duration::from_secs(90);
const TICK: Duration = Duration::from_millis(20);
const KEYS: i64 = 16;
const POSTED_AT_ONCE: i64 = 5;

/// Waits until something is so.
pub async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let begun_at = Instant::now();
    while !is_so().await {
        assert!(begun_at.elapsed() < PATIENCE, "not in {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub struct Load {
    stop: Arc<AtomicBool>,
    delivered: Arc<AtomicI64>,
    producer: JoinHandle<Vec<Sent>>,
    posters: Vec<JoinHandle<(String, i64)>>,
    screens: Vec<Screen>,
    pub posts_repeated: Arc<AtomicU64>,
    pub duplicates_told: Arc<AtomicU64>,
}

struct Screen {
    name: String,
    after: Option<i64>,
    seen: Arc<Mutex<Vec<Line>>>,
    connections: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

/// How much of everything.
pub struct Plan {
    pub messages_per_second: i64,
    pub posters: usize,
    pub screens: usize,
}

/// All that was sent: by the key or the poster, and by partition.
pub struct Everything {
    pub by_key: Sent,
    pub by_partition: Sent,
}

impl Everything {
    fn count(&self) -> i64 {
        self.by_key.values().sum()
    }
}

impl Load {
    pub fn start(plan: &Plan, servers: &str, topic: &str, living: &Living) -> Self {
        let (stop, delivered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicI64::new(0)));
        let (posts_repeated, duplicates_told) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let producing = Producing {
            producer: producer(servers),
            topic: topic.to_owned(),
            per_tick: plan.messages_per_second * i64::try_from(TICK.as_millis()).expect("short") / 1000,
            stop: stop.clone(),
            delivered: delivered.clone(),
        };
        let posters = (0..plan.posters).map(|number| {
            let posting = Posting {
                lane: format!("poster-{number}"),
                living: living.clone(),
                stop: stop.clone(),
                repeated: posts_repeated.clone(),
                duplicates: duplicates_told.clone(),
            };
            tokio::spawn(posting.run())
        });
        let screens = (0..plan.screens).map(|number| {
            let (name, after) = (format!("screen-{number}"), (number % 2 == 0).then_some(0));
            let (seen, connections) = (Arc::default(), Arc::default());
            let task = tokio::spawn(watch(living.clone(), after, Arc::clone(&seen), Arc::clone(&connections)));
            Screen { name, after, seen, connections, task }
        });
        Self {
            posters: posters.collect(),
            screens: screens.collect(),
            producer: tokio::spawn(producing.run()),
            stop,
            delivered,
            posts_repeated,
            duplicates_told,
        }
    }

    /// How many messages the broker has for sure.
    pub fn delivered(&self) -> i64 {
        self.delivered.load(Ordering::SeqCst)
    }

    /// Stops sending, waits until everything is stored and shown, and tells what is wrong with it.
    pub async fn finish(self, store: &Store) -> Vec<Flaw> {
        self.stop.store(true, Ordering::SeqCst);
        let mut sent = self.producer.await.expect("the producer works").into_iter();
        let mut everything =
            Everything { by_key: sent.next().expect("by key"), by_partition: sent.next().expect("by partition") };
        for poster in self.posters {
            let (lane, count) = poster.await.expect("the poster works");
            everything.by_key.insert(lane, count);
        }
        let count = everything.count();
        until("everything is stored", async || store.last_seq().await >= count).await;
        let rows = store.rows().await;
        let log: Vec<Line> = rows.iter().map(|(line, _)| line.clone()).collect();
        let last = log.last().map_or(0, |line| line.seq);
        for Screen { name, seen, task, .. } in &self.screens {
            until(&format!("{name} is shown the last one"), async || {
                assert!(!task.is_finished(), "{name} ended");
                seen.lock().expect("no panic").last().is_some_and(|line| line.seq == last)
            })
            .await;
        }
        let mut flaws = check_numbers(&log);
        flaws.extend(check_lanes(&everything.by_key, &log));
        flaws.extend(check_lanes(&everything.by_partition, rows.iter().filter_map(|(_, offset)| offset.as_ref())));
        let mut connections = Vec::new();
        for screen in self.screens {
            screen.task.abort();
            connections.push(screen.connections.load(Ordering::SeqCst));
            let seen = screen.seen.lock().expect("no panic").clone();
            flaws.extend(check_screen(&Screening { name: screen.name, after: screen.after, seen }, &log));
        }
        println!(
            "{count} alerts stored; the screens connected {connections:?} times; {} posts were repeated, {} alerts of \
             them were there already",
            self.posts_repeated.load(Ordering::SeqCst),
            self.duplicates_told.load(Ordering::SeqCst)
        );
        flaws
    }
}

/// One that repeats what failed without doubling or reordering it, or the check would blame the service.
fn producer(servers: &str) -> FutureProducer {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", servers).set("enable.idempotence", "true").set("linger.ms", "5");
    config.create().expect("a producer")
}

struct Producing {
    producer: FutureProducer,
    topic: String,
    per_tick: i64,
    stop: Arc<AtomicBool>,
    delivered: Arc<AtomicI64>,
}

impl Producing {
    async fn run(self) -> Vec<Sent> {
        let (mut by_key, mut by_partition) = (Sent::new(), Sent::new());
        let mut ticks = tokio::time::interval(TICK);
        let mut deliveries = Vec::new();
        while !self.stop.load(Ordering::SeqCst) {
            ticks.tick().await;
            for _ in 0..self.per_tick {
                let camera = rand::random_range(0..KEYS);
                let key = format!("camera-{camera}");
                let number = by_key.entry(key.clone()).or_insert(0);
                let text =
                    json!({"lane": key, "number": *number, "camera_id": camera, "status": "violation"}).to_string();
                *number += 1;
                let record = FutureRecord::to(&self.topic).key(&key).payload(&text);
                let delivery = self.producer.send_result(record).map_err(|(error, _)| error).expect("it is queued");
                let delivered = self.delivered.clone();
                deliveries.push(tokio::spawn(async move {
                    let delivery = delivery.await.expect("the producer lives").map_err(|(error, _)| error);
                    delivered.fetch_add(1, Ordering::SeqCst);
                    delivery.expect("the broker takes it")
                }));
            }
        }
        for delivery in join_all(deliveries).await {
            let delivery = delivery.expect("delivered");
            let end = by_partition.entry(format!("{}/{}", self.topic, delivery.partition)).or_insert(0);
            *end = (delivery.offset + 1).max(*end);
        }
        vec![by_key, by_partition]
    }
}

/// A client that repeats each post until it is told that it was stored.
struct Posting {
    lane: String,
    living: Living,
    stop: Arc<AtomicBool>,
    repeated: Arc<AtomicU64>,
    duplicates: Arc<AtomicU64>,
}

impl Posting {
    async fn run(self) -> (String, i64) {
        let client = reqwest::Client::builder().timeout(Duration::from_secs(3)).build().expect("a client");
        let mut sent = 0;
        while !self.stop.load(Ordering::SeqCst) {
            let alert = |number| {
                let event = format!("{}-{number}", self.lane);
                json!({"lane": self.lane, "number": number, "event_id": event})
            };
            let body: Vec<Value> = (sent..sent + POSTED_AT_ONCE).map(alert).collect();
            while !self.post(&client, &body).await {
                self.repeated.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(TICK).await;
            }
            sent += POSTED_AT_ONCE;
            tokio::time::sleep(TICK).await;
        }
        (self.lane, sent)
    }

    async fn post(&self, client: &reqwest::Client, body: &[Value]) -> bool {
        let Some(url) = self.living.pick() else { return false };
        let Ok(answer) = client.post(format!("{url}/alerts")).json(body).send().await else { return false };
        if answer.status() != 200 {
            assert_eq!(answer.status(), 503);
            return false;
        }
        let Ok(told) = answer.json::<Value>().await else { return false };
        let number = |name: &str| told[name].as_i64().expect("a number");
        assert_eq!(number("accepted") + number("duplicates"), POSTED_AT_ONCE, "{told}");
        self.duplicates.fetch_add(number("duplicates").unsigned_abs(), Ordering::SeqCst);
        true
    }
}

/// A screen that comes back to any living instance with the last number that it has.
async fn watch(living: Living, mut after: Option<i64>, seen: Arc<Mutex<Vec<Line>>>, connections: Arc<AtomicU64>) {
    loop {
        let position = after.map_or_else(String::new, |after| format!("&after={after}"));
        let url =
            living.pick().map(|url| format!("{}/ws/alerts?envelope=true{position}", url.replacen("http", "ws", 1)));
        let connecting = async { tokio_tungstenite::connect_async(url?).await.ok() };
        let Ok(Some((mut socket, _))) = tokio::time::timeout(Duration::from_secs(2), connecting).await else {
            tokio::time::sleep(TICK).await;
            continue;
        };
        connections.fetch_add(1, Ordering::SeqCst);
        while let Some(Ok(message)) = socket.next().await {
            match message {
                Message::Text(text) => {
                    let shown: Value = serde_json::from_str(&text).expect("JSON");
                    let seq = shown["seq"].as_i64().expect("a number");
                    seen.lock().expect("no panic").push(line(seq, &shown["alert"]));
                    after = Some(seq);
                }
                Message::Close(Some(frame)) => assert_ne!(u16::from(frame.code), 1008, "{}", frame.reason),
                _ => {}
            }
        }
    }
}

pub fn line(seq: i64, alert: &Value) -> Line {
    let (lane, number) = (alert["lane"].as_str().expect("a lane"), alert["number"].as_i64().expect("a number"));
    Line { seq, lane: lane.to_owned(), number }
}

/// The database, looked at past the service.
pub struct Store {
    database: String,
    client: tokio_postgres::Client,
}

impl Store {
    pub async fn open(database: &Database) -> Self {
        let Database::Postgres(postgres) = database else { panic!("PostgreSQL") };
        Self { database: postgres.url.clone(), client: postgres.connect().await }
    }

    /// Appends wait until this is dropped.
    pub async fn lock_log(&self) -> tokio_postgres::Client {
        let (client, connection) =
            tokio_postgres::connect(&self.database, tokio_postgres::NoTls).await.expect("PostgreSQL answers");
        tokio::spawn(connection);
        client.batch_execute("BEGIN; SELECT last_seq FROM alert_log FOR UPDATE").await.expect("locked");
        client
    }

    pub async fn last_seq(&self) -> i64 {
        self.client.query_one("SELECT last_seq FROM alert_log", &[]).await.expect("a row").get(0)
    }

    /// How many messages of the topic are stored: everything before the positions.
    pub async fn stored(&self) -> i64 {
        let sql = "SELECT coalesce(sum(next), 0)::bigint FROM kafka_offset";
        self.client.query_one(sql, &[]).await.expect("a row").get(0)
    }

    /// How long ago the newest alert was received, all by the database's clock.
    pub async fn newest_age(&self) -> Duration {
        let sql =
            "SELECT extract(epoch FROM clock_timestamp() - received_at)::float8 FROM alert ORDER BY seq DESC LIMIT 1";
        let seconds: f64 = self.client.query_one(sql, &[]).await.expect("a row").get(0);
        Duration::try_from_secs_f64(seconds).expect("the past")
    }

    /// The log: each entry by its key or poster, and by partition and offset where it is out of Kafka.
    async fn rows(&self) -> Vec<(Line, Option<Line>)> {
        let rows = self.client.query("SELECT seq, source, body FROM alert ORDER BY seq", &[]).await.expect("rows");
        let of = |row: &tokio_postgres::Row| {
            let (seq, source, body): (i64, &str, &str) = (row.get(0), row.get(1), row.get(2));
            let place = source.strip_prefix("kafka:").and_then(|place| place.rsplit_once('/'));
            let offset = place.map(|(lane, offset)| Line {
                seq,
                lane: lane.to_owned(),
                number: offset.parse().expect("an offset"),
            });
            (line(seq, &serde_json::from_str(body).expect("JSON")), offset)
        };
        rows.iter().map(of).collect()
    }

    /// Waits until each partition goes on from where it is now.
    pub async fn until_all_flow(&self) -> Duration {
        let begun_at = Instant::now();
        // What was sent to the database before may still be on its way there.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let before = self.positions().await;
        until("each partition goes on", async || {
            let now = self.positions().await;
            before.iter().all(|(partition, next)| now.get(partition) > Some(next))
        })
        .await;
        begun_at.elapsed()
    }

    /// Of the partitions that anything came from.
    async fn positions(&self) -> BTreeMap<i32, i64> {
        let sql = r#"SELECT "partition", next FROM kafka_offset WHERE next > 0"#;
        let rows = self.client.query(sql, &[]).await.expect("rows");
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }
}

/// Not all of them: a wrong run has thousands.
#[track_caller]
pub fn assert_flawless(flaws: &[Flaw]) {
    let mut kinds = BTreeMap::<String, usize>::new();
    for flaw in flaws {
        let text = format!("{flaw:?}");
        *kinds.entry(text.split(' ').next().unwrap_or_default().to_owned()).or_default() += 1;
    }
    assert!(flaws.is_empty(), "{kinds:?}, the first: {:#?}", &flaws[..flaws.len().min(5)]);
}
