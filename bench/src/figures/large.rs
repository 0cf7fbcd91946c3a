//! P5: a dict of 163,000 users, with and without writes beside the reads; what one write costs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::Bench;
use crate::load::{Connection, Requests, get};
use crate::measure::{COLUMNS, Contestant, Match, limit_of, of, rows};
use crate::process::Process;
use crate::report::Wanted::{AtLeast, AtMost};
use crate::report::{median, short};

const USERS: u64 = 163_000;
const CONNECTIONS: usize = 16;
const WRITES_PER_SECOND: u64 = 100;

pub async fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let users = bench.scaled(USERS, 20_000);
    let database = bench.database(users).await?;
    let ours = bench.service(&[("DATABASE_URL", &database.url)]).await?;
    let request = get("/users-dict", "");
    let (limit, body) = limit_of(bench.directory.path(), "large", &ours, &request).await?;
    let dict: serde_json::Value = serde_json::from_slice(&body)?;
    ensure!(dict.as_object().map(|users| users.len() as u64) == Some(users), "the dict does not have everybody");

    let contestants = [("ours", &ours), ("limit", &limit)].map(|(name, process)| Contestant {
        name,
        process,
        requests: Requests::Same(request.clone().into()),
    });
    let mut table = Vec::new();
    for (figure, title, has_writer, wanted) in [
        ("large.quiet", format!("dict of {} users", short(users as f64)), false, 0.95),
        ("large.written", format!("the same, {WRITES_PER_SECOND} writes/s beside it"), true, 0.85),
    ] {
        let game = Match {
            figure,
            connections: CONNECTIONS,
            rounds: bench.rounds(),
            duration: bench.round_duration() * 2,
            expected: 200,
        };
        let writer = if has_writer { Some(Writer::start(database.connect().await?)) } else { None };
        let results = game.play(&mut bench.report, &contestants).await?;
        if let Some(writer) = writer {
            ensure!(writer.written.load(Ordering::Relaxed) > 0, "nothing was written beside the reads");
            ensure!(!writer.task.is_finished(), "the writer failed");
        }
        let ratio = of(&results, "ours")?.per_second / of(&results, "limit")?.per_second;
        bench.report.goal("P5", &format!("{title} ÷ limit"), ratio, AtLeast(wanted), "×");
        table.extend(rows(&title, &results));
    }
    bench.report.table(
        &format!("large dict ({} MB), {CONNECTIONS} connections", short(body.len() as f64 / 1e6)),
        COLUMNS,
        &table,
    );
    one_write(bench, &ours, &database.connect().await?).await
}

/// Changes names through SQL at a steady pace until it is dropped.
struct Writer {
    task: JoinHandle<anyhow::Result<()>>,
    written: Arc<AtomicU64>,
}

impl Writer {
    fn start(client: Client) -> Self {
        let written = Arc::new(AtomicU64::new(0));
        let counted = written.clone();
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_secs(1) / WRITES_PER_SECOND as u32);
            loop {
                ticks.tick().await;
                write(&client, counted.fetch_add(1, Ordering::Relaxed)).await?;
            }
        });
        Self { task, written }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Somebody gets another name of the same length.
async fn write(client: &Client, number: u64) -> anyhow::Result<()> {
    let global_id = i64::try_from(number * 7919 % 20_000)? + 1;
    let name = format!("Person {:06}", number % 1_000_000);
    let changed = client.execute(r#"UPDATE "user" SET name = $2 WHERE global_id = $1"#, &[&global_id, &name]).await?;
    ensure!(changed == 1, "nobody was changed");
    Ok(())
}

/// The service's CPU for a write: with a reader of the gzip dict after each write, against the same
/// reads without writes. And how large the change is that a follower of the dict gets.
async fn one_write(bench: &mut Bench, ours: &Process, client: &Client) -> anyhow::Result<()> {
    let writes = bench.scaled(200_u64, 50);
    let mut connection = Connection::open(ours.address).await?;
    let gzip = get("/users-dict", "accept-encoding: gzip\r\n");
    connection.exchange(&gzip).await?.expect(200)?;
    let (mut with, mut without, mut deltas) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..bench.rounds() as u64 {
        bench.report.doing("large: the cost of one write");
        let begun = ours.cpu_micros()?;
        for _ in 0..writes {
            connection.exchange(&gzip).await?.expect(200)?;
        }
        let between = ours.cpu_micros()?;
        for number in 0..writes {
            write(client, 1_000_000 * (round + 1) + number).await?;
            connection.exchange(&gzip).await?.expect(200)?;
        }
        without.push((between - begun) / writes as f64);
        with.push((ours.cpu_micros()? - between) / writes as f64);
        let answer = connection.exchange(&get("/users-dict", "")).await?.expect(200)?;
        let token = answer.header("dict-version").context("the dict has no version")?.to_owned();
        write(client, 900_000 + round).await?;
        let delta = connection.exchange(&get(&format!("/users-dict?since={token}"), "")).await?.expect(200)?;
        ensure!(delta.json()?["reset"] == false, "the delta is everything");
        deltas.push(delta.body.len() as f64);
    }
    let cpu = (median(with) - median(without)).max(0.0) / 1e3;
    bench.report.goal("P5", "CPU of one write with its gzip chunk", cpu, AtMost(2.0), "ms");
    bench.report.goal("P5", "delta of one write", median(deltas), AtMost(200.0), "bytes");
    Ok(())
}
