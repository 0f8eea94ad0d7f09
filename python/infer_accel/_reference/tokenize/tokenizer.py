"""The specification of a tokenizer's calls."""

from __future__ import annotations

import base64
import json
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from infer_accel._files import read_plain
from infer_accel._reference.tokenize.alphabet import printable
from infer_accel._reference.tokenize.encoding import encode, encode_segments, locate, pad
from infer_accel._reference.tokenize.growing import Session, StreamDecoder
from infer_accel._reference.tokenize.loading import from_json
from infer_accel._reference.tokenize.model import AddedToken, Model
from infer_accel._reference.tokenize.patterns import compile_pattern
from infer_accel.errors import ArgumentError, DTypeError, IdError, ShapeError, TokenizerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from infer_accel._reference.tokenize.chat import ChatTemplate


class Tokenizer:
    """The specification behind :class:`infer_accel.tokenize.Tokenizer`, with the native class's methods."""

    def __init__(self, model: Model) -> None:
        self._model = model

    @classmethod
    def from_file(cls, path: str) -> Tokenizer:
        """Read a ``tokenizer.json`` of a byte-level BPE."""
        content = _content_of(path)
        if not content.lstrip().startswith(b"{"):
            message = f"{path} is no tokenizer.json; for tiktoken ranks use Tokenizer.from_tiktoken"
            raise TokenizerError(message, code="tokenizer.unknown_format")
        try:
            return cls(from_json(json.loads(content)))
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
        lines = [line.split() for line in _content_of(path).splitlines() if line.strip()]
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
                patterns=[compile_pattern(pattern)],
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
        ids = encode(self._model, _checked(text), parse_special=parse_special)
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
        return pad(ids, padding, len(ids)) if padding else ids

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
            lists = [pad(ids, self._model.padding, longest) for ids in lists]
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
        ids = self._framed(encode_segments(model, segments), add_special_tokens, truncation=True)
        return np.array(pad(ids, model.padding, len(ids)) if model.padding else ids, dtype=np.int32)

    def offsets(
        self, text: object, in_characters: bool, add_special_tokens: bool, parse_special: bool
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return the ids of a text and where each lies in it."""
        content = _checked(text)
        located = list(locate(self._model, content, parse_special=parse_special))
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

    def decode_lists(
        self, lists: Iterable[object], skip_special_tokens: bool, errors: str, num_threads: int | None
    ) -> list[str]:
        """Return the texts of many lists of ids."""
        _check_threads(num_threads)
        return [self.decode(ids, skip_special_tokens, errors) for ids in lists]

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


def _content_of(path: str) -> bytes:
    try:
        return read_plain(path)
    except OSError as error:
        raise TokenizerError(f"cannot read {path}: {error}", code="tokenizer.read") from error


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
    if any(hasattr(texts, name) for name in ("__arrow_c_stream__", "__arrow_c_array__")):
        # What exports Arrow data knows how to become a list, under one of two names.
        to_list: Callable[[], list[object]] = getattr(texts, "to_pylist", None) or getattr(texts, "to_list")  # noqa: B009
        texts = to_list()
        if None in texts:
            raise DTypeError("a text is null", code="tokenizer.null_text")
    return list(texts)


def _check_threads(num_threads: int | None) -> None:
    if num_threads is not None and num_threads < 1:
        raise ArgumentError(f"num_threads={num_threads} came; pass 1 or more", code="argument.num_threads")


def _check_limit(max_tokens: int) -> None:
    if max_tokens < 0:
        raise ArgumentError(f"max_tokens={max_tokens} came; pass 0 or more", code="argument.max_tokens")
