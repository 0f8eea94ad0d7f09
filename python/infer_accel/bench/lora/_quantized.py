"""Merging into a weight of fp8 codes with a scale for each block of 128 × 128, as DeepSeek's checkpoints have it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from infer_accel import lora, reference
from infer_accel.bench.harness import Case, Contender, Floor, cost
from infer_accel.bench.lora._arrays import SCALING, named, random, tensor, wide

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType
    from typing import Any

    from numpy.typing import NDArray

    from infer_accel.bench.harness import Bench
    from infer_accel.bench.lora._arrays import Float32

__all__ = ["cases"]

_BLOCK = 128
_LARGEST = 448.0
#: Rows at a time of the ways of torch: whole blocks whose float32 stays in a cache.
_TORCH_ROWS = 256
#: Rows that are held against the specification bit by bit: one row of blocks.
_CHECKED_ROWS = _BLOCK


def cases(bench: Bench) -> Iterator[Case]:
    """Yield the rows of merging into codes."""
    formats = bench.rival("ml_dtypes")  # numpy has no name for fp8
    if formats is None:
        return
    for rank in (16,) if bench.quick else (16, 64):
        yield _case(bench, formats, (4096, 4096), rank)


def _case(bench: Bench, formats: ModuleType, shape: tuple[int, int], rank: int) -> Case:
    rows, columns = shape
    rng = np.random.default_rng(rank)
    numbers = random(rng, shape, 0.02, "float32")
    old_scale = _block_largest(numbers) / np.float32(_LARGEST)
    old_codes = (numbers / _spread(old_scale)).astype(formats.float8_e4m3fn)
    a = random(rng, (rank, columns), 0.02, "bfloat16")
    b = random(rng, (rows, rank), 0.01, "bfloat16")
    expected = old_codes.astype(np.float32) * _spread(old_scale)
    expected += np.float32(SCALING) * (wide(b, "bfloat16") @ wide(a, "bfloat16"))
    exact_codes, exact_scale = old_codes[:_CHECKED_ROWS].copy(), old_scale[:1].copy()
    pair = named(a, "bfloat16", formats), named(b, "bfloat16", formats)
    reference.lora.merge_quantized(
        exact_codes, exact_scale, pair[0], pair[1][:_CHECKED_ROWS], scaling=SCALING
    )
    codes, scale = old_codes.copy(), old_scale.copy()

    def restore() -> None:
        np.copyto(codes.view(np.uint8), old_codes.view(np.uint8))
        np.copyto(scale, old_scale)

    def check(_: object) -> None:
        _close(codes, scale, expected)

    def check_exact(_: object) -> None:
        np.testing.assert_array_equal(codes[:_CHECKED_ROWS].view(np.uint8), exact_codes.view(np.uint8))
        np.testing.assert_array_equal(scale[:1], exact_scale)
        _close(codes, scale, expected)

    peers = []
    if (torch := bench.rival("torch")) is not None:
        peers = _torch_merges(torch, (codes, scale, a, b), restore, check)
    limits = bench.limits
    # Two sweeps, in each of which every rank is a multiplication and an addition.
    multiplying = 4 * rows * columns * rank / limits.fma_rate("f32", threads=1)
    passing = 2 * codes.nbytes / limits.read_modify_write_bandwidth(threads=1)
    slower = max(("FMA rate", multiplying), ("read-modify-write bandwidth", passing), key=lambda one: one[1])
    return Case(
        name=f"merge {rows}×{columns} float8_e4m3fn, blocks of 128 × 128, rank {rank} bfloat16, 1 thread",
        measure=cost("ms", 1e-3),
        work=1,
        ours=Contender(
            "infer-accel",
            lambda: lora.merge_weights(codes, *pair, scaling=SCALING, weight_scale=scale, num_threads=1),
            prepare=restore,
            check=check_exact,
        ),
        peers=peers,
        floor=Floor(*slower),
    )


def _block_largest(numbers: Float32) -> Float32:
    """Return the largest magnitude of each block."""
    rows, columns = numbers.shape
    blocks = np.abs(numbers).reshape(rows // _BLOCK, _BLOCK, columns // _BLOCK, _BLOCK)
    largest: Float32 = blocks.max(axis=(1, 3))
    return largest


def _spread(scale: Float32) -> Float32:
    """Return the scale of each element."""
    return scale.repeat(_BLOCK, axis=0).repeat(_BLOCK, axis=1)


def _close(codes: NDArray[Any], scale: Float32, expected: Float32) -> None:
    """Raise AssertionError where a number is further from the sum than its code explains."""
    for first in range(0, len(codes), _TORCH_ROWS):
        rows = slice(first, first + _TORCH_ROWS)
        steps = _spread(scale[first // _BLOCK : (first + _TORCH_ROWS) // _BLOCK])
        distance = np.abs(codes[rows].astype(np.float32) * steps - expected[rows])
        # Half a step of three bits, half the smallest step, and the rounding of float32.
        allowed = np.abs(expected[rows]) * np.float32(2.0**-4 + 1e-5) + steps * np.float32(2.0**-10 + 1e-5)
        if not np.all(distance <= allowed):
            message = f"off by up to {distance.max()}, beyond what rounding to a code explains"
            raise AssertionError(message)


def _torch_merges(
    torch: ModuleType,
    arrays: tuple[NDArray[Any], Float32, NDArray[Any], NDArray[Any]],
    restore: Callable[[], None],
    check: Callable[[object], None],
) -> list[Contender]:
    """Return the ways of torch: decode, ``addmm``, encode; with scales made anew, and with those that there are."""
    codes = torch.from_numpy(arrays[0].view(np.uint8)).view(torch.float8_e4m3fn)
    scale = torch.from_numpy(arrays[1])
    a, b = (tensor(torch, array, "bfloat16").float() for array in arrays[2:])
    columns = codes.shape[1]

    def merge(*, makes_scales: bool) -> None:
        for first in range(0, codes.shape[0], _TORCH_ROWS):
            rows = slice(first, first + _TORCH_ROWS)
            part = codes[rows]
            known = scale[first // _BLOCK : (first + _TORCH_ROWS) // _BLOCK]
            blocks = part.float().view(-1, _BLOCK, columns // _BLOCK, _BLOCK)
            blocks.mul_(known[:, None, :, None])
            blocks.view(-1, columns).addmm_(b[rows], a, alpha=SCALING)
            if makes_scales:
                known.copy_(blocks.abs().amax(dim=(1, 3)).div_(_LARGEST))
            blocks.div_(known[:, None, :, None]).clamp_(-_LARGEST, _LARGEST)
            part.copy_(blocks.view(-1, columns))

    def check_kept(result: object) -> None:
        # What grew beyond the last code is lost there: only its scale tells how far off it may be.
        saturated = codes.float().abs() == _LARGEST
        if float(saturated.float().mean()) > 1e-3:
            message = "more than a thousandth of the elements saturated"
            raise AssertionError(message)
        del result

    return [
        Contender(
            "torch decode + addmm + encode, new scales",
            lambda: merge(makes_scales=True),
            prepare=restore,
            check=check,
        ),
        Contender(
            "torch decode + addmm + encode, scales kept (saturates)",
            lambda: merge(makes_scales=False),
            prepare=restore,
            check=check_kept,
        ),
    ]
