"""What callers pass beside text: checked before anything is asked of it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from infer_accel.errors import DTypeError

__all__ = ["clock", "core_of", "pairs_of"]


def core_of(tokenizer: object) -> Any:  # noqa: ANN401 - of the backend, whichever it is
    """Return what the backend made of a tokenizer."""
    try:
        return tokenizer._core  # type: ignore[attr-defined]  # noqa: SLF001 - the native class, which is this package's own
    except AttributeError:
        came = type(tokenizer).__name__
        message = f"{came} came as a tokenizer; pass a Tokenizer (Tokenizer.from_file(path) reads one)"
        raise DTypeError(message, code="tokenizer.not_tokenizer") from None


def pairs_of(special_tokens: object) -> list[tuple[str, Any]]:
    """Return names of special tokens and what is said of them."""
    if not special_tokens:
        return []
    if not isinstance(special_tokens, Mapping):
        message = f"{type(special_tokens).__name__} came as special_tokens; pass a dict, or None"
        raise DTypeError(message, code="tokenizer.option")
    return list(special_tokens.items())


def clock(now: object, *, shown: bool) -> tuple[int, ...] | None:
    """Return a time, the clock's by default, as the core takes it; nothing where it would not be `shown`."""
    if now is None and not shown:
        return None
    moment = datetime.now() if now is None else now  # noqa: DTZ005 - templates show the local time
    if not isinstance(moment, datetime):
        message = f"{type(now).__name__} came as now; pass a datetime.datetime, or None for the clock's"
        raise DTypeError(message, code="tokenizer.option")
    date = (moment.year, moment.month, moment.day, moment.hour, moment.minute, moment.second)
    return (*date, moment.microsecond, moment.weekday(), moment.timetuple().tm_yday)
