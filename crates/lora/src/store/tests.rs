//! The store under threads: bytes stay within the budget, ids stay with their names, readers keep what they hold.

use super::*;
use crate::{RunOptions, apply_adapters};
use infer_accel_tensor::TensorMut;
use std::sync::atomic::{AtomicBool, Ordering};

const LAYER: &str = "layer";

/// Rank 1, one feature, four outputs: applied to 1, it adds `value` everywhere.
fn load(store: &AdapterStore, name: &str, value: f32) -> Result<StoredAdapter, Error> {
    let (down, up) = ([1.0_f32], [value; 4]);
    let layer = LayerSource {
        name: LAYER.into(),
        lora_a: TensorRef::from_slice(&down, &[1, 1])?,
        lora_b: TensorRef::from_slice(&up, &[4, 1])?,
        scaling: 1.0,
    };
    store.load(name, &[layer])
}

fn size() -> usize {
    let store = AdapterStore::new(1 << 20);
    load(&store, "one", 1.0).unwrap().bytes
}

fn stack(store: &AdapterStore) -> Arc<AdapterStack> {
    store.stack(&[LAYER.to_string()], None).unwrap()
}

fn applied(stack: &AdapterStack, id: i64) -> Result<[f32; 4], Error> {
    let mut out = [0.0_f32; 4];
    apply_adapters(
        &mut TensorMut::from_slice(&mut out, &[1, 4])?,
        &TensorRef::from_slice(&[1.0_f32], &[1, 1])?,
        stack,
        &[id],
        &RunOptions { num_threads: Some(1), tier: None },
    )?;
    Ok(out)
}

#[test]
fn the_least_recently_used_goes_first() {
    let store = AdapterStore::new(2 * size());
    let first = load(&store, "a", 1.0).unwrap();
    load(&store, "b", 2.0).unwrap();
    store.get("a").unwrap();
    load(&store, "c", 3.0).unwrap();
    assert_eq!(store.names(), ["a", "c"]);
    assert!(matches!(store.get("b"), Err(Error::Serving(ServingError::AdapterAbsent { .. }))));
    // A name that comes back is somebody new: its old id means nothing any more.
    store.evict("a").unwrap();
    let again = load(&store, "a", 1.0).unwrap();
    assert_ne!(first.id, again.id);
    assert!(matches!(applied(&stack(&store), first.id), Err(Error::Serving(ServingError::AdapterId { .. }))));
}

#[test]
fn pins_hold_and_a_full_store_says_so() {
    let bytes = size();
    let store = AdapterStore::new(2 * bytes);
    load(&store, "a", 1.0).unwrap();
    load(&store, "b", 1.0).unwrap();
    store.pin("a").unwrap();
    store.pin("b").unwrap();
    let full =
        ServingError::StoreFull { needed: bytes, free: 0, pinned: 2 * bytes, capacity: 2 * bytes }.into();
    assert_eq!(load(&store, "c", 1.0), Err(full));
    assert!(matches!(store.evict("a"), Err(Error::Serving(ServingError::AdapterPinned { pins: 1, .. }))));
    store.unpin("b").unwrap();
    assert!(matches!(store.unpin("b"), Err(Error::Serving(ServingError::NotPinned { .. }))));
    load(&store, "c", 1.0).unwrap();
    assert_eq!(store.names(), ["a", "c"]);
}

#[test]
fn what_a_reader_holds_counts_until_it_is_done() {
    let bytes = size();
    let store = AdapterStore::new(2 * bytes);
    let id = load(&store, "a", 5.0).unwrap().id;
    let held = stack(&store);
    store.evict("a").unwrap();
    assert_eq!((store.stats().used_bytes, store.stats().stored_bytes), (bytes, 0));
    assert_eq!(applied(&held, id), Ok([5.0; 4]));
    load(&store, "b", 1.0).unwrap();
    assert!(load(&store, "c", 1.0).is_ok(), "b is not held and goes");
    assert!(matches!(store.get("b"), Err(Error::Serving(ServingError::AdapterAbsent { .. }))));
    store.pin("c").unwrap();
    assert!(matches!(load(&store, "d", 1.0), Err(Error::Serving(ServingError::StoreFull { .. }))));
    drop(held);
    load(&store, "d", 1.0).unwrap();
}

#[test]
fn a_refused_load_changes_nothing() {
    let store = AdapterStore::new(size());
    load(&store, "a", 1.0).unwrap();
    assert!(matches!(load(&store, "b", f32::NAN), Err(Error::Serving(ServingError::NotFinite { .. }))));
    assert!(matches!(store.load("b", &[]), Err(Error::Serving(ServingError::NoLayers { .. }))));
    let numbers = [1.0_f32; 8];
    let layer = |rows: usize| LayerSource {
        name: LAYER.into(),
        lora_a: TensorRef::from_slice(&numbers[..1], &[1, 1]).unwrap(),
        lora_b: TensorRef::from_slice(&numbers[..rows], &[rows, 1]).unwrap(),
        scaling: 1.0,
    };
    assert!(matches!(
        store.load("b", &[layer(4), layer(4)]),
        Err(Error::Serving(ServingError::RepeatedLayer { .. }))
    ));
    assert!(matches!(
        store.load("b", &[layer(5)]),
        Err(Error::Serving(ServingError::OtherBase { got: [5, 1], .. }))
    ));
    assert_eq!(store.names(), ["a"]);
    assert_eq!(store.stats().evictions, 0);
}

#[test]
fn sixteen_threads_see_whole_adapters_within_the_budget() {
    let store = AdapterStore::new(8 * size());
    let (store, is_over) = (&store, &AtomicBool::new(false));
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..8_usize)
            .map(|thread| {
                scope.spawn(move || {
                    for round in 0..400 {
                        let name = format!("n{}", (thread + round) % 12);
                        match load(store, &name, (1 + round % 7) as f32) {
                            Ok(_) | Err(Error::Serving(ServingError::StoreFull { .. })) => {}
                            Err(error) => panic!("{error}"),
                        }
                        if store.pin(&name).is_ok() {
                            assert!(!matches!(store.evict(&name), Ok(())));
                            store.unpin(&name).unwrap();
                        }
                    }
                })
            })
            .collect();
        for _ in 0..8 {
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    let held = stack(store);
                    for id in held.ids() {
                        let out = applied(&held, id).unwrap();
                        assert!(out[0] >= 1.0 && out.iter().all(|&value| value == out[0]), "{out:?}");
                    }
                    let stats = store.stats();
                    assert!(stats.used_bytes <= stats.capacity_bytes, "{stats:?}");
                }
            });
        }
        for writer in writers {
            writer.join().unwrap();
        }
        is_over.store(true, Ordering::Relaxed);
    });
    for name in store.names() {
        store.evict(&name).unwrap();
    }
    assert_eq!(store.stats().used_bytes, 0);
}
