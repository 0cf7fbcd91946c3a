//! Redis beside the service: the mirror of the users dict, the operations, the doorbell; and what
//! happens when Redis is not as it should be.

mod servers;

use std::collections::BTreeMap;
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
use crate::support::backends::{Database, PATIENT, find_redis_url};
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
        Self::set_on(Database::sqlite()).await
    }

    /// For several instances: SQLite is for one.
    async fn set_for_several() -> Option<Self> {
        Self::set_on(Database::postgres().await?).await
    }

    async fn set_on(database: Database) -> Option<Self> {
        let url = find_redis_url()?;
        Some(Self { redis: emptied(&url).await, database, url })
    }

    async fn start(&self, settings: &[(&str, &str)]) -> TestApp {
        let mut all = vec![("REDIS_URL", self.url.as_str()), PATIENT];
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
    let config = Config::from_settings(&[settings, &[PATIENT]].concat()).expect("valid").redis.expect("enabled");
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
    let stage = require_backend!(Stage::set_for_several().await);
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
async fn a_large_change_is_written_as_such() {
    let stage = require_backend!(Stage::set_for_several().await);
    let app = stage.start(&[]).await;
    // A write is counted when Redis has answered, which is after the hash has it.
    let counted = async |rebuilds: u64, deltas: u64| {
        let what = format!("{rebuilds} rebuilds and {deltas} deltas are counted");
        let counts = || (mirror_writes(&app, "rebuild"), mirror_writes(&app, "delta"));
        eventually(&what, async || counts() == (rebuilds, deltas)).await;
    };
    counted(1, 0).await;
    add_user(&app, 1, "Ann").await;
    stage.until_mirrored(&app).await;
    counted(1, 1).await;
    let rows = "INSERT INTO \"user\" (global_id, name) SELECT n, 'name ' || n FROM generate_series(10, 1910) AS n";
    stage.database.execute(rows).await;
    stage.until_mirrored(&app).await;
    counted(1, 2).await;
    stage.database.execute("DELETE FROM \"user\" WHERE global_id BETWEEN 12 AND 1905").await;
    stage.until_mirrored(&app).await;
    assert_eq!(stage.hash().await.len(), 8);
    counted(1, 3).await;
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
    let stage = require_backend!(Stage::set_for_several().await);
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
async fn services_with_databases_of_their_own_do_not_fight_over_one_hash() {
    let stage = require_backend!(Stage::set().await);
    let elsewhere = Database::sqlite();
    let one = stage.start(&[]).await;
    add_user(&one, 1, "Ann").await;
    stage.until_mirrored(&one).await;
    let two = TestApp::start_ready(&elsewhere, &[("REDIS_URL", &stage.url), PATIENT]).await;
    add_user(&two, 1, "Ann").await;
    let looks = |app: &TestApp| app.state.metrics.redis_calls.with_label_values(&["dict_look", "ok"]).get();
    let many_looks = async || {
        let begin = (looks(&one), looks(&two));
        eventually("both looked many times", async || looks(&one) > begin.0 + 12 && looks(&two) > begin.1 + 12).await;
    };
    let new_dicts = || mirror_writes(&one, "rebuild") + mirror_writes(&two, "rebuild");
    many_looks().await;
    let before = new_dicts();
    many_looks().await;
    assert_eq!(new_dicts(), before, "equal content is left alone, whoever wrote it");
    add_user(&two, 2, "Bob").await;
    many_looks().await;
    let fought = new_dicts() - before;
    assert!(fought <= 3, "{fought} new dicts: one every tick, instead of one in ten seconds");
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
    let numbers = "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 20000)";
    let people = "INSERT INTO \"user\" (global_id, name)";
    stage.database.execute(&format!("{people} {numbers} SELECT n, 'person ' || n FROM numbers")).await;
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
    let fields = |object: &Value| object.as_object().expect("an object").keys().cloned().collect::<Vec<_>>().join(" ");
    let in_order = "enabled host port db total_keys memory_used connected_clients uptime_seconds";
    assert_eq!(fields(&stats), format!("{in_order} directory"));
    assert_eq!(fields(&stats["directory"]), "entries bytes version validated_ms_ago rebuilds");
    assert_eq!(fields(&app.get("/health").await.expect(200)["redis"]), in_order);
    let rebuilds = stats["directory"]["rebuilds"].as_u64().expect("counted");
    stage.run(&["HSET", DICT, "1", "Eve"]).await;
    let invalidated = app.post("/cache/invalidate/users-dict", json!(null)).await.expect(200);
    assert_eq!(invalidated, json!({ "message": "Users dict cache invalidated" }));
    assert_eq!(stage.hash().await, BTreeMap::from([("1".into(), "Ann".into())]), "done when it is answered");
    assert_eq!(app.get("/cache/stats").await.expect(200)["directory"]["rebuilds"], rebuilds + 1);

    let elsewhere = Database::sqlite();
    let without = TestApp::start_ready(&elsewhere, &[]).await;
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
    let stage = require_backend!(Stage::set_for_several().await);
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
