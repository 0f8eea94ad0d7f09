//! A template's run.

use std::rc::Rc;

use super::super::methods::strip;
use super::super::python::{JsonStyle, json};
use super::super::{CLOCK, Data, MAX_OUTPUT, Now, slices};
use super::program::{Expr, Filter, Method, Name, Node, Program};
use super::value::Item;

/// Steps after which the engine goes on, which bounds them itself. A conversation of a thousand messages takes 30,000.
const MOST_STEPS: u32 = 1 << 20;
/// Names that the engine knows by itself.
const OF_THE_ENGINE: [&str; 6] = ["range", "dict", "debug", "namespace", "raise_exception", slices::FUNCTION];
/// What the variable is called that counts a loop's rounds.
const LOOP: &str = "loop";

pub(super) struct Run<'a> {
    program: &'a Program,
    /// By name.
    globals: Vec<Item<'a>>,
    locals: Vec<(Name, Item<'a>)>,
    /// Where the locals of the innermost scope begin.
    scope: usize,
    namespaces: Vec<Vec<(Name, Item<'a>)>>,
    loop_name: Option<Name>,
    steps: u32,
    now: Option<Now>,
    out: String,
}

/// How a list of statements ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Through,
    Break,
    Continue,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        program: &'a Program,
        messages: Option<&'a Data>,
        variables: &'a [(String, Data)],
        special_tokens: &'a [(String, String)],
        now: Option<Now>,
    ) -> Self {
        let global = |name: &str| {
            if let Some(messages) = messages.filter(|_| name == "messages") {
                return Item::of(messages);
            }
            if let Some((_, data)) = variables.iter().rev().find(|(known, _)| known == name) {
                return Item::of(data);
            }
            if name == CLOCK && now.is_some() {
                return Item::Clock;
            }
            let special = special_tokens.iter().rev().find(|(known, _)| known == name);
            match special {
                Some((_, content)) => Item::Text(content),
                None if OF_THE_ENGINE.contains(&name) => Item::Other,
                None => Item::Undefined,
            }
        };
        let names = &program.names;
        Self {
            program,
            globals: names.iter().map(|name| global(name)).collect(),
            locals: Vec::new(),
            scope: 0,
            namespaces: Vec::new(),
            loop_name: names.iter().position(|name| &**name == LOOP).map(|place| place as Name),
            steps: 0,
            now,
            out: String::with_capacity(messages.map_or(0, text_bytes) * 9 / 8 + 512),
        }
    }

    pub(super) fn prompt(mut self) -> Option<String> {
        let end = self.nodes(&self.program.body)?;
        (end == End::Through && self.out.len() <= MAX_OUTPUT).then_some(self.out)
    }

    fn step(&mut self) -> Option<()> {
        self.steps += 1;
        (self.steps < MOST_STEPS && self.out.len() <= MAX_OUTPUT).then_some(())
    }

    fn nodes(&mut self, nodes: &'a [Node]) -> Option<End> {
        for node in nodes {
            let end = self.node(node)?;
            if end != End::Through {
                return Some(end);
            }
        }
        Some(End::Through)
    }

    fn node(&mut self, node: &'a Node) -> Option<End> {
        self.step()?;
        match node {
            Node::Raw(text) => self.out.push_str(text),
            Node::Show(expr) => self.show(expr)?,
            Node::For { target, items, body, otherwise } => {
                return self.each(*target, items, body, otherwise);
            }
            Node::If { condition, then, otherwise } => {
                let taken = if self.expr(condition)?.is_true()? { then } else { otherwise };
                return self.nodes(taken);
            }
            Node::Scope(body) => {
                let outer = std::mem::replace(&mut self.scope, self.locals.len());
                let end = self.nodes(body)?;
                self.locals.truncate(self.scope);
                self.scope = outer;
                return Some(end);
            }
            Node::Set(name, expr) => {
                let value = self.expr(expr)?;
                self.set(*name, value);
            }
            Node::SetAttribute { object, attribute, value } => {
                let Item::Namespace(place) = self.variable(*object)? else { return None };
                let value = self.expr(value)?;
                put(self.namespaces.get_mut(place)?, *attribute, value);
            }
            Node::Break => return Some(End::Break),
            Node::Continue => return Some(End::Continue),
            Node::Macro(name) => self.set(*name, Item::Other),
            Node::Other => return None,
        }
        Some(End::Through)
    }

    fn each(
        &mut self,
        target: Name,
        items: &'a Expr,
        body: &'a [Node],
        otherwise: &'a [Node],
    ) -> Option<End> {
        let items = self.expr(items)?.items()?;
        let (length, start) = (items.len(), self.locals.len());
        let outer = std::mem::replace(&mut self.scope, start);
        for (index, item) in items.iter().enumerate() {
            self.step()?;
            if let Some(name) = self.loop_name {
                self.locals.push((name, Item::Loop { index, length }));
            }
            self.set(target, item.clone());
            let end = self.nodes(body)?;
            self.locals.truncate(start);
            if end == End::Break {
                break;
            }
        }
        self.scope = outer;
        if items.is_empty() { self.nodes(otherwise) } else { Some(End::Through) }
    }

    fn set(&mut self, name: Name, value: Item<'a>) {
        match self.locals.iter_mut().skip(self.scope).find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => self.locals.push((name, value)),
        }
    }

    fn variable(&self, name: Name) -> Option<Item<'a>> {
        let local = self.locals.iter().rev().find(|(known, _)| *known == name).map(|(_, value)| value);
        local.or_else(|| self.globals.get(name as usize))?.clone().known()
    }

    fn name(&self, name: Name) -> Option<&'a str> {
        self.program.names.get(name as usize).map(|name| &**name)
    }

    /// Appends what an expression shows; the parts of a sum of texts one after the other.
    fn show(&mut self, expr: &'a Expr) -> Option<()> {
        match expr {
            Expr::Sum(parts) => {
                let (first, rest) = parts.split_first()?;
                let first = self.expr(first)?;
                let Some(text) = first.text() else { return self.sum(&first, rest)?.show(&mut self.out) };
                self.out.push_str(text);
                for part in rest {
                    let part = self.expr(part)?;
                    self.out.push_str(part.text()?);
                }
                Some(())
            }
            expr => self.expr(expr)?.show(&mut self.out),
        }
    }

    fn sum(&mut self, first: &Item<'a>, rest: &'a [Expr]) -> Option<Item<'a>> {
        if let Item::Integer(first) = first {
            let mut sum = *first;
            for part in rest {
                let Item::Integer(number) = self.expr(part)? else { return None };
                sum = sum.checked_add(number)?;
            }
            return Some(Item::Integer(sum));
        }
        let mut text = first.text()?.to_owned();
        for part in rest {
            text.push_str(self.expr(part)?.text()?);
        }
        self.made(&text)
    }

    /// A text that was put together, which takes steps by its length.
    fn made(&mut self, text: &str) -> Option<Item<'a>> {
        self.steps += u32::try_from(text.len() >> 10).ok()?;
        made(text)
    }

    fn expr(&mut self, expr: &'a Expr) -> Option<Item<'a>> {
        self.step()?;
        match expr {
            Expr::None => Some(Item::None),
            Expr::Bool(truth) => Some(Item::Bool(*truth)),
            Expr::Integer(number) => Some(Item::Integer(*number)),
            Expr::Text(text) => Some(Item::Text(text)),
            Expr::Variable(name) => self.variable(*name),
            Expr::Attribute(object, name) => self.attribute(object, *name),
            Expr::Item(object, place) => {
                let (object, place) = (self.expr(object)?, self.expr(place)?);
                match (&place, place.text()) {
                    (_, Some(key)) => object.under(key),
                    (Item::Integer(place), _) => object.at(*place),
                    _ => None,
                }
            }
            Expr::Slice(list, start, stop) => {
                let list = self.expr(list)?;
                let start = match start {
                    Some(start) => Some(self.integer(start)?),
                    None => None,
                };
                let stop = match stop {
                    Some(stop) => Some(self.integer(stop)?),
                    None => None,
                };
                list.slice(start, stop)
            }
            Expr::Reversed(list) => {
                let items = self.expr(list)?.items()?;
                Some(Item::Items(items.iter().rev().cloned().collect()))
            }
            Expr::Sum(parts) => {
                let (first, rest) = parts.split_first()?;
                let first = self.expr(first)?;
                self.sum(&first, rest)
            }
            Expr::Joined(parts) => {
                let mut text = String::new();
                for part in parts {
                    match self.expr(part)? {
                        Item::None | Item::Bool(_) => return None, // the engine writes them in another way
                        part => part.show(&mut text)?,
                    }
                }
                self.made(&text)
            }
            Expr::Binary(operator, left, right) => {
                let (left, right) = (self.expr(left)?, self.expr(right)?);
                left.operate(*operator, &right)
            }
            Expr::And(left, right) => {
                let left = self.expr(left)?;
                if left.is_true()? { self.expr(right) } else { Some(left) }
            }
            Expr::Or(left, right) => {
                let left = self.expr(left)?;
                if left.is_true()? { Some(left) } else { self.expr(right) }
            }
            Expr::Not(value) => Some(Item::Bool(!self.expr(value)?.is_true()?)),
            Expr::Choice(condition, then, otherwise) => {
                if self.expr(condition)?.is_true()? {
                    self.expr(then)
                } else {
                    otherwise.as_ref().map_or(Some(Item::Undefined), |otherwise| self.expr(otherwise))
                }
            }
            Expr::Filter(filter, value) => filtered(*filter, self.expr(value)?),
            Expr::Default(value, other) => match self.expr(value)? {
                Item::Undefined => self.expr(other),
                value => Some(value),
            },
            Expr::Test(test, value) => self.expr(value)?.passes(*test).map(Item::Bool),
            Expr::Method(method, object, arguments) => self.method(*method, object, arguments),
            Expr::Namespace(fields) => {
                let mut values = Vec::with_capacity(fields.len());
                for (name, value) in fields {
                    put(&mut values, *name, self.expr(value)?);
                }
                self.namespaces.push(values);
                Some(Item::Namespace(self.namespaces.len() - 1))
            }
            Expr::Call(name, argument) => {
                let (Item::Clock, format) = (self.variable(*name)?, self.expr(argument)?) else {
                    return None;
                };
                made(&self.now?.format(format.text()?))
            }
            Expr::Other => None,
        }
    }

    fn integer(&mut self, expr: &'a Expr) -> Option<i64> {
        match self.expr(expr)? {
            Item::Integer(number) => Some(number),
            _ => None,
        }
    }

    fn attribute(&mut self, object: &'a Expr, name: Name) -> Option<Item<'a>> {
        match self.expr(object)? {
            Item::Namespace(place) => {
                let fields = self.namespaces.get(place)?;
                fields.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone())
            }
            Item::Loop { index, length } => match self.name(name)? {
                "index" => Some(Item::Integer(index as i64 + 1)),
                "index0" => Some(Item::Integer(index as i64)),
                "first" => Some(Item::Bool(index == 0)),
                "last" => Some(Item::Bool(index + 1 == length)),
                "length" => Some(Item::Integer(length as i64)),
                _ => None,
            },
            object => object.under(self.name(name)?),
        }
    }

    fn method(&mut self, method: Method, object: &'a Expr, arguments: &'a [Expr]) -> Option<Item<'a>> {
        let object = self.expr(object)?;
        let mut values = Vec::with_capacity(arguments.len());
        for argument in arguments {
            values.push(self.expr(argument)?);
        }
        let first = values.first();
        match method {
            Method::Get => {
                let found = object.under(first?.text()?)?;
                Some(match found {
                    Item::Undefined => values.get(1).cloned().unwrap_or(Item::None),
                    found => found,
                })
            }
            Method::Strip(name) => {
                let characters = match first {
                    Some(given) => Some(given.text()?),
                    None => None,
                };
                part_of(&object, |text| strip(text, name, characters))
            }
            Method::StartsWith => Some(Item::Bool(object.text()?.starts_with(first?.text()?))),
            Method::EndsWith => Some(Item::Bool(object.text()?.ends_with(first?.text()?))),
            Method::Split => {
                let separator = first?.text().filter(|separator| !separator.is_empty())?;
                Some(Item::Items(match &object {
                    Item::Text(text) => text.split(separator).map(Item::Text).collect(),
                    other => other.text()?.split(separator).map(|part| Item::Made(part.into())).collect(),
                }))
            }
        }
    }
}

/// Bytes of the texts of these messages, of which most prompts consist.
fn text_bytes(messages: &Data) -> usize {
    let of = |data: &Data| if let Data::Text(text) = data { text.len() } else { 0 };
    let Data::List(messages) = messages else { return 0 };
    let message = |message: &Data| match message {
        Data::Dict(entries) => entries.iter().map(|(_, value)| of(value)).sum(),
        _ => 0,
    };
    messages.iter().map(message).sum::<usize>()
}

fn put<'a>(fields: &mut Vec<(Name, Item<'a>)>, name: Name, value: Item<'a>) {
    match fields.iter_mut().find(|(known, _)| *known == name) {
        Some((_, old)) => *old = value,
        None => fields.push((name, value)),
    }
}

fn made<'a>(text: &str) -> Option<Item<'a>> {
    (text.len() <= MAX_OUTPUT).then(|| Item::Made(Rc::from(text)))
}

/// A part of a text; not copied where that lies in the conversation or in the template.
fn part_of<'a>(text: &Item<'a>, part: impl for<'t> Fn(&'t str) -> &'t str) -> Option<Item<'a>> {
    match text {
        Item::Text(text) => Some(Item::Text(part(text))),
        other => other.text().map(|text| Item::Made(part(text).into())),
    }
}

fn filtered(filter: Filter, value: Item<'_>) -> Option<Item<'_>> {
    match filter {
        Filter::Trim => part_of(&value, |text| strip(text, "strip", None)),
        Filter::Length => Some(Item::Integer(i64::try_from(value.length()?).ok()?)),
        Filter::String => value.text().is_some().then_some(value),
        Filter::List => matches!(value, Item::List(_) | Item::Items(_)).then_some(value),
        Filter::First => value.items()?.first().cloned(),
        Filter::Last => value.items()?.last().cloned(),
        Filter::ToJson(indent) => {
            let style = JsonStyle {
                ensure_ascii: false,
                indent: indent.map(|spaces| " ".repeat(usize::from(spaces))),
                item_separator: if indent.is_some() { "," } else { ", " }.to_owned(),
                key_separator: ": ".to_owned(),
                sort_keys: false,
            };
            made(&json(&value.value()?, &style).ok()?)
        }
    }
}
