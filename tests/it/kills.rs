//! Alerts while instances of the real binary are killed, frozen and cut off: every number once, the order of
//! each key kept, every screen shown each seq once however often it had to come back.
//!
//! Real, against PostgreSQL, Redis and Apache Kafka: kills at random, a frozen instance, the store cut at
//! each step of an append, a broker that is killed, a clock that is stepped. A storm of rebalances is what
//! the kills are, too; one without kills is in `kafka.rs`.
//!
//! The checker, `ledger`, is pure. That it sees what it is for is shown in `planted` with bugs behind the
//! alert log's port: real stores, real push, but consumers as a few lines of the test, so that each bug
//! shows at once and every time.

mod broker;
mod fleet;
mod ledger;
mod load;
mod planted;
mod surgeon;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use self::broker::Broker;
use self::fleet::Fleet;
use self::load::{Load, Plan, Store, assert_flawless, until};
use self::surgeon::{Cut, Surgeon};
use crate::require_backend;
use crate::support::backends::{Database, find_kafka, find_redis_url};
use crate::support::kafka::Topics;

const PARTITIONS: i32 = 4;
/// Of a random instance each time.
const KILLS: usize = 11;
/// Longer than the group's session timeout, which is 6 s.
const FREEZE: Duration = Duration::from_millis(8_500);
/// Of each kind.
const CUTS: usize = 15;

/// What one test runs on.
struct Site {
    database: Database,
    servers: String,
    topic: String,
    redis: String,
}

impl Site {
    async fn find() -> Option<Self> {
        let (servers, redis) = (find_kafka()?, find_redis_url()?);
        Self::on(servers, redis).await
    }

    async fn on(servers: String, redis: String) -> Option<Self> {
        let database = Database::postgres().await?;
        let topic = Topics::create(&servers, PARTITIONS).await.topic;
        Some(Self { database, servers, topic, redis })
    }

    async fn start(&self, count: usize, more: &[(&str, &str)], is_named: bool) -> Fleet {
        let url = self.database.url();
        let mut settings = vec![
            ("KAFKA_BOOTSTRAP_SERVERS", self.servers.as_str()),
            ("KAFKA_TOPIC", &self.topic),
            ("KAFKA_GROUP_ID", &self.topic),
            ("REDIS_URL", &self.redis),
        ];
        if !more.iter().any(|(name, _)| *name == "DATABASE_URL") {
            settings.push(("DATABASE_URL", &url));
        }
        settings.extend_from_slice(more);
        let fleet = Fleet::start(count, &settings, is_named).await;
        until("all are ready, with all partitions assigned", async || {
            fleet.are_ready().await && fleet.assigned().await.iter().sum::<i64>() == i64::from(PARTITIONS)
        })
        .await;
        fleet
    }

    fn load(&self, plan: &Plan, fleet: &Fleet) -> Load {
        Load::start(plan, &self.servers, &self.topic, &fleet.living)
    }
}

async fn until_each_takes_part(fleet: &Fleet) {
    until("each instance has partitions, and none has another's", async || {
        let assigned = fleet.assigned().await;
        assigned.iter().all(|count| *count > 0) && assigned.iter().sum::<i64>() == i64::from(PARTITIONS)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_that_are_killed_at_random_lose_double_and_reorder_nothing() {
    survive_kills(false).await;
}

/// A name in the group gives the new instance the partitions of the killed one at once: each kill hits one
/// that is storing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_with_a_name_in_the_group_that_are_killed_at_random_lose_nothing_either() {
    survive_kills(true).await;
}

async fn survive_kills(is_named: bool) {
    let site = require_backend!(Site::find().await);
    let mut fleet = site.start(3, &[], is_named).await;
    until_each_takes_part(&fleet).await;
    let store = Store::open(&site.database).await;
    let load = site.load(&Plan { messages_per_second: 2_000, posters: 2, screens: 4 }, &fleet);
    until("alerts flow", async || store.stored().await > 1_000).await;

    let mut takeovers = Vec::new();
    fleet.replace(0).await;
    takeovers.push(store.until_all_flow().await);
    for _ in 1..KILLS {
        tokio::time::sleep(Duration::from_millis(rand::random_range(300..1_500))).await;
        fleet.replace(rand::random_range(0..3)).await;
    }
    takeovers.push(store.until_all_flow().await);
    println!("{KILLS} kills; all partitions flowed again after the first and the last one in {takeovers:?}");
    let flaws = load.finish(&store).await;
    fleet.assert_all_run().await;
    assert_flawless(&flaws);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_instance_that_wakes_up_after_it_was_replaced_doubles_nothing() {
    let site = require_backend!(Site::find().await);
    // What is under way when the freeze comes is not over when it ends.
    let mut fleet = site.start(3, &[("DATABASE_OPERATION_TIMEOUT_SECONDS", "30")], false).await;
    until_each_takes_part(&fleet).await;
    let store = Store::open(&site.database).await;
    let load = site.load(&Plan { messages_per_second: 2_000, posters: 1, screens: 4 }, &fleet);
    until("alerts flow", async || store.stored().await > 1_000).await;

    // With batches that wait behind the one under way: what a zombie does first is to store the next one.
    let locked = store.lock_log().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    fleet.freeze(0);
    let frozen_at = Instant::now();
    drop(locked);
    println!("the others had its partitions after {:?}", store.until_all_flow().await);
    tokio::time::sleep(FREEZE.saturating_sub(frozen_at.elapsed())).await;
    fleet.thaw(0);
    until_each_takes_part(&fleet).await;
    println!("the zombie was fenced {} times", fleet.count(0, "kafka_fenced_total").await);
    let flaws = load.finish(&store).await;
    fleet.assert_all_run().await;
    assert_flawless(&flaws);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_cut_off_at_any_step_of_an_append_has_each_alert_once() {
    let site = require_backend!(Site::find().await);
    let (surgeon, url) = Surgeon::in_front_of(&site.database.url()).await;
    let mut fleet = site.start(2, &[("DATABASE_URL", &url)], false).await;
    let store = Store::open(&site.database).await;
    let load = site.load(&Plan { messages_per_second: 1_000, posters: 3, screens: 2 }, &fleet);
    until("alerts flow", async || store.stored().await > 100).await;
    for _ in 0..CUTS {
        for cut in Cut::ALL {
            surgeon.cut_next_append(cut).await;
            tokio::time::sleep(Duration::from_millis(rand::random_range(0..100))).await;
        }
    }
    println!("{CUTS} cuts each of {:?}", Cut::ALL);
    let repeated = load.posts_repeated.clone();
    let duplicates = load.duplicates_told.clone();
    let flaws = load.finish(&store).await;
    fleet.assert_all_run().await;
    assert_flawless(&flaws);
    assert!(repeated.load(Ordering::SeqCst) > 0 && duplicates.load(Ordering::SeqCst) > 0, "the posts felt the cuts");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_killed_and_started_again_costs_no_alert() {
    let redis = require_backend!(find_redis_url());
    let mut broker = require_backend!(Broker::start().await);
    let site = require_backend!(Site::on(broker.address(), redis).await);
    let mut fleet = site.start(2, &[], false).await;
    let store = Store::open(&site.database).await;
    let load = site.load(&Plan { messages_per_second: 1_000, posters: 1, screens: 2 }, &fleet);
    until("alerts flow", async || store.stored().await > 1_000).await;
    broker.kill();
    let killed_at = Instant::now();
    broker.resume().await;
    let delivered = load.delivered();
    until("the broker takes messages again", async || load.delivered() > delivered).await;
    store.until_all_flow().await;
    println!("alerts flow again {:?} after the kill of the broker", killed_at.elapsed());
    let flaws = load.finish(&store).await;
    fleet.assert_all_run().await;
    assert_flawless(&flaws);
}

/// Nothing of ours asks the clock for an order: numbers are given under the log's lock, epochs and offsets are
/// counted, intervals are monotonic time. The Kafka client's threads however sleep by the wall clock, and one
/// that is set back is theirs to sleep through. Debian's `faketime` steps the clock that they read, not the
/// one that they sleep by: what is a step ahead to everybody else is one back to them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_stepped_changes_nothing() {
    let library = require_backend!(find_faketime());
    let site = require_backend!(Site::find().await);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let clock = directory.path().join("clock");
    let step = |offset: &str| {
        let fresh = directory.path().join("fresh");
        std::fs::write(&fresh, format!("{offset}\n")).expect("written");
        std::fs::rename(&fresh, &clock).expect("the clock is set");
    };
    step("+0");
    let settings = [
        ("LD_PRELOAD", library.as_str()),
        ("FAKETIME_TIMESTAMP_FILE", clock.to_str().expect("UTF-8")),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("FAKETIME_NO_CACHE", "1"),
    ];
    let mut fleet = site.start(2, &settings, false).await;
    until_each_takes_part(&fleet).await;
    let store = Store::open(&site.database).await;
    // While nothing comes that would wake anybody, for longer than the group waits for a heartbeat.
    step("+86400");
    tokio::time::sleep(FREEZE).await;
    let load = site.load(&Plan { messages_per_second: 500, posters: 1, screens: 2 }, &fleet);
    until("alerts flow", async || store.stored().await > 1_000).await;
    for slot in 0..2 {
        assert_eq!(fleet.count(slot, r#"kafka_rebalances_total{kind="lost"}"#).await, 0, "heartbeats went on");
    }
    for offset in ["-86400", "+2", "-3600", "+0"] {
        step(offset);
        store.until_all_flow().await;
    }
    let age = store.newest_age().await;
    assert!(age < Duration::from_secs(60), "alerts are stamped by the database: {age:?}");
    let flaws = load.finish(&store).await;
    fleet.assert_all_run().await;
    assert_flawless(&flaws);
}

fn find_faketime() -> Option<String> {
    let folders = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|entry| entry.path());
    let found = folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1")).find(|path| path.exists());
    if found.is_none() {
        eprintln!("left out: needs Debian's package `faketime`");
    }
    found.map(|path| path.display().to_string())
}
