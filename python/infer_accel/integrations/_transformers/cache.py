"""transformers' classes for continuous batching, with the block manager's books in place of their own."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.cache_allocators import (
    FULL_ATTENTION,
    FullAttentionCacheAllocator,
)
from transformers.generation.continuous_batching.input_outputs import ContinuousBatchingIOs

from infer_accel.integrations._transformers.books import BatchBooks, Geometry, Portion

if TYPE_CHECKING:
    import numpy.typing as npt
    from transformers.generation.continuous_batching.requests import FutureRequestState, RequestState


class ManagedAllocator(FullAttentionCacheAllocator):
    """transformers' allocator of full attention, which asks the books where there are some."""

    books: BatchBooks | None = None

    def needs_new_blocks(self, request_id: str, past_length: int, query_length: int) -> int:
        """Return how many blocks a request lacks for its next tokens."""
        if self.books is None:
            return int(super().needs_new_blocks(request_id, past_length, query_length))
        return self.books.missing(request_id, past_length, query_length)


class ManagedCache(PagedAttentionCache):
    """transformers' cache of one kind of layers, whose blocks a :class:`~infer_accel.kvcache.BlockManager` lends.

    Memory, layout and what layers do with them are transformers' own.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - transformers'
        super().__init__(*args, **kwargs)
        self._allocator: ManagedAllocator = self.cache_allocators[FULL_ATTENTION]
        self.books = BatchBooks(
            Geometry(
                num_blocks=self.num_sectors * self._allocator.blocks_per_sector,
                block_size=self._allocator.tokens_per_page,
                stride=self._allocator.block_physical_stride,
                # transformers keeps two sectors for what padding reads and writes.
                first_block=2 * self._allocator.blocks_per_sector,
                spare_row=self._allocator.write_trash_index,
            ),
            sharing=self.use_prefix_sharing,
        )
        self._allocator.books = self.books

    # What the scheduler asks ----------------------------------------------------------------------------------

    def can_store_request_tokens(self, state: RequestState, request_len: int, dry_run: bool = False) -> bool:  # noqa: FBT001, FBT002 - transformers'
        """Return whether a request's next tokens have room, and plan them unless this is a dry run."""
        return self.books.plan(state.request_id, state.current_len(), request_len, only_ask=dry_run)

    def count_storable_requests(self, list_blocks_needed: list[dict[str, int]]) -> int:
        """Return how many requests fit one after the other."""
        return self.books.fitting([blocks[FULL_ATTENTION] for blocks in list_blocks_needed])

    def search_prefix_match(self, request_id: str, prompt_ids: list[int]) -> int:
        """Return how many leading tokens of a prompt are cached; the request holds them from then on."""
        return self.books.match(request_id, prompt_ids)

    def compute_free_capacity(self, relative: bool = True) -> int | float:  # noqa: FBT001, FBT002 - transformers'
        """Return how much is free, what is only cached among it: as a share, or in bytes."""
        free = self.books.free_blocks
        return (
            free / self.books.geometry.num_blocks if relative else free * int(self._allocator.bytes_per_block)
        )

    def evict_cached_blocks(self) -> bool:
        """Return False: what is only cached is free already."""
        return False

    def prepare_fork_request(
        self, src_state: RequestState, dst_req_ids: list[str], copy_src_and_dst: dict[str, Any]
    ) -> list[str]:
        """Let requests begin as copies of one; what has to be copied is copied when one of them writes."""
        del copy_src_and_dst
        count = self.books.fork(src_state.request_id, dst_req_ids)
        return dst_req_ids[:count]

    def free_blocks(self, request_id: str, no_cache: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002 - transformers'
        """Take a request's blocks back."""
        self.books.free(request_id)

    def free_all_requests(self, clear_ledgers: bool = False) -> None:  # noqa: FBT001, FBT002 - transformers'
        """Take the blocks of all requests back, and forget what they hold if that is asked."""
        self.books.free_all()
        if clear_ledgers:
            self.books.forget()

    # What a batch asks ----------------------------------------------------------------------------------------

    def count_new_complete_blocks(self, state: RequestState, request_len: int) -> dict[str, int]:  # noqa: ARG002 - transformers'
        """Return nothing: the manager knows which blocks are full."""
        return {}

    def mark_complete_blocks(self, state: RequestState, complete_blocks: dict[str, int]) -> None:  # noqa: ARG002 - transformers'
        """Take note that a request's part of the batch has been computed."""
        self.books.computed(state.request_id)

    def extend_read_and_write_indices(
        self,
        request_id: str,
        past_length: int,
        query_length: int,
        read_index: list[list[int]] | None,
        write_index: list[list[int]],
    ) -> None:
        """Do nothing: :class:`ManagedInputs` writes the rows of the whole batch."""

    def fill_block_table(
        self, request_id: str, past_length: int, query_length: int, block_table: torch.Tensor
    ) -> None:
        """Do nothing: :class:`ManagedInputs` writes the tables of the whole batch."""

    def copy_blocks(self, pairs: npt.NDArray[np.int64]) -> None:
        """Copy whole blocks."""
        self._allocator.copy_blocks(pairs[:, 0].tolist(), pairs[:, 1].tolist())

    @property
    def pages_per_block(self) -> int:
        """What a block counts in the tables of kernels that read them."""
        return int(self._allocator.block_physical_stride) // int(self._allocator.tokens_per_page)


class ManagedInputs(ContinuousBatchingIOs):
    """transformers' inputs of a batch, whose rows and tables are written for all requests at once."""

    def prepare_batch_tensors(  # noqa: PLR0917 - transformers'
        self,
        requests_in_batch: list[FutureRequestState],
        logits_processors: object,
        use_decode_fast_path: bool,  # noqa: FBT001 - transformers'
        num_q_tokens: int,
        max_kv_read: int,
        use_padding: bool,  # noqa: FBT001 - transformers'
    ) -> None:
        """Give every token its place, and fill the tensors of the next forward pass."""
        cache = self.cache
        if not isinstance(cache, ManagedCache):
            super().prepare_batch_tensors(
                requests_in_batch,
                logits_processors,
                use_decode_fast_path,
                num_q_tokens,
                max_kv_read,
                use_padding,
            )
            return
        states = [future.state for future in requests_in_batch]
        portions = [
            Portion(state.request_id, state.tokens_to_process, state.position_offset) for state in states
        ]
        pairs = cache.books.begin(portions)
        if len(pairs):
            with self._stream():
                cache.copy_blocks(pairs)
        super().prepare_batch_tensors(
            requests_in_batch, logits_processors, use_decode_fast_path, num_q_tokens, max_kv_read, use_padding
        )
        if self.use_block_table:
            self._fill_tables(cache)
            return
        self.true_write_sizes[0] = _fill(self.write_index_storage[0], cache.books.write_rows, num_q_tokens)
        if self.max_kv_read:
            count = cache.books.num_tokens
            self.true_read_sizes[0] = _fill(self.read_index_storage[0], cache.books.read_rows, count)
        if use_padding:
            allocator = cache.cache_allocators[FULL_ATTENTION]
            self.write_index_storage[0, self.true_write_sizes[0] : num_q_tokens] = allocator.write_trash_index
            end = self.max_kv_read + num_q_tokens
            self.read_index_storage[0, self.true_read_sizes[0] : end] = allocator.read_trash_index

    def _reset_read_and_write_indices(self, q_len: int, kv_len: int) -> None:
        """Do nothing for a managed cache: what of the indices is read is written in each step."""
        if not isinstance(self.cache, ManagedCache):
            super()._reset_read_and_write_indices(q_len, kv_len)

    def _fill_tables(self, cache: ManagedCache) -> None:
        tables = cache.books.tables()
        width = max(len(table) for table in tables)
        rows = np.full((len(tables), width), -1, np.int32)
        for row, table in zip(rows, tables, strict=True):
            row[: len(table)] = table * cache.pages_per_block
        self.block_table[0, : len(tables), :width] = torch.from_numpy(rows)

    def _stream(self) -> contextlib.AbstractContextManager[object]:
        if self.compute_stream is None:
            return contextlib.nullcontext()
        stream: contextlib.AbstractContextManager[object] = torch.get_device_module(self.device).stream(
            self.compute_stream
        )
        return stream


def _fill(storage: torch.Tensor, write: Any, most: int) -> int:  # noqa: ANN401 - one of two methods
    """Have rows written to a tensor, by way of the host's memory if it lies elsewhere; return their number."""
    if storage.device.type == "cpu":
        return int(write(storage.numpy()))
    rows = np.empty(most, np.int64)
    count = int(write(rows))
    storage[:count].copy_(torch.from_numpy(rows[:count]))
    return count
