"""`TieredCache` in front of tiers that are no `DiskTier`: the same calls, the same promises."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kvcache_pages import PAGE, found_in, key, pages
from tests.scale.test_shared_faults import Engine, engine_tier
from tests.soak import repeats

from infer_accel import errors, kvcache

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.scale.conftest import Open

_CALLS = ["store", "load", "prefetch", "wait", "flush", "reopen"]


@pytest.fixture
def behind() -> Iterator[tuple[Engine, Any]]:
    engine = Engine()
    tier = engine_tier(engine)
    yield engine, tier
    tier.close()


@given(
    host_pages=st.integers(2, 20),
    steps=st.lists(st.tuples(st.sampled_from(_CALLS), st.lists(st.integers(0, 60), max_size=8)), max_size=25),
)
@settings(max_examples=repeats(30, 500))
def test_nothing_that_was_taken_is_missed(host_pages: int, steps: list[tuple[str, list[int]]]) -> None:
    tier = engine_tier(Engine())
    cache = kvcache.TieredCache(tier, host_pages=host_pages)
    stored: set[int] = set()
    for call, numbers in steps:
        keys = [key(number) for number in numbers]
        if call == "store":
            assert cache.store(keys, pages(numbers)).all()
            stored |= set(numbers)
        elif call == "load":
            assert found_in(cache, numbers) == [number in stored for number in numbers]
            assert cache.contains(keys).tolist() == [number in stored for number in numbers]
        elif call == "prefetch":
            assert cache.prefetch(keys) <= len(numbers)
        elif call == "wait":
            cache.wait_for_prefetches()
        elif call == "flush":
            cache.flush()
            assert tier.contains([key(number) for number in stored]).all()
        else:
            cache.close()
            cache = kvcache.TieredCache(tier, host_pages=host_pages)
        stats = cache.stats()
        assert stats.host_pages <= host_pages
        assert stats.queued_writes <= host_pages // 2
    cache.close()
    assert tier.contains([key(number) for number in stored]).all()
    tier.close()


def test_in_front_of_a_real_store(open_shared: Open) -> None:
    tier = open_shared()
    with kvcache.TieredCache(tier, host_pages=8) as cache:
        for first in range(0, 60, 3):
            numbers = list(range(first, first + 3))
            assert cache.store([key(n) for n in numbers], pages(numbers)).all()
        cache.flush()
        assert tier.stats().stored_pages == 60
        assert all(found_in(cache, list(range(60))))
        stats = cache.stats()
        assert (stats.host_hits + stats.disk_hits, stats.misses) == (60, 0)
        assert (stats.written_pages, stats.failed_writes) == (60, 0)
    with kvcache.TieredCache(tier, host_pages=64) as cache:
        assert cache.prefetch([key(n) for n in range(50, 70)]) == 20
        cache.wait_for_prefetches()
        assert found_in(cache, list(range(50, 70))) == [True] * 10 + [False] * 10
        stats = cache.stats()
        assert (stats.prefetched_pages, stats.host_hits, stats.disk_hits, stats.misses) == (10, 10, 0, 10)


def test_what_comes_from_behind_pushes_out_what_the_same_load_needs(behind: tuple[Engine, Any]) -> None:
    with kvcache.TieredCache(behind[1], host_pages=2) as cache:
        for number in range(4):
            cache.store([key(number)], pages([number]))
        cache.flush()
        assert found_in(cache, [0, 1, 2, 3]) == [True] * 4
        assert found_in(cache, [1, 0, 3, 2]) == [True] * 4


def test_what_the_tier_does_not_take_is_told_by_flush_and_tried_again(behind: tuple[Engine, Any]) -> None:
    engine, tier = behind

    def fail(call: str) -> None:
        raise OSError("gone")

    engine.before = fail
    cache = kvcache.TieredCache(tier, host_pages=8)
    assert cache.store([key(1), key(2)], pages([1, 2])).all()
    with pytest.raises(errors.StorageError) as caught:
        cache.flush()
    assert caught.value.code == "storage.io"
    assert found_in(cache, [1, 2]) == [True, True]
    assert cache.stats().failed_writes == 2
    engine.before = lambda call: None
    while not tier.stats().up:
        tier.contains([key(1)])
    cache.store([key(1)], pages([1]))
    cache.flush()
    assert tier.contains([key(1), key(2)]).tolist() == [True, False]
    cache.close()


def test_a_store_that_finds_no_place_goes_without(behind: tuple[Engine, Any]) -> None:
    engine, tier = behind
    go_on = threading.Event()

    def hold(call: str) -> None:
        go_on.wait()

    engine.before = hold
    cache = kvcache.TieredCache(tier, host_pages=4, queued_writes=1, store_deadline=0.05)
    assert cache.store([key(1), key(2), key(3)], pages([1, 2, 3])).tolist() == [True, False, False]
    assert cache.stats().refused_pages == 2
    assert found_in(cache, [1]) == [True]
    assert cache.stats().queued_writes == 1
    go_on.set()
    cache.close()


def test_prefetches_are_bounded(behind: tuple[Engine, Any]) -> None:
    engine, tier = behind
    go_on = threading.Event()

    def hold(call: str) -> None:
        go_on.wait()

    engine.before = hold
    cache = kvcache.TieredCache(tier, host_pages=8, queued_prefetches=3)
    assert cache.prefetch([key(number) for number in range(10)]) == 3
    assert cache.prefetch([key(number) for number in range(10)]) == 0
    go_on.set()
    cache.wait_for_prefetches()
    assert cache.stats().queued_prefetches == 0
    cache.close()


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
def test_bad_options(behind: tuple[Engine, Any], change: dict[str, Any], code: str) -> None:
    with pytest.raises(errors.ArgumentError) as caught:
        kvcache.TieredCache(behind[1], **({"host_pages": 8} | change))
    assert caught.value.code == code


def test_bad_calls(behind: tuple[Engine, Any]) -> None:
    tier = behind[1]
    cache = kvcache.TieredCache(tier, host_pages=4)
    with pytest.raises(errors.ShapeError):
        cache.store([b"a", b"b"], pages([1]))
    with pytest.raises(errors.ShapeError):
        cache.load([b"a"], np.zeros((1, PAGE - 1), np.uint8))
    with pytest.raises(errors.DTypeError):
        cache.contains([1, 2])  # type: ignore[list-item]
    cache.close()
    cache.close()
    for call in (cache.flush, cache.stats, lambda: cache.contains([b"a"])):
        with pytest.raises(errors.StorageError) as caught:
            call()
        assert caught.value.code == "storage.closed"
    tier.close()
    with pytest.raises(errors.StorageError):
        kvcache.TieredCache(tier, host_pages=4)


def test_sixteen_threads(behind: tuple[Engine, Any]) -> None:
    tier = behind[1]
    cache = kvcache.TieredCache(tier, host_pages=12)
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
    assert tier.stats().corrupt_pages == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_inherited_cache_refuses(behind: tuple[Engine, Any]) -> None:
    cache = kvcache.TieredCache(behind[1], host_pages=4)
    cache.store([key(1)], pages([1]))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            cache.load([key(1)], np.zeros((1, PAGE), np.uint8))
        except errors.StorageError as error:
            code = 0 if error.code == "storage.forked" else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert found_in(cache, [1]) == [True]
    cache.close()
