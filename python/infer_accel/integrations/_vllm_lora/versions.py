"""What of vLLM the plugins rely on, checked before anything is put in its place."""

from __future__ import annotations

import inspect
import re

import vllm
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.lora.worker_manager import WorkerLoRAManager
from vllm.platforms.cpu import CpuPlatform
from vllm.v1.engine.input_processor import InputProcessor

from infer_accel.integrations.vllm_lora import KNOWN_VERSIONS

_SIGNATURES: dict[str, dict[type, dict[str, tuple[str, ...]]]] = {
    "guard": {
        InputProcessor: {"_validate_lora": ("lora_request",)},
        WorkerLoRAManager: {
            "__init__": ("vllm_config", "device", "embedding_modules", "lora_model_cls"),
            "_load_adapter": ("lora_request",),
        },
    },
    "grouped": {
        BaseLinearLayerWithLoRA: {"reset_lora": ("index",), "set_lora": ("index", "lora_a", "lora_b")},
        PunicaWrapperCPU: {
            "add_lora_linear": (
                "y",
                "x",
                "lora_a_stacked",
                "lora_b_stacked",
                "scale",
                "output_slices",
                "buffer",
                "kwargs",
            ),
            "_update_base_metadata": ("mapping", "lora_index_to_id", "max_loras", "vocab_size"),
        },
        CpuPlatform: {"get_punica_wrapper": ()},
    },
}


def version() -> str:
    """Return vLLM's version, such as ``"0.32.0"``."""
    return str(vllm.__version__)


def interface_problem(part: str) -> str | None:
    """Return what is wrong with the vLLM that is installed, for one of the plugins; or None."""
    found = re.match(r"\d+\.\d+", version())
    minor = found[0] if found else version()
    if minor not in KNOWN_VERSIONS:
        return f"vLLM {version()} came; known to work: {', '.join(KNOWN_VERSIONS)}"
    for kind, methods in _SIGNATURES[part].items():
        for name, wanted in methods.items():
            method = getattr(kind, name, None)
            names = tuple(inspect.signature(method).parameters) if method is not None else None
            # A class method has no `self` to leave out.
            names = names if names is None or inspect.ismethod(method) else names[1:]
            if names != wanted:
                return (
                    f"vLLM {version()} has {kind.__name__}.{name}{names}, where {name}{wanted} was expected: "
                    "a changed build?"
                )
    return None


def install(part: str) -> None:
    """Put a plugin in its place."""
    from infer_accel.integrations._vllm_lora import grouped, guard  # noqa: PLC0415 - what they change is checked first

    {"guard": guard, "grouped": grouped}[part].install()
