"""The tokenizer inside a GGUF file, as a `tokenizer.json`.

The format is described at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md: a header, then keys with typed
values, then the tensors, which are not read here.
"""

from __future__ import annotations

import json
import mmap
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["tokenizer_json_of_gguf"]

Value = int | float | bool | str | list["Value"]

#: Type numbers of the format → how `struct` reads them.
_NUMBERS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9
#: `tokenizer.ggml.token_type` of special tokens.
_CONTROL = 3
_DIGITS_APART = frozenset({"smollm", "starcoder", "refact", "command-r"})


class _Reader:
    def __init__(self, content: mmap.mmap) -> None:
        self._content, self._at = content, 0

    def number(self, form: str) -> int | float | bool:
        (value,) = struct.unpack_from(form, self._content, self._at)
        self._at += struct.calcsize(form)
        result: int | float | bool = value
        return result

    def value(self, kind: int) -> Value:
        if kind == _STRING:
            length = int(self.number("<Q"))
            self._at += length
            return self._content[self._at - length : self._at].decode()
        if kind == _ARRAY:
            item, length = int(self.number("<I")), int(self.number("<Q"))
            return [self.value(item) for _ in range(length)]
        return self.number(_NUMBERS[kind])

    def metadata(self) -> dict[str, Value]:
        if self._content[:4] != b"GGUF":
            raise ValueError("not a GGUF file")
        self._at = 8
        _, count = self.number("<Q"), int(self.number("<Q"))
        return {str(self.value(_STRING)): self.value(int(self.number("<I"))) for _ in range(count)}


def tokenizer_json_of_gguf(path: Path) -> bytes:
    """Return the file's byte-level BPE as a `tokenizer.json`, for models whose digits are tokens of their own."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        metadata = _Reader(content).metadata()
    split = metadata.get("tokenizer.ggml.pre")
    if metadata.get("tokenizer.ggml.model") != "gpt2" or split not in _DIGITS_APART:
        raise ValueError(f"{path} has a tokenizer of another kind: {split}")
    tokens, merges, kinds = (_list(metadata, key) for key in ("tokens", "merges", "token_type"))
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added: list[dict[str, object]] = [
        {"id": number, "content": token, **flags, "special": True}
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind == _CONTROL
    ]
    document: dict[str, object] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {str(token): number for number, token in enumerate(tokens)},
            "merges": merges,
        },
    }
    return json.dumps(document, ensure_ascii=False).encode()


def _list(metadata: dict[str, Value], key: str) -> Sequence[Value]:
    value = metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(value, list):
        raise TypeError(f"tokenizer.ggml.{key} is no list")
    return value
