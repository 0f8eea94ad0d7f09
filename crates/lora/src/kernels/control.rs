//! The floating-point settings of a thread while kernels run.
//!
//! Other libraries switch a thread to flush subnormal numbers, or to another rounding, and leave it so. Results
//! must not depend on that: each task runs under the IEEE defaults and puts back what it found.

/// While this lives, the thread rounds to nearest even, keeps subnormal numbers and raises no trap.
///
/// On x86-64 this is MXCSR; elsewhere the settings are taken to be the defaults.
pub(crate) struct FloatControl {
    #[cfg(target_arch = "x86_64")]
    found: u32,
}

#[cfg(target_arch = "x86_64")]
impl FloatControl {
    /// All exceptions masked, nearest even, no flushing.
    const IEEE: u32 = 0x1f80;

    /// Sets the defaults.
    pub(crate) fn ieee() -> Self {
        let (mut found, ieee) = (0_u32, Self::IEEE);
        // SAFETY: `stmxcsr` writes four bytes to the variable, `ldmxcsr` reads four from the constant, which sets
        // no reserved bit. The defaults are what compiled Rust assumes.
        unsafe {
            std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut found, options(nostack, preserves_flags));
            std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const ieee, options(nostack, preserves_flags));
        }
        Self { found }
    }
}

#[cfg(target_arch = "x86_64")]
impl Drop for FloatControl {
    fn drop(&mut self) {
        // SAFETY: the value was read from the register by `ieee`, hence sets no reserved bit.
        unsafe {
            std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const self.found, options(nostack, preserves_flags));
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
impl FloatControl {
    /// Sets the defaults.
    pub(crate) fn ieee() -> Self {
        Self {}
    }
}
