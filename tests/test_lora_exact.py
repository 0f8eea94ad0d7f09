"""Merging and applying against the specification: no bit may differ."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infer_accel import lora, reference
from infer_accel._reference import _floats

DTYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
dtypes = st.sampled_from(sorted(DTYPES))
kinds = st.sampled_from(["plain", "plain", "tiny", "wild"])


def matrix(
    rng: np.random.Generator, shape: tuple[int, int], dtype: str, kind: str, layout: int
) -> np.ndarray:
    """Return a matrix with gaps, reversed or transposed as `layout` says."""
    rows, columns = shape
    stored = (columns, rows) if layout == 2 else (rows, columns * 2 + 1) if layout == 1 else shape
    values = rng.standard_normal(stored).astype(np.float32)
    if kind == "tiny":
        values *= np.exp2(-rng.integers(10, 90, stored)).astype(np.float32)
    with np.errstate(all="ignore"):
        array = values.astype(DTYPES[dtype])
    if kind == "wild":
        some = rng.random(stored) < 0.2
        noise = rng.integers(0, 2**32, stored, np.uint32)
        bits(array)[some] = noise.astype(bits(array).dtype)[some]
    if layout == 1:
        return array[:, 1::2]
    return array.T if layout == 2 else array[::-1] if layout == 3 else array


def bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(np.uint32 if array.dtype == np.float32 else np.uint16)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    shape=st.tuples(st.integers(0, 70), st.integers(0, 70), st.integers(0, 20)),
    names=st.tuples(dtypes, dtypes, dtypes),
    values=st.tuples(kinds, kinds, kinds),
    layouts=st.tuples(*[st.integers(0, 3)] * 4),
    scaling=st.sampled_from([1.0, 2.0, -0.25, 0.1, 1e-30]),
    num_threads=st.sampled_from([None, 1, 2, 8]),
    into=st.booleans(),
)
def test_merge_equals_the_specification(
    seed: int,
    shape: tuple[int, int, int],
    names: tuple[str, str, str],
    values: tuple[str, str, str],
    layouts: tuple[int, int, int, int],
    scaling: float,
    num_threads: int | None,
    into: bool,
) -> None:
    rng = np.random.default_rng(seed)
    rows, columns, rank = shape
    weight = matrix(rng, (rows, columns), names[0], values[0], layouts[0])
    a = matrix(rng, (rank, columns), names[1], values[1], layouts[1])
    b = matrix(rng, (rows, rank), names[2], values[2], layouts[2])
    expected = weight.copy()
    reference.lora.merge_weights(expected, a, b, scaling=scaling)
    if into:
        out = matrix(rng, (rows, columns), names[0], "plain", layouts[3])
        before = bits(weight)
        lora.merge_weights(weight, a, b, scaling=scaling, out=out, num_threads=num_threads)
        np.testing.assert_array_equal(bits(weight), before)
        np.testing.assert_array_equal(bits(out), bits(expected))
    else:
        lora.merge_weights(weight, a, b, scaling=scaling, num_threads=num_threads)
        np.testing.assert_array_equal(bits(weight), bits(expected))


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    shape=st.tuples(st.integers(0, 9), st.integers(0, 100), st.integers(0, 20), st.integers(0, 70)),
    names=st.tuples(dtypes, dtypes, dtypes, dtypes),
    values=st.tuples(kinds, kinds, kinds),
    layouts=st.tuples(*[st.integers(0, 3)] * 4),
    scaling=st.sampled_from([1.0, -0.25, 0.1]),
    num_threads=st.sampled_from([None, 1, 2, 8]),
)
def test_apply_equals_the_specification(
    seed: int,
    shape: tuple[int, int, int, int],
    names: tuple[str, str, str, str],
    values: tuple[str, str, str],
    layouts: tuple[int, int, int, int],
    scaling: float,
    num_threads: int | None,
) -> None:
    rng = np.random.default_rng(seed)
    tokens, features, rank, outputs = shape
    x = matrix(rng, (tokens, features), names[0], values[0], layouts[0])
    a = matrix(rng, (rank, features), names[1], values[1], layouts[1])
    b = matrix(rng, (outputs, rank), names[2], values[2], layouts[2])
    out = matrix(rng, (tokens, outputs), names[3], "plain", layouts[3])
    expected = out.copy()
    reference.lora.apply_adapter(x, a, b, scaling=scaling, out=expected)
    lora.apply_adapter(x, a, b, scaling=scaling, out=out, num_threads=num_threads)
    np.testing.assert_array_equal(bits(out), bits(expected))


@pytest.mark.parametrize("adapter", sorted(DTYPES))
@pytest.mark.parametrize("base", sorted(DTYPES))
@pytest.mark.parametrize("rank", [8, 64])
def test_merge_is_nearly_always_the_rounded_exact_sum(base: str, adapter: str, rank: int) -> None:
    rng = np.random.default_rng(rank)
    weight = rng.normal(0, 0.02, (512, 1024)).astype(DTYPES[base])
    a = rng.normal(0, 0.02, (rank, 1024)).astype(DTYPES[adapter])
    b = rng.normal(0, 0.002, (512, rank)).astype(DTYPES[adapter])
    wide = weight.astype(np.float64) + 2.0 * (b.astype(np.float64) @ a.astype(np.float64))
    lora.merge_weights(weight, a, b, scaling=2.0)
    if base == "float32":
        # Here accumulation rounds as coarsely as storage: the bound is that of a sum, not a share of
        # elements.
        size = np.abs(wide) + 2.0 * (np.abs(b).astype(np.float64) @ np.abs(a).astype(np.float64))
        assert np.all(np.abs(weight - wide) <= (rank + 2) * 2.0**-24 * size)
    else:
        share = np.mean(weight.astype(np.float64) != rounded_once(wide, base))
        # float32 keeps 16 bits beyond bfloat16 and 13 beyond float16: a sum that lands on the other side of a
        # tie is so much rarer.
        assert share <= (2e-4 if base == "float16" else 2e-5), share


def rounded_once(wide: np.ndarray, dtype: str) -> np.ndarray:
    """Round float64 to a smaller format, ties to even: in float64, for a cast may go through float32."""
    digits, smallest = {"float16": (11, -24), "bfloat16": (8, -133)}[dtype]
    quantum = np.exp2(np.maximum(np.frexp(wide)[1] - digits, smallest).astype(np.float64))
    rounded: np.ndarray = np.rint(wide / quantum) * quantum
    return rounded


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    shape=st.tuples(st.integers(1, 8), st.integers(1, 700), st.integers(1, 70), st.integers(1, 90)),
    names=st.tuples(dtypes, dtypes, dtypes),
)
def test_apply_stays_within_its_bound(
    seed: int, shape: tuple[int, int, int, int], names: tuple[str, str, str]
) -> None:
    rng = np.random.default_rng(seed)
    tokens, features, rank, outputs = shape
    x = rng.normal(0, 1, (tokens, features)).astype(DTYPES[names[0]])
    a = rng.normal(0, 0.3, (rank, features)).astype(DTYPES[names[1]])
    b = rng.normal(0, 0.3, (outputs, rank)).astype(DTYPES[names[1]])
    out = rng.normal(0, 1, (tokens, outputs)).astype(DTYPES[names[2]])
    x64, a64, b64 = (array.astype(np.float64) for array in (x, a, b))
    exact = out.astype(np.float64) + 0.5 * (x64 @ a64.T @ b64.T)
    size = 0.5 * (np.abs(x64) @ np.abs(a64).T @ np.abs(b64).T)
    lora.apply_adapter(x, a, b, scaling=0.5, out=out)
    roundoff = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}[names[2]]
    steps = -(-features // 16) + rank + 6
    smallest = 2.0**-24 if names[2] == "float16" else 0.0  # a subnormal float16 rounds by an absolute amount
    bound = steps * 2.0**-24 * 1.01 * size + (roundoff + 2.0**-23) * np.abs(exact) + smallest
    assert np.all(np.abs(out.astype(np.float64) - exact) <= bound)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    tokens=st.integers(2, 40),
    rank=st.integers(1, 20),
    name=dtypes,
    pick=st.data(),
    num_threads=st.sampled_from([1, 2]),
)
def test_a_token_does_not_see_its_neighbours(
    seed: int, tokens: int, rank: int, name: str, pick: st.DataObject, num_threads: int
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (tokens, 333)).astype(DTYPES[name])
    a = rng.normal(0, 1, (rank, 333)).astype(DTYPES[name])
    b = rng.normal(0, 1, (77, rank)).astype(DTYPES[name])
    out = rng.normal(0, 1, (tokens, 77)).astype(DTYPES[name])
    before = out.copy()
    lora.apply_adapter(x, a, b, out=out, num_threads=num_threads)
    some = np.array(pick.draw(st.lists(st.integers(0, tokens - 1), min_size=1, max_size=tokens, unique=True)))
    alone = before[some]
    lora.apply_adapter(x[some], a, b, out=alone)
    np.testing.assert_array_equal(bits(alone), bits(out[some]))


def test_threads_do_not_change_a_large_result() -> None:
    rng = np.random.default_rng(5)
    weight = rng.normal(0, 1, (1031, 777)).astype(ml_dtypes.bfloat16)
    a, b = (rng.normal(0, 1, s).astype(ml_dtypes.bfloat16) for s in ((48, 777), (1031, 48)))
    x, out = (rng.normal(0, 1, s).astype(ml_dtypes.bfloat16) for s in ((700, 777), (700, 1031)))
    merged, applied = set(), set()
    for num_threads in range(1, 9):
        target = weight.copy()
        lora.merge_weights(target, a, b, num_threads=num_threads)
        merged.add(target.tobytes())
        target = out.copy()
        lora.apply_adapter(x, a, b, out=target, num_threads=num_threads)
        applied.add(target.tobytes())
    assert len(merged) == len(applied) == 1


@pytest.mark.parametrize("tier", ["portable", "avx2", "avx512", "avx512bf16"])
def test_tiers_do_not_change_a_result(tier: str) -> None:
    """A tier that the processor lacks is refused at import; what it would compute is tested in Rust."""
    program = (
        "import numpy as np, ml_dtypes, hashlib; from infer_accel import lora; r = np.random.default_rng(0)\n"
        "t = lambda *s: (r.normal(0, 1, s) * np.exp2(r.integers(-70, 2, s))).astype(ml_dtypes.bfloat16)\n"
        "w, a, b, x, o = t(67, 91), t(9, 91), t(67, 9), t(5, 91), t(5, 67)\n"
        "lora.merge_weights(w, a, b); lora.apply_adapter(x, a, b, out=o)\n"
        "print(hashlib.sha256(w.tobytes() + o.tobytes()).hexdigest())"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
        )
        for environment in ({**_environment()}, {**_environment(), "INFER_ACCEL_SIMD": tier})
    ]
    if "asks for more than this processor has" in runs[1].stderr:
        pytest.skip(f"this processor has no {tier}")
    assert runs[0].returncode == runs[1].returncode == 0, runs[1].stderr
    assert runs[0].stdout == runs[1].stdout


def _environment() -> dict[str, str]:
    import os

    return {**os.environ}


@given(st.lists(st.tuples(*[st.integers(0, 2**32 - 1)] * 3), min_size=1, max_size=40))
def test_the_specification_rounds_once(triples: list[tuple[int, int, int]]) -> None:
    """The numpy fma against rational arithmetic."""
    left, right, addend = np.array(triples, np.uint32).T.copy().view(np.float32)
    got = _floats.fma(left, right, addend)
    for x, y, z, result in zip(left, right, addend, got, strict=True):
        if not (np.isfinite(x) and np.isfinite(y) and np.isfinite(z)):
            with np.errstate(all="ignore"):
                expected = np.float32(np.float64(x) * np.float64(y) + np.float64(z))
            assert np.isnan(result) == np.isnan(expected)
            assert np.isnan(result) or result == expected
            continue
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        assert result == _nearest_float32(exact), (x, y, z)


@given(
    st.integers(-(2**26), 2**26), st.integers(-(2**26), 2**26), st.integers(-200, 60), st.integers(-149, 60)
)
def test_the_specification_rounds_ties_to_even(m: int, n: int, p: int, q: int) -> None:
    """Sums whose float64 rounding falls on a float32 tie: what two roundings would get wrong."""
    with np.errstate(all="ignore"):
        x, y = np.float32(m), np.float32(np.ldexp(1.0, max(p, -149)))
        z = np.float32(np.ldexp(float(n), q))
    exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
    got = _floats.fma(np.array([x]), np.array([y]), np.array([z]))[0]
    assert got == _nearest_float32(exact)


def _nearest_float32(exact: Fraction) -> float:
    """Round a fraction to float32, ties to even."""
    if exact == 0:
        return 0.0
    size = abs(exact)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= size < Fraction(2) ** exponent
    quantum = Fraction(2) ** max(exponent - 23, -149)
    rounded = round(size / quantum) * quantum
    if rounded >= Fraction(2) ** 128:
        return float("inf") if exact > 0 else float("-inf")
    return float(rounded if exact > 0 else -rounded)


def test_zeros_and_nan_follow_the_stated_rules() -> None:
    weight = np.array([[-0.0, 0.0, np.nan, -np.nan]], np.float32)
    zeros = np.zeros((1, 4), np.float32)
    lora.merge_weights(weight, zeros, np.ones((1, 1), np.float32))
    assert bits(weight).tolist() == [[0, 0, 0x7FC00000, 0x7FC00000]]
    kept = np.array([[0xFFC0_1234, 0x7F80_0001, 0x8000_0000]], np.uint32).view(np.float32)
    before = bits(kept).copy()
    lora.merge_weights(kept, np.zeros((0, 3), np.float32), np.zeros((1, 0), np.float32))
    np.testing.assert_array_equal(bits(kept), before)
    out = np.zeros((1, 3), np.float32)
    lora.merge_weights(kept, np.zeros((0, 3), np.float32), np.zeros((1, 0), np.float32), out=out)
    np.testing.assert_array_equal(bits(out), before)


def test_a_thread_that_flushes_subnormals_gets_the_same_bits() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    weight = (rng.normal(0, 1, (64, 64)) * 1e-40).astype(np.float32)
    a, b = ((rng.normal(0, 1, s) * 1e-20).astype(np.float32) for s in ((4, 64), (64, 4)))
    expected = weight.copy()
    reference.lora.merge_weights(expected, a, b)
    flushes = torch.set_flush_denormal(True)
    try:
        lora.merge_weights(weight, a, b)
        still = float(torch.tensor([1e-40]) * 1.0) == 0.0
    finally:
        torch.set_flush_denormal(False)
    np.testing.assert_array_equal(bits(weight), bits(expected))
    assert still == flushes  # the setting is put back
