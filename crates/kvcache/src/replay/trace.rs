//! Recorded requests: Mooncake's JSON lines and Azure's CSV.

use crate::error::KvCacheError;
use serde::Deserialize;
use std::ops::Range;

/// Tokens that an id of a trace stands for.
pub const IDS_TOKENS: usize = 512;
/// Most tokens of a prompt or an answer; what is longer is no request.
const MAX_TOKENS: u64 = 1 << 28;

/// One request of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceRequest {
    /// Milliseconds since the trace began.
    pub arrival: u64,
    /// Tokens of the prompt.
    pub input_tokens: usize,
    /// Tokens of the answer.
    pub output_tokens: usize,
    /// Where its ids stand; empty in a trace that has none.
    pub ids: Range<usize>,
}

/// Requests in the order of their arrival.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    requests: Vec<TraceRequest>,
    ids: Vec<u64>,
}

/// A line of Mooncake's traces; what else it holds is passed over.
#[derive(Deserialize)]
struct Line {
    timestamp: f64,
    input_length: u64,
    output_length: u64,
    hash_ids: Vec<u64>,
}

impl Trace {
    /// Reads a trace, whichever of both formats it has: JSON lines begin with a brace.
    pub fn parse(data: &[u8]) -> Result<Self, KvCacheError> {
        let text = std::str::from_utf8(data).map_err(|error| {
            let line = data[..error.valid_up_to()].split(|&byte| byte == b'\n').count();
            wrong(line, "is not UTF-8")
        })?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let trace = if text.trim_start().starts_with('{') {
            Self::parse_mooncake(text)
        } else {
            Self::parse_azure(text)
        }?;
        if trace.requests.is_empty() {
            return Err(wrong(1, "there is no request in the whole trace"));
        }
        Ok(trace)
    }

    /// The requests.
    pub fn requests(&self) -> &[TraceRequest] {
        &self.requests
    }

    /// A request's ids, one for each [`IDS_TOKENS`] tokens of its prompt.
    pub fn ids_of(&self, request: &TraceRequest) -> &[u64] {
        self.ids.get(request.ids.clone()).unwrap_or(&[])
    }

    /// Whether prompts have ids; without, nothing is known of what they share.
    pub fn has_ids(&self) -> bool {
        !self.ids.is_empty()
    }

    /// Adds a request; ids are one for each [`IDS_TOKENS`] tokens, or none.
    pub(super) fn push(&mut self, arrival: u64, input_tokens: usize, output_tokens: usize, ids: &[u64]) {
        let start = self.ids.len();
        self.ids.extend_from_slice(ids);
        self.requests.push(TraceRequest { arrival, input_tokens, output_tokens, ids: start..self.ids.len() });
    }

    fn parse_mooncake(text: &str) -> Result<Self, KvCacheError> {
        let mut trace = Self::default();
        for (number, line) in lines(text) {
            let Line { timestamp, input_length, output_length, hash_ids } =
                serde_json::from_str(line).map_err(|error| wrong(number, &error.to_string()))?;
            check_lengths(number, input_length, output_length)?;
            let arrival = milliseconds(number, timestamp)?;
            let expected = input_length.div_ceil(IDS_TOKENS as u64);
            if hash_ids.len() as u64 != expected {
                let what = format!(
                    "{} hash_ids came for {input_length} tokens; {expected} are needed, one for each {IDS_TOKENS}",
                    hash_ids.len()
                );
                return Err(wrong(number, &what));
            }
            trace.push(arrival, input_length as usize, output_length as usize, &hash_ids);
        }
        trace.sort();
        Ok(trace)
    }

    fn parse_azure(text: &str) -> Result<Self, KvCacheError> {
        let mut lines = lines(text);
        let (number, header) = lines.next().ok_or_else(|| wrong(1, "the trace is empty"))?;
        let names: Vec<&str> = header.split(',').map(str::trim).collect();
        let column = |name: &str| {
            names.iter().position(|&found| found.eq_ignore_ascii_case(name)).ok_or_else(|| {
                wrong(
                    number,
                    &format!("there is no column {name}; a trace is JSON lines of Mooncake, or CSV of Azure"),
                )
            })
        };
        let (time, input, output) =
            (column("TIMESTAMP")?, column("ContextTokens")?, column("GeneratedTokens")?);
        let mut trace = Self::default();
        let mut start = None;
        for (number, line) in lines {
            let fields: Vec<&str> = line.split(',').map(str::trim).collect();
            let field = |at: usize| {
                fields.get(at).copied().ok_or_else(|| wrong(number, &format!("{} fields came", fields.len())))
            };
            let count = |at: usize| {
                let text = field(at)?;
                text.parse::<u64>().map_err(|_| wrong(number, &format!("{text:?} is no number of tokens")))
            };
            let (input, output) = (count(input)?, count(output)?);
            check_lengths(number, input, output)?;
            let text = field(time)?;
            let now = timestamp(text).ok_or_else(|| wrong(number, &format!("{text:?} is no time")))?;
            let arrival = now.saturating_sub(*start.get_or_insert(now));
            trace.push(arrival, input as usize, output as usize, &[]);
        }
        trace.sort();
        Ok(trace)
    }

    /// Those who came at one time stay in their order.
    fn sort(&mut self) {
        self.requests.sort_by_key(|request| request.arrival);
    }
}

/// The lines that say something, and their numbers.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let numbered = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
    numbered.filter(|(_, line)| !line.is_empty())
}

fn check_lengths(number: usize, input: u64, output: u64) -> Result<(), KvCacheError> {
    if input > MAX_TOKENS || output > MAX_TOKENS {
        return Err(wrong(
            number,
            &format!("{input} and {output} tokens came; at most {MAX_TOKENS} are allowed"),
        ));
    }
    Ok(())
}

fn milliseconds(number: usize, timestamp: f64) -> Result<u64, KvCacheError> {
    if (0.0..1e15).contains(&timestamp) {
        return Ok(timestamp as u64);
    }
    Err(wrong(number, &format!("the timestamp {timestamp} came; pass milliseconds since the trace began")))
}

/// Milliseconds since year 0 of `2023-11-16 18:15:46.6805900` (also with a `T`, or with an offset that is passed over).
fn timestamp(text: &str) -> Option<u64> {
    let (date, clock) = text.split_once([' ', 'T'])?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<u64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    if year > 9999 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let clock = clock.split(['+', 'Z', '-']).next()?;
    let mut clock = clock.splitn(3, ':');
    let (hour, minute) = (clock.next()?.parse::<u64>().ok()?, clock.next()?.parse::<u64>().ok()?);
    let second = clock.next()?.parse::<f64>().ok()?;
    if hour > 23 || minute > 59 || !(0.0..61.0).contains(&second) {
        return None;
    }
    // Days by the civil calendar, years beginning in March so that the leap day is the last one.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day;
    Some(((days * 24 + hour) * 60 + minute) * 60_000 + (second * 1000.0) as u64)
}

fn wrong(line: usize, what: &str) -> KvCacheError {
    KvCacheError::Trace { line, what: what.to_owned() }
}
