//! Several tiers in one directory, several threads in one tier.

use super::*;
use std::thread;

#[test]
fn writers_have_places_of_their_own() {
    let directory = Directory::new();
    let first = open(&directory);
    let second = open(&directory);
    assert_eq!((first.writer().unwrap(), second.writer().unwrap()), (0, 1));
    for taken in [0, 1] {
        let refused = DiskTier::open(&directory.0, &TierOptions { writer: Some(taken), ..options() });
        assert_eq!(code(refused), "storage.writer_in_use");
    }
    let fifth = DiskTier::open(&directory.0, &TierOptions { writer: Some(5), ..options() }).unwrap();
    first.close().unwrap();
    let again = DiskTier::open(&directory.0, &TierOptions { writer: Some(0), ..options() }).unwrap();
    assert_eq!((again.writer().unwrap(), fifth.writer().unwrap()), (0, 5));
}

#[test]
fn everybody_reads_everything() {
    let directory = Directory::new();
    let (first, second) = (open(&directory), open(&directory));
    store(&first, 0..5).unwrap();
    second.refresh().unwrap();
    assert!(all(&load(&second, 0..5)));
    store(&first, 5..30).unwrap();
    store(&second, 30..40).unwrap();
    first.refresh().unwrap();
    second.refresh().unwrap();
    assert!(all(&load(&first, 0..40)));
    assert!(all(&load(&second, 0..40)));
    assert_eq!(store(&second, 0..40).unwrap(), 0, "what another has stored is there already");
    thread::sleep(super::super::load::REFRESH_INTERVAL);
    store(&first, 40..41).unwrap();
    assert_eq!(load(&second, [40]), [true], "a load that misses looks by itself");
}

#[test]
fn segments_that_go_under_a_reader_are_misses() {
    let directory = Directory::new();
    let options = TierOptions { capacity_bytes: 64 << 10, ..options() };
    let writer = DiskTier::open(&directory.0, &options).unwrap();
    let reader = DiskTier::open(&directory.0, &options).unwrap();
    for round in 0..30 {
        store(&writer, round * 10..round * 10 + 10).unwrap();
        if round % 4 == 0 {
            reader.refresh().unwrap();
        }
        load(&reader, 0..300);
        assert!(directory.bytes() <= options.capacity_bytes);
    }
    let stats = reader.stats().unwrap();
    assert_eq!(stats.corrupt_pages, 0, "{stats:?}");
    assert!(stats.vanished_pages > 0);
    // The other way round: the second writer takes room from the first.
    store(&reader, 1000..1040).unwrap();
    assert!(directory.bytes() <= options.capacity_bytes);
    load(&writer, 0..300);
    assert_eq!(writer.stats().unwrap().corrupt_pages, 0);
}

#[test]
fn a_directory_full_of_writers_says_so() {
    let directory = Directory::new();
    let options = TierOptions { capacity_bytes: 32 << 10, ..options() };
    let tiers: Vec<_> = (0..3).map(|_| DiskTier::open(&directory.0, &options).unwrap()).collect();
    store(&tiers[0], 0..1).unwrap();
    store(&tiers[1], 1..2).unwrap();
    assert_eq!(code(store(&tiers[2], 2..3)), "storage.no_room");
    tiers[0].refresh().unwrap();
    assert!(all(&load(&tiers[0], 0..2)), "nothing that is being written is taken");
    tiers[0].close().unwrap();
    store(&tiers[2], 2..3).unwrap();
}

#[test]
fn threads_and_tiers_at_once() {
    let directory = Directory::new();
    let options = TierOptions { capacity_bytes: 128 << 10, ..options() };
    let tiers: Vec<_> = (0..2).map(|_| DiskTier::open(&directory.0, &options).unwrap()).collect();
    thread::scope(|scope| {
        for worker in 0..16_u32 {
            let tier = &tiers[worker as usize % 2];
            scope.spawn(move || {
                let mut state = worker + 1;
                for _ in 0..60 {
                    state = state.wrapping_mul(1_103_515_245).wrapping_add(12_345);
                    let first = (state >> 16) % 300;
                    match state >> 8 & 7 {
                        0..3 => {
                            store(tier, first..first + 4).unwrap();
                        }
                        3 => tier.flush().unwrap(),
                        _ => {
                            load(tier, first..first + 8);
                        }
                    }
                }
            });
        }
    });
    for tier in &tiers {
        assert_eq!(tier.stats().unwrap().corrupt_pages, 0);
    }
    assert!(directory.bytes() <= options.capacity_bytes);
}
