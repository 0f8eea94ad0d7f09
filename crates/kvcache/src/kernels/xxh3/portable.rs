#![allow(unsafe_code)] // Loads and stores through addresses.
//! The specification: two lanes at a time, which is the fewest that exchange their inputs.

use super::Target;
use super::rounds::{self, LANES, Vector};

#[derive(Clone, Copy)]
struct Pair([u64; 2]);

impl Vector for Pair {
    #[inline(always)]
    unsafe fn load(address: *const u8) -> Self {
        // SAFETY: the caller's promise.
        let words = unsafe { address.cast::<[u64; 2]>().read_unaligned() };
        Self(words.map(u64::from_le))
    }

    #[inline(always)]
    unsafe fn store(self, address: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { address.cast::<[u64; 2]>().write_unaligned(self.0.map(u64::to_le)) };
    }

    #[inline(always)]
    unsafe fn stream(self, address: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { self.store(address) };
    }

    #[inline(always)]
    unsafe fn accumulate(self, data: Self, secret: Self) -> Self {
        let [first, second] = data.0;
        let product = |word: usize| rounds::product(data.0[word] ^ secret.0[word]);
        Self([
            self.0[0].wrapping_add(second).wrapping_add(product(0)),
            self.0[1].wrapping_add(first).wrapping_add(product(1)),
        ])
    }

    #[inline(always)]
    unsafe fn scramble(self, secret: Self) -> Self {
        Self([rounds::scrambled(self.0[0], secret.0[0]), rounds::scrambled(self.0[1], secret.0[1])])
    }
}

/// # Safety
/// As [`rounds::blocks`].
pub(super) unsafe fn blocks(lanes: &mut [u64; LANES], source: *const u8, blocks: usize, target: Target) {
    // Lanes are kept in the processor's order of bytes, and a pair's in the specification's.
    let mut words = lanes.map(u64::to_le);
    // SAFETY: the caller's promise.
    unsafe { rounds::blocks::<Pair, 4>(&mut words, source, blocks, target) };
    *lanes = words.map(u64::from_le);
}
