"""vLLM's prompt pages in a :class:`~infer_accel.kvcache.TieredCache`: host memory, and a disk that outlives the server.

vLLM loads it by name; nothing has to be registered or patched::

    vllm serve MODEL --kv-transfer-config '{
      "kv_connector": "InferAccelConnector",
      "kv_connector_module_path": "infer_accel.integrations.vllm_connector",
      "kv_role": "kv_both", "kv_load_failure_policy": "recompute",
      "kv_connector_extra_config": {"root_dir": "/var/cache/kv", "capacity_bytes": 1099511627776}
    }'

The pages of a prompt are found again after a reset of vLLM's prefix cache, after eviction from it, and after a restart
of the process. Each is checked when it comes from disk: one that is not what was stored is computed again.
"""

from __future__ import annotations

import logging
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    from vllm.distributed.kv_transfer.kv_connector.v1.base import (
        KVConnectorBase_V1,
        KVConnectorMetadata,
        KVConnectorRole,
    )
    from vllm.v1.metrics.cache_hit_source import CacheHitSource
except ImportError as error:
    _message = f"this connector needs vLLM 0.32 or 0.33, and what is installed has no such interface: {error}"
    raise ModuleNotFoundError(_message, name="vllm") from error

from infer_accel.integrations import _vllm_engine as engine
from infer_accel.integrations._connector import store as stores
from infer_accel.integrations._connector.counters import ConnectorStats, Counters
from infer_accel.integrations._connector.keys import AdapterDigests, digest
from infer_accel.integrations._connector.options import ConnectorOptions
from infer_accel.integrations._connector.plan import StepPlan
from infer_accel.integrations._connector.scheduler import Scheduled, SchedulerSide
from infer_accel.integrations._connector.worker import Layer, WorkerSide
from infer_accel.integrations._vllm_metrics import ConnectorMetrics, StepStats

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from vllm.config import VllmConfig
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

__all__ = ["ConnectorStats", "InferAccelConnector"]

_log = logging.getLogger("infer_accel")


class _StepMetadata(KVConnectorMetadata):
    """A step's plan, on vLLM's way from the scheduler to the worker."""

    def __init__(self, plan: StepPlan) -> None:
        self.plan = plan


class InferAccelConnector(KVConnectorBase_V1):
    """Stores and loads the pages of prompts.

    The scheduler's side finds how much of a prompt is stored; the worker's loads it, in threads, while other requests
    go on, and stores what each step completes. What is stored goes to host memory before the step ends, and from
    there to disk in the background.

    Parameters
    ----------
    vllm_config, role, kv_cache_config
        vLLM's. Options stand in ``kv_connector_extra_config``:

        - ``root_dir``: a directory. Each model, layout and rank has one of its own in it; engines may share them.
        - ``capacity_bytes``: most bytes of one of those on disk.
        - ``host_bytes`` (1 GiB): host memory in front of the disk.
        - ``save`` (``"prompt"``): ``"all"`` also stores the pages of answers, for the next turn of a conversation.
        - ``load_deadline`` (2): seconds after which a load is given up, and the prompt computed. Look-ups then pause
          for five seconds.
        - ``store_deadline`` (0.05): seconds that a step waits for room in host memory, where the disk is slower than
          the engine; what finds none is not stored.
        - ``write_deadline`` (30), ``checksum`` (``"xxh3"``), ``compression`` (None), ``segment_bytes``: as for
          :class:`~infer_accel.kvcache.DiskTier`.
        - ``open_deadline`` (5), ``retry_seconds`` (30): how long the start waits for the directory, and after how
          long one that failed is tried again.
        - ``load_threads`` (2), ``staging_bytes`` (64 MiB): threads, and memory of each, between tier and engine.
        - ``identity``: names the weights, instead of their path, files and revision; for those who share a directory
          between machines. Change it with the weights.

    Raises
    ------
    ArgumentError
        An option that is unknown, missing or out of range.

    Notes
    -----
    A page's key is the SHA-256 of the chain of tokens before it, with the content of the LoRA adapter and the
    request's ``cache_salt``; its directory is named by model, weights, dtype, layout and engine. Prompts with images
    are served up to the first of them, those of embeddings not at all.

    Under an engine or a configuration that it does not know, the connector says so in one line of the log and does
    nothing: the server works as without it. A tier that cannot be opened, fails, is full or late costs hits and no
    request; ``infer_accel_kv_connector_*`` on ``/metrics`` show it.

    Not served: pipeline and context parallelism, models whose cache has several groups or holds states (Mamba).
    """

    _cache_hit_source = CacheHitSource.DISK

    def __init__(
        self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._counters = Counters()
        self._scheduler: SchedulerSide | None = None
        self._worker: WorkerSide | None = None
        self._store: stores.PageStore | None = None
        options = ConnectorOptions.read(vllm_config.kv_transfer_config.kv_connector_extra_config)
        problem = engine.interface_problem() or engine.configuration_problem(vllm_config, kv_cache_config)
        if problem is not None:
            _log.error("infer-accel's connector is off, and nothing is cached on disk: %s", problem)
            return
        facts = engine.facts(vllm_config, kv_cache_config, options.identity)
        self._origin = digest(facts)
        self._slots = engine.layer_slots(kv_cache_config)
        self._block_size = int(kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size)
        self._num_blocks = int(kv_cache_config.num_blocks)
        ranks = int(vllm_config.parallel_config.tensor_parallel_size)
        places = [self._place(options, rank, ranks) for rank in range(ranks)]
        if role is KVConnectorRole.SCHEDULER:
            self._digests = AdapterDigests()
            self._views: dict[str, engine.RequestView] = {}
            directory = stores.Directory(places, options, self._counters)
            self._scheduler = SchedulerSide(directory, options, self._counters, block_size=self._block_size)
        else:
            place = places[engine.tensor_rank(vllm_config)]
            self._store = stores.share(place, options, self._counters)
            self._worker = WorkerSide(self._store, options, self._counters)
            _log.info("pages of %s bytes in %s", place.page_bytes, place.path)

    @property
    def requires_kv_delivery(self) -> bool:
        """False: a page that is not stored is a miss, and no request waits for it."""
        return False

    def stats(self) -> ConnectorStats:
        """Return what this side has done, for a :class:`~infer_accel.integrations.prometheus.StatsCollector`."""
        if self._store is not None:
            self._store.count()
        return self._counters.stats()

    def flush(self) -> bool:
        """Wait until what was stored is durable; returns whether it is. For the worker's side."""
        return self._store is not None and self._store.flush()

    # The scheduler's side -------------------------------------------------------------------------------------

    def get_num_new_matched_tokens(
        self, request: Request, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """Return how many tokens can be loaded behind those that vLLM has, and that they come between steps."""
        if self._scheduler is None:
            return 0, False
        matched = self._scheduler.matched_tokens(self._view(request), num_computed_tokens)
        return matched, matched > 0

    def update_state_after_alloc(
        self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int
    ) -> None:
        """Plan a load into the blocks that were allocated for it."""
        if self._scheduler is not None:
            self._scheduler.allocated(self._view(request), blocks.get_block_ids()[0], num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        """Return what the worker does in this step."""
        if self._scheduler is None:
            return _StepMetadata(StepPlan())
        return _StepMetadata(self._scheduler.plan(_scheduled(scheduler_output)))

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        """Take note of loads that ended, and of pages among them that did not arrive."""
        if self._scheduler is not None:
            finished = connector_output.finished_recving or set()
            self._scheduler.settled(finished, connector_output.invalid_block_ids)

    def request_finished(
        self,
        request: Request,
        block_ids: list[int],  # noqa: ARG002 - vLLM's
    ) -> tuple[bool, dict[str, Any] | None]:
        """Forget a request; its blocks may be freed at once."""
        if self._scheduler is not None:
            self._scheduler.finished(request.request_id)
            self._views.pop(request.request_id, None)
        return False, None

    def reset_cache(self) -> bool | None:
        """Use nothing that was stored before: whoever asks may have changed the weights in place.

        Pages stay where they are, for a process that begins with the weights of the files; what this one stores from
        now on has names of its own. vLLM calls this for ``reset_prefix_cache(reset_connector=True)`` alone.
        """
        if self._scheduler is not None:
            self._origin = digest({"before": self._origin.hex(), "reset": secrets.token_hex(16)})
            self._views.clear()
            self._scheduler.reset()
        return True

    # The worker's side ----------------------------------------------------------------------------------------

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Take note of vLLM's memory."""
        if self._worker is None:
            return
        try:
            layers = [
                Layer(self._blocks_of(kv_caches[name]), slot_bytes)
                for name, slot_bytes in self._slots.items()
            ]
            self._worker.register(layers)
        except (ValueError, KeyError, RuntimeError, AttributeError) as error:
            # The scheduler's side may be elsewhere and match pages: loads fail then, and prompts are computed.
            _log.error("infer-accel's connector is off: vLLM's memory is laid out in a new way: %s", error)

    def start_load_kv(self, forward_context: object, **kwargs: Any) -> None:  # noqa: ANN401, ARG002 - vLLM's
        """Start this step's loads."""
        if self._worker is not None:
            self._worker.start_loads(self._plan())

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Return at once: no step uses pages that are still loaded."""

    def save_kv_layer(
        self,
        layer_name: str,
        kv_layer: torch.Tensor,
        attn_metadata: object,
        **kwargs: Any,  # noqa: ANN401 - vLLM's
    ) -> None:
        """Do nothing: pages are stored whole, when the step has been computed."""

    def wait_for_save(self) -> None:
        """Store the pages that this step completed."""
        if self._worker is not None:
            self._worker.save(self._plan())

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:  # noqa: ARG002 - vLLM's
        """Return the requests whose loads ended."""
        if self._worker is None:
            return None, None
        return None, self._worker.finished(self._plan()) or None

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Return the blocks whose pages did not arrive: missing, late, or not what was stored."""
        return self._worker.failed_blocks() if self._worker is not None else set()

    # Both sides -----------------------------------------------------------------------------------------------

    def get_kv_connector_stats(self) -> StepStats | None:
        """Return what was done since the last call."""
        if self._store is not None:
            self._store.count()
        added = self._counters.take()
        return StepStats(data=added) if added else None

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> StepStats:
        """Return statistics that came from another process."""
        return StepStats(data=data if data is not None else {})

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: VllmConfig,
        metric_types: dict[type, type],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> ConnectorMetrics:
        """Return what shows the statistics on ``/metrics``."""
        return ConnectorMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    def shutdown(self) -> None:
        """End loads, write what waits to be written, close the tier. A second call does nothing."""
        if self._scheduler is not None:
            self._scheduler.close()
        if self._worker is not None:
            self._worker.close()
        if self._store is not None:
            stores.close(self._store)

    def _place(self, options: ConnectorOptions, rank: int, ranks: int) -> stores.Place:
        name = f"{self._origin.hex()[:32]}-rank{rank}of{ranks}"
        fingerprint = self._origin + rank.to_bytes(4, "big") + ranks.to_bytes(4, "big")
        return stores.Place(Path(options.root_dir) / name, fingerprint, sum(self._slots.values()))

    def _blocks_of(self, layer: torch.Tensor) -> torch.Tensor:
        """Return a layer with one row a block; vLLM may have it in smaller ones."""
        if layer.shape[0] == self._num_blocks:
            return layer
        return layer.unflatten(0, (self._num_blocks, -1))

    def _view(self, request: Request) -> engine.RequestView:
        view = self._views.get(request.request_id)
        if view is None or not view.is_of(request):
            view = engine.RequestView(request, self._origin, self._block_size, self._digests)
            self._views[request.request_id] = view
        return view

    def _plan(self) -> StepPlan:
        metadata = self._connector_metadata
        return metadata.plan if isinstance(metadata, _StepMetadata) else StepPlan()


if engine.interface_problem() is not None:
    # A newer vLLM may ask for methods that are not here; the connector is off then, and the server starts.
    InferAccelConnector.__abstractmethods__ = frozenset()


def _scheduled(output: SchedulerOutput) -> Iterator[Scheduled]:
    """Yield the requests of a step: their blocks, and how far they are computed then."""
    counts = output.num_scheduled_tokens
    for new in output.scheduled_new_reqs:
        after = new.num_computed_tokens + counts[new.req_id]
        yield Scheduled(new.req_id, new.block_ids[0], are_all=True, tokens_after=after)
    known = output.scheduled_cached_reqs
    rows = zip(known.req_ids, known.new_block_ids, known.num_computed_tokens, strict=True)
    for name, blocks, computed in rows:
        yield Scheduled(
            name,
            blocks[0] if blocks is not None else (),
            are_all=name in known.resumed_req_ids,
            tokens_after=computed + counts[name],
        )
