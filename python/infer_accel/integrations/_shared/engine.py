"""What a shared tier asks of the program that holds its pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Engine", "EngineFullError"]


class EngineFullError(Exception):
    """The engine has no room; `stored` entries of the call were taken before."""

    def __init__(self, reason: str, stored: int) -> None:
        super().__init__(reason)
        self.stored = stored


class Engine(Protocol):
    """Values by name, in a program somewhere else.

    Threads of the tier call it, several at once. A call may take for ever and may raise whatever its client raises:
    the tier has deadlines of its own, and an error is a miss.
    """

    def fetch(self, names: Sequence[str]) -> list[bytes | None]:
        """Return the values, in the order of their names; None for one that is not there."""

    def put(self, entries: Sequence[tuple[str, bytes]]) -> None:
        """Store values, over what has their names. :class:`EngineFullError` where there is no room."""

    def exist(self, names: Sequence[str]) -> list[bool]:
        """Return which names there are."""

    def remove(self, names: Sequence[str]) -> None:
        """Forget names, those that are not there included."""

    def ping(self) -> None:
        """Return if the engine answers."""

    def hang_up(self) -> None:
        """Break off the calls that are under way, where that is possible; must not block."""

    def close(self) -> None:
        """Give connections back."""
