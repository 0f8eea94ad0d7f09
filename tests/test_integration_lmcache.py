"""LMCache's objects on disk, with stand-ins for its classes: what is stored is found, what fails is a miss."""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import os
import select
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests import lmcache_double
from tests.lmcache_double import MemoryLayoutDesc, MemoryObj, ObjectKey

from infer_accel.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MODULES = ("infer_accel.integrations.lmcache", "infer_accel.integrations._lmcache_tasks")
SHAPE = torch.Size([2, 64])
DESC = {0: MemoryLayoutDesc([SHAPE], [torch.bfloat16])}


@pytest.fixture
def imported(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    def load(version: str = "0.5.6") -> Any:
        lmcache_double.install(monkeypatch, version)
        return importlib.import_module(MODULES[0])

    yield load
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def make(imported: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    opened = []

    def made(root: Path, *, version: str = "0.5.6", **options: Any) -> Any:
        given = {"root_dir": str(root), "capacity_bytes": 1 << 24} | options
        opened.append(imported(version).InferAccelL2Adapter(given, l1_memory_desc=object()))
        return opened[-1]

    yield made
    for adapter in opened:
        adapter.close()
        adapter.close()


def objects(*values: int, dtype: torch.dtype = torch.bfloat16, shape: torch.Size = SHAPE) -> list[MemoryObj]:
    """Return objects side by side in one piece of memory, as LMCache has them."""
    size = shape.numel() * dtype.itemsize
    arena = torch.empty(len(values) * size, dtype=torch.uint8)
    made = [
        MemoryObj(arena[place * size : (place + 1) * size], shape, dtype, [shape], [dtype])
        for place in range(len(values))
    ]
    for one, value in zip(made, values, strict=True):
        one.raw_data[:] = value
    return made


def values(given: list[MemoryObj]) -> list[int]:
    for one in given:
        assert (one.raw_data == one.raw_data[0]).all()
    return [int(one.raw_data[0]) for one in given]


def names(*numbers: int, **more: Any) -> list[ObjectKey]:
    return [ObjectKey(number.to_bytes(32, "big"), **more) for number in numbers]


def waited(descriptor: int) -> None:
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    assert poller.poll(20_000), "nobody told that the task is done"
    os.eventfd_read(descriptor)


def store(adapter: Any, keys: list[ObjectKey], given: list[MemoryObj]) -> bool:
    task = adapter.submit_store_task(keys, given)
    waited(adapter.get_store_event_fd())
    done = adapter.pop_completed_store_tasks()
    assert list(done) == [task]
    assert adapter.pop_completed_store_tasks() == {}
    return bool(done[task].is_successful())


def look(adapter: Any, keys: list[ObjectKey], descs: dict[int, Any] = DESC) -> list[int]:
    task = adapter.submit_lookup_and_lock_task(keys, descs)
    waited(adapter.get_lookup_and_lock_event_fd())
    found = adapter.query_lookup_and_lock_result(task)
    assert adapter.query_lookup_and_lock_result(task) is None, "told once"
    adapter.submit_unlock(keys)
    return list(found.get_indices_list())


def load(adapter: Any, keys: list[ObjectKey], given: list[MemoryObj]) -> list[int]:
    task = adapter.submit_load_task(keys, given)
    waited(adapter.get_load_event_fd())
    found = adapter.query_load_result(task)
    assert adapter.query_load_result(task) is None, "told once"
    return list(found.get_indices_list())


@pytest.mark.parametrize("shape", [SHAPE, torch.Size([1 << 17])], ids=["small", "large"])
def test_objects_come_back_after_a_restart(
    make: Callable[..., Any], tmp_path: Path, shape: torch.Size
) -> None:
    desc = {0: MemoryLayoutDesc([shape], [torch.bfloat16])}
    adapter = make(tmp_path)
    assert look(adapter, names(1, 2), desc) == []
    assert store(adapter, names(1, 2, 3), objects(1, 2, 3, shape=shape))
    assert store(adapter, names(1), objects(1, shape=shape)), "again"
    assert adapter.stored == names(1, 2, 3), "each is new once"
    assert look(adapter, names(9, 3, 1), desc) == [1, 2]
    adapter.close()
    adapter = make(tmp_path)
    assert look(adapter, names(3, 9, 1, 2), desc) == [0, 2, 3]
    given = objects(70, 71, 72, 73, shape=shape)
    # Not all in one piece: the second and the third are swapped.
    given[1], given[2] = given[2], given[1]
    assert load(adapter, names(3, 9, 1, 2), given) == [0, 2, 3]
    assert [values(given)[place] for place in (0, 2, 3)] == [3, 1, 2]
    assert adapter.accessed == names(3, 1, 2)
    assert adapter.get_usage().total_bytes_used > 3 * shape.numel() * 2


@pytest.mark.parametrize(
    "other",
    [
        {"model_name": "n"},
        {"kv_rank": 1},
        {"object_group_id": 1},
        {"cache_salt": "somebody"},
        {"model_name": 'm", 0, 0, "'},
    ],
)
def test_who_differs_in_anything_finds_nothing(
    make: Callable[..., Any], tmp_path: Path, other: dict[str, Any]
) -> None:
    adapter = make(tmp_path)
    assert store(adapter, names(1), objects(1))
    descs = DESC | {1: DESC[0]}
    assert look(adapter, names(1), descs) == [0]
    assert look(adapter, names(1, **other), descs) == []
    assert load(adapter, names(1, **other), objects(9)) == []


def test_layouts_are_kept_apart(make: Callable[..., Any], tmp_path: Path) -> None:
    adapter = make(tmp_path)
    assert store(adapter, names(1), objects(1))
    turned = torch.Size([64, 2])
    assert load(adapter, names(1), objects(9, dtype=torch.float16)) == []
    assert load(adapter, names(1), objects(9, shape=turned)) == []
    assert store(adapter, names(1), objects(2, dtype=torch.float16))
    assert look(adapter, names(1), {0: MemoryLayoutDesc([turned], [torch.bfloat16])}) == [0], (
        "where nothing of a layout was stored, LMCache's word for it is not what its serializer stores"
    )
    mixed = [*objects(9), *objects(9, dtype=torch.float16)]
    assert load(adapter, names(1, 1), mixed) == [0, 1]
    assert values(mixed) == [1, 2]
    assert look(adapter, names(1, 2), {}) == [0]
    (one, other, *_) = adapter.report_status()["layouts"]
    assert {one["dtypes"], other["dtypes"]} == {("torch.bfloat16",), ("torch.float16",)}


def test_a_flipped_bit_is_a_miss_and_shows(make: Callable[..., Any], tmp_path: Path) -> None:
    adapter = make(tmp_path)
    assert store(adapter, names(1, 2), objects(7, 8))
    adapter.close()
    (segment,) = tmp_path.rglob("*.segment")
    data = bytearray(segment.read_bytes())
    data[bytes(data).index(bytes([7]) * 256) + 100] ^= 4
    segment.write_bytes(data)
    adapter = make(tmp_path)
    given = objects(70, 71)
    assert load(adapter, names(1, 2), given) == [1]
    assert values(given)[1] == 8
    (layout,) = adapter.report_status()["layouts"]
    assert layout["tier"]["corrupt_pages"] == 1


def test_a_directory_that_cannot_be_is_a_miss_and_shows(
    make: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no directory")
    adapter = make(tmp_path / "file")
    with caplog.at_level(logging.WARNING, "infer_accel"):
        assert not store(adapter, names(1), objects(1))
        assert look(adapter, names(1)) == []
        assert load(adapter, names(1), objects(1)) == []
    (record,) = caplog.records
    assert "pages on disk are left out" in record.getMessage()
    status = adapter.report_status()
    assert not status["is_healthy"]
    assert status["layouts"][0]["failures"] == 3


def test_what_has_no_room_fails_its_task_and_nothing_else(make: Callable[..., Any], tmp_path: Path) -> None:
    """An object that has no room: the task fails, it is told why, and what comes next is stored."""
    adapter = make(tmp_path, capacity_bytes=1 << 16, segment_bytes=1 << 15)
    assert not store(adapter, names(1), objects(1, shape=torch.Size([1 << 16])))
    (layout,) = adapter.report_status()["layouts"]
    assert (layout["failures"] > 0, layout["tier"]) == (True, None)
    assert store(adapter, names(1), objects(1))
    assert load(adapter, names(1), objects(9)) == [0]


def test_what_hangs_is_a_miss_in_time(
    make: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory whose opening never ends holds up nobody: neither lookups, nor loads, nor the end."""
    from infer_accel.integrations import _page_files

    lasting = threading.Event()
    opened: list[object] = []
    real: Any = vars(_page_files)["DiskTier"]

    class Hanging(real):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            lasting.wait(60)
            super().__init__(*args, **kwargs)
            opened.append(self)

    monkeypatch.setattr(_page_files, "DiskTier", Hanging)
    adapter = make(tmp_path, deadline=0.1)
    assert look(adapter, names(1)) == []
    assert load(adapter, names(1), objects(1)) == []
    assert not store(adapter, names(1), objects(1))
    (layout,) = adapter.report_status()["layouts"]
    assert layout["failures"] >= 3
    assert "in time" in layout["last_failure"]
    # When the device answers, it is used.
    lasting.set()
    assert store(adapter, names(1), objects(1)) or store(adapter, names(1), objects(1))
    assert look(adapter, names(1)) == [0]
    assert len(opened) == 1


def test_many_tasks_at_once(make: Callable[..., Any], tmp_path: Path) -> None:
    adapter = make(tmp_path, load_threads=4)
    stored = {adapter.submit_store_task(names(n, n + 100), objects(n, n + 100)) for n in range(40)}
    done: dict[int, Any] = {}
    while set(done) != stored:
        waited(adapter.get_store_event_fd())
        done |= adapter.pop_completed_store_tasks()
    assert all(result.is_successful() for result in done.values())
    asked = {}
    for number in range(40):
        given = objects(200, 200)
        asked[adapter.submit_load_task(names(number, number + 100), given)] = (number, given)
    while asked:
        waited(adapter.get_load_event_fd())
        for task in list(asked):
            found = adapter.query_load_result(task)
            if found is not None:
                number, given = asked.pop(task)
                assert found.get_indices_list() == [0, 1]
                assert values(given) == [number, number + 100]


def test_too_many_stores_fail_at_once(
    make: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make(tmp_path)
    go = threading.Event()
    store_now = adapter._store
    monkeypatch.setattr(adapter, "_store", lambda *given: go.wait(20) and store_now(*given))
    tasks = [adapter.submit_store_task(names(number), objects(1)) for number in range(70)]
    waited(adapter.get_store_event_fd())
    refused = adapter.pop_completed_store_tasks()
    assert set(refused) == set(tasks[64:])
    assert not any(result.is_successful() for result in refused.values())
    assert adapter.report_status()["refused_stores"] == 6
    go.set()


def test_a_task_that_breaks_is_a_miss(
    make: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = make(tmp_path)
    assert load(adapter, names(1), [object()]) == []  # type: ignore[list-item] # what it must not be
    assert "counts as a miss" in caplog.text
    adapter.close()
    task = adapter.submit_load_task(names(1), objects(1))
    assert adapter.query_load_result(task).get_indices_list() == []


@pytest.mark.parametrize("version", ["0.4.7", "0.6.0", "1.0"])
def test_an_unknown_version_is_one_line_and_no_page(
    make: Callable[..., Any], tmp_path: Path, version: str, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = make(tmp_path, version=version)
    (record,) = caplog.records
    assert record.getMessage() == (
        f"infer-accel's adapter is off, and LMCache works without it: LMCache {version} is installed; "
        "known to work: 0.5.*"
    )
    assert not store(adapter, names(1), objects(1))
    assert look(adapter, names(1)) == []
    assert load(adapter, names(1), objects(1)) == []
    assert not adapter.report_status()["is_healthy"]
    assert list(tmp_path.iterdir()) == []


def test_other_parameters_are_one_line(
    make: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(
        lmcache_double.L2AdapterInterface, "submit_load_task", lambda self, keys, objects, when: 0
    )
    adapter = make(tmp_path)
    assert "submit_load_task('keys', 'objects', 'when')" in caplog.text
    assert look(adapter, names(1)) == []


def test_a_method_more_is_one_line(imported: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = lmcache_double.L2AdapterInterface.__abstractmethods__
    monkeypatch.setattr(lmcache_double.L2AdapterInterface, "__abstractmethods__", asked | {"defragment"})
    monkeypatch.setattr(
        lmcache_double.L2AdapterInterface,
        "defragment",
        type("Abstract", (), {"__isabstractmethod__": True})(),
        raising=False,
    )
    with pytest.raises(ModuleNotFoundError, match=r"asks an adapter for defragment, .* LMCache 0\.5\.6"):
        imported()


@pytest.mark.parametrize(
    "options",
    [{"capactiy": 3}, {"load_threads": 0}, {"load_threads": "two"}],
)
def test_options_that_cannot_be(make: Callable[..., Any], tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match="allowed") as caught:
        make(tmp_path, **options)
    assert caught.value.code == "argument.connector_option"


def test_the_example_names_the_adapter(tmp_path: Path) -> None:
    """What the example starts; that it runs is for the tests with LMCache."""
    stub = tmp_path / "lmcache"
    stub.write_text('#!/bin/sh\nfor argument; do printf "%s\\0" "$argument"; done\n')
    stub.chmod(0o755)
    example = Path(__file__).parents[1] / "examples/lmcache_server.sh"
    done = subprocess.run(
        ["sh", str(example), "/cache", "--port", "6555"],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
    )
    arguments = done.stdout.split("\0")[:-1]
    assert arguments[0] == "server"
    assert arguments[-2:] == ["--port", "6555"]
    config = json.loads(arguments[arguments.index("--l2-adapter") + 1])
    assert config["type"] == "plugin"
    assert (config["module_path"], config["class_name"]) == (MODULES[0], "InferAccelL2Adapter")
    assert config["adapter_params"]["root_dir"] == "/cache"


def test_the_status_is_json(make: Callable[..., Any], tmp_path: Path) -> None:
    adapter = make(tmp_path)
    assert store(adapter, names(1), objects(1))
    told = json.loads(json.dumps(adapter.report_status()))
    assert told["layouts"][0]["tier"]["stored_pages"] == 1
    assert dataclasses.is_dataclass(adapter.get_usage())
