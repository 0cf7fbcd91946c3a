//! P10: what strict reads cost. Readers who wait at the same time share one question to the database, so
//! the questions do not grow with the readers.

use anyhow::{Context, ensure};

use crate::Bench;
use crate::load::{Connection, Requests, get};
use crate::measure::{COLUMNS, Contestant, Match, limit_of, of, rows};
use crate::process::Process;
use crate::report::Wanted::{AtLeast, AtMost};
use crate::report::short;

const READERS: [usize; 4] = [1, 16, 256, 1000];
/// As flat as a noisy machine shows it.
const FLAT: f64 = 1.1;

pub async fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let database = bench.database(1000).await?;
    let ours = bench.service(&[("DATABASE_URL", &database.url)]).await?;
    let request = get("/users/500", "");
    let (limit, body) = limit_of(bench.directory.path(), "strictness", &ours, &request).await?;
    ensure!(serde_json::from_slice::<serde_json::Value>(&body)?["name"] == "Person 000500", "the answer is wrong");
    let contestants = [("ours", &ours), ("limit", &limit)].map(|(name, process)| Contestant {
        name,
        process,
        requests: Requests::Same(request.clone().into()),
    });
    let (mut table, mut queries, mut query_rates) = (Vec::new(), Vec::new(), Vec::new());
    for readers in READERS {
        let figure = format!("strictness.{readers}");
        let game = Match {
            figure: &figure,
            connections: readers,
            rounds: bench.rounds(),
            duration: bench.round_duration(),
            expected: 200,
        };
        let before = counts(&ours).await?;
        let results = game.play(&mut bench.report, &contestants).await?;
        let after = counts(&ours).await?;
        let reads_per_query = (after.0 - before.0) / (after.1 - before.1);
        let (own, bare) = (of(&results, "ours")?, of(&results, "limit")?);
        let queries_per_second = own.per_second / reads_per_query;
        bench.report.figure(&format!("{figure}.queries"), queries_per_second, "1/s");
        bench.report.figure(&format!("{figure}.reads_per_query"), reads_per_query, "");
        if readers <= 16 {
            let what = format!("{readers} readers: mean above the limit's");
            bench.report.goal("P10", &what, own.mean_ms - bare.mean_ms, AtMost(0.3), "ms");
        }
        if readers == 256 {
            bench.report.goal("P10", "256 readers: reads per query", reads_per_query, AtLeast(100.0), "");
        }
        table.extend(rows(&format!("{readers} readers"), &results));
        queries.push(vec![readers.to_string(), short(queries_per_second), short(reads_per_query)]);
        query_rates.push(queries_per_second);
    }
    let [_, sixteen, _, thousand] = query_rates.as_slice() else { return Ok(()) };
    bench.report.goal("P10", "queries/s with 1,000 readers ÷ with 16", thousand / sixteen, AtMost(FLAT), "×");
    bench.report.table("strictness: GET /users/{id}", COLUMNS, &table);
    bench.report.table("strictness: the database", &["readers", "queries/s", "reads per query"], &queries);
    Ok(())
}

/// Validated reads and the queries that validated them, as the service counts them.
async fn counts(service: &Process) -> anyhow::Result<(f64, f64)> {
    let mut connection = Connection::open(service.address).await?;
    let answer = connection.exchange(&get("/metrics", "")).await?.expect(200)?;
    let text = std::str::from_utf8(answer.body)?;
    let sum = |family: &str| {
        let of_family = text.lines().filter(|line| line.starts_with(family));
        of_family.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum::<f64>()
    };
    let (reads, queries) = (sum("directory_reads_total{"), sum("directory_validations_total{"));
    (queries > 0.0).then_some((reads, queries)).context("the service counts no validations")
}
