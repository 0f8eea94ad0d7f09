//! The known patterns as operations on masks with one bit for each character, the first one the lowest.

use super::grammar::{Grammar, Words};
use crate::kernels::Masks;

/// Up to 64 characters that begin where a span begins. Bits outside `valid` are zero in every mask.
pub(crate) struct Characters {
    pub(crate) letter: u64,
    pub(crate) upper: u64,
    pub(crate) lower: u64,
    pub(crate) number: u64,
    pub(crate) space: u64,
    pub(crate) line_break: u64,
    /// U+0020 alone.
    pub(crate) blank: u64,
    pub(crate) slash: u64,
    /// Punctuation and symbols; only for the patterns that tell them from the rest.
    pub(crate) symbol: u64,
    /// What `[A-Za-z]` matches.
    pub(crate) ascii_letter: u64,
    /// Punctuation and symbols of ASCII.
    pub(crate) ascii_symbol: u64,
    /// Han characters and kana, where they are cut out first.
    pub(crate) ideograph: u64,
    /// Apostrophes that, with one or two letters after them, could be contractions.
    pub(crate) contractions: [u64; 2],
    pub(crate) valid: u64,
}

impl Characters {
    #[inline(always)]
    pub(crate) fn ascii(masks: &Masks, contractions: [u64; 2], valid: u64) -> Self {
        Self {
            letter: (masks.upper | masks.lower) & valid,
            upper: masks.upper & valid,
            lower: masks.lower & valid,
            number: masks.number & valid,
            space: masks.space & valid,
            line_break: masks.line_break & valid,
            blank: masks.blank & valid,
            slash: masks.slash & valid,
            symbol: masks.symbols() & valid,
            ascii_letter: (masks.upper | masks.lower) & valid,
            ascii_symbol: masks.symbols() & valid,
            ideograph: 0,
            contractions: contractions.map(|mask| mask & valid),
            valid,
        }
    }
}

/// The characters at which spans start, as far as these characters decide it; the first is always one of them.
#[inline(always)]
pub(crate) fn certain_starts<G: Grammar>(c: &Characters) -> u64 {
    let starts = match G::WORDS {
        Words::AfterSpace => starts_after_space::<G>(c),
        Words::AfterAny => starts_after_any::<G>(c),
        Words::Cased => starts_cased::<G>(c),
        Words::AfterPunctuation => starts_after_punctuation::<G>(c),
    };
    // White space at the end may go on and change what it is: only its first character is certain.
    let settled = c.valid & !c.space;
    let certain = u64::MAX.checked_shr(settled.leading_zeros()).unwrap_or(0);
    (starts & (certain << 1 | 1) & c.valid) | 1
}

/// GPT-2.
#[inline(always)]
fn starts_after_space<G: Grammar>(c: &Characters) -> u64 {
    let other = c.valid & !(c.letter | c.number | c.space);
    let lone = lone(other, c.blank);
    let [two, three] = c.contractions.map(|mask| mask & lone);
    let first = |class: u64| class & !(class << 1);
    let not_joined = !(c.blank << 1);
    let words = first(c.letter) & not_joined & !((two | three) << 1);
    let numbers = if G::NUMBERS_APART { number_starts::<G>(c.number) } else { first(c.number) & not_joined };
    let others = first(other) & not_joined;
    let spaces = first(c.space) | last_spaces::<G>(c, c.space);
    words | numbers | others | spaces | two << 2 | three << 3
}

/// cl100k, Llama 3, Qwen 2.
#[inline(always)]
fn starts_after_any<G: Grammar>(c: &Characters) -> u64 {
    let other = c.valid & !(c.letter | c.number | c.space);
    let lone = lone(other, c.blank);
    let [two, three] = c.contractions.map(|mask| mask & lone);
    let contraction = two | three;
    let prefix = (lone | (c.space & !c.line_break)) & (c.letter >> 1);
    let words = c.letter & !(c.letter << 1) & !((prefix | contraction) << 1);
    let (spaces, _) = space_starts::<G>(c, other);
    words | number_starts::<G>(c.number) | other_starts(other, c.blank) | spaces | two << 2 | three << 3
}

/// o200k. The caller has seen to it that letters without case do not meet upper case here, and that no marks do.
#[inline(always)]
fn starts_cased<G: Grammar>(c: &Characters) -> u64 {
    let other = c.valid & !(c.letter | c.number | c.space);
    // A contraction belongs to the word before it.
    let [two, three] = c.contractions.map(|mask| mask & c.letter << 1);
    let suffix = two | three;
    let prefix = ((lone(other, c.blank) & !suffix) | (c.space & !c.line_break)) & (c.letter >> 1);
    let words = c.letter & !(c.letter << 1) & !(prefix << 1);
    let humps = c.upper & (c.lower << 1);
    let (spaces, taken) = space_starts::<G>(c, other);
    let inside = suffix | suffix << 1 | three << 2;
    let ends = two << 2 | three << 3;
    let starts = words | humps | number_starts::<G>(c.number) | other_starts(other, c.blank) | spaces;
    let starts = (starts & !inside) | ends;
    // A contraction right after a contraction is a word, and a slash after line breaks may go on with the span
    // before them; both are left to the scalar scanner, by forgetting what comes after.
    let hard = (ends & suffix) | slashes_after_breaks(c, taken);
    if hard == 0 { starts } else { starts & ((hard & hard.wrapping_neg()) - 1) }
}

/// `DeepSeek`.
#[inline(always)]
fn starts_after_punctuation<G: Grammar>(c: &Characters) -> u64 {
    let other = c.valid & !(c.letter | c.number | c.space | c.symbol);
    // Numbers and ideographs are pieces of their own, and nothing looks beyond its piece.
    let borders = (c.number ^ c.number << 1) | (c.ideograph ^ c.ideograph << 1);
    let after = |class: u64| class << 1 & !borders;
    let symbols = c.symbol & !after(c.symbol) & !after(c.blank);
    let before_ascii = symbols & c.ascii_symbol & c.ascii_letter >> 1;
    let before_letters = ((c.space & !c.line_break) | other) & (c.letter & !borders) >> 1;
    let words = c.letter & !after(c.letter) & !((before_letters | before_ascii) << 1);
    // Punctuation takes ASCII letters only: a word that goes on otherwise begins anew there. Adding the first bit of
    // a run to the run leaves one bit: just above it.
    let resumed = c.ascii_letter.wrapping_add(before_ascii << 1) & !c.ascii_letter & c.letter;
    let others = other & (!after(other) | before_letters);
    let (spaces, _) = space_starts::<G>(c, c.symbol & !c.ideograph);
    words | resumed | symbols | others | spaces | number_starts::<G>(c.number) | (borders & c.valid)
}

/// First of each run of line breaks in `taken` that is followed by a slash.
#[inline(always)]
fn slashes_after_breaks(c: &Characters, taken: u64) -> u64 {
    if c.line_break.wrapping_add(taken) & !c.line_break & c.slash == 0 { 0 } else { taken }
}

/// Characters alone between others that could take them as prefix, and not taken by a space before them.
#[inline(always)]
fn lone(other: u64, blank: u64) -> u64 {
    other & !(other << 1) & !(other >> 1) & !(blank << 1)
}

/// ` ?[^\s\p{L}\p{N}]+`: the space starts the span, which [`space_starts`] knows.
#[inline(always)]
fn other_starts(other: u64, blank: u64) -> u64 {
    other & !(other << 1) & !(blank << 1)
}

/// Those of `spaces` that are the last of their run, and so left to what follows or alone: `\s+(?!\S)`. Before what is cut
/// out first, the run ends as at the end of the text: whole.
#[inline(always)]
fn last_spaces<G: Grammar>(c: &Characters, spaces: u64) -> u64 {
    let apart = if G::NUMBERS_APART { c.number | c.ideograph } else { 0 };
    spaces & !((c.space | apart) >> 1)
}

/// Runs of numbers in parts of `G::DIGITS`.
#[inline(always)]
fn number_starts<G: Grammar>(number: u64) -> u64 {
    if G::DIGITS == 1 {
        return number;
    }
    let mut newest = number & !(number << 1);
    let mut starts = newest;
    let three_before = number & number << 1 & number << 2;
    loop {
        newest = newest << 3 & three_before;
        if newest == 0 {
            return starts;
        }
        starts |= newest;
    }
}

/// Starts within white space where line breaks end a span: `[\r\n]*` after other characters, then
/// `\s*[\r\n]+|\s+(?!\S)|\s+`. The second mask has the first of each run of line breaks that the span before takes.
#[inline(always)]
fn space_starts<G: Grammar>(c: &Characters, other: u64) -> (u64, u64) {
    let run = c.space & !(c.space << 1);
    let inline = c.space & !c.line_break;
    let taken = run & c.line_break & other << 1;
    // Adding the first bit of a run to the run leaves one bit: just above it.
    let after_taken = c.line_break.wrapping_add(taken) & !c.line_break;
    let mut after_last_break = inline & c.line_break << 1;
    let mut broken_again = inline.wrapping_add(after_last_break) & !inline & c.line_break;
    while broken_again != 0 {
        let end = broken_again & broken_again.wrapping_neg();
        broken_again ^= end;
        let begins = after_last_break & (end - 1);
        after_last_break ^= (1 << (begins | 1).ilog2()) & begins;
    }
    let before_word = last_spaces::<G>(c, inline);
    ((run & !taken) | (after_taken & c.space) | after_last_break | before_word, taken)
}
