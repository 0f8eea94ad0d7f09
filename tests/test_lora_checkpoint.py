"""Merging into checkpoints: every tensor against the specification, every file accounted for."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.checkpoints import (
    bits,
    merged,
    read_checkpoint,
    read_safetensors,
    small_adapter,
    small_model,
    write_adapter,
    write_checkpoint,
    write_safetensors,
)

from infer_accel import errors, lora

DTYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def assert_same(found: np.ndarray, expected: np.ndarray, name: str = "") -> None:
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape), name
    np.testing.assert_array_equal(bits(found), bits(expected), err_msg=name)


def files_of(directory: Path) -> dict[str, bytes]:
    found = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in found}


@pytest.fixture
def example(tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint of three shards and an adapter for it."""
    rng = np.random.default_rng(0)
    shards = small_model(rng)
    base = write_checkpoint(tmp_path / "base", shards)
    adapter = write_adapter(tmp_path / "adapter", small_adapter(rng, shards))
    return base, adapter


@st.composite
def models(draw: st.DrawFn) -> dict[str, Any]:
    """Draw shards of tensors of any kind, adapters for some of them, and the options of a merge."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shards: list[dict[str, np.ndarray]] = []
    for number in range(draw(st.integers(1, 3))):
        tensors: dict[str, np.ndarray] = {}
        for position in range(draw(st.integers(1, 5))):
            kind = draw(st.sampled_from(["proj", "proj", "norm", "scalar", "empty", "ids", "bytes"]))
            dtype = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
            name = f"model.layers.{number}.{kind}{position}.weight"
            if kind == "proj":
                shape: tuple[int, ...] = (draw(st.integers(1, 90)), draw(st.integers(1, 90)))
            else:
                shape = {"norm": (37,), "scalar": (), "empty": (0, 5), "ids": (3, 2), "bytes": (13,)}[kind]
            values = rng.standard_normal(shape)
            stored: Any = {"ids": np.int64, "bytes": np.uint8}.get(kind, dtype)
            tensors[name] = np.asarray(values).astype(stored)
        shards.append(tensors)
    shards[0].setdefault(
        "model.layers.0.proj9.weight", rng.standard_normal((33, 20)).astype(ml_dtypes.bfloat16)
    )
    adapters = []
    for _ in range(draw(st.integers(1, 3))):
        rank = draw(st.sampled_from([1, 2, 5, 8]))
        dtype = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
        layers = small_adapter(rng, shards, rank=rank, dtype=dtype, size=0.2)
        chosen = {name: pair for name, pair in layers.items() if draw(st.booleans())} or layers
        adapters.append(
            (chosen, draw(st.sampled_from([1.0, 16.0, 0.3])), draw(st.sampled_from([1.0, 0.5, -0.7])))
        )
    return {
        "shards": shards,
        "adapters": adapters,
        "dtype": draw(st.sampled_from([None, None, "float32", "bfloat16", "float16"])),
        "padding": draw(st.sampled_from([0, 1, 7])),
        "residue": draw(st.booleans()),
        "num_threads": draw(st.sampled_from([None, 1, 3])),
    }


@settings(max_examples=60, deadline=None)
@given(model=models())
def test_every_tensor_is_the_specification(model: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        base = write_checkpoint(place / "base", model["shards"], padding=model["padding"])
        paths, weights = [], []
        for number, (layers, alpha, weight) in enumerate(model["adapters"]):
            paths.append(write_adapter(place / f"adapter{number}", layers, alpha=alpha))
            weights.append(weight)
        report = lora.merge_checkpoint(
            base,
            paths,
            place / "out",
            weights=weights,
            dtype=model["dtype"],
            residue=model["residue"],
            num_threads=model["num_threads"],
        )
        before, after = read_checkpoint(base), read_checkpoint(place / "out")
        assert list(after) == list(before)
        touched = set()
        for name, weight in before.items():
            deltas = []
            for layers, alpha, share in model["adapters"]:
                if name.removesuffix(".weight") in layers:
                    a, b = layers[name.removesuffix(".weight")]
                    deltas.append((a, b, alpha / a.shape[0] * share))
            target = weight.dtype
            if model["dtype"] is not None and weight.dtype.name in DTYPES:
                target = np.dtype(DTYPES[model["dtype"]])
            if deltas or target != weight.dtype:
                touched.add(name)
                assert_same(after[name], merged(weight, deltas, target), name)
            else:
                assert_same(after[name], weight, name)
        touched = {name for name in touched if before[name].size}
        assert {change.name for change in report.tensors} == touched
        assert set(report.untouched) == set(before) - touched
        assert report.verification is not None
        if model["residue"]:
            lora.unmerge_checkpoint(place / "out", place / "again", adapters=paths)
            assert files_of(place / "again") == files_of(base)


def test_report_tells_what_happened(example: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = example
    report = lora.merge_checkpoint(base, adapter, tmp_path / "out")
    before, after = read_checkpoint(base), read_checkpoint(tmp_path / "out")
    assert [change.name for change in report.tensors] == [name for name in before if "proj" in name]
    for change in report.tensors:
        weight, result = before[change.name], after[change.name]
        layers = read_safetensors(adapter / "adapter_model.safetensors")
        module = f"base_model.model.{change.name.removesuffix('.weight')}"
        a, b = layers[f"{module}.lora_A.weight"], layers[f"{module}.lora_B.weight"]
        delta = 4.0 * b.astype(np.float64) @ a.astype(np.float64)
        really = result.astype(np.float64) - weight.astype(np.float64)
        assert change.action == "merged"
        assert (change.elements, change.rank) == (weight.size, 4)
        assert change.changed == np.count_nonzero(result.view(np.uint16) != weight.view(np.uint16))
        assert change.delta_norm == pytest.approx(np.linalg.norm(delta), rel=1e-3)
        assert change.survived == pytest.approx((delta * really).sum() / (delta**2).sum(), rel=1e-3)
        assert change.largest_delta == pytest.approx(np.abs(delta).max(), rel=1e-3)
    assert report.survived is not None
    assert 0.5 < report.survived < 1.5
    written = files_of(tmp_path / "out")
    assert {file.name for file in report.files} == set(written)
    for file in report.files:
        assert file.bytes == len(written[file.name])
        assert file.checksum == xxhash.xxh3_128_hexdigest(written[file.name])
    assert lora.MergeReport.from_json(report.to_json()) == report
    assert not list(tmp_path.glob(".*"))


def test_headers_index_and_small_files_go_along(example: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = example
    (base / "nested").mkdir()
    (base / "nested" / "chat_template.jinja").write_text("{{ x }}")
    (base / "pytorch_model.bin").write_bytes(b"old weights")
    (base / ".cache").mkdir()
    (base / ".cache" / "x").write_text("no")
    report = lora.merge_checkpoint(base, adapter, tmp_path / "out")
    before, after = files_of(base), files_of(tmp_path / "out")
    assert report.left_out == ("pytorch_model.bin",)
    assert set(before) - set(after) == {"pytorch_model.bin", ".cache/x"}
    for name, data in after.items():
        if name.endswith(".safetensors"):
            length = 8 + int.from_bytes(data[:8], "little")
            assert data[:length] == before[name][:length]
        else:
            assert data == before[name]


def test_the_configuration_names_the_new_format(example: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = example
    report = lora.merge_checkpoint(base, adapter, tmp_path / "out", dtype="float32")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert config["torch_dtype"] == "float32"
    assert index["metadata"]["total_size"] == sum(
        t.nbytes for t in read_checkpoint(tmp_path / "out").values()
    )
    assert report.survived == pytest.approx(1.0, abs=1e-3)
    assert {change.action for change in report.tensors} == {"merged", "converted"}


def test_several_threads_and_shards_of_many_blocks(tmp_path: Path) -> None:
    """Larger than a block of the writer, so that blocks, tasks and tensors end at different places."""
    rng = np.random.default_rng(3)
    tensors = {
        "model.a_proj.weight": (rng.standard_normal((1500, 1111)) * 0.05).astype(ml_dtypes.bfloat16),
        "model.norm.weight": rng.standard_normal(4097).astype(np.float32),
        "model.b_proj.weight": (rng.standard_normal((900, 2049)) * 0.05).astype(np.float16),
        "model.table": rng.integers(0, 9, 3_000_001).astype(np.uint8),
    }
    base = write_checkpoint(tmp_path / "base", [tensors], padding=3)
    layers = small_adapter(rng, [tensors], rank=8, dtype=ml_dtypes.bfloat16, size=0.01)
    adapter = write_adapter(tmp_path / "adapter", layers, alpha=8)
    outputs = []
    for threads in (1, 2, 5):
        lora.merge_checkpoint(base, adapter, tmp_path / f"out{threads}", num_threads=threads, residue=True)
        outputs.append(files_of(tmp_path / f"out{threads}"))
    assert outputs[0] == outputs[1] == outputs[2]
    after = read_safetensors(tmp_path / "out1" / "model.safetensors")
    for name, weight in tensors.items():
        module = name.removesuffix(".weight")
        deltas = [(*layers[module], 1.0)] if module in layers else []
        assert_same(after[name], merged(weight, deltas) if deltas else weight, name)
    kept = sum(len(data) for name, data in outputs[0].items() if name.startswith("residue/"))
    assert kept < 0.03 * sum(tensor.nbytes for tensor in tensors.values())


def test_undo_of_widening_and_narrowing(example: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = example
    for dtype in ("float32", "float16"):
        lora.merge_checkpoint(base, adapter, tmp_path / dtype, dtype=dtype, residue=True)
        report = lora.unmerge_checkpoint(tmp_path / dtype, tmp_path / f"{dtype}-undone", adapters=adapter)
        assert files_of(tmp_path / f"{dtype}-undone") == files_of(base)
        assert bool(report.undone) == (dtype == "float32")


def test_replaced_tensors_and_magnitudes_are_kept_whole(example: tuple[Path, Path], tmp_path: Path) -> None:
    base, _ = example
    before = read_checkpoint(base)
    rng = np.random.default_rng(1)
    name = "model.layers.0.self_attn.q_proj"
    weight = before[f"{name}.weight"]
    a = (rng.standard_normal((4, weight.shape[1])) * 0.1).astype(np.float32)
    b = (rng.standard_normal((weight.shape[0], 4)) * 0.1).astype(np.float32)
    magnitude = (np.abs(rng.standard_normal(weight.shape[0])) + 0.5).astype(np.float32)
    table = rng.standard_normal(before["model.embed_tokens.weight"].shape).astype(np.float32)
    adapter = write_adapter(
        tmp_path / "dora",
        {name: (a, b)},
        alpha=4,
        use_dora=True,
        modules_to_save=["embed_tokens"],
        extra={
            f"base_model.model.{name}.lora_magnitude_vector": magnitude,
            "base_model.model.model.embed_tokens.weight": table,
        },
    )
    report = lora.merge_checkpoint(base, adapter, tmp_path / "out", residue=True)
    after = read_checkpoint(tmp_path / "out")
    assert_same(after["model.embed_tokens.weight"], table.astype(ml_dtypes.bfloat16))
    wide = weight.astype(np.float64) + b.astype(np.float64) @ a.astype(np.float64)
    expected = magnitude[:, None] * wide / np.linalg.norm(wide, axis=1, keepdims=True)
    np.testing.assert_allclose(after[f"{name}.weight"].astype(np.float64), expected, rtol=2**-8, atol=1e-6)
    assert {change.name: change.action for change in report.tensors} == {
        "model.embed_tokens.weight": "replaced",
        f"{name}.weight": "merged",
    }
    undone = lora.unmerge_checkpoint(tmp_path / "out", tmp_path / "again", adapters=adapter)
    assert files_of(tmp_path / "again") == files_of(base)
    assert len(undone.restored) == 2


def test_transposed_weights(tmp_path: Path) -> None:
    """GPT-2 stores [in, out]: the same bits as the transposed of a plain merge, its DoRA included."""
    rng = np.random.default_rng(5)
    weight = (rng.standard_normal((40, 96)) * 0.1).astype(np.float16)
    base = write_checkpoint(
        tmp_path / "base", [{"h.0.attn.c_attn.weight": weight, "h.0.ln": weight[0].copy()}]
    )
    a = (rng.standard_normal((4, 40)) * 0.1).astype(np.float32)
    b = (rng.standard_normal((96, 4)) * 0.1).astype(np.float32)
    adapter = write_adapter(tmp_path / "adapter", {"h.0.attn.c_attn": (a, b)}, alpha=8, fan_in_fan_out=True)
    lora.merge_checkpoint(base, adapter, tmp_path / "out", residue=True)
    after = read_checkpoint(tmp_path / "out")
    assert_same(after["h.0.attn.c_attn.weight"], merged(weight.T, [(a, b, 2.0)]).T)
    lora.unmerge_checkpoint(tmp_path / "out", tmp_path / "again", adapters=adapter)
    assert files_of(tmp_path / "again") == files_of(base)


def test_adapters_that_are_loaded_already(example: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = example
    loaded = lora.Adapter.load(adapter)
    report = lora.merge_checkpoint(
        base, [loaded, adapter], tmp_path / "out", weights=[0.5, 0.25], residue=True
    )
    assert [merged.name for merged in report.adapters] == ["adapter 1", str(adapter)]
    lora.merge_checkpoint(base, [adapter, adapter], tmp_path / "expected", weights=[0.5, 0.25])
    found, expected = files_of(tmp_path / "out"), files_of(tmp_path / "expected")
    assert {name: found[name] for name in expected} == expected
    lora.unmerge_checkpoint(tmp_path / "out", tmp_path / "again", adapters=[adapter, loaded])
    assert files_of(tmp_path / "again") == files_of(base)


def test_dry_run_writes_nothing(example: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = example
    before = sorted(path.name for path in tmp_path.iterdir())
    report = lora.merge_checkpoint(base, adapter, tmp_path / "out", dry_run=True)
    assert report.is_dry_run
    assert len(report.tensors) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_progress_and_its_exceptions(example: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = example
    seen: list[tuple[int, int]] = []
    report = lora.merge_checkpoint(base, adapter, tmp_path / "out", progress=lambda *pair: seen.append(pair))
    assert seen[-1] == (report.bytes, report.bytes)

    class Stop(Exception):
        pass

    def refuse(done: int, total: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        lora.merge_checkpoint(base, adapter, tmp_path / "stopped", progress=refuse)
    assert not (tmp_path / "stopped").exists()
    lora.merge_checkpoint(base, adapter, tmp_path / "stopped")
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "out")


def test_unused_deltas_are_refused_unless_allowed(example: tuple[Path, Path], tmp_path: Path) -> None:
    base, _ = example
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((4, 48)).astype(np.float32), rng.standard_normal((51, 4)).astype(np.float32)
    layers = {"model.layers.0.self_attn.q_proj": (a, b), "model.layers.7.self_attn.q_proj": (a, b)}
    adapter = write_adapter(tmp_path / "odd", layers)
    with pytest.raises(errors.AdapterError, match=r"layers\.7.*allow_unused"):
        lora.merge_checkpoint(base, adapter, tmp_path / "out")
    report = lora.merge_checkpoint(base, adapter, tmp_path / "out", allow_unused=True, residue=True)
    assert len(report.adapters[0].unused) == 1
    assert "layers.7" in report.adapters[0].unused[0]
    lora.unmerge_checkpoint(tmp_path / "out", tmp_path / "again", adapters=adapter)
    assert files_of(tmp_path / "again") == files_of(base)


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
@pytest.mark.parametrize("names", [["float32"], ["float16", "bfloat16"]])
def test_model_cache_snapshots_are_served(tmp_path: Path, names: list[str]) -> None:
    """A cache keeps files as blobs and a snapshot as links to them; links elsewhere are refused."""
    rng = np.random.default_rng(0)
    shards = [
        {f"model.layers.{number}.proj.weight": rng.standard_normal((8, 6)).astype(DTYPES[name])}
        for number, name in enumerate(names)
    ]
    plain = write_checkpoint(tmp_path / "plain", shards)
    snapshot, blobs = tmp_path / "models--x" / "snapshots" / "abc", tmp_path / "models--x" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in plain.iterdir():
        shutil.copy(path, blobs / f"blob-{path.name}")
        (snapshot / path.name).symlink_to(Path("../../blobs") / f"blob-{path.name}")
    adapter = write_adapter(tmp_path / "adapter", small_adapter(rng, shards, rank=2))
    lora.merge_checkpoint(snapshot, adapter, tmp_path / "out")
    lora.merge_checkpoint(plain, adapter, tmp_path / "expected")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "expected")
    outside = tmp_path / "outside.safetensors"
    write_safetensors(outside, shards[0])
    name = next(path.name for path in sorted(plain.glob("*.safetensors")))
    (plain / name).unlink()
    (plain / name).symlink_to(outside)
    with pytest.raises(errors.CheckpointError, match="symbolic link"):
        lora.merge_checkpoint(plain, adapter, tmp_path / "refused")


def test_a_base_that_cannot_be_written_serves(example: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = example
    for path in base.iterdir():
        path.chmod(0o444)
    base.chmod(0o555)
    try:
        lora.merge_checkpoint(base, adapter, tmp_path / "out")
    finally:
        base.chmod(0o755)
    assert all(os.access(path, os.W_OK) for path in (tmp_path / "out").iterdir())
