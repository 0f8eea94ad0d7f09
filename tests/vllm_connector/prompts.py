"""What an engine is asked."""

from __future__ import annotations

import time
from typing import Any

from tests.vllm_connector_double import Engine, Request, tokens


def request(name: str, seed: int = 1, count: int = 100, **options: Any) -> Request:
    return Request(name, list(tokens(seed, count)), **options)


def served_until_loaded(engine: Engine, seed: int) -> Request:
    """Serve requests for one prompt until one finds its pages, or five hundred have not; return the last."""
    for number in range(500):
        again = request(f"until loaded {number}", seed)
        engine.serve(again)
        if again.loaded:
            break
        time.sleep(0.01)
    return again
