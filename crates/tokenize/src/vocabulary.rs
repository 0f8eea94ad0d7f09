//! The table from ids to tokens, and back.

use std::sync::OnceLock;

use crate::error::{Result, TokenizeError};
use crate::kernels::{ShortToken, append_short};
use crate::load::{byte_level, spaced};

/// The greatest id that is served. The table has a row for each id below the greatest, so that a small file with a
/// huge id must not ask for gigabytes; the largest vocabularies in use have about 2^18 tokens.
pub const MAX_ID: u32 = (1 << 24) - 1;

const ASSIGNED: u8 = 1;
const PRINTABLE: u8 = 2;
const SPECIAL: u8 = 4;
const SPACED: u8 = 8;
const BYTE: u8 = 16;
/// What decides how a token is written.
const WRITING: u8 = PRINTABLE | SPACED | BYTE;

/// How a token is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// As its bytes are.
    Plain,
    /// In the byte-level alphabet.
    ByteLevel,
    /// With U+2581 for each space.
    Spaced,
    /// As a number: `<0x0A>`.
    Byte,
}

impl Kind {
    fn flag(self) -> u8 {
        match self {
            Self::Plain => 0,
            Self::ByteLevel => PRINTABLE,
            Self::Spaced => SPACED,
            Self::Byte => BYTE,
        }
    }
}

/// One token of a vocabulary that is being built.
pub(crate) struct Entry {
    pub(crate) id: u32,
    /// What the token decodes to.
    pub(crate) bytes: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) special: bool,
}

impl Entry {
    fn width(&self) -> usize {
        let spaces =
            if self.kind == Kind::Spaced { self.bytes.split(|byte| *byte == b' ').count() - 1 } else { 0 };
        self.bytes.len() + 2 * spaces
    }
}

/// All tokens by id. Ids may leave gaps.
pub(crate) struct Vocabulary {
    bytes: Vec<u8>,
    /// Where each token ends in `bytes`; it begins where the one before it ends.
    ends: Vec<u32>,
    flags: Vec<u8>,
    /// Ids in the order of their written forms, made when a token is first looked up.
    by_form: OnceLock<Vec<u32>>,
    /// What ordinary tokens decode to, made when many are first decoded.
    short: OnceLock<Box<[ShortToken]>>,
    longest: usize,
}

/// Ids that are decoded together.
const RUN: usize = 256;
/// Fewer ids than this are no reason to make the table of short tokens.
const MANY: usize = 64;

impl Vocabulary {
    /// Builds the table; an id may be given once only.
    pub(crate) fn new(mut entries: Vec<Entry>) -> Result<Self> {
        entries.sort_unstable_by_key(|entry| entry.id);
        let last = entries.last().map(|entry| entry.id);
        let size = last.map_or(0, |id| id as usize + 1);
        if let Some(id) = last.filter(|&id| id > MAX_ID) {
            return Err(TokenizeError::id_too_large(id));
        }
        let total: usize = entries.iter().map(|entry| entry.bytes.len()).sum();
        if u32::try_from(total).is_err() {
            return Err(TokenizeError::malformed(format!(
                "the tokens hold {total} bytes; at most 4 GiB are served"
            )));
        }
        let mut table = Self {
            bytes: Vec::with_capacity(total),
            ends: Vec::with_capacity(size),
            flags: Vec::with_capacity(size),
            by_form: OnceLock::new(),
            short: OnceLock::new(),
            longest: entries.iter().map(Entry::width).max().unwrap_or(0),
        };
        for entry in entries {
            table.push(&entry)?;
        }
        Ok(table)
    }

    fn push(&mut self, entry: &Entry) -> Result<()> {
        let end = self.bytes.len() as u32;
        if (entry.id as usize) < self.ends.len() {
            return Err(TokenizeError::malformed(format!(
                "the id {} is given to two tokens, {:?} and {:?}; each id may be used once",
                entry.id,
                self.form(entry.id).unwrap_or_default(),
                String::from_utf8_lossy(&entry.bytes),
            )));
        }
        self.ends.resize(entry.id as usize, end);
        self.flags.resize(entry.id as usize, 0);
        self.bytes.extend_from_slice(&entry.bytes);
        self.ends.push(self.bytes.len() as u32);
        let special = if entry.special { SPECIAL } else { 0 };
        self.flags.push(ASSIGNED | entry.kind.flag() | special);
        Ok(())
    }

    /// One more than the greatest id.
    pub(crate) fn size(&self) -> usize {
        self.ends.len()
    }

    /// The length in bytes of the longest token, as it may stand in a text (where U+2581 is as good as a space).
    pub(crate) fn longest(&self) -> usize {
        self.longest
    }

    fn flags(&self, id: u32) -> u8 {
        self.flags.get(id as usize).copied().unwrap_or(0)
    }

    /// What the token decodes to, or why there is none.
    pub(crate) fn bytes(&self, id: u32) -> Result<&[u8]> {
        if self.flags(id) & ASSIGNED == 0 {
            return Err(self.no_such_id(i64::from(id)));
        }
        Ok(self.slice(id))
    }

    /// Appends what these tokens decode to; on an error some of it. Special ones are left out where that is asked.
    pub(crate) fn append(&self, ids: &[u32], skip_special_tokens: bool, out: &mut Vec<u8>) -> Result<()> {
        let short = match self.short.get() {
            None if ids.len() >= MANY => self.short.get_or_init(|| self.short_tokens()),
            short => short.map_or(&[][..], |short| &**short),
        };
        for mut run in ids.chunks(RUN) {
            loop {
                let done = append_short(short, run, out);
                let Some((&id, rest)) = run.get(done..).and_then(<[u32]>::split_first) else { break };
                let token = self.bytes(id)?;
                if !(skip_special_tokens && self.is_special(id)) {
                    out.extend_from_slice(token);
                }
                run = rest;
            }
        }
        Ok(())
    }

    /// The tokens that are neither long nor special, by id.
    fn short_tokens(&self) -> Box<[ShortToken]> {
        let short = |id: u32| {
            let ordinary = self.flags(id) & (ASSIGNED | SPECIAL) == ASSIGNED;
            if ordinary { ShortToken::new(self.slice(id)) } else { ShortToken::OTHER }
        };
        (0..self.size() as u32).map(short).collect()
    }

    fn slice(&self, id: u32) -> &[u8] {
        let index = id as usize;
        let start = if index == 0 { 0 } else { self.ends.get(index - 1).copied().unwrap_or(0) };
        let end = self.ends.get(index).copied().unwrap_or(start);
        self.bytes.get(start as usize..end as usize).unwrap_or_default()
    }

    /// The error for an id that no token has.
    pub(crate) fn no_such_id(&self, id: i64) -> TokenizeError {
        let limit = self.size().saturating_sub(1) as u32;
        match u32::try_from(id) {
            Ok(id) if (id as usize) < self.size() => TokenizeError::UnassignedId { id },
            _ => TokenizeError::IdOutOfRange { id, limit },
        }
    }

    /// Whether the token is special, that is, left out of decoded text on request.
    pub(crate) fn is_special(&self, id: u32) -> bool {
        self.flags(id) & SPECIAL != 0
    }

    /// The token as vocabularies write it: in the byte-level alphabet where it is a byte-level token.
    pub(crate) fn form(&self, id: u32) -> Option<String> {
        let flags = self.flags(id);
        if flags & ASSIGNED == 0 {
            return None;
        }
        let bytes = self.slice(id);
        let text = || String::from_utf8_lossy(bytes).into_owned();
        Some(match (flags & WRITING, bytes) {
            (PRINTABLE, _) => byte_level::to_printable(bytes),
            (SPACED, _) => text().replace(' ', "\u{2581}"),
            (BYTE, [byte]) => spaced::written(*byte),
            _ => text(),
        })
    }

    /// The id of the token written so.
    pub(crate) fn id(&self, form: &str) -> Option<u32> {
        let order = self.by_form.get_or_init(|| {
            let mut ids: Vec<u32> =
                (0..self.size() as u32).filter(|&id| self.flags(id) & ASSIGNED != 0).collect();
            ids.sort_by(|&a, &b| self.key(a).cmp(&self.key(b)));
            ids
        });
        let find = |flag: u8, bytes: &[u8]| {
            let at = order.partition_point(|&id| self.key(id) < (flag, bytes));
            order.get(at).copied().filter(|&id| self.key(id) == (flag, bytes))
        };
        let printable = byte_level::to_bytes(form).and_then(|bytes| find(PRINTABLE, &bytes));
        let spaced = || {
            let text = spaced::without_marks(form);
            if form.contains(' ') { None } else { find(SPACED, text.as_bytes()) }
        };
        let byte = || spaced::byte(form).and_then(|byte| find(BYTE, &[byte]));
        printable.or_else(|| find(0, form.as_bytes())).or_else(spaced).or_else(byte)
    }

    /// Whether the token stands for one byte of a character.
    pub(crate) fn is_byte(&self, id: u32) -> bool {
        self.flags(id) & BYTE != 0
    }

    fn key(&self, id: u32) -> (u8, &[u8]) {
        (self.flags(id) & WRITING, self.slice(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: u32, bytes: &[u8], printable: bool, special: bool) -> Entry {
        let kind = if printable { Kind::ByteLevel } else { Kind::Plain };
        Entry { id, bytes: bytes.to_vec(), kind, special }
    }

    #[test]
    fn forms_lead_back_to_their_ids() {
        let kinds = [
            (b" a".as_slice(), Kind::Spaced),
            (b"\n", Kind::Byte),
            (b"<s>", Kind::Plain),
            (b"a b", Kind::Plain),
            (b"a", Kind::Spaced),
        ];
        let entries = kinds.iter().zip(0..).map(|(&(bytes, kind), id)| Entry {
            id,
            bytes: bytes.to_vec(),
            kind,
            special: false,
        });
        let table = Vocabulary::new(entries.collect()).unwrap();
        for (id, form) in ["▁a", "<0x0A>", "<s>", "a b", "a"].into_iter().enumerate() {
            assert_eq!((table.form(id as u32).as_deref(), table.id(form)), (Some(form), Some(id as u32)));
        }
        assert_eq!(
            (table.id(" a"), table.id("\n"), table.is_byte(1), table.is_byte(0)),
            (None, None, true, false)
        );
    }

    #[test]
    fn gaps_and_order_are_kept() {
        let table = Vocabulary::new(vec![
            entry(5, b"<|end of text|>", false, true),
            entry(0, b" a", true, false),
            entry(2, b"", true, false),
        ])
        .unwrap();
        assert_eq!(table.size(), 6);
        assert_eq!(table.bytes(0).unwrap(), b" a");
        assert_eq!(table.bytes(2).unwrap(), b"");
        assert_eq!(table.bytes(5).unwrap(), b"<|end of text|>");
        assert!(matches!(table.bytes(1), Err(TokenizeError::UnassignedId { id: 1 })));
        assert!(matches!(table.bytes(6), Err(TokenizeError::IdOutOfRange { id: 6, limit: 5 })));
        assert_eq!(table.form(0).as_deref(), Some("Ġa"));
        assert_eq!(table.form(1), None);
        assert_eq!((table.id("Ġa"), table.id("<|end of text|>"), table.id(" a")), (Some(0), Some(5), None));
        assert!(table.is_special(5) && !table.is_special(0) && !table.is_special(99));
    }

    #[test]
    fn many_tokens_decode_like_one_by_one() {
        let long = "longer than an entry of the table".as_bytes();
        let tokens = [(0, "a".as_bytes()), (1, long), (3, b"\xff"), (4, b"")];
        let mut entries: Vec<Entry> =
            tokens.iter().map(|(id, bytes)| entry(*id, bytes, true, false)).collect();
        entries.push(entry(2, b"<s>", false, true));
        entries.push(entry(6, b"fifteen letters", true, false));
        let table = Vocabulary::new(entries).unwrap();
        let ids: Vec<u32> = (0..2000_u32)
            .map(|step| [0, 1, 2, 3, 4, 6, 0, 0][(step * step + step / 7) as usize % 8])
            .collect();
        for count in [0, 1, MANY - 1, MANY, RUN, RUN + 1, ids.len()] {
            for skip in [false, true] {
                let shown = ids[..count].iter().filter(|id| !skip || **id != 2);
                let expected: Vec<u8> = shown.flat_map(|id| table.bytes(*id).unwrap()).copied().collect();
                let mut out = Vec::new();
                table.append(&ids[..count], skip, &mut out).unwrap();
                assert_eq!(out, expected);
            }
        }
        for (wrong, length) in [(5, 1), (7, 1), (5, 300), (u32::MAX, 300)] {
            let ids = [vec![0; length], vec![wrong, 0]].concat();
            let error = table.append(&ids, true, &mut Vec::new()).unwrap_err();
            assert_eq!(error.to_string(), table.bytes(wrong).unwrap_err().to_string());
        }
    }

    #[test]
    fn an_id_given_twice_is_refused() {
        let twice = vec![entry(1, b"a", true, false), entry(1, b"b", true, false)];
        assert!(matches!(Vocabulary::new(twice), Err(TokenizeError::Malformed { .. })));
        assert!(matches!(
            Vocabulary::new(vec![entry(MAX_ID + 1, b"a", true, false)]),
            Err(TokenizeError::Malformed { .. })
        ));
    }
}
