r"""Split patterns for Python's ``re``, which has no Unicode properties.

The patterns of tokenizer files are written for engines that know ``\p{L}``. Here every property is spelled
out as the ranges of characters that have it.

The ranges are those of the interpreter's own Unicode version (``unicodedata.unidata_version``), which may be
older than that of the references (16): characters assigned since then fall into no class here. Compare only
texts whose characters this interpreter knows.
"""

from __future__ import annotations

import functools
import re
import sys
import unicodedata

from infer_accel.errors import TokenizerError

__all__ = ["PRESETS", "compile_pattern"]

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

#: Well-known patterns by name.
PRESETS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|"
        r"\s*[\r\n]|\s+(?!\S)|\s"
    ),
    "llama3": rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_REST}",
    "qwen2": rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}|{_REST}",
    "qwen3.5": (
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|"
        r"\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "o200k": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        rf"{_CONTRACTIONS}?|"
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        rf"{_CONTRACTIONS}?|"
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "tekken": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
        r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}

#: The White_Space property, which `\s` means; Python's own `\s` has four control characters more.
_WHITE_SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"


@functools.cache
def _ranges_by_category() -> dict[str, str]:
    """Return, for each general category, its characters as the inside of a character class."""
    ranges: dict[str, list[str]] = {}
    start, category = 0, unicodedata.category("\0")
    for code in range(1, sys.maxunicode + 2):
        following = unicodedata.category(chr(code)) if code <= sys.maxunicode else ""
        if following != category:
            ranges.setdefault(category, []).append(f"\\U{start:08x}-\\U{code - 1:08x}")
            start, category = code, following
    return {name: "".join(parts) for name, parts in ranges.items()}


def _property(name: str) -> str:
    """Return the inside of a character class for a category such as ``L`` or ``Lu``."""
    found = [ranges for category, ranges in _ranges_by_category().items() if category.startswith(name)]
    if not found:
        raise TokenizerError(f"\\p{{{name}}} is no general category of Unicode", code="tokenizer.pattern")
    return "".join(found)


@functools.cache
def compile_pattern(pattern: str) -> re.Pattern[str]:
    r"""Translate a pattern, or the name of a well-known one, and compile it.

    Parameters
    ----------
    pattern
        ``\p{..}``, ``\s``, ``\S``, ``$`` as in the Rust engines; all else means the same to Python.

    Raises
    ------
    TokenizerError
        The pattern is no regular expression, or uses a property in a way that has no translation.
    """
    source = PRESETS.get(pattern, pattern)
    translated: list[str] = []
    in_class = False
    for part in re.findall(r"\\[pP]\{\w+\}|\\.|.", source, flags=re.DOTALL):
        if part.startswith(r"\p"):
            inside = _property(part[3:-1])
            translated.append(inside if in_class else f"[{inside}]")
        elif part == r"\s":
            translated.append(_WHITE_SPACE if in_class else f"[{_WHITE_SPACE}]")
        elif part == r"\S" and not in_class:
            translated.append(f"[^{_WHITE_SPACE}]")
        elif part == r"\S" or part.startswith(r"\P"):
            raise TokenizerError(f"{part} has no translation here in {pattern!r}", code="tokenizer.pattern")
        elif part == "$" and not in_class:
            translated.append(r"\Z")  # Python's $ also matches before a last line break
        else:
            in_class = part == "[" or (in_class and part != "]")
            translated.append(part)
    try:
        return re.compile("".join(translated))
    except re.error as error:
        raise TokenizerError(
            f"cannot use the pattern {pattern!r}: {error}", code="tokenizer.pattern"
        ) from error
