//! What a template is given: messages, tools, variables.

use std::fmt;
use std::sync::Arc;

use ahash::AHashMap;
use compact_str::CompactString;
use minijinja::value::{Enumerator, Object, ObjectExt, Tuple, from_args};
use minijinja::{Error, ErrorKind, State, Value};

use super::python;

/// Text of a conversation. Names and roles are short and many: they take no memory of their own.
pub type Text = CompactString;

/// A value as JSON has it, with the order of its keys. Integers may be as large as Python's usually are.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// Python's `None`.
    None,
    /// A truth value.
    Bool(bool),
    /// An integer.
    Integer(i128),
    /// A floating-point number.
    Float(f64),
    /// A string.
    Text(Text),
    /// A list.
    List(Vec<Data>),
    /// A dict with strings as keys, in order; the last of equal keys counts.
    Dict(Vec<(Text, Data)>),
}

impl Data {
    /// As the template engine has it.
    pub(super) fn value(&self) -> Value {
        match self {
            Self::None => Value::from(()),
            Self::Bool(value) => Value::from(*value),
            Self::Integer(value) => i64::try_from(*value).map_or_else(|_| Value::from(*value), Value::from),
            Self::Float(value) => Value::from(*value),
            Self::Text(text) => Value::from(text.as_str()),
            Self::List(items) => list(items),
            Self::Dict(entries) => Value::from_object(Dict::new(entries)),
        }
    }

    /// The same with every string changed, keys included.
    pub(super) fn map_text(&self, change: &impl Fn(&str) -> String) -> Self {
        match self {
            Self::Text(text) => Self::Text(change(text).into()),
            Self::List(items) => Self::List(items.iter().map(|item| item.map_text(change)).collect()),
            Self::Dict(entries) => Self::Dict(
                entries.iter().map(|(key, item)| (change(key).into(), item.map_text(change))).collect(),
            ),
            other => other.clone(),
        }
    }

    /// Whether any string, keys included, is found wanting.
    pub(super) fn any_text(&self, found: &impl Fn(&str) -> bool) -> bool {
        match self {
            Self::Text(text) => found(text),
            Self::List(items) => items.iter().any(|item| item.any_text(found)),
            Self::Dict(entries) => entries.iter().any(|(key, item)| found(key) || item.any_text(found)),
            _ => false,
        }
    }
}

/// A list as the template engine has it.
pub(super) fn list(items: &[Data]) -> Value {
    Value::from(items.iter().map(Data::value).collect::<Vec<_>>())
}

/// Up to this many keys are looked through one by one.
const FEW: usize = 8;

/// A dict with Python's methods, which its keys do not hide.
pub(super) struct Dict {
    entries: Vec<(Arc<str>, Value)>,
    /// Places of the keys, where there are many.
    places: Option<AHashMap<Arc<str>, usize>>,
}

impl Dict {
    pub(super) fn new(entries: &[(Text, Data)]) -> Self {
        let mut dict = Self { entries: Vec::with_capacity(entries.len()), places: None };
        if entries.len() > FEW {
            dict.places = Some(AHashMap::with_capacity(entries.len()));
        }
        for (key, item) in entries {
            let value = item.value();
            if let Some(place) = dict.place(key) {
                if let Some(entry) = dict.entries.get_mut(place) {
                    entry.1 = value;
                }
                continue;
            }
            let key: Arc<str> = key.as_str().into();
            if let Some(places) = &mut dict.places {
                places.insert(Arc::clone(&key), dict.entries.len());
            }
            dict.entries.push((key, value));
        }
        dict
    }

    fn place(&self, key: &str) -> Option<usize> {
        match &self.places {
            Some(places) => places.get(key).copied(),
            None => self.entries.iter().position(|(name, _)| &**name == key),
        }
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.entries.get(self.place(key)?).map(|(_, value)| value)
    }
}

impl fmt::Debug for Dict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs = self.entries.iter().map(|(key, value)| (Value::from(&**key), value.clone()));
        formatter.write_str(&python::dict_representation(pairs))
    }
}

impl Object for Dict {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get(key.as_str()?).cloned()
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        self.get(key).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        self.mapped_enumerator(|this| Box::new(this.entries.iter().map(|(key, _)| Value::from(&**key))))
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.entries.len())
    }

    fn call_method(
        self: &Arc<Self>,
        _: &mut State<'_, '_>,
        method: &str,
        arguments: &[Value],
    ) -> Result<Value, Error> {
        if method == "get" {
            let (key, default): (Value, Option<Value>) = from_args(arguments)?;
            let found = key.as_str().and_then(|key| self.get(key)).cloned();
            return Ok(found.or(default).unwrap_or_else(|| Value::from(())));
        }
        let entries = self.entries.iter();
        let list: Vec<Value> = match method {
            "items" => entries
                .map(|(key, value)| Value::from(Tuple::from([Value::from(&**key), value.clone()])))
                .collect(),
            "keys" => entries.map(|(key, _)| Value::from(&**key)).collect(),
            "values" => entries.map(|(_, value)| value.clone()).collect(),
            _ => return Err(Error::from(ErrorKind::UnknownMethod)),
        };
        let () = from_args(arguments)?;
        Ok(Value::from(list))
    }

    fn render(self: &Arc<Self>, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, formatter)
    }
}
