//! Writers and readers of every kind, and the record of what they did.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::task::JoinSet;
use unified_backend::directory::{Command, Cursor, Directory, NewUser, Outcome, Snapshot, UserPatch, WriteError};

use crate::history::{History, Moment, Read, Violation, Write};
use crate::support::app::TestApp;
use crate::support::backends::Database;

/// What a run does.
pub struct Plan {
    /// Reads after which it ends.
    pub reads: usize,
    pub keys_per_writer: i64,
    /// Whether the table is emptied at a stroke now and then.
    pub truncates: bool,
    pub seed: u64,
}

impl Default for Plan {
    fn default() -> Self {
        Self { reads: 0, keys_per_writer: 3, truncates: false, seed: 7 }
    }
}

pub struct Report {
    pub violations: Vec<Violation>,
    pub reads: usize,
    pub failed_reads: usize,
    pub writes: usize,
    pub unknown_writes: usize,
    pub keys: usize,
}

/// One instance's directory; another's once it was killed and replaced.
pub type Slot = Arc<Mutex<Directory>>;

pub struct Workload {
    plan: Plan,
    slots: Vec<Slot>,
    over_http: Mutex<Vec<(String, reqwest::Client)>>,
}

/// Written together, always with the same value.
const PAIR: (i64, i64) = (9_001, 9_002);
/// Keys of the SQL writers.
const SAVEPOINT_KEY: i64 = 9_003;
const STATEMENT_KEY: i64 = 9_004;
const COPY_KEY: i64 = 9_005;

impl Workload {
    pub fn new(plan: Plan, directories: Vec<Directory>) -> Self {
        let slots = directories.into_iter().map(|directory| Arc::new(Mutex::new(directory))).collect();
        Self { plan, slots, over_http: Mutex::default() }
    }

    /// For whoever replaces instances while it runs.
    pub fn slots(&self) -> Vec<Slot> {
        self.slots.clone()
    }

    /// Reads over HTTP from these instances too.
    pub fn also_over_http(&self, apps: &[TestApp]) {
        let mut over_http = self.over_http.lock().expect("no panic");
        over_http.extend(apps.iter().map(|app| (app.url(""), app.client().clone())));
    }

    /// `sql`: the database in which plain SQL writes besides.
    pub async fn run(self, sql: Option<&Database>) -> Report {
        let record = Arc::new(Record::new(self.plan.reads));
        let mut tasks = JoinSet::new();
        for (index, slot) in self.slots.iter().enumerate() {
            let first_key = 1 + index as i64 * 1_000;
            let seed = self.plan.seed + index as u64;
            let keys = (first_key..first_key + self.plan.keys_per_writer).collect();
            tasks.spawn(write_commands(record.clone(), slot.clone(), keys, seed));
            for _ in 0..8 {
                tasks.spawn(read_snapshots(record.clone(), slot.clone()));
            }
            tasks.spawn(read_deltas(record.clone(), slot.clone()));
        }
        for (base, client) in self.over_http.lock().expect("no panic").drain(..) {
            tasks.spawn(read_dict_over_http(record.clone(), base.clone(), client.clone()));
            tasks.spawn(read_rows_over_http(record.clone(), base, client));
        }
        match sql {
            Some(Database::Postgres(database)) => {
                tasks.spawn(write_pairs(record.clone(), database.connect().await));
                tasks.spawn(write_between_savepoints(record.clone(), database.connect().await));
                tasks.spawn(write_by_copy(record.clone(), database.connect().await));
                tasks.spawn(write_statements(record.clone(), database.connect().await));
                if self.plan.truncates {
                    tasks.spawn(truncate(record.clone(), database.connect().await));
                }
                tasks.spawn(hold_a_transaction_open(record.clone(), database.connect().await));
            }
            Some(Database::Sqlite(_)) => {
                let file = sql.and_then(Database::file).expect("a file");
                let record = record.clone();
                tasks.spawn_blocking(move || write_statements_to_file(&record, &file));
            }
            None => {}
        }
        while let Some(ended) = tasks.join_next().await {
            ended.expect("no task of the workload panics");
        }
        Arc::into_inner(record).expect("all tasks are over").report()
    }
}

/// What happened, on one clock.
struct Record {
    begin: Instant,
    history: Mutex<History>,
    keys: Mutex<Arc<Vec<i64>>>,
    /// Writers share it for each write; who empties the table has it alone.
    turn: tokio::sync::RwLock<()>,
    last_value: AtomicU64,
    wanted_reads: usize,
    reads: AtomicUsize,
    failed_reads: AtomicUsize,
    unknown_writes: AtomicUsize,
    /// By key: whether its last write left it present.
    present: Mutex<BTreeMap<i64, bool>>,
}

impl Record {
    fn new(wanted_reads: usize) -> Self {
        Self {
            begin: Instant::now(),
            history: Mutex::default(),
            keys: Mutex::default(),
            turn: tokio::sync::RwLock::default(),
            last_value: AtomicU64::new(0),
            wanted_reads,
            reads: AtomicUsize::new(0),
            failed_reads: AtomicUsize::new(0),
            unknown_writes: AtomicUsize::new(0),
            present: Mutex::default(),
        }
    }

    fn report(self) -> Report {
        let history = self.history.into_inner().expect("no panic");
        Report {
            reads: self.reads.into_inner(),
            failed_reads: self.failed_reads.into_inner(),
            writes: history.count_writes(),
            unknown_writes: self.unknown_writes.into_inner(),
            keys: self.keys.into_inner().expect("no panic").len(),
            violations: history.check(),
        }
    }

    fn now(&self) -> Moment {
        Moment::try_from(self.begin.elapsed().as_nanos()).expect("a short run")
    }

    fn is_over(&self) -> bool {
        self.reads.load(Ordering::Relaxed) >= self.wanted_reads
    }

    fn next_value(&self) -> u64 {
        self.last_value.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn adopt(&self, key: i64) {
        Arc::make_mut(&mut *self.keys.lock().expect("no panic")).push(key);
    }

    fn keys(&self) -> Arc<Vec<i64>> {
        self.keys.lock().expect("no panic").clone()
    }

    fn wrote(&self, key: i64, value: Option<u64>, invoked_at: Moment, is_known: bool) {
        let acknowledged_at = is_known.then(|| self.now());
        if !is_known {
            self.unknown_writes.fetch_add(1, Ordering::Relaxed);
        }
        self.present.lock().expect("no panic").insert(key, value.is_some());
        self.history.lock().expect("no panic").write(key, Write { value, invoked_at, acknowledged_at });
    }

    async fn failed_read(&self) {
        let failed = self.failed_reads.load(Ordering::Relaxed);
        assert!(failed < 10 * self.wanted_reads, "nearly every read fails");
        self.failed_reads.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

/// What one reader saw, kept to itself until it is done.
struct Notes {
    record: Arc<Record>,
    reader: &'static str,
    reads: Vec<Seen>,
}

/// One read: when it began and ended, which keys were looked at, and what they were.
type Seen = (Moment, Moment, Arc<Vec<i64>>, Vec<Option<u64>>);

impl Notes {
    fn new(record: &Arc<Record>, reader: &'static str) -> Self {
        Self { record: record.clone(), reader, reads: Vec::new() }
    }

    fn read_whole(&mut self, began_at: Moment, value_of: impl Fn(i64) -> Option<u64>) {
        let (ended_at, keys) = (self.record.now(), self.record.keys());
        let values = keys.iter().map(|key| value_of(*key)).collect();
        self.reads.push((began_at, ended_at, keys, values));
        self.record.reads.fetch_add(1, Ordering::Relaxed);
    }

    fn read_one(&mut self, began_at: Moment, key: i64, value: Option<u64>) {
        self.reads.push((began_at, self.record.now(), Arc::new(vec![key]), vec![value]));
        self.record.reads.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Notes {
    fn drop(&mut self) {
        let mut history = self.record.history.lock().expect("no panic");
        for (began_at, ended_at, keys, values) in self.reads.drain(..) {
            let read = Read { began_at, ended_at, value: None, reader: self.reader };
            let map = keys.iter().zip(values).filter_map(|(key, value)| Some((*key, value?))).collect();
            let together: &[(i64, i64)] = if keys.len() > 1 { &[PAIR] } else { &[] };
            history.read_whole(&keys, together, &map, &read);
        }
    }
}

fn current(slot: &Slot) -> Directory {
    slot.lock().expect("no panic").clone()
}

fn name_of(value: u64) -> String {
    format!("v{value}")
}

/// A name that is none of ours was never written.
fn value_of(name: &str) -> u64 {
    name.strip_prefix('v').and_then(|digits| digits.parse().ok()).unwrap_or(u64::MAX)
}

fn value_in(snapshot: &Snapshot, key: i64) -> Option<u64> {
    snapshot.find_user_by_global_id(key).map(|user| value_of(&user.name))
}

/// Creates, renames and deletes its own keys through the service.
async fn write_commands(record: Arc<Record>, slot: Slot, mut keys: Vec<i64>, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut ids: BTreeMap<i64, i64> = BTreeMap::new();
    keys.iter().for_each(|key| record.adopt(*key));
    while !record.is_over() {
        let index = random.random_range(0..keys.len());
        let key = keys[index];
        let turn = record.turn.read().await;
        let is_present = record.present.lock().expect("no panic").get(&key).copied().unwrap_or(false);
        let id = ids.get(&key).copied().filter(|_| is_present);
        let value = record.next_value();
        let (command, written) = match id {
            None => {
                let user = NewUser { global_id: key, name: name_of(value), zone_ids: Vec::new() };
                (Command::CreateUser(user), Some(value))
            }
            Some(id) if random.random_bool(0.2) => (Command::DeleteUser { id }, None),
            Some(id) => {
                let patch = UserPatch { name: Some(name_of(value)), zone_ids: None };
                (Command::UpdateUser { id, patch }, Some(value))
            }
        };
        let invoked_at = record.now();
        let directory = current(&slot);
        match directory.write(command).await {
            Ok(outcome) => {
                if let Outcome::User(user) = outcome {
                    ids.insert(key, user.id);
                }
                record.wrote(key, written, invoked_at, true);
            }
            Err(WriteError::Refused(refusal)) => panic!("key {key}: {refusal}"),
            Err(WriteError::Store(_)) => {
                record.wrote(key, written, invoked_at, false);
                keys[index] = key + 100;
                record.adopt(keys[index]);
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        }
        drop(turn);
        pause().await;
    }
}

async fn read_snapshots(record: Arc<Record>, slot: Slot) {
    let mut notes = Notes::new(&record, "snapshot");
    while !record.is_over() {
        let directory = current(&slot);
        let began_at = record.now();
        match directory.read().await {
            Ok(view) => notes.read_whole(began_at, |key| value_in(&view.snapshot, key)),
            Err(_) => record.failed_read().await,
        }
    }
}

/// Keeps a copy of the dict by its deltas alone.
async fn read_deltas(record: Arc<Record>, slot: Slot) {
    let mut notes = Notes::new(&record, "delta");
    let mut copy: BTreeMap<i64, u64> = BTreeMap::new();
    let mut since: Option<Cursor> = None;
    while !record.is_over() {
        let directory = current(&slot);
        let began_at = record.now();
        let Ok(delta) = directory.dict_delta(since.as_ref()).await else {
            record.failed_read().await;
            continue;
        };
        if delta.reset {
            copy.clear();
        }
        copy.extend(delta.set.iter().map(|(key, name)| (*key, value_of(name))));
        copy.retain(|key, _| !delta.deleted.contains(key));
        // Through its text, as a client holds it.
        since = Cursor::parse(&delta.version.to_string());
        notes.read_whole(began_at, |key| copy.get(&key).copied());
    }
}

async fn read_dict_over_http(record: Arc<Record>, base: String, client: reqwest::Client) {
    let mut notes = Notes::new(&record, "dict over HTTP");
    let paths = ["/users-dict", "/users-dict?use_cache=false", "/users-dict"];
    for path in paths.iter().cycle() {
        if record.is_over() {
            return;
        }
        let began_at = record.now();
        let answer = client.get(format!("{base}{path}")).send().await;
        let Some(answer) = answer.ok().filter(|answer| answer.status().is_success()) else {
            record.failed_read().await;
            continue;
        };
        let dict: BTreeMap<String, String> = answer.json().await.expect("the dict");
        notes.read_whole(began_at, |key| dict.get(&key.to_string()).map(|name| value_of(name)));
    }
}

async fn read_rows_over_http(record: Arc<Record>, base: String, client: reqwest::Client) {
    let mut notes = Notes::new(&record, "rows over HTTP");
    let mut turn = 0;
    while !record.is_over() {
        turn += 1;
        let keys = record.keys();
        let key = keys.get(turn % keys.len().max(1)).copied().unwrap_or(1);
        let is_page = turn % 2 == 0;
        let path = if is_page { "/users?limit=10000".to_owned() } else { format!("/users/global/{key}") };
        let began_at = record.now();
        let answer = match client.get(format!("{base}{path}")).send().await {
            Ok(answer) if !answer.status().is_server_error() => answer,
            _ => {
                record.failed_read().await;
                continue;
            }
        };
        if is_page {
            let users: Vec<serde_json::Value> = answer.json().await.expect("a page");
            let named =
                |user: &serde_json::Value| Some((user["global_id"].as_i64()?, value_of(user["name"].as_str()?)));
            let page: BTreeMap<i64, u64> = users.iter().filter_map(named).collect();
            notes.read_whole(began_at, |key| page.get(&key).copied());
        } else {
            let user: serde_json::Value = answer.json().await.expect("a user or an error");
            notes.read_one(began_at, key, user["name"].as_str().map(value_of));
        }
    }
}

async fn upsert(client: &impl tokio_postgres::GenericClient, key: i64, value: u64) {
    let sql = r#"INSERT INTO "user" (global_id, name) VALUES ($1, $2)
        ON CONFLICT (global_id) DO UPDATE SET name = excluded.name"#;
    client.execute(sql, &[&key, &name_of(value)]).await.expect("an upsert");
}

/// Between two writes of one writer, so that readers have the machine most of the time.
async fn pause() {
    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
}

async fn write_pairs(record: Arc<Record>, mut client: tokio_postgres::Client) {
    record.adopt(PAIR.0);
    record.adopt(PAIR.1);
    while !record.is_over() {
        let turn = record.turn.read().await;
        let value = record.next_value();
        let invoked_at = record.now();
        let transaction = client.transaction().await.expect("a transaction");
        upsert(&transaction, PAIR.0, value).await;
        upsert(&transaction, PAIR.1, value).await;
        transaction.commit().await.expect("a commit");
        record.wrote(PAIR.0, Some(value), invoked_at, true);
        record.wrote(PAIR.1, Some(value), invoked_at, true);
        drop(turn);
        pause().await;
    }
}

/// Values that are rolled back must never be seen.
async fn write_between_savepoints(record: Arc<Record>, mut client: tokio_postgres::Client) {
    record.adopt(SAVEPOINT_KEY);
    while !record.is_over() {
        let turn = record.turn.read().await;
        let (undone, value, given_up) = (record.next_value(), record.next_value(), record.next_value());
        let invoked_at = record.now();
        let mut transaction = client.transaction().await.expect("a transaction");
        let savepoint = transaction.savepoint("undone").await.expect("a savepoint");
        upsert(&savepoint, SAVEPOINT_KEY, undone).await;
        savepoint.rollback().await.expect("back to the savepoint");
        upsert(&transaction, SAVEPOINT_KEY, value).await;
        transaction.commit().await.expect("a commit");
        record.wrote(SAVEPOINT_KEY, Some(value), invoked_at, true);
        let transaction = client.transaction().await.expect("a transaction");
        upsert(&transaction, SAVEPOINT_KEY, given_up).await;
        transaction.rollback().await.expect("a rollback");
        drop(turn);
        pause().await;
    }
}

async fn write_by_copy(record: Arc<Record>, client: tokio_postgres::Client) {
    use futures_util::SinkExt;
    record.adopt(COPY_KEY);
    while !record.is_over() {
        let turn = record.turn.read().await;
        let value = record.next_value();
        let invoked_at = record.now();
        let sink = client.copy_in(r#"COPY "user" (global_id, name) FROM STDIN"#).await.expect("COPY begins");
        let mut sink = std::pin::pin!(sink);
        let line = format!("{COPY_KEY}\t{}\n", name_of(value));
        sink.send(bytes::Bytes::from(line)).await.expect("COPY takes a row");
        sink.finish().await.expect("COPY ends");
        record.wrote(COPY_KEY, Some(value), invoked_at, true);
        let invoked_at = record.now();
        client.execute(r#"DELETE FROM "user" WHERE global_id = $1"#, &[&COPY_KEY]).await.expect("a deletion");
        record.wrote(COPY_KEY, None, invoked_at, true);
        drop(turn);
        pause().await;
    }
}

async fn write_statements(record: Arc<Record>, client: tokio_postgres::Client) {
    record.adopt(STATEMENT_KEY);
    while !record.is_over() {
        let turn = record.turn.read().await;
        let value = record.next_value();
        let invoked_at = record.now();
        upsert(&client, STATEMENT_KEY, value).await;
        record.wrote(STATEMENT_KEY, Some(value), invoked_at, true);
        drop(turn);
        pause().await;
    }
}

fn write_statements_to_file(record: &Record, file: &std::path::Path) {
    let connection = rusqlite::Connection::open(file).expect("the file opens");
    connection.busy_timeout(crate::support::app::PATIENCE).expect("a timeout can be set");
    record.adopt(STATEMENT_KEY);
    while !record.is_over() {
        let value = record.next_value();
        let invoked_at = record.now();
        let sql = r#"INSERT INTO "user" (global_id, name) VALUES (?1, ?2)
            ON CONFLICT (global_id) DO UPDATE SET name = excluded.name"#;
        connection.execute(sql, rusqlite::params![STATEMENT_KEY, name_of(value)]).expect("an upsert");
        record.wrote(STATEMENT_KEY, Some(value), invoked_at, true);
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

async fn truncate(record: Arc<Record>, client: tokio_postgres::Client) {
    while !record.is_over() {
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        let _turn = record.turn.write().await;
        let invoked_at = record.now();
        client.batch_execute(r#"TRUNCATE "user" CASCADE"#).await.expect("TRUNCATE");
        let keys: Vec<i64> = record.present.lock().expect("no panic").keys().copied().collect();
        for key in keys {
            record.wrote(key, None, invoked_at, true);
        }
    }
}

/// An old transaction with a change in it, as a forgotten session leaves it: it must hold up nothing.
async fn hold_a_transaction_open(record: Arc<Record>, mut client: tokio_postgres::Client) {
    while !record.is_over() {
        let transaction = client.transaction().await.expect("a transaction");
        let sql = "INSERT INTO working_zone (zone_id, zone_name) VALUES ('held', 'held')";
        transaction.execute(sql, &[]).await.expect("an insert");
        tokio::time::sleep(std::time::Duration::from_millis(400)).await;
        transaction.rollback().await.expect("a rollback");
    }
}
