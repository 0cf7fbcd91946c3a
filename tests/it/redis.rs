//! Redis beside the service: the mirror of the users dict, the operations, the doorbell; and what
//! happens when Redis is not as it should be.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ::redis::aio::MultiplexedConnection;
use ::redis::{AsyncCommands, Value as RedisValue, cmd};
use serde_json::{Value, json};
use unified_backend::config::Config;
use unified_backend::redis::{CacheError, RedisCache};
use unified_backend::telemetry::health::{HealthBoard, State, name};
use unified_backend::telemetry::metrics::Metrics;

use crate::require_backend;
use crate::support::app::{TestApp, eventually};
use crate::support::backends::{Database, find_redis_url};
use crate::support::proxy::{Network, Proxy};

const DICT: &str = "users:dict";
const MARK: &str = "{users:dict}:at";

/// A database and a Redis of the test's own.
struct Stage {
    database: Database,
    url: String,
    redis: MultiplexedConnection,
}

impl Stage {
    async fn set() -> Option<Self> {
        let url = find_redis_url()?;
        let database = Database::postgres().await?;
        Some(Self { redis: emptied(&url).await, database, url })
    }

    async fn start(&self, settings: &[(&str, &str)]) -> TestApp {
        let mut all = vec![("REDIS_URL", self.url.as_str())];
        all.extend_from_slice(settings);
        TestApp::start_ready(&self.database, &all).await
    }

    async fn hash(&self) -> BTreeMap<String, String> {
        self.redis.clone().hgetall(DICT).await.unwrap_or_default()
    }

    async fn run(&self, command: &[&str]) -> RedisValue {
        let mut call = cmd(command[0]);
        call.arg(&command[1..]);
        call.query_async(&mut self.redis.clone()).await.unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    async fn until_mirrored(&self, app: &TestApp) {
        eventually("the hash equals the dict", async || {
            let dict: BTreeMap<String, String> =
                serde_json::from_value(app.get("/users-dict").await.expect(200)).expect("a map");
            self.hash().await == dict
        })
        .await;
    }
}

async fn emptied(url: &str) -> MultiplexedConnection {
    let client = ::redis::Client::open(url).expect("a URL");
    let mut connection = client.get_multiplexed_async_connection().await.expect("Redis answers");
    cmd("FLUSHDB").exec_async(&mut connection).await.expect("the test's own database");
    connection
}

fn cache_with(settings: &[(&str, &str)]) -> (RedisCache, HealthBoard) {
    let config = Config::from_settings(settings).expect("valid").redis.expect("enabled");
    let health = HealthBoard::default();
    (RedisCache::new(&config, Metrics::new().expect("metrics").into(), health.clone()), health)
}

fn mirror_writes(app: &TestApp, result: &str) -> u64 {
    app.state.metrics.mirror_writes.with_label_values(&[result]).get()
}

fn redis_health(app: &TestApp) -> (State, String) {
    let check = app.state.health.find(name::REDIS).expect("reported");
    (check.state, check.detail.unwrap_or_default())
}

async fn add_user(app: &TestApp, global_id: i64, name: &str) -> i64 {
    let created = app.post("/users", json!({ "global_id": global_id, "name": name })).await.expect(200);
    created["id"].as_i64().expect("an id")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hash_follows_every_write_whoever_makes_it() {
    let stage = require_backend!(Stage::set().await);
    let app = stage.start(&[]).await;
    let id = add_user(&app, 1, "Ann").await;
    add_user(&app, -7, "Zoë \"Quote\" \u{1f600}").await;
    stage.until_mirrored(&app).await;
    assert_eq!(stage.hash().await.len(), 2);
    app.put(&format!("/users/{id}"), json!({ "name": "Anna" })).await.expect(200);
    stage.until_mirrored(&app).await;
    assert_eq!(stage.hash().await["1"], "Anna");
    stage.database.execute("INSERT INTO \"user\" (global_id, name) VALUES (3, 'by hand')").await;
    stage.until_mirrored(&app).await;
    app.delete(&format!("/users/{id}")).await.expect(200);
    stage.until_mirrored(&app).await;
    assert_eq!(stage.hash().await.into_keys().collect::<Vec<_>>(), ["-7", "3"]);

    let mut delays = Vec::new();
    for number in 0..40 {
        add_user(&app, 1000 + number, "someone").await;
        let acknowledged_at = Instant::now();
        while !stage.hash().await.contains_key(&(1000 + number).to_string()) {
            assert!(acknowledged_at.elapsed() < Duration::from_secs(10), "the write does not reach the hash");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        delays.push(acknowledged_at.elapsed());
    }
    delays.sort_unstable();
    println!("mirror delay of 40 writes: median {:?}, longest {:?}", delays[20], delays[39]);
    assert!(mirror_writes(&app, "delta") >= 20, "small changes are written as such");
    eventually("the lag is told", async || app.state.metrics.mirror_lag_seconds.get() == 0.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_done_to_the_hash_is_repaired() {
    let stage = require_backend!(Stage::set().await);
    let app = stage.start(&[]).await;
    add_user(&app, 1, "Ann").await;
    add_user(&app, 2, "Bob").await;
    stage.until_mirrored(&app).await;
    let damages: [&[&[&str]]; 10] = [
        &[&["FLUSHDB"]],
        &[&["DEL", DICT]],
        &[&["DEL", DICT], &["SET", DICT, "text"]],
        &[&["HSET", DICT, "1", "Eve"]],
        &[&["HSET", DICT, "__meta", "x"]],
        &[&["HDEL", DICT, "1"]],
        &[&["HDEL", DICT, "1"], &["HSET", DICT, "9", "Eve"]],
        &[&["DEL", MARK], &["HSET", DICT, "1", "Eve"]],
        &[&["SET", MARK, "garbage"], &["HSET", DICT, "1", "Eve"]],
        &[&["DEL", MARK], &["RPUSH", MARK, "x"], &["HSET", DICT, "1", "Eve"]],
    ];
    for damage in damages {
        for command in damage {
            stage.run(command).await;
        }
        let expected = BTreeMap::from([("1".to_owned(), "Ann".to_owned()), ("2".to_owned(), "Bob".to_owned())]);
        eventually(&format!("repaired after {damage:?}"), async || stage.hash().await == expected).await;
        eventually(&format!("the mark is back after {damage:?}"), async || {
            let mark: Option<String> = stage.redis.clone().get(MARK).await.unwrap_or_default();
            mark.is_some_and(|mark| mark.contains(" 2 W/"))
        })
        .await;
    }
    assert!(mirror_writes(&app, "rebuild") >= 10);
    assert_eq!(redis_health(&app).0, State::Up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_living_service_renews_the_life_of_the_hash_long_before_its_end() {
    let stage = require_backend!(Stage::set().await);
    let app = stage.start(&[]).await;
    add_user(&app, 1, "Ann").await;
    stage.until_mirrored(&app).await;
    let life = async |key: &str| stage.redis.clone().ttl::<_, i64>(key).await.expect("a life");
    assert!((3590..=3600).contains(&life(DICT).await) && (3590..=3600).contains(&life(MARK).await));
    for (key, damage) in [(DICT, ["EXPIRE", DICT, "1700"]), (MARK, ["EXPIRE", MARK, "1700"])] {
        stage.run(&damage).await;
        eventually(&format!("{key} lives on"), async || life(key).await > 3500).await;
    }
    stage.run(&["PERSIST", DICT]).await;
    eventually("nothing lives for ever", async || life(DICT).await > 3500).await;
    assert_eq!(stage.hash().await["1"], "Ann");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_instances_write_one_hash_without_undoing_each_other() {
    let stage = require_backend!(Stage::set().await);
    let (one, two) = (stage.start(&[]).await, stage.start(&[]).await);
    for number in 0..30 {
        let (app, other) = if number % 2 == 0 { (&one, &two) } else { (&two, &one) };
        let id = add_user(app, number, "before").await;
        other.put(&format!("/users/{id}"), json!({ "name": format!("after {number}") })).await.expect(200);
    }
    stage.until_mirrored(&one).await;
    stage.until_mirrored(&two).await;
    let rebuilds = || mirror_writes(&one, "rebuild") + mirror_writes(&two, "rebuild");
    let before = rebuilds();
    assert!(before <= 4, "{before} new dicts where changes would do");
    stage.run(&["FLUSHDB"]).await;
    stage.until_mirrored(&one).await;
    assert_eq!(stage.hash().await.len(), 30);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_slept_with_an_older_mark_changes_nothing() {
    let stage = require_backend!(Stage::set().await);
    let app = stage.start(&[]).await;
    add_user(&app, 1, "Ann").await;
    stage.until_mirrored(&app).await;
    let old_mark: String = stage.redis.clone().get(MARK).await.expect("a mark");
    add_user(&app, 2, "Bob").await;
    stage.until_mirrored(&app).await;
    let with_common = |code: &str| format!("{}\n{code}", include_str!("../../src/redis/common.lua"));
    let delta = ::redis::Script::new(&with_common(include_str!("../../src/redis/delta.lua")));
    let mut late = delta.prepare_invoke();
    late.key(DICT).key(MARK).arg(&old_mark).arg(1).arg(&old_mark).arg(1).arg(1000).arg(0).arg("1").arg("old Ann");
    assert_eq!(late.invoke_async::<String>(&mut stage.redis.clone()).await.expect("an answer"), "lost");
    stage.run(&["HSET", "{users:dict}:new:late", "1", "old Ann"]).await;
    let replace = ::redis::Script::new(&with_common(include_str!("../../src/redis/replace.lua")));
    let mut late = replace.prepare_invoke();
    late.key(DICT).key(MARK).key("{users:dict}:new:late").arg(&old_mark).arg(&old_mark).arg(1).arg(1000);
    assert_eq!(late.invoke_async::<String>(&mut stage.redis.clone()).await.expect("an answer"), "lost");
    assert_eq!(stage.hash().await, BTreeMap::from([("1".into(), "Ann".into()), ("2".into(), "Bob".into())]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_dict_is_an_absent_key_and_is_written_once() {
    let stage = require_backend!(Stage::set().await);
    let app = stage.start(&[]).await;
    eventually("the empty dict is marked", async || stage.redis.clone().exists(MARK).await.unwrap_or(false)).await;
    let id = add_user(&app, 1, "Ann").await;
    stage.until_mirrored(&app).await;
    app.delete(&format!("/users/{id}")).await.expect(200);
    eventually("nobody is left", async || !stage.redis.clone().exists::<_, bool>(DICT).await.unwrap_or(true)).await;
    let before = mirror_writes(&app, "rebuild");
    // Many ticks of the mirror, told by their calls.
    let looks = || app.state.metrics.redis_calls.with_label_values(&["dict_look", "ok"]).get();
    let begin = looks();
    eventually("it looked eight times", async || looks() >= begin + 8).await;
    assert_eq!(mirror_writes(&app, "rebuild"), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_change_becomes_a_new_dict_and_a_large_dict_is_read_in_pages() {
    let stage = require_backend!(Stage::set().await);
    let app = stage.start(&[]).await;
    let sql = "INSERT INTO \"user\" (global_id, name) SELECT n, 'person ' || n FROM generate_series(1, 20000) n";
    stage.database.execute(sql).await;
    stage.until_mirrored(&app).await;
    assert_eq!(stage.hash().await.len(), 20_000);
    let read = app.state.redis.as_ref().expect("configured").get_users_dict().await.expect("read").expect("there");
    assert_eq!((read.len(), &*read["777"]), (20_000, "person 777"));
    eventually("nothing is left of the building", async || {
        let keys: Vec<String> =
            cmd("KEYS").arg("{users:dict}:new*").query_async(&mut stage.redis.clone()).await.unwrap();
        keys.is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_redis_the_api_goes_on_and_with_it_the_hash_catches_up() {
    let stage = require_backend!(Stage::set().await);
    let (proxy, url) = Proxy::in_front_of(&stage.url).await;
    proxy.set(Network::Down);
    // Absent from the start.
    let app = TestApp::start_ready(&stage.database, &[("REDIS_URL", &url)]).await;
    add_user(&app, 1, "Ann").await;
    eventually("told as degraded", async || redis_health(&app).0 == State::Degraded).await;
    assert!(redis_health(&app).1.contains("REDIS_URL"), "{}", redis_health(&app).1);
    proxy.set(Network::Works);
    stage.until_mirrored(&app).await;
    assert_eq!(redis_health(&app), (State::Up, String::new()));
    for (number, network) in (2..).zip([Network::Frozen, Network::Down, Network::AnswersLost]) {
        proxy.set(network);
        add_user(&app, number, "meanwhile").await;
        eventually("told as degraded", async || redis_health(&app).0 == State::Degraded).await;
        let begin = Instant::now();
        let dict = app.get("/users-dict").await.expect(200);
        assert_eq!(dict[number.to_string()], "meanwhile");
        let health = app.get("/health").await.expect(200);
        let took = begin.elapsed();
        println!("{network:?}: a read and /health took {took:?}");
        assert!(took < Duration::from_secs(2), "{network:?}: {took:?}");
        assert_eq!(health["status"], "degraded");
        assert!(health["redis"]["error"].is_string(), "{health}");
        eventually("the breaker is open", async || app.state.metrics.redis_breaker_open.get() == 1).await;
        let begin = Instant::now();
        assert_eq!(app.post("/cache/clear", json!(null)).await.expect(200)["message"], "Redis cache not available");
        let invalidated = app.post("/cache/invalidate/users-dict", json!(null)).await.expect(200);
        assert_eq!(invalidated["message"], "Redis not available");
        println!("{network:?}: clear and invalidate took {:?}", begin.elapsed());
        proxy.set(Network::Works);
        let begin = Instant::now();
        stage.until_mirrored(&app).await;
        println!("{network:?}: caught up after {:?}", begin.elapsed());
        eventually("told as up", async || redis_health(&app).0 == State::Up).await;
        assert_eq!(app.state.metrics.redis_breaker_open.get(), 0);
    }
    // Connections that died without a sign.
    proxy.freeze_open_connections();
    add_user(&app, 100, "after").await;
    stage.until_mirrored(&app).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_told_with_its_remedy() {
    let server = require_backend!(find_redis_url());
    let url = server.replacen("redis://", "redis://nobody:wrong-secret@", 1);
    let (cache, health) = cache_with(&[("REDIS_URL", &url)]);
    let error = cache.get("key").await.expect_err("refused");
    assert!(matches!(error, CacheError::NotAvailable(_)) && error.to_string().contains("REDIS_PASSWORD"), "{error}");
    let check = health.find(name::REDIS).expect("reported");
    assert_eq!(check.state, State::Degraded);
    assert!(!check.detail.expect("told").contains("wrong-secret"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clearing_removes_what_was_set_here_and_nothing_else() {
    let stage = require_backend!(Stage::set().await);
    let app = stage.start(&[]).await;
    add_user(&app, 1, "Ann").await;
    stage.until_mirrored(&app).await;
    let cache = app.state.redis.clone().expect("configured");
    stage.run(&["SET", "foreign", "stays"]).await;
    stage.run(&["SET", "users:dictionary", "stays"]).await;
    for number in 0..1200 {
        cache.set(&format!("report:{number}"), &json!(number), Duration::from_secs(60)).await.expect("set");
    }
    assert_eq!(app.post("/cache/clear", json!(null)).await.expect(200)["message"], "All cache cleared successfully");
    stage.until_mirrored(&app).await;
    let keys: Vec<String> = cmd("KEYS").arg("*").query_async(&mut stage.redis.clone()).await.expect("keys");
    let mut keys: Vec<&str> = keys.iter().map(|key| &**key).filter(|key| !key.contains(":new:")).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["foreign", "users:dict", "users:dictionary", MARK]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_live_as_long_as_told_under_the_very_key() {
    let url = require_backend!(find_redis_url());
    let mut redis = emptied(&url).await;
    let (cache, health) = cache_with(&[("REDIS_URL", &url)]);
    assert_eq!(health.find(name::REDIS).expect("reported").state, State::Starting);
    let value = json!({ "a": [1, "Zoë"] });
    cache.set("report", &value, Duration::from_secs(300)).await.expect("set");
    let stored: String = redis.get("report").await.expect("the very key");
    assert_eq!(serde_json::from_str::<Value>(&stored).expect("JSON"), value);
    assert!((290..=300).contains(&redis.ttl::<_, i64>("report").await.expect("a life")));
    assert_eq!(cache.get("report").await.expect("read"), Some(value));
    assert!(cache.exists("report").await.expect("asked") && cache.delete("report").await.expect("deleted"));
    assert!(!cache.delete("report").await.expect("asked") && !cache.exists("report").await.expect("asked"));
    assert_eq!(cache.get("report").await.expect("read"), None);
    assert_eq!(health.find(name::REDIS).expect("reported").state, State::Up);

    cmd("RPUSH").arg("list").arg(1).exec_async(&mut redis).await.expect("a list");
    assert!(matches!(cache.get("list").await, Err(CacheError::WrongType { .. })));
    redis.set::<_, _, ()>("text", "not json").await.expect("a text");
    assert!(matches!(cache.get("text").await, Err(CacheError::NotJson { .. })));
    assert!(matches!(cache.set(DICT, &json!(1), Duration::from_secs(1)).await, Err(CacheError::Reserved { .. })));
    assert!(matches!(cache.set(MARK, &json!(1), Duration::from_secs(1)).await, Err(CacheError::Reserved { .. })));
    cache.close().await;
    assert!(cache.exists("list").await.expect("connected again"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_dict_operations_take_garbage_for_what_it_is() {
    let url = require_backend!(find_redis_url());
    let mut redis = emptied(&url).await;
    let (cache, _) = cache_with(&[("REDIS_URL", &url)]);
    assert_eq!(cache.get_users_dict().await.expect("read"), None);
    let hour = Duration::from_secs(3600);
    cache
        .cache_users_dict(&BTreeMap::from([(1, "Ann".to_owned()), (2, "Bob".to_owned())]), hour)
        .await
        .expect("cached");
    cache.cache_users_dict(&BTreeMap::from([(2, "Bo".to_owned())]), hour).await.expect("cached");
    assert_eq!(redis.hgetall::<_, BTreeMap<i64, String>>(DICT).await.unwrap(), BTreeMap::from([(2, "Bo".to_owned())]));
    redis.hset::<_, _, _, ()>(DICT, "not a number", "x").await.expect("garbage");
    redis.hset::<_, _, _, ()>(DICT, "3", b"\xff\xfe".as_slice()).await.expect("garbage");
    let read = cache.get_users_dict().await.expect("read").expect("there");
    assert_eq!(read.keys().collect::<Vec<_>>(), ["2", "3"]);
    assert!(
        cache.invalidate_users_dict().await.expect("removed") && !cache.invalidate_users_dict().await.expect("asked")
    );
    redis.set::<_, _, ()>(DICT, "text").await.expect("another type");
    assert!(matches!(cache.get_users_dict().await, Err(CacheError::WrongType { .. })));
    cache.cache_users_dict(&BTreeMap::new(), hour).await.expect("an empty dict is an absent key");
    assert!(!redis.exists::<_, bool>(DICT).await.expect("asked"));
}

async fn passes_the_selftest(cache: &RedisCache) {
    let lines = cache.selftest().await;
    let names: Vec<&str> = lines.iter().map(|(name, _)| *name).collect();
    assert_eq!(
        names,
        [
            "connect",
            "cache_users_dict",
            "get_users_dict",
            "invalidate_users_dict",
            "set",
            "get",
            "exists",
            "delete",
            "get_stats",
            "clear_all",
            "close"
        ]
    );
    for (operation, outcome) in lines {
        outcome.unwrap_or_else(|error| panic!("{operation}: {error}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_selftest_passes_and_leaves_nothing_behind() {
    let url = require_backend!(find_redis_url());
    let mut redis = emptied(&url).await;
    let (cache, _) = cache_with(&[("REDIS_URL", &url)]);
    redis.hset::<_, _, _, ()>(DICT, "1", "Ann").await.expect("a live dict");
    cache.set("kept", &json!(1), Duration::from_secs(60)).await.expect("set");
    let before: u64 = cmd("DBSIZE").query_async(&mut redis).await.expect("a size");
    passes_the_selftest(&cache).await;
    assert_eq!(cmd("DBSIZE").query_async::<u64>(&mut redis).await.expect("a size"), before);
    assert_eq!(redis.hget::<_, _, String>(DICT, "1").await.expect("untouched"), "Ann");
    let (absent, _) = cache_with(&[("REDIS_URL", "redis://127.0.0.1:1")]);
    assert!(absent.selftest().await.iter().all(|(_, outcome)| outcome.is_err()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cache_routes_say_what_the_contract_says() {
    let stage = require_backend!(Stage::set().await);
    let app = stage.start(&[]).await;
    add_user(&app, 1, "Ann").await;
    stage.until_mirrored(&app).await;
    let stats = app.get("/cache/stats").await.expect(200);
    assert_eq!((&stats["enabled"], &stats["directory"]["entries"]), (&json!(true), &json!(1)));
    for figure in ["port", "db", "total_keys", "connected_clients", "uptime_seconds"] {
        assert!(stats[figure].is_u64(), "{figure}: {stats}");
    }
    assert!(stats["memory_used"].as_str().is_some_and(|memory| memory.ends_with(['K', 'M', 'G'])), "{stats}");
    let rebuilds = stats["directory"]["rebuilds"].as_u64().expect("counted");
    stage.run(&["HSET", DICT, "1", "Eve"]).await;
    let invalidated = app.post("/cache/invalidate/users-dict", json!(null)).await.expect(200);
    assert_eq!(invalidated, json!({ "message": "Users dict cache invalidated" }));
    assert_eq!(stage.hash().await, BTreeMap::from([("1".into(), "Ann".into())]), "done when it is answered");
    assert_eq!(app.get("/cache/stats").await.expect(200)["directory"]["rebuilds"], rebuilds + 1);

    let without = TestApp::start_ready(&stage.database, &[]).await;
    without.get("/users-dict").await.expect(200);
    let stats = without.get("/cache/stats").await.expect(200);
    assert_eq!((&stats["enabled"], stats["directory"]["version"].is_string()), (&json!(false), true));
    for (path, message) in
        [("/cache/clear", "Redis cache not available"), ("/cache/invalidate/users-dict", "Redis not available")]
    {
        assert_eq!(without.post(path, json!(null)).await.expect(200), json!({ "message": message }));
    }
    assert_eq!(without.get("/cache/stats").await.expect(200)["directory"]["rebuilds"], 1, "rebuilt all the same");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alert_posted_to_one_instance_rings_at_the_other() {
    let stage = require_backend!(Stage::set().await);
    let settings = [("ALERTS_POLL_INTERVAL_MS", "10000")];
    let (one, two) = (stage.start(&settings).await, stage.start(&settings).await);
    let subscribers = async || {
        let (_, count): (String, u64) = cmd("PUBSUB")
            .arg("NUMSUB")
            .arg("unified_backend:alerts")
            .query_async(&mut stage.redis.clone())
            .await
            .unwrap();
        count
    };
    eventually("both listen", async || subscribers().await >= 2).await;
    let mut listener = two.listen("").await;
    let mut delays = Vec::new();
    for number in 0..10 {
        let begin = Instant::now();
        one.post("/alerts", json!({ "number": number })).await.expect(200);
        assert_eq!(listener.next_json().await["number"], number);
        delays.push(begin.elapsed());
    }
    delays.sort_unstable();
    println!("post at one instance to frame at the other: median {:?}, longest {:?}", delays[5], delays[9]);
    // The poll alone would need 5 s for each, on average.
    assert!(delays[5] < Duration::from_secs(2), "{delays:?}");
}

/// A server of the test's own, for what must not be done to a shared one. `None`: none is installed.
struct PrivateRedis {
    process: Child,
    port: u16,
    _directory: tempfile::TempDir,
}

impl PrivateRedis {
    async fn start(options: &[&str]) -> Option<Self> {
        Self::start_with(options, None).await
    }

    /// `config`: the text of a configuration file, which a sentinel needs.
    async fn start_with(options: &[&str], config: Option<String>) -> Option<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
        let directory = tempfile::tempdir().expect("a directory");
        let mut command = Command::new("redis-server");
        if let Some(text) = config {
            let file = directory.path().join("redis.conf");
            std::fs::write(&file, text).expect("written");
            command.arg(file);
        }
        command.args(["--port", &port.to_string(), "--dir"]).arg(directory.path()).args(options);
        let Ok(process) = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn() else {
            eprintln!("left out: needs a redis-server to start");
            return None;
        };
        let server = Self { process, port, _directory: directory };
        eventually("the private Redis answers", async || {
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok()
        })
        .await;
        Some(server)
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    async fn run(&self, command: &[&str]) {
        let client = ::redis::Client::open(self.url()).expect("a URL");
        let mut connection = client.get_multiplexed_async_connection().await.expect("it answers");
        let mut call = cmd(command[0]);
        call.arg(&command[1..]);
        call.exec_async(&mut connection).await.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    }
}

impl Drop for PrivateRedis {
    fn drop(&mut self) {
        self.process.kill().expect("it can be stopped");
        self.process.wait().expect("it stops");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_refuses_writes_is_told_and_used_again_when_it_takes_them() {
    let server = require_backend!(PrivateRedis::start(&["--save", ""]).await);
    let database = require_backend!(Database::postgres().await);
    let app = TestApp::start_ready(&database, &[("REDIS_URL", &server.url())]).await;
    let cases: [(&[&str], &[&str], &str); 2] = [
        (&["REPLICAOF", "127.0.0.1", "1"], &["REPLICAOF", "NO", "ONE"], "read-only replica"),
        (&["CONFIG", "SET", "maxmemory", "1"], &["CONFIG", "SET", "maxmemory", "0"], "maxmemory"),
    ];
    for (number, (spoil, mend, told)) in (1..).zip(cases) {
        server.run(spoil).await;
        add_user(&app, number, "meanwhile").await;
        eventually(&format!("told: {told}"), async || {
            let (state, detail) = redis_health(&app);
            state == State::Degraded && detail.contains(told)
        })
        .await;
        server.run(mend).await;
        eventually("told as up", async || redis_health(&app).0 == State::Up).await;
        let cache = app.state.redis.clone().expect("configured");
        eventually("the hash caught up", async || {
            let dict = cache.get_users_dict().await.unwrap_or_default().unwrap_or_default();
            dict.contains_key(&number.to_string())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_used_as_one() {
    let server = require_backend!(PrivateRedis::start(&["--save", "", "--cluster-enabled", "yes"]).await);
    server.run(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]).await;
    let database = require_backend!(Database::postgres().await);
    let url = format!("{0},{0}", server.url());
    let app = TestApp::start_ready(&database, &[("REDIS_URL", &url)]).await;
    add_user(&app, 1, "Ann").await;
    let cache = app.state.redis.clone().expect("configured");
    eventually("mirrored in the cluster", async || {
        cache.get_users_dict().await.is_ok_and(|dict| dict == Some(BTreeMap::from([("1".into(), "Ann".into())])))
    })
    .await;
    passes_the_selftest(&cache).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_primary_that_sentinels_name_is_used() {
    let primary = require_backend!(PrivateRedis::start(&["--save", ""]).await);
    let config = format!("sentinel monitor mymaster 127.0.0.1 {} 1\n", primary.port);
    let sentinel = require_backend!(PrivateRedis::start_with(&["--sentinel"], Some(config)).await);
    let url = format!("redis-sentinel://127.0.0.1:{},127.0.0.1:1/mymaster/2", sentinel.port);
    let (cache, health) = cache_with(&[("REDIS_URL", &url)]);
    passes_the_selftest(&cache).await;
    assert_eq!(health.find(name::REDIS).expect("reported").state, State::Up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unix_socket_and_a_password_are_used() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("redis.sock");
    let socket = socket.to_str().expect("a readable path");
    let server = require_backend!(
        PrivateRedis::start(&["--save", "", "--unixsocket", socket, "--requirepass", "p@ss word"]).await
    );
    for url in [
        format!("unix://{socket}?db=3&pass=p%40ss+word"),
        format!("redis://:p%40ss%20word@127.0.0.1:{}/3", server.port),
    ] {
        let (cache, _) = cache_with(&[("REDIS_URL", &url)]);
        passes_the_selftest(&cache).await;
    }
    let (cache, _) = cache_with(&[("REDIS_HOST", "127.0.0.1"), ("REDIS_PORT", &server.port.to_string())]);
    let error = cache.exists("anything").await.expect_err("a password is needed").to_string();
    assert!(error.contains("REDIS_PASSWORD"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tls_server_is_used_when_its_certificate_can_be_checked_and_only_then() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name).to_str().expect("a readable path").to_owned();
    let (key, certificate) = (path("key.pem"), path("certificate.pem"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", &key])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-out", &certificate])
        .stderr(Stdio::null())
        .status();
    if !made.is_ok_and(|status| status.success()) {
        eprintln!("left out: needs openssl to make a certificate");
        return;
    }
    let tls_port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
    let port = tls_port.to_string();
    let options = ["--save", "", "--tls-port", &port, "--tls-cert-file", &certificate, "--tls-key-file", &key];
    let options = [&options[..], &["--tls-auth-clients", "no"]].concat();
    let _server = require_backend!(PrivateRedis::start(&options).await);
    let url = format!("rediss://localhost:{port}/1");
    let (trusting, _) = cache_with(&[("REDIS_URL", &format!("{url}?ssl_ca_certs={certificate}"))]);
    passes_the_selftest(&trusting).await;
    let (doubting, health) = cache_with(&[("REDIS_URL", &url)]);
    assert!(doubting.connect().await.is_err(), "nobody vouches for the certificate");
    assert_eq!(health.find(name::REDIS).expect("reported").state, State::Degraded);
}
