"""Pages whose content is known from their number, for tests that run in several processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from infer_accel import kvcache

if TYPE_CHECKING:
    from pathlib import Path

PAGE = 512
OPTIONS: dict[str, Any] = {"capacity_bytes": 1 << 20, "page_bytes": PAGE, "fingerprint": b"a layout"}


def key(number: int) -> bytes:
    return number.to_bytes(4, "little") * 8


def page(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, PAGE, dtype=np.uint8)


def pages(numbers: list[int]) -> np.ndarray:
    return np.stack([page(number) for number in numbers]) if numbers else np.empty((0, PAGE), np.uint8)


def open_tier(path: Path | str, **options: Any) -> kvcache.DiskTier:
    return kvcache.DiskTier(path, **(OPTIONS | options))


def found_in(tier: Any, numbers: list[int]) -> list[bool]:
    """Which pages are there; what is delivered must be right, what is not must be left alone."""
    out = np.full((len(numbers), PAGE), 0xEE, np.uint8)
    found: list[bool] = tier.load([key(number) for number in numbers], out).tolist()
    for number, hit, row in zip(numbers, found, out, strict=True):
        np.testing.assert_array_equal(row, page(number) if hit else 0xEE)
    return found
