//! The adapters of one layer, packed once, for batches that mix them.

use crate::check::{Named, matrix, same};
use crate::kernels::{PackedPair, Part};
use crate::store::Charge;
use crate::{Error, ServingError};
use infer_accel_tensor::{TensorError, TensorRef};
use std::sync::Arc;

/// `lora_a` and `lora_b` of one layer with their scaling, laid out as the kernels read them.
///
/// Packing copies: the arrays may change or vanish afterwards. Clones share the memory.
#[derive(Clone)]
pub struct PackedLayer {
    pair: Arc<PackedPair>,
    scaling: f32,
}

impl PackedLayer {
    /// Packs `lora_a`, `[rank, in_features]`, and `lora_b`, `[out_features, rank]`: each float32, float16 or bfloat16
    /// of any strides, kept in its own format.
    ///
    /// # Errors
    ///
    /// Shapes or formats that do not fit, and a scaling that is not finite in binary32.
    pub fn new(lora_a: &TensorRef<'_>, lora_b: &TensorRef<'_>, scaling: f64) -> Result<Self, Error> {
        Self::byte_len_of(lora_a, lora_b)?;
        let narrow = scaling as f32;
        if !narrow.is_finite() {
            return Err(Error::Scaling { scaling });
        }
        let pair = PackedPair::pack(lora_a, lora_b)
            .ok_or_else(|| TensorError::TooLarge { shape: lora_b.shape().to_vec() })?;
        Ok(Self { pair: Arc::new(pair), scaling: narrow })
    }

    /// Bytes that the packed matrices would take.
    ///
    /// # Errors
    ///
    /// As [`Self::new`], the scaling aside.
    pub fn byte_len_of(lora_a: &TensorRef<'_>, lora_b: &TensorRef<'_>) -> Result<usize, Error> {
        let (a, b) = (Named { name: "lora_A", tensor: lora_a }, Named { name: "lora_B", tensor: lora_b });
        let (rank, _) = matrix(a, "[rank, in_features]")?;
        let (_, b_rank) = matrix(b, "[out_features, rank]")?;
        same(
            (rank, b_rank),
            a,
            b,
            "lora_A [rank, in_features] and lora_B [out_features, rank] must have the same rank",
        )?;
        PackedPair::byte_len_of(lora_a, lora_b)
            .ok_or_else(|| TensorError::TooLarge { shape: lora_b.shape().to_vec() }.into())
    }

    /// Features of a token.
    pub fn in_features(&self) -> usize {
        self.pair.in_features()
    }

    /// Outputs of a token.
    pub fn out_features(&self) -> usize {
        self.pair.out_features()
    }

    /// The rank.
    pub fn rank(&self) -> usize {
        self.pair.rank()
    }

    /// What the product is multiplied by.
    pub fn scaling(&self) -> f32 {
        self.scaling
    }

    /// Bytes of memory.
    pub fn byte_len(&self) -> usize {
        self.pair.byte_len()
    }
}

impl std::fmt::Debug for PackedLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PackedLayer")
            .field("in_features", &self.in_features())
            .field("out_features", &self.out_features())
            .field("rank", &self.rank())
            .field("scaling", &self.scaling)
            .finish_non_exhaustive()
    }
}

/// One adapter of a stack.
#[derive(Clone, Debug)]
pub struct StackedAdapter {
    pub(crate) id: i64,
    pub(crate) layers: Vec<Option<PackedLayer>>,
    /// What counts its bytes, where a store does.
    pub(crate) charge: Option<Arc<Charge>>,
}

impl StackedAdapter {
    /// An adapter that tokens name by `id`, 0 or more.
    ///
    /// `layers` has one entry for each slice of the layer's outputs, `None` where the adapter leaves the slice alone;
    /// or a single entry for all outputs; or none at all for an adapter that leaves the whole layer alone.
    pub fn new(id: i64, layers: Vec<Option<PackedLayer>>) -> Self {
        Self { id, layers, charge: None }
    }
}

/// The adapters of one layer, of any ranks, scalings and number formats.
///
/// A layer whose outputs were fused (`qkv_proj`, `gate_up_proj`) has several *slices*: ranges of outputs, side by side,
/// that adapters treat each by matrices of their own.
///
/// Immutable, and cheap to build: matrices are shared, not copied.
pub struct AdapterStack {
    in_features: Option<usize>,
    slices: Vec<Option<usize>>,
    entries: Vec<Entry>,
}

pub(crate) struct Entry {
    pub(crate) id: i64,
    pub(crate) parts: Vec<Part>,
    /// Held as long as the matrices are.
    _charge: Option<Arc<Charge>>,
}

impl AdapterStack {
    /// Puts adapters together.
    ///
    /// `slices` gives the outputs of each slice; without it, the adapters do.
    ///
    /// # Errors
    ///
    /// Adapters whose features, slices or outputs differ, an id that is negative or comes twice, and slices whose
    /// width nothing tells.
    pub fn new(adapters: Vec<StackedAdapter>, slices: Option<&[usize]>) -> Result<Self, Error> {
        let count = match slices {
            Some(slices) => slices.len(),
            None => adapters.iter().map(|adapter| adapter.layers.len()).max().unwrap_or(1).max(1),
        };
        let mut widths = slices.map_or_else(|| vec![None; count], |s| s.iter().copied().map(Some).collect());
        let mut in_features = None;
        for adapter in &adapters {
            for (slice, layer) in adapter.layers.iter().enumerate() {
                let Some(layer) = layer else { continue };
                let expected = *in_features.get_or_insert(layer.in_features());
                if layer.in_features() != expected {
                    return Err(ServingError::StackFeatures {
                        id: adapter.id,
                        got: layer.in_features(),
                        expected,
                    }
                    .into());
                }
                if adapter.layers.len() == count {
                    let width = widths[slice].get_or_insert(layer.out_features());
                    if *width != layer.out_features() {
                        let (got, expected) = (layer.out_features(), *width);
                        return Err(ServingError::SliceWidth { id: adapter.id, slice, got, expected }.into());
                    }
                }
            }
        }
        let mut entries =
            adapters.into_iter().map(|adapter| entry(adapter, &widths)).collect::<Result<Vec<_>, _>>()?;
        entries.sort_by_key(|entry| entry.id);
        if let Some(pair) = entries.windows(2).find(|pair| pair[0].id == pair[1].id) {
            return Err(ServingError::RepeatedAdapter { id: pair[0].id }.into());
        }
        if let Some(first) = entries.first().filter(|entry| entry.id < 0) {
            return Err(ServingError::NegativeAdapter { id: first.id }.into());
        }
        Ok(Self { in_features, slices: widths, entries })
    }

    /// Features of a token, unless no adapter touches the layer.
    pub fn in_features(&self) -> Option<usize> {
        self.in_features
    }

    /// Outputs of all slices together, where known.
    pub fn out_features(&self) -> Option<usize> {
        self.slices.iter().copied().sum()
    }

    /// Outputs of each slice, where known.
    pub fn slices(&self) -> &[Option<usize>] {
        &self.slices
    }

    /// The ids of the adapters, ascending.
    pub fn ids(&self) -> impl ExactSizeIterator<Item = i64> {
        self.entries.iter().map(|entry| entry.id)
    }

    /// The largest rank of each adapter, in the order of [`Self::ids`].
    pub fn ranks(&self) -> impl ExactSizeIterator<Item = usize> {
        self.entries.iter().map(|entry| entry.parts.iter().map(|part| part.pair.rank()).max().unwrap_or(0))
    }

    /// Bytes of all matrices of the stack; those shared with other stacks count in each.
    pub fn byte_len(&self) -> usize {
        self.entries.iter().flat_map(|entry| &entry.parts).map(|part| part.pair.byte_len()).sum()
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }
}

impl std::fmt::Debug for AdapterStack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdapterStack")
            .field("in_features", &self.in_features)
            .field("slices", &self.slices)
            .field("adapters", &self.entries.len())
            .finish()
    }
}

/// Places the layers of an adapter side by side.
fn entry(adapter: StackedAdapter, widths: &[Option<usize>]) -> Result<Entry, Error> {
    let StackedAdapter { id, layers, charge } = adapter;
    let part =
        |layer: PackedLayer, first_column| Part { pair: layer.pair, first_column, scaling: layer.scaling };
    if layers.len() == 1 && widths.len() > 1 {
        // One pair of matrices for all slices.
        let expected =
            widths.iter().copied().sum::<Option<usize>>().ok_or(ServingError::UnknownWidth { id })?;
        return match layers.into_iter().flatten().next() {
            Some(layer) if layer.out_features() != expected => {
                Err(ServingError::SliceWidth { id, slice: 0, got: layer.out_features(), expected }.into())
            }
            layer => Ok(Entry {
                id,
                parts: layer.map(|layer| part(layer, 0)).into_iter().collect(),
                _charge: charge,
            }),
        };
    }
    if !layers.is_empty() && layers.len() != widths.len() {
        return Err(ServingError::SliceCount { id, got: layers.len(), expected: widths.len() }.into());
    }
    let mut first = Some(0);
    let mut parts = Vec::new();
    for (layer, width) in layers.into_iter().zip(widths) {
        if let Some(layer) = layer {
            parts.push(part(layer, first.ok_or(ServingError::UnknownWidth { id })?));
        }
        first = first.zip(*width).map(|(first, width)| first + width);
    }
    Ok(Entry { id, parts, _charge: charge })
}
