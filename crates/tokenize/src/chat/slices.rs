//! Slices that go backwards, as Python takes them.
//!
//! The engine's own differ where the sequence is empty, where a bound lies outside of it, and where a slice ends at 0.
//! So `messages[::-1]` becomes a call of a function before the engine reads the template. What is not recognised as
//! such a slice stays as it is.

use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, ErrorKind, Value};

/// The function that is called instead.
pub(super) const FUNCTION: &str = "__infer_accel_slice";
/// Slices that are rewritten in one tag; templates in use have one.
const MOST: usize = 16;
/// What may stand before a bracket and is no value.
const KEYWORDS: [&str; 10] = ["in", "not", "and", "or", "if", "else", "elif", "is", "set", "for"];

/// The template with its backward slices as calls.
pub(super) fn rewritten(source: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(source.len()), source);
    while let Some(start) = rest.find('{') {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let end = match tag.as_bytes().get(1) {
            Some(b'{') => tag_end(tag, "}}"),
            Some(b'%') => tag_end(tag, "%}").map(|end| raw_end(tag, end).unwrap_or(end)),
            Some(b'#') => tag.find("#}").map(|end| end + 2),
            _ => Some(1),
        };
        let Some(end) = end else { return out + tag };
        let (tag, after) = tag.split_at(end);
        let mut tag = tag.to_owned();
        if !tag.starts_with("{#") && !is_raw(&tag) {
            for _ in 0..MOST {
                let Some(changed) = rewrite_one(&tag) else { break };
                tag = changed;
            }
        }
        out.push_str(&tag);
        rest = after;
    }
    out + rest
}

/// Where a tag ends that is closed so, strings inside it passed over.
fn tag_end(tag: &str, close: &str) -> Option<usize> {
    let mut quote = None;
    let mut bytes = tag.bytes().enumerate().skip(2);
    while let Some((at, byte)) = bytes.next() {
        match quote {
            Some(_) if byte == b'\\' => drop(bytes.next()),
            Some(open) if open == byte => quote = None,
            None if byte == b'"' || byte == b'\'' => quote = Some(byte),
            None if tag.as_bytes().get(at..at + 2) == Some(close.as_bytes()) => return Some(at + 2),
            _ => {}
        }
    }
    None
}

fn is_raw(tag: &str) -> bool {
    let name = tag.trim_start_matches(['{', '%', '-', '+', ' ', '\n', '\t']);
    name.starts_with("raw") && name.get(3..).is_some_and(|rest| rest.starts_with(['-', '+', ' ', '%', '\n']))
}

/// Where the block ends that this tag, if it is `raw`, begins.
fn raw_end(tag: &str, end: usize) -> Option<usize> {
    let (head, body) = (tag.get(..end)?, tag.get(end..)?);
    if !is_raw(head) {
        return None;
    }
    let last = body.match_indices("endraw").find(|(at, _)| {
        let before = body.get(..*at).unwrap_or_default();
        before.trim_end_matches(['-', '+', ' ', '\n', '\t']).ends_with("{%")
    })?;
    let close = body.get(last.0..)?.find("%}")?;
    Some(end + last.0 + close + 2)
}

/// A bracket that is still open: where it is, and where colons stand directly in it.
struct Open {
    at: usize,
    colons: Vec<usize>,
}

/// The tag with its first backward slice as a call.
fn rewrite_one(tag: &str) -> Option<String> {
    let bytes = tag.as_bytes();
    // For each byte that ends a string or a bracket, where that began.
    let mut begins: Vec<Option<usize>> = vec![None; bytes.len()];
    let mut open: Vec<Open> = Vec::new();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' | b'\'' => {
                let start = at;
                at += 1;
                while *bytes.get(at)? != byte {
                    at += if bytes.get(at) == Some(&b'\\') { 2 } else { 1 };
                }
                *begins.get_mut(at)? = Some(start);
            }
            b'(' | b'[' | b'{' => open.push(Open { at, colons: Vec::new() }),
            b':' => open.last_mut()?.colons.push(at),
            b')' | b']' | b'}' => {
                let bracket = open.pop()?;
                if !matches!((bytes.get(bracket.at)?, byte), (b'(', b')') | (b'[', b']') | (b'{', b'}')) {
                    return None;
                }
                *begins.get_mut(at)? = Some(bracket.at);
                if byte == b']'
                    && let Some(call) = call_of(tag, &bracket, at, &begins)
                {
                    return Some(call);
                }
            }
            _ => {}
        }
        at += 1;
    }
    None
}

/// The tag with the slice in this bracket as a call, if it is one that goes backwards.
fn call_of(tag: &str, bracket: &Open, close: usize, begins: &[Option<usize>]) -> Option<String> {
    let &[first, second] = bracket.colons.as_slice() else { return None };
    let step = tag.get(second + 1..close)?.trim();
    let digits = step.strip_prefix('-')?.trim();
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let bound = |from: usize, to: usize| match tag.get(from..to).map(str::trim) {
        Some("") => Some("none"),
        given => given,
    };
    let (start, stop) = (bound(bracket.at + 1, first)?, bound(first + 1, second)?);
    let value = value_start(tag.as_bytes(), bracket.at, begins)?;
    let (before, sliced, after) = (tag.get(..value)?, tag.get(value..bracket.at)?, tag.get(close + 1..)?);
    Some(format!("{before}{FUNCTION}({sliced}, {start}, {stop}, -{digits}){after}"))
}

/// Where the value begins that ends before this place: names, attributes, subscripts, calls, strings, brackets.
fn value_start(bytes: &[u8], end: usize, begins: &[Option<usize>]) -> Option<usize> {
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_' || !byte.is_ascii();
    let mut at = end;
    loop {
        let last = at.checked_sub(1)?;
        let byte = bytes.get(last)?;
        if is_name(byte) {
            at = bytes.get(..at)?.iter().rposition(|byte| !is_name(byte))? + 1;
        } else if let Some(begin) = *begins.get(last)? {
            at = begin;
            let before = bytes.get(at.checked_sub(1)?)?;
            let chained = *byte != b'}' && (is_name(before) || matches!(before, b')' | b']' | b'"' | b'\''));
            let keyword = |word: &str| bytes.get(..begin).is_some_and(|head| ends_with_word(head, word));
            if chained && matches!(byte, b')' | b']') && !KEYWORDS.iter().any(|word| keyword(word)) {
                continue;
            }
            return Some(at);
        } else {
            return None;
        }
        match bytes.get(..at)?.trim_ascii_end().last() {
            Some(b'.') if bytes.get(at - 1) == Some(&b'.') => at -= 1,
            // A filter or a test ends here, not a value.
            Some(b'|' | b'.') => return None,
            _ => return Some(at),
        }
    }
}

fn ends_with_word(head: &[u8], word: &str) -> bool {
    let rest = head.strip_suffix(word.as_bytes());
    rest.is_some_and(|rest| rest.last().is_none_or(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_'))
}

/// `value[start:stop:step]` with a step below 0.
#[allow(clippy::needless_pass_by_value)] // as the engine calls it
pub(super) fn slice(value: Value, start: Option<i64>, stop: Option<i64>, step: i64) -> Result<Value, Error> {
    let step = usize::try_from(step.unsigned_abs()).unwrap_or(usize::MAX);
    if step == 0 {
        return Err(Error::new(ErrorKind::InvalidOperation, "slice step cannot be zero"));
    }
    if let Some(text) = value.as_str() {
        let characters: Vec<char> = text.chars().collect();
        return Ok(Value::from(backwards(&characters, start, stop, step).copied().collect::<String>()));
    }
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
        let message = format!("a value of type {} has no slices", value.kind());
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    }
    let items: Vec<Value> = value.try_iter()?.collect();
    let taken: Vec<Value> = backwards(&items, start, stop, step).cloned().collect();
    Ok(if value.is_tuple() { Value::from(Tuple::from(taken)) } else { Value::from(taken) })
}

/// The items from `start` down to, but without, `stop`.
fn backwards<T>(items: &[T], start: Option<i64>, stop: Option<i64>, step: usize) -> impl Iterator<Item = &T> {
    let length = i64::try_from(items.len()).unwrap_or(i64::MAX);
    // One past the place that is meant, so that 0 stands for "before the first".
    let place = |bound: i64| {
        let from_front = if bound < 0 { bound.saturating_add(length) } else { bound };
        usize::try_from(from_front.clamp(-1, length - 1) + 1).unwrap_or(0)
    };
    let (first, last) = (start.map_or(items.len(), place), stop.map_or(0, place));
    items.get(last..first.max(last)).unwrap_or_default().iter().rev().step_by(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_become_calls_and_nothing_else_changes() {
        for (source, expected) in [
            ("{{ x[::-1] }}", "{{ F(x, none, none, -1) }}"),
            (
                "{% for m in messages[::-1] %}{% endfor %}",
                "{% for m in F(messages, none, none, -1) %}{% endfor %}",
            ),
            ("{{ [][::-1] }}{{ ''[::-1] }}", "{{ F([], none, none, -1) }}{{ F('', none, none, -1) }}"),
            ("{{ a.b['c'](d)[e:-2: - 3][0] }}", "{{ F(a.b['c'](d), e, -2, -3)[0] }}"),
            ("{{ ('x' ~ c)[::-1][::-1] }}", "{{ F(F(('x' ~ c), none, none, -1), none, none, -1) }}"),
            ("{{ 1 in [1, 2][::-1] }}", "{{ 1 in F([1, 2], none, none, -1) }}"),
            ("{{ x[y[::-1]:: -1] }}", "{{ F(x, F(y, none, none, -1), none, -1) }}"),
            ("{{ f(a)[::-1] }}é{{ é[::-1] }}", "{{ F(f(a), none, none, -1) }}é{{ F(é, none, none, -1) }}"),
        ] {
            assert_eq!(rewritten(source), expected.replace('F', FUNCTION), "{source}");
        }
        for source in [
            "x[::-1] { y[::-1] }",
            "{# x[::-1] #}",
            "{{ 'x[::-1]' }}{{ \"a\\\"[::-1]\" }}",
            "{% raw %}{{ x[::-1] }}{% endraw %}",
            "{{ x[1:2] }}{{ x[::2] }}{{ x[::y] }}{{ {'a': -1} }}{{ x[::-y] }}",
            "{{ x|f[::-1] }}",
            "{{ x[::-1] ",
            "{{ 'x[::-1] }}",
            "{{ [::-1] }}{{ ][::-1] }}{{ :-1] }}",
            "{{",
            "{",
        ] {
            assert_eq!(rewritten(source), source);
        }
        let many = format!("{{{{ x{} }}}}", "[::-1]".repeat(40));
        assert!(rewritten(&many).contains("[::-1]"), "bounded");
    }

    #[test]
    fn items_are_those_of_python() {
        let check = |length: i64, start, stop, step, expected: &[i64]| {
            let items: Vec<i64> = (0..length).collect();
            assert_eq!(backwards(&items, start, stop, step).copied().collect::<Vec<_>>(), expected);
        };
        // Python's own answers.
        check(0, None, None, 1, &[]);
        check(4, None, None, 1, &[3, 2, 1, 0]);
        check(4, Some(3), Some(0), 1, &[3, 2, 1]);
        check(4, Some(-10), None, 1, &[]);
        check(4, Some(10), Some(-10), 2, &[3, 1]);
        check(4, Some(-2), Some(-4), 1, &[2, 1]);
        check(4, Some(1), Some(2), 1, &[]);
        check(4, Some(i64::MIN), Some(i64::MAX), 1, &[]);
        check(4, Some(i64::MAX), Some(i64::MIN), 3, &[3, 0]);
    }
}
