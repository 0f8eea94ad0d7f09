"""Ids to text, one at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import SupportsIndex

    from infer_accel.tokenize._batch import Ids


class StreamDecoder:
    """Turns ids into text as a model makes them; made by :meth:`Tokenizer.stream`.

    All that the steps and :meth:`finish` return, put together, is what :meth:`Tokenizer.decode` returns for all
    ids at once. Text comes out as soon as no later id can change it; a character that a token ends inside is
    held back until it is whole.

    Threads may share a stream: each step is whole.

    Notes
    -----
    A step is O(bytes of its token). Where the tokenizer is not :attr:`Tokenizer.is_native` a step decodes the
    last few ids; all steps together are linear in their number, whatever comes.

    Examples
    --------
    >>> stream = tokenizer.stream()  # doctest: +SKIP
    >>> "".join(map(stream.step, tokenizer.encode("Grüße 👋"))) + stream.finish()  # doctest: +SKIP
    'Grüße 👋'
    """

    __slots__ = ("_core", "_step")

    _core: Any
    _step: Callable[[SupportsIndex], str]

    def __init__(self) -> None:
        raise TypeError("a StreamDecoder is made by Tokenizer.stream()")

    @classmethod
    def of(cls, core: object) -> StreamDecoder:
        """Return the face of a native stream; :meth:`Tokenizer.stream` calls this."""
        stream = cls.__new__(cls)
        stream._bind(core)  # noqa: SLF001 - the object that is being made
        return stream

    def _bind(self, core: Any) -> None:  # noqa: ANN401 - the native class, or its specification
        self._core, self._step = core, core.step

    def step(self, token_id: SupportsIndex) -> str:
        """Return the text that one more id makes certain: often its own, sometimes none.

        Raises
        ------
        IdError
            No token has this id. The stream is as it was.
        TokenizerError
            The stream was made with ``errors="strict"``, and the bytes are not UTF-8. It is as it was.
        """
        return self._step(token_id)

    def step_all(self, ids: Ids) -> str:
        """Return the text that these ids make certain; errors as for :meth:`step`, at the first wrong id."""
        text: str = self._core.step_all(ids)
        return text

    def finish(self) -> str:
        """Return the text of what is held back, as decoding all ids shows it. The stream then begins anew.

        Raises
        ------
        TokenizerError
            The stream was made with ``errors="strict"``, and a character is not whole.
        """
        text: str = self._core.finish()
        return text
