#![allow(unsafe_code)] // Bytes are read and copied by address: memory that Python can change is never a slice.
//! XXH3, 128 bits, of long inputs: by blocks, and copied on the way.
//!
//! What is checked is mostly copied too, from memory that no cache holds. One pass that does both reads it once.
//! The function is that of the xxHash specification, version 0.8, with its default secret; inputs of at most
//! [`LONGEST_SHORT`] bytes have another form there, which `xxhash-rust` computes.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
mod rounds;

use infer_accel_tensor::simd::Tier;
use rounds::{LANES, SECRET, STRIPE_BYTES};

/// What is absorbed at once.
pub(crate) const BLOCK_BYTES: usize = 1024;
/// Inputs must be longer than this.
pub(crate) const LONGEST_SHORT: usize = 240;
/// Bytes of a digest.
pub(crate) const DIGEST_BYTES: usize = 16;

const PRIME32_1: u64 = 0x9E37_79B1;
const PRIME32_2: u64 = 0x85EB_CA77;
const PRIME32_3: u64 = 0xC2B2_AE3D;
const PRIME64_1: u64 = 0x9E37_79B1_85EB_CA87;
const PRIME64_2: u64 = 0xC2B2_AE3D_27D4_EB4F;
const PRIME64_3: u64 = 0x1656_67B1_9E37_79F9;
const PRIME64_4: u64 = 0x85EB_CA77_C2B2_AE63;
const PRIME64_5: u64 = 0x27D4_EB2F_1656_67C5;

/// The accumulators.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Lanes([u64; LANES]);

/// Where bytes go that are hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// Nowhere.
    Nothing,
    /// To this address.
    Cached(*mut u8),
    /// To this address, past the cache.
    Streamed(*mut u8),
}

/// The hash of an input that comes in pieces.
#[derive(Clone, Debug)]
pub(crate) struct Hasher {
    tier: Tier,
    lanes: Lanes,
    /// Bytes of all pieces together.
    length: usize,
    /// Bytes absorbed so far.
    done: usize,
    /// The last of them.
    last: [u8; STRIPE_BYTES],
}

impl Hasher {
    /// # Panics
    /// Where `length` is no longer than [`LONGEST_SHORT`].
    pub(crate) fn new(tier: Tier, length: usize) -> Self {
        assert!(length > LONGEST_SHORT, "an input that is too short");
        let lanes = [PRIME32_3, PRIME64_1, PRIME64_2, PRIME64_3, PRIME64_4, PRIME32_2, PRIME64_5, PRIME32_1];
        Self { tier, lanes: Lanes(lanes), length, done: 0, last: [0; STRIPE_BYTES] }
    }

    /// Absorbs the next piece, and copies it.
    ///
    /// # Safety
    /// `bytes` bytes can be read at `source` and written at the target, and the two do not meet.
    ///
    /// # Panics
    /// Where there are more bytes than were announced, or a piece that is not the last is no multiple of
    /// [`BLOCK_BYTES`].
    pub(crate) unsafe fn absorb(&mut self, source: *const u8, bytes: usize, target: Target) {
        assert!(bytes <= self.length - self.done, "more bytes than were announced");
        if bytes == 0 {
            return;
        }
        let is_last = self.done + bytes == self.length;
        // The last block is not scrambled, even where it is whole.
        let whole = if is_last { (bytes - 1) / BLOCK_BYTES * BLOCK_BYTES } else { bytes };
        assert!(whole.is_multiple_of(BLOCK_BYTES), "a piece that is not whole blocks");
        self.done += bytes;
        if whole > 0 {
            // SAFETY: the caller's promise; the last stripe lies within the piece, and in the field.
            unsafe {
                self.blocks(source, whole / BLOCK_BYTES, target);
                let end = source.add(whole - STRIPE_BYTES);
                std::ptr::copy_nonoverlapping(end, self.last.as_mut_ptr(), STRIPE_BYTES);
            }
        }
        if !is_last {
            return;
        }
        let rest = bytes - whole;
        let mut tail = [0; STRIPE_BYTES + BLOCK_BYTES];
        tail[..STRIPE_BYTES].copy_from_slice(&self.last);
        // SAFETY: the caller's promise; the rest is at most a block, for which there is room behind the stripe.
        unsafe {
            let behind = tail.as_mut_ptr().add(STRIPE_BYTES);
            std::ptr::copy_nonoverlapping(source.add(whole), behind, rest);
            if let Target::Cached(address) | Target::Streamed(address) = target {
                std::ptr::copy_nonoverlapping(behind, address.add(whole), rest);
            }
        }
        rounds::tail(&mut self.lanes.0, &tail[..STRIPE_BYTES + rest]);
    }

    /// The digest, least significant byte first.
    ///
    /// # Panics
    /// Where there were fewer bytes than were announced.
    pub(crate) fn digest(&self) -> [u8; DIGEST_BYTES] {
        assert!(self.done == self.length, "fewer bytes than were announced");
        let length = self.length as u64;
        let low = merged(&self.lanes.0, 11, length.wrapping_mul(PRIME64_1));
        let high = SECRET.len() - LANES * 8 - 11;
        let high = merged(&self.lanes.0, high, !length.wrapping_mul(PRIME64_2));
        ((u128::from(high) << 64) | u128::from(low)).to_le_bytes()
    }

    /// # Safety
    /// As [`Self::absorb`], in blocks.
    unsafe fn blocks(&mut self, source: *const u8, blocks: usize, target: Target) {
        let lanes = &mut self.lanes.0;
        #[cfg(target_arch = "x86_64")]
        if self.tier >= Tier::Avx512 {
            // SAFETY: the caller's promise, and a tier that was detected or asked for is there.
            return unsafe { avx512::blocks(lanes, source, blocks, target) };
        } else if self.tier >= Tier::Avx2 {
            // SAFETY: as above.
            return unsafe { avx2::blocks(lanes, source, blocks, target) };
        }
        // SAFETY: the caller's promise.
        unsafe { portable::blocks(lanes, source, blocks, target) };
    }
}

/// The digest of bytes that lie in memory of ours, longer than [`LONGEST_SHORT`].
pub(crate) fn digest(tier: Tier, bytes: &[u8]) -> [u8; DIGEST_BYTES] {
    let mut hasher = Hasher::new(tier, bytes.len());
    // SAFETY: the slice can be read, and is copied nowhere.
    unsafe { hasher.absorb(bytes.as_ptr(), bytes.len(), Target::Nothing) };
    hasher.digest()
}

/// All accumulators in one word.
fn merged(lanes: &[u64; LANES], secret: usize, start: u64) -> u64 {
    let mut sum = start;
    for pair in 0..LANES / 2 {
        let first = lanes[2 * pair] ^ rounds::secret_word(secret + 16 * pair);
        let second = lanes[2 * pair + 1] ^ rounds::secret_word(secret + 16 * pair + 8);
        let product = u128::from(first) * u128::from(second);
        sum = sum.wrapping_add(product as u64 ^ (product >> 64) as u64);
    }
    sum ^= sum >> 37;
    sum = sum.wrapping_mul(0x1656_6791_9E37_79F9);
    sum ^ (sum >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use infer_accel_tensor::simd;
    use proptest::prelude::*;

    fn some_bytes(count: usize) -> Vec<u8> {
        (0..count).map(|at| (at.wrapping_mul(2_654_435_761) >> 11) as u8).collect()
    }

    /// Hashes `bytes` in pieces of some blocks, copied as `kind` says.
    fn by_pieces(tier: Tier, bytes: &[u8], blocks: usize, out: &mut [u8], kind: u8) -> [u8; DIGEST_BYTES] {
        let mut hasher = Hasher::new(tier, bytes.len());
        let (mut done, step) = (0, blocks * BLOCK_BYTES);
        let target = |at: usize, out: &mut [u8]| match kind {
            0 => Target::Nothing,
            1 => Target::Cached(out[at..].as_mut_ptr()),
            _ => Target::Streamed(out[at..].as_mut_ptr()),
        };
        while done < bytes.len() {
            let (count, to) = (step.min(bytes.len() - done), target(done, out));
            // SAFETY: the piece lies in both slices.
            unsafe { hasher.absorb(bytes[done..].as_ptr(), count, to) };
            done += count;
        }
        hasher.digest()
    }

    #[test]
    fn every_length_around_stripes_and_blocks() {
        let bytes = some_bytes(5000);
        for &tier in simd::available() {
            for length in (241..1400).chain(2040..2056).chain(3070..3080).chain([4096, 4097, 5000]) {
                let expected = xxhash_rust::xxh3::xxh3_128(&bytes[..length]).to_le_bytes();
                assert_eq!(digest(tier, &bytes[..length]), expected, "{tier:?}, {length} bytes");
            }
        }
    }

    proptest! {
        #[test]
        fn pieces_are_hashed_as_the_whole_and_copied(
            length in 1025_usize..20_000, blocks in 1_usize..5, from in 0_usize..70, to in 0_usize..70, kind in 0_u8..3,
        ) {
            let bytes = some_bytes(length + 70);
            let bytes = &bytes[from..from + length];
            let expected = xxhash_rust::xxh3::xxh3_128(bytes).to_le_bytes();
            for &tier in simd::available() {
                let mut out = vec![0xA5; length + 140];
                let got = by_pieces(tier, bytes, blocks, &mut out[to..], kind);
                prop_assert_eq!(got, expected);
                if kind > 0 {
                    prop_assert!(&out[to..to + length] == bytes);
                    prop_assert!(out[..to].iter().chain(&out[to + length..]).all(|&byte| byte == 0xA5));
                }
            }
        }
    }
}
