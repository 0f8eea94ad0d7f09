//! What the store knows, under its lock.

use super::budget::Charge;
use crate::apply_stack::{AdapterStack, PackedLayer, StackedAdapter};
use crate::{Error, ServingError, StoredAdapter};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Stacks that are kept between two changes of the store: more than any model has layers.
const KEPT_STACKS: usize = 8192;

/// An adapter, whole.
pub(super) struct Entry {
    pub(super) id: i64,
    pub(super) version: u64,
    pub(super) layers: BTreeMap<String, PackedLayer>,
    pub(super) bytes: usize,
    pub(super) charge: Arc<Charge>,
    pub(super) pins: usize,
    /// When it was last asked for: the count of that moment.
    pub(super) used_at: u64,
}

/// What a stack is made of: names of layers, and the outputs of each where the caller told.
type StackKey = (Vec<String>, Option<Vec<usize>>);

#[derive(Default)]
pub(super) struct Books {
    pub(super) entries: HashMap<String, Entry>,
    stacks: HashMap<StackKey, Arc<AdapterStack>>,
    moments: u64,
    next_id: i64,
    versions: u64,
    pub(super) counts: Counts,
}

/// What happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) loads: u64,
    pub(super) swaps: u64,
    pub(super) evictions: u64,
    pub(super) hits: u64,
    pub(super) misses: u64,
}

impl Entry {
    fn describe(&self, name: &str) -> StoredAdapter {
        StoredAdapter {
            name: name.to_string(),
            id: self.id,
            version: self.version,
            layers: self.layers.keys().cloned().collect(),
            rank: self.layers.values().map(PackedLayer::rank).max().unwrap_or(0),
            bytes: self.bytes,
            pins: self.pins,
        }
    }
}

impl Books {
    /// The adapter of a name, as used just now.
    pub(super) fn touch(&mut self, name: &str) -> Result<&mut Entry, Error> {
        self.moments += 1;
        let entry = self
            .entries
            .get_mut(name)
            .ok_or_else(|| ServingError::AdapterAbsent { name: name.to_string() })?;
        entry.used_at = self.moments;
        Ok(entry)
    }

    pub(super) fn describe(&self, name: &str) -> Result<StoredAdapter, Error> {
        let entry =
            self.entries.get(name).ok_or_else(|| ServingError::AdapterAbsent { name: name.to_string() })?;
        Ok(entry.describe(name))
    }

    /// Bytes of pinned adapters.
    pub(super) fn pinned_bytes(&self) -> usize {
        self.entries.values().filter(|entry| entry.pins > 0).map(|entry| entry.bytes).sum()
    }

    /// Evicts the least recently used adapters until `missing` bytes are free, or nothing if that cannot be. The
    /// adapter called `kept` stays: it is about to be replaced, and readers must find the one or the other.
    pub(super) fn make_room(&mut self, missing: usize, kept: &str) -> bool {
        // Stacks can be made again, and would hold what is to go.
        self.stacks.clear();
        let mut candidates: Vec<_> = self
            .entries
            .iter()
            .filter(|(name, entry)| {
                // Nobody else can get hold of an adapter while the books are locked, so one owner means one owner.
                entry.pins == 0 && Arc::strong_count(&entry.charge) == 1 && name.as_str() != kept
            })
            .map(|(name, entry)| (entry.used_at, entry.bytes, name.clone()))
            .collect();
        candidates.sort_unstable();
        let mut found = 0_usize;
        let needed = candidates.iter().position(|(_, bytes, _)| {
            found = found.saturating_add(*bytes);
            found >= missing
        });
        let Some(last) = needed else { return missing == 0 };
        for (_, _, name) in candidates.drain(..=last) {
            self.entries.remove(&name);
            self.counts.evictions += 1;
        }
        true
    }

    /// Puts an adapter in, in the place of an older one of the same name.
    pub(super) fn insert(
        &mut self,
        name: &str,
        layers: BTreeMap<String, PackedLayer>,
        bytes: usize,
        charge: Charge,
    ) -> Result<StoredAdapter, Error> {
        for (layer, packed) in &layers {
            self.check_width(name, layer, [packed.out_features(), packed.in_features()])?;
        }
        self.moments += 1;
        self.versions += 1;
        self.counts.loads += 1;
        let old = self.entries.get(name).map(|entry| (entry.id, entry.pins));
        let (id, pins) = old.unwrap_or((self.next_id, 0));
        match old {
            Some(_) => self.counts.swaps += 1,
            None => self.next_id += 1,
        }
        let (charge, used_at) = (Arc::new(charge), self.moments);
        let entry = Entry { id, version: self.versions, layers, bytes, charge, pins, used_at };
        let described = entry.describe(name);
        self.entries.insert(name.to_string(), entry);
        self.stacks.clear();
        Ok(described)
    }

    /// Refuses a layer of another width, outputs and features, than the same layer of another adapter.
    pub(super) fn check_width(&self, name: &str, layer: &str, got: [usize; 2]) -> Result<(), Error> {
        for (other, entry) in self.entries.iter().filter(|(other, _)| other.as_str() != name) {
            let Some(known) = entry.layers.get(layer) else { continue };
            let expected = [known.out_features(), known.in_features()];
            if got != expected {
                let (name, layer, other) = (name.to_string(), layer.to_string(), other.clone());
                return Err(ServingError::OtherBase { name, layer, got, other, expected }.into());
            }
        }
        Ok(())
    }

    /// Takes an adapter out.
    pub(super) fn evict(&mut self, name: &str) -> Result<(), Error> {
        let entry =
            self.entries.get(name).ok_or_else(|| ServingError::AdapterAbsent { name: name.to_string() })?;
        if entry.pins > 0 {
            return Err(ServingError::AdapterPinned { name: name.to_string(), pins: entry.pins }.into());
        }
        self.entries.remove(name);
        self.stacks.clear();
        self.counts.evictions += 1;
        Ok(())
    }

    /// All adapters of one layer, or of several that the model has fused.
    pub(super) fn stack(
        &mut self,
        layers: &[String],
        slices: Option<&[usize]>,
    ) -> Result<Arc<AdapterStack>, Error> {
        let key = (layers.to_vec(), slices.map(<[usize]>::to_vec));
        if let Some(stack) = self.stacks.get(&key) {
            return Ok(Arc::clone(stack));
        }
        let adapters = self.entries.values().map(|entry| {
            let products: Vec<_> = layers.iter().map(|layer| entry.layers.get(layer).cloned()).collect();
            let is_untouched = products.iter().all(Option::is_none);
            StackedAdapter {
                id: entry.id,
                layers: if is_untouched { Vec::new() } else { products },
                charge: Some(Arc::clone(&entry.charge)),
            }
        });
        let stack = Arc::new(AdapterStack::new(adapters.collect(), slices)?);
        if self.stacks.len() >= KEPT_STACKS {
            self.stacks.clear();
        }
        self.stacks.insert(key, Arc::clone(&stack));
        Ok(stack)
    }
}
