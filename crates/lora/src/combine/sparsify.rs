//! Which elements of a matrix take part.

/// The golden ratio's fraction in 64 bits, by which `SplitMix64` steps (Steele, Lea, Flood: "Fast splittable
/// pseudorandom number generators", 2014).
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Which elements are kept.
#[derive(Clone, Copy, Debug)]
pub(super) enum Sparsity {
    /// All.
    None,
    /// The `⌊density · count⌋` largest by magnitude; of equal ones the earlier.
    Largest { density: f64 },
    /// Each with a probability of `density`, and divided by it.
    Random { density: f64, seed: u64 },
}

impl Sparsity {
    /// The elements, with zeros for those that are not kept.
    pub(super) fn apply(self, values: &[f32], module: &str, matrix: &str, adapter: usize) -> Vec<f64> {
        let wide = values.iter().map(|&value| f64::from(value));
        match self {
            Self::Largest { density } if density < 1.0 => keep_largest(values, density),
            Self::Random { density, seed } if density < 1.0 => {
                let key = stream_key(seed, module, matrix, adapter);
                wide.enumerate()
                    .map(|(index, value)| if is_kept(key, index, density) { value / density } else { 0.0 })
                    .collect()
            }
            _ => wide.collect(),
        }
    }
}

fn keep_largest(values: &[f32], density: f64) -> Vec<f64> {
    let kept = ((density * values.len() as f64) as usize).min(values.len());
    let mut result = vec![0.0; values.len()];
    let Some(last) = kept.checked_sub(1) else {
        return result;
    };
    // Magnitudes of finite numbers order as their bits do.
    let magnitude = |value: f32| value.to_bits() & 0x7fff_ffff;
    let mut magnitudes: Vec<u32> = values.iter().map(|&value| magnitude(value)).collect();
    let (larger, &mut threshold, _) = magnitudes.select_nth_unstable_by(last, |left, right| right.cmp(left));
    let mut equal_left = kept - larger.iter().filter(|&&other| other > threshold).count();
    for (target, &value) in result.iter_mut().zip(values) {
        let bits = magnitude(value);
        let is_equal = bits == threshold && equal_left > 0;
        equal_left -= usize::from(is_equal);
        if bits > threshold || is_equal {
            *target = f64::from(value);
        }
    }
    result
}

/// Where the random numbers of one matrix begin: another place for each seed, module, matrix and adapter.
fn stream_key(seed: u64, module: &str, matrix: &str, adapter: usize) -> u64 {
    // FNV-1a, 64 bits.
    let name = module.bytes().chain([0]).chain(matrix.bytes());
    let hash = name.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    mix(seed ^ mix(hash ^ mix(adapter as u64)))
}

/// Whether an element is kept: its number of the stream, uniform in [0, 1) with 53 bits, is below the density.
fn is_kept(key: u64, index: usize, density: f64) -> bool {
    let number = mix(key.wrapping_add((index as u64 + 1).wrapping_mul(STEP)));
    ((number >> 11) as f64) * 2.0_f64.powi(-53) < density
}

/// The output function of `SplitMix64`.
fn mix(mut state: u64) -> u64 {
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}
