//! Pages that are moved in pieces.

use super::super::record::{RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES};
use super::*;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

const LONG: usize = 3 * PIECE_BYTES + 1000;

fn long_options(deadline: Option<Duration>) -> TierOptions {
    TierOptions { deadline, ..TierOptions::new(8 << 20, LONG, *b"long") }
}

fn long_page(number: u8) -> Vec<u8> {
    (0..LONG).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8 ^ number).collect()
}

fn store_long(tier: &DiskTier, numbers: &[u8]) -> Result<usize, KvCacheError> {
    let pages: Vec<u8> = numbers.iter().flat_map(|&number| long_page(number)).collect();
    tier.store(numbers, 1, &TensorRef::from_slice(&pages, &[numbers.len(), LONG]).unwrap())
}

/// Which pages are there. A row of another is as it was, or zeros.
fn load_long(tier: &DiskTier, numbers: &[u8]) -> Vec<bool> {
    let mut out = vec![0xee_u8; numbers.len() * LONG];
    let mut view = TensorMut::from_slice(&mut out, &[numbers.len(), LONG]).unwrap();
    let found = tier.load(numbers, 1, &mut view, &LoadOptions::default()).unwrap();
    for ((&number, &hit), row) in numbers.iter().zip(&found).zip(out.chunks(LONG)) {
        if hit {
            assert!(row == long_page(number), "page {number} is wrong");
        } else {
            let same = |byte| row.iter().all(|&it| it == byte);
            assert!(same(0xee) || same(0), "something of a page that is wrong was delivered");
        }
    }
    found
}

#[test]
fn a_bit_anywhere_in_a_long_page_makes_it_a_miss() {
    for checksum in [Checksum::Xxh3, Checksum::Blake3] {
        let directory = Directory::new();
        let options = TierOptions { checksum, ..long_options(None) };
        let tier = DiskTier::open(&directory.0, &options).unwrap();
        let record = (RECORD_HEADER_BYTES + LONG).next_multiple_of(4096);
        let borders = [0, 191, 192, 193, PIECE_BYTES, PIECE_BYTES + 191, PIECE_BYTES + 192, record - 4096];
        let inside = (0..40).map(|step| step * 9973 + 200);
        for at in borders.into_iter().chain(inside).chain([RECORD_HEADER_BYTES + LONG - 1]) {
            store_long(&tier, &[1, 2, 3]).unwrap();
            let inner = tier.inner().unwrap();
            let place = lock(&inner.index).find(&Key::new(&[2]).unwrap()).cloned().unwrap();
            let file = OpenOptions::new().read(true).write(true).open(&place.segment.path).unwrap();
            let at = place.offset + at as u64;
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 4], at).unwrap();
            assert_eq!(load_long(&tier, &[1, 2, 3]), [true, false, true], "byte {at}");
        }
    }
}

#[test]
fn a_long_page_that_is_cut_is_a_miss() {
    for length in [100, 1000, PIECE_BYTES, 2 * PIECE_BYTES + 5, LONG] {
        let directory = Directory::new();
        let tier = DiskTier::open(&directory.0, &long_options(None)).unwrap();
        store_long(&tier, &[1]).unwrap();
        let [path] = &directory.segments()[..] else { panic!("one segment") };
        let file = OpenOptions::new().write(true).open(path).unwrap();
        file.set_len((SEGMENT_HEADER_BYTES + length) as u64).unwrap();
        assert_eq!(load_long(&tier, &[1]), [false], "{length} bytes are left");
        drop(tier);
        let tier = DiskTier::open(&directory.0, &long_options(None)).unwrap();
        assert_eq!(load_long(&tier, &[1]), [false]);
        assert_eq!(store_long(&tier, &[1]).unwrap(), 1);
        assert_eq!(load_long(&tier, &[1]), [true]);
    }
}

#[test]
fn long_pages_that_are_not_in_memory_or_late() {
    let directory = Directory::new();
    let options = long_options(Some(Duration::from_millis(200)));
    let (tier, faults) = open_faulty(&directory, &options);
    store_long(&tier, &[1, 2, 3]).unwrap();
    faults.cold.store(true, Ordering::Relaxed);
    let arrive = || load_long(&tier, &[1, 2, 3]) == [true; 3];
    assert!((0..100).any(|_| arrive()));
    faults.hang(true);
    assert_eq!(load_long(&tier, &[1, 2, 3]), [false; 3]);
    faults.hang(false);
    assert!((0..100).any(|_| arrive()));
}

#[test]
fn a_piece_that_cannot_be_written_ends_its_page_alone() {
    for write_deadline in [None, Some(Duration::from_secs(60))] {
        let directory = Directory::new();
        let options = TierOptions { write_deadline, ..long_options(None) };
        let (tier, faults) = open_faulty(&directory, &options);
        store_long(&tier, &[1]).unwrap();
        for room in [0, 1000, PIECE_BYTES as i64 + 5, 3 * PIECE_BYTES as i64, LONG as i64 + 200] {
            faults.room.store(room, Ordering::Relaxed);
            assert_eq!(code(store_long(&tier, &[2, 3])), "storage.full");
            faults.room.store(i64::MAX, Ordering::Relaxed);
            assert_eq!(load_long(&tier, &[1, 2, 3]), [true, false, false]);
        }
        assert_eq!(store_long(&tier, &[2, 3]).unwrap(), 2);
        drop(tier);
        let tier = DiskTier::open(&directory.0, &options).unwrap();
        assert_eq!(load_long(&tier, &[1, 2, 3]), [true; 3]);
    }
}

/// Asks until it is so; how soon a device that hung is asked again is not ours to say.
fn soon(question: impl Fn() -> bool) -> bool {
    (0..2000).any(|_| {
        question() || {
            std::thread::sleep(Duration::from_millis(5));
            false
        }
    })
}

#[test]
fn a_device_that_hangs_makes_stores_and_flushes_errors() {
    let write_deadline = Some(Duration::from_millis(150));
    for options in [
        TierOptions { write_deadline, ..options() },
        TierOptions { write_deadline, deadline: None, ..options() },
    ] {
        let directory = Directory::new();
        let (tier, faults) = open_faulty(&directory, &options);
        assert!(soon(|| store(&tier, 0..10).is_ok()));
        assert!(soon(|| tier.flush().is_ok()));
        faults.hang_writes(true);
        assert_eq!(code(store(&tier, 10..600)), "storage.late");
        assert_eq!(
            code(store(&tier, 600..601)),
            "storage.late",
            "the next call does not queue behind the last"
        );
        assert_eq!(code(tier.flush()), "storage.late");
        assert!(all(&load(&tier, 0..10)), "what is there can be read");
        assert!(tier.stats().unwrap().late_writes >= 3);
        faults.hang_writes(false);
        assert!(soon(|| store(&tier, 600..700).is_ok()));
        assert!(soon(|| tier.flush().is_ok()));
        assert!(all(&load(&tier, 600..700)));
        load(&tier, 10..600); // there or not, and right
        drop(tier);
        assert!(all(&load(&open(&directory), 600..700)));
    }
}

#[test]
fn long_pages_and_a_device_that_hangs() {
    let directory = Directory::new();
    let options = TierOptions { write_deadline: Some(Duration::from_millis(150)), ..long_options(None) };
    let (tier, faults) = open_faulty(&directory, &options);
    assert!(soon(|| store_long(&tier, &[1, 2]).is_ok()));
    faults.hang_writes(true);
    assert_eq!(code(store_long(&tier, &[3, 4, 5])), "storage.late");
    faults.hang_writes(false);
    assert!(soon(|| store_long(&tier, &[6, 7]).is_ok()));
    assert_eq!(load_long(&tier, &[1, 2, 6, 7]), [true; 4]);
    load_long(&tier, &[3, 4, 5]);
    drop(tier);
    let tier = DiskTier::open(&directory.0, &long_options(None)).unwrap();
    assert_eq!(load_long(&tier, &[1, 2, 6, 7]), [true; 4]);
    load_long(&tier, &[3, 4, 5]);
}
