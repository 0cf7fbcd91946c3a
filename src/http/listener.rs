//! The accept loop. Bounds what a client can hold: connections, the wait for its first byte, its
//! headers, its idleness, and an answer that it does not take. Knows nothing of what is served.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Frame, Incoming, SizeHint};
use hyper_util::rt::TokioIo;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::answer::{AnswerBody, Rest};
use super::error::{Detail, ErrorBody};
use super::surface::Surface;
use super::taken::Taken;
use crate::config::ApiConfig;
use crate::lifecycle::Lifecycle;
use crate::telemetry::metrics::Metrics;

const BACKLOG: i32 = 4096;
/// What the kernel holds for a client that does not take it; left to itself that grows to megabytes for each,
/// and nobody could tell for as long whether a client takes anything.
const SEND_BUFFER_BYTES: usize = 256 * 1024;
/// After a failed accept (no file descriptors, mostly): long enough for some to be given back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long a connection that is over may still be read, so that the client is not reset before it has
/// read our last answer.
const LINGER: Duration = Duration::from_secs(1);
/// How many connections over the limit are told so at once; more are only closed.
const REFUSALS: usize = 64;

/// Binds the address with the options the service needs.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restarted service takes its port back while old connections linger.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Accepts until [`Lifecycle::draining`]; connections then finish what is under way.
pub async fn serve(
    listener: TcpListener,
    surface: Surface,
    config: ApiConfig,
    lifecycle: Lifecycle,
    metrics: Arc<Metrics>,
) -> anyhow::Result<()> {
    let open = Arc::new(AtomicUsize::new(0));
    let refusals = Arc::new(Semaphore::new(REFUSALS));
    let mut is_failing = false;
    loop {
        let accepted = tokio::select! {
            biased;
            () = lifecycle.draining().cancelled() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                if !std::mem::replace(&mut is_failing, true) {
                    tracing::error!(%error, "connections cannot be accepted right now; trying again (file descriptor limit?)");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        is_failing = false;
        if open.load(Ordering::SeqCst) >= config.max_connections {
            metrics.http_connections_refused.with_label_values(&["full"]).inc();
            if let Ok(permit) = refusals.clone().try_acquire_owned() {
                tokio::spawn(refuse(stream, permit));
            }
            continue;
        }
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection was gone before it was served");
            continue;
        }
        let place = Place::take(open.clone(), metrics.clone());
        let connection = Connection {
            surface: surface.clone(),
            config: config.clone(),
            lifecycle: lifecycle.clone(),
            metrics: metrics.clone(),
        };
        lifecycle.spawn_work(connection.run(stream, place));
    }
}

async fn refuse(mut stream: TcpStream, _permit: OwnedSemaphorePermit) {
    let id = uuid::Uuid::new_v4().simple().to_string();
    let detail = Detail::Text("too many connections, try again in a moment".to_owned());
    let body = ErrorBody { detail, code: "too_many_connections" }.render(&id);
    let refusal = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nx-request-id: {id}\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let answering = async {
        stream.write_all(refusal.as_bytes()).await?;
        stream.shutdown().await?;
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
    };
    if !matches!(tokio::time::timeout(LINGER, answering).await, Ok(Ok(_))) {
        tracing::debug!("a connection over the limit did not take its refusal");
    }
}

/// One of the connections that are counted.
pub(super) struct Place {
    open: Arc<AtomicUsize>,
    metrics: Arc<Metrics>,
}

impl Place {
    fn take(open: Arc<AtomicUsize>, metrics: Arc<Metrics>) -> Self {
        open.fetch_add(1, Ordering::SeqCst);
        metrics.http_connections.inc();
        Self { open, metrics }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::SeqCst);
        self.metrics.http_connections.dec();
    }
}

struct Connection {
    surface: Surface,
    config: ApiConfig,
    lifecycle: Lifecycle,
    metrics: Arc<Metrics>,
}

impl Connection {
    async fn run(self, stream: TcpStream, place: Place) {
        let progress = Arc::new(Progress::new());
        let (surface, seen) = (&self.surface, &progress);
        let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
            seen.begin_request();
            let end = RequestEnd(seen.clone());
            async move {
                let answer = surface.answer(request, &seen.taken).await;
                Ok::<_, std::convert::Infallible>(answer.map(|body| WatchedBody { body, _end: end }))
            }
        });
        let io = TokioIo::new(Watched { stream, progress: progress.clone(), lingering: None, place });
        // Our own watch tells slow headers from idleness, which hyper's one timeout does not.
        let serving = hyper::server::conn::http1::Builder::new()
            .header_read_timeout(None)
            .max_buf_size(64 * 1024)
            .serve_connection(io, service)
            .with_upgrades();
        tokio::pin!(serving);
        let config = &self.config;
        let limits = [config.first_byte_timeout, config.header_timeout, config.keep_alive_timeout, config.body_timeout];
        let shortest = limits.into_iter().min().unwrap_or_default();
        let pause = (shortest / 4).clamp(Duration::from_millis(10), Duration::from_secs(1));
        let mut draining = false;
        loop {
            tokio::select! {
                biased;
                outcome = &mut serving => {
                    if let Err(error) = outcome {
                        tracing::debug!(%error, "a connection ended early");
                    }
                    return;
                }
                () = self.lifecycle.draining().cancelled(), if !draining => {
                    draining = true;
                    serving.as_mut().graceful_shutdown();
                }
                () = self.lifecycle.aborting().cancelled() => return,
                () = tokio::time::sleep(pause) => {
                    if let Some(reason) = progress.find_reason_to_close(&self.config) {
                        if reason != "idle" {
                            self.metrics.http_connections_refused.with_label_values(&[reason]).inc();
                        }
                        return;
                    }
                }
            }
        }
    }
}

/// What a connection is doing, as far as its limits are concerned.
struct Progress {
    opened_at: Instant,
    in_request: AtomicBool,
    had_request: AtomicBool,
    /// Milliseconds after `opened_at`, plus one; zero: no byte of a next request yet.
    head_since: AtomicU64,
    /// The end of the last request, or of the last write.
    idle_since: AtomicU64,
    /// As `head_since`; zero: the client takes what it is sent.
    stuck_since: AtomicU64,
    taken: Taken,
}

impl Progress {
    fn new() -> Self {
        Self {
            opened_at: Instant::now(),
            in_request: AtomicBool::new(false),
            had_request: AtomicBool::new(false),
            head_since: AtomicU64::new(0),
            idle_since: AtomicU64::new(0),
            stuck_since: AtomicU64::new(0),
            taken: Taken::default(),
        }
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.opened_at.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn saw_bytes(&self) {
        if !self.in_request.load(Ordering::Relaxed) && self.head_since.load(Ordering::Relaxed) == 0 {
            self.head_since.store(self.elapsed_ms() + 1, Ordering::Relaxed);
        }
    }

    fn saw_write(&self, polled: &Poll<io::Result<usize>>) {
        match polled {
            Poll::Ready(written) => {
                self.stuck_since.store(0, Ordering::Relaxed);
                self.idle_since.store(self.elapsed_ms(), Ordering::Relaxed);
                self.taken.add(*written.as_ref().unwrap_or(&0));
            }
            Poll::Pending if self.stuck_since.load(Ordering::Relaxed) == 0 => {
                self.stuck_since.store(self.elapsed_ms() + 1, Ordering::Relaxed);
            }
            Poll::Pending => {}
        }
    }

    fn begin_request(&self) {
        self.in_request.store(true, Ordering::Relaxed);
        self.had_request.store(true, Ordering::Relaxed);
        self.head_since.store(0, Ordering::Relaxed);
    }

    fn find_reason_to_close(&self, config: &ApiConfig) -> Option<&'static str> {
        let now = self.elapsed_ms();
        let is_over = |since: u64, limit: Duration| u128::from(now.saturating_sub(since)) > limit.as_millis();
        let stuck_since = self.stuck_since.load(Ordering::Relaxed);
        // Who is still to take an answer is not idle, even when the answer was handed out whole.
        if stuck_since > 0 {
            return is_over(stuck_since - 1, config.body_timeout).then_some("answer");
        }
        if self.in_request.load(Ordering::Relaxed) {
            return None;
        }
        match self.head_since.load(Ordering::Relaxed) {
            0 if !self.had_request.load(Ordering::Relaxed) => {
                is_over(0, config.first_byte_timeout).then_some("first_byte")
            }
            0 => is_over(self.idle_since.load(Ordering::Relaxed), config.keep_alive_timeout).then_some("idle"),
            since => is_over(since - 1, config.header_timeout).then_some("headers"),
        }
    }
}

/// Marks the end of a request, however it ends: its answer was handed out whole, or is given up.
struct RequestEnd(Arc<Progress>);

impl Drop for RequestEnd {
    fn drop(&mut self) {
        self.0.idle_since.store(self.0.elapsed_ms(), Ordering::Relaxed);
        self.0.in_request.store(false, Ordering::Relaxed);
    }
}

/// The body of an answer. As long as it lives, the connection is not idle.
struct WatchedBody {
    body: AnswerBody,
    _end: RequestEnd,
}

impl hyper::body::Body for WatchedBody {
    type Data = Rest;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        self.body.poll_rest(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The connection itself. Tells [`Progress`] when bytes come or go, and keeps its place until the end,
/// also when a WebSocket has taken it over.
pub(super) struct Watched {
    stream: TcpStream,
    progress: Arc<Progress>,
    /// After our last byte: until when the client is still listened to.
    lingering: Option<Pin<Box<tokio::time::Sleep>>>,
    place: Place,
}

impl Watched {
    /// For who takes the connection over, with limits of its own.
    pub(super) fn into_parts(self) -> (TcpStream, Taken, Place) {
        (self.stream, self.progress.taken.clone(), self.place)
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.progress.saw_bytes();
        }
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.progress.saw_write(&polled);
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    /// A connection that is closed with something unread is reset, and a reset may overtake the answer
    /// ("your body is too large") that the client has not read yet. So it is read for a moment more.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, lingering, .. } = &mut *self;
        if lingering.is_none() {
            ready!(Pin::new(&mut *stream).poll_shutdown(context))?;
        }
        let timer = lingering.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        let mut scratch = [0; 16 * 1024];
        loop {
            if timer.as_mut().poll(context).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut buffer = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut *stream).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                // The client is done too, or gone.
                Ok(()) | Err(_) => return Poll::Ready(Ok(())),
            }
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.progress.saw_write(&polled);
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
