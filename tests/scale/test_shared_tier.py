"""Tiers that machines share, against a plain dictionary, and whatever may happen to them on the way."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.kvcache_pages import BAD_CALLS, PAGE, found_in, key, page, pages
from tests.soak import repeats

from infer_accel import errors
from infer_accel.integrations._shared.record import HEADER_BYTES, RecordForm, Verdict
from infer_accel.kvcache import PageLayout, Tier

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.scale.conftest import Open, Raw

_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["store", "load", "contains", "reopen"]), st.lists(st.integers(0, 40), max_size=8)
    ),
    max_size=25,
)


@given(steps=_STEPS)
@settings(max_examples=repeats(15, 300), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_does_what_a_dictionary_does(open_shared: Open, steps: list[tuple[str, list[int]]]) -> None:
    # Each example has pages of its own, as the store is the test's.
    identity = os.urandom(8)
    tier = open_shared(fingerprint=identity)
    stored: set[int] = set()
    for call, numbers in steps:
        keys = [key(number) for number in numbers]
        if call == "store":
            assert tier.store(keys, pages(numbers)) == len(set(numbers) - stored)
            stored |= set(numbers)
        elif call == "load":
            assert found_in(tier, numbers) == [number in stored for number in numbers]
        elif call == "contains":
            assert tier.contains(keys).tolist() == [number in stored for number in numbers]
        else:
            tier.close()
            tier = open_shared(fingerprint=identity)
    assert tier.stats().corrupt_pages == 0
    tier.close()


def test_it_is_a_tier(open_shared: Open) -> None:
    tier: Any
    with open_shared() as tier:
        is_one = isinstance(tier, Tier)
        assert is_one
        assert tier.store([key(n) for n in range(5)], pages(list(range(5)))) == 5
        assert tier.store([key(n) for n in range(7)], pages(list(range(7)))) == 2
        assert found_in(tier, [6, 9]) == [True, False]
        tier.flush()
        tier.refresh()
        stats = tier.stats()
    counted = (
        stats.up,
        stats.hits,
        stats.misses,
        stats.stored_pages,
        stats.known_pages,
        stats.unstored_pages,
    )
    assert counted == (1, 1, 1, 7, 5, 0)
    assert stats.written_bytes == 7 * (PAGE + HEADER_BYTES)


def test_pages_of_any_strides(open_shared: Open) -> None:
    source = np.arange(3 * PAGE, dtype=np.uint16).astype(np.uint8).reshape(3, 4, PAGE // 4).view(np.float16)
    tier = open_shared()
    keys = np.arange(3 * 16, dtype=np.uint8).reshape(3, 16)
    assert tier.store(keys, source) == 3
    spread = np.zeros((6, PAGE), np.uint8)
    assert tier.load(keys, spread[::2]).all()
    assert (spread[::2] == source.view(np.uint8).reshape(3, -1)).all()
    assert not spread[1::2].any()
    reverse = np.zeros((3, PAGE), np.uint8)
    assert tier.load(keys, reverse[::-1], num_threads=1).all()
    assert (reverse[::-1] == spread[::2]).all()


def test_more_than_one_call_takes(open_shared: Open) -> None:
    size, numbers = 1 << 20, list(range(20))
    content = np.repeat(np.arange(20, dtype=np.uint8), size).reshape(20, size)
    tier = open_shared(page_bytes=size)
    assert tier.store([key(n) for n in numbers], content) == 20
    out = np.empty_like(content)
    assert tier.load([key(n) for n in [*numbers[5:], *numbers[:5]]], out).all()
    assert (np.roll(out, 5, axis=0) == content).all()


def test_without_deadlines(open_shared: Open) -> None:
    tier = open_shared(deadline=None, write_deadline=None)
    assert tier.store([key(1), key(2)], pages([1, 2])) == 2
    assert found_in(tier, [1, 2, 3]) == [True, True, False]
    assert tier.contains([key(1), key(3)]).tolist() == [True, False]


@pytest.mark.parametrize(("call", "error", "code"), BAD_CALLS)
def test_bad_calls(open_shared: Open, call: Any, error: type[errors.InferAccelError], code: str) -> None:
    with pytest.raises(error) as caught:
        call(open_shared())
    assert caught.value.code == code or not code


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"page_bytes": 0}, "argument.page_bytes"),
        ({"page_bytes": -1}, "argument.count"),
        ({"page_bytes": 1 << 31}, "argument.page_bytes"),
        ({"deadline": 0.0}, "argument.deadline"),
        ({"write_deadline": -1.0}, "argument.deadline"),
        ({"deadline": float("nan")}, "argument.deadline"),
        ({"retry_seconds": 0.0}, "argument.deadline"),
        ({"threads": 0}, "argument.tier_count"),
    ],
)
def test_bad_options(open_shared: Open, change: dict[str, Any], code: str) -> None:
    with pytest.raises(errors.ArgumentError) as caught:
        open_shared(**change)
    assert caught.value.code == code


# What arrives -----------------------------------------------------------------------------------------------


def test_a_flipped_bit_is_a_miss_and_the_page_is_stored_again(
    open_shared: Open, raw: Callable[[Any], Raw]
) -> None:
    tier = open_shared()
    store = raw(tier)
    tier.store([key(1)], pages([1]))
    whole = store.get(key(1))
    assert whole is not None
    chance = np.random.default_rng(3)
    flipped = {*range(HEADER_BYTES), *chance.integers(HEADER_BYTES, len(whole), 60).tolist()}
    for place in sorted(flipped):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(chance.integers(8))
        store.put(key(1), bytes(damaged))
        assert found_in(tier, [1]) == [False]
        assert store.get(key(1)) is None
    assert tier.stats().corrupt_pages == len(flipped)
    assert tier.store([key(1)], pages([1])) == 1
    assert found_in(tier, [1]) == [True]


@pytest.mark.parametrize("length", [0, 1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + PAGE - 1, -1])
def test_a_value_that_is_cut_or_too_long_is_a_miss(
    open_shared: Open, raw: Callable[[Any], Raw], length: int
) -> None:
    tier = open_shared()
    store = raw(tier)
    tier.store([key(1)], pages([1]))
    whole = store.get(key(1)) or b""
    store.put(key(1), whole + b"x" if length < 0 else whole[:length])
    assert found_in(tier, [1]) == [False]
    assert tier.stats().corrupt_pages == 1


def test_another_layout_or_model_finds_nothing(open_shared: Open) -> None:
    tier = open_shared(fingerprint=b"a model")
    tier.store([key(1)], pages([1]))
    for other in (
        open_shared(fingerprint=b"another model"),
        open_shared(fingerprint=PageLayout(layers=range(2), heads=2, head_dim=8, tokens=8, dtype="float16")),
    ):
        assert not other.contains([key(1)]).any()
        assert found_in(other, [1]) == [False]
        other.store([key(1)], pages([2]))
    assert not open_shared(fingerprint=b"a model", page_bytes=PAGE // 2).contains([key(1)]).any()
    assert found_in(tier, [1]) == [True]


def test_a_page_of_another_layout_under_our_name_is_refused(
    open_shared: Open, raw: Callable[[Any], Raw]
) -> None:
    tier, other = open_shared(fingerprint=b"a model"), open_shared(fingerprint=b"another model")
    other.store([key(1)], pages([2]))
    tier.store([key(2)], pages([2]))
    foreign, misplaced = raw(other).get(key(1)), raw(tier).get(key(2))
    assert foreign is not None
    assert misplaced is not None
    for value in (foreign, misplaced):
        raw(tier).put(key(1), value)
        assert found_in(tier, [1]) == [False]
    stats = tier.stats()
    assert (stats.refused_pages, stats.corrupt_pages, stats.misses) == (2, 0, 2)


def test_without_the_secret_nothing_can_be_forged(open_shared: Open, raw: Callable[[Any], Raw]) -> None:
    tier, forger = open_shared(secret=b"ours"), open_shared(secret=b"guessed")
    tier.store([key(1)], pages([1]))
    assert found_in(tier, [1]) == [True]
    form = RecordForm(b"a layout", PAGE, b"guessed")
    raw(tier).put(key(1), form.encode(key(1), page(7).tobytes()))
    assert found_in(tier, [1]) == [False]
    raw(tier).put(key(1), RecordForm(b"a layout", PAGE, None).encode(key(1), page(7).tobytes()))
    assert found_in(tier, [1]) == [False]
    forger.store([key(2)], pages([2]))
    assert found_in(tier, [2]) == [False]
    stats = tier.stats()
    assert (stats.corrupt_pages, stats.refused_pages) == (2, 1)


@given(st.binary(max_size=300), st.binary(min_size=1, max_size=64), st.booleans())
@settings(max_examples=repeats(200, 5000))
def test_what_is_no_record_is_never_a_page(value: bytes, name: bytes, secret: bool) -> None:
    form = RecordForm(b"", 16, b"s" if secret else None)
    assert form.decode(name, value)[0] is Verdict.DAMAGED
    good = form.encode(name, bytes(range(16)))
    assert form.decode(name, good) == (Verdict.GOOD, bytes(range(16)))
    assert form.decode(name + b"\0" if len(name) < 64 else b"x", good)[0] is Verdict.REFUSED


def test_the_form_on_the_way_stays_as_it_is() -> None:
    """Pages outlive releases: a change of the form must change its version."""
    record = RecordForm(b"a layout", 4, None).encode(b"key", b"page")
    magic, version, kind, length, _, stored_key, size = struct.unpack_from("<7sBBB6x32s64sQ", record)
    assert (magic, version, kind, length, size) == (b"IAPAGE\0", 1, 0, 3, 4)
    assert stored_key == b"key".ljust(64, b"\0")
    assert record[HEADER_BYTES:] == b"page"
    assert record[120:144].hex() == "1ac1a62f19c31395f733b4cb4648f5f244baf25b6fa70363"


# Sharing ----------------------------------------------------------------------------------------------------


def test_sixteen_threads(open_shared: Open) -> None:
    tier = open_shared()
    wrong: list[BaseException] = []

    def work(seed: int) -> None:
        chance = np.random.default_rng(seed)
        try:
            for _ in range(15):
                numbers = chance.integers(0, 100, 6).tolist()
                if chance.random() < 0.5:
                    tier.store([key(n) for n in numbers], pages(numbers))
                else:
                    found_in(tier, numbers)
        except BaseException as error:  # noqa: BLE001 - reported by the test
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    stats = tier.stats()
    assert (stats.corrupt_pages, stats.refused_pages, stats.late_pages, stats.failed_reads) == (0, 0, 0, 0)
    assert stats.stored_pages >= 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_inherited_tier_refuses(open_shared: Open) -> None:
    tier = open_shared()
    tier.store([key(1)], pages([1]))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            tier.load([key(1)], np.zeros((1, PAGE), np.uint8))
        except errors.StorageError as error:
            code = 0 if error.code == "storage.forked" else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert found_in(tier, [1]) == [True]


_OTHER_PROCESS = """
import sys
from tests.kvcache_pages import found_in, key, pages
from infer_accel.integrations.redis import RedisTier
with RedisTier(sys.argv[1], page_bytes=512, fingerprint=sys.argv[2].encode()) as tier:
    print(found_in(tier, [1, 2]), tier.store([key(2)], pages([2])))
"""


def test_what_one_process_stores_another_one_loads(server: Any) -> None:
    from infer_accel.integrations.redis import RedisTier

    with RedisTier(server.url, page_bytes=PAGE, fingerprint=b"processes") as tier:
        tier.store([key(1)], pages([1]))
        done = subprocess.run(
            [sys.executable, "-c", _OTHER_PROCESS, server.url, "processes"],
            check=True,
            capture_output=True,
            text=True,
        )
        assert done.stdout.split("\n")[0] == "[True, False] 1"
        assert found_in(tier, [1, 2]) == [True, True]
