"""
Paged KV-cache blocks.
"""

from .tokenize import ChatTemplate, Tokenizer
from _typeshed import Incomplete, SupportsGetItem
from collections.abc import Sequence
from infer_accel._typing import Tensor
from os import PathLike
from typing import Any, SupportsFloat, SupportsIndex, final

__all__ = ["BlockManager", "BlockPool", "DiskTier", "HostPool", "TieredCache", "Trace", "hash_blocks", "hash_chat", "hash_prompt", "none_hash", "page_copy", "page_gather", "page_scatter", "replay", "scan_nonfinite", "scrub", "xxh3_128"]

@final
class BlockManager:
    """
    Sequences on a pool: tables, slots, forks.
    """
    def __new__(cls, /, pool: BlockPool, *, block_size: int, groups: SupportsGetItem[int, int | None], scrub: bool = False, watermark: SupportsFloat | SupportsIndex = 0.0) -> BlockManager:
        """
        `groups` holds the window of each cache group, None for full attention.
        """
    def admit(self, /, token_ids: Tensor | Sequence[int] | Sequence[Sequence[int]], *, hashes: Tensor | Sequence[bytes] | None = None, extra_keys: Sequence[Any] | None = None, prompt_keys: Sequence[Any] | None = None, limit: int | None = None, priority: int | None = None, seconds: SupportsFloat | SupportsIndex | None = None) -> tuple[int, int, int]:
        """
        Admits a prompt; returns its sequence, its cached tokens, and the tokens that have blocks.

        `extra_keys` has an entry a block; or `prompt_keys` has those of the first block and of all others.
        """
    def block_tables(self, /, sequences: Tensor | Sequence[int] | Sequence[Sequence[int]], out: Tensor, *, group: int = ...) -> None:
        """
        Writes the table of each sequence into a row of `out`, with 0 behind it.
        """
    def check_invariants(self, /) -> None:
        """
        Proves that the books of manager and pool are right.
        """
    def fork(self, /, sequence: SupportsIndex, count: int) -> Incomplete:
        """
        Sequences that share all blocks of this one.
        """
    def num_tokens(self, /, sequences: Tensor | Sequence[int] | Sequence[Sequence[int]]) -> Incomplete:
        """
        Tokens of each sequence.
        """
    def release(self, /, sequences: Tensor | Sequence[int] | Sequence[Sequence[int]]) -> None:
        """
        Ends sequences.
        """
    def slot_mapping(self, /, sequences: Tensor | Sequence[int] | Sequence[Sequence[int]], out: Tensor, *, group: int = ...) -> int:
        """
        Writes the slots of the tokens that were added last, sequence by sequence, with -1 behind them; returns their
        number.
        """
    def stats(self, /) -> tuple[int, int, int, int, int, int, int, int]:
        """
        Sequences and tokens that run; so far: admissions, prompt tokens, cached ones, appended tokens, copied blocks,
        refusals.
        """
    def step(self, /, sequences: Tensor | Sequence[int] | Sequence[Sequence[int]], tokens: Tensor | Sequence[int] | Sequence[Sequence[int]], counts: Tensor | Sequence[int] | Sequence[Sequence[int]] | None = None) -> Incomplete:
        """
        Appends tokens to sequences; returns pairs of pages to copy.
        """
    def take_scrubs(self, /) -> Incomplete:
        """
        Blocks to clean before they are used.
        """

@final
class BlockPool:
    """
    Blocks of a KV cache: lent out, counted, remembered by hash, evicted.
    """
    def __new__(cls, /, num_blocks: int, *, algorithm: str = "sha256_cbor", eviction: str = "lru", pin_blocks: int = ..., event_bytes: int = ...) -> BlockPool: ...
    def advance(self, /, seconds: SupportsFloat | SupportsIndex) -> None:
        """
        Tells the pool the time.
        """
    def alloc(self, /, count: int) -> Incomplete:
        """
        Lends `count` blocks and returns their handles.
        """
    def cache(self, /, handles: Tensor | Sequence[int] | Sequence[Sequence[int]], hashes: Tensor | Sequence[bytes], *, priority: int | None = None, seconds: SupportsFloat | SupportsIndex | None = None) -> int:
        """
        Remembers what full blocks hold; returns how many were new.
        """
    def cached_blocks(self, /, token_ids: Tensor | Sequence[int] | Sequence[Sequence[int]], *, block_size: int, keys: Sequence[Any] | None = None) -> int:
        """
        How many leading blocks of a prompt are cached; hashes no further than that.
        """
    def cached_prefix(self, /, hashes: Tensor | Sequence[bytes]) -> int:
        """
        How many leading hashes are cached.
        """
    def check_invariants(self, /) -> None:
        """
        Proves that the books are right.
        """
    def drain_events(self, /) -> "list[tuple[object, ...]]":
        """
        The events since the last drain, as tuples.
        """
    def drain_events_msgpack(self, /, timestamp: SupportsFloat | SupportsIndex, rank: SupportsIndex | None, hashes: str) -> bytes:
        """
        The events since the last drain, as vLLM's `EventBatch` in `MessagePack`.
        """
    def event_counts(self, /) -> tuple[int, int]:
        """
        Events that wait, and events that were given up.
        """
    def forget(self, /, hashes: Tensor | Sequence[bytes]) -> int:
        """
        Forgets the blocks of these hashes; returns how many.
        """
    def free(self, /, handles: Tensor | Sequence[int] | Sequence[Sequence[int]]) -> None:
        """
        Takes a reference from each block.
        """
    def free_order(self, /) -> Incomplete:
        """
        Ids of all free blocks, in the order in which they will be lent out.
        """
    def ids(self, /, handles: Tensor | Sequence[int] | Sequence[Sequence[int]]) -> Incomplete:
        """
        The id of each block.
        """
    def lookup(self, /, hashes: Tensor | Sequence[bytes]) -> Incomplete:
        """
        Handles of the longest run of leading hashes that are cached, each with a reference more.
        """
    def peek(self, /, hashes: Tensor | Sequence[bytes]) -> tuple[Incomplete, int]:
        """
        Ids of the longest run of leading hashes that are cached, and how many of those blocks nobody holds.
        """
    def pin(self, /, hashes: Tensor | Sequence[bytes], *, seconds: SupportsFloat | SupportsIndex | None = None) -> int:
        """
        Keeps the longest cached prefix, within the budget; returns its length.
        """
    def reset(self, /) -> None:
        """
        Forgets what every block holds.
        """
    def retain(self, /, handles: Tensor | Sequence[int] | Sequence[Sequence[int]]) -> None:
        """
        Adds a reference to each block.
        """
    def state_of(self, /, block_id: int) -> "tuple[int, bytes | None]":
        """
        References of a block, and its hash if it is cached.
        """
    def stats(self, /) -> tuple[int, int, int, int, int, int, int, int, int]:
        """
        Blocks: in all, free, used, cached, pinned; so far: allocated, evicted, asked for, found.
        """
    def unpin(self, /, hashes: Tensor | Sequence[bytes]) -> int:
        """
        Takes pins off; returns how many.
        """

@final
class DiskTier:
    """
    Pages on disk: bounded, checked, shared by processes.
    """
    def __new__(cls, /, path: str | PathLike[str], *, capacity_bytes: int, page_bytes: int, fingerprint: bytes, segment_bytes: int | None = None, writer: int | None = None, checksum: str = "xxh3", compression: str | None = None, deadline: SupportsFloat | SupportsIndex | None = None, write_deadline: SupportsFloat | SupportsIndex | None = None) -> DiskTier: ...
    def close(self, /) -> None:
        """
        Flushes and gives the writer's place back.
        """
    def contains(self, /, keys: Tensor | Sequence[bytes]) -> Incomplete:
        """
        Which of the pages this process knows to be there.
        """
    def flush(self, /) -> None:
        """
        Makes all that was stored before this call durable.
        """
    def load(self, /, keys: Tensor | Sequence[bytes], out: Tensor, *, num_threads: int | None = None) -> Incomplete:
        """
        Loads the pages that are there to the rows of ``out``; returns which those are.
        """
    def load_apart(self, /, keys: Tensor | Sequence[bytes], out: SupportsGetItem[int, Tensor], *, num_threads: int | None = None) -> Incomplete:
        """
        As ``load``, to pages that lie apart.
        """
    def refresh(self, /) -> None:
        """
        Looks for what other processes have stored and removed since.
        """
    def stats(self, /) -> list[tuple[str, int]]:
        """
        What the tier holds and has done, figure by figure.
        """
    def store(self, /, keys: Tensor | Sequence[bytes], pages: Tensor) -> int:
        """
        Stores the pages whose keys are new; returns how many those were.
        """
    def store_apart(self, /, keys: Tensor | Sequence[bytes], pages: SupportsGetItem[int, Tensor]) -> int:
        """
        As ``store``, of pages that lie apart.
        """
    def writer(self, /) -> int:
        """
        Which writer of the directory this is.
        """

@final
class HostPool:
    """
    Memory for pages, in huge pages where the system has them.
    """
    def __new__(cls, /, num_pages: int, page_bytes: int, *, prefault: bool = False) -> HostPool: ...
    def pages(self, /) -> Incomplete:
        """
        The pages, ``uint8[num_pages, page_bytes]``; the array keeps the pool alive.
        """

@final
class TieredCache:
    """
    Pages in host memory in front of pages on disk.
    """
    def __new__(cls, /, disk: DiskTier, *, host_pages: int, queued_writes: int | None = None, queued_prefetches: int | None = None, store_deadline: SupportsFloat | SupportsIndex | None = None) -> TieredCache: ...
    def close(self, /) -> None:
        """
        Writes everything, makes it durable and ends the threads.
        """
    def contains(self, /, keys: Tensor | Sequence[bytes]) -> Incomplete:
        """
        Which pages are in host memory or known to be on disk.
        """
    def flush(self, /) -> None:
        """
        Waits until all that was taken in before is on disk, and durable there.
        """
    def load(self, /, keys: Tensor | Sequence[bytes], out: Tensor, *, num_threads: int | None = None) -> Incomplete:
        """
        Loads pages to the rows of ``out``; returns which were there.
        """
    def prefetch(self, /, keys: Tensor | Sequence[bytes]) -> int:
        """
        Asks for pages to be brought from disk; returns for how many there was a place.
        """
    def stats(self, /) -> list[tuple[str, int]]:
        """
        What the cache holds and has done, figure by figure.
        """
    def store(self, /, keys: Tensor | Sequence[bytes], pages: Tensor) -> Incomplete:
        """
        Takes pages in; returns which.
        """
    def wait_for_prefetches(self, /) -> None:
        """
        Waits until all that was asked for has been brought.
        """

@final
class Trace:
    """
    Recorded requests.
    """
    def __len__(self, /) -> int: ...
    def has_ids(self, /) -> bool:
        """
        Whether prompts have ids.
        """
    @staticmethod
    def parse(data: bytes) -> Trace:
        """
        Reads JSON lines of Mooncake or CSV of Azure.
        """
    def request(self, /, index: int) -> tuple[int, int, int, list[int]] | None:
        """
        Arrival in milliseconds, input tokens, output tokens and ids of a request.
        """
    @staticmethod
    def synthetic(requests: int, system_prompts: int, continued: SupportsFloat | SupportsIndex, rate: SupportsFloat | SupportsIndex, seed: int) -> Trace:
        """
        Makes conversations behind shared system prompts.
        """

def hash_blocks(token_ids: Tensor | Sequence[int] | Sequence[Sequence[int]], *, block_size: int, algorithm: str = "sha256_cbor", parent: bytes | None = None, extra_keys: Sequence[Any] | None = None) -> Incomplete:
    """
    Hashes every full block of `token_ids`, as a chain that begins at `parent`.
    """

def hash_chat(chat: ChatTemplate, variables: "dict[str, object]", *, now: tuple[SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex] | None, trusted: bool, block_size: int, algorithm: str, keys: Sequence[Any]) -> tuple[Incomplete, Incomplete]:
    """
    Renders a conversation, encodes the prompt and hashes its full blocks; `keys` as for `hash_prompt`.
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

def page_copy(sources: SupportsGetItem[int, Tensor], targets: SupportsGetItem[int, Tensor], mapping: Tensor | Sequence[int] | Sequence[Sequence[int]], *, axis: int = ..., num_threads: int | None = None) -> None:
    """
    Copies, in every layer, page ``mapping[i, 0]`` of the source to page ``mapping[i, 1]`` of the target.
    """

def page_gather(sources: SupportsGetItem[int, Tensor], ids: Tensor | Sequence[int] | Sequence[Sequence[int]], targets: SupportsGetItem[int, Tensor], *, axis: int = ..., num_threads: int | None = None) -> None:
    """
    Copies, in every layer, page ``ids[i]`` of the source to page ``i`` of the target.
    """

def page_scatter(sources: SupportsGetItem[int, Tensor], targets: SupportsGetItem[int, Tensor], ids: Tensor | Sequence[int] | Sequence[Sequence[int]], *, axis: int = ..., num_threads: int | None = None) -> None:
    """
    Copies, in every layer, page ``i`` of the source to page ``ids[i]`` of the target.
    """

def replay(trace: Trace, *, num_blocks: int, block_size: int, host_blocks: int, outputs: bool, seconds_per_token: SupportsFloat | SupportsIndex | None, progress: Any | None = None) -> tuple[Incomplete, Incomplete, Incomplete, Incomplete, Incomplete, int, int]:
    """
    Replays a trace; `progress` is called with the number of requests that are done.
    """

def scan_nonfinite(pages: Tensor, *, dtype: str | None = None, num_threads: int | None = None) -> Incomplete:
    """
    Which pages hold a NaN or an infinity.
    """

def scrub(targets: SupportsGetItem[int, Tensor], ids: Tensor | Sequence[int] | Sequence[Sequence[int]], *, axis: int = ...) -> None:
    """
    Writes zeros to the pages ``ids`` of every layer.
    """

def xxh3_128(message: bytes, /) -> bytes:
    """
    128 bits of XXH3, as the algorithms of this family write them.
    """
