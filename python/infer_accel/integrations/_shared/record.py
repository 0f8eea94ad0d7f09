"""A page as it travels: behind a header that says what it is, and a check of its bytes.

======  =====================================================================
bytes   content
======  =====================================================================
7       ``IAPAGE`` and a zero
1       version of this form: 1
1       check: 0 for XXH3, 1 for HMAC-SHA-256 with a secret
1       bytes of the key
6       zeros
32      SHA-256 of what the pages of the tier hold
64      the key, zeros behind it
8       bytes of the page, low byte first
16      check of the page: 128 bits of XXH3, or of the HMAC of header and page
8       check of the header up to here: 64 bits of XXH3
======  =====================================================================

The page follows. A header that is whole and of another tier, key or version was *refused*; what is not whole was
*damaged*. Neither is delivered.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from enum import Enum, auto
from typing import TYPE_CHECKING

from infer_accel import _backend

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["HEADER_BYTES", "RecordForm", "Verdict"]

_FRONT = struct.Struct("<7sBBB6x32s64sQ")
_FRONT_AND_CHECK = _FRONT.size + 16
HEADER_BYTES = _FRONT_AND_CHECK + 8
_MAGIC = b"IAPAGE\0"
_VERSION = 1

_xxh3_128: Callable[[bytes], bytes] = _backend.load("kvcache").xxh3_128


class Verdict(Enum):
    """What a value that came turned out to be."""

    GOOD = auto()
    #: Not what was stored.
    DAMAGED = auto()
    #: Of another layout, model, page size, check or version, or under a key that is not its own.
    REFUSED = auto()


class RecordForm:
    """How the pages of one tier are written and checked.

    Parameters
    ----------
    fingerprint
        What the pages hold.
    page_bytes
        Bytes of each.
    secret
        What only those who may write have; None where nobody has to be kept from writing.
    """

    def __init__(self, fingerprint: bytes, page_bytes: int, secret: bytes | None) -> None:
        facts = b"infer-accel shared pages 1\n" + page_bytes.to_bytes(8, "little") + fingerprint
        self._kind = hashlib.sha256(facts).digest()
        self._page_bytes = page_bytes
        self._secret = secret
        #: What separates the names of these pages from all others.
        self.namespace = self._kind[:16].hex()

    def encode(self, key: bytes, page: bytes) -> bytes:
        """Return a page with its header in front."""
        front = self._front(key)
        checked = front + self._check(front, page)
        return b"".join((checked, _xxh3_128(checked)[:8], page))

    def decode(self, key: bytes, value: bytes) -> tuple[Verdict, bytes]:
        """Return whether a value is the page of a key, and if so, the page; else nothing."""
        header = value[:HEADER_BYTES]
        checked = header[:_FRONT_AND_CHECK]
        if len(header) < HEADER_BYTES or _xxh3_128(checked)[:8] != header[_FRONT_AND_CHECK:]:
            return Verdict.DAMAGED, b""
        front = self._front(key)
        if header[: _FRONT.size] != front:
            return Verdict.REFUSED, b""
        if len(value) != HEADER_BYTES + self._page_bytes:
            return Verdict.DAMAGED, b""
        page = value[HEADER_BYTES:]
        check = self._check(front, page)
        if not hmac.compare_digest(check, header[_FRONT.size : _FRONT_AND_CHECK]):
            return Verdict.DAMAGED, b""
        return Verdict.GOOD, page

    def _front(self, key: bytes) -> bytes:
        secret = self._secret is not None
        return _FRONT.pack(_MAGIC, _VERSION, secret, len(key), self._kind, key, self._page_bytes)

    def _check(self, front: bytes, page: bytes) -> bytes:
        if self._secret is None:
            return _xxh3_128(page)
        code = hmac.new(self._secret, front, "sha256")
        code.update(page)
        return code.digest()[:16]
