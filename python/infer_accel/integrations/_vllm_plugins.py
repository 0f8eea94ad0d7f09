"""What vLLM's entry point ``vllm.general_plugins`` calls in every process of a server: nothing that could stop it."""

from __future__ import annotations

import contextlib
import logging

_log = logging.getLogger("infer_accel")


def tokenizer() -> None:
    """Make ``--tokenizer-mode infer_accel`` known, or say in one line why it is not."""
    try:
        from infer_accel.integrations import vllm_tokenizer  # noqa: PLC0415 - vLLM's interface may be another
    except ImportError as error:
        _log.error(
            "--tokenizer-mode infer_accel is not available: vLLM 0.32 and 0.33 are known to work; %s", error
        )
    else:
        vllm_tokenizer.register()


def offloading() -> None:
    """Make the specification, the tier and the policy known by name; they are loaded where they are asked for."""
    try:
        from vllm.v1.kv_offload.cpu.policies.factory import CachePolicyFactory  # noqa: PLC0415 - as above
        from vllm.v1.kv_offload.factory import OffloadingSpecFactory  # noqa: PLC0415 - as above
        from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory  # noqa: PLC0415 - as above
    except ImportError as error:
        # Nobody has asked for it: vLLM says that it does not know the name, should somebody do so.
        _log.debug("vLLM's offloading is not that of 0.33: %s", error)
        return
    here = "infer_accel.integrations"
    for register, name, module, class_name in (
        (
            OffloadingSpecFactory.register_spec,
            "InferAccelOffloadingSpec",
            "vllm_offloading",
            "InferAccelOffloadingSpec",
        ),
        (SecondaryTierFactory.register_tier, "infer_accel_disk", "vllm", "DiskTierManager"),
        (CachePolicyFactory.register_cache_policy, "infer_accel_lru", "vllm_offloading", "LinkedLruPolicy"),
    ):
        # vLLM may call this twice, and refuses a name that it has.
        with contextlib.suppress(ValueError):
            register(name, f"{here}.{module}", class_name)
