//! Tokenizers: see the typed module `infer_accel.tokenize`.

use infer_accel_tensor::{ErrorKind, threads};
use infer_accel_tokenize::{InvalidUtf8, TokenizeError};
use pyo3::prelude::*;

use crate::errors::NativeError;
use crate::tensor::IntTable;

impl From<TokenizeError> for NativeError {
    fn from(error: TokenizeError) -> Self {
        Self::new(error.kind(), error.code(), error.to_string())
    }
}

/// Encoding a byte of text takes about as long as moving this many bytes of memory.
const WORK_PER_BYTE: usize = 48;

fn work(text_bytes: usize) -> usize {
    text_bytes.saturating_mul(WORK_PER_BYTE)
}

fn threads_of(num_threads: Option<usize>) -> PyResult<usize> {
    Ok(threads::resolve(num_threads).map_err(NativeError::from)?)
}

fn limit(max_tokens: i64) -> Result<usize, NativeError> {
    usize::try_from(max_tokens).map_err(|_| {
        NativeError::new(
            ErrorKind::Argument,
            "argument.max_tokens",
            format!("max_tokens={max_tokens} came; pass 0 or more"),
        )
    })
}

/// What `bytes.decode` calls `errors`.
fn invalid_utf8(errors: &str) -> Result<InvalidUtf8, NativeError> {
    match errors {
        "replace" => Ok(InvalidUtf8::Replace),
        "ignore" => Ok(InvalidUtf8::Ignore),
        "strict" => Ok(InvalidUtf8::Strict),
        _ => Err(NativeError::new(
            ErrorKind::Argument,
            "argument.errors",
            format!("errors={errors:?} came; allowed: 'replace', 'ignore', 'strict'"),
        )),
    }
}

/// A flat list of ids that fit the vocabulary's type; what the vocabulary lacks is found in the core.
fn flat_ids(table: IntTable, tokenizer: &infer_accel_tokenize::Tokenizer) -> Result<Vec<u32>, NativeError> {
    if table.shape().len() != 1 {
        return Err(NativeError::new(
            ErrorKind::Shape,
            "shape.ids",
            format!("ids of shape {:?} came; pass one axis of ids, or use decode_batch", table.shape()),
        ));
    }
    let narrow = |id: i64| u32::try_from(id).map_err(|_| NativeError::from(tokenizer.no_such_id(id)));
    table.into_values().into_iter().map(narrow).collect()
}

/// Text to tokens, counts, and back.
#[pyo3::pymodule]
#[allow(clippy::needless_pass_by_value)] // arguments are extracted from Python's objects and arrive by value
pub(crate) mod tokenize {
    use std::path::PathBuf;

    use infer_accel_tokenize::{self as core, EncodeOptions, TiktokenOptions, TokenBatch};
    use numpy::{IntoPyArray, PyArray1};
    use pyo3::prelude::*;
    use pyo3::sync::PyOnceLock;
    use pyo3::types::{PyBytes, PyInt, PyList};

    use super::{flat_ids, invalid_utf8, limit, threads_of, work};
    use crate::run::{interrupted, run};
    use crate::tensor::IntTable;
    use crate::text::{Texts, utf8};

    /// All ids, and where each text's begin.
    type Batch<'py> = (Bound<'py, PyArray1<i32>>, Bound<'py, PyArray1<i64>>);

    /// A tokenizer, immutable and shared between threads.
    #[pyclass(frozen, module = "infer_accel._native.tokenize")]
    pub(crate) struct Tokenizer {
        pub(crate) core: core::Tokenizer,
        /// A ready-made int for each id, made when a list is first asked for.
        numbers: PyOnceLock<Vec<Py<PyInt>>>,
    }

    fn loaded(core: core::Tokenizer) -> Tokenizer {
        Tokenizer { core, numbers: PyOnceLock::new() }
    }

    fn int32(ids: Vec<u32>) -> Vec<i32> {
        // In place: the standard library reuses the allocation, and ids are below 2^24.
        ids.into_iter().map(u32::cast_signed).collect()
    }

    fn int64(values: Vec<usize>) -> Vec<i64> {
        values.into_iter().map(|value| value as i64).collect()
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
            Ok(int32(self.ids(py, text, add_special_tokens, parse_special)?).into_pyarray(py))
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
            let ids = self.ids(py, text, add_special_tokens, parse_special)?;
            let numbers = self.numbers(py)?;
            let number = |&id: &u32| match numbers.get(id as usize) {
                Some(number) => number.bind(py).clone(),
                None => PyInt::new(py, id),
            };
            PyList::new(py, ids.iter().map(number))
        }

        /// The ids of many texts, and where each begins.
        fn encode_batch<'py>(
            &self,
            py: Python<'py>,
            texts: &Bound<'py, PyAny>,
            add_special_tokens: bool,
            parse_special: bool,
            num_threads: Option<usize>,
        ) -> PyResult<Batch<'py>> {
            let (texts, threads) = (Texts::of(texts)?, threads_of(num_threads)?);
            let texts = texts.utf8()?;
            let options = EncodeOptions { add_special_tokens, parse_special };
            let TokenBatch { ids, offsets } = run(py, work(total(&texts)), || {
                self.core.encode_batch(&texts, options, threads, &interrupted)
            })?;
            Ok((int32(ids).into_pyarray(py), int64(offsets).into_pyarray(py)))
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
                if truncation {
                    self.core.count_encoded(text, options)
                } else {
                    self.core.count(text, options)
                }
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
            num_threads: Option<usize>,
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
            max_tokens: i64,
            add_special_tokens: bool,
            parse_special: bool,
        ) -> PyResult<bool> {
            let (text, limit) = (utf8(text)?, limit(max_tokens)?);
            let options = EncodeOptions { add_special_tokens, parse_special };
            run(py, work(text.len()), || self.core.fits(text, options, limit))
        }

        /// The beginning of a text that has at most so many ids.
        fn truncate<'py>(
            &self,
            py: Python<'py>,
            text: &Bound<'py, PyAny>,
            max_tokens: i64,
            add_special_tokens: bool,
            parse_special: bool,
        ) -> PyResult<String> {
            let (text, limit) = (utf8(text)?, limit(max_tokens)?);
            let options = EncodeOptions { add_special_tokens, parse_special };
            let end = run(py, work(text.len()), || self.core.truncate(text, options, limit))?;
            Ok(text.get(..end).unwrap_or(text).to_owned())
        }

        /// The text of ids.
        fn decode(
            &self,
            py: Python<'_>,
            ids: IntTable,
            skip_special_tokens: bool,
            errors: &str,
        ) -> PyResult<String> {
            let (ids, invalid) = (flat_ids(ids, &self.core)?, invalid_utf8(errors)?);
            run(py, ids.len() * 64, || self.core.decode(&ids, skip_special_tokens, invalid))
        }

        /// The bytes of ids.
        fn decode_bytes<'py>(
            &self,
            py: Python<'py>,
            ids: IntTable,
            skip_special_tokens: bool,
        ) -> PyResult<Bound<'py, PyBytes>> {
            let ids = flat_ids(ids, &self.core)?;
            let bytes = run(py, ids.len() * 64, || self.core.decode_bytes(&ids, skip_special_tokens))?;
            Ok(PyBytes::new(py, &bytes))
        }

        /// The texts of a flat table of ids, cut at the offsets.
        fn decode_batch(
            &self,
            py: Python<'_>,
            ids: IntTable,
            offsets: IntTable,
            skip_special_tokens: bool,
            errors: &str,
            num_threads: Option<usize>,
        ) -> PyResult<Vec<String>> {
            let (ids, offsets) = (flat_ids(ids, &self.core)?, offsets.into_values());
            let (invalid, threads) = (invalid_utf8(errors)?, threads_of(num_threads)?);
            run(py, ids.len() * 64, || {
                self.core.decode_batch(&ids, &offsets, skip_special_tokens, invalid, threads, &interrupted)
            })
        }

        /// The id of a token in its written form.
        fn token_to_id(&self, token: &Bound<'_, PyAny>) -> PyResult<Option<u32>> {
            Ok(self.core.token_to_id(utf8(token)?))
        }

        /// The written form of a token.
        fn id_to_token(&self, id: i64) -> Option<String> {
            self.core.id_to_token(u32::try_from(id).ok()?)
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
        fn ids(
            &self,
            py: Python<'_>,
            text: &Bound<'_, PyAny>,
            add_special_tokens: bool,
            parse_special: bool,
        ) -> PyResult<Vec<u32>> {
            let text = utf8(text)?;
            let options = EncodeOptions { add_special_tokens, parse_special };
            run(py, work(text.len()), || self.core.encode(text, options))
        }

        fn numbers(&self, py: Python<'_>) -> PyResult<&[Py<PyInt>]> {
            let make = || {
                (0..self.core.vocab_size())
                    .map(|id| Ok(id.into_pyobject(py).map_err(PyErr::from)?.unbind()))
                    .collect::<PyResult<Vec<_>>>()
            };
            self.numbers.get_or_try_init(py, make).map(Vec::as_slice)
        }
    }

    fn total(texts: &[&str]) -> usize {
        texts.iter().map(|text| text.len() + 32).sum()
    }
}
