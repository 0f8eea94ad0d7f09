//! Which instructions run.
//!
//! Every kernel exists once in portable Rust, which serves any processor and specifies the others, and again in
//! tiers for x86-64. The tier is detected once. `INFER_ACCEL_SIMD` lowers it (`portable`, `avx2`, `avx512`,
//! `avx512bf16`), never raises it: a tier that the processor lacks cannot be asked for.

use std::fmt;
use std::sync::OnceLock;

/// The environment variable that lowers the tier.
pub const TIER_VARIABLE: &str = "INFER_ACCEL_SIMD";

/// An instruction tier; each contains those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Tier {
    /// Plain Rust.
    Portable,
    /// AVX2 with FMA, F16C and BMI2.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX-512 with BF16 (`vdpbf16ps`).
    Avx512Bf16,
}

impl Tier {
    /// Every tier, lowest first.
    pub const ALL: [Self; 4] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Bf16];

    /// The name that `INFER_ACCEL_SIMD` takes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512bf16",
        }
    }

    /// The tier of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|tier| tier.name() == name)
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The highest tier of this processor.
pub fn detected() -> Tier {
    static DETECTED: OnceLock<Tier> = OnceLock::new();
    *DETECTED.get_or_init(detect)
}

/// The tier in use: the detected one, or the one of `INFER_ACCEL_SIMD` where that is lower. A value of the
/// variable that names no tier is ignored here and reported by [`check_variable`].
pub fn tier() -> Tier {
    static TIER: OnceLock<Tier> = OnceLock::new();
    *TIER.get_or_init(|| {
        let asked = std::env::var(TIER_VARIABLE).ok().and_then(|name| Tier::from_name(&name));
        asked.map_or(detected(), |asked| asked.min(detected()))
    })
}

/// Every tier that can run here, lowest first: what tests force one by one.
pub fn available() -> &'static [Tier] {
    static ALL: [Tier; 4] = Tier::ALL;
    let count = ALL.iter().filter(|&&tier| tier <= detected()).count();
    ALL.get(..count).unwrap_or(&ALL)
}

/// What is wrong with `INFER_ACCEL_SIMD`, if anything.
pub fn check_variable() -> Option<String> {
    let value = std::env::var_os(TIER_VARIABLE)?;
    let name = value.to_string_lossy();
    match Tier::from_name(&name) {
        None => Some(format!(
            "{TIER_VARIABLE}={name} names no tier; allowed: portable, avx2, avx512, avx512bf16, or unset"
        )),
        Some(tier) if tier > detected() => Some(format!(
            "{TIER_VARIABLE}={name} asks for more than this processor has; allowed here: up to {}",
            detected()
        )),
        Some(_) => None,
    }
}

/// Whether the SHA instructions of x86-64 can be used: they exist and the tier is above portable.
pub fn has_sha() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        tier() > Tier::Portable
            && std::arch::is_x86_feature_detected!("sha")
            && std::arch::is_x86_feature_detected!("sse4.1")
            && std::arch::is_x86_feature_detected!("ssse3")
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Tier {
    macro_rules! all {
        ($($feature:tt),*) => { $(std::arch::is_x86_feature_detected!($feature))&&* };
    }
    if !all!("avx2", "fma", "f16c", "bmi1", "bmi2", "lzcnt", "popcnt") {
        Tier::Portable
    } else if !all!("avx512f", "avx512bw", "avx512dq", "avx512vl") {
        Tier::Avx2
    } else if !all!("avx512bf16") {
        Tier::Avx512
    } else {
        Tier::Avx512Bf16
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Tier {
    Tier::Portable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for tier in Tier::ALL {
            assert_eq!(Tier::from_name(tier.name()), Some(tier));
        }
        assert_eq!(Tier::from_name("avx1024"), None);
    }

    #[test]
    fn what_runs_is_available() {
        assert!(tier() <= detected());
        assert_eq!(available().first(), Some(&Tier::Portable));
        assert_eq!(available().last(), Some(&detected()));
    }
}
