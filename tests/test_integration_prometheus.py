"""Statistics as Prometheus reads them."""

from __future__ import annotations

import pytest

from infer_accel import errors, kvcache

prometheus = pytest.importorskip("prometheus_client")


def test_metrics_are_the_statistics() -> None:
    from infer_accel.integrations.prometheus import StatsCollector

    pool = kvcache.BlockPool(64, block_size=4)
    manager = kvcache.BlockManager(pool)
    registry = prometheus.CollectorRegistry()
    registry.register(StatsCollector({"kv_pool": pool, "kv_manager": manager}, labels={"engine": "3"}))
    manager.admit(range(20))
    manager.admit(range(20))
    labels = {"engine": "3"}
    expected = {
        "infer_accel_kv_pool_free_blocks": 57,
        "infer_accel_kv_pool_hits_total": 4,
        "infer_accel_kv_manager_sequences": 2,
        "infer_accel_kv_manager_cached_tokens_total": 16,
    }
    for name, value in expected.items():
        assert registry.get_sample_value(name, labels) == value


def test_names_that_prometheus_would_not_take() -> None:
    from infer_accel.integrations.prometheus import StatsCollector

    for bad in ("", "KV", "a-b", "1"):
        with pytest.raises(errors.ArgumentError) as caught:
            StatsCollector({bad: kvcache.BlockPool(8)})
        assert caught.value.code == "argument.metric_name"
