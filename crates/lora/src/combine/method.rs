//! The methods, and the settings that each of them takes.

use crate::Error;

/// How adapters are combined. With `f = weight · scaling` of each adapter:
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Method {
    /// `A = Σ sign(f) √|f| · A`, `B = Σ √|f| · B`: cheap, of the same rank, and not the sum of the deltas. Every adapter
    /// of a module must have the same rank there.
    Linear,
    /// All ranks side by side: exactly the sum `Σ f · B · A`, of the sum of the ranks.
    Cat,
    /// The best approximation of `Σ f · B · A` that has a given rank.
    Svd {
        /// The rank of the result; `None` is the largest of the adapters'.
        rank: Option<usize>,
    },
    /// As [`Method::Linear`], of matrices of which only the largest elements are kept, and of those only the ones whose
    /// sign is that of the elementwise sum over the adapters; their mean (Yadav et al., 2023).
    Ties {
        /// The share of elements that is kept, in (0, 1].
        density: f64,
    },
    /// As [`Method::Linear`], of matrices of which a random share is kept and divided by that share (Yu et al., 2023).
    DareLinear {
        /// The share of elements that is kept, in (0, 1].
        density: f64,
        /// Names the random numbers.
        seed: u64,
    },
    /// As [`Method::Ties`], with the random choice of [`Method::DareLinear`].
    DareTies {
        /// The share of elements that is kept, in (0, 1].
        density: f64,
        /// Names the random numbers.
        seed: u64,
    },
    /// As [`Method::Linear`], of matrices of which only the largest elements are kept.
    MagnitudePrune {
        /// The share of elements that is kept, in (0, 1].
        density: f64,
    },
}

/// The settings of a call, as users write them: each method takes some of them, and must not be given the others.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MethodSettings {
    /// The share of elements that is kept, in (0, 1].
    pub density: Option<f64>,
    /// The rank of the result.
    pub rank: Option<usize>,
    /// Names the random numbers.
    pub seed: Option<u64>,
}

impl Method {
    /// The names of all methods.
    pub const NAMES: [&'static str; 7] =
        ["linear", "cat", "svd", "ties", "dare_linear", "dare_ties", "magnitude_prune"];

    /// The method of a name, with its settings; [`Error::CombineArgument`] with everything that is wrong.
    ///
    /// # Examples
    ///
    /// ```
    /// use infer_accel_lora::{Method, MethodSettings};
    ///
    /// let settings = MethodSettings { density: Some(0.2), ..MethodSettings::default() };
    /// assert_eq!(Method::from_name("ties", &settings)?, Method::Ties { density: 0.2 });
    /// assert!(Method::from_name("cat", &settings).is_err());
    /// # Ok::<(), infer_accel_lora::Error>(())
    /// ```
    pub fn from_name(name: &str, settings: &MethodSettings) -> Result<Self, Error> {
        let MethodSettings { density, rank, seed } = *settings;
        // What is missing is replaced by something allowed, so that one pass finds everything that is wrong.
        let (kept, number) = (density.unwrap_or(1.0), seed.unwrap_or(0));
        let method = match name {
            "linear" => Self::Linear,
            "cat" => Self::Cat,
            "svd" => Self::Svd { rank },
            "ties" => Self::Ties { density: kept },
            "dare_linear" => Self::DareLinear { density: kept, seed: number },
            "dare_ties" => Self::DareTies { density: kept, seed: number },
            "magnitude_prune" => Self::MagnitudePrune { density: kept },
            _ => {
                let problem = format!("method={name:?} came; allowed: {}", Self::NAMES.join(", "));
                return Err(Error::CombineArgument { problems: vec![problem] });
            }
        };
        let mut problems = method.problems();
        let (takes_density, takes_seed) = (method.density().is_some(), method.is_random());
        let fits = [
            ("density", density.is_some(), takes_density, takes_density),
            ("seed", seed.is_some(), takes_seed, takes_seed),
            ("rank", rank.is_some(), matches!(method, Self::Svd { .. }), false),
        ];
        for (setting, came, is_taken, is_needed) in fits {
            if came && !is_taken {
                problems.push(format!("{setting} came, and {name} has no use for it: leave it out"));
            } else if is_needed && !came {
                problems.push(format!("{name} needs {setting}: pass it"));
            }
        }
        if problems.is_empty() { Ok(method) } else { Err(Error::CombineArgument { problems }) }
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Cat => "cat",
            Self::Svd { .. } => "svd",
            Self::Ties { .. } => "ties",
            Self::DareLinear { .. } => "dare_linear",
            Self::DareTies { .. } => "dare_ties",
            Self::MagnitudePrune { .. } => "magnitude_prune",
        }
    }

    /// Its settings; [`Method::from_name`] takes them back.
    pub fn settings(&self) -> MethodSettings {
        let seed = match *self {
            Self::DareLinear { seed, .. } | Self::DareTies { seed, .. } => Some(seed),
            _ => None,
        };
        let rank = if let Self::Svd { rank } = *self { rank } else { None };
        MethodSettings { density: self.density(), rank, seed }
    }

    /// Whether the adapters of a module must have the same rank: the methods that work element by element.
    pub fn needs_equal_ranks(&self) -> bool {
        !matches!(self, Self::Cat | Self::Svd { .. })
    }

    /// Settings that are out of range.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(density) = self.density()
            && !(density > 0.0 && density <= 1.0)
        {
            problems.push(format!("density={density} came; it must be above 0 and at most 1"));
        }
        if let Self::Svd { rank: Some(0) } = self {
            problems.push("rank=0 came; it must be 1 or more".to_string());
        }
        problems
    }

    fn density(&self) -> Option<f64> {
        match *self {
            Self::Ties { density }
            | Self::DareLinear { density, .. }
            | Self::DareTies { density, .. }
            | Self::MagnitudePrune { density } => Some(density),
            _ => None,
        }
    }

    fn is_random(&self) -> bool {
        matches!(self, Self::DareLinear { .. } | Self::DareTies { .. })
    }
}
