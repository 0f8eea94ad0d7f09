"""What of vLLM the block pool relies on, checked before anything is put in its place."""

from __future__ import annotations

import vllm
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_coordinator import KVCacheCoordinator, UnitaryKVCacheCoordinator
from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.core.single_type_kv_cache_manager import SingleTypeKVCacheManager

from infer_accel.integrations._interface import Signatures, signature_problem, version_problem
from infer_accel.integrations.vllm_block_pool import KNOWN_VERSIONS

_SIGNATURES: Signatures = {
    BlockPool: {
        "get_cached_block": ("block_hash", "kv_cache_group_ids"),
        "get_new_blocks": ("num_blocks",),
        "touch": ("blocks",),
        "free_blocks": ("ordered_blocks",),
        "evict_blocks": ("block_ids",),
        "cache_full_blocks": (
            "request",
            "blocks",
            "num_cached_blocks",
            "num_full_blocks",
            "block_size",
            "kv_cache_group_id",
            "block_mask",
        ),
    },
    KVCacheCoordinator: {
        "free": ("request_id",),
        "pop_blocks_for_free": ("request_id",),
        "get_blocks": ("request_id",),
        "allocate_new_blocks": ("request_id", "num_tokens", "num_tokens_main_model", "num_encoder_tokens"),
    },
    UnitaryKVCacheCoordinator: {"find_longest_cache_hit": ("block_hashes", "max_cache_hit_length")},
    SingleTypeKVCacheManager: {
        "_get_num_evictable_blocks": ("blocks",),
        "add_local_computed_blocks": (
            "request_id",
            "new_computed_blocks",
            "num_local_computed_tokens",
            "num_external_computed_tokens",
        ),
        "allocate_new_blocks": ("request_id", "num_tokens", "num_tokens_main_model"),
        "pop_blocks_for_free": ("request_id",),
    },
    KVCacheManager: {"create_kv_cache_blocks": ("blocks",), "estimate_cached_tokens": ("request",)},
    KVCacheBlocks: {"get_block_ids": ("allow_none", "group_ids")},
}
#: What a block of vLLM has; one that is new would have to be answered, too.
_BLOCK = (
    "block_id",
    "ref_cnt",
    "pool",
    "_block_hash",
    "_block_hash_num_tokens",
    "prev_free_block",
    "next_free_block",
    "is_null",
)


def version() -> str:
    """Return vLLM's version, such as ``"0.32.0"``."""
    return str(vllm.__version__)


def interface_problem() -> str | None:
    """Return what is wrong with the vLLM that is installed, or None."""
    problem = version_problem("vLLM", version(), KNOWN_VERSIONS) or signature_problem(
        "vLLM", version(), _SIGNATURES
    )
    if problem is not None:
        return problem
    if set(KVCacheBlock.__slots__) != set(_BLOCK):
        return f"vLLM {version()} has {sorted(KVCacheBlock.__slots__)} in a KVCacheBlock: a changed build?"
    return None
