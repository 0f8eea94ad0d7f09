"""Text to ids and back."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from infer_accel import _backend
from infer_accel.tokenize._chat import ChatTemplate
from infer_accel.tokenize._counting import Counts
from infer_accel.tokenize._decoding import Decodes
from infer_accel.tokenize._encoding import Encodes
from infer_accel.tokenize._given import pairs_of
from infer_accel.tokenize._session import Session
from infer_accel.tokenize._stream import StreamDecoder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from infer_accel.tokenize._batch import Errors, Ids


class Tokenizer(Encodes, Counts, Decodes):
    """Text to token ids and back; made by :meth:`from_file`, :meth:`from_dir` or :meth:`from_tiktoken`.

    Immutable, shared freely between threads. Pickling keeps where it came from, and reads that again.

    Examples
    --------
    >>> tokenizer = Tokenizer.from_file("tokenizer.json")  # doctest: +SKIP
    >>> tokenizer.encode("Hello, world!")  # doctest: +SKIP
    array([9906,   11, 1917,    0], dtype=int32)
    >>> tokenizer.count("Hello, world!")  # doctest: +SKIP
    4
    """

    __slots__ = ("_chat", "_core", "_source")

    _core: Any
    _source: tuple[Any, ...]
    _chat: ChatTemplate | None

    def __init__(self) -> None:
        message = (
            "a Tokenizer is read from a file: Tokenizer.from_file(path), from_dir(path), from_tiktoken(path)"
        )
        raise TypeError(message)

    @classmethod
    def _load(cls, way: str, path: str | os.PathLike[str], *more: object) -> Tokenizer:
        source = os.fspath(path)
        core = getattr(_backend.load("tokenize").Tokenizer, way)(source, *more)
        tokenizer = cls.__new__(cls)
        tokenizer._bind(core, (way, source, *more))  # noqa: SLF001 - the object that is being made
        return tokenizer

    def _bind(self, core: object, source: tuple[object, ...]) -> None:
        self._core, self._source, self._chat = core, source, None

    def __reduce__(self) -> tuple[object, ...]:
        return (_reload, self._source)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Read a tokenizer from one file; its content says what it is, not its name.

        Parameters
        ----------
        path
            A Hugging Face ``tokenizer.json``, whose truncation, padding, normalizer and post-processor count;
            Mistral's ``tekken.json``, whose ``<s>`` is put before a text;
            a SentencePiece ``.model`` of type BPE or Unigram, around whose texts nothing is put;
            or tiktoken ranks (lines of ``base64 rank``) of a well-known vocabulary, recognised by the SHA-256
            of the file: r50k_base, p50k_base, cl100k_base, o200k_base, Llama 3's ``tokenizer.model``,
            ``qwen.tiktoken``.

        Raises
        ------
        TokenizerError
            The file cannot be read, is of no known format, or contradicts itself. For ranks of any other
            vocabulary it says to use :meth:`from_tiktoken`.
        """
        return cls._load("from_file", path)

    @classmethod
    def from_dir(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Read the tokenizer of a model's directory.

        Parameters
        ----------
        path
            A directory with a ``tokenizer.json``, or else with tiktoken ranks or a SentencePiece
            ``tokenizer.model``, which gets the tokens around a text that ``add_bos_token`` and
            ``add_eos_token`` of ``tokenizer_config.json`` ask for. The end token (:attr:`eos_token_id`)
            is taken from ``tokenizer_config.json`` or ``special_tokens_map.json``, the chat template
            (:attr:`chat`) from ``chat_template.jinja`` or ``tokenizer_config.json``.

        Raises
        ------
        TokenizerError
            As for :meth:`from_file`, and where the directory has no tokenizer.
        """
        return cls._load("from_dir", path)

    @classmethod
    def from_tiktoken(
        cls,
        path: str | os.PathLike[str],
        *,
        pattern: str,
        special_tokens: Mapping[str, int] | None = None,
        eos_token: str | None = None,
    ) -> Tokenizer:
        """Read tiktoken ranks, with what such a file does not say.

        Parameters
        ----------
        path
            Lines of ``base64 rank``, plain, not compressed.
        pattern
            The regular expression that cuts text into pieces (tiktoken's ``pat_str``), or the name of a
            well-known one: ``"gpt2"``, ``"cl100k"``, ``"o200k"``, ``"llama3"``, ``"qwen2"``,
            ``"qwen3.5"``, ``"tekken"``. Well-known
            patterns run on scanners of their own, others on a regex engine.
        special_tokens
            Contents and ids of special tokens.
        eos_token
            Which of them ends a text.

        Raises
        ------
        TokenizerError
            The file cannot be read or is malformed, a byte has no rank, the pattern is no regular expression,
            or a special token's id is already a rank.
        """
        return cls._load("from_tiktoken", path, pattern, pairs_of(special_tokens), eos_token)

    def stream(
        self, *, skip_special_tokens: bool = True, errors: Errors = "replace", prompt: Ids | None = None
    ) -> StreamDecoder:
        """Return a stream that turns ids into text as they come.

        Parameters
        ----------
        skip_special_tokens, errors
            As for :meth:`decode`.
        prompt
            Ids that the stream goes on after. Their text is not returned; it matters where the first new token
            ends a character, or where the tokenizer drops the space at the beginning of a text.

        Raises
        ------
        IdError, DTypeError, ShapeError, ArgumentError
            As for :meth:`decode`.

        Notes
        -----
        O(1) for native pipelines, whatever the vocabulary; checking `prompt` is linear in its length.
        """
        return StreamDecoder.of(self._core.stream(skip_special_tokens, errors, prompt))

    def session(self, *, add_special_tokens: bool = True, parse_special: bool = False) -> Session:
        """Return the empty text, to append to; see :class:`Session`.

        Parameters
        ----------
        add_special_tokens, parse_special
            As for :meth:`encode`.
        """
        return Session.of(self._core.session(add_special_tokens, parse_special))

    @property
    def chat(self) -> ChatTemplate | None:
        """The chat template of the model's directory, or None.

        It is read by :meth:`from_dir`, from ``chat_template.jinja`` or ``tokenizer_config.json``; to use
        another, make a :class:`ChatTemplate`.

        Raises
        ------
        TokenizerError
            It is no template.
        """
        if self._chat is None:
            core = self._core.chat()
            self._chat = None if core is None else ChatTemplate.of(core, self)
        return self._chat

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token in its written form, or None.

        Byte-level tokens are written in GPT-2's printable alphabet (``Ġthe`` for ``b" the"``), whatever the
        file.
        """
        found: int | None = self._core.token_to_id(token)
        return found

    def id_to_token(self, token_id: int) -> str | None:
        """Return the written form of an id, or None where no token has it."""
        token: str | None = self._core.id_to_token(token_id)
        return token

    @property
    def vocab_size(self) -> int:
        """One more than the greatest id, added tokens included: the least width of a table by id."""
        size: int = self._core.vocab_size
        return size

    @property
    def eos_token_id(self) -> int | None:
        """The id that ends a text, where the source of the tokenizer says so."""
        found: int | None = self._core.eos_token_id
        return found

    @property
    def is_native(self) -> bool:
        """Whether the native pipeline does the work; if not, the ``tokenizers`` crate does."""
        native: bool = self._core.is_native
        return native

    def __len__(self) -> int:
        """Return :attr:`vocab_size`."""
        return self.vocab_size

    def __repr__(self) -> str:
        way, source = self._source[:2]
        return f"Tokenizer.{way}({source!r})"


def _reload(way: str, source: str, *more: object) -> Tokenizer:
    return Tokenizer._load(way, source, *more)  # noqa: SLF001 - the other half of Tokenizer.__reduce__
