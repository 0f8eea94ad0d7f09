//! Traces that nobody recorded: conversations that go on, behind system prompts that many share.

use super::trace::{IDS_TOKENS, Trace};
use crate::error::KvCacheError;

/// What a made trace looks like.
#[derive(Clone, Copy, Debug)]
pub struct SyntheticOptions {
    /// Requests in all.
    pub requests: usize,
    /// Different system prompts.
    pub system_prompts: usize,
    /// Share of the requests that go on with an earlier conversation, from 0 to 1.
    pub continued: f64,
    /// Requests a second.
    pub rate: f64,
    /// The same seed makes the same trace.
    pub seed: u64,
}

/// Most requests of a made trace.
const MAX_REQUESTS: usize = 1 << 24;
/// Conversations that may still go on.
const OPEN_CONVERSATIONS: usize = 64;

impl Trace {
    /// Makes a trace.
    pub fn synthetic(options: &SyntheticOptions) -> Result<Self, KvCacheError> {
        let SyntheticOptions { requests, system_prompts, continued, rate, seed } = *options;
        let wrong = |what: String| Err(KvCacheError::Synthetic { what });
        if requests == 0 || requests > MAX_REQUESTS {
            return wrong(format!("{requests} requests came; make 1 to {MAX_REQUESTS}"));
        }
        if system_prompts == 0 || system_prompts > MAX_REQUESTS {
            return wrong(format!("{system_prompts} system prompts came; make 1 to {MAX_REQUESTS}"));
        }
        if !((0.0..=1.0).contains(&continued) && rate > 0.0 && rate.is_finite()) {
            return wrong(format!(
                "continued={continued} and rate={rate} came; pass a share, and a rate above 0"
            ));
        }
        let mut chance = Chance(seed);
        let mut trace = Self::default();
        let mut next_id = 0_u64;
        let mut fresh = |count: usize| {
            let first = next_id;
            next_id += count as u64;
            first..next_id
        };
        let systems: Vec<Vec<u64>> = (0..system_prompts).map(|_| fresh(2).collect()).collect();
        let mut open: Vec<(Vec<u64>, usize)> = Vec::new();
        let mut now = 0.0;
        for _ in 0..requests {
            now += -chance.share().max(f64::MIN_POSITIVE).ln() / rate;
            let goes_on = !open.is_empty() && chance.share() < continued;
            // Ids name whole prefixes: what is added to a chunk that is not full gives it another one.
            let (mut ids, tokens) = if goes_on {
                let turn = chance.below(open.len());
                open.swap_remove(turn)
            } else {
                // Few system prompts make most of the requests.
                let rank = (chance.share() * chance.share() * system_prompts as f64) as usize;
                let ids = systems[rank.min(system_prompts - 1)].clone();
                let tokens = ids.len() * IDS_TOKENS;
                (ids, tokens)
            };
            let input = tokens + 50 + chance.below(if goes_on { 600 } else { 3000 });
            let output = 20 + chance.below(480);
            ids.truncate(tokens / IDS_TOKENS);
            ids.extend(fresh(input.div_ceil(IDS_TOKENS) - ids.len()));
            trace.push((now * 1000.0) as u64, input, output, &ids);
            ids.truncate(input / IDS_TOKENS);
            ids.extend(fresh((input + output).div_ceil(IDS_TOKENS) - ids.len()));
            if open.len() == OPEN_CONVERSATIONS {
                let oldest = chance.below(open.len());
                open.swap_remove(oldest);
            }
            open.push((ids, input + output));
        }
        Ok(trace)
    }
}

/// Random numbers that are the same everywhere: `SplitMix64` (Steele, Lea, Flood, 2014).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// From 0 to less than 1.
    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn below(&mut self, count: usize) -> usize {
        (self.share() * count as f64) as usize
    }
}
