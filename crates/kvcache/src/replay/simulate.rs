//! A trace through a pool.

use super::trace::{IDS_TOKENS, Trace, TraceRequest};
use crate::error::KvCacheError;
use crate::events::Event;
use crate::pool::{BlockHash, BlockPool, PoolOptions};
use infer_accel_tensor::threads::Interrupted;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// What is replayed.
#[derive(Clone, Copy, Debug)]
pub struct ReplayOptions {
    /// Blocks of the cache, the null block counted.
    pub num_blocks: usize,
    /// Tokens in a block: a divisor or a multiple of [`IDS_TOKENS`].
    pub block_size: usize,
    /// Blocks of a second tier, which takes what the cache evicts; 0 for none.
    pub host_blocks: usize,
    /// Whether answers take blocks, too.
    pub outputs: bool,
    /// Seconds that a request runs for each token of its answer; `None` runs one request after the other.
    pub seconds_per_token: Option<f64>,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReplayOutcome {
    /// Of each request, the blocks of its prompt, a last one that is not full counted.
    pub blocks: Vec<u32>,
    /// Of each request, the blocks that the cache had.
    pub hits: Vec<u32>,
    /// Of each request, the blocks that only the second tier had.
    pub host_hits: Vec<u32>,
    /// Of each request, the milliseconds until it had its blocks; -1 for those that fit at no time.
    pub waits: Vec<i64>,
    /// Blocks in use after each request began.
    pub used: Vec<u32>,
    /// Cached blocks that the cache gave up.
    pub evictions: u64,
    /// Of those, blocks that the second tier took.
    pub host_stores: u64,
}

/// Requests between two looks at whether to stop.
const STOP_INTERVAL: usize = 256;
/// Room for the events of one request; they are read after each.
const EVENT_BYTES: usize = 1 << 40;

/// Replays a trace. `stop` is asked now and then; `progress` is told how many requests are done.
pub fn replay(
    trace: &Trace,
    options: &ReplayOptions,
    stop: &dyn Fn() -> bool,
    progress: &mut dyn FnMut(usize),
) -> Result<ReplayOutcome, KvCacheError> {
    let mut replay = Replay::new(options)?;
    for (number, request) in trace.requests().iter().enumerate() {
        if number % STOP_INTERVAL == 0 {
            if stop() {
                return Err(Interrupted.into());
            }
            progress(number);
        }
        replay.run(number as u64, request, trace.ids_of(request));
    }
    progress(trace.requests().len());
    replay.outcome.evictions = replay.pool.stats().evictions;
    Ok(replay.outcome)
}

struct Replay<'a> {
    options: &'a ReplayOptions,
    pool: BlockPool,
    host: Option<BlockPool>,
    /// Requests that run, by the time of their end.
    running: BinaryHeap<Reverse<(u64, u64)>>,
    /// Blocks of those requests, by their number.
    held: std::collections::HashMap<u64, Vec<u32>>,
    /// When the last request began: nobody overtakes.
    now: u64,
    outcome: ReplayOutcome,
    keys: Vec<BlockHash>,
    found: Vec<Option<u32>>,
}

impl<'a> Replay<'a> {
    fn new(options: &'a ReplayOptions) -> Result<Self, KvCacheError> {
        let size = options.block_size;
        if size == 0 || (!IDS_TOKENS.is_multiple_of(size) && !size.is_multiple_of(IDS_TOKENS)) {
            return Err(KvCacheError::ReplayBlockSize { got: size, tokens: IDS_TOKENS });
        }
        if let Some(seconds) = options.seconds_per_token
            && !(seconds > 0.0 && seconds < 1e6)
        {
            return Err(KvCacheError::Seconds { got: seconds.to_string() });
        }
        let event_bytes = if options.host_blocks > 0 { EVENT_BYTES } else { 0 };
        let pool = BlockPool::with_options(
            options.num_blocks,
            &PoolOptions { event_bytes, ..PoolOptions::default() },
        )?;
        let host = if options.host_blocks > 0 {
            Some(BlockPool::new(options.host_blocks.saturating_add(1))?)
        } else {
            None
        };
        Ok(Self {
            options,
            pool,
            host,
            running: BinaryHeap::new(),
            held: std::collections::HashMap::new(),
            now: 0,
            outcome: ReplayOutcome::default(),
            keys: Vec::new(),
            found: Vec::new(),
        })
    }

    fn run(&mut self, number: u64, request: &TraceRequest, ids: &[u64]) {
        let size = self.options.block_size;
        let length = request.input_tokens + if self.options.outputs { request.output_tokens } else { 0 };
        let (total, full) = (length.div_ceil(size), length / size);
        self.name_blocks(number, request, ids, full);
        let mut begin = request.arrival.max(self.now);
        self.end_until(begin);
        let usable = request.input_tokens.saturating_sub(1) / size;
        let (mut hits, mut host_hits) = self.look_up(usable);
        let mut waits = -1;
        loop {
            if self.take(total, full) {
                waits = (begin - request.arrival) as i64;
                break;
            }
            // What ends next gives blocks back; when nothing runs any more it will never fit.
            let Some(Reverse((end, _))) = self.running.peek().copied() else { break };
            begin = begin.max(end);
            self.end_until(begin);
            (hits, host_hits) = self.look_up(usable);
        }
        if waits >= 0 {
            self.now = begin;
            let lasts = self.options.seconds_per_token.unwrap_or(0.0) * request.output_tokens as f64;
            self.outcome.used.push(self.pool.stats().used_blocks as u32);
            if self.options.seconds_per_token.is_some() {
                self.running.push(Reverse((begin + (lasts * 1000.0) as u64, number)));
            } else {
                self.end(number);
            }
        } else {
            (hits, host_hits) = (0, 0);
            self.held.remove(&number);
            self.outcome.used.push(self.pool.stats().used_blocks as u32);
        }
        self.outcome.blocks.push(request.input_tokens.div_ceil(size) as u32);
        self.outcome.hits.push(hits);
        self.outcome.host_hits.push(host_hits);
        self.outcome.waits.push(waits);
        self.move_to_host();
    }

    /// The key of each full block: an id and a place within it, or a name that no other request has.
    fn name_blocks(&mut self, number: u64, request: &TraceRequest, ids: &[u64], full: usize) {
        let size = self.options.block_size;
        let own = |block: usize| key(u64::MAX, number, block as u32);
        let shared = request.input_tokens / size;
        let names = (0..full).map(|block| {
            let last_token = (block + 1) * size - 1;
            match ids.get(last_token / IDS_TOKENS) {
                Some(&id) if block < shared => key(0, id, (last_token % IDS_TOKENS) as u32),
                _ => own(block),
            }
        });
        self.keys.clear();
        self.keys.extend(names);
        self.held.insert(number, Vec::new());
    }

    /// The blocks that are there, of the first `usable`: in the cache, or in the second tier. Leaves those of the
    /// cache in `found`.
    fn look_up(&mut self, usable: usize) -> (u32, u32) {
        let keys = &self.keys[..usable.min(self.keys.len())];
        self.found.clear();
        let (mut hits, mut host_hits) = (0, 0);
        for position in 0..keys.len() {
            let id = self.pool.find_ahead(keys, position, 0);
            if id.is_some() {
                hits += 1;
            } else if self.host.as_ref().is_some_and(|host| host.find(&keys[position], 0).is_some()) {
                host_hits += 1;
            } else {
                break;
            }
            self.found.push(id);
        }
        (hits, host_hits)
    }

    /// Takes what the current request needs, if it can be had.
    fn take(&mut self, total: usize, full: usize) -> bool {
        let number = self.outcome.blocks.len() as u64;
        let there = self.found.iter().flatten();
        let (count, free) =
            (there.clone().count(), there.filter(|&&id| self.pool.references(id) == 0).count());
        let needed = total - count;
        if needed + free > self.pool.num_free() {
            return false;
        }
        let Some(held) = self.held.get_mut(&number) else { return false };
        for &id in self.found.iter().flatten() {
            self.pool.reference(id);
        }
        let mut fresh = Vec::with_capacity(needed);
        self.pool.take(needed, |_, id, _| fresh.push(id));
        let mut fresh = fresh.into_iter();
        held.extend(
            (0..total).filter_map(|block| self.found.get(block).copied().flatten().or_else(|| fresh.next())),
        );
        for (&id, key) in held.iter().zip(&self.keys[..full]) {
            self.pool.remember(id, key, 0, None, u32::MAX);
        }
        // What was loaded or used again is the newest in the second tier, too.
        if let Some(host) = &mut self.host {
            for key in self.keys.iter().take(self.found.len()) {
                if let Some(id) = host.find(key, 0) {
                    host.reference(id);
                    host.release(std::iter::once(id));
                }
            }
        }
        true
    }

    fn end_until(&mut self, time: u64) {
        while let Some(&Reverse((end, number))) = self.running.peek()
            && end <= time
        {
            self.running.pop();
            self.end(number);
        }
    }

    fn end(&mut self, number: u64) {
        if let Some(held) = self.held.remove(&number) {
            self.pool.release(held.into_iter().rev());
        }
    }

    /// Stores what the cache has evicted in the second tier.
    fn move_to_host(&mut self) {
        let (Some(host), Some(log)) = (&mut self.host, self.pool.events()) else { return };
        let stores = &mut self.outcome.host_stores;
        log.drain(|event| {
            let Event::Removed { hashes, .. } = event else { return };
            for hash in hashes {
                if host.find(hash, 0).is_none() {
                    let mut slot = 0;
                    host.take(1, |_, id, _| slot = id);
                    host.remember(slot, hash, 0, None, u32::MAX);
                    host.release(std::iter::once(slot));
                    *stores += 1;
                }
            }
        });
    }
}

/// A block's name: no hash, and as good as one where nobody else names blocks.
fn key(kind: u64, name: u64, place: u32) -> BlockHash {
    let mut key = BlockHash::default();
    key[..8].copy_from_slice(&name.to_le_bytes());
    key[8..12].copy_from_slice(&place.to_le_bytes());
    key[16..24].copy_from_slice(&kind.to_le_bytes());
    key
}
