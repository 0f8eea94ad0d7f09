"""Arrays of the formats that numpy has no name for, and how far rivals may be off."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from infer_accel._reference._floats import round_bfloat16, widen_bfloat16

if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

    from numpy.typing import NDArray

    Float32 = NDArray[np.float32]

__all__ = ["BLOCK_ROWS", "SCALING", "close", "named", "random", "tensor", "wide"]

#: Rows at a time of the torch way that keeps float32 in between: 8 MB, about the best on machines at hand.
BLOCK_ROWS = 512
SCALING = 2.0
#: Units of the last place that rivals may be off: one rounding each of product, sum and result.
_RELATIVE = {"bfloat16": 2.0**-6, "float16": 2.0**-9}


def random(rng: np.random.Generator, shape: tuple[int, int], size: float, dtype: str) -> NDArray[Any]:
    """Return normal numbers; a bfloat16 array as the bits in uint16."""
    values = rng.standard_normal(shape, np.float32) * np.float32(size)
    return round_bfloat16(values) if dtype == "bfloat16" else values.astype(dtype)


def named(array: NDArray[Any], dtype: str, formats: ModuleType | None) -> NDArray[Any]:
    """Return a view of the array under its true name."""
    return array.view(formats.bfloat16) if dtype == "bfloat16" and formats is not None else array


def tensor(torch: ModuleType, array: NDArray[Any], dtype: str) -> Any:  # noqa: ANN401 - torch is not typed here
    """Return a torch tensor over the same memory."""
    if dtype == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def wide(array: NDArray[Any], dtype: str) -> Float32:
    return widen_bfloat16(array) if dtype == "bfloat16" else array.astype(np.float32)


def close(result: NDArray[Any], expected: Float32, dtype: str, slack: float = 1e-4) -> None:
    """Raise AssertionError where a result is further off than the roundings of storage explain."""
    for first in range(0, len(result), BLOCK_ROWS):
        rows = slice(first, first + BLOCK_ROWS)
        distance = np.abs(wide(result[rows], dtype) - expected[rows])
        allowed = np.float32(_RELATIVE[dtype]) * np.abs(expected[rows]) + np.float32(slack)
        if not np.all(distance <= allowed):
            message = f"off by up to {distance.max()}, beyond what rounding to {dtype} explains"
            raise AssertionError(message)
