//! `Tokenizer`.

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::Arc;

use infer_accel_tokenize::{self as core, EncodeOptions, TiktokenOptions, TokenBatch};
use numpy::{IntoPyArray, PyArray1, PyArray2, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyList};

use super::arguments::{flat_ids, int32, int64, invalid_utf8, threads_of, total, work};
use super::chat::ChatTemplate;
use super::decoding::{Decoding, texts};
use super::numbers::Numbers;
use super::session::Session;
use super::stream::StreamDecoder;
use crate::errors::NativeError;
use crate::numbers::{Count, Id, Limit};
use crate::run::{interrupted, run};
use crate::tensor::{IdList, IntTable};
use crate::text::{Texts, utf8};

/// Ids, and where each of them lies in the text.
type Located<'py> = (Bound<'py, PyArray1<i32>>, Bound<'py, PyArray2<i64>>);

/// All ids, and where each text's begin.
pub(super) type Batch<'py> = (Bound<'py, PyArray1<i32>>, Bound<'py, PyArray1<i64>>);

/// Ids whose memory a thread keeps for its next call: 64 KiB.
const KEPT_IDS: usize = 1 << 14;

/// Ids beyond a third of the bytes for which a long text's memory has room: what is written beyond the last id.
const ROOM: usize = 2048;

/// A tokenizer, immutable and shared between threads.
#[pyclass(frozen, module = "infer_accel._native.tokenize")]
pub(crate) struct Tokenizer {
    pub(crate) core: Arc<core::Tokenizer>,
    /// A ready-made int for each id, made when a list is first asked for.
    numbers: PyOnceLock<Numbers>,
}

fn loaded(core: core::Tokenizer) -> Tokenizer {
    Tokenizer { core: Arc::new(core), numbers: PyOnceLock::new() }
}

#[pymethods]
impl Tokenizer {
    /// Reads a file, whatever its format.
    #[staticmethod]
    fn from_file(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        run(py, usize::MAX, || core::Tokenizer::from_file(&path)).map(loaded)
    }

    /// Reads a model's directory.
    #[staticmethod]
    fn from_dir(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        run(py, usize::MAX, || core::Tokenizer::from_dir(&path)).map(loaded)
    }

    /// Reads tiktoken ranks.
    #[staticmethod]
    fn from_tiktoken(
        py: Python<'_>,
        path: PathBuf,
        pattern: String,
        special_tokens: Vec<(String, i64)>,
        eos_token: Option<String>,
    ) -> PyResult<Self> {
        run(py, usize::MAX, || {
            let options = TiktokenOptions {
                pattern: &pattern,
                special_tokens: &special_tokens,
                eos_token: eos_token.as_deref(),
            };
            core::Tokenizer::from_tiktoken(&path, &options)
        })
        .map(loaded)
    }

    /// The ids of a text.
    fn encode<'py>(
        &self,
        py: Python<'py>,
        text: &Bound<'py, PyAny>,
        add_special_tokens: bool,
        parse_special: bool,
    ) -> PyResult<Bound<'py, PyArray1<i32>>> {
        self.with_ids(py, text, add_special_tokens, parse_special, |ids| {
            if ids.capacity() > KEPT_IDS {
                ids.shrink_to_fit();
                return Ok(int32(std::mem::take(ids)).into_pyarray(py));
            }
            // A copy of this size costs less than an owner of the memory for the array.
            let numbers = int32(std::mem::take(ids));
            let array = PyArray1::from_slice(py, &numbers);
            *ids = numbers.into_iter().map(i32::cast_unsigned).collect();
            Ok(array)
        })
    }

    /// The ids of a text, as a list.
    #[pyo3(signature = (text, add_special_tokens, parse_special) -> "list[int]")]
    fn encode_list<'py>(
        &self,
        py: Python<'py>,
        text: &Bound<'py, PyAny>,
        add_special_tokens: bool,
        parse_special: bool,
    ) -> PyResult<Bound<'py, PyList>> {
        let numbers = self.numbers.get_or_try_init(py, || Numbers::new(py, self.core.vocab_size()))?;
        self.with_ids(py, text, add_special_tokens, parse_special, |ids| numbers.list(py, ids))
    }

    /// The ids of many texts, and where each begins.
    fn encode_batch<'py>(
        &self,
        py: Python<'py>,
        texts: &Bound<'py, PyAny>,
        add_special_tokens: bool,
        parse_special: bool,
        num_threads: Option<Count>,
    ) -> PyResult<Batch<'py>> {
        let (texts, threads) = (Texts::of(texts)?, threads_of(num_threads)?);
        let texts = texts.utf8()?;
        let options = EncodeOptions { add_special_tokens, parse_special };
        let TokenBatch { ids, offsets } =
            run(py, work(total(&texts)), || self.core.encode_batch(&texts, options, threads, &interrupted))?;
        Ok((int32(ids).into_pyarray(py), int64(offsets).into_pyarray(py)))
    }

    /// The ids of segments, each trusted or not, as of one text.
    fn encode_segments<'py>(
        &self,
        py: Python<'py>,
        texts: &Bound<'py, PyAny>,
        trusted: Vec<bool>,
        add_special_tokens: bool,
    ) -> PyResult<Bound<'py, PyArray1<i32>>> {
        let texts = Texts::of(texts)?;
        let texts = texts.utf8()?;
        let segments: Vec<core::Segment<'_>> = texts.iter().copied().zip(trusted).collect();
        let ids = run(py, work(total(&texts)), || self.core.encode_segments(&segments, add_special_tokens))?;
        Ok(int32(ids).into_pyarray(py))
    }

    /// The ids of a text and where each of them lies in it, in characters or in bytes.
    fn offsets<'py>(
        &self,
        py: Python<'py>,
        text: &Bound<'py, PyAny>,
        in_characters: bool,
        add_special_tokens: bool,
        parse_special: bool,
    ) -> PyResult<Located<'py>> {
        let text = utf8(text)?;
        let options = EncodeOptions { add_special_tokens, parse_special };
        let (ids, bounds) = run(py, work(text.len()), || {
            let (ids, mut parts): (Vec<u32>, Vec<_>) = self.core.offsets(text, options)?.into_iter().unzip();
            if in_characters {
                parts = core::in_characters(text, parts.into_iter());
            }
            let bounds = parts.into_iter().flat_map(|part| [part.start, part.end]);
            Ok::<_, core::TokenizeError>((ids, bounds.collect()))
        })?;
        let rows = ids.len();
        let bounds = PyArray1::from_vec(py, int64(bounds)).reshape([rows, 2])?;
        Ok((int32(ids).into_pyarray(py), bounds))
    }

    /// A stream of ids to text, which goes on after the ids of a prompt.
    fn stream(
        &self,
        skip_special_tokens: bool,
        errors: &str,
        prompt: Option<IdList>,
    ) -> PyResult<StreamDecoder> {
        let invalid = invalid_utf8(errors)?;
        let prompt = prompt.map(|ids| flat_ids(ids, &self.core)).transpose()?;
        StreamDecoder::new(Arc::clone(&self.core), skip_special_tokens, invalid, prompt.as_deref())
    }

    /// A text that grows.
    fn session(&self, add_special_tokens: bool, parse_special: bool) -> PyResult<Session> {
        Session::new(Arc::clone(&self.core), EncodeOptions { add_special_tokens, parse_special })
    }

    /// The chat template that came with the tokenizer.
    fn chat(&self) -> PyResult<Option<ChatTemplate>> {
        let template = self.core.chat().map_err(NativeError::from)?;
        Ok(template.map(|template| ChatTemplate::over(template, Arc::clone(&self.core))))
    }

    /// The number of ids of a text.
    fn count(
        &self,
        py: Python<'_>,
        text: &Bound<'_, PyAny>,
        add_special_tokens: bool,
        parse_special: bool,
        truncation: bool,
    ) -> PyResult<usize> {
        let text = utf8(text)?;
        let options = EncodeOptions { add_special_tokens, parse_special };
        run(py, work(text.len()), || {
            if truncation { self.core.count_encoded(text, options) } else { self.core.count(text, options) }
        })
    }

    /// The number of ids of each of many texts.
    fn count_batch<'py>(
        &self,
        py: Python<'py>,
        texts: &Bound<'py, PyAny>,
        add_special_tokens: bool,
        parse_special: bool,
        truncation: bool,
        num_threads: Option<Count>,
    ) -> PyResult<Bound<'py, PyArray1<i64>>> {
        let (texts, threads) = (Texts::of(texts)?, threads_of(num_threads)?);
        let texts = texts.utf8()?;
        let options = EncodeOptions { add_special_tokens, parse_special };
        let counts = run(py, work(total(&texts)), || {
            self.core.count_batch(&texts, options, truncation, threads, &interrupted)
        })?;
        Ok(int64(counts).into_pyarray(py))
    }

    /// Whether a text has at most so many ids.
    fn fits(
        &self,
        py: Python<'_>,
        text: &Bound<'_, PyAny>,
        max_tokens: Limit,
        add_special_tokens: bool,
        parse_special: bool,
    ) -> PyResult<bool> {
        let (text, limit) = (utf8(text)?, max_tokens.0);
        let options = EncodeOptions { add_special_tokens, parse_special };
        run(py, work(text.len()), || self.core.fits(text, options, limit))
    }

    /// The beginning of a text that has at most so many ids.
    fn truncate<'py>(
        &self,
        py: Python<'py>,
        text: &Bound<'py, PyAny>,
        max_tokens: Limit,
        add_special_tokens: bool,
        parse_special: bool,
    ) -> PyResult<String> {
        let (text, limit) = (utf8(text)?, max_tokens.0);
        let options = EncodeOptions { add_special_tokens, parse_special };
        let end = run(py, work(text.len()), || self.core.truncate(text, options, limit))?;
        Ok(text.get(..end).unwrap_or(text).to_owned())
    }

    /// The text of ids.
    fn decode(
        &self,
        py: Python<'_>,
        ids: IdList,
        skip_special_tokens: bool,
        errors: &str,
    ) -> PyResult<String> {
        let (ids, invalid) = (flat_ids(ids, &self.core)?, invalid_utf8(errors)?);
        run(py, ids.len() * 16, || self.core.decode(&ids, skip_special_tokens, invalid))
    }

    /// The bytes of ids.
    fn decode_bytes<'py>(
        &self,
        py: Python<'py>,
        ids: IdList,
        skip_special_tokens: bool,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let ids = flat_ids(ids, &self.core)?;
        let bytes = run(py, ids.len() * 16, || self.core.decode_bytes(&ids, skip_special_tokens))?;
        Ok(PyBytes::new(py, &bytes))
    }

    /// The texts of a flat list of ids, cut at the offsets.
    #[pyo3(signature = (ids, offsets, skip_special_tokens, errors, num_threads) -> "list[str]")]
    fn decode_batch<'py>(
        &self,
        py: Python<'py>,
        ids: IdList,
        offsets: IntTable,
        skip_special_tokens: bool,
        errors: &str,
        num_threads: Option<Count>,
    ) -> PyResult<Bound<'py, PyList>> {
        let decoding = Decoding { skip_special_tokens, errors, num_threads };
        texts(py, &self.core, ids, offsets.values(), &decoding)
    }

    /// The texts of many lists of ids.
    #[pyo3(signature = (lists, skip_special_tokens, errors, num_threads) -> "list[str]")]
    fn decode_lists<'py>(
        &self,
        py: Python<'py>,
        lists: &Bound<'py, PyAny>,
        skip_special_tokens: bool,
        errors: &str,
        num_threads: Option<Count>,
    ) -> PyResult<Bound<'py, PyList>> {
        let (ids, offsets) = IdList::joined(lists)?;
        let decoding = Decoding { skip_special_tokens, errors, num_threads };
        texts(py, &self.core, ids, &offsets, &decoding)
    }

    /// The id of a token in its written form.
    fn token_to_id(&self, token: &Bound<'_, PyAny>) -> PyResult<Option<u32>> {
        Ok(self.core.token_to_id(utf8(token)?))
    }

    /// The written form of a token.
    fn id_to_token(&self, id: Id) -> Option<String> {
        self.core.id_to_token(u32::try_from(id.0).ok()?)
    }

    /// One more than the greatest id.
    #[getter]
    fn vocab_size(&self) -> usize {
        self.core.vocab_size()
    }

    /// The id that ends a text, where it is known.
    #[getter]
    fn eos_token_id(&self) -> Option<u32> {
        self.core.eos_token_id()
    }

    /// Whether the native pipeline does the work.
    #[getter]
    fn is_native(&self) -> bool {
        self.core.is_native()
    }
}

impl Tokenizer {
    /// Calls `finish` with the ids of a text, in memory that the next short text of this thread uses again.
    fn with_ids<R>(
        &self,
        py: Python<'_>,
        text: &Bound<'_, PyAny>,
        add_special_tokens: bool,
        parse_special: bool,
        finish: impl FnOnce(&mut Vec<u32>) -> PyResult<R>,
    ) -> PyResult<R> {
        thread_local! {
            static KEPT: Cell<Vec<u32>> = const { Cell::new(Vec::new()) };
        }
        let text = utf8(text)?;
        let options = EncodeOptions { add_special_tokens, parse_special };
        // Taken, not borrowed: what runs meanwhile on this thread finds an empty one.
        let mut ids =
            if text.len() < KEPT_IDS { KEPT.take() } else { Vec::with_capacity(text.len() / 3 + ROOM) };
        ids.clear();
        run(py, work(text.len()), || self.core.encode_into(text, options, &mut ids))?;
        let result = finish(&mut ids);
        if ids.capacity() <= KEPT_IDS {
            KEPT.set(ids);
        }
        result
    }
}
