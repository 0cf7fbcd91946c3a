//! The users dict as bytes: chunks that are encoded once and concatenate, so that one write costs one
//! chunk whatever the size. Pure.
//!
//! The chunks of the gzip form are raw deflate streams that end on a byte boundary (a flush), between
//! one gzip header and one trailer: together they are a single gzip member (RFC 1952). The checksum
//! is combined from the chunks' own.

use std::hash::Hasher;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use crc32fast::Hasher as Crc32;
use flate2::{Compress, Compression, FlushCompress};
use siphasher::sip128::{Hasher128, SipHasher13};

use super::json::{push_integer, push_text};

/// The body of `/users-dict` in one encoding: chunks that concatenate.
#[derive(Clone, Debug)]
pub struct DictBody {
    pub chunks: Arc<[Bytes]>,
    /// Sum of the chunks.
    pub bytes: u64,
}

/// Up to this size a body is one chunk: to write a list of them costs more than it saves.
const BYTES_IN_ONE_CHUNK: u64 = 64 * 1024;

impl DictBody {
    fn new(chunks: Vec<Bytes>) -> Self {
        let bytes = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        let chunks = if bytes <= BYTES_IN_ONE_CHUNK { [chunks.concat().into()].into() } else { chunks.into() };
        Self { chunks, bytes }
    }
}

/// Room for most entries.
const ENTRY_BYTES: usize = 32;

/// Some neighbouring entries of the dict, encoded.
#[derive(Debug)]
pub struct DictChunk {
    /// Each entry with a comma before it: `,"1":"Ann","2":"Bob"`.
    json: Bytes,
    /// Sum of the entries' hashes.
    digest: u128,
    with_comma: OnceLock<Deflated>,
    without_comma: OnceLock<Deflated>,
}

#[derive(Debug)]
struct Deflated {
    bytes: Bytes,
    /// Of the text.
    crc32: Crc32,
}

impl DictChunk {
    pub fn encode<'a>(entries: impl Iterator<Item = (i64, &'a str)>) -> Self {
        let mut json = Vec::with_capacity(entries.size_hint().0 * ENTRY_BYTES);
        let mut digest = 0_u128;
        for (global_id, name) in entries {
            json.extend_from_slice(b",\"");
            push_integer(&mut json, global_id);
            json.extend_from_slice(b"\":");
            push_text(&mut json, name);
            digest = digest.wrapping_add(entry_digest(global_id, name));
        }
        json.shrink_to_fit();
        Self { json: json.into(), digest, with_comma: OnceLock::new(), without_comma: OnceLock::new() }
    }

    pub fn digest(&self) -> u128 {
        self.digest
    }

    /// Memory held, the deflated form included once it is there.
    pub fn count_bytes(&self) -> usize {
        let deflated = |form: &OnceLock<Deflated>| form.get().map_or(0, |form| form.bytes.len());
        self.json.len() + deflated(&self.with_comma) + deflated(&self.without_comma) + size_of::<Self>()
    }

    fn text(&self, first: bool) -> Bytes {
        self.json.slice(usize::from(first && !self.json.is_empty())..)
    }

    fn deflated(&self, first: bool) -> &Deflated {
        let form = if first { &self.without_comma } else { &self.with_comma };
        form.get_or_init(|| deflate(&self.text(first)))
    }
}

/// `{…}`: the whole dict.
pub fn json_body<'a>(chunks: impl Iterator<Item = &'a DictChunk>) -> DictBody {
    let mut body = vec![Bytes::from_static(b"{")];
    body.extend(chunks.enumerate().map(|(index, chunk)| chunk.text(index == 0)));
    body.push(Bytes::from_static(b"}"));
    DictBody::new(body)
}

/// The whole dict as one gzip member. Deflates the chunks that nobody asked for yet.
pub fn gzip_body<'a>(chunks: impl Iterator<Item = &'a DictChunk>) -> DictBody {
    // ID, deflate, no flags, no time, no extra flags, unknown system; then "{" as a stored block.
    const BEGIN: &[u8] = &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff, 0, 1, 0, 0xfe, 0xff, b'{'];
    let mut crc32 = Crc32::new();
    crc32.update(b"{");
    let mut body = vec![Bytes::from_static(BEGIN)];
    let mut text_bytes = 2_u64;
    for (index, chunk) in chunks.enumerate() {
        let deflated = chunk.deflated(index == 0);
        crc32.combine(&deflated.crc32);
        text_bytes += chunk.text(index == 0).len() as u64;
        body.push(deflated.bytes.clone());
    }
    let mut closing = Crc32::new();
    closing.update(b"}");
    crc32.combine(&closing);
    // "}" as the final stored block, then the trailer.
    let mut end = vec![1, 1, 0, 0xfe, 0xff, b'}'];
    end.extend_from_slice(&crc32.finalize().to_le_bytes());
    end.extend_from_slice(&text_bytes.to_le_bytes()[..4]);
    body.push(end.into());
    DictBody::new(body)
}

/// The hash of one entry. The digest of a dict is the sum of its entries': equal whatever the order
/// in which they came, and a change adds one and subtracts one.
pub fn entry_digest(global_id: i64, name: &str) -> u128 {
    // Any fixed key: instances and restarts must agree.
    let mut hasher = SipHasher13::new_with_keys(0x7573_6572_735f_6469, 0x6374_5f64_6967_6573);
    hasher.write_i64(global_id.to_le());
    hasher.write(name.as_bytes());
    hasher.finish128().as_u128()
}

/// A weak entity tag from what the dict contains.
pub fn etag(entries: usize, digest: u128) -> String {
    format!("W/\"{entries:x}-{digest:032x}\"")
}

fn deflate(text: &[u8]) -> Deflated {
    let mut crc32 = Crc32::new();
    crc32.update(text);
    let mut compress = Compress::new(Compression::new(6), false);
    // A stored block costs 5 bytes per 64 KiB at worst; the flush marker another 5.
    let mut bytes = Vec::with_capacity(text.len() / 3 + 64);
    loop {
        let consumed = usize::try_from(compress.total_in()).unwrap_or(text.len());
        let before = bytes.len();
        let room = bytes.capacity();
        let status = compress.compress_vec(&text[consumed..], &mut bytes, FlushCompress::Full);
        let stuck = status.is_err() || bytes.len() == before;
        if (bytes.len() < room && compress.total_in() == text.len() as u64) || (stuck && bytes.len() < room) {
            break;
        }
        bytes.reserve(bytes.capacity());
    }
    bytes.shrink_to_fit();
    Deflated { bytes: bytes.into(), crc32 }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;

    use proptest::prelude::*;

    use super::*;

    fn concat(body: &DictBody) -> Vec<u8> {
        assert_eq!(body.bytes, body.chunks.iter().map(|chunk| chunk.len() as u64).sum::<u64>());
        body.chunks.concat()
    }

    proptest! {
        #[test]
        fn both_forms_say_the_map_whatever_the_chunks(
            names in prop::collection::btree_map(any::<i64>(), ".{0,20}", 0..200), per_chunk in 1_usize..50,
        ) {
            let entries: Vec<(i64, &str)> = names.iter().map(|(id, name)| (*id, name.as_str())).collect();
            let chunks: Vec<DictChunk> =
                entries.chunks(per_chunk).map(|chunk| DictChunk::encode(chunk.iter().copied())).collect();
            let json = concat(&json_body(chunks.iter()));
            let parsed: BTreeMap<i64, String> = serde_json::from_slice(&json).expect("valid JSON");
            prop_assert_eq!(&parsed, &names);
            let mut inflated = Vec::new();
            let gzip = concat(&gzip_body(chunks.iter()));
            let mut decoder = flate2::bufread::GzDecoder::new(gzip.as_slice());
            decoder.read_to_end(&mut inflated).expect("one gzip member, its checksum right");
            prop_assert_eq!(inflated, json);
            prop_assert!(decoder.into_inner().is_empty(), "nothing after the member");
            let whole = DictChunk::encode(entries.iter().copied());
            prop_assert_eq!(whole.digest(), chunks.iter().fold(0_u128, |sum, chunk| sum.wrapping_add(chunk.digest())));
        }
    }

    #[test]
    fn incompressible_names_survive_the_growing_buffer() {
        let mut state = 1_u64;
        let mut letters = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            char::from_u32(0x4e00 + (state >> 40) as u32 % 20_000).expect("a letter")
        };
        let names: Vec<(i64, String)> = (0..1024).map(|id| (id, (0..90).map(|_| letters()).collect())).collect();
        let chunk = DictChunk::encode(names.iter().map(|(id, name)| (*id, name.as_str())));
        let mut inflated = Vec::new();
        let gzip = concat(&gzip_body(std::iter::once(&chunk)));
        flate2::bufread::GzDecoder::new(gzip.as_slice()).read_to_end(&mut inflated).expect("gzip");
        assert_eq!(inflated, concat(&json_body(std::iter::once(&chunk))));
    }
}
