"""Late, broken, small and half-done: what fails costs no request and no token."""

from __future__ import annotations

import shutil
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from infer_accel import errors

torch = pytest.importorskip("torch")

from tests import vllm_connector_double as double  # noqa: E402 - it needs torch
from tests.vllm_connector.prompts import request, served_until_loaded  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.vllm_connector_double import Engine


class Held:
    """A tier that answers when it may."""

    def __init__(self, tier: Any) -> None:
        self.tier, self.go = tier, threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tier, name)

    def load(self, keys: Any, out: Any) -> Any:
        self.go.wait(20)
        return self.tier.load(keys, out)


def test_a_load_that_is_late_is_given_up_and_look_ups_pause(
    open_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine(load_deadline=0.05, load_threads=1)
    engine.serve(request("first"), request("second", seed=2))
    engine.wipe()
    store = engine.worker._store
    held = Held(store._cache)
    monkeypatch.setattr(store, "_cache", held)
    late, behind = request("late"), request("behind", seed=2)
    engine.waiting.extend([late, behind])
    engine.step()
    threading.Event().wait(0.2)
    held.go.set()
    engine.serve()
    # The first was being read and arrived late; the other waited for its place longer than it may.
    assert behind.recomputed == 96
    scheduler = engine.scheduler.stats()
    assert scheduler.pauses >= 1
    paused = request("paused")
    engine.serve(paused)
    assert paused.loaded == 0
    assert engine.scheduler.stats().skipped_lookups == 1
    engine.scheduler._scheduler._paused_until = 0.0
    back = request("back")
    engine.serve(back)
    assert (back.loaded, back.recomputed) == (96, 0)


class Broken:
    """A tier of which everything fails."""

    def __getattr__(self, name: str) -> Any:
        def fail(*_: Any, **__: Any) -> Any:
            raise errors.StorageError("gone", code="storage.io")

        return fail


def test_a_tier_that_fails_costs_no_request(
    open_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = open_engine()
    engine.serve(request("first"))
    engine.wipe()
    store = engine.worker._store
    whole = store._cache
    # It knows what it has, and cannot deliver it.
    half = SimpleNamespace(
        contains=whole.contains, load=Broken().load, store=Broken().store, close=whole.close
    )
    monkeypatch.setattr(store, "_cache", half)
    again = request("again")
    engine.serve(again)
    assert (again.loaded, again.recomputed) == (96, 96)
    third = request("third")
    engine.serve(third)
    assert third.loaded == 0, "what could not be loaded is asked for again at once"
    monkeypatch.setattr(store, "_cache", Broken())
    fourth = request("fourth", seed=4)
    engine.serve(fourth)
    assert fourth.loaded == 0
    stats = engine.worker.stats()
    assert stats.tier_errors >= 3
    assert stats.refused_pages == 6
    assert len([line for line in caplog.messages if "failed" in line]) == 1, "one line, not one a page"
    monkeypatch.setattr(store, "_cache", whole)


def test_a_directory_that_cannot_be_opened_is_tried_again(
    open_engine: Callable[..., Engine], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "kv"
    blocked.write_text("")
    engine = open_engine(retry_seconds=0.01)
    first = request("first")
    engine.serve(first)
    assert "is down" in caplog.text
    assert engine.worker.stats().refused_pages == 6
    blocked.unlink()
    one = served_until_loaded(engine, seed=3)
    assert one.loaded == 96


def test_what_does_not_reach_the_disk_is_counted_and_served(
    open_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    engine = open_engine(segment_bytes=12_000)
    shutil.rmtree(tmp_path / "kv")  # from now on no segment can be begun
    for number in range(4):
        engine.serve(request(f"{number}", seed=number))
    engine.worker._store.flush()
    stats = engine.worker.stats()
    assert (stats.saved_pages, stats.refused_pages) == (24, 0)
    assert 0 < stats.unwritten_pages <= 24
    engine.wipe()
    again = request("again", seed=3)
    engine.serve(again)
    assert again.loaded == 96


def test_a_small_tier_forgets_and_goes_on(open_engine: Callable[..., Engine]) -> None:
    engine = open_engine(capacity_bytes=40_000, segment_bytes=12_000, host_bytes=1, num_blocks=32)
    for number in range(20):
        one = request(f"{number}", seed=number)
        engine.serve(one)
    stats = engine.worker.stats()
    assert stats.saved_pages + stats.refused_pages == 120
    engine.wipe()
    for number in range(20):
        one = request(f"{number} again", seed=number)
        engine.serve(one)


def test_a_request_that_ends_while_it_is_loaded(
    open_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine()
    engine.serve(request("first"))
    held = Held(engine.worker._store._cache)
    monkeypatch.setattr(engine.worker._store, "_cache", held)
    gone = request("gone")
    engine.waiting.append(gone)
    engine.step()
    engine.scheduler.request_finished(gone, gone.blocks)
    engine.waiting.clear()
    held.go.set()
    for _ in range(500):
        _, received = engine.worker.get_finished(set())
        if received:
            break
        threading.Event().wait(0.01)
    assert received == {"gone"}
    engine.scheduler.update_connector_output(double.KVConnectorOutput(received))
    engine.serve(request("next"))


def test_blocks_that_are_null_are_left_alone(open_engine: Callable[..., Engine]) -> None:
    engine = open_engine()
    one = request("one")
    assert engine.scheduler.get_num_new_matched_tokens(one, 0) == (0, False)
    engine.scheduler.update_state_after_alloc(one, double.Blocks([0, 0, 5]), 0)
    new = double.NewRequestData("one", ([0, 0, 5],), 0)
    output = double.SchedulerOutput([new], num_scheduled_tokens={"one": 48})
    plan = engine.scheduler.build_connector_meta(output).plan
    assert [pages.blocks.tolist() for pages in plan.saves] == [[5]]


def test_a_request_that_was_preempted(open_engine: Callable[..., Engine]) -> None:
    engine = open_engine()
    one = request("one")
    engine.scheduler.get_num_new_matched_tokens(one, 0)
    engine.scheduler.update_state_after_alloc(one, double.Blocks([1, 2, 3]), 0)
    new = double.NewRequestData("one", ([1, 2, 3],), 0)
    engine.scheduler.build_connector_meta(double.SchedulerOutput([new], num_scheduled_tokens={"one": 20}))
    for resumed, blocks, expected in (({"one"}, [7, 8, 9], [8]), (set(), [10], [9])):
        cached = double.CachedRequestData(["one"], resumed, [(blocks,)], [20 if resumed else 32])
        output = double.SchedulerOutput([], cached, {"one": 16})
        plan = engine.scheduler.build_connector_meta(output).plan
        assert [pages.blocks.tolist() for pages in plan.saves] == [expected]
