"""Merging and applying LoRA adapters at the shapes of Llama-3-8B.

Ours is checked bit by bit against the specification, on some rows, and against float32 arithmetic everywhere;
rivals round more often and in another order: they must come within one unit of the last place of the storage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from infer_accel.bench.lora import _apply, _combine, _fused, _load, _merge, _mixed, _model, _quantized

if TYPE_CHECKING:
    from collections.abc import Iterator

    from infer_accel.bench.harness import Bench, Case

__all__ = ["cases"]


def cases(bench: Bench) -> Iterator[Case]:
    """Yield the rows of this part."""
    yield from _merge.cases(bench)
    yield from _quantized.cases(bench)
    yield from _apply.cases(bench)
    yield from _combine.cases(bench)
    yield from _model.cases(bench)
    yield from _mixed.cases(bench)
    yield from _fused.cases(bench)
    yield from _load.cases(bench)
