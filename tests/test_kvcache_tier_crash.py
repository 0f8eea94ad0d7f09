"""What is left after a crash, a full device and damage, in processes of their own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.kvcache_pages import OPTIONS, found_in, key, open_tier, page, pages
from tests.soak import repeats

from infer_accel import errors, kvcache

ROOT = Path(__file__).resolve().parents[1]

#: Stores numbered pages in steps and says which it has flushed; never ends by itself.
WRITER = """
import sys
from tests.kvcache_pages import key, open_tier, pages

path, first, limit = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
tier = open_tier(path, capacity_bytes=limit, segment_bytes=max(16 << 10, limit // 8))
print("open", flush=True)
number = first
while True:
    numbers = list(range(number, number + 7))
    tier.store([key(n) for n in numbers], pages(numbers))
    number += 7
    if number % 3 == 0:
        tier.flush()
        print(number, flush=True)
"""


def start_writer(path: Path, first: int, limit: int) -> subprocess.Popen[str]:
    paths = [str(ROOT), str(Path(kvcache.__file__).resolve().parents[2])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", WRITER, str(path), str(first), str(limit)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def kill_after(writer: subprocess.Popen[str], seconds: float, first: int) -> int:
    """Let the writer write for a while, kill it, and return up to where it has flushed."""
    assert writer.stdout is not None
    assert writer.stdout.readline() == "open\n"
    time.sleep(seconds)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    flushed = [line for line in writer.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
    writer.stdout.close()
    return int(flushed[-1]) if flushed else first


def test_what_was_flushed_survives_a_kill(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    first = 0
    for turn in range(repeats(6, 220)):
        if turn % 20 == 0:
            path, first, begin = tmp_path / str(turn), 0, 0
        writer = start_writer(path, first, 256 << 20)
        flushed = kill_after(writer, float(chance.uniform(0, 0.12)), first)
        with open_tier(path, capacity_bytes=256 << 20, segment_bytes=32 << 20) as tier:
            assert all(found_in(tier, list(range(begin, flushed)))), f"turn {turn}"
            # What was stored and not flushed may be there or not; it is right if it is.
            found_in(tier, list(range(flushed, flushed + 500)))
            assert tier.stats().corrupt_pages == 0
        first = flushed + 1000
        begin = first


def test_a_kill_while_segments_are_evicted(tmp_path: Path) -> None:
    chance = np.random.default_rng(1)
    limit = 128 << 10
    for turn in range(repeats(3, 60)):
        flushed = kill_after(start_writer(tmp_path, 0, limit), float(chance.uniform(0, 0.2)), 0)
        with open_tier(tmp_path, capacity_bytes=limit, segment_bytes=16 << 10) as tier:
            found = found_in(tier, list(range(flushed + 50)))
            assert sum(found) == tier.stats().pages or turn
            assert tier.stats().corrupt_pages == 0
            held = sum(file.stat().st_size for file in tmp_path.rglob("*.segment"))
            assert held <= limit


def test_two_processes_share_a_directory(tmp_path: Path) -> None:
    with open_tier(tmp_path, capacity_bytes=64 << 20, segment_bytes=8 << 20) as tier:
        writer = start_writer(tmp_path, 0, 64 << 20)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "open\n"
        with pytest.raises(errors.StorageError) as caught:
            open_tier(tmp_path, writer=1)
        assert caught.value.code == "storage.writer_in_use"
        flushed = int(writer.stdout.readline())
        tier.refresh()
        assert all(found_in(tier, list(range(flushed))))
        for _ in range(20):
            tier.refresh()
            found_in(tier, list(range(flushed + 300)))
        assert tier.stats().corrupt_pages == 0
        writer.kill()
        writer.wait()
        writer.stdout.close()
        open_tier(tmp_path, writer=1).close()


FULL = """
import resource, signal, sys
from infer_accel import errors
from tests.kvcache_pages import found_in, key, open_tier, pages

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
tier = open_tier(sys.argv[1], capacity_bytes=16 << 20, segment_bytes=4 << 20)
number = 5
tier.store([key(n) for n in range(number)], pages(list(range(number))))
resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, 64 << 10))
try:
    while True:
        tier.store([key(number)], pages([number]))
        number += 1
except errors.StorageError as error:
    print(error.code, number, all(found_in(tier, list(range(number)))))
    tier.flush()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limits here")
def test_a_full_device_says_so_and_loses_nothing(tmp_path: Path) -> None:
    paths = [str(ROOT), str(Path(kvcache.__file__).resolve().parents[2])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", FULL, str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout.split()
    assert said[0] == "storage.full"
    assert int(said[1]) > 15
    assert said[2] == "True"
    with open_tier(tmp_path, capacity_bytes=16 << 20, segment_bytes=4 << 20) as tier:
        assert all(found_in(tier, list(range(int(said[1])))))


#: Fills a file system of 2 MiB, says where it ended, makes room, and goes on.
FULL_TMPFS = """
import os, sys
from infer_accel import errors
from tests.kvcache_pages import found_in, key, open_tier, pages

ballast = sys.argv[1] + "/ballast"
with open(ballast, "wb") as file:
    file.write(bytes(512 << 10))
tier = open_tier(sys.argv[1] + "/tier", capacity_bytes=16 << 20, segment_bytes=4 << 20)
number = 0
try:
    while True:
        tier.store([key(number)], pages([number]))
        number += 1
except errors.StorageError as error:
    print(error.code, number, all(found_in(tier, list(range(number)))), "is full" in str(error))
tier.flush()
os.remove(ballast)
tier.store([key(n) for n in range(number, number + 50)], pages(list(range(number, number + 50))))
tier.close()
tier = open_tier(sys.argv[1] + "/tier", capacity_bytes=16 << 20, segment_bytes=4 << 20)
print(all(found_in(tier, list(range(number + 50)))))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs in a namespace of its own")
def test_a_real_file_system_that_is_full(tmp_path: Path) -> None:
    paths = [str(ROOT), str(Path(kvcache.__file__).resolve().parents[2])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    (tmp_path / "script.py").write_text(FULL_TMPFS)
    folder = tmp_path / "mount"
    folder.mkdir()
    mount = f"mount -t tmpfs -o size=2m tmpfs {folder}"
    inside = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"]), "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*inside, mount], check=False).returncode:
        pytest.skip("no namespace with mounts of its own here")
    command = [*inside, f"{mount} && exec {sys.executable} {tmp_path}/script.py {folder}"]
    said = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert said.returncode == 0, said.stderr
    code, count, *outcomes = said.stdout.split()
    assert code == "storage.full"
    assert int(count) > 300
    assert outcomes == ["True"] * 3


def test_flipped_bits_are_found(tmp_path: Path) -> None:
    chance = np.random.default_rng(2)
    for turn in range(repeats(40, 8000)):  # three bits each
        path = tmp_path / str(turn % 50)
        shutil.rmtree(path, ignore_errors=True)
        with open_tier(path) as tier:
            tier.store([key(n) for n in range(8)], pages(list(range(8))))
        (segment,) = path.rglob("*.segment")
        content = bytearray(segment.read_bytes())
        for bit in chance.integers(0, 8 * len(content), 3).tolist():
            content[bit // 8] ^= 1 << bit % 8
        segment.write_bytes(content)
        with open_tier(path) as tier:
            found_in(tier, list(range(8)))


@pytest.mark.parametrize("length", [0, 1, 4095, 4096, 4097, 5000, 6000])
def test_a_cut_segment(tmp_path: Path, length: int) -> None:
    with open_tier(tmp_path) as tier:
        tier.store([key(n) for n in range(3)], pages([0, 1, 2]))
    (segment,) = tmp_path.rglob("*.segment")
    segment.write_bytes(segment.read_bytes()[:length])
    with open_tier(tmp_path) as tier:
        kept = max(0, (length - 4096) // 704)
        assert sum(found_in(tier, [0, 1, 2])) == kept
        assert tier.store([key(n) for n in range(3)], pages([0, 1, 2])) == 3 - kept
        assert all(found_in(tier, [0, 1, 2]))


def test_the_pages_of_these_tests_differ() -> None:
    rows: list[Any] = [page(number).tobytes() for number in range(100)]
    assert len(set(rows)) == 100
    assert OPTIONS["page_bytes"] == len(rows[0])
