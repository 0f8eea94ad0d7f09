//! `hash_prompt`, `hash_chat`: from a text or a conversation to ids and hashes, in one call.

use infer_accel_kvcache::hash::{Algorithm, BlockHasher, ExtraKeys};
use infer_accel_tokenize::{EncodeOptions, TokenizeError};
use numpy::{PyArray1, PyArray2};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::extra_keys::BlockKeys;
use super::hash::{first_parent, rows};
use crate::errors::NativeError;
use crate::numbers::Count;
use crate::run::run;
use crate::text::LongText;
use crate::tokenize::chat::{ChatTemplate, Clock};
use crate::tokenize::tokenizer::Tokenizer;

/// Encoding a byte of text and hashing its tokens takes as long as moving about this many.
const BYTES_PER_CHARACTER: usize = 70;

/// Ids, and the hashes of their full blocks.
type PromptBlocks<'py> = (Bound<'py, PyArray1<i32>>, Bound<'py, PyArray2<u8>>);

/// How the blocks of a prompt are hashed.
struct Chain {
    algorithm: Algorithm,
    block_size: usize,
    parent: Vec<u8>,
    first: Option<ExtraKeys>,
    later: Option<ExtraKeys>,
}

impl Chain {
    /// The first block has the first of the keys, the others the second.
    fn new(algorithm: &str, block_size: usize, keys: &BlockKeys) -> Result<Self, NativeError> {
        let algorithm = Algorithm::from_name(algorithm)?;
        let key = |at| keys.0.get(at).cloned().flatten();
        let parent = first_parent(algorithm)?;
        Ok(Self { algorithm, block_size, parent, first: key(0), later: key(1) })
    }

    fn hashes(&self, ids: &[u32]) -> Result<Vec<u8>, NativeError> {
        let mut hasher = BlockHasher::new(self.algorithm, self.block_size)?;
        let mut hashes = vec![0; ids.len() / self.block_size * self.algorithm.digest_len()];
        let keys_of = |block: usize| if block == 0 { self.first.as_ref() } else { self.later.as_ref() };
        hasher.continue_chain(&mut self.parent.clone(), ids, keys_of, &mut hashes);
        Ok(hashes)
    }

    /// Encodes and hashes, without the interpreter's lock where it is long.
    fn of<'py>(
        &self,
        py: Python<'py>,
        work: usize,
        encode: impl FnOnce() -> Result<Vec<u32>, TokenizeError> + Send,
    ) -> PyResult<PromptBlocks<'py>> {
        let (ids, hashes) = run(py, work, || {
            let ids = encode()?;
            let hashes = self.hashes(&ids)?;
            Ok::<_, NativeError>((ids, hashes))
        })?;
        let ids = ids.into_iter().map(u32::cast_signed).collect(); // below 2^24, the most that a vocabulary has
        Ok((PyArray1::from_vec(py, ids), rows(py, hashes, self.algorithm)?))
    }
}

/// Encodes a text and hashes its full blocks, the first with `keys[0]`, the others with `keys[1]`. `options` are
/// `add_special_tokens` and `parse_special`.
#[pyfunction]
#[pyo3(signature = (tokenizer, text, *, block_size, algorithm, keys, options))]
pub(super) fn hash_prompt<'py>(
    py: Python<'py>,
    tokenizer: PyRef<'py, Tokenizer>,
    text: &Bound<'py, PyAny>,
    block_size: Count,
    algorithm: &str,
    keys: BlockKeys,
    options: (bool, bool),
) -> PyResult<PromptBlocks<'py>> {
    let text = &*LongText::of(text)?;
    let options = EncodeOptions { add_special_tokens: options.0, parse_special: options.1 };
    let core = &tokenizer.core;
    let chain = Chain::new(algorithm, block_size.0, &keys)?;
    chain.of(py, text.len() * BYTES_PER_CHARACTER, || core.encode(text, options))
}

/// Renders a conversation, encodes the prompt and hashes its full blocks; `keys` as for `hash_prompt`.
#[pyfunction]
#[pyo3(signature = (chat, variables: "dict[str, object]", *, now, trusted, block_size, algorithm, keys))]
#[allow(clippy::too_many_arguments)] // the call's own options
pub(super) fn hash_chat<'py>(
    py: Python<'py>,
    chat: PyRef<'py, ChatTemplate>,
    variables: &Bound<'py, PyDict>,
    now: Option<Clock>,
    trusted: bool,
    block_size: Count,
    algorithm: &str,
    keys: BlockKeys,
) -> PyResult<PromptBlocks<'py>> {
    let encode = chat.encoding(variables, now, trusted)?;
    Chain::new(algorithm, block_size.0, &keys)?.of(py, usize::MAX, encode)
}
