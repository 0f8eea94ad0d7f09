"""SGLang's radix tree in Rust, as its scheduler calls it: one component of full attention, no device."""

from __future__ import annotations

import warnings
from array import array
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

    import numpy as np
    import numpy.typing as npt

    from infer_accel.bench.harness import Bench

    Ids = npt.NDArray[np.int32]

__all__ = ["Tree", "load", "name_of"]

_MODULE = "sglang.srt.mem_cache.unified_radix_cache"


def load(bench: Bench) -> ModuleType | None:
    """Return the module of the tree, or None where SGLang is not installed; its warnings stay out of the table."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bench.rival(_MODULE)


def name_of(bench: Bench) -> str:
    """Return how the table names it."""
    return f"SGLang {bench.rivals.version(_MODULE)}, Rust tree"


class Tree:
    """A tree for `num_tokens` tokens; the pages that it names hold nothing."""

    def __init__(self, module: Any, num_tokens: int, page_size: int) -> None:  # noqa: ANN401 - the rival
        import torch
        from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator
        from sglang.srt.mem_cache.base_prefix_cache import InsertParams, MatchPrefixParams
        from sglang.srt.mem_cache.cache_init_params import CacheInitParams
        from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, ReqToTokenPool
        from sglang.srt.mem_cache.radix_cache import RadixKey
        from sglang.srt.mem_cache.unified_cache.component_type import ComponentType

        pages = MHATokenToKVPool(
            size=num_tokens,
            page_size=page_size,
            dtype=torch.bfloat16,
            head_num=1,
            head_dim=1,
            layer_num=1,
            device="cpu",
            enable_memory_saver=False,
        )
        slots = TokenToKVPoolAllocator(
            size=num_tokens, dtype=torch.bfloat16, device="cpu", kvcache=pages, need_sort=False
        )
        # Prompts share a beginning, whose slots come with each of them. Taking those back copies the whole list of free
        # slots on a CPU, which no server does: left out, in its favour.
        slots.free = lambda *_: None
        requests = ReqToTokenPool(size=8, max_context_len=1024, device="cpu", enable_memory_saver=False)
        params = CacheInitParams(
            req_to_token_pool=requests,
            token_to_kv_pool_allocator=slots,
            page_size=page_size,
            disable=False,
            tree_components=(ComponentType.FULL,),
            tree_core_backend="rust",
        )
        self._tree = module.UnifiedRadixCache(params=params)
        self._match, self._insert, self._key = MatchPrefixParams, InsertParams, RadixKey

    @staticmethod
    def key_of(ids: Ids) -> array[int]:
        """Return ids as it takes them."""
        return array("q", ids.tolist())

    def match(self, ids: array[int]) -> int:
        """Return how many tokens of a prompt are cached."""
        found: int = self._tree.match_prefix(self._match(key=self._key(ids, None))).device_prefix_len
        return found

    def insert(self, ids: array[int], slots: object) -> int:
        """Cache a prompt whose pages are `slots`, a tensor; return how many of its tokens were cached before."""
        found: int = self._tree.insert(self._insert(key=self._key(ids, None), value=slots)).prefix_len
        return found
