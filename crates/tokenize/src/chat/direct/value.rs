//! Values of a running template: what it was given, without a copy, and what it has made.
//!
//! Everything here answers `None` where the engine must be asked.

use std::fmt::Write as _;
use std::rc::Rc;

use minijinja::Value;

use super::super::data::{Dict, list};
use super::super::{Data, Text};
use super::program::{Operator, Test};

#[derive(Clone)]
pub(super) enum Item<'a> {
    Undefined,
    None,
    Bool(bool),
    Integer(i64),
    /// Of the conversation, or of the template.
    Text(&'a str),
    Made(Rc<str>),
    List(&'a [Data]),
    Items(Rc<[Item<'a>]>),
    Dict(&'a [(Text, Data)]),
    Loop {
        index: usize,
        length: usize,
    },
    /// By its place in the list of namespaces.
    Namespace(usize),
    /// `strftime_now`
    Clock,
    /// What only the engine has.
    Other,
}

impl<'a> Item<'a> {
    pub(super) fn of(data: &'a Data) -> Self {
        match data {
            Data::None => Self::None,
            Data::Bool(truth) => Self::Bool(*truth),
            Data::Integer(number) => i64::try_from(*number).map_or(Self::Other, Self::Integer),
            Data::Float(_) => Self::Other,
            Data::Text(text) => Self::Text(text),
            Data::List(items) => Self::List(items),
            Data::Dict(entries) => Self::Dict(entries),
        }
    }

    /// The same, unless only the engine has it.
    pub(super) fn known(self) -> Option<Self> {
        if matches!(self, Self::Other) { None } else { Some(self) }
    }

    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Made(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn length(&self) -> Option<usize> {
        match self {
            Self::List(items) => Some(items.len()),
            Self::Items(items) => Some(items.len()),
            Self::Dict(_) => self.value().and_then(|dict| dict.len()),
            _ => self.text().map(|text| text.chars().count()),
        }
    }

    pub(super) fn is_true(&self) -> Option<bool> {
        match self {
            Self::Undefined | Self::None => Some(false),
            Self::Bool(truth) => Some(*truth),
            Self::Integer(number) => Some(*number != 0),
            Self::List(items) => Some(!items.is_empty()),
            Self::Items(items) => Some(!items.is_empty()),
            Self::Dict(entries) => Some(!entries.is_empty()),
            _ => self.text().map(|text| !text.is_empty()),
        }
    }

    /// The value of this key of a dict, of which the last of equal ones counts.
    pub(super) fn under(&self, key: &str) -> Option<Self> {
        let Self::Dict(entries) = self else { return None };
        let found = entries.iter().rev().find(|(name, _)| name == key);
        found.map_or(Some(Self::Undefined), |(_, data)| Self::of(data).known())
    }

    /// The item at this place of a list, from its end if below 0.
    pub(super) fn at(&self, place: i64) -> Option<Self> {
        let length = i64::try_from(self.length()?).ok()?;
        let place = usize::try_from(if place < 0 { place + length } else { place }).ok()?;
        match self {
            Self::List(items) => Self::of(items.get(place)?).known(),
            Self::Items(items) => items.get(place)?.clone().known(),
            _ => None,
        }
    }

    /// `self[start:stop]` of a list.
    pub(super) fn slice(&self, start: Option<i64>, stop: Option<i64>) -> Option<Self> {
        let within = |length: usize| {
            let place = |bound: i64| {
                let from_front = if bound < 0 { bound.saturating_add_unsigned(length as u64) } else { bound };
                usize::try_from(from_front).unwrap_or(0).min(length)
            };
            let (start, stop) = (start.map_or(0, place), stop.map_or(length, place));
            start..stop.max(start)
        };
        match self {
            Self::List(items) => items.get(within(items.len())).map(Self::List),
            Self::Items(items) => items.get(within(items.len())).map(|items| Self::Items(items.into())),
            _ => None,
        }
    }

    /// The items of a list, one after the other.
    pub(super) fn items(&self) -> Option<Rc<[Self]>> {
        match self {
            Self::List(items) => items.iter().map(|item| Self::of(item).known()).collect(),
            Self::Items(items) => Some(Rc::clone(items)),
            _ => None,
        }
    }

    /// Whether `self == other`.
    fn equals(&self, other: &Self) -> Option<bool> {
        if let (Some(left), Some(right)) = (self.text(), other.text()) {
            return Some(left == right);
        }
        match (self, other) {
            (Self::Bool(left), Self::Bool(right)) => Some(left == right),
            (Self::Integer(left), Self::Integer(right)) => Some(left == right),
            (Self::None, Self::None) | (Self::Undefined, Self::Undefined) => Some(true),
            // Of two different kinds, one of which equals nothing else.
            (left, right) if left.is_alone() || right.is_alone() => {
                (left.is_plain() && right.is_plain()).then_some(false)
            }
            _ => None,
        }
    }

    fn is_alone(&self) -> bool {
        matches!(self, Self::None | Self::Undefined | Self::Text(_) | Self::Made(_))
    }

    fn is_plain(&self) -> bool {
        !matches!(self, Self::Loop { .. } | Self::Namespace(_) | Self::Clock | Self::Other)
    }

    /// Whether this text is in `container`.
    fn is_in(&self, container: &Self) -> Option<bool> {
        let text = self.text()?;
        match container {
            Self::Dict(entries) => Some(entries.iter().any(|(key, _)| key == text)),
            Self::List(items) => {
                Some(items.iter().any(|item| matches!(item, Data::Text(other) if other == text)))
            }
            Self::Items(items) => Some(items.iter().any(|item| item.text() == Some(text))),
            _ => container.text().map(|whole| whole.contains(text)),
        }
    }

    pub(super) fn operate(&self, operator: Operator, other: &Self) -> Option<Self> {
        let numbers = || match (self, other) {
            (Self::Integer(left), Self::Integer(right)) => Some((*left, *right)),
            _ => None,
        };
        let truth = match operator {
            Operator::Equal => self.equals(other)?,
            Operator::Unequal => !self.equals(other)?,
            Operator::In => self.is_in(other)?,
            Operator::Less => numbers().map(|(left, right)| left < right)?,
            Operator::LessOrEqual => numbers().map(|(left, right)| left <= right)?,
            Operator::Greater => numbers().map(|(left, right)| left > right)?,
            Operator::GreaterOrEqual => numbers().map(|(left, right)| left >= right)?,
            Operator::Subtract => {
                return numbers().and_then(|(left, right)| left.checked_sub(right)).map(Self::Integer);
            }
            Operator::Remainder => {
                let (left, right) = numbers().filter(|(left, right)| *left >= 0 && *right > 0)?;
                return Some(Self::Integer(left % right));
            }
        };
        Some(Self::Bool(truth))
    }

    pub(super) fn passes(&self, test: Test) -> Option<bool> {
        let is_text = self.text().is_some();
        match test {
            Test::Defined => return Some(!matches!(self, Self::Undefined)),
            Test::Undefined => return Some(matches!(self, Self::Undefined)),
            Test::None => return Some(matches!(self, Self::None)),
            _ if !self.is_plain() => return None,
            _ => {}
        }
        let is_list = matches!(self, Self::List(_) | Self::Items(_));
        let is_dict = matches!(self, Self::Dict(_));
        Some(match test {
            Test::String => is_text,
            Test::Mapping => is_dict,
            Test::True => matches!(self, Self::Bool(true)),
            Test::False => matches!(self, Self::Bool(false)),
            Test::Boolean => matches!(self, Self::Bool(_)),
            // Jinja and the engine see these two differently in what is undefined or a truth value.
            Test::Iterable | Test::Sequence if !matches!(self, Self::Undefined) => {
                is_text || is_list || is_dict
            }
            Test::Integer if !matches!(self, Self::Bool(_)) => matches!(self, Self::Integer(_)),
            _ => return None,
        })
    }

    /// Appends what is shown of it.
    pub(super) fn show(&self, out: &mut String) -> Option<()> {
        match self {
            Self::Undefined => {}
            Self::None => out.push_str("None"),
            Self::Bool(truth) => out.push_str(if *truth { "True" } else { "False" }),
            Self::Integer(number) => write!(out, "{number}").ok()?,
            _ => out.push_str(self.text()?),
        }
        Some(())
    }

    /// As the engine has it.
    pub(super) fn value(&self) -> Option<Value> {
        Some(match self {
            Self::None => Value::from(()),
            Self::Bool(truth) => Value::from(*truth),
            Self::Integer(number) => Value::from(*number),
            Self::List(items) => list(items),
            Self::Items(items) => Value::from(items.iter().map(Self::value).collect::<Option<Vec<_>>>()?),
            Self::Dict(entries) => Value::from_object(Dict::new(entries)),
            _ => Value::from(self.text()?),
        })
    }
}
