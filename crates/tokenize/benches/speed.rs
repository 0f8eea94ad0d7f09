//! Megabytes a second of splitting, counting and encoding, on files of your choice.
//!
//! ```text
//! cargo bench -p infer-accel-tokenize --bench speed -- RANKS PRESET WARM_TEXT TEXT
//! ```
//!
//! `RANKS` is a file of tiktoken ranks. "Cold" is the first pass over the warm text, "unseen" the first over the
//! text, "hot" the best of five more.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::hint::black_box;
use std::time::Instant;

use infer_accel_tokenize::bpe::{BpeParts, BytePairEncoder, Merges, Symbols};
use infer_accel_tokenize::pretokenize::Pretokenizer;

fn decode_base64(text: &str) -> Vec<u8> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bytes, mut bits, mut held) = (Vec::new(), 0_u32, 0);
    for digit in text.bytes().filter_map(|byte| DIGITS.iter().position(|digit| *digit == byte)) {
        bits = bits << 6 | digit as u32;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    bytes
}

fn read_ranks(path: &str) -> Vec<(Vec<u8>, u32)> {
    let lines = std::fs::read_to_string(path).unwrap();
    let entries = lines.lines().filter_map(|line| line.split_once(' '));
    entries.map(|(token, rank)| (decode_base64(token), rank.parse().unwrap())).collect()
}

fn report(name: &str, text: &str, times: usize, mut work: impl FnMut()) {
    let mut best = f64::MAX;
    for _ in 0..times {
        let start = Instant::now();
        work();
        best = best.min(start.elapsed().as_secs_f64());
    }
    println!("{name:14} {:7.0} MB/s", text.len() as f64 / 1e6 / best);
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let [ranks, preset, warm, text] = &arguments[..] else {
        println!(
            "usage: speed RANKS PRESET WARM_TEXT TEXT (see the head of this file); nothing was measured"
        );
        return;
    };
    let parts = BpeParts {
        tokens: read_ranks(ranks),
        merges: Merges::ByRank,
        begins_with: Symbols::Bytes,
        ignore_merges: true,
    };
    let start = Instant::now();
    let encoder = BytePairEncoder::new(Pretokenizer::preset(preset).unwrap(), parts).unwrap();
    println!("built in {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
    let (warm, text) = (std::fs::read_to_string(warm).unwrap(), std::fs::read_to_string(text).unwrap());
    let count = |text: &str| black_box(encoder.count(text, usize::MAX).unwrap());
    let mut ids = Vec::new();
    report("split", &text, 5, || encoder.pretokenizer().for_each(&text, |span| _ = black_box(span)).unwrap());
    report("count cold", &warm, 1, || _ = count(&warm));
    report("count unseen", &text, 1, || _ = count(&text));
    report("count hot", &text, 5, || _ = count(&text));
    report("encode hot", &text, 5, || {
        ids.clear();
        encoder.encode_into(&text, &mut ids).unwrap();
    });
}
