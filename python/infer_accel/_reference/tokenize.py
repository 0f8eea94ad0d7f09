"""The specification of ``infer_accel.tokenize``: byte-level byte-pair encoding in plain Python.

Text goes through five steps: added tokens are cut out, the rest is normalized, cut into pieces by a pattern,
each piece is merged byte by byte, and the file's special tokens are put around the ids. Everything is written
to be read: merging is quadratic in the length of a piece.

Only byte-level pipelines are specified here; for everything else the ``tokenizers`` library is the
specification.
"""

from __future__ import annotations

import base64
import functools
import itertools
import json
import re
import unicodedata
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infer_accel._reference.chat import ChatTemplate
from infer_accel._reference.growing import PromptCache, Session, StreamDecoder
from infer_accel._reference.patterns import compile_pattern
from infer_accel.errors import ArgumentError, DTypeError, IdError, ShapeError, TokenizerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

__all__ = [
    "ChatTemplate",
    "PromptCache",
    "Session",
    "StreamDecoder",
    "Tokenizer",
    "bytes_of",
    "merge",
    "printable",
]


@functools.cache
def _alphabet() -> tuple[str, ...]:
    """GPT-2's printable character for each byte: itself where it is printable, else U+0100 and on."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte) if byte in kept else chr(next(others)) for byte in range(256))


def printable(content: bytes) -> str:
    """Return bytes in the alphabet in which byte-level vocabularies are written.

    >>> printable(b" the")
    'Ġthe'
    """
    return "".join(_alphabet()[byte] for byte in content)


def bytes_of(token: str) -> bytes | None:
    """Return the bytes that a written token stands for, or None if it is not in the byte-level alphabet."""
    places = _places()
    if any(character not in places for character in token):
        return None
    return bytes(places[character] for character in token)


@functools.cache
def _places() -> dict[str, int]:
    return {character: byte for byte, character in enumerate(_alphabet())}


def merge(piece: bytes, rank: Callable[[bytes, bytes], int | None]) -> list[bytes]:
    """Merge the bytes of a piece: always the pair of the lowest rank, the leftmost of equals.

    >>> ranks = {(b"a", b"b"): 0, (b"ab", b"c"): 1}
    >>> merge(b"abcab", lambda left, right: ranks.get((left, right)))
    [b'abc', b'ab']
    """
    parts = [piece[index : index + 1] for index in range(len(piece))]
    while True:
        pairs = [(rank(left, right), at) for at, (left, right) in enumerate(pairwise(parts))]
        ranked = [(found, at) for found, at in pairs if found is not None]
        if not ranked:
            return parts
        _, at = min(ranked)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


@dataclass(frozen=True)
class AddedToken:
    """A content that is found in the text before it is cut into pieces."""

    id: int
    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = True


@dataclass(frozen=True)
class Model:
    """Everything that a byte-level tokenizer is made of."""

    #: Bytes → id of what text can become.
    tokens: Mapping[bytes, int]
    #: Rank of a merge of two tokens, or None.
    rank: Callable[[bytes, bytes], int | None]
    #: A piece that is a token as a whole becomes it, whatever the merges say.
    whole_pieces_first: bool
    pattern: re.Pattern[str]
    #: Whether text between two matches of the pattern is a piece, too.
    keep_unmatched: bool
    #: Id → what it decodes to, all tokens.
    decoded: Mapping[int, bytes]
    #: Written form → id, all tokens.
    forms: Mapping[str, int]
    added: Sequence[AddedToken] = ()
    normalize: Callable[[str], str] = str
    prefix_space: bool = False
    before: Sequence[int] = ()
    after: Sequence[int] = ()
    truncation: Mapping[str, Any] | None = None
    padding: Mapping[str, Any] | None = None
    eos: int | None = None
    special: frozenset[int] = field(default_factory=frozenset)


def _find_added(
    text: str, added: Sequence[AddedToken], parse_special: bool
) -> Iterator[tuple[int, int, AddedToken]]:
    """Find added tokens in a text: the leftmost first, at one place the longest."""
    by_content = {token.content: token for token in added}
    longest_first = sorted(by_content, key=len, reverse=True)
    done = 0
    for found in re.finditer("|".join(map(re.escape, longest_first)), text) if by_content else ():
        token = by_content[found.group()]
        begin, end = found.span()
        if token.special and not parse_special:
            continue
        if token.single_word and (_is_word(text[:begin][-1:]) or _is_word(text[end:][:1])):
            continue
        if token.lstrip:
            begin = max(len(_strip_right(text[:begin])), done)
        if token.rstrip:
            end = len(text) - len(_strip_left(text[end:]))
        yield begin, end, token
        done = end


def _split_added(
    text: str, added: Sequence[AddedToken], parse_special: bool
) -> Iterator[tuple[int, int, str | int]]:
    """Cut added tokens out of a text: begin, end, and the text there or the id."""
    done = 0
    for begin, end, token in _find_added(text, added, parse_special):
        if done < begin:
            yield done, begin, text[done:begin]
        yield begin, end, token.id
        done = end
    if done < len(text):
        yield done, len(text), text[done:]


def _is_word(character: str) -> bool:
    if not character:
        return False
    category = unicodedata.category(character)
    return category[0] in "LM" or category in {"Nd", "Nl", "Pc"} or character in "\u200c\u200d"


_SPACES = (
    "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
)


def _strip_right(text: str) -> str:
    return text.rstrip(_SPACES)


def _strip_left(text: str) -> str:
    return text.lstrip(_SPACES)


def _pieces(model: Model, text: str) -> Iterator[str]:
    """Cut a text by the pattern."""
    done = 0
    for found in model.pattern.finditer(text):
        if model.keep_unmatched and found.start() > done:
            yield text[done : found.start()]
        if found.end() > found.start():
            yield found.group()
        done = found.end()
    if model.keep_unmatched and done < len(text):
        yield text[done:]


def _encode_plain(model: Model, text: str) -> Iterator[tuple[int, int]]:
    """Yield the ids of text without added tokens, each with the number of bytes of its token."""
    if model.prefix_space and not text.startswith(" "):
        text = " " + text
    for piece in _pieces(model, text):
        content = piece.encode()
        if model.whole_pieces_first and content in model.tokens:
            yield model.tokens[content], len(content)
        else:
            yield from ((model.tokens[part], len(part)) for part in merge(content, model.rank))


def _encode(model: Model, text: str, *, parse_special: bool) -> list[int]:
    """Return the ids of a text, nothing put around them."""
    exact = [token for token in model.added if not token.normalized]
    normalized = [token for token in model.added if token.normalized]
    ids: list[int] = []
    for _, _, part in _split_added(text, exact, parse_special):
        if isinstance(part, int):
            ids.append(part)
            continue
        for _, _, inner in _split_added(model.normalize(part), normalized, parse_special):
            plain = (
                [inner] if isinstance(inner, int) else [number for number, _ in _encode_plain(model, inner)]
            )
            ids.extend(plain)
    return ids


def _barriers(model: Model, text: str) -> Iterator[tuple[int, int, int]]:
    """Find the special tokens of trusted text: begin, end, id."""
    groups = [[token for token in model.added if token.normalized is late] for late in (False, True)]

    def search(begin: int, end: int, groups: list[list[AddedToken]]) -> Iterator[tuple[int, int, int]]:
        if not groups or begin >= end:
            return
        done = begin
        for start, stop, token in _find_added(text[begin:end], groups[0], parse_special=True):
            yield from search(done, begin + start, groups[1:])
            done = begin + stop
            if token.special:
                yield begin + start, done, token.id
        yield from search(done, end, groups[1:])

    yield from search(0, len(text), groups)


def _encode_segments(model: Model, segments: Sequence[tuple[str, bool]]) -> list[int]:
    """Return the ids of a text that is trusted in parts."""
    text = "".join(part for part, _ in segments)
    filled = [(part, trusted) for part, trusted in segments if part]
    if len({trusted for _, trusted in filled}) <= 1:
        return _encode(model, text, parse_special=any(trusted for _, trusted in filled))
    ids: list[int] = []
    begin = done = 0
    for trusted, run in itertools.groupby(filled, key=lambda segment: segment[1]):
        content = "".join(part for part, _ in run)
        for start, end, number in _barriers(model, content) if trusted else ():
            ids += [*_encode(model, text[done : begin + start], parse_special=False), number]
            done = begin + end
        begin += len(content)
    return [*ids, *_encode(model, text[done:], parse_special=False)]


def _locate(model: Model, text: str, *, parse_special: bool) -> Iterator[tuple[int, int, int]]:
    """Yield the ids of a text with the bytes that they stand for: id, begin, end."""
    if model.normalize(text) != text:
        raise _beyond("offsets of text that normalization changes")
    exact = [token for token in model.added if not token.normalized]
    normalized = [token for token in model.added if token.normalized]
    for first, end, part in _split_added(text, exact, parse_special):
        inner = [(0, end - first, part)]
        if isinstance(part, str):
            inner = list(_split_added(part, normalized, parse_special))
        for begin, stop, plain in inner:
            place = len(text[: first + begin].encode())
            if isinstance(plain, int):
                yield plain, place, len(text[: first + stop].encode())
                continue
            shift = 1 if model.prefix_space and not plain.startswith(" ") else 0
            at = 0
            for number, length in _encode_plain(model, plain):
                last = max(at + length - shift, 0) or len(plain[0].encode())
                yield number, place + max(at - shift, 0), place + last
                at += length


def _pad(ids: list[int], padding: Mapping[str, Any], longest: int) -> list[int]:
    """Pad one text's ids as the file says, in a batch whose longest text has `longest`."""
    strategy, multiple = padding["strategy"], padding["pad_to_multiple_of"] or 1
    target = strategy["Fixed"] if isinstance(strategy, dict) else longest
    fill = [padding["pad_id"]] * (-(-target // multiple) * multiple - len(ids))
    return fill + ids if padding["direction"] == "Left" else ids + fill


class Tokenizer:
    """The specification behind :class:`infer_accel.tokenize.Tokenizer`, with the native class's methods."""

    def __init__(self, model: Model) -> None:
        self._model = model

    @classmethod
    def from_file(cls, path: str) -> Tokenizer:
        """Read a ``tokenizer.json`` of a byte-level BPE."""
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise TokenizerError(f"cannot read {path}: {error}", code="tokenizer.read") from error
        if not content.lstrip().startswith(b"{"):
            message = f"{path} is no tokenizer.json; for tiktoken ranks use Tokenizer.from_tiktoken"
            raise TokenizerError(message, code="tokenizer.unknown_format")
        try:
            return cls(_from_json(json.loads(content)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, TokenizerError):
                raise
            raise TokenizerError(f"malformed tokenizer: {error!r}", code="tokenizer.malformed") from error

    @classmethod
    def from_dir(cls, path: str) -> Tokenizer:
        """Read the ``tokenizer.json`` of a directory."""
        return cls.from_file(str(Path(path, "tokenizer.json")))

    @classmethod
    def from_tiktoken(
        cls, path: str, pattern: str, special_tokens: Sequence[tuple[str, int]], eos_token: str | None
    ) -> Tokenizer:
        """Read lines of ``base64 rank``."""
        lines = [line.split() for line in Path(path).read_bytes().splitlines() if line.strip()]
        try:
            ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
        except ValueError as error:
            raise TokenizerError(f"malformed tokenizer: {error}", code="tokenizer.malformed") from error
        for byte in range(256):
            if bytes([byte]) not in ranks:
                raise TokenizerError(f"no token for byte 0x{byte:02x}", code="tokenizer.missing_byte")
        decoded = {rank: token for token, rank in ranks.items()}
        forms = {printable(token): rank for token, rank in ranks.items()}
        return cls(
            Model(
                tokens=ranks,
                rank=lambda left, right: ranks.get(left + right),
                whole_pieces_first=True,
                pattern=compile_pattern(pattern),
                keep_unmatched=False,
                decoded=decoded | {number: content.encode() for content, number in special_tokens},
                forms=forms | dict(special_tokens),
                added=[AddedToken(number, content) for content, number in special_tokens],
                eos=dict(special_tokens)[eos_token] if eos_token is not None else None,
                special=frozenset(number for _, number in special_tokens),
            )
        )

    def _ids(
        self, text: object, add_special_tokens: bool, parse_special: bool, truncation: bool
    ) -> list[int]:
        ids = _encode(self._model, _checked(text), parse_special=parse_special)
        return self._framed(ids, add_special_tokens, truncation=truncation)

    def _framed(self, ids: list[int], add_special_tokens: bool, *, truncation: bool) -> list[int]:
        model = self._model
        before, after = (model.before, model.after) if add_special_tokens else ((), ())
        if truncation and model.truncation is not None:
            room = model.truncation["max_length"] - len(before) - len(after)
            if len(ids) > room:
                ids = ids[len(ids) - room :] if model.truncation.get("direction") == "Left" else ids[:room]
        return [*before, *ids, *after]

    def ids_of(self, text: object, add_special_tokens: bool, parse_special: bool) -> list[int]:
        """Return the ids of a text, truncation and padding left out."""
        return self._ids(text, add_special_tokens, parse_special, truncation=False)

    def encode_list(self, text: object, add_special_tokens: bool, parse_special: bool) -> list[int]:
        """Return the ids of a text."""
        ids = self._ids(text, add_special_tokens, parse_special, truncation=True)
        padding = self._model.padding
        return _pad(ids, padding, len(ids)) if padding else ids

    def encode(self, text: object, add_special_tokens: bool, parse_special: bool) -> NDArray[np.int32]:
        """Return the ids of a text."""
        return np.array(self.encode_list(text, add_special_tokens, parse_special), dtype=np.int32)

    def encode_batch(
        self, texts: Iterable[object], add_special_tokens: bool, parse_special: bool, num_threads: int | None
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return the ids of many texts and their offsets."""
        _check_threads(num_threads)
        lists = [
            self._ids(text, add_special_tokens, parse_special, truncation=True)
            for text in _checked_texts(texts)
        ]
        if self._model.padding:
            longest = max(map(len, lists), default=0)
            lists = [_pad(ids, self._model.padding, longest) for ids in lists]
        offsets = np.cumsum([0, *map(len, lists)], dtype=np.int64)
        return np.array([number for ids in lists for number in ids], dtype=np.int32), offsets

    def count(self, text: object, add_special_tokens: bool, parse_special: bool, truncation: bool) -> int:
        """Return the number of ids of a text."""
        if truncation:
            return len(self.encode_list(text, add_special_tokens, parse_special))
        return len(self._ids(text, add_special_tokens, parse_special, truncation=False))

    def count_batch(
        self,
        texts: Iterable[object],
        add_special_tokens: bool,
        parse_special: bool,
        truncation: bool,
        num_threads: int | None,
    ) -> NDArray[np.int64]:
        """Return the number of ids of many texts."""
        _check_threads(num_threads)
        counts = [
            self.count(text, add_special_tokens, parse_special, truncation) for text in _checked_texts(texts)
        ]
        return np.array(counts, dtype=np.int64)

    def encode_segments(
        self, texts: Iterable[object], trusted: Sequence[bool], add_special_tokens: bool
    ) -> NDArray[np.int32]:
        """Return the ids of segments as of one text."""
        model = self._model
        segments = [(_checked(text), trust) for text, trust in zip(texts, trusted, strict=True)]
        ids = self._framed(_encode_segments(model, segments), add_special_tokens, truncation=True)
        return np.array(_pad(ids, model.padding, len(ids)) if model.padding else ids, dtype=np.int32)

    def offsets(
        self, text: object, in_characters: bool, add_special_tokens: bool, parse_special: bool
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return the ids of a text and where each lies in it."""
        content = _checked(text)
        located = list(_locate(self._model, content, parse_special=parse_special))
        if in_characters:
            owner = [place for place, character in enumerate(content) for _ in character.encode()]
            owner.append(len(content))
            located = [
                (number, owner[begin], owner[end - 1] + 1 if end > begin else owner[begin])
                for number, begin, end in located
            ]
        before, after = self._model.before, self._model.after
        if add_special_tokens:
            located = [
                *((number, 0, 0) for number in before),
                *located,
                *((number, 0, 0) for number in after),
            ]
        table = np.array(located, dtype=np.int64).reshape(-1, 3)
        return table[:, 0].astype(np.int32), table[:, 1:]

    def special_in(self, text: str) -> str | None:
        """Return a special token's content that the text has, if any."""
        contents = (token.content for token in self._model.added if token.special)
        return next((content for content in contents if content in text), None)

    def chat(self) -> ChatTemplate | None:
        """Return the chat template of a model's directory: none is read here."""
        return None

    def stream(self, skip_special_tokens: bool, errors: str, prompt: object | None) -> StreamDecoder:
        """Return a stream of ids to text."""
        return StreamDecoder(self, skip_special_tokens, errors, prompt)

    def session(self, add_special_tokens: bool, parse_special: bool) -> Session:
        """Return a text that grows."""
        return Session(self, add_special_tokens, parse_special)

    def fits(self, text: object, max_tokens: int, add_special_tokens: bool, parse_special: bool) -> bool:
        """Return whether a text has at most `max_tokens` ids."""
        _check_limit(max_tokens)
        return self.count(text, add_special_tokens, parse_special, truncation=False) <= max_tokens

    def truncate(self, text: object, max_tokens: int, add_special_tokens: bool, parse_special: bool) -> str:
        """Return a beginning of the text that fits: here the longest."""
        content = _checked(text)
        for end in range(len(content), 0, -1):
            if self.fits(content[:end], max_tokens, add_special_tokens, parse_special):
                return content[:end]
        return ""

    def decode_bytes(self, ids: object, skip_special_tokens: bool) -> bytes:
        """Return the bytes of ids."""
        numbers = np.asarray(ids)
        if numbers.ndim != 1:
            raise ShapeError(f"ids of shape {numbers.shape} came; pass one axis", code="shape.ids")
        if numbers.size and numbers.dtype.kind not in "iu":
            raise DTypeError(f"{numbers.dtype} came where ids are expected", code="dtype.ids")
        model, content = self._model, b""
        for number in map(int, numbers):
            if number not in model.decoded:
                within = 0 <= number <= max(model.decoded)
                raise IdError(
                    f"no token has the id {number}", code="id.unassigned" if within else "id.out_of_range"
                )
            if not (skip_special_tokens and number in model.special):
                content += model.decoded[number]
        return content

    def decode(self, ids: object, skip_special_tokens: bool, errors: str) -> str:
        """Return the text of ids."""
        return self.as_text(self.decode_bytes(ids, skip_special_tokens), errors)

    @staticmethod
    def as_text(content: bytes, errors: str) -> str:
        """Return the text of bytes."""
        if errors not in {"replace", "ignore", "strict"}:
            raise ArgumentError(f"errors={errors!r} came", code="argument.errors")
        try:
            return content.decode(errors=errors)
        except UnicodeDecodeError as error:
            raise TokenizerError(str(error), code="tokenizer.invalid_utf8") from error

    def decode_batch(
        self,
        ids: NDArray[np.int32],
        offsets: NDArray[np.int64],
        skip_special_tokens: bool,
        errors: str,
        num_threads: int | None,
    ) -> list[str]:
        """Return the texts of many lists of ids."""
        _check_threads(num_threads)
        bounds = [0, *map(int, offsets), len(ids)] if len(offsets) else [1, 0]
        if bounds != sorted(bounds):
            raise ArgumentError("the offsets do not cut the ids into parts", code="argument.offsets")
        parts = pairwise(offsets)
        return [self.decode(ids[start:end], skip_special_tokens, errors) for start, end in parts]

    def token_to_id(self, token: object) -> int | None:
        """Return the id of a written token."""
        return self._model.forms.get(_checked(token))

    def id_to_token(self, token_id: int) -> str | None:
        """Return the written form of an id."""
        return {number: form for form, number in self._model.forms.items()}.get(token_id)

    @property
    def vocab_size(self) -> int:
        """One more than the greatest id."""
        return max(self._model.decoded, default=-1) + 1

    @property
    def eos_token_id(self) -> int | None:
        """The id that ends a text."""
        return self._model.eos

    @property
    def is_native(self) -> bool:
        """Whether the native pipeline does the work: never here."""
        return False


def _checked(text: object) -> str:
    if not isinstance(text, str):
        raise DTypeError(f"{type(text).__name__} came; pass a str", code="tokenizer.not_text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = f"the text has a lone surrogate at position {error.start}"
        raise TokenizerError(message, code="tokenizer.lone_surrogate") from error
    return text


def _checked_texts(texts: Iterable[object]) -> list[object]:
    if isinstance(texts, str):
        raise DTypeError("one string came where several are expected", code="tokenizer.not_texts")
    return list(texts)


def _check_threads(num_threads: int | None) -> None:
    if num_threads is not None and num_threads < 1:
        raise ArgumentError(f"num_threads={num_threads} came; pass 1 or more", code="argument.num_threads")


def _check_limit(max_tokens: int) -> None:
    if max_tokens < 0:
        raise ArgumentError(f"max_tokens={max_tokens} came; pass 0 or more", code="argument.max_tokens")


def _from_json(file: dict[str, Any]) -> Model:
    """Read the sections of a ``tokenizer.json``."""
    model = file["model"]
    if model.get("type") != "BPE" or model.get("dropout"):
        raise _beyond("the model is no plain BPE")
    vocabulary: dict[str, int] = model["vocab"]
    tokens = {content: number for form, number in vocabulary.items() if (content := bytes_of(form))}
    if any(bytes([byte]) not in tokens for byte in range(256)):
        raise _beyond("the vocabulary is not byte-level")
    merges: dict[tuple[bytes, bytes], int] = {}
    for index, pair in enumerate(model["merges"]):
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        if left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
            message = f"the merge ({left!r}, {right!r}) needs a token that the vocabulary does not have"
            raise TokenizerError(message, code="tokenizer.malformed")
        merges[bytes_of(left) or b"", bytes_of(right) or b""] = index
    pattern, prefix_space = _split_of(file.get("pre_tokenizer"))
    before, after = _frame_of(file.get("post_processor"))
    added = [AddedToken(**token) for token in file.get("added_tokens") or ()]
    forms = vocabulary | {token.content: token.id for token in added}
    return Model(
        tokens=tokens,
        rank=lambda left, right: merges.get((left, right)),
        whole_pieces_first=bool(model.get("ignore_merges")),
        pattern=compile_pattern(pattern),
        keep_unmatched=True,
        decoded={number: bytes_of(form) or form.encode() for form, number in forms.items()},
        forms=forms,
        added=added,
        normalize=_normalizer_of(file.get("normalizer")),
        prefix_space=prefix_space,
        before=before,
        after=after,
        truncation=file.get("truncation"),
        padding=file.get("padding"),
        special=frozenset(token.id for token in added if token.special),
    )


def _beyond(what: str) -> TokenizerError:
    message = f"{what}: the specification covers byte-level BPE only; set INFER_ACCEL_BACKEND=native"
    return TokenizerError(message, code="tokenizer.beyond_reference")


def _split_of(section: dict[str, Any] | None) -> tuple[str, bool]:
    """Return the pattern, and whether a space is put before the text."""
    steps = (section or {}).get("pretokenizers", [section])
    match [step and step["type"] for step in steps]:
        case ["ByteLevel"] if steps[0].get("use_regex", True):
            return "gpt2", bool(steps[0]["add_prefix_space"])
        case ["Split", "ByteLevel"] if not steps[1]["use_regex"] and not steps[1]["add_prefix_space"]:
            if (
                steps[0]["behavior"] == "Isolated"
                and not steps[0]["invert"]
                and "Regex" in steps[0]["pattern"]
            ):
                return str(steps[0]["pattern"]["Regex"]), False
    raise _beyond("the pre_tokenizer is not a split followed by a byte-level step")


def _normalizer_of(section: dict[str, Any] | None) -> Callable[[str], str]:
    if section is None or section.get("normalizers") == []:
        return str
    if section["type"] == "NFC":
        return lambda text: unicodedata.normalize("NFC", text)
    raise _beyond(f"the normalizer {section['type']}")


def _frame_of(section: dict[str, Any] | None) -> tuple[list[int], list[int]]:
    """Return the ids that are put before and after a text."""
    if section is None or section["type"] == "ByteLevel":
        return [], []
    if section["type"] == "Sequence":
        frames = [_frame_of(step) for step in section["processors"]]
        return max(frames, key=lambda frame: len(frame[0]) + len(frame[1]), default=([], []))
    if section["type"] != "TemplateProcessing":
        raise _beyond(f"the post_processor {section['type']}")
    sides: tuple[list[int], list[int]] = ([], [])
    side = 0
    for piece in section["single"]:
        if "Sequence" in piece:
            side = 1
        else:
            sides[side].extend(section["special_tokens"][piece["SpecialToken"]["id"]]["ids"])
    return sides
