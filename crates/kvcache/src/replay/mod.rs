//! Replay: what a recorded day of requests would have found in a cache of a given size.
//!
//! A trace names the prefixes of its prompts by ids, one for each 512 tokens; an id stands for all tokens up to
//! there. Requests go through a [`crate::pool::BlockPool`] exactly as a server sends them, so that hits and evictions
//! are those of the server, block for block.

mod simulate;
mod synthetic;
mod trace;

pub use simulate::{ReplayOptions, ReplayOutcome, replay};
pub use synthetic::SyntheticOptions;
pub use trace::{IDS_TOKENS, Trace, TraceRequest};

#[cfg(test)]
mod tests;
