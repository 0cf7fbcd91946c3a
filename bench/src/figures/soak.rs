//! Strictness counted: readers on three instances check every answer against the last write that was
//! acknowledged before they asked, while others write through SQL and through the instances.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio::task::JoinSet;

use crate::Bench;
use crate::database::Database;
use crate::load::{Connection, get, send_json};
use crate::process::Process;
use crate::report::Wanted::AtMost;
use crate::report::short;

const INSTANCES: usize = 3;
/// Many, because those who wait together share a question to the database.
const READERS: usize = 384;
/// Each has a user of its own.
const WRITERS: usize = 4;
const PAUSE: Duration = Duration::from_millis(5);

struct Soak {
    /// The last acknowledged number of each writer's user.
    acknowledged: [AtomicU64; WRITERS],
    asked: AtomicU64,
    checked: AtomicU64,
    stale: AtomicU64,
    is_over: AtomicBool,
    reads: u64,
}

pub async fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let database = bench.database(1000).await?;
    let mut instances = Vec::new();
    for _ in 0..INSTANCES {
        instances.push(bench.service(&[("DATABASE_URL", &database.url)]).await?);
    }
    let soak = Arc::new(Soak {
        acknowledged: Default::default(),
        asked: AtomicU64::new(0),
        checked: AtomicU64::new(0),
        stale: AtomicU64::new(0),
        is_over: AtomicBool::new(false),
        reads: bench.scaled(bench.reads, 20_000.min(bench.reads)),
    });
    // A thousand reads a second are the least that any machine does.
    let limit = Duration::from_secs(60 + soak.reads / 1000);
    let begun_at = Instant::now();
    let written =
        tokio::time::timeout(limit, play(bench, &soak, &instances, &database)).await.context("too slow")??;
    let seconds = begun_at.elapsed().as_secs_f64();
    let (checked, stale) = (soak.checked.load(Ordering::Relaxed), soak.stale.load(Ordering::Relaxed));
    let count = |value: u64| short(value as f64);
    // The rule of three: 95 % confidence after so many without an event.
    let bound = 3.0 / checked as f64;
    bench.report.figure("soak.bound", bound * 1e9, "1e-9");
    bench.report.goal("soak", &format!("stale of {} strict reads", count(checked)), stale as f64, AtMost(0.0), "");
    let rows =
        [vec![count(checked), count(written), count(stale), format!("{bound:.1e}"), short(checked as f64 / seconds)]];
    bench.report.table(
        &format!("soak: {INSTANCES} instances, {WRITERS} writers, {READERS} readers"),
        &["checked reads", "acknowledged writes", "stale", "bound on the rate (3/n)", "reads/s"],
        &rows,
    );
    ensure!(stale == 0, "{stale} of {checked} reads were stale");
    Ok(())
}

/// How many writes were acknowledged.
async fn play(bench: &Bench, soak: &Arc<Soak>, instances: &[Process], database: &Database) -> anyhow::Result<u64> {
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let (soak, address) = (soak.clone(), instances[writer % INSTANCES].address);
        if writer % 2 == 0 {
            let client = database.connect().await?;
            writers.spawn(async move { soak.write_sql(writer, &client).await });
        } else {
            let connection = Connection::open(address).await?;
            writers.spawn(async move { soak.write_http(writer, connection).await });
        }
    }
    let mut readers = JoinSet::new();
    for reader in 0..READERS {
        let connection = Connection::open(instances[reader % INSTANCES].address).await?;
        let soak = soak.clone();
        readers.spawn(async move { soak.read(reader, connection).await });
    }
    loop {
        tokio::select! {
            read = readers.join_next() => match read {
                Some(read) => read??,
                None => break,
            },
            Some(written) = writers.join_next() => anyhow::bail!("a writer ended early: {:?}", written?),
            () = tokio::time::sleep(Duration::from_millis(200)) => {
                let checked = soak.checked.load(Ordering::Relaxed);
                bench.report.doing(format!("soak: {checked} of {} reads", soak.reads));
            }
        }
    }
    soak.is_over.store(true, Ordering::Relaxed);
    let mut written = 0;
    while let Some(ended) = writers.join_next().await {
        written += ended??;
    }
    Ok(written)
}

impl Soak {
    async fn write_sql(&self, writer: usize, client: &tokio_postgres::Client) -> anyhow::Result<u64> {
        let id = user_of(writer);
        let update = client.prepare(r#"UPDATE "user" SET name = $2 WHERE id = $1"#).await?;
        let mut number = 0;
        while !self.is_over.load(Ordering::Relaxed) {
            number += 1;
            ensure!(client.execute(&update, &[&id, &name_of(number)]).await? == 1, "nobody was changed");
            self.acknowledged[writer].store(number, Ordering::SeqCst);
            tokio::time::sleep(PAUSE).await;
        }
        Ok(number)
    }

    async fn write_http(&self, writer: usize, mut connection: Connection) -> anyhow::Result<u64> {
        let path = format!("/users/{}", user_of(writer));
        let mut number = 0;
        while !self.is_over.load(Ordering::Relaxed) {
            number += 1;
            let body = format!(r#"{{"name":"{}"}}"#, name_of(number));
            connection.exchange(&send_json("PUT", &path, &body)).await?.expect(200)?;
            self.acknowledged[writer].store(number, Ordering::SeqCst);
            tokio::time::sleep(PAUSE).await;
        }
        Ok(number)
    }

    async fn read(&self, reader: usize, mut connection: Connection) -> anyhow::Result<()> {
        let mut turn = reader;
        while self.asked.fetch_add(1, Ordering::Relaxed) < self.reads {
            turn += 1;
            let writer = turn % WRITERS;
            let request = get(&format!("/users/{}", user_of(writer)), "");
            let least = self.acknowledged[writer].load(Ordering::SeqCst);
            let user = connection.exchange(&request).await?.expect(200)?.json()?;
            let name = user["name"].as_str().context("a user without a name")?;
            // Before its first write it has the name it began with.
            let number: u64 = name.strip_prefix("Version ").map_or(Ok(0), str::parse)?;
            self.checked.fetch_add(1, Ordering::Relaxed);
            if number < least {
                self.stale.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

fn user_of(writer: usize) -> i64 {
    writer as i64 + 1
}

fn name_of(number: u64) -> String {
    format!("Version {number}")
}
