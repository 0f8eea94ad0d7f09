"""The specification of ``infer_accel.kvcache``: hashlib, dictionaries and one page at a time.

It has the names and signatures of the native module, so that either can serve the typed face.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
from collections import OrderedDict
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from infer_accel.errors import (
    ArgumentError,
    DTypeError,
    GradientError,
    IdError,
    InternalError,
    OutOfBlocksError,
    OverlapError,
    ReadOnlyError,
    ShapeError,
    StaleBlockError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from infer_accel._typing import Tensor

__all__ = ["BlockPool", "hash_blocks", "none_hash", "page_copy", "page_gather", "page_scatter"]

Key: TypeAlias = "bool | int | str | bytes | Sequence[Key] | None"

_DIGEST_BYTES = 32
_MAX_BLOCKS = 1 << 27
_MAX_REFERENCES = (1 << 31) - 1


# --- Hashing ----------------------------------------------------------------------------------------------


def hash_blocks(
    token_ids: Tensor | Sequence[int],
    *,
    block_size: int,
    algorithm: str = "sha256_cbor",
    parent: bytes | None = None,
    extra_keys: Sequence[tuple[Key, ...] | None] | None = None,
) -> npt.NDArray[np.uint8]:
    """Hash every full block of `token_ids`, as a chain that begins at `parent`."""
    ids = _integers(token_ids, "dtype.ids")
    if ids.ndim != 1:
        raise ShapeError(f"token_ids of shape {ids.shape} came; pass one dimension", code="shape.token_ids")
    last = none_hash(algorithm) if parent is None else parent
    for position, value in enumerate(ids.tolist()):
        if not 0 <= value < 1 << 32:
            raise IdError(f"token id {value} came at position {position}", code="id.token")
    if block_size < 0:
        raise ArgumentError(f"{block_size} came as a count", code="argument.count")
    if block_size == 0:
        raise ArgumentError("block_size=0 came; a block holds 1 token or more", code="argument.block_size")
    if len(last) != _DIGEST_BYTES:
        raise ShapeError(f"a parent of {len(last)} bytes came, not {_DIGEST_BYTES}", code="shape.parent")
    num_blocks = len(ids) // block_size
    if extra_keys is not None and len(extra_keys) != num_blocks:
        message = f"{len(extra_keys)} extra_keys came for {num_blocks} full blocks"
        raise ShapeError(message, code="shape.extra_keys")
    hashes = np.empty((num_blocks, _DIGEST_BYTES), np.uint8)
    for block in range(num_blocks):
        tokens = tuple(ids[block * block_size : (block + 1) * block_size].tolist())
        keys = None if extra_keys is None else extra_keys[block]
        last = hashlib.sha256(_serialise(algorithm, (last, tokens, keys))).digest()
        hashes[block] = np.frombuffer(last, np.uint8)
    return hashes


def none_hash(algorithm: str = "sha256_cbor") -> bytes:
    """Return the parent of a first block, vLLM's ``NONE_HASH``; depends on ``PYTHONHASHSEED``."""
    seed = os.environ.get("PYTHONHASHSEED", "vllm-none-hash")
    return hashlib.sha256(_serialise(algorithm, seed)).digest()


def _serialise(algorithm: str, value: Key) -> bytes:
    if algorithm == "sha256_cbor":
        return _cbor(value)
    if algorithm == "sha256":
        return pickle.dumps(value, protocol=5)
    message = f"algorithm={algorithm!r} came; allowed are 'sha256_cbor' and 'sha256'"
    raise ArgumentError(message, code="argument.algorithm")


def _cbor(value: Key) -> bytes:
    """Return canonical CBOR (RFC 8949, section 4.2)."""
    if value is None:
        return b"\xf6"
    if isinstance(value, bool):
        return b"\xf5" if value else b"\xf4"
    if isinstance(value, int):
        return _cbor_head(0, value) if value >= 0 else _cbor_head(1, -1 - value)
    if isinstance(value, bytes):
        return _cbor_head(2, len(value)) + value
    if isinstance(value, str):
        text = value.encode()
        return _cbor_head(3, len(text)) + text
    if isinstance(value, tuple | list):
        return _cbor_head(4, len(value)) + b"".join(map(_cbor, value))
    raise ArgumentError(f"{value!r} came in extra_keys", code="argument.extra_keys")


def _cbor_head(major: int, argument: int) -> bytes:
    if argument < 24:
        return bytes([major << 5 | argument])
    for tag, width in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if argument < 1 << 8 * width:
            return bytes([major << 5 | tag]) + argument.to_bytes(width, "big")
    raise ArgumentError("an integer beyond 64 bits came in extra_keys", code="argument.extra_keys_integer")


# --- Block pool -------------------------------------------------------------------------------------------


class BlockPool:
    """Blocks of a KV cache: lent out, counted, remembered by hash, evicted."""

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 0:
            raise ArgumentError(f"{num_blocks} came as a count", code="argument.count")
        if not 2 <= num_blocks <= _MAX_BLOCKS:
            raise ArgumentError(f"num_blocks={num_blocks} came", code="argument.num_blocks")
        self._num_blocks = num_blocks
        self._free = OrderedDict.fromkeys(range(1, num_blocks))
        self._references = dict.fromkeys(range(num_blocks), 0)
        self._generations = dict.fromkeys(range(num_blocks), 0)
        self._hash_of: dict[int, bytes] = {}
        self._blocks_of: dict[bytes, dict[int, None]] = {}
        self._counts = {"allocations": 0, "evictions": 0, "queries": 0, "hits": 0}

    def alloc(self, count: int) -> npt.NDArray[np.int64]:
        """Lend `count` blocks and return their handles."""
        if count < 0:
            raise ArgumentError(f"{count} came as a count", code="argument.count")
        if count > len(self._free):
            message = f"{count} blocks are needed and {len(self._free)} are free"
            raise OutOfBlocksError(message, needed=count, free=len(self._free), code="out_of_blocks.all")
        ids = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in ids:
            self._references[block] = 1
            self._forget(block)
        self._counts["allocations"] += count
        return self._handles(ids)

    def retain(self, handles: Tensor | Sequence[int]) -> None:
        """Add a reference to each block."""
        ids: list[int] = []
        for handle in _flat(handles):
            ids.append(self._live_one(handle))
            if self._references[ids[-1]] + ids.count(ids[-1]) > _MAX_REFERENCES:
                raise ArgumentError(f"block {ids[-1]} has too many references", code="argument.references")
        for block in filter(None, ids):
            self._references[block] += 1

    def free(self, handles: Tensor | Sequence[int]) -> None:
        """Take a reference from each block."""
        ids: list[int] = []
        for handle in _flat(handles):
            ids.append(self._live_one(handle))
            if ids[-1] and ids.count(ids[-1]) > self._references[ids[-1]]:
                raise StaleBlockError(
                    f"block {ids[-1]} is freed more often than held", code="stale_block.handle"
                )
        without_hash: list[int] = []
        with_hash: list[int] = []
        for block in filter(None, ids):
            self._references[block] -= 1
            if self._references[block] == 0:
                self._generations[block] = (self._generations[block] + 1) % (1 << 31)
                (with_hash if block in self._hash_of else without_hash).append(block)
        self._free.update(dict.fromkeys(with_hash))
        for block in reversed(without_hash):
            self._free[block] = None
            self._free.move_to_end(block, last=False)

    def ids(self, handles: Tensor | Sequence[int]) -> npt.NDArray[np.int32]:
        """Return the id of each block."""
        return np.array(self._live(handles), np.int32)

    def cache(self, handles: Tensor | Sequence[int], hashes: Tensor | Sequence[bytes]) -> int:
        """Remember what full blocks hold; return how many were new."""
        flat, rows = _flat(handles), _rows(hashes)
        if len(flat) != len(rows):
            raise ShapeError(f"{len(rows)} hashes came for {len(flat)} handles", code="shape.hash_count")
        new: dict[int, bytes] = {}
        for handle, row in zip(flat, rows, strict=True):
            block = self._live_one(handle)
            if block == 0:
                raise IdError("the null block is never cached", code="id.null_block")
            if self._hash_of.get(block, new.setdefault(block, row)) != row:
                raise ArgumentError(f"block {block} has another hash", code="argument.hash_conflict")
        new = {block: row for block, row in new.items() if block not in self._hash_of}
        for block, row in new.items():
            self._hash_of[block] = row
            self._blocks_of.setdefault(row, {})[block] = None
        return len(new)

    def lookup(self, hashes: Tensor | Sequence[bytes]) -> npt.NDArray[np.int64]:
        """Return handles of the longest run of leading hashes that are cached, each with a reference more."""
        rows = _rows(hashes)
        ids = self._prefix(rows)
        for block in ids:
            self._free.pop(block, None)
            self._references[block] += 1
        self._counts["queries"] += len(rows)
        self._counts["hits"] += len(ids)
        return self._handles(ids)

    def cached_prefix(self, hashes: Tensor | Sequence[bytes]) -> int:
        """Return how many leading hashes are cached."""
        return len(self._prefix(_rows(hashes)))

    def stats(self) -> tuple[int, int, int, int, int, int, int, int]:
        """Return blocks: in all, free, used, cached; so far: allocated, evicted, asked for, found."""
        used = self._num_blocks - 1 - len(self._free)
        counts = self._counts
        return (
            self._num_blocks,
            len(self._free),
            used,
            len(self._hash_of),
            counts["allocations"],
            counts["evictions"],
            counts["queries"],
            counts["hits"],
        )

    def check_invariants(self) -> None:
        """Prove that the books are right."""
        for block in range(1, self._num_blocks):
            if (block in self._free) != (self._references[block] == 0):
                raise InternalError(f"block {block} is lost", code="internal.invariant")
        indexed = {block: row for row, blocks in self._blocks_of.items() for block in blocks}
        if indexed != self._hash_of:
            raise InternalError("index and blocks disagree", code="internal.invariant")

    def _handles(self, ids: Sequence[int]) -> npt.NDArray[np.int64]:
        return np.array([self._generations[block] << 32 | block for block in ids], np.int64)

    def _live(self, handles: Tensor | Sequence[int]) -> list[int]:
        return [self._live_one(handle) for handle in _flat(handles)]

    def _live_one(self, handle: int) -> int:
        block, generation = handle & 0xFFFF_FFFF, handle >> 32
        if handle == 0:
            return 0
        if handle < 0 or block >= self._num_blocks:
            raise IdError(f"handle {handle} names block {block}", code="id.block")
        if self._references[block] == 0 or self._generations[block] != generation:
            raise StaleBlockError(f"handle {handle} is stale", code="stale_block.handle")
        return block

    def _prefix(self, rows: Iterable[bytes]) -> list[int]:
        ids = []
        for row in rows:
            if row not in self._blocks_of:
                break
            ids.append(next(iter(self._blocks_of[row])))
        return ids

    def _forget(self, block: int) -> None:
        row = self._hash_of.pop(block, None)
        if row is not None:
            self._counts["evictions"] += 1
            del self._blocks_of[row][block]
            if not self._blocks_of[row]:
                del self._blocks_of[row]


# --- Pages ------------------------------------------------------------------------------------------------


def page_copy(
    sources: Sequence[Tensor],
    targets: Sequence[Tensor],
    mapping: Tensor | Sequence[Sequence[int]],
    *,
    axis: int = 0,
    num_threads: int | None = None,
) -> None:
    """Copy, in every layer, page ``mapping[i, 0]`` of the source to page ``mapping[i, 1]`` of the target."""
    rows = _integers(mapping, "dtype.ids")
    if rows.shape != (0,) and (rows.ndim != 2 or rows.shape[1] != 2):
        raise ShapeError(f"a mapping of shape {rows.shape} came", code="shape.mapping")
    _copy(sources, targets, rows.reshape(-1, 2).tolist(), axis, num_threads)


def page_gather(
    sources: Sequence[Tensor],
    ids: Tensor | Sequence[int],
    targets: Sequence[Tensor],
    *,
    axis: int = 0,
    num_threads: int | None = None,
) -> None:
    """Copy, in every layer, page ``ids[i]`` of the source to page ``i`` of the target."""
    flat = _flat(ids, "shape.ids")
    _check_packed(targets, len(flat), axis)
    _copy(sources, targets, [[page, packed] for packed, page in enumerate(flat)], axis, num_threads)


def page_scatter(
    sources: Sequence[Tensor],
    targets: Sequence[Tensor],
    ids: Tensor | Sequence[int],
    *,
    axis: int = 0,
    num_threads: int | None = None,
) -> None:
    """Copy, in every layer, page ``i`` of the source to page ``ids[i]`` of the target."""
    flat = _flat(ids, "shape.ids")
    _check_packed(sources, len(flat), axis)
    _copy(sources, targets, [[packed, page] for packed, page in enumerate(flat)], axis, num_threads)


def _check_packed(layers: Sequence[Tensor], count: int, axis: int) -> None:
    for layer in layers:
        shape = tuple(layer.shape)
        if -len(shape) <= axis < len(shape) and shape[axis] != count:
            raise ShapeError(f"{shape[axis]} pages came for {count} ids", code="shape.packed_pages")


def _copy(
    sources: Sequence[Tensor],
    targets: Sequence[Tensor],
    rows: list[list[int]],
    axis: int,
    threads: int | None,
) -> None:
    if threads is not None and threads < 1:
        code = "argument.num_threads" if threads == 0 else "argument.count"
        raise ArgumentError(f"num_threads={threads} came", code=code)
    layers = [_array(source) for source in sources], [_array(target, writable=True) for target in targets]
    if len(layers[0]) != len(layers[1]):
        raise ShapeError(f"{len(sources)} layers came for {len(targets)}", code="shape.layers")
    if axis < 0 and layers[0]:
        axis += layers[0][0].ndim
    pairs = list(zip(*layers, strict=True))
    for source, target in pairs:
        _check_layer(source, target, axis)
    moved = [(np.moveaxis(source, axis, 0), np.moveaxis(target, axis, 0)) for source, target in pairs]
    _check_rows(rows, *(min((len(pair[side]) for pair in moved), default=0) for side in (0, 1)))
    _check_overlap(moved, rows)
    snapshots = [[source[row[0]].copy() for row in rows] for source, _ in moved]
    for (_, target), pages in zip(moved, snapshots, strict=True):
        for row, page in zip(rows, pages, strict=True):
            target[row[1]] = page


def _check_layer(source: npt.NDArray[np.generic], target: npt.NDArray[np.generic], axis: int) -> None:
    for array in (source, target):
        if not 0 <= axis < array.ndim:
            raise ArgumentError(f"axis={axis} came for {array.ndim} dimensions", code="argument.axis")
    if source.dtype != target.dtype:
        raise DTypeError(f"{source.dtype} and {target.dtype} came", code="dtype.pages")
    if np.delete(source.shape, axis).tolist() != np.delete(target.shape, axis).tolist():
        raise ShapeError(f"pages of {source.shape} and {target.shape} came", code="shape.pages")


def _check_rows(rows: list[list[int]], source_pages: int, target_pages: int) -> None:
    written = set()
    for row, (source, target) in enumerate(rows):
        if not (0 <= source < source_pages and 0 <= target < target_pages):
            raise IdError(f"row {row} names pages {source} and {target}", code="id.page")
        if target in written:
            raise IdError(f"row {row} names target page {target} again", code="id.repeated_target")
        written.add(target)


def _check_overlap(
    layers: list[tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]]], rows: list[list[int]]
) -> None:
    """Refuse a byte that is written twice, or read and written."""
    for number, (source, target) in enumerate(layers):
        same = (
            source.__array_interface__["data"] == target.__array_interface__["data"]
            and source.strides == target.strides
            and source.shape == target.shape
        )
        if same and source.size and {row[0] for row in rows} & {row[1] for row in rows}:
            raise OverlapError("a page is read and written", code="overlap.source_is_target")
        others = [other for other, _ in layers] + [other for _, other in layers[:number]]
        for other in others:
            if not np.may_share_memory(target, other):
                continue
            side = 0 if any(other is array for array, _ in layers) else 1
            pages = [target[row[1]] for row in rows], [other[row[side]] for row in rows]
            if any(np.shares_memory(written, page) for written in pages[0] for page in pages[1]):
                raise OverlapError("the pages to be written share memory with others", code="overlap.pages")


# --- Arguments --------------------------------------------------------------------------------------------


def _integers(values: object, code: str) -> npt.NDArray[np.int64]:
    array = np.asarray(values)
    if array.size == 0:
        return array.astype(np.int64)
    if array.dtype.kind == "O" and array.ndim == 1 and all(isinstance(value, int) for value in array.flat):
        raise IdError("an id beyond 64 bits came", code="id.range")
    if array.dtype.kind not in "iu":
        raise DTypeError(f"{array.dtype} came where ids are expected", code=code)
    if array.dtype.kind == "u" and int(array.max()) >= 1 << 63:
        raise IdError("an id above 2^63 - 1 came", code="id.range")
    return array.astype(np.int64)


def _flat(values: object, code: str = "shape.handles") -> list[int]:
    array = _integers(values, "dtype.ids")
    if array.ndim != 1:
        raise ShapeError(f"a table of shape {array.shape} came; pass one dimension", code=code)
    flat: list[int] = array.tolist()
    return flat


def _rows(hashes: object) -> list[bytes]:
    if isinstance(hashes, list | tuple):
        if not all(isinstance(row, bytes) for row in hashes) or len({len(row) for row in hashes}) > 1:
            raise DTypeError("something else than hashes of one length came", code="dtype.bytes")
        table = np.frombuffer(b"".join(hashes), np.uint8).reshape(len(hashes), -1) if hashes else np.empty(0)
    else:
        table = np.asarray(hashes)
        if table.dtype != np.uint8:
            raise DTypeError(f"{table.dtype} came where bytes are expected", code="dtype.bytes")
    if table.shape != (0,) and table.shape[1:] != (_DIGEST_BYTES,):
        raise ShapeError(f"hashes of shape {table.shape} came", code="shape.hashes")
    return [row.tobytes() for row in table]


def _array(tensor: object, *, writable: bool = False) -> npt.NDArray[np.generic]:
    """Return the tensor's memory as an array of numpy, in integers where numpy has no such floats."""
    array = tensor
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(tensor, torch.Tensor):
        if tensor.requires_grad and torch.is_grad_enabled():
            raise GradientError("a tensor with requires_grad=True came", code="gradient.recorded")
        integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        array = tensor.detach().view(integers[tensor.element_size()]).numpy()
    if not isinstance(array, np.ndarray):
        message = f"an object of type {type(tensor).__name__} came"
        raise DTypeError(message, code="dtype.not_a_tensor")
    if writable and not array.flags.writeable:
        raise ReadOnlyError("a read-only tensor came as a target", code="read_only")
    return array
