#![allow(unsafe_code)] // Copies between addresses: memory that Python can change is never a slice.
//! Copies of contiguous runs, with or without the cache.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
#[cfg(target_arch = "x86_64")]
mod stream;

use infer_accel_tensor::simd::Tier;

/// Runs below this length go through the cache even where a copy streams: the head and tail that are not whole
/// vectors, and the write-combining buffers left half full, then cost more than the cache does.
const MIN_STREAM_BYTES: usize = 1024;

/// How runs are copied by one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RunKernel {
    /// `memcpy`: through the cache.
    Cached,
    /// 32-byte stores past the cache.
    #[cfg(target_arch = "x86_64")]
    StreamAvx2,
    /// 64-byte stores past the cache.
    #[cfg(target_arch = "x86_64")]
    StreamAvx512,
}

impl RunKernel {
    /// The kernel of a tier; `stream` asks for stores that leave the cache alone, where the tier has them.
    pub(crate) fn new(tier: Tier, stream: bool) -> Self {
        #[cfg(target_arch = "x86_64")]
        if stream && tier >= Tier::Avx512 {
            return Self::StreamAvx512;
        } else if stream && tier >= Tier::Avx2 {
            return Self::StreamAvx2;
        }
        let _ = (tier, stream);
        Self::Cached
    }

    /// Copies a run. `next` is where the next run's source begins, and may be any address.
    ///
    /// # Safety
    /// `bytes` bytes can be read at `source` and written at `target`, and the two do not meet.
    #[inline]
    pub(crate) unsafe fn copy(self, source: *const u8, target: *mut u8, bytes: usize, next: *const u8) {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the caller's promise; the tier that selected the kernel has its instructions.
            Self::StreamAvx2 if bytes >= MIN_STREAM_BYTES => unsafe {
                avx2::copy(source, target, bytes, next);
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Self::StreamAvx512 if bytes >= MIN_STREAM_BYTES => unsafe {
                avx512::copy(source, target, bytes, next);
            },
            // SAFETY: the caller's promise.
            _ => unsafe { portable::copy(source, target, bytes) },
        }
    }

    /// Makes what was streamed visible to other threads in the order of the program. Every thread that copied
    /// calls this before it says that it is done.
    pub(crate) fn finish(self) {
        #[cfg(target_arch = "x86_64")]
        if self != Self::Cached {
            stream::fence();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use infer_accel_tensor::simd;

    /// Every length around the vector and loop widths, at every pair of offsets from an aligned address.
    #[test]
    fn runs_arrive_whole_and_nothing_else_is_touched() {
        let bytes: Vec<u8> = (0..8192_usize).map(|i| (i * 7 + i / 256) as u8).collect();
        for &tier in simd::available() {
            for stream in [false, true] {
                let kernel = RunKernel::new(tier, stream);
                for length in [0, 1, 31, 33, 255, 1023, 1024, 1025, 1279, 1280, 1311, 2048, 4096, 4159, 7000]
                {
                    for (from, to) in [(0, 0), (1, 0), (0, 1), (13, 50), (64, 63), (5, 5)] {
                        let mut target = vec![0xa5_u8; 8192];
                        let mut expected = target.clone();
                        expected[to..to + length].copy_from_slice(&bytes[from..from + length]);
                        let source = bytes[from..].as_ptr();
                        // SAFETY: offsets and length stay within both vectors.
                        unsafe { kernel.copy(source, target[to..].as_mut_ptr(), length, std::ptr::null()) };
                        kernel.finish();
                        assert!(target == expected, "{kernel:?}: {length} bytes from {from} to {to}");
                    }
                }
            }
        }
    }
}
