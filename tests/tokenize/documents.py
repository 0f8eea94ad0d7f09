"""Documents by chance: sections of `tokenizer.json` that hardly ever stand together in a file."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from tests.tokenize.random_texts import random_text

from infer_accel._reference.tokenize.patterns import PRESETS

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

__all__ = ["Maker"]

Section = dict[str, Any]

SPACE = "\u2581"
PATTERNS = [
    *PRESETS.values(),
    r"\s+",
    r"\p{L}+",
    " ",
    SPACE,
    "$",
    "^",
    r"[[:alpha:]]+|\p{N}{2}+",
    r"\w+|\W",
    "",
]
#: Contents of added tokens: parts of words, of each other, of what normalization changes.
CONTENTS = [
    "<|begin|>", "<|end|>", "tool", "a b", "\u00e9", "e\u0301", " x", "x ", "\n", "<s>", "  ", "\uff21", "the", "K",
    "\u0130", f"{SPACE}t", "t", "ing", "##s", "12",
]  # fmt: skip
PIECES = [*CONTENTS, " ", SPACE, "x", "\t", "\u6f22", "!", "'s", "\u0344", "1", "\0"]


class Maker:
    """Makes documents out of trained ones, and texts for them.

    Parameters
    ----------
    chance
        Decides everything.
    """

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance

    def maybe(self, probability: float) -> bool:
        """Return True with this probability."""
        return self.chance.random() < probability

    def document(self, trained: Section) -> Section:
        """Return the document with some sections replaced."""
        document = copy.deepcopy(trained)
        if self.maybe(0.6):
            self._change_model(document["model"])
        ids = _ids(document)
        sections: dict[str, Callable[[], Section | None]] = {
            "normalizer": self._normalizer,
            "pre_tokenizer": self._pre_tokenizer,
            "decoder": self._decoder,
            "post_processor": lambda: self._post_processor(ids),
        }
        for name, make in sections.items():
            if self.maybe(0.5):
                document[name] = make()
        if self.maybe(0.6):
            document["added_tokens"] = self._added_tokens(ids)
        if self.maybe(0.15):
            document["truncation"] = {
                "direction": self.chance.choice(["Left", "Right"]),
                "max_length": self.chance.choice([0, 1, 3, 7, 20]),
                "strategy": self.chance.choice(["LongestFirst", "OnlyFirst", "OnlySecond"]),
                "stride": self.chance.choice([0, 0, 1, 3]),
            }
        if self.maybe(0.15):
            document["padding"] = {
                "strategy": self.chance.choice(["BatchLongest", {"Fixed": 5}, {"Fixed": 30}]),
                "direction": self.chance.choice(["Left", "Right"]),
                "pad_to_multiple_of": self.chance.choice([None, None, 0, 1, 8]),
                "pad_id": 3,
                "pad_type_id": 0,
                "pad_token": "x",
            }
        return document

    def texts(self, hard: list[str]) -> list[str]:
        """Return some of the hard texts, rows of pieces, and random characters."""
        rows = ["".join(self.chance.choices(PIECES, k=self.chance.randrange(1, 9))) for _ in range(25)]
        return [*self.chance.sample(hard, 8), *rows, *(random_text(self.chance, 12) for _ in range(6))]

    def ids(self, document: Section, size: int) -> list[int]:
        """Return ids, often of bytes, control tokens and added tokens."""
        added = [token["id"] for token in document["added_tokens"]] or [0]
        regions = [range(4), range(270), range(size), added]
        return [self.chance.choice(self.chance.choice(regions)) for _ in range(self.chance.randrange(12))]

    def _some(self, make: Any, most: int) -> list[Section]:
        made = (make() for _ in range(self.chance.randrange(most + 1)))
        return [section for section in made if section]

    def _byte_level(self) -> Section:
        flags = {name: self.maybe(0.4) for name in ("add_prefix_space", "trim_offsets", "use_regex")}
        return {"type": "ByteLevel", **flags}

    def _metaspace(self) -> Section:
        section: Section = {
            "type": "Metaspace",
            "replacement": "_" if self.maybe(0.1) else SPACE,
            "prepend_scheme": self.chance.choice(["first", "always", "never"]),
            "split": self.maybe(0.5),
        }
        for name in ("prepend_scheme", "split"):
            if self.maybe(0.15):
                section.pop(name)
        if self.maybe(0.2):
            section["add_prefix_space"] = self.maybe(0.5)
        return section

    def _split(self) -> Section:
        behaviors = ["Isolated"] * 4 + ["Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"]
        pattern = {self.chance.choice(["Regex", "Regex", "String"]): self.chance.choice(PATTERNS)}
        return {
            "type": "Split", "pattern": pattern, "behavior": self.chance.choice(behaviors), "invert": self.maybe(0.15)
        }  # fmt: skip

    def _pre_tokenizer(self, depth: int = 0) -> Section | None:
        others: list[Section | None] = [
            None,
            {"type": "Digits", "individual_digits": self.maybe(0.7)},
            {"type": "Whitespace"},
            {"type": "WhitespaceSplit"},
            {"type": "BertPreTokenizer"},
            {"type": "UnicodeScripts"},
            {"type": "CharDelimiterSplit", "delimiter": "x"},
            {"type": "Punctuation", "behavior": "Isolated"},
        ]
        kind = self.chance.randrange(11 if depth < 2 else 8)
        if kind < 3:
            return self._byte_level()
        if kind < 5:
            return self._split()
        if kind < 7:
            return self._metaspace()
        if kind == 7:
            return self.chance.choice(others)
        return {"type": "Sequence", "pretokenizers": self._some(lambda: self._pre_tokenizer(depth + 1), 4)}

    def _normalizer(self, depth: int = 0) -> Section | None:
        marks = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
        flags = {name: self.maybe(0.5) for name in ("clean_text", "handle_chinese_chars", "lowercase")}
        pattern = {
            self.chance.choice(["String", "Regex"]): self.chance.choice([" ", "a", "\n", " {2,}", "$", "\\h"])
        }
        kinds: list[Section | None] = [
            None,
            {"type": "NFC"},
            {"type": "NFC"},
            {
                "type": self.chance.choice(
                    ["NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt", "ByteLevel"]
                )
            },
            {"type": "Prepend", "prepend": self.chance.choice([SPACE, "x", ""])},
            {"type": "Replace", "pattern": pattern, "content": self.chance.choice([SPACE, "", "b"])},
            {"type": "Strip", "strip_left": self.maybe(0.5), "strip_right": self.maybe(0.5)},
            {"type": "BertNormalizer", "strip_accents": self.chance.choice([None, True, False]), **flags},
            {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, marks]},
            marks,
        ]
        if depth < 2 and self.maybe(0.3):
            return {"type": "Sequence", "normalizers": self._some(lambda: self._normalizer(depth + 1), 3)}
        return self.chance.choice(kinds)

    def _decoder(self, depth: int = 0) -> Section | None:
        text = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
        joined = [text, {"type": "ByteFallback"}, {"type": "Fuse"}]
        strip = {
            "type": "Strip",
            "content": " ",
            "start": self.chance.randrange(2),
            "stop": self.chance.randrange(2),
        }
        kinds: list[Section | None] = [
            self._byte_level(),
            None,
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            strip,
            text,
            {"type": "WordPiece", "prefix": "##", "cleanup": self.maybe(0.5)},
            self._metaspace(),
            {"type": "Sequence", "decoders": joined},
            {"type": "Sequence", "decoders": [*joined, strip]},
        ]
        if depth < 2 and self.maybe(0.2):
            return {"type": "Sequence", "decoders": self._some(lambda: self._decoder(depth + 1), 3)}
        return self.chance.choice(kinds)

    def _post_processor(self, ids: dict[str, int], depth: int = 0) -> Section | None:
        first, last = self.chance.choices(list(ids)[:3], k=2)
        pair = {"cls": [first, ids[first]], "sep": [last, ids[last]]}
        text = {"Sequence": {"id": "A", "type_id": 0}}
        around = [self._special_tokens(first, last) for _ in range(2)]
        copies = self.chance.choice([1, 1, 2])
        kinds: list[Section | None] = [
            None,
            self._byte_level(),
            {"type": "RobertaProcessing", "trim_offsets": True, "add_prefix_space": self.maybe(0.5), **pair},
            {"type": "BertProcessing", **pair},
            {
                "type": "TemplateProcessing",
                "single": [*around[0], *[text] * self.chance.choice([1] * 9 + [0, 2]), *around[1]],
                "pair": [text, {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {
                    name: {"id": name, "ids": [ids[name]] * copies, "tokens": [name] * copies}
                    for name in {first, last}
                },
            },
        ]
        if depth < 1 and self.maybe(0.2):
            return {"type": "Sequence", "processors": self._some(lambda: self._post_processor(ids, 1), 3)}
        return self.chance.choice(kinds)

    def _special_tokens(self, *names: str) -> list[Section]:
        chosen = self.chance.choices(names, k=self.chance.randrange(3))
        return [{"SpecialToken": {"id": name, "type_id": 0}} for name in chosen]

    def _added_tokens(self, ids: dict[str, int]) -> list[Section]:
        tokens, free = [], len(ids)
        for content in self.chance.sample(CONTENTS, self.chance.randrange(6)):
            number = ids.get(content, free)
            free += content not in ids
            flags = {
                name: self.maybe(0.25)
                for name in ("single_word", "lstrip", "rstrip", "normalized", "special")
            }
            wrong = self.chance.choice([-1, 1, 7]) if self.maybe(0.02) else 0
            tokens.append({"id": number + wrong, "content": content, **flags})
        return tokens

    def _change_model(self, model: Section) -> None:
        if model["type"] == "Unigram":
            model["byte_fallback"] = self.maybe(0.5)
        if model["type"] != "BPE":
            return
        for name in ("ignore_merges", "fuse_unk", "byte_fallback"):
            if self.maybe(0.2):
                model[name] = not model.get(name)
        if self.maybe(0.15):
            model["unk_token"] = self.chance.choice(list(model["vocab"])[:5])
        if self.maybe(0.1):
            model["end_of_word_suffix"] = self.chance.choice(["", "</w>"])
        if self.maybe(0.1):
            model["continuing_subword_prefix"] = ""
        if self.maybe(0.2):
            self._drop_token(model)
        if self.maybe(0.1):
            model["merges"].append(self.chance.choice(model["merges"]))
        if self.maybe(0.1):
            self.chance.shuffle(model["merges"])

    def _drop_token(self, model: Section) -> None:
        """Take away a character or a byte, and the merges that then lack a token."""
        vocabulary = model["vocab"]
        short = [token for token in vocabulary if len(token) == 1 or token.startswith("<0x")]
        vocabulary.pop(SPACE if SPACE in short and self.maybe(0.3) else self.chance.choice(short))
        model["merges"] = [pair for pair in model["merges"] if {*pair, "".join(pair)} <= vocabulary.keys()]
        for number, token in enumerate(sorted(vocabulary, key=vocabulary.__getitem__)):
            vocabulary[token] = number


def _ids(document: Section) -> dict[str, int]:
    vocabulary = document["model"]["vocab"]
    if isinstance(vocabulary, dict):
        return vocabulary
    return {piece: number for number, (piece, _) in enumerate(vocabulary)}
