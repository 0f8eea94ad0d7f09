//! A template as a program: what the engine's parser has read, of it the constructs that can be run here.

use std::collections::HashMap;

use minijinja::Value;
use minijinja::machinery::ast;
use minijinja::value::ValueKind;

use super::super::slices;

/// A name that the template uses, by its place in [`Program::names`].
pub(super) type Name = u32;

/// A template. What only the engine can do is in its place as `Other`, and matters when it is reached.
pub(super) struct Program {
    pub(super) body: Vec<Node>,
    pub(super) names: Vec<Box<str>>,
}

pub(super) enum Node {
    Raw(Box<str>),
    Show(Expr),
    For {
        target: Name,
        items: Expr,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
    If {
        condition: Expr,
        then: Vec<Node>,
        otherwise: Vec<Node>,
    },
    Scope(Vec<Node>),
    Set(Name, Expr),
    SetAttribute {
        object: Name,
        attribute: Name,
        value: Expr,
    },
    Break,
    Continue,
    /// Where a macro stands, nothing happens; its name is a variable that only the engine has.
    Macro(Name),
    Other,
}

pub(super) enum Expr {
    None,
    Bool(bool),
    Integer(i64),
    Text(Box<str>),
    Variable(Name),
    Attribute(Box<Expr>, Name),
    Item(Box<Expr>, Box<Expr>),
    /// `items[start:stop]`
    Slice(Box<Expr>, Option<Box<Expr>>, Option<Box<Expr>>),
    /// `items[::-1]`
    Reversed(Box<Expr>),
    /// `a + b + …`
    Sum(Vec<Expr>),
    /// `a ~ b ~ …`
    Joined(Vec<Expr>),
    Binary(Operator, Box<Expr>, Box<Expr>),
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    Not(Box<Expr>),
    Choice(Box<Expr>, Box<Expr>, Option<Box<Expr>>),
    Filter(Filter, Box<Expr>),
    /// The value, or the second where it is undefined.
    Default(Box<Expr>, Box<Expr>),
    Test(Test, Box<Expr>),
    Method(Method, Box<Expr>, Vec<Expr>),
    Namespace(Vec<(Name, Expr)>),
    /// A call of a variable with one argument.
    Call(Name, Box<Expr>),
    Other,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    Subtract,
    Remainder,
}

#[derive(Clone, Copy)]
pub(super) enum Filter {
    Trim,
    Length,
    String,
    List,
    First,
    Last,
    /// With so many spaces for each level; none for everything on one line.
    ToJson(Option<u8>),
}

#[derive(Clone, Copy)]
pub(super) enum Test {
    Defined,
    Undefined,
    None,
    String,
    Mapping,
    Iterable,
    Sequence,
    True,
    False,
    Boolean,
    Integer,
}

#[derive(Clone, Copy)]
pub(super) enum Method {
    /// As Python calls it: `strip`, `lstrip` or `rstrip`.
    Strip(&'static str),
    StartsWith,
    EndsWith,
    Split,
    Get,
}

/// Reads what the parser has made of a template.
#[derive(Default)]
pub(super) struct Reader {
    names: Vec<Box<str>>,
    places: HashMap<Box<str>, Name>,
}

impl Reader {
    pub(super) fn program(mut self, template: &ast::Stmt<'_>) -> Option<Program> {
        let ast::Stmt::Template(template) = template else { return None };
        let body = self.nodes(&template.children);
        Some(Program { body, names: self.names })
    }

    fn name(&mut self, name: &str) -> Name {
        if let Some(place) = self.places.get(name) {
            return *place;
        }
        let place = self.names.len() as Name;
        self.names.push(name.into());
        self.places.insert(name.into(), place);
        place
    }

    fn nodes(&mut self, statements: &[ast::Stmt<'_>]) -> Vec<Node> {
        statements.iter().map(|statement| self.node(statement)).collect()
    }

    fn node(&mut self, statement: &ast::Stmt<'_>) -> Node {
        match statement {
            ast::Stmt::EmitRaw(raw) => Node::Raw(raw.raw.into()),
            ast::Stmt::EmitExpr(emitted) => Node::Show(self.expr(&emitted.expr)),
            ast::Stmt::ForLoop(each) => match &each.target {
                ast::Expr::Var(target) if each.filter_expr.is_none() && !each.recursive => Node::For {
                    target: self.name(target.id),
                    items: self.expr(&each.iter),
                    body: self.nodes(&each.body),
                    otherwise: self.nodes(&each.else_body),
                },
                _ => Node::Other,
            },
            ast::Stmt::IfCond(choice) => Node::If {
                condition: self.expr(&choice.expr),
                then: self.nodes(&choice.true_body),
                otherwise: self.nodes(&choice.false_body),
            },
            ast::Stmt::WithBlock(scope) if scope.assignments.is_empty() => {
                Node::Scope(self.nodes(&scope.body))
            }
            ast::Stmt::Set(set) => match &set.target {
                ast::Expr::Var(target) => Node::Set(self.name(target.id), self.expr(&set.expr)),
                ast::Expr::GetAttr(target) => match &target.expr {
                    ast::Expr::Var(object) => Node::SetAttribute {
                        object: self.name(object.id),
                        attribute: self.name(target.name),
                        value: self.expr(&set.expr),
                    },
                    _ => Node::Other,
                },
                _ => Node::Other,
            },
            ast::Stmt::Break(_) => Node::Break,
            ast::Stmt::Continue(_) => Node::Continue,
            ast::Stmt::Macro(declared) => Node::Macro(self.name(declared.name)),
            _ => Node::Other,
        }
    }

    fn boxed(&mut self, expr: &ast::Expr<'_>) -> Box<Expr> {
        Box::new(self.expr(expr))
    }

    fn expr(&mut self, expr: &ast::Expr<'_>) -> Expr {
        match expr {
            ast::Expr::Const(constant) => constant_of(&constant.value),
            ast::Expr::Var(variable) => Expr::Variable(self.name(variable.id)),
            ast::Expr::GetAttr(get) => Expr::Attribute(self.boxed(&get.expr), self.name(get.name)),
            ast::Expr::GetItem(get) => Expr::Item(self.boxed(&get.expr), self.boxed(&get.subscript_expr)),
            ast::Expr::Slice(slice) if slice.step.as_ref().is_none_or(is_none) => {
                let mut bound = |bound: &Option<ast::Expr<'_>>| {
                    bound.as_ref().filter(|bound| !is_none(bound)).map(|bound| self.boxed(bound))
                };
                let (start, stop) = (bound(&slice.start), bound(&slice.stop));
                Expr::Slice(self.boxed(&slice.expr), start, stop)
            }
            ast::Expr::UnaryOp(operation) => match (&operation.op, self.expr(&operation.expr)) {
                (ast::UnaryOpKind::Not, value) => Expr::Not(Box::new(value)),
                (ast::UnaryOpKind::Neg, Expr::Integer(number)) => {
                    number.checked_neg().map_or(Expr::Other, Expr::Integer)
                }
                _ => Expr::Other,
            },
            ast::Expr::BinOp(operation) => self.binary(operation),
            ast::Expr::IfExpr(choice) => Expr::Choice(
                self.boxed(&choice.test_expr),
                self.boxed(&choice.true_expr),
                choice.false_expr.as_ref().map(|otherwise| self.boxed(otherwise)),
            ),
            ast::Expr::Filter(filter) => self.filter(filter),
            ast::Expr::Test(test) if test.args.is_empty() => {
                let test_of = match test.name {
                    "defined" => Test::Defined,
                    "undefined" => Test::Undefined,
                    "none" => Test::None,
                    "string" => Test::String,
                    "mapping" => Test::Mapping,
                    "iterable" => Test::Iterable,
                    "sequence" => Test::Sequence,
                    "true" => Test::True,
                    "false" => Test::False,
                    "boolean" => Test::Boolean,
                    "integer" => Test::Integer,
                    _ => return Expr::Other,
                };
                Expr::Test(test_of, self.boxed(&test.expr))
            }
            ast::Expr::Call(call) => self.call(call),
            _ => Expr::Other,
        }
    }

    fn binary(&mut self, operation: &ast::BinOp<'_>) -> Expr {
        let operator = match operation.op {
            ast::BinOpKind::Add | ast::BinOpKind::Concat => {
                let (left, right) = (self.expr(&operation.left), self.expr(&operation.right));
                return chained(left, right, matches!(operation.op, ast::BinOpKind::Add));
            }
            ast::BinOpKind::ScAnd => {
                return Expr::And(self.boxed(&operation.left), self.boxed(&operation.right));
            }
            ast::BinOpKind::ScOr => {
                return Expr::Or(self.boxed(&operation.left), self.boxed(&operation.right));
            }
            ast::BinOpKind::Eq => Operator::Equal,
            ast::BinOpKind::Ne => Operator::Unequal,
            ast::BinOpKind::Lt => Operator::Less,
            ast::BinOpKind::Lte => Operator::LessOrEqual,
            ast::BinOpKind::Gt => Operator::Greater,
            ast::BinOpKind::Gte => Operator::GreaterOrEqual,
            ast::BinOpKind::In => Operator::In,
            ast::BinOpKind::Sub => Operator::Subtract,
            ast::BinOpKind::Rem => Operator::Remainder,
            _ => return Expr::Other,
        };
        Expr::Binary(operator, self.boxed(&operation.left), self.boxed(&operation.right))
    }

    fn filter(&mut self, filter: &ast::Filter<'_>) -> Expr {
        let Some(value) = &filter.expr else { return Expr::Other };
        let kind = match (filter.name, filter.args.as_slice()) {
            ("trim", []) => Filter::Trim,
            ("length" | "count", []) => Filter::Length,
            ("string", []) => Filter::String,
            ("list", []) => Filter::List,
            ("first", []) => Filter::First,
            ("last", []) => Filter::Last,
            ("tojson", []) => Filter::ToJson(None),
            ("tojson", [ast::CallArg::Kwarg("indent", indent)]) => match self.expr(indent) {
                Expr::Integer(spaces @ 0..=64) => Filter::ToJson(Some(spaces as u8)),
                _ => return Expr::Other,
            },
            ("default" | "d", [ast::CallArg::Pos(other)]) => {
                return Expr::Default(self.boxed(value), self.boxed(other));
            }
            _ => return Expr::Other,
        };
        Expr::Filter(kind, self.boxed(value))
    }

    fn call(&mut self, call: &ast::Call<'_>) -> Expr {
        match (&call.expr, call.args.as_slice()) {
            (ast::Expr::Var(function), arguments) if function.id == "namespace" => {
                let field = |argument: &ast::CallArg<'_>| match argument {
                    ast::CallArg::Kwarg(name, value) => Some((self.name(name), self.expr(value))),
                    _ => None,
                };
                arguments.iter().map(field).collect::<Option<_>>().map_or(Expr::Other, Expr::Namespace)
            }
            (ast::Expr::Var(function), arguments) if function.id == slices::FUNCTION => match arguments {
                [
                    ast::CallArg::Pos(value),
                    ast::CallArg::Pos(start),
                    ast::CallArg::Pos(stop),
                    ast::CallArg::Pos(step),
                ] if is_none(start) && is_none(stop) && matches!(self.expr(step), Expr::Integer(-1)) => {
                    Expr::Reversed(self.boxed(value))
                }
                _ => Expr::Other,
            },
            (ast::Expr::Var(function), [ast::CallArg::Pos(argument)]) => {
                Expr::Call(self.name(function.id), self.boxed(argument))
            }
            (ast::Expr::GetAttr(method), arguments) => {
                let kind = match (method.name, arguments.len()) {
                    ("strip", 0 | 1) => Method::Strip("strip"),
                    ("lstrip", 0 | 1) => Method::Strip("lstrip"),
                    ("rstrip", 0 | 1) => Method::Strip("rstrip"),
                    ("startswith", 1) => Method::StartsWith,
                    ("endswith", 1) => Method::EndsWith,
                    ("split", 1) => Method::Split,
                    ("get", 1 | 2) => Method::Get,
                    _ => return Expr::Other,
                };
                let argument = |argument: &ast::CallArg<'_>| match argument {
                    ast::CallArg::Pos(value) => Some(self.expr(value)),
                    _ => None,
                };
                let Some(arguments) = arguments.iter().map(argument).collect() else { return Expr::Other };
                Expr::Method(kind, self.boxed(&method.expr), arguments)
            }
            _ => Expr::Other,
        }
    }
}

/// `a + b` or `a ~ b`, where `a` may itself be such a chain.
fn chained(left: Expr, right: Expr, is_sum: bool) -> Expr {
    let mut parts = match left {
        Expr::Sum(parts) if is_sum => parts,
        Expr::Joined(parts) if !is_sum => parts,
        left => vec![left],
    };
    parts.push(right);
    if is_sum { Expr::Sum(parts) } else { Expr::Joined(parts) }
}

fn is_none(expr: &ast::Expr<'_>) -> bool {
    matches!(expr, ast::Expr::Const(constant) if constant.value.is_none())
}

fn constant_of(value: &Value) -> Expr {
    if let Some(text) = value.as_str() {
        return Expr::Text(text.into());
    }
    if value.is_none() {
        return Expr::None;
    }
    match value.kind() {
        ValueKind::Bool => Expr::Bool(value.is_true()),
        ValueKind::Number if value.is_integer() => value.as_i64().map_or(Expr::Other, Expr::Integer),
        _ => Expr::Other,
    }
}
