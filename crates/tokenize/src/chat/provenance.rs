//! Which of a prompt's characters came from the conversation, and which from the template.
//!
//! The template may do anything with the strings it is given, so that their way cannot be followed. Instead the
//! conversation is rendered a second time with other characters in the places of those that special tokens begin
//! with. Where the two prompts are equal but for these, each place that shows a stand-in came from the conversation,
//! and no special token may begin there.

use super::{ChatTemplate, Data, Now};
use crate::error::{Result, TokenizeError};

/// A prompt, and the same with stand-ins where no special token may begin. Both have the same bytes elsewhere.
pub(crate) struct Masked {
    pub(crate) text: String,
    pub(crate) masked: String,
}

/// A character that special tokens begin with, and what stands for it.
#[derive(Clone, Copy)]
struct StandIn {
    first: char,
    other: char,
}

impl ChatTemplate {
    /// Renders as [`ChatTemplate::render`], for a tokenizer with these special tokens.
    ///
    /// # Errors
    /// As for [`ChatTemplate::render`]; [`TokenizeError::UntrustedSpecial`] where the conversation holds a special
    /// token's text and the template renders something else without it, so that nothing can be told apart.
    pub(crate) fn render_masked(
        &self,
        variables: &[(String, Data)],
        now: Option<Now>,
        special: &[&str],
    ) -> Result<Masked> {
        let text = self.render(variables, now)?;
        let mut firsts: Vec<char> = Vec::new();
        for first in special.iter().filter_map(|content| content.chars().next()) {
            if !firsts.contains(&first) {
                firsts.push(first);
            }
        }
        let any = |found: &dyn Fn(&str) -> bool| {
            variables.iter().any(|(_, data)| data.any_text(&|text| found(text)))
        };
        if !any(&|string| string.contains(firsts.as_slice())) {
            return Ok(Masked { masked: text.clone(), text });
        }
        if let Some(stand_ins) = stand_ins(&firsts, &text) {
            let every = |string: &str| replace_all(string, &stand_ins);
            let whole = |string: &str| replace_beginnings(string, special, &stand_ins);
            // Templates look for some texts themselves, such as `</think>`: then only what is a special token's.
            for change in [&every as &dyn Fn(&str) -> String, &whole] {
                let changed: Vec<_> = variables
                    .iter()
                    .map(|(name, data)| (name.clone(), data.map_text(&|text| change(text))))
                    .collect();
                let Ok(masked) = self.render(&changed, now) else { continue };
                if is_masked(&masked, &text, &stand_ins) {
                    return Ok(Masked { text, masked });
                }
            }
        }
        match special.iter().find(|content| any(&|string| string.contains(**content))) {
            None => Ok(Masked { masked: text.clone(), text }),
            Some(content) => Err(TokenizeError::UntrustedSpecial { content: (*content).to_owned() }),
        }
    }
}

/// For each of these characters another of as many bytes that the text does not have; `None` where there is none.
fn stand_ins(firsts: &[char], text: &str) -> Option<Vec<StandIn>> {
    let mut taken: Vec<char> = Vec::new();
    let mut stand_ins = Vec::new();
    for &first in firsts {
        // JSON and Python write none of these in another way.
        let candidates = match first.len_utf8() {
            1 => "\u{7f}~^`@$&*".chars().collect::<Vec<_>>(),
            2 => ('\u{7c0}'..='\u{7ea}').collect(),
            3 => ('\u{e000}'..='\u{e0ff}').collect(),
            _ => ('\u{f0000}'..='\u{f00ff}').collect(),
        };
        let free = |other: &char| !text.contains(*other) && !taken.contains(other) && !firsts.contains(other);
        let other = candidates.into_iter().find(free)?;
        taken.push(other);
        stand_ins.push(StandIn { first, other });
    }
    Some(stand_ins)
}

fn replace_all(text: &str, stand_ins: &[StandIn]) -> String {
    let change = |character| {
        stand_ins.iter().find(|pair| pair.first == character).map_or(character, |pair| pair.other)
    };
    text.chars().map(change).collect()
}

/// The text with stand-ins only where these contents begin.
fn replace_beginnings(text: &str, contents: &[&str], stand_ins: &[StandIn]) -> String {
    let mut out = text.to_owned();
    for content in contents {
        if !out.contains(content) {
            continue;
        }
        let mut characters = content.chars();
        let first = characters.next().unwrap_or_default();
        let Some(pair) = stand_ins.iter().find(|pair| pair.first == first) else { continue };
        out = out.replace(content, &format!("{}{}", pair.other, characters.as_str()));
    }
    out
}

/// Whether `masked` is `text` but for stand-ins.
fn is_masked(masked: &str, text: &str, stand_ins: &[StandIn]) -> bool {
    let same = |(shown, original): (char, char)| {
        shown == original || stand_ins.iter().any(|pair| pair.other == shown && pair.first == original)
    };
    masked.len() == text.len() && masked.chars().zip(text.chars()).all(same)
}
