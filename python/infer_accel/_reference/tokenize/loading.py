"""Files to models: ``tokenizer.json`` and tiktoken ranks."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any

from infer_accel._reference.tokenize.alphabet import bytes_of
from infer_accel._reference.tokenize.model import AddedToken, Model, beyond
from infer_accel._reference.tokenize.patterns import compile_pattern
from infer_accel.errors import TokenizerError

if TYPE_CHECKING:
    from collections.abc import Callable


def from_json(file: dict[str, Any]) -> Model:
    """Read the sections of a ``tokenizer.json``."""
    model = file["model"]
    if model.get("type") != "BPE" or model.get("dropout"):
        raise beyond("the model is no plain BPE")
    vocabulary: dict[str, int] = model["vocab"]
    tokens = {content: number for form, number in vocabulary.items() if (content := bytes_of(form))}
    if any(bytes([byte]) not in tokens for byte in range(256)):
        raise beyond("the vocabulary is not byte-level")
    merges: dict[tuple[bytes, bytes], int] = {}
    for index, pair in enumerate(model["merges"]):
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        if left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
            message = f"the merge ({left!r}, {right!r}) needs a token that the vocabulary does not have"
            raise TokenizerError(message, code="tokenizer.malformed")
        merges[bytes_of(left) or b"", bytes_of(right) or b""] = index
    patterns, prefix_space = _split_of(file.get("pre_tokenizer"))
    before, after = _frame_of(file.get("post_processor"))
    added = [AddedToken(**token) for token in file.get("added_tokens") or ()]
    forms = vocabulary | {token.content: token.id for token in added}
    return Model(
        tokens=tokens,
        rank=lambda left, right: merges.get((left, right)),
        whole_pieces_first=bool(model.get("ignore_merges")),
        patterns=[compile_pattern(pattern) for pattern in patterns],
        keep_unmatched=True,
        decoded={number: bytes_of(form) or form.encode() for form, number in forms.items()},
        forms=forms,
        added=added,
        normalize=_normalizer_of(file.get("normalizer")),
        prefix_space=prefix_space,
        before=before,
        after=after,
        truncation=file.get("truncation"),
        padding=file.get("padding"),
        special=frozenset(token.id for token in added if token.special),
    )


def _split_of(section: dict[str, Any] | None) -> tuple[list[str], bool]:
    """Return the patterns, one applied after the other, and whether a space is put before the text."""
    *steps, last = (section or {}).get("pretokenizers", [section])
    if not last or last["type"] != "ByteLevel" or (steps and last["add_prefix_space"]):
        raise beyond("the pre_tokenizer is not splits followed by a byte-level step")
    patterns = [_pattern_of(step) for step in steps]
    return [*patterns, *(["gpt2"] if last.get("use_regex", True) else [])], bool(last["add_prefix_space"])


def _pattern_of(step: dict[str, Any]) -> str:
    if step["type"] == "Digits" and step["individual_digits"]:
        return r"\p{N}"
    if step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        return str(step["pattern"]["Regex"])
    raise beyond(f"the pre_tokenizer {step['type']}")


def _normalizer_of(section: dict[str, Any] | None) -> Callable[[str], str]:
    if section is None or section.get("normalizers") == []:
        return str
    if section["type"] == "NFC":
        return lambda text: unicodedata.normalize("NFC", text)
    raise beyond(f"the normalizer {section['type']}")


def _frame_of(section: dict[str, Any] | None) -> tuple[list[int], list[int]]:
    """Return the ids that are put before and after a text."""
    if section is None or section["type"] == "ByteLevel":
        return [], []
    if section["type"] == "Sequence":
        frames = [_frame_of(step) for step in section["processors"]]
        return max(frames, key=lambda frame: len(frame[0]) + len(frame[1]), default=([], []))
    if section["type"] != "TemplateProcessing":
        raise beyond(f"the post_processor {section['type']}")
    sides: tuple[list[int], list[int]] = ([], [])
    side = 0
    for piece in section["single"]:
        if "Sequence" in piece:
            side = 1
        else:
            sides[side].extend(section["special_tokens"][piece["SpecialToken"]["id"]]["ids"])
    return sides
