"""The connector's numbers on vLLM's own way to ``/metrics``: from the worker's process to the server's."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from prometheus_client import Counter
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

from infer_accel.integrations._connector.counters import ConnectorStats

if TYPE_CHECKING:
    from vllm.config import VllmConfig

__all__ = ["ConnectorMetrics", "StepStats"]

_NAMES = tuple(field.name for field in dataclasses.fields(ConnectorStats))


class StepStats(KVConnectorStats):
    """What was added to the numbers of a :class:`ConnectorStats` since the last report: ``{name: amount}``."""

    def reset(self) -> None:
        """Forget all."""
        self.data: dict[str, float] = {}

    def aggregate(self, other: KVConnectorStats) -> StepStats:
        """Add another report to this one."""
        for name, amount in other.data.items():
            self.data[name] = self.data.get(name, 0) + amount
        return self

    def reduce(self) -> dict[str, int | float]:
        """Return what vLLM writes to its log."""
        return {name: round(self.data[name], 4) for name in _NAMES if name in self.data}

    def is_empty(self) -> bool:
        """Return whether nothing was added."""
        return not self.data


class ConnectorMetrics(KVConnectorPromMetrics):
    """A counter ``infer_accel_kv_connector_…_total`` for each number, with vLLM's labels."""

    def __init__(
        self,
        vllm_config: VllmConfig,
        metric_types: dict[type, type],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        kind = metric_types[Counter]
        self._series: dict[int, dict[str, Any]] = {engine: {} for engine in per_engine_labelvalues}
        for name in _NAMES:
            family = kind(
                name=f"infer_accel_kv_connector_{name}",
                documentation=f"{name.replace('_', ' ')} of infer-accel's KV connector",
                labelnames=labelnames,
            )
            for engine, values in per_engine_labelvalues.items():
                self._series[engine][name] = family.labels(*values)

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """Add a report."""
        for name, amount in transfer_stats_data.items():
            series = self._series[engine_idx].get(name)
            if series is not None:
                series.inc(amount)
