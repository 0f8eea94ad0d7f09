//! Templates run without the engine, as far as they are made of what nearly all are made of.
//!
//! The engine's parser reads a template; loops, conditions, variables and concatenated strings are then run here, on
//! the conversation itself: nothing is converted before, and a text is copied once, into the prompt. Whatever is
//! reached that is not known here, or would be an error, ends the run with nothing, and the engine renders the
//! template from its beginning. So there is one thing to prove: where something comes out, it is what the engine
//! gives.

mod program;
mod run;
mod value;

use minijinja::machinery;
use minijinja::syntax::SyntaxConfig;

use super::{Data, Now};
use program::{Program, Reader};
use run::Run;

/// A template that can be run directly.
pub(super) struct Direct(Program);

impl Direct {
    /// The template, if it is one.
    pub(super) fn of(source: &str, syntax: SyntaxConfig) -> Option<Self> {
        let template = machinery::parse(source, super::NAME, syntax).ok()?;
        Reader::default().program(&template).map(Self)
    }

    /// The prompt, or nothing where the engine must be asked. `messages` go before the variable of that name.
    pub(super) fn render(
        &self,
        messages: Option<&Data>,
        variables: &[(String, Data)],
        special_tokens: &[(String, String)],
        now: Option<Now>,
    ) -> Option<String> {
        Run::new(&self.0, messages, variables, special_tokens, now).prompt()
    }
}

#[cfg(test)]
mod tests;
