//! Any bytes in the place of a segment, or any change to a good one: pages that are right, or misses. Never a panic,
//! never other bytes.
#![no_main]

use infer_accel_kvcache::tier::{DiskTier, LoadOptions, TierOptions};
use infer_accel_tensor::{TensorMut, TensorRef};
use libfuzzer_sys::fuzz_target;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

const PAGE: usize = 300;
const PAGES: usize = 5;

fn page(number: u8) -> Vec<u8> {
    (0..PAGE).map(|at| number.wrapping_mul(31).wrapping_add(at as u8)).collect()
}

fn open(path: &Path) -> DiskTier {
    let mut options = TierOptions::new(1 << 20, PAGE, *b"fuzz");
    options.deadline = None;
    DiskTier::open(path, &options).expect("the directory is good, whatever the segment is")
}

/// The bytes of a segment with a few pages.
fn good(path: &Path) -> &'static [u8] {
    static GOOD: OnceLock<Vec<u8>> = OnceLock::new();
    GOOD.get_or_init(|| {
        let _ = fs::remove_dir_all(path);
        let tier = open(path);
        let pages: Vec<u8> = (0..PAGES as u8).flat_map(page).collect();
        let keys: Vec<u8> = (0..PAGES as u8).collect();
        let pages = TensorRef::from_slice(&pages, &[PAGES, PAGE]).expect("a matrix");
        tier.store(&keys, 1, &pages).expect("a disk with room");
        tier.close().expect("a disk that works");
        fs::read(path.join("writer-0000/000000.segment")).expect("the segment")
    })
}

fuzz_target!(|content: &[u8]| {
    let path = std::env::temp_dir().join(format!("infer-accel-fuzz-{}", std::process::id()));
    let good = good(&path);
    let segment = match content.split_first() {
        // Changes to a good one: place, place, value.
        Some((&kind, changes)) if kind < 200 => {
            let mut segment = good.to_vec();
            for change in changes.chunks_exact(3) {
                let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % segment.len();
                segment[at] ^= change[2];
            }
            segment.truncate(segment.len() - usize::from(kind) * 20);
            segment
        }
        Some((_, bytes)) => bytes.to_vec(),
        None => Vec::new(),
    };
    fs::write(path.join("writer-0000/000000.segment"), segment).expect("a disk with room");
    let tier = open(&path);
    let keys: Vec<u8> = (0..PAGES as u8).collect();
    let mut out = vec![0; PAGES * PAGE];
    let mut rows = TensorMut::from_slice(&mut out, &[PAGES, PAGE]).expect("a matrix");
    let found = tier.load(&keys, 1, &mut rows, &LoadOptions::default()).expect("misses are no errors");
    for ((number, hit), row) in (0..).zip(found).zip(out.chunks(PAGE)) {
        assert!(!hit || row == page(number), "a wrong page was delivered");
    }
});
