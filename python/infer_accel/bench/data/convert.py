"""Vocabularies in another form than a package ships: plain ranks, and a `tokenizer.json` made from them.

What is made is kept in the user's cache directory, or in a directory of the user's own for temporary files where there
is none, and made anew when its source changes.
"""

from __future__ import annotations

import atexit
import base64
import functools
import gzip
import json
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from infer_accel._files import replace_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["plain_ranks", "read_ranks", "tokenizer_json", "written"]


def _cache_directory() -> Path:
    """Return a directory of this user's alone, where nobody else can put a file for us to read or write through."""
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        directory = Path(base, "infer-accel")
        directory.mkdir(parents=True, exist_ok=True)
        if os.access(directory, os.W_OK):
            return directory
    except (OSError, RuntimeError):
        pass  # there is no home, or nothing can be made in it
    directory = Path(tempfile.gettempdir(), f"infer-accel-{_user()}")
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        # Everybody may write there, so that another user may have made it first, or put a link in its place.
        status = directory.lstat()
        is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == _user() and not status.st_mode & 0o077
    except OSError:
        is_ours = False
    return directory if is_ours else _directory_of_this_process()


@functools.cache
def _directory_of_this_process() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="infer-accel-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def _user() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0


def written(name: str, shipped: Path, content: Callable[[], bytes]) -> Path:
    """Return a converted file, written whole or not at all; it is made anew when its source changes."""
    status = shipped.stat()
    path = _cache_directory() / f"{status.st_size:x}-{int(status.st_mtime):x}-{name}"
    if not path.is_file():
        with replace_file(path) as beside:
            beside.write_bytes(content())
    return path


def plain_ranks(name: str, shipped: Path) -> Path:
    """Return a plain file of tiktoken ranks, made from a compressed one or from GPT-2's list of merges."""
    if shipped.suffix == ".gz":
        return written(f"{name}.tiktoken", shipped, lambda: gzip.decompress(shipped.read_bytes()))
    if shipped.suffix == ".bpe":
        return written(f"{name}.tiktoken", shipped, lambda: _ranks_of_merges(shipped.read_text("utf-8")))
    return shipped


def read_ranks(path: Path) -> dict[bytes, int]:
    """Return the ranks as ``tiktoken.Encoding`` wants them."""
    lines = (line.split() for line in path.read_bytes().splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def _ranks_of_merges(merges: str) -> bytes:
    """Turn GPT-2's merge list into ranks: the 256 bytes in the alphabet's order, then each merge's result."""
    alphabet = _alphabet()
    places = {character: byte for byte, character in enumerate(alphabet)}
    own = [byte for byte in range(256) if ord(alphabet[byte]) < 256]
    tokens = [bytes([byte]) for byte in own + [byte for byte in range(256) if byte not in set(own)]]
    tokens += [
        bytes(places[character] for character in line.replace(" ", ""))
        for line in merges.splitlines()
        if line and not line.startswith("#version")
    ]
    lines = (base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(tokens))
    return b"\n".join(lines) + b"\n"


@functools.cache
def _alphabet() -> tuple[str, ...]:
    kept = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte) if byte in kept else chr(next(others)) for byte in range(256))


def tokenizer_json(
    ranks: Mapping[bytes, int],
    special_tokens: Mapping[str, int],
    *,
    split: str,
    normalizer: dict[str, str] | None,
    ignore_merges: bool,
) -> bytes:
    """Write ranks as a tokenizer.json: for each token, by rank, a merge of each two tokens that make it.

    `split` is a pattern, or "gpt2" for the split that the byte-level step has itself.
    """
    alphabet = _alphabet()
    written = {token: "".join(alphabet[byte] for byte in token) for token in ranks}
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        halves = [(token[:at], token[at:]) for at in range(1, len(token))]
        halves = [pair for pair in halves if pair[0] in ranks and pair[1] in ranks]
        halves.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [[written[left], written[right]] for left, right in halves]
    vocabulary = {written[token]: rank for token, rank in ranks.items()}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    step = {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False}
    steps = [step, {**byte_level, "use_regex": False}]
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": ignore_merges,
        "vocab": vocabulary,
        "merges": merges,
    }
    # The reference numbers added tokens without gaps; where the family has one, the tokens behind it are left
    # out.
    added = [
        {
            "id": number,
            "content": content,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for content, number in sorted(special_tokens.items(), key=lambda item: item[1])
    ]
    dense = [token for index, token in enumerate(added) if token["id"] == len(ranks) + index]
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": dense,
        "normalizer": normalizer,
        "pre_tokenizer": (
            {**byte_level, "use_regex": True}
            if split == "gpt2"
            else {"type": "Sequence", "pretokenizers": steps}
        ),
        "post_processor": {**byte_level, "trim_offsets": False, "use_regex": True},
        "decoder": {**byte_level, "use_regex": True},
        "model": model,
    }
    return json.dumps(document, ensure_ascii=False).encode()
