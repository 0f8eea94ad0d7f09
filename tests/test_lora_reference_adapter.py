"""Adapters in the specification (``INFER_ACCEL_BACKEND=reference``): those of the native core, to the bit."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infer_accel import errors, lora

if TYPE_CHECKING:
    from pathlib import Path

DTYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
METHODS: dict[str, dict[str, Any]] = {
    "linear": {},
    "cat": {},
    "ties": {"density": 0.4},
    "dare_linear": {"density": 0.5, "seed": 7},
    "dare_ties": {"density": 0.5, "seed": 7},
    "magnitude_prune": {"density": 0.3},
}

Layers = dict[str, tuple[np.ndarray, np.ndarray]]


class backend:
    """For a while, another backend answers."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        os.environ["INFER_ACCEL_BACKEND"] = self.name

    def __exit__(self, *_: object) -> None:
        del os.environ["INFER_ACCEL_BACKEND"]


def random_layers(rng: np.random.Generator, dtype: Any, rank: int, modules: int = 3) -> Layers:
    def pair(index: int) -> tuple[np.ndarray, np.ndarray]:
        kernel = (3, 3) if index == 2 else ()
        a = rng.standard_normal((rank, 5 + index, *kernel))
        b = rng.standard_normal((4 + index, rank, *(1 for _ in kernel)))
        return a.astype(dtype), b.astype(dtype)

    return {f"model.layers.{index}.proj": pair(index) for index in range(modules)}


def both(layers: Layers, **options: Any) -> tuple[lora.Adapter, lora.Adapter]:
    native = lora.Adapter.from_arrays(layers, **options)
    with backend("reference"):
        return native, lora.Adapter.from_arrays(layers, **options)


def assert_same(ours: lora.Adapter, reference: lora.Adapter) -> None:
    assert type(ours._core) is not type(reference._core)
    assert ours.digest == reference.digest
    assert (ours.rank, ours.scaling, ours.nbytes) == (reference.rank, reference.scaling, reference.nbytes)
    assert ours.replacements == reference.replacements == {}
    for left, right in zip(ours.layers, reference.layers, strict=True):
        fields = (
            "path",
            "component",
            "kind",
            "rank",
            "alpha",
            "scaling",
            "fan_in_fan_out",
            "dtype",
            "shapes",
        )
        assert [getattr(left, name) for name in fields] == [getattr(right, name) for name in fields]
        assert left.lora_A.tobytes() == right.lora_A.tobytes()
        assert left.lora_B.tobytes() == right.lora_B.tobytes()


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from(sorted(DTYPES)),
    rank=st.integers(1, 9),
    alpha=st.sampled_from([1.0, 16.0, 0.3, -2.0]),
    use_rslora=st.booleans(),
)
def test_arrays(seed: int, dtype: str, rank: int, alpha: float, use_rslora: bool) -> None:
    layers = random_layers(np.random.default_rng(seed), DTYPES[dtype], rank)
    assert_same(*both(layers, alpha=alpha, use_rslora=use_rslora))


@pytest.mark.parametrize("method", sorted(METHODS))
def test_combined(method: Any) -> None:
    rng = np.random.default_rng(1)
    pairs = [both(random_layers(rng, np.float32, 4, modules), alpha=2) for modules in (3, 2)]
    ours = lora.combine([one for one, _ in pairs], [0.75, -0.5], method=method, **METHODS[method])
    with backend("reference"):
        theirs = lora.combine([one for _, one in pairs], [0.75, -0.5], method=method, **METHODS[method])
    assert_same(ours, theirs)


def test_svd_approximates_the_same_sum() -> None:
    rng = np.random.default_rng(2)
    pairs = [both(random_layers(rng, np.float32, rank), alpha=2) for rank in (2, 3)]
    ours = lora.combine([one for one, _ in pairs], [1.0, 0.5], method="svd", rank=3)
    with backend("reference"):
        theirs = lora.combine([one for _, one in pairs], [1.0, 0.5], method="svd", rank=3)
    for left, right in zip(ours.layers, theirs.layers, strict=True):
        assert left.shapes == right.shapes
        np.testing.assert_allclose(product(left), product(right), atol=1e-5)


def product(layer: lora.AdapterLayer) -> np.ndarray:
    a, b = (np.asarray(factor, np.float32) for factor in (layer.lora_A, layer.lora_B))
    delta: np.ndarray = b.reshape(b.shape[0], -1) @ a.reshape(layer.rank, -1)
    return delta


NAN = np.full((2, 3), np.nan, np.float32)
ONES = np.ones((4, 2), np.float32)


@pytest.mark.parametrize(
    ("layers", "alpha", "code"),
    [
        ({"q": (NAN, ONES)}, 1.0, "adapter.not_finite"),
        ({"q": (np.ones((3, 3), np.float32), ONES)}, 1.0, "adapter.rank"),
        ({"q": (np.ones(3, np.float32), ONES)}, 1.0, "adapter.shape"),
        ({"q": (np.ones((2, 3), np.float32), ONES)}, float("nan"), "adapter.alpha"),
        ({"q": (np.ones((2, 3), np.float32), ONES)}, 1e300, "adapter.alpha"),
        ({"q": (np.ones((2, 3), np.int8), ONES)}, 1.0, "dtype.unsupported"),
    ],
)
@pytest.mark.parametrize("name", ["native", "reference"])
def test_the_same_is_refused(name: str, layers: Layers, alpha: float, code: str) -> None:
    with backend(name), pytest.raises(errors.InferAccelError) as caught:
        lora.Adapter.from_arrays(layers, alpha=alpha)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "options",
    [
        {"method": "mean"},
        {"method": "ties"},
        {"method": "cat", "density": 0.5},
        {"method": "svd", "rank": 0},
        {"method": "dare_ties", "density": 2.0, "seed": 1},
        {"method": "cat", "weights": [1.0]},
        {"method": "cat", "weights": [1.0, float("inf")]},
    ],
)
@pytest.mark.parametrize("name", ["native", "reference"])
def test_the_same_settings_are_refused(name: str, options: dict[str, Any]) -> None:
    rng = np.random.default_rng(3)
    others = {key: value for key, value in options.items() if key != "weights"}
    with backend(name):
        adapters = [lora.Adapter.from_arrays(random_layers(rng, np.float32, 2), alpha=2) for _ in range(2)]
        with pytest.raises(errors.ArgumentError) as caught:
            lora.combine(adapters, options.get("weights", [1.0, 1.0]), **others)
    assert caught.value.code == "argument.combine"


@pytest.mark.parametrize("name", ["native", "reference"])
def test_ranks_that_differ_are_refused(name: str) -> None:
    rng = np.random.default_rng(4)
    with backend(name):
        adapters = [
            lora.Adapter.from_arrays(random_layers(rng, np.float32, rank), alpha=2) for rank in (2, 3)
        ]
        with pytest.raises(errors.AdapterError) as caught:
            lora.combine(adapters, [1.0, 1.0], method="linear")
    assert caught.value.code == "adapter.combine"


def test_files_are_refused_by_name(tmp_path: Path) -> None:
    with backend("reference"):
        adapter = lora.Adapter.from_arrays(random_layers(np.random.default_rng(5), np.float32, 2), alpha=2)
        for call in (
            lambda: lora.Adapter.load(tmp_path),
            lambda: adapter.save(tmp_path / "saved"),
            lambda: adapter.validate(tmp_path),
            lambda: adapter.resolve(tmp_path),
            lambda: lora.merge_checkpoint(tmp_path, adapter, tmp_path / "out"),
        ):
            with pytest.raises(errors.BackendError, match="INFER_ACCEL_BACKEND") as caught:
                call()
            assert caught.value.code == "backend.files"
    assert list(tmp_path.iterdir()) == []


STORE = """
import numpy as np
from infer_accel import lora
rng = np.random.default_rng(0)
a, b = rng.standard_normal((4, 64)).astype(np.float32), rng.standard_normal((48, 4)).astype(np.float32)
adapter = lora.Adapter.from_arrays({"q_proj": (a, b)}, alpha=2)
store = lora.AdapterStore(capacity_bytes=1 << 20)
stored = store.load("sql", adapter)
x, out = rng.standard_normal((3, 64)).astype(np.float32), np.zeros((3, 48), np.float32)
lora.apply_adapters(x, store.stack("q_proj"), [stored.id, -1, stored.id], out=out)
print(stored.nbytes, out.tobytes().hex())
"""


def test_adapters_are_served_from_a_store() -> None:
    def run(name: str) -> str:
        environment = {**os.environ, "INFER_ACCEL_BACKEND": name}
        command = [sys.executable, "-c", STORE]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    assert run("native") == run("reference")
