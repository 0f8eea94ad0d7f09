//! Added tokens: contents that are found in the text before it is split, special or not.
//!
//! They behave as in the `tokenizers` library: at each place the longest content wins; those marked `normalized`
//! are looked for after normalization, the others before; `lstrip` and `rstrip` take the white space beside them
//! along; `single_word` ones must not touch a word character.

use std::ops::ControlFlow;

use aho_corasick::{AhoCorasick, MatchKind};
use serde::Deserialize;

use crate::error::{Result, TokenizeError};

/// An added token as `tokenizer.json` declares it.
#[derive(Clone, Debug, Deserialize)]
#[allow(clippy::struct_excessive_bools)] // the file's own switches
pub(crate) struct AddedToken {
    pub(crate) id: u32,
    pub(crate) content: String,
    pub(crate) single_word: bool,
    pub(crate) lstrip: bool,
    pub(crate) rstrip: bool,
    pub(crate) normalized: bool,
    pub(crate) special: bool,
}

impl AddedToken {
    /// A special token that is matched exactly as it is written.
    pub(crate) fn special(content: &str, id: u32) -> Self {
        Self {
            id,
            content: content.to_owned(),
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: false,
            special: true,
        }
    }
}

/// A part of a text: plain text, or an added token found in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part<'t> {
    Text(&'t str),
    Token(u32),
}

/// An added token in a text, with the white space that it takes along.
pub(crate) struct Found<'m> {
    pub(crate) token: &'m AddedToken,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// Finds added tokens in a text.
pub(crate) struct Matcher {
    /// `None` where there is nothing to find.
    automaton: Option<AhoCorasick>,
    tokens: Vec<AddedToken>,
    all_special: bool,
}

impl Matcher {
    /// A matcher for these tokens, whose contents must differ and not be empty.
    pub(crate) fn new(tokens: Vec<AddedToken>) -> Result<Self> {
        let automaton = if tokens.is_empty() {
            None
        } else {
            let contents = tokens.iter().map(|token| &token.content);
            let built = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(contents);
            Some(built.map_err(|error| TokenizeError::malformed(format!("the added tokens: {error}")))?)
        };
        let all_special = tokens.iter().all(|token| token.special);
        Ok(Self { automaton, tokens, all_special })
    }

    /// The contents of the special ones.
    pub(crate) fn special_contents(&self) -> impl Iterator<Item = &str> {
        self.tokens.iter().filter(|token| token.special).map(|token| token.content.as_str())
    }

    /// Whether a look at the text can find anything.
    pub(crate) fn is_idle(&self, parse_special: bool) -> bool {
        self.automaton.is_none() || (!parse_special && self.all_special)
    }

    /// Calls `visit` with the parts of `text` in order, until it breaks. Special tokens are plain text unless
    /// `parse_special`; those that are not special are always found.
    pub(crate) fn split<'t>(
        &self,
        text: &'t str,
        parse_special: bool,
        mut visit: impl FnMut(Part<'t>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let mut done = 0;
        self.each(text, parse_special, |found| {
            if done < found.start {
                visit(Part::Text(text.get(done..found.start).unwrap_or("")))?;
            }
            visit(Part::Token(found.token.id))?;
            done = found.end;
            ControlFlow::Continue(())
        })?;
        match text.get(done..) {
            Some(rest) if !rest.is_empty() => visit(Part::Text(rest)),
            _ => ControlFlow::Continue(()),
        }
    }

    /// Calls `visit` with the tokens found in `text`, in order, until it breaks; as [`Self::split`] finds them.
    pub(crate) fn each<'m>(
        &'m self,
        text: &str,
        parse_special: bool,
        mut visit: impl FnMut(Found<'m>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let Some(automaton) = self.automaton.as_ref().filter(|_| !self.is_idle(parse_special)) else {
            return ControlFlow::Continue(());
        };
        let mut done = 0;
        for found in automaton.find_iter(text) {
            let Some(token) = self.tokens.get(found.pattern().as_usize()) else { continue };
            if token.special && !parse_special {
                continue; // its text is consumed all the same: no shorter token is looked for inside
            }
            let (mut start, mut end) = (found.start(), found.end());
            let (before, after) = (text.get(..start).unwrap_or(""), text.get(end..).unwrap_or(""));
            if token.single_word && (ends_with_word(before) || starts_with_word(after)) {
                continue;
            }
            if token.lstrip {
                start = before.trim_end().len().max(done);
            }
            if token.rstrip {
                end += after.len() - after.trim_start().len();
            }
            visit(Found { token, start, end })?;
            done = end;
        }
        ControlFlow::Continue(())
    }
}

fn ends_with_word(text: &str) -> bool {
    text.chars().next_back().is_some_and(regex_syntax::is_word_character)
}

fn starts_with_word(text: &str) -> bool {
    text.chars().next().is_some_and(regex_syntax::is_word_character)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts<'t>(matcher: &Matcher, text: &'t str, parse_special: bool) -> Vec<Part<'t>> {
        let mut parts = Vec::new();
        let _ = matcher.split(text, parse_special, |part| {
            parts.push(part);
            ControlFlow::Continue(())
        });
        parts
    }

    fn token(id: u32, content: &str, change: impl FnOnce(&mut AddedToken)) -> AddedToken {
        let mut token = AddedToken::special(content, id);
        change(&mut token);
        token
    }

    #[test]
    fn special_tokens_are_text_unless_asked_for() {
        let matcher = Matcher::new(vec![
            AddedToken::special("<s>", 1),
            token(2, "<tool>", |token| token.special = false),
        ])
        .unwrap();
        assert_eq!(parts(&matcher, "a<s><tool>", true), [Part::Text("a"), Part::Token(1), Part::Token(2)]);
        assert_eq!(parts(&matcher, "a<s><tool>", false), [Part::Text("a<s>"), Part::Token(2)]);
        assert_eq!(parts(&matcher, "", true), []);
        assert!(!matcher.is_idle(false));
        assert!(Matcher::new(vec![AddedToken::special("<s>", 1)]).unwrap().is_idle(false));
    }

    #[test]
    fn the_longest_content_wins_even_where_it_is_then_refused() {
        let matcher = Matcher::new(vec![
            AddedToken::special("<a><b>", 1),
            token(2, "<b>", |token| token.special = false),
        ])
        .unwrap();
        assert_eq!(parts(&matcher, "<a><b>", true), [Part::Token(1)]);
        assert_eq!(parts(&matcher, "<a><b>", false), [Part::Text("<a><b>")]);
    }

    #[test]
    fn strip_takes_white_space_along_but_never_twice() {
        let matcher = Matcher::new(vec![
            token(1, "<l>", |token| token.lstrip = true),
            token(2, "<r>", |token| token.rstrip = true),
        ])
        .unwrap();
        let text = "a \t<l> b<r>\u{3000} <l>c";
        assert_eq!(
            parts(&matcher, text, true),
            [
                Part::Text("a"),
                Part::Token(1),
                Part::Text(" b"),
                Part::Token(2),
                Part::Token(1),
                Part::Text("c")
            ]
        );
    }

    #[test]
    fn single_words_do_not_touch_word_characters() {
        let matcher = Matcher::new(vec![token(1, "yes", |token| token.single_word = true)]).unwrap();
        assert_eq!(parts(&matcher, "eyes", true), [Part::Text("eyes")]);
        assert_eq!(parts(&matcher, "yes\u{301}", true), [Part::Text("yes\u{301}")]);
        assert_eq!(parts(&matcher, "(yes)", true), [Part::Text("("), Part::Token(1), Part::Text(")")]);
    }
}
