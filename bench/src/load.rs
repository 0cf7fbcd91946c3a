//! The load generator: keep-alive connections that send prepared bytes and read whole answers. It shares
//! the machine with what it measures, so it does no more than it must. Knows nothing of what it asks.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures_util::future::try_join_all;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Barrier, oneshot};

/// What an answer may take before the run is given up.
const PATIENCE: Duration = Duration::from_secs(30);
const READ_BYTES: usize = 64 * 1024;

/// One HTTP/1.1 connection; one request at a time.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

pub struct Answer<'a> {
    pub status: u16,
    pub head: &'a [u8],
    pub body: &'a [u8],
}

impl Connection {
    pub async fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![0; READ_BYTES] })
    }

    pub async fn exchange(&mut self, request: &[u8]) -> anyhow::Result<Answer<'_>> {
        self.stream.write_all(request).await?;
        let mut filled = 0;
        let (head, whole) = loop {
            filled += self.read(filled).await?;
            if let Some(head) = find(&self.buffer[..filled], b"\r\n\r\n") {
                let head = head + 4;
                break (head, head + body_bytes(&self.buffer[..head])?);
            }
        };
        if self.buffer.len() < whole {
            self.buffer.resize(whole, 0);
        }
        while filled < whole {
            filled += self.read(filled).await?;
        }
        let (head, rest) = self.buffer.split_at(head);
        Ok(Answer { status: status_of(head)?, head, body: &rest[..whole - head.len()] })
    }

    async fn read(&mut self, filled: usize) -> anyhow::Result<usize> {
        if self.buffer.len() == filled {
            self.buffer.resize(filled * 2, 0);
        }
        match self.stream.read(&mut self.buffer[filled..]).await? {
            0 => bail!("the server closed the connection"),
            count => Ok(count),
        }
    }
}

impl Answer<'_> {
    pub fn header(&self, name: &str) -> Option<&str> {
        header(self.head, name)
    }

    pub fn json(&self) -> anyhow::Result<serde_json::Value> {
        serde_json::from_slice(self.body)
            .with_context(|| format!("{}: {}", self.status, String::from_utf8_lossy(self.body)))
    }

    pub fn expect(self, status: u16) -> anyhow::Result<Self> {
        if self.status == status {
            return Ok(self);
        }
        bail!("{} where {status} was expected: {}", self.status, String::from_utf8_lossy(self.body))
    }
}

fn status_of(head: &[u8]) -> anyhow::Result<u16> {
    let digits = head.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok());
    digits.and_then(|digits| digits.parse().ok()).context("no HTTP answer")
}

fn body_bytes(head: &[u8]) -> anyhow::Result<usize> {
    match header(head, "content-length") {
        _ if status_of(head)? == 304 => Ok(0),
        Some(length) => Ok(length.parse()?),
        None if header(head, "transfer-encoding").is_some() => bail!("a chunked answer is not read here"),
        None => Ok(0),
    }
}

fn header<'a>(head: &'a [u8], name: &str) -> Option<&'a str> {
    head.split(|byte| *byte == b'\n').find_map(|line| {
        let (found, value) = line.split_at_checked(name.len())?;
        let value = value.strip_prefix(b":").filter(|_| found.eq_ignore_ascii_case(name.as_bytes()))?;
        std::str::from_utf8(value).ok().map(str::trim)
    })
}

pub fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

/// The bytes of a GET; `headers` complete lines.
pub fn get(path: &str, headers: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: bench\r\n{headers}\r\n").into_bytes()
}

/// The bytes of a request with a JSON body.
pub fn send_json(method: &str, path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("{method} {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")
        .into_bytes()
}

/// Makes the nth request of a run.
pub type Make = Arc<dyn Fn(u64) -> Vec<u8> + Send + Sync>;

#[derive(Clone)]
pub enum Requests {
    Same(Arc<[u8]>),
    Numbered(Make),
}

#[derive(Clone)]
pub struct Load {
    pub address: SocketAddr,
    pub connections: usize,
    pub duration: Duration,
    pub requests: Requests,
    pub expected: u16,
}

pub struct Measured {
    pub seconds: f64,
    /// Nanoseconds, sorted.
    latencies: Vec<u32>,
}

impl Measured {
    pub fn requests(&self) -> f64 {
        self.latencies.len() as f64
    }

    pub fn per_second(&self) -> f64 {
        self.requests() / self.seconds
    }

    pub fn mean_ms(&self) -> f64 {
        self.latencies.iter().map(|nanos| f64::from(*nanos)).sum::<f64>() / self.requests().max(1.0) / 1e6
    }

    pub fn p50_ms(&self) -> f64 {
        f64::from(percentile(&self.latencies, 0.5)) / 1e6
    }

    pub fn p99_ms(&self) -> f64 {
        f64::from(percentile(&self.latencies, 0.99)) / 1e6
    }
}

/// Of sorted values.
pub fn percentile<T: Copy + Default>(sorted: &[T], part: f64) -> T {
    let index = (sorted.len() as f64 * part) as usize;
    sorted.get(index.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

/// The cores that the threads which ask keep to, one each; the servers run where they are put. Left to
/// itself Linux often puts a thread that asks beside the server that answers it, one waking the other for
/// every request, while the database alone keeps the other core just busy enough that neither is moved there.
fn cores() -> anyhow::Result<Vec<usize>> {
    let ours = sched_getaffinity(None)?;
    let all: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|core| ours.is_set(*core)).collect();
    let count = (all.len() / 2).clamp(1, 4);
    Ok(all[all.len() - count..].to_vec())
}

/// Runs a load on threads of its own, so that no other task of this process delays it.
pub async fn run(load: Load) -> anyhow::Result<Measured> {
    let mut cores = cores()?;
    cores.truncate(load.connections);
    let threads = cores.len();
    let counter = Arc::new(AtomicU64::new(0));
    // Connecting is no part of what is measured.
    let begin = Arc::new(Barrier::new(load.connections));
    let parts = cores.into_iter().enumerate().map(|(thread, core)| {
        let share = load.connections / threads + usize::from(thread < load.connections % threads);
        let (load, counter, begin) = (load.clone(), counter.clone(), begin.clone());
        let (tell, told) = oneshot::channel();
        let asking = move || {
            let mut only = CpuSet::new();
            only.set(core);
            sched_setaffinity(None, &only)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let asking = try_join_all((0..share).map(|_| ask(&load, &counter, &begin)));
                tokio::time::timeout(load.duration + PATIENCE, asking).await.context("the server does not answer")?
            })
        };
        // A thread that keeps to a core is of no use to others. Nobody hears it when the run was given up.
        std::thread::spawn(move || drop(tell.send(asking())));
        async { told.await.context("a thread that asks panicked")? }
    });
    let mut latencies = Vec::new();
    let mut seconds = 0_f64;
    for part in try_join_all(parts).await? {
        for (duration, part) in part {
            seconds = seconds.max(duration.as_secs_f64());
            latencies.extend(part);
        }
    }
    latencies.sort_unstable();
    Ok(Measured { seconds, latencies })
}

/// One connection's part: how long it took and every latency.
async fn ask(load: &Load, counter: &AtomicU64, begin: &Barrier) -> anyhow::Result<(Duration, Vec<u32>)> {
    let mut connection = Connection::open(load.address).await?;
    let mut latencies = Vec::with_capacity(8192);
    begin.wait().await;
    let begun_at = Instant::now();
    let until = begun_at + load.duration;
    let mut asked_at = begun_at;
    while asked_at < until {
        match &load.requests {
            Requests::Same(request) => connection.exchange(request).await?.expect(load.expected)?,
            Requests::Numbered(make) => {
                let request = make(counter.fetch_add(1, Ordering::Relaxed));
                connection.exchange(&request).await?.expect(load.expected)?
            }
        };
        let answered_at = Instant::now();
        latencies.push(u32::try_from((answered_at - asked_at).as_nanos()).unwrap_or(u32::MAX));
        asked_at = answered_at;
    }
    Ok((asked_at - begun_at, latencies))
}

/// All connections ask at the same moment; how long until the last has its answer.
pub async fn burst(connections: &mut [Connection], request: &[u8]) -> anyhow::Result<Duration> {
    let begun_at = Instant::now();
    let asking = connections.iter_mut().map(async |connection| {
        connection.exchange(request).await?.expect(200)?;
        anyhow::Ok(())
    });
    tokio::time::timeout(PATIENCE, try_join_all(asking)).await.context("the server does not answer")??;
    Ok(begun_at.elapsed())
}

pub async fn open(address: SocketAddr, connections: usize) -> anyhow::Result<Vec<Connection>> {
    try_join_all((0..connections).map(|_| Connection::open(address))).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_an_answer_is_read_from_its_head() {
        let head = |lines: &str| format!("HTTP/1.1 {lines}\r\n\r\n").into_bytes();
        assert_eq!(body_bytes(&head("200 OK\r\nx-content-length: 9\r\nContent-Length: 20")).expect("a size"), 20);
        assert_eq!(body_bytes(&head("304 Not Modified\r\ncontent-length: 20")).expect("a size"), 0);
        assert!(body_bytes(&head("200 OK\r\ntransfer-encoding: chunked")).is_err());
        assert!(body_bytes(b"nonsense\r\n\r\n").is_err());
    }

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let sorted: Vec<u32> = (1..=100).collect();
        assert_eq!([0.5, 0.99, 1.0].map(|part| percentile(&sorted, part)), [51, 100, 100]);
        assert_eq!(percentile::<u32>(&[], 0.99), 0);
    }
}
