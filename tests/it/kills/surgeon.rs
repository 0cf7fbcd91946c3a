//! A proxy in front of PostgreSQL that knows an append when it sees one and cuts the connection at a chosen
//! step of it. Knows of the protocol how messages are framed, and the names of statements.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

/// The step of an append at which its connection is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The statement never reaches the server.
    BeforeSend,
    /// The server has it all, the answer finds nobody.
    AfterSend,
    /// The client is cut off first, the statement arrives some time later: the repetition may come first.
    Late,
    /// It is committed, the answer is swallowed.
    AfterCommit,
}

impl Cut {
    pub const ALL: [Self; 4] = [Self::BeforeSend, Self::AfterSend, Self::Late, Self::AfterCommit];
}

/// How late a late statement is: before, amid and after the client's next attempt.
const LATE_MS: std::ops::Range<u64> = 1..250;
/// How long a late statement may take.
const LATE_ANSWER: Duration = Duration::from_secs(5);
const SSL_REQUEST: i32 = 80_877_103;

pub struct Surgeon {
    order: Order,
    _stop: DropGuard,
}

/// The cut that the next append is to suffer.
type Order = Arc<watch::Sender<Option<Cut>>>;

impl Surgeon {
    /// Also the URL through it.
    pub async fn in_front_of(url: &str) -> (Self, String) {
        let mut parsed = url::Url::parse(url).expect("a URL");
        let target = format!("{}:{}", parsed.host_str().expect("a host"), parsed.port().expect("a port"));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address: SocketAddr = listener.local_addr().expect("bound");
        parsed.set_port(Some(address.port())).expect("a port can be set");
        let (order, stop) = (Order::default(), CancellationToken::new());
        let orders = order.clone();
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            loop {
                let (client, _) = listener.accept().await.expect("a connection");
                let (target, orders) = (target.clone(), orders.clone());
                // An error is an end of the connection, as good as any.
                tokio::spawn(async move { carry(client, &target, &orders).await.ok() });
            }
        }));
        (Self { order, _stop: stop.drop_guard() }, parsed.into())
    }

    /// Returns when it is done.
    pub async fn cut_next_append(&self, cut: Cut) {
        self.order.send_replace(Some(cut));
        let done = self.order.subscribe().wait_for(Option::is_none).await.is_ok();
        assert!(done, "the proxy is there");
    }
}

/// How the requests of a connection ended.
enum End {
    Cut,
    /// These bytes are still to be delivered, to whom it may concern.
    Late(Vec<u8>),
    /// Whatever the server answers now is not passed on.
    Swallow,
}

async fn carry(client: TcpStream, target: &str, order: &Order) -> std::io::Result<()> {
    let server = TcpStream::connect(target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, mut to_client) = client.into_split();
    let (from_server, mut to_server) = server.into_split();
    let (mut from_client, mut from_server) = (BufReader::new(from_client), BufReader::new(from_server));
    loop {
        let greeting = read_framed(&mut from_client, Vec::new()).await?;
        to_server.write_all(&greeting).await?;
        if greeting.get(4..8) != Some(&SSL_REQUEST.to_be_bytes()) {
            break;
        }
        let answer = from_server.read_u8().await?;
        assert_eq!(answer, b'N', "the test's server speaks no TLS");
        to_client.write_u8(answer).await?;
    }
    let end = tokio::select! {
        end = pass_requests(&mut from_client, &mut to_server, order) => end?,
        ended = pass_answers(&mut from_server, &mut to_client) => return ended,
    };
    match end {
        End::Cut => {}
        End::Late(statement) => {
            drop((from_client, to_client));
            tokio::time::sleep(Duration::from_millis(rand::random_range(LATE_MS))).await;
            to_server.write_all(&statement).await?;
            tokio::time::timeout(LATE_ANSWER, read_answer(&mut from_server)).await??;
        }
        End::Swallow => read_answer(&mut from_server).await?,
    }
    Ok(())
}

/// Until an append is to be cut.
async fn pass_requests(
    from_client: &mut BufReader<OwnedReadHalf>,
    to_server: &mut OwnedWriteHalf,
    order: &Order,
) -> std::io::Result<End> {
    let mut appends: HashSet<Vec<u8>> = HashSet::new();
    let (mut unit, mut is_append) = (Vec::new(), false);
    loop {
        let kind = from_client.read_u8().await?;
        let message = read_framed(from_client, vec![kind]).await?;
        let mut texts = message[5..].split(|byte| *byte == 0).map(<[u8]>::to_vec);
        let (first, second) = (texts.next().unwrap_or_default(), texts.next().unwrap_or_default());
        match kind {
            // Parse: the statement's name, then its text. Bind: the portal's name, then the statement's.
            b'P' if String::from_utf8_lossy(&second).contains("FROM append_alerts(") => drop(appends.insert(first)),
            b'B' => is_append |= appends.contains(&second),
            _ => {}
        }
        unit.extend(message);
        // What ends with a Sync is sent as a whole.
        if matches!(kind, b'P' | b'B' | b'D' | b'E' | b'C') {
            continue;
        }
        let mut cut = None;
        if std::mem::take(&mut is_append) {
            order.send_if_modified(|order| {
                cut = order.take();
                cut.is_some()
            });
        }
        match cut {
            Some(Cut::BeforeSend) => return Ok(End::Cut),
            Some(Cut::Late) => return Ok(End::Late(unit)),
            Some(Cut::AfterSend) => {
                to_server.write_all(&unit).await?;
                return Ok(End::Cut);
            }
            Some(Cut::AfterCommit) => {
                to_server.write_all(&unit).await?;
                return Ok(End::Swallow);
            }
            None => to_server.write_all(&unit).await?,
        }
        unit.clear();
    }
}

async fn pass_answers(
    from_server: &mut BufReader<OwnedReadHalf>,
    to_client: &mut OwnedWriteHalf,
) -> std::io::Result<()> {
    tokio::io::copy_buf(from_server, to_client).await.map(drop)
}

/// Up to `ReadyForQuery`, which follows the commit.
async fn read_answer(from_server: &mut BufReader<OwnedReadHalf>) -> std::io::Result<()> {
    loop {
        let kind = from_server.read_u8().await?;
        read_framed(from_server, Vec::new()).await?;
        if kind == b'Z' {
            return Ok(());
        }
    }
}

/// A length that counts itself, and what it is the length of.
async fn read_framed(from: &mut (impl AsyncRead + Unpin), mut message: Vec<u8>) -> std::io::Result<Vec<u8>> {
    let length = from.read_u32().await?;
    message.extend(length.to_be_bytes());
    let begin = message.len();
    message.resize(begin + length as usize - 4, 0);
    from.read_exact(&mut message[begin..]).await?;
    Ok(message)
}
