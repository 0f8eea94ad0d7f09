"""The specification of chat templates: Jinja itself, set up as ``transformers`` sets it up."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from infer_accel.errors import BackendError, TokenizerError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from infer_accel._reference.tokenize.tokenizer import Tokenizer

__all__ = ["ChatTemplate"]


class _RaisedError(Exception):
    """What a template raises on purpose."""


def _raise(message: str) -> None:
    raise _RaisedError(message)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


class ChatTemplate:
    """The specification behind :class:`infer_accel.tokenize.ChatTemplate`."""

    #: It takes the time whether or not the template shows it.
    shows_time = True

    def __init__(
        self, tokenizer: Tokenizer, template: str, special_tokens: Iterable[tuple[str, str]]
    ) -> None:
        try:
            from jinja2 import TemplateError  # noqa: PLC0415 - optional
            from jinja2.ext import Extension, loopcontrols  # noqa: PLC0415
            from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415
        except ImportError as error:
            message = f"the specification of chat templates needs jinja2 ({error}): pip install jinja2"
            raise BackendError(message, code="backend.missing") from error

        class Generation(Extension):  # type: ignore[misc, unused-ignore]
            """The block that marks what the assistant said: shows its content."""

            tags = {"generation"}  # noqa: RUF012 - the base class's own way

            def parse(self, parser: Any) -> Any:  # noqa: ANN401 - jinja2 need not be installed
                from jinja2 import nodes  # noqa: PLC0415

                line = next(parser.stream).lineno
                body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
                return nodes.CallBlock(self.call_method("_show"), [], [], body).set_lineno(line)

            def _show(self, caller: Any) -> Any:  # noqa: ANN401
                return caller()

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise
        self._failure = TemplateError
        self._tokenizer, self._special = tokenizer, dict(special_tokens)
        try:
            self._template = environment.from_string(template)
        except TemplateError as error:
            raise TokenizerError(f"no template: {error}", code="tokenizer.template") from error

    def render(self, variables: Mapping[str, object], now: Sequence[int] | None) -> str:
        """Return the prompt of a conversation."""
        if now:
            year, month, day, hour, minute, second, microsecond = now[:7]
            moment = datetime(year, month, day, hour, minute, second, microsecond)  # noqa: DTZ001 - shows no zone
        else:
            moment = datetime.now()  # noqa: DTZ005
        clock = {"strftime_now": moment.strftime}
        try:
            messages = {"messages": _with_reasoning(variables.get("messages"))}
            return str(self._template.render(**clock, **{**self._special, **variables, **messages}))
        except _RaisedError as error:
            raise TokenizerError(f"refused: {error}", code="tokenizer.template_raised") from error
        except (self._failure, TypeError, ValueError, KeyError) as error:
            raise TokenizerError(f"the template failed: {error}", code="tokenizer.template") from error

    def encode(
        self, variables: Mapping[str, object], now: Sequence[int] | None, trusted: bool
    ) -> NDArray[np.int32]:
        """Return the ids of a conversation's prompt, whose messages must be trusted here."""
        prompt = self.render(variables, now)
        if not trusted and (found := self._tokenizer.special_in(_texts(variables))):
            message = f"the messages hold {found!r}, which only the native core can tell from the template's"
            raise TokenizerError(message, code="tokenizer.untrusted_special")
        return np.array(self._tokenizer.ids_of(prompt, False, True), dtype=np.int32)

    def count(self, variables: Mapping[str, object], now: Sequence[int] | None, trusted: bool) -> int:
        """Return the number of ids of a conversation's prompt."""
        return len(self.encode(variables, now, trusted))

    def render_batch(
        self,
        messages: Iterable[object],
        variables: Mapping[str, object],
        now: Sequence[int] | None,
        num_threads: int | None,  # noqa: ARG002 - the native signature
    ) -> list[str]:
        """Return the prompts of many conversations."""
        return [self.render({"messages": each, **variables}, now) for each in messages]

    def encode_batch(
        self,
        messages: Iterable[object],
        variables: Mapping[str, object],
        now: Sequence[int] | None,
        trusted: bool,
        num_threads: int | None,  # noqa: ARG002 - the native signature
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return the ids of many conversations' prompts, and where each begins."""
        lists = [self.encode({"messages": each, **variables}, now, trusted) for each in messages]
        offsets = np.cumsum([0, *map(len, lists)], dtype=np.int64)
        return np.concatenate([np.zeros(0, np.int32), *lists]), offsets

    def count_batch(
        self,
        messages: Iterable[object],
        variables: Mapping[str, object],
        now: Sequence[int] | None,
        trusted: bool,
        num_threads: int | None,
    ) -> NDArray[np.int64]:
        """Return the number of ids of each prompt."""
        _, offsets = self.encode_batch(messages, variables, now, trusted, num_threads)
        return np.diff(offsets)


def _with_reasoning(messages: object) -> object:
    """Show a model's reasoning under the names that templates read, as ``transformers`` 5 does."""
    if not isinstance(messages, list | tuple):
        return messages
    shown = []
    for message in messages:
        found = message if isinstance(message, dict) else {}
        names = ("reasoning_content", "thinking", "reasoning")
        reasoning = next((found[name] for name in names if found.get(name) is not None), None)
        aliased = {"thinking": reasoning, **found, "reasoning_content": reasoning}
        shown.append(message if reasoning is None else aliased)
    return shown


def _texts(value: object) -> str:
    """Return every string in a value, one a line."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return "\n".join(_texts(item) for pair in value.items() for item in pair)
    return "\n".join(map(_texts, value)) if isinstance(value, list | tuple) else ""
