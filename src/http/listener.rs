//! The accept loop. Bounds what a client can hold: connections here, time in [`super::keeper`]. Knows nothing of
//! what is served.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::answer::{AnswerBody, Rest};
use super::error::{Detail, ErrorBody};
use super::keeper::{Keeper, Kept, Order, Progress, RequestEnd};
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
    let keeper = Keeper::new(config.clone(), metrics.clone());
    lifecycle.spawn_service("connections' keeper", keeper.clone().run(lifecycle.clone()));
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
        lifecycle.spawn_work(serve_connection(surface.clone(), stream, place, keeper.enter()));
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

/// Serves a connection until it ends or is told to end.
async fn serve_connection(surface: Surface, stream: TcpStream, place: Place, kept: Kept) {
    let (surface, progress) = (&surface, &kept.progress);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let end = progress.begin_request();
        let answering = surface.answer(request, &progress.taken);
        async move { Ok::<_, Infallible>(answering.await.map(|body| WatchedBody { body, _end: end })) }
    });
    let io = TokioIo::new(Watched { stream, progress: progress.clone(), lingering: None, place });
    // Our own watch tells slow headers from idleness, which hyper's one timeout does not.
    let serving = hyper::server::conn::http1::Builder::new()
        .header_read_timeout(None)
        .max_buf_size(64 * 1024)
        .serve_connection(io, service)
        .with_upgrades();
    let mut serving = pin!(serving);
    let mut is_finishing = false;
    let ended = std::future::poll_fn(|context| {
        let order = progress.poll_order(context);
        if order == Order::Close {
            return Poll::Ready(Ok(()));
        }
        // Before anything else, so that what has come already is under way.
        let polled = serving.as_mut().poll(context);
        if polled.is_ready() {
            return polled;
        }
        if order == Order::Finish && !std::mem::replace(&mut is_finishing, true) {
            serving.as_mut().graceful_shutdown();
            return serving.as_mut().poll(context);
        }
        if progress.is_overdue() { Poll::Ready(Ok(())) } else { Poll::Pending }
    });
    if let Err(error) = ended.await {
        tracing::debug!(%error, "a connection ended early");
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

/// The connection itself. Tells its [`Progress`] when bytes come or go, and keeps its place until the end,
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

    fn saw_write(&self, polled: &Poll<io::Result<usize>>) {
        self.progress.saw_write(match polled {
            Poll::Ready(written) => Some(*written.as_ref().unwrap_or(&0)),
            Poll::Pending => None,
        });
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
        self.saw_write(&polled);
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
        self.saw_write(&polled);
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::get;
    use futures_util::FutureExt;
    use tokio::io::AsyncReadExt;

    use super::super::keeper::tests::config;
    use super::super::surface::tests::surface;
    use super::*;

    #[tokio::test]
    async fn a_request_that_has_come_when_the_drain_begins_is_answered() {
        let listener = bind("127.0.0.1:0".parse().expect("an address")).expect("bound");
        let mut client = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("connected");
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
        let (stream, _) = listener.accept().await.expect("accepted");
        stream.readable().await.expect("it has come");

        let (metrics, lifecycle) = (Arc::new(Metrics::new().expect("metrics")), Lifecycle::new());
        let keeper = Keeper::new(config(), metrics.clone());
        let kept = keeper.enter();
        lifecycle.draining().cancel();
        assert!(keeper.run(lifecycle).now_or_never().is_none(), "it told the connection and goes on");
        let place = Place::take(Arc::default(), metrics);
        let surface = surface(Router::new().route("/", get(async || "fine")));
        let reading = async {
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.expect("read");
            drop(client);
            answer
        };
        let serving = serve_connection(surface, stream, place, kept);
        let both = tokio::time::timeout(Duration::from_secs(10), async { tokio::join!(serving, reading) });
        let ((), answer) = both.await.expect("answered and closed");
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("fine"), "{answer}");
    }
}
