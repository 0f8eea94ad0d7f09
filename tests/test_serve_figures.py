"""The figures of the engines in the documentation are those of the records."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
BENCHES = ROOT / "benches"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(BENCHES), *sys.path])
    spec = importlib.util.spec_from_file_location(name, BENCHES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    return bench


def test_the_table_of_the_first_token_is_that_of_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = load("serve_vllm", monkeypatch)
    page = bench.PAGE.read_text(encoding="utf-8")
    assert bench.rendered(page) == page, "python benches/serve_vllm.py --page"


@pytest.mark.parametrize("name", ["serve_block_pool", "serve_frontend", "serve_restart"])
def test_a_table_is_that_of_its_record(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = load(name, monkeypatch).FIGURES
    page = (ROOT / figures.page).read_text(encoding="utf-8")
    assert figures.rendered(page) == page, f"python benches/{name}.py --page"
