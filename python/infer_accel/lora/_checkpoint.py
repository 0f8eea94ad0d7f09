"""Merging into checkpoints that need not fit into memory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal, get_args

from infer_accel import _backend
from infer_accel._numbers import real
from infer_accel.errors import ArgumentError
from infer_accel.lora._adapter import Adapter
from infer_accel.lora._report import MergeReport, UnmergeReport

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

__all__ = ["merge_checkpoint", "unmerge_checkpoint"]

Path = str | os.PathLike[str]

#: The ways of putting adapters together.
MergeMethod = Literal["sum", "linear", "cat", "svd", "ties", "dare_linear", "dare_ties", "magnitude_prune"]


def merge_checkpoint(
    base_dir: Path,
    adapters: Path | Adapter | Sequence[Path | Adapter],
    out_dir: Path,
    *,
    weights: Sequence[float] | None = None,
    method: MergeMethod = "sum",
    density: float | None = None,
    rank: int | None = None,
    seed: int | None = None,
    dtype: str | None = None,
    residue: bool = False,
    verify: bool = True,
    resume: bool = True,
    allow_unused: bool = False,
    dry_run: bool = False,
    num_threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> MergeReport:
    """Add adapters to a safetensors checkpoint on the disk, and write another one.

    Every merged element is ``round(W + Σ weights[i] · scaling[i] · (lora_B[i] @ lora_A[i]))`` with one rounding, as
    :func:`infer_accel.lora.merge_weights` does it: accumulated in float32, adapter after adapter. The same bits for
    every number of threads, and whether or not the call was interrupted in between.

    The output appears under its name when it is whole and flushed to the disk. Until then it grows in a hidden
    directory beside (``.NAME.unfinished``), from which the same call goes on if this one is interrupted, killed, or
    runs out of space.

    Parameters
    ----------
    base_dir
        The checkpoint: shards with ``*.safetensors.index.json``, or one ``*.safetensors``. Only read. Tensors that
        nothing is added to go through byte for byte; configuration, tokenizer and index go along. Files that hold
        the weights in another form (``*.bin``, ``*.gguf``, …) are left out. Symbolic links out of the directory are
        refused, except into the blobs of a model cache that it is a snapshot of.
    adapters
        One adapter or several: PEFT directories, single files, or what :meth:`infer_accel.lora.Adapter.load` returned
        (for instance with ``follow_symlinks=True``, which a model cache needs).
    out_dir
        The directory to make: absent, or empty; neither inside the base nor around it.
    weights
        What each adapter's deltas are multiplied by, beside its own scaling; all 1 by default.
    method
        ``"sum"``: the plain sum of all deltas. Any other name is a method of :func:`infer_accel.lora.combine`: the
        adapters are made into one, and that is merged. It lies in memory as float32, beside the adapters.
    density, rank, seed
        Settings of the method, as for :func:`infer_accel.lora.combine`.
    dtype
        ``"float32"``, ``"float16"`` or ``"bfloat16"``: the number format of all tensors of these three in the
        output. None leaves each its own.
    residue
        Whether to write, into ``out_dir/residue``, what :func:`unmerge_checkpoint` needs.
    verify
        Whether to read a sample of every tensor back and to compute it again in float64.
    resume
        Whether to go on with unfinished work of the same call; False discards it.
    allow_unused
        Whether deltas that have no place in the base are reported instead of refused.
    dry_run
        Whether to check everything and write nothing.
    num_threads
        The most threads that compute.
    progress
        Called every few dozen milliseconds with bytes done and bytes in all, on the calling thread. What it raises
        stops the merge, and is raised.

    Returns
    -------
    MergeReport
        Every changed tensor with the norm of its delta and how much of it survived, and every file with its checksum.

    Raises
    ------
    CheckpointError
        The base is no checkpoint or contradicts itself; `out_dir` is not vacant, or holds unfinished work of another
        call.
    AdapterError
        An adapter is refused, does not fit, or has deltas without a place in the base; or the method cannot combine
        them: it refuses DoRA, tensors that are replaced as a whole, and, but for ``"cat"`` and ``"svd"``, other ranks.
    StorageError
        The system refuses to read or write; with the code ``"storage.full"`` where space is missing: make some and
        repeat the call.
    IntegrityError
        What was read back is not what was written, or the base was written to meanwhile. Nothing was published.
    ArgumentError
        An argument is not allowed, or of no use to the method.

    Notes
    -----
    Memory: some 20 MB of buffers, two more for each thread, and the adapters; whatever the size of the model. Time:
    that of reading and writing the checkpoint once.

    Examples
    --------
    >>> from infer_accel.lora import merge_checkpoint
    >>> merge_checkpoint("no-such-directory", "adapter", "merged", weights=[0.5, 0.5])
    Traceback (most recent call last):
        ...
    infer_accel.errors.ArgumentError: 2 weights came for 1 adapters; pass one for each, or None for 1.0 each
    """
    several = _several(adapters)
    if method not in get_args(MergeMethod):
        message = f"method={method!r} came; allowed: {', '.join(get_args(MergeMethod))}"
        raise ArgumentError(message, code="argument.method")
    if weights is not None and len(weights) != len(several):
        message = f"{len(weights)} weights came for {len(several)} adapters; pass one for each, or None for 1.0 each"
        raise ArgumentError(message, code="argument.weights")
    text: str = _core().merge_checkpoint(
        os.fspath(base_dir),
        several,
        os.fspath(out_dir),
        weights=[1.0] * len(several) if weights is None else [real(weight) for weight in weights],
        method=method,
        density=None if density is None else real(density),
        rank=rank,
        seed=seed,
        dtype=dtype,
        residue=residue,
        verify=verify,
        resume=resume,
        allow_unused=allow_unused,
        dry_run=dry_run,
        num_threads=num_threads,
        progress=progress,
    )
    return MergeReport.from_json(text)


def unmerge_checkpoint(
    merged_dir: Path,
    out_dir: Path,
    *,
    adapters: Path | Adapter | Sequence[Path | Adapter],
    residue_dir: Path | None = None,
    resume: bool = True,
    num_threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> UnmergeReport:
    """Give the base of a merged checkpoint back, bit for bit: −0.0 and NaN payloads too.

    Parameters
    ----------
    merged_dir
        What :func:`merge_checkpoint` wrote with ``residue=True``. Only read.
    out_dir
        The directory to make, as for a merge.
    adapters
        The adapters of the merge, in its order; the residue knows their weights.
    residue_dir
        Where the residue lies, if it is no longer in ``merged_dir/residue``.
    resume, num_threads, progress
        As for :func:`merge_checkpoint`.

    Returns
    -------
    UnmergeReport
        Which tensors came back how, and every file with its checksum.

    Raises
    ------
    IntegrityError
        The merged shards are not those that were written, or the residue is damaged, missing, of other adapters, or of
        another revision of the arithmetic. Nothing was published.
    AdapterError
        These are not the adapters that were merged.
    CheckpointError, StorageError, ArgumentError
        As for :func:`merge_checkpoint`.

    Examples
    --------
    >>> from infer_accel.lora import unmerge_checkpoint
    >>> unmerge_checkpoint("no-such-directory", "base-again", adapters=[])
    Traceback (most recent call last):
        ...
    infer_accel.errors.ArgumentError: no adapters came; name at least one
    """
    text: str = _core().unmerge_checkpoint(
        os.fspath(merged_dir),
        os.fspath(out_dir),
        adapters=_several(adapters),
        residue_dir=None if residue_dir is None else os.fspath(residue_dir),
        resume=resume,
        num_threads=num_threads,
        progress=progress,
    )
    return UnmergeReport.from_json(text)


def _several(adapters: Path | Adapter | Sequence[Path | Adapter]) -> list[object]:
    """Return what the core takes for one adapter or for several."""
    several = [adapters] if isinstance(adapters, str | os.PathLike | Adapter) else list(adapters)
    if not several:
        raise ArgumentError("no adapters came; name at least one", code="argument.adapters")
    for adapter in several:
        if not isinstance(adapter, Adapter):
            os.fsencode(adapter)  # what names no file is refused here, in one line
    return [adapter._core if isinstance(adapter, Adapter) else os.fspath(adapter) for adapter in several]  # noqa: SLF001


def _core() -> ModuleType:
    """Return the native core: the specification knows tensors, not files."""
    native: ModuleType = _backend.files().lora
    return native
