"""The bench on a GPU: the same harness, times from the device's own events, its copy rate and link as limits.

Inputs take turns, so that none is still in the second-level cache when its turn comes again; outputs are poisoned
before each sample; every row is checked first, as on the CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from infer_accel.bench.cuda.device import Gpu
    from infer_accel.bench.harness import Bench, Case, CaseSource

__all__ = ["PARTS", "source"]

#: The parts that have anything on a GPU.
PARTS: tuple[str, ...] = ("lora", "kvcache")


def source(part: str, gpu: Gpu) -> CaseSource:
    """Return the function `cases` of a part on a GPU."""
    from infer_accel.bench.cuda import adapters, pages

    cases = {"lora": adapters.cases, "kvcache": pages.cases}[part]

    def on_gpu(bench: Bench) -> Iterator[Case]:
        yield from cases(bench, gpu)

    return on_gpu
