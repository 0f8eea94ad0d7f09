//! The class of each error, and a name for it that stays the same.

use super::KvCacheError;
use infer_accel_tensor::ErrorKind;

impl KvCacheError {
    /// The class of this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::TokenId { .. }
            | Self::BlockId { .. }
            | Self::NullBlock { .. }
            | Self::Sequence { .. }
            | Self::RepeatedSequence { .. } => ErrorKind::Id,
            Self::Pages(error) => error.kind(),
            Self::Tier(error) => error.kind(),
            Self::Tensor(error) => error.kind(),
            Self::Interrupted(_) => ErrorKind::Interrupted,
            Self::ParentLength { .. }
            | Self::HashBytes { .. }
            | Self::ExtraKeysCount { .. }
            | Self::HashCount { .. }
            | Self::StepTokens { .. }
            | Self::StepCounts { .. } => ErrorKind::Shape,
            Self::OutOfBlocks { .. } | Self::PinBudget { .. } => ErrorKind::OutOfBlocks,
            Self::StaleBlock { .. } => ErrorKind::StaleBlock,
            Self::Invariant { .. } => ErrorKind::Internal,
            Self::BlockSize { .. }
            | Self::UnknownAlgorithm { .. }
            | Self::ExtraKeysPickle { .. }
            | Self::ExtraKeyDepth { .. }
            | Self::ExtraKeyInteger
            | Self::SeedLength { .. }
            | Self::NumBlocks { .. }
            | Self::PoolMemory { .. }
            | Self::UnknownEviction { .. }
            | Self::PriorityOfLru { .. }
            | Self::Priority { .. }
            | Self::Time { .. }
            | Self::Seconds { .. }
            | Self::SequenceLength { .. }
            | Self::Groups { .. }
            | Self::GroupIndex { .. }
            | Self::Watermark { .. }
            | Self::Trace { .. }
            | Self::Synthetic { .. }
            | Self::ReplayBlockSize { .. }
            | Self::ReferenceCount { .. }
            | Self::HashConflict { .. } => ErrorKind::Argument,
        }
    }

    /// A name for this case that stays the same between releases.
    pub fn code(&self) -> &'static str {
        match self {
            Self::BlockSize { .. } => "argument.block_size",
            Self::UnknownAlgorithm { .. } => "argument.algorithm",
            Self::TokenId { .. } => "id.token",
            Self::ParentLength { .. } => "shape.parent",
            Self::ExtraKeysCount { .. } => "shape.extra_keys",
            Self::ExtraKeysPickle { .. } => "argument.extra_keys_pickle",
            Self::ExtraKeyDepth { .. } => "argument.extra_keys_depth",
            Self::ExtraKeyInteger => "argument.extra_keys_integer",
            Self::SeedLength { .. } => "argument.hash_seed",
            Self::HashBytes { .. } => "shape.hash_bytes",
            Self::NumBlocks { .. } => "argument.num_blocks",
            Self::PoolMemory { .. } => "argument.pool_memory",
            Self::Invariant { .. } => "internal.invariant",
            Self::OutOfBlocks { .. } => "out_of_blocks.all",
            Self::PinBudget { .. } => "out_of_blocks.pins",
            Self::UnknownEviction { .. } => "argument.eviction",
            Self::PriorityOfLru { .. } | Self::Priority { .. } => "argument.priority",
            Self::Time { .. } => "argument.time",
            Self::Seconds { .. } => "argument.seconds",
            Self::Sequence { .. } => "id.sequence",
            Self::RepeatedSequence { .. } => "id.repeated_sequence",
            Self::StepTokens { .. } => "shape.step_tokens",
            Self::StepCounts { .. } => "shape.step_counts",
            Self::SequenceLength { .. } => "argument.sequence_length",
            Self::Groups { .. } | Self::GroupIndex { .. } => "argument.groups",
            Self::Watermark { .. } => "argument.watermark",
            Self::Trace { .. } => "argument.trace",
            Self::Synthetic { .. } => "argument.synthetic_trace",
            Self::ReplayBlockSize { .. } => "argument.replay_block_size",
            Self::BlockId { .. } => "id.block",
            Self::StaleBlock { .. } => "stale_block.handle",
            Self::ReferenceCount { .. } => "argument.references",
            Self::NullBlock { .. } => "id.null_block",
            Self::HashConflict { .. } => "argument.hash_conflict",
            Self::HashCount { .. } => "shape.hash_count",
            Self::Pages(error) => error.code(),
            Self::Tier(error) => error.code(),
            Self::Tensor(error) => error.code(),
            Self::Interrupted(_) => "interrupted",
        }
    }
}
