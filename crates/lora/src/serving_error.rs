//! What can be wrong with a stack of adapters, with the ids of a batch, or with a store.

use infer_accel_tensor::ErrorKind;
use thiserror::Error;

/// Why a stack, a mixed batch or a change of a store was refused. Nothing has been written when one of these comes
/// back.
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum ServingError {
    /// An adapter of a stack that takes tokens of another width.
    #[error(
        "adapter {id} takes tokens of {got} features, others of this stack {expected}: they belong to different layers"
    )]
    StackFeatures {
        /// The adapter.
        id: i64,
        /// Its features.
        got: usize,
        /// Those of the adapters before it.
        expected: usize,
    },
    /// An adapter of a stack that does not have one entry for each slice.
    #[error(
        "adapter {id} has {got} slices; this stack has {expected}: pass None for a slice that it leaves alone"
    )]
    SliceCount {
        /// The adapter.
        id: i64,
        /// Its slices.
        got: usize,
        /// Those of the stack.
        expected: usize,
    },
    /// An adapter of a stack whose outputs are not those of a slice.
    #[error(
        "adapter {id} has {got} outputs for slice {slice}, which has {expected}: they belong to different layers"
    )]
    SliceWidth {
        /// The adapter.
        id: i64,
        /// The slice.
        slice: usize,
        /// Its outputs.
        got: usize,
        /// Those of the slice.
        expected: usize,
    },
    /// A slice of which nothing tells how many outputs it has.
    #[error(
        "where the slices of adapter {id} lie cannot be told: no adapter has a slice before them; pass slices="
    )]
    UnknownWidth {
        /// The adapter.
        id: i64,
    },
    /// An id that two adapters of a stack have.
    #[error("two adapters of a stack have the id {id}; each needs its own")]
    RepeatedAdapter {
        /// The id.
        id: i64,
    },
    /// An adapter of a stack with an id that no token can name.
    #[error("an adapter with the id {id} came; ids of adapters are 0 or more")]
    NegativeAdapter {
        /// The id.
        id: i64,
    },
    /// As many ids as tokens are needed.
    #[error("{got} adapter ids came for {tokens} tokens; pass one for each token, -1 for none")]
    AdapterIdCount {
        /// Ids that came.
        got: usize,
        /// Tokens of the batch.
        tokens: usize,
    },
    /// An id that the stack does not have.
    #[error("token {token} names adapter {id}, which is not among the {known} of this stack; -1 is for none")]
    AdapterId {
        /// The token.
        token: usize,
        /// The id that came.
        id: i64,
        /// Adapters of the stack.
        known: usize,
    },
    /// Tokens or outputs that are not as wide as the layer.
    #[error("{name} has {got} columns; the layer of this stack has {expected}")]
    StackWidth {
        /// The argument.
        name: &'static str,
        /// Its columns.
        got: usize,
        /// Those of the layer.
        expected: usize,
    },
    /// An adapter that does not fit into the store, whatever may be evicted.
    #[error(
        "an adapter of {needed} bytes came; of {capacity} bytes {free} are free and {pinned} pinned, and no eviction makes \
         room (what a reader holds stays): unpin some, or make the store larger"
    )]
    StoreFull {
        /// Bytes of the adapter.
        needed: usize,
        /// Bytes that are free.
        free: usize,
        /// Bytes of pinned adapters.
        pinned: usize,
        /// Bytes of the store.
        capacity: usize,
    },
    /// A name that the store does not hold.
    #[error("no adapter called {name:?} is in the store: load it first; it may have been evicted")]
    AdapterAbsent {
        /// The name.
        name: String,
    },
    /// An adapter that must not be evicted.
    #[error("the adapter {name:?} is pinned {pins} times: unpin it first")]
    AdapterPinned {
        /// The name.
        name: String,
        /// Its pins.
        pins: usize,
    },
    /// An adapter that is unpinned more often than it was pinned.
    #[error("the adapter {name:?} is not pinned; each pin is taken away once")]
    NotPinned {
        /// The name.
        name: String,
    },
    /// An adapter that does more than add a product to linear layers.
    #[error(
        "the adapter {name:?} cannot be applied beside its base ({}): merge it instead",
        reasons.iter().take(4).map(String::as_str).chain((reasons.len() > 4).then_some("…")).collect::<Vec<_>>().join("; ")
    )]
    NotServable {
        /// The name.
        name: String,
        /// What it does besides, layer by layer.
        reasons: Vec<String>,
    },
    /// An adapter without a layer.
    #[error("the adapter {name:?} has no layers: it would do nothing")]
    NoLayers {
        /// The name.
        name: String,
    },
    /// A layer that an adapter has twice.
    #[error("the adapter {name:?} has the layer {layer:?} twice")]
    RepeatedLayer {
        /// The adapter.
        name: String,
        /// The layer.
        layer: String,
    },
    /// A number that is not finite.
    #[error(
        "the adapter {name:?} has numbers in the layer {layer:?} that are not finite: it would answer nothing else"
    )]
    NotFinite {
        /// The adapter.
        name: String,
        /// The layer.
        layer: String,
    },
    /// An adapter for another model than those in the store.
    #[error(
        "the layer {layer:?} of the adapter {name:?} has [out, in] = {got:?}, that of {other:?} in the store {expected:?}: \
         they belong to different models"
    )]
    OtherBase {
        /// The adapter.
        name: String,
        /// The layer.
        layer: String,
        /// Its outputs and features.
        got: [usize; 2],
        /// The adapter in the store.
        other: String,
        /// Its outputs and features.
        expected: [usize; 2],
    },
}

impl ServingError {
    /// The class of this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::StackFeatures { .. }
            | Self::SliceCount { .. }
            | Self::SliceWidth { .. }
            | Self::UnknownWidth { .. }
            | Self::AdapterIdCount { .. }
            | Self::StackWidth { .. } => ErrorKind::Shape,
            Self::StoreFull { .. } => ErrorKind::StoreFull,
            Self::AdapterAbsent { .. }
            | Self::AdapterPinned { .. }
            | Self::NotPinned { .. }
            | Self::NoLayers { .. }
            | Self::NotServable { .. }
            | Self::RepeatedLayer { .. }
            | Self::NotFinite { .. }
            | Self::OtherBase { .. } => ErrorKind::Adapter,
            Self::RepeatedAdapter { .. } | Self::NegativeAdapter { .. } | Self::AdapterId { .. } => {
                ErrorKind::Id
            }
        }
    }

    /// A name for this case that stays the same between releases.
    pub fn code(&self) -> &'static str {
        match self {
            Self::StackFeatures { .. } | Self::StackWidth { .. } => "shape.stack",
            Self::SliceCount { .. } | Self::SliceWidth { .. } | Self::UnknownWidth { .. } => "shape.slices",
            Self::AdapterIdCount { .. } => "shape.adapter_ids",
            Self::StoreFull { .. } => "store_full.bytes",
            Self::AdapterAbsent { .. } => "adapter.absent",
            Self::AdapterPinned { .. } => "adapter.pinned",
            Self::NotPinned { .. } => "adapter.not_pinned",
            Self::NotServable { .. } => "adapter.not_servable",
            Self::NoLayers { .. } => "adapter.no_layers",
            Self::RepeatedLayer { .. } => "adapter.repeated_layer",
            Self::NotFinite { .. } => "adapter.not_finite",
            Self::OtherBase { .. } => "adapter.other_base",
            Self::RepeatedAdapter { .. } => "id.repeated_adapter",
            Self::NegativeAdapter { .. } | Self::AdapterId { .. } => "id.adapter",
        }
    }
}
