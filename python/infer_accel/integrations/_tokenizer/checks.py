"""Whether a tokenizer can be served natively, found out before it is."""

from __future__ import annotations

import inspect
import json
import logging
from typing import Any

from infer_accel.errors import InferAccelError
from infer_accel.integrations._tokenizer.core import Core

_log = logging.getLogger("infer_accel")

#: Texts that both must encode alike before one is served: what families of tokenizers differ in.
_PROBES = (
    "",
    " ",
    "Hello, world! It's 2026; we'll see 1234567 things.",
    "  two\n\n lines\t\tof   text \r\n",
    "naïve café — 東京タワー, Привет мир, مرحبا, 👩‍👩‍👧‍👦 e\u0301",
    "def f(x):\n    return {'a': x ** 2, \"b\": [1, 2]}  # comment\n",
    "<s></s><unk><|im_start|>user\n<|im_end|><|begin_of_text|><|eot_id|>[INST]<bos>",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" * 4,
)
#: Where the methods are that are taken over; one that was taken over before may do something else.
_HOME = "transformers.tokenization_utils_base"
_SIGNATURES = {
    "encode": ("text", "text_pair", "add_special_tokens", "padding", "truncation", "max_length"),
    "__call__": ("text", "add_special_tokens", "padding", "truncation", "max_length"),
    "decode": ("token_ids", "skip_special_tokens"),
    "apply_chat_template": (
        "conversation",
        "tools",
        "documents",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "tokenize",
        "return_dict",
        "kwargs",
    ),
    "get_chat_template": ("chat_template", "tools"),
}


def core_of(tokenizer: Any, capacity_bytes: int) -> Core | None:  # noqa: ANN401 - of another program
    """Return the native side of a tokenizer, or None with a line in the log."""
    try:
        problem = _problem(tokenizer)
        core = _read(tokenizer, capacity_bytes) if problem is None else None
        problem = problem or _difference(tokenizer, core)
    except InferAccelError as error:
        problem = str(error)
    if problem is None:
        return core
    _log.warning("%s is left as it is: %s", type(tokenizer).__name__, problem)
    return None


def _problem(tokenizer: Any) -> str | None:  # noqa: ANN401 - as above
    """Return why a tokenizer cannot be served, from what it is."""
    if not hasattr(getattr(tokenizer, "_tokenizer", None), "to_str"):
        return "it is no fast tokenizer"
    if getattr(tokenizer, "split_special_tokens", False):
        return "it splits special tokens (split_special_tokens)"
    for name, wanted in _SIGNATURES.items():
        method = getattr(type(tokenizer), name, None)
        if method is None or method.__module__ != _HOME:
            return f"it has an own {name}, where that of transformers was expected"
        found = tuple(inspect.signature(method).parameters)[1:]
        if not set(wanted) <= set(found):
            return f"{name}{found} came, where {name}{wanted} was expected; known to work: transformers 5.19 to 5.23"
    return None


def _read(tokenizer: Any, capacity_bytes: int) -> Core:  # noqa: ANN401 - as above
    description = json.loads(tokenizer._tokenizer.to_str())  # noqa: SLF001 - where transformers has it
    # Calls say how they cut off and pad; the state of the last one is no setting.
    description["truncation"] = description["padding"] = None
    return Core(json.dumps(description, ensure_ascii=False), capacity_bytes)


def _difference(tokenizer: Any, core: Core | None) -> str | None:  # noqa: ANN401 - as above
    """Return why a tokenizer cannot be served, from what it does."""
    if core is None or not core.tokenizer.is_native:
        return "its kind is not native here, and would gain nothing"
    for probe in _PROBES:
        for special in (True, False):
            theirs = list(tokenizer.encode(probe, add_special_tokens=special))
            ours = core.encode(probe, add_special_tokens=special)
            if ours != theirs:
                return f"the ids of {probe!r} would be {ours}, where it has {theirs}"
    return None
