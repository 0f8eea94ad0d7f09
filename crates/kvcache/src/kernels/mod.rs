//! The inner loops, one folder an operation, one file a tier. The portable file specifies its siblings.

pub(crate) mod copy;
pub(crate) mod nonfinite;
pub(crate) mod prefetch;
pub(crate) mod sha256;
pub(crate) mod xxh3;
