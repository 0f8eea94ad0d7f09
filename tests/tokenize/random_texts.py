"""Random text in which the characters are frequent at which tokenizers differ."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

__all__ = ["random_text"]


def _borders() -> list[int]:
    """Return the code points around which the category changes, as far as this interpreter knows them."""
    categories = [unicodedata.category(chr(code)) for code in range(0x32000)]
    changes = [code for code in range(1, len(categories)) if categories[code] != categories[code - 1]]
    return [code + step for code in changes for step in (-1, 0)]


#: Letters, marks, digits and symbols of Unicode 15, 16 and 17, which are unassigned in older tables; neighbours of
#: surrogates; the ends of planes.
NEW_CODES = [
    *range(0x1C89, 0x1C8B), *range(0xA7CB, 0xA7CE), *range(0x105C0, 0x105F4), *range(0x10D40, 0x10D90),
    *range(0x11380, 0x113E3), *range(0x11BC0, 0x11BFA), *range(0x11F00, 0x11F5A), *range(0x13460, 0x13470),
    *range(0x16100, 0x1613A), *range(0x16D40, 0x16D7A), *range(0x1CC00, 0x1CC10), *range(0x1D2C0, 0x1D2D4),
    *range(0x1E4D0, 0x1E4FA), *range(0x1E5D0, 0x1E600), *range(0x2EBF0, 0x2EBF4), *range(0x31350, 0x31354),
    *range(0x11DE0, 0x11DEA), *range(0x16FF4, 0x16FF7), 0x0CF3, 0x0C5C, 0x1ACF, 0x20C1, 0xD7FF, 0xE000, 0xFFFE,
    0xFFFF, 0x10000, 0x10FFFF,
]  # fmt: skip
BORDERS = _borders()

#: What pretokens turn on: white space of every kind, apostrophes, digits, marks, joiners, what is beside ideographs.
TURNS = [
    *" \t\n\r\x0b\x0c\x85\xa0\u2028\u3000\u1680", *"'''\u2019s\u017fStTlLdDmMrRvVeE", *"0123456789\u0663\u00bd\u2167",
    *"\u0301\u0300\u20e3\ufe0f\u200d\u200b\u200c", *"!/._-<>#$\u3002\u30fb\u3040\u3099\u30a0\u9fa5\u9fa6\u4e00",
    "\0", "\r\n",
]  # fmt: skip


def random_text(generator: random.Random, length: int) -> str:
    """Return characters from anywhere in Unicode, those more often at which tokenizers differ; no surrogates."""
    parts: list[str] = []
    while len(parts) < length:
        kind = generator.randrange(6)
        if kind == 0:
            character = generator.choice(TURNS)
        elif kind == 1:
            character = chr(generator.choice(NEW_CODES))
        elif kind == 2:
            character = chr(generator.choice(BORDERS))
        else:
            character = chr(generator.randrange((0x80, 0x3000, 0x110000)[kind - 3]))
        if not 0xD800 <= ord(character[0]) < 0xE000:
            parts.append(character * generator.choice([1, 1, 1, 2, 5]))
    return "".join(parts)
