//! Chat templates: conversations to prompts, and to their ids.
//!
//! Templates are written for Jinja as `transformers` sets it up: blocks trimmed, `break` and `continue`, `tojson`
//! as `json.dumps` writes, `raise_exception`, `strftime_now`, and the methods of Python's strings, lists and dicts.

mod data;
mod direct;
mod encode;
mod methods;
mod provenance;
mod python;
mod reasoning;
mod slices;
mod source;
mod time;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value};

use crate::error::{Result, TokenizeError};

use direct::Direct;

pub use data::{Data, Text};
pub use encode::Conversation;
pub use time::Now;

/// Steps that one rendering may take: some seconds. A conversation of a thousand messages takes about 100,000.
const FUEL: u64 = 50_000_000;
/// Bytes that one rendering may give.
const MAX_OUTPUT: usize = 64 << 20;
/// Templates in use have up to 20 KB.
const MAX_SOURCE: usize = 1 << 20;
const NAME: &str = "chat template";
const TOOL_NAME: &str = "chat template for tools";
/// The function that shows the time; a template can call it by no other name.
const CLOCK: &str = "strftime_now";

/// A chat template as a model's directory has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChatSource {
    /// The template.
    pub template: String,
    /// The one that serves conversations with tools, where there is another.
    pub tool_template: Option<String>,
    /// Variables (`bos_token`, …) that every rendering has.
    pub special_tokens: Vec<(String, String)>,
}

/// A chat template, compiled once; immutable and shared freely between threads.
#[derive(Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    /// The same templates without the engine, by the names that they have there.
    direct: Arc<[(&'static str, Direct)]>,
    special_tokens: Arc<[(String, String)]>,
    shows_time: bool,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("ChatTemplate")
            .field("special_tokens", &self.special_tokens)
            .finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// [`TokenizeError::Template`] where it is none.
    pub fn of(source: &ChatSource) -> Result<Self> {
        let sources =
            [Some((NAME, &source.template)), source.tool_template.as_ref().map(|tools| (TOOL_NAME, tools))];
        let syntax = syntax().map_err(|error| failed(&error))?;
        let mut environment = environment(syntax.clone());
        let mut direct = Vec::new();
        for (name, template) in sources.into_iter().flatten() {
            if template.len() > MAX_SOURCE {
                let reason = format!("it has {} bytes; at most {MAX_SOURCE} are served", template.len());
                return Err(TokenizeError::Template { reason });
            }
            let template = slices::rewritten(&source::without_generation_blocks(template));
            direct.extend(Direct::of(&template, syntax.clone()).map(|program| (name, program)));
            environment.add_template_owned(name, template).map_err(|error| failed(&error))?;
        }
        let shows_time = environment.templates().any(|(_, template)| template.source().contains(CLOCK));
        let special_tokens = source.special_tokens.clone().into();
        Ok(Self { environment: Arc::new(environment), direct: direct.into(), special_tokens, shows_time })
    }

    /// Whether the template may show the time. One that does not is rendered the same without it.
    pub fn shows_time(&self) -> bool {
        self.shows_time
    }

    /// The prompt of a conversation. `variables` are the template's: `messages`, `tools`, `add_generation_prompt`
    /// and whatever else it knows; they go before special tokens of the same name. `now` is what `strftime_now`
    /// shows.
    ///
    /// # Errors
    /// [`TokenizeError::TemplateRaised`] where the template itself refuses the conversation;
    /// [`TokenizeError::Template`] where it fails, takes too many steps or gives too much text.
    pub fn render(&self, variables: &[(String, Data)], now: Option<Now>) -> Result<String> {
        let name = self.name_for(variables);
        if let Some((_, direct)) = self.direct.iter().find(|(known, _)| *known == name) {
            let messages = variables.iter().rev().find(|(name, _)| name == "messages");
            let messages = messages.map(|(_, data)| reasoning::named(data));
            if let Some(prompt) = direct.render(messages.as_deref(), variables, &self.special_tokens, now) {
                return Ok(prompt);
            }
        }
        self.render_by_engine(variables, now)
    }

    /// Which of the templates serves this conversation.
    fn name_for(&self, variables: &[(String, Data)]) -> &'static str {
        let has_tools = variables.iter().any(|(name, data)| name == "tools" && *data != Data::None);
        let has_other = has_tools && self.environment.get_template(TOOL_NAME).is_ok();
        if has_other { TOOL_NAME } else { NAME }
    }

    /// [`ChatTemplate::render`] without the shorter way: what that is held against.
    ///
    /// # Errors
    /// As for [`ChatTemplate::render`].
    #[doc(hidden)]
    pub fn render_by_engine(&self, variables: &[(String, Data)], now: Option<Now>) -> Result<String> {
        let name = self.name_for(variables);
        let variables = variables.iter().map(|(name, data)| match name.as_str() {
            "messages" => ("messages", reasoning::named(data).value()),
            name => (name, data.value()),
        });
        let special =
            self.special_tokens.iter().map(|(name, content)| (name.as_str(), Value::from(content.as_str())));
        let clock = now.map(|now| (CLOCK, Value::from_function(move |format: &str| now.format(format))));
        let context = Value::from_pairs(special.chain(clock).chain(variables));
        let template = self.environment.get_template(name).map_err(|error| failed(&error))?;
        let mut out = Bounded(Vec::new());
        // The engine has panicked on a template before (on slices of nothing, in 3.0.5). It is left behind as it is.
        let rendered =
            catch_unwind(AssertUnwindSafe(|| template.render_captured_to(context, &mut out).map(drop)));
        let panicked =
            |_| TokenizeError::Template { reason: "the template engine panicked on it".to_owned() };
        rendered.map_err(panicked)?.map_err(|error| failed(&error))?;
        String::from_utf8(out.0)
            .map_err(|_| TokenizeError::Template { reason: "it gave bytes that are no text".into() })
    }
}

/// Memory for text up to [`MAX_OUTPUT`].
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT {
            return Err(io::Error::other(format!("it gives more than {MAX_OUTPUT} bytes of text")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What `raise_exception` was given.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn syntax() -> std::result::Result<SyntaxConfig, Error> {
    SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()
}

fn environment(syntax: SyntaxConfig) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_syntax(syntax);
    environment.set_fuel(Some(FUEL));
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(methods::call);
    environment.set_formatter(|out, _, value| match value.as_str() {
        Some(text) => out.write_str(text).map_err(Error::from),
        None => out.write_str(&python::text(value)).map_err(Error::from),
    });
    environment.add_filter("tojson", tojson);
    environment.add_filter("string", |value: &Value| python::text(value));
    environment.add_filter("join", join);
    environment.add_filter("trim", trim);
    // Jinja's own: None is not iterable, and what has a length and items is a sequence, dicts and strings too.
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    environment.add_test("sequence", |value: &Value| {
        let kinds = [ValueKind::Undefined, ValueKind::Seq, ValueKind::Map, ValueKind::String];
        kinds.contains(&value.kind())
    });
    environment.add_function(slices::FUNCTION, slices::slice);
    environment.add_function("raise_exception", |message: &Value| -> std::result::Result<Value, Error> {
        let raised = Raised(python::text(message));
        Err(Error::new(ErrorKind::InvalidOperation, "raised").with_source(raised))
    });
    environment
}

#[allow(clippy::needless_pass_by_value)] // as the engine calls it
fn tojson(value: &Value, ensure_ascii: Option<bool>, options: Kwargs) -> std::result::Result<String, Error> {
    let ascii: Option<bool> = options.get("ensure_ascii")?;
    let indent: Option<Value> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let sort_keys: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let indent = match indent.filter(|indent| !indent.is_none()) {
        None => None,
        Some(text) if text.as_str().is_some() => Some(python::text(&text)),
        Some(number) => Some(" ".repeat(number.as_usize().unwrap_or(0).min(64))),
    };
    let [item_separator, key_separator] = match separators.as_deref() {
        Some([item, key]) => [item.clone(), key.clone()],
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "tojson: separators are a pair")),
        None => [if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()],
    };
    let ensure_ascii = ascii.or(ensure_ascii).unwrap_or(false);
    let sort_keys = sort_keys.unwrap_or(false);
    python::json(value, &python::JsonStyle { ensure_ascii, indent, item_separator, key_separator, sort_keys })
}

#[allow(clippy::needless_pass_by_value)] // as the engine calls it
fn join(items: &Value, separator: Option<&str>, options: Kwargs) -> std::result::Result<String, Error> {
    let attribute: Option<&str> = options.get("attribute")?;
    let separator = separator.map_or_else(|| options.get::<Option<&str>>("d"), |text| Ok(Some(text)))?;
    options.assert_all_used()?;
    let text = |item: Value| match attribute {
        Some(name) => item.get_attr(name).map(|item| python::text(&item)),
        None => Ok(python::text(&item)),
    };
    let parts = items.try_iter()?.map(text).collect::<std::result::Result<Vec<_>, _>>()?;
    Ok(parts.join(separator.unwrap_or("")))
}

fn trim(value: &Value, characters: Option<&str>) -> String {
    let text = python::text(value);
    methods::strip(&text, "strip", characters).to_owned()
}

/// The engine's error as ours: what the template itself raised, or where and why it failed.
fn failed(error: &Error) -> TokenizeError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let mut reason = error.to_string();
    while let Some(error) = cause {
        if let Some(Raised(message)) = error.downcast_ref() {
            return TokenizeError::TemplateRaised { message: message.clone() };
        }
        cause = error.source();
        if let Some(cause) = cause {
            reason = format!("{reason}: {cause}");
        }
    }
    TokenizeError::Template { reason }
}
