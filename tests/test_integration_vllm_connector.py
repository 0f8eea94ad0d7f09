"""The connector to vLLM, with a stand-in for the engine that sees every wrong number."""

from __future__ import annotations

import functools
import importlib
import pickle
import shutil
import subprocess
import sys
import threading
from abc import abstractmethod
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer_accel import errors
from infer_accel.integrations._connector.keys import AdapterDigests, KeyChain, digest, weights_of
from infer_accel.integrations._connector.options import ConnectorOptions

torch = pytest.importorskip("torch")

from tests import vllm_connector_double as double  # noqa: E402 - it needs torch
from tests.vllm_connector_double import Adapter, Engine, Request, tokens  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    double.install(monkeypatch)
    yield importlib.import_module("infer_accel.integrations.vllm_connector")
    for name in double.OURS:
        sys.modules.pop(name, None)


@pytest.fixture
def open_engine(module: Any, tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    opened = []

    def open_one(**options: Any) -> Engine:
        engine = Engine(module.InferAccelConnector, options.pop("root", tmp_path / "kv"), **options)
        opened.append(engine)
        return engine

    yield open_one
    for engine in opened:
        engine.close()


def request(name: str, seed: int = 1, count: int = 100, **options: Any) -> Request:
    return Request(name, list(tokens(seed, count)), **options)


LAYOUTS = {
    "float32": {},
    "bfloat16": {"dtype": torch.bfloat16},
    "large blocks": {"block_size": 32},
    "tokens outside": {"token_major": True},
    "split blocks": {"block_size": 32, "split": 2},
    "one page at a time": {"staging_bytes": 1},
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_pages_come_back_after_a_reset_and_after_a_restart(
    open_engine: Callable[..., Engine], layout: dict[str, Any]
) -> None:
    engine = open_engine(**layout)
    first = request("first")
    engine.serve(first)
    assert first.loaded == 0
    whole = 99 // engine.block_size * engine.block_size
    engine.wipe()
    again = request("again")
    engine.serve(again)
    assert (again.loaded, again.recomputed) == (whole, 0)
    engine.close()
    engine = open_engine(**layout)
    restarted, other = request("restarted"), request("other", seed=2)
    engine.serve(restarted, other)
    assert (restarted.loaded, restarted.recomputed) == (whole, 0)
    assert other.loaded == 0
    stats = engine.worker.stats()
    assert stats.loaded_pages == whole // engine.block_size
    assert stats.failed_pages == stats.tier_errors == 0


def test_pages_of_answers_are_stored_where_that_is_asked_for(open_engine: Callable[..., Engine]) -> None:
    for save, expected in (("prompt", 32), ("all", 64)):
        engine = open_engine(save=save, identity=save)
        first = request(save, count=40, answer=30)
        engine.serve(first)
        turn = Request(f"{save} again", [*first.all_token_ids, 1, 2, 3])
        engine.serve(turn)
        assert turn.loaded == expected


def test_what_the_engine_has_itself_is_not_loaded(open_engine: Callable[..., Engine]) -> None:
    engine = open_engine(local=2)
    engine.serve(request("first"))
    engine.wipe()
    again = request("again")
    engine.serve(again)
    assert again.loaded == 64
    assert engine.worker.stats().loaded_pages == 4


def flip(root: Path, page: bytes) -> None:
    (segment,) = root.rglob("*.segment")
    content = bytearray(segment.read_bytes())
    assert content.count(page) == 1
    content[content.index(page) + 77] ^= 1
    segment.write_bytes(content)


def test_a_flipped_bit_is_computed_again_and_stored_again(
    open_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    engine = open_engine()
    first = request("first")
    engine.serve(first)
    page = b"".join(memory[first.blocks[2]].numpy().tobytes() for memory in engine.memory.values())
    engine.close()
    flip(tmp_path, page)
    engine = open_engine()
    again = request("again")
    engine.serve(again)  # which checks every number
    assert (again.loaded, again.recomputed) == (96, 64)
    stats = engine.worker.stats()
    assert (stats.loaded_pages, stats.failed_pages, stats.corrupt_pages) == (2, 4, 1)
    assert stats.saved_pages == 1
    engine.wipe()
    third = request("third")
    engine.serve(third)
    assert (third.loaded, third.recomputed) == (96, 0)


def test_requests_that_must_not_share_do_not(open_engine: Callable[..., Engine], tmp_path: Path) -> None:
    engine = open_engine(num_blocks=256)
    for number in range(2):
        folder = tmp_path / f"adapter-{number}"
        folder.mkdir()
        (folder / "adapter_config.json").write_text("{}")
        (folder / "adapter_model.safetensors").write_bytes(bytes([number]) * 100)
    kinds: list[dict[str, Any]] = [
        {},
        {"cache_salt": "tenant"},
        {"cache_salt": "another"},
        {"lora_request": Adapter(1, "a", str(tmp_path / "adapter-0")), "weights": 1},
        {"lora_request": Adapter(2, "b", str(tmp_path / "adapter-1")), "weights": 2},
        {
            "lora_request": Adapter(1, "a", str(tmp_path / "adapter-0")),
            "weights": 1,
            "cache_salt": "tenant",
        },
    ]
    for turn, expected in ((0, 0), (1, 96)):
        engine.wipe()
        for number, kind in enumerate(kinds):
            one = request(f"{turn}-{number}", **kind)
            engine.serve(one)
            assert (one.loaded, one.recomputed) == (expected, 0)


def test_an_adapter_that_was_trained_again_is_another(
    open_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    weights = folder / "adapter_model.safetensors"
    for number in range(2):
        weights.write_bytes(bytes([number]) * 100)
        engine = open_engine()
        one = request(f"{number}", lora_request=Adapter(1, "a", str(folder)), weights=number)
        engine.serve(one)
        assert one.loaded == 0
        engine.close()
    # And in place, in one process.
    engine = open_engine()
    weights.write_bytes(bytes([7]) * 100)
    reloaded = Adapter(1, "a", str(folder), load_inplace=True)
    for turn in range(2):
        one = request(f"again {turn}", lora_request=reloaded, weights=7)
        engine.serve(one)
        assert one.loaded == 96 * turn


def test_what_cannot_be_named_is_not_stored(open_engine: Callable[..., Engine], tmp_path: Path) -> None:
    engine = open_engine(num_blocks=128)
    image = SimpleNamespace(mm_position=SimpleNamespace(offset=50))
    unknown = Adapter(3, "remote", str(tmp_path / "nowhere"))
    for turn in range(2):
        embeds, remote = request(f"e{turn}", prompt_embeds=1), request(f"r{turn}", lora_request=unknown)
        pictured = request(f"p{turn}", mm_features=[image], cache_salt="pictures")
        engine.serve(embeds, remote, pictured)
        assert embeds.loaded == remote.loaded == 0
        assert pictured.loaded == 48 * turn


def test_other_weights_have_other_directories(open_engine: Callable[..., Engine], tmp_path: Path) -> None:
    weights = tmp_path / "model"
    weights.mkdir()
    for number in range(2):
        (weights / "model.safetensors").write_bytes(bytes(10 + number))
        engine = open_engine(config={"model": str(weights)})
        one = request("one")
        engine.serve(one)
        assert one.loaded == 0
        engine.close()
    changes: list[dict[str, Any]] = [{}, {"dtype": "bfloat16"}, {"max_model_len": 7}, {"quantization": "fp8"}]
    changes += [{"revision": "b"}, {"hf_config": double.Model(text="{1}")}, {"model": "another"}]
    for change in changes:
        engine = open_engine(config=change)
        one = request("one")
        engine.serve(one)
        assert one.loaded == 0, change
        engine.close()
    assert len(list((tmp_path / "kv").iterdir())) == 2 + len(changes)


def test_after_a_reset_of_the_connector_nothing_of_before_is_used(open_engine: Callable[..., Engine]) -> None:
    engine = open_engine()
    engine.serve(request("first"))
    running = request("running", seed=2, answer=60)
    engine.waiting.append(running)
    engine.step()
    # Somebody changes the weights, and says so.
    assert engine.scheduler.reset_cache() is True
    engine.wipe()
    changed = [request(f"{turn}", weights=5) for turn in range(2)]
    engine.running.remove(running)
    engine.serve(changed[0])
    engine.serve(changed[1])
    assert [one.loaded for one in changed] == [0, 96]
    engine.close()
    # A new process has the weights of the files again.
    engine = open_engine()
    old, never = request("old"), request("never", seed=2)
    engine.serve(old, never)
    assert (old.loaded, old.recomputed) == (96, 0)
    assert never.loaded == 16, "what was computed after the reset was stored under the names of before"


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
    for number in range(500):
        one = request(f"{number}", seed=3)
        engine.serve(one)
        if one.loaded:
            break
        threading.Event().wait(0.01)
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


OFF = {
    "version": ({}, "0.99.1", "0.32, 0.33"),
    "policy": ({"policy": "fail"}, "0.32.0", "kv_load_failure_policy"),
    "pipeline": ({"pipeline_parallel_size": 2}, "0.33.1", "pipeline_parallel_size"),
}


@pytest.mark.parametrize(("config", "version", "said"), OFF.values(), ids=OFF)
def test_what_it_does_not_know_turns_it_off(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    config: dict[str, Any],
    version: str,
    said: str,
) -> None:
    double.install(monkeypatch, version=version)
    module = importlib.import_module("infer_accel.integrations.vllm_connector")
    engine = Engine(module.InferAccelConnector, tmp_path, config=config)
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"], "one line for each side"
    assert said in caplog.text
    for _ in range(2):
        one = request("one")
        engine.serve(one)
        assert one.loaded == 0
    assert not list(tmp_path.iterdir())
    assert engine.worker.stats() == engine.scheduler.stats() == module.ConnectorStats()
    engine.close()


@pytest.mark.parametrize("change", ["argument", "field", "method"])
def test_an_interface_that_changed_turns_it_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    if change == "field":
        broken = type("SchedulerOutput", (), {"__dataclass_fields__": {}})
        monkeypatch.setitem(double._CLASSES, "SchedulerOutput", broken)
    else:

        class Base(double.KVConnectorBase_V1):
            if change == "argument":

                def get_num_new_matched_tokens(self, request: Any) -> Any: ...  # type: ignore[override]

            else:

                def wait_for_save(self, timeout: float) -> None: ...  # type: ignore[override]
                @abstractmethod
                def something_new(self) -> None: ...

        monkeypatch.setitem(double._CLASSES, "KVConnectorBase_V1", Base)
    double.install(monkeypatch)
    module = importlib.import_module("infer_accel.integrations.vllm_connector")
    engine = Engine(module.InferAccelConnector, tmp_path)
    assert "a changed build?" in caplog.text
    engine.serve(request("one"))


def test_several_groups_and_states_turn_it_off(module: Any) -> None:
    engine = module.engine
    config = double.configuration({})
    spec = double.FullAttentionSpec(16, 10, "float32")
    group = SimpleNamespace(kv_cache_spec=spec)
    cache = SimpleNamespace(kv_cache_groups=[group])
    assert engine.configuration_problem(config, cache) is None
    cache.kv_cache_groups = [group, group]
    assert "groups" in engine.configuration_problem(config, cache)
    mixed = SimpleNamespace(kv_cache_specs={"a": spec, "b": SimpleNamespace()})
    cache.kv_cache_groups = [SimpleNamespace(kv_cache_spec=mixed)]
    assert "SimpleNamespace" in engine.configuration_problem(config, cache)
    config.cache_config.calculate_kv_scales = True
    cache.kv_cache_groups = [group]
    assert "scales" in engine.configuration_problem(config, cache)


def test_memory_of_an_unknown_layout_fails_loads_only(
    open_engine: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    engine = open_engine()
    engine.serve(request("first"))
    engine.close()
    engine = open_engine()
    engine.worker._worker.close()
    engine.worker._worker = type(engine.worker._worker)(
        engine.worker._store, ConnectorOptions(root_dir="", capacity_bytes=1), engine.worker._counters
    )
    strange = {name: memory.transpose(-1, -2) for name, memory in engine.memory.items()}
    engine.worker.register_kv_caches(strange)
    assert "laid out in a new way" in caplog.text
    one = request("one")
    engine.serve(one)
    assert (one.loaded, one.recomputed) == (96, 96)


WRONG: dict[str, dict[str, Any]] = {
    "nothing": {},
    "unknown": {"root_dir": "a", "capacity_bytes": 1, "rootdir": 1},
    "choice": {"root_dir": "a", "capacity_bytes": 1, "checksum": "crc"},
    "negative": {"root_dir": "a", "capacity_bytes": -1},
    "no number": {"root_dir": "a", "capacity_bytes": "1 GB"},
    "boolean": {"root_dir": "a", "capacity_bytes": 1, "load_deadline": True},
}


@pytest.mark.parametrize("given", WRONG.values(), ids=WRONG)
def test_options_that_are_wrong(given: dict[str, Any]) -> None:
    with pytest.raises(errors.ArgumentError, match=r"allowed|missing|unknown|above 0") as caught:
        ConnectorOptions.read(given)
    assert caught.value.code == "argument.connector_option"


def test_a_capacity_that_cannot_hold_pages(module: Any, tmp_path: Path) -> None:
    with pytest.raises(errors.ArgumentError, match=r"segment|capacity"):
        Engine(module.InferAccelConnector, tmp_path, capacity_bytes=100)


def test_numbers_reach_prometheus(open_engine: Callable[..., Engine], module: Any) -> None:
    prometheus = pytest.importorskip("prometheus_client")
    from infer_accel.integrations.prometheus import StatsCollector

    engine = open_engine()
    engine.serve(request("first"), request("first again"))
    registry = prometheus.CollectorRegistry()
    registry.register(StatsCollector({"vllm": engine.worker}))
    text = prometheus.generate_latest(registry).decode()
    assert "infer_accel_vllm_saved_pages_total 6.0" in text
    # vLLM's way: from the worker to the server, each addition once.
    report = pickle.loads(pickle.dumps(engine.worker.get_kv_connector_stats().data))
    assert engine.worker.get_kv_connector_stats() is None
    whole = module.InferAccelConnector.build_kv_connector_stats(dict(report))
    whole.aggregate(module.InferAccelConnector.build_kv_connector_stats({"saved_pages": 4}))
    assert whole.reduce()["saved_pages"] == 10
    assert not whole.is_empty()
    whole.reset()
    assert whole.is_empty()
    served = prometheus.CollectorRegistry()

    kinds: Any = {prometheus.Counter: functools.partial(prometheus.Counter, registry=served)}
    metrics = module.InferAccelConnector.build_prom_metrics(None, kinds, ["engine"], {0: ["0"]})
    metrics.observe(report)
    metrics.observe({"saved_pages": 4, "a field of a newer version": 1})
    text = prometheus.generate_latest(served).decode()
    assert 'infer_accel_kv_connector_saved_pages_total{engine="0"} 10.0' in text


def test_a_scheduler_in_another_process_sees_what_is_on_disk(
    module: Any, open_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine()
    engine.serve(request("first"))
    assert engine.worker.flush()
    stores = importlib.import_module("infer_accel.integrations._connector.store")
    monkeypatch.setattr(stores, "find", lambda path: None)
    engine.wipe()
    one = request("one")
    engine.serve(one)
    assert (one.loaded, one.recomputed) == (96, 0)
    # What the worker stores later is seen a little later.
    engine.serve(request("later", seed=9))
    for number in range(500):
        again = request(f"again {number}", seed=9)
        engine.serve(again)
        if again.loaded:
            break
        threading.Event().wait(0.01)
    assert again.loaded == 96


def test_without_vllm_one_line_says_what_is_needed() -> None:
    code = "import sys; sys.modules['vllm'] = None; import infer_accel.integrations.vllm_connector"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "this connector needs vLLM 0.32 or 0.33" in ran.stderr.splitlines()[-1]


# Keys -------------------------------------------------------------------------------------------------------


@given(
    ids=st.lists(st.integers(0, 2**32 - 1), max_size=60),
    size=st.integers(1, 7),
    cuts=st.lists(st.integers(0, 60), max_size=4),
    salt=st.none() | st.text(min_size=1, max_size=4),
    adapter=st.none() | st.text(min_size=1, max_size=4),
)
def test_keys_do_not_depend_on_when_they_are_made(
    ids: list[int], size: int, cuts: list[int], salt: str | None, adapter: str | None
) -> None:
    origin = digest({"model": "a"})
    whole = KeyChain(origin, size, salt=salt, adapter=adapter).keys(ids, len(ids) // size)
    parts = KeyChain(origin, size, salt=salt, adapter=adapter)
    for cut in [*sorted(cuts), len(ids)]:
        have = min(cut, len(ids)) // size
        assert np.array_equal(parts.keys(ids[: have * size], have), whole[:have])
    others = [{}, {"salt": "x" + (salt or "")}, {"adapter": "x" + (adapter or "")}]
    for other in others if len(whole) and (salt or adapter) else others[1:]:
        differs = KeyChain(origin, size, **other).keys(ids, len(whole))
        assert not any(np.array_equal(*pair) for pair in zip(differs, whole, strict=True))


def test_weights_and_adapters_are_told_by_their_files(tmp_path: Path) -> None:
    assert weights_of("someone/model") is None
    assert weights_of(tmp_path) is None
    (tmp_path / "model.gguf").write_bytes(b"1")
    alone = weights_of(tmp_path / "model.gguf")
    assert alone is not None
    assert alone == weights_of(tmp_path)
    digests = AdapterDigests()
    assert digests.of(1, "a", str(tmp_path)) is None
    (tmp_path / "adapter_model.bin").write_bytes(b"1")
    assert digests.of(1, "a", str(tmp_path)) is None, "the engine has seen it without"
    assert digests.of(2, "a", str(tmp_path)) is not None
