"""The class of a tokenizer of ``transformers`` whose frequent calls are served natively."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from typing import TYPE_CHECKING, Any

from infer_accel.errors import InferAccelError
from infer_accel.integrations._tokenizer.checks import core_of
from infer_accel.integrations._tokenizer.core import are_dicts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from infer_accel.integrations._tokenizer.core import Core


@functools.cache
def served_class(base: Any) -> type:  # noqa: ANN401 - as above
    """Return the class of served tokenizers that derives from a tokenizer's own."""
    named = set(inspect.signature(base.apply_chat_template).parameters)
    members = {
        "_infer_accel_base": base,
        "_infer_accel_left": frozenset(named - _CHAT_ARGUMENTS - {"self", "kwargs"}),
    }
    return type(f"InferAccel{base.__name__}", (Served, base), members)


def again(plain: Any, core: Core) -> object:  # noqa: ANN401 - as above
    """Return a tokenizer that is served by a core; the other half of pickling and copying."""
    served, base = copy.copy(plain), type(plain)
    served.__dict__["_infer_accel_core"] = core
    served.__class__ = served_class(base)  # type: ignore[arg-type]  # mypy takes a class for no key
    return served


class Served:
    """The calls that are served; what is not goes on to the class behind."""

    _infer_accel_core: Core | None
    _infer_accel_base: Any
    #: Arguments of `apply_chat_template` that are served at their defaults only.
    _infer_accel_left: frozenset[str]

    def encode(
        self,
        text: Any,  # noqa: ANN401 - the signatures of transformers, here and below
        text_pair: Any = None,  # noqa: ANN401
        add_special_tokens: bool = True,  # noqa: FBT001, FBT002
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Return the ids of a text."""
        if text_pair is None and not args:
            ids = self._ids(text, add_special_tokens, kwargs)
            if ids is not None:
                return ids
        return super().encode(text, text_pair, add_special_tokens, *args, **kwargs)  # type: ignore[misc]

    def __call__(self, text: Any = None, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Return what a model is fed for a text."""
        if not args and self.model_input_names == _MODEL_INPUTS:  # type: ignore[attr-defined]
            plain = kwargs.keys() - {"add_special_tokens"}
            more = {name: kwargs[name] for name in plain}
            ids = self._ids(text, kwargs.get("add_special_tokens", True), more)
            if ids is not None:
                return _encoding(ids)
        return super().__call__(text, *args, **kwargs)  # type: ignore[misc]

    def decode(
        self,
        token_ids: Any,  # noqa: ANN401
        skip_special_tokens: bool = False,  # noqa: FBT001, FBT002
        **kwargs: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Return the text of ids."""
        core = self._infer_accel_core
        ids = [token_ids] if type(token_ids) is int else token_ids
        is_plain = not kwargs and not self.clean_up_tokenization_spaces  # type: ignore[attr-defined]
        if core is not None and is_plain and type(ids) is list and ids and type(ids[0]) is int:
            with contextlib.suppress(InferAccelError, TypeError, ValueError, OverflowError):
                return core.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        return super().decode(token_ids, skip_special_tokens, **kwargs)  # type: ignore[misc]

    def apply_chat_template(  # noqa: PLR0917 - as above
        self,
        conversation: Any,  # noqa: ANN401
        tools: Any = None,  # noqa: ANN401
        documents: Any = None,  # noqa: ANN401
        chat_template: str | None = None,
        add_generation_prompt: bool = False,  # noqa: FBT001, FBT002
        continue_final_message: bool | str = False,  # noqa: FBT001, FBT002
        tokenize: bool = True,  # noqa: FBT001, FBT002
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Return the prompt of a conversation, or what a model is fed for it."""

        def theirs(tokenize: object, more: Mapping[str, object]) -> Any:  # noqa: ANN401
            return super(Served, self).apply_chat_template(  # type: ignore[misc]
                conversation,
                tools,
                documents,
                chat_template,
                add_generation_prompt,
                continue_final_message,
                tokenize,
                *args,
                **more,
            )

        prompt = None
        if not args and not continue_final_message and _are_messages(conversation):
            variables = self._variables(kwargs)
            source = self.get_chat_template(chat_template, tools)  # type: ignore[attr-defined]
            core = self._infer_accel_core
            if core is not None and variables is not None and type(source) is str:
                template = core.template(source)
                prompt = template.render(conversation, tools, documents, add_generation_prompt, variables)
                if prompt is not None and not template.is_proved():
                    proof = str(theirs(tokenize=False, more=kwargs))
                    template.compare(prompt, proof)
                    prompt = proof
        if prompt is None:
            return theirs(tokenize, kwargs)
        if not tokenize:
            return prompt
        encoded = self(prompt, add_special_tokens=False)
        return encoded if kwargs.get("return_dict", True) else encoded["input_ids"]

    def _variables(self, kwargs: dict[str, Any]) -> dict[str, Any] | None:
        """Return the variables of a template, or None where arguments ask for more than a prompt and its ids."""
        variables: dict[str, Any] = dict(self.special_tokens_map)  # type: ignore[attr-defined]
        for name, value in kwargs.items():
            if name not in self._infer_accel_left:
                variables[name] = value
            elif name != "return_dict" and value is not None and value is not False:
                return None
        return variables

    def _ids(self, text: object, add_special_tokens: object, more: dict[str, Any]) -> list[int] | None:
        """Return the ids of a text, or None where the call asks for something else."""
        core = self._infer_accel_core
        if core is None or type(text) is not str or not more.keys() <= _TEXT_ARGUMENTS:
            return None
        truncation, longest = more.get("truncation"), more.get("max_length")
        if type(add_special_tokens) is not bool or more.get("padding") or truncation not in _TRUNCATIONS:
            return None
        try:
            ids = core.encode(text, add_special_tokens=add_special_tokens)
        except (InferAccelError, ValueError):
            return None
        if longest is None and truncation:
            longest = self.model_max_length  # type: ignore[attr-defined]
        is_cut = truncation is not False and longest is not None and len(ids) > longest
        return None if is_cut else ids

    def _add_tokens(self, *args: Any, **kwargs: Any) -> int:  # noqa: ANN401
        added: int = super()._add_tokens(*args, **kwargs)  # type: ignore[misc]
        core = self._infer_accel_core
        if core is not None:
            self.__dict__["_infer_accel_core"] = core_of(self._plain(), core.cache.capacity_bytes)
        return added

    def _plain(self) -> Any:  # noqa: ANN401
        """Return the tokenizer behind; it shares everything with this one."""
        plain = self._infer_accel_base.__new__(self._infer_accel_base)
        plain.__dict__.update(self.__dict__)
        plain.__dict__.pop("_infer_accel_core", None)
        return plain

    def __reduce__(self) -> tuple[object, ...]:
        return again, (self._plain(), self._infer_accel_core)


#: What a `BatchEncoding` holds for the models that servers serve.
_MODEL_INPUTS = ["input_ids", "attention_mask"]
#: Arguments of a call on one text that are served, beside `add_special_tokens`.
_TEXT_ARGUMENTS = {"truncation", "max_length", "padding", "verbose"}
_TRUNCATIONS = (None, False, True)
#: Arguments of `apply_chat_template` that are served.
_CHAT_ARGUMENTS = {
    "conversation",
    "tools",
    "documents",
    "chat_template",
    "add_generation_prompt",
    "continue_final_message",
    "tokenize",
}


def _encoding(ids: list[int]) -> Any:  # noqa: ANN401 - a class of transformers
    from transformers import BatchEncoding  # noqa: PLC0415 - whoever comes here has it

    return BatchEncoding({"input_ids": ids, "attention_mask": [1] * len(ids)})


def _are_messages(conversation: object) -> bool:
    """Return whether this is one conversation, of dicts."""
    return bool(conversation) and are_dicts(conversation)
