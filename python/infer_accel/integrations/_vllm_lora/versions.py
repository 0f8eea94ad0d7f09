"""What of vLLM the plugins rely on, checked before anything is put in its place."""

from __future__ import annotations

import vllm
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.lora.worker_manager import WorkerLoRAManager
from vllm.platforms.cpu import CpuPlatform
from vllm.v1.engine.input_processor import InputProcessor

from infer_accel.integrations._interface import Signatures, signature_problem, version_problem
from infer_accel.integrations.vllm_lora import KNOWN_VERSIONS

_SIGNATURES: dict[str, Signatures] = {
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
    known = version_problem("vLLM", version(), KNOWN_VERSIONS)
    return known or signature_problem("vLLM", version(), _SIGNATURES[part])


def install(part: str) -> None:
    """Put a plugin in its place."""
    from infer_accel.integrations._vllm_lora import grouped, guard  # noqa: PLC0415 - what they change is checked first

    {"guard": guard, "grouped": grouped}[part].install()
