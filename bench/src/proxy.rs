//! A long line to a server: everything arrives later, in both directions. Also counts the statements of
//! PostgreSQL's protocol that pass.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

const SSL_REQUEST: u32 = 80_877_103;

pub struct Proxy {
    accepting: JoinHandle<()>,
    statements: Arc<AtomicU64>,
    /// The server's URL, through the proxy.
    pub url: String,
}

impl Proxy {
    pub async fn in_front_of(url: &str, one_way: Duration) -> anyhow::Result<Self> {
        let mut url = url::Url::parse(url)?;
        let target = format!("{}:{}", url.host_str().context("no host")?, url.port().context("no port")?);
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address: SocketAddr = listener.local_addr()?;
        url.set_host(Some("127.0.0.1"))?;
        url.set_port(Some(address.port())).ok().context("a URL without a port")?;
        let statements = Arc::new(AtomicU64::new(0));
        let (counted, counts) = (statements.clone(), url.scheme().starts_with("postgres"));
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, target.clone(), one_way, counted.clone(), counts));
            }
        });
        Ok(Self { accepting, statements, url: url.into() })
    }

    pub fn statements(&self) -> u64 {
        self.statements.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn carry(client: TcpStream, target: String, one_way: Duration, statements: Arc<AtomicU64>, counts: bool) {
    let Ok(server) = TcpStream::connect(target).await else { return };
    if client.set_nodelay(true).and_then(|()| server.set_nodelay(true)).is_err() {
        return;
    }
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let mut counter = counts.then(Counter::default);
    let count = move |bytes: &[u8]| {
        if let Some(counter) = &mut counter {
            statements.fetch_add(counter.statements_in(bytes), Ordering::Relaxed);
        }
    };
    tokio::join!(pass(client_read, server_write, one_way, count), pass(server_read, client_write, one_way, |_| ()));
}

async fn pass(from: OwnedReadHalf, mut to: OwnedWriteHalf, one_way: Duration, mut look: impl FnMut(&[u8])) {
    let (line, mut arriving) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let reading = async move {
        let (mut from, mut buffer) = (from, vec![0; 64 * 1024]);
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            look(&buffer[..count]);
            if line.send((Instant::now() + one_way, buffer[..count].to_vec())).is_err() {
                return;
            }
        }
    };
    let writing = async move {
        while let Some((due_at, bytes)) = arriving.recv().await {
            tokio::time::sleep_until(due_at).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(reading, writing);
}

/// Follows the messages of one connection: a type (not in the first message) and a length.
#[derive(Default)]
struct Counter {
    is_started: bool,
    held: Vec<u8>,
}

impl Counter {
    fn statements_in(&mut self, bytes: &[u8]) -> u64 {
        self.held.extend_from_slice(bytes);
        let (mut rest, mut count) = (self.held.as_slice(), 0);
        loop {
            let kind_bytes = usize::from(self.is_started);
            let Some(length) = rest.get(kind_bytes..kind_bytes + 4).and_then(|length| length.try_into().ok()) else {
                break;
            };
            let whole = kind_bytes + u32::from_be_bytes(length) as usize;
            let Some(message) = rest.get(..whole) else { break };
            if self.is_started {
                // A simple query, or the execution of a prepared one.
                count += u64::from(matches!(message[0], b'Q' | b'E'));
            } else {
                self.is_started = message.get(4..8) != Some(&SSL_REQUEST.to_be_bytes());
            }
            rest = &rest[whole..];
        }
        self.held = rest.to_vec();
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: &[u8], content: &[u8]) -> Vec<u8> {
        let length = u32::try_from(content.len() + 4).expect("a short message").to_be_bytes();
        [kind, &length, content].concat()
    }

    #[test]
    fn statements_are_counted_however_the_bytes_are_cut() {
        let session = [
            message(b"", &SSL_REQUEST.to_be_bytes()),
            message(b"", b"\0\x03\0\0user\0postgres\0\0"),
            message(b"Q", b"SELECT 1\0"),
            message(b"P", b"s1\0SELECT 'Q'\0\0\0"),
            [message(b"B", b"\0s1\0"), message(b"E", b"\0\0\0\0\0"), message(b"S", b"")].concat(),
        ]
        .concat();
        for piece in [1, 7, session.len()] {
            let mut counter = Counter::default();
            let count: u64 = session.chunks(piece).map(|bytes| counter.statements_in(bytes)).sum();
            assert_eq!(count, 2, "in pieces of {piece}");
        }
    }
}
