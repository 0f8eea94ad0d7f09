//! Values written as Python writes them: `str`, `repr` and `json.dumps`.

use std::fmt::Write as _;

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

/// How deep values may be nested.
const MAX_DEPTH: usize = 64;

/// `str(value)`.
pub(super) fn text(value: &Value) -> String {
    match value.as_str() {
        Some(text) => text.to_owned(),
        None if value.is_undefined() => String::new(),
        None => representation(value),
    }
}

/// `repr(value)`.
pub(super) fn representation(value: &Value) -> String {
    let mut out = String::new();
    write_representation(value, &mut out, 0);
    out
}

/// `repr` of a dict with these entries.
pub(super) fn dict_representation(pairs: impl Iterator<Item = (Value, Value)>) -> String {
    let mut out = String::new();
    write_dict(pairs, &mut out, 0);
    out
}

fn write_representation(value: &Value, out: &mut String, depth: usize) {
    if depth > MAX_DEPTH {
        out.push_str("...");
        return;
    }
    match value.kind() {
        ValueKind::String => write_string(value.as_str().unwrap_or_default(), out),
        ValueKind::Number if !value.is_integer() => {
            out.push_str(&float(f64::try_from(value.clone()).unwrap_or(0.0)));
        }
        ValueKind::Map => {
            let keys = value.try_iter().into_iter().flatten();
            write_dict(keys.map(|key| (key.clone(), value.get_item(&key).unwrap_or_default())), out, depth);
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let (open, close) = if value.is_tuple() { ('(', ')') } else { ('[', ']') };
            out.push(open);
            let mut count = 0;
            for item in value.try_iter().into_iter().flatten() {
                if count > 0 {
                    out.push_str(", ");
                }
                write_representation(&item, out, depth + 1);
                count += 1;
            }
            if count == 1 && value.is_tuple() {
                out.push(',');
            }
            out.push(close);
        }
        _ => {
            let _ = write!(out, "{value}");
        }
    }
}

fn write_dict(pairs: impl Iterator<Item = (Value, Value)>, out: &mut String, depth: usize) {
    out.push('{');
    for (index, (key, value)) in pairs.enumerate() {
        if index > 0 {
            out.push_str(", ");
        }
        write_representation(&key, out, depth + 1);
        out.push_str(": ");
        write_representation(&value, out, depth + 1);
    }
    out.push('}');
}

fn write_string(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if character == quote => {
                out.push('\\');
                out.push(quote);
            }
            '\0'..='\x1f' | '\x7f'..='\u{a0}' | '\u{ad}' => {
                let _ = write!(out, "\\x{:02x}", u32::from(character));
            }
            _ => out.push(character),
        }
    }
    out.push(quote);
}

/// `repr` of a float: the shortest digits that give it back, with an exponent below 1e-4 and from 1e16 on.
pub(super) fn float(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let magnitude = value.abs();
    if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        let written = format!("{value:e}");
        let (digits, exponent) = written.split_once('e').unwrap_or((&written, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    let mut written = value.to_string();
    if !written.contains('.') {
        written.push_str(".0");
    }
    written
}

/// The options of `json.dumps` that templates use.
pub(super) struct JsonStyle {
    pub(super) ensure_ascii: bool,
    /// What each level is indented by; `None` for everything on one line.
    pub(super) indent: Option<String>,
    pub(super) item_separator: String,
    pub(super) key_separator: String,
    pub(super) sort_keys: bool,
}

/// `json.dumps(value)`.
pub(super) fn json(value: &Value, style: &JsonStyle) -> Result<String, Error> {
    let mut out = String::new();
    write_json(value, style, &mut out, 0)?;
    Ok(out)
}

fn write_json(value: &Value, style: &JsonStyle, out: &mut String, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(Error::new(ErrorKind::BadSerialization, "tojson: nested too deep"));
    }
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number if !value.is_integer() => {
            let number = f64::try_from(value.clone())?;
            let written = float(number);
            out.push_str(match written.as_str() {
                "nan" => "NaN",
                "inf" => "Infinity",
                "-inf" => "-Infinity",
                _ => &written,
            });
        }
        ValueKind::Number => {
            let _ = write!(out, "{value}");
        }
        ValueKind::String => write_json_string(value.as_str().unwrap_or_default(), style.ensure_ascii, out),
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if style.sort_keys {
                keys.sort();
            }
            let entries = keys.into_iter().map(|key| {
                let item = value.get_item(&key)?;
                Ok((Some(json_key(&key)?), item))
            });
            write_json_items(entries, ('{', '}'), style, out, depth)?;
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter()?.map(|item| Ok((None, item)));
            write_json_items(items, ('[', ']'), style, out, depth)?;
        }
        other => {
            return Err(Error::new(ErrorKind::BadSerialization, format!("tojson: {other} is no JSON value")));
        }
    }
    Ok(())
}

fn json_key(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(text(key)),
        ValueKind::None => Ok("null".to_owned()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::Number => Ok(representation(key)),
        other => Err(Error::new(ErrorKind::BadSerialization, format!("tojson: {other} is no key of JSON"))),
    }
}

fn write_json_items(
    items: impl Iterator<Item = Result<(Option<String>, Value), Error>>,
    (open, close): (char, char),
    style: &JsonStyle,
    out: &mut String,
    depth: usize,
) -> Result<(), Error> {
    let line = |out: &mut String, depth: usize| {
        if let Some(indent) = &style.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    };
    out.push(open);
    let mut any = false;
    for item in items {
        let (key, item) = item?;
        if any {
            out.push_str(&style.item_separator);
        }
        any = true;
        line(out, depth + 1);
        if let Some(key) = key {
            write_json_string(&key, style.ensure_ascii, out);
            out.push_str(&style.key_separator);
        }
        write_json(&item, style, out, depth + 1)?;
    }
    if any {
        line(out, depth);
    }
    out.push(close);
    Ok(())
}

fn write_json_string(text: &str, ensure_ascii: bool, out: &mut String) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\0'..='\x1f' => {
                let _ = write!(out, "\\u{:04x}", u32::from(character));
            }
            _ if ensure_ascii && !character.is_ascii() => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            _ => out.push(character),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        for (value, written) in [
            (1.0, "1.0"),
            (-0.5, "-0.5"),
            (0.1 + 0.2, "0.30000000000000004"),
            (1e16, "1e+16"),
            (123_456_789_012_345.0, "123456789012345.0"),
            (1.5e-7, "1.5e-07"),
            (1e-4, "0.0001"),
            (1.25e300, "1.25e+300"),
            (0.0, "0.0"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(float(value), written);
        }
    }

    #[test]
    fn strings_are_quoted_as_python_quotes_them() {
        for (value, written) in [
            ("a", "'a'"),
            ("it's", "\"it's\""),
            ("it's \"so\"", "'it\\'s \"so\"'"),
            ("\n\\\x07é\u{a0}", "'\\n\\\\\\x07é\\xa0'"),
        ] {
            assert_eq!(representation(&Value::from(value)), written);
        }
        let list = Value::from(vec![Value::from(1), Value::from("x"), Value::from(true), Value::from(())]);
        assert_eq!(representation(&list), "[1, 'x', True, None]");
    }
}
