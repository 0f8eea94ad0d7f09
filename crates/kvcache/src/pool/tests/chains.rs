//! Walks by tokens against hashing: whatever happens to the pool, both find the same.

use super::*;
use crate::hash::{Algorithm, BlockHasher, ExtraKey, ExtraKeys};
use crate::manager::{BlockManager, CacheGroup, ManagerOptions, Prompt, PromptNames};

/// A pool, the blocks that are held, and how its chains are named.
struct World {
    pool: BlockPool,
    held: Vec<Vec<i64>>,
    now: f64,
}

/// A prompt of few different tokens, so that prompts begin alike, and which keys its blocks have.
#[derive(Clone, Debug)]
struct Text {
    tokens: Vec<u32>,
    keys: usize,
}

#[derive(Clone, Debug)]
enum Act {
    /// Takes blocks for a prompt and caches them; whether the pool is told the tokens, and how long it keeps them.
    Store {
        text: Text,
        naming: usize,
        is_linked: bool,
        seconds: Option<f64>,
    },
    /// Gives the blocks of a prompt back, the first ones first or last.
    Free(usize, bool),
    /// Takes whatever is free, and gives it back: evicts.
    Evict(usize),
    Forget(Text),
    Walk(Text, usize),
    Advance(f64),
    Reset,
}

const NAMINGS: [(Algorithm, usize, u8); 4] = [
    (Algorithm::Sha256Cbor, 2, 0),
    (Algorithm::Sha256Cbor, 3, 0),
    (Algorithm::XxhashCbor, 2, 0),
    (Algorithm::Sha256Cbor, 2, 7),
];

/// The keys of a prompt's block: none, a salt in the first, an adapter everywhere, another one, an image in the second.
fn keys_of(kind: usize, block: usize) -> Option<&'static ExtraKeys> {
    use std::sync::LazyLock;
    static KEYS: LazyLock<Vec<ExtraKeys>> = LazyLock::new(|| {
        let keys = ["salt", "adapter", "other", "image"].map(|name| ExtraKey::Text(name.to_owned()));
        keys.iter().map(|key| ExtraKeys::new(std::slice::from_ref(key)).unwrap()).collect()
    });
    match (kind, block) {
        (1, 0) => Some(&KEYS[0]),
        (2, _) => Some(&KEYS[1]),
        (3, _) => Some(&KEYS[2]),
        (4, 1) => Some(&KEYS[3]),
        _ => None,
    }
}

fn hasher(naming: usize) -> (BlockHasher, BlockHash) {
    let (algorithm, block_size, seed) = NAMINGS[naming];
    let mut first = BlockHash::default();
    first[..algorithm.digest_len()].fill(seed);
    (BlockHasher::new(algorithm, block_size).unwrap(), first)
}

fn hashes(text: &Text, naming: usize) -> Vec<BlockHash> {
    let (mut hasher, mut parent) = hasher(naming);
    let length = hasher.algorithm().digest_len();
    let blocks = text.tokens.chunks_exact(hasher.block_size());
    let hash = |(block, tokens)| {
        let mut hash = BlockHash::default();
        hasher.continue_chain(
            &mut parent[..length],
            tokens,
            |_| keys_of(text.keys, block),
            &mut hash[..length],
        );
        hash
    };
    blocks.enumerate().map(hash).collect()
}

impl World {
    fn new(num_blocks: usize) -> Self {
        Self { pool: BlockPool::new(num_blocks).unwrap(), held: Vec::new(), now: 0.0 }
    }

    fn act(&mut self, act: &Act) {
        match act {
            Act::Store { text, naming, is_linked, seconds } => {
                self.store(text, *naming, *is_linked, *seconds);
            }
            Act::Free(which, is_reversed) if !self.held.is_empty() => {
                let mut handles = self.held.swap_remove(which % self.held.len());
                if *is_reversed {
                    handles.reverse();
                }
                self.pool.free(&handles).unwrap();
            }
            Act::Evict(count) => {
                let mut handles = vec![0; (*count).min(self.pool.num_free())];
                self.pool.alloc(&mut handles).unwrap();
                self.pool.free(&handles).unwrap();
            }
            Act::Forget(text) => {
                self.pool.forget(&hashes(text, 0));
            }
            Act::Walk(text, naming) => self.walk(text, *naming),
            Act::Advance(seconds) => {
                self.now += seconds;
                self.pool.advance(self.now).unwrap();
            }
            Act::Reset => self.pool.reset(),
            Act::Free(..) => {}
        }
    }

    fn store(&mut self, text: &Text, naming: usize, is_linked: bool, seconds: Option<f64>) {
        let hashes = hashes(text, naming);
        let mut handles = vec![0; hashes.len()];
        if self.pool.alloc(&mut handles).is_err() {
            return;
        }
        self.pool.cache(&handles, &hashes, &Retention { priority: None, seconds }).unwrap();
        let (hasher, first) = hasher(naming);
        let naming = Naming::new(&hasher, &first[..hasher.algorithm().digest_len()], 0).unwrap();
        if is_linked && self.pool.has_chains(&naming) {
            let table: Vec<u32> = handles.iter().map(|&handle| handle as u32).collect();
            for (block, tokens) in text.tokens.chunks_exact(naming.block_size).enumerate() {
                let parent = block.checked_sub(1).map(|before| (table[before], &hashes[before]));
                let content =
                    Content { hash: &hashes[block], parent, tokens, keys: keys_of(text.keys, block) };
                self.pool.link_in(&table, block, &content);
            }
        }
        self.held.push(handles);
    }

    fn walk(&mut self, text: &Text, naming: usize) {
        let expected = self.pool.cached_prefix(&hashes(text, naming));
        let (mut hasher, first) = hasher(naming);
        let parent = &first[..hasher.algorithm().digest_len()];
        let read = |position: usize, out: &mut [u32]| {
            out.copy_from_slice(&text.tokens[position..position + out.len()]);
            Ok(())
        };
        let keys = |block| keys_of(text.keys, block);
        let found = self.pool.cached_blocks(&mut hasher, parent, text.tokens.len(), read, keys);
        assert_eq!(found.unwrap(), expected, "{text:?}, naming {naming}");

        // Each block is the one that a look-up finds, and has the hash of the prompt.
        let naming_of = Naming::new(&hasher, parent, 0).unwrap();
        let mut walk = PrefixWalk::new(&mut self.pool, naming_of);
        let mut given = Vec::new();
        walk.go_on(&mut self.pool, &mut hasher, &text.tokens, keys, |id, hash| given.push((id, *hash)));
        let hashes = hashes(text, naming);
        for (&(id, hash), expected) in given.iter().zip(&hashes) {
            assert_eq!((hash, Some(id)), (*expected, self.pool.find(expected, 0)));
        }
        assert_eq!(given.len(), expected);
        assert_eq!(walk.missed(), hashes.get(expected));
    }
}

fn text() -> impl Strategy<Value = Text> {
    (prop::collection::vec(0_u32..2, 0..14), 0_usize..5).prop_map(|(tokens, keys)| Text { tokens, keys })
}

fn act() -> impl Strategy<Value = Act> {
    // Mostly of one naming: that is the one that gets the chains.
    let naming = || prop_oneof![8 => Just(0_usize), 1 => 1..NAMINGS.len()];
    let seconds = prop_oneof![4 => Just(None), 1 => (1..5_u32).prop_map(|seconds| Some(f64::from(seconds)))];
    prop_oneof![
        4 => (text(), naming(), any::<bool>(), seconds)
            .prop_map(|(text, naming, is_linked, seconds)| Act::Store { text, naming, is_linked, seconds }),
        3 => (any::<usize>(), any::<bool>()).prop_map(|(which, is_reversed)| Act::Free(which, is_reversed)),
        1 => (0_usize..8).prop_map(Act::Evict),
        1 => text().prop_map(Act::Forget),
        6 => (text(), naming()).prop_map(|(text, naming)| Act::Walk(text, naming)),
        1 => (0.0..2.0).prop_map(Act::Advance),
        1 => prop_oneof![9 => Just(Act::Evict(3)), 1 => Just(Act::Reset)],
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn a_walk_finds_what_hashing_finds(
        num_blocks in 2_usize..24,
        acts in prop::collection::vec(act(), 1..60),
    ) {
        let mut world = World::new(num_blocks);
        for act in &acts {
            world.act(act);
            world.pool.check_invariants().unwrap();
        }
    }

    /// Two managers that get the same calls, one whose pool is told no tokens.
    #[test]
    fn a_manager_with_chains_does_what_one_without_does(
        num_blocks in 4_usize..30,
        is_hybrid in any::<bool>(),
        acts in prop::collection::vec((text(), any::<u8>()), 1..40),
    ) {
        let groups = if is_hybrid { vec![CacheGroup::SlidingWindow { window: 3 }, CacheGroup::Full] }
            else { vec![CacheGroup::Full] };
        let mut pair = [true, false].map(|has_chains| Runner::new(num_blocks, &groups, has_chains));
        for (text, dice) in &acts {
            let [with, without] = pair.each_mut().map(|runner| runner.act(text, *dice));
            prop_assert_eq!(with, without);
        }
    }
}

#[test]
fn what_a_block_does_not_hold_is_not_linked() {
    let text = |tokens: [u32; 4]| Text { tokens: tokens.to_vec(), keys: 0 };
    let (mine, other) = (hashes(&text([0, 1, 0, 1]), 0), hashes(&text([1, 1, 0, 1]), 0));
    let mut world = World::new(8);
    let mut handles = [0; 2];
    world.pool.alloc(&mut handles).unwrap();
    world.pool.cache(&handles, &[mine[0], other[1]], &KEPT).unwrap();
    let (hasher, first) = hasher(0);
    assert!(world.pool.has_chains(&Naming::new(&hasher, &first, 0).unwrap()));
    let [parent, child] = handles.map(|handle| handle as u32);
    let content = |hash, parent| Content { hash, parent, tokens: &[0, 1], keys: None };
    // A child of another hash, a parent of another hash, a parent that is not cached.
    world.pool.link(child, &content(&mine[1], Some((parent, &mine[0]))));
    world.pool.link(child, &content(&other[1], Some((parent, &other[0]))));
    world.pool.forget(&[mine[0]]);
    world.pool.link(child, &content(&other[1], Some((parent, &mine[0]))));
    world.pool.check_invariants().unwrap();
    world.pool.cache(&handles[..1], &mine[..1], &KEPT).unwrap();
    world.walk(&text([0, 1, 0, 1]), 0);
}

#[test]
fn what_was_known_a_moment_ago_is_looked_at_again() {
    let texts = [vec![0, 1, 0, 1, 0], vec![1, 1, 1, 1, 1, 1]].map(|tokens| Text { tokens, keys: 0 });
    let mut runner = Runner::new(4, &[CacheGroup::Full], true);
    runner.admit(&texts[0]);
    let keys = |_: usize| None;
    runner.manager.recognise(&mut runner.pool, &texts[0].tokens, keys, &mut runner.names);
    let stale = runner.names.clone();
    assert_eq!(stale.known(), [1, 2]);
    // Meanwhile the model changes, and the same blocks get other content.
    runner.pool.reset();
    let gone = std::mem::take(&mut runner.running);
    runner.manager.release(&mut runner.pool, &gone).unwrap();
    runner.admit(&texts[1]);
    let gone = std::mem::take(&mut runner.running);
    runner.manager.release(&mut runner.pool, &gone).unwrap();
    assert_eq!(runner.pool.stats().cached_blocks, 3);
    let prompt = Prompt {
        token_ids: &texts[0].tokens,
        hashes: stale.hashes(),
        known: stale.known(),
        extra_keys: &[],
        later_keys: None,
        limit: None,
        retention: Retention::default(),
    };
    assert_eq!(runner.manager.admit(&mut runner.pool, &prompt).unwrap().cached_tokens, 0);
    runner.manager.check_invariants(&runner.pool).unwrap();
}

struct Runner {
    pool: BlockPool,
    manager: BlockManager,
    names: PromptNames,
    running: Vec<i64>,
    has_chains: bool,
}

impl Runner {
    fn new(num_blocks: usize, groups: &[CacheGroup], has_chains: bool) -> Self {
        let options = ManagerOptions {
            block_size: 2,
            algorithm: Algorithm::Sha256Cbor,
            first_parent: vec![0; 32],
            groups: groups.to_vec(),
            scrub: false,
            watermark: 0.0,
        };
        let mut pool = BlockPool::new(num_blocks).unwrap();
        if !has_chains {
            let (hasher, _) = hasher(1); // the pool's chains are of another kind
            assert!(pool.has_chains(&Naming::new(&hasher, &[9; 32], 0).unwrap()));
        }
        let (manager, names) = (BlockManager::new(&options).unwrap(), PromptNames::default());
        Self { pool, manager, names, running: Vec::new(), has_chains }
    }

    /// Admits, steps or releases, as the dice say; returns all that can be seen.
    fn act(&mut self, text: &Text, dice: u8) -> (String, PoolStats, Vec<Vec<u32>>) {
        let said = match dice % 4 {
            0 if !self.running.is_empty() => {
                let gone = self.running.swap_remove(usize::from(dice) / 4 % self.running.len());
                format!("{:?}", self.manager.release(&mut self.pool, &[gone]))
            }
            1 => {
                let tokens: Vec<u32> = self.running.iter().map(|_| u32::from(dice) / 4 % 2).collect();
                format!("{:?}", self.manager.step(&mut self.pool, &self.running, &tokens, None))
            }
            _ => self.admit(text),
        };
        self.manager.check_invariants(&self.pool).unwrap();
        let groups = 0..self.manager.num_groups();
        let table = |&handle: &i64, group| self.manager.block_table(0, handle, group).unwrap().to_vec();
        let tables = self.running.iter().flat_map(|handle| groups.clone().map(|group| table(handle, group)));
        (said, self.pool.stats(), tables.collect())
    }

    fn admit(&mut self, text: &Text) -> String {
        let blocks = text.tokens.len() / 2;
        let keys: Vec<_> = (0..blocks).map(|block| keys_of(text.keys, block).cloned()).collect();
        let of = |block: usize| keys[block].as_ref();
        self.manager.recognise(&mut self.pool, &text.tokens, of, &mut self.names);
        let mut hasher = BlockHasher::new(Algorithm::Sha256Cbor, 2).unwrap();
        self.names.hash_rest(&mut hasher, &[0; 32], &text.tokens, of);
        assert_eq!(
            self.names.hashes(),
            self::hashes(&Text { keys: text.keys, tokens: text.tokens.clone() }, 0)
        );
        let prompt = Prompt {
            token_ids: &text.tokens,
            hashes: self.names.hashes(),
            known: if self.has_chains { self.names.known() } else { &[] },
            extra_keys: &keys,
            later_keys: keys_of(text.keys, blocks + 1),
            limit: None,
            retention: Retention::default(),
        };
        let admitted = self.manager.admit(&mut self.pool, &prompt);
        self.running.extend(admitted.as_ref().map(|admission| admission.sequence));
        format!("{admitted:?}")
    }
}
