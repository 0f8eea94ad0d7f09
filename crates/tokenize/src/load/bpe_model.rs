//! The `model` of a `tokenizer.json` that is a byte-pair encoding.

use std::borrow::Cow;
use std::fmt;

use ahash::{AHashMap, AHashSet};
use serde::Deserialize;
use serde::de::{self, MapAccess, SeqAccess, Visitor};

use crate::bpe::{BpeParts, Merges, Symbols};
use crate::error::{Result, TokenizeError};
use crate::load::{byte_level, spaced};
use crate::vocabulary::MAX_ID;

/// The model as it stands in the file; strings without escapes are borrowed from it.
#[derive(Deserialize)]
pub(crate) struct BpeModel<'f> {
    dropout: Option<f32>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    ignore_merges: Option<bool>,
    byte_fallback: Option<bool>,
    unk_token: Option<String>,
    #[serde(borrow)]
    vocab: VocabularyEntries<'f>,
    #[serde(borrow)]
    merges: MergeList<'f>,
}

/// A string of the file.
#[derive(Deserialize)]
struct Text<'f>(#[serde(borrow)] Cow<'f, str>);

struct VocabularyEntries<'f>(Vec<(Cow<'f, str>, u32)>);

struct MergeList<'f>(Vec<(Cow<'f, str>, Cow<'f, str>)>);

impl<'de: 'f, 'f> Deserialize<'de> for VocabularyEntries<'f> {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Vec<(Cow<'de, str>, u32)>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object of tokens and ids")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some((Text(token), id)) = map.next_entry::<Text<'de>, u32>()? {
                    entries.push((token, id));
                }
                Ok(entries)
            }
        }
        deserializer.deserialize_map(Entries).map(VocabularyEntries)
    }
}

/// One merge, written `"a b"` or `["a", "b"]`; `None` is a comment line of the older form.
struct Merge<'f>(Option<(Cow<'f, str>, Cow<'f, str>)>);

impl<'de: 'f, 'f> Deserialize<'de> for Merge<'f> {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Pair;
        impl<'de> Visitor<'de> for Pair {
            type Value = Merge<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a merge, \"left right\" or [\"left\", \"right\"]")
            }

            fn visit_borrowed_str<E: de::Error>(self, line: &'de str) -> std::result::Result<Self::Value, E> {
                if line.starts_with("#version") {
                    return Ok(Merge(None));
                }
                let halves = line.split_once(' ').filter(|(_, right)| !right.contains(' '));
                let (left, right) =
                    halves.ok_or_else(|| E::invalid_value(de::Unexpected::Str(line), &self))?;
                Ok(Merge(Some((Cow::Borrowed(left), Cow::Borrowed(right)))))
            }

            fn visit_str<E: de::Error>(self, line: &str) -> std::result::Result<Self::Value, E> {
                let Merge(pair) = Pair.visit_borrowed_str::<E>(line)?;
                Ok(Merge(pair.map(|(left, right)| (left.into_owned().into(), right.into_owned().into()))))
            }

            fn visit_seq<A: SeqAccess<'de>>(
                self,
                mut halves: A,
            ) -> std::result::Result<Self::Value, A::Error> {
                let mut half = |index| {
                    let Some(Text(half)) = halves.next_element::<Text<'de>>()? else {
                        return Err(de::Error::invalid_length(index, &self));
                    };
                    Ok(half)
                };
                let pair = (half(0)?, half(1)?);
                if halves.next_element::<de::IgnoredAny>()?.is_some() {
                    return Err(de::Error::invalid_length(3, &self));
                }
                Ok(Merge(Some(pair)))
            }
        }
        deserializer.deserialize_any(Pair)
    }
}

impl<'de: 'f, 'f> Deserialize<'de> for MergeList<'f> {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Vec<(Cow<'de, str>, Cow<'de, str>)>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a list of merges")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Self::Value, A::Error> {
                let mut merges = Vec::new();
                while let Some(Merge(merge)) = list.next_element()? {
                    merges.extend(merge);
                }
                Ok(merges)
            }
        }
        deserializer.deserialize_seq(List).map(MergeList)
    }
}

/// How a vocabulary writes text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Writing {
    /// A printable character for each byte.
    ByteLevel,
    /// Text with U+2581 for a space, and `<0x0A>` for a byte.
    Spaced,
}

/// What the rest of the loader needs of the model.
pub(crate) struct ResolvedModel {
    /// Written form and id of every token.
    pub(crate) vocabulary: Vec<(String, u32)>,
    /// The encoder's tables, or `None` where the model is not one that the native path encodes exactly.
    pub(crate) parts: Option<BpeParts>,
    /// The bytes that have no token, where the reference leaves them out of a text.
    pub(crate) left_out: Option<Box<[bool; 256]>>,
}

impl BpeModel<'_> {
    /// Checks the model and works out its tables.
    pub(crate) fn resolve(self, writing: Writing) -> Result<ResolvedModel> {
        let ids = self.ids()?;
        self.check_merges(&ids)?;
        let mut left_out = None;
        let parts = match writing {
            _ if !self.is_plain() => None,
            Writing::ByteLevel => self.byte_level_parts(&ids, &mut left_out),
            Writing::Spaced => self.spaced_parts(&ids),
        };
        let vocabulary = self.vocab.0.into_iter().map(|(token, id)| (token.into_owned(), id)).collect();
        Ok(ResolvedModel { vocabulary, parts, left_out })
    }

    fn ids(&self) -> Result<AHashMap<&str, u32>> {
        let mut ids = AHashMap::with_capacity(self.vocab.0.len());
        for (token, id) in &self.vocab.0 {
            if *id > MAX_ID {
                return Err(TokenizeError::id_too_large(id));
            }
            if let Some(first) = ids.insert(token.as_ref(), *id) {
                return Err(TokenizeError::malformed(format!(
                    "the vocabulary lists the token {token:?} twice, with the ids {first} and {id}"
                )));
            }
        }
        self.check_ids()?;
        Ok(ids)
    }

    fn check_ids(&self) -> Result<()> {
        let last = self.vocab.0.iter().map(|(_, id)| *id).max().unwrap_or(0);
        let mut owners = vec![u32::MAX; last as usize + 1];
        for (index, (token, id)) in self.vocab.0.iter().enumerate() {
            let Some(owner) = owners.get_mut(*id as usize) else { continue };
            if let Some((first, _)) = self.vocab.0.get(*owner as usize) {
                return Err(TokenizeError::malformed(format!(
                    "the vocabulary gives the id {id} to two tokens, {first:?} and {token:?}; each id may be used once"
                )));
            }
            *owner = index as u32;
        }
        Ok(())
    }

    /// Every merge must join two tokens of the vocabulary into a third: the `tokenizers` crate panics, or worse,
    /// on some that do not.
    fn check_merges(&self, ids: &AHashMap<&str, u32>) -> Result<()> {
        let prefix = self.continuing_subword_prefix.as_deref().unwrap_or("");
        let mut joined = String::new();
        for (left, right) in &self.merges.0 {
            let missing = |token: &str| {
                TokenizeError::malformed(format!(
                    "the merge ({left:?}, {right:?}) needs the token {token:?}, which the vocabulary does not have"
                ))
            };
            for half in [left, right] {
                if !ids.contains_key(half.as_ref()) {
                    return Err(missing(half));
                }
            }
            let tail = right.strip_prefix(prefix).ok_or_else(|| {
                TokenizeError::malformed(format!(
                    "the merge ({left:?}, {right:?}) continues a word, but {right:?} does not begin with the \
                     continuing_subword_prefix {prefix:?}"
                ))
            })?;
            joined.clear();
            joined.push_str(left);
            joined.push_str(tail);
            if !ids.contains_key(joined.as_str()) {
                return Err(missing(&joined));
            }
        }
        Ok(())
    }

    /// Whether every setting is one under which a byte-level model is just tokens and merges. With a token for each
    /// byte nothing is unknown, so that `unk_token`, `fuse_unk` and `byte_fallback` have no effect.
    fn is_plain(&self) -> bool {
        let is_empty = |text: &Option<String>| text.as_deref().is_none_or(str::is_empty);
        self.dropout.is_none_or(|probability| probability == 0.0)
            && is_empty(&self.continuing_subword_prefix)
            && is_empty(&self.end_of_word_suffix)
    }

    fn byte_level_parts(
        &self,
        ids: &AHashMap<&str, u32>,
        left_out: &mut Option<Box<[bool; 256]>>,
    ) -> Option<BpeParts> {
        let mut bytes_seen = [false; 256];
        let mut tokens = Vec::with_capacity(self.vocab.0.len());
        for (token, id) in &self.vocab.0 {
            // A token outside the byte-level alphabet cannot come out of text: it is an added token's.
            if let Some(bytes) = byte_level::to_bytes(token).filter(|bytes| !bytes.is_empty()) {
                if let [byte] = bytes[..] {
                    bytes_seen[usize::from(byte)] = true;
                }
                tokens.push((bytes, *id));
            }
        }
        let ignore_merges = self.ignore_merges.unwrap_or(false);
        if bytes_seen.contains(&false) {
            // Without a token for what is unknown the reference leaves such bytes out, and what stood beside them
            // merges. A span that is looked up as a whole would still have them.
            if self.unk_token.is_some() || self.byte_fallback == Some(true) || ignore_merges {
                return None;
            }
            // The encoder wants a token for every byte; these never come out of it.
            let free = self.vocab.0.iter().map(|(_, id)| id + 1).max()?..;
            let missing = (0..=u8::MAX).filter(|byte| !bytes_seen[usize::from(*byte)]);
            tokens.extend(missing.map(|byte| vec![byte]).zip(free));
            *left_out = Some(Box::new(bytes_seen.map(|seen| !seen)));
        }
        let mut merges = Vec::with_capacity(self.merges.0.len());
        for (left, right) in &self.merges.0 {
            for half in [left, right] {
                byte_level::to_bytes(half).filter(|bytes| !bytes.is_empty())?;
            }
            merges.push((*ids.get(left.as_ref())?, *ids.get(right.as_ref())?));
        }
        let merges = Merges::Pairs(keep_last(merges));
        Some(BpeParts { tokens, merges, begins_with: Symbols::Bytes, ignore_merges })
    }

    /// A whole text is one word there, so that with `ignore_merges` only a whole text could be a token: that, and a
    /// vocabulary without all bytes, is left to the reference.
    fn spaced_parts(&self, ids: &AHashMap<&str, u32>) -> Option<BpeParts> {
        if self.byte_fallback != Some(true) || self.ignore_merges == Some(true) {
            return None;
        }
        let vocabulary = self.vocab.0.iter().map(|(token, id)| (token.as_ref(), *id));
        let tokens = spaced::tokens(vocabulary)?;
        let usable: AHashSet<u32> = tokens.iter().map(|(_, id)| *id).collect();
        let id = |half: &str| {
            let id = *ids.get(half)?;
            (usable.contains(&id) && spaced::byte(half).is_none()).then_some(id)
        };
        let merges: Option<Vec<_>> =
            self.merges.0.iter().map(|(left, right)| Some((id(left)?, id(right)?))).collect();
        let merges = Merges::Pairs(keep_last(merges?));
        Some(BpeParts { tokens, merges, begins_with: Symbols::Characters, ignore_merges: false })
    }
}

/// Of merges that are listed more than once the last counts, as in the reference.
fn keep_last(mut merges: Vec<(u32, u32)>) -> Vec<(u32, u32)> {
    let mut seen = AHashSet::with_capacity(merges.len());
    if merges.iter().all(|merge| seen.insert(*merge)) {
        return merges;
    }
    seen.clear();
    merges.reverse();
    merges.retain(|merge| seen.insert(*merge));
    merges.reverse();
    merges
}
