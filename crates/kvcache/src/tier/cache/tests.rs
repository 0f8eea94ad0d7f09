//! The cache against a plain map, alone and with a disk that fails.

use super::super::tests::{Directory, KEY, PAGE, code, key, open, open_faulty, options, page};
use super::*;
use std::sync::atomic::Ordering;

fn cache(disk: &DiskTier, host_pages: usize) -> TieredCache {
    let options =
        CacheOptions { host_pages, queued_writes: None, queued_prefetches: 64, store_deadline: None };
    TieredCache::new(disk, &options).unwrap()
}

fn store(cache: &TieredCache, numbers: impl IntoIterator<Item = u32>) -> Vec<bool> {
    let numbers: Vec<u32> = numbers.into_iter().collect();
    let keys: Vec<u8> = numbers.iter().flat_map(|&number| key(number)).collect();
    let pages: Vec<u8> = numbers.iter().flat_map(|&number| page(number)).collect();
    cache.store(&keys, KEY, &TensorRef::from_slice(&pages, &[numbers.len(), PAGE]).unwrap()).unwrap()
}

fn load(cache: &TieredCache, numbers: impl IntoIterator<Item = u32>) -> Vec<bool> {
    let numbers: Vec<u32> = numbers.into_iter().collect();
    let keys: Vec<u8> = numbers.iter().flat_map(|&number| key(number)).collect();
    let mut out = vec![0xee_u8; numbers.len() * PAGE];
    let mut view = TensorMut::from_slice(&mut out, &[numbers.len(), PAGE]).unwrap();
    let found = cache.load(&keys, KEY, &mut view, &LoadOptions::default()).unwrap();
    for ((&number, &hit), row) in numbers.iter().zip(&found).zip(out.chunks(PAGE)) {
        assert!(!hit || row == page(number), "the page of {number} is wrong");
    }
    lock(&cache.shared().unwrap().slots).check();
    found
}

fn all(found: &[bool]) -> bool {
    found.iter().all(|&hit| hit)
}

#[test]
fn everything_that_was_taken_is_found_and_survives() {
    let directory = Directory::new();
    let disk = open(&directory);
    let front = cache(&disk, 8);
    for first in (0..200).step_by(5) {
        assert!(all(&store(&front, first..first + 5)));
    }
    assert!(all(&load(&front, 0..200)));
    front.flush().unwrap();
    let stats = front.stats().unwrap();
    assert_eq!((stats.written_pages, stats.queued_writes, stats.failed_writes), (200, 0, 0));
    assert_eq!(stats.host_hits + stats.disk_hits, 200);
    assert!(stats.host_pages <= 8);
    front.close().unwrap();
    assert_eq!(code(front.flush()), "storage.closed");
    disk.close().unwrap();
    let disk = open(&directory);
    assert!(all(&load(&cache(&disk, 4), 0..200)));
}

#[test]
fn what_is_prefetched_is_in_host_memory() {
    let directory = Directory::new();
    let disk = open(&directory);
    let first = cache(&disk, 40);
    store(&first, 0..30);
    first.close().unwrap();
    let front = cache(&disk, 40);
    let keys: Vec<u8> = (0..40).flat_map(key).collect();
    assert_eq!(front.prefetch(&keys, KEY).unwrap(), 30, "what nobody has is not asked for");
    front.wait_for_prefetches().unwrap();
    assert!(all(&load(&front, 0..30)));
    let stats = front.stats().unwrap();
    assert_eq!((stats.prefetched_pages, stats.host_hits, stats.disk_hits), (30, 30, 0));
    assert_eq!(front.contains(&keys, KEY).unwrap().iter().filter(|&&it| it).count(), 30);
}

#[test]
fn a_disk_that_takes_nothing_is_no_secret() {
    let directory = Directory::new();
    let (disk, faults) = open_faulty(&directory, &options());
    let front = cache(&disk, 8);
    store(&front, 0..3);
    front.flush().unwrap();
    faults.room.store(0, Ordering::Relaxed);
    store(&front, 3..6);
    assert_eq!(code(front.flush()), "storage.full");
    assert!(all(&load(&front, 0..6)), "what is not on disk is still in host memory");
    front.flush().unwrap();
    faults.room.store(i64::MAX, Ordering::Relaxed);
    store(&front, 3..6);
    front.flush().unwrap();
    let stats = front.stats().unwrap();
    assert_eq!((stats.failed_writes, stats.written_pages), (3, 6), "storing again tries again");
}

#[test]
fn who_is_too_fast_waits_or_goes_without() {
    let directory = Directory::new();
    let disk = open(&directory);
    let limits = CacheOptions {
        host_pages: 4,
        queued_writes: Some(1),
        queued_prefetches: 1,
        store_deadline: Some(Duration::from_micros(1)),
    };
    let front = TieredCache::new(&disk, &limits).unwrap();
    let mut taken = Vec::new();
    for number in 0..200 {
        taken.extend(store(&front, [number]));
    }
    front.flush().unwrap();
    let stats = front.stats().unwrap();
    assert_eq!(stats.stored_pages + stats.refused_pages, 200);
    for (number, taken) in taken.into_iter().enumerate() {
        assert!(!taken || load(&front, [number as u32])[0], "what was taken is there");
    }
}

#[test]
fn bad_options_are_refused() {
    let directory = Directory::new();
    let disk = open(&directory);
    let good =
        CacheOptions { host_pages: 8, queued_writes: None, queued_prefetches: 1, store_deadline: None };
    for bad in [
        CacheOptions { host_pages: 1, ..good.clone() },
        CacheOptions { queued_writes: Some(5), ..good.clone() },
        CacheOptions { queued_writes: Some(0), ..good.clone() },
        CacheOptions { queued_prefetches: 0, ..good.clone() },
    ] {
        assert_eq!(code(TieredCache::new(&disk, &bad)), "argument.tier_count");
    }
    disk.close().unwrap();
    assert_eq!(code(TieredCache::new(&disk, &good)), "storage.closed");
}

#[test]
fn threads_at_once() {
    let directory = Directory::new();
    let disk = open(&directory);
    let front = cache(&disk, 12);
    thread::scope(|scope| {
        for worker in 0..16_u32 {
            let front = &front;
            scope.spawn(move || {
                let mut state = worker + 1;
                for _ in 0..60 {
                    state = state.wrapping_mul(1_103_515_245).wrapping_add(12_345);
                    let first = (state >> 16) % 200;
                    match state >> 8 & 7 {
                        0..3 => drop(store(front, first..first + 4)),
                        3 => front.flush().unwrap(),
                        4 => drop(front.prefetch(&key(first), KEY).unwrap()),
                        _ => drop(load(front, first..first + 6)),
                    }
                }
            });
        }
    });
    front.close().unwrap();
    assert_eq!(disk.stats().unwrap().corrupt_pages, 0);
}
