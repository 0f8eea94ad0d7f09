"""Pages come back, and to nobody who must not have them."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from tests import vllm_connector_double as double  # noqa: E402 - it needs torch
from tests.vllm_connector.prompts import request, served_until_loaded  # noqa: E402
from tests.vllm_connector_double import Adapter, Engine, Request  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


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
    again = served_until_loaded(engine, seed=9)
    assert again.loaded == 96
