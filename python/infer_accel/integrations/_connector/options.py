"""What a connector is told by whoever starts the engine."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

from infer_accel.errors import ArgumentError
from infer_accel.kvcache import Checksum

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Which pages are stored: those of prompts, or those of answers too.
Save = Literal["prompt", "all"]

_REQUIRED = ("root_dir", "capacity_bytes")
_CHOICES: dict[str, tuple[object, ...]] = {
    "save": get_args(Save),
    "checksum": get_args(Checksum),
    "compression": (None, "zstd"),
}
_POSITIVE = (
    "capacity_bytes",
    "host_bytes",
    "staging_bytes",
    "load_threads",
    "segment_bytes",
    "load_deadline",
    "store_deadline",
    "write_deadline",
    "open_deadline",
    "retry_seconds",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectorOptions:
    """The options of a connector; what each means stands with the connector."""

    root_dir: str
    capacity_bytes: int
    host_bytes: int = 1 << 30
    save: Save = "prompt"
    identity: str | None = None
    load_deadline: float = 2.0
    store_deadline: float = 0.05
    write_deadline: float = 30.0
    open_deadline: float = 5.0
    retry_seconds: float = 30.0
    load_threads: int = 2
    staging_bytes: int = 64 << 20
    segment_bytes: int | None = None
    checksum: Checksum = "xxh3"
    compression: Literal["zstd"] | None = None

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> ConnectorOptions:
        """Return the options of a mapping; one that is unknown, missing or out of range is refused.

        Raises
        ------
        ArgumentError
            ``argument.connector_option``; the text names the option and what is allowed.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(given) - set(known))
        missing = [name for name in _REQUIRED if not given.get(name)]
        if unknown or missing:
            what = f"unknown options: {', '.join(unknown)}" if unknown else f"missing: {', '.join(missing)}"
            raise _refused(f"{what}; the connector knows {', '.join(known)}")
        for name, value in given.items():
            if name in _CHOICES and value not in _CHOICES[name]:
                allowed = ", ".join(repr(choice) for choice in _CHOICES[name])
                raise _refused(f"{name}={value!r} came; allowed: {allowed}")
            if name in _POSITIVE and value is not None and not _is_positive(value):
                raise _refused(f"{name}={value!r} came; pass a number above 0")
        try:
            return cls(**{name: _number(name, value) for name, value in given.items()})
        except (TypeError, ValueError) as error:
            raise _refused(str(error)) from error


def _number(name: str, value: Any) -> Any:  # noqa: ANN401 - whatever JSON had
    """Return whole numbers as such: JSON that a program wrote may say 1e9."""
    if name in _POSITIVE and not name.endswith(("deadline", "seconds")) and value is not None:
        return int(value)
    return str(value) if name == "root_dir" else value


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _refused(text: str) -> ArgumentError:
    return ArgumentError(text, code="argument.connector_option")
