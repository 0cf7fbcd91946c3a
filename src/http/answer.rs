//! Answers whose bytes are at hand. Knows neither routes nor features.

use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::http::{HeaderName, HeaderValue, Response, header};
use bytes::Buf;
use hyper::body::{Body as _, Frame, SizeHint};
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

    /// All that is left at once, for a socket that takes lists.
    fn take_rest(&mut self) -> Option<Rest> {
        let rest = std::mem::replace(self, Self::One(Bytes::new()));
        let rest = match rest {
            Self::One(bytes) => Rest::One(bytes),
            Self::Many { pieces, next, bytes_left } => Rest::Many { pieces, next, offset: 0, bytes_left },
        };
        rest.has_remaining().then_some(rest)
    }

    fn bytes_left(&self) -> u64 {
        match self {
            Self::One(bytes) => bytes.len() as u64,
            Self::Many { bytes_left, .. } => *bytes_left,
        }
    }
}

/// What is left of pieces, as the HTTP library hands it to the socket: many pieces in one write.
pub enum Rest {
    One(Bytes),
    Many { pieces: Arc<[Bytes]>, next: usize, offset: usize, bytes_left: u64 },
}

impl Buf for Rest {
    fn remaining(&self) -> usize {
        match self {
            Self::One(bytes) => bytes.len(),
            Self::Many { bytes_left, .. } => usize::try_from(*bytes_left).unwrap_or(usize::MAX),
        }
    }

    fn chunk(&self) -> &[u8] {
        match self {
            Self::One(bytes) => bytes,
            Self::Many { pieces, next, offset, .. } => pieces.get(*next).map_or(&[], |piece| &piece[*offset..]),
        }
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let rest = match self {
            Self::One(_) => &[],
            Self::Many { pieces, next, .. } => pieces.get(next + 1..).unwrap_or_default(),
        };
        let rest = rest.iter().map(|piece| &piece[..]);
        let pieces = std::iter::once(self.chunk()).chain(rest).filter(|piece| !piece.is_empty());
        let mut filled = 0;
        for (slice, piece) in slices.iter_mut().zip(pieces) {
            *slice = IoSlice::new(piece);
            filled += 1;
        }
        filled
    }

    fn advance(&mut self, mut bytes: usize) {
        match self {
            Self::One(rest) => rest.advance(bytes),
            Self::Many { pieces, next, offset, bytes_left } => {
                *bytes_left = bytes_left.saturating_sub(bytes as u64);
                while let Some(piece) = pieces.get(*next) {
                    let left = piece.len() - *offset;
                    if bytes < left {
                        *offset += bytes;
                        return;
                    }
                    bytes -= left;
                    (*next, *offset) = (*next + 1, 0);
                }
            }
        }
    }
}

impl AnswerBody {
    /// As [`hyper::body::Body::poll_frame`], but all that is ready comes as one.
    pub fn poll_rest(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Rest>, axum::Error>>> {
        match self {
            Self::Ready(pieces) => Poll::Ready(pieces.take_rest().map(|rest| Ok(Frame::data(rest)))),
            Self::Made(body) => {
                Pin::new(body).poll_frame(context).map(|frame| Some(frame?.map(|frame| frame.map_data(Rest::One))))
            }
        }
    }
}

/// Set last, on every answer of the surface.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// JSON that is written already.
pub fn json_of(body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(AnswerBody::Ready(Pieces::One(body.into())));
    answer.headers_mut().insert(header::CONTENT_TYPE, JSON);
    answer
}

/// Writes a value as JSON, its fields in the order in which it names them.
pub fn to_json(value: &(impl Serialize + ?Sized)) -> Result<Answer, ApiError> {
    to_bytes(value).map(json_of)
}

/// The body of [`to_json`].
pub fn to_bytes(value: &(impl Serialize + ?Sized)) -> Result<Vec<u8>, ApiError> {
    serde_json::to_vec(value).map_err(|error| ApiError::unavailable("service", "not_serializable", error.to_string()))
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
    use proptest::prelude::*;

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

    proptest! {
        #[test]
        fn what_a_socket_takes_in_any_portions_is_the_whole(
            texts in prop::collection::vec("[a-z]{0,9}", 0..20), portions in prop::collection::vec(1_usize..30, 200),
        ) {
            let pieces: Arc<[Bytes]> = texts.iter().cloned().map(Bytes::from).collect();
            let bytes = texts.iter().map(|text| text.len() as u64).sum();
            let Some(mut rest) = Pieces::many(pieces, bytes).take_rest() else {
                prop_assert_eq!(bytes, 0);
                return Ok(());
            };
            let mut sent = Vec::new();
            for portion in portions {
                let mut slices = [IoSlice::new(&[]); 4];
                let filled = rest.chunks_vectored(&mut slices);
                prop_assert!(filled > 0 || !rest.has_remaining());
                prop_assert!(slices[..filled].iter().all(|slice| !slice.is_empty()));
                let offered = slices[..filled].iter().flat_map(|slice| slice.to_vec()).collect::<Vec<u8>>();
                let taken = portion.min(offered.len());
                sent.extend_from_slice(&offered[..taken]);
                rest.advance(taken);
            }
            prop_assert!(!rest.has_remaining());
            prop_assert_eq!(sent, texts.concat().into_bytes());
        }
    }

    #[tokio::test]
    async fn one_piece_is_one_frame_and_an_empty_one_is_none() {
        let mut body = AnswerBody::Ready(Pieces::One(Bytes::from_static(b"[]")));
        assert!(body.frame().await.is_some() && body.is_end_stream() && body.frame().await.is_none());
        let mut body = AnswerBody::Ready(Pieces::One(Bytes::new()));
        assert!(body.is_end_stream() && body.frame().await.is_none());
    }
}
