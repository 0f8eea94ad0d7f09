//! Python's methods of strings and lists, as templates call them.

use minijinja::value::{Rest, Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

use super::python;

/// Answers a call of a method that the engine itself does not know.
pub(super) fn call(
    _: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    match value.as_str() {
        Some(text) => string_method(text, method, arguments),
        None => other_method(value, method, arguments),
    }
}

fn unknown() -> Error {
    Error::from(ErrorKind::UnknownMethod)
}

/// White space as `str.strip` and `str.split` see it: Unicode's, and four more separators.
fn is_space(character: char) -> bool {
    character.is_whitespace() || matches!(character, '\x1c'..='\x1f')
}

fn string_method(text: &str, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    if let Some(found) = test(text, method) {
        let () = from_args(arguments)?;
        return Ok(Value::from(found));
    }
    Ok(match method {
        "strip" | "lstrip" | "rstrip" => {
            let (characters,): (Option<&str>,) = from_args(arguments)?;
            Value::from(strip(text, method, characters))
        }
        "split" | "rsplit" => {
            let (separator, most): (Option<&str>, Option<i64>) = from_args(arguments)?;
            split(text, separator, most, method == "rsplit")?
        }
        "splitlines" => {
            let (keep,): (Option<bool>,) = from_args(arguments)?;
            Value::from(split_lines(text, keep.unwrap_or(false)))
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(arguments)?;
            partition(text, separator, method == "rpartition")
        }
        "startswith" | "endswith" => {
            let (affixes,): (&Value,) = from_args(arguments)?;
            Value::from(has_affix(text, affixes, method == "startswith")?)
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(arguments)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(arguments)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "replace" => {
            let (old, new, most): (&str, &str, Option<i64>) = from_args(arguments)?;
            let most = usize::try_from(most.unwrap_or(-1)).unwrap_or(usize::MAX);
            Value::from(text.replacen(old, new, most))
        }
        "find" | "rfind" | "index" => {
            let (part,): (&str,) = from_args(arguments)?;
            let place = if method == "rfind" { text.rfind(part) } else { text.find(part) };
            match place {
                Some(place) => Value::from(text.get(..place).unwrap_or(text).chars().count()),
                None if method == "index" => {
                    return Err(Error::new(ErrorKind::InvalidOperation, "substring not found"));
                }
                None => Value::from(-1),
            }
        }
        "count" => {
            let (part,): (&str,) = from_args(arguments)?;
            let empty = part.is_empty();
            Value::from(if empty { text.chars().count() + 1 } else { text.matches(part).count() })
        }
        "join" => {
            let (items,): (&Value,) = from_args(arguments)?;
            let parts: Vec<String> = items.try_iter()?.map(|item| python::text(&item)).collect();
            Value::from(parts.join(text))
        }
        _ => {
            let changed = change_case(text, method).ok_or_else(unknown)?;
            let () = from_args(arguments)?;
            Value::from(changed)
        }
    })
}

pub(super) fn strip<'t>(text: &'t str, method: &str, characters: Option<&str>) -> &'t str {
    let wanted = |character: char| match characters {
        Some(set) => set.contains(character),
        None => is_space(character),
    };
    match method {
        "lstrip" => text.trim_start_matches(wanted),
        "rstrip" => text.trim_end_matches(wanted),
        _ => text.trim_matches(wanted),
    }
}

fn split(text: &str, separator: Option<&str>, most: Option<i64>, from_right: bool) -> Result<Value, Error> {
    let most = usize::try_from(most.unwrap_or(-1)).unwrap_or(usize::MAX - 1);
    let mut parts: Vec<&str> = Vec::new();
    match separator {
        Some("") => return Err(Error::new(ErrorKind::InvalidOperation, "empty separator")),
        Some(separator) if from_right => {
            parts.extend(text.rsplitn(most + 1, separator));
            parts.reverse();
        }
        Some(separator) => parts.extend(text.splitn(most + 1, separator)),
        None if from_right => {
            let mut rest = text.trim_end_matches(is_space);
            while !rest.is_empty() && parts.len() < most {
                let start =
                    rest.rfind(is_space).and_then(|at| Some(at + rest.get(at..)?.chars().next()?.len_utf8()));
                let (before, word) = rest.split_at(start.unwrap_or(0));
                parts.push(word);
                rest = before.trim_end_matches(is_space);
            }
            parts.extend(Some(rest).filter(|rest| !rest.is_empty()));
            parts.reverse();
        }
        None => {
            let mut rest = text.trim_start_matches(is_space);
            while !rest.is_empty() && parts.len() < most {
                let (word, after) = rest.split_at(rest.find(is_space).unwrap_or(rest.len()));
                parts.push(word);
                rest = after.trim_start_matches(is_space);
            }
            parts.extend(Some(rest).filter(|rest| !rest.is_empty()));
        }
    }
    Ok(parts.into_iter().map(Value::from).collect())
}

fn split_lines(text: &str, keep: bool) -> Vec<String> {
    let is_break = |c: char| {
        matches!(c, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}')
    };
    let (mut lines, mut rest) = (Vec::new(), text);
    while let Some(at) = rest.find(is_break) {
        let (line, after) = rest.split_at(at);
        let width = after.chars().next().map_or(0, char::len_utf8);
        let width = if after.starts_with("\r\n") { 2 } else { width };
        let (end, after) = after.split_at(width);
        lines.push(if keep { format!("{line}{end}") } else { line.to_owned() });
        rest = after;
    }
    if !rest.is_empty() {
        lines.push(rest.to_owned());
    }
    lines
}

fn partition(text: &str, separator: &str, from_right: bool) -> Value {
    let found = if from_right { text.rsplit_once(separator) } else { text.split_once(separator) };
    let parts = match (found, from_right) {
        (Some((before, after)), _) => [before, separator, after],
        (None, true) => ["", "", text],
        (None, false) => [text, "", ""],
    };
    Value::from(Tuple::from(parts.map(Value::from)))
}

fn has_affix(text: &str, affixes: &Value, at_start: bool) -> Result<bool, Error> {
    let has = |affix: &str| if at_start { text.starts_with(affix) } else { text.ends_with(affix) };
    if let Some(affix) = affixes.as_str() {
        return Ok(has(affix));
    }
    let wrong = || Error::new(ErrorKind::InvalidOperation, "expected a string or a tuple of strings");
    for affix in affixes.try_iter().map_err(|_| wrong())? {
        if has(affix.as_str().ok_or_else(wrong)?) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn test(text: &str, method: &str) -> Option<bool> {
    let all = |wanted: fn(char) -> bool| !text.is_empty() && text.chars().all(wanted);
    let upper = || text.chars().any(char::is_uppercase);
    let lower = || text.chars().any(char::is_lowercase);
    Some(match method {
        "isspace" => all(is_space),
        "isdigit" | "isnumeric" | "isdecimal" => all(char::is_numeric),
        "isalpha" => all(char::is_alphabetic),
        "isalnum" => all(char::is_alphanumeric),
        "isascii" => text.is_ascii(),
        "isupper" => upper() && !lower(),
        "islower" => lower() && !upper(),
        _ => return None,
    })
}

fn change_case(text: &str, method: &str) -> Option<String> {
    let capital = |word: &str| {
        let mut characters = word.chars();
        let first = characters.next().into_iter().flat_map(char::to_uppercase);
        first.chain(characters.as_str().to_lowercase().chars()).collect::<String>()
    };
    Some(match method {
        "upper" => text.to_uppercase(),
        "lower" | "casefold" => text.to_lowercase(),
        "capitalize" => capital(text),
        "title" => {
            let mut out = String::with_capacity(text.len());
            for word in text.split_inclusive(|character: char| !character.is_alphabetic()) {
                out.push_str(&capital(word));
            }
            out
        }
        _ => return None,
    })
}

/// Methods of lists, and of dicts that the template itself wrote.
fn other_method(value: &Value, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    if value.kind() == ValueKind::Map {
        return map_method(value, method, arguments);
    }
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
        return Err(unknown());
    }
    let (wanted, Rest(more)): (Value, Rest<Value>) = from_args(arguments)?;
    let same = |item: &Value| *item == wanted;
    match method {
        "count" if more.is_empty() => Ok(Value::from(value.try_iter()?.filter(same).count())),
        "index" if more.is_empty() => {
            let missing = || Error::new(ErrorKind::InvalidOperation, format!("{wanted} is not in the list"));
            value.try_iter()?.position(|item| same(&item)).map(Value::from).ok_or_else(missing)
        }
        _ => Err(unknown()),
    }
}

fn map_method(value: &Value, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    let item = |key: &Value| value.get_item(key).ok().filter(|item| !item.is_undefined());
    if method == "get" {
        let (key, default): (Value, Option<Value>) = from_args(arguments)?;
        return Ok(item(&key).or(default).unwrap_or_else(|| Value::from(())));
    }
    let pair = |key: Value| {
        let item = item(&key).unwrap_or_default();
        Value::from(Tuple::from([key, item]))
    };
    let keys = value.try_iter()?;
    let list: Vec<Value> = match method {
        "items" => keys.map(pair).collect(),
        "keys" => keys.collect(),
        "values" => keys.map(|key| item(&key).unwrap_or_default()).collect(),
        _ => return Err(unknown()),
    };
    let () = from_args(arguments)?;
    Ok(Value::from(list))
}
