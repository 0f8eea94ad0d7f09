//! What an encoder keeps beside its vocabulary, however much text it has met. A process of its own: it weighs all of it.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // a test may panic

use infer_accel_tokenize::bpe::{BpeParts, BytePairEncoder, Merges, Symbols};
use infer_accel_tokenize::pretokenize::Pretokenizer;

const LIMIT: usize = 32 << 20;
const THREADS: u64 = 16;
/// Texts of 64 KiB that each thread counts and encodes. `INFER_ACCEL_SOAK=1` makes it a gigabyte in all.
const TEXTS: u64 = 24;

fn resident_bytes() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Words that nobody has met, from short ones to some that are too long for the cache.
fn text(seed: u64) -> String {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut text = String::with_capacity(1 << 16);
    while text.len() < (1 << 16) - 200 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let length = if state.is_multiple_of(16) { 12 + state % 120 } else { 2 + state % 9 };
        text.push(' ');
        text.extend((0..length).map(|place| char::from(b'a' + (state >> (place % 50) & 15) as u8)));
    }
    text
}

#[test]
fn what_is_kept_is_bounded_for_the_process() {
    let tokens = (0..=255_u8).map(|byte| (vec![byte], u32::from(byte))).collect();
    let parts =
        BpeParts { tokens, merges: Merges::ByRank, begins_with: Symbols::Bytes, ignore_merges: false };
    let texts = if std::env::var_os("INFER_ACCEL_SOAK").is_some() { 1024 } else { TEXTS };
    let encoders =
        [0, 1].map(|_| BytePairEncoder::new(Pretokenizer::preset("cl100k").unwrap(), parts.clone()).unwrap());
    let before = resident_bytes();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let encoders = &encoders;
            scope.spawn(move || {
                for number in 0..texts {
                    let text = text(thread << 32 | number);
                    let encoder = &encoders[number as usize % 2];
                    let mut ids = Vec::new();
                    encoder.encode_into(&text, &mut ids).unwrap();
                    assert_eq!(encoder.count(&text, usize::MAX).unwrap(), ids.len());
                }
            });
        }
    });
    let kept = resident_bytes().saturating_sub(before);
    assert!(kept <= LIMIT, "{} KiB are kept", kept / 1024);
}
