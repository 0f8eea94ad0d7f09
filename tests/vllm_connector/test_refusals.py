"""What the connector does not know turns it off; what it cannot be given is an error."""

from __future__ import annotations

import importlib
import subprocess
import sys
from abc import abstractmethod
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from infer_accel import errors
from infer_accel.integrations._connector.options import ConnectorOptions

torch = pytest.importorskip("torch")

from tests import vllm_connector_double as double  # noqa: E402 - it needs torch
from tests.vllm_connector.prompts import request  # noqa: E402
from tests.vllm_connector_double import Engine  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


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


def test_without_vllm_one_line_says_what_is_needed() -> None:
    code = "import sys; sys.modules['vllm'] = None; import infer_accel.integrations.vllm_connector"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "this connector needs vLLM 0.32 or 0.33" in ran.stderr.splitlines()[-1]
