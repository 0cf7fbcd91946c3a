//! P8: a thousand sockets, a thousand alerts a second: a million deliveries; and the same with five thousand
//! sockets. Against a bare fan-out of prepared frames, in turn.

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

/// A million deliveries a second.
const THOUSAND: Load = Load { sockets: 1000, alerts_per_second: 1000, batch: 10 };
const FIVE_THOUSAND: Load = Load { sockets: 5000, alerts_per_second: 200, batch: 2 };
/// After the last alert was answered.
const GRACE: Duration = Duration::from_secs(10);

/// Who listens, and how many alerts a second are posted in which pieces.
#[derive(Clone, Copy)]
pub struct Load {
    pub sockets: usize,
    pub alerts_per_second: usize,
    /// Posted together, so that posting is no load of its own.
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
    let (seconds, rounds) = (bench.scaled(4, 1), bench.scaled(3, 1));
    let (ours, bare) = compare(bench, THOUSAND, seconds, rounds).await?;
    let report = &mut bench.report;
    // No more than a million is offered; what is missing is the time the last one takes.
    report.goal("P8", "deliveries/s, 1M offered", over(&ours, |round| round.per_second), AtLeast(980_000.0), "");
    report.goal("P8", "deliveries lost", ours.iter().map(|round| round.lost).sum(), AtMost(0.0), "");
    let ratio = over(&ours, |round| round.p99_ms) / over(&bare, |round| round.p99_ms);
    report.goal("P8", "p99 ÷ bare fan-out", ratio, AtMost(1.5), "×");
    let (many, _) = compare(bench, FIVE_THOUSAND, seconds, 1).await?;
    let report = &mut bench.report;
    report.goal("P8", "5,000 sockets: deliveries lost", many.iter().map(|round| round.lost).sum(), AtMost(0.0), "");
    report.goal("P8", "5,000 sockets: memory", many[0].kilobytes_per_socket, AtMost(40.0), "kB each");
    ensure!(ours.iter().chain(&many).all(|round| round.lost == 0.0), "alerts did not reach everybody");
    Ok(())
}

/// Ours and the bare one in turn.
async fn compare(
    bench: &mut Bench,
    load: Load,
    seconds: usize,
    rounds: usize,
) -> anyhow::Result<(Vec<Fanout>, Vec<Fanout>)> {
    let database = bench.database(1000).await?;
    let bare = Process::server(bench.directory.path(), &[OsStr::new("fanout")]).await?;
    let mut played = (Vec::new(), Vec::new());
    let mut first = 0;
    let count = seconds * load.alerts_per_second;
    for round in 1..=rounds {
        bench.report.doing(format!("fanout: {} sockets, ours, round {round}", load.sockets));
        // A new one each time: memory that once was used stays with a process.
        let ours = bench.service(&[("DATABASE_URL", &database.url)]).await?;
        played.0.push(play(&ours, load, first, count).await?);
        drop(ours);
        bench.report.doing(format!("fanout: {} sockets, bare, round {round}", load.sockets));
        played.1.push(play(&bare, load, first, count).await?);
        first += count;
    }
    let mut table = Vec::new();
    for (name, rounds) in [("ours", &played.0), ("bare fan-out", &played.1)] {
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
            bench.report.figure(&format!("fanout.{}.{name}.{what}", load.sockets), value, unit);
        }
        table.push([vec![name.to_owned()], values.map(|(_, value, _)| short(value)).to_vec()].concat());
    }
    let columns = ["who", "deliveries/s", "lost", "p50 ms", "p99 ms", "CPU µs/delivery", "kB per connection"];
    let title = format!("fanout: {} sockets, {} alerts/s", load.sockets, load.alerts_per_second);
    bench.report.table(&title, &columns, &table);
    Ok(played)
}

fn over(rounds: &[Fanout], value: fn(&Fanout) -> f64) -> f64 {
    median(rounds.iter().map(value))
}

pub async fn play(process: &Process, load: Load, first: usize, count: usize) -> anyhow::Result<Fanout> {
    let before = process.resident_bytes()?;
    let begun_at = Instant::now();
    let (ready, is_ready) = oneshot::channel();
    let (address, last) = (process.address, first + count - 1);
    let listening = tokio::task::spawn_blocking(move || listen(address, load, first..=last, begun_at, ready));
    is_ready.await.context("the sockets do not open")?;
    let (connected, cpu) = (process.resident_bytes()?, process.cpu_micros()?);
    let (answered, first_at) = publish(address, load, first, count, begun_at).await?;
    let sockets = listening.await??;
    let cpu = process.cpu_micros()? - cpu;

    let (mut received, mut latest) = (0, 0);
    let mut delays = Vec::with_capacity(load.sockets * count);
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
        lost: (load.sockets * count - received) as f64,
        p50_ms: f64::from(percentile(&delays, 0.5)) / 1e3,
        p99_ms: f64::from(percentile(&delays, 0.99)) / 1e3,
        cpu_micros: cpu / received as f64,
        kilobytes_per_socket: (connected - before) / 1e3 / load.sockets as f64,
    })
}

/// On a thread of its own. A socket is done when it has the last alert; those that do not get it in time
/// return what they have.
fn listen(
    address: SocketAddr,
    load: Load,
    numbers: std::ops::RangeInclusive<usize>,
    begun_at: Instant,
    ready: oneshot::Sender<()>,
) -> anyhow::Result<Vec<Arrivals>> {
    let (first, last) = numbers.into_inner();
    let limit = Duration::from_secs(((last - first) / load.alerts_per_second) as u64 * 2) + GRACE;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut listeners = Vec::new();
        for _ in 0..load.sockets {
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
    load: Load,
    first: usize,
    count: usize,
    begun_at: Instant,
) -> anyhow::Result<(Vec<u32>, f64)> {
    let mut connection = Connection::open(address).await?;
    let mut ticks = tokio::time::interval(Duration::from_secs(1) * load.batch as u32 / load.alerts_per_second as u32);
    let sent_at = begun_at.elapsed().as_secs_f64();
    let mut answered = Vec::with_capacity(count);
    for begin in (first..first + count).step_by(load.batch) {
        ticks.tick().await;
        let alerts: Vec<String> = (begin..begin + load.batch).map(alert).collect();
        let body = format!("[{}]", alerts.join(","));
        connection.exchange(&send_json("POST", "/alerts", &body)).await?.expect(200)?;
        answered.extend(std::iter::repeat_n(begun_at.elapsed().as_micros() as u32, load.batch));
    }
    Ok((answered, sent_at))
}
