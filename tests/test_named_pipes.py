"""Pipes in the place of files: refused at once in one line, where nobody has said that a pipe is meant."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.checkpoints import small_adapter, small_model, write_adapter, write_checkpoint

from infer_accel import errors, lora
from infer_accel._reference.tokenize.tokenizer import Tokenizer as Specification
from infer_accel.kvcache import DiskTier, Trace
from infer_accel.tokenize import Tokenizer, count_tokens

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here"),
    pytest.mark.timeout(60),  # what waits for a writer waits for ever
]

VOCABULARY = {
    "version": "1.0",
    "added_tokens": [],
    "pre_tokenizer": {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    },
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []},
}
REQUEST = b'{"timestamp": 0, "input_length": 512, "output_length": 1, "hash_ids": [7]}\n'


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


READERS: dict[str, tuple[Callable[[Path], object], type[Exception]]] = {
    "a tokenizer": (Tokenizer.from_file, errors.TokenizerError),
    "ranks": (lambda pipe: Tokenizer.from_tiktoken(pipe, pattern="gpt2"), errors.TokenizerError),
    "a tokenizer to count by": (lambda pipe: count_tokens("a", pipe), errors.TokenizerError),
    "a tokenizer of the specification": (
        lambda pipe: Specification.from_file(str(pipe)),
        errors.TokenizerError,
    ),
    "ranks of the specification": (
        lambda pipe: Specification.from_tiktoken(str(pipe), "gpt2", [], None),
        errors.TokenizerError,
    ),
    "a trace": (Trace.load, OSError),
    "an adapter": (lora.Adapter.load, errors.AdapterError),
    "an adapter to merge": (
        lambda pipe: lora.merge_checkpoint(pipe, pipe, pipe.with_name("out")),
        errors.AdapterError,
    ),
}


@pytest.mark.parametrize("case", READERS.values(), ids=READERS)
def test_a_pipe_is_no_file(case: tuple[Callable[[Path], object], type[Exception]], pipe: Path) -> None:
    call, kind = case
    with pytest.raises(kind) as refused:
        call(pipe)
    assert "\n" not in str(refused.value)
    assert "pipe" in str(refused.value)


def test_devices_and_directories_are_no_files(tmp_path: Path) -> None:
    for path, what in ((Path("/dev/zero"), "a pipe or a device"), (tmp_path, "a directory")):
        with pytest.raises(errors.TokenizerError, match=what):
            Tokenizer.from_file(path)
        with pytest.raises(OSError, match=what):
            Trace.load(path)


def test_a_pipe_inside_a_tier(tmp_path: Path) -> None:
    (tmp_path / "tier").mkdir()
    os.mkfifo(tmp_path / "tier" / "tier")
    with pytest.raises(errors.StorageError, match="a pipe or a device"):
        DiskTier(tmp_path / "tier", capacity_bytes=1 << 20, page_bytes=64, fingerprint=b"f")


def test_a_pipe_in_unfinished_work(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shards = small_model(rng)
    base = write_checkpoint(tmp_path / "base", shards)
    adapter = write_adapter(tmp_path / "adapter", small_adapter(rng, shards))
    (tmp_path / ".out.unfinished").mkdir()
    os.mkfifo(tmp_path / ".out.unfinished" / "journal")
    with pytest.raises(errors.InferAccelError) as refused:
        lora.merge_checkpoint(base, adapter, tmp_path / "out")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_an_output_below_nothing_says_what_to_make(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shards = small_model(rng)
    base = write_checkpoint(tmp_path / "base", shards)
    adapter = write_adapter(tmp_path / "adapter", small_adapter(rng, shards))
    with pytest.raises(errors.StorageError, match="no such directory; make it first") as refused:
        lora.merge_checkpoint(base, adapter, tmp_path / "no" / "such" / "out")
    assert str(tmp_path / "no" / "such") in str(refused.value)
    assert refused.value.code == "storage.read"
    assert not (tmp_path / "no").exists()


class TestPipesThatAreMeant:
    """What a shell hands over has a writer."""

    def shell(self, folder: Path, line: str) -> str:
        bash = shutil.which("bash")
        if bash is None:
            pytest.skip("needs bash")
        (folder / "tokenizer.json").write_text(json.dumps(VOCABULARY))
        (folder / "text").write_text("abba")
        (folder / "trace").write_bytes(REQUEST * 3)
        line = line.replace("infer-accel", f"{sys.executable} -m infer_accel")
        done = subprocess.run(
            [bash, "-c", line], cwd=folder, capture_output=True, text=True, timeout=50, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @pytest.mark.parametrize("source", ["<(cat text)", "/dev/stdin < text", "/dev/stdin < <(cat text)"])
    def test_counted(self, tmp_path: Path, source: str) -> None:
        printed = self.shell(tmp_path, f"infer-accel count -t tokenizer.json --json - {source}")
        assert json.loads(printed)["total"]["tokens"] == 4

    @pytest.mark.parametrize("source", ["<(cat trace)", "/dev/stdin < trace", "/dev/stdin < <(cat trace)"])
    def test_replayed(self, tmp_path: Path, source: str) -> None:
        self.shell(tmp_path, f"infer-accel replay {source} --json report")
        assert json.loads((tmp_path / "report").read_text())["requests"] == 3

    def test_a_named_pipe_is_counted_when_it_is_written(self, tmp_path: Path, pipe: Path) -> None:
        writer = threading.Thread(target=pipe.write_text, args=("ab",), daemon=True)
        writer.start()
        printed = self.shell(tmp_path, "infer-accel count -t tokenizer.json --json - pipe")
        assert json.loads(printed)["total"]["tokens"] == 2
        writer.join(10)
