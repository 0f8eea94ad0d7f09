"""Pages whose content is known from their number, for tests that run in several processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from infer_accel import errors, kvcache

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


def read_only() -> np.ndarray:
    array = np.zeros((1, PAGE), np.uint8)
    array.flags.writeable = False
    return array


#: What every tier refuses alike.
BAD_CALLS: list[tuple[Any, type[errors.InferAccelError], str]] = [
    (lambda tier: tier.store([b"a", b"b"], pages([1])), errors.ShapeError, "shape.page_count"),
    (lambda tier: tier.store([b"a"], pages([1])[:, 1:]), errors.ShapeError, "shape.stored_pages"),
    (lambda tier: tier.store([b"a"], np.zeros(1)), errors.ShapeError, "shape.stored_pages"),
    (lambda tier: tier.store([b"a"], np.zeros((1, 2 * PAGE), np.uint8)[:, ::2]), errors.ShapeError, ""),
    (lambda tier: tier.store([b""], pages([1])), errors.ShapeError, "shape.keys"),
    (lambda tier: tier.store([b"a" * 65], pages([1])), errors.ShapeError, "shape.keys"),
    (lambda tier: tier.store([b"a", b"bc"], pages([1, 2])), errors.DTypeError, "dtype.bytes"),
    (lambda tier: tier.store(np.zeros((1, 4), np.int64), pages([1])), errors.DTypeError, "dtype.bytes"),
    (lambda tier: tier.store(np.zeros(4, np.uint8), pages([1])), errors.ShapeError, "shape.keys"),
    (lambda tier: tier.load([b"a"], read_only()), errors.ReadOnlyError, "read_only"),
    (lambda tier: tier.load([b"a"], np.zeros((2, PAGE), np.uint8)), errors.ShapeError, "shape.page_count"),
    (lambda tier: (tier.close(), tier.flush()), errors.StorageError, "storage.closed"),
    (lambda tier: (tier.close(), tier.store([], pages([]))), errors.StorageError, "storage.closed"),
    (lambda tier: (tier.close(), tier.close(), tier.stats()), errors.StorageError, "storage.closed"),
]
