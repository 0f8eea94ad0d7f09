//! Adapters in memory, ready to be applied: a bounded number of bytes, the least recently used go first.
//!
//! One mutex guards the books; what it guards takes microseconds. Matrices are read, checked and packed before it is
//! taken, and readers work on stacks that they hold by reference count, so nobody waits for a load and nobody sees
//! half of one. There is no other synchronisation to model.

mod books;
mod budget;
mod servable;

#[cfg(test)]
mod tests;

use crate::adapter::Adapter;
use crate::apply_stack::{AdapterStack, PackedLayer};
use crate::{Error, ServingError, kernels};
use books::Books;
use budget::Budget;
use infer_accel_tensor::TensorRef;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(crate) use budget::Charge;

/// One layer of an adapter that is to be loaded.
#[derive(Clone, Debug)]
pub struct LayerSource<'a> {
    /// The name of the module, as the model has it.
    pub name: String,
    /// `[rank, in_features]`
    pub lora_a: TensorRef<'a>,
    /// `[out_features, rank]`
    pub lora_b: TensorRef<'a>,
    /// What the product is multiplied by.
    pub scaling: f64,
}

/// What the store says of an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredAdapter {
    /// The name that it was loaded under.
    pub name: String,
    /// What tokens name it by. It stays when the adapter is replaced under its name, and is never given to another.
    pub id: i64,
    /// Which load of this store it came with, counted from 1.
    pub version: u64,
    /// The modules that it touches, in order.
    pub layers: Vec<String>,
    /// The largest rank.
    pub rank: usize,
    /// Bytes of its packed matrices.
    pub bytes: usize,
    /// Pins that hold it.
    pub pins: usize,
}

/// What a store holds, and what happened so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreStats {
    /// Bytes that may be alive.
    pub capacity_bytes: usize,
    /// Bytes that are alive: of adapters in the store, of those gone from it that a reader still holds, and of loads
    /// under way.
    pub used_bytes: usize,
    /// Bytes of adapters in the store.
    pub stored_bytes: usize,
    /// Bytes of pinned adapters.
    pub pinned_bytes: usize,
    /// Adapters in the store.
    pub adapters: usize,
    /// Loads that succeeded.
    pub loads: u64,
    /// Loads that replaced an adapter.
    pub swaps: u64,
    /// Adapters that had to go, or were told to.
    pub evictions: u64,
    /// Calls of [`AdapterStore::get`] that found their adapter.
    pub hits: u64,
    /// Those that did not.
    pub misses: u64,
}

/// Adapters in memory, packed, bounded by bytes.
///
/// # Examples
///
/// ```
/// use infer_accel_lora::{AdapterStore, LayerSource};
/// use infer_accel_tensor::TensorRef;
///
/// let store = AdapterStore::new(1 << 20);
/// let (down, up) = ([1.0_f32, 1.0], [1.0_f32, 0.0, -1.0]);
/// let layer = LayerSource {
///     name: "model.layers.0.self_attn.q_proj".into(),
///     lora_a: TensorRef::from_slice(&down, &[1, 2])?,
///     lora_b: TensorRef::from_slice(&up, &[3, 1])?,
///     scaling: 2.0,
/// };
/// let adapter = store.load("sql", &[layer])?;
/// let stack = store.stack(&["model.layers.0.self_attn.q_proj".into()], None)?;
/// assert_eq!(stack.ids().collect::<Vec<_>>(), [adapter.id]);
/// # Ok::<(), infer_accel_lora::Error>(())
/// ```
pub struct AdapterStore {
    books: Mutex<Books>,
    budget: Arc<Budget>,
}

impl AdapterStore {
    /// A store of at most so many bytes.
    pub fn new(capacity_bytes: usize) -> Self {
        Self { books: Mutex::default(), budget: Budget::new(capacity_bytes) }
    }

    /// Reads, checks and packs an adapter, and puts it into the store under a name; an older one of that name is
    /// replaced at once, and those who read it go on until they are done.
    ///
    /// Room is made by evicting what was least recently used, is not pinned and is not held by a reader. A
    /// replacement needs room beside the old adapter, which readers find until it is complete.
    ///
    /// # Errors
    ///
    /// Matrices that do not fit, numbers that are not finite, no layers, a layer that comes twice or has another width
    /// in another adapter, and [`ServingError::StoreFull`]. The store is then as before.
    pub fn load(&self, name: &str, layers: &[LayerSource<'_>]) -> Result<StoredAdapter, Error> {
        let bytes = check(name, layers)?;
        let charge = self.reserve(bytes, name, layers)?;
        let pack = |layer: &LayerSource<'_>| {
            let packed = PackedLayer::new(&layer.lora_a, &layer.lora_b, layer.scaling)?;
            Ok((layer.name.clone(), packed))
        };
        let packed = layers.iter().map(pack).collect::<Result<BTreeMap<_, _>, Error>>()?;
        self.lock().insert(name, packed, bytes, charge)
    }

    /// As [`Self::load`], of an adapter that was read from a file.
    ///
    /// # Errors
    ///
    /// As [`Self::load`]; [`ServingError::NotServable`] for what a product beside a linear layer cannot do: `DoRA`,
    /// biases, replaced modules, embeddings, convolutions, experts. Merge such an adapter instead.
    pub fn load_adapter(&self, name: &str, adapter: &Adapter) -> Result<StoredAdapter, Error> {
        self.load(name, &servable::layers(name, adapter)?)
    }

    /// Takes bytes of the budget, evicting what may go. Only here, under the lock, are bytes taken.
    fn reserve(&self, bytes: usize, name: &str, layers: &[LayerSource<'_>]) -> Result<Charge, Error> {
        let mut books = self.lock();
        for layer in layers {
            let columns =
                |tensor: &TensorRef<'_>, axis: usize| tensor.shape().get(axis).copied().unwrap_or(0);
            books.check_width(name, &layer.name, [columns(&layer.lora_b, 0), columns(&layer.lora_a, 1)])?;
        }
        if let Some(charge) = self.budget.charge(bytes) {
            return Ok(charge);
        }
        let missing = bytes.saturating_sub(self.budget.free());
        if bytes <= self.budget.capacity()
            && books.make_room(missing, name)
            && let Some(charge) = self.budget.charge(bytes)
        {
            return Ok(charge);
        }
        let pinned = books.pinned_bytes();
        Err(ServingError::StoreFull {
            needed: bytes,
            free: self.budget.free(),
            pinned,
            capacity: self.budget.capacity(),
        }
        .into())
    }

    /// What the store says of an adapter, which counts as used now.
    ///
    /// # Errors
    ///
    /// [`ServingError::AdapterAbsent`].
    pub fn get(&self, name: &str) -> Result<StoredAdapter, Error> {
        let mut books = self.lock();
        let found = books.touch(name).map(|_| ());
        match found {
            Ok(()) => books.counts.hits += 1,
            Err(_) => books.counts.misses += 1,
        }
        found?;
        books.describe(name)
    }

    /// Keeps an adapter from being evicted until it is unpinned as many times as it was pinned.
    ///
    /// # Errors
    ///
    /// [`ServingError::AdapterAbsent`].
    pub fn pin(&self, name: &str) -> Result<StoredAdapter, Error> {
        let mut books = self.lock();
        books.touch(name)?.pins += 1;
        books.describe(name)
    }

    /// Takes a pin away.
    ///
    /// # Errors
    ///
    /// [`ServingError::AdapterAbsent`], or [`ServingError::NotPinned`].
    pub fn unpin(&self, name: &str) -> Result<(), Error> {
        let mut books = self.lock();
        let entry = books.touch(name)?;
        entry.pins =
            entry.pins.checked_sub(1).ok_or_else(|| ServingError::NotPinned { name: name.to_string() })?;
        Ok(())
    }

    /// Takes an adapter out of the store. Its bytes are free once the last reader is done.
    ///
    /// # Errors
    ///
    /// [`ServingError::AdapterAbsent`], or [`ServingError::AdapterPinned`].
    pub fn evict(&self, name: &str) -> Result<(), Error> {
        self.lock().evict(name)
    }

    /// The adapters of a layer, or of several layers whose outputs the model has fused, in that order. An adapter that
    /// does not touch them is there and does nothing. Kept until the store changes, so that asking again costs little.
    ///
    /// # Errors
    ///
    /// Slices whose outputs do not fit, or of which nothing tells the width.
    pub fn stack(&self, layers: &[String], slices: Option<&[usize]>) -> Result<Arc<AdapterStack>, Error> {
        self.lock().stack(layers, slices)
    }

    /// The stacks of several layers at one moment: an adapter that is replaced meanwhile is the old one in all of them
    /// or the new one in all of them.
    ///
    /// # Errors
    ///
    /// As [`Self::stack`].
    pub fn stacks(
        &self,
        layers: &[(Vec<String>, Option<Vec<usize>>)],
    ) -> Result<Vec<Arc<AdapterStack>>, Error> {
        let mut books = self.lock();
        layers.iter().map(|(layers, slices)| books.stack(layers, slices.as_deref())).collect()
    }

    /// Names of the adapters, the least recently used first.
    pub fn names(&self) -> Vec<String> {
        let books = self.lock();
        let mut names: Vec<_> = books.entries.iter().map(|(name, entry)| (entry.used_at, name)).collect();
        names.sort_unstable();
        names.into_iter().map(|(_, name)| name.clone()).collect()
    }

    /// What the store holds, and what happened so far.
    pub fn stats(&self) -> StoreStats {
        let books = self.lock();
        let counts = books.counts;
        StoreStats {
            capacity_bytes: self.budget.capacity(),
            used_bytes: self.budget.used(),
            stored_bytes: books.entries.values().map(|entry| entry.bytes).sum(),
            pinned_bytes: books.pinned_bytes(),
            adapters: books.entries.len(),
            loads: counts.loads,
            swaps: counts.swaps,
            evictions: counts.evictions,
            hits: counts.hits,
            misses: counts.misses,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        // No call panics between two writes to the books.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Refuses what cannot be loaded; returns the bytes that it takes.
fn check(name: &str, layers: &[LayerSource<'_>]) -> Result<usize, Error> {
    if layers.is_empty() {
        return Err(ServingError::NoLayers { name: name.to_string() }.into());
    }
    let mut names = BTreeSet::new();
    let mut bytes = 0_usize;
    for LayerSource { name: layer, lora_a, lora_b, scaling } in layers {
        bytes = bytes.saturating_add(PackedLayer::byte_len_of(lora_a, lora_b)?);
        if !names.insert(layer) {
            return Err(ServingError::RepeatedLayer { name: name.to_string(), layer: layer.clone() }.into());
        }
        if !(*scaling as f32).is_finite() {
            return Err(Error::Scaling { scaling: *scaling });
        }
        if !(kernels::is_finite(lora_a) && kernels::is_finite(lora_b)) {
            return Err(ServingError::NotFinite { name: name.to_string(), layer: layer.clone() }.into());
        }
    }
    Ok(bytes)
}

impl std::fmt::Debug for AdapterStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdapterStore").field("stats", &self.stats()).finish()
    }
}
