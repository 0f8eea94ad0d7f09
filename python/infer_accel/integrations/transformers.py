"""Continuous batching of transformers, with its blocks lent by a :class:`~infer_accel.kvcache.BlockManager`.

::

    from infer_accel.integrations import transformers as accelerated

    accelerated.install()
    outputs = model.generate_batch(inputs, generation_config=…, continuous_batching_config=…)

transformers keeps its blocks in dictionaries, and makes lists of the row of every token that a batch reads, in each
step. Here one call a step gives a whole batch its blocks, and the rows are written where the model reads them.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

try:
    import transformers
    from transformers.generation.continuous_batching import cache as _engine_cache
    from transformers.generation.continuous_batching import continuous_api as _engine
except ImportError as error:
    _message = (
        f"this needs transformers 5.19 or 5.23 with torch, and what is installed has no such part: {error}"
    )
    raise ModuleNotFoundError(_message, name="transformers") from error

try:
    from infer_accel.integrations._transformers import versions
    from infer_accel.integrations._transformers.cache import ManagedAllocator, ManagedCache, ManagedInputs
except ImportError as error:
    _message = (
        f"transformers {transformers.__version__} came; known to work: 5.19, 5.23; its continuous batching is laid "
        f"out differently: {error}"
    )
    raise ModuleNotFoundError(_message, name="transformers") from error

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["KNOWN_VERSIONS", "install", "installed", "is_installed", "uninstall"]

#: Minor versions of transformers that were tested.
KNOWN_VERSIONS = versions.KNOWN_VERSIONS

_log = logging.getLogger("infer_accel")
_originals: dict[str, Any] = {}


def install() -> bool:
    """Have batches that begin from now on use the block manager.

    Returns
    -------
    bool
        Whether they do. Under a version that is not known, or whose methods have other parameters, one line of the
        log says so, and transformers works as before.

    Notes
    -----
    Served are models of full attention, batches one after the other (``use_async_batching=False``, what a CPU has
    anyway), without tensor parallelism and without offloading to the host. Whatever else comes works as before, and
    one line of the log says why. Managers that exist already keep what they have. A second call does nothing.

    Examples
    --------
    >>> from infer_accel.integrations import transformers as accelerated
    >>> with accelerated.installed():
    ...     accelerated.is_installed()
    True
    >>> accelerated.is_installed()
    False
    """
    if _originals:
        return True
    problem = versions.interface_problem()
    if problem is not None:
        _log.error("infer-accel does not manage transformers' blocks: %s", problem)
        return False
    allocators = _engine_cache.ATTN_TYPE_TO_ALLOCATOR
    _originals.update(
        allocator=allocators[ManagedAllocator.layer_type],
        cache=_engine.PagedAttentionCache,
        inputs=_engine.ContinuousBatchingIOs,
    )
    allocators[ManagedAllocator.layer_type] = ManagedAllocator
    _engine.PagedAttentionCache = _make_cache
    _engine.ContinuousBatchingIOs = ManagedInputs
    return True


def uninstall() -> None:
    """Have batches that begin from now on work as transformers does; nothing where nothing is installed."""
    if not _originals:
        return
    _engine_cache.ATTN_TYPE_TO_ALLOCATOR[ManagedAllocator.layer_type] = _originals["allocator"]
    _engine.PagedAttentionCache = _originals["cache"]
    _engine.ContinuousBatchingIOs = _originals["inputs"]
    _originals.clear()


def is_installed() -> bool:
    """Return whether batches that begin now use the block manager."""
    return bool(_originals)


@contextlib.contextmanager
def installed() -> Iterator[bool]:
    """Install for the length of a ``with`` block; gives what :func:`install` returns."""
    before = is_installed()
    result = install()
    try:
        yield result
    finally:
        if not before:
            uninstall()


def _make_cache(*args: Any, **kwargs: Any) -> object:  # noqa: ANN401 - transformers'
    """Make a cache as transformers' class of that name does, a managed one if it can be."""
    problem = _configuration_problem(*args, **kwargs)
    if problem is None:
        return ManagedCache(*args, **kwargs)
    _log.warning("infer-accel does not manage this model's blocks: %s", problem)
    return _originals["cache"](*args, **kwargs)


def _configuration_problem(
    config: Any,  # noqa: ANN401 - transformers'
    continuous_batching_config: Any,  # noqa: ANN401
    device: object,  # noqa: ARG001
    distributed_helper: Any,  # noqa: ANN401
    **_: object,
) -> str | None:
    """Return what of a configuration is not served, or None."""
    kinds = sorted(_engine_cache.group_layers_by_attn_type(config))
    if kinds != [ManagedAllocator.layer_type]:
        return f"its layers are of {', '.join(kinds)}; {ManagedAllocator.layer_type} alone is served"
    if continuous_batching_config.use_async_batching:
        return "batches overlap, and the tokens of one are not known when the next begins: use_async_batching=False"
    if continuous_batching_config.cpu_offload_space != 0:
        return "pages would be moved to the host: cpu_offload_space=0"
    if distributed_helper.tp_size > 1:
        return f"the model is spread over {distributed_helper.tp_size} ranks; one is served"
    return None
