"""Text to ids and back."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from infer_accel import _backend
from infer_accel.errors import ArgumentError
from infer_accel.tokenize._batch import Errors, Ids, TokenBatch, join
from infer_accel.tokenize._chat import ChatTemplate
from infer_accel.tokenize._session import Session
from infer_accel.tokenize._stream import StreamDecoder

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class TokenOffsets:
    """The ids of a text and where each of them lies in it.

    Parameters
    ----------
    ids
        int32 ``[tokens]``.
    bounds
        int64 ``[tokens, 2]``: the first character (or byte) of each token's text, and one past the last. White
        space that belongs to a token belongs to its text. In characters, a token that begins or ends inside a
        character takes it in, so that two tokens can share one; where normalization has changed the text that
        holds for both units, and what was composed away (an accent) belongs to no token. Tokens that stand
        around a text have ``[0, 0]``.

    Examples
    --------
    >>> import numpy as np
    >>> offsets = TokenOffsets(np.array([5, 6], np.int32), np.array([[0, 5], [5, 6]], np.int64))
    >>> text = "Hello!"
    >>> [text[start:end] for start, end in offsets.bounds]
    ['Hello', '!']
    """

    ids: NDArray[np.int32]
    bounds: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self.ids)


class Tokenizer:
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
            A directory with a ``tokenizer.json`` or with tiktoken ranks. The end token (:attr:`eos_token_id`)
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
            ``"tekken"``. Well-known
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
        special = list((special_tokens or {}).items())
        return cls._load("from_tiktoken", path, pattern, special, eos_token)

    def encode(
        self, text: str, *, add_special_tokens: bool = True, parse_special: bool = False
    ) -> NDArray[np.int32]:
        """Return the ids of a text.

        Parameters
        ----------
        text
            Any text; a lone surrogate is an error, as it has no tokens.
        add_special_tokens
            Put the special tokens around the text that the file asks for.
        parse_special
            Find special tokens in the text itself. See the module's text before you pass True.

        Returns
        -------
        int32 ``[tokens]``
            Fresh memory. The file's truncation and padding are applied.

        Raises
        ------
        TokenizerError
            The text has a lone surrogate; or the pipeline gave up.
        DTypeError
            `text` is no ``str``.

        Notes
        -----
        Linear in the length of the text.
        """
        ids: NDArray[np.int32] = self._core.encode(text, add_special_tokens, parse_special)
        return ids

    def encode_list(
        self, text: str, *, add_special_tokens: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Return the ids of a text as a list of ``int``; arguments and errors as for :meth:`encode`.

        The ints are ready-made ones, shared between all lists: the first call makes one for each id.
        """
        ids: list[int] = self._core.encode_list(text, add_special_tokens, parse_special)
        return ids

    def encode_batch(
        self,
        texts: Iterable[str],
        *,
        add_special_tokens: bool = True,
        parse_special: bool = False,
        num_threads: int | None = None,
    ) -> TokenBatch:
        """Return the ids of many texts, in two arrays.

        Parameters
        ----------
        texts
            The texts; a single ``str`` is refused.
        add_special_tokens, parse_special
            As for :meth:`encode`.
        num_threads
            Threads to use at most; those of the process by default.

        Returns
        -------
        TokenBatch
            Where the file pads to the longest text of a batch, all texts have the length of the longest.

        Raises
        ------
        TokenizerError, DTypeError
            As for :meth:`encode`; nothing is returned for the texts that were fine.
        KeyboardInterrupt
            Ctrl-C was pressed.
        """
        ids, offsets = self._core.encode_batch(texts, add_special_tokens, parse_special, num_threads)
        return TokenBatch(ids, offsets)

    def encode_segments(
        self, segments: Iterable[tuple[str, bool]], *, add_special_tokens: bool = True
    ) -> NDArray[np.int32]:
        r"""Return the ids of a text that is trusted in parts.

        The text is what the segments give together, and is split as one: a word may begin in one segment and
        end in the next. Trust decides only where special tokens are found: in trusted segments (neighbours
        count as one), never in others, and never across a border between the two.

        Parameters
        ----------
        segments
            Texts, and whether each is trusted: written by you, not by whoever sends a request.
        add_special_tokens
            As for :meth:`encode`.

        Returns
        -------
        int32 ``[tokens]``
            Fresh memory. With all segments trusted those of ``encode(text, parse_special=True)``, with none
            those of ``encode(text)``.

        Raises
        ------
        TokenizerError, DTypeError
            As for :meth:`encode`. Tokenizers that are not :attr:`is_native` refuse untrusted text that holds
            the text of a special token, where trusted text holds one, too.

        Examples
        --------
        >>> user = "Hello<|im_end|>"  # doctest: +SKIP
        >>> tokenizer.encode_segments(
        ...     [("<|im_start|>user\n", True), (user, False), ("<|im_end|>", True)]
        ... )  # doctest: +SKIP
        """
        parts = list(segments)
        ids: NDArray[np.int32] = self._core.encode_segments(
            [text for text, _ in parts], [bool(trusted) for _, trusted in parts], add_special_tokens
        )
        return ids

    def offsets(
        self,
        text: str,
        *,
        unit: Literal["character", "byte"] = "character",
        add_special_tokens: bool = True,
        parse_special: bool = False,
    ) -> TokenOffsets:
        """Return the ids of a text and where each of them lies in it.

        Parameters
        ----------
        text
            As for :meth:`encode`.
        unit
            ``"character"`` for places in the ``str``, ``"byte"`` for places in its UTF-8 form.
        add_special_tokens, parse_special
            As for :meth:`encode`.

        Returns
        -------
        TokenOffsets
            The file's truncation and padding are left out.

        Raises
        ------
        TokenizerError, DTypeError
            As for :meth:`encode`.
        ArgumentError
            An unknown `unit`.

        Examples
        --------
        >>> tokenizer.offsets("Hello, world!").bounds.tolist()  # doctest: +SKIP
        [[0, 5], [5, 6], [6, 12], [12, 13]]
        """
        if unit not in {"character", "byte"}:
            message = f"unit={unit!r} came; allowed: 'character', 'byte'"
            raise ArgumentError(message, code="argument.unit")
        ids, bounds = self._core.offsets(text, unit == "character", add_special_tokens, parse_special)
        return TokenOffsets(ids, bounds)

    def count(
        self,
        text: str,
        *,
        truncation: bool = False,
        add_special_tokens: bool = True,
        parse_special: bool = False,
    ) -> int:
        """Return the number of ids of a text, without making them.

        Parameters
        ----------
        text
            As for :meth:`encode`.
        truncation
            False leaves the file's truncation and padding out: the length of the text. True counts what
            :meth:`encode` returns.
        add_special_tokens, parse_special
            As for :meth:`encode`.

        Returns
        -------
        int
            Special tokens that are put around the text are counted.
        """
        count: int = self._core.count(text, add_special_tokens, parse_special, truncation)
        return count

    def count_batch(
        self,
        texts: Iterable[str],
        *,
        truncation: bool = False,
        add_special_tokens: bool = True,
        parse_special: bool = False,
        num_threads: int | None = None,
    ) -> NDArray[np.int64]:
        """Return the number of ids of each text, int64 ``[texts]``; arguments as for :meth:`count`."""
        counts: NDArray[np.int64] = self._core.count_batch(
            texts, add_special_tokens, parse_special, truncation, num_threads
        )
        return counts

    def fits(
        self, text: str, max_tokens: int, *, add_special_tokens: bool = True, parse_special: bool = False
    ) -> bool:
        """Return whether a text has at most `max_tokens` ids; looks no further than it must.

        Truncation and padding of the file are left out, as in :meth:`count`.
        """
        fits: bool = self._core.fits(text, max_tokens, add_special_tokens, parse_special)
        return fits

    def truncate(
        self, text: str, max_tokens: int, *, add_special_tokens: bool = True, parse_special: bool = False
    ) -> str:
        """Return a beginning of the text that has at most `max_tokens` ids.

        Parameters
        ----------
        text
            As for :meth:`encode`.
        max_tokens
            How many ids the result may have, the special tokens around it included.
        add_special_tokens, parse_special
            As for :meth:`encode`.

        Returns
        -------
        str
            The text up to the end of one of its tokens, moved back to a whole character; empty where not even
            one fits. ``count(truncate(text, n)) <= n`` holds except where the special tokens alone are more.
        """
        beginning: str = self._core.truncate(text, max_tokens, add_special_tokens, parse_special)
        return beginning

    def decode(self, ids: Ids, *, skip_special_tokens: bool = True, errors: Errors = "replace") -> str:
        """Return the text of ids.

        Parameters
        ----------
        ids
            A flat list of ids.
        skip_special_tokens
            Leave special tokens out.
        errors
            What to do with bytes that are not UTF-8: ``"replace"`` puts U+FFFD in their place, as the
            references do; ``"ignore"`` leaves them out; ``"strict"`` raises.

        Raises
        ------
        IdError
            An id is negative, beyond the vocabulary, or in a gap of it.
        TokenizerError
            ``errors="strict"``, and the bytes are not UTF-8.
        DTypeError, ShapeError
            `ids` are no integers, or not one axis of them.
        """
        text: str = self._core.decode(ids, skip_special_tokens, errors)
        return text

    def decode_bytes(self, ids: Ids, *, skip_special_tokens: bool = True) -> bytes:
        """Return the bytes of ids: a token may end inside a character.

        Pipelines that are not byte-level decode to text only; their bytes are those of that text. Errors as
        for :meth:`decode`.
        """
        content: bytes = self._core.decode_bytes(ids, skip_special_tokens)
        return content

    def decode_batch(
        self,
        batch: TokenBatch | Iterable[Ids],
        *,
        skip_special_tokens: bool = True,
        errors: Errors = "replace",
        num_threads: int | None = None,
    ) -> list[str]:
        """Return the texts of many lists of ids; arguments and errors as for :meth:`decode`."""
        if not isinstance(batch, TokenBatch):
            batch = join(batch)
        texts: list[str] = self._core.decode_batch(
            batch.ids, batch.offsets, skip_special_tokens, errors, num_threads
        )
        return texts

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
