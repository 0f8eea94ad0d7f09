"""Merging into checkpoints whose weights are codes: both tensors against the specification, and back."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.checkpoints import read_checkpoint, write_adapter, write_checkpoint

from infer_accel import errors, lora
from infer_accel._reference.lora._quantized import merge_terms

E4M3, E5M2 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2
MODULE = "model.layers.{}.proj"

Tensors = dict[str, np.ndarray]


def scale_shape(layout: str, rows: int, columns: int) -> tuple[int, ...]:
    return {
        "tensor": (),
        "one": (1,),
        "channel": (rows, 1),
        "vector": (rows,),
        "block": (-(-rows // 128), -(-columns // 128)),
    }[layout]


def coded(
    rng: np.random.Generator, shape: tuple[int, int], dtype: Any, layout: str, scale_dtype: Any = np.float32
) -> tuple[np.ndarray, np.ndarray]:
    """Return codes and scales."""
    largest = {np.int8: 127, E4M3: 448, E5M2: 57344}[dtype]
    codes = np.clip(rng.standard_normal(shape) * largest / 3, -largest, largest).astype(dtype)
    scale = rng.uniform(1e-5, 1e-4, scale_shape(layout, *shape)).astype(scale_dtype)
    return codes, scale


def adapter_layers(
    rng: np.random.Generator, shapes: dict[str, tuple[int, int]], rank: int, size: float
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    def pair(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
        a, b = rng.normal(0, 0.1, (rank, columns)), rng.normal(0, size, (rows, rank))
        return a.astype(np.float32), b.astype(ml_dtypes.bfloat16)

    return {name: pair(*shape) for name, shape in shapes.items()}


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    layers=st.lists(
        st.tuples(
            st.tuples(st.integers(1, 300), st.integers(1, 300)),
            st.sampled_from([E4M3, E4M3, E5M2, np.int8]),
            st.sampled_from(["tensor", "one", "channel", "vector", "block", "block"]),
            st.sampled_from([np.float32, np.float32, ml_dtypes.bfloat16]),
            st.booleans(),
        ),
        min_size=1,
        max_size=3,
    ),
    order=st.sampled_from(["scale first", "codes first", "apart"]),
    sizes=st.lists(st.sampled_from([1e-3, 0.05, 1.0]), min_size=1, max_size=2),
    num_threads=st.sampled_from([1, 3]),
)
def test_codes_and_scales_are_the_specification(
    seed: int,
    layers: list[tuple[tuple[int, int], Any, str, Any, bool]],
    order: str,
    sizes: list[float],
    num_threads: int,
) -> None:
    rng = np.random.default_rng(seed)
    codes: Tensors = {}
    scales: Tensors = {}
    shapes, names = {}, {}
    for index, (shape, dtype, layout, scale_dtype, is_inverse) in enumerate(layers):
        module = MODULE.format(index)
        weight, scale = coded(rng, shape, dtype, layout, scale_dtype)
        names[module] = f"{module}.weight" + ("_scale_inv" if is_inverse else "_scale")
        codes[f"{module}.weight"], scales[names[module]] = weight, scale
        shapes[module] = shape
    plain = {
        "model.norm.weight": np.ones(7, ml_dtypes.bfloat16),
        "model.layers.9.other.weight": codes["model.layers.0.proj.weight"],
    }
    shards = {
        "scale first": [scales | plain | codes],
        "codes first": [codes | plain | scales],
        "apart": [codes, plain | scales],
    }[order]
    adapters = [adapter_layers(rng, shapes, 4, size) for size in sizes]
    weights = [0.5, -1.25][: len(sizes)]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        base = write_checkpoint(place / "base", shards)
        paths = [write_adapter(place / f"adapter{i}", layers, alpha=2) for i, layers in enumerate(adapters)]
        report = lora.merge_checkpoint(
            base, paths, place / "out", weights=weights, residue=True, num_threads=num_threads
        )
        before, after = read_checkpoint(base), read_checkpoint(place / "out")
        assert list(before) == list(after)
        changes = {change.name: change for change in report.tensors}
        assert set(changes) == {*codes, *scales}
        for module in shapes:
            weight, scale = before[f"{module}.weight"].copy(), before[names[module]].copy()
            terms = [
                (*adapter[module], weight_of * 2 / 4)
                for adapter, weight_of in zip(adapters, weights, strict=True)
            ]
            wanted = merge_terms(weight, scale, terms)
            assert after[f"{module}.weight"].tobytes() == weight.tobytes()
            assert after[names[module]].tobytes() == scale.tobytes()
            change, rescaled = changes[f"{module}.weight"], changes[names[module]]
            assert change.action == "merged"
            assert rescaled.action == "rescaled"
            found = change.quantization
            assert found is not None
            assert (change.elements, change.changed) == (wanted.elements, wanted.changed)
            assert (found.saturated, found.scales, found.scales_changed) == (
                wanted.saturated,
                wanted.scales,
                wanted.scales_changed,
            )
            assert (rescaled.elements, rescaled.changed) == (wanted.scales, wanted.scales_changed)
            assert found.rms_error == pytest.approx(wanted.rms_error, rel=1e-4)
            assert found.largest_error == pytest.approx(wanted.largest_error, rel=1e-4)
            assert change.survived == pytest.approx(wanted.survived, rel=1e-4, abs=1e-9)
        for name in plain:
            assert after[name].tobytes() == before[name].tobytes()
        assert report.verification is not None
        assert report.verification.elements > 0
        assert lora.MergeReport.from_json(report.to_json()) == report
        undone = lora.unmerge_checkpoint(place / "out", place / "back", adapters=paths)
        assert set(undone.restored) == {*codes, *scales}
        for path in base.glob("*.safetensors"):
            assert (place / "back" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("layout", ["tensor", "channel", "block"])
@pytest.mark.parametrize("order", ["scale first", "codes first"])
def test_tensors_of_many_tasks(tmp_path: Path, layout: str, order: str) -> None:
    """Of several megabytes: a task holds a part of the rows, and one scale may be that of all."""
    rng = np.random.default_rng(3)
    weight, scale = coded(rng, (2500, 1500), E4M3, layout)
    pair = {"a.proj.weight_scale": scale} if order == "scale first" else {}
    pair |= {"a.proj.weight": weight, "a.proj.weight_scale": scale}
    shard = pair | {"b.proj.weight": rng.standard_normal((5, 7)).astype(np.float32)}
    base = write_checkpoint(tmp_path / "base", [shard])
    layers = adapter_layers(rng, {"a.proj": (2500, 1500)}, 8, 0.05)
    # One element that needs another scale, in the last rows.
    layers["a.proj"][1][-1] *= 40
    adapter = write_adapter(tmp_path / "adapter", layers, alpha=8)
    report = lora.merge_checkpoint(base, adapter, tmp_path / "out", num_threads=3)
    wanted = merge_terms(weight, scale, [(*layers["a.proj"], 1.0)])
    after = read_checkpoint(tmp_path / "out")
    assert after["a.proj.weight"].tobytes() == weight.tobytes()
    assert after["a.proj.weight_scale"].tobytes() == scale.tobytes()
    found = next(change.quantization for change in report.tensors if change.name == "a.proj.weight")
    assert found is not None
    assert wanted.scales_changed > 0
    assert (found.scales, found.scales_changed) == (wanted.scales, wanted.scales_changed)


class Example:
    """A small quantized checkpoint that tests break."""

    def __init__(self, place: Path) -> None:
        rng = np.random.default_rng(4)
        self.place = place
        self.weight, self.scale = coded(rng, (130, 140), E4M3, "block")
        self.tensors: Tensors = {"a.proj.weight": self.weight, "a.proj.weight_scale_inv": self.scale}
        self.layers = adapter_layers(rng, {"a.proj": (130, 140)}, 2, 0.01)
        self.config: dict[str, object] = {}

    def merge(self, **options: Any) -> lora.MergeReport:
        base = write_checkpoint(self.place / "base", [self.tensors])
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps(config | self.config))
        adapter = write_adapter(self.place / "adapter", self.layers, alpha=2)
        try:
            return lora.merge_checkpoint(base, adapter, self.place / "out", **options)
        finally:
            assert (self.place / "out").exists() == (not list(self.place.glob(".out*")) and self.done)

    done = False


@pytest.fixture
def example(tmp_path: Path) -> Example:
    return Example(tmp_path)


def refused(example: Example, kind: type[Exception], code: str, text: str, **options: Any) -> None:
    with pytest.raises(kind) as caught:
        example.merge(**options)
    assert isinstance(caught.value, errors.InferAccelError)
    assert caught.value.code == code, caught.value
    assert text in str(caught.value), caught.value


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
        {"quantization_config": {"quant_method": "compressed-tensors"}},
        {},
    ],
)
def test_known_configurations(example: Example, config: dict[str, object]) -> None:
    example.config, example.done = config, True
    report = example.merge()
    assert [change.action for change in report.tensors] == ["merged", "rescaled"]


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"quant_method": "gptq"}, "gptq"),
        ({"quant_method": "bitsandbytes"}, "bitsandbytes"),
        ({"quant_method": "fp8", "weight_block_size": [64, 64]}, "[64, 64]"),
        ({"quant_method": "compressed-tensors", "transform_config": {"R1": {}}}, "transform_config"),
    ],
)
def test_unknown_configurations(example: Example, config: dict[str, object], text: str) -> None:
    example.config = {"quantization_config": config}
    refused(example, errors.DTypeError, "quantized.scheme", text)


@pytest.mark.parametrize(
    "beside", ["weight_zero_point", "weight_scale_2", "weight_global_scale", "weight_g_idx", "SCB"]
)
def test_tensors_that_say_that_codes_mean_something_else(example: Example, beside: str) -> None:
    example.tensors[f"a.proj.{beside}"] = np.ones(1, np.float32)
    refused(example, errors.DTypeError, "quantized.scheme", beside)


def test_no_scales(example: Example) -> None:
    del example.tensors["a.proj.weight_scale_inv"]
    refused(example, errors.DTypeError, "quantized.scheme", "there is neither 'a.proj".replace("'", '"'))


def test_two_scales(example: Example) -> None:
    example.tensors["a.proj.weight_scale"] = np.ones(1, np.float32)
    refused(example, errors.DTypeError, "quantized.scheme", "there are both")


@pytest.mark.parametrize("shape", [(3, 2), (2, 3), (140,), (1, 140), (130, 140), (0,)])
def test_scales_that_do_not_fit(example: Example, shape: tuple[int, ...]) -> None:
    example.tensors["a.proj.weight_scale_inv"] = np.ones(shape, np.float32)
    refused(example, errors.DTypeError, "quantized.scheme", "weight_scale has shape")


def test_scales_of_another_format(example: Example) -> None:
    example.tensors["a.proj.weight_scale_inv"] = np.ones((2, 2), np.float64)
    refused(example, errors.DTypeError, "quantized.scheme", "float64")


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_scales_that_are_none(example: Example, value: float) -> None:
    example.tensors["a.proj.weight_scale_inv"][1, 0] = value
    with pytest.raises(errors.IntegrityError, match=r"a\.proj\.weight: weight_scale\[1, 0\]") as caught:
        example.merge()
    assert caught.value.code == "quantized.scale"


def test_codes_that_are_none(example: Example) -> None:
    example.tensors["a.proj.weight"][129, 3] = np.nan
    with pytest.raises(errors.IntegrityError, match=r"a\.proj\.weight: weight\[129, 3\]") as caught:
        example.merge()
    assert caught.value.code == "quantized.not_a_number"


def test_another_format_is_refused(example: Example) -> None:
    refused(example, errors.ArgumentError, "argument.checkpoint", "F8_E4M3", dtype="bfloat16")


def test_magnitudes_are_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    weight, scale = coded(rng, (64, 32), E4M3, "block")
    base = write_checkpoint(tmp_path / "base", [{"a.proj.weight": weight, "a.proj.weight_scale": scale}])
    layers = adapter_layers(rng, {"a.proj": (64, 32)}, 2, 0.01)
    extra = {"base_model.model.a.proj.lora_magnitude_vector": np.ones(64, np.float32)}
    adapter = write_adapter(tmp_path / "adapter", layers, extra=extra, use_dora=True)
    with pytest.raises(errors.DTypeError, match="DoRA") as caught:
        lora.merge_checkpoint(base, adapter, tmp_path / "out")
    assert caught.value.code == "quantized.scheme"


def test_quantized_tensors_that_nothing_is_added_to_go_through(tmp_path: Path) -> None:
    """Whatever their scheme is."""
    rng = np.random.default_rng(6)
    weight, _ = coded(rng, (64, 32), E4M3, "block")
    tensors = {"a.proj.weight": weight, "b.proj.weight": rng.standard_normal((8, 8)).astype(np.float32)}
    base = write_checkpoint(tmp_path / "base", [tensors])
    adapter = write_adapter(tmp_path / "adapter", adapter_layers(rng, {"b.proj": (8, 8)}, 2, 0.1))
    report = lora.merge_checkpoint(base, adapter, tmp_path / "out")
    assert report.untouched == ("a.proj.weight",)
    assert read_checkpoint(tmp_path / "out")["a.proj.weight"].tobytes() == weight.tobytes()


def test_interrupted_and_taken_up_again(tmp_path: Path) -> None:
    """Wherever it was stopped: the scales of a weight may lie in what is written already."""
    rng = np.random.default_rng(7)
    shapes = {f"{letter}.proj": (700, 1500) for letter in "abc"}
    tensors: Tensors = {}
    for number, (module, shape) in enumerate(shapes.items()):
        weight, scale = coded(rng, shape, E4M3, ["tensor", "block", "channel"][number])
        pair = [(f"{module}.weight_scale", scale), (f"{module}.weight", weight)]
        tensors |= dict(pair if number % 2 else pair[::-1])
    base = write_checkpoint(tmp_path / "base", [tensors])
    adapter = write_adapter(tmp_path / "adapter", adapter_layers(rng, shapes, 4, 0.3), alpha=4)
    lora.merge_checkpoint(base, adapter, tmp_path / "whole", residue=True)
    expected = {path.name: path.read_bytes() for path in (tmp_path / "whole").glob("*.safetensors")}
    total = sum(len(data) for data in expected.values())
    for share in (0.0, 0.3, 0.6, 0.9):
        out = tmp_path / f"out{share}"

        def stop(done: int, _: int, limit: float = share * total) -> None:
            if done >= limit:
                raise InterruptedError

        with pytest.raises(InterruptedError):
            lora.merge_checkpoint(base, adapter, out, residue=True, progress=stop)
        lora.merge_checkpoint(base, adapter, out, residue=True)
        assert {path.name: path.read_bytes() for path in out.glob("*.safetensors")} == expected
