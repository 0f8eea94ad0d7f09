"""vLLM's prompts and tokens, made natively: a tokenizer mode of vLLM's own registry.

vLLM finds it through its entry point; a server asks for it by name::

    vllm serve MODEL --tokenizer-mode infer_accel

Chat, completions and ``/tokenize`` then render and encode through
:func:`~infer_accel.integrations.transformers_tokenizer.accelerate`: the same prompts, the same ids, and of a prompt
that begins like an earlier one only the rest is encoded.
"""

from __future__ import annotations

import inspect
import logging
import os
from typing import TYPE_CHECKING, Any

import vllm
from vllm.renderers.registry import RENDERER_REGISTRY
from vllm.tokenizers.hf import CachedHfTokenizer
from vllm.tokenizers.registry import TokenizerRegistry, resolve_tokenizer_args

from infer_accel.errors import ArgumentError
from infer_accel.integrations._interface import version_problem
from infer_accel.integrations.transformers_tokenizer import DEFAULT_CACHE_BYTES, accelerate

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CACHE_VARIABLE", "MODE", "InferAccelTokenizer", "register"]

_log = logging.getLogger("infer_accel")

#: What ``--tokenizer-mode`` is told.
MODE = "infer_accel"
#: Names most bytes of prompts that a process keeps; 256 MiB where it is not set, 0 for none.
CACHE_VARIABLE = "INFER_ACCEL_PROMPT_CACHE_BYTES"
#: Minor versions whose registries this was written against.
_KNOWN_VERSIONS = ("0.32", "0.33")


class InferAccelTokenizer(CachedHfTokenizer):
    """vLLM's own Hugging Face tokenizer, with its frequent calls served natively."""

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo_id: str | Path,
        *args: Any,  # noqa: ANN401 - vLLM's signature, as the next
        **kwargs: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401 - a tokenizer of transformers
        """Return the tokenizer of a model, as vLLM's mode ``hf`` reads it.

        Where it cannot be served natively, it is what vLLM would have had, and the log says why.
        """
        _, name, args, kwargs = resolve_tokenizer_args(path_or_repo_id, *args, tokenizer_mode="hf", **kwargs)
        tokenizer = super().from_pretrained(name, *args, **kwargs)
        tokenizer.name_or_path = str(path_or_repo_id)
        return accelerate(tokenizer, capacity_bytes=_cache_bytes()) if problem() is None else tokenizer


def register() -> None:
    """Make the mode known to vLLM; the entry point ``vllm.general_plugins`` calls this in every process.

    Under a version of vLLM that is not known the mode is vLLM's own, and one line of the log says so: the server
    starts, and works as without us.
    """
    reason = problem()
    if reason is not None:
        _log.error("--tokenizer-mode %s is vLLM's own tokenizer here: %s", MODE, reason)
    if MODE not in TokenizerRegistry.tokenizers:
        TokenizerRegistry.register(MODE, __name__, InferAccelTokenizer.__name__)
    if MODE not in RENDERER_REGISTRY.renderers:
        RENDERER_REGISTRY.register(MODE, "vllm.renderers.hf", "HfRenderer")


def problem() -> str | None:
    """Return what is wrong with the vLLM that is installed, or None."""
    known = version_problem("vLLM", str(vllm.__version__), _KNOWN_VERSIONS)
    if known is not None:
        return known
    for registry in (TokenizerRegistry, RENDERER_REGISTRY):
        # The first parameter is the mode, which each names differently.
        names = tuple(inspect.signature(registry.register).parameters)[1:]
        if names != ("module", "class_name"):
            return (
                f"vLLM {vllm.__version__} has register{names} in {type(registry).__name__}: a changed build?"
            )
    return None


def _cache_bytes() -> int:
    text = os.environ.get(CACHE_VARIABLE, "")
    if not text:
        return DEFAULT_CACHE_BYTES
    if not text.isdecimal():
        message = f"{CACHE_VARIABLE}={text!r} came; pass a number of bytes, 0 or more"
        raise ArgumentError(message, code="argument.environment")
    return int(text)
