"""The bench on a GPU: the same harness, times from the device's own events, its copy rate and link as limits.

Inputs take turns or are driven out of the second-level cache, so that none is still there when its turn comes again;
outputs are poisoned before each sample; every row is checked first, as on the CPU. A row is built when it is its turn
and not before, says how much of the device's memory it needs, and gives it back.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from infer_accel.bench.cuda.device import Gpu
    from infer_accel.bench.cuda.plan import DeviceRow
    from infer_accel.bench.harness import Bench, CaseSource, Planned

__all__ = ["PARTS", "rows", "source"]

#: The parts that have anything on a GPU.
PARTS: tuple[str, ...] = ("lora", "kvcache")


def rows(part: str, bench: Bench, gpu: Gpu) -> Iterator[DeviceRow]:
    """Yield the rows of a part, short ones first: what a run that is broken off has at least."""
    from infer_accel.bench.cuda import applying, launching, linking, merging, paging

    groups = {
        "lora": (launching.lora_rows, applying.rows, merging.rows),
        "kvcache": (launching.kvcache_rows, paging.rows, linking.rows),
    }[part]
    for group in groups:
        yield from group(bench, gpu)


def source(part: str, gpu: Gpu, last: Collection[str] = ()) -> CaseSource:
    """Return the function `cases` of a part on a GPU; rows whose keys are in `last` come at the end."""
    from infer_accel.bench.cuda.plan import one_by_one

    names = frozenset(key.removeprefix(f"{part}/") for key in last)

    def on_gpu(bench: Bench) -> Iterator[Planned]:
        gpu.measure_limits(bench.limits)
        yield from one_by_one(rows(part, bench, gpu), gpu, names)

    return partial(on_gpu)
