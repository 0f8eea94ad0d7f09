"""Text to ids: pieces, merges, trusted segments, places in the text, padding."""

from __future__ import annotations

import itertools
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from infer_accel._reference.tokenize.added import find_added, split_added
from infer_accel._reference.tokenize.model import beyond

if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from infer_accel._reference.tokenize.model import AddedToken, Model


def merge(piece: bytes, rank: Callable[[bytes, bytes], int | None]) -> list[bytes]:
    """Merge the bytes of a piece: always the pair of the lowest rank, the leftmost of equals.

    >>> ranks = {(b"a", b"b"): 0, (b"ab", b"c"): 1}
    >>> merge(b"abcab", lambda left, right: ranks.get((left, right)))
    [b'abc', b'ab']
    """
    parts = [piece[index : index + 1] for index in range(len(piece))]
    while True:
        pairs = [(rank(left, right), at) for at, (left, right) in enumerate(pairwise(parts))]
        ranked = [(found, at) for found, at in pairs if found is not None]
        if not ranked:
            return parts
        _, at = min(ranked)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def pieces(model: Model, text: str) -> Iterator[str]:
    """Cut a text by the patterns, one after the other."""
    parts: Iterable[str] = [text]
    for pattern in model.patterns:
        parts = [piece for part in parts for piece in _cut(pattern, part, model.keep_unmatched)]
    yield from parts


def _cut(pattern: re.Pattern[str], text: str, keep_unmatched: bool) -> Iterator[str]:
    done = 0
    for found in pattern.finditer(text):
        if keep_unmatched and found.start() > done:
            yield text[done : found.start()]
        if found.end() > found.start():
            yield found.group()
        done = found.end()
    if keep_unmatched and done < len(text):
        yield text[done:]


def encode_plain(model: Model, text: str) -> Iterator[tuple[int, int]]:
    """Yield the ids of text without added tokens, each with the number of bytes of its token."""
    if model.prefix_space and not text.startswith(" "):
        text = " " + text
    for piece in pieces(model, text):
        content = piece.encode()
        if model.whole_pieces_first and content in model.tokens:
            yield model.tokens[content], len(content)
        else:
            yield from ((model.tokens[part], len(part)) for part in merge(content, model.rank))


def encode(model: Model, text: str, *, parse_special: bool) -> list[int]:
    """Return the ids of a text, nothing put around them."""
    exact = [token for token in model.added if not token.normalized]
    normalized = [token for token in model.added if token.normalized]
    ids: list[int] = []
    for _, _, part in split_added(text, exact, parse_special):
        if isinstance(part, int):
            ids.append(part)
            continue
        for _, _, inner in split_added(model.normalize(part), normalized, parse_special):
            plain = (
                [inner] if isinstance(inner, int) else [number for number, _ in encode_plain(model, inner)]
            )
            ids.extend(plain)
    return ids


def barriers(model: Model, text: str) -> Iterator[tuple[int, int, int]]:
    """Find the special tokens of trusted text: begin, end, id."""
    groups = [[token for token in model.added if token.normalized is late] for late in (False, True)]

    def search(begin: int, end: int, groups: list[list[AddedToken]]) -> Iterator[tuple[int, int, int]]:
        if not groups or begin >= end:
            return
        done = begin
        for start, stop, token in find_added(text[begin:end], groups[0], parse_special=True):
            yield from search(done, begin + start, groups[1:])
            done = begin + stop
            if token.special:
                yield begin + start, done, token.id
        yield from search(done, end, groups[1:])

    yield from search(0, len(text), groups)


def encode_segments(model: Model, segments: Sequence[tuple[str, bool]]) -> list[int]:
    """Return the ids of a text that is trusted in parts."""
    text = "".join(part for part, _ in segments)
    filled = [(part, trusted) for part, trusted in segments if part]
    if len({trusted for _, trusted in filled}) <= 1:
        return encode(model, text, parse_special=any(trusted for _, trusted in filled))
    ids: list[int] = []
    begin = done = 0
    for trusted, run in itertools.groupby(filled, key=lambda segment: segment[1]):
        content = "".join(part for part, _ in run)
        for start, end, number in barriers(model, content) if trusted else ():
            ids += [*encode(model, text[done : begin + start], parse_special=False), number]
            done = begin + end
        begin += len(content)
    return [*ids, *encode(model, text[done:], parse_special=False)]


def locate(model: Model, text: str, *, parse_special: bool) -> Iterator[tuple[int, int, int]]:
    """Yield the ids of a text with the bytes that they stand for: id, begin, end."""
    if model.normalize(text) != text:
        raise beyond("offsets of text that normalization changes")
    exact = [token for token in model.added if not token.normalized]
    normalized = [token for token in model.added if token.normalized]
    for first, end, part in split_added(text, exact, parse_special):
        inner = [(0, end - first, part)]
        if isinstance(part, str):
            inner = list(split_added(part, normalized, parse_special))
        for begin, stop, plain in inner:
            place = len(text[: first + begin].encode())
            if isinstance(plain, int):
                yield plain, place, len(text[: first + stop].encode())
                continue
            shift = 1 if model.prefix_space and not plain.startswith(" ") else 0
            at = 0
            for number, length in encode_plain(model, plain):
                last = max(at + length - shift, 0) or len(plain[0].encode())
                yield number, place + max(at - shift, 0), place + last
                at += length


def pad(ids: list[int], padding: Mapping[str, Any], longest: int) -> list[int]:
    """Pad one text's ids as the file says, in a batch whose longest text has `longest`."""
    strategy, multiple = padding["strategy"], padding["pad_to_multiple_of"] or 1
    target = strategy["Fixed"] if isinstance(strategy, dict) else longest
    fill = [padding["pad_id"]] * (-(-target // multiple) * multiple - len(ids))
    return fill + ids if padding["direction"] == "Left" else ids + fill
