"""Undoing a merge: every bit comes back, and what was not merged is refused."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infer_accel import errors, lora, reference

if TYPE_CHECKING:
    from collections.abc import Callable

DTYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
dtypes = st.sampled_from(sorted(DTYPES))


def bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(np.uint32 if array.dtype == np.float32 else np.uint16)


def numbers(rng: np.random.Generator, shape: tuple[int, int], dtype: str, *, wild: bool) -> np.ndarray:
    """Return small numbers; some of them any bits at all."""
    array = (rng.standard_normal(shape) * 0.05).astype(DTYPES[dtype])
    if wild:
        some = rng.random(shape) < 0.1
        array.view(bits(array).dtype)[some] = rng.integers(0, 2**32, shape, np.uint32).astype(
            bits(array).dtype
        )[some]
    return array


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    shape=st.tuples(st.integers(0, 40), st.integers(0, 300), st.integers(0, 9)),
    names=st.tuples(dtypes, dtypes, dtypes, dtypes),
    wild=st.booleans(),
    transposed=st.booleans(),
    scaling=st.sampled_from([1.0, -0.25, 8.0]),
    rounding=st.sampled_from([None, 0, 2**64 - 1]),
    num_threads=st.sampled_from([None, 1, 2, 8]),
)
def test_undoing_gives_every_bit_back(
    seed: int,
    shape: tuple[int, int, int],
    names: tuple[str, str, str, str],
    wild: bool,
    transposed: bool,
    scaling: float,
    rounding: int | None,
    num_threads: int | None,
) -> None:
    rng = np.random.default_rng(seed)
    rows, columns, rank = shape
    weight = (
        numbers(rng, (columns, rows), names[0], wild=wild).T
        if transposed
        else numbers(rng, (rows, columns), names[0], wild=wild)
    )
    a, b = (
        numbers(rng, (rank, columns), names[2], wild=False),
        numbers(rng, (rows, rank), names[3], wild=wild),
    )
    options: dict[str, Any] = {"scaling": scaling}
    if rounding is not None:
        options |= {"rounding": "stochastic", "seed": rounding}
    out = np.zeros((rows, columns), DTYPES[names[1]])
    specified = out.copy()
    merged, residue = lora.merge_weights(
        weight, a, b, out=out, return_residue=True, num_threads=num_threads, **options
    )
    expected = reference.lora.merge_weights(weight, a, b, out=specified, return_residue=True, **options)
    assert merged is out
    assert expected is not None
    np.testing.assert_array_equal(bits(out), bits(specified))
    assert residue.to_bytes() == expected.to_bytes()
    for got, wanted in zip(residue.entries(), expected.entries(), strict=True):
        np.testing.assert_array_equal(got, wanted)

    back = np.full_like(weight, 7)
    lora.unmerge_weights(out, a, b, scaling=scaling, residue=residue, out=back, num_threads=num_threads)
    np.testing.assert_array_equal(bits(back), bits(weight))
    back = np.full_like(weight, 7)
    reference.lora.unmerge_weights(out, a, b, scaling=scaling, residue=expected, out=back)
    np.testing.assert_array_equal(bits(back), bits(weight))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    shape=st.tuples(st.integers(1, 30), st.integers(1, 300), st.integers(1, 9)),
    names=st.tuples(dtypes, dtypes, dtypes),
    column=st.booleans(),
    num_threads=st.sampled_from([None, 1, 8]),
)
def test_magnitudes_equal_the_specification(
    seed: int, shape: tuple[int, int, int], names: tuple[str, str, str], column: bool, num_threads: int | None
) -> None:
    rng = np.random.default_rng(seed)
    rows, columns, rank = shape
    weight = numbers(rng, (rows, columns), names[0], wild=False)
    a, b = (
        numbers(rng, (rank, columns), names[1], wild=False),
        numbers(rng, (rows, rank), names[1], wild=False),
    )
    magnitude = numbers(rng, (rows, 1), names[2], wild=False)
    magnitude = magnitude if column else magnitude[:, 0]
    expected = weight.copy()
    reference.lora.merge_weights(expected, a, b, scaling=2.0, magnitude=magnitude)
    lora.merge_weights(weight, a, b, scaling=2.0, magnitude=magnitude, num_threads=num_threads)
    np.testing.assert_array_equal(bits(weight), bits(expected))


def test_a_magnitude_is_the_norm_that_rows_get() -> None:
    rng = np.random.default_rng(3)
    weight, a, b = (rng.standard_normal(shape) for shape in ((50, 700), (8, 700), (50, 8)))
    magnitude = rng.uniform(1, 2, 50)
    merged = weight.astype(np.float32)
    lora.merge_weights(
        merged,
        a.astype(np.float32),
        b.astype(np.float32),
        scaling=0.5,
        magnitude=magnitude.astype(np.float32),
    )
    wide = weight + 0.5 * b @ a
    wide *= (magnitude / np.linalg.norm(wide, axis=1))[:, None]
    np.testing.assert_allclose(merged, wide, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_a_thousand_cycles_leave_no_trace(name: str) -> None:
    rng = np.random.default_rng(1)
    weight = numbers(rng, (32, 512), name, wild=True)
    before = bits(weight).copy()
    adapters = [
        (numbers(rng, (8, 512), name, wild=False), numbers(rng, (32, 8), name, wild=False)) for _ in range(3)
    ]
    for cycle in range(1000):
        adapter = adapters[cycle % 3]
        _, residue = lora.merge_weights(weight, *adapter, scaling=2.0, return_residue=True)
        lora.unmerge_weights(weight, *adapter, scaling=2.0, residue=residue)
        np.testing.assert_array_equal(bits(weight), before)


def test_merges_are_undone_in_any_depth() -> None:
    rng = np.random.default_rng(2)
    weight = numbers(rng, (64, 300), "bfloat16", wild=True)
    states, residues = [bits(weight).copy()], []
    adapters = [
        (numbers(rng, (4, 300), "float32", wild=False), numbers(rng, (64, 4), "float32", wild=False))
        for _ in range(5)
    ]
    for adapter in adapters:
        residues.append(lora.merge_weights(weight, *adapter, return_residue=True)[1])
        states.append(bits(weight).copy())
    while adapters:
        np.testing.assert_array_equal(bits(weight), states.pop())
        lora.unmerge_weights(weight, *adapters.pop(), residue=residues.pop())
    np.testing.assert_array_equal(bits(weight), states.pop())


@pytest.mark.parametrize("rank", [8, 64])
def test_a_residue_is_small(rank: int) -> None:
    """Weights and deltas of the sizes that models have."""
    rng = np.random.default_rng(rank)
    weight = rng.normal(0, 0.04, (512, 1024)).astype(ml_dtypes.bfloat16)
    a = rng.normal(0, 0.02, (rank, 1024)).astype(np.float32)
    b = rng.normal(0, 0.001, (512, rank)).astype(np.float32)
    _, residue = lora.merge_weights(weight, a, b, scaling=2.0, return_residue=True)
    assert 0 < residue.exceptions < 0.012 * weight.size
    assert residue.nbytes <= 0.03 * weight.nbytes


def test_stochastic_rounding_is_right_on_average() -> None:
    """A delta far below the grid is lost to nearest rounding, and kept on average by chance."""
    weight = np.ones((512, 512), ml_dtypes.bfloat16)
    a, b = np.full((1, 512), 1e-3, np.float32), np.ones((512, 1), np.float32)
    nearest = weight.copy()
    lora.merge_weights(nearest, a, b)
    assert np.all(nearest == 1)
    means = []
    for seed in (1, 2):
        target = weight.copy()
        lora.merge_weights(target, a, b, rounding="stochastic", seed=seed)
        again = weight.copy()
        lora.merge_weights(again, a, b, rounding="stochastic", seed=seed, num_threads=1)
        np.testing.assert_array_equal(bits(again), bits(target))
        means.append(np.mean(target.astype(np.float64)) - 1)
    # The grid's step is 2⁻⁷: the mean of 2¹⁸ draws has a deviation of about 5e-6.
    assert means == pytest.approx([1e-3, 1e-3], abs=4e-5)
    assert means[0] != means[1]


def test_another_format_is_rounded_once() -> None:
    rng = np.random.default_rng(4)
    weight = rng.normal(0, 1, (40, 70)).astype(np.float16)
    a, b = (rng.normal(0, 1, shape).astype(np.float32) for shape in ((3, 70), (40, 3)))
    wide = np.empty((40, 70), np.float32)
    lora.merge_weights(weight, a, b, out=wide)
    for name in ("float16", "bfloat16"):
        narrow = np.empty((40, 70), DTYPES[name])
        lora.merge_weights(weight, a, b, out=narrow)
        np.testing.assert_array_equal(bits(narrow), bits(wide.astype(DTYPES[name])))


class Merged:
    """A merged weight and its residue, with what can be done wrong."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.weight = numbers(rng, (20, 70), "bfloat16", wild=False)
        self.a, self.b = (
            numbers(rng, (3, 70), "float32", wild=False),
            numbers(rng, (20, 3), "float32", wild=False),
        )
        self.residue = lora.merge_weights(self.weight, self.a, self.b, return_residue=True)[1]

    def undo(self, **changes: Any) -> None:
        arguments = {
            "weight": self.weight,
            "lora_A": self.a,
            "lora_B": self.b,
            "residue": self.residue,
            **changes,
        }
        lora.unmerge_weights(
            arguments.pop("weight"), arguments.pop("lora_A"), arguments.pop("lora_B"), **arguments
        )


def changed(array: np.ndarray, place: tuple[int, int]) -> np.ndarray:
    array = array.copy()
    bits(array)  # a dense copy: the view below is of the array itself
    array.view(bits(array).dtype)[place] ^= 1
    return array


REFUSALS: dict[str, tuple[Callable[[Merged], dict[str, Any]], type[Exception], str]] = {
    "another scaling": (lambda _: {"scaling": 2.0}, errors.IntegrityError, "residue.adapter"),
    "another A": (lambda m: {"lora_A": changed(m.a, (2, 69))}, errors.IntegrityError, "residue.adapter"),
    "another B": (lambda m: {"lora_B": changed(m.b, (0, 0))}, errors.IntegrityError, "residue.adapter"),
    "another format of A": (
        lambda m: {"lora_A": m.a.astype(np.float16)}, errors.IntegrityError, "residue.adapter",
    ),
    "another weight": (lambda m: {"weight": changed(m.weight, (19, 69))}, errors.IntegrityError, "residue.weight"),
    "rows exchanged": (lambda m: {"weight": m.weight[::-1].copy()}, errors.IntegrityError, "residue.weight"),
    "into another format": (lambda m: {"out": np.zeros((20, 70), np.float32)}, errors.DTypeError, "residue.dtype"),
    "out of another shape": (lambda m: {"out": m.weight[1:].copy()}, errors.ShapeError, "shape.mismatch"),
    "no scaling": (lambda _: {"scaling": float("nan")}, errors.ArgumentError, "argument.scaling"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_what_was_not_merged_is_refused(name: str) -> None:
    merged = Merged()
    change, error, code = REFUSALS[name]
    changes = change(merged)
    written = [merged.weight, *(value for value in changes.values() if isinstance(value, np.ndarray))]
    before = [bits(array).copy() for array in written]
    with pytest.raises(error) as caught:
        merged.undo(**changes)
    assert getattr(caught.value, "code", None) == code
    for array, expected in zip(written, before, strict=True):
        np.testing.assert_array_equal(bits(array), expected)
    merged.undo()


def test_a_residue_of_another_shape_is_refused() -> None:
    merged, rng = Merged(), np.random.default_rng(9)
    other = numbers(rng, (21, 70), "bfloat16", wild=False)
    b = numbers(rng, (21, 3), "float32", wild=False)
    _, residue = lora.merge_weights(other, merged.a, b, return_residue=True)
    with pytest.raises(errors.IntegrityError, match="digest"):
        merged.undo(residue=residue)
    a, b = np.zeros((0, 70), np.float32), np.zeros((20, 0), np.float32)
    weight = numbers(rng, (20, 70), "bfloat16", wild=True)
    _, residue = lora.merge_weights(weight, a, b, return_residue=True)
    assert residue.exceptions == 0
    lora.unmerge_weights(weight, a, b, residue=residue)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"rounding": "up"}, "argument.rounding"),
        ({"rounding": "stochastic"}, "argument.seed"),
        ({"seed": 1}, "argument.seed"),
        ({"magnitude": np.ones(4, np.float32), "return_residue": True}, "residue.magnitude"),
        ({"magnitude": np.ones(5, np.float32)}, "shape.mismatch"),
        ({"magnitude": np.ones((1, 4), np.float32)}, "shape.mismatch"),
        ({"magnitude": np.ones(4, np.int32)}, "dtype.unsupported"),
        ({"out": np.ones((4, 6), np.int8)}, "dtype.unsupported"),
        ({"out": np.ones((4, 7), np.float16)}, "shape.mismatch"),
    ],
)
def test_options_that_do_not_fit_are_refused(changes: dict[str, Any], code: str) -> None:
    weight = np.ones((4, 6), np.float32)
    for backend in (lora, reference.lora):
        with pytest.raises(errors.InferAccelError) as caught:
            backend.merge_weights(weight, np.ones((2, 6), np.float32), np.ones((4, 2), np.float32), **changes)
        assert caught.value.code == code
        assert np.all(weight == 1)


def test_residues_are_values() -> None:
    merged = Merged()
    residue = merged.residue
    stored = residue.to_bytes()
    assert len(stored) == residue.nbytes
    assert pickle.loads(pickle.dumps(residue)) == residue == lora.Residue.from_bytes(stored)
    assert hash(pickle.loads(pickle.dumps(residue))) == hash(residue)
    assert residue != lora.merge_weights(merged.weight, merged.a, merged.b, return_residue=True)[1]
    assert residue != 3
    assert (residue.shape, residue.base_dtype, residue.merged_dtype) == ((20, 70), "bfloat16", "bfloat16")
    assert "20 × 70" in repr(residue)
    with pytest.raises(TypeError, match="merge_weights"):
        lora.Residue()


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damaged_residues_are_refused(data: st.DataObject) -> None:
    stored = bytearray(Merged().residue.to_bytes())
    if data.draw(st.booleans()):
        stored[data.draw(st.integers(0, len(stored) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        del stored[data.draw(st.integers(0, len(stored) - 1)) :]
    for backend in (lora.Residue, reference.lora.Residue):
        with pytest.raises(errors.IntegrityError) as caught:
            backend.from_bytes(bytes(stored))
        assert caught.value.code == "residue.format"


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    for prefix in (b"", b"IAresid\x01"):
        with pytest.raises(errors.IntegrityError):
            lora.Residue.from_bytes(prefix + data)


def test_torch_tensors_come_back() -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    weight = torch.randn(30, 50, dtype=torch.bfloat16)
    a, b = torch.randn(4, 50, dtype=torch.bfloat16), torch.randn(30, 4, dtype=torch.bfloat16)
    before = weight.clone()
    merged, residue = lora.merge_weights(weight, a, b, scaling=0.1, return_residue=True)
    assert merged is weight
    assert not torch.equal(weight, before)
    assert lora.unmerge_weights(weight, a, b, scaling=0.1, residue=residue) is weight
    assert torch.equal(weight.view(torch.int16), before.view(torch.int16))
