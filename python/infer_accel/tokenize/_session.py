"""A text that grows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Session:
    """The ids of a text to which more is appended; made by :meth:`Tokenizer.session`.

    At any time they are the ids of the whole text, the file's truncation and padding left out. Only the part
    whose tokens can still change, mostly the last word, is encoded again.

    Threads may share a session: each append is whole.

    Notes
    -----
    An append is O(text appended + the part that can still change). Where the tokenizer is not
    :attr:`Tokenizer.is_native`, or has a pattern of its own, the whole text is encoded each time.

    Examples
    --------
    >>> session = tokenizer.session()  # doctest: +SKIP
    >>> session.append("Hello, wor")  # doctest: +SKIP
    0
    >>> kept = session.append("ld!")  # doctest: +SKIP
    >>> session.ids(start=kept)  # the ids that are new  # doctest: +SKIP
    array([1917,    0], dtype=int32)
    """

    __slots__ = ("_core",)

    _core: Any

    def __init__(self) -> None:
        raise TypeError("a Session is made by Tokenizer.session()")

    @classmethod
    def of(cls, core: object) -> Session:
        """Return the face of a native session; :meth:`Tokenizer.session` calls this."""
        session = cls.__new__(cls)
        session._core = core  # noqa: SLF001 - the object that is being made
        return session

    def append(self, text: str) -> int:
        """Append text to the session.

        Returns
        -------
        int
            How many of the ids from before still stand: those from that place on are new.

        Raises
        ------
        TokenizerError, DTypeError
            As for :meth:`Tokenizer.encode`; the session is as it was.
        """
        kept: int = self._core.append(text)
        return kept

    def ids(self, start: int = 0) -> NDArray[np.int32]:
        """Return the ids from `start` on, int32 in fresh memory.

        Raises
        ------
        OverflowError
            `start` is negative.
        """
        ids: NDArray[np.int32] = self._core.ids(start)
        return ids

    @property
    def settled(self) -> int:
        """How many ids, from the first on, no appended text can change."""
        settled: int = self._core.settled
        return settled

    def copy(self) -> Session:
        """Return another session with the same text, to append something else to."""
        return Session.of(self._core.copy())

    #: As :meth:`copy`: two faces of one session would change each other.
    __copy__ = copy

    def __len__(self) -> int:
        """Return the number of ids."""
        return len(self._core)
