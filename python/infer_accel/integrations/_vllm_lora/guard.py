"""Puts the checks where vLLM takes an adapter in: with a request, and when a worker loads it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from vllm.lora.utils import get_adapter_absolute_path
from vllm.lora.worker_manager import WorkerLoRAManager
from vllm.v1.engine.input_processor import InputProcessor

from infer_accel.errors import AdapterError
from infer_accel.integrations._vllm_lora.checks import checks_of, loaded_problem

if TYPE_CHECKING:
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.request import LoRARequest

_MARK = "_infer_accel_guard"


def install() -> None:
    """Check adapters from now on, in this process. A second call does nothing."""
    if hasattr(WorkerLoRAManager, _MARK):
        return
    validate, load, begin = (
        InputProcessor._validate_lora,  # noqa: SLF001 - what is guarded
        WorkerLoRAManager._load_adapter,  # noqa: SLF001
        WorkerLoRAManager.__init__,
    )

    @functools.wraps(validate)
    def validate_lora(self: Any, lora_request: LoRARequest | None) -> None:  # noqa: ANN401 - vLLM's
        validate(self, lora_request)
        if lora_request is not None:
            _refuse(lora_request, _request_problem(self, lora_request))

    @functools.wraps(begin)
    def remember(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - vLLM's
        begin(self, vllm_config, *args, **kwargs)
        self._infer_accel_checks = checks_of(vllm_config.model_config.model)

    @functools.wraps(load)
    def load_adapter(self: Any, lora_request: LoRARequest) -> LoRAModel:  # noqa: ANN401 - vLLM's
        try:
            path = get_adapter_absolute_path(lora_request.lora_path)
        except Exception:  # noqa: BLE001 - vLLM has its own words for what cannot be found
            return load(self, lora_request)
        _refuse(lora_request, self._infer_accel_checks.problem(path))
        loaded = load(self, lora_request)
        # The files may have changed in between, and only the engine knows its modules.
        _refuse(lora_request, _model_problem(loaded, self._adapter_manager))
        return loaded

    InputProcessor._validate_lora = validate_lora  # noqa: SLF001
    WorkerLoRAManager._load_adapter = load_adapter  # noqa: SLF001
    WorkerLoRAManager.__init__ = remember
    setattr(WorkerLoRAManager, _MARK, (validate, load, begin))


def uninstall() -> None:
    """Let vLLM take adapters as it does by itself."""
    before = getattr(WorkerLoRAManager, _MARK, None)
    if before is None:
        return
    InputProcessor._validate_lora, WorkerLoRAManager._load_adapter, WorkerLoRAManager.__init__ = before  # noqa: SLF001
    delattr(WorkerLoRAManager, _MARK)


def _request_problem(processor: Any, request: LoRARequest) -> str | None:  # noqa: ANN401 - vLLM's
    checks = getattr(processor, "_infer_accel_checks", None)
    if checks is None:
        checks = processor._infer_accel_checks = checks_of(processor.vllm_config.model_config.model)  # noqa: SLF001
    try:
        # What has to be fetched is checked by the worker, which fetches it.
        path = request.lora_path
        return checks.problem(path) if checks.is_here(path) else None
    except OSError as error:
        return str(error)


def _refuse(request: LoRARequest, problem: str | None) -> None:
    if problem is not None:
        message = f"the adapter {request.lora_name!r} ({request.lora_path}) is refused: {problem}"
        raise AdapterError(message)


def _model_problem(loaded: LoRAModel, manager: Any) -> str | None:  # noqa: ANN401 - vLLM's
    """Return what is wrong with what vLLM has read."""
    if loaded.modules_to_save or getattr(manager, "_is_moe", False):
        # Whole heads and experts have shapes of their own, which vLLM checks.
        return None
    factors = {name: (weights.lora_a, weights.lora_b) for name, weights in loaded.loras.items()}
    return loaded_problem(factors, _features(manager))


def _features(manager: Any) -> dict[str, tuple[int, int] | None]:  # noqa: ANN401 - vLLM's
    """Return the features of each module that an adapter may name."""
    features: dict[str, tuple[int, int] | None] = {}
    for name, module in manager.modules.items():
        features[name] = None
        parts = manager.packed_modules.get(name, [])
        stacked = getattr(module, "lora_a_stacked", ())
        shapes: list[tuple[int, int] | None] = [None] * len(parts)
        if isinstance(stacked, tuple) and getattr(module, "tp_size", 1) == 1:
            sizes = [
                (int(a.shape[-1]), int(b.shape[-2]))
                for a, b in zip(stacked, module.lora_b_stacked, strict=True)
            ]
            if len(sizes) == len(parts):
                shapes = list(sizes)
            elif len(sizes) == 1 and not parts and hasattr(module, "output_slices"):
                features[name] = sizes[0]
        features.update(zip(parts, shapes, strict=True))
    return features
