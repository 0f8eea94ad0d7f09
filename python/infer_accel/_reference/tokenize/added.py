"""Added tokens: contents that are found in the text before it is cut into pieces."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from infer_accel._reference.tokenize.model import AddedToken


def find_added(
    text: str, added: Sequence[AddedToken], parse_special: bool
) -> Iterator[tuple[int, int, AddedToken]]:
    """Find added tokens in a text: the leftmost first, at one place the longest."""
    by_content = {token.content: token for token in added}
    longest_first = sorted(by_content, key=len, reverse=True)
    done = 0
    for found in re.finditer("|".join(map(re.escape, longest_first)), text) if by_content else ():
        token = by_content[found.group()]
        begin, end = found.span()
        if token.special and not parse_special:
            continue
        if token.single_word and (_is_word(text[:begin][-1:]) or _is_word(text[end:][:1])):
            continue
        if token.lstrip:
            begin = max(len(_strip_right(text[:begin])), done)
        if token.rstrip:
            end = len(text) - len(_strip_left(text[end:]))
        yield begin, end, token
        done = end


def split_added(
    text: str, added: Sequence[AddedToken], parse_special: bool
) -> Iterator[tuple[int, int, str | int]]:
    """Cut added tokens out of a text: begin, end, and the text there or the id."""
    done = 0
    for begin, end, token in find_added(text, added, parse_special):
        if done < begin:
            yield done, begin, text[done:begin]
        yield begin, end, token.id
        done = end
    if done < len(text):
        yield done, len(text), text[done:]


def _is_word(character: str) -> bool:
    if not character:
        return False
    category = unicodedata.category(character)
    return category[0] in "LM" or category in {"Nd", "Nl", "Pc"} or character in "\u200c\u200d"


_SPACES = (
    "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
)


def _strip_right(text: str) -> str:
    return text.rstrip(_SPACES)


def _strip_left(text: str) -> str:
    return text.lstrip(_SPACES)
