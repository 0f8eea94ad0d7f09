//! `BlockManager`.
//!
//! The manager's lock is taken before the pool's, and neither is held while a prompt is hashed without the
//! interpreter's lock: so a fork finds both free.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use infer_accel_kvcache::KvCacheError;
use infer_accel_kvcache::hash::{BlockHasher, ExtraKeys};
use infer_accel_kvcache::manager::{
    Admission, BlockManager as CoreManager, CacheGroup, ManagerOptions, Prompt, PromptNames,
};
use infer_accel_kvcache::pool::BlockPool as CorePool;
use infer_accel_tensor::ErrorKind;
use numpy::{PyArray1, PyArray2, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::sync::MutexExt;

use super::extra_keys::BlockKeys;
use super::hash::first_parent;
use super::pool::{BlockPool, flat, full_width, retention};
use crate::errors::NativeError;
use crate::numbers::Count;
use crate::run::run;
use crate::tensor::{ByteTable, IntTable, IntTarget, TokenIds};

/// Hashing a token takes as long as moving about this many bytes.
const BYTES_PER_HASH: usize = 90;
/// Reading one takes as long as moving this many.
const BYTES_PER_READ: usize = 8;

/// In the order of the fields of `ManagerStats` in Python.
type Stats = (usize, usize, u64, u64, u64, u64, u64, u64);

/// Sequences on a pool: tables, slots, forks.
#[pyclass(frozen, module = "infer_accel._native.kvcache")]
pub(super) struct BlockManager {
    pool: Py<BlockPool>,
    state: Mutex<State>,
    block_size: usize,
    first_parent: Vec<u8>,
}

struct State {
    core: CoreManager,
    /// Memory of the last admission: fresh memory costs more than what is done in it.
    scratch: Scratch,
}

#[derive(Default)]
struct Scratch {
    tokens: Vec<u32>,
    names: PromptNames,
}

impl BlockManager {
    /// Runs a call on the locked state and pool. A panic would be a defect; it comes out as an `InternalError`.
    fn call<T>(
        &self,
        py: Python<'_>,
        call: impl FnOnce(&mut State, &mut CorePool) -> Result<T, KvCacheError>,
    ) -> Result<T, NativeError> {
        let mut state = self.state.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner);
        self.pool.get().call(py, |pool| call(&mut state, pool))
    }

    /// The same for calls that ask the manager alone.
    fn ask<T>(
        &self,
        py: Python<'_>,
        call: impl FnOnce(&mut CoreManager) -> Result<T, NativeError>,
    ) -> Result<T, NativeError> {
        let mut state = self.state.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner);
        catch_unwind(AssertUnwindSafe(|| call(&mut state.core))).unwrap_or_else(|_| {
            Err(NativeError::new(
                ErrorKind::Internal,
                "internal.pool",
                "the manager's books are broken by a defect of infer-accel, please report it; make a new manager",
            ))
        })
    }
}

#[pymethods]
impl BlockManager {
    /// `groups` holds the window of each cache group, None for full attention.
    #[new]
    #[pyo3(signature = (pool, *, block_size, groups, scrub = false, watermark = 0.0))]
    fn new(
        pool: Py<BlockPool>,
        block_size: Count,
        groups: Vec<Option<Count>>,
        scrub: bool,
        watermark: f64,
    ) -> PyResult<Self> {
        let algorithm = pool.get().algorithm();
        let group = |window: Option<Count>| match window {
            None => CacheGroup::Full,
            Some(window) => CacheGroup::SlidingWindow { window: window.0 },
        };
        let first_parent = first_parent(algorithm)?;
        let options = ManagerOptions {
            block_size: block_size.0,
            algorithm,
            first_parent: first_parent.clone(),
            groups: groups.into_iter().map(group).collect(),
            scrub,
            watermark,
        };
        let core = CoreManager::new(&options).map_err(NativeError::from)?;
        let state = State { core, scratch: Scratch::default() };
        Ok(Self { pool, state: Mutex::new(state), block_size: block_size.0, first_parent })
    }

    /// Admits a prompt; returns its sequence, its cached tokens, and the tokens that have blocks.
    ///
    /// `extra_keys` has an entry a block; or `prompt_keys` has those of the first block and of all others.
    #[pyo3(signature = (token_ids, *, hashes = None, extra_keys = None, prompt_keys = None, limit = None, priority = None, seconds = None))]
    #[allow(clippy::too_many_arguments)] // a prompt, and how it is kept
    fn admit(
        &self,
        py: Python<'_>,
        token_ids: TokenIds<'_>,
        hashes: Option<ByteTable>,
        extra_keys: Option<BlockKeys>,
        prompt_keys: Option<BlockKeys>,
        limit: Option<Count>,
        priority: Option<Count>,
        seconds: Option<f64>,
    ) -> PyResult<(i64, usize, usize)> {
        let ids = token_ids.view()?;
        let num_blocks = ids.len() / self.block_size;
        let mut later_keys = None;
        let mut keys = extra_keys.map(|keys| keys.0).unwrap_or_default();
        if let Some(BlockKeys(pair)) = prompt_keys
            && let [first, later] = pair.as_slice()
        {
            later_keys.clone_from(later);
            if keys.is_empty() && (first.is_some() || later.is_some()) {
                keys = vec![later.clone(); num_blocks];
                keys.iter_mut().take(1).for_each(|key| key.clone_from(first));
            }
        }
        let algorithm = self.pool.get().algorithm();
        if let Some(hashes) = &hashes {
            self.pool.get().rows(hashes)?; // of the right width
        }
        let mut scratch = self.ask_scratch(py);
        let filled = run(py, ids.len() * BYTES_PER_READ, || {
            scratch.tokens.resize(ids.len(), 0);
            ids.read(0, &mut scratch.tokens).map(|()| scratch)
        })?;
        let filled = if hashes.is_none() { self.name_blocks(py, filled, &keys)? } else { filled };
        let given = hashes.as_ref().map(|hashes| full_width(hashes.bytes(), algorithm.digest_len()));
        let prompt = Prompt {
            token_ids: &filled.tokens,
            hashes: given.as_deref().unwrap_or(filled.names.hashes()),
            known: if given.is_some() { &[] } else { filled.names.known() },
            extra_keys: &keys,
            later_keys: later_keys.as_ref(),
            limit: limit.map(|limit| limit.0),
            retention: retention(priority, seconds),
        };
        let admitted = self.call(py, |state, pool| state.core.admit(pool, &prompt));
        drop(given);
        self.give_scratch(py, filled);
        let Admission { sequence, cached_tokens, num_tokens } = admitted?;
        Ok((sequence, cached_tokens, num_tokens))
    }

    /// Appends tokens to sequences; returns pairs of pages to copy.
    #[pyo3(signature = (sequences, tokens, counts = None))]
    fn step<'py>(
        &self,
        py: Python<'py>,
        sequences: IntTable,
        tokens: TokenIds<'py>,
        counts: Option<IntTable>,
    ) -> PyResult<Bound<'py, PyArray2<i64>>> {
        let sequences = named(&sequences)?;
        let ids = tokens.view()?;
        let mut tokens = vec![0; ids.len()];
        ids.read(0, &mut tokens).map_err(NativeError::from)?;
        let counts = counts.as_ref().map(counted).transpose()?;
        let copies = self.call(py, |state, pool| {
            let copies = state.core.step(pool, sequences, &tokens, counts.as_deref())?;
            Ok(copies.as_flattened().iter().map(|&id| i64::from(id)).collect::<Vec<_>>())
        })?;
        let rows = copies.len() / 2;
        PyArray1::from_vec(py, copies).reshape([rows, 2])
    }

    /// Sequences that share all blocks of this one.
    fn fork<'py>(&self, py: Python<'py>, sequence: i64, count: Count) -> PyResult<Bound<'py, PyArray1<i64>>> {
        if count.0 > 1 << 20 {
            return Err(NativeError::new(
                ErrorKind::Argument,
                "argument.count",
                format!("{} forks came; at most 2**20 are made in one call", count.0),
            )
            .into());
        }
        let mut forks = vec![0; count.0];
        self.call(py, |state, pool| state.core.fork(pool, sequence, &mut forks))?;
        Ok(PyArray1::from_vec(py, forks))
    }

    /// Ends sequences.
    fn release(&self, py: Python<'_>, sequences: IntTable) -> PyResult<()> {
        let sequences = named(&sequences)?;
        Ok(self.call(py, |state, pool| state.core.release(pool, sequences))?)
    }

    /// Writes the table of each sequence into a row of `out`, with 0 behind it.
    #[pyo3(signature = (sequences, out, *, group = Count(0)))]
    fn block_tables(
        &self,
        py: Python<'_>,
        sequences: IntTable,
        out: IntTarget<'_>,
        group: Count,
    ) -> PyResult<()> {
        let sequences = named(&sequences)?;
        let mut rows = out.rows(2)?;
        let outcome = self.ask(py, |core| {
            core.check_group(group.0)?;
            let mut longest = 0;
            for (position, &sequence) in sequences.iter().enumerate() {
                longest = longest.max(core.block_table(position, sequence, group.0)?.len());
            }
            if rows.rows() < sequences.len() || rows.width() < longest {
                return Err(too_small(&[rows.rows(), rows.width()], &[sequences.len(), longest]));
            }
            for (position, &sequence) in sequences.iter().enumerate() {
                let table = core.block_table(position, sequence, group.0)?;
                let end = rows.write(position, 0, table.iter().map(|&id| id.into()));
                rows.fill(position, end, 0);
            }
            Ok(())
        });
        Ok(outcome?)
    }

    /// Writes the slots of the tokens that were added last, sequence by sequence, with -1 behind them; returns their
    /// number.
    #[pyo3(signature = (sequences, out, *, group = Count(0)))]
    fn slot_mapping(
        &self,
        py: Python<'_>,
        sequences: IntTable,
        out: IntTarget<'_>,
        group: Count,
    ) -> PyResult<usize> {
        let sequences = named(&sequences)?;
        let mut row = out.rows(1)?;
        let outcome = self.ask(py, |core| {
            core.check_group(group.0)?;
            let mut total = 0;
            for (position, &sequence) in sequences.iter().enumerate() {
                total += core.slots(position, sequence, group.0)?.len();
            }
            if row.width() < total {
                return Err(too_small(&[row.width()], &[total]));
            }
            let mut end = 0;
            for (position, &sequence) in sequences.iter().enumerate() {
                end = row.write(0, end, core.slots(position, sequence, group.0)?);
            }
            row.fill(0, end, u64::MAX);
            Ok(end)
        });
        Ok(outcome?)
    }

    /// Tokens of each sequence.
    fn num_tokens<'py>(&self, py: Python<'py>, sequences: IntTable) -> PyResult<Bound<'py, PyArray1<i64>>> {
        let sequences = named(&sequences)?;
        let tokens = self.ask(py, |core| {
            let tokens = sequences.iter().enumerate();
            let tokens =
                tokens.map(|(position, &sequence)| core.num_tokens(position, sequence).map(|n| n as i64));
            Ok(tokens.collect::<Result<Vec<_>, _>>()?)
        })?;
        Ok(PyArray1::from_vec(py, tokens))
    }

    /// Blocks to clean before they are used.
    fn take_scrubs<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        let blocks = self.ask(py, |core| Ok(core.take_scrubs()))?;
        Ok(PyArray1::from_vec(py, blocks.into_iter().map(i64::from).collect()))
    }

    /// Sequences and tokens that run; so far: admissions, prompt tokens, cached ones, appended tokens, copied blocks,
    /// refusals.
    fn stats(&self, py: Python<'_>) -> PyResult<Stats> {
        let stats = self.ask(py, |core| Ok(core.stats()))?;
        Ok((
            stats.sequences,
            stats.tokens,
            stats.admissions,
            stats.prompt_tokens,
            stats.cached_tokens,
            stats.appended_tokens,
            stats.copied_blocks,
            stats.refusals,
        ))
    }

    /// Proves that the books of manager and pool are right.
    fn check_invariants(&self, py: Python<'_>) -> PyResult<()> {
        Ok(self.call(py, |state, pool| state.core.check_invariants(pool))?)
    }
}

impl BlockManager {
    /// The hashes of a prompt's blocks: of those that are cached without hashing, of the others without the locks.
    fn name_blocks(
        &self,
        py: Python<'_>,
        mut scratch: Scratch,
        keys: &[Option<ExtraKeys>],
    ) -> PyResult<Scratch> {
        let algorithm = self.pool.get().algorithm();
        if algorithm.is_pickle() && keys.iter().any(Option::is_some) {
            return Err(
                NativeError::from(KvCacheError::ExtraKeysPickle { algorithm: algorithm.name() }).into()
            );
        }
        let keys_of = |block: usize| keys.get(block).and_then(Option::as_ref);
        let Scratch { tokens, names } = &mut scratch;
        self.call(py, |state, pool| {
            state.core.recognise(pool, tokens, keys_of, names);
            Ok(())
        })?;
        let rest = tokens.len() - names.hashes().len() * self.block_size;
        run(py, rest * BYTES_PER_HASH, || {
            let mut hasher = BlockHasher::new(algorithm, self.block_size)?;
            names.hash_rest(&mut hasher, &self.first_parent, tokens, keys_of);
            Ok::<_, KvCacheError>(())
        })?;
        Ok(scratch)
    }

    fn ask_scratch(&self, py: Python<'_>) -> Scratch {
        let mut state = self.state.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut state.scratch)
    }

    fn give_scratch(&self, py: Python<'_>, scratch: Scratch) {
        let mut state = self.state.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner);
        state.scratch = scratch;
    }
}

fn named(sequences: &IntTable) -> Result<&[i64], NativeError> {
    if sequences.shape().len() == 1 {
        return Ok(sequences.values());
    }
    Err(NativeError::new(
        ErrorKind::Shape,
        "shape.sequences",
        format!("sequences of shape {:?} came; pass them in one dimension", sequences.shape()),
    ))
}

fn counted(counts: &IntTable) -> Result<Vec<usize>, NativeError> {
    let counts = flat(counts)?;
    let count = |&count: &i64| {
        usize::try_from(count).map_err(|_| {
            NativeError::new(
                ErrorKind::Argument,
                "argument.count",
                format!("{count} came as a count; allowed are 0 to 2**63 - 1"),
            )
        })
    };
    counts.iter().map(count).collect()
}

fn too_small(got: &[usize], needed: &[usize]) -> NativeError {
    NativeError::new(
        ErrorKind::Shape,
        "shape.out",
        format!("a target of shape {got:?} came where at least {needed:?} is needed"),
    )
}
