//! P9: memory, and how soon the service is ready.

use crate::Bench;
use crate::load::{Connection, get};
use crate::process::Process;
use crate::report::Wanted::AtMost;
use crate::report::{median, short};

const MEGABYTE: f64 = 1e6;

struct Start {
    ready_seconds: f64,
    megabytes: f64,
    /// After somebody read the whole dict.
    read_megabytes: f64,
}

pub async fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let many = bench.scaled(1_000_000, 50_000);
    let idle = bench.database(0).await?;
    let file = format!("sqlite:{}", bench.directory.path().join("memory.db").display());
    let small = bench.database(1000).await?;
    let large = bench.database(many).await?;
    let mut table = Vec::new();
    let mut starts = Vec::new();
    for (name, url) in [
        ("idle on SQLite".to_owned(), &file),
        ("idle on PostgreSQL".to_owned(), &idle.url),
        ("1,000 users".to_owned(), &small.url),
        (format!("{} users", short(many as f64)), &large.url),
    ] {
        let start = start(bench, &name, url).await?;
        bench.report.figure(&format!("memory.{name}.ready"), start.ready_seconds, "s");
        bench.report.figure(&format!("memory.{name}.rss"), start.megabytes, "MB");
        bench.report.figure(&format!("memory.{name}.rss_read"), start.read_megabytes, "MB");
        let values = [start.ready_seconds, start.megabytes, start.read_megabytes];
        table.push([vec![name], values.map(short).to_vec()].concat());
        starts.push(start);
    }
    let columns = ["service", "ready after s", "RSS MB", "RSS MB after the dict was read"];
    bench.report.table("memory", &columns, &table);
    let [sqlite, postgres, small, large] = starts.as_slice() else { return Ok(()) };
    let report = &mut bench.report;
    report.goal("P9", "RSS idle", sqlite.megabytes.max(postgres.megabytes), AtMost(20.0), "MB");
    report.goal("P9", &format!("RSS with {many} users"), large.read_megabytes, AtMost(300.0), "MB");
    report.goal("P9", "ready with 1,000 users", small.ready_seconds, AtMost(0.2), "s");
    report.goal("P9", &format!("ready with {many} users"), large.ready_seconds, AtMost(3.0), "s");
    Ok(())
}

async fn start(bench: &Bench, name: &str, url: &str) -> anyhow::Result<Start> {
    let mut starts = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=bench.scaled(3, 1) {
        bench.report.doing(format!("memory: {name}, start {round}"));
        let (service, ready) = Process::ready_service(bench.directory.path(), &[("DATABASE_URL", url)]).await?;
        starts.0.push(ready.as_secs_f64());
        starts.1.push(service.resident_bytes()? / MEGABYTE);
        let mut connection = Connection::open(service.address).await?;
        connection.exchange(&get("/users-dict", "")).await?.expect(200)?;
        starts.2.push(service.resident_bytes()? / MEGABYTE);
    }
    Ok(Start { ready_seconds: median(starts.0), megabytes: median(starts.1), read_megabytes: median(starts.2) })
}
