"""Text to ids, and where they lie in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from infer_accel.errors import ArgumentError
from infer_accel.tokenize._batch import TokenBatch

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray

    from infer_accel._typing import Texts


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


class Encodes:
    """The calls of a :class:`Tokenizer` that make ids."""

    __slots__ = ()

    _core: Any

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
        texts: Texts,
        *,
        add_special_tokens: bool = True,
        parse_special: bool = False,
        num_threads: int | None = None,
    ) -> TokenBatch:
        """Return the ids of many texts, in two arrays.

        Parameters
        ----------
        texts
            The texts; a single ``str`` is refused. Arrow data of strings (``utf8``, ``large_utf8``, ``utf8_view``; a
            pyarrow array, a polars series, a column of either, sliced or chunked) is read where it lies, without a
            string object for each text; nulls are refused, as they have no tokens.
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
            As for :meth:`encode`; nothing is returned for the texts that were fine. `texts` are Arrow data of
            another type, or one of them is null.
        ArgumentError
            Arrow data contradict themselves.
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
