"""vLLM's own manager and requests, as its scheduler makes them: one group of full attention."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from infer_accel.bench.harness import Bench

__all__ = ["load", "manager_of", "request_of"]

#: Longest sequence of any row.
_MAX_TOKENS = 1 << 20


def load(bench: Bench) -> ModuleType | None:
    """Return vLLM, or None where it is not installed; its warnings stay out of the table."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    return bench.rival("vllm")


def manager_of(num_blocks: int, block_size: int, *, events: bool = False) -> Any:  # noqa: ANN401 - the rival's class
    """Return a ``KVCacheManager``."""
    import torch
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec

    spec = FullAttentionSpec(block_size=block_size, num_kv_heads=1, head_size=1, dtype=torch.float32)
    config = KVCacheConfig(
        num_blocks=num_blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)]
    )
    return KVCacheManager(
        config,
        max_model_len=_MAX_TOKENS,
        scheduler_block_size=block_size,
        hash_block_size=block_size,
        enable_kv_cache_events=events,
    )


def request_of(
    name: str, tokens: list[int], block_size: int, *, hashes: Sequence[bytes] | None = None
) -> Any:  # noqa: ANN401 - the rival's class
    """Return a ``Request`` that hashes its blocks by sha256, vLLM's default, or that has these hashes."""
    from vllm.sampling_params import SamplingParams
    from vllm.utils.hashing import sha256
    from vllm.v1.core import kv_cache_utils
    from vllm.v1.request import Request

    if not hasattr(kv_cache_utils, "NONE_HASH"):
        kv_cache_utils.init_none_hash(sha256)
    options = SamplingParams(max_tokens=1 << 16)
    options.update_from_generation_config({}, eos_token_id=-1)
    hasher = None if hashes is not None else kv_cache_utils.get_request_block_hasher(block_size, sha256)
    request = Request(
        request_id=name,
        prompt_token_ids=tokens,
        sampling_params=options,
        pooling_params=None,
        block_hasher=hasher,
    )
    if hashes is not None:
        request.block_hashes = list(hashes)
    return request
