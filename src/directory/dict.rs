//! The users dict as bytes. Pure.
use bytes::Bytes;

/// The body of `/users-dict` in one encoding: chunks that concatenate.
#[derive(Clone, Debug)]
pub struct DictBody {
    pub chunks: Vec<Bytes>,
    /// Sum of the chunks.
    pub bytes: u64,
}
