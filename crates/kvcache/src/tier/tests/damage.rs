//! Bytes that changed, files that were cut, files of others.

use super::super::record::{RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES, record_bytes};
use super::*;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

const FLIPS: u32 = 12_000;

#[test]
fn every_flipped_bit_is_found() {
    for (compression, checksum) in
        [(Compression::None, Checksum::Xxh3), (Compression::None, Checksum::Blake3)]
    {
        let directory = Directory::new();
        let options = TierOptions { compression, checksum, deadline: None, ..options() };
        let tier = DiskTier::open(&directory.0, &options).unwrap();
        store(&tier, 0..10).unwrap();
        let [path] = &directory.segments()[..] else { panic!("one segment") };
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        let inner = tier.inner().unwrap();
        let segment = lock(&inner.index).segments().next().cloned().unwrap();
        let places: Vec<_> = (0..10_u32)
            .map(|number| lock(&inner.index).find(&Key::new(&key(number)).unwrap()).cloned().unwrap())
            .collect();
        let mut state = 12_345_u64;
        let mut found = 0_u64;
        for _ in 0..FLIPS {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let number = (state >> 40) % 10;
            let bit = (state >> 20) % (8 * (RECORD_HEADER_BYTES + PAGE) as u64);
            let place = &places[number as usize];
            let at = place.offset + bit / 8;
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ (1 << (bit % 8))], at).unwrap();
            let hits = load(&tier, 0..10);
            assert!(!hits[number as usize], "bit {bit} of page {number} was flipped and not found");
            found += 1;
            assert_eq!(hits.iter().filter(|&&hit| hit).count(), 9);
            file.write_all_at(&byte, at).unwrap();
            let page = (Key::new(&key(number as u32)).unwrap(), place.offset, place.stored_bytes);
            lock(&inner.index).add_pages(&segment, std::iter::once(page));
        }
        assert_eq!(tier.stats().unwrap().corrupt_pages, found);
        assert!(all(&load(&tier, 0..10)));
    }
}

#[test]
fn a_damaged_page_is_a_miss_and_can_be_stored_again() {
    let directory = Directory::new();
    let tier = open(&directory);
    store(&tier, 0..3).unwrap();
    let [path] = &directory.segments()[..] else { panic!("one segment") };
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(b"x", (SEGMENT_HEADER_BYTES + RECORD_HEADER_BYTES + 10) as u64).unwrap();
    assert_eq!(load(&tier, 0..3), [false, true, true]);
    assert_eq!(tier.stats().unwrap().corrupt_pages, 1);
    assert_eq!(store(&tier, 0..3).unwrap(), 1);
    assert!(all(&load(&tier, 0..3)));
    drop(tier);
    assert!(all(&load(&open(&directory), 0..3)), "the later of two pages of a key counts");
}

#[test]
fn a_file_cut_anywhere_keeps_what_lies_before() {
    let record = record_bytes(PAGE as u32) as usize;
    for cut in (0..SEGMENT_HEADER_BYTES + 4 * record).step_by(61) {
        let directory = Directory::new();
        let tier = open(&directory);
        store(&tier, 0..3).unwrap();
        tier.close().unwrap();
        let [path] = &directory.segments()[..] else { panic!("one segment") };
        OpenOptions::new().write(true).open(path).unwrap().set_len(cut as u64).unwrap();
        let whole = cut.saturating_sub(SEGMENT_HEADER_BYTES + RECORD_HEADER_BYTES + PAGE);
        let kept =
            if cut < SEGMENT_HEADER_BYTES + RECORD_HEADER_BYTES + PAGE { 0 } else { 1 + whole / record };
        let tier = open(&directory);
        let found = load(&tier, 0..3);
        assert_eq!(found.iter().filter(|&&hit| hit).count(), kept.min(3), "cut at {cut}");
        store(&tier, 0..5).unwrap();
        assert!(all(&load(&tier, 0..5)));
    }
}

#[test]
fn another_layout_is_refused() {
    let directory = Directory::new();
    store(&open(&directory), 0..3).unwrap();
    let open = |options: TierOptions| code(DiskTier::open(&directory.0, &options));
    assert_eq!(open(TierOptions { fingerprint: b"other".to_vec(), ..options() }), "integrity.tier_layout");
    assert_eq!(open(TierOptions { page_bytes: PAGE + 1, ..options() }), "integrity.tier_layout");
    assert_eq!(open(TierOptions { checksum: Checksum::Blake3, ..options() }), "integrity.tier_layout");
    let manifest = directory.0.join("tier");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace("version 1", "version 2")).unwrap();
    assert_eq!(open(options()), "integrity.tier_layout");
    for damaged in ["", "something else\n", "infer-accel kvcache tier, version 1\npage_bytes 1000\n"] {
        fs::write(&manifest, damaged).unwrap();
        assert_eq!(open(options()), "integrity.tier_manifest");
    }
    fs::write(&manifest, text).unwrap();
    assert!(all(&load(&super::open(&directory), 0..3)));
}

#[test]
fn segments_of_others_are_never_read() {
    let directory = Directory::new();
    store(&open(&directory), 0..3).unwrap();
    let other = Directory::new();
    let their_options = TierOptions { fingerprint: b"other".to_vec(), ..options() };
    let theirs = DiskTier::open(&other.0, &their_options).unwrap();
    store(&theirs, 5..8).unwrap();
    let place = directory.0.join("writer-0042");
    fs::create_dir(&place).unwrap();
    fs::copy(&other.segments()[0], place.join("000000.segment")).unwrap();
    // One of a later version: the header's own check fits.
    let mut later = fs::read(&directory.segments()[0]).unwrap();
    later[8] = 2;
    let front = SEGMENT_HEADER_BYTES - 16;
    let check = Checksum::Xxh3.of(&later[..front]);
    later[front..SEGMENT_HEADER_BYTES].copy_from_slice(&check);
    fs::write(place.join("000001.segment"), later).unwrap();
    fs::write(place.join("000002.segment"), b"no segment at all").unwrap();
    fs::write(place.join("000003.segment"), b"").unwrap();
    fs::create_dir(place.join("000004.segment")).unwrap();
    let tier = open(&directory);
    assert_eq!(load(&tier, 0..8), [true, true, true, false, false, false, false, false]);
    assert_eq!(tier.stats().unwrap().refused_segments, 3);
    assert_eq!(tier.stats().unwrap().corrupt_pages, 0);
}

#[test]
fn what_an_earlier_life_of_a_file_left_is_not_found() {
    let directory = Directory::new();
    let options = TierOptions { capacity_bytes: 32 << 10, ..options() };
    let tier = DiskTier::open(&directory.0, &options).unwrap();
    for first in (0..200).step_by(4) {
        store(&tier, first..first + 4).unwrap();
    }
    let before = load(&tier, 0..200);
    // As after a crash: the segment that is written is not cut to what it has.
    std::mem::forget(tier);
    let path = directory.0.join("writer-0000");
    let copy = Directory::new();
    fs::create_dir_all(copy.0.join("writer-0000")).unwrap();
    for segment in directory.segments() {
        fs::copy(&segment, copy.0.join("writer-0000").join(segment.file_name().unwrap())).unwrap();
    }
    assert!(path.exists());
    let again = DiskTier::open(&copy.0, &options).unwrap();
    assert_eq!(load(&again, 0..200), before);
    assert_eq!(again.stats().unwrap().torn_segments, 1);
}
