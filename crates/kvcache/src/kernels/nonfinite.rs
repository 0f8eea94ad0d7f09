#![allow(unsafe_code)] // reads addresses: memory that Python can change is never a slice
//! Finds numbers that are not finite, in runs of one format.
//!
//! A number is not finite when its exponent is all ones (`float8_e4m3fn`, which has no infinity: when all its bits
//! but the sign are). So one loop serves every format, with a mask of the format's width; the tiers are the same loop
//! compiled for wider vectors.

use infer_accel_tensor::DType;
use infer_accel_tensor::simd::Tier;

/// Between two looks at what was found: long enough that looking costs nothing, short enough to stop early.
const STEP_BYTES: usize = 4096;

/// An unsigned integer as wide as a number.
trait Bits: Copy {
    /// All ones if every bit of `mask` is set in `self`, zero if not.
    fn covers(self, mask: Self) -> Self;
    fn or(self, other: Self) -> Self;
    fn is_zero(self) -> bool;
    const ZERO: Self;
}

macro_rules! bits {
    ($($t:ty),*) => {$(
        impl Bits for $t {
            #[inline(always)]
            fn covers(self, mask: Self) -> Self {
                if self & mask == mask { Self::MAX } else { 0 }
            }

            #[inline(always)]
            fn or(self, other: Self) -> Self {
                self | other
            }

            #[inline(always)]
            fn is_zero(self) -> bool {
                self == 0
            }

            const ZERO: Self = 0;
        }
    )*};
}

bits!(u8, u16, u32, u64);

/// # Safety
/// `count` numbers can be read at `at`; nothing is said about alignment.
#[inline(always)]
unsafe fn any<T: Bits>(at: *const u8, count: usize, mask: T) -> bool {
    let step = STEP_BYTES / size_of::<T>();
    let mut done = 0;
    while done < count {
        let length = step.min(count - done);
        let from = at.wrapping_add(done * size_of::<T>()).cast::<T>();
        let mut found = T::ZERO;
        for index in 0..length {
            // SAFETY: `done + index` is below `count`, the caller's promise.
            let number = unsafe { from.wrapping_add(index).read_unaligned() };
            found = found.or(number.covers(mask));
        }
        if !found.is_zero() {
            return true;
        }
        done += length;
    }
    false
}

/// # Safety
/// As for [`any`].
#[inline(always)]
unsafe fn any_of_format(dtype: DType, at: *const u8, count: usize) -> bool {
    // SAFETY: the caller's promise; each type is as wide as the format.
    unsafe {
        match dtype {
            DType::F64 => any::<u64>(at, count, 0x7ff0_0000_0000_0000),
            DType::F32 => any::<u32>(at, count, 0x7f80_0000),
            DType::F16 => any::<u16>(at, count, 0x7c00),
            DType::BF16 => any::<u16>(at, count, 0x7f80),
            DType::F8E4M3 => any::<u8>(at, count, 0x7f),
            DType::F8E5M2 => any::<u8>(at, count, 0x7c),
            _ => false,
        }
    }
}

/// Whether a run has a number that is not finite.
///
/// # Safety
/// `count` numbers of that format can be read at `at`; nothing is said about alignment.
pub(crate) unsafe fn has_nonfinite(tier: Tier, dtype: DType, at: *const u8, count: usize) -> bool {
    #[cfg(target_arch = "x86_64")]
    if tier >= Tier::Avx512 {
        // SAFETY: the tier has the instructions; the rest is the caller's promise.
        return unsafe { any_avx512(dtype, at, count) };
    } else if tier >= Tier::Avx2 {
        // SAFETY: as above.
        return unsafe { any_avx2(dtype, at, count) };
    }
    let _ = tier;
    // SAFETY: the caller's promise.
    unsafe { any_of_format(dtype, at, count) }
}

/// # Safety
/// As for [`any`], on a processor with AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn any_avx2(dtype: DType, at: *const u8, count: usize) -> bool {
    // SAFETY: the caller's promise.
    unsafe { any_of_format(dtype, at, count) }
}

/// # Safety
/// As for [`any`], on a processor with AVX-512 F, BW, DQ and VL.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn any_avx512(dtype: DType, at: *const u8, count: usize) -> bool {
    // SAFETY: the caller's promise.
    unsafe { any_of_format(dtype, at, count) }
}
