"""Tokenizers to test with: small ones trained here, and the texts that have broken tokenizers before."""

from __future__ import annotations

import copy
import json
import random
import sys
from typing import TYPE_CHECKING, Any

import pytest
from tests.tokenize.languages import LANGUAGES
from tests.tokenize.random_texts import random_text

from infer_accel._reference.tokenize.patterns import PRESETS
from infer_accel.bench import data
from infer_accel.tokenize import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

tokenizers = pytest.importorskip("tokenizers", reason="the reference: pip install tokenizers")

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
#: What DeepSeek V3 and V4 cut by, one after the other.
DEEPSEEK_SPLITS = [
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    (
        "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"
        " ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
    ),
]
SPECIAL = ["<|begin|>", "<|end|>", "<|im_start|>", "<|im_start|>x"]

ADVERSARIAL = [
    "",
    " ",
    "  ",
    "\n",
    "\r\n\r\n \r\n\t x",
    "a\0b\0\0",
    "\ufeffbyte order mark",
    "I'm you're it's WE'LL I'D can't 'S 'ſ o'K",
    "x" * 900,
    " " * 900,
    " " * 999 + "x",
    "\n" * 700,
    "ab" * 500,
    "^" * 600,
    "1234567890" * 50,
    "á" * 500,
    "e\u0301" * 300,
    "\u1e0b\u0323 \u0958 \u2126 \ufb01 \u0344",
    "👩‍👩‍👧‍👦🏳️‍🌈🇩🇪" * 20,
    "漢字かな交じり文。" * 40,
    "\u200b\u200c\u200d\u2060\u00ad",
    "\u3000\u2003\u00a0 x\u2028y\u2029z\x85\x1c\x1f",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \U0010fffd \ue000",
    "<|begin|> text <|end|><|im_start|>x<|im_start|>",
    "<|begin|", "<<|begin|>>", "<|endoftext|><|im_end|><|begin_of_text|>",
    "Ġthe Ċ <0x0A> ▁a",
    "http://example.org/a?b=c&d=%20#e",
    "def f(x):\n    return x  # äöü\n\n\n",
    "a  12 b   345678\n 9. 12漢字  カタカナ・テスト　ひらがな、  東京2020年！foo.barü .x\u0301y _éa",
    "१२३४ ٣٤٥  Ⅻ½ x²  \U00011de0\U00011de1 7",
    "\0\0a\x01 b\u0378\ue000c \u3040\u3041\u3099゛ \u301a \U0010ffff",
]  # fmt: skip


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Return texts of every kind: hard ones, prose, code, many scripts, random characters."""
    generator = random.Random(7)
    english, code = data.english()[:200_000], data.code()[:200_000]
    cut = [english[at : at + 700] for at in range(0, 60_000, 1500)]
    cut += [code[at : at + 900] for at in range(0, 60_000, 1500)]
    made = [random_text(generator, generator.randrange(1, 60)) for _ in range(400)]
    spoken = [*LANGUAGES.values(), *data.multilingual().splitlines(), data.multilingual()]
    return [*ADVERSARIAL, *spoken, *cut, *made]


@pytest.fixture(scope="session")
def some_texts(texts: list[str]) -> list[str]:
    """Return a share of the texts, for tests that run once for each setting; the hard ones are all in it."""
    return [*texts[: len(ADVERSARIAL) + 3], *texts[len(ADVERSARIAL) + 3 :: 9]]


@pytest.fixture(scope="session")
def trained() -> dict[str, Any]:
    """Return the ``tokenizer.json`` of a small byte-level BPE, as a document to vary."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=1500,
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
    )
    source = [data.english()[:300_000], data.code()[:100_000], data.multilingual() * 30]
    tokenizer.train_from_iterator(source, trainer)
    tokenizer.add_special_tokens(SPECIAL)
    document: dict[str, Any] = json.loads(tokenizer.to_str())
    return document


@pytest.fixture(scope="session")
def save(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], Path]:
    """Return a function that writes a document to a fresh file."""
    folder = tmp_path_factory.mktemp("tokenizers")

    def write(document: dict[str, Any]) -> Path:
        path = folder / f"{len(list(folder.iterdir()))}.json"
        path.write_text(json.dumps(document), "utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def small(trained: dict[str, Any], save: Callable[[dict[str, Any]], Path]) -> Tokenizer:
    """Return the trained tokenizer as it is."""
    return Tokenizer.from_file(save(trained))


def _template(document: dict[str, Any]) -> dict[str, Any]:
    begin, end = (
        next(t["id"] for t in document["added_tokens"] if t["content"] == name) for name in SPECIAL[:2]
    )

    def token(name: str, number: int) -> dict[str, Any]:
        return {"id": name, "ids": [number], "tokens": [name]}

    def piece(name: str) -> dict[str, Any]:
        return {"SpecialToken": {"id": name, "type_id": 0}}

    return {
        "type": "TemplateProcessing",
        "single": [piece(SPECIAL[0]), {"Sequence": {"id": "A", "type_id": 0}}, piece(SPECIAL[1])],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {SPECIAL[0]: token(SPECIAL[0], begin), SPECIAL[1]: token(SPECIAL[1], end)},
    }


_DIGITS = {"type": "Digits", "individual_digits": True}


def _step(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _after(*steps: dict[str, Any], **changes: bool) -> dict[str, Any]:
    """Put the byte-level step, with GPT-2's pattern unless told otherwise, after others."""
    options = {"add_prefix_space": False, "trim_offsets": True, "use_regex": True} | changes
    return {"type": "Sequence", "pretokenizers": [*steps, {"type": "ByteLevel", **options}]}


def _split(pattern: str) -> dict[str, Any]:
    return _after(_step(pattern), use_regex=False)


def _flags(document: dict[str, Any], **flags: bool) -> None:
    for token in document["added_tokens"][::2]:
        token.update(flags)


def _more_tokens(document: dict[str, Any]) -> None:
    contents = ["\u00e9t\u00e9", "a b", "tool", "e\u0301"]
    first = document["added_tokens"][-1]["id"] + 1
    for index, content in enumerate(contents):
        token = {
            "lstrip": False,
            "rstrip": False,
            "single_word": content == "tool",
            "normalized": content == "a b",
        }
        document["added_tokens"].append({"id": first + index, "content": content, "special": False, **token})


def _composed_tokens(document: dict[str, Any]) -> None:
    _more_tokens(document)
    document["added_tokens"][-1]["normalized"] = True
    document["normalizer"] = {"type": "NFC"}


def _truncation(side: str) -> dict[str, Any]:
    return {"direction": side, "max_length": 9, "strategy": "LongestFirst", "stride": 2}


def _padding(side: str, strategy: object, multiple: int | None) -> dict[str, Any]:
    shape = {"strategy": strategy, "direction": side, "pad_to_multiple_of": multiple}
    return {**shape, "pad_id": 3, "pad_type_id": 0, "pad_token": "x"}


#: Changes to the trained document, and whether the native pipeline must still serve it.
VARIANTS: dict[str, tuple[Callable[[dict[str, Any]], object], bool]] = {
    "plain": (lambda d: None, True),
    "ignore_merges": (lambda d: d["model"].update(ignore_merges=True), True),
    "no_dropout": (lambda d: d["model"].update(dropout=0.0, unk_token="<|end|>", fuse_unk=True), True),
    "prefix_space": (lambda d: d["pre_tokenizer"].update(add_prefix_space=True), True),
    "llama3_split": (lambda d: d.update(pre_tokenizer=_split(LLAMA3_SPLIT)), True),
    "nfc": (lambda d: d.update(normalizer={"type": "NFC"}), True),
    "no_normalizers": (lambda d: d.update(normalizer={"type": "Sequence", "normalizers": []}), True),
    "template": (lambda d: d.update(post_processor=_template(d)), True),
    "strip": (lambda d: _flags(d, lstrip=True, rstrip=True), True),
    "lstrip": (lambda d: _flags(d, lstrip=True), True),
    "single_word": (lambda d: _flags(d, single_word=True), True),
    "normalized": (lambda d: _flags(d, normalized=True), True),
    "ordinary": (lambda d: _flags(d, special=False), True),
    "more_tokens": (_more_tokens, True),
    "truncate_right": (
        lambda d: d.update(truncation=_truncation("Right"), post_processor=_template(d)),
        True,
    ),
    "truncate_left": (lambda d: d.update(truncation=_truncation("Left")), True),
    "pad_right": (lambda d: d.update(padding=_padding("Right", "BatchLongest", 8)), True),
    "pad_left": (lambda d: d.update(padding=_padding("Left", {"Fixed": 12}, None)), True),
    "pad_and_truncate": (
        lambda d: d.update(padding=_padding("Left", {"Fixed": 12}, 5), truncation=_truncation("Right")),
        True,
    ),
    "digits": (lambda d: d.update(pre_tokenizer=_after(_DIGITS)), True),
    "digits_and_space": (lambda d: d.update(pre_tokenizer=_after(_DIGITS, add_prefix_space=True)), False),
    "runs_of_digits": (
        lambda d: d.update(pre_tokenizer=_after({**_DIGITS, "individual_digits": False})),
        False,
    ),
    "deepseek_split": (
        lambda d: d.update(pre_tokenizer=_after(*map(_step, DEEPSEEK_SPLITS), use_regex=False)),
        True,
    ),
    "two_of_deepseek_s_splits": (
        lambda d: d.update(pre_tokenizer=_after(*map(_step, DEEPSEEK_SPLITS[:2]), use_regex=False)),
        False,
    ),
    "qwen3.5_split": (lambda d: d.update(pre_tokenizer=_split(PRESETS["qwen3.5"])), True),
    "nfkc": (lambda d: d.update(normalizer={"type": "NFKC"}), False),
    "other_split": (lambda d: d.update(pre_tokenizer=_split(r"[a-z]+|[^a-z]")), False),
    # Here `{1,3}+` is no possessive repetition, `$` ends every line, and [:punct:] knows more than ASCII.
    "cl100k_split": (lambda d: d.update(pre_tokenizer=_split(PRESETS["cl100k"])), False),
    "another_engine_s_split": (lambda d: d.update(pre_tokenizer=_split(r"\s+$|[[:punct:]]+|\w+|\s|.")), False),
    "no_decoder": (lambda d: d.update(decoder=None), False),
    "composed_tokens": (_composed_tokens, False),
}  # fmt: skip


@pytest.fixture(scope="session", params=VARIANTS)
def variant(
    request: pytest.FixtureRequest, trained: dict[str, Any], save: Callable[[dict[str, Any]], Path]
) -> tuple[Path, bool]:
    """Return a file that differs from the trained one in one setting, and whether it is native."""
    change, is_native = VARIANTS[request.param]
    document = copy.deepcopy(trained)
    change(document)
    return save(document), is_native


@pytest.fixture(params=["native", "reference"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test on both implementations."""
    monkeypatch.setenv("INFER_ACCEL_BACKEND", request.param)
    return str(request.param)


@pytest.fixture(scope="session")
def python() -> str:
    """Return this interpreter, for tests that need a process of their own."""
    return sys.executable
