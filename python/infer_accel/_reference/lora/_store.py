"""The specification of the store: dictionaries, an order of use, and sums."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from infer_accel._reference._floats import read
from infer_accel._reference.lora._apply import AdapterStack
from infer_accel._reference.lora._arguments import fit, named, settings
from infer_accel.errors import AdapterError, ArgumentError, StoreFullError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from infer_accel._reference.lora._adapter import Adapter
    from infer_accel._typing import Tensor

    Product = tuple[Tensor, Tensor, float]
    Described = tuple[str, int, int, list[str], int, int, int]

__all__ = ["AdapterStore"]

#: Features of a run and outputs of a panel of the packed layout, and the bytes that a matrix is filled up to.
_PANEL, _LINE = 16, 64


class AdapterStore:
    """Adapters in memory, bounded by the bytes of the packed layout; nobody else holds any of them here."""

    def __init__(self, capacity_bytes: int) -> None:
        if not 0 <= capacity_bytes < 1 << 64:
            raise ArgumentError(f"{capacity_bytes} came as a count", code="argument.count")
        self.capacity = capacity_bytes
        self.adapters: dict[str, _Entry] = {}  # the least recently used first
        self.next_id = 0
        self.loads = self.swaps = self.evictions = self.hits = self.misses = 0

    def load(self, name: str, layers: Sequence[tuple[str, Product]]) -> Described:
        """Put an adapter in, in the place of an older one of its name."""
        if not layers:
            raise AdapterError(f"{name} has no layers", code="adapter.no_layers")
        products: dict[str, Product] = {}
        needed = 0
        for layer, (lora_a, lora_b, scaling) in layers:
            (a, _), (b, _) = named(lora_A=lora_a, lora_B=lora_b)
            fit("lora_A and lora_B", "rank", (a.shape[0], b.shape[1]))
            wide = read(a, "lora_A").copy(), read(b, "lora_B").copy()
            needed += _packed_bytes(a, b)
            if layer in products:
                raise AdapterError(f"{name} has {layer} twice", code="adapter.repeated_layer")
            settings(scaling, None)
            if not all(np.isfinite(matrix).all() for matrix in wide):
                raise AdapterError(f"{name} is not finite in {layer}", code="adapter.not_finite")
            products[layer] = (*wide, scaling)
        for other, entry in self.adapters.items():
            for layer in products.keys() & entry.layers.keys():
                if other != name and _width(products[layer]) != _width(entry.layers[layer]):
                    raise AdapterError(f"{layer} differs from that of {other}", code="adapter.other_base")
        self._make_room(needed, name)
        old = self.adapters.pop(name, None)
        self.loads += 1
        self.swaps += old is not None
        adapter_id = self.next_id if old is None else old.adapter_id
        self.next_id += old is None
        self.adapters[name] = _Entry(adapter_id, self.loads, products, needed, 0 if old is None else old.pins)
        return self._describe(name)

    def load_adapter(self, name: str, adapter: Adapter) -> Described:
        """Put the layers of an adapter in."""
        layers = adapter.layers()
        others = [
            f"{layer.path} is no linear layer but {layer.kind}" for layer in layers if layer.kind != "linear"
        ]
        if others:
            raise AdapterError(f"{name} cannot be served: {'; '.join(others)}", code="adapter.not_servable")
        return self.load(
            name,
            [(layer.path, (layer.lora_a.array(), layer.lora_b.array(), layer.scaling)) for layer in layers],
        )

    def _make_room(self, needed: int, kept: str) -> None:
        def free() -> int:
            return self.capacity - sum(entry.nbytes for entry in self.adapters.values())

        pinned = sum(entry.nbytes for entry in self.adapters.values() if entry.pins)
        leaving, room = [], free()
        for name, entry in self.adapters.items():
            if room >= needed:
                break
            if not entry.pins and name != kept:
                leaving.append(name)
                room += entry.nbytes
        if room < needed:
            message = f"{needed} bytes are needed, {free()} free, {pinned} pinned"
            raise StoreFullError(message, needed=needed, free=free(), pinned=pinned, code="store_full.bytes")
        for name in leaving:
            del self.adapters[name]
            self.evictions += 1

    def _touch(self, name: str) -> _Entry:
        if name not in self.adapters:
            raise AdapterError(f"no adapter is called {name!r}", code="adapter.absent")
        self.adapters[name] = self.adapters.pop(name)
        return self.adapters[name]

    def _describe(self, name: str) -> Described:
        entry = self.adapters[name]
        rank = max(a.shape[0] for a, _, _ in entry.layers.values())
        return name, entry.adapter_id, entry.version, sorted(entry.layers), rank, entry.nbytes, entry.pins

    def get(self, name: str) -> Described:
        """Describe an adapter, which counts as used now."""
        self.hits += name in self.adapters
        self.misses += name not in self.adapters
        self._touch(name)
        return self._describe(name)

    def pin(self, name: str) -> Described:
        """Keep an adapter from being evicted."""
        self._touch(name).pins += 1
        return self._describe(name)

    def unpin(self, name: str) -> None:
        """Take a pin away."""
        entry = self._touch(name)
        if not entry.pins:
            raise AdapterError(f"{name} is not pinned", code="adapter.not_pinned")
        entry.pins -= 1

    def evict(self, name: str) -> None:
        """Take an adapter out."""
        if name not in self.adapters:
            raise AdapterError(f"no adapter is called {name!r}", code="adapter.absent")
        if self.adapters[name].pins:
            raise AdapterError(f"{name} is pinned", code="adapter.pinned")
        del self.adapters[name]
        self.evictions += 1

    def stack(self, layers: Sequence[str], slices: Sequence[int] | None = None) -> AdapterStack:
        """Return the adapters of a layer, or of several that the model has fused."""
        products: list[list[Product | None]] = []
        for entry in self.adapters.values():
            adapter = [entry.layers.get(layer) for layer in layers]
            products.append(adapter if any(adapter) else [])
        return AdapterStack(products, [entry.adapter_id for entry in self.adapters.values()], slices)

    def stacks(self, layers: Sequence[tuple[Sequence[str], Sequence[int] | None]]) -> list[AdapterStack]:
        """Return the stacks of several layers at one moment."""
        return [self.stack(names, slices) for names, slices in layers]

    def names(self) -> list[str]:
        """Return the names, the least recently used first."""
        return list(self.adapters)

    def stats(self) -> tuple[int, ...]:
        """Return what the store holds, and what happened so far."""
        stored = sum(entry.nbytes for entry in self.adapters.values())
        pinned = sum(entry.nbytes for entry in self.adapters.values() if entry.pins)
        so_far = self.loads, self.swaps, self.evictions, self.hits, self.misses
        return self.capacity, stored, stored, pinned, len(self.adapters), *so_far


class _Entry:
    def __init__(
        self, adapter_id: int, version: int, layers: dict[str, Product], nbytes: int, pins: int
    ) -> None:
        self.adapter_id, self.version, self.layers = adapter_id, version, layers
        self.nbytes, self.pins = nbytes, pins


def _width(product: Product) -> tuple[int, int]:
    return product[1].shape[0], product[0].shape[1]


def _packed_bytes(a: Tensor, b: Tensor) -> int:
    """Return the bytes of two matrices with their panels filled up."""
    (rank, features), outputs = a.shape, b.shape[0]
    pairs = _up(rank, 2) * _up(features, _PANEL) * _itemsize(a)
    panels = _up(outputs, 2 * _PANEL) * rank * _itemsize(b)
    return _up(pairs, _LINE) + _up(panels, _LINE)


def _up(count: int, step: int) -> int:
    return -(-count // step) * step


def _itemsize(tensor: Tensor) -> int:
    size: NDArray[np.generic] | int = tensor.dtype.itemsize  # type: ignore[attr-defined]
    return int(size)
