//! Pages that are moved in pieces.

use super::super::record::{RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES};
use super::*;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

/// Not whole blocks, and a multiple of a line, so that rows begin where pages are read straight to.
const LONG: usize = 3 * PIECE_BYTES + 960;

fn long_options(deadline: Option<Duration>) -> TierOptions {
    TierOptions { deadline, ..TierOptions::new(8 << 20, LONG, *b"long") }
}

fn long_page(number: u8) -> Vec<u8> {
    (0..LONG).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8 ^ number).collect()
}

/// Both ways to read a long page: by way of the tier's own memory, and straight to the caller's.
const WAYS: [bool; 2] = [false, true];

fn open_long(directory: &Directory, options: &TierOptions, straight: bool) -> DiskTier {
    DiskTier::open_on(&directory.0, options, device::system(), straight).unwrap()
}

fn store_long(tier: &DiskTier, numbers: &[u8]) -> Result<usize, KvCacheError> {
    let pages: Vec<u8> = numbers.iter().flat_map(|&number| long_page(number)).collect();
    tier.store(numbers, 1, &TensorRef::from_slice(&pages, &[numbers.len(), LONG]).unwrap())
}

/// Which pages are there. A row of another is as it was, or zeros.
fn load_long(tier: &DiskTier, numbers: &[u8]) -> Vec<bool> {
    let mut out = Memory::new(numbers.len(), LONG);
    let mut view = TensorMut::from_slice(out.bytes(), &[numbers.len(), LONG]).unwrap();
    let found = tier.load(numbers, 1, &mut view, &LoadOptions::default()).unwrap();
    out.check(numbers, &found);
    found
}

/// As [`load_long`], to pages that lie apart.
fn load_apart(tier: &DiskTier, numbers: &[u8]) -> Vec<bool> {
    let mut out = Memory::new(numbers.len(), LONG + 64);
    let found = tier.load_apart(numbers, 1, &mut out.pages(), &LoadOptions::default()).unwrap();
    out.check(numbers, &found);
    found
}

/// Memory for long pages, one every so many bytes, the first at a multiple of a line.
struct Memory {
    bytes: Vec<u8>,
    front: usize,
    pitch: usize,
}

impl Memory {
    fn new(pages: usize, pitch: usize) -> Self {
        let bytes = vec![0xee_u8; pages * pitch + 64];
        let front = bytes.as_ptr().align_offset(64);
        Self { bytes, front, pitch }
    }

    fn bytes(&mut self) -> &mut [u8] {
        let length = self.bytes.len() - 64;
        &mut self.bytes[self.front..][..length]
    }

    fn pages(&mut self) -> Vec<TensorMut<'_>> {
        let pitch = self.pitch;
        let rows = self.bytes().chunks_mut(pitch);
        rows.map(|row| TensorMut::from_slice(&mut row[..LONG], &[LONG]).unwrap()).collect()
    }

    fn check(&mut self, numbers: &[u8], found: &[bool]) {
        let pitch = self.pitch;
        for ((&number, &hit), row) in numbers.iter().zip(found).zip(self.bytes().chunks(pitch)) {
            let (row, gap) = row.split_at(LONG);
            let same = |byte| row.iter().all(|&it| it == byte);
            if hit {
                assert!(row == long_page(number), "page {number} is wrong");
            } else {
                assert!(same(0xee) || same(0), "something of a page that is wrong was delivered");
            }
            assert!(gap.iter().all(|&byte| byte == 0xee), "something behind page {number} was written");
        }
    }
}

#[test]
fn a_bit_anywhere_in_a_long_page_makes_it_a_miss() {
    for (checksum, straight) in [(Checksum::Xxh3, true), (Checksum::Xxh3, false), (Checksum::Blake3, true)] {
        let directory = Directory::new();
        let options = TierOptions { checksum, ..long_options(None) };
        let tier = open_long(&directory, &options, straight);
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
            let load = if at.is_multiple_of(2) { load_long } else { load_apart };
            assert_eq!(load(&tier, &[1, 2, 3]), [true, false, true], "byte {at}");
        }
    }
}

#[test]
fn a_long_page_that_is_cut_is_a_miss() {
    let lengths = [100, 1000, PIECE_BYTES, 2 * PIECE_BYTES + 5, LONG];
    for (length, straight) in lengths.into_iter().flat_map(|length| WAYS.map(|way| (length, way))) {
        let directory = Directory::new();
        let tier = open_long(&directory, &long_options(None), straight);
        store_long(&tier, &[1]).unwrap();
        let [path] = &directory.segments()[..] else { panic!("one segment") };
        let file = OpenOptions::new().write(true).open(path).unwrap();
        file.set_len((SEGMENT_HEADER_BYTES + length) as u64).unwrap();
        assert_eq!(load_long(&tier, &[1]), [false], "{length} bytes are left");
        drop(tier);
        let tier = open_long(&directory, &long_options(None), straight);
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
    let mut out = Memory::new(1, LONG);
    assert_eq!(tier.load_apart(&[2], 1, &mut out.pages(), &LoadOptions::default()).unwrap(), [false]);
    faults.hang(false);
    assert!((0..100).any(|_| arrive()));
    assert!(
        out.bytes().iter().all(|&byte| byte == 0xee),
        "a read that was late came to somebody who had left"
    );
}

#[test]
fn a_page_of_which_only_the_front_is_in_memory_comes_from_the_device() {
    let directory = Directory::new();
    let (tier, faults) = open_faulty(&directory, &long_options(Some(Duration::from_secs(20))));
    store_long(&tier, &[1, 2]).unwrap();
    for read in [0, 1, RECORD_HEADER_BYTES, RECORD_HEADER_BYTES + 1, STRAIGHT_BYTES + RECORD_HEADER_BYTES + 7]
    {
        faults.cached_bytes.store(read as i64, Ordering::Relaxed);
        assert_eq!(load_apart(&tier, &[1, 2]), [true; 2], "{read} bytes");
        // Nobody answers either: nothing of the page is left.
        faults.fail_reads.store(true, Ordering::Relaxed);
        assert_eq!(load_long(&tier, &[1]), [false], "{read} bytes");
        faults.fail_reads.store(false, Ordering::Relaxed);
    }
}

#[test]
fn memory_that_changes_under_a_read_is_no_damage_to_the_page() {
    let directory = Directory::new();
    let (tier, faults) = open_faulty(&directory, &long_options(None));
    store_long(&tier, &[1, 2]).unwrap();
    faults.spoil_rooms.store(true, Ordering::Relaxed);
    assert_eq!(load_long(&tier, &[1, 2]), [true; 2]);
    assert_eq!(load_apart(&tier, &[2, 3, 1]), [true, false, true]);
    assert_eq!(tier.stats().unwrap().corrupt_pages, 0);
}

#[test]
fn pages_that_lie_apart_are_stored_and_refused_like_rows() {
    let directory = Directory::new();
    let tier = open_long(&directory, &long_options(None), true);
    let given: Vec<_> = (0..4).map(long_page).collect();
    let pages: Vec<_> =
        [3, 0, 2].map(|at: usize| TensorRef::from_slice(&given[at], &[2, LONG / 2]).unwrap()).into();
    assert_eq!(tier.store_apart(&[3, 0, 2], 1, &pages).unwrap(), 3);
    assert_eq!(load_apart(&tier, &[0, 1, 2, 3]), [true, false, true, true]);
    assert_eq!(code(tier.store_apart(&[5], 1, &pages)), "shape.page_count");
    let short = [TensorRef::from_slice(&given[0][1..], &[LONG - 1]).unwrap()];
    assert_eq!(code(tier.store_apart(&[5], 1, &short)), "shape.stored_pages");
    let mut out = Memory::new(1, LONG);
    let load = |pages: &mut [TensorMut<'_>]| tier.load_apart(&[0, 2], 1, pages, &LoadOptions::default());
    assert_eq!(code(load(&mut out.pages())), "shape.page_count");
    let (half, rest) = out.bytes().split_at_mut(LONG / 2);
    let parts = [half, rest].map(|part| TensorMut::from_slice(part, &[LONG / 2]).unwrap());
    assert_eq!(code(load(&mut { parts })), "shape.stored_pages");
    out.check(&[0], &[false]);
}

#[test]
fn pieces_are_written_between_multiples_of_a_piece() {
    for write_deadline in [None, Some(Duration::from_secs(60))] {
        let directory = Directory::new();
        let options = TierOptions {
            write_deadline,
            segment_bytes: Some(1 << 20),
            ..TierOptions::new(8 << 20, LONG, *b"long")
        };
        let (tier, faults) = open_faulty(&directory, &options);
        for numbers in [&[1, 2, 3][..], &[4], &[5, 2, 6, 7]] {
            store_long(&tier, numbers).unwrap();
        }
        assert_eq!(load_long(&tier, &[1, 2, 3, 4, 5, 6, 7]), [true; 7]);
        let writes = faults.writes.lock().unwrap();
        let whole = writes.iter().filter(|&&(_, bytes)| bytes == PIECE_BYTES);
        assert!(whole.clone().count() >= 7 * 2);
        assert!(whole.clone().all(|&(at, _)| at.is_multiple_of(PIECE_BYTES as u64)));
        let crosses = |&&(at, bytes): &&(u64, usize)| {
            bytes > 0 && at / PIECE_BYTES as u64 != (at + bytes as u64 - 1) / PIECE_BYTES as u64
        };
        // The last piece of a page has its rest, less than a page of the page cache, behind it.
        assert!(writes.iter().filter(crosses).all(|&(_, bytes)| bytes <= 4096 + 1024));
    }
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
