//! P8: a thousand sockets, a thousand alerts a second: a million deliveries. Against a bare fan-out of
//! prepared frames, in turn.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::future::join_all;
use tokio::sync::oneshot;

use super::listener::{Listener, alert};
use crate::Bench;
use crate::load::{Connection, percentile, send_json};
use crate::process::Process;
use crate::report::Wanted::{AtLeast, AtMost};
use crate::report::{median, short};

const SOCKETS: usize = 1000;
const ALERTS_PER_SECOND: usize = 1000;
/// Posted together, so that posting is no load of its own.
const BATCH: usize = 10;
/// After the last alert was answered.
const GRACE: Duration = Duration::from_secs(10);

/// Who listens, and how many alerts a second are posted in which pieces.
pub struct Shape {
    pub sockets: usize,
    pub per_second: usize,
    pub batch: usize,
}

/// Of one round.
pub struct Fanout {
    pub per_second: f64,
    pub lost: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub cpu_micros: f64,
    pub kilobytes_per_socket: f64,
}

/// When a socket read which alert, in µs since the round's begin.
type Arrivals = Vec<(u32, u32)>;

pub async fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let database = bench.database(1000).await?;
    let bare = Process::server(bench.directory.path(), &[OsStr::new("fanout")]).await?;
    let mut rounds = (Vec::new(), Vec::new());
    let mut first = 0;
    let count = bench.scaled(4, 1) * ALERTS_PER_SECOND;
    let shape = Shape { sockets: SOCKETS, per_second: ALERTS_PER_SECOND, batch: BATCH };
    for round in 1..=bench.scaled(3, 1) {
        bench.report.doing(format!("fanout: ours, round {round}"));
        // A new one each time: memory that once was used stays with a process.
        let ours = bench.service(&[("DATABASE_URL", &database.url)]).await?;
        rounds.0.push(play(&ours, &shape, first, count).await?);
        drop(ours);
        bench.report.doing(format!("fanout: bare, round {round}"));
        rounds.1.push(play(&bare, &shape, first, count).await?);
        first += count;
    }
    let over = |rounds: &[Fanout], value: fn(&Fanout) -> f64| median(rounds.iter().map(value));
    let mut table = Vec::new();
    for (name, rounds) in [("ours", &rounds.0), ("bare fan-out", &rounds.1)] {
        let lost: f64 = rounds.iter().map(|round| round.lost).sum();
        let values = [
            ("deliveries", over(rounds, |round| round.per_second), "1/s"),
            ("lost", lost, ""),
            ("p50", over(rounds, |round| round.p50_ms), "ms"),
            ("p99", over(rounds, |round| round.p99_ms), "ms"),
            ("cpu", over(rounds, |round| round.cpu_micros), "us/delivery"),
            ("memory", rounds[0].kilobytes_per_socket, "kB/connection"),
        ];
        for (what, value, unit) in values {
            bench.report.figure(&format!("fanout.{name}.{what}"), value, unit);
        }
        table.push([vec![name.to_owned()], values.map(|(_, value, _)| short(value)).to_vec()].concat());
    }
    let columns = ["who", "deliveries/s", "lost", "p50 ms", "p99 ms", "CPU µs/delivery", "kB per connection"];
    bench.report.table(&format!("fanout: {SOCKETS} sockets, {ALERTS_PER_SECOND} alerts/s"), &columns, &table);
    let (ours, bare) = &rounds;
    let report = &mut bench.report;
    // No more than a million is offered; what is missing is the time the last one takes.
    report.goal("P8", "deliveries/s, 1M offered", over(ours, |round| round.per_second), AtLeast(980_000.0), "");
    report.goal("P8", "deliveries lost", ours.iter().map(|round| round.lost).sum(), AtMost(0.0), "");
    let ratio = over(ours, |round| round.p99_ms) / over(bare, |round| round.p99_ms);
    report.goal("P8", "p99 ÷ bare fan-out", ratio, AtMost(1.5), "×");
    ensure!(ours.iter().all(|round| round.lost == 0.0), "alerts did not reach everybody");
    Ok(())
}

pub async fn play(process: &Process, shape: &Shape, first: usize, count: usize) -> anyhow::Result<Fanout> {
    let Shape { sockets: wanted, per_second, batch } = *shape;
    let before = process.resident_bytes()?;
    let begun_at = Instant::now();
    let (ready, is_ready) = oneshot::channel();
    let (address, last) = (process.address, first + count - 1);
    let limit = Duration::from_secs((count / per_second) as u64 * 2) + GRACE;
    let listening = tokio::task::spawn_blocking(move || listen(address, wanted, first..=last, limit, begun_at, ready));
    is_ready.await.context("the sockets do not open")?;
    let (connected, cpu) = (process.resident_bytes()?, process.cpu_micros()?);
    let (answered, first_at) = publish(address, first, count, (per_second, batch), begun_at).await?;
    let sockets = listening.await??;
    let cpu = process.cpu_micros()? - cpu;

    let (mut received, mut latest) = (0, 0);
    let mut delays = Vec::with_capacity(wanted * count);
    for arrivals in &sockets {
        let in_order = arrivals.windows(2).all(|pair| pair[0].0 < pair[1].0);
        ensure!(in_order, "a socket got alerts twice or out of order");
        received += arrivals.len();
        for (number, micros) in arrivals {
            latest = latest.max(*micros);
            delays.push(micros.saturating_sub(answered[*number as usize - first]));
        }
    }
    delays.sort_unstable();
    Ok(Fanout {
        per_second: received as f64 / (f64::from(latest) / 1e6 - first_at),
        lost: (wanted * count - received) as f64,
        p50_ms: f64::from(percentile(&delays, 0.5)) / 1e3,
        p99_ms: f64::from(percentile(&delays, 0.99)) / 1e3,
        cpu_micros: cpu / received as f64,
        kilobytes_per_socket: (connected - before) / 1e3 / wanted as f64,
    })
}

/// On a thread of its own. A socket is done when it has the last alert; those that do not get it in time
/// return what they have.
fn listen(
    address: SocketAddr,
    sockets: usize,
    numbers: std::ops::RangeInclusive<usize>,
    limit: Duration,
    begun_at: Instant,
    ready: oneshot::Sender<()>,
) -> anyhow::Result<Vec<Arrivals>> {
    let (first, last) = numbers.into_inner();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut listeners = Vec::new();
        for _ in 0..sockets {
            listeners.push(Listener::connect(address, "").await?);
        }
        // Whoever waited for it may be gone.
        ready.send(()).ok();
        let listening = listeners.into_iter().map(|mut listener| async move {
            let mut arrivals = Arrivals::with_capacity(last - first + 1);
            let reading = async {
                loop {
                    let mut is_last = false;
                    let read = listener.read(|number| {
                        // The log shows a new socket what was before.
                        if number >= first {
                            arrivals.push((number as u32, begun_at.elapsed().as_micros() as u32));
                        }
                        is_last |= number == last;
                    });
                    if read.await.is_err() || is_last {
                        return;
                    }
                }
            };
            // What is missing is counted as lost.
            drop(tokio::time::timeout(limit, reading).await);
            arrivals
        });
        Ok(join_all(listening).await)
    })
}

/// When each alert was answered, in µs since the begin, and when the first was sent, in seconds.
async fn publish(
    address: SocketAddr,
    first: usize,
    count: usize,
    (per_second, batch): (usize, usize),
    begun_at: Instant,
) -> anyhow::Result<(Vec<u32>, f64)> {
    let mut connection = Connection::open(address).await?;
    let mut ticks = tokio::time::interval(Duration::from_secs(1) * batch as u32 / per_second as u32);
    let sent_at = begun_at.elapsed().as_secs_f64();
    let mut answered = Vec::with_capacity(count);
    for begin in (first..first + count).step_by(batch) {
        ticks.tick().await;
        let alerts: Vec<String> = (begin..begin + batch).map(alert).collect();
        let body = format!("[{}]", alerts.join(","));
        connection.exchange(&send_json("POST", "/alerts", &body)).await?.expect(200)?;
        answered.extend(std::iter::repeat_n(begun_at.elapsed().as_micros() as u32, batch));
    }
    Ok((answered, sent_at))
}
