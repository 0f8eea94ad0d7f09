"""Mistral's tekken.json: a small one made here, and those that a package carries, against tiktoken."""

from __future__ import annotations

import base64
import copy
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.soak import repeats

from infer_accel._reference.tokenize.alphabet import bytes_of
from infer_accel._reference.tokenize.patterns import PRESETS
from infer_accel.errors import TokenizerError
from infer_accel.tokenize import PromptCache, Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

tiktoken = pytest.importorskip("tiktoken", reason="the reference: pip install tiktoken")

RESERVED = 30


def packaged() -> list[Path]:
    """Return the files that mistral-common carries."""
    spec = importlib.util.find_spec("mistral_common")
    places = (spec.submodule_search_locations or []) if spec else []
    return [path for place in places for path in sorted(Path(place, "data").glob("tekken*.json"))]


@pytest.fixture(scope="session")
def made(trained: dict[str, Any]) -> dict[str, Any]:
    """Return a document whose tokens are the trained ones, single bytes first, with more of them than it uses."""
    merged = [bytes_of(form) or b"" for form in trained["model"]["vocab"]]
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [token for token in merged if len(token) > 1]
    vocabulary = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
        for rank, token in enumerate(tokens)
    ]
    config = {
        "pattern": PRESETS["tekken"],
        "num_vocab_tokens": len(tokens),
        "default_vocab_size": RESERVED + len(tokens) - 100,
        "default_num_special_tokens": RESERVED,
        "version": "v3",
    }
    return {"config": config, "vocab": vocabulary}


def oracle(document: dict[str, Any]) -> Callable[[str], list[int]]:
    config = document["config"]
    reserved = config["default_num_special_tokens"]
    used = config["default_vocab_size"] - reserved
    ranks = {base64.b64decode(token["token_bytes"]): token["rank"] for token in document["vocab"][:used]}
    encoding = tiktoken.Encoding(
        "tekken", pat_str=config["pattern"], mergeable_ranks=ranks, special_tokens={}
    )
    return lambda text: [number + reserved for number in encoding.encode_ordinary(text)]


@pytest.fixture(scope="module")
def small_tekken(made: dict[str, Any], save: Callable[[dict[str, Any]], Path]) -> Tokenizer:
    return Tokenizer.from_file(save(made))


def test_ids_are_those_of_the_reference(
    small_tekken: Tokenizer, made: dict[str, Any], texts: list[str]
) -> None:
    expected = oracle(made)
    assert small_tekken.is_native
    for text in texts:
        assert small_tekken.encode_list(text, add_special_tokens=False) == expected(text), text
        assert small_tekken.encode_list(text) == [1, *expected(text)]
        assert small_tekken.count(text) == len(expected(text)) + 1


@settings(max_examples=repeats(300, 6000), deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_has_the_ids_of_the_reference(
    small_tekken: Tokenizer, made: dict[str, Any], text: str
) -> None:
    assert small_tekken.encode_list(text, add_special_tokens=False) == oracle(made)(text)
    assert small_tekken.decode(small_tekken.encode(text)) == text


@pytest.mark.parametrize("path", packaged(), ids=lambda path: path.name)
def test_packaged_files_have_the_ids_of_the_reference(path: Path, texts: list[str]) -> None:
    tokenizer, expected = Tokenizer.from_file(path), oracle(json.loads(path.read_bytes()))
    cache = PromptCache(tokenizer, 1 << 20)
    for text in texts:
        assert tokenizer.encode_list(text, add_special_tokens=False) == expected(text), text
        assert cache.encode(text, add_special_tokens=False).tolist() == expected(text), text
    assert (tokenizer.vocab_size, tokenizer.eos_token_id) == (131072, 2)
    ids = tokenizer.encode_list("[INST]Hi[/INST]", parse_special=True)
    assert (ids[0], ids[1], ids[-1]) == (1, 3, 4)


def test_special_tokens_are_listed_or_the_usual_ones(
    made: dict[str, Any], save: Callable[[dict[str, Any]], Path]
) -> None:
    usual = Tokenizer.from_file(save(made))
    assert usual.token_to_id("[TOOL_CONTENT]") == 19
    assert usual.id_to_token(20) == "<SPECIAL_20>"
    assert usual.eos_token_id == 2
    document = copy.deepcopy(made)
    names = ["<unk>", "</s>", "[MINE]"]
    document["special_tokens"] = [
        {"rank": rank, "token_str": name, "is_control": True} for rank, name in enumerate(names)
    ]
    own = Tokenizer.from_file(save(document))
    assert (own.token_to_id("[MINE]"), own.id_to_token(3), own.eos_token_id) == (2, "<SPECIAL_3>", 1)
    assert own.encode_list("x") == own.encode_list("x", add_special_tokens=False)
    assert own.encode_list("[MINE]", parse_special=True) == [2]


def test_a_directory_may_hold_one(made: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "tekken.json").write_text(json.dumps(made))
    assert Tokenizer.from_dir(tmp_path).encode_list("x") == [1, RESERVED + ord("x")]


def _twice(document: dict[str, Any]) -> None:
    document["vocab"][3]["rank"] = 2


def _listed(document: dict[str, Any], *tokens: tuple[int, str]) -> None:
    document["special_tokens"] = [{"rank": rank, "token_str": name} for rank, name in tokens]


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["config"].pop("pattern"),
        lambda d: d["config"].update(pattern="("),
        lambda d: d["config"].update(default_vocab_size=5),
        lambda d: d["config"].update(default_vocab_size=1 << 40),
        lambda d: d["config"].update(default_num_special_tokens=3),
        lambda d: d["vocab"].clear(),
        lambda d: d["vocab"][300].update(token_bytes="not base64"),
        lambda d: d["vocab"][300].update(token_bytes=""),
        lambda d: d["vocab"][300].update(token_bytes="YQ=="),
        lambda d: d["vocab"][5].update(rank=100_000),
        _twice,
        lambda d: _listed(d, (0, "a"), (2, "b")),
        lambda d: _listed(d, (0, "a"), (1, "a")),
        lambda d: _listed(d, (0, "")),
        lambda d: d.update(vocab="x"),
    ],
)
def test_malformed_files_are_refused(
    made: dict[str, Any], save: Callable[[dict[str, Any]], Path], change: Callable[[dict[str, Any]], object]
) -> None:
    document = copy.deepcopy(made)
    change(document)
    with pytest.raises(TokenizerError):
        Tokenizer.from_file(save(document))
