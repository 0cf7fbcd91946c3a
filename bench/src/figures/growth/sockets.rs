//! More sockets at the same number of deliveries a second: memory, delay, CPU.

use super::super::fanout::{Fanout, Load, play};
use crate::Bench;
use crate::report::short;

const SOCKETS: [usize; 4] = [10, 100, 1_000, 5_000];
const DELIVERIES_PER_SECOND: usize = 100_000;
const SECONDS: usize = 4;

pub async fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let quick = bench.quick;
    let database = bench.database(1000).await?;
    let (mut table, mut first) = (Vec::new(), 0);
    for sockets in SOCKETS.into_iter().filter(|sockets| !quick || *sockets <= 1_000) {
        bench.report.doing(format!("growth: {sockets} sockets"));
        let per_second = DELIVERIES_PER_SECOND / sockets;
        let load = Load { sockets, alerts_per_second: per_second, batch: (per_second / 100).max(1) };
        let ours = bench.service(&[("DATABASE_URL", &database.url)]).await?;
        let count = bench.scaled(SECONDS, 1) * per_second;
        let Fanout { lost, p50_ms, p99_ms, cpu_micros, kilobytes_per_socket, .. } =
            play(&ours, load, first, count).await?;
        first += count;
        bench.report.figure(&format!("growth.sockets.{sockets}.p99"), p99_ms, "ms");
        bench.report.figure(&format!("growth.sockets.{sockets}.memory"), kilobytes_per_socket, "kB/connection");
        let values = [sockets as f64, per_second as f64, lost, p50_ms, p99_ms, cpu_micros, kilobytes_per_socket];
        table.push(values.map(short).to_vec());
    }
    let columns = ["sockets", "alerts/s", "lost", "p50 ms", "p99 ms", "CPU µs/delivery", "kB per connection"];
    let title = format!("growth: sockets, {} deliveries/s", short(DELIVERIES_PER_SECOND as f64));
    bench.report.table(&title, &columns, &table);
    Ok(())
}
