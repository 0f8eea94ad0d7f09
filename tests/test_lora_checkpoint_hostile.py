"""Bases, outputs and residues that must be refused, each with a text that says what is wrong."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.checkpoints import (
    read_safetensors,
    small_adapter,
    small_model,
    write_adapter,
    write_checkpoint,
    write_safetensors,
)

from infer_accel import errors, lora

Example = tuple[Path, Path]


@pytest.fixture
def example(tmp_path: Path) -> Example:
    rng = np.random.default_rng(0)
    shards = small_model(rng)
    base = write_checkpoint(tmp_path / "base", shards)
    return base, write_adapter(tmp_path / "adapter", small_adapter(rng, shards))


def change_index(base: Path, **changes: str) -> None:
    path = base / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] |= changes
    path.write_text(json.dumps(index))


def refused(base: Path, adapter: Path, match: str, error: type[Exception] = errors.CheckpointError) -> None:
    out = base.parent / "refused"
    with pytest.raises(error, match=match):
        lora.merge_checkpoint(base, adapter, out)
    assert not out.exists()


def test_a_missing_shard(example: Example) -> None:
    base, adapter = example
    (base / "model-00002-of-00003.safetensors").unlink()
    refused(base, adapter, "index names this shard")


@pytest.mark.parametrize("name", ["../evil.safetensors", "/etc/passwd", "a/b.safetensors", "..", ""])
def test_an_index_that_leads_elsewhere(example: Example, name: str) -> None:
    base, adapter = example
    change_index(base, **{"model.embed_tokens.weight": name})
    refused(base, adapter, "only names of files beside it")


def test_an_index_that_contradicts_the_shards(example: Example) -> None:
    base, adapter = example
    change_index(base, **{"model.embed_tokens.weight": "model-00002-of-00003.safetensors"})
    refused(base, adapter, "but it")


def test_an_index_of_a_tensor_that_is_nowhere(example: Example) -> None:
    base, adapter = example
    change_index(base, **{"model.other.weight": "model-00002-of-00003.safetensors"})
    refused(base, adapter, "does not")


def test_a_tensor_in_two_shards(example: Example) -> None:
    base, adapter = example
    path = base / "model-00002-of-00003.safetensors"
    tensors = read_safetensors(path) | read_safetensors(base / "model-00001-of-00003.safetensors")
    write_safetensors(path, tensors)
    refused(base, adapter, "which counts")


def test_no_index_and_several_files(example: Example) -> None:
    base, adapter = example
    (base / "model.safetensors.index.json").unlink()
    refused(base, adapter, "no index")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_an_index_that_is_none(example: Example, text: str) -> None:
    base, adapter = example
    (base / "model.safetensors.index.json").write_text(text)
    refused(base, adapter, "index|names no tensors")


def test_a_truncated_shard(example: Example) -> None:
    base, adapter = example
    path = base / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    refused(base, adapter, "but the file has")


def test_no_checkpoint_at_all(example: Example, tmp_path: Path) -> None:
    _, adapter = example
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", adapter, "holds no")
    refused(tmp_path / "absent", adapter, "cannot read", errors.StorageError)
    (tmp_path / "file").write_text("{}")
    refused(tmp_path / "file", adapter, "no directory")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_in_the_base(example: Example) -> None:
    base, adapter = example
    os.mkfifo(base / "notes.txt")
    refused(base, adapter, "plain file")


def test_outputs_that_would_hurt(example: Example, tmp_path: Path) -> None:
    base, adapter = example
    outs = [base, base / "out", base / ".." / "base", adapter / "out", tmp_path]
    if sys.platform != "win32":  # links need a privilege there
        link = tmp_path / "link"
        link.symlink_to(base)
        outs += [link, link / "out"]
    for out in outs:
        with pytest.raises(errors.CheckpointError):
            lora.merge_checkpoint(base, adapter, out)
    full = tmp_path / "full"
    full.mkdir()
    (full / "x").write_text("mine")
    with pytest.raises(errors.CheckpointError, match="not empty"):
        lora.merge_checkpoint(base, adapter, full)
    assert (full / "x").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(errors.CheckpointError, match="no directory"):
        lora.merge_checkpoint(base, adapter, tmp_path / "file")
    with pytest.raises(errors.StorageError, match="cannot read"):
        lora.merge_checkpoint(base, adapter, tmp_path / "absent" / "out")
    assert not list(tmp_path.glob(".*"))
    (tmp_path / "vacant").mkdir()
    lora.merge_checkpoint(base, adapter, tmp_path / "vacant")


def test_arguments(example: Example, tmp_path: Path) -> None:
    base, adapter = example
    with pytest.raises(errors.ArgumentError, match="weights"):
        lora.merge_checkpoint(base, adapter, tmp_path / "out", weights=[1.0, 2.0])
    with pytest.raises(errors.ArgumentError, match="no finite number"):
        lora.merge_checkpoint(base, adapter, tmp_path / "out", weights=[float("nan")])
    with pytest.raises(errors.ArgumentError, match="no adapters"):
        lora.merge_checkpoint(base, [], tmp_path / "out")
    with pytest.raises(errors.ArgumentError, match="dare_ties"):
        lora.merge_checkpoint(base, adapter, tmp_path / "out", method="mean")  # type: ignore[arg-type]
    with pytest.raises(errors.DTypeError, match="allowed"):
        lora.merge_checkpoint(base, adapter, tmp_path / "out", dtype="int8")
    with pytest.raises(errors.ArgumentError, match="num_threads"):
        lora.merge_checkpoint(base, adapter, tmp_path / "out", num_threads=0)
    assert not (tmp_path / "out").exists()


def test_unfinished_work_of_another_call(example: Example, tmp_path: Path) -> None:
    base, adapter = example

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lora.merge_checkpoint(base, adapter, tmp_path / "out", progress=stop)
    with pytest.raises(errors.CheckpointError, match="adapters and weights") as caught:
        lora.merge_checkpoint(base, adapter, tmp_path / "out", weights=[0.5])
    assert caught.value.code == "checkpoint.other_work"
    lora.merge_checkpoint(base, adapter, tmp_path / "out", weights=[0.5], resume=False)
    assert not list(tmp_path.glob(".*"))


def test_residues_that_do_not_fit(example: Example, tmp_path: Path) -> None:
    base, adapter = example
    rng = np.random.default_rng(9)
    shards = small_model(rng)
    other = write_adapter(tmp_path / "other", small_adapter(rng, shards))
    out = tmp_path / "out"
    lora.merge_checkpoint(base, adapter, out, residue=True)

    def undo(match: str | None, error: type[Exception], **options: object) -> None:
        with pytest.raises(error, match=match):
            lora.unmerge_checkpoint(out, tmp_path / "again", **({"adapters": adapter} | options))  # type: ignore[arg-type]
        assert not (tmp_path / "again").exists()

    undo("not the adapter", errors.AdapterError, adapters=other)
    undo("2 adapters came", errors.ArgumentError, adapters=[adapter, adapter])
    undo("no residue", errors.IntegrityError, residue_dir=adapter)
    manifest = out / "residue" / "manifest.json"
    text = manifest.read_text()
    found = json.loads(text)
    manifest.write_text(json.dumps(found | {"kernel_revision": 99}))
    undo("revision", errors.IntegrityError)
    manifest.write_text(json.dumps(found | {"layout": 99}))
    undo("layout", errors.IntegrityError)
    manifest.write_text("{")
    undo("manifest", errors.IntegrityError)
    manifest.write_text(text)
    for name in ("model-00002-of-00003.safetensors", "residue/model-00002-of-00003.safetensors"):
        path = out / name
        whole = path.read_bytes()
        for place in (len(whole) - 1, len(whole) - 200):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            undo(None, errors.IntegrityError)
        path.write_bytes(whole[:-1])
        undo(None, (errors.IntegrityError, errors.CheckpointError))  # type: ignore[arg-type]
        path.write_bytes(whole)
    lora.unmerge_checkpoint(out, tmp_path / "again", adapters=adapter)


@pytest.mark.parametrize("adapter", ["\ud800", 3, None, [3], b"x"])
def test_an_adapter_that_is_no_path_is_refused_in_one_line(
    example: Example, tmp_path: Path, adapter: Any
) -> None:
    with pytest.raises((TypeError, ValueError)) as refused:
        lora.merge_checkpoint(example[0], adapter, tmp_path / "out")
    assert "\n" not in str(refused.value)
    with pytest.raises((TypeError, ValueError)) as refused:
        lora.unmerge_checkpoint(example[0], tmp_path / "out", adapters=adapter)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.glob("*out*"))
