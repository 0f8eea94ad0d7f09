"""A pytest plugin: vLLM's own tests of its tiers and of its policy of eviction, run against ours in their place.

``pytest -p vllm_own_tests VLLM/tests/v1/kv_offload/tiering/test_fs_tier.py`` puts our class where those modules name
theirs. Left out, with the reason, is what looks into the other implementation: its files, its queues, its C extension.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from vllm.v1.kv_offload.base import Medium
from vllm.v1.kv_offload.config import (
    OffloadingCacheConfig,
    OffloadingConfig,
    OffloadingModelConfig,
    OffloadingParallelConfig,
)
from vllm.v1.kv_offload.cpu.policies.factory import CachePolicyFactory
from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory

from infer_accel.integrations.vllm import DiskTierManager
from infer_accel.integrations.vllm_offloading import LinkedLruPolicy

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

FILE = "damages or removes the one file that holds a page; ours share a segment"
INNER = "is about the other implementation's own classes"
ASYNC = "expects that a look-up takes a step; ours answers at once"

#: Tests that cannot be asked of another implementation, by the beginning of their names.
LEFT_OUT = {
    "test_store_accepts_block_published_by_another_writer": FILE,
    "test_shutdown_discards_pending_tasks": INNER,
    "test_wait_idle_blocks_until_tasks_complete": INNER,
    "test_batch_lookup_c_extension": INNER,
    "test_failed_load_corrects_verdict_and_removes_corrupt_file": FILE,
    "test_failed_load_after_abort_does_not_break_newer_probe": ASYNC,
    "test_batched_partial_load_failure_keeps_loaded_blocks": FILE,
    "test_batched_load_first_block_fails_marks_whole_batch": FILE,
    "test_transient_load_failure_leaves_file": FILE,
    "test_mixed_job_results_emit_event_only_for_successful_job": INNER,
    "test_partially_failed_store_emits_no_event": INNER,
    # Of the policy of eviction: they look into its heap.
    "test_lru_repeated_pin_cycles_compact_lazy_heap_entries": INNER,
    "test_touch_propagates_to_all_tiers": INNER,
    # Of the example tier.
    "test_basic_store_and_lookup": INNER,
    "test_ref_cnt_protection_during_cascade": INNER,
    "test_config_info_keys_match_the_filled_values": INNER,
}

CAPACITY = 256 << 20


class _Names:
    """What stands for a page's file: a path that is there exactly while the page is."""

    def __init__(self, tier: DiskTierManager, root: Path) -> None:
        self._tier, self._root = tier, root
        self.base_path = [path for path in root.iterdir() if path.is_dir()]

    def get_file_name(self, key: bytes) -> str:
        there = self._tier._tier.contains([key])[0]
        return str(self._root if there else self._root / "not-there")


class FsTier(DiskTierManager):
    """Ours, by the arguments and names of vLLM's file system tier."""

    def __init__(
        self, *arguments: Any, n_read_threads: int = 2, n_write_threads: int = 1, **options: Any
    ) -> None:
        super().__init__(*arguments, **({"capacity_bytes": CAPACITY} | options))
        self.file_mapper = _Names(self, Path(options["root_dir"]))
        self._use_o_direct = False
        self._store_job_keys: dict[int, object] = {}


CONFIG = OffloadingConfig(
    groups=(),
    worker_kv_bytes_per_block=0,
    enable_kv_cache_events=False,
    extra_config={},
    engine_id="engine",
    model=OffloadingModelConfig(name="model", dtype="float32"),
    cache=OffloadingCacheConfig(tokens_per_hash=16, blocks_per_chunk=1),
    parallel=OffloadingParallelConfig(
        rank=0,
        world_size=1,
        tp_size=1,
        pp_size=1,
        pcp_size=1,
        dcp_size=1,
        data_parallel_index=0,
        data_parallel_size=1,
        data_parallel_rank_local=None,
        is_parallelism_agnostic=False,
    ),
)


class _Chunks:
    """The example's dictionary: what a test puts in is stored."""

    def __init__(self, tier: DiskTierManager) -> None:
        self._tier = tier

    def __setitem__(self, key: bytes, there: bool) -> None:
        assert there
        self._tier._tier.store([key], np.zeros((1, self._tier.block_size_bytes), np.uint8))

    def __contains__(self, key: bytes) -> bool:
        return bool(self._tier._tier.contains([key])[0])

    def __len__(self) -> int:
        return self._tier.stats().pages


class ExampleTier(DiskTierManager):
    """Ours in the place of vLLM's example: jobs are done when their submission returns, as there."""

    medium = Medium.CPU

    def __init__(self, *, offloading_spec: object, **options: Any) -> None:
        # Their specification is a mock that answers every question with another mock; a directory needs a name.
        spec = SimpleNamespace(config=CONFIG, blocks_per_chunk=1, kv_events_config=None)
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        super().__init__(spec, root_dir=self._folder.name, capacity_bytes=8 << 20, **options)

        self.chunks = _Chunks(self)
        self.completed_jobs: list[Any] = []

    def get_finished_jobs(self) -> Iterable[Any]:
        given, self.completed_jobs = self.completed_jobs, []
        return [*given, *super().get_finished_jobs()]

    def get_num_chunks(self) -> int:
        return self.stats().pages

    def submit_store(self, job_metadata: Any) -> None:
        super().submit_store(job_metadata)
        self._queue.drain()

    def submit_load(self, job_metadata: Any) -> None:
        super().submit_load(job_metadata)
        self._queue.drain()


def lookup_and_wait(tier: DiskTierManager, keys: Sequence[Any], ctx: Any = None, timeout: float = 1.0) -> Any:
    return [tier.lookup(key, ctx) for key in keys]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    SecondaryTierFactory._registry["fs"] = lambda: FsTier
    CachePolicyFactory._registry["lru"] = lambda: LinkedLruPolicy
    for item in items:
        module = getattr(item, "module", SimpleNamespace())
        if hasattr(module, "LRUCachePolicy"):
            module.LRUCachePolicy = LinkedLruPolicy
        if hasattr(module, "FileSystemTierManager"):
            module.FileSystemTierManager = FsTier
            module.lookup_and_wait = lookup_and_wait
        if hasattr(module, "ExampleSecondaryTierManager"):
            module.ExampleSecondaryTierManager = ExampleTier
        name = item.name.partition("[")[0]
        if name in LEFT_OUT:
            item.add_marker(pytest.mark.skip(reason=LEFT_OUT[name]))
