"""Mixed batches: each token as if it came alone, to the bit; and what is refused."""

from __future__ import annotations

import threading
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
Product = tuple[np.ndarray, np.ndarray, float]


def numbers(rng: np.random.Generator, shape: tuple[int, int], dtype: str, layout: int = 0) -> np.ndarray:
    """Return a matrix with gaps, reversed or transposed as `layout` says."""
    rows, columns = shape
    stored = (columns, rows) if layout == 2 else (rows, columns * 2 + 1) if layout == 1 else shape
    array = rng.standard_normal(stored).astype(np.float32).astype(DTYPES[dtype])
    return (
        array[:, 1::2] if layout == 1 else array.T if layout == 2 else array[::-1] if layout == 3 else array
    )


def bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(np.uint32 if array.dtype == np.float32 else np.uint16)


def product(
    rng: np.random.Generator, features: int, outputs: int, rank: int, names: tuple[str, str], layout: int = 0
) -> Product:
    return (
        numbers(rng, (rank, features), names[0], layout % 4),
        numbers(rng, (outputs, rank), names[1], layout // 4 % 4),
        float(rng.uniform(-2, 2)),
    )


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    ids=st.lists(st.integers(-1, 3), max_size=18),
    features=st.one_of(st.integers(0, 60), st.integers(760, 790)),
    widths=st.lists(st.integers(0, 70), min_size=1, max_size=3),
    ranks=st.lists(st.integers(0, 20), min_size=12, max_size=12),
    names=st.tuples(dtypes, dtypes, dtypes, dtypes),
    layouts=st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 15)),
    num_threads=st.sampled_from([None, 1, 2]),
    data=st.data(),
)
def test_equals_the_specification_and_single_tokens(
    seed: int,
    ids: list[int],
    features: int,
    widths: list[int],
    ranks: list[int],
    names: tuple[str, str, str, str],
    layouts: tuple[int, int, int],
    num_threads: int | None,
    data: st.DataObject,
) -> None:
    rng = np.random.default_rng(seed)
    adapters: list[list[Product | None]] = []
    for adapter in range(3):
        slices: list[Product | None] = []
        for index, width in enumerate(widths):
            is_there = data.draw(st.booleans())
            made = product(rng, features, width, ranks[3 * adapter + index], (names[0], names[1]), layouts[2])
            slices.append(made if is_there else None)
        adapters.append(slices)
    x = numbers(rng, (len(ids), features), names[2], layouts[0])
    out = numbers(rng, (len(ids), sum(widths)), names[3], layouts[1])
    expected, alone = out.copy(), out.copy()
    arguments: Any = ([*adapters, None], ids)
    stack = lora.AdapterStack(arguments[0], slices=widths)
    specified = reference.lora.AdapterStack([*adapters, []], [0, 1, 2, 3], widths)
    reference.lora.apply_adapters(x, specified, ids, out=expected)
    for token, adapter_id in enumerate(ids):
        first = 0
        for index, width in enumerate(widths):
            if 0 <= adapter_id < 3 and (parts := adapters[adapter_id][index]) is not None:
                target = alone[token : token + 1, first : first + width]
                lora.apply_adapter(x[token : token + 1], parts[0], parts[1], scaling=parts[2], out=target)
            first += width
    assert lora.apply_adapters(x, stack, ids, out=out, num_threads=num_threads) is out
    np.testing.assert_array_equal(bits(out), bits(expected))
    np.testing.assert_array_equal(bits(out), bits(alone))


def test_order_and_company_do_not_matter() -> None:
    rng = np.random.default_rng(1)
    stack = lora.AdapterStack(
        [product(rng, 1000, 300, rank, ("bfloat16", "bfloat16")) for rank in (4, 8, 16)]
    )
    ids = rng.integers(-1, 3, 64)
    x, out = numbers(rng, (64, 1000), "bfloat16"), numbers(rng, (64, 300), "bfloat16")
    expected = out.copy()
    lora.apply_adapters(x, stack, ids, out=expected, num_threads=1)
    np.testing.assert_array_equal(bits(expected[ids == -1]), bits(out[ids == -1]))
    for num_threads in (1, 2, 8):
        shuffled = rng.permutation(64)
        target = out[shuffled]
        lora.apply_adapters(x[shuffled], stack, ids[shuffled], out=target, num_threads=num_threads)
        np.testing.assert_array_equal(bits(target), bits(expected[shuffled]))
    for token in range(64):
        target = out[token : token + 1].copy()
        lora.apply_adapters(x[token : token + 1], stack, ids[token : token + 1], out=target)
        np.testing.assert_array_equal(bits(target), bits(expected[token : token + 1]))


def test_nan_stays_with_its_own_tokens() -> None:
    rng = np.random.default_rng(2)
    good, bad = (product(rng, 100, 50, 8, ("float32", "float32")) for _ in range(2))
    bad[0][3, 7] = np.nan
    x, out = numbers(rng, (9, 100), "float32"), numbers(rng, (9, 50), "float32")
    x[8, 5] = np.inf
    ids = [0, 1, 0, -1, 1, 0, 0, 0, 0]
    expected = out.copy()
    keep = [0, 2, 3, 5, 6, 7]
    for token in keep:
        if ids[token] == 0:
            lora.apply_adapter(
                x[token : token + 1], good[0], good[1], scaling=good[2], out=expected[token : token + 1]
            )
    lora.apply_adapters(x, lora.AdapterStack([good, bad]), ids, out=out)
    np.testing.assert_array_equal(out[keep], expected[keep])
    assert np.isnan(out[[1, 4]]).all()
    assert not np.isfinite(out[8]).any()
    payload = np.full((1, 50), 0xFFC01234, np.uint32).view(np.float32)
    before = payload.copy()
    lora.apply_adapters(x[:1], lora.AdapterStack([good]), [-1], out=payload)
    np.testing.assert_array_equal(bits(payload), bits(before))


def test_one_pair_of_matrices_for_all_slices() -> None:
    rng = np.random.default_rng(3)
    whole = product(rng, 40, 90, 4, ("float16", "float16"))
    unfused: list[Product | None] = [product(rng, 40, 30, 2, ("float32", "float16")), None, None]
    stack = lora.AdapterStack([whole, unfused], slices=[30, 20, 40])
    x, out = numbers(rng, (3, 40), "float16"), np.zeros((3, 90), np.float16)
    expected = out.copy()
    lora.apply_adapter(x[:1], whole[0], whole[1], scaling=whole[2], out=expected[:1])
    part = unfused[0]
    assert part is not None
    lora.apply_adapter(x[1:], part[0], part[1], scaling=part[2], out=expected[1:, :30])
    lora.apply_adapters(x, stack, [0, 1, 1], out=out)
    np.testing.assert_array_equal(bits(out), bits(expected))


def test_a_stack_keeps_what_it_was_given() -> None:
    rng = np.random.default_rng(4)
    a, b, scaling = product(rng, 20, 30, 4, ("float32", "float32"))
    stack = lora.AdapterStack([(a, b, scaling)], ids=[7])
    x, out, expected = (
        numbers(rng, (2, 20), "float32"),
        np.zeros((2, 30), np.float32),
        np.zeros((2, 30), np.float32),
    )
    lora.apply_adapter(x, a, b, scaling=scaling, out=expected)
    a[:], b[:] = 0, 0
    lora.apply_adapters(x, stack, np.array([7, 7], np.uint8), out=out)
    np.testing.assert_array_equal(out, expected)
    assert (stack.ids, stack.ranks, stack.in_features, stack.slices, len(stack)) == ((7,), (4,), 20, (30,), 1)
    assert stack.nbytes >= a.nbytes + b.nbytes
    assert "1 adapters" in repr(stack)


def test_torch_tensors() -> None:
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    a, b, x, out = (
        torch.randn(s, generator=generator).bfloat16() for s in ((8, 64), (48, 8), (5, 64), (5, 48))
    )
    expected = out.clone()
    lora.apply_adapter(x, a, b, scaling=0.5, out=expected)
    ids = torch.tensor([0, 0, -1, 0, 0])
    expected[2] = out[2]
    assert lora.apply_adapters(x, lora.AdapterStack([(a, b, 0.5)]), ids, out=out) is out
    assert torch.equal(out, expected)
    with pytest.raises(errors.GradientError):
        lora.apply_adapters(x, lora.AdapterStack([(a, b)]), ids, out=out.requires_grad_())


F = np.float32


def z(*shape: int, dtype: Any = F) -> np.ndarray:
    return np.zeros(shape, dtype)


def applied(x: np.ndarray, ids: Any, out: np.ndarray, **keywords: Any) -> object:
    return lora.apply_adapters(x, lora.AdapterStack([(z(2, 6), z(4, 2))]), ids, out=out, **keywords)


def read_only() -> np.ndarray:
    array = z(3, 4)
    array.flags.writeable = False
    return array


SHARED = z(10, 6)

# name: (call, class, code)
REFUSED: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "few ids": (lambda: applied(z(3, 6), [0, 0], z(3, 4)), errors.ShapeError, "shape.adapter_ids"),
    "many ids": (lambda: applied(z(3, 6), [0] * 4, z(3, 4)), errors.ShapeError, "shape.adapter_ids"),
    "table of ids": (lambda: applied(z(3, 6), z(3, 1, dtype=int), z(3, 4)), errors.ShapeError, "shape.adapter_ids"),
    "id": (lambda: applied(z(3, 6), [0, 1, 0], z(3, 4)), errors.IdError, "id.adapter"),
    "-2": (lambda: applied(z(3, 6), [0, -2, 0], z(3, 4)), errors.IdError, "id.adapter"),
    "huge id": (lambda: applied(z(3, 6), [0, 2**63, 0], z(3, 4)), errors.IdError, "id.range"),
    "float ids": (lambda: applied(z(3, 6), [0.0, 0, 0], z(3, 4)), errors.DTypeError, "dtype.ids"),
    "bool ids": (lambda: applied(z(3, 6), z(3, dtype=bool), z(3, 4)), errors.DTypeError, "dtype.ids"),
    "x": (lambda: applied(z(3, 7), [0] * 3, z(3, 4)), errors.ShapeError, "shape.stack"),
    "out": (lambda: applied(z(3, 6), [0] * 3, z(3, 5)), errors.ShapeError, "shape.stack"),
    "tokens": (lambda: applied(z(3, 6), [0] * 3, z(2, 4)), errors.ShapeError, "shape.mismatch"),
    "vector": (lambda: applied(z(6), [0], z(1, 4)), errors.ShapeError, "shape.matrix"),
    "x float64": (lambda: applied(z(3, 6, dtype="f8"), [0] * 3, z(3, 4)), errors.DTypeError, "dtype.unsupported"),
    "out int": (lambda: applied(z(3, 6), [0] * 3, z(3, 4, dtype="i4")), errors.DTypeError, "dtype.unsupported"),
    "read-only": (lambda: applied(z(3, 6), [0] * 3, read_only()), errors.ReadOnlyError, "read_only"),
    "overlap": (lambda: applied(SHARED[:3], [0] * 3, SHARED[2:5, :4]), errors.OverlapError, "overlap.adapter"),
    "self-overlap": (
        lambda: applied(z(3, 6), [0] * 3, np.lib.stride_tricks.as_strided(z(4), (3, 4), (0, 4), writeable=True)),
        errors.LayoutError, "layout.self_overlap",
    ),
    "threads": (
        lambda: applied(z(3, 6), [0] * 3, z(3, 4), num_threads=0), errors.ArgumentError, "argument.num_threads",
    ),
    "ranks": (lambda: lora.AdapterStack([(z(2, 6), z(4, 3))]), errors.ShapeError, "shape.mismatch"),
    "no matrix": (lambda: lora.AdapterStack([(z(2), z(4, 2))]), errors.ShapeError, "shape.matrix"),
    "adapter dtype": (
        lambda: lora.AdapterStack([(z(2, 6, dtype="i1"), z(4, 2))]), errors.DTypeError, "dtype.unsupported",
    ),
    "scaling": (
        lambda: lora.AdapterStack([(z(2, 6), z(4, 2), float("nan"))]), errors.ArgumentError, "argument.scaling",
    ),
    "features": (
        lambda: lora.AdapterStack([(z(2, 6), z(4, 2)), (z(2, 7), z(4, 2))]), errors.ShapeError, "shape.stack",
    ),
    "outputs": (
        lambda: lora.AdapterStack([(z(2, 6), z(4, 2)), (z(2, 6), z(5, 2))]), errors.ShapeError, "shape.slices",
    ),
    "slices": (
        lambda: lora.AdapterStack([[(z(2, 6), z(4, 2)), None]], slices=[4, 4, 4]), errors.ShapeError, "shape.slices",
    ),
    "slice width": (
        lambda: lora.AdapterStack([[(z(2, 6), z(4, 2)), None]], slices=[5, 4]), errors.ShapeError, "shape.slices",
    ),
    "unknown width": (
        lambda: lora.AdapterStack([[None, (z(2, 6), z(4, 2))]]), errors.ShapeError, "shape.slices",
    ),
    "whole width": (
        lambda: lora.AdapterStack([(z(2, 6), z(4, 2))], slices=[4, 4]), errors.ShapeError, "shape.slices",
    ),
    "ids and adapters": (
        lambda: lora.AdapterStack([(z(2, 6), z(4, 2))], ids=[0, 1]), errors.ShapeError, "shape.adapter_ids",
    ),
    "same id": (lambda: lora.AdapterStack([None, None], ids=[3, 3]), errors.IdError, "id.repeated_adapter"),
    "negative id": (lambda: lora.AdapterStack([None], ids=[-1]), errors.IdError, "id.adapter"),
    "no adapter": (lambda: lora.AdapterStack([(z(2, 6),)]), errors.ArgumentError, "argument.matrices"),  # type: ignore[list-item]
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    call, kind, code = REFUSED[name]
    with pytest.raises(kind) as caught:
        call()
    assert getattr(caught.value, "code", None) == code


def test_nothing_is_written_when_refused() -> None:
    out = np.arange(12, dtype=F).reshape(3, 4)
    before = out.copy()
    with pytest.raises(errors.IdError):
        lora.apply_adapters(z(3, 6) + 1, lora.AdapterStack([(z(2, 6) + 1, z(4, 2) + 1)]), [0, 0, 1], out=out)
    np.testing.assert_array_equal(out, before)


def test_nothing_to_do() -> None:
    stack = lora.AdapterStack([None, (z(0, 6), z(4, 0))])
    out = np.ones((2, 4), F)
    lora.apply_adapters(z(2, 6), stack, [0, 1], out=out)
    np.testing.assert_array_equal(out, np.ones((2, 4), F))
    lora.apply_adapters(z(0, 6), stack, [], out=z(0, 4))
    lora.apply_adapters(z(3, 11), lora.AdapterStack([]), [-1] * 3, out=z(3, 2))


def test_sixteen_threads_share_a_stack() -> None:
    rng = np.random.default_rng(5)
    stack = lora.AdapterStack([product(rng, 256, 300, 8, ("bfloat16", "bfloat16")) for _ in range(4)])
    x, before = numbers(rng, (32, 256), "bfloat16"), numbers(rng, (32, 300), "bfloat16")
    ids = rng.integers(-1, 4, 32)
    expected = before.copy()
    lora.apply_adapters(x, stack, ids, out=expected)
    results: list[bytes] = []

    def run() -> None:
        for _ in range(10):
            out = before.copy()
            lora.apply_adapters(x, stack, ids, out=out)
            results.append(out.tobytes())

    workers = [threading.Thread(target=run) for _ in range(16)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert set(results) == {expected.tobytes()}
    assert len(results) == 160
