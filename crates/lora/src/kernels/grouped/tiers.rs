//! The grouped kernels of each tier.

use super::super::lanes::Lanes;
use super::super::storage::{Bf16, F16, F32, Storage};
use super::super::vector::Vector;
use super::expand::{self, ExpandJob};
use super::shrink::{self, ShrinkJob};
use super::{GroupedKernels, PANEL};

/// Widens whole runs of [`PANEL`] features.
///
/// # Safety
///
/// The processor has the tier of `V`; `source` is readable and `target` writable for the runs.
#[inline(always)]
unsafe fn widen<V: Vector, S: Storage, const IS_SPLIT: bool>(
    source: *const u8,
    target: *mut f32,
    runs: usize,
) {
    let step = if IS_SPLIT { 2 * V::LANES } else { V::LANES };
    // SAFETY: the caller vouches for tier and memory.
    unsafe {
        for at in (0..runs * PANEL).step_by(step) {
            let (source, target) = (source.add(at * S::SIZE), target.add(at));
            if IS_SPLIT {
                let [even, odd] = S::load_split::<V>(source);
                even.store(target);
                odd.store(target.add(V::LANES));
            } else {
                S::widen::<V>(source).store(target);
            }
        }
    }
}

/// Wraps the generic kernels for one tier and gathers them in a table.
macro_rules! tier {
    ($(#[$gate:meta])* $module:ident, $table:ident, $vector:ty, $tokens:literal, $alone:literal, $every:literal, [$(#[$feature:meta])*]) => {
        $(#[$gate])*
        mod $module {
            #[allow(clippy::wildcard_imports)] // one module, written four times
            use super::*;

            $(#[$feature])*
            unsafe fn shrink<S: Storage>(job: &ShrinkJob) {
                // SAFETY: this function enables the tier; the caller vouches for the job.
                unsafe { shrink::run::<$vector, S, $tokens, $alone>(job) }
            }

            $(#[$feature])*
            unsafe fn expand<B: Storage, S: Storage>(job: &ExpandJob) {
                // SAFETY: this function enables the tier; the caller vouches for the job.
                unsafe { expand::run::<$vector, B, S, $every>(job) }
            }

            $(#[$feature])*
            unsafe fn widen<S: Storage, const IS_SPLIT: bool>(source: *const u8, target: *mut f32, runs: usize) {
                // SAFETY: this function enables the tier; the caller vouches for the memory.
                unsafe { super::widen::<$vector, S, IS_SPLIT>(source, target, runs) }
            }

            /// The kernels of this tier, to be called only where the processor has it.
            pub(crate) static KERNELS: GroupedKernels = GroupedKernels {
                lanes: <$vector as Vector>::LANES,
                shrink: [shrink::<F32>, shrink::<F16>, shrink::<Bf16>],
                expand: [
                    [expand::<F32, F32>, expand::<F32, F16>, expand::<F32, Bf16>],
                    [expand::<F16, F32>, expand::<F16, F16>, expand::<F16, Bf16>],
                    [expand::<Bf16, F32>, expand::<Bf16, F16>, expand::<Bf16, Bf16>],
                ],
                widen: [
                    [widen::<F32, false>, widen::<F16, false>, widen::<Bf16, false>],
                    [widen::<F32, true>, widen::<F16, true>, widen::<Bf16, true>],
                ],
            };
        }

        $(#[$gate])*
        pub(crate) use $module::KERNELS as $table;
    };
}

// Tokens of a tile by pairs of ranks by registers: 3 × 2 × 2 sums of sixteen registers; a token alone takes two pairs. The
// portable tier has fewer kernels, for they take long to compile.
tier!(portable, PORTABLE, Lanes<8>, 3, 2, false, []);
tier!(#[cfg(target_arch = "x86_64")] avx2, AVX2, crate::kernels::avx2::F32x8, 3, 2, true, [#[target_feature(enable = "avx2,fma,f16c")]]);
tier!(#[cfg(target_arch = "x86_64")] avx512, AVX512, crate::kernels::avx512::F32x16, 6, 4, true, [#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")]]);
// The logic of the AVX-512 tier over arrays, for machines that lack it.
tier!(
    #[cfg(test)]
    wide,
    WIDE,
    Lanes<16>,
    6,
    4,
    true,
    []
);
