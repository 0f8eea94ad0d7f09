"""Killed, full, interrupted: the output is absent or whole, and the next call finishes it to the same bits."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import pytest
from tests.checkpoints import small_adapter, write_adapter, write_checkpoint
from tests.soak import repeats

from infer_accel import errors, lora

if TYPE_CHECKING:
    from pathlib import Path

#: What a child process does: merges, or takes a merge back, with a limit on the size of files perhaps.
CHILD = """
import signal, sys
# Whoever runs the tests in the background may have had SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
from infer_accel import errors, lora
work, limit, residue, source, adapter, out = sys.argv[1:]
if int(limit):
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
print("ready", flush=True)
try:
    if work == "merge":
        lora.merge_checkpoint(source, adapter, out, residue=residue == "1", num_threads=2)
    else:
        lora.unmerge_checkpoint(source, out, adapters=adapter)
except errors.StorageError as error:
    print(error.code, error, flush=True)
"""


def files_of(directory: Path) -> dict[str, bytes]:
    found = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in found}


class Example:
    """A checkpoint of some dozen megabytes and what merging it gives."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(0)
        weight = (rng.standard_normal((1200, 1024)) * 0.05).astype(ml_dtypes.bfloat16)
        shards = [
            {
                f"model.layers.{number}.a_proj.weight": weight,
                f"model.layers.{number}.norm.weight": weight[0],
                f"model.layers.{number}.b_proj.weight": weight[:1111],
                f"model.layers.{number}.table": rng.integers(0, 99, 700_001).astype(np.int8),
            }
            for number in range(4)
        ]
        self.base = write_checkpoint(folder / "base", shards)
        self.adapter = write_adapter(folder / "adapter", small_adapter(rng, shards, rank=8))
        self.merged = folder / "merged"
        lora.merge_checkpoint(self.base, self.adapter, self.merged, residue=True)
        self.expected = {"merge": files_of(self.merged), "unmerge": files_of(self.base)}

    def start(
        self, work: str, out: Path, *, limit: int = 0, before: tuple[str, ...] = ()
    ) -> subprocess.Popen[str]:
        source = self.base if work == "merge" else self.merged
        command = [
            sys.executable,
            "-c",
            CHILD,
            work,
            str(limit),
            "1",
            str(source),
            str(self.adapter),
            str(out),
        ]
        child = subprocess.Popen([*before, *command], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        return child

    def finish(self, work: str, out: Path) -> None:
        if work == "merge":
            report = lora.merge_checkpoint(self.base, self.adapter, out, residue=True)
            assert len(report.tensors) == 8
            assert {file.name for file in report.files} < set(self.expected[work])
        else:
            lora.unmerge_checkpoint(self.merged, out, adapters=self.adapter)
        assert files_of(out) == self.expected[work]


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    return Example(tmp_path_factory.mktemp("crash"))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal here")
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("work", ["merge", "unmerge"])
def test_killed_at_any_moment(example: Example, tmp_path: Path, work: str) -> None:
    chance = random.Random(0)
    clock = time.perf_counter()
    example.start(work, tmp_path / "whole").communicate()
    longest = (time.perf_counter() - clock) * 0.7
    shutil.rmtree(tmp_path / "whole")
    killed = 0
    for turn in range(repeats(6, 120)):
        out = tmp_path / f"out{turn}"
        # Killed several times on the way, so that a resumed call is killed too.
        for _ in range(chance.randint(1, 3)):
            child = example.start(work, out)
            time.sleep(chance.uniform(0, longest))
            child.kill()
            child.communicate()
            killed += child.returncode == -signal.SIGKILL
            if out.exists():
                assert files_of(out) == example.expected[work], "neither absent nor whole"
                break
        if not out.exists():
            example.finish(work, out)
        elif (tmp_path / f".{out.name}.unfinished").exists():
            # Killed while it cleaned up: the next call does that, and says that the output is there, or what it is.
            with suppress(errors.CheckpointError):
                example.finish(work, out)
        assert files_of(out) == example.expected[work]
        assert not list(tmp_path.glob(".*"))
        shutil.rmtree(out)
    assert killed, "no call was ever cut short: the delays are too long"


@pytest.mark.skipif(sys.platform == "win32", reason="limits of processes are a thing of Unix")
@pytest.mark.parametrize("limit", [100, 4096, 3 << 20, (4 << 20) + 4096, (4 << 20) + 77])
def test_no_space_left(example: Example, tmp_path: Path, limit: int) -> None:
    """A limit on the size of files fails a write as a full disk does."""
    out = tmp_path / "out"
    child = example.start("merge", out, limit=limit)
    said = child.communicate()[0]
    assert said.startswith("storage.full"), said
    assert "make space and repeat" in said
    assert not out.exists()
    assert files_of(example.base) == example.expected["unmerge"]
    example.finish("merge", out)


def test_a_full_disk(example: Example, tmp_path: Path) -> None:
    """A file system of eight megabytes, then of more: in a namespace of its own, where the system allows one."""
    place = tmp_path / "small"
    place.mkdir()
    script = f"""
import subprocess, sys
from pathlib import Path
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", {str(place)!r}], check=True)
print("mounted", flush=True)
from infer_accel import errors, lora
paths = {str(example.base)!r}, {str(example.adapter)!r}, {str(place / "out")!r}
try:
    lora.merge_checkpoint(*paths, residue=True)
except errors.StorageError as error:
    print(error.code, Path(paths[2]).exists(), flush=True)
subprocess.run(["mount", "-o", "remount,size=64m", {str(place)!r}], check=True)
report = lora.merge_checkpoint(*paths, residue=True)
print(report.resumed_bytes > 0, flush=True)
import shutil
shutil.copytree(paths[2], {str(tmp_path / "copy")!r})
"""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("no unshare")
    done = subprocess.run(
        [unshare, "--mount", "--map-root-user", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )
    if "mounted" not in done.stdout:
        pytest.skip(f"no file system of its own can be mounted here: {done.stderr.strip()[-200:]}")
    assert done.stdout.split() == ["mounted", "storage.full", "False", "True"], done.stderr
    assert files_of(tmp_path / "copy") == example.expected["merge"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
def test_ctrl_c(example: Example, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for turn in range(1, 31):
        child = subprocess.Popen(
            [
                sys.executable,
                "-c",
                CHILD,
                "merge",
                "0",
                "1",
                str(example.base),
                str(example.adapter),
                str(out),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.001 * turn)
        child.send_signal(signal.SIGINT)
        stderr = child.communicate()[1]
        if "KeyboardInterrupt" in stderr:
            break
        shutil.rmtree(out, ignore_errors=True)
    else:
        pytest.fail("Ctrl-C never stopped a merge")
    assert not out.exists()
    example.finish("merge", out)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
def test_ctrl_c_in_a_shell(example: Example, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["merge", str(example.base), str(example.adapter), "-o", str(out), "--residue"]
    begins = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    for _ in range(10):
        child = subprocess.Popen(
            [sys.executable, "-c", f"{begins}\nfrom infer_accel.cli import main\nmain()", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while not (tmp_path / ".out.unfinished").exists() and child.poll() is None:
            time.sleep(0.0005)
        child.send_signal(signal.SIGINT)
        stdout, stderr = child.communicate(timeout=60)
        if child.returncode:
            break
        shutil.rmtree(out)
    assert child.returncode == 130
    assert stdout == ""
    (line,) = stderr.splitlines()
    assert line.startswith("interrupted; there is no output yet: repeat the command")
    assert not out.exists()
    example.finish("merge", out)
    assert not list(tmp_path.glob(".*"))


def test_one_at_a_time(example: Example, tmp_path: Path) -> None:
    out = tmp_path / "out"
    seen: list[str] = []

    def again(done: int, total: int) -> None:
        if not seen:
            with pytest.raises(errors.StorageError, match="another process") as caught:
                lora.merge_checkpoint(example.base, example.adapter, out, residue=True)
            seen.append(caught.value.code)

    lora.merge_checkpoint(example.base, example.adapter, out, residue=True, progress=again)
    assert seen == ["storage.busy"]
    assert files_of(out) == example.expected["merge"]


def test_a_base_that_changes_meanwhile(example: Example, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(example.base, base)
    shard = base / "model-00001-of-00004.safetensors"

    def touch(done: int, total: int) -> None:
        os.utime(shard)

    with pytest.raises(errors.IntegrityError, match="written to while it was read"):
        lora.merge_checkpoint(base, example.adapter, tmp_path / "out", progress=touch)
    assert not (tmp_path / "out").exists()


def test_unfinished_work_that_was_damaged(example: Example, tmp_path: Path) -> None:
    """Whatever lies in the directory of unfinished work is read again before it is believed."""
    chance = random.Random(1)
    for turn in range(repeats(6, 60)):
        out = tmp_path / f"out{turn}"

        def stop(done: int, total: int) -> None:
            if done > chance.random() * total:
                raise KeyboardInterrupt

        try:
            lora.merge_checkpoint(example.base, example.adapter, out, residue=True, progress=stop)
        except KeyboardInterrupt:
            unfinished = [
                path for path in (tmp_path / f".{out.name}.unfinished").rglob("*") if path.is_file()
            ]
            path = chance.choice(unfinished)
            data = bytearray(path.read_bytes())
            if data:
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            path.write_bytes(data[: chance.choice([len(data), len(data) // 2])])
            try:
                example.finish("merge", out)
            except errors.CheckpointError as error:
                # The damage hit the line that says whose work it is.
                assert error.code == "checkpoint.other_work"  # noqa: PT017 - any other code is a failure
                lora.merge_checkpoint(example.base, example.adapter, out, residue=True, resume=False)
        assert files_of(out) == example.expected["merge"]
        shutil.rmtree(out)
