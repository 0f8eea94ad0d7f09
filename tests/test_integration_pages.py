"""The figures of the engines in the documentation are those of the records."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

BENCHES = Path(__file__).resolve().parents[1] / "benches"


@pytest.mark.parametrize(
    "name", ["serve_kv_events", "serve_lmcache", "serve_sglang", "serve_transformers", "serve_vllm_lora"]
)
def test_the_tables_are_those_of_the_record(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHES))
    spec = importlib.util.spec_from_file_location(name, BENCHES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    assert bench.PAGE.rendered() == bench.PAGE.page.read_text(encoding="utf-8"), (
        f"python benches/{name}.py --page"
    )
    sys.modules.pop("engine_pages", None)
