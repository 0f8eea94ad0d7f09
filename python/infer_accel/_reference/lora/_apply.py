"""The specification of applying."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from infer_accel._reference._floats import fma, read, require_writable, write
from infer_accel._reference.kvcache.arguments import integers_of
from infer_accel._reference.lora._arguments import fit, named, settings
from infer_accel.errors import IdError, ShapeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from infer_accel._typing import Tensor

    Float32 = NDArray[np.float32]
    Product = tuple[Tensor, Tensor, float]

__all__ = ["AdapterStack", "apply_adapter", "apply_adapters"]

#: The id of a token to which nothing is applied.
_NO_ADAPTER = -1

#: Partial sums of a long inner product.
_PARTS = 16


def apply_adapter(
    x: Tensor,
    lora_A: Tensor,
    lora_B: Tensor,
    *,
    scaling: float = 1.0,
    out: Tensor,
    num_threads: int | None = None,
) -> None:
    """Add ``scaling · (x @ lora_A.T) @ lora_B.T`` to `out`."""
    factor = settings(scaling, num_threads)
    features, a, b, before = (
        read(tensor, name) for tensor, name in named(x=x, lora_A=lora_A, lora_B=lora_B, out=out)
    )
    fit("lora_A and lora_B", "rank", (a.shape[0], b.shape[1]))
    fit("lora_A and x", "in_features", (a.shape[1], features.shape[1]))
    fit("lora_B and out", "out_features", (b.shape[0], before.shape[1]))
    fit("out and x", "tokens", (before.shape[0], features.shape[0]))
    require_writable(out, x, lora_A, lora_B)
    if before.size == 0 or a.size == 0:
        return
    hidden = _inner_products(features, a)
    total = np.zeros(before.shape, np.float32)
    for k in range(a.shape[0]):
        total = fma(hidden[:, k, None], b[None, :, k], total)
    write(out, fma(factor, total, before))


def _inner_products(tokens: Float32, ranks: Float32) -> Float32:
    """Return the inner product of every token with every rank: feature j goes to partial sum j % 16."""
    count = tokens.shape[1]
    parts = np.zeros((tokens.shape[0], ranks.shape[0], _PARTS), np.float32)
    for first in range(0, count, _PARTS):
        width = min(_PARTS, count - first)
        columns = slice(first, first + width)
        parts[..., :width] = fma(ranks[None, :, columns], tokens[:, None, columns], parts[..., :width])
    with np.errstate(all="ignore"):
        for half in (8, 4, 2, 1):
            parts = parts[..., :half] + parts[..., half : 2 * half]
    return parts[..., 0]


class AdapterStack:
    """The adapters of one layer: of each its products, one for each slice or one for all, and its id."""

    def __init__(
        self,
        adapters: Sequence[Sequence[Product | None]],
        ids: Sequence[int],
        slices: Sequence[int] | None = None,
    ) -> None:
        count = max([1, *map(len, adapters)]) if slices is None else len(slices)
        self.in_features: int | None = None
        self.slices: list[int | None] = [None] * count if slices is None else list(slices)
        products = [[_copied(product) for product in adapter] for adapter in adapters]
        for adapter in products:
            for index, product in enumerate(adapter):
                if product is not None:
                    self._learn(product, index if len(adapter) == count else None)
        self.adapters: dict[int, list[_Placed]] = {}
        for adapter_id, adapter in sorted(zip(ids, products, strict=True), key=lambda pair: pair[0]):
            if adapter_id in self.adapters:
                raise IdError(f"two adapters have the id {adapter_id}", code="id.repeated_adapter")
            if adapter_id < 0:
                raise IdError(f"an adapter with the id {adapter_id} came", code="id.adapter")
            self.adapters[adapter_id] = self._placed(adapter)

    def _learn(self, product: _Placed, index: int | None) -> None:
        (rank, in_features), out_features = product.a.shape, product.b.shape[0]
        if self.in_features not in {None, in_features}:
            message = f"{in_features} features of an adapter, {self.in_features} of others"
            raise ShapeError(message, code="shape.stack")
        self.in_features = in_features
        if index is not None:
            if self.slices[index] not in {None, out_features}:
                message = (
                    f"{out_features} outputs of an adapter of rank {rank}, {self.slices[index]} of others"
                )
                raise ShapeError(message, code="shape.slices")
            self.slices[index] = out_features

    def _placed(self, adapter: list[_Placed | None]) -> list[_Placed]:
        if len(adapter) == 1 < len(self.slices):
            product = adapter[0]
            if None in self.slices or (product is not None and product.b.shape[0] != self.out_features):
                raise ShapeError("the product for all slices has another width", code="shape.slices")
            return [] if product is None else [product]
        if adapter and len(adapter) != len(self.slices):
            message = f"{len(adapter)} slices of an adapter, {len(self.slices)} of the stack"
            raise ShapeError(message, code="shape.slices")
        placed: list[_Placed] = []
        first: int | None = 0
        for product, width in zip(adapter, self.slices, strict=False):
            if product is not None:
                if first is None:
                    raise ShapeError("a slice before this one has no width", code="shape.slices")
                product.first_column = first
                placed.append(product)
            first = None if first is None or width is None else first + width
        return placed

    @property
    def out_features(self) -> int | None:
        """Outputs of all slices together."""
        known = [width for width in self.slices if width is not None]
        return sum(known) if len(known) == len(self.slices) else None

    @property
    def ids(self) -> list[int]:
        """Ids of the adapters, ascending."""
        return list(self.adapters)

    @property
    def ranks(self) -> list[int]:
        """The largest rank of each adapter."""
        return [max([0, *(part.a.shape[0] for part in parts)]) for parts in self.adapters.values()]

    @property
    def nbytes(self) -> int:
        """Bytes of the matrices."""
        return sum(part.a.nbytes + part.b.nbytes for parts in self.adapters.values() for part in parts)


class _Placed:
    """A product, and the column that its first output goes to."""

    def __init__(self, a: Float32, b: Float32, scaling: float) -> None:
        self.a, self.b, self.scaling, self.first_column = a, b, scaling, 0


def _copied(product: Product | None) -> _Placed | None:
    if product is None:
        return None
    settings(product[2], None)
    a, b = (read(tensor, name).copy() for tensor, name in named(lora_A=product[0], lora_B=product[1]))
    fit("lora_A and lora_B", "rank", (a.shape[0], b.shape[1]))
    return _Placed(a, b, product[2])


def apply_adapters(
    x: Tensor,
    stack: AdapterStack,
    adapter_ids: Tensor | Sequence[int],
    *,
    out: Tensor,
    num_threads: int | None = None,
) -> None:
    """Apply to each token the adapter that it names, as if it came alone."""
    settings(1.0, num_threads)
    ids = integers_of(adapter_ids, "dtype.ids")
    (features, _), (before, _) = named(x=x, out=out)
    fit("out and x", "tokens", (before.shape[0], features.shape[0]))
    for name, width, expected in (
        ("x", features.shape[1], stack.in_features),
        ("out", before.shape[1], stack.out_features),
    ):
        if expected not in {None, width}:
            raise ShapeError(f"{name} has {width} columns; the layer has {expected}", code="shape.stack")
    if ids.shape != (features.shape[0],):
        message = f"adapter ids of shape {ids.shape} came for {features.shape[0]} tokens"
        raise ShapeError(message, code="shape.adapter_ids")
    require_writable(out, x)
    for token, adapter_id in enumerate(ids.tolist()):
        if adapter_id not in {_NO_ADAPTER, *stack.adapters}:
            raise IdError(f"token {token} names adapter {adapter_id}", code="id.adapter")
    for token, adapter_id in enumerate(ids.tolist()):
        for part in stack.adapters.get(adapter_id, ()):
            columns = slice(part.first_column, part.first_column + part.b.shape[0])
            one = slice(token, token + 1)
            apply_adapter(x[one], part.a, part.b, scaling=part.scaling, out=out[one, columns])  # type: ignore[index]
