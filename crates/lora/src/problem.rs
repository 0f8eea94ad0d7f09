//! What can be wrong with a file of weights, one entry for each fault.

use std::fmt;

/// The kind of a [`Problem`]. Its [`code`](ProblemCode::code) stays the same between releases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ProblemCode {
    /// A file that is needed is not there, or the system refuses to read it.
    Read,
    /// A symbolic link, a pipe, a device or a directory where a plain file belongs; or a name that leads out.
    Path,
    /// Weights in a format that can run code when it is read.
    Pickle,
    /// The header of a safetensors file breaks the format.
    Header,
    /// More entries or bytes than are allowed.
    Size,
    /// One name twice.
    Duplicate,
    /// Data that overlaps, leaves a gap, or is not as long as its shape says.
    Offsets,
    /// The file ends before its data does.
    Truncated,
    /// The configuration is no JSON, or a field has a value that it cannot have.
    Config,
    /// Something that exists elsewhere and is not served here.
    Unsupported,
    /// A number format that weights cannot have.
    DType,
    /// NaN or infinity.
    NotFinite,
    /// An alpha that gives no usable scaling.
    Alpha,
    /// A rank below 1, above the limit, or other than the configuration says.
    Rank,
    /// A shape that does not fit its partner, its kind or the base.
    Shape,
    /// One half of a pair is missing.
    Pair,
    /// A tensor that no rule knows.
    UnknownTensor,
    /// A module that the base does not have.
    UnknownModule,
    /// Something that could be meant in two ways.
    Ambiguous,
    /// Values that the base's number format cannot hold.
    Overflow,
    /// No weights at all.
    Empty,
}

impl ProblemCode {
    /// The code that callers may test for.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Read => "adapter.read",
            Self::Path => "adapter.path",
            Self::Pickle => "adapter.pickle",
            Self::Header => "adapter.header",
            Self::Size => "adapter.size",
            Self::Duplicate => "adapter.duplicate",
            Self::Offsets => "adapter.offsets",
            Self::Truncated => "adapter.truncated",
            Self::Config => "adapter.config",
            Self::Unsupported => "adapter.unsupported",
            Self::DType => "adapter.dtype",
            Self::NotFinite => "adapter.not_finite",
            Self::Alpha => "adapter.alpha",
            Self::Rank => "adapter.rank",
            Self::Shape => "adapter.shape",
            Self::Pair => "adapter.pair",
            Self::UnknownTensor => "adapter.unknown_tensor",
            Self::UnknownModule => "adapter.unknown_module",
            Self::Ambiguous => "adapter.ambiguous",
            Self::Overflow => "adapter.overflow",
            Self::Empty => "adapter.empty",
        }
    }
}

/// One fault: its kind, the tensor (or field, or file) that has it, and a text that is enough.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The kind.
    pub code: ProblemCode,
    /// The name of the tensor as the file has it; a field of the configuration; a file; empty for the whole.
    pub tensor: String,
    /// What came, what is allowed, what to do.
    pub message: String,
}

impl Problem {
    /// A fault of something that has a name.
    pub fn new(code: ProblemCode, tensor: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code, tensor: tensor.into(), message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.tensor.is_empty() {
            f.write_str(&self.message)
        } else {
            // Names come from files: escaped, so that none can play with a terminal.
            write!(f, "{}: {}", self.tensor.escape_debug(), self.message)
        }
    }
}

/// Many faults in one text: the first few, and how many more there are.
pub(crate) fn summary(problems: &[Problem]) -> String {
    const SHOWN: usize = 8;
    let mut text: Vec<String> = problems.iter().take(SHOWN).map(ToString::to_string).collect();
    if problems.len() > SHOWN {
        text.push(format!("and {} more", problems.len() - SHOWN));
    }
    text.join("; ")
}
