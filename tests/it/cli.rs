//! The command line as people and scripts meet it: the real binary.

use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::on_both_engines;
use crate::support::app::{Answer, eventually};
use crate::support::backends::{Database, PATIENT, find_kafka, find_redis_url};
use crate::support::process::{Ended, Served, run, run_with_input};

fn place() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

/// A command against a database, in a directory of its own.
struct Shell {
    place: TempDir,
    url: String,
}

impl Shell {
    fn on(database: &Database) -> Self {
        Self { place: place(), url: database.url() }
    }

    fn path(&self) -> &Path {
        self.place.path()
    }

    fn settings(&self) -> [(&str, &str); 3] {
        [("DATABASE_URL", &self.url), ("API_PORT", "0"), ("SHUTDOWN_SETTLE_SECONDS", "0")]
    }

    /// Whose schema is there.
    async fn migrated(database: &Database) -> Self {
        let shell = Self::on(database);
        shell.run(&["migrate"]).await.expect(0);
        shell
    }

    async fn run(&self, arguments: &[&str]) -> Ended {
        run(self.path(), &self.settings(), arguments).await
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path().join(name), text).expect("a file can be written");
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path().join(name)).expect("the file is there")
    }
}

async fn get(url: &str, path: &str) -> Answer {
    Answer::of(reqwest::Client::new().get(format!("{url}{path}"))).await
}

async fn until_ready(served: &Served) {
    eventually("the service is ready", async || get(&served.url, "/health/ready").await.status == 200).await;
}

#[tokio::test]
async fn help_names_every_command_with_examples_and_exit_codes() {
    let directory = place();
    let help = run(directory.path(), &[], &["--help"]).await.expect(0);
    let commands = [
        "serve",
        "migrate",
        "seed",
        "import",
        "export",
        "cache",
        "config",
        "doctor",
        "simulate",
        "healthcheck",
        "openapi",
        "completions",
    ];
    for command in commands {
        assert!(help.contains(&format!("\n  {command} ")), "{command} is missing in {help}");
        let own = run(directory.path(), &[], &[command, "--help"]).await.expect(0);
        assert!(own.contains("Examples:\n") && own.contains(&format!("unified-backend {command}")), "{own}");
    }
    insta::assert_snapshot!(&help[help.find("Exit codes:").expect("exit codes")..], @r"
    Exit codes:
        0  done; after a signal: stopped in order
        1  failed, or the answer is no (pending migrations, a missing key, refused lines)
        2  wrong usage of the command line
       69  a dependency is not available: database, Redis, Kafka or the service
       78  the configuration is wrong; every fault was printed
      124  stopped after the drain time, what was still under way was dropped
      130  stopped at once by a second signal
    ");
}

#[tokio::test]
async fn wrong_usage_and_what_is_not_there_have_codes_of_their_own() {
    let directory = place();
    let at = async |settings: &[(&str, &str)], arguments: &[&str]| run(directory.path(), settings, arguments).await;
    at(&[], &["no-such-command"]).await.expect(2);
    at(&[], &["--demo", "migrate"]).await.expect(2);
    at(&[], &["import", "users", "people.xlsx"]).await.expect(2);
    at(&[], &["simulate", "--rate", "0"]).await.expect(2);
    let away = [("DATABASE_URL", "postgres://u:hunter2@127.0.0.1:1/x")];
    for arguments in [&["migrate"][..], &["migrate", "--check"], &["seed"], &["export", "users"]] {
        let told = at(&away, arguments).await.expect(69);
        assert!(told.contains("database is unavailable: ") && !told.contains("hunter2"), "{told}");
    }
    let told = at(&[], &["cache", "stats"]).await.expect(69);
    assert!(told.contains("REDIS_URL="), "{told}");
    let told = at(&[], &["simulate", "--kafka"]).await.expect(69);
    assert!(told.contains("KAFKA_BOOTSTRAP_SERVERS="), "{told}");
    let told = at(&[("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")], &["simulate", "--kafka", "--duration", "1s"])
        .await
        .expect(69);
    assert!(told.contains("0 published") && told.contains("the time is over"), "{told}");
    let told = at(&[("API_PORT", "1")], &["healthcheck"]).await.expect(69);
    assert!(told.contains("http://127.0.0.1:1 does not answer"), "{told}");
    at(&[("API_PORT", "x")], &["healthcheck"]).await.expect(78);
    assert!(std::fs::read_dir(directory.path()).expect("a directory").next().is_none(), "something was left behind");
}

#[tokio::test]
async fn completions_and_the_version_are_printed() {
    let directory = place();
    for shell in ["bash", "zsh", "fish"] {
        let script = run(directory.path(), &[], &["completions", shell]).await.expect(0);
        assert!(script.contains("healthcheck"), "{shell}");
    }
    let version = run(directory.path(), &[], &["--version"]).await.expect(0);
    assert_eq!(version, format!("unified-backend {}\n", env!("CARGO_PKG_VERSION")));
}

#[tokio::test]
async fn the_openapi_document_is_the_one_that_is_served() {
    let directory = place();
    let printed = run(directory.path(), &[], &["openapi"]).await.expect(0);
    assert_eq!(printed.trim_end(), unified_backend::http::openapi::render().trim_end());
}

on_both_engines! {
    migrate_tells_what_is_pending_and_applies_it,
    seeding_twice_keeps_what_exists,
    what_export_writes_import_reads,
    a_refused_line_is_told_and_does_not_hold_up_the_others,
    only_migrate_and_serve_change_the_schema,
    a_dry_run_says_the_same_and_writes_nothing,
    existing_lines_are_kept_or_updated_when_asked,
    the_doctor_finds_a_healthy_database_well,
    a_service_starts_is_found_healthy_and_stops_in_order,
    a_second_signal_stops_at_once,
    a_busy_port_is_told,
    a_demo_has_people_and_alerts,
    a_simulated_site_publishes_to_a_service,
}

async fn migrate_tells_what_is_pending_and_applies_it(database: Database) {
    let shell = Shell::on(&database);
    let pending = shell.run(&["migrate", "--check"]).await.expect(1);
    assert_eq!(pending, "pending 0001_directory\npending 0002_change_log\npending 0003_alerts\n");
    assert_eq!(shell.run(&["migrate", "--check"]).await.expect(1), pending, "the check changed something");
    let applied = shell.run(&["migrate"]).await.expect(0);
    assert_eq!(applied, pending.replace("pending", "applied"));
    assert_eq!(shell.run(&["migrate"]).await.expect(0), "up to date\n");
    assert_eq!(shell.run(&["migrate", "--check"]).await.expect(0), "up to date\n");
    database.execute("UPDATE refinery_schema_history SET version = 9999, name = 'future' WHERE version = 3").await;
    let newer = shell.run(&["migrate", "--check"]).await.expect(1);
    assert!(newer.contains("9999 `future`"), "{newer}");
}

async fn seeding_twice_keeps_what_exists(database: Database) {
    let shell = Shell::migrated(&database).await;
    assert_eq!(shell.run(&["seed", "--users", "5"]).await.expect(0), "zones: 8 made, 0 kept\nusers: 5 made, 0 kept\n");
    database.execute(r#"UPDATE "user" SET name = 'Renamed' WHERE global_id = 1001"#).await;
    assert_eq!(shell.run(&["seed", "--users", "7"]).await.expect(0), "zones: 0 made, 8 kept\nusers: 2 made, 5 kept\n");
    let users = shell.run(&["export", "users"]).await.output;
    let users: Vec<Value> = users.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(users.len(), 7);
    assert_eq!(users[0]["name"], "Renamed");
    assert_eq!(users[3]["zone_ids"], json!(["entrance", "canteen", "office"]));
}

/// What counts of an export; ids and times are the database's own.
fn essence(jsonl: &str) -> Vec<Value> {
    let strip = |line: &str| {
        let mut value: Value = serde_json::from_str(line).expect("JSON");
        let object = value.as_object_mut().expect("an object");
        ["id", "created_at", "updated_at"].iter().for_each(|key| drop(object.remove(*key)));
        value
    };
    jsonl.lines().map(strip).collect()
}

async fn what_export_writes_import_reads(database: Database) {
    let shell = Shell::migrated(&database).await;
    shell.run(&["seed", "--users", "600"]).await.expect(0);
    shell.write(
        "odd.jsonl",
        &[
            json!({"zone_id": "a|b\\c;\"d\"", "zone_name": "Zone, \"quoted\"", "x1": 0.1, "y1": -1e-7, "x2": 1e15, "y2": 0, "x3": 5, "y3": 5.5, "x4": 0, "y4": 7}),
            json!({"zone_id": "日本 🏢", "zone_name": "Ünïcode", "x1": 0, "y1": 0, "x2": 1, "y2": 0, "x3": 1, "y3": 1, "x4": 0, "y4": 1}),
        ]
        .map(|zone| format!("{zone}\n"))
        .concat(),
    );
    shell.run(&["import", "zones", "odd.jsonl"]).await.expect(0);
    shell.write(
        "odd-users.jsonl",
        &[
            json!({"global_id": -5, "name": "O'Neil \"Bob\", Jr. 🧑‍🚀", "zone_ids": ["日本 🏢", "a|b\\c;\"d\"", "lobby"]}),
            json!({"global_id": i64::MAX, "name": "two\nlines\tand a tab", "zone_ids": []}),
            json!({"global_id": 7, "name": " spaces ", "zone_id": "a|b\\c;\"d\""}),
        ]
        .map(|user| format!("{user}\n"))
        .concat(),
    );
    shell.run(&["import", "users", "odd-users.jsonl"]).await.expect(0);
    for kind in ["users", "zones"] {
        for extension in ["csv", "jsonl"] {
            shell.run(&["export", kind, &format!("{kind}.{extension}")]).await.expect(0);
        }
    }
    assert_eq!(shell.read("users.csv").lines().next(), Some("global_id,name,zone_ids"));
    let (users, zones) = (essence(&shell.read("users.jsonl")), essence(&shell.read("zones.jsonl")));
    assert_eq!((users.len(), zones.len()), (603, 10));
    assert_eq!(users[0]["zone_ids"], json!(["日本 🏢", "a|b\\c;\"d\"", "lobby"]));
    for extension in ["csv", "jsonl"] {
        database.execute(r#"DELETE FROM "user"; DELETE FROM working_zone"#).await;
        let done = shell.run(&["import", "zones", &format!("zones.{extension}")]).await;
        assert_eq!(done.expect(0), "zones: 10 read, 10 made, 0 updated, 0 kept, 0 refused\n");
        let done = shell.run(&["import", "users", &format!("users.{extension}")]).await;
        assert_eq!(done.expect(0), "users: 603 read, 603 made, 0 updated, 0 kept, 0 refused\n");
        assert_eq!(essence(&shell.run(&["export", "users"]).await.output), users, "{extension}");
        assert_eq!(essence(&shell.run(&["export", "zones", "-"]).await.output), zones, "{extension}");
    }
}

const PEOPLE: &str = "\
global_id,name,zone_ids
1,Ann,lobby
x,Bob,lobby

3,,
4,Dora,lobby|nowhere
1,Ann again,
5,Eve,entrance|lobby
";

async fn a_refused_line_is_told_and_does_not_hold_up_the_others(database: Database) {
    let shell = Shell::migrated(&database).await;
    shell.run(&["seed", "--users", "0"]).await.expect(0);
    shell.write("people.csv", PEOPLE);
    let ended = shell.run(&["import", "users", "people.csv"]).await;
    assert_eq!(ended.expect(1).lines().next(), Some("users: 6 read, 2 made, 0 updated, 0 kept, 4 refused"));
    let mut faults: Vec<&str> = ended.errors.lines().collect();
    faults.sort_unstable();
    assert_eq!(
        faults,
        [
            "line 3: global_id: Input should be a valid integer, unable to parse string as an integer (it is \"x\")",
            "line 5: name: String should have at least 1 character (it is \"\")",
            "line 6: zone_ids: unknown zone: nowhere (import zones first)",
            "line 7: global_id: User with global_id 1 already exists (--existing keep or update)",
        ]
    );
    let names: Vec<Value> = essence(&shell.run(&["export", "users"]).await.output);
    assert_eq!(names.iter().map(|user| &user["name"]).collect::<Vec<_>>(), ["Ann", "Eve"]);
    let arguments = ["import", "users", "-", "--format", "csv"];
    let headless = run_with_input(shell.path(), &shell.settings(), &arguments, b"id,name\n1,A\n").await;
    assert!(headless.expect(1).contains("global_id is missing"));
}

async fn only_migrate_and_serve_change_the_schema(database: Database) {
    let shell = Shell::on(&database);
    shell.write("people.csv", PEOPLE);
    let import = ["import", "users", "people.csv"];
    let dry = [&import[..], &["--dry-run"]].concat();
    for arguments in [&import[..], &dry, &["export", "users"], &["seed"]] {
        let unready = shell.run(arguments).await.expect(1);
        assert!(unready.contains("run `unified-backend migrate` first"), "{arguments:?}: {unready}");
        assert!(database.file().is_none_or(|file| !file.exists()), "{arguments:?} made a database");
        shell.run(&["migrate", "--check"]).await.expect(1);
    }
}

async fn a_dry_run_says_the_same_and_writes_nothing(database: Database) {
    let shell = Shell::migrated(&database).await;
    shell.write("people.csv", PEOPLE);
    shell.run(&["seed", "--users", "0"]).await.expect(0);
    let dry = shell.run(&["import", "users", "people.csv", "--dry-run"]).await;
    assert!(dry.expect(1).contains("(dry run: nothing was written)"));
    assert_eq!(shell.run(&["export", "users"]).await.output, "");
    let real = shell.run(&["import", "users", "people.csv"]).await;
    assert_eq!(dry.errors, real.errors);
    assert_eq!(dry.output.replace(" (dry run: nothing was written)", ""), real.output);
}

async fn existing_lines_are_kept_or_updated_when_asked(database: Database) {
    let shell = Shell::migrated(&database).await;
    shell.run(&["seed", "--users", "2"]).await.expect(0);
    let lines = r#"{"global_id":1001,"name":"Changed","zone_ids":["canteen"]}
{"global_id":5000,"name":"New"}
"#;
    let import = async |existing: &str| {
        let arguments = ["import", "users", "-", "--existing", existing];
        run_with_input(shell.path(), &shell.settings(), &arguments, lines.as_bytes()).await
    };
    assert_eq!(import("keep").await.expect(0), "users: 2 read, 1 made, 0 updated, 1 kept, 0 refused\n");
    assert_eq!(essence(&shell.run(&["export", "users"]).await.output)[0]["name"], "Ada Adeyemi");
    assert_eq!(import("update").await.expect(0), "users: 2 read, 0 made, 2 updated, 0 kept, 0 refused\n");
    let first = &essence(&shell.run(&["export", "users"]).await.output)[0];
    assert_eq!((&first["name"], &first["zone_ids"]), (&json!("Changed"), &json!(["canteen"])));
    // What a file does not name it leaves alone; an empty cell names it.
    for (file, zone_ids) in
        [("global_id,name\n1001,Ada\n", json!(["canteen"])), ("global_id,name,zone_ids\n1001,Ada,\n", json!([]))]
    {
        let arguments = ["import", "users", "-", "--format", "csv", "--existing", "update"];
        run_with_input(shell.path(), &shell.settings(), &arguments, file.as_bytes()).await.expect(0);
        let first = &essence(&shell.run(&["export", "users"]).await.output)[0];
        assert_eq!((&first["name"], &first["zone_ids"]), (&json!("Ada"), &zone_ids));
    }
}

async fn the_doctor_finds_a_healthy_database_well(database: Database) {
    let shell = Shell::on(&database);
    let before = shell.run(&["doctor"]).await.expect(0);
    if database.file().is_none() {
        assert!(before.contains("warn  database  pending migrations: 0001_directory"), "{before}");
    }
    shell.run(&["migrate"]).await.expect(0);
    let healthy = shell.run(&["doctor"]).await.expect(0);
    assert!(!healthy.contains("FAIL") && !healthy.contains("pending"), "{healthy}");
    for line in [
        "ok    config    every setting is valid",
        "ok    database  its schema is up to date",
        "ok    port      127.0.0.1:0 is free",
    ] {
        assert!(healthy.contains(line), "{line} is missing in {healthy}");
    }
}

#[tokio::test]
async fn the_doctor_names_what_is_broken_in_postgresql_and_the_remedy() {
    let database = crate::require_backend!(Database::postgres().await);
    let shell = Shell::on(&database);
    shell.run(&["migrate"]).await.expect(0);
    database.execute(r#"ALTER TABLE "user" DISABLE TRIGGER directory_log_insert"#).await;
    database.execute("ALTER TABLE working_zone ENABLE TRIGGER directory_log_update").await;
    database.execute("DROP TRIGGER directory_log_delete ON user_zone_association").await;
    let broken = shell.run(&["doctor"]).await.expect(1);
    for fault in [
        "trigger directory_log_insert of \"user\" is disabled",
        "→ ALTER TABLE \"user\" ENABLE ALWAYS TRIGGER directory_log_insert",
        "trigger directory_log_update of \"working_zone\" does not fire in every session",
        "trigger directory_log_delete of \"user_zone_association\" is missing",
    ] {
        assert!(broken.contains(fault), "{fault} is missing in {broken}");
    }
    let away = [("DATABASE_URL", "postgres://u:hunter2@127.0.0.1:1/x")];
    let away = run(shell.path(), &away, &["doctor"]).await.expect(1);
    assert!(
        away.contains("FAIL  database") && away.contains("is PostgreSQL running") && !away.contains("hunter2"),
        "{away}"
    );
    let mut nowhere = url::Url::parse(&shell.url).expect("a URL");
    nowhere.set_path("no_such_database");
    let nowhere = run(shell.path(), &[("DATABASE_URL", nowhere.as_str())], &["doctor"]).await.expect(1);
    assert!(nowhere.contains("CREATE DATABASE"), "{nowhere}");
}

#[tokio::test]
async fn the_doctor_names_what_is_broken_around_the_database() {
    let directory = place();
    let busy = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = busy.local_addr().expect("bound").port().to_string();
    let settings = [
        ("API_PORT", port.as_str()),
        ("REDIS_URL", "redis://127.0.0.1:1/0"),
        ("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1"),
        ("API_PROT", "1"),
    ];
    let told = run(directory.path(), &settings, &["doctor"]).await.expect(1);
    for line in
        ["warn  config    API_PROT", "FAIL  redis     ", "FAIL  kafka     127.0.0.1:1", "FAIL  port      127.0.0.1:"]
    {
        assert!(told.contains(line), "{line} is missing in {told}");
    }
    let wrong = run(directory.path(), &[("API_PORT", "x"), ("LOGGING_FORMAT", "y")], &["doctor"]).await.expect(1);
    assert_eq!(wrong.matches("FAIL  config").count(), 2, "{wrong}");
}

#[tokio::test]
async fn the_doctor_finds_healthy_redis_and_kafka_well() {
    let redis = crate::require_backend!(find_redis_url());
    let kafka = crate::require_backend!(find_kafka());
    let directory = place();
    let settings =
        [("REDIS_URL", redis.as_str()), PATIENT, ("KAFKA_BOOTSTRAP_SERVERS", &kafka), ("KAFKA_TOPIC", "no_such_topic")];
    let told = run(directory.path(), &settings, &["doctor"]).await.expect(0);
    for line in [
        "ok    redis     Redis ",
        "ok    redis     every operation of the cache works",
        "ok    kafka     brokers answer: ",
        "warn  kafka     there is no topic no_such_topic",
        "ok    kafka     group person_reid_ui_consumers is ",
    ] {
        assert!(told.contains(line), "{line} is missing in {told}");
    }
}

#[tokio::test]
async fn the_cache_is_worked_by_hand() {
    let redis = crate::require_backend!(find_redis_url());
    let directory = place();
    let cache = async |arguments: &[&str]| {
        run(directory.path(), &[("REDIS_URL", redis.as_str()), PATIENT], &[&["cache"], arguments].concat()).await
    };
    assert_eq!(cache(&["get", "greeting"]).await.expect(1), "no key greeting\n");
    cache(&["set", "greeting", "{hello"]).await.expect(2);
    cache(&["set", "greeting", "{\"text\":\"hello\"}", "--ttl", "60"]).await.expect(0);
    assert_eq!(cache(&["get", "greeting"]).await.expect(0), "{\"text\":\"hello\"}\n");
    assert_eq!(cache(&["exists", "greeting"]).await.expect(0), "true\n");
    let stats: Value = serde_json::from_str(&cache(&["stats"]).await.expect(0)).expect("JSON");
    assert_eq!(stats["enabled"], true);
    assert_eq!(cache(&["delete", "greeting"]).await.expect(0), "deleted\n");
    assert_eq!(cache(&["exists", "greeting"]).await.expect(1), "false\n");
    assert_eq!(cache(&["delete", "greeting"]).await.expect(1), "was not there\n");
    cache(&["set", "greeting", "5"]).await.expect(0);
    assert!(cache(&["clear"]).await.expect(0).ends_with(" keys removed\n"));
    assert_eq!(cache(&["exists", "greeting"]).await.expect(1), "false\n");
    assert_eq!(cache(&["invalidate"]).await.expect(0), "there was no users dict\n");
    let selftest = cache(&["selftest"]).await.expect(0);
    assert!(selftest.lines().count() >= 10 && selftest.lines().all(|line| line.starts_with("ok    ")), "{selftest}");
    for line in [r#"ok    get_users_dict: {"-1":"Ann","9223372036854775807":"Zoë"}"#, "ok    exists: true"] {
        assert!(selftest.contains(line), "{selftest}");
    }
    let away = [("REDIS_URL", "redis://127.0.0.1:1/0")];
    let away = async |arguments: &[&str]| run(directory.path(), &away, &[&["cache"], arguments].concat()).await;
    let told = away(&["get", "greeting"]).await.expect(69);
    assert!(told.starts_with("Redis is not available: "), "{told}");
    away(&["stats"]).await.expect(69);
    assert!(away(&["selftest"]).await.expect(1).contains("FAIL  "));
}

#[tokio::test]
async fn a_site_that_publishes_to_kafka_is_heard_by_the_service() {
    let kafka = crate::require_backend!(find_kafka());
    let database = crate::require_backend!(Database::postgres().await);
    let shell = Shell::on(&database);
    let topic = format!("site_{}", uuid::Uuid::new_v4().simple());
    let settings = [("KAFKA_BOOTSTRAP_SERVERS", kafka.as_str()), ("KAFKA_TOPIC", &topic), ("KAFKA_GROUP_ID", &topic)];
    // Nobody serves there, whatever else runs on this machine.
    let simulate = ["simulate", "--kafka", "--rate", "100", "--duration", "1s", "--url", "http://127.0.0.1:1"];
    let told = run(shell.path(), &settings, &simulate).await.expect(0);
    assert!(
        told.contains("sample people and zones are used") && told.contains(&format!("Kafka topic {topic}")),
        "{told}"
    );
    let published: usize =
        told.lines().filter_map(|line| line.split(" published").next()?.parse().ok()).next_back().expect("a total");
    assert!((90..=100).contains(&published), "{told}");
    let served = Served::start(shell.path(), &[&shell.settings()[..], &settings].concat(), &[]).await;
    until_ready(&served).await;
    let count = async || get(&served.url, "/alerts?limit=1000").await.expect(200)["alerts"].as_array().map(Vec::len);
    eventually("every alert is stored", async || count().await == Some(published)).await;
    served.signal(Signal::TERM);
    let (code, log) = served.ended().await;
    assert_eq!(code, 0, "{log}");
}

#[tokio::test]
async fn the_doctor_finds_a_damaged_file() {
    let directory = place();
    std::fs::write(directory.path().join("people.db"), "not a database, and longer than a header ".repeat(100))
        .expect("a file");
    let told = run(directory.path(), &[("DATABASE_URL", "sqlite:people.db")], &["doctor"]).await.expect(1);
    assert!(told.contains("people.db cannot be read: file is not a database"), "{told}");
}

async fn a_service_starts_is_found_healthy_and_stops_in_order(database: Database) {
    let shell = Shell::on(&database);
    let served = Served::start(shell.path(), &shell.settings(), &[]).await;
    until_ready(&served).await;
    assert_eq!(shell.run(&["healthcheck", "--url", &served.url]).await.expect(0), "ready\n");
    let port = served.url.rsplit(':').next().expect("a port").to_owned();
    let settings = [("DATABASE_URL", shell.url.as_str()), ("API_PORT", &port)];
    assert_eq!(run(shell.path(), &settings, &["healthcheck"]).await.expect(0), "ready\n");
    let doctor = run(shell.path(), &settings, &["doctor"]).await.expect(0);
    assert!(doctor.contains("this service runs at"), "{doctor}");
    served.signal(Signal::TERM);
    let (code, log) = served.ended().await;
    assert_eq!(code, 0, "{log}");
    for line in ["listening on http://127.0.0.1:", "SIGTERM: stopping in order", "stopped"] {
        assert!(log.contains(line), "{line} is missing in {log}");
    }
    shell.run(&["healthcheck", "--url", &format!("http://127.0.0.1:{port}")]).await.expect(69);
}

async fn a_second_signal_stops_at_once(database: Database) {
    let shell = Shell::on(&database);
    let settings = [("DATABASE_URL", shell.url.as_str()), ("SHUTDOWN_SETTLE_SECONDS", "60")];
    let mut served = Served::start(shell.path(), &settings, &["serve", "--port", "0"]).await;
    until_ready(&served).await;
    served.signal(Signal::INT);
    eventually("it is not ready any more", async || get(&served.url, "/health/ready").await.status == 503).await;
    let not_ready = shell.run(&["healthcheck", "--url", &served.url]).await.expect(1);
    assert_eq!(not_ready, "not ready (503): service is not available right now, try again in a moment\n");
    assert!(served.still_runs_after(Duration::from_millis(100)).await);
    let begun_at = std::time::Instant::now();
    served.signal(Signal::TERM);
    let (code, log) = served.ended().await;
    assert_eq!(code, 130, "{log}");
    assert!(begun_at.elapsed() < Duration::from_secs(10), "{:?}", begun_at.elapsed());
    assert!(log.contains("SIGTERM for the second time: stopped at once"), "{log}");
}

async fn a_busy_port_is_told(database: Database) {
    let shell = Shell::on(&database);
    let busy = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = busy.local_addr().expect("bound");
    let told = shell.run(&["serve", "--port", &address.port().to_string()]).await.expect(1);
    assert!(told.contains(&format!("cannot listen on {address}: choose another API_HOST or API_PORT")), "{told}");
}

#[tokio::test]
async fn a_schema_from_the_future_ends_the_service_and_names_the_task() {
    let database = crate::require_backend!(Database::postgres().await);
    let shell = Shell::on(&database);
    shell.run(&["migrate"]).await.expect(0);
    database.execute("UPDATE refinery_schema_history SET version = 9999, name = 'future' WHERE version = 3").await;
    let told = shell.run(&["serve"]).await.expect(1);
    assert!(told.contains("background task `database` ended") && told.contains("9999 `future`"), "{told}");
}

async fn a_demo_has_people_and_alerts(database: Database) {
    let shell = Shell::on(&database);
    let mut served = Served::start(shell.path(), &shell.settings(), &["--demo"]).await;
    let mut shown = String::new();
    while !shown.contains("Ctrl-C") {
        shown.push_str(&served.next_line().await);
    }
    assert!(
        shown.contains("50 people and 8 zones") && shown.contains(&format!("curl {}/users-dict", served.url)),
        "{shown}"
    );
    assert_eq!(get(&served.url, "/users-dict").await.expect(200)["1001"], "Ada Adeyemi");
    let recent = async || get(&served.url, "/messages/recent").await.expect(200);
    eventually("alerts come", async || recent().await["count"].as_u64() >= Some(2)).await;
    let alert = &recent().await["messages"][0];
    assert!(alert["zone_name"].is_string() && alert["status"].is_string(), "{alert}");
    served.signal(Signal::INT);
    let (code, log) = served.ended().await;
    assert_eq!(code, 0, "{log}");
}

async fn a_simulated_site_publishes_to_a_service(database: Database) {
    let shell = Shell::migrated(&database).await;
    shell.run(&["seed", "--users", "3"]).await.expect(0);
    let served = Served::start(shell.path(), &shell.settings(), &[]).await;
    until_ready(&served).await;
    let arguments = ["simulate", "--rate", "100", "--duration", "1s", "--people", "4", "--url", &served.url];
    let done = run(shell.path(), &[], &arguments).await;
    let told = done.expect(0);
    let published: usize = told.lines().last().and_then(|line| line.split(' ').next()?.parse().ok()).expect("a total");
    assert!((90..=100).contains(&published), "{told}");
    let stored = get(&served.url, "/alerts?limit=1000").await.expect(200);
    let alerts = stored["alerts"].as_array().expect("a list");
    assert_eq!(alerts.len(), published);
    let people: std::collections::BTreeSet<i64> =
        alerts.iter().filter_map(|stored| stored["alert"]["user_id"].as_i64()).collect();
    assert_eq!(people.into_iter().collect::<Vec<_>>(), [1001, 1002, 1003]);
    assert!(alerts.iter().any(|stored| stored["alert"]["user_id"].is_null()), "no stranger was seen");
}
