//! The mapping of a copy, checked: every page exists and no target is named twice.

use super::error::PageError;
use crate::error::KvCacheError;

/// One page to copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) source: usize,
    pub(super) target: usize,
}

impl Row {
    /// Whether `next` copies the pages right behind this row's.
    pub(super) fn is_followed_by(self, next: Self) -> bool {
        next.source == self.source + 1 && next.target == self.target + 1
    }
}

/// A set of page ids.
pub(super) struct PageSet {
    words: Vec<u64>,
}

impl PageSet {
    pub(super) fn new(pages: usize) -> Self {
        Self { words: vec![0; pages.div_ceil(64)] }
    }

    /// Adds a page; false when it was there already.
    pub(super) fn insert(&mut self, page: usize) -> bool {
        let Some(word) = self.words.get_mut(page / 64) else { return true };
        let bit = 1 << (page % 64);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    pub(super) fn contains(&self, page: usize) -> bool {
        self.words.get(page / 64).is_some_and(|word| word & (1 << (page % 64)) != 0)
    }
}

/// The rows of a mapping of `source_pages` to `target_pages` pages.
pub(super) fn checked_rows(
    mapping: &[[i64; 2]],
    source_pages: usize,
    target_pages: usize,
) -> Result<Vec<Row>, KvCacheError> {
    let mut rows = Vec::with_capacity(mapping.len());
    let mut written = PageSet::new(target_pages);
    for (row, &[source, target]) in mapping.iter().enumerate() {
        let page = |id: i64, pages: usize, side| {
            usize::try_from(id).ok().filter(|&page| page < pages).ok_or(PageError::PageId {
                row,
                side,
                id,
                pages,
            })
        };
        let source = page(source, source_pages, "source")?;
        let target = page(target, target_pages, "target")?;
        if !written.insert(target) {
            let first = rows.iter().position(|earlier: &Row| earlier.target == target);
            return Err(PageError::RepeatedTarget { row, first_row: first.unwrap_or(row), id: target }.into());
        }
        rows.push(Row { source, target });
    }
    Ok(rows)
}
