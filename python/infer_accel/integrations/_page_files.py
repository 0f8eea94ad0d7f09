"""Pages of an engine by names of its own, in a :class:`~infer_accel.kvcache.DiskTier` that is opened with the first."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from infer_accel.errors import ArgumentError, InferAccelError
from infer_accel.kvcache import DiskTier

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

_log = logging.getLogger("infer_accel")

#: Options of :class:`DiskTier` that may be given beside the two that must be.
_OPTIONAL = ("segment_bytes", "checksum", "compression", "deadline", "write_deadline")
#: Seconds between two lines of the log about a tier that fails, and between two looks at what others have stored.
_QUIET, _FRESH = 10.0, 0.5


class PageFiles:
    """Pages on disk by names; whatever fails is a miss, or a page that is not stored.

    Parameters
    ----------
    options
        ``root_dir`` and ``capacity_bytes``, and those of :class:`DiskTier` (``segment_bytes``, ``checksum``,
        ``compression``, ``deadline``, ``write_deadline``). Others are an error.
    facts
        All that pages depend on beside their names: who differs in any of it has a directory of its own.

    Raises
    ------
    ArgumentError
        An option that is unknown or missing.
    """

    def __init__(self, options: Mapping[str, Any], facts: Mapping[str, object]) -> None:
        wanted = ("root_dir", "capacity_bytes", *_OPTIONAL)
        strange = sorted(set(options) - set(wanted))
        missing = [name for name in wanted[:2] if name not in options]
        if strange or missing:
            message = f"options {strange} are unknown and {missing} are missing; allowed: {', '.join(wanted)}"
            raise ArgumentError(message, code="argument.connector_option")
        self._options = dict(options)
        self._facts = dict(facts)
        self._tier: DiskTier | None = None
        self._lock = Lock()
        self._complained = self._refreshed = float("-inf")

    def load(self, names: Sequence[str], pages: Sequence[torch.Tensor]) -> list[bool]:
        """Fill pages, all of one size; returns which were there. The others are left as they may be."""
        if not names:
            return []
        rows = [_bytes_of(page) for page in pages]
        found = self._try(lambda tier: self._load(tier, names, rows), len(rows[0]))
        return [False] * len(names) if found is None else found

    def store(self, names: Sequence[str], pages: Sequence[torch.Tensor]) -> bool:
        """Store pages, all of one size; returns whether all are there now."""
        if not names:
            return True
        rows = np.stack([_bytes_of(page) for page in pages])
        return self._try(lambda tier: tier.store(_keys(names), rows) >= 0, rows.shape[1]) or False

    def leading(self, names: Sequence[str]) -> int:
        """Return how many leading pages are there, also those that other processes have stored."""
        if not names or self._tier is None:
            return 0
        present = self._try(lambda tier: self._present(tier, names), self._tier.page_bytes)
        return 0 if present is None else int(np.argmin(np.append(present, [False])))

    def open(self, page_bytes: int) -> bool:
        """Open the directory before the first page; returns whether that went well."""
        return self._try(lambda _: True, page_bytes) or False

    def close(self) -> None:
        """Make what was stored durable, and close the directory. A second call does nothing."""
        with self._lock:
            tier, self._tier = self._tier, None
        if tier is not None:
            tier.close()

    def _load(self, tier: DiskTier, names: Sequence[str], rows: list[npt.NDArray[np.uint8]]) -> list[bool]:
        out = np.empty((len(names), tier.page_bytes), np.uint8)
        found: list[bool] = tier.load(_keys(names), out).tolist()
        for row, page, is_there in zip(rows, out, found, strict=True):
            if is_there:
                row[:] = page
        return found

    def _present(self, tier: DiskTier, names: Sequence[str]) -> npt.NDArray[np.bool_]:
        keys = _keys(names)
        present = tier.contains(keys)
        now = time.monotonic()
        if not present.all() and now > self._refreshed + _FRESH:
            self._refreshed = now
            tier.refresh()
            present = tier.contains(keys)
        return present

    def _try(self, work: Callable[[DiskTier], Any], page_bytes: int) -> Any:  # noqa: ANN401 - what `work` returns
        try:
            with self._lock:
                tier = self._tier or self._opened(page_bytes)
            return work(tier)
        except (InferAccelError, OSError) as error:
            now = time.monotonic()
            if now > self._complained + _QUIET:
                self._complained = now
                _log.warning("pages on disk are left out: %s", error)
            return None

    def _opened(self, page_bytes: int) -> DiskTier:
        facts = json.dumps(self._facts | {"page_bytes": page_bytes}, sort_keys=True, default=str).encode()
        fingerprint = hashlib.sha256(facts).digest()
        options = dict(self._options)
        path = Path(options.pop("root_dir")) / fingerprint.hex()[:32]
        path.parent.mkdir(parents=True, exist_ok=True)
        self._tier = DiskTier(path, page_bytes=page_bytes, fingerprint=fingerprint, **options)
        return self._tier


def _keys(names: Sequence[str]) -> list[bytes]:
    return [hashlib.sha256(name.encode()).digest() for name in names]


def _bytes_of(page: torch.Tensor) -> npt.NDArray[np.uint8]:
    """Return a page's own memory, which has to lie in one piece on the host."""
    if page.device.type != "cpu" or not page.is_contiguous():
        message = (
            f"a page of {page.device} with strides {page.stride()} came; it must be the host's, in one piece"
        )
        raise ArgumentError(message, code="argument.connector_option")
    flat: npt.NDArray[np.uint8] = page.detach().view(-1).view(torch.uint8).numpy()
    return flat
