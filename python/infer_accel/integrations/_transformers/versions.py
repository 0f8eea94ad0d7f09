"""What of transformers the block manager relies on, checked before anything is put in its place."""

from __future__ import annotations

import transformers as engine
from transformers.generation.continuous_batching import cache, input_outputs
from transformers.generation.continuous_batching.cache_allocators import FullAttentionCacheAllocator

from infer_accel.integrations._interface import Signatures, signature_problem, version_problem

#: Minor versions that were tested.
KNOWN_VERSIONS = ("5.19", "5.23")

#: What is overridden or called, and its parameters behind `self`.
_SIGNATURES: Signatures = {
    cache.PagedAttentionCache: {
        "__init__": (
            "config",
            "continuous_batching_config",
            "device",
            "distributed_helper",
            "dtype",
            "model_supports_logits_to_keep",
        ),
        "can_store_request_tokens": ("state", "request_len", "dry_run"),
        "count_storable_requests": ("list_blocks_needed",),
        "free_blocks": ("request_id", "no_cache"),
        "free_all_requests": ("clear_ledgers",),
        "search_prefix_match": ("request_id", "prompt_ids"),
        "count_new_complete_blocks": ("state", "request_len"),
        "mark_complete_blocks": ("state", "complete_blocks"),
        "evict_cached_blocks": (),
        "extend_read_and_write_indices": (
            "request_id",
            "past_length",
            "query_length",
            "read_index",
            "write_index",
        ),
        "prepare_fork_request": ("src_state", "dst_req_ids", "copy_src_and_dst"),
        "compute_free_capacity": ("relative",),
        "fill_block_table": ("request_id", "past_length", "query_length", "block_table"),
    },
    input_outputs.ContinuousBatchingIOs: {
        "prepare_batch_tensors": (
            "requests_in_batch",
            "logits_processors",
            "use_decode_fast_path",
            "num_q_tokens",
            "max_kv_read",
            "use_padding",
        ),
        "_reset_read_and_write_indices": ("q_len", "kv_len"),
    },
    FullAttentionCacheAllocator: {
        "needs_new_blocks": ("request_id", "past_length", "query_length"),
        "copy_blocks": ("source_block_ids", "dest_block_ids"),
    },
}


def version() -> str:
    """Return transformers' version, such as ``"5.23.0"``."""
    return str(engine.__version__)


def interface_problem() -> str | None:
    """Return what is wrong with the transformers that is installed, or None."""
    known = version_problem("transformers", version(), KNOWN_VERSIONS)
    return known or signature_problem("transformers", version(), _SIGNATURES)
