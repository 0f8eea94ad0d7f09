"""The adapters of one layer on a GPU: copied once, described by a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from infer_accel.errors import IdError, ShapeError
from infer_accel.kernels._arguments import require_one_device
from infer_accel.kernels._device import Launch
from infer_accel.kernels._matrices import FORMATS, factor_bits, matrix, require_equal

if TYPE_CHECKING:
    from collections.abc import Sequence

    Product = tuple[object, object, float]
    Placed = tuple[torch.Tensor, torch.Tensor, int]

__all__ = ["CudaStack"]


class CudaStack:
    """What :class:`infer_accel.lora.AdapterStack` holds where its matrices came as CUDA tensors.

    For each adapter and slice the table has six numbers: the addresses of lora_A and of its rows of lora_B, the rank,
    the bits of the scaling, the first output and the number of outputs. A product for all slices stands in each.

    With `is_lent` the matrices are used where they lie, as long as the kernels can read them there.
    """

    def __init__(
        self,
        adapters: Sequence[Sequence[Product | None]],
        ids: Sequence[int],
        slices: Sequence[int] | None,
        *,
        is_lent: bool = False,
    ) -> None:
        count = max([1, *map(len, adapters)]) if slices is None else len(slices)
        self.in_features: int | None = None
        self.slices: list[int | None] = [None] * count if slices is None else list(slices)
        self.ids = _checked_ids(ids)
        order = np.argsort(np.array(self.ids, np.int64), kind="stable")
        self.ids = sorted(self.ids)
        checked = [[self._checked(product, at) for product in adapters[at]] for at in order]
        for adapter in checked:
            for index, product in enumerate(adapter):
                if product is not None:
                    self._learn(product, index if len(adapter) == count else None)
        self._require_fit(checked)
        self.ranks = [max([0, *(p[0].shape[0] for p in adapter if p is not None)]) for adapter in checked]
        kinds = {
            tensor.dtype for adapter in checked for product in adapter if product for tensor in product[:2]
        }
        dtype = kinds.pop() if len(kinds) == 1 else torch.float32
        self.format = FORMATS[str(dtype).removeprefix("torch.")]
        named = [("an adapter", tensor) for adapter in checked for p in adapter if p for tensor in p[:2]]
        self.device = require_one_device(named) if named else None
        # Copies, so that the caller's may change; the table holds their addresses, so they are kept.
        own = _lent if is_lent else _copied
        self._kept = [[product and own(product, dtype) for product in adapter] for adapter in checked]
        self.nbytes = sum(t.nbytes for adapter in self._kept for p in adapter if p for t in p[:2])
        self.table: torch.Tensor | None = None
        self.names: torch.Tensor | None = None
        if self.device is not None:
            launch = Launch.on(self.device)
            rows = [row for adapter in self._kept for row in self._rows(adapter)]
            # What is lent is described anew by each call, and a graph keeps what its calls describe.
            place = launch.constant if is_lent else launch.upload
            with launch.entered():
                self.table = place(np.array(rows, np.int64))
                self.names = place(np.array(self.ids, np.int64))

    @property
    def rank(self) -> int:
        """The largest rank of all."""
        return max(self.ranks, default=0)

    @property
    def out_features(self) -> int:
        """Outputs of all slices; 0 where nothing tells."""
        return sum(width or 0 for width in self.slices)

    def _checked(self, product: Product | None, index: int) -> Placed | None:
        if product is None:
            return None
        a, _ = matrix(product[0], f"lora_A of adapter {index}")
        b, _ = matrix(product[1], f"lora_B of adapter {index}")
        require_equal(f"lora_A and lora_B of adapter {index}", "rank", a.shape[0], b.shape[1])
        return a, b, factor_bits(product[2])

    def _learn(self, product: Placed, index: int | None) -> None:
        in_features, out_features = int(product[0].shape[1]), int(product[1].shape[0])
        if self.in_features not in {None, in_features}:
            message = f"an adapter of {in_features} features came, others have {self.in_features}"
            raise ShapeError(message, code="shape.stack")
        self.in_features = in_features
        if index is not None:
            if self.slices[index] not in {None, out_features}:
                message = f"slice {index} has {self.slices[index]} outputs, and an adapter {out_features}"
                raise ShapeError(message, code="shape.slices")
            self.slices[index] = out_features

    def _require_fit(self, adapters: Sequence[Sequence[Placed | None]]) -> None:
        for adapter in adapters:
            if len(adapter) not in {0, 1, len(self.slices)}:
                message = f"an adapter of {len(adapter)} slices came for a layer of {len(self.slices)}"
                raise ShapeError(message, code="shape.slices")
            whole = adapter[0] if len(adapter) == 1 < len(self.slices) else None
            if whole is not None and (None in self.slices or whole[1].shape[0] != self.out_features):
                message = (
                    f"a product of {whole[1].shape[0]} outputs came for all of the slices {self.slices}; their widths "
                    "must be known and add up to it: pass slices="
                )
                raise ShapeError(message, code="shape.slices")

    def _rows(self, adapter: Sequence[Placed | None]) -> list[list[int]]:
        """Return the rows of the table for one adapter, one for each slice."""
        rows, first = [], 0
        is_whole = len(adapter) == 1 < len(self.slices)
        for index, width in enumerate(self.slices):
            product = adapter[0] if is_whole else adapter[index] if adapter else None
            row = [0, 0, 0, 0, first, width or 0]
            if product is not None:
                a, b, factor = product
                skipped = first * b.shape[1] * b.element_size() if is_whole else 0
                row[:4] = [a.data_ptr(), b.data_ptr() + skipped, a.shape[0], factor]
            rows.append(row)
            first += width or 0
        return rows


def _copied(product: Placed, dtype: torch.dtype) -> Placed:
    a, b, factor = product
    with torch.no_grad():
        own = [tensor.to(dtype, copy=True).contiguous() for tensor in (a, b)]
    return own[0], own[1], factor


def _lent(product: Placed, dtype: torch.dtype) -> Placed:
    """Return the product itself where the kernels can read it as it lies, a copy elsewhere."""
    a, b, _ = product
    is_packed = all(tensor.dtype == dtype and tensor.is_contiguous() for tensor in (a, b))
    return product if is_packed and a.data_ptr() % 16 == 0 else _copied(product, dtype)


def _checked_ids(ids: Sequence[Any]) -> list[int]:
    known: set[int] = set()
    for value in ids:
        if int(value) < 0:
            raise IdError(f"an adapter with the id {value} came; ids count from 0", code="id.adapter")
        if int(value) in known:
            raise IdError(
                f"two adapters came with the id {value}; give each its own", code="id.repeated_adapter"
            )
        known.add(int(value))
    return [int(value) for value in ids]
