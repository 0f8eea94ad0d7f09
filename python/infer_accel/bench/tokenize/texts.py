"""Rows of texts: long and short ones, of several kinds, unseen, cold and hot, alone and in batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from infer_accel.bench import data
from infer_accel.bench.tokenize import shapes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from infer_accel.bench.harness import Case
    from infer_accel.bench.tokenize.contenders import Field

__all__ = ["Corpus", "cases", "cold"]

_PART_CHARACTERS = 50_000
_MESSAGE_CHARACTERS = 1024
_BATCH = 256
#: Characters that warm everyone, of code.
_CODE_WARM = 400_000
_CODE_END = 3_400_000
#: What a new instance gets first.
_COLD_CHARACTERS = 1_000_000
#: What comes again and again.
_HOT_CHARACTERS = 200_000
#: Characters of each language in a part, so that all parts are alike.
_LANGUAGE_SLICE = 1_000
_CHAT_CHARACTERS = 12_500


@dataclass(frozen=True)
class Corpus:
    """What everybody meets before anything is timed, and what nobody has met."""

    warm: str
    #: English.
    unseen: str
    code: list[str]
    #: Parts of equal shares of every language; none where the system has no text in many languages.
    multilingual: list[str]
    chats: list[str]

    @classmethod
    def collect(cls) -> Corpus:
        """Gather the texts of this machine."""
        prose, code, languages = data.english(), data.code(), data.languages()
        half = len(prose) // 2
        # A server has met a lot of text, none of it this one: half is for warming, half is unseen.
        warm = [*(text[: len(text) // 2] for text in languages.values()), code[:_CODE_WARM], prose[:half]]
        halves = [text[len(text) // 2 :] for text in languages.values()]
        parts = min(map(len, halves), default=0) // _LANGUAGE_SLICE
        slices = [
            "\n".join(text[at * _LANGUAGE_SLICE : (at + 1) * _LANGUAGE_SLICE] for text in halves)
            for at in range(parts)
        ]
        chats = shapes.cut("".join(data.chats()), _CHAT_CHARACTERS)
        return cls(
            "\n".join(warm),
            prose[half:],
            shapes.cut(code[_CODE_WARM:_CODE_END], _PART_CHARACTERS),
            slices,
            chats,
        )


def cases(name: str, entrants: Field, corpus: Corpus, *, every: bool) -> Iterator[Case]:
    """Yield the rows of one family; where not `every`, one row alone."""
    for way in entrants.ways:
        whole = corpus.warm[: int(len(corpus.warm) * way.share)]
        for call in (way.encode, way.count, way.encode_list):
            if call is not None:
                call(whole)
    unseen = shapes.cut(corpus.unseen, _PART_CHARACTERS)
    # Each row has parts of its own: what one row has shown to a contender, the next must not show again.
    yield shapes.long(f"count unseen English, {name}", "count", unseen[::2], entrants)
    if not every:
        return
    yield shapes.long(f"encode unseen English to an array, {name}", "encode", unseen[1::2], entrants)
    yield shapes.long(f"count unseen code, {name}", "count", corpus.code[::2], entrants)
    yield shapes.long(f"encode unseen code to an array, {name}", "encode", corpus.code[1::2], entrants)
    kinds = {"multilingual text": corpus.multilingual, "chats": corpus.chats}
    for kind, parts in kinds.items():
        if len(parts) >= 2 * _FEWEST_PARTS:
            yield shapes.long(f"count unseen {kind}, {name}", "count", parts[::2], entrants)
            yield shapes.long(f"encode unseen {kind} to an array, {name}", "encode", parts[1::2], entrants)
    hot = [corpus.unseen[:_HOT_CHARACTERS]]
    yield shapes.long(f"encode hot English to an array, {name}", "encode", hot, entrants, repeated=True)
    yield from _messages(name, entrants, shapes.cut(corpus.unseen, _MESSAGE_CHARACTERS))
    yield from _chat_batches(name, entrants, shapes.cut("".join(corpus.chats), _MESSAGE_CHARACTERS))


#: Below this many calls a median says little.
_FEWEST_PARTS = 8


def cold(name: str, entrants: Field, corpus: Corpus) -> Case:
    """Return the row of the first text that a new instance gets."""
    return shapes.cold(f"encode cold English to an array, {name}", corpus.unseen[:_COLD_CHARACTERS], entrants)


def _messages(name: str, entrants: Field, messages: list[str]) -> Iterator[Case]:
    yield shapes.short(f"count 1 KB, {name}", "count", messages, entrants)
    yield shapes.short(f"encode 1 KB to an array, {name}", "encode", messages, entrants)
    yield shapes.short(f"encode 1 KB to a list, {name}", "encode_list", messages, entrants)
    size, batches = f"{_BATCH} × 1 KB, {name}, 2 threads", _batches(messages)
    yield shapes.batch(f"count a batch of {size}", "count_batch", batches, entrants)
    yield shapes.batch(f"encode a batch of {size}", "encode_batch", batches, entrants)
    yield shapes.decode(f"decode 1 KB, {name}", messages[:_BATCH], entrants)
    yield shapes.decode_batch(f"decode a batch of {size}", batches, entrants)


def _chat_batches(name: str, entrants: Field, messages: list[str]) -> Iterator[Case]:
    """Yield the rows of batches of what people and models write to each other."""
    if len(messages) > 2 * _BATCH:
        size, batches = f"{_BATCH} × 1 KB of chats, {name}, 2 threads", _batches(messages)
        yield shapes.batch(f"count a batch of {size}", "count_batch", batches, entrants)
        yield shapes.batch(f"encode a batch of {size}", "encode_batch", batches, entrants)


def _batches(messages: list[str]) -> list[list[str]]:
    return [messages[at : at + _BATCH] for at in range(0, len(messages) - _BATCH, _BATCH)]
