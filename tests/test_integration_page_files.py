"""Pages of engines by names: what is stored is found, by another process too; what fails is a miss."""

from __future__ import annotations

import json
import logging
import os
import random
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from infer_accel.errors import ArgumentError, StorageError
from infer_accel.integrations._page_files import PageFiles

SIZE = 64


def opened(root: Path, **facts: object) -> PageFiles:
    files = PageFiles({"root_dir": str(root), "capacity_bytes": 1 << 24}, {"model": "m", **facts})
    assert files.open(SIZE * 2)
    return files


def pages(seed: int, count: int = 3) -> list[torch.Tensor]:
    return [torch.full((SIZE,), seed + place, dtype=torch.bfloat16) for place in range(count)]


def empty(count: int) -> list[torch.Tensor]:
    return [torch.zeros(SIZE, dtype=torch.bfloat16) for _ in range(count)]


def test_what_was_stored_is_found_after_a_restart(tmp_path: Path) -> None:
    first = opened(tmp_path)
    assert first.store(["a", "b", "c"], pages(1))
    assert first.leading(["a", "b", "x", "c"]) == 2
    first.close()
    first.close()
    second = opened(tmp_path)
    target = empty(4)
    assert second.load(["a", "x", "c", "b"], target) == [True, False, True, True]
    assert [int(page[0]) for page in target] == [1, 0, 3, 2]
    second.close()


@pytest.mark.parametrize("size", [1 << 10, 1 << 18])
def test_pages_that_lie_apart(tmp_path: Path, size: int) -> None:
    drawn = random.Random(size)
    # Some follow each other, some lie at one distance, the others anywhere; not in the order of their names.
    places = [0, 1, 2, 5, 7, 9, 11, 16, 20, 22, 3, 30]
    memory = torch.randint(0, 256, (31 * size,), dtype=torch.uint8)
    given = [memory[place * size : (place + 1) * size] for place in places]
    names = [str(place) for place in places]
    files = PageFiles({"root_dir": str(tmp_path), "capacity_bytes": 1 << 27}, {})
    assert files.store(names, given)
    for turn in range(8):
        asked = drawn.sample([*names, "no", "none"], 12 - turn % 3)
        target = torch.zeros(60 * size, dtype=torch.uint8)
        room = sorted(drawn.sample(range(60), len(asked))) if turn % 2 else list(range(len(asked)))
        found = files.load(asked, [target[place * size : (place + 1) * size] for place in room])
        assert found == [name in names for name in asked]
        expected = torch.zeros_like(target)
        for name, place in zip(asked, room, strict=True):
            if name in names:
                expected[place * size : (place + 1) * size] = given[names.index(name)]
        assert torch.equal(target, expected)
    files.close()


def test_pages_of_two_sizes_are_not_loaded(tmp_path: Path) -> None:
    files = opened(tmp_path)
    assert files.store(["a"], pages(1, 1))
    assert files.load(["a", "b"], [empty(1)[0], torch.zeros(2 * SIZE, dtype=torch.bfloat16)]) == [
        False,
        False,
    ]
    assert "page" in files.last_failure
    with pytest.raises(ArgumentError, match="in one piece"):
        files.load(["a"], [torch.zeros(SIZE, 2, dtype=torch.bfloat16)[:, 0]])
    files.close()


class Watched:
    """A tier that tells which were opened and which closed, and opens when it is told to."""

    opened: list[Watched]
    may_open: threading.Event
    page_bytes = 2 * SIZE

    def __init__(self, *_: object, **__: object) -> None:
        self.is_closed = False
        self.opened.append(self)
        assert self.may_open.wait(30)

    def store(self, keys: list[bytes], rows: Any) -> None:
        if self.is_closed:
            raise StorageError("used after it was closed", code="storage.closed")

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> type[Watched]:
    class Fresh(Watched):
        opened: list[Watched] = []  # noqa: RUF012 - a test's own
        may_open = threading.Event()

    monkeypatch.setattr("infer_accel.integrations._page_files.DiskTier", Fresh)
    return Fresh


def test_a_directory_that_opens_while_it_is_closed_is_closed(tmp_path: Path, watched: type[Watched]) -> None:
    files = PageFiles({"root_dir": str(tmp_path), "capacity_bytes": 1 << 24}, {})
    results: list[bool] = []
    waiting = [
        threading.Thread(target=lambda: results.append(files.store(["a"], pages(1, 1)))) for _ in range(2)
    ]
    for thread in waiting:
        thread.start()
    while not watched.opened:
        time.sleep(0.001)
    files.close()
    watched.may_open.set()
    for thread in waiting:
        thread.join(30)
    assert results == [False, False]
    assert [tier.is_closed for tier in watched.opened] == [True]
    # Nothing opens it again: nobody would close that.
    assert not files.store(["a"], pages(1, 1))
    assert not files.open(2 * SIZE)
    assert len(watched.opened) == 1


@pytest.mark.parametrize("step", [1, 2])
def test_closing_between_any_two_steps_of_opening_leaves_nothing_open(
    tmp_path: Path, watched: type[Watched], step: int
) -> None:
    files = PageFiles({"root_dir": str(tmp_path), "capacity_bytes": 1 << 24}, {})
    watched.may_open.set()

    class ClosesBehind:
        """A lock behind whose nth holding the files are closed."""

        lock = threading.Lock()
        holdings = 0

        def __enter__(self) -> None:
            self.lock.acquire()

        def __exit__(self, *_: object) -> None:
            self.lock.release()
            self.holdings += 1
            if self.holdings == step:
                files.close()

    files._lock = ClosesBehind()  # type: ignore[assignment]
    files.store(["a"], pages(1, 1))
    deadline = time.monotonic() + 30
    while not all(tier.is_closed for tier in watched.opened) and time.monotonic() < deadline:
        time.sleep(0.001)
    assert [tier.is_closed for tier in watched.opened] == [True]
    assert not files.store(["b"], pages(1, 1))
    assert len(watched.opened) == 1


def test_another_process_sees_it(tmp_path: Path) -> None:
    writer, reader = opened(tmp_path), opened(tmp_path)
    assert reader.leading(["a"]) == 0
    writer.store(["a"], pages(1, 1))
    writer.close()
    reader._refreshed = float("-inf")
    assert reader.leading(["a", "b"]) == 1
    reader.close()


def test_who_differs_in_anything_finds_nothing(tmp_path: Path) -> None:
    one, other = opened(tmp_path, dtype="bf16"), opened(tmp_path, dtype="f16")
    one.store(["a"], pages(1, 1))
    assert other.leading(["a"]) == 0
    one.close()
    other.close()


def test_a_flipped_bit_is_a_miss(tmp_path: Path) -> None:
    files = opened(tmp_path)
    files.store(["a"], pages(7, 1))
    files.close()
    (segment,) = tmp_path.rglob("*.segment")
    data = bytearray(segment.read_bytes())
    place = bytes(data).index(
        torch.full((SIZE,), 7, dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes()
    )
    data[place + 5] ^= 1
    segment.write_bytes(data)
    files = opened(tmp_path)
    assert files.load(["a"], empty(1)) == [False]
    files.close()


def test_a_directory_that_cannot_be_is_a_miss_and_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no directory")
    files = PageFiles({"root_dir": str(tmp_path / "file"), "capacity_bytes": 1 << 24}, {})
    with caplog.at_level(logging.WARNING, "infer_accel"):
        assert not files.store(["a"], pages(1, 1))
        assert files.load(["a"], empty(1)) == [False]
        assert files.leading(["a"]) == 0
    (record,) = caplog.records
    assert "pages on disk are left out" in record.getMessage()
    files.close()


@pytest.mark.parametrize(
    "options", [{}, {"root_dir": "x"}, {"root_dir": "x", "capacity_bytes": 1, "capactiy": 2}]
)
def test_options_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match="allowed: root_dir, capacity_bytes") as caught:
        PageFiles(options, {})
    assert caught.value.code == "argument.connector_option"


def test_the_example_names_the_back_end(tmp_path: Path) -> None:
    """A server of SGLang needs a GPU: what the example would start is what the tests with SGLang's classes make."""
    stub = tmp_path / "python"
    stub.write_text('#!/bin/sh\nfor argument; do printf "%s\\0" "$argument"; done\n')
    stub.chmod(0o755)
    example = Path(__file__).parents[1] / "examples/sglang_storage.sh"
    done = subprocess.run(
        ["sh", str(example), "MODEL", "/cache", "--page-size", "64"],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
    )
    arguments = done.stdout.split("\0")[:-1]
    assert arguments[:4] == ["-m", "sglang.launch_server", "--model-path", "MODEL"]
    config = json.loads(arguments[-1])
    assert (config["module_path"], config["class_name"]) == (
        "infer_accel.integrations.sglang",
        "InferAccelStorage",
    )
    assert config["root_dir"] == "/cache"
