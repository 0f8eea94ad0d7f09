//! Time and pins. A pool has no clock of its own: it is told the time, and so does the same whenever it is run.

use super::index::filled;
use super::{BlockHash, BlockPool, Eviction, MAX_PRIORITY, Retention};
use crate::error::KvCacheError;
use std::collections::TryReserveError;

/// Steps of the clock in a second.
const TICKS_A_SECOND: f64 = 10.0;
/// A deadline that never comes.
pub(super) const NEVER: u32 = u32::MAX;
/// In [`Pins::slots`]: the block is not pinned.
const UNPINNED: u32 = u32::MAX;

/// The time as the pool was told it, and until when each block may be found.
#[derive(Debug)]
pub(super) struct Clock {
    now: u32,
    /// Seconds that were tick 0.
    start: Option<f64>,
    deadlines: Vec<u32>,
}

impl Clock {
    pub(super) fn new(num_blocks: usize) -> Result<Self, TryReserveError> {
        Ok(Self { now: 0, start: None, deadlines: filled(NEVER, num_blocks)? })
    }

    fn advance(&mut self, seconds: f64) -> Result<(), KvCacheError> {
        let refused = KvCacheError::Time { got: seconds.to_string() };
        let start = self.start.unwrap_or(seconds);
        let ticks = (seconds - start) * TICKS_A_SECOND;
        if !ticks.is_finite() || ticks < f64::from(self.now) || ticks >= f64::from(NEVER) {
            return Err(refused);
        }
        self.start = Some(start);
        self.now = ticks as u32;
        Ok(())
    }

    /// The tick at which `seconds` from now are over.
    fn deadline(&self, seconds: Option<f64>) -> Result<u32, KvCacheError> {
        let Some(seconds) = seconds else { return Ok(NEVER) };
        if !seconds.is_finite() || seconds <= 0.0 {
            return Err(KvCacheError::Seconds { got: seconds.to_string() });
        }
        let ticks = f64::from(self.now) + (seconds * TICKS_A_SECOND).ceil();
        Ok(if ticks < f64::from(NEVER) { ticks as u32 } else { NEVER })
    }

    #[inline(always)]
    pub(super) fn is_over(&self, id: u32) -> bool {
        self.now >= self.deadlines[id as usize]
    }

    /// Whether the block's time will be over some day.
    #[inline(always)]
    pub(super) fn is_limited(&self, id: u32) -> bool {
        self.deadlines[id as usize] != NEVER
    }

    #[inline(always)]
    pub(super) fn set_deadline(&mut self, id: u32, deadline: u32) {
        self.deadlines[id as usize] = deadline;
    }
}

/// A block that the pool itself holds a reference to.
#[derive(Clone, Copy, Debug)]
struct Pin {
    id: u32,
    until: u32,
}

/// The pinned blocks, in no order, and where each stands.
#[derive(Debug)]
pub(super) struct Pins {
    all: Vec<Pin>,
    slots: Vec<u32>,
    budget: usize,
    /// No pin ends before.
    first_end: u32,
}

impl Pins {
    pub(super) fn new(num_blocks: usize, budget: usize) -> Result<Self, TryReserveError> {
        let budget = budget.min(num_blocks);
        let mut all = Vec::new();
        all.try_reserve_exact(budget)?;
        Ok(Self { all, slots: filled(UNPINNED, num_blocks)?, budget, first_end: NEVER })
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn is_pinned(&self, id: u32) -> bool {
        self.slots[id as usize] != UNPINNED
    }

    fn add(&mut self, id: u32, until: u32) {
        self.slots[id as usize] = self.all.len() as u32;
        self.all.push(Pin { id, until });
        self.first_end = self.first_end.min(until);
    }

    /// Whether the block was pinned.
    fn remove(&mut self, id: u32) -> bool {
        let slot = std::mem::replace(&mut self.slots[id as usize], UNPINNED);
        if slot == UNPINNED {
            return false;
        }
        self.all.swap_remove(slot as usize);
        if let Some(moved) = self.all.get(slot as usize) {
            self.slots[moved.id as usize] = slot;
        }
        true
    }

    /// `is_held` says whether a block is cached and has a reference.
    pub(super) fn check(&self, is_held: impl Fn(u32) -> bool) -> Result<(), String> {
        let marked = self.slots.iter().filter(|&&slot| slot != UNPINNED).count();
        if marked != self.all.len() || self.all.len() > self.budget {
            return Err(format!("{} pins, {marked} marked, budget {}", self.all.len(), self.budget));
        }
        for (slot, pin) in self.all.iter().enumerate() {
            if self.slots[pin.id as usize] != slot as u32 || !is_held(pin.id) || pin.until < self.first_end {
                return Err(format!("block {} is badly pinned", pin.id));
            }
        }
        Ok(())
    }
}

impl BlockPool {
    /// Tells the pool the time in seconds, from any beginning; pins whose time is over are taken off. Time starts
    /// with the first call and never goes back; without any call nothing ever runs out.
    pub fn advance(&mut self, seconds: f64) -> Result<(), KvCacheError> {
        self.clock.advance(seconds)?;
        if self.clock.now >= self.pins.first_end {
            self.unpin_where(|pin, now| now >= pin.until);
        }
        Ok(())
    }

    /// Keeps the cached blocks of the longest run of leading `hashes` until they are unpinned, or for `seconds`.
    /// Returns how many blocks that are; a block that is pinned already keeps the later of both ends.
    pub fn pin(&mut self, hashes: &[BlockHash], seconds: Option<f64>) -> Result<usize, KvCacheError> {
        let until = self.clock.deadline(seconds)?;
        let count = self.cached_prefix(hashes);
        let (mut added, mut can_be_shared) = (0, true);
        for hash in &hashes[..count] {
            let Some(id) = self.find(hash, 0) else { break };
            if std::mem::replace(&mut self.mentions[id as usize], 1) == 0 && !self.pins.is_pinned(id) {
                added += 1;
                can_be_shared &= self.can_be_shared(id);
            }
        }
        for hash in &hashes[..count] {
            let Some(id) = self.find(hash, 0) else { break };
            self.mentions[id as usize] = 0;
        }
        let left = self.pins.budget - self.pins.len();
        if added > left || !can_be_shared {
            return Err(KvCacheError::PinBudget { needed: added, left });
        }
        for hash in &hashes[..count] {
            let Some(id) = self.find(hash, 0) else { break };
            if let Some(pin) = self.pins.all.get_mut(self.pins.slots[id as usize] as usize) {
                pin.until = pin.until.max(until);
            } else {
                self.reference(id);
                self.pins.add(id, until);
                self.clock.set_deadline(id, NEVER);
            }
        }
        Ok(count)
    }

    /// Takes the pins of the blocks of these hashes off; returns how many there were.
    pub fn unpin(&mut self, hashes: &[BlockHash]) -> usize {
        let before = self.pins.len();
        for hash in hashes.iter().rev() {
            let pinned = self
                .index
                .find(hash, 0)
                .and_then(|oldest| self.index.alike(oldest).find(|&id| self.pins.is_pinned(id)));
            if let Some(id) = pinned {
                self.unpin_block(id);
            }
        }
        before - self.pins.len()
    }

    pub(super) fn unpin_all(&mut self) {
        self.unpin_where(|_, _| true);
    }

    fn unpin_where(&mut self, is_over: impl Fn(Pin, u32) -> bool) {
        let mut slot = self.pins.len();
        while slot > 0 {
            slot -= 1;
            let pin = self.pins.all[slot];
            if is_over(pin, self.clock.now) {
                self.unpin_block(pin.id);
            }
        }
        self.pins.first_end = self.pins.all.iter().map(|pin| pin.until).min().unwrap_or(NEVER);
    }

    /// Takes a block's pin off, if it has one.
    pub(super) fn unpin_block(&mut self, id: u32) {
        if self.pins.remove(id) {
            self.release(std::iter::once(id));
        }
    }

    /// The tick until which blocks are remembered; an error when this pool cannot keep them so.
    pub(crate) fn checked_retention(&self, retention: &Retention) -> Result<u32, KvCacheError> {
        if let Some(got) = retention.priority {
            if self.eviction != Eviction::Priority {
                return Err(KvCacheError::PriorityOfLru { got });
            }
            if got > MAX_PRIORITY {
                return Err(KvCacheError::Priority { got, max: MAX_PRIORITY });
            }
        }
        self.clock.deadline(retention.seconds)
    }
}
