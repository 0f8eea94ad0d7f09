"""The figures of the engines in the documentation are those of the record."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_table_of_the_first_token_is_that_of_the_record() -> None:
    spec = importlib.util.spec_from_file_location("serve_vllm", ROOT / "benches/serve_vllm.py")
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    page = bench.PAGE.read_text(encoding="utf-8")
    assert bench.rendered(page) == page, "python benches/serve_vllm.py --page"
