"""Host memory in front of the disk tier, against plain dictionaries."""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.kvcache_pages import OPTIONS, PAGE, found_in, key, open_tier, pages
from tests.soak import repeats

from infer_accel import errors, kvcache, reference
from infer_accel._backend import native

IMPLEMENTATIONS = [native().kvcache, reference.kvcache]


class CacheMachine(RuleBasedStateMachine):
    """Native and specification: with room on disk for everything, nothing that was taken is ever missed."""

    numbers = st.lists(st.integers(0, 60), max_size=8)

    @initialize(host_pages=st.integers(2, 20))
    def open(self, host_pages: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.host_pages = host_pages
        self.stored: set[int] = set()
        self.reopen()

    def reopen(self) -> None:
        self.disks = []
        for number, implementation in enumerate(IMPLEMENTATIONS):
            self.disks.append(implementation.DiskTier(Path(self.folder.name) / str(number), **OPTIONS))
        pairs = zip(IMPLEMENTATIONS, self.disks, strict=True)
        self.caches = [
            implementation.TieredCache(disk, host_pages=self.host_pages) for implementation, disk in pairs
        ]

    @rule(numbers=numbers)
    def store(self, numbers: list[int]) -> None:
        content = pages(numbers)
        for cache in self.caches:
            assert cache.store([key(n) for n in numbers], content).tolist() == [True] * len(numbers)
        self.stored |= set(numbers)

    @rule(numbers=numbers)
    def load(self, numbers: list[int]) -> None:
        for cache in self.caches:
            assert found_in(cache, numbers) == [n in self.stored for n in numbers]

    @rule(numbers=numbers)
    def prefetch(self, numbers: list[int]) -> None:
        for cache in self.caches:
            assert cache.prefetch([key(n) for n in numbers]) <= len(numbers)

    @rule()
    def wait(self) -> None:
        for cache in self.caches:
            cache.wait_for_prefetches()

    @rule()
    def flush(self) -> None:
        for cache, disk in zip(self.caches, self.disks, strict=True):
            cache.flush()
            assert disk.contains([key(n) for n in self.stored]).all()

    @rule()
    def restart(self) -> None:
        for cache, disk in zip(self.caches, self.disks, strict=True):
            cache.close()
            disk.close()
        self.reopen()

    @invariant()
    def host_memory_is_bounded(self) -> None:
        for cache in getattr(self, "caches", []):
            stats = dict(cache.stats())
            assert stats["host_pages"] <= self.host_pages
            assert stats["queued_writes"] <= self.host_pages // 2

    def teardown(self) -> None:
        for opened in [*getattr(self, "caches", []), *getattr(self, "disks", [])]:
            opened.close()
        if hasattr(self, "folder"):
            self.folder.cleanup()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=["native", "reference"])
def test_what_comes_from_disk_pushes_out_what_the_same_load_needs(
    tmp_path: Path, implementation: Any
) -> None:
    disk = implementation.DiskTier(tmp_path, **OPTIONS)
    cache = implementation.TieredCache(disk, host_pages=2)
    for number in range(4):
        cache.store([key(number)], pages([number]))
    cache.flush()
    assert found_in(cache, [0, 1, 2, 3]) == [True] * 4
    assert found_in(cache, [1, 0, 3, 2]) == [True] * 4
    cache.close()
    disk.close()


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(
    max_examples=repeats(15, 400), stateful_step_count=repeats(20, 60), deadline=None
)


def test_stats_have_the_names_of_the_specification(tmp_path: Path) -> None:
    names = []
    for number, implementation in enumerate(IMPLEMENTATIONS):
        disk = implementation.DiskTier(tmp_path / str(number), **OPTIONS)
        names.append([name for name, _ in implementation.TieredCache(disk, host_pages=2).stats()])
    assert names[0] == names[1]


def test_prefetched_pages_come_from_host_memory(tmp_path: Path) -> None:
    with open_tier(tmp_path) as disk, kvcache.TieredCache(disk, host_pages=64) as cache:
        disk.store([key(n) for n in range(20)], pages(list(range(20))))
        assert cache.prefetch([key(n) for n in range(30)]) == 20
        cache.wait_for_prefetches()
        assert found_in(cache, list(range(30))) == [True] * 20 + [False] * 10
        stats = cache.stats()
        assert (stats.prefetched_pages, stats.host_hits, stats.disk_hits, stats.misses) == (20, 20, 0, 10)


def test_what_was_taken_is_on_disk_after_the_close(tmp_path: Path) -> None:
    with open_tier(tmp_path, capacity_bytes=1 << 22) as disk:
        with kvcache.TieredCache(disk, host_pages=8) as cache:
            for number in range(0, 600, 3):
                assert cache.store(
                    [key(n) for n in range(number, number + 3)], pages([*range(number, number + 3)])
                ).all()
        assert disk.stats().stored_pages == 600
    with open_tier(tmp_path, capacity_bytes=1 << 22) as disk:
        assert all(found_in(disk, list(range(600))))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=["native", "reference"])
@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"host_pages": 1}, "argument.tier_count"),
        ({"host_pages": -1}, "argument.count"),
        ({"queued_writes": 0}, "argument.tier_count"),
        ({"queued_writes": 5}, "argument.tier_count"),
        ({"queued_prefetches": 0}, "argument.tier_count"),
        ({"store_deadline": 0.0}, "argument.deadline"),
    ],
)
def test_bad_options(tmp_path: Path, implementation: Any, change: dict[str, Any], code: str) -> None:
    disk = implementation.DiskTier(tmp_path, **OPTIONS)
    with pytest.raises(errors.ArgumentError) as caught:
        implementation.TieredCache(disk, **({"host_pages": 8} | change))
    assert caught.value.code == code


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=["native", "reference"])
def test_bad_calls(tmp_path: Path, implementation: Any) -> None:
    disk = implementation.DiskTier(tmp_path, **OPTIONS)
    cache = implementation.TieredCache(disk, host_pages=4)
    with pytest.raises(errors.ShapeError):
        cache.store([b"a", b"b"], pages([1]))
    with pytest.raises(errors.ShapeError):
        cache.load([b"a"], np.zeros((1, PAGE - 1), np.uint8))
    with pytest.raises(errors.DTypeError):
        cache.contains([1, 2])
    cache.close()
    cache.close()
    for call in (cache.flush, cache.stats, lambda: cache.contains([b"a"])):
        with pytest.raises(errors.StorageError) as caught:
            call()
        assert caught.value.code == "storage.closed"
    disk.close()
    with pytest.raises(errors.StorageError):
        implementation.TieredCache(disk, host_pages=4)


def test_sixteen_threads(tmp_path: Path) -> None:
    disk = open_tier(tmp_path)
    cache = kvcache.TieredCache(disk, host_pages=12)
    wrong: list[BaseException] = []

    def work(seed: int) -> None:
        chance = np.random.default_rng(seed)
        try:
            for _ in range(30):
                numbers = chance.integers(0, 200, 5).tolist()
                if chance.random() < 0.4:
                    cache.store([key(n) for n in numbers], pages(numbers))
                elif chance.random() < 0.3:
                    cache.prefetch([key(n) for n in numbers])
                else:
                    found_in(cache, numbers)
        except BaseException as error:  # noqa: BLE001 - reported by the test
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    cache.close()
    assert disk.stats().corrupt_pages == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_inherited_cache_refuses(tmp_path: Path) -> None:
    disk = open_tier(tmp_path)
    cache = kvcache.TieredCache(disk, host_pages=4)
    cache.store([key(1)], pages([1]))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            cache.load([key(1)], np.zeros((1, PAGE), np.uint8))
        except errors.StorageError as error:
            code = 0 if error.code == "storage.forked" else 2
            del cache, disk
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert found_in(cache, [1]) == [True]
    cache.close()


class BrokenTier:
    """A tier that breaks its promise: a load raises what no tier may raise, or says too little."""

    page_bytes = PAGE

    def __init__(self, answer: np.ndarray | None) -> None:
        self._answer = answer

    def load(self, *_: Any, **__: Any) -> np.ndarray:
        if self._answer is None:
            raise KeyError("no such page")
        return self._answer

    def store(self, keys: Any, pages: Any) -> int:
        return len(pages)

    def contains(self, keys: Any) -> np.ndarray:
        return np.zeros(len(keys), np.bool_)

    def flush(self) -> None: ...
    def refresh(self) -> None: ...
    def stats(self) -> object: ...
    def close(self) -> None: ...


@pytest.mark.parametrize("answer", [None, np.ones(7, np.bool_)], ids=["raises", "of another shape"])
def test_nobody_waits_for_ever_for_a_tier_that_breaks_its_promise(answer: np.ndarray | None) -> None:
    cache = kvcache.TieredCache(BrokenTier(answer), host_pages=4)
    for _ in range(2):  # the thread that brings pages has to outlive the first failure
        assert cache.prefetch([key(1)]) == 1
        waiting = threading.Thread(target=cache.wait_for_prefetches, daemon=True)
        waiting.start()
        waiting.join(10)
        assert not waiting.is_alive()
    assert cache.stats().prefetched_pages == 0
    assert cache.store([key(2)], pages([2])).all()
    cache.close()
