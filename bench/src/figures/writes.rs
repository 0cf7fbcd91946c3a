//! P4: `POST /users`, each a transaction of its own that is durable when it is answered. Against
//! `pgbench -M prepared` doing the same insert into the same tables, which is what PostgreSQL gives to
//! clients that do not share transactions. Three more show what is left to win: the bare HTTP library that stores nothing,
//! and each engine alone with rows that come in groups of as many as there are clients.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::time::{ClockId, clock_gettime};
use tokio::process::Command;

use crate::Bench;
use crate::database::Database;
use crate::load::{self, Connection, Load, Requests, get, send_json};
use crate::measure::limit_of;
use crate::process::{Process, cpu_micros, waited_cpu_micros};
use crate::report::Wanted::{AtLeast, AtMost};
use crate::report::{Report, median, ratio, short};

const CLIENTS: usize = 32;
const INSERT: &str = r#"INSERT INTO "user" (global_id, name) VALUES (nextval('bench_global_id'), 'Somebody New');"#;

const OURS: &str = "ours";
const PGBENCH: &str = "pgbench";
const WITHOUT_LOG: &str = "pgbench without the log";
const PEER: &str = "peer";
const SQLITE: &str = "ours on SQLite";
const LIMIT: &str = "bare HTTP, nothing stored";
const IN_GROUPS: &str = "pgbench, one client, 32 rows each";
const SQLITE_IN_GROUPS: &str = "SQLite, one writer, 32 rows each";
const NAMES: [&str; 8] = [OURS, PGBENCH, WITHOUT_LOG, PEER, SQLITE, LIMIT, IN_GROUPS, SQLITE_IN_GROUPS];

/// One round: writes per second, p99 in ms, CPU per write in µs of all that take part but the load.
type Round = (f64, f64, f64);

struct Pgbench {
    program: PathBuf,
    script: PathBuf,
    clients: usize,
    rows_each: usize,
    database: Database,
}

pub async fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let duration = bench.round_duration() * 2;
    let redis = [bench.redis(4094)?, bench.redis(4095)?];
    let databases = [bench.database(1000).await?, Database::create(&bench.postgres).await?];
    let server = databases[0].server_pid().await?;
    let ours = bench.service(&[("DATABASE_URL", &databases[0].url), ("REDIS_URL", &redis[0])]).await?;
    let peer = Process::server(bench.directory.path(), &["peer", &databases[1].url, &redis[1]].map(OsStr::new)).await?;
    let file = format!("sqlite:{}", bench.directory.path().join("writes.db").display());
    let sqlite = bench.service(&[("DATABASE_URL", &file)]).await?;
    let pgbench = Pgbench::prepare(bench, INSERT, CLIENTS, 1).await?;
    let without_log = Pgbench::prepare(bench, INSERT, CLIENTS, 1).await?;
    let disable = r#"ALTER TABLE "user" DISABLE TRIGGER directory_log_insert"#;
    without_log.database.connect().await?.batch_execute(disable).await?;
    let insert_group = format!(
        r#"INSERT INTO "user" (global_id, name)
        SELECT nextval('bench_global_id'), 'Somebody New' FROM generate_series(1, {CLIENTS})
        ON CONFLICT (global_id) DO NOTHING RETURNING id, global_id, name, created_at;"#
    );
    let in_groups = Pgbench::prepare(bench, &insert_group, 1, CLIENTS).await?;
    let sqlite_in_groups = SqliteInGroups::prepare(bench).await?;
    let user = send_json("POST", "/users", r#"{"global_id":999999,"name":"Somebody New"}"#);
    let (limit, _) = limit_of(bench.directory.path(), "created", &sqlite, &user).await?;

    let requests = [new_users(), new_users(), new_users()];
    let mut rounds: [Vec<Round>; NAMES.len()] = Default::default();
    for round in 0..=bench.rounds() {
        let mut results = Vec::new();
        for name in NAMES {
            bench.report.doing(format!("writes: {name}, round {round} of {}", bench.rounds()));
            results.push(match name {
                OURS => post(&ours, &requests[0], CLIENTS, duration, Some(server)).await?,
                PGBENCH => pgbench.run(duration, server).await?,
                PEER => post(&peer, &requests[1], CLIENTS, duration, Some(server)).await?,
                SQLITE => post(&sqlite, &requests[2], CLIENTS, duration, None).await?,
                LIMIT => post(&limit, &requests[2], CLIENTS, duration, None).await?,
                IN_GROUPS => in_groups.run(duration, server).await?,
                SQLITE_IN_GROUPS => sqlite_in_groups.run(duration).await?,
                _ => without_log.run(duration, server).await?,
            });
        }
        // The first one warms up.
        if round > 0 {
            rounds.iter_mut().zip(results).for_each(|(rounds, result)| rounds.push(result));
        }
    }
    let over = |rounds: &[Round], value: fn(&Round) -> f64| median(rounds.iter().map(value));
    let results = rounds
        .map(|rounds| (over(&rounds, |round| round.0), over(&rounds, |round| round.1), over(&rounds, |round| round.2)));
    tell(&mut bench.report, &results);
    verify(&ours, &databases[0]).await?;
    single(bench, &ours, &requests[0], &databases[0]).await
}

fn tell(report: &mut Report, results: &[Round; NAMES.len()]) {
    let [
        ours_result,
        pgbench_result,
        without_result,
        _,
        sqlite_result,
        limit_result,
        groups_result,
        sqlite_groups_result,
    ] = results;
    for (name, (rate, p99, cpu)) in NAMES.iter().zip(results) {
        report.figure(&format!("writes.{name}.rate"), *rate, "1/s");
        report.figure(&format!("writes.{name}.p99"), *p99, "ms");
        report.figure(&format!("writes.{name}.cpu"), *cpu, "us/write");
    }
    report.goal("P4", "POST /users ÷ pgbench -M prepared -c 32", ours_result.0 / pgbench_result.0, AtLeast(2.0), "×");
    report.goal("P4", "total CPU per write ÷ pgbench's", ours_result.2 / pgbench_result.2, AtMost(0.4), "×");
    report.goal("P4", "on SQLite ÷ on PostgreSQL", sqlite_result.0 / ours_result.0, AtLeast(2.0), "×");
    let cost = (1.0 - pgbench_result.0 / without_result.0) * 100.0;
    report.goal("P4", "cost of the change log in transactions of one row", cost, AtMost(20.0), "%");
    let row = |(name, (rate, p99, cpu)): (&&str, &Round)| {
        let p99 = if p99.is_nan() { String::new() } else { short(*p99) };
        vec![(*name).to_owned(), short(*rate), ratio(rate / pgbench_result.0), p99, short(*cpu)]
    };
    let columns = ["who", "writes/s", "× pgbench", "p99 ms", "total CPU µs/write"];
    let mut rows: Vec<_> = NAMES.iter().zip(results).map(row).collect();
    // A service that costs nothing, and whose clients are all answered before the next group begins.
    for (name, groups) in [("PostgreSQL", groups_result), ("SQLite", sqlite_groups_result)] {
        let in_turn = 1.0 / (1.0 / limit_result.0 + 1.0 / groups.0);
        let name = format!("bare HTTP and {name} in groups, in turn");
        rows.push(row((&&*name, &(in_turn, f64::NAN, limit_result.2 + groups.2))));
    }
    report.table(&format!("writes, {CLIENTS} clients"), &columns, &rows);
}

/// Everything that was answered is there, and the dict shows it.
async fn verify(ours: &Process, database: &Database) -> anyhow::Result<()> {
    let row = database.connect().await?.query_one(r#"SELECT count(*) FROM "user""#, &[]).await?;
    let dict = Connection::open(ours.address).await?.exchange(&get("/users-dict", "")).await?.expect(200)?.json()?;
    let shown = dict.as_object().context("the dict is no object")?.len();
    ensure!(row.try_get::<_, i64>(0)? == i64::try_from(shown)?, "the dict lacks users that were answered");
    Ok(())
}

/// A user that is not there yet, each time.
fn new_users() -> Requests {
    let next = AtomicI64::new(1_000_000);
    Requests::Numbered(Arc::new(move |_| {
        let global_id = next.fetch_add(1, Ordering::Relaxed);
        send_json("POST", "/users", &format!(r#"{{"global_id":{global_id},"name":"Somebody New"}}"#))
    }))
}

async fn post(
    process: &Process,
    requests: &Requests,
    connections: usize,
    duration: Duration,
    server: Option<u32>,
) -> anyhow::Result<Round> {
    let cpu = || anyhow::Ok(process.cpu_micros()? + server.map_or(Ok(0.0), cpu_micros)?);
    let before = cpu()?;
    let load = Load { address: process.address, connections, duration, requests: requests.clone(), expected: 200 };
    let measured = load::run(load).await?;
    Ok((measured.per_second(), measured.p99_ms(), (cpu()? - before) / measured.requests().max(1.0)))
}

impl Pgbench {
    /// On a database like ours, of its own.
    async fn prepare(bench: &Bench, insert: &str, clients: usize, rows_each: usize) -> anyhow::Result<Self> {
        let program = find_pgbench().context("pgbench is missing (it comes with PostgreSQL's server)")?;
        let database = bench.database(1000).await?;
        let sequence = "CREATE SEQUENCE bench_global_id START 1000000";
        database.connect().await?.batch_execute(sequence).await?;
        let script = bench.directory.path().join(format!("insert_{rows_each}.sql"));
        tokio::fs::write(&script, insert).await?;
        Ok(Self { program, script, clients, rows_each, database })
    }

    /// Per row.
    async fn run(&self, duration: Duration, server: u32) -> anyhow::Result<Round> {
        let cpu = || anyhow::Ok(waited_cpu_micros()? + cpu_micros(server)?);
        let before = cpu()?;
        let seconds = duration.as_secs().max(1).to_string();
        let clients = self.clients.to_string();
        let mut command = Command::new(&self.program);
        command.args(["-n", "-M", "prepared", "-c", &clients, "-j", "1", "-T", &seconds, "-f"]).arg(&self.script);
        let output = command.arg(&self.database.url).kill_on_drop(true).output().await?;
        let text = String::from_utf8_lossy(&output.stdout);
        let number = |before: &str| {
            let rest = text.split_once(before)?.1.split_whitespace().next()?;
            rest.split('/').next()?.parse::<f64>().ok()
        };
        let found = number("tps = ").zip(number("number of transactions actually processed: "));
        let (rate, transactions) = found.with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        let rows_each = self.rows_each as f64;
        Ok((rate * rows_each, f64::NAN, (cpu()? - before) / transactions / rows_each))
    }
}

/// One thread that does nothing but insert and commit, in a file like ours, with our settings and as durable.
struct SqliteInGroups {
    file: PathBuf,
    next_global_id: Arc<AtomicI64>,
}

impl SqliteInGroups {
    async fn prepare(bench: &Bench) -> anyhow::Result<Self> {
        let file = bench.directory.path().join("groups.db");
        // The service makes the tables.
        drop(bench.service(&[("DATABASE_URL", &format!("sqlite:{}", file.display()))]).await?);
        Ok(Self { file, next_global_id: Arc::new(AtomicI64::new(1)) })
    }

    async fn run(&self, duration: Duration) -> anyhow::Result<Round> {
        let (file, next_global_id) = (self.file.clone(), self.next_global_id.clone());
        tokio::task::spawn_blocking(move || {
            let mut connection = rusqlite::Connection::open(file)?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.pragma_update(None, "foreign_keys", true)?;
            connection.pragma_update(None, "cache_size", -64 * 1024)?;
            connection.pragma_update(None, "wal_autocheckpoint", 4_000)?;
            let (begun_at, cpu_before, mut rows) = (Instant::now(), thread_cpu(), 0_u32);
            while begun_at.elapsed() < duration {
                let transaction = connection.transaction()?;
                for _ in 0..CLIENTS {
                    let sql = r#"INSERT INTO "user" (global_id, name) VALUES (?1, 'Somebody New')"#;
                    let global_id = next_global_id.fetch_add(1, Ordering::Relaxed);
                    rows += u32::try_from(transaction.prepare_cached(sql)?.execute([global_id])?)?;
                }
                transaction.commit()?;
            }
            let cpu = thread_cpu() - cpu_before;
            let rows = f64::from(rows);
            Ok((rows / begun_at.elapsed().as_secs_f64(), f64::NAN, cpu.as_secs_f64() * 1e6 / rows))
        })
        .await?
    }
}

fn thread_cpu() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

fn find_pgbench() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join("pgbench"));
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    on_path.chain(versions.map(|version| version.path().join("bin/pgbench"))).find(|file: &PathBuf| Path::exists(file))
}

/// One client: what a write costs beside the transaction itself.
async fn single(bench: &mut Bench, ours: &Process, requests: &Requests, database: &Database) -> anyhow::Result<()> {
    let duration = bench.round_duration();
    let client = database.connect().await?;
    let insert = client.prepare(r#"INSERT INTO "user" (global_id, name) VALUES ($1, 'Somebody New')"#).await?;
    let (mut next, mut means) = (1_000_000_000_i64, (Vec::new(), Vec::new()));
    for _ in 0..bench.rounds() {
        bench.report.doing("writes: a single client");
        let load = Load { address: ours.address, connections: 1, duration, requests: requests.clone(), expected: 200 };
        means.0.push(load::run(load).await?.mean_ms());
        let (begun_at, mut latencies) = (Instant::now(), Vec::new());
        while begun_at.elapsed() < duration {
            let asked_at = Instant::now();
            client.execute(&insert, &[&next]).await?;
            latencies.push(asked_at.elapsed().as_secs_f64() * 1e3);
            next += 1;
        }
        means.1.push(latencies.iter().sum::<f64>() / latencies.len() as f64);
    }
    let (ours, plain) = (median(means.0), median(means.1));
    bench.report.figure("writes.single.ours", ours, "ms");
    bench.report.figure("writes.single.insert", plain, "ms");
    let rows = [vec!["POST /users".to_owned(), short(ours)], vec!["plain prepared INSERT".to_owned(), short(plain)]];
    bench.report.table("writes, a single client", &["who", "ms"], &rows);
    Ok(())
}
