"""A shared store that is down, slow, full or gone is a miss within the deadline, and a number in the statistics.

No test looks at a clock: where the other side never answers, a call that returned has kept its deadline.
"""

from __future__ import annotations

import threading
import time
import traceback
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.kvcache_pages import PAGE, found_in, key, pages
from tests.scale.conftest import TIMES
from tests.scale.needs import package
from tests.scale.servers import Line, Server

from infer_accel import errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

#: Short, where a call is to come to its end.
SHORT: dict[str, float] = {"deadline": 0.3, "write_deadline": 0.3, "retry_seconds": 0.05}
#: Long: a server that is given up stays so for the rest of the test.
FOR_GOOD: dict[str, float] = {"retry_seconds": 3600.0}


def redis_tier(url: str, **options: Any) -> Any:
    package("redis")
    from infer_accel.integrations.redis import RedisTier

    return RedisTier(url, **{"page_bytes": PAGE, "fingerprint": b"faults", **TIMES, **options})


def wait_until_up(tier: Any) -> None:
    while not tier.stats().up:
        tier.contains([key(0)])
        time.sleep(0.01)


def stores_nothing(tier: Any, number: int, code: str) -> None:
    with pytest.raises(errors.StorageError) as caught:
        tier.store([key(number)], pages([number]))
    assert caught.value.code == code


@pytest.fixture
def line(server: Server) -> Iterator[Line]:
    with Line(server.port) as opened:
        yield opened


def test_down_from_the_start_and_up_later(tmp_path: Path) -> None:
    package("redis")
    server = Server(tmp_path)
    with redis_tier(server.url) as tier:
        assert found_in(tier, [1, 2]) == [False, False]
        stores_nothing(tier, 1, "storage.io")
        assert tier.stats().pauses >= 1
        with server:
            wait_until_up(tier)
            assert tier.store([key(1)], pages([1])) == 1
            assert found_in(tier, [1]) == [True]


def test_killed_and_started_again(tmp_path: Path) -> None:
    package("redis")
    with Server(tmp_path) as server, redis_tier(server.url) as tier:
        tier.store([key(1)], pages([1]))
        server.kill()
        assert found_in(tier, [1]) == [False]
        stats = tier.stats()
        assert (stats.up, stats.misses) == (0, 1)
        assert stats.failed_reads + stats.late_pages >= 1
        server.start()
        wait_until_up(tier)
        assert found_in(tier, [1]) == [False]  # it had no disk
        tier.store([key(1)], pages([1]))
        assert found_in(tier, [1]) == [True]
        assert tier.stats().corrupt_pages == 0


def test_killed_while_threads_read_and_write(tmp_path: Path) -> None:
    package("redis")
    wrong: list[BaseException] = []
    with Server(tmp_path) as server, redis_tier(server.url) as tier:
        ended = threading.Event()

        def work(seed: int) -> None:
            chance = np.random.default_rng(seed)
            while not ended.is_set():
                numbers = chance.integers(0, 50, 5).tolist()
                try:
                    found_in(tier, numbers)
                    tier.store([key(n) for n in numbers], pages(numbers))
                except errors.StorageError:
                    continue
                except BaseException as error:  # noqa: BLE001 - reported by the test
                    wrong.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for _ in range(5):
            time.sleep(0.1)
            server.kill()
            time.sleep(0.05)
            server.start()
            wait_until_up(tier)
        ended.set()
        for thread in threads:
            thread.join()
        assert not wrong
        stats = tier.stats()
        assert (stats.corrupt_pages, stats.refused_pages) == (0, 0)
        assert stats.pauses >= 1


def test_a_server_that_never_answers(line: Line) -> None:
    with redis_tier(line.url, **(SHORT | FOR_GOOD)) as tier:
        tier.store([key(1)], pages([1]))
        line.mode = "stall"
        assert found_in(tier, [1, 2, 3]) == [False] * 3
        assert tier.stats().late_pages == 3
        # From here on nobody waits: with a deadline of its own each of these would take minutes.
        for _ in range(1000):
            assert found_in(tier, [1]) == [False]
            assert not tier.contains([key(1)]).any()
        stores_nothing(tier, 4, "storage.io")
        stats = tier.stats()
        assert (stats.up, stats.pauses, stats.late_pages, stats.skipped_pages) == (0, 1, 3, 1000)


def test_a_server_that_takes_nothing(line: Line) -> None:
    line.mode = "stall"
    with redis_tier(line.url, **SHORT) as tier:
        stores_nothing(tier, 1, "storage.late")
        stats = tier.stats()
        assert (stats.late_writes, stats.unstored_pages, stats.stored_pages) == (1, 1, 0)
        line.mode = "pass"
        wait_until_up(tier)
        tier.store([key(1)], pages([1]))
        assert found_in(tier, [1]) == [True]


def test_a_server_that_drips(line: Line) -> None:
    """Some bytes now and then, so that no read of the socket is ever late: the call is."""
    size = 1 << 16
    content = np.arange(size, dtype=np.uint32).astype(np.uint8).reshape(1, size)
    with redis_tier(line.url, page_bytes=size, **SHORT, fingerprint=b"drip") as tier:
        tier.store([key(1)], content)
        line.mode = "drip"
        out = np.full((1, size), 0xEE, np.uint8)
        assert not tier.load([key(1)], out).any()
        assert tier.stats().late_pages == 1
        line.mode = "pass"
        wait_until_up(tier)
        assert tier.load([key(1)], out).all()
        assert (out == content).all()


def test_a_line_that_breaks(line: Line) -> None:
    with redis_tier(line.url) as tier:
        tier.store([key(1)], pages([1]))
        line.mode = "hang up"
        assert found_in(tier, [1]) == [False]
        stores_nothing(tier, 2, "storage.io")
        line.mode = "pass"
        wait_until_up(tier)
        assert found_in(tier, [1]) == [True]


def test_a_full_server(tmp_path: Path) -> None:
    package("redis")
    size = 1 << 18
    content = np.repeat(np.arange(40, dtype=np.uint8), size).reshape(40, size)
    keys = [key(number) for number in range(40)]
    with Server(tmp_path, memory="6mb") as server, redis_tier(server.url, page_bytes=size) as tier:
        with pytest.raises(errors.StorageError) as caught:
            tier.store(keys, content)
        assert caught.value.code == "storage.full"
        stats = tier.stats()
        assert (stats.full_writes, stats.up) == (1, 1)
        assert 0 < stats.stored_pages < 40
        assert stats.stored_pages + stats.unstored_pages == 40
        # What it took is there, and it is read from as before.
        out = np.zeros_like(content)
        found = tier.load(keys, out)
        assert found.sum() >= stats.stored_pages
        assert (out[found] == content[found]).all()


def test_a_server_that_wants_a_password(tmp_path: Path) -> None:
    redis = package("redis")
    with Server(tmp_path) as server:
        redis.Redis(port=server.port).config_set("requirepass", "secret")
        with redis_tier(server.url) as tier:
            assert found_in(tier, [1]) == [False]
            stores_nothing(tier, 1, "storage.io")
        with redis_tier(server.url, options={"password": "secret"}) as tier:
            tier.store([key(1)], pages([1]))
            assert found_in(tier, [1]) == [True]


def test_a_name_of_ours_that_holds_something_else(server: Server) -> None:
    redis = package("redis")
    with redis_tier(server.url, fingerprint=b"something else") as tier:
        name = "infer-accel/" + tier._names([key(1)])[0]
        redis.Redis(port=server.port).rpush(name, "a list")
        assert found_in(tier, [1]) == [False]


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("nothing://me:hunter2@x", {}),
        ("redis://:hunter2@127.0.0.1:x/0?password=hunter2", {}),
        ("redis://h", {"colour": 1}),
    ],
)
def test_what_the_client_does_not_take(url: str, options: dict[str, object]) -> None:
    with pytest.raises(errors.ArgumentError) as caught:
        redis_tier(url, options=options).contains([key(1)])
    assert caught.value.code == "argument.shared_tier"
    assert "hunter2" not in str(caught.value)


def test_pages_expire(server: Server) -> None:
    redis = package("redis")
    with redis_tier(server.url, fingerprint=b"expire", expire_seconds=1000) as tier:
        tier.store([key(1)], pages([1]))
        name = "infer-accel/" + tier._names([key(1)])[0]
        assert 0 < redis.Redis(port=server.port).ttl(name) <= 1000
    with pytest.raises(errors.ArgumentError):
        redis_tier(server.url, expire_seconds=0)


# Any engine -------------------------------------------------------------------------------------------------


class Engine:
    """A dictionary that fails as it is told."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.before: Callable[[str], None] = lambda call: None
        self.hung_up = 0

    def fetch(self, names: Sequence[str]) -> list[bytes | None]:
        self.before("fetch")
        return [self.values.get(name) for name in names]

    def put(self, entries: Sequence[tuple[str, bytes]]) -> None:
        self.before("put")
        self.values.update(entries)

    def exist(self, names: Sequence[str]) -> list[bool]:
        self.before("exist")
        return [name in self.values for name in names]

    def remove(self, names: Sequence[str]) -> None:
        self.before("remove")
        for name in names:
            self.values.pop(name, None)

    def ping(self) -> None:
        self.before("ping")

    def hang_up(self) -> None:
        self.hung_up += 1

    def close(self) -> None:
        raise OSError("closing fails, too, which nobody is to notice")


def engine_tier(engine: Engine, **options: Any) -> Any:
    from infer_accel.integrations._shared.tier import SharedTier

    defaults: dict[str, Any] = {"secret": None, "threads": 2, "batch_bytes": 1 << 20, **TIMES}
    return SharedTier(engine, **{"page_bytes": PAGE, "fingerprint": b"", **defaults, **options})


def test_what_comes_late_is_not_written_anywhere() -> None:
    engine, answer, answered = Engine(), threading.Event(), threading.Event()
    tier = engine_tier(engine, **SHORT)
    tier.store([key(1)], pages([1]))

    def wait(call: str) -> None:
        if call == "fetch":
            answer.wait()
            answered.set()

    engine.before = wait
    out = np.full((1, PAGE), 0xEE, np.uint8)
    assert not tier.load([key(1)], out).any()
    assert engine.hung_up == 1
    answer.set()
    answered.wait()
    engine.before = lambda call: None
    wait_until_up(tier)
    assert (out == 0xEE).all()
    assert found_in(tier, [1]) == [True]
    tier.close()


def test_pages_may_change_once_a_store_was_late() -> None:
    engine, answer = Engine(), threading.Event()
    tier = engine_tier(engine, **SHORT)

    def hold(call: str) -> None:
        if call == "put":
            answer.wait()

    engine.before = hold
    content = pages([1])
    with pytest.raises(errors.StorageError) as caught:
        tier.store([key(1)], content)
    assert caught.value.code == "storage.late"
    content[:] = 0
    answer.set()
    wait_until_up(tier)
    while not tier.contains([key(1)]).any():
        time.sleep(0.01)
    assert found_in(tier, [1]) == [True]
    tier.close()


def test_threads_that_are_stuck_hold_nobody_up() -> None:
    engine, answer = Engine(), threading.Event()
    tier = engine_tier(engine, **SHORT)

    def hold(call: str) -> None:
        answer.wait()

    engine.before = hold
    results: list[list[bool]] = []
    callers = [
        threading.Thread(target=lambda: results.append(found_in(tier, [1, 2])), daemon=True)
        for _ in range(40)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert results == [[False, False]] * 40
    assert tier.stats().misses == 80
    # Closing waits for nobody who is stuck.
    tier.close()
    answer.set()


class Panic(BaseException):
    """What native code in Rust raises when it finds a defect of its own."""


@pytest.mark.parametrize(
    "error", [OSError("gone"), ValueError("odd"), RuntimeError(), MemoryError(), Panic()]
)
def test_whatever_an_engine_raises_is_a_miss(error: BaseException) -> None:
    engine = Engine()
    tier = engine_tier(engine)
    tier.store([key(1)], pages([1]))

    def fail(call: str) -> None:
        raise error

    engine.before = fail
    assert found_in(tier, [1]) == [False]
    assert not tier.contains([key(1)]).any()
    stores_nothing(tier, 2, "storage.io")
    engine.before = lambda call: None
    wait_until_up(tier)
    assert found_in(tier, [1]) == [True]
    tier.close()


def test_a_damaged_page_that_cannot_be_removed() -> None:
    engine = Engine()
    tier = engine_tier(engine)
    tier.store([key(1), key(2)], pages([1, 2]))
    name = tier._names([key(1)])[0]
    engine.values[name] = engine.values[name][:-1] + b"!"

    def read_only(call: str) -> None:
        if call == "remove":
            raise PermissionError("read only")

    engine.before = read_only
    assert found_in(tier, [1, 2]) == [False, True]
    stats = tier.stats()
    assert (stats.corrupt_pages, stats.failed_reads, stats.up) == (1, 1, 1)
    tier.close()


def test_one_caller_probes_at_a_time() -> None:
    engine, pings = Engine(), list[str]()
    tier = engine_tier(engine, **FOR_GOOD)

    def fail(call: str) -> None:
        pings.append(call)
        raise OSError("gone")

    engine.before = fail
    for _ in range(20):
        assert found_in(tier, [1]) == [False]
    assert pings == ["fetch"]
    stats = tier.stats()
    assert (stats.failed_reads, stats.skipped_pages, stats.pauses) == (1, 19, 1)
    tier.close()


def test_a_full_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package("obstore")
    from infer_accel.integrations import object_store

    def no_room(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with object_store.ObjectStoreTier(tmp_path.as_uri(), page_bytes=PAGE, fingerprint=b"") as tier:
        tier.store([key(1)], pages([1]))
        monkeypatch.setattr("obstore.put", no_room)
        stores_nothing(tier, 2, "storage.full")
        assert tier.stats().full_writes == 1
        assert found_in(tier, [1, 2]) == [True, False]


def test_what_obstore_does_not_take() -> None:
    package("obstore")
    from infer_accel.integrations.object_store import ObjectStoreTier

    for url in ("nothing://me:hunter2@x", "az://pages?sig=hunter2", "s3"):
        with pytest.raises(errors.ArgumentError) as caught:
            ObjectStoreTier(url, page_bytes=PAGE, fingerprint=b"")
        assert caught.value.code == "argument.shared_tier"
        assert "hunter2" not in "".join(traceback.format_exception(caught.value, chain=True))
