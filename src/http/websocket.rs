//! The server's end of a WebSocket, straight on the connection of the listener. What is sent are whole
//! frames that their owner prepared, once for all who get them; a library reads what the client sends and
//! answers its control frames. Knows nothing of what is sent.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use bytes::{Buf, Bytes};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tungstenite::{Error, Message};

use super::error::ApiError;
use super::listener::{Place, Watched};
use super::taken::Taken;

/// The library's own would be 128 KiB for each client.
const READ_BUFFER_BYTES: usize = 1024;
const READ_AT_ONCE: usize = 4 * 1024;

/// A whole text frame of a server, which does not mask.
pub fn text_frame(parts: &[&[u8]]) -> Bytes {
    const FINAL_TEXT: u8 = 0x81;
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut frame = Vec::with_capacity(10 + length);
    frame.push(FINAL_TEXT);
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(length @ ..126), _) => frame.push(length),
        (_, Ok(length)) => {
            frame.push(126);
            frame.extend_from_slice(&length.to_be_bytes());
        }
        _ => {
            frame.push(127);
            frame.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    parts.iter().for_each(|part| frame.extend_from_slice(part));
    frame.into()
}

/// A request that asks for a WebSocket.
pub struct Upgrade {
    accept: HeaderValue,
    on_upgrade: OnUpgrade,
}

impl<S: Sync> FromRequestParts<S> for Upgrade {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let on_upgrade = parts.extensions.remove::<OnUpgrade>();
        let accept = find_accept(&parts.method, &parts.headers).map_err(refusal)?;
        let on_upgrade = on_upgrade.ok_or_else(|| refusal("the connection cannot be upgraded"))?;
        Ok(Self { accept, on_upgrade })
    }
}

fn refusal(reason: &str) -> ApiError {
    ApiError::new(StatusCode::UPGRADE_REQUIRED, "upgrade_required", format!("this is a WebSocket: {reason}"))
}

fn find_accept(method: &Method, headers: &HeaderMap) -> Result<HeaderValue, &'static str> {
    let has = |name: HeaderName, token: &str| {
        let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(token))
    };
    if method != Method::GET {
        return Err("it is opened with GET");
    }
    if !has(header::CONNECTION, "upgrade") || !has(header::UPGRADE, "websocket") {
        return Err("the headers `connection: upgrade` and `upgrade: websocket` are missing");
    }
    if !has(header::SEC_WEBSOCKET_VERSION, "13") {
        return Err("the header `sec-websocket-version: 13` is missing");
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).ok_or("the header `sec-websocket-key` is missing")?;
    HeaderValue::try_from(derive_accept_key(key.as_bytes())).map_err(|_| "the header `sec-websocket-key` is no key")
}

impl Upgrade {
    /// Answers the request; then `serve` has the connection. Messages of the client that are larger than
    /// `max_bytes` are errors.
    pub fn accept<F>(self, max_bytes: usize, serve: impl FnOnce(WebSocket) -> F + Send + 'static) -> Response
    where
        F: Future<Output = ()> + Send,
    {
        tokio::spawn(async move {
            let upgraded = match self.on_upgrade.await {
                Ok(upgraded) => upgraded,
                Err(error) => return tracing::debug!(%error, "a client went away instead of opening its WebSocket"),
            };
            match upgraded.downcast::<TokioIo<Watched>>() {
                Ok(parts) => serve(WebSocket::new(parts.io.into_inner(), parts.read_buf, max_bytes)).await,
                Err(_) => tracing::error!("a WebSocket was opened on a connection that is not the listener's"),
            }
        });
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, self.accept);
        response
    }
}

pub struct WebSocket {
    stream: TcpStream,
    taken: Taken,
    protocol: tungstenite::WebSocket<Exchange>,
    /// Whether the library may have something to say before more is read from the client.
    is_fed: bool,
    /// Whole frames; the first may be sent in part.
    outbox: VecDeque<Bytes>,
    _place: Place,
}

impl WebSocket {
    fn new(connection: Watched, already_read: Bytes, max_bytes: usize) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER_BYTES)
            .write_buffer_size(0)
            .max_message_size(Some(max_bytes))
            .max_frame_size(Some(max_bytes));
        let exchange = Exchange { received: Vec::from(already_read).into(), ..Exchange::default() };
        let protocol = tungstenite::WebSocket::from_raw_socket(exchange, Role::Server, Some(config));
        let (stream, taken, place) = connection.into_parts();
        Self { stream, taken, protocol, is_fed: true, outbox: VecDeque::new(), _place: place }
    }

    /// Puts whole frames behind what is still to be sent.
    pub fn push(&mut self, frames: Bytes) {
        self.outbox.push_back(frames);
    }

    /// Puts a small message behind what is still to be sent.
    pub fn push_message(&mut self, message: Message) {
        if let Err(error) = self.protocol.send(message) {
            tracing::debug!(%error, "a message comes too late for a WebSocket");
        }
        self.take_replies();
    }

    /// The last that is sent.
    pub fn push_close(&mut self, code: CloseCode, reason: String) {
        let close = CloseFrame { code, reason: reason.into() };
        if let Err(error) = self.protocol.close(Some(close)) {
            tracing::debug!(%error, "a close comes too late for a WebSocket");
        }
        self.take_replies();
    }

    /// Waits for what the client says; `None`: both sides have closed. What the library answers by itself
    /// is behind what is still to be sent. Nothing is lost when this is given up.
    pub async fn read(&mut self) -> Option<Result<Message, Error>> {
        poll_fn(|context| self.poll_read(context)).await
    }

    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Message, Error>>> {
        loop {
            if self.is_fed {
                let read = self.protocol.read();
                if let Err(Error::Io(error)) = &read
                    && error.kind() == io::ErrorKind::WouldBlock
                {
                    self.is_fed = false;
                } else {
                    // What it answers waits for the next call otherwise.
                    if let Err(error) = self.protocol.flush() {
                        tracing::debug!(%error, "a WebSocket has nothing more to answer");
                    }
                    self.take_replies();
                    return Poll::Ready(match read {
                        Err(Error::ConnectionClosed | Error::AlreadyClosed) => None,
                        read => Some(read),
                    });
                }
            }
            let mut bytes = [MaybeUninit::uninit(); READ_AT_ONCE];
            let mut buffer = ReadBuf::uninit(&mut bytes);
            if let Err(error) = ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer)) {
                return Poll::Ready(Some(Err(error.into())));
            }
            self.protocol.get_mut().receive(buffer.filled());
            self.is_fed = true;
        }
    }

    fn take_replies(&mut self) {
        let replies = std::mem::take(&mut self.protocol.get_mut().replies);
        if !replies.is_empty() {
            self.outbox.push_back(replies.into());
        }
    }

    /// Waits until everything is sent. Safe to be given up and called again.
    pub async fn flush(&mut self) -> io::Result<()> {
        poll_fn(|context| self.poll_flush(context)).await
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(first) = self.outbox.front_mut() {
            let sent = ready!(Pin::new(&mut self.stream).poll_write(context, first))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.taken.add(sent);
            first.advance(sent);
            if first.is_empty() {
                self.outbox.pop_front();
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// What the library reads and writes: bytes that came, and bytes that are to go.
#[derive(Default)]
struct Exchange {
    received: VecDeque<u8>,
    has_ended: bool,
    replies: Vec<u8>,
}

impl Exchange {
    fn receive(&mut self, bytes: &[u8]) {
        self.received.extend(bytes);
        self.has_ended = bytes.is_empty();
    }
}

impl io::Read for Exchange {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.received.read(buffer)? {
            0 if !self.has_ended => Err(io::ErrorKind::WouldBlock.into()),
            count => Ok(count),
        }
    }
}

impl io::Write for Exchange {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.replies.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_what_a_client_reads() {
        for length in [0, 1, 125, 126, 127, 65_535, 65_536, 100_000] {
            let text = "x".repeat(length);
            let (one, other) = text.split_at(length / 3);
            let mut client = Exchange::default();
            client.receive(&text_frame(&[one.as_bytes(), other.as_bytes()]));
            let mut client = tungstenite::WebSocket::from_raw_socket(client, Role::Client, None);
            assert_eq!(client.read().expect("a frame"), Message::text(text), "{length}");
            assert!(matches!(client.read(), Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock));
        }
    }

    #[test]
    fn a_handshake_is_told_what_it_lacks() {
        let whole = [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        let headers = |left_out: &str| -> HeaderMap {
            let rest = whole.iter().filter(|(name, _)| *name != left_out);
            rest.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
        };
        assert_eq!(find_accept(&Method::GET, &headers("")).expect("whole"), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert!(find_accept(&Method::POST, &headers("")).is_err());
        for (name, _) in whole {
            let reason = find_accept(&Method::GET, &headers(name)).expect_err(name);
            assert!(reason.contains(name), "{reason}");
        }
    }
}
