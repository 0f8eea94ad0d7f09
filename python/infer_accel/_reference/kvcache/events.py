"""Events by lists, and MessagePack by a few lines."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, TypeAlias

from infer_accel.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from infer_accel._reference.kvcache.hashing import Key

    Item: TypeAlias = "bool | int | float | str | bytes | Sequence[Item] | Mapping[str, Item] | None"


class EventLog:
    """The events since the last drain. It has no bound: the bound of the native log counts its own bytes."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.events: list[tuple[Any, ...]] = []
        self.lost = 0

    def stored(
        self,
        rows: Sequence[bytes],
        *,
        parent: bytes | None = None,
        tokens: Sequence[int] = (),
        block_size: int = 0,
        group: int = 0,
        kind: tuple[str | None, int | None] = (None, None),
        keys: Sequence[tuple[Key, ...] | None] = (),
    ) -> None:
        """Note blocks that can be found from now on."""
        listed = list(keys) if keys else [None] * len(rows)
        adapter = next(filter(None, map(_adapter, listed[0] or ())), None)
        untagged = [None if key is None else tuple(map(_untagged, key)) for key in listed]
        named = b"" if adapter is None else msgpack(adapter)
        self.events.append(
            ("stored", list(rows), parent, list(tokens), block_size, group, *kind, named, msgpack(untagged))
        )

    def removed(self, row: bytes, group: int) -> None:
        """Note a block that cannot be found any more."""
        if self.events and self.events[-1][0] == "removed" and self.events[-1][2] == group:
            self.events[-1][1].append(row)
        else:
            self.events.append(("removed", [row], group))

    def cleared(self) -> None:
        """Note that nothing can be found any more."""
        self.events = [("cleared",)]

    def drain(self) -> list[tuple[Any, ...]]:
        """Return the events and forget them."""
        events, self.events = self.events, []
        return events

    def drain_msgpack(self, timestamp: float, rank: int | None, hashes: str) -> bytes:
        """Return the events as vLLM's EventBatch and forget them."""
        if hashes not in {"integer", "bytes"}:
            raise ArgumentError(f"hashes={hashes!r} came", code="argument.hash_form")
        events = self.drain()
        whole = msgpack_head(0x90, 0xDC, 3) + struct.pack(">Bd", 0xCB, timestamp)
        whole += msgpack_head(0x90, 0xDC, len(events))
        return whole + b"".join(_event(event, hashes) for event in events) + msgpack(rank)


def _event(event: tuple[Any, ...], form: str) -> bytes:
    def shown(row: bytes | None) -> Item:
        return row if form == "bytes" or row is None else int.from_bytes(row[-8:], "big")

    if event[0] == "cleared":
        return msgpack({"type": "AllBlocksCleared"})
    rows = [shown(row) for row in event[1]]
    if event[0] == "removed":
        return msgpack({"type": "BlockRemoved", "block_hashes": rows, "medium": "GPU", "group_idx": event[2]})
    _, _, parent, tokens, block_size, group, kind, window, adapter, keys = event
    fields: list[tuple[str, bytes]] = [
        ("type", msgpack("BlockStored")),
        ("block_hashes", msgpack(rows)),
        ("parent_block_hash", msgpack(shown(parent))),
        ("token_ids", msgpack(tokens)),
        ("block_size", msgpack(block_size)),
        ("lora_id", msgpack(None)),
        ("medium", msgpack("GPU")),
        ("lora_name", adapter or msgpack(None)),
        ("extra_keys", keys),
        ("group_idx", msgpack(group)),
    ]
    if kind is not None:
        fields.append(("kv_cache_spec_kind", msgpack(kind)))
        if window is not None:
            fields.append(("kv_cache_spec_sliding_window", msgpack(window)))
    head = bytes([0xDE, 0, len(fields)])
    return head + b"".join(msgpack(name) + value for name, value in fields)


def _adapter(key: Key) -> str | None:
    if isinstance(key, tuple | list) and len(key) == 3 and key[0] == "lora":
        return str(key[1])
    return None


def _untagged(key: Any) -> Item:  # noqa: ANN401 - whatever a key holds
    if isinstance(key, tuple | list) and len(key) > 1 and isinstance(key[0], str):
        return tuple(key[1:]) if key[0] == "mm" else key[1]
    item: Item = key
    return item


def msgpack(value: Item) -> bytes:
    """Return a value in MessagePack, each item in its shortest form."""
    if value is None or isinstance(value, bool):
        whole = {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    elif isinstance(value, int):
        whole = _integer(value)
    elif isinstance(value, float):
        whole = struct.pack(">Bd", 0xCB, value)
    elif isinstance(value, str):
        text = value.encode()
        whole = (bytes([0xA0 | len(text)]) if len(text) < 32 else _length(len(text), 0xD9)) + text
    elif isinstance(value, bytes):
        whole = _length(len(value), 0xC4) + value
    elif isinstance(value, dict):
        items = b"".join(msgpack(name) + msgpack(item) for name, item in value.items())
        whole = msgpack_head(0x80, 0xDE, len(value)) + items
    else:
        whole = msgpack_head(0x90, 0xDC, len(value)) + b"".join(map(msgpack, value))
    return whole


def msgpack_head(short: int, long: int, length: int) -> bytes:
    """Return the head of an array or a map."""
    if length < 16:
        return bytes([short | length])
    return struct.pack(">BH", long, length) if length < 1 << 16 else struct.pack(">BI", long + 1, length)


def _length(length: int, tag: int) -> bytes:
    for step, code in enumerate("BHI"):
        if length < 1 << (8 << step):
            return struct.pack(f">B{code}", tag + step, length)
    raise ArgumentError(f"an item of {length} bytes came", code="argument.extra_keys")


def _integer(value: int) -> bytes:
    if -32 <= value < 128:
        return struct.pack(">b", value)
    codes = "BHIQ" if value >= 0 else "bhiq"
    first = 0xCC if value >= 0 else 0xD0
    for step, code in enumerate(codes):
        bits = 8 << step if value >= 0 else (8 << step) - 1
        if value.bit_length() <= bits and value >= -(1 << bits):
            return struct.pack(f">B{code}", first + step, value)
    raise ArgumentError(f"{value} came in an event", code="argument.extra_keys_integer")
