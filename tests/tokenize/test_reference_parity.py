"""Ids equal to those of `tokenizers`, one by one, for small tokenizers with every setting that files have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.soak import repeats

from infer_accel.tokenize import Tokenizer

if TYPE_CHECKING:
    from pathlib import Path

tokenizers = pytest.importorskip("tokenizers", reason="the reference: pip install tokenizers")

OPTIONS = [(add, parse) for add in (True, False) for parse in (True, False)]


def reference(path: Path, *, parse_special: bool) -> Any:
    """Return the reference with the option that it keeps as a switch."""
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = not parse_special
    return tokenizer


def test_every_setting_gives_the_references_ids(variant: tuple[Path, bool], some_texts: list[str]) -> None:
    path, is_native = variant
    ours = Tokenizer.from_file(path)
    assert ours.is_native is is_native
    for add, parse in OPTIONS:
        theirs = reference(path, parse_special=parse)
        for text in some_texts:
            expected = theirs.encode(text, add_special_tokens=add).ids
            got = ours.encode_list(text, add_special_tokens=add, parse_special=parse)
            assert got == expected, text


def test_batches_pad_as_the_reference_does(variant: tuple[Path, bool], some_texts: list[str]) -> None:
    path, _ = variant
    ours, some = Tokenizer.from_file(path), some_texts[-40:]
    for add, parse in OPTIONS:
        theirs = reference(path, parse_special=parse)
        batch = ours.encode_batch(some, add_special_tokens=add, parse_special=parse, num_threads=2)
        expected = [encoding.ids for encoding in theirs.encode_batch(some, add_special_tokens=add)]
        assert [ids.tolist() for ids in batch] == expected
        assert batch.ids.dtype == np.int32
        assert batch.offsets.dtype == np.int64


@pytest.mark.parametrize(("add", "parse"), [(True, False), (False, True)])
def test_counts_are_lengths_without_truncation_and_padding(
    variant: tuple[Path, bool], some_texts: list[str], add: bool, parse: bool
) -> None:
    path, _ = variant
    ours, theirs = Tokenizer.from_file(path), reference(path, parse_special=parse)
    encoded = [len(theirs.encode(text, add_special_tokens=add).ids) for text in some_texts]
    theirs.no_truncation()
    theirs.no_padding()
    whole = [len(theirs.encode(text, add_special_tokens=add).ids) for text in some_texts]
    options = {"add_special_tokens": add, "parse_special": parse}
    assert [ours.count(text, **options) for text in some_texts] == whole
    assert ours.count_batch(some_texts, **options).tolist() == whole
    assert [ours.count(text, truncation=True, **options) for text in some_texts] == encoded
    assert ours.count_batch(some_texts, truncation=True, **options).tolist() == encoded
    for text, count in zip(some_texts, whole, strict=True):
        assert [ours.fits(text, count + delta, **options) for delta in (0, 1)] == [True, True]
        if count:
            assert not ours.fits(text, count - 1, **options)


def test_decoding_gives_the_references_text(variant: tuple[Path, bool], some_texts: list[str]) -> None:
    path, _ = variant
    ours, theirs = Tokenizer.from_file(path), reference(path, parse_special=True)
    generator = np.random.default_rng(3)
    lists = [theirs.encode(text).ids for text in some_texts]
    # Random ids break characters in every place.
    lists += [generator.integers(0, ours.vocab_size, size=30).tolist() for _ in range(100)]
    for skip in (True, False):
        expected = [theirs.decode(ids, skip_special_tokens=skip) for ids in lists]
        assert [ours.decode(ids, skip_special_tokens=skip) for ids in lists] == expected
        assert ours.decode_batch(lists, skip_special_tokens=skip, num_threads=2) == expected


def test_the_vocabulary_is_the_references(variant: tuple[Path, bool]) -> None:
    path, _ = variant
    ours, theirs = Tokenizer.from_file(path), reference(path, parse_special=True)
    assert ours.vocab_size == theirs.get_vocab_size(with_added_tokens=True)
    for token_id in range(ours.vocab_size):
        assert ours.id_to_token(token_id) == theirs.id_to_token(token_id)
    for token, token_id in theirs.get_vocab(with_added_tokens=True).items():
        assert ours.token_to_id(token) == token_id
    assert ours.token_to_id("there is no such token") is None
    assert ours.id_to_token(ours.vocab_size) is None
    assert ours.id_to_token(-1) is None


#: Characters that decide where text is cut, and pieces of special tokens.
TRICKY = st.text(
    alphabet=st.one_of(
        st.sampled_from(list(" \t\r\n'sStTlLdD.,!?<|>x0123456789\u00e9\u0301\u3000漢🏳")),
        st.characters(exclude_categories=["Cs"], max_codepoint=0x2FFF),
    ),
    max_size=80,
)
MARKED = st.lists(st.one_of(TRICKY, st.sampled_from(["<|begin|>", "<|end|>", "<|im_start|>x"])), max_size=6)


@pytest.fixture(scope="module")
def pair(trained: dict[str, object], save: object) -> tuple[Tokenizer, dict[bool, Any]]:
    path = save(trained)  # type: ignore[operator]
    return Tokenizer.from_file(path), {parse: reference(path, parse_special=parse) for parse in (True, False)}


@settings(max_examples=repeats(300, 6000), deadline=None)
@given(parts=MARKED, parse=st.booleans())
def test_any_text_gives_the_references_ids(
    pair: tuple[Tokenizer, dict[bool, Any]], parts: list[str], parse: bool
) -> None:
    ours, theirs = pair
    text = "".join(parts)
    ids = ours.encode_list(text, parse_special=parse)
    assert ids == theirs[parse].encode(text).ids
    assert ours.count(text, parse_special=parse) == len(ids)
    assert ours.decode(ids, skip_special_tokens=False) == text
