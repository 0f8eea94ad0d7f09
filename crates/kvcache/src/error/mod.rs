//! What can be wrong with a call to this crate.

mod classes;

use crate::copy::PageError;
use crate::tier::TierError;
use infer_accel_tensor::TensorError;
use infer_accel_tensor::threads::Interrupted;
use thiserror::Error;

/// What can be wrong with a call to this crate.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum KvCacheError {
    /// A block of no tokens, or of too many.
    #[error("block_size={got} came; a block holds 1 token or more, and at most {max}")]
    BlockSize {
        /// The size that came.
        got: usize,
        /// Most tokens of a block.
        max: usize,
    },
    /// A hash algorithm that does not exist.
    #[error("algorithm={name:?} came; allowed are 'sha256_cbor', 'sha256', 'xxhash_cbor' and 'xxhash'")]
    UnknownAlgorithm {
        /// The name that came.
        name: String,
    },
    /// A token id outside 32 bits.
    #[error(
        "token id {value} came at position {position}; ids go from 0 to 4294967295: cut padding off first"
    )]
    TokenId {
        /// Where it stands among the tokens.
        position: usize,
        /// The id that came.
        value: i64,
    },
    /// A parent that is no digest of the algorithm.
    #[error(
        "a parent of {got} bytes came; {algorithm} makes hashes of {expected}: pass one of those, or None"
    )]
    ParentLength {
        /// The algorithm's name.
        algorithm: &'static str,
        /// Bytes that came.
        got: usize,
        /// Bytes of a digest.
        expected: usize,
    },
    /// Extra keys that do not stand one to a block.
    #[error("{got} extra_keys came for {expected} full blocks; pass one tuple or None for each")]
    ExtraKeysCount {
        /// Entries that came.
        got: usize,
        /// Full blocks.
        expected: usize,
    },
    /// Extra keys for an algorithm whose serialisation only Python knows.
    #[error(
        "extra_keys came for {algorithm}, whose pickle depends on Python's own objects; use sha256_cbor or xxhash_cbor"
    )]
    ExtraKeysPickle {
        /// The algorithm's name.
        algorithm: &'static str,
    },
    /// Tuples nested too deeply.
    #[error("extra_keys are nested more than {max} tuples deep; flatten them")]
    ExtraKeyDepth {
        /// Deepest nesting allowed.
        max: usize,
    },
    /// An integer that does not fit a CBOR head.
    #[error(
        "an integer beyond 64 bits came in extra_keys; allowed are -2**64 to 2**64-1: pass it as bytes or text"
    )]
    ExtraKeyInteger,
    /// A seed that is longer than a value of `PYTHONHASHSEED` can be.
    #[error("a PYTHONHASHSEED of {got} bytes came; at most {max} are allowed")]
    SeedLength {
        /// Bytes that came.
        got: usize,
        /// Bytes that are allowed.
        max: usize,
    },
    /// Hashes whose bytes do not fit their number.
    #[error("hashes of {got} bytes came where {expected} are needed")]
    HashBytes {
        /// Bytes that came.
        got: usize,
        /// Bytes that are needed.
        expected: usize,
    },
    /// A pool without room for a block, or with more than an id can name.
    #[error("num_blocks={got} came; a pool has 2 blocks or more (one is the null block) and at most {max}")]
    NumBlocks {
        /// Blocks that came.
        got: usize,
        /// Most blocks.
        max: usize,
    },
    /// A pool whose books do not fit into memory.
    #[error("there is no memory for the books of {num_blocks} blocks (about 100 bytes each); ask for fewer")]
    PoolMemory {
        /// Blocks that came.
        num_blocks: usize,
    },
    /// Books that contradict each other.
    #[error("the pool's books are wrong: {what}; this is a defect of infer-accel, please report it")]
    Invariant {
        /// What was found.
        what: String,
    },
    /// An eviction policy that does not exist.
    #[error("eviction={name:?} came; allowed are 'lru' and 'priority'")]
    UnknownEviction {
        /// The name that came.
        name: String,
    },
    /// A priority for a pool that knows none.
    #[error("priority={got} came for a pool that evicts by 'lru'; make it with eviction='priority'")]
    PriorityOfLru {
        /// The priority that came.
        got: u8,
    },
    /// A priority out of range.
    #[error("priority={got} came; allowed are 0 to {max}")]
    Priority {
        /// The priority that came.
        got: u8,
        /// The highest one.
        max: u8,
    },
    /// A time that is not after the last one.
    #[error("the time {got} came; pass seconds that never go back, such as time.monotonic()")]
    Time {
        /// The time that came.
        got: String,
    },
    /// A span of time that is none.
    #[error("{got} seconds came; pass more than 0, or None for no limit")]
    Seconds {
        /// The seconds that came.
        got: String,
    },
    /// More pins than the budget allows.
    #[error(
        "{needed} more blocks are to be pinned and the budget has {left} left; unpin some, or make the pool with more"
    )]
    PinBudget {
        /// Blocks that would have to be pinned.
        needed: usize,
        /// Pins that are left.
        left: usize,
    },
    /// A sequence that was released, or never was.
    #[error(
        "sequence {got} at position {position} is not running; pass what admit and fork returned, until it is released"
    )]
    Sequence {
        /// Where it stands among the sequences.
        position: usize,
        /// The sequence that came.
        got: i64,
    },
    /// A sequence that is named twice.
    #[error("sequence {got} is named again at position {position}; name each once")]
    RepeatedSequence {
        /// The later position.
        position: usize,
        /// The sequence.
        got: i64,
    },
    /// Tokens that do not fit the sequences.
    #[error("{got} tokens came where {expected} are needed, as many as the counts add up to")]
    StepTokens {
        /// Tokens that came.
        got: usize,
        /// Tokens that are needed.
        expected: usize,
    },
    /// Counts that do not stand one to a sequence.
    #[error("{got} counts came for {expected} sequences; pass one for each")]
    StepCounts {
        /// Counts that came.
        got: usize,
        /// Sequences.
        expected: usize,
    },
    /// A sequence longer than can be counted.
    #[error("a sequence of {got} tokens came; at most {max} are allowed")]
    SequenceLength {
        /// Its tokens.
        got: usize,
        /// Most tokens.
        max: usize,
    },
    /// Cache groups that cannot be.
    #[error("{what}; pass 1 to {max} groups, each of full attention or with a window of 1 token or more")]
    Groups {
        /// What is wrong.
        what: String,
        /// Most groups.
        max: usize,
    },
    /// A group that the manager does not have.
    #[error("group={got} came; this manager has groups 0 to {last}")]
    GroupIndex {
        /// The group that came.
        got: usize,
        /// The last one.
        last: usize,
    },
    /// A trace that cannot be read.
    #[error("line {line} of the trace: {what}")]
    Trace {
        /// Which line.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
    /// A trace that cannot be made.
    #[error("a trace cannot be made so: {what}")]
    Synthetic {
        /// What came, and what is allowed.
        what: String,
    },
    /// Blocks that ids of a trace do not fill.
    #[error(
        "block_size={got} came; an id of a trace stands for {tokens} tokens: pass a divisor or a multiple of that"
    )]
    ReplayBlockSize {
        /// The size that came.
        got: usize,
        /// Tokens of an id.
        tokens: usize,
    },
    /// A watermark that leaves no block.
    #[error("watermark={got} came; pass a share from 0 to less than 1")]
    Watermark {
        /// What came.
        got: String,
    },
    /// More blocks asked for than are free.
    #[error("{needed} blocks are needed and {free} are free; free some, or admit fewer requests")]
    OutOfBlocks {
        /// Blocks that were asked for.
        needed: usize,
        /// Blocks that are free or can be evicted.
        free: usize,
    },
    /// An id that the pool does not have.
    #[error("handle {handle} at position {position} names block {id}; this pool has blocks 0 to {last}")]
    BlockId {
        /// Where it stands among the handles.
        position: usize,
        /// The handle that came.
        handle: i64,
        /// The id inside.
        id: u32,
        /// The pool's last block.
        last: u32,
    },
    /// A handle whose block was freed since.
    #[error(
        "handle {handle} at position {position} is stale: block {id} is not lent out under it \
         (the block's generation is {generation}); free a handle only as often as it was allocated or retained"
    )]
    StaleBlock {
        /// Where it stands among the handles.
        position: usize,
        /// The handle that came.
        handle: i64,
        /// The block's id.
        id: u32,
        /// The block's generation.
        generation: u32,
    },
    /// A block with more references than can be counted.
    #[error("block {id} at position {position} has {count} references already, the most there can be")]
    ReferenceCount {
        /// Where it stands among the handles or hashes.
        position: usize,
        /// The block's id.
        id: u32,
        /// Its references.
        count: u32,
    },
    /// The null block where a block with content is needed.
    #[error(
        "handle {handle} at position {position} is the null block, which holds no tokens and is never cached"
    )]
    NullBlock {
        /// Where it stands among the handles.
        position: usize,
        /// The handle that came.
        handle: i64,
    },
    /// A block that is cached under another hash.
    #[error(
        "block {id} at position {position} is cached under another hash; a full block never changes its content"
    )]
    HashConflict {
        /// Where it stands among the handles.
        position: usize,
        /// The block's id.
        id: u32,
    },
    /// Handles and hashes that differ in number.
    #[error("{hashes} hashes came for {handles} handles; pass one for each")]
    HashCount {
        /// Handles that came.
        handles: usize,
        /// Hashes that came.
        hashes: usize,
    },
    /// What is wrong with pages that are to be copied, blanked or looked through.
    #[error(transparent)]
    Pages(#[from] PageError),
    /// What is wrong with a tier.
    #[error(transparent)]
    Tier(#[from] TierError),
    /// What is wrong with a view or with the number of threads.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// The call was interrupted; some of the target pages are written.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}
