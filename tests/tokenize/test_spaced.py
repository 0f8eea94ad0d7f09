"""Byte-pair vocabularies that write spaces as SentencePiece does, in tokenizer.json: id by id as `tokenizers`."""

from __future__ import annotations

import copy
import json
import random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.soak import repeats
from tests.tokenize.conftest import ADVERSARIAL
from tests.tokenize.random_texts import random_text

from infer_accel.bench import data, sentencepiece
from infer_accel.tokenize import PromptCache, Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

tokenizers = pytest.importorskip("tokenizers", reason="the reference: pip install tokenizers")

SPACE = "\u2581"
HARD = [
    SPACE, f"{SPACE}{SPACE}a {SPACE}b", f"a{SPACE}b", " a", "  a ", "\n\n a", "<s>a</s> b<s> c", "<s>", "<s> <s>",
    "x<0x0A>y", "<0x", "tool tools <s>tool", " \t \t  x   \n    y", "a" * 300 + " " * 300 + "b", "\u2582\u2580" * 9,
]  # fmt: skip


def train() -> dict[str, Any]:
    """Return a small vocabulary trained here, in the form of Llama 2's and Mistral's first."""
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=1800,
        show_progress=False,
        limit_alphabet=200,
        special_tokens=["<unk>", "<s>", "</s>", *bytes_],
    )
    tokenizer.train_from_iterator([data.english()[:300_000], data.multilingual() * 20], trainer)
    document: dict[str, Any] = json.loads(tokenizer.to_str())
    model = document["model"]
    spaces = [SPACE * count for count in (2, 3, 4, 8)]
    for run in spaces:
        model["vocab"][run] = len(model["vocab"])
    model["merges"] += [[SPACE, SPACE], [SPACE * 2, SPACE], [SPACE * 2, SPACE * 2], [SPACE * 4, SPACE * 4]]
    document["added_tokens"] = document["added_tokens"][:3]
    document["added_tokens"].append(
        {"id": len(model["vocab"]), "content": "tool", "special": False, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False}
    )  # fmt: skip
    document["pre_tokenizer"] = None
    document["normalizer"] = {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": SPACE},
        {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
    ]}  # fmt: skip
    document["decoder"] = {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"},
        {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]}  # fmt: skip
    return document


def _metaspace(scheme: str, *, split: bool) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        document["normalizer"] = None
        document["pre_tokenizer"] = {
            "type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": split,
        }  # fmt: skip

    return change


def _only_replaced(document: dict[str, Any]) -> None:
    document["normalizer"] = document["normalizer"]["normalizers"][1]
    document["pre_tokenizer"] = {
        "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False,
    }  # fmt: skip
    document["decoder"]["decoders"].pop()


def _token_across_words(document: dict[str, Any]) -> None:
    model = document["model"]
    model["vocab"][f"e{SPACE}t"] = len(model["vocab"])
    document["added_tokens"].pop()
    model["merges"].insert(0, [f"e{SPACE}", "t"])
    model["merges"].insert(0, ["e", SPACE])
    model["vocab"][f"e{SPACE}"] = len(model["vocab"])


def _normalized(document: dict[str, Any]) -> None:
    document["added_tokens"][1]["normalized"] = True


#: Changes to the trained document, and whether the native pipeline must still serve it.
VARIANTS: dict[str, tuple[Callable[[dict[str, Any]], object], bool]] = {
    "legacy": (lambda d: None, True),
    "first": (_metaspace("first", split=False), True),
    "always": (_metaspace("always", split=False), True),
    "never": (_metaspace("never", split=False), True),
    "words": (_metaspace("always", split=True), True),
    "only_replaced": (_only_replaced, True),
    "token_across_words": (_token_across_words, True),
    "added_strip": (lambda d: d["added_tokens"][3].update(lstrip=True, rstrip=True), True),
    "added_single_word": (lambda d: d["added_tokens"][3].update(single_word=True), True),
    "normalized": (_normalized, False),
    "ignore_merges": (lambda d: d["model"].update(ignore_merges=True), False),
    "no_byte_fallback": (lambda d: d["model"].update(byte_fallback=False), False),
    "missing_byte": (lambda d: d["model"]["vocab"].pop("<0x41>"), False),
    "other_decoder": (lambda d: d["decoder"]["decoders"].pop(1), False),
}  # fmt: skip


class Both:
    """Ours and the reference on one file."""

    def __init__(self, path: Path) -> None:
        self.ours = Tokenizer.from_file(path)
        self.plain, self.parsing = (tokenizers.Tokenizer.from_file(str(path)) for _ in range(2))
        self.plain.encode_special_tokens = True
        self.cache = PromptCache(self.ours, 1 << 20)

    def check(self, text: str) -> None:
        """Compare everything that can be asked about a text."""
        ours = self.ours
        for add in (True, False):
            expected = self.plain.encode(text, add_special_tokens=add).ids
            assert ours.encode_list(text, add_special_tokens=add) == expected, text
            assert ours.count(text, add_special_tokens=add) == len(expected), text
            assert self.cache.encode(text, add_special_tokens=add).tolist() == expected, text
        parsed = self.parsing.encode(text)
        assert ours.encode_list(text, parse_special=True) == parsed.ids, text
        offsets = ours.offsets(text, parse_special=True)
        assert [tuple(bounds) for bounds in offsets.bounds.tolist()] == parsed.offsets, text
        assert ours.decode(parsed.ids) == self.parsing.decode(parsed.ids), text
        for limit in {0, 1, len(expected) // 2, max(len(expected) - 1, 0), len(expected)}:
            beginning = ours.truncate(text, limit, add_special_tokens=False)
            assert text.startswith(beginning), text
            assert ours.count(beginning, add_special_tokens=False) <= limit, text
            assert ours.fits(text, limit, add_special_tokens=False) == (len(expected) <= limit), text

    def check_session(self, text: str, cut: int) -> None:
        """Compare a text that arrives in parts."""
        session = self.ours.session()
        session.append(text[:cut])
        session.append(text[cut:])
        assert session.ids().tolist() == self.plain.encode(text).ids, text

    def check_ids(self, ids: list[int]) -> None:
        """Compare what can be asked about ids."""
        for skip in (True, False):
            text = self.parsing.decode(ids, skip_special_tokens=skip)
            assert self.ours.decode(ids, skip_special_tokens=skip) == text, ids
        stream = self.ours.stream(skip_special_tokens=False)
        steps = [stream.step(token_id) for token_id in ids]
        assert "".join(steps) + stream.finish() == text, ids


@pytest.fixture(scope="module")
def trained_spaced() -> dict[str, Any]:
    return train()


@pytest.fixture(scope="module", params=VARIANTS)
def variant_of_spaced(
    request: pytest.FixtureRequest, trained_spaced: dict[str, Any], save: Callable[[dict[str, Any]], Path]
) -> Both:
    change, is_native = VARIANTS[request.param]
    document = copy.deepcopy(trained_spaced)
    change(document)
    both = Both(save(document))
    assert both.ours.is_native is is_native
    return both


@pytest.fixture(scope="module", params=["mistral-v1", "mistral-v3"])
def mistral(request: pytest.FixtureRequest, save: Callable[[dict[str, Any]], Path]) -> Both:
    path = sentencepiece.find_model(request.param)
    if path is None:
        pytest.skip("no vocabulary: pip install mistral-common")
    both = Both(save(sentencepiece.as_tokenizer_json(sentencepiece.pieces(path))))
    assert both.ours.is_native
    return both


def _texts(generator: random.Random, count: int) -> Iterator[str]:
    for _ in range(count):
        text = random_text(generator, generator.randrange(1, 50))
        yield text
        words = [
            generator.choice(["tool", "<s>", " ", "  ", SPACE, "\n", "the", "漢", text[:3]]) for _ in range(9)
        ]
        yield "".join(words)


def test_every_variant_is_the_reference(variant_of_spaced: Both, some_texts: list[str]) -> None:
    for text in [*HARD, *ADVERSARIAL, *some_texts[::3]]:
        variant_of_spaced.check(text)
        variant_of_spaced.check_session(text, len(text) // 2)
    for text in _texts(random.Random(5), 60):
        variant_of_spaced.check(text)
        variant_of_spaced.check_session(text, len(text) // 3)


def test_a_growing_text_is_encoded_once(variant_of_spaced: Both) -> None:
    ours, cache = variant_of_spaced.ours, PromptCache(variant_of_spaced.ours, 4 << 20)
    if not ours.is_native:
        pytest.skip("no places to cut are known")
    prose, session = data.english()[:20_000], ours.session()
    for end in range(2_000, 20_001, 2_000):
        session.append(prose[end - 2_000 : end])
        expected = variant_of_spaced.plain.encode(prose[:end]).ids
        assert session.ids().tolist() == expected
        assert len(session) - session.settled < 200
        assert cache.encode(prose[:end]).tolist() == expected
        assert cache.count(prose[:end]) == len(expected)
    assert cache.stats.hit_rate > 0.7


def test_every_form_leads_to_its_id(variant_of_spaced: Both) -> None:
    ours, reference = variant_of_spaced.ours, variant_of_spaced.parsing
    for token_id in range(ours.vocab_size):
        form = reference.id_to_token(token_id)
        assert ours.id_to_token(token_id) == form
        assert form is None or ours.token_to_id(form) == reference.token_to_id(form)


def test_ids_come_out_as_the_reference_shows_them(variant_of_spaced: Both) -> None:
    generator = random.Random(3)
    for _ in range(300):
        top = generator.choice([270, variant_of_spaced.ours.vocab_size])
        ids = [generator.randrange(top) for _ in range(generator.randrange(10))]
        variant_of_spaced.check_ids(
            [token_id for token_id in ids if variant_of_spaced.ours.id_to_token(token_id)]
        )


@settings(max_examples=repeats(120, 2400), deadline=None)
@given(
    text=st.text(
        alphabet=st.one_of(st.sampled_from(f" {SPACE}ate\n."), st.characters(exclude_categories=["Cs"]))
    )
)
def test_any_text(mistral: Both, text: str) -> None:
    mistral.check(text)
    mistral.check_session(text, len(text) // 2)


def test_mistral_on_hard_and_real_texts(mistral: Both, texts: list[str]) -> None:
    for text in [*HARD, *texts, data.english()[-300_000:], data.code()[-200_000:]]:
        mistral.check(text)
    for text in _texts(random.Random(9), 300):
        mistral.check(text)


def test_a_word_without_end_takes_no_quadratic_time(mistral: Both) -> None:
    for text in ("a" * 1_000_000, " " * 1_000_000, "ab" * 400_000, "\u6f22" * 200_000):
        array = mistral.ours.encode(text)
        assert mistral.ours.count(text) == len(array)
        assert mistral.ours.decode(array) == text
