use super::*;
use crate::hash::{HashRequest, hash_blocks};
use crate::pool::{PoolOptions, Retention};
use proptest::prelude::*;

const BLOCK_SIZE: usize = 3;

fn manager(groups: &[CacheGroup], num_blocks: usize) -> (BlockPool, BlockManager) {
    let algorithm = Algorithm::XxhashCbor;
    let options = ManagerOptions {
        block_size: BLOCK_SIZE,
        algorithm,
        first_parent: algorithm.none_hash(Some("0")).unwrap(),
        groups: groups.to_vec(),
        scrub: true,
        watermark: 0.0,
    };
    let pool = PoolOptions { algorithm, event_bytes: 1 << 16, ..PoolOptions::default() };
    (BlockPool::with_options(num_blocks, &pool).unwrap(), BlockManager::new(&options).unwrap())
}

fn hashes(tokens: &[u32]) -> Vec<BlockHash> {
    let algorithm = Algorithm::XxhashCbor;
    let parent = algorithm.none_hash(Some("0")).unwrap();
    let request = HashRequest {
        token_ids: tokens,
        block_size: BLOCK_SIZE,
        algorithm,
        parent: &parent,
        extra_keys: &[],
    };
    let mut digests = vec![0; request.num_blocks().unwrap() * 16];
    hash_blocks(&request, &mut digests).unwrap();
    let wide = |digest: &[u8]| {
        let mut hash = BlockHash::default();
        hash[..16].copy_from_slice(digest);
        hash
    };
    digests.chunks_exact(16).map(wide).collect()
}

fn admit(
    manager: &mut BlockManager,
    pool: &mut BlockPool,
    tokens: &[u32],
    limit: Option<usize>,
) -> Result<Admission, KvCacheError> {
    let prompt = Prompt {
        token_ids: tokens,
        hashes: &hashes(tokens),
        known: &[],
        extra_keys: &[],
        later_keys: None,
        limit,
        retention: Retention::default(),
    };
    manager.admit(pool, &prompt)
}

/// Tokens by sequence: what tables, slots and hits must follow from.
type Model = Vec<(i64, Vec<u32>)>;

fn agree(manager: &BlockManager, pool: &BlockPool, model: &Model) {
    manager.check_invariants(pool).unwrap();
    assert_eq!(manager.stats().sequences, model.len());
    for (handle, tokens) in model {
        assert_eq!(manager.num_tokens(0, *handle).unwrap(), tokens.len());
        for (group, kind) in manager.groups.iter().enumerate() {
            let table = manager.block_table(0, *handle, group).unwrap();
            assert_eq!(table.len(), tokens.len().div_ceil(BLOCK_SIZE));
            // A full block that is still held is found by the hash of its tokens, unless time or a reset forgot it.
            for (block, hash) in hashes(tokens).iter().enumerate().filter(|(block, _)| table[*block] != 0) {
                assert!(pool.find(hash, group as u8).is_some(), "{kind:?}, block {block}");
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Act {
    Admit(Vec<u32>, Option<usize>),
    Step(Vec<usize>),
    Fork(usize),
    Release(usize),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        (proptest::collection::vec(0_u32..2, 0..20), proptest::option::of(0_usize..8))
            .prop_map(|(tokens, limit)| Act::Admit(tokens, limit)),
        proptest::collection::vec(0_usize..5, 0..6).prop_map(Act::Step),
        proptest::collection::vec(0_usize..2, 0..6).prop_map(Act::Step),
        any::<usize>().prop_map(Act::Fork),
        any::<usize>().prop_map(Act::Release),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn tables_follow_from_tokens(
        num_blocks in 2_usize..40,
        groups in prop_oneof![
            Just(vec![CacheGroup::Full]),
            Just(vec![CacheGroup::SlidingWindow { window: 5 }]),
            Just(vec![CacheGroup::Full, CacheGroup::SlidingWindow { window: 1 }, CacheGroup::SlidingWindow { window: 7 }]),
        ],
        acts in proptest::collection::vec(act(), 1..60),
    ) {
        let (mut pool, mut manager) = manager(&groups, num_blocks);
        let mut model: Model = Vec::new();
        for act in acts {
            let free = pool.num_free();
            let stats = manager.stats();
            let refused = match act {
                Act::Admit(tokens, limit) => match admit(&mut manager, &mut pool, &tokens, limit) {
                    Ok(admission) => {
                        prop_assert!(admission.cached_tokens < tokens.len().max(1));
                        model.push((admission.sequence, tokens[..admission.num_tokens].to_vec()));
                        None
                    }
                    Err(error) => Some(error),
                },
                Act::Step(counts) => {
                    let counts = &counts[..counts.len().min(model.len())];
                    let handles: Vec<i64> = model[..counts.len()].iter().map(|(handle, _)| *handle).collect();
                    let tokens: Vec<u32> = (0..counts.iter().sum::<usize>() as u32).map(|at| at % 2).collect();
                    match manager.step(&mut pool, &handles, &tokens, Some(counts)) {
                        Ok(copies) => {
                            for [source, target] in copies.iter().copied() {
                                prop_assert!(source != target && pool.references(source) > 0);
                            }
                            let mut rest = &tokens[..];
                            for ((_, known), &count) in model.iter_mut().zip(counts) {
                                known.extend_from_slice(&rest[..count]);
                                rest = &rest[count..];
                            }
                            for (handle, count) in handles.iter().zip(counts) {
                                prop_assert_eq!(manager.slots(0, *handle, 0).unwrap().len(), *count);
                            }
                            None
                        }
                        Err(error) => Some(error),
                    }
                }
                Act::Fork(pick) if !model.is_empty() => {
                    let (parent, tokens) = model[pick % model.len()].clone();
                    let mut forks = [0; 2];
                    manager.fork(&mut pool, parent, &mut forks).unwrap();
                    model.extend(forks.map(|fork| (fork, tokens.clone())));
                    None
                }
                Act::Release(pick) if !model.is_empty() => {
                    let (handle, _) = model.swap_remove(pick % model.len());
                    manager.release(&mut pool, &[handle]).unwrap();
                    prop_assert_eq!(manager.release(&mut pool, &[handle]).unwrap_err().code(), "id.sequence");
                    None
                }
                _ => None,
            };
            if let Some(error) = refused {
                prop_assert_eq!(error.code(), "out_of_blocks.all");
                prop_assert_eq!(pool.num_free(), free);
                prop_assert_eq!(manager.stats(), ManagerStats { refusals: stats.refusals + 1, ..stats });
            }
            agree(&manager, &pool, &model);
        }
        let handles: Vec<i64> = model.iter().map(|(handle, _)| *handle).collect();
        manager.release(&mut pool, &handles).unwrap();
        manager.check_invariants(&pool).unwrap();
        prop_assert_eq!(pool.num_free(), num_blocks - 1);
    }
}

#[test]
fn a_window_lets_go_of_what_it_has_left() {
    let (mut pool, mut manager) = manager(&[CacheGroup::SlidingWindow { window: 4 }], 32);
    let tokens: Vec<u32> = (0..9).collect();
    let first = admit(&mut manager, &mut pool, &tokens, None).unwrap().sequence;
    manager.step(&mut pool, &[first], &[9], None).unwrap();
    // The next token looks at tokens 6 to 9: the first two blocks are behind it.
    assert_eq!(manager.block_table(0, first, 0).unwrap(), [0, 0, 3, 4]);
    // A prefix is usable when its last block is there, and what a prompt hits is what it holds.
    let again = admit(&mut manager, &mut pool, &tokens, None).unwrap();
    assert_eq!(again.cached_tokens, 6);
    assert_eq!(manager.block_table(0, again.sequence, 0).unwrap()[..2], [0, 2]);
    manager.check_invariants(&pool).unwrap();
}

#[test]
fn groups_agree_on_what_is_cached() {
    let groups = [CacheGroup::Full, CacheGroup::SlidingWindow { window: 4 }];
    let (mut pool, mut manager) = manager(&groups, 64);
    let tokens: Vec<u32> = (0..13).collect();
    let first = admit(&mut manager, &mut pool, &tokens, None).unwrap().sequence;
    manager.release(&mut pool, &[first]).unwrap();
    assert_eq!(admit(&mut manager, &mut pool, &tokens, None).unwrap().cached_tokens, 12);
    // The window's group has lost block 3: only a shorter prefix can be gone on from, there and everywhere.
    let id = pool.find(&hashes(&tokens)[3], 1).unwrap();
    pool.forget_block(id);
    assert_eq!(admit(&mut manager, &mut pool, &tokens, None).unwrap().cached_tokens, 9);
}

#[test]
fn the_last_of_those_who_share_keeps_the_block() {
    let (mut pool, mut manager) = manager(&[CacheGroup::Full], 16);
    let parent = admit(&mut manager, &mut pool, &[1, 2, 3, 4], None).unwrap().sequence;
    let mut forks = [0; 2];
    manager.fork(&mut pool, parent, &mut forks).unwrap();
    let [left, right] = forks;
    assert_eq!(manager.step(&mut pool, &[parent, left, right], &[5, 6, 7], None).unwrap(), [[2, 3], [2, 4]]);
    assert_eq!(manager.block_table(0, right, 0).unwrap(), [1, 2]);
    assert_eq!(manager.slots(0, right, 0).unwrap().collect::<Vec<_>>(), [7]);
    manager.check_invariants(&pool).unwrap();
}

#[test]
fn broken_books_are_seen() {
    let (mut pool, mut manager) = manager(&[CacheGroup::Full], 16);
    let sequence = admit(&mut manager, &mut pool, &[1, 2, 3, 4], None).unwrap().sequence;
    let code = |manager: &BlockManager, pool: &BlockPool| manager.check_invariants(pool).unwrap_err().code();
    pool.release(std::iter::once(1));
    assert_eq!(code(&manager, &pool), "internal.invariant");
    pool.reference(1);
    manager.check_invariants(&pool).unwrap();
    manager.sequences[sequence as usize].tail.clear();
    assert_eq!(code(&manager, &pool), "internal.invariant");
}
