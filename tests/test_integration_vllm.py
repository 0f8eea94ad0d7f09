"""A disk tier under vLLM's offloading: with stand-ins for its classes, and by its own tests where it is there."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests import vllm_double

from infer_accel import errors, kvcache
from infer_accel.integrations._transfer import Transfer, TransferQueue

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = 4096
ROWS = 16
ROOT = Path(__file__).resolve().parents[1]


def key(number: int) -> bytes:
    return number.to_bytes(8, "big") + bytes(4)


def job(
    number: int, keys: list[int], rows: list[int] | None = None, *, is_load: bool = False
) -> vllm_double.TransferJob:
    ids = np.array(range(len(keys)) if rows is None else rows, np.int64)
    return vllm_double.TransferJob(number, [key(n) for n in keys], ids, is_load)


def some_pages() -> Any:
    return np.random.default_rng(0).integers(0, 256, (ROWS, PAGE), dtype=np.uint8)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    vllm_double.install(monkeypatch)
    yield importlib.import_module("infer_accel.integrations.vllm")
    sys.modules.pop("infer_accel.integrations.vllm", None)


@pytest.fixture
def open_manager(module: Any, tmp_path: Path) -> Iterator[Any]:
    opened = []

    def open_one(pages: Any, *, spec: Any = None, **options: Any) -> Any:
        manager = module.DiskTierManager(
            offloading_spec=spec or vllm_double.specification(),
            primary_kv_view=memoryview(pages),
            tier_type="disk",
            root_dir=str(tmp_path),
            **({"capacity_bytes": 1 << 20} | options),
        )
        opened.append(manager)
        return manager

    yield open_one
    for manager in opened:
        manager.shutdown()


def settled(manager: Any) -> dict[int, Any]:
    manager.drain_jobs()
    return {result.job_id: result for result in manager.get_finished_jobs()}


def test_chunks_go_down_and_come_back(open_manager: Any) -> None:
    pages = some_pages()
    expected = pages.copy()
    manager = open_manager(pages)
    hit, miss = vllm_double.LookupResult.HIT, vllm_double.LookupResult.MISS
    assert manager.lookup(key(1), None) is miss
    # Rows that follow each other, rows that do not, and one in between.
    manager.submit_store(job(7, [1, 2, 3, 4, 5], [3, 4, 5, 9, 0]))
    result = settled(manager)[7]
    assert result.success
    assert result.transfer_bytes == 5 * PAGE
    assert [manager.lookup(key(n), None) for n in range(1, 7)] == [hit] * 5 + [miss]
    pages[:] = 0
    manager.submit_load(job(8, [5, 4, 3, 2, 1], [1, 15, 14, 7, 8], is_load=True))
    assert settled(manager)[8].success
    for row, source in zip([1, 15, 14, 7, 8], [0, 9, 5, 4, 3], strict=True):
        assert np.array_equal(pages[row], expected[source])
    assert not pages[[0, 2, 3, 4, 5, 6, 9, 10, 11, 12, 13]].any()
    assert manager.stats().stored_pages == 5


def test_of_a_load_that_arrives_in_part_the_rest_is_missing(open_manager: Any, tmp_path: Path) -> None:
    manager = open_manager(some_pages())
    manager.submit_store(job(1, [1, 2, 3]))
    assert settled(manager)[1].success
    (segment,) = tmp_path.rglob("*.segment")
    content = bytearray(segment.read_bytes())
    content[4096 + PAGE + 192 + 192 + 50] ^= 1  # in the second page
    segment.write_bytes(content)
    manager.submit_load(job(2, [1, 2, 3], is_load=True))
    result = settled(manager)[2]
    assert not result.success
    assert result.successful_keys == (key(1), key(3))
    assert manager.stats().corrupt_pages == 1
    assert manager.lookup(key(2), None) is vllm_double.LookupResult.MISS
    assert manager.lookup(key(3), None) is vllm_double.LookupResult.HIT
    manager.submit_store(job(3, [2]))
    assert settled(manager)[3].success
    assert manager.lookup(key(2), None) is vllm_double.LookupResult.HIT


def test_what_cannot_be_loaded_is_not_asked_for_again_at_once(open_manager: Any, module: Any) -> None:
    manager = open_manager(some_pages())
    manager.submit_store(job(1, [1]))
    settled(manager)
    manager.submit_load(job(2, [1], [ROWS], is_load=True))  # a row that is not there
    result = settled(manager)[2]
    assert not result.success
    assert result.successful_keys is None
    assert manager.lookup(key(1), None) is vllm_double.LookupResult.MISS
    manager._forgotten[key(1)] = 0.0  # later
    assert manager.lookup(key(1), None) is vllm_double.LookupResult.HIT
    manager._forget(key(n) for n in range(module._MOST_FORGOTTEN + 10))
    assert len(manager._forgotten) == module._MOST_FORGOTTEN


@pytest.mark.parametrize("rows", [[ROWS, 0], [0, -1], [0], [0, 1, 2]])
def test_rows_that_are_not_there(open_manager: Any, rows: list[int]) -> None:
    manager = open_manager(some_pages())
    manager.submit_store(job(1, [1, 2], rows))
    assert not settled(manager)[1].success
    assert manager.stats().pages == 0


def test_engines_share_a_directory(open_manager: Any) -> None:
    first, second = some_pages(), np.zeros((ROWS, PAGE), np.uint8)
    one, other = open_manager(first), open_manager(second)
    one.submit_store(job(1, [1]))
    settled(one)
    other.lookup(key(1), None)
    other._refreshed = 0.0
    other.on_schedule_end(None)
    for _ in range(500):
        if other.lookup(key(1), None) is vllm_double.LookupResult.HIT:
            break
        threading.Event().wait(0.01)
    other.submit_load(job(2, [1], [5], is_load=True))
    assert settled(other)[2].success
    assert np.array_equal(second[5], first[0])
    # Another model has a directory of its own.
    third = open_manager(some_pages(), spec=vllm_double.specification(model="another"))
    assert third.lookup(key(1), None) is vllm_double.LookupResult.MISS


def test_events(open_manager: Any) -> None:
    manager = open_manager(
        some_pages(),
        spec=vllm_double.specification(events=True),
        enable_kv_events=True,
        locality="REMOTE",
        durable=True,
    )
    manager.submit_store(job(1, [1, 2]))
    manager.submit_store(job(2, [3], [ROWS]))
    manager.submit_load(job(3, [1], is_load=True))
    settled(manager)
    (event,) = manager.take_events()
    assert event.keys == [key(1), key(2)]
    assert event.medium is vllm_double.Medium.STORAGE
    assert event.locality is vllm_double.Locality.REMOTE
    assert list(manager.take_events()) == []
    assert manager.stats().syncs == 1
    assert open_manager(some_pages(), enable_kv_events=True).events is None


def test_what_is_refused(open_manager: Any, module: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Locality"):
        open_manager(some_pages(), locality="near")
    with pytest.raises(ValueError, match="contiguous"):
        open_manager(np.zeros((4, 2 * PAGE), np.uint8)[:, :PAGE])
    with pytest.raises(errors.ArgumentError):
        open_manager(some_pages(), checksum="crc32")
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    with pytest.raises(OSError, match="blocked"):
        module.DiskTierManager(
            vllm_double.specification(), memoryview(some_pages()), "disk", str(blocked), 1 << 20
        )


class SlowTier:
    """A tier whose calls wait until they may go on, and fail where a test says so."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.calls: list[str] = []

    def store(self, keys: list[bytes], pages: Any) -> int:
        self.go.wait()
        self.calls.append("store")
        raise errors.StorageError("full", code="storage.full")

    def load(self, keys: list[bytes], out: Any) -> Any:
        self.calls.append("load")
        return np.ones(len(keys), np.bool_)

    def refresh(self) -> None:
        self.calls.append("refresh")
        raise errors.StorageError("gone", code="storage.io")


def transfer(number: int, *, is_load: bool) -> Transfer:
    return Transfer(number, [key(number)], np.zeros(1, np.int64), is_load)


def test_the_queue_is_bounded_and_stores_delay_no_load() -> None:
    tier: Any = SlowTier()
    queue = TransferQueue(tier, some_pages(), load_threads=1, max_jobs=2)
    for number in range(1, 6):
        queue.submit(transfer(number, is_load=False))
    queue.submit(transfer(9, is_load=True))
    for _ in range(500):
        if "load" in tier.calls:
            break
        threading.Event().wait(0.01)
    early = {result.job.job_id: result.success for result in queue.finished()}
    assert early.pop(9)
    # One runs, or is about to, and two wait: the others had no place.
    assert len(early) in {2, 3}
    assert not any(early.values())
    tier.go.set()
    queue.drain()
    assert all(not result.success for result in queue.finished())
    queue.refresh()
    for _ in range(500):
        if "refresh" in tier.calls:
            break
        threading.Event().wait(0.01)
    queue.submit(transfer(10, is_load=True))  # the thread has outlived the failure
    queue.drain()
    assert [result.success for result in queue.finished()] == [True]
    queue.shutdown()


def test_a_shutdown_ends_what_runs_and_fails_what_waits() -> None:
    tier: Any = SlowTier()
    queue = TransferQueue(tier, some_pages(), load_threads=1)
    for number in range(5):
        queue.submit(transfer(number, is_load=False))
    release = threading.Timer(0.05, tier.go.set)
    release.start()
    queue.shutdown()
    queue.shutdown()
    queue.submit(transfer(7, is_load=True))
    results = {result.job.job_id: result.success for result in queue.finished()}
    assert results == dict.fromkeys([*range(5), 7], False)
    assert len(tier.calls) <= 1
    queue.drain()


def test_jobs_of_nothing() -> None:
    with_nothing = Transfer(1, [], np.zeros(0, np.int64), is_load=False)
    tier: Any = SlowTier()
    queue = TransferQueue(tier, some_pages())
    queue.submit(with_nothing)
    queue.drain()
    assert [result.success for result in queue.finished()] == [True]
    queue.shutdown()


def has_vllm() -> Path | None:
    """Where vLLM's own tests lie, if it is installed from its sources."""
    try:
        found = find_spec("vllm.v1.kv_offload.tiering.fs")
    except ImportError:
        return None
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parents[5] / "tests/v1/kv_offload/tiering"
    return folder if (folder / "test_fs_tier.py").exists() else None


@pytest.mark.skipif(has_vllm() is None, reason="vLLM and its tests are not installed from their sources")
def test_vllms_own_tests() -> None:
    folder = has_vllm()
    assert folder is not None
    root = folder.parents[3]
    paths = [str(root), str(Path(kvcache.__file__).resolve().parents[2]), str(ROOT / "tests")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
    }
    files = [str(folder / name) for name in ("test_fs_tier.py", "test_tiering_offloading.py")]
    files.append(str(folder.parent / "cpu/test_manager.py"))
    options = ["-q", "-W", "ignore", "-p", "no:cacheprovider", "-p", "vllm_own_tests", "--noconftest"]
    command = [sys.executable, "-m", "pytest", *options, "--rootdir", str(root), *files]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, check=False)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
    counted = re.search(r"(\d+) passed", ran.stdout)
    assert counted is not None
    assert int(counted[1]) >= 140
