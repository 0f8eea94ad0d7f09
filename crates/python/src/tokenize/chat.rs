//! `ChatTemplate`.

use std::sync::Arc;

use infer_accel_tensor::ErrorKind;
use infer_accel_tokenize::chat::{self, ChatSource, Conversation, Data, Now};
use infer_accel_tokenize::{self as core, TokenBatch};
use numpy::{IntoPyArray, PyArray1};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};

use super::arguments::{int32, int64, threads_of};
use super::tokenizer::{Batch, Tokenizer};
use crate::errors::NativeError;
use crate::numbers::Count;
use crate::run::{interrupted, run};
use crate::text::utf8;

/// How deep messages may be nested.
const MAX_DEPTH: usize = 64;
/// Rendering and encoding a conversation takes longer than giving the interpreter's lock away.
const LONG: usize = usize::MAX;

/// Year, month, day, hour, minute, second, microsecond, weekday, day of the year.
pub(crate) type Clock = (i32, u8, u8, u8, u8, u8, u32, u8, u16);

/// Conversations to prompts.
#[pyclass(frozen, module = "infer_accel._native.tokenize")]
pub(crate) struct ChatTemplate {
    template: chat::ChatTemplate,
    tokenizer: Arc<core::Tokenizer>,
}

impl ChatTemplate {
    /// A template that came with its tokenizer.
    pub(super) fn over(template: chat::ChatTemplate, tokenizer: Arc<core::Tokenizer>) -> Self {
        Self { template, tokenizer }
    }

    /// Reads a conversation; what comes back renders and encodes it, and needs no interpreter.
    pub(crate) fn encoding(
        &self,
        variables: &Bound<'_, PyDict>,
        now: Option<Clock>,
        trusted: bool,
    ) -> PyResult<impl FnOnce() -> core::Result<Vec<u32>> + Send + '_> {
        let conversation = conversation(named(variables, 0)?, now, trusted);
        Ok(move || self.template.encode(&self.tokenizer, &conversation))
    }
}

#[pymethods]
impl ChatTemplate {
    #[new]
    fn new(
        tokenizer: &Bound<'_, Tokenizer>,
        template: &Bound<'_, PyAny>,
        special_tokens: Vec<(String, String)>,
    ) -> PyResult<Self> {
        let template = utf8(template)?.to_owned();
        let source = ChatSource { template, tool_template: None, special_tokens };
        let template = chat::ChatTemplate::of(&source).map_err(NativeError::from)?;
        Ok(Self::over(template, Arc::clone(&tokenizer.get().core)))
    }

    /// Whether the template may show the time: if not, there is no need to ask for it.
    #[getter]
    fn shows_time(&self) -> bool {
        self.template.shows_time()
    }

    /// The prompt of a conversation.
    #[pyo3(signature = (variables: "dict[str, object]", now))]
    fn render(&self, py: Python<'_>, variables: &Bound<'_, PyDict>, now: Option<Clock>) -> PyResult<String> {
        let conversation = conversation(named(variables, 0)?, now, true);
        run(py, LONG, || self.template.render(&conversation.variables, conversation.now))
    }

    /// The ids of a conversation's prompt.
    #[pyo3(signature = (variables: "dict[str, object]", now, trusted))]
    fn encode<'py>(
        &self,
        py: Python<'py>,
        variables: &Bound<'py, PyDict>,
        now: Option<Clock>,
        trusted: bool,
    ) -> PyResult<Bound<'py, PyArray1<i32>>> {
        let ids = run(py, LONG, self.encoding(variables, now, trusted)?)?;
        Ok(int32(ids).into_pyarray(py))
    }

    /// The number of ids of a conversation's prompt.
    #[pyo3(signature = (variables: "dict[str, object]", now, trusted))]
    fn count(
        &self,
        py: Python<'_>,
        variables: &Bound<'_, PyDict>,
        now: Option<Clock>,
        trusted: bool,
    ) -> PyResult<usize> {
        let conversation = conversation(named(variables, 0)?, now, trusted);
        run(py, LONG, || self.template.count(&self.tokenizer, &conversation))
    }

    /// The prompts of many conversations, which share all variables but their messages.
    #[pyo3(signature = (messages, variables: "dict[str, object]", now, num_threads))]
    fn render_batch(
        &self,
        py: Python<'_>,
        messages: &Bound<'_, PyAny>,
        variables: &Bound<'_, PyDict>,
        now: Option<Clock>,
        num_threads: Option<Count>,
    ) -> PyResult<Vec<String>> {
        let (conversations, threads) =
            (conversations(messages, variables, now, true)?, threads_of(num_threads)?);
        run(py, LONG, || self.template.render_batch(&conversations, threads, &interrupted))
    }

    /// The ids of many conversations' prompts, and where each begins.
    #[pyo3(signature = (messages, variables: "dict[str, object]", now, trusted, num_threads))]
    fn encode_batch<'py>(
        &self,
        py: Python<'py>,
        messages: &Bound<'py, PyAny>,
        variables: &Bound<'py, PyDict>,
        now: Option<Clock>,
        trusted: bool,
        num_threads: Option<Count>,
    ) -> PyResult<Batch<'py>> {
        let (conversations, threads) =
            (conversations(messages, variables, now, trusted)?, threads_of(num_threads)?);
        let TokenBatch { ids, offsets } = run(py, LONG, || {
            self.template.encode_batch(&self.tokenizer, &conversations, threads, &interrupted)
        })?;
        Ok((int32(ids).into_pyarray(py), int64(offsets).into_pyarray(py)))
    }

    /// The number of ids of each of many conversations' prompts.
    #[pyo3(signature = (messages, variables: "dict[str, object]", now, trusted, num_threads))]
    fn count_batch<'py>(
        &self,
        py: Python<'py>,
        messages: &Bound<'py, PyAny>,
        variables: &Bound<'py, PyDict>,
        now: Option<Clock>,
        trusted: bool,
        num_threads: Option<Count>,
    ) -> PyResult<Bound<'py, PyArray1<i64>>> {
        let (conversations, threads) =
            (conversations(messages, variables, now, trusted)?, threads_of(num_threads)?);
        let counts = run(py, LONG, || {
            self.template.count_batch(&self.tokenizer, &conversations, threads, &interrupted)
        })?;
        Ok(int64(counts).into_pyarray(py))
    }
}

fn conversation(variables: Vec<(String, Data)>, now: Option<Clock>, trusted: bool) -> Conversation {
    let now = now.map(|(year, month, day, hour, minute, second, microsecond, weekday, day_of_year)| Now {
        year,
        month,
        day,
        hour,
        minute,
        second,
        microsecond,
        weekday,
        day_of_year,
    });
    Conversation { variables, now, trusted }
}

fn conversations(
    messages: &Bound<'_, PyAny>,
    variables: &Bound<'_, PyDict>,
    now: Option<Clock>,
    trusted: bool,
) -> PyResult<Vec<Conversation>> {
    let shared = named(variables, 0)?;
    let with = |messages: PyResult<Bound<'_, PyAny>>| {
        let mut variables = vec![("messages".to_owned(), data(&messages?, 1)?)];
        variables.extend_from_slice(&shared);
        Ok(conversation(variables, now, trusted))
    };
    messages.try_iter()?.map(with).collect()
}

fn named<T: for<'t> From<&'t str>>(variables: &Bound<'_, PyDict>, depth: usize) -> PyResult<Vec<(T, Data)>> {
    let mut named = Vec::with_capacity(variables.len());
    for (key, value) in variables.iter() {
        named.push((utf8(&key)?.into(), data(&value, depth + 1)?));
    }
    Ok(named)
}

/// A private copy of what came from Python; what most of a conversation is made of is asked for first.
fn data(value: &Bound<'_, PyAny>, depth: usize) -> PyResult<Data> {
    if depth > MAX_DEPTH {
        return Err(refused(format!(
            "messages nested deeper than {MAX_DEPTH} came; are they part of themselves?"
        )));
    }
    if value.is_instance_of::<PyString>() {
        return Ok(Data::Text(utf8(value)?.into()));
    }
    if let Ok(dict) = value.cast::<PyDict>() {
        return Ok(Data::Dict(named(dict, depth)?));
    }
    if let Ok(list) = value.cast::<PyList>() {
        let mut items = Vec::with_capacity(list.len());
        for item in list.iter() {
            items.push(data(&item, depth + 1)?);
        }
        return Ok(Data::List(items));
    }
    if value.is_none() {
        return Ok(Data::None);
    }
    if value.is_instance_of::<PyBool>() {
        return Ok(Data::Bool(value.is_truthy()?));
    }
    if value.is_instance_of::<PyInt>() {
        let integer =
            value.extract::<i64>().map(i128::from).or_else(|_| value.extract::<u64>().map(i128::from));
        return integer
            .map(Data::Integer)
            .map_err(|_| refused(format!("the integer {value} has more than 64 bits")));
    }
    if value.is_instance_of::<PyFloat>() {
        return Ok(Data::Float(value.extract()?));
    }
    if let Ok(tuple) = value.cast::<PyTuple>() {
        let items = tuple.iter().map(|item| data(&item, depth + 1)).collect::<PyResult<_>>();
        return Ok(Data::List(items?));
    }
    let name = value.get_type().fully_qualified_name()?;
    Err(refused(format!(
        "an object of type {name} came among messages or variables; pass dicts with strings as keys, lists, strings, \
         numbers, booleans and None"
    )))
}

fn refused(message: String) -> PyErr {
    NativeError::new(ErrorKind::DType, "tokenizer.message_value", message).into()
}
