"""The printable alphabet of byte-level vocabularies."""

from __future__ import annotations

import functools


@functools.cache
def _alphabet() -> tuple[str, ...]:
    """GPT-2's printable character for each byte: itself where it is printable, else U+0100 and on."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte) if byte in kept else chr(next(others)) for byte in range(256))


def printable(content: bytes) -> str:
    """Return bytes in the alphabet in which byte-level vocabularies are written.

    >>> printable(b" the")
    'Ġthe'
    """
    return "".join(_alphabet()[byte] for byte in content)


def bytes_of(token: str) -> bytes | None:
    """Return the bytes that a written token stands for, or None if it is not in the byte-level alphabet."""
    places = _places()
    if any(character not in places for character in token):
        return None
    return bytes(places[character] for character in token)


@functools.cache
def _places() -> dict[str, int]:
    return {character: byte for byte, character in enumerate(_alphabet())}
