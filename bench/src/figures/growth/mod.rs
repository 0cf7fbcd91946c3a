//! What happens as the work grows: users, instances, alerts and their log, sockets. No goals, but the
//! shape of each curve; what follows from it for an operator stands in `docs/operations.md`.

mod alerts;
mod instances;
mod sockets;
mod users;

use crate::Bench;
use crate::load::{self, Connection, Load, Measured, Requests, get};
use crate::process::Process;
use crate::report::short;

/// The parts, each a figure of its own; `growth` is all of them.
pub const NAMES: &[&str] = &["growth-users", "growth-instances", "growth-alerts", "growth-sockets"];

pub async fn run(bench: &mut Bench, name: &str) -> anyhow::Result<()> {
    match name {
        "growth-users" => users::run(bench).await,
        "growth-instances" => instances::run(bench).await,
        "growth-alerts" => alerts::run(bench).await,
        "growth-sockets" => sockets::run(bench).await,
        _ => anyhow::bail!("there is no part {name} of growth"),
    }
}

/// One load on one service, with the CPU that the service took for a request.
async fn measure(
    bench: &Bench,
    process: &Process,
    connections: usize,
    requests: &Requests,
    expected: u16,
) -> anyhow::Result<(Measured, f64)> {
    let before = process.cpu_micros()?;
    let duration = bench.round_duration();
    let load = Load { address: process.address, connections, duration, requests: requests.clone(), expected };
    let measured = load::run(load).await?;
    let cpu = (process.cpu_micros()? - before) / measured.requests().max(1.0);
    Ok((measured, cpu))
}

/// p50, p99 and CPU, as they stand in a table.
fn cells(measured: &Measured, cpu: f64) -> Vec<String> {
    [measured.p50_ms(), measured.p99_ms(), cpu].map(short).to_vec()
}

/// The sum of a family of the service's metrics.
async fn metric(process: &Process, family: &str) -> anyhow::Result<f64> {
    let mut connection = Connection::open(process.address).await?;
    let answer = connection.exchange(&get("/metrics", "")).await?.expect(200)?;
    let text = std::str::from_utf8(answer.body)?;
    let of_family =
        text.lines().filter(|line| line.strip_prefix(family).is_some_and(|rest| rest.starts_with(['{', ' '])));
    Ok(of_family.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum())
}
