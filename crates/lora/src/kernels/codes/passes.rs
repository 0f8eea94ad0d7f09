//! Passes over a stretch of codes that share a scale.

use super::{Coding, Extent};
use crate::kernels::passes::PARTS;
use infer_accel_tensor::simd::{Tier, detected};

/// What encoding lost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Loss {
    /// Sum of the squares of the differences.
    pub(crate) squares: f64,
    /// Largest magnitude of a difference.
    pub(crate) largest: f32,
}

/// Codes, a scale, numbers, and how many.
type Decode = unsafe fn(*const u8, f32, *mut f32, usize);

/// Numbers, a scale, codes, and how many; returns how many were beyond the largest code.
type Encode = unsafe fn(*const f32, f32, *mut u8, usize) -> u32;

/// The passes of a tier. An array is indexed by [`Coding`].
pub(crate) struct CodePasses {
    /// `number = value of the code · scale`.
    decode: [Decode; 4],
    /// The code nearest to `number / scale`, ties to even; see [`Code`].
    encode: [Encode; 4],
    /// The largest magnitudes.
    extent: unsafe fn(*const f32, usize) -> Extent,
    /// Compares what is stored with what should be.
    loss: unsafe fn(*const f32, *const f32, usize) -> Loss,
}

macro_rules! code_passes {
    ($(#[$enable:meta])*) => {{
        $(#[$enable])*
        unsafe fn decode<C: Code>(codes: *const u8, scale: f32, values: *mut f32, count: usize) {
            // SAFETY: this function enables the tier; the caller vouches for the memory.
            unsafe { self::decode::<C>(codes, scale, values, count) }
        }
        $(#[$enable])*
        unsafe fn encode<C: Code>(values: *const f32, scale: f32, codes: *mut u8, count: usize) -> u32 {
            // SAFETY: as above.
            unsafe { self::encode::<C>(values, scale, codes, count) }
        }
        $(#[$enable])*
        unsafe fn extent(values: *const f32, count: usize) -> Extent {
            // SAFETY: as above.
            unsafe { self::extent(values, count) }
        }
        $(#[$enable])*
        unsafe fn loss(stored: *const f32, values: *const f32, count: usize) -> Loss {
            // SAFETY: as above.
            unsafe { self::loss(stored, values, count) }
        }
        CodePasses {
            decode: [decode::<E4M3>, decode::<E5M2>, decode::<Int8>, decode::<E2M1>],
            encode: [encode::<E4M3>, encode::<E5M2>, encode::<Int8>, encode::<E2M1>],
            extent,
            loss,
        }
    }};
}

static PORTABLE: CodePasses = code_passes!();
#[cfg(target_arch = "x86_64")]
static AVX2: CodePasses = code_passes!(#[target_feature(enable = "avx2,fma,f16c")]);
#[cfg(target_arch = "x86_64")]
static AVX512: CodePasses =
    code_passes!(#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")]);

impl CodePasses {
    /// The passes of the best tier that is at most `tier` and that the processor has.
    pub(crate) fn of(tier: Tier) -> &'static Self {
        match tier.min(detected()) {
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512 | Tier::Avx512Bf16 => &AVX512,
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2 => &AVX2,
            _ => &PORTABLE,
        }
    }

    /// See [`CodePasses`].
    ///
    /// # Safety
    ///
    /// The processor has the tier; `codes` is readable and `values` writable for `count` of them.
    #[inline(always)]
    pub(crate) unsafe fn decode(
        &self,
        coding: Coding,
        codes: *const u8,
        scale: f32,
        values: *mut f32,
        count: usize,
    ) {
        // SAFETY: the caller vouches for tier and memory.
        unsafe { (self.decode[coding as usize])(codes, scale, values, count) }
    }

    /// See [`CodePasses`].
    ///
    /// # Safety
    ///
    /// The processor has the tier; `values` is readable and `codes` writable for `count` of them.
    #[inline(always)]
    pub(crate) unsafe fn encode(
        &self,
        coding: Coding,
        values: *const f32,
        scale: f32,
        codes: *mut u8,
        count: usize,
    ) -> u32 {
        // SAFETY: the caller vouches for tier and memory.
        unsafe { (self.encode[coding as usize])(values, scale, codes, count) }
    }

    /// See [`CodePasses`].
    ///
    /// # Safety
    ///
    /// The processor has the tier; `values` is readable for `count` numbers.
    #[inline(always)]
    pub(crate) unsafe fn extent(&self, values: *const f32, count: usize) -> Extent {
        // SAFETY: the caller vouches for tier and memory.
        unsafe { (self.extent)(values, count) }
    }

    /// See [`CodePasses`].
    ///
    /// # Safety
    ///
    /// The processor has the tier; both are readable for `count` numbers.
    #[inline(always)]
    pub(crate) unsafe fn loss(&self, stored: *const f32, values: *const f32, count: usize) -> Loss {
        // SAFETY: the caller vouches for tier and memory.
        unsafe { (self.loss)(stored, values, count) }
    }
}

/// A [`Coding`] as a type, so that a loop is compiled for each.
pub(super) trait Code {
    /// What a code stands for.
    fn decode(code: u8) -> f32;

    /// The code nearest to a number; the last one for what is beyond it.
    fn encode(number: f32) -> u8;

    /// Whether a number would round to one behind the last code, if there were more.
    fn is_beyond(number: f32) -> bool;
}

/// A float of a few bits: a sign, an exponent, a mantissa. Codes behind `LARGEST` are no numbers.
pub(super) struct Float<const EXPONENT: u32, const MANTISSA: u32, const LARGEST: u32>;

pub(super) type E4M3 = Float<4, 3, 0x7e>;
pub(super) type E5M2 = Float<5, 2, 0x7b>;
pub(super) type E2M1 = Float<2, 1, 0x7>;

impl<const EXPONENT: u32, const MANTISSA: u32, const LARGEST: u32> Float<EXPONENT, MANTISSA, LARGEST> {
    const SIGN: u32 = 1 << (EXPONENT + MANTISSA);
    /// The exponent of binary32 for the first normal number, less that of the format.
    const REBIAS: u32 = 127 - ((1 << (EXPONENT - 1)) - 1);
    /// Bits of binary32 that the format lacks.
    const DROPPED: u32 = 23 - MANTISSA;
    const SMALLEST_NORMAL: f32 = f32::from_bits((Self::REBIAS + 1) << 23);
    /// The step of the numbers below it.
    const STEP: f32 = f32::from_bits((Self::REBIAS + 1 - MANTISSA) << 23);
    /// A number so large that its last bit is that step: adding it rounds to multiples of the step.
    const ROUNDER: f32 = f32::from_bits((Self::REBIAS + 1 + Self::DROPPED) << 23);
    const LARGEST_NUMBER: f32 = f32::from_bits((LARGEST << Self::DROPPED) + (Self::REBIAS << 23));
    /// Between the largest number and the one that would follow it; a tie goes to the even code of the two.
    const HALFWAY: f32 =
        f32::from_bits((LARGEST << Self::DROPPED) + (Self::REBIAS << 23) + (1 << (Self::DROPPED - 1)));
}

impl<const EXPONENT: u32, const MANTISSA: u32, const LARGEST: u32> Code
    for Float<EXPONENT, MANTISSA, LARGEST>
{
    #[inline(always)]
    fn decode(code: u8) -> f32 {
        let size = u32::from(code) & (Self::SIGN - 1);
        let normal = (size << Self::DROPPED) + (Self::REBIAS << 23);
        let subnormal = (size as i32 as f32 * Self::STEP).to_bits();
        let number = if size < 1 << MANTISSA { subnormal } else { normal };
        let number = if size > LARGEST { f32::NAN.to_bits() } else { number };
        f32::from_bits(number | (u32::from(code) & Self::SIGN) << (31 - EXPONENT - MANTISSA))
    }

    #[inline(always)]
    fn encode(number: f32) -> u8 {
        let exact = number.abs();
        // What is not a number becomes the largest one; callers have refused it.
        let size = if exact < Self::LARGEST_NUMBER { exact } else { Self::LARGEST_NUMBER };
        let bits = size.to_bits();
        let nearest =
            (bits + ((1 << (Self::DROPPED - 1)) - 1) + (bits >> Self::DROPPED & 1)) >> Self::DROPPED;
        let normal = nearest.wrapping_sub(Self::REBIAS << MANTISSA);
        let subnormal = (size + Self::ROUNDER).to_bits().wrapping_sub(Self::ROUNDER.to_bits());
        let code = if size < Self::SMALLEST_NORMAL { subnormal } else { normal };
        let sign = number.to_bits() >> (31 - EXPONENT - MANTISSA) & Self::SIGN;
        (code | sign) as u8
    }

    #[inline(always)]
    fn is_beyond(number: f32) -> bool {
        let size = number.abs();
        if LARGEST & 1 == 1 { size >= Self::HALFWAY } else { size > Self::HALFWAY }
    }
}

/// A signed integer.
pub(super) struct Int8;

impl Code for Int8 {
    #[inline(always)]
    fn decode(code: u8) -> f32 {
        f32::from(code.cast_signed())
    }

    #[inline(always)]
    fn encode(number: f32) -> u8 {
        /// A number whose last bit is 1: adding it rounds to integers.
        const ROUNDER: f32 = (3 << 22) as f32;
        let below = if number < 127.0 { number } else { 127.0 };
        let within = if below > -128.0 { below } else { -128.0 };
        (within + ROUNDER).to_bits() as u8
    }

    #[inline(always)]
    fn is_beyond(number: f32) -> bool {
        // −128.5 is a tie, and −128 even; so is 127.5, and 128.
        !(-128.5..127.5).contains(&number)
    }
}

/// # Safety
///
/// As [`CodePasses::decode`].
#[inline(always)]
unsafe fn decode<C: Code>(codes: *const u8, scale: f32, values: *mut f32, count: usize) {
    for at in 0..count {
        // SAFETY: the caller vouches for `count` of them.
        unsafe { values.add(at).write(C::decode(codes.add(at).read()) * scale) };
    }
}

/// # Safety
///
/// As [`CodePasses::encode`].
#[inline(always)]
unsafe fn encode<C: Code>(values: *const f32, scale: f32, codes: *mut u8, count: usize) -> u32 {
    let mut beyond = 0;
    for at in 0..count {
        // SAFETY: the caller vouches for `count` of them.
        unsafe {
            let quotient = values.add(at).read() / scale;
            codes.add(at).write(C::encode(quotient));
            beyond += u32::from(C::is_beyond(quotient));
        }
    }
    beyond
}

/// # Safety
///
/// As [`CodePasses::extent`].
#[inline(always)]
unsafe fn extent(values: *const f32, count: usize) -> Extent {
    // As integers, positive floats are in order, and so are negative ones without their sign. NaN is above infinity.
    let (mut above, mut below) = (0_i32, 0_i32);
    for at in 0..count {
        // SAFETY: the caller vouches for `count` numbers.
        let bits = unsafe { values.add(at).read() }.to_bits();
        above = above.max(bits.cast_signed());
        below = below.max((bits ^ 1 << 31).cast_signed());
    }
    let number = |bits: i32| f32::from_bits(bits.min(f32::INFINITY.to_bits().cast_signed()).cast_unsigned());
    Extent { above: number(above), below: number(below) }
}

/// # Safety
///
/// As [`CodePasses::loss`].
#[inline(always)]
unsafe fn loss(stored: *const f32, values: *const f32, count: usize) -> Loss {
    let (mut squares, mut largest) = ([0.0_f32; PARTS], [0.0_f32; PARTS]);
    let mut add = |part: usize, stored: f32, value: f32| {
        let lost = (stored - value).abs();
        squares[part] = lost.mul_add(lost, squares[part]);
        largest[part] = if lost > largest[part] { lost } else { largest[part] };
    };
    let whole = count / PARTS * PARTS;
    // SAFETY: the caller vouches for `count` numbers.
    unsafe {
        for at in (0..whole).step_by(PARTS) {
            let [stored, values] = [stored, values].map(|from| from.add(at).cast::<[f32; PARTS]>().read());
            for part in 0..PARTS {
                add(part, stored[part], values[part]);
            }
        }
        for at in whole..count {
            add(at - whole, *stored.add(at), *values.add(at));
        }
    }
    Loss {
        squares: squares.iter().copied().map(f64::from).sum(),
        largest: largest.into_iter().fold(0.0, f32::max),
    }
}
