"""What a pool stored and removed, as objects: the events of vLLM by their names."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from infer_accel.kvcache._hash import ExtraKey


@dataclass(frozen=True, slots=True)
class BlockStored:
    """Blocks that can be found from now on."""

    #: Their hashes, in the order of their chain.
    block_hashes: tuple[bytes, ...]
    #: The hash of the block before them; ``None`` at the start of a prompt, and where the caller named none.
    parent_block_hash: bytes | None
    #: Their tokens; empty where the pool was given hashes only.
    token_ids: tuple[int, ...]
    #: Tokens in a block; 0 where the pool was given hashes only.
    block_size: int
    #: Name of the LoRA adapter.
    lora_name: str | None
    #: For each block, what else its hash contains, without the tags.
    extra_keys: tuple[tuple[ExtraKey, ...] | None, ...]
    #: The cache group.
    group_idx: int
    #: ``"full_attention"`` or ``"sliding_window"``; ``None`` where the pool was given hashes only.
    kv_cache_spec_kind: str | None
    #: Tokens of the window.
    kv_cache_spec_sliding_window: int | None


@dataclass(frozen=True, slots=True)
class BlockRemoved:
    """Blocks that cannot be found any more."""

    #: Their hashes.
    block_hashes: tuple[bytes, ...]
    #: The cache group.
    group_idx: int


@dataclass(frozen=True, slots=True)
class AllBlocksCleared:
    """No block can be found any more; or so many events were lost that it is best to believe so."""


#: Whatever a pool tells.
Event: TypeAlias = BlockStored | BlockRemoved | AllBlocksCleared


def event_of(fields: Sequence[Any]) -> Event:
    """Return the object for a tuple of the native core."""
    if fields[0] == "cleared":
        return AllBlocksCleared()
    if fields[0] == "removed":
        return BlockRemoved(tuple(fields[1]), fields[2])
    _, hashes, parent, tokens, block_size, group, kind, window, adapter, keys = fields
    name = _Reader(adapter).item() if adapter else None
    return BlockStored(
        tuple(hashes), parent, tuple(tokens), block_size, name, _Reader(keys).item(), group, kind, window
    )


class _Reader:
    """Reads the items of MessagePack that extra keys are made of."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def item(self) -> Any:  # noqa: ANN401 - a key holds many things
        """Return the next item."""
        tag = self._take(1)[0]
        if tag < 0x80:
            return tag
        if tag >= 0xE0:
            return tag - 0x100
        if 0x90 <= tag < 0xA0:
            return self._items(tag & 0x0F)
        if 0xA0 <= tag < 0xC0:
            return self._take(tag & 0x1F).decode()
        return _CONSTANTS[tag] if tag in _CONSTANTS else _LONG[tag](self)

    def _take(self, count: int) -> bytes:
        self._at += count
        return self._data[self._at - count : self._at]

    def _items(self, count: int) -> tuple[Any, ...]:
        return tuple(self.item() for _ in range(count))

    def text(self, width: int) -> str:
        """Return a text whose length takes `width` bytes."""
        return self.content(width).decode()

    def content(self, width: int) -> bytes:
        """Return bytes whose length takes `width` bytes."""
        return self._take(self.number(width))

    def several(self, width: int) -> tuple[Any, ...]:
        """Return the items of an array whose length takes `width` bytes."""
        return self._items(self.number(width))

    def number(self, width: int) -> int:
        """Return a number of `width` bytes that is not negative."""
        return int.from_bytes(self._take(width), "big")

    def signed(self, width: int) -> int:
        """Return a number of `width` bytes."""
        return int.from_bytes(self._take(width), "big", signed=True)


#: Readers of the longer forms: the first tag, and the width of what follows each.
_LONG: dict[int, Callable[[_Reader], object]] = {
    tag + step: partial(read, width=width)
    for tag, read, widths in (
        (0xC4, _Reader.content, (1, 2, 4)),
        (0xCC, _Reader.number, (1, 2, 4, 8)),
        (0xD0, _Reader.signed, (1, 2, 4, 8)),
        (0xD9, _Reader.text, (1, 2, 4)),
        (0xDC, _Reader.several, (2, 4)),
    )
    for step, width in enumerate(widths)
}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
