"""Strings that are converted outside the interpreter: every width, the lengths where it begins and ends, threads."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infer_accel.errors import TokenizerError
from infer_accel.tokenize import PromptCache

if TYPE_CHECKING:
    from infer_accel.tokenize import Tokenizer

#: One character of each width that the interpreter has: a byte, two, four. ASCII is never converted.
WIDTHS = ["é", "漢", "😀", "a"]
#: Characters from which a string is converted outside, and up to which.
SHORTEST, LONGEST = 1024, 512 * 1024
LENGTHS = [SHORTEST - 1, SHORTEST, SHORTEST + 1, LONGEST - 1, LONGEST, LONGEST + 1]


def expect_the_same(tokenizer: Tokenizer, text: str) -> None:
    expected = tokenizer.encode_list(text)
    assert PromptCache(tokenizer, 1 << 16).encode(text).tolist() == expected
    assert PromptCache(tokenizer, 1 << 16).count(text) == len(expected)


@pytest.mark.parametrize("character", WIDTHS)
@pytest.mark.parametrize("length", LENGTHS)
def test_every_width_and_length(small: Tokenizer, character: str, length: int) -> None:
    # The widest character last: the string is wide, and all others in it are narrow.
    expect_the_same(small, ("word and " * (length // 9 + 1))[: length - 1] + character)


@settings(max_examples=60)
@given(st.lists(st.text(min_size=1), min_size=1, max_size=8), st.integers(SHORTEST // 2, 3 * SHORTEST))
def test_any_characters_one_after_the_other(small: Tokenizer, parts: list[str], length: int) -> None:
    for part in parts:
        expect_the_same(small, (part * length)[:length])


@pytest.mark.parametrize("position", [0, SHORTEST, 4 * SHORTEST - 1])
def test_what_is_no_character_is_named_and_leaves_nothing_behind(small: Tokenizer, position: int) -> None:
    text = "é" * (4 * SHORTEST)
    cache = PromptCache(small, 1 << 16)
    with pytest.raises(TokenizerError, match=f"at position {position}") as caught:
        cache.encode(f"{text[:position]}\udcff{text[position + 1 :]}")
    assert caught.value.code == "tokenizer.lone_surrogate"
    expect_the_same(small, text)


def test_threads_do_not_share_a_conversion(small: Tokenizer) -> None:
    texts = [f"{character} {number} " * (2 * SHORTEST) for number, character in enumerate(WIDTHS * 2)]
    expected = [small.encode_list(text) for text in texts]
    cache, wrong = PromptCache(small, 1 << 20), []

    def encode(index: int) -> None:
        for turn in range(20):
            which = (index + turn) % len(texts)
            if cache.encode(texts[which]).tolist() != expected[which]:
                wrong.append((index, turn))

    threads = [threading.Thread(target=encode, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
