"""Merging into weights of eight and four bits, against the specification: no bit may differ."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infer_accel import errors, lora, reference
from infer_accel._reference._floats import raw_bytes
from infer_accel._reference.lora import _quantized

if TYPE_CHECKING:
    from collections.abc import Callable

E4M3, E5M2 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2
LARGEST = {"e4m3": 448.0, "e5m2": 57344.0, "int8": 127.0, "mxfp4": 6.0, "nvfp4": 6.0}
GLOBAL = 0.0071


@dataclass
class Weight:
    """A quantized weight."""

    codes: np.ndarray
    scale: np.ndarray
    global_scale: float | None = None

    def merge(self, module: Any, a: np.ndarray, b: np.ndarray, **options: Any) -> Any:
        given = {"weight_scale": self.scale, "global_scale": self.global_scale, **options}
        if module is lora:
            return lora.merge_weights(self.codes, a, b, **given)
        scale = given.pop("weight_scale")
        return module.merge_quantized(self.codes, scale, a, b, **given)

    def copy(self) -> Weight:
        return Weight(self.codes.copy(), self.scale.copy(), self.global_scale)

    def numbers(self) -> np.ndarray:
        """Return what the codes stand for, by way of ml_dtypes."""
        bits = np.ascontiguousarray(raw_bytes(self.codes))
        if self.codes.dtype == np.uint8:
            pairs = np.stack([bits & 0xF, bits >> 4], axis=-1).reshape(len(bits), -1)
            values = pairs.view(ml_dtypes.float4_e2m1fn).astype(np.float64)
            across = 32 if self.scale.dtype == np.uint8 else 16
            kind = ml_dtypes.float8_e8m0fnu if self.scale.dtype == np.uint8 else E4M3
            scale = raw_bytes(self.scale).view(kind).astype(np.float64)
            wide: np.ndarray = values * np.repeat(scale, across, axis=1) * (self.global_scale or 1.0)
            return wide
        values = self.codes.astype(np.float64)
        scale = self.scale.astype(np.float64)
        if scale.ndim == 2 and scale.shape != (values.shape[0], 1) and scale.size > 1:
            scale = np.repeat(np.repeat(scale, 128, 0), 128, 1)[: values.shape[0], : values.shape[1]]
        elif scale.ndim == 1 and scale.size == values.shape[0]:
            scale = scale[:, None]
        product: np.ndarray = values * scale
        return product


def quantized(
    rng: np.random.Generator, kind: str, shape: tuple[int, int], layout: int, scales: Any
) -> Weight:
    rows, columns = shape
    values = rng.uniform(-1.02, 1.02, shape) * LARGEST[kind]
    if kind in {"mxfp4", "nvfp4"}:
        bits = np.clip(values, -6, 6).astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
        codes = (bits[:, ::2] | bits[:, 1::2] << 4).astype(np.uint8)
        if kind == "mxfp4":
            return Weight(codes, rng.integers(90, 130, (rows, columns // 32), dtype=np.uint8))
        scale = rng.uniform(0.01, 400, (rows, columns // 16)).astype(E4M3)
        return Weight(codes, scale, GLOBAL)
    limit = LARGEST[kind]
    kinds: dict[str, Any] = {"e4m3": E4M3, "e5m2": E5M2, "int8": np.int8}
    codes = np.clip(values, -limit, limit).astype(kinds[kind])
    shapes = [(), (1,), (rows,), (rows, 1), (-(-rows // 128), -(-columns // 128))]
    return Weight(codes, rng.uniform(1e-4, 0.01, shapes[layout]).astype(scales))


def strided(array: np.ndarray, layout: int) -> np.ndarray:
    """Return the same elements with gaps between them, or transposed in memory, or reversed."""
    if array.ndim != 2 or layout == 0:
        return array
    if layout == 1:
        wide = np.zeros((array.shape[0], 2 * array.shape[1] + 1), array.dtype)
        wide[:, 1::2] = array
        return wide[:, 1::2]
    return np.asfortranarray(array) if layout == 2 else array[::-1].copy()[::-1]


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    kind=st.sampled_from(["e4m3", "e4m3", "e5m2", "int8", "mxfp4", "nvfp4"]),
    shape=st.tuples(st.integers(1, 140), st.integers(1, 300), st.integers(0, 9)),
    layouts=st.tuples(st.integers(0, 4), *[st.integers(0, 3)] * 2),
    formats=st.tuples(*[st.sampled_from([np.float32, np.float16, ml_dtypes.bfloat16])] * 3),
    size=st.sampled_from([0.0, 1e-3, 0.1, 3.0]),
    rule=st.sampled_from(["grow", "keep"]),
    num_threads=st.sampled_from([None, 1, 2, 8]),
)
def test_merge_equals_the_specification(
    seed: int,
    kind: str,
    shape: tuple[int, int, int],
    layouts: tuple[int, int, int],
    formats: tuple[Any, Any, Any],
    size: float,
    rule: str,
    num_threads: int | None,
) -> None:
    rng = np.random.default_rng(seed)
    rows, columns, rank = shape
    columns += -columns % 32 if kind in {"mxfp4", "nvfp4"} else 0
    weight = quantized(rng, kind, (rows, columns), layouts[0], formats[0])
    a = rng.standard_normal((rank, columns)).astype(formats[1])
    b = (rng.standard_normal((rows, rank)) * size).astype(formats[2])
    ours = Weight(strided(weight.codes, layouts[1]), strided(weight.scale, layouts[2]), weight.global_scale)
    expected = weight.copy()
    options = {"scaling": 0.7, "scales": rule, "return_report": True}
    wanted = expected.merge(reference.lora, a, b, **options)
    target, report = ours.merge(lora, a, b, num_threads=num_threads, **options)
    assert target is ours.codes
    assert ours.scale.tobytes() == expected.scale.tobytes()
    np.testing.assert_array_equal(raw_bytes(ours.codes), raw_bytes(expected.codes))
    exact = ("elements", "changed", "saturated", "scales", "scales_changed")
    assert [getattr(report, name) for name in exact] == [getattr(wanted, name) for name in exact]
    for name in ("delta_norm", "largest_delta", "rms_error", "largest_error"):
        assert getattr(report, name) == pytest.approx(getattr(wanted, name), rel=1e-4, abs=1e-12), name
    if rule == "grow":
        assert report.saturated == 0 or formats[0] == np.float16 or kind == "nvfp4"
    else:
        assert report.scales_changed == 0
    if size == 0.0 or rank == 0:
        np.testing.assert_array_equal(ours.numbers(), weight.numbers())
        assert ours.scale.tobytes() == weight.scale.tobytes()


@pytest.mark.parametrize("kind", sorted(LARGEST))
def test_what_is_stored_is_the_exact_sum_rounded_once(kind: str) -> None:
    """Held against float64 and ml_dtypes, which know nothing of our codes."""
    rng = np.random.default_rng(0)
    weight = quantized(rng, kind, (256, 512), 4, np.float32)
    a, b = (
        rng.normal(0, 0.02, (16, 512)).astype(np.float32),
        rng.normal(0, 0.02, (256, 16)).astype(np.float32),
    )
    if kind == "int8":
        b *= 100
    exact = weight.numbers() + 2.0 * (b.astype(np.float64) @ a.astype(np.float64))
    _, report = weight.merge(lora, a, b, scaling=2.0, return_report=True)
    lost = np.abs(weight.numbers() - exact)
    assert report.largest_error == pytest.approx(lost.max(), rel=1e-3)
    assert report.rms_error == pytest.approx(np.sqrt((lost**2).mean()), rel=1e-3)
    # No neighbour on the grid is nearer, but for what float32 cannot tell.
    for step in (-1, 1):
        other = weight.copy()
        bits = raw_bytes(other.codes)
        if kind in {"mxfp4", "nvfp4"}:
            low = np.clip((bits & 7).astype(np.int32) + step, 0, 7)
            bits[...] = bits & 0xF8 | low.astype(np.uint8)
        elif kind == "int8":
            bits[...] = np.clip(other.codes.astype(np.int32) + step, -128, 127).astype(np.int8).view(np.uint8)
        else:
            size = np.clip((bits & 0x7F).astype(np.int32) + step, 0, 0x7E if kind == "e4m3" else 0x7B)
            bits[...] = bits & 0x80 | size.astype(np.uint8)
        assert np.mean(np.abs(other.numbers() - exact) < lost * (1 - 1e-4)) < 2e-5


def test_a_scale_that_must_grow_doubles_and_the_rest_of_its_block_stays() -> None:
    rng = np.random.default_rng(1)
    weight = quantized(rng, "e4m3", (256, 256), 4, np.float32)
    before = weight.copy()
    a, b = np.zeros((1, 256), np.float32), np.zeros((256, 1), np.float32)
    a[0, 3], b[200, 0] = 1.0, 2.0 * 448 * before.scale[1, 0]
    _, report = weight.merge(lora, a, b, return_report=True)
    assert (report.scales_changed, report.saturated, report.scales) == (1, 0, 4)
    factor = weight.scale / before.scale
    assert factor[1, 0] in {2.0, 4.0}
    assert (np.delete(factor.reshape(-1), 2) == 1).all()
    same = weight.numbers() == before.numbers()
    same[200, 3] = True
    # Only the smallest numbers of the block lie on a coarser grid now.
    small = np.abs(before.numbers()) < 2.0**-5 * before.scale[1, 0]
    assert (same | small).all()


def test_scales_that_are_kept_saturate() -> None:
    weight = Weight(np.array([[100, -100, 3]], np.int8), np.array([1.0], np.float32))
    a, b = np.array([[50.0, -90.0, 0.4]], np.float32), np.ones((1, 1), np.float32)
    _, report = weight.merge(lora, a, b, scales="keep", return_report=True)
    assert (weight.codes.tolist(), weight.scale.tolist()) == ([[127, -128, 3]], [1.0])
    assert (report.saturated, report.scales_changed, report.largest_error) == (2, 0, 62.0)


def test_tensors_are_written_where_they_lie() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((4, 256)).astype(np.float32), rng.standard_normal((128, 4)).astype(np.float32)
    weight = quantized(rng, "e4m3", (128, 256), 4, np.float32)
    codes = torch.from_numpy(weight.codes.view(np.uint8).copy()).view(torch.float8_e4m3fn)
    scale = torch.from_numpy(weight.scale.copy())
    parameter = torch.nn.Parameter(codes, requires_grad=False)
    assert (
        lora.merge_weights(parameter, torch.from_numpy(a), torch.from_numpy(b), weight_scale=scale)
        is parameter
    )
    weight.merge(lora, a, b)
    np.testing.assert_array_equal(codes.view(torch.uint8).numpy(), weight.codes.view(np.uint8))
    np.testing.assert_array_equal(scale.numpy(), weight.scale)
    # torch, by its own casts: the same codes, but for ties that float32 decides otherwise.
    old = quantized(np.random.default_rng(2), "e4m3", (128, 256), 4, np.float32)
    assert old.codes.shape == weight.codes.shape


def test_torch_and_the_specification_agree() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    weight = quantized(rng, "e5m2", (64, 96), 3, np.float32)
    codes = torch.from_numpy(weight.codes.view(np.uint8).copy()).view(torch.float8_e5m2)
    scale = torch.from_numpy(weight.scale.copy())
    a, b = (torch.from_numpy(rng.standard_normal(shape).astype(np.float32)) for shape in ((3, 96), (64, 3)))
    reference.lora.merge_quantized(codes, scale, a, b)
    weight.merge(lora, a.numpy(), b.numpy())
    np.testing.assert_array_equal(codes.view(torch.uint8).numpy(), weight.codes.view(np.uint8))


def test_codes_are_those_of_ml_dtypes() -> None:
    every = np.arange(256, dtype=np.uint8)
    for name, kind in (("float8_e4m3fn", E4M3), ("float8_e5m2", E5M2)):
        theirs = every.view(kind).astype(np.float32)
        theirs[np.isinf(theirs)] = np.nan
        np.testing.assert_array_equal(_quantized._CODINGS[name].decode(every), theirs)
        numbers = np.random.default_rng(0).standard_normal(10_000).astype(np.float32) * 20
        np.testing.assert_array_equal(
            _quantized._CODINGS[name].encode(numbers), numbers.astype(kind).view(np.uint8)
        )
    four = np.arange(16, dtype=np.uint8)
    theirs = four.view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    np.testing.assert_array_equal(_quantized._CODINGS["uint8"].decode(four), theirs)
    powers = every[:-1].view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    np.testing.assert_array_equal(_quantized._stored_scales(every[:-1]), powers)


_PROGRAM = """
import hashlib, sys
import numpy as np
sys.path.insert(0, {tests!r})
import test_lora_quantized as here
digest = hashlib.sha256()
for kind in sorted(here.LARGEST):
    for layout in range(5):
        rng = np.random.default_rng(layout)
        weight = here.quantized(rng, kind, (133, 320), layout, np.float32)
        a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((11, 320), (133, 11)))
        weight.merge(here.lora, a, b, scaling=0.01)
        digest.update(weight.codes.tobytes() + weight.scale.tobytes())
print(digest.hexdigest())
"""


@pytest.mark.parametrize("tier", ["portable", "avx2", "avx512", "avx512bf16"])
def test_every_tier_gives_the_same_bits(tier: str) -> None:
    """A tier that the processor lacks is refused at import."""
    program = _PROGRAM.format(tests=str(Path(__file__).parent))
    runs = [
        subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
        )
        for environment in ({**os.environ}, {**os.environ, "INFER_ACCEL_SIMD": tier})
    ]
    if "asks for more than this processor has" in runs[1].stderr:
        pytest.skip(f"this processor has no {tier}")
    assert runs[0].returncode == runs[1].returncode == 0, runs[1].stderr
    assert runs[0].stdout == runs[1].stdout


def z(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


def ones(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.ones(shape, dtype)


def merge(weight: np.ndarray, scale: np.ndarray, b: np.ndarray | None = None, **options: Any) -> object:
    return lora.merge_weights(
        weight, ones(2, 6), ones(4, 2) if b is None else b, weight_scale=scale, **options
    )


def read_only() -> np.ndarray:
    scale = ones(1)
    scale.flags.writeable = False
    return scale


SHARED = np.ones(4 * 6, np.int8)

# name: (call, class, code, what the message must say)
REFUSED: dict[str, tuple[Callable[[], object], type[Exception], str, str]] = {
    "a float weight": (lambda: merge(z(4, 6), ones(1)), errors.DTypeError, "dtype.quantized", "float8_e4m3fn"),
    "bfloat16 codes": (
        lambda: merge(z(4, 6, dtype=ml_dtypes.bfloat16), ones(1)), errors.DTypeError, "dtype.quantized", "bfloat16",
    ),
    "no scale": (
        lambda: lora.merge_weights(z(4, 6, dtype=E4M3), ones(2, 6), ones(4, 2)),
        errors.DTypeError, "dtype.unsupported", "float8_e4m3fn",
    ),
    "a scale of float64": (
        lambda: merge(z(4, 6, dtype=E4M3), ones(1, dtype=np.float64)), errors.DTypeError, "dtype.scale", "float64",
    ),
    "a scale of int8 for four bits": (
        lambda: merge(z(4, 3, dtype=np.uint8), ones(4, 1, dtype=np.int8)), errors.DTypeError, "dtype.scale", "MXFP4",
    ),
    "too few scales": (
        lambda: merge(z(4, 6, dtype=E4M3), ones(3)), errors.ShapeError, "shape.scale", "[3]",
    ),
    "scales by column": (
        lambda: merge(z(4, 6, dtype=E4M3), ones(1, 6)), errors.ShapeError, "shape.scale", "[out, 1]",
    ),
    "scales of three dimensions": (
        lambda: merge(z(4, 6, dtype=E4M3), ones(4, 1, 1)), errors.ShapeError, "shape.scale", "[4, 1, 1]",
    ),
    "no scales": (lambda: merge(z(4, 6, dtype=E4M3), ones(0)), errors.ShapeError, "shape.scale", "[0]"),
    "a weight without elements": (
        lambda: merge(z(0, 6, dtype=E4M3), ones(1), z(0, 2)), errors.ShapeError, "shape.scale", "[0, 6]",
    ),
    "a vector": (lambda: merge(z(6, dtype=E4M3), ones(1)), errors.ShapeError, "shape.matrix", "[6]"),
    "another rank": (
        lambda: merge(z(4, 6, dtype=E4M3), ones(1), ones(4, 3)), errors.ShapeError, "shape.mismatch", "rank",
    ),
    "other outputs": (
        lambda: merge(z(5, 6, dtype=E4M3), ones(1)), errors.ShapeError, "shape.mismatch", "out_features",
    ),
    "other inputs": (
        lambda: merge(z(4, 7, dtype=E4M3), ones(1)), errors.ShapeError, "shape.mismatch", "in_features",
    ),
    "NaN for a scale": (
        lambda: merge(ones(4, 6, dtype=E4M3), ones(4) * np.float32(np.nan)),
        errors.IntegrityError, "quantized.scale", "weight_scale[0, 0] is NaN",
    ),
    "a scale of zero": (
        lambda: merge(ones(4, 6, dtype=E4M3), np.array([1, 1, 0, 1], np.float32)),
        errors.IntegrityError, "quantized.scale", "weight_scale[2, 0] is 0",
    ),
    "a negative scale": (
        lambda: merge(ones(4, 6, dtype=np.int8), -ones(1)), errors.IntegrityError, "quantized.scale", "is -1",
    ),
    "an infinite scale": (
        lambda: merge(ones(4, 6, dtype=np.int8), ones(1) * np.float32(np.inf)),
        errors.IntegrityError, "quantized.scale", "is inf",
    ),
    "NaN for a code": (
        lambda: merge(np.full((4, 6), np.nan, E4M3), ones(1)),
        errors.IntegrityError, "quantized.not_a_number", "weight[0, 0]",
    ),
    "infinity for a code": (
        lambda: merge(np.array([[1] * 6] * 3 + [[1] * 5 + [np.inf]], E5M2), ones(1)),
        errors.IntegrityError, "quantized.not_a_number", "weight[3, 5]",
    ),
    "an adapter of NaN": (
        lambda: merge(ones(4, 6, dtype=E4M3), ones(1), ones(4, 2) * np.float32(np.nan)),
        errors.ArgumentError, "quantized.not_finite", "weight[0, 0] would become NaN",
    ),
    "a sum that overflows": (
        lambda: merge(ones(4, 6, dtype=np.int8), ones(1), ones(4, 2) * np.float32(3e38)),
        errors.ArgumentError, "quantized.not_finite", "inf",
    ),
    "a scaling of NaN": (
        lambda: merge(ones(4, 6, dtype=np.int8), ones(1), scaling=float("nan")),
        errors.ArgumentError, "argument.scaling", "NaN",
    ),
    "an unknown rule": (
        lambda: merge(ones(4, 6, dtype=np.int8), ones(1), scales="shrink"),
        errors.ArgumentError, "argument.scales", "shrink",
    ),
    "a global scale without NVFP4": (
        lambda: merge(ones(4, 6, dtype=np.int8), ones(1), global_scale=1.0),
        errors.ArgumentError, "argument.global_scale", "leave it out",
    ),
    "NVFP4 without a global scale": (
        lambda: lora.merge_weights(
            z(4, 8, dtype=np.uint8), ones(2, 16), ones(4, 2), weight_scale=ones(4, 1, dtype=E4M3)
        ),
        errors.ArgumentError, "argument.global_scale", "global_scale",
    ),
    "a global scale of zero": (
        lambda: lora.merge_weights(
            z(4, 8, dtype=np.uint8), ones(2, 16), ones(4, 2), weight_scale=ones(4, 1, dtype=E4M3), global_scale=0.0
        ),
        errors.ArgumentError, "argument.global_scale", "above zero",
    ),
    "shared memory": (
        lambda: merge(SHARED.reshape(4, 6), SHARED[:16].view(np.float32)), errors.OverlapError, "overlap.adapter",
        "weight_scale",
    ),
    "a scale that may not be written": (
        lambda: merge(ones(4, 6, dtype=np.int8), read_only()), errors.ReadOnlyError, "read_only", "float32",
    ),
    "a residue": (
        lambda: merge(ones(4, 6, dtype=np.int8), ones(1), return_residue=True),
        errors.ArgumentError, "argument.quantized", "return_residue",
    ),
    "another target": (
        lambda: merge(ones(4, 6, dtype=np.int8), ones(1), out=z(4, 6)),
        errors.ArgumentError, "argument.quantized", "out=",
    ),
    "a magnitude": (
        lambda: merge(ones(4, 6, dtype=np.int8), ones(1), magnitude=ones(4)),
        errors.ArgumentError, "argument.quantized", "magnitude=",
    ),
    "rounding by chance": (
        lambda: merge(ones(4, 6, dtype=np.int8), ones(1), rounding="stochastic", seed=1),
        errors.ArgumentError, "argument.quantized", "came with weight_scale=",
    ),
    "a report of a plain merge": (
        lambda: lora.merge_weights(z(4, 6), ones(2, 6), ones(4, 2), return_report=True),  # type: ignore[call-overload]
        errors.ArgumentError, "argument.quantized", "without weight_scale=",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused(name: str) -> None:
    call, kind, code, text = REFUSED[name]
    with pytest.raises(kind) as caught:
        call()
    assert isinstance(caught.value, errors.InferAccelError)
    assert caught.value.code == code
    assert text in str(caught.value)


def test_nothing_is_written_when_the_last_element_is_refused() -> None:
    codes = np.ones((300, 700), E4M3)
    codes[-1, -1] = np.nan
    scale = ones(3, 6)
    before = codes.view(np.uint8).copy()
    with pytest.raises(errors.IntegrityError, match=r"weight\[299, 699\]"):
        lora.merge_weights(codes, ones(2, 700) * 1000, ones(300, 2), weight_scale=scale)
    np.testing.assert_array_equal(codes.view(np.uint8), before)
    assert (scale == 1).all()
