"""The names of a prompt's blocks, made in one call; bit for bit those that vLLM makes block by block."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from vllm.utils import hashing
from vllm.v1.core import kv_cache_utils
from vllm.v1.engine import core

from infer_accel.errors import InferAccelError
from infer_accel.kvcache import hash_blocks

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm.v1.request import Request

    from infer_accel.kvcache import Algorithm

#: Fewer new blocks than this are left to vLLM: a call of ours costs as much as two of its blocks.
_FEW = 2


def _algorithms() -> dict[object, Algorithm]:
    names: tuple[Algorithm, ...] = ("sha256", "sha256_cbor", "xxhash", "xxhash_cbor")
    return {getattr(hashing, name): name for name in names if hasattr(hashing, name)}


def bulk_hasher(size: int, function: Callable[[Any], bytes], own: Callable[[Request], list[bytes]]) -> Any:
    """Return what names the new blocks of a request; `own` is vLLM's, for what is not served here."""
    algorithm = _algorithms().get(function)
    if algorithm is None:
        return own

    def hashes(request: Request) -> list[bytes]:
        done = len(request.block_hashes)
        begin, end = done * size, request.num_tokens // size * size
        if begin == end:
            return []
        if end - begin < _FEW * size or _has_keys(request):
            return own(request)
        tokens = request.all_token_ids[begin:end]
        named: list[bytes] = []
        if not done and request.cache_salt:
            keys, _ = kv_cache_utils.generate_block_hash_extra_keys(request, 0, size, 0)
            named.append(kv_cache_utils.hash_block_tokens(function, None, tokens[:size], keys))
            tokens = tokens[size:]
        parent = (named or request.block_hashes or [kv_cache_utils.NONE_HASH])[-1]
        try:
            rows = hash_blocks(tokens, block_size=size, algorithm=algorithm, parent=parent)
        except InferAccelError:
            return own(request)  # an id that no vocabulary has
        width, joined = rows.shape[1], rows.tobytes()
        return named + [joined[at : at + width] for at in range(0, len(joined), width)]

    return hashes


def _has_keys(request: Request) -> bool:
    """Return whether more than tokens, and a salt in the first block, decides what blocks hold."""
    return bool(request.mm_features or request.lora_request or request.prompt_embeds is not None)


def install() -> None:
    """Have the engine name blocks this way."""
    own = kv_cache_utils.get_request_block_hasher

    @functools.wraps(own)
    def get_request_block_hasher(hash_block_size: int, caching_hash_fn: Any, *more: Any, **named: Any) -> Any:
        theirs = own(hash_block_size, caching_hash_fn, *more, **named)
        if any(more) or any(named.values()):
            return theirs
        return bulk_hasher(hash_block_size, caching_hash_fn, theirs)

    for module in (kv_cache_utils, core):
        module.get_request_block_hasher = get_request_block_hasher
