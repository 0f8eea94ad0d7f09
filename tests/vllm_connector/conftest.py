"""An engine with the connector, under a stand-in for vLLM."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.vllm_connector_double import Engine

# The stand-in needs torch: it is imported where a test asks for it.


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from tests import vllm_connector_double as double

    double.install(monkeypatch)
    yield importlib.import_module("infer_accel.integrations.vllm_connector")
    for name in double.OURS:
        sys.modules.pop(name, None)


@pytest.fixture
def open_engine(module: Any, tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    from tests.vllm_connector_double import Engine

    opened = []

    def open_one(**options: Any) -> Engine:
        engine = Engine(module.InferAccelConnector, options.pop("root", tmp_path / "kv"), **options)
        opened.append(engine)
        return engine

    yield open_one
    for engine in opened:
        engine.close()
