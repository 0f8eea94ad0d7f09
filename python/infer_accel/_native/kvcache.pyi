"""
Paged KV-cache blocks.
"""

from .tokenize import Tokenizer
from _typeshed import Incomplete, SupportsGetItem
from collections.abc import Sequence
from infer_accel._typing import Tensor
from typing import Any, SupportsIndex, final

__all__ = ["BlockPool", "hash_blocks", "hash_prompt", "none_hash", "page_copy", "page_gather", "page_scatter", "xxh3_128"]

@final
class BlockPool:
    """
    Blocks of a KV cache: lent out, counted, remembered by hash, evicted.
    """
    def __new__(cls, /, num_blocks: int) -> BlockPool: ...
    def alloc(self, /, count: int) -> Incomplete:
        """
        Lends `count` blocks and returns their handles.
        """
    def cache(self, /, handles: Tensor | Sequence[int] | Sequence[Sequence[int]], hashes: Tensor | Sequence[bytes]) -> int:
        """
        Remembers what full blocks hold; returns how many were new.
        """
    def cached_prefix(self, /, hashes: Tensor | Sequence[bytes]) -> int:
        """
        How many leading hashes are cached.
        """
    def check_invariants(self, /) -> None:
        """
        Proves that the books are right.
        """
    def free(self, /, handles: Tensor | Sequence[int] | Sequence[Sequence[int]]) -> None:
        """
        Takes a reference from each block.
        """
    def ids(self, /, handles: Tensor | Sequence[int] | Sequence[Sequence[int]]) -> Incomplete:
        """
        The id of each block.
        """
    def lookup(self, /, hashes: Tensor | Sequence[bytes]) -> Incomplete:
        """
        Handles of the longest run of leading hashes that are cached, each with a reference more.
        """
    def retain(self, /, handles: Tensor | Sequence[int] | Sequence[Sequence[int]]) -> None:
        """
        Adds a reference to each block.
        """
    def stats(self, /) -> tuple[int, int, int, int, int, int, int, int]:
        """
        Blocks: in all, free, used, cached; so far: allocated, evicted, asked for, found.
        """

def hash_blocks(token_ids: Tensor | Sequence[int] | Sequence[Sequence[int]], *, block_size: int, algorithm: str = "sha256_cbor", parent: bytes | None = None, extra_keys: Sequence[Any] | None = None) -> Incomplete:
    """
    Hashes every full block of `token_ids`, as a chain that begins at `parent`.
    """

def hash_prompt(tokenizer: Tokenizer, text: Any, *, block_size: int, algorithm: str, keys: Sequence[Any], options: tuple[bool, bool]) -> tuple[Incomplete, Incomplete]:
    """
    Encodes a text and hashes its full blocks, the first with `keys[0]`, the others with `keys[1]`. `options` are
    `add_special_tokens` and `parse_special`.
    """

def none_hash(algorithm: str = "sha256_cbor") -> bytes:
    """
    The parent of a first block, vLLM's ``NONE_HASH``; depends on ``PYTHONHASHSEED``.
    """

def page_copy(sources: SupportsGetItem[int, Tensor], targets: SupportsGetItem[int, Tensor], mapping: Tensor | Sequence[int] | Sequence[Sequence[int]], *, axis: SupportsIndex = 0, num_threads: int | None = None) -> None:
    """
    Copies, in every layer, page ``mapping[i, 0]`` of the source to page ``mapping[i, 1]`` of the target.
    """

def page_gather(sources: SupportsGetItem[int, Tensor], ids: Tensor | Sequence[int] | Sequence[Sequence[int]], targets: SupportsGetItem[int, Tensor], *, axis: SupportsIndex = 0, num_threads: int | None = None) -> None:
    """
    Copies, in every layer, page ``ids[i]`` of the source to page ``i`` of the target.
    """

def page_scatter(sources: SupportsGetItem[int, Tensor], targets: SupportsGetItem[int, Tensor], ids: Tensor | Sequence[int] | Sequence[Sequence[int]], *, axis: SupportsIndex = 0, num_threads: int | None = None) -> None:
    """
    Copies, in every layer, page ``i`` of the source to page ``ids[i]`` of the target.
    """

def xxh3_128(message: bytes, /) -> bytes:
    """
    128 bits of XXH3, as the algorithms of this family write them.
    """
