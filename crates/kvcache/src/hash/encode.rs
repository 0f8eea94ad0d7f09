//! Serialises one block after the other into a buffer that is made once, and hashes it there.

use super::digest::{Digest, PADDING_BYTES};
use super::{Algorithm, ExtraKeys, cbor, pickle};
use infer_accel_tensor::simd::Tier;

/// Bytes that one store of a token writes; those beyond its length are overwritten by what follows.
const TOKEN_STORE_BYTES: usize = 8;
/// Bytes around parent, tokens and extra keys, counted generously.
const MAX_FRAMING_BYTES: usize = 64;

/// The buffer of a chain of blocks of one size. What never changes in it is written once.
#[derive(Clone, Debug)]
pub(super) struct BlockEncoder {
    digest: Digest,
    algorithm: Algorithm,
    buffer: Vec<u8>,
    /// Where the parent's digest goes.
    parent_at: usize,
    /// Where the tokens go.
    tokens_at: usize,
    /// Bytes of extra keys that the buffer has room for.
    keys_capacity: usize,
    /// Whether a block may be longer than one frame of pickle.
    frames: bool,
}

impl BlockEncoder {
    pub(super) fn new(tier: Tier, algorithm: Algorithm, block_size: usize) -> Self {
        let mut buffer = Vec::new();
        let digest_len = algorithm.digest_len();
        let (parent_at, token_bytes) = if algorithm.is_pickle() {
            buffer.extend_from_slice(&pickle::HEADER);
            buffer.extend_from_slice(&[0; pickle::FRAME_HEAD_BYTES - 1]);
            buffer.extend_from_slice(&[pickle::SHORT_BINBYTES, digest_len as u8]);
            (buffer.len(), pickle::MAX_TOKEN_BYTES)
        } else {
            cbor::push_head(&mut buffer, cbor::major::ARRAY, 3);
            cbor::push_head(&mut buffer, cbor::major::BYTES, digest_len as u64);
            (buffer.len(), cbor::MAX_TOKEN_BYTES)
        };
        buffer.resize(parent_at + digest_len, 0);
        if algorithm.is_pickle() {
            buffer.push(pickle::MEMOIZE);
            if block_size > 3 {
                buffer.push(pickle::MARK);
            }
        } else {
            cbor::push_head(&mut buffer, cbor::major::ARRAY, block_size as u64);
        }
        let tokens_at = buffer.len();
        let body = tokens_at + token_bytes * block_size + MAX_FRAMING_BYTES;
        let frames = algorithm.is_pickle() && body >= pickle::FRAME_TARGET_BYTES;
        let heads = if frames { body / pickle::FRAME_TARGET_BYTES * pickle::FRAME_HEAD_BYTES } else { 0 };
        buffer.resize(body + heads + TOKEN_STORE_BYTES + PADDING_BYTES, 0);
        let digest = Digest::new(tier, algorithm);
        Self { digest, algorithm, buffer, parent_at, tokens_at, keys_capacity: 0, frames }
    }

    /// Writes the digest of `(parent, tokens, extra_keys)`. The slices are as long as the encoder was made for.
    #[inline]
    pub(super) fn hash(
        &mut self,
        parent: &[u8],
        tokens: &[u32],
        extra_keys: Option<&ExtraKeys>,
        digest: &mut [u8],
    ) {
        self.buffer[self.parent_at..self.parent_at + parent.len()].copy_from_slice(parent);
        let length = if !self.algorithm.is_pickle() {
            self.finish_cbor(tokens, extra_keys)
        } else if self.frames {
            self.finish_frames(tokens)
        } else {
            self.finish_pickle(tokens)
        };
        self.digest.of(&mut self.buffer, length, digest);
    }

    fn finish_cbor(&mut self, tokens: &[u32], extra_keys: Option<&ExtraKeys>) -> usize {
        let end = self.put_tokens(tokens, cbor::token);
        let Some(keys) = extra_keys.map(ExtraKeys::as_cbor) else {
            return self.put(end, &[cbor::NULL]);
        };
        if keys.len() > self.keys_capacity {
            let more = keys.len() - self.keys_capacity;
            self.buffer.resize(self.buffer.len() + more, 0);
            self.keys_capacity = keys.len();
        }
        self.put(end, keys)
    }

    fn finish_pickle(&mut self, tokens: &[u32]) -> usize {
        let end = self.put_tokens(tokens, pickle::token);
        let end = self.put(end, &[close_tuple(tokens.len()), pickle::MEMOIZE, pickle::NONE]);
        let end = self.put(end, &[pickle::TUPLE3, pickle::MEMOIZE, pickle::STOP]);
        self.close_frame(pickle::HEADER.len() - 1, end);
        end
    }

    /// The same for blocks of many thousands of tokens, which take more than one frame.
    fn finish_frames(&mut self, tokens: &[u32]) -> usize {
        let mut frame = pickle::HEADER.len() - 1;
        let mut end = self.tokens_at;
        for &token in tokens {
            (frame, end) = self.next_frame(frame, end);
            let (bytes, length) = pickle::token(token);
            self.put(end, &bytes.to_le_bytes());
            end += length;
        }
        end = self.put(end, &[close_tuple(tokens.len()), pickle::MEMOIZE]);
        (frame, end) = self.next_frame(frame, end);
        end = self.put(end, &[pickle::NONE, pickle::TUPLE3, pickle::MEMOIZE, pickle::STOP]);
        self.close_frame(frame, end);
        end
    }

    /// Closes the frame that begins at `frame` when it is long enough, and begins another one behind it.
    fn next_frame(&mut self, frame: usize, end: usize) -> (usize, usize) {
        if end - frame < pickle::FRAME_HEAD_BYTES + pickle::FRAME_TARGET_BYTES {
            return (frame, end);
        }
        self.close_frame(frame, end);
        self.buffer[end] = pickle::FRAME;
        (end, end + pickle::FRAME_HEAD_BYTES)
    }

    fn close_frame(&mut self, frame: usize, end: usize) {
        let start = frame + pickle::FRAME_HEAD_BYTES;
        self.buffer[frame + 1..start].copy_from_slice(&((end - start) as u64).to_le_bytes());
    }

    #[inline(always)]
    fn put_tokens(&mut self, tokens: &[u32], encode: impl Fn(u32) -> (u64, usize)) -> usize {
        let mut end = self.tokens_at;
        for &token in tokens {
            let (bytes, length) = encode(token);
            self.buffer[end..end + TOKEN_STORE_BYTES].copy_from_slice(&bytes.to_le_bytes());
            end += length;
        }
        end
    }

    #[inline(always)]
    fn put(&mut self, at: usize, bytes: &[u8]) -> usize {
        self.buffer[at..at + bytes.len()].copy_from_slice(bytes);
        at + bytes.len()
    }
}

fn close_tuple(length: usize) -> u8 {
    match length {
        1 => pickle::TUPLE1,
        2 => pickle::TUPLE2,
        3 => pickle::TUPLE3,
        _ => pickle::TUPLE,
    }
}
