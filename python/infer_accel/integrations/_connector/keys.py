"""Names of pages: what a block's keys and values depend on, and nothing that they do not."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from infer_accel.kvcache import hash_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt

_log = logging.getLogger("infer_accel")

#: Bytes of a key: SHA-256.
KEY_BYTES = 32

_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.json")
_ADAPTER = ("adapter_config.json", "adapter_model.*", "new_embeddings.*")


def digest(facts: Mapping[str, object]) -> bytes:
    """Return 32 bytes that are equal exactly for equal facts."""
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(b"infer-accel connector 1\n" + text.encode()).digest()


def weights_of(path: str | Path) -> list[tuple[str, int, int]] | None:
    """Return what tells the files of a local model from others: names, sizes, times; None if it is not local.

    Their content is not read: it is gigabytes, and an engine starts in seconds. A copy with new times begins with an
    empty directory, which is slow once and never wrong.
    """
    folder = Path(path)
    files = (
        [folder] if folder.is_file() else sorted({file for kind in _WEIGHTS for file in folder.glob(kind)})
    )
    found = [(file.name, file.stat()) for file in files if file.is_file()]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in found] or None


class AdapterDigests:
    """The content of adapters, read once each.

    A name and a path are not enough for pages that outlive the process: the adapter behind them may be trained again.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], str | None] = {}

    def of(self, number: int, name: str, path: str, *, again: bool = False) -> str | None:
        """Return the digest of an adapter's files, or None where they cannot be read.

        Parameters
        ----------
        number, name, path
            As the engine names the adapter. The digest is that of the first sight: the engine loaded it then.
        again
            Whether the engine may have loaded it again in place since.
        """
        key = (number, name, path)
        if again:
            self._known.pop(key, None)
        if key not in self._known:
            self._known[key] = self._read(Path(path))
        return self._known[key]

    @staticmethod
    def _read(folder: Path) -> str | None:
        whole = hashlib.sha256()
        try:
            files = sorted(file for kind in _ADAPTER for file in folder.glob(kind))
            for file in files:
                with file.open("rb") as opened:
                    content = hashlib.file_digest(opened, "sha256").digest()
                whole.update(len(file.name).to_bytes(4, "big") + file.name.encode() + content)
        except OSError as error:
            _log.warning("the adapter %s cannot be read (%s): its pages are not cached", folder, error)
            return None
        if not files:
            _log.warning("the adapter %s is no local directory: its pages are not cached", folder)
            return None
        return whole.hexdigest()


class KeyChain:
    """The keys of a request's blocks, made as its tokens come.

    Each key is the SHA-256 of the key before it, the block's tokens, and what else the block depends on; the first
    has `origin` before it.

    Parameters
    ----------
    origin
        32 bytes that name model and layout.
    block_size
        Tokens of a block.
    salt
        Keeps apart what must not be shared between tenants; in the first block, and so in all.
    adapter
        The digest of a LoRA adapter; in every block.
    """

    def __init__(
        self, origin: bytes, block_size: int, *, salt: str | None = None, adapter: str | None = None
    ) -> None:
        self._block_size = block_size
        self._later = (("adapter", adapter),) if adapter else None
        self._first = (*(self._later or ()), ("salt", salt)) if salt else self._later
        self._parent = origin
        self._keys = np.empty((0, KEY_BYTES), np.uint8)

    def keys(self, token_ids: Sequence[int], blocks: int) -> npt.NDArray[np.uint8]:
        """Return the keys of the first `blocks` blocks, uint8 of shape ``[blocks, 32]``.

        Parameters
        ----------
        token_ids
            The request's tokens; those that were hashed before are not looked at again.
        blocks
            How many; so many must be full.
        """
        have = len(self._keys)
        if blocks > have:
            tokens = token_ids[have * self._block_size : blocks * self._block_size]
            new = hash_blocks(
                np.asarray(tokens, np.int64),
                block_size=self._block_size,
                parent=self._parent,
                extra_keys=self._extra(have, blocks),
            )
            self._keys = np.concatenate([self._keys, new])
            self._parent = new[-1].tobytes()
        return self._keys[:blocks]

    def _extra(self, begin: int, end: int) -> list[tuple[tuple[str, str], ...] | None] | None:
        if self._first is None:
            return None
        return list(self._entries(begin, end))

    def _entries(self, begin: int, end: int) -> Iterator[tuple[tuple[str, str], ...] | None]:
        for block in range(begin, end):
            yield self._first if block == 0 else self._later
