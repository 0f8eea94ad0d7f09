"""Documents with any sections beside any others: the ids and the text of `tokenizers`, or a typed refusal."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest
from tests.soak import is_long, repeats
from tests.tokenize import test_spaced
from tests.tokenize.conftest import ADVERSARIAL
from tests.tokenize.documents import SPACE, Maker

from infer_accel.bench import data
from infer_accel.errors import TokenizerError
from infer_accel.tokenize import PromptCache, Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

tokenizers = pytest.importorskip("tokenizers", reason="the reference: pip install tokenizers")

HARD = [text for text in [*ADVERSARIAL, *test_spaced.HARD] if len(text) < 700]
OPTIONS = [(add, parse) for add in (True, False) for parse in (True, False)]


def _word_piece() -> dict[str, Any]:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = tokenizers.decoders.WordPiece()
    names = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=1200, show_progress=False, special_tokens=names)
    tokenizer.train_from_iterator([data.english()[:100_000], data.multilingual()], trainer)
    document: dict[str, Any] = json.loads(tokenizer.to_str())
    return document


def _unigram() -> dict[str, Any]:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram())
    tokenizer.normalizer = tokenizers.normalizers.NFKC()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=800, show_progress=False, special_tokens=names, unk_token="<unk>"
    )
    tokenizer.train_from_iterator(data.english()[:60_000].splitlines(), trainer)
    document: dict[str, Any] = json.loads(tokenizer.to_str())
    document["added_tokens"] = document["added_tokens"][:3]
    return document


@pytest.fixture(scope="module")
def kinds(trained: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        "bytes": trained,
        "spaced": test_spaced.train(),
        "word pieces": _word_piece(),
        "unigram": _unigram(),
    }


class Both:
    """Ours and the reference on one document."""

    def __init__(self, document: dict[str, Any], path: Path) -> None:
        self.ours = Tokenizer.from_file(path)
        self.theirs = {parse: tokenizers.Tokenizer.from_file(str(path)) for parse in (True, False)}
        self.theirs[False].encode_special_tokens = True
        self.cache = PromptCache(self.ours, 1 << 20)
        self.is_whole = not document.get("truncation") and not document.get("padding")

    def check(self, text: str, cut: int) -> None:
        """Compare what can be asked about a text."""
        for add, parse in OPTIONS:
            options = {"add_special_tokens": add, "parse_special": parse}
            try:
                expected = self.theirs[parse].encode(text, add_special_tokens=add).ids
            except BaseException:  # noqa: BLE001 - it raises Exception itself, and panics, which is no Exception
                continue
            assert self.ours.encode_list(text, **options) == expected, (text, options)
            assert self.cache.encode(text, **options).tolist() == expected, (text, options)
            assert self.ours.count(text, truncation=True, **options) == len(expected), (text, options)
            if not self.is_whole:
                continue
            assert self.ours.count(text, **options) == len(expected), (text, options)
            session = self.ours.session(**options)
            session.append(text[:cut])
            session.append(text[cut:])
            assert session.ids().tolist() == expected, (text, cut, options)

    def check_ids(self, ids: list[int]) -> None:
        """Compare what ids decode to, as a whole and one by one."""
        for skip in (True, False):
            try:
                expected = self.theirs[True].decode(ids, skip_special_tokens=skip)
            except BaseException:  # noqa: BLE001 - a panic: it strips what is not there
                continue
            assert self.ours.decode(ids, skip_special_tokens=skip) == expected, (ids, skip)
            stream = self.ours.stream(skip_special_tokens=skip)
            shown = "".join([stream.step(number) for number in ids]) + stream.finish()
            assert shown == expected, (ids, skip)


@pytest.mark.timeout(repeats(300, 3000))
@pytest.mark.parametrize("kind", ["bytes", "spaced", "word pieces", "unigram"])
def test_any_sections_do_what_they_do_in_the_reference(
    kinds: dict[str, dict[str, Any]], kind: str, save: Callable[[dict[str, Any]], Path]
) -> None:
    seed = random.randrange(1 << 32) if is_long() else 3
    print(f"seed {seed}")  # noqa: T201 - shown where the test fails
    maker, compared = Maker(random.Random(seed)), 0
    for _ in range(repeats(12, 600)):
        document = maker.document(kinds[kind])
        path = save(document)
        try:
            both = Both(document, path)
        except TokenizerError:
            continue
        except BaseException:  # noqa: BLE001 - what the reference refuses has no ids to compare with
            continue
        finally:
            path.write_bytes(b"")  # hundreds of them would fill a disk
        for text in maker.texts(HARD):
            both.check(text, maker.chance.randrange(len(text) + 1))
        for _ in range(30):
            known = both.theirs[True].id_to_token
            ids = maker.ids(document, both.ours.vocab_size)
            both.check_ids([number for number in ids if known(number) is not None])
        compared += 1
    assert compared > repeats(4, 200)


def test_a_space_without_its_mark_is_three_bytes(
    kinds: dict[str, dict[str, Any]], save: Callable[[dict[str, Any]], Path]
) -> None:
    document = json.loads(json.dumps(kinds["spaced"]))
    model = document["model"]
    model["vocab"] = {
        token: number for number, token in enumerate(token for token in model["vocab"] if SPACE not in token)
    }
    model["merges"] = [pair for pair in model["merges"] if SPACE not in "".join(pair)]
    document["added_tokens"].pop()
    both = Both(document, save(document))
    assert not both.ours.is_native
    for text in ("a b", " a", f"a{SPACE}b", "漢字 x"):
        both.check(text, 1)
