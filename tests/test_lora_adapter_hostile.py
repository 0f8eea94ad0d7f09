"""Adapter files that are wrong: refused by the name of what is wrong, all of it at once."""

from __future__ import annotations

import json
import os
import struct
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests import adapter_files as files

from infer_accel import errors, lora
from infer_accel.lora import Adapter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


A = "base_model.model.m.q.lora_A.weight"
B = "base_model.model.m.q.lora_B.weight"


_GOOD = files.pair("m.q")


def _header(change: Callable[[dict[str, dict[str, object]]], None]) -> bytes:
    """Return the good file with another header."""
    data = files.safetensors_bytes(_GOOD)
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def _twice() -> bytes:
    data = files.safetensors_bytes(_GOOD)
    (length,) = struct.unpack_from("<Q", data)
    text = data[8 : 8 + length].replace(b"lora_B", b"lora_A")
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


HOSTILE: dict[str, tuple[dict[str, files.Array] | bytes, dict[str, object], str]] = {
    "NaN": (files.with_value(A, np.nan), {}, "adapter.not_finite"),
    "infinity": (files.with_value(B, -np.inf), {}, "adapter.not_finite"),
    "NaN alpha": (_GOOD, {"lora_alpha": float("nan")}, "adapter.alpha"),
    "NaN alpha of a pattern": (_GOOD, {"alpha_pattern": {"q": float("inf")}}, "adapter.alpha"),
    "alpha that overflows": (_GOOD, {"lora_alpha": 1e308}, "adapter.alpha"),
    "A and B of different ranks": (_GOOD | {A: files.ramp(3, 6)}, {}, "adapter.rank"),
    "another rank than configured": (_GOOD, {"r": 4}, "adapter.rank"),
    "rank 0": (_GOOD, {"r": 0}, "adapter.rank"),
    "negative rank": (_GOOD, {"r": -8}, "adapter.rank"),
    "huge rank": (_GOOD, {"r": 10**9}, "adapter.rank"),
    "rank that is no number": (_GOOD, {"r": "2"}, "adapter.config"),
    "rank that is a flag": (_GOOD, {"r": True}, "adapter.config"),
    "int8": ({name: it.astype(np.int8) for name, it in _GOOD.items()}, {}, "adapter.dtype"),
    "float64": ({name: it.astype(np.float64) for name, it in _GOOD.items()}, {}, "adapter.dtype"),
    "only A": ({A: _GOOD[A]}, {}, "adapter.pair"),
    "only B": ({B: _GOOD[B]}, {}, "adapter.pair"),
    "weights that were not gathered": (_GOOD | {A: files.ramp(0)}, {}, "adapter.shape"),
    "three dimensions": (_GOOD | {A: files.ramp(2, 6, 1)}, {}, "adapter.shape"),
    "unknown tensor": (_GOOD | {"base_model.model.m.q.weird": files.ramp(2)}, {}, "adapter.unknown_tensor"),
    "DoRA without magnitudes": (_GOOD, {"use_dora": True}, "adapter.pair"),
    "another method": (_GOOD, {"peft_type": "IA3"}, "adapter.unsupported"),
    "PiSSA": (_GOOD, {"init_lora_weights": "pissa"}, "adapter.unsupported"),
    "replicated layers": (_GOOD, {"layer_replication": [[0, 2]]}, "adapter.unsupported"),
    "empty file": (b"", {}, "adapter.truncated"),
    "truncated": (files.safetensors_bytes(_GOOD)[:-1], {}, "adapter.truncated"),
    "truncated header": (files.safetensors_bytes(_GOOD)[:40], {}, "adapter.truncated"),
    "header of 2⁶² bytes": (struct.pack("<Q", 2**62) + b"{}", {}, "adapter.size"),
    "header that is no JSON": (struct.pack("<Q", 4) + b"{nul", {}, "adapter.header"),
    "bytes that nobody owns": (files.safetensors_bytes(_GOOD) + b"\0", {}, "adapter.offsets"),
    "overlap": (_header(lambda it: it[B].update(data_offsets=[40, 80])), {}, "adapter.offsets"),
    "gap": (_header(lambda it: it[B].update(data_offsets=[56, 96])), {}, "adapter.offsets"),
    "product that overflows": (_header(lambda it: it[B].update(shape=[2**33, 2**33])), {}, "adapter.size"),
    "negative extent": (_header(lambda it: it[B].update(shape=[-5, -2])), {}, "adapter.header"),
    "duplicate names": (_twice(), {}, "adapter.duplicate"),
    "100,000 entries": (
        files.safetensors_bytes({f"t{i}": np.empty(0, np.float32) for i in range(100_000)}),
        {},
        "adapter.size",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_by_name(case: str, tmp_path: Path) -> None:
    tensors, config, code = HOSTILE[case]
    assert code in files.codes(files.write_adapter(tmp_path, tensors, **config))


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    tensors = files.with_value(A, np.nan) | files.pair("m.k", rank=3) | {"x": files.ramp(1)}
    with pytest.raises(errors.AdapterError) as refused:
        Adapter.load(files.write_adapter(tmp_path, tensors, lora_alpha=float("nan")))
    assert sorted(problem.code for problem in refused.value.problems) == [
        "adapter.alpha",
        "adapter.not_finite",
        "adapter.rank",
        "adapter.unknown_tensor",
    ]
    (nan,) = (problem for problem in refused.value.problems if problem.code == "adapter.not_finite")
    assert nan.tensor == A
    assert "[1, 5]" in nan.message


def test_links_are_refused_unless_trusted(tmp_path: Path) -> None:
    real = files.write_adapter(tmp_path / "real", _GOOD)
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (linked / name).symlink_to(real / name)
    assert files.codes(linked) == ["adapter.path"]
    assert Adapter.load(linked, follow_symlinks=True).digest == Adapter.load(real).digest
    (linked / "adapter_config.json").unlink()
    (linked / "adapter_config.json").symlink_to("/dev/zero")
    with pytest.raises(errors.AdapterError) as refused:
        Adapter.load(linked, follow_symlinks=True)
    assert refused.value.code == "adapter.path"


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    files.write_adapter(tmp_path, _GOOD)
    (tmp_path / "adapter_model.safetensors").unlink()
    os.mkfifo(tmp_path / "adapter_model.safetensors")
    assert files.codes(tmp_path) == ["adapter.path"]


def test_pickles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x04.")
    assert files.codes(tmp_path) == ["adapter.pickle"]
    assert files.codes(tmp_path / "adapter_model.bin") == ["adapter.pickle"]


def test_a_name_cannot_play_with_a_terminal() -> None:
    problem = lora.Problem("adapter.unknown_tensor", "\x1b[2J", "text")
    assert str(problem) == r"\x1b[2J: text"


def test_threads_share_an_adapter(tmp_path: Path) -> None:
    adapter = Adapter.load(files.write_adapter(tmp_path, files.pair("m.q", 256, 256)))
    found: list[tuple[str, int]] = []

    def look() -> None:
        found.append((adapter.digest, len(adapter.layers)))

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 8
