"""Adapters in memory, ready to be applied."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, ClassVar

from infer_accel import _backend
from infer_accel.errors import ArgumentError
from infer_accel.lora._adapter import Adapter
from infer_accel.lora._apply import AdapterStack, products_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from infer_accel._typing import Tensor
    from infer_accel.lora._apply import Product

__all__ = ["AdapterStore", "StoreStats", "StoredAdapter"]

_core = _backend.load("lora")


@dataclass(frozen=True, slots=True)
class StoredAdapter:
    """What a store says of an adapter.

    Attributes
    ----------
    name : str
        The name that it was loaded under.
    id : int
        What tokens name it by. It stays when the adapter is replaced under its name, and is never given to another
        one: the id of an adapter that was evicted is refused.
    version : int
        Which load of its store it came with, counted from 1.
    layers : tuple of str
        The modules that it touches.
    rank : int
        The largest rank.
    nbytes : int
        Bytes of its packed matrices.
    pins : int
        Pins that hold it.
    """

    name: str
    id: int
    version: int
    layers: tuple[str, ...]
    rank: int
    nbytes: int
    pins: int


@dataclass(frozen=True, slots=True)
class StoreStats:
    """What a store holds, and what happened so far.

    Attributes
    ----------
    capacity_bytes : int
        Bytes that may be alive.
    used_bytes : int
        Bytes that are: of adapters in the store, of those gone from it that a stack still holds, and of loads
        under way.
    stored_bytes, pinned_bytes : int
        Bytes of adapters in the store, and of those that are pinned.
    adapters : int
        Adapters in the store.
    loads, swaps, evictions, hits, misses : int
        Loads; those that replaced an adapter; adapters that went; calls of ``get`` that found theirs or did not.
    """

    #: The fields that only ever grow.
    COUNTERS: ClassVar[frozenset[str]] = frozenset({"loads", "swaps", "evictions", "hits", "misses"})

    capacity_bytes: int
    used_bytes: int
    stored_bytes: int
    pinned_bytes: int
    adapters: int
    loads: int
    swaps: int
    evictions: int
    hits: int
    misses: int


class AdapterStore:
    """Adapters in memory, packed for :func:`apply_adapters`, never more than `capacity_bytes` of them.

    An adapter is read whole, checked and packed once: a file that is truncated or replaced later cannot hurt. When
    there is no room, those least recently used (by `get`, `pin` or `load`) go first; pinned ones stay. Loading
    under a name that is taken swaps the adapter at once: a stack made before keeps the old matrices, one made
    after has the new ones, none has some of each. Bytes count until the last stack that holds them is gone.

    All methods may be called from any thread; no reader waits for a load.

    Parameters
    ----------
    capacity_bytes
        Bytes that may be alive. An adapter of rank 16 for all linear layers of an 8B model takes 84 MB in
        bfloat16.

    Examples
    --------
    >>> import numpy as np
    >>> store = AdapterStore(1 << 20)
    >>> layer = np.ones((1, 2), np.float32), np.ones((3, 1), np.float32), 2.0
    >>> adapter = store.load("sql", {"model.layers.0.self_attn.q_proj": layer})
    >>> stack = store.stack("model.layers.0.self_attn.q_proj")
    >>> from infer_accel.lora import apply_adapters
    >>> x, out = np.ones((2, 2), np.float32), np.zeros((2, 3), np.float32)
    >>> apply_adapters(x, stack, [-1, adapter.id], out=out)
    array([[0., 0., 0.],
           [4., 4., 4.]], dtype=float32)
    """

    __slots__ = ("_core",)

    def __init__(self, capacity_bytes: int) -> None:
        self._core = _core.AdapterStore(capacity_bytes)

    def load(
        self,
        name: str,
        source: str | PathLike[str] | Adapter | Mapping[str, Product],
        *,
        follow_symlinks: bool = False,
    ) -> StoredAdapter:
        """Read, check and pack an adapter, and put it in under a name.

        Parameters
        ----------
        name
            What requests call it. Where the name is taken, the adapter is replaced: it keeps its id and its pins.
            Readers find the old one until the new one is complete, so there must be room for both.
        source
            Where the adapter lies: a PEFT directory, or one file of another naming. Or an :class:`Adapter` that was
            read already. Or the matrices themselves, layer by layer: a mapping from the module's name to ``(lora_A,
            lora_B)`` or ``(lora_A, lora_B, scaling)``.
        follow_symlinks
            Whether a symbolic link in the place of a file is followed.

        Returns
        -------
        StoredAdapter
            What it is now.

        Raises
        ------
        StoreFullError
            It does not fit, whatever may be evicted; ``needed``, ``free`` and ``pinned`` are in bytes.
        AdapterError
            Files or numbers that a strict reading refuses; an adapter that does more than add to linear layers
            (``adapter.not_servable``: merge it); no layers; a layer of another width than in the adapters of the store.
        ShapeError, DTypeError, ArgumentError
            Matrices that do not fit each other, formats that are not served, a scaling that is not finite.

        Notes
        -----
        The store is as before when an error is raised.
        """
        if isinstance(source, str | PathLike):
            source = Adapter.load(source, follow_symlinks=follow_symlinks)
        if isinstance(source, Adapter):
            return _stored(self._core.load_adapter(name, source._core))  # noqa: SLF001 - the package's own
        return _stored(self._core.load(name, list(layer_products(source).items())))

    def get(self, name: str) -> StoredAdapter:
        """Return what the store says of an adapter, which counts as used now.

        Raises
        ------
        AdapterError
            It is not there (``adapter.absent``): load it.
        """
        return _stored(self._core.get(name))

    def pin(self, name: str) -> StoredAdapter:
        """Keep an adapter from being evicted, until it is unpinned as many times.

        Raises
        ------
        AdapterError
            It is not there.
        """
        return _stored(self._core.pin(name))

    def unpin(self, name: str) -> None:
        """Take a pin away.

        Raises
        ------
        AdapterError
            It is not there, or not pinned.
        """
        self._core.unpin(name)

    @contextmanager
    def pinned(self, *names: str) -> Iterator[tuple[StoredAdapter, ...]]:
        """Pin adapters for the time of a block.

        Raises
        ------
        AdapterError
            One of them is not there; none is pinned then.

        Examples
        --------
        >>> import numpy as np
        >>> store = AdapterStore(1 << 20)
        >>> stored = store.load("sql", {"q_proj": (np.ones((1, 2), np.float32), np.ones((3, 1), np.float32))})
        >>> with store.pinned("sql") as (sql,):
        ...     sql.pins
        1
        """
        with ExitStack() as held:
            adapters = []
            for name in names:
                adapters.append(self.pin(name))
                held.callback(self.unpin, name)
            yield tuple(adapters)

    def evict(self, name: str) -> None:
        """Take an adapter out; its bytes are free once the last stack that holds them is gone.

        Raises
        ------
        AdapterError
            It is not there, or pinned.
        """
        self._core.evict(name)

    def stack(self, layers: str | Sequence[str], *, slices: Sequence[int] | None = None) -> AdapterStack:
        """Return the adapters of a layer for :func:`apply_adapters`.

        Parameters
        ----------
        layers
            A module's name; or several, in the order in which the model has fused their outputs:
            ``["q_proj", "k_proj", "v_proj"]``.
        slices
            Outputs of each of them. Needed where no adapter of the store may have one of them.

        Returns
        -------
        AdapterStack
            All adapters of the store as they are now, under their ids; those that do not touch the layer do
            nothing. It is kept until the store changes: asking again takes a microsecond.

        Raises
        ------
        ShapeError
            Slices whose outputs do not fit, or of which nothing tells the width.
        """
        names = [layers] if isinstance(layers, str) else list(layers)
        return AdapterStack.from_core(self._core.stack(names, None if slices is None else list(slices)))

    def stacks(self, layers: Sequence[tuple[Sequence[str], Sequence[int] | None]]) -> list[AdapterStack]:
        """Return the stacks of several layers at one moment.

        An adapter that another thread replaces meanwhile is the old one in all of them, or the new one in all.

        Parameters
        ----------
        layers
            For each stack the names and the slices, as :meth:`stack` takes them.

        Raises
        ------
        ShapeError
            As :meth:`stack`.
        """
        keys = [(list(names), None if slices is None else list(slices)) for names, slices in layers]
        return [AdapterStack.from_core(core) for core in self._core.stacks(keys)]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the adapters, the least recently used first."""
        return tuple(self._core.names())

    @property
    def stats(self) -> StoreStats:
        """What the store holds, and what happened so far."""
        return StoreStats(*self._core.stats())

    def __len__(self) -> int:
        """Return the number of adapters."""
        return self.stats.adapters

    def __contains__(self, name: object) -> bool:
        """Return whether an adapter of this name is in the store; it does not count as used."""
        return name in self._core.names()

    def __repr__(self) -> str:
        """Return what the store holds, in short."""
        stats = self.stats
        return (
            f"<AdapterStore: {stats.adapters} adapters, {stats.used_bytes} of {stats.capacity_bytes} bytes>"
        )


def layer_products(source: object) -> dict[str, tuple[Tensor, Tensor, float]]:
    """Return the matrices of each layer, each with its scaling, or refuse what holds something else."""
    if not isinstance(source, Mapping):
        message = (
            f"{type(source).__name__} came as an adapter; pass a path, an Adapter, or a mapping from modules' names to "
            "(lora_A, lora_B) or (lora_A, lora_B, scaling)"
        )
        raise ArgumentError(message, code="argument.matrices")
    return {
        layer: product
        for layer, entry in source.items()
        for product in products_of(entry, count=1)
        if product
    }


def _stored(described: tuple[str, int, int, list[str], int, int, int]) -> StoredAdapter:
    name, adapter_id, version, layers, rank, nbytes, pins = described
    return StoredAdapter(name, adapter_id, version, tuple(layers), rank, nbytes, pins)
