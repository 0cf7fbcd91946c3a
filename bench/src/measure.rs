//! Contestants that answer the same question, measured in turn so that a noisy moment hits all of them.

use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::load::{self, Connection, Load, Measured, Requests};
use crate::process::Process;
use crate::report::{Report, median, ratio, short};

/// Before the first round: connections, caches, branch predictors.
const WARM_UP: Duration = Duration::from_millis(200);

pub struct Contestant<'a> {
    pub name: &'static str,
    pub process: &'a Process,
    pub requests: Requests,
}

/// Medians over the rounds.
pub struct Result {
    pub name: &'static str,
    pub per_second: f64,
    pub mean_ms: f64,
    pub p99_ms: f64,
    /// Of the server, per request.
    pub cpu_micros: f64,
}

pub struct Match<'a> {
    pub figure: &'a str,
    pub connections: usize,
    pub rounds: usize,
    pub duration: Duration,
    pub expected: u16,
}

impl Match<'_> {
    pub async fn play(&self, report: &mut Report, contestants: &[Contestant<'_>]) -> anyhow::Result<Vec<Result>> {
        for contestant in contestants {
            self.round(contestant, WARM_UP).await?;
        }
        let mut rounds: Vec<Vec<(Measured, f64)>> = contestants.iter().map(|_| Vec::new()).collect();
        for round in 1..=self.rounds {
            for (contestant, rounds) in contestants.iter().zip(&mut rounds) {
                report.doing(format!("{}: {}, round {round} of {}", self.figure, contestant.name, self.rounds));
                rounds.push(self.round(contestant, self.duration).await?);
            }
        }
        let results: Vec<Result> = contestants.iter().zip(&rounds).map(|(one, rounds)| one.result(rounds)).collect();
        for result in &results {
            let name = |what: &str| format!("{}.{}.{what}", self.figure, result.name);
            report.figure(&name("rate"), result.per_second, "1/s");
            report.figure(&name("mean"), result.mean_ms, "ms");
            report.figure(&name("p99"), result.p99_ms, "ms");
            report.figure(&name("cpu"), result.cpu_micros, "us/request");
        }
        Ok(results)
    }

    async fn round(&self, contestant: &Contestant<'_>, duration: Duration) -> anyhow::Result<(Measured, f64)> {
        let before = contestant.process.cpu_micros()?;
        let load = Load {
            address: contestant.process.address,
            connections: self.connections,
            duration,
            requests: contestant.requests.clone(),
            expected: self.expected,
        };
        let measured = load::run(load).await.with_context(|| format!("{}: {}", self.figure, contestant.name))?;
        let cpu = (contestant.process.cpu_micros()? - before) / measured.requests().max(1.0);
        Ok((measured, cpu))
    }
}

impl Contestant<'_> {
    fn result(&self, rounds: &[(Measured, f64)]) -> Result {
        let over = |value: fn(&Measured) -> f64| median(rounds.iter().map(|(measured, _)| value(measured)));
        Result {
            name: self.name,
            per_second: over(Measured::per_second),
            mean_ms: over(Measured::mean_ms),
            p99_ms: over(Measured::p99_ms),
            cpu_micros: median(rounds.iter().map(|(_, cpu)| *cpu)),
        }
    }
}

pub fn of<'a>(results: &'a [Result], name: &str) -> anyhow::Result<&'a Result> {
    results.iter().find(|result| result.name == name).with_context(|| format!("{name} was not measured"))
}

pub const COLUMNS: &[&str] = &["", "who", "requests/s", "× limit", "mean ms", "p99 ms", "CPU µs/request"];

/// Rows for a table with `COLUMNS`; the ratio is to the contestant `limit`.
pub fn rows(title: &str, results: &[Result]) -> Vec<Vec<String>> {
    let limit = results.iter().find(|result| result.name == "limit").map(|limit| limit.per_second);
    let row = |result: &Result| {
        vec![
            title.to_owned(),
            result.name.to_owned(),
            short(result.per_second),
            limit.map_or(String::new(), |limit| ratio(result.per_second / limit)),
            short(result.mean_ms),
            short(result.p99_ms),
            short(result.cpu_micros),
        ]
    };
    results.iter().map(row).collect()
}

/// The limit for what `service` answers to a request, and that answer's body.
pub async fn limit_of(
    directory: &Path,
    name: &str,
    service: &Process,
    request: &[u8],
) -> anyhow::Result<(Process, Vec<u8>)> {
    let file = directory.join(format!("{name}.http"));
    let mut connection = Connection::open(service.address).await?;
    let answer = connection.exchange(request).await?;
    let body = answer.body.to_vec();
    tokio::fs::write(&file, [answer.head, answer.body].concat()).await?;
    let limit = Process::server(directory, &[OsStr::new("limit"), file.as_os_str()]).await?;
    let mut other = Connection::open(limit.address).await?;
    if other.exchange(request).await?.body != body {
        bail!("{name}: the limit answers other bytes");
    }
    Ok((limit, body))
}
