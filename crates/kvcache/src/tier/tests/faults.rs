//! A device that writes too little, is full, fails, hangs.

use super::*;

#[test]
fn short_writes_are_continued() {
    let directory = Directory::new();
    let (tier, faults) = open_faulty(&directory, &options());
    faults.longest_write.store(7, Ordering::Relaxed);
    store(&tier, 0..10).unwrap();
    faults.longest_write.store(4097, Ordering::Relaxed);
    store(&tier, 10..30).unwrap();
    drop(tier);
    assert!(all(&load(&open(&directory), 0..30)));
}

#[test]
fn a_full_device_is_an_error_and_nothing_is_lost() {
    for room in [0, 1, 100, 4095, 4096, 4097, 5000, 9000, 20_000] {
        let directory = Directory::new();
        let (tier, faults) = open_faulty(&directory, &options());
        store(&tier, 0..5).unwrap();
        tier.flush().unwrap();
        faults.room.store(room, Ordering::Relaxed);
        let mut written = 5;
        let error = loop {
            match store(&tier, written..written + 3) {
                Ok(count) => written += count as u32,
                Err(error) => break error,
            }
        };
        assert_eq!(error.code(), "storage.full");
        assert!(error.to_string().contains("intact"), "{error}");
        assert!(all(&load(&tier, 0..written)), "with room for {room} bytes");
        assert_eq!(code(store(&tier, 900..901)), "storage.full");
        faults.room.store(i64::MAX, Ordering::Relaxed);
        store(&tier, written..written + 20).unwrap();
        tier.flush().unwrap();
        drop(tier);
        assert!(all(&load(&open(&directory), 0..written + 20)));
    }
}

#[test]
fn failed_writes_leave_nothing_half_written() {
    let directory = Directory::new();
    let (tier, faults) = open_faulty(&directory, &options());
    store(&tier, 0..5).unwrap();
    faults.fail_writes.store(true, Ordering::Relaxed);
    assert_eq!(code(store(&tier, 5..9)), "storage.io");
    faults.fail_writes.store(false, Ordering::Relaxed);
    assert_eq!(load(&tier, 5..9), [false; 4]);
    assert_eq!(store(&tier, 5..9).unwrap(), 4);
    drop(tier);
    assert!(all(&load(&open(&directory), 0..9)));
}

#[test]
fn a_failed_read_is_a_miss() {
    for deadline in [None, Some(Duration::from_secs(20))] {
        let directory = Directory::new();
        let (tier, faults) = open_faulty(&directory, &TierOptions { deadline, ..options() });
        store(&tier, 0..5).unwrap();
        faults.fail_reads.store(true, Ordering::Relaxed);
        assert_eq!(load(&tier, 0..5), [false; 5]);
        assert_eq!(tier.stats().unwrap().failed_reads, 5);
        faults.fail_reads.store(false, Ordering::Relaxed);
        assert!(all(&load(&tier, 0..5)), "a device that recovers has its pages still");
    }
}

#[test]
fn what_a_sync_lost_is_never_acknowledged() {
    let directory = Directory::new();
    let (tier, faults) = open_faulty(&directory, &options());
    store(&tier, 0..5).unwrap();
    tier.flush().unwrap();
    store(&tier, 5..9).unwrap();
    faults.fail_syncs.store(true, Ordering::Relaxed);
    assert_eq!(code(tier.flush()), "storage.io");
    faults.fail_syncs.store(false, Ordering::Relaxed);
    assert!(all(&load(&tier, 0..5)));
    tier.flush().unwrap();
    assert_eq!(load(&tier, 5..9), [false; 4], "a flush that succeeds speaks for all pages that are there");
    assert_eq!(tier.stats().unwrap().unsynced_pages, 4);
    assert_eq!(store(&tier, 5..9).unwrap(), 4);
    tier.flush().unwrap();
    assert!(all(&load(&tier, 0..9)));
}

#[test]
fn a_hanging_device_gives_misses() {
    let directory = Directory::new();
    let deadline = Some(Duration::from_millis(100));
    let (tier, faults) = open_faulty(&directory, &TierOptions { deadline, ..options() });
    store(&tier, 0..200).unwrap();
    assert!(all(&load(&tier, 0..200)));
    faults.cold.store(true, Ordering::Relaxed);
    assert!(all(&load(&tier, 0..200)), "what is not in memory is fetched");
    faults.hang(true);
    assert_eq!(load(&tier, 0..200), [false; 200]);
    assert_eq!(load(&tier, 0..3), [false; 3], "the next call does not queue behind the last");
    assert_eq!(tier.stats().unwrap().late_pages, 203);
    faults.cold.store(false, Ordering::Relaxed);
    assert!(all(&load(&tier, 0..200)), "what lies in memory needs no device");
    faults.cold.store(true, Ordering::Relaxed);
    faults.hang(false);
    // The threads that were stuck come back; how soon is not ours to say.
    let back = || all(&load(&tier, 0..200));
    assert!((0..1000).any(|_| back()));
    assert_eq!(tier.stats().unwrap().corrupt_pages, 0);
}
