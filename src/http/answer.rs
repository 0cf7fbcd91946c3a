//! Answers whose bytes are at hand. Knows neither routes nor features.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Response, header};
use hyper::body::{Frame, SizeHint};
use serde::Serialize;

use super::error::ApiError;

/// An answer on its way to the listener.
pub type Answer = Response<AnswerBody>;

/// The body of an answer: ready, or whatever the router made.
pub enum AnswerBody {
    Ready(Pieces),
    Made(Body),
}

/// Bytes that are ready, in pieces that are sent as they are. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Pieces {
    One(Bytes),
    Many { pieces: Arc<[Bytes]>, next: usize, bytes_left: u64 },
}

impl Pieces {
    /// `bytes`: the sum of the pieces.
    pub fn many(pieces: Arc<[Bytes]>, bytes: u64) -> Self {
        Self::Many { pieces, next: 0, bytes_left: bytes }
    }

    fn next(&mut self) -> Option<Bytes> {
        match self {
            Self::One(bytes) => Some(std::mem::take(bytes)).filter(|bytes| !bytes.is_empty()),
            Self::Many { pieces, next, bytes_left } => {
                let piece = pieces.get(*next)?.clone();
                *next += 1;
                *bytes_left = bytes_left.saturating_sub(piece.len() as u64);
                Some(piece)
            }
        }
    }

    fn bytes_left(&self) -> u64 {
        match self {
            Self::One(bytes) => bytes.len() as u64,
            Self::Many { bytes_left, .. } => *bytes_left,
        }
    }
}

/// JSON that is written already.
pub fn json(pieces: Pieces) -> Answer {
    let mut answer = Response::new(AnswerBody::Ready(pieces));
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

/// Writes a value as JSON, its fields in the order in which it names them.
pub fn to_json(value: &(impl Serialize + ?Sized)) -> Result<Answer, ApiError> {
    let body = serde_json::to_vec(value)
        .map_err(|error| ApiError::unavailable("service", "not_serializable", error.to_string()))?;
    Ok(json(Pieces::One(body.into())))
}

impl hyper::body::Body for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match self.get_mut() {
            Self::Ready(pieces) => Poll::Ready(pieces.next().map(|piece| Ok(Frame::data(piece)))),
            Self::Made(body) => Pin::new(body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Ready(pieces) => pieces.bytes_left() == 0,
            Self::Made(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Ready(pieces) => SizeHint::with_exact(pieces.bytes_left()),
            Self::Made(body) => body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use hyper::body::Body as _;

    use super::*;

    #[tokio::test]
    async fn pieces_arrive_in_their_order_and_say_how_much_is_left() {
        let pieces: Arc<[Bytes]> = ["{", "\"1\":\"Ann\"", "}"].map(Bytes::from).into();
        let whole = AnswerBody::Ready(Pieces::many(pieces.clone(), 11));
        assert_eq!(whole.collect().await.expect("infallible").to_bytes(), "{\"1\":\"Ann\"}");
        let mut body = AnswerBody::Ready(Pieces::many(pieces, 11));
        for left in [11, 10, 1] {
            assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(left), false));
            assert!(body.frame().await.is_some());
        }
        assert!(body.is_end_stream() && body.frame().await.is_none());
    }

    #[tokio::test]
    async fn one_piece_is_one_frame_and_an_empty_one_is_none() {
        let mut body = AnswerBody::Ready(Pieces::One(Bytes::from_static(b"[]")));
        assert!(body.frame().await.is_some() && body.is_end_stream() && body.frame().await.is_none());
        let mut body = AnswerBody::Ready(Pieces::One(Bytes::new()));
        assert!(body.is_end_stream() && body.frame().await.is_none());
    }
}
