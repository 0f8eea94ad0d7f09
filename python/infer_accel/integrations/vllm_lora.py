"""vLLM's adapters: checked before it sees them, and applied by grouped kernels on a CPU.

Both come as plugins of vLLM, by entry points of this package: nothing has to be imported or configured.
``VLLM_PLUGINS`` chooses among them::

    VLLM_PLUGINS=infer_accel_lora_guard,infer_accel_lora_grouped vllm serve MODEL --enable-lora …
"""

from __future__ import annotations

import logging

__all__ = ["KNOWN_VERSIONS", "register_grouped", "register_guard"]

#: Minor versions of vLLM that were tested.
KNOWN_VERSIONS = ("0.32",)

_log = logging.getLogger("infer_accel")


def register_guard() -> bool:
    """Have adapters checked before vLLM uses them; the entry point ``infer_accel_lora_guard``.

    Each adapter is read by :meth:`infer_accel.lora.Adapter.load` and held against the model's files, when a request
    names it and when a worker loads it; then against the engine's own modules. One with a fault is refused, with all
    of its faults in the text: the request fails, or the call that loads the adapter, and nothing else.

    Returns
    -------
    bool
        Whether they are. With a version of vLLM that is not known, or methods of other parameters, one line of the
        log says so, and vLLM works as before.
    """
    return _register("guard")


def register_grouped() -> bool:
    """Have adapters of linear layers applied by grouped kernels; the entry point ``infer_accel_lora_grouped``.

    It concerns engines on a CPU, in float32, float16 and bfloat16.

    Returns
    -------
    bool
        As for :func:`register_guard`.
    """
    return _register("grouped")


def _register(part: str) -> bool:
    what = {"guard": "adapters are not checked", "grouped": "adapters are applied by vLLM's own operations"}[
        part
    ]
    try:
        from infer_accel.integrations._vllm_lora import versions  # noqa: PLC0415 - vLLM may be another one

        problem = versions.interface_problem(part)
        if problem is None:
            versions.install(part)
            return True
    except ImportError as error:
        known = ", ".join(KNOWN_VERSIONS)
        problem = f"vLLM has no such interface ({error}); known to work: {known}"
    _log.error("infer-accel's plugin is off, and %s: %s", what, problem)
    return False
