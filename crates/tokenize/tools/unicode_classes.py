"""Write ``src/pretokenize/unicode_classes.bin`` from the Unicode tables of the reference tokenizers.

What counts as a letter, a number or white space is decided by the regex engines inside ``tiktoken`` (Rust's
``regex``) and ``tokenizers`` (Oniguruma), not by the newest Unicode. This script asks both about every code
point, stops if they differ, and writes a two-stage table: 8704 bytes of block numbers (one for each 128 code
points), then the blocks of 128 class bytes.

    python crates/tokenize/tools/unicode_classes.py            # needs tiktoken and tokenizers
    python crates/tokenize/tools/unicode_classes.py --check    # compares with the file, writes nothing
"""

from __future__ import annotations

import sys
from pathlib import Path

import tiktoken
from tokenizers import Regex, pre_tokenizers

# What `Digits` takes for a number beside `\p{N}`: its compiler's tables are newer than the regex engine's.
LATER_NUMBER = 9
CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
# The order is the numbering of `Class` in src/pretokenize/classes.rs; 0 is everything else.
PATTERNS = [r"[\p{Lu}\p{Lt}]", r"\p{Ll}", r"[\p{Lm}\p{Lo}]", r"\p{M}", r"\p{N}", r"\s", r"\p{P}", r"\p{S}"]
OUTPUT = Path(__file__).resolve().parent.parent / "src" / "pretokenize" / "unicode_classes.bin"


def members_by_tiktoken(pattern: str) -> set[int]:
    """Code points that `pattern` matches in tiktoken, which drops text that its pattern does not match."""
    ranks = {bytes([value]): value for value in range(256)}
    encoding = tiktoken.Encoding("probe", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return {c for c in CODE_POINTS if encoding.encode_ordinary(chr(c))}


def members_by_tokenizers(pattern: str) -> set[int]:
    """Code points that `pattern` matches in tokenizers: those that a removing split takes away."""
    split = pre_tokenizers.Split(Regex(pattern), behavior="removed")
    kept = split.pre_tokenize_str("".join(map(chr, CODE_POINTS)))
    return set(CODE_POINTS) - {ord(character) for piece, _ in kept for character in piece}


def members_by_digits() -> set[int]:
    """Code points that `Digits` cuts out of text in tokenizers."""
    pieces = pre_tokenizers.Digits(individual_digits=True).pre_tokenize_str(
        "".join(f"a{chr(c)}" for c in CODE_POINTS)
    )
    return {ord(piece) for piece, _ in pieces if len(piece) == 1 and piece != "a"}


def build_table() -> bytes:
    """Return the two-stage table, after both references agreed on every class of every code point."""
    classes = bytearray(0x110000)
    for number, pattern in enumerate(PATTERNS, start=1):
        members = members_by_tiktoken(pattern)
        difference = members ^ members_by_tokenizers(pattern)
        if difference:
            raise SystemExit(f"{pattern}: the references differ on {sorted(map(hex, difference))[:10]}")
        for code_point in members:
            if classes[code_point]:
                raise SystemExit(f"{code_point:#x} is in two classes: {classes[code_point]} and {number}")
            classes[code_point] = number
    for code_point in members_by_digits():
        if classes[code_point] not in {0, PATTERNS.index(r"\p{N}") + 1}:
            raise SystemExit(
                f"{code_point:#x} is a number only to Digits, and of class {classes[code_point]}"
            )
        classes[code_point] = classes[code_point] or LATER_NUMBER
    blocks: dict[bytes, int] = {}
    index = bytearray()
    for start in range(0, 0x110000, 128):
        block = bytes(classes[start : start + 128])
        index.append(blocks.setdefault(block, len(blocks)))
    return bytes(index) + b"".join(blocks)


def main() -> None:
    """Write the table, or with ``--check`` compare it with the one in the repository."""
    table = build_table()
    if "--check" in sys.argv[1:]:
        if OUTPUT.read_bytes() != table:
            raise SystemExit(f"{OUTPUT.name} is not what the installed references say")
        return
    OUTPUT.write_bytes(table)


if __name__ == "__main__":
    main()
