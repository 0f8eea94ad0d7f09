"""Where the driver's copies begin to beat the kernel between host and device, measured and kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from infer_accel.kernels import _threshold
from infer_accel.kernels import page_copy as kernels

if TYPE_CHECKING:
    from pathlib import Path

    from infer_accel.bench.cuda.device import Gpu

__all__ = ["autotune", "choose", "keep"]

_LENGTHS = tuple(1 << power for power in range(12, 19))
_TRIES = 7
_NEVER = 1 << 30


def choose(seconds: dict[int, tuple[float, float]]) -> int:
    """Return the shortest run from which on the second way is the faster one.

    Parameters
    ----------
    seconds
        For each length of a run: the kernel's seconds and the driver's.

    Examples
    --------
    >>> choose({4096: (1.0, 3.0), 16384: (2.0, 1.9), 65536: (5.0, 4.0)})
    16384
    >>> choose({4096: (1.0, 3.0)}) > 1 << 20
    True
    """
    threshold = _NEVER
    for length in sorted(seconds, reverse=True):
        kernel, driver = seconds[length]
        if driver >= kernel:
            break
        threshold = length
    return threshold


def autotune(gpu: Gpu, path: Path | None = None) -> tuple[int, dict[int, tuple[float, float]], Path]:
    """Measure both ways for runs of 4 KiB to 256 KiB, both directions together, and keep what was found.

    Returns
    -------
    tuple
        The threshold in bytes, the seconds of both ways by length, and the file.
    """
    seconds = {length: _both_ways(gpu, length) for length in _LENGTHS}
    threshold = choose(seconds)
    return threshold, seconds, keep(gpu, threshold, path)


def keep(gpu: Gpu, threshold: int, path: Path | None = None) -> Path:
    """Keep a threshold of this device for this user, and return the file."""
    name = torch.cuda.get_device_name(gpu.device) if gpu.is_real else "interpreter"
    return _threshold.write_threshold(name, threshold, path)


def _both_ways(gpu: Gpu, length: int) -> tuple[float, float]:
    count = max(4, gpu.call_bytes // 8 // length)
    host = gpu.pinned(count, length)
    device = torch.empty_like(host, device=gpu.device)
    pairs = np.stack([np.random.default_rng(seed).permutation(count) for seed in (0, 1)], axis=1)

    def copies() -> None:
        kernels.page_copy([host], [device], pairs, axis=0)
        kernels.page_copy([device], [host], pairs, axis=0)

    found = []
    for threshold in (_NEVER + 1, 0):
        with _threshold.forced(threshold):
            copies()
            found.append(min(gpu.seconds(copies) for _ in range(_TRIES)))
    return found[0], found[1]
