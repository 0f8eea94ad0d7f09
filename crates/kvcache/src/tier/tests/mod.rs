//! The tier against a plain map, with and without a device that fails.

mod damage;
mod faults;
mod long_pages;
mod sharing;

use super::check::{PIECE_BYTES, STRAIGHT_BYTES};
use super::device::faulty::{Faults, FaultyDevice};
use super::*;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::AtomicU32;

pub(super) const PAGE: usize = 1000;
pub(super) const KEY: usize = 32;

/// A directory of its own, removed at the end.
pub(super) struct Directory(pub(super) PathBuf);

impl Directory {
    pub(super) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("infer-accel-tier-{}-{number}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        Self(path)
    }

    fn segments(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for directory in fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().path()) {
            if directory.is_dir() {
                let files = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path());
                found.extend(files.filter(|file| file.extension().is_some()));
            }
        }
        found.sort();
        found
    }

    fn bytes(&self) -> u64 {
        self.segments().iter().map(|path| fs::metadata(path).unwrap().len()).sum()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(super) fn options() -> TierOptions {
    TierOptions { segment_bytes: Some(16 << 10), ..TierOptions::new(1 << 20, PAGE, *b"layout") }
}

pub(super) fn open(directory: &Directory) -> DiskTier {
    DiskTier::open(&directory.0, &options()).unwrap()
}

pub(super) fn open_faulty(directory: &Directory, options: &TierOptions) -> (DiskTier, Arc<Faults>) {
    let (device, faults) = FaultyDevice::make();
    (DiskTier::open_on(&directory.0, options, device, true).unwrap(), faults)
}

/// The key and the only right page of a number.
pub(super) fn key(number: u32) -> [u8; KEY] {
    let mut key = [0; KEY];
    key[..4].copy_from_slice(&number.to_le_bytes());
    key[20..24].copy_from_slice(&number.wrapping_mul(77).to_le_bytes());
    key
}

pub(super) fn page(number: u32) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9).wrapping_add(1);
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    (0..PAGE).map(|_| step()).collect()
}

fn store(tier: &DiskTier, numbers: impl IntoIterator<Item = u32>) -> Result<usize, KvCacheError> {
    let numbers: Vec<u32> = numbers.into_iter().collect();
    let keys: Vec<u8> = numbers.iter().flat_map(|&number| key(number)).collect();
    let pages: Vec<u8> = numbers.iter().flat_map(|&number| page(number)).collect();
    tier.store(&keys, KEY, &TensorRef::from_slice(&pages, &[numbers.len(), PAGE]).unwrap())
}

/// Which of the pages are there. Panics if one that is said to be there is wrong, or a row of another is touched.
fn load(tier: &DiskTier, numbers: impl IntoIterator<Item = u32>) -> Vec<bool> {
    let numbers: Vec<u32> = numbers.into_iter().collect();
    let keys: Vec<u8> = numbers.iter().flat_map(|&number| key(number)).collect();
    let mut out = vec![0xee_u8; numbers.len() * PAGE];
    let mut view = TensorMut::from_slice(&mut out, &[numbers.len(), PAGE]).unwrap();
    let found = tier.load(&keys, KEY, &mut view, &LoadOptions::default()).unwrap();
    for ((&number, &hit), row) in numbers.iter().zip(&found).zip(out.chunks(PAGE)) {
        if hit {
            assert!(row == page(number), "the page of {number} is wrong");
        } else {
            assert!(row.iter().all(|&byte| byte == 0xee), "the row of a miss was touched");
        }
    }
    found
}

fn all(found: &[bool]) -> bool {
    found.iter().all(|&hit| hit)
}

pub(super) fn code<T: std::fmt::Debug>(result: Result<T, KvCacheError>) -> &'static str {
    result.unwrap_err().code()
}

#[test]
fn what_was_stored_is_loaded() {
    let directory = Directory::new();
    let tier = open(&directory);
    assert_eq!(store(&tier, 0..40).unwrap(), 40);
    assert_eq!(store(&tier, [39, 40, 40, 41]).unwrap(), 2, "known keys are not written again");
    assert!(all(&load(&tier, (0..42).rev())));
    assert_eq!(load(&tier, [7, 99, 8]), [true, false, true]);
    assert_eq!(tier.contains(&[key(5), key(50)].concat(), KEY).unwrap(), [true, false]);
    let stats = tier.stats().unwrap();
    assert_eq!((stats.pages, stats.stored_pages, stats.known_pages), (42, 42, 2));
    assert_eq!((stats.hits, stats.misses, stats.corrupt_pages), (44, 1, 0));
    tier.close().unwrap();
    tier.close().unwrap();
    assert_eq!(code(tier.flush()), "storage.closed");
    let again = open(&directory);
    assert!(all(&load(&again, 0..42)));
    assert_eq!(store(&again, 0..42).unwrap(), 0);
}

#[test]
fn every_option_round_trips() {
    for checksum in [Checksum::Xxh3, Checksum::Blake3] {
        for compression in [Compression::None, Compression::Zstd] {
            for deadline in [None, Some(Duration::from_secs(20))] {
                let directory = Directory::new();
                let options = TierOptions { checksum, compression, deadline, ..options() };
                let tier = DiskTier::open(&directory.0, &options).unwrap();
                store(&tier, 0..30).unwrap();
                // A page that shrinks.
                let zeros = vec![0_u8; PAGE];
                let pages = TensorRef::from_slice(&zeros, &[1, PAGE]).unwrap();
                tier.store(b"zeros", 5, &pages).unwrap();
                tier.close().unwrap();
                let tier = DiskTier::open(&directory.0, &options).unwrap();
                assert!(all(&load(&tier, 0..30)), "{options:?}");
                let mut out = vec![1_u8; PAGE];
                let mut view = TensorMut::from_slice(&mut out, &[1, PAGE]).unwrap();
                assert_eq!(tier.load(b"zeros", 5, &mut view, &LoadOptions::default()).unwrap(), [true]);
                assert_eq!(out, zeros);
            }
        }
    }
}

#[test]
fn capacity_holds_and_what_was_used_stays() {
    let directory = Directory::new();
    let options = TierOptions { capacity_bytes: 64 << 10, ..options() };
    let tier = DiskTier::open(&directory.0, &options).unwrap();
    for first in (0..400).step_by(5) {
        store(&tier, first..first + 5).unwrap();
        // The times of segments have the resolution of a millisecond.
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(load(&tier, [0]), [true], "what is used all the time is never evicted");
        assert!(all(&load(&tier, first..first + 5)), "nor is what was stored just now");
        assert!(directory.bytes() <= 64 << 10);
    }
    let stats = tier.stats().unwrap();
    assert!(stats.evicted_segments > 20 && stats.evicted_pages > 200, "{stats:?}");
    assert!(stats.bytes <= stats.capacity_bytes);
    assert_eq!(stats.corrupt_pages, 0);
    let kept = load(&tier, 0..400).iter().filter(|&&hit| hit).count();
    assert_eq!(kept as u64, stats.pages);
    drop(tier);
    let smaller = TierOptions { capacity_bytes: 40 << 10, ..options };
    let tier = DiskTier::open(&directory.0, &smaller).unwrap();
    assert_eq!(load(&tier, 0..400).iter().filter(|&&hit| hit).count(), kept, "dropped without a close");
    store(&tier, 1000..1040).unwrap();
    assert!(directory.bytes() <= 40 << 10, "a smaller capacity holds from the next segment on");
}

#[test]
fn pages_of_any_stride_and_type() {
    let directory = Directory::new();
    let tier = DiskTier::open(&directory.0, &TierOptions { page_bytes: 24, ..options() }).unwrap();
    let wide: Vec<u32> = (0..60).collect();
    // Three pages of two rows of three, with gaps between the pages; written backwards.
    let all = TensorRef::from_slice(&wide, &[3, 2, 10]).unwrap();
    let refused = tier.store(&[1; 3], 1, &all);
    assert_eq!(code(refused), "shape.stored_pages");
    let narrow: Vec<u32> = (0..18).collect();
    tier.store(&[1, 2, 3], 1, &TensorRef::from_slice(&narrow, &[3, 2, 3]).unwrap()).unwrap();
    let mut out = vec![0_u32; 18];
    let mut view = TensorMut::from_slice(&mut out, &[3, 6]).unwrap();
    assert_eq!(tier.load(&[3, 2, 1], 1, &mut view, &LoadOptions::default()).unwrap(), [true; 3]);
    assert_eq!(out[..6], narrow[12..]);
    assert_eq!(out[12..], narrow[..6]);
}

#[test]
fn long_pages_are_written_piece_by_piece() {
    for page_bytes in [PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 77, 8 * PIECE_BYTES] {
        for checksum in [Checksum::Xxh3, Checksum::Blake3] {
            let directory = Directory::new();
            let mut options = TierOptions { checksum, ..TierOptions::new(16 << 20, page_bytes, *b"long") };
            options.segment_bytes = Some(2 << 20);
            let (tier, faults) = open_faulty(&directory, &options);
            let bytes: Vec<u8> = (0..5 * page_bytes).map(|at| (at % 251) as u8).collect();
            let pages = TensorRef::from_slice(&bytes, &[5, page_bytes]).unwrap();
            faults.longest_write.store(100_001, Ordering::Relaxed);
            assert_eq!(tier.store(&[1, 2, 3, 4, 5], 1, &pages).unwrap(), 5);
            faults.room.store(page_bytes as i64 / 2, Ordering::Relaxed);
            let other = TensorRef::from_slice(&bytes[..page_bytes], &[1, page_bytes]).unwrap();
            assert_eq!(code(tier.store(&[9], 1, &other)), "storage.full");
            drop(tier);
            let tier = DiskTier::open(&directory.0, &options).unwrap();
            let mut out = vec![0_u8; 6 * page_bytes];
            let mut view = TensorMut::from_slice(&mut out, &[6, page_bytes]).unwrap();
            let found = tier.load(&[1, 2, 3, 4, 5, 9], 1, &mut view, &LoadOptions::default()).unwrap();
            assert_eq!(found, [true, true, true, true, true, false]);
            assert!(out[..5 * page_bytes] == bytes);
        }
    }
}

#[test]
fn bad_arguments_are_refused() {
    let directory = Directory::new();
    let open = |options: &TierOptions| code(DiskTier::open(&directory.0, options));
    assert_eq!(open(&TierOptions { page_bytes: 0, ..options() }), "argument.page_bytes");
    assert_eq!(open(&TierOptions { page_bytes: MAX_PAGE_BYTES + 1, ..options() }), "argument.page_bytes");
    assert_eq!(open(&TierOptions { capacity_bytes: 30 << 10, ..options() }), "argument.capacity_bytes");
    assert_eq!(open(&TierOptions { segment_bytes: Some(1000), ..options() }), "argument.segment_bytes");
    assert_eq!(open(&TierOptions { deadline: Some(Duration::ZERO), ..options() }), "argument.deadline");
    assert!(!directory.0.exists(), "nothing is made before the arguments are checked");
    let tier = super::tests::open(&directory);
    let pages = vec![0_u8; 2 * PAGE];
    let view = |shape: &[usize]| TensorRef::from_slice(&pages[..shape.iter().product()], shape).unwrap();
    assert_eq!(code(tier.store(&[1, 2, 3], 1, &view(&[2, PAGE]))), "shape.page_count");
    assert_eq!(code(tier.store(&[1, 2], 1, &view(&[2, PAGE - 1]))), "shape.stored_pages");
    assert_eq!(code(tier.store(&[1, 2], 1, &view(&[]))), "shape.stored_pages");
    assert_eq!(code(tier.store(&[0; 65], 65, &view(&[1, PAGE]))), "shape.keys");
    assert_eq!(code(tier.store(&[0; 65], 0, &view(&[1, PAGE]))), "shape.keys");
    assert_eq!(code(tier.contains(&[0; 65], 2)), "shape.keys");
    assert_eq!(tier.store(&[], 0, &view(&[0, PAGE])).unwrap(), 0);
    assert_eq!(tier.store(&[0; 64], 64, &view(&[1, PAGE])).unwrap(), 1);
}

/// A tier by plain maps: a page is there or not, and only eviction and damage take one away.
#[test]
fn random_calls_agree_with_a_map() {
    use std::collections::HashSet;
    let directory = Directory::new();
    let options = TierOptions { capacity_bytes: 80 << 10, ..options() };
    let mut tier = DiskTier::open(&directory.0, &options).unwrap();
    let mut ever: HashSet<u32> = HashSet::new();
    let mut state = 1_u64;
    let mut chance = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for _ in 0..600 {
        let first = chance(150) as u32;
        let numbers = first..first + chance(12) as u32;
        match chance(10) {
            0..4 => {
                store(&tier, numbers.clone()).unwrap();
                ever.extend(numbers);
            }
            4..8 => {
                for (number, hit) in numbers.clone().zip(load(&tier, numbers)) {
                    assert!(!hit || ever.contains(&number));
                }
            }
            8 => tier.flush().unwrap(),
            _ => {
                let before: Vec<bool> = load(&tier, 0..170);
                if chance(2) == 0 {
                    tier.close().unwrap();
                }
                drop(tier);
                tier = DiskTier::open(&directory.0, &options).unwrap();
                assert_eq!(load(&tier, 0..170), before, "a restart loses nothing and finds nothing new");
            }
        }
        assert!(directory.bytes() <= options.capacity_bytes);
    }
    assert_eq!(tier.stats().unwrap().corrupt_pages, 0);
}
