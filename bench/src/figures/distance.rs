//! P6: a hundred readers at once, the database 50 ms away and Redis 5 ms.

use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::Bench;
use crate::load::{Connection, burst, get, open};
use crate::measure::limit_of;
use crate::proxy::Proxy;
use crate::report::Wanted::AtMost;
use crate::report::{median, short};

const READERS: usize = 100;
const TO_DATABASE: Duration = Duration::from_millis(25);
const TO_REDIS: Duration = Duration::from_micros(2_500);
/// What we may need beyond the line and the limit.
const ALLOWANCE_MS: f64 = 3.0;

pub async fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let database = bench.database(1000).await?;
    let line = Proxy::in_front_of(&database.url, TO_DATABASE).await?;
    let redis = Proxy::in_front_of(&bench.redis(4094)?, TO_REDIS).await?;
    // What passes a proxy of its own is not counted with the service's statements.
    let probe = Proxy::in_front_of(&database.url, TO_DATABASE).await?;
    let ours = bench.service(&[("DATABASE_URL", &line.url), ("REDIS_URL", &redis.url)]).await?;
    let request = get("/users-dict", "");
    let (limit, _) = limit_of(bench.directory.path(), "distance", &ours, &request).await?;
    let mut readers = (open(ours.address, READERS).await?, open(limit.address, READERS).await?);
    let client = crate::database::connect(&probe.url).await?;
    let writer = database.connect().await?;

    let mut times: [Vec<f64>; 4] = Default::default();
    let mut statements = (Vec::new(), Vec::new());
    for round in 0..bench.scaled(15, 3) {
        bench.report.doing("distance: a hundred readers at once");
        let begun_at = Instant::now();
        client.simple_query("SELECT 1").await?;
        times[0].push(begun_at.elapsed().as_secs_f64() * 1e3);
        times[1].push(burst(&mut readers.1, &request).await?.as_secs_f64() * 1e3);
        let before = line.statements();
        times[2].push(burst(&mut readers.0, &request).await?.as_secs_f64() * 1e3);
        statements.0.push((line.statements() - before) as f64);
        // And after somebody wrote: everybody has to see it.
        let name = format!("Somebody {round}");
        writer.execute(r#"UPDATE "user" SET name = $1 WHERE global_id = 500"#, &[&name]).await?;
        let before = line.statements();
        times[3].push(burst(&mut readers.0, &request).await?.as_secs_f64() * 1e3);
        statements.1.push((line.statements() - before) as f64);
        let mut connection = Connection::open(ours.address).await?;
        let dict = connection.exchange(&request).await?.expect(200)?.json()?;
        ensure!(dict["500"] == serde_json::json!(name), "a read does not see a write before it");
    }
    let [line_ms, limit_ms, quiet_ms, written_ms] = times.map(median);
    let allowed = line_ms + limit_ms + ALLOWANCE_MS;
    let report = &mut bench.report;
    report.goal("P6", "100 readers at once, database 50 ms away", quiet_ms, AtMost(allowed), "ms");
    report.goal("P6", "statements of that", median(statements.0), AtMost(3.0), "");
    report.goal("P6", "the same, right after a write", written_ms, AtMost(allowed), "ms");
    report.goal("P6", "statements of that, after a write", median(statements.1), AtMost(3.0), "");
    let rows = [
        ("bare round trip", line_ms),
        ("limit, 100 at once, no database", limit_ms),
        ("ours, 100 at once", quiet_ms),
        ("ours, 100 at once, after a write", written_ms),
    ];
    for (name, value) in rows {
        report.figure(&format!("distance.{name}"), value, "ms");
    }
    let rows = rows.map(|(name, value)| vec![name.to_owned(), short(value)]);
    report.table("distance: the users dict, database 50 ms away, Redis 5 ms", &["what", "ms"], &rows);
    Ok(())
}
