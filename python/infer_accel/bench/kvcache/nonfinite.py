"""Rows of the search for pages that hold a NaN or an infinity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from infer_accel import kvcache
from infer_accel.bench.harness import Bench, Case, Contender, rate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt
    import torch

__all__ = ["cases"]

_PAGE_NUMBERS = 32 << 10


def cases(bench: Bench) -> Iterator[Case]:
    """Yield a row for float16, which numpy has, and one for bfloat16, which it has not."""
    pages = (64 << 20 if bench.quick else 256 << 20) // (2 * _PAGE_NUMBERS)
    array = np.random.default_rng(0).normal(size=(pages, _PAGE_NUMBERS)).astype(np.float16)
    expected = np.zeros(pages, np.bool_)
    for page in (3, pages // 2, pages - 1):
        # The last number: whoever stops at the first find has seen the whole page.
        array[page, -1] = np.nan
        expected[page] = True

    def check(found: object) -> None:
        np.testing.assert_array_equal(found, expected)

    torch = bench.rival("torch")
    names: tuple[Literal["float16", "bfloat16"], ...] = ("float16", "bfloat16")
    for name in names:
        peers = []
        data: npt.NDArray[np.uint8] = array.view(np.uint8)
        if name == "float16":
            peers.append(Contender("numpy isfinite", lambda: ~np.isfinite(array).all(axis=1), check))
        else:
            data = (array.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        if torch is not None:
            tensor = torch.from_numpy(data).view(getattr(torch, name))
            peers.append(Contender("torch isfinite", _by_torch(tensor), check))
        yield Case(
            name=f"scan_nonfinite {name}, 64 KiB pages",
            measure=rate("GB/s", 1e9),
            work=array.nbytes,
            ours=Contender("infer-accel", _ours(data, name), check),
            peers=peers,
        )


def _ours(data: npt.NDArray[np.uint8], name: Literal["float16", "bfloat16"]) -> Callable[[], object]:
    return lambda: kvcache.scan_nonfinite(data, dtype=name, num_threads=1)


def _by_torch(tensor: torch.Tensor) -> Callable[[], object]:
    return lambda: ~tensor.isfinite().all(dim=1).numpy()
