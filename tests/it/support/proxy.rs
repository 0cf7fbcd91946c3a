//! A network that can fail: a TCP proxy on loopback between the service and a server.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What the network does with connections, old and new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    Works,
    /// New connections are closed at once, old ones are cut.
    Down,
    /// Nothing passes, in either direction; nothing is closed.
    Frozen,
    /// Requests pass, answers do not.
    AnswersLost,
    /// Everything arrives this much later, in both directions, as on a long line.
    Slow(Duration),
}

#[derive(Clone, Copy)]
struct State {
    network: Network,
    /// Connections from before the last cut are closed.
    cuts: u64,
    /// Connections from before the last freeze are dead without a sign.
    freezes: u64,
}

pub struct Proxy {
    pub address: SocketAddr,
    target: watch::Sender<String>,
    state: watch::Sender<State>,
    stop: CancellationToken,
}

impl Proxy {
    /// In front of `target`, `host:port`.
    pub async fn start(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let state = watch::Sender::new(State { network: Network::Works, cuts: 0, freezes: 0 });
        let stop = CancellationToken::new();
        let target = watch::Sender::new(target.to_owned());
        let (targets, states) = (target.clone(), state.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            loop {
                if let Ok((client, _)) = listener.accept().await {
                    tokio::spawn(carry(client, targets.subscribe(), states.subscribe()));
                }
            }
        }));
        Self { address, target, state, stop }
    }

    /// In front of the server of a URL; also the URL through the proxy.
    pub async fn in_front_of(url: &str) -> (Self, String) {
        let mut parsed = url::Url::parse(url).expect("a URL");
        let host = parsed.host_str().expect("a host");
        let proxy = Self::start(&format!("{host}:{}", parsed.port().expect("a port"))).await;
        parsed.set_host(Some("127.0.0.1")).expect("a host can be set");
        parsed.set_port(Some(proxy.address.port())).expect("a port can be set");
        (proxy, parsed.into())
    }

    pub fn set(&self, network: Network) {
        self.state.send_modify(|state| state.network = network);
    }

    /// Connections that are open now will never carry anything again, and nobody is told; new ones work.
    pub fn freeze_open_connections(&self) {
        self.state.send_modify(|state| state.freezes += 1);
    }

    /// New connections go to another server.
    pub fn retarget(&self, target: &str) {
        self.target.send_replace(target.to_owned());
    }

    /// Closes what is open; new connections work.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.cancel();
        self.set(Network::Down);
    }
}

async fn carry(client: TcpStream, targets: watch::Receiver<String>, states: watch::Receiver<State>) {
    let born = *states.borrow();
    let carrying = async {
        // A frozen network accepts (the kernel does) and then is silent.
        until_passing(&mut states.clone(), born.freezes, true).await;
        let target = targets.borrow().clone();
        let Ok(server) = TcpStream::connect(target).await else { return };
        let delays = client.set_nodelay(true).and_then(|()| server.set_nodelay(true));
        delays.expect("the connections are open");
        let (client_read, client_write) = client.into_split();
        let (server_read, server_write) = server.into_split();
        tokio::select! {
            () = pump(client_read, server_write, states.clone(), born.freezes, true) => {}
            () = pump(server_read, client_write, states.clone(), born.freezes, false) => {}
        }
    };
    let mut ending = states.clone();
    let is_ending = |state: &State| state.network == Network::Down || state.cuts != born.cuts;
    tokio::select! {
        biased;
        _ = ending.wait_for(is_ending) => {}
        () = carrying => {}
    }
}

/// A line as long as its delay: what is under way does not hold up what follows.
async fn pump(from: OwnedReadHalf, to: OwnedWriteHalf, states: watch::Receiver<State>, freezes: u64, is_request: bool) {
    let (line, arriving) = mpsc::unbounded_channel();
    tokio::select! {
        () = send(from, line, states.clone()) => {}
        () = receive(to, arriving, states, freezes, is_request) => {}
    }
}

async fn send(
    mut from: OwnedReadHalf,
    line: mpsc::UnboundedSender<(Instant, Vec<u8>)>,
    states: watch::Receiver<State>,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let delay = match states.borrow().network {
            Network::Slow(delay) => delay,
            _ => Duration::ZERO,
        };
        if line.send((Instant::now() + delay, buffer[..count].to_vec())).is_err() {
            return;
        }
    }
}

async fn receive(
    mut to: OwnedWriteHalf,
    mut arriving: mpsc::UnboundedReceiver<(Instant, Vec<u8>)>,
    mut states: watch::Receiver<State>,
    freezes: u64,
    is_request: bool,
) {
    while let Some((due_at, bytes)) = arriving.recv().await {
        tokio::time::sleep_until(due_at).await;
        until_passing(&mut states, freezes, is_request).await;
        if to.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

async fn until_passing(states: &mut watch::Receiver<State>, freezes: u64, is_request: bool) {
    let passes = |state: &State| match state.network {
        Network::Frozen => false,
        Network::AnswersLost => is_request,
        Network::Works | Network::Down | Network::Slow(_) => true,
    };
    let is_alive = states.wait_for(passes).await.is_ok_and(|state| state.freezes == freezes);
    if !is_alive {
        std::future::pending::<()>().await;
    }
}
