"""The connector's numbers on their way to Prometheus."""

from __future__ import annotations

import functools
import pickle
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from tests.vllm_connector.prompts import request  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.vllm_connector_double import Engine


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
