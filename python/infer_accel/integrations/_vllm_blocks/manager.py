"""The managers that stand between vLLM's scheduler and the pool: vLLM's own, told that tables are arrays."""

from __future__ import annotations

import functools
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger
from vllm.v1.core import kv_cache_coordinator, kv_cache_manager
from vllm.v1.core.kv_cache_coordinator import UnitaryKVCacheCoordinator
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.sched import scheduler
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.kv_cache_interface import FullAttentionSpec, MLAAttentionSpec
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

from infer_accel.integrations._vllm_blocks.blocks import BlockRun, RunBlocks
from infer_accel.integrations._vllm_blocks.pool import PooledBlocks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

_log = init_logger("vllm.infer_accel")

#: What of a coordinator's arguments has to be so.
_PLAIN = {
    "use_eagle": False,
    "enable_caching": True,
    "enable_kv_cache_events": False,
    "dcp_world_size": 1,
    "pcp_world_size": 1,
    "metrics_collector": None,
    "num_hash_lookahead_tokens": 0,
    "num_prefill_lookahead": 0,
}


class PooledManager(FullAttentionManager):
    """One group of full attention whose tables are :class:`BlockRun`."""

    block_pool: PooledBlocks

    def __init__(self, kv_cache_spec: Any, **options: Any) -> None:
        super().__init__(kv_cache_spec, **options)
        self.req_to_blocks: defaultdict[str, BlockRun] = defaultdict(
            functools.partial(BlockRun, self.block_pool)
        )

    @classmethod
    def _get_num_evictable_blocks(cls, blocks: Sequence[Any]) -> int:
        if isinstance(blocks, BlockRun):
            return blocks.pool.idle(blocks) if blocks else 0
        return sum(block.ref_cnt == 0 and not block.is_null for block in blocks)


class PooledCoordinator(UnitaryKVCacheCoordinator):
    """vLLM's coordinator of one group, with our pool under it."""

    def __init__(self, kv_cache_config: KVCacheConfig, *arguments: Any, **options: Any) -> None:
        # vLLM's own pool makes an object for each block; one block is enough for what is thrown away.
        super().__init__(replace(kv_cache_config, num_blocks=1), *arguments, **options)
        _log.info("infer-accel's block pool keeps %d blocks", kv_cache_config.num_blocks)
        self.kv_cache_config = kv_cache_config
        self.block_pool = PooledBlocks(kv_cache_config.num_blocks, self.block_size)
        self.single_type_managers = (
            PooledManager(
                self.kv_cache_spec,
                block_pool=self.block_pool,
                enable_caching=True,
                kv_cache_group_id=0,
                scheduler_block_size=self.scheduler_block_size,
            ),
        )

    def find_longest_cache_hit(
        self, block_hashes: Sequence[bytes], max_cache_hit_length: int
    ) -> tuple[tuple[BlockRun], int, int]:
        """Return the leading blocks that are cached, and how many tokens they hold."""
        run = self.block_pool.find(block_hashes, max_cache_hit_length // self.block_size)
        return (run,), len(run) * self.block_size, 0


class PooledKVCacheManager(KVCacheManager):
    """vLLM's manager; what it does block by block is done at once where the coordinator is ours."""

    def create_kv_cache_blocks(self, blocks: tuple[Any, ...]) -> KVCacheBlocks:
        """Return the blocks as the scheduler takes them."""
        if not isinstance(self.coordinator, PooledCoordinator):
            return super().create_kv_cache_blocks(blocks)
        return RunBlocks(blocks) if any(blocks) else self.empty_kv_cache_blocks

    def estimate_cached_tokens(self, request: Request) -> int:
        """Return up to which token the blocks of a request are cached."""
        if not isinstance(self.coordinator, PooledCoordinator):
            return int(super().estimate_cached_tokens(request))
        pool, table = self.coordinator.block_pool, self.coordinator.get_blocks(request.request_id)[0]
        # From the end: what follows the last cached block is the tail of the answer.
        for place in range(len(table), 0, -1):
            if pool.hash_of(table[place - 1].block_id) is not None:
                return place * int(self.coordinator.block_size)
        return 0


def serves(config: KVCacheConfig, given: dict[str, Any]) -> bool:
    """Return whether a configuration is one that our pool is for."""
    if len(config.kv_cache_groups) != 1 or any(
        given.get(name, plain) != plain for name, plain in _PLAIN.items()
    ):
        return False
    group = config.kv_cache_groups[0]
    spec, role = group.kv_cache_spec, getattr(group, "role", None)
    return (
        type(spec) in {FullAttentionSpec, MLAAttentionSpec}
        and KVCacheSpecRegistry.get_manager_class(spec, role) is FullAttentionManager
        and not group.is_eagle_group
        and given["hash_block_size"] == given["scheduler_block_size"] == spec.block_size
        and not config.needs_kv_cache_zeroing
        and config.num_blocks > 1
    )


def install() -> None:
    """Have vLLM make our coordinator where it fits; everything else stays its own."""
    own = kv_cache_coordinator.get_kv_cache_coordinator

    @functools.wraps(own)
    def get_kv_cache_coordinator(kv_cache_config: KVCacheConfig, **given: Any) -> Any:
        if not serves(kv_cache_config, given):
            return own(kv_cache_config=kv_cache_config, **given)
        given.pop("allow_partial_hash_hits", None)
        return PooledCoordinator(kv_cache_config, **given)

    for module in (kv_cache_coordinator, kv_cache_manager):
        module.get_kv_cache_coordinator = get_kv_cache_coordinator
    for module in (kv_cache_manager, scheduler):
        module.KVCacheManager = PooledKVCacheManager
