"""SentencePiece's model files for the benchmarks and the tests: read, and written as a ``tokenizer.json``.

Rivals without a reader for `.model` files get the same vocabulary as the converter of ``transformers`` would
write it.
"""

from __future__ import annotations

import importlib.util
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MODELS", "Piece", "as_tokenizer_json", "character_rules", "find_model", "pieces"]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4

_SPACE = "\u2581"

#: Models by name: the package that ships each, and the file in it.
MODELS = {
    "mistral-v1": ("mistral_common", "data/tokenizer.model.v1"),
    "mistral-v2": ("mistral_common", "data/mistral_instruct_tokenizer_240216.model.v2"),
    "mistral-v3": ("mistral_common", "data/mistral_instruct_tokenizer_240323.model.v3"),
    "mistral-v7": ("mistral_common", "data/mistral_instruct_tokenizer_241114.model.v7"),
    "ai21-j2": ("ai21_tokenizer", "resources/j2-tokenizer/j2-tokenizer.model"),
}


@dataclass(frozen=True)
class Piece:
    """A piece of a model: its text, score and type."""

    text: str
    score: float
    kind: int


def find_model(name: str) -> Path | None:
    """Return the model's file, or None where its package is not installed."""
    package, file = MODELS[name]
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        path = Path(folder) / file
        if path.is_file():
            return path
    return None


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _fields(content: bytes) -> Iterator[tuple[int, Any]]:
    """Yield the number and the value of each field of a protobuf message."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(content, at)
            yield number, value
        else:
            size = 8 if wire == 1 else 4
            if wire == 2:
                size, at = _varint(content, at)
            yield number, content[at : at + size]
            at += size


def pieces(path: Path) -> list[Piece]:
    """Return the pieces of a model, by id."""
    found = []
    for number, value in _fields(path.read_bytes()):
        if number == 1:
            fields = dict(_fields(value))
            score = struct.unpack("<f", fields.get(2, bytes(4)))[0]
            found.append(Piece(fields.get(1, b"").decode(), score, fields.get(3, NORMAL)))
    return found


def character_rules(path: Path) -> bytes:
    """Return a model's `precompiled_charsmap`, by which it rewrites characters; empty where it has none."""
    for number, value in _fields(path.read_bytes()):
        if number == 3:  # the normalizer
            rules: bytes = dict(_fields(value)).get(2, b"")
            return rules
    return b""


def _merges(vocabulary: dict[str, int], scores: dict[str, float]) -> list[list[str]]:
    made = []
    for token, score in scores.items():
        cuts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [cut for cut in cuts if cut[0] in vocabulary and cut[1] in vocabulary]
        made += [
            (score, *cut) for cut in sorted(known, key=lambda cut: (vocabulary[cut[0]], vocabulary[cut[1]]))
        ]
    made.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    return [[left, right] for _, left, right in made]


def as_tokenizer_json(model: list[Piece], *, legacy: bool = True) -> dict[str, Any]:
    """Return a BPE model as a ``tokenizer.json``, in the older or the newer of the forms that are in use."""
    vocabulary = {piece.text: index for index, piece in enumerate(model)}
    space = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    text = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    prepend = {"type": "Prepend", "prepend": _SPACE}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    begin = vocabulary["<s>"]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": index, "content": piece.text, "special": piece.kind != USER_DEFINED, **flags}
            for index, piece in enumerate(model)
            if piece.kind in {UNKNOWN, CONTROL, USER_DEFINED}
        ],
        "normalizer": {"type": "Sequence", "normalizers": [prepend, space]} if legacy else None,
        "pre_tokenizer": None
        if legacy
        else {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": "first", "split": False},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, sequence],
            "pair": [sequence, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [begin], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [text, {"type": "ByteFallback"}, {"type": "Fuse"}, strip],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": _merges(vocabulary, {piece.text: piece.score for piece in model}),
        },
    }
