"""Make one adapter out of two, exactly and smaller, and see what each way keeps of their sum.

Run it with ``python examples/combine_adapters.py``; it needs numpy.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from infer_accel.lora import Adapter, combine

MODULE = "model.layers.0.self_attn.q_proj"
WEIGHTS = (0.7, 0.5)
rng = np.random.default_rng(0)


def random_adapter(rank: int, alpha: int) -> Adapter:
    """Make an adapter of one module. A trained delta is not of one size in all directions: a few carry most of it."""
    fading = (0.6 ** np.arange(rank)).astype(np.float32)
    lora_A = rng.normal(0, 0.05, (rank, 768)).astype(np.float32)
    lora_B = rng.normal(0, 0.05, (512, rank)).astype(np.float32) * fading
    return Adapter.from_arrays({MODULE: (lora_A, lora_B)}, alpha=alpha)


def delta(adapter: Adapter) -> np.ndarray:
    """Return what an adapter adds to the weight of its one module."""
    (layer,) = adapter.layers
    return layer.scaling * (layer.lora_B.astype(np.float64) @ layer.lora_A.astype(np.float64))


def report(name: str, combined: Adapter) -> None:
    left = np.linalg.norm(wanted - delta(combined)) / np.linalg.norm(wanted)
    print(f"{name:18} rank {combined.rank:3}, {combined.nbytes // 1024:4} KiB, off the sum by {left:.1e}")


adapters = [random_adapter(16, alpha=32), random_adapter(16, alpha=16)]
wanted = sum(weight * delta(adapter) for weight, adapter in zip(WEIGHTS, adapters, strict=True))

report("cat", combine(adapters, WEIGHTS, method="cat"))
for rank in (16, 8, 4):
    report(f"svd, rank {rank}", combine(adapters, WEIGHTS, method="svd", rank=rank))
report("linear", combine(adapters, WEIGHTS, method="linear"))
report("ties, density 0.5", combine(adapters, WEIGHTS, method="ties", density=0.5))

# The result is an adapter like any other: written as PEFT writes it, read as strictly.
with tempfile.TemporaryDirectory() as folder:
    where = Path(folder) / "sql-and-chat"
    combine(adapters, WEIGHTS, method="svd", rank=8).save(where)
    print(Adapter.load(where))
