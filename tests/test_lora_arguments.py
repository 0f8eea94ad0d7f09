"""What merging and applying take, and what they refuse, each by its own error."""

from __future__ import annotations

import multiprocessing
import threading
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest

from infer_accel import errors, lora, reference

if TYPE_CHECKING:
    from collections.abc import Callable

torch = pytest.importorskip("torch")

F = np.float32


def z(*shape: int, dtype: Any = F) -> np.ndarray:
    return np.zeros(shape, dtype)


def read_only() -> np.ndarray:
    array = z(4, 6)
    array.flags.writeable = False
    return array


SHARED = z(20, 6)
NARROW = z(4, 9)

# name: (call, class, code, what the message must say)
MERGES: dict[str, tuple[Callable[[], object], type[Exception], str, str]] = {
    "rank": (
        lambda: lora.merge_weights(z(4, 6), z(2, 6), z(4, 3)),
        errors.ShapeError, "shape.mismatch", "lora_A has shape [2, 6], but lora_B has shape [4, 3]",
    ),
    "in_features": (
        lambda: lora.merge_weights(z(4, 6), z(2, 5), z(4, 2)),
        errors.ShapeError, "shape.mismatch", "in_features",
    ),
    "out_features": (
        lambda: lora.merge_weights(z(4, 6), z(2, 6), z(5, 2)),
        errors.ShapeError, "shape.mismatch", "out_features",
    ),
    "vector": (
        lambda: lora.merge_weights(z(6), z(2, 6), z(4, 2)),
        errors.ShapeError, "shape.matrix", "[out_features, in_features]",
    ),
    "cube": (
        lambda: lora.merge_weights(z(4, 6), z(1, 2, 6), z(4, 2)),
        errors.ShapeError, "shape.matrix", "lora_A has shape [1, 2, 6]",
    ),
    "out of another shape": (
        lambda: lora.merge_weights(z(4, 6), z(2, 6), z(4, 2), out=z(4, 7)),
        errors.ShapeError, "shape.mismatch", "out has shape [4, 7]",
    ),
    "float64": (
        lambda: lora.merge_weights(z(4, 6, dtype=np.float64), z(2, 6), z(4, 2)),
        errors.DTypeError, "dtype.unsupported", "weight is of float64; allowed: float32, float16,",
    ),
    "int8 adapter": (
        lambda: lora.merge_weights(z(4, 6), z(2, 6, dtype=np.int8), z(4, 2)),
        errors.DTypeError, "dtype.unsupported", "lora_A is of int8",
    ),
    "fp8 weight": (
        lambda: lora.merge_weights(torch.zeros(4, 6, dtype=torch.float8_e4m3fn), z(2, 6), z(4, 2)),
        errors.DTypeError, "dtype.unsupported", "weight is of float8_e4m3fn",
    ),
    "out of another dtype": (
        lambda: lora.merge_weights(z(4, 6), z(2, 6), z(4, 2), out=z(4, 6, dtype=np.int8)),
        errors.DTypeError, "dtype.unsupported", "out is of int8; allowed: float32, float16,",
    ),
    "swapped bytes": (
        lambda: lora.merge_weights(z(4, 6), z(2, 6, dtype=">f4"), z(4, 2)),
        errors.LayoutError, "layout.byte_order", ">f4",
    ),
    "complex": (
        lambda: lora.merge_weights(z(4, 6, dtype=np.complex64), z(2, 6), z(4, 2)),
        errors.DTypeError, "dtype.unknown", "complex64",
    ),
    "nine dimensions": (
        lambda: lora.merge_weights(z(*[1] * 9), z(2, 6), z(4, 2)),
        errors.ShapeError, "shape.dimensions", "9 dimensions",
    ),
    "sparse": (
        lambda: lora.merge_weights(z(4, 6), torch.zeros(2, 6).to_sparse(), z(4, 2)),
        errors.LayoutError, "layout.export", "exported",
    ),
    "negated": (
        lambda: lora.merge_weights(torch._neg_view(torch.zeros(4, 6)), z(2, 6), z(4, 2)),
        errors.LayoutError, "layout.negated", "resolve_neg",
    ),
    "expanded": (
        lambda: lora.merge_weights(torch.zeros(1, 6).expand(4, 6), z(2, 6), z(4, 2)),
        errors.LayoutError, "layout.self_overlap", "more than once",
    ),
    "a text as scaling is no number": (
        lambda: lora.merge_weights(z(4, 6), z(2, 6), z(4, 2), scaling="1.5"),  # type: ignore[call-overload]
        TypeError, "", "real number",
    ),
    "another residue": (
        lambda: lora.unmerge_weights(z(4, 6), z(2, 6), z(4, 2), residue=None),  # type: ignore[arg-type]
        errors.ArgumentError, "argument.residue", "NoneType came",
    ),
    "no tensor": (
        lambda: lora.merge_weights([[0.0]], z(2, 6), z(4, 2)),  # type: ignore[call-overload]
        errors.DTypeError, "dtype.not_a_tensor", "list",
    ),
    "read-only": (
        lambda: lora.merge_weights(read_only(), z(2, 6), z(4, 2)),
        errors.ReadOnlyError, "read_only", "read-only",
    ),
    "read-only out": (
        lambda: lora.merge_weights(z(4, 6), z(2, 6), z(4, 2), out=read_only()),
        errors.ReadOnlyError, "read_only", "read-only",
    ),
    "weight overlaps lora_A": (
        lambda: lora.merge_weights(SHARED[:4], SHARED[3:5], z(4, 2)),
        errors.OverlapError, "overlap.adapter", "weight shares memory with lora_A",
    ),
    "out overlaps lora_B": (
        lambda: lora.merge_weights(z(4, 6), z(2, 6), NARROW[:, 5:7], out=NARROW[:, :6]),
        errors.OverlapError, "overlap.adapter", "out shares memory with lora_B",
    ),
    "out overlaps weight": (
        lambda: lora.merge_weights(SHARED[:4], z(2, 6), z(4, 2), out=SHARED[1:5]),
        errors.OverlapError, "overlap.adapter", "out shares memory with weight",
    ),
    "an element twice": (
        lambda: lora.merge_weights(np.lib.stride_tricks.as_strided(z(6), (4, 6), (0, 4)), z(2, 6), z(4, 2)),
        errors.LayoutError, "layout.self_overlap", "more than once",
    ),
    "NaN scaling": (
        lambda: lora.merge_weights(z(4, 6), z(2, 6), z(4, 2), scaling=float("nan")),
        errors.ArgumentError, "argument.scaling", "scaling=NaN",
    ),
    "scaling beyond float32": (
        lambda: lora.merge_weights(z(4, 6), z(2, 6), z(4, 2), scaling=1e39),
        errors.ArgumentError, "argument.scaling", "float32 can hold",
    ),
    "no threads": (
        lambda: lora.merge_weights(z(4, 6), z(2, 6), z(4, 2), num_threads=0),
        errors.ArgumentError, "argument.num_threads", "num_threads=0",
    ),
    "gradient": (
        lambda: lora.merge_weights(torch.zeros(4, 6, requires_grad=True), z(2, 6), z(4, 2)),
        errors.GradientError, "gradient.recorded", "no_grad",
    ),
    "no memory": (
        lambda: lora.merge_weights(torch.zeros(4, 6, device="meta"), z(2, 6), z(4, 2)),
        errors.LayoutError, "", "meta",
    ),
}  # fmt: skip

APPLIES: dict[str, tuple[Callable[[], object], type[Exception], str, str]] = {
    "rank": (
        lambda: lora.apply_adapter(z(3, 6), z(2, 6), z(4, 3), out=z(3, 4)),
        errors.ShapeError, "shape.mismatch", "same rank",
    ),
    "in_features": (
        lambda: lora.apply_adapter(z(3, 5), z(2, 6), z(4, 2), out=z(3, 4)),
        errors.ShapeError, "shape.mismatch", "in_features",
    ),
    "out_features": (
        lambda: lora.apply_adapter(z(3, 6), z(2, 6), z(4, 2), out=z(3, 5)),
        errors.ShapeError, "shape.mismatch", "columns",
    ),
    "tokens": (
        lambda: lora.apply_adapter(z(3, 6), z(2, 6), z(4, 2), out=z(2, 4)),
        errors.ShapeError, "shape.mismatch", "number of tokens",
    ),
    "vector": (
        lambda: lora.apply_adapter(z(6), z(2, 6), z(4, 2), out=z(1, 4)),
        errors.ShapeError, "shape.matrix", "[tokens, in_features]",
    ),
    "integers": (
        lambda: lora.apply_adapter(z(3, 6, dtype=np.int32), z(2, 6), z(4, 2), out=z(3, 4)),
        errors.DTypeError, "dtype.unsupported", "x is of int32",
    ),
    "read-only": (
        lambda: lora.apply_adapter(z(4, 6), z(2, 6), z(6, 2), out=read_only()),
        errors.ReadOnlyError, "read_only", "read-only",
    ),
    "overlap": (
        lambda: lora.apply_adapter(SHARED[:4], z(2, 6), z(6, 2), out=SHARED[3:7]),
        errors.OverlapError, "overlap.adapter", "out shares memory with x",
    ),
    "scaling": (
        lambda: lora.apply_adapter(z(3, 6), z(2, 6), z(4, 2), scaling=float("inf"), out=z(3, 4)),
        errors.ArgumentError, "argument.scaling", "finite",
    ),
    "gradient": (
        lambda: lora.apply_adapter(torch.zeros(3, 6, requires_grad=True), z(2, 6), z(4, 2), out=z(3, 4)),
        errors.GradientError, "gradient.recorded", "detach",
    ),
    "something else than a stack": (
        lambda: lora.apply_adapters(z(3, 6), [(z(2, 6), z(4, 2))], [0, 0, 0], out=z(3, 4)),  # type: ignore[arg-type]
        errors.ArgumentError, "argument.stack", "list came as a stack",
    ),
    "a text as scaling in a stack": (
        lambda: lora.AdapterStack([(z(2, 6), z(4, 2), "2")]),  # type: ignore[list-item]
        TypeError, "", "real number",
    ),
    "a text as scaling among many": (
        lambda: lora.merge_many([z(4, 6)], [(z(2, 6), z(4, 2), "2")]),  # type: ignore[list-item]
        TypeError, "", "real number",
    ),
    "a scaling in a stack that is none": (
        lambda: lora.AdapterStack([(z(2, 6), z(4, 2), None)]),  # type: ignore[list-item]
        TypeError, "", "real number",
    ),
    "NaN scaling in a stack": (
        lambda: lora.AdapterStack([(z(2, 6), z(4, 2), float("nan"))]),
        errors.ArgumentError, "argument.scaling", "finite",
    ),
    "infinite scaling in a stack": (
        lambda: lora.AdapterStack([(z(2, 6), z(4, 2), float("-inf"))]),
        errors.ArgumentError, "argument.scaling", "finite",
    ),
    "a text as alpha": (
        lambda: lora.Adapter.from_arrays({"q": (z(2, 6), z(4, 2))}, alpha="2"),  # type: ignore[arg-type]
        TypeError, "", "real number",
    ),
    "swapped bytes in an adapter": (
        lambda: lora.Adapter.from_arrays({"q": (z(2, 6, dtype=">f4"), z(4, 2))}, alpha=2),
        errors.LayoutError, "layout.byte_order", "swapped",
    ),
    "lists in an adapter": (
        lambda: lora.Adapter.from_arrays({"q": ([[1.0]], [[1.0]])}, alpha=2),  # type: ignore[dict-item]
        errors.DTypeError, "dtype.not_a_tensor", "list",
    ),
    "layers in a list": (
        lambda: lora.Adapter.from_arrays([z(2, 6), z(4, 2)], alpha=2),  # type: ignore[arg-type]
        errors.ArgumentError, "argument.matrices", "list came as layers",
    ),
    "one matrix of a layer": (
        lambda: lora.Adapter.from_arrays({"q": z(2, 6)}, alpha=2),  # type: ignore[dict-item]
        errors.ArgumentError, "argument.matrices", "(lora_A, lora_B)",
    ),
    "no alpha for a layer": (
        lambda: lora.Adapter.from_arrays({"q": (z(2, 6), z(4, 2))}, alpha={"k": 2}),
        errors.ArgumentError, "argument.alpha", "no value for q",
    ),
    "a text as weight": (
        lambda: lora.combine(
            [lora.Adapter.from_arrays({"q": (z(2, 6), z(4, 2))}, alpha=2)], ["1"], method="linear"  # type: ignore[list-item]
        ),
        TypeError, "", "real number",
    ),
    "a tensor as an adapter": (
        lambda: lora.AdapterStack([torch.zeros(2, 6)]),
        errors.ArgumentError, "argument.matrices", "(lora_A, lora_B)",
    ),
    "stack shares memory": (
        lambda: lora.apply_adapters(SHARED[:3], lora.AdapterStack([(z(2, 6), z(6, 2))]), [0] * 3, out=SHARED[1:4]),
        errors.OverlapError, "overlap", "shares memory",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "case", [*MERGES.values(), *APPLIES.values()], ids=[*MERGES, *(f"apply {n}" for n in APPLIES)]
)
def test_refused(case: tuple[Callable[[], object], type[errors.InferAccelError], str, str]) -> None:
    call, kind, code, text = case
    with pytest.raises(kind) as caught:
        call()
    assert getattr(caught.value, "code", "").startswith(code)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    "case", [*MERGES.values(), *APPLIES.values()], ids=[*MERGES, *(f"apply {n}" for n in APPLIES)]
)
def test_the_specification_refuses_alike(
    case: tuple[Callable[[], object], type[errors.InferAccelError], str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("_apply", "_many", "_merge", "_quantized"):
        monkeypatch.setattr(f"infer_accel.lora.{part}._core", reference.lora)
    call, kind, code, _ = case
    with pytest.raises(kind) as caught:
        call()
    assert getattr(caught.value, "code", "").startswith(code)


def test_nothing_is_written_when_refused() -> None:
    weight = np.arange(24, dtype=F).reshape(4, 6)
    before = weight.copy()
    for a, b, scaling in ((z(2, 6) + 1, z(4, 3) + 1, 1.0), (z(2, 6) + 1, z(4, 2) + 1, float("nan"))):
        with pytest.raises(errors.InferAccelError):
            lora.merge_weights(weight, a, b, scaling=scaling)
        np.testing.assert_array_equal(weight, before)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_torch_is_written_in_place(dtype: str) -> None:
    kind = getattr(torch, dtype)
    generator = torch.Generator().manual_seed(1)
    weight, a, b = (torch.randn(s, generator=generator).to(kind) for s in ((33, 50), (5, 50), (33, 5)))
    expected = weight.clone()
    reference.lora.merge_weights(expected, a, b, scaling=0.5)
    address = weight.data_ptr()
    lora.merge_weights(weight, a, b, scaling=0.5)
    assert weight.data_ptr() == address
    assert torch.equal(weight, expected)
    x, out = torch.randn((7, 50), generator=generator).to(kind), torch.zeros((7, 33), dtype=kind)
    expected = out.clone()
    reference.lora.apply_adapter(x, a, b, out=expected)
    lora.apply_adapter(x, a, b, out=out)
    assert torch.equal(out, expected)


def test_a_parameter_is_merged_under_no_grad() -> None:
    layer = torch.nn.Linear(6, 4)
    a, b = torch.ones(1, 6), torch.ones(4, 1)
    expected = layer.weight.detach() + 1
    with torch.no_grad():
        lora.merge_weights(layer.weight, a, b)
    assert torch.equal(layer.weight.detach(), expected)


def test_transposed_and_strided_weights() -> None:
    rng = np.random.default_rng(0)
    whole = rng.normal(0, 1, (40, 90)).astype(ml_dtypes.bfloat16)
    a, b = (rng.normal(0, 1, s).astype(ml_dtypes.bfloat16) for s in ((3, 30), (40, 3)))
    expected = whole.copy()
    part = np.ascontiguousarray(whole[:, 30:60])
    reference.lora.merge_weights(part, a, b)
    expected[:, 30:60] = part
    lora.merge_weights(whole[:, 30:60], a, b)  # the k of a fused qkv, say
    np.testing.assert_array_equal(whole.view(np.uint16), expected.view(np.uint16))
    stored = np.ascontiguousarray(part.T)  # fan_in_fan_out
    reference.lora.merge_weights(part, a, b)
    lora.merge_weights(stored.T, a, b)
    np.testing.assert_array_equal(stored.T.view(np.uint16), part.view(np.uint16))


def test_out_may_be_the_weight() -> None:
    weight = np.ones((4, 6), F)
    lora.merge_weights(weight, z(1, 6) + 1, z(4, 1) + 1, out=weight)
    np.testing.assert_array_equal(weight, np.full((4, 6), 2, F))


@pytest.mark.parametrize("shape", [(0, 6, 2), (4, 0, 2), (4, 6, 0), (0, 0, 0)])
def test_empty(shape: tuple[int, int, int]) -> None:
    rows, columns, rank = shape
    weight = np.ones((rows, columns), F)
    lora.merge_weights(weight, z(rank, columns), z(rows, rank))
    np.testing.assert_array_equal(weight, np.ones((rows, columns), F))
    out = np.ones((3, rows), F)
    lora.apply_adapter(z(3, columns), z(rank, columns), z(rows, rank), out=out)
    np.testing.assert_array_equal(out, np.ones((3, rows), F))


def test_huge_dimensions_of_nothing() -> None:
    many = 2**40
    lora.merge_weights(np.empty((0, many), F), np.empty((0, many), F), np.empty((0, 0), F))
    one = np.lib.stride_tricks.as_strided(z(1), (many, 2), (0, 0), writeable=False)
    with pytest.raises(errors.ShapeError):
        lora.merge_weights(z(4, 6), one, z(4, 2))


def _work(seed: int) -> tuple[bytes, bytes]:
    rng = np.random.default_rng(seed)
    weight = rng.normal(0, 1, (600, 500)).astype(F)
    a, b = rng.normal(0, 1, (16, 500)).astype(F), rng.normal(0, 1, (600, 16)).astype(F)
    x, out = rng.normal(0, 1, (64, 500)).astype(F), np.zeros((64, 600), F)
    lora.merge_weights(weight, a, b)
    lora.apply_adapter(x, a, b, out=out)
    return weight.tobytes(), out.tobytes()


def test_eight_threads_at_once() -> None:
    expected = [_work(seed) for seed in range(8)]
    results: list[tuple[bytes, bytes]] = [(b"", b"")] * 8
    start = threading.Barrier(8)

    def run(seed: int) -> None:
        start.wait()
        for _ in range(5):
            results[seed] = _work(seed)

    workers = [threading.Thread(target=run, args=(seed,)) for seed in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert results == expected


def _child(connection: Any) -> None:
    connection.send(_work(1))
    connection.close()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_after_a_fork() -> None:
    expected = _work(1)  # the pool exists before the fork
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(theirs,))
    child.start()
    assert ours.poll(60), "the child hangs"
    assert ours.recv() == expected
    child.join(60)
    assert child.exitcode == 0


def test_adapters_of_tensors_of_torch() -> None:
    a, b = torch.randn(6, 2).t().to(torch.bfloat16), torch.randn(4, 2)
    (layer,) = lora.Adapter.from_arrays({"q": (a, b)}, alpha=2).layers
    assert layer.lora_A.astype(np.float32).tolist() == a.float().tolist()
    assert layer.lora_B.tolist() == b.tolist()
    with pytest.raises(errors.GradientError):
        lora.Adapter.from_arrays({"q": (a, torch.nn.Parameter(b))}, alpha=2)
