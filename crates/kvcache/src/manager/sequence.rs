//! One running sequence.

use crate::hash::ExtraKeys;
use crate::pool::BlockHash;

/// Tables, and what is needed to name the next block.
#[derive(Clone, Debug, Default)]
pub(super) struct Sequence {
    pub(super) generation: u32,
    pub(super) is_running: bool,
    /// While a call checks that each sequence is named once.
    pub(super) is_marked: bool,
    /// While a step is prepared: groups whose last block must be copied.
    pub(super) copy_groups: u8,
    pub(super) num_tokens: usize,
    /// Where the tokens of the last admission or step begin.
    pub(super) added_from: usize,
    /// Blocks of each group, by id.
    pub(super) tables: Vec<Vec<u32>>,
    /// Of each group, the first block that it still holds.
    pub(super) first_held: Vec<usize>,
    /// Tokens behind the last full block.
    pub(super) tail: Vec<u32>,
    /// Hash of the last full block.
    pub(super) parent: BlockHash,
    /// Extra keys of the prompt's blocks; empty where there are none.
    pub(super) keys: Vec<Option<ExtraKeys>>,
    /// Extra keys of the blocks behind those.
    pub(super) later_keys: Option<ExtraKeys>,
    pub(super) priority: Option<u8>,
    /// Seconds for which its blocks are remembered.
    pub(super) seconds: Option<f64>,
}

impl Sequence {
    pub(super) fn new(num_groups: usize) -> Self {
        Self { tables: vec![Vec::new(); num_groups], first_held: vec![0; num_groups], ..Self::default() }
    }

    /// Extra keys of a block.
    pub(super) fn keys_of(&self, block: usize) -> Option<&ExtraKeys> {
        self.keys.get(block).map_or(self.later_keys.as_ref(), Option::as_ref)
    }

    /// Takes over everything of `other` but its identity.
    pub(super) fn share(&mut self, other: &Self) {
        self.num_tokens = other.num_tokens;
        self.added_from = other.num_tokens; // nothing was added to the fork yet
        self.parent = other.parent;
        self.priority = other.priority;
        self.seconds = other.seconds;
        self.tables.clone_from(&other.tables);
        self.first_held.clone_from(&other.first_held);
        self.tail.clone_from(&other.tail);
        self.keys.clone_from(&other.keys);
        self.later_keys.clone_from(&other.later_keys);
    }

    /// Forgets everything but the memory.
    pub(super) fn end(&mut self) {
        self.is_running = false;
        self.generation = (self.generation + 1) & (u32::MAX >> 1);
        self.num_tokens = 0;
        self.added_from = 0;
        self.tables.iter_mut().for_each(Vec::clear);
        self.first_held.fill(0);
        self.tail.clear();
        self.keys.clear();
        self.later_keys = None;
    }
}
