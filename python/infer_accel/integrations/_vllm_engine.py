"""What of vLLM the connector relies on, checked at start: versions, signatures, and what can be served."""

from __future__ import annotations

import dataclasses
import platform
from typing import TYPE_CHECKING

import torch
import vllm
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1
from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput
from vllm.v1.outputs import KVConnectorOutput

from infer_accel.integrations._connector.keys import KeyChain, weights_of
from infer_accel.integrations._interface import signature_problem, version_problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

    from infer_accel.integrations._connector.keys import AdapterDigests

#: Minor versions whose interface this connector was written against.
KNOWN_VERSIONS = ("0.32", "0.33")

_SIGNATURES = {
    "__init__": ("vllm_config", "role", "kv_cache_config"),
    "register_kv_caches": ("kv_caches",),
    "bind_connector_metadata": ("connector_metadata",),
    "start_load_kv": ("forward_context", "kwargs"),
    "wait_for_layer_load": ("layer_name",),
    "save_kv_layer": ("layer_name", "kv_layer", "attn_metadata", "kwargs"),
    "wait_for_save": (),
    "get_finished": ("finished_req_ids",),
    "get_block_ids_with_load_errors": (),
    "get_kv_connector_stats": (),
    "get_num_new_matched_tokens": ("request", "num_computed_tokens"),
    "update_state_after_alloc": ("request", "blocks", "num_external_tokens"),
    "build_connector_meta": ("scheduler_output",),
    "update_connector_output": ("connector_output",),
    "request_finished": ("request", "block_ids"),
    "reset_cache": (),
    "shutdown": (),
}
_FIELDS: dict[type, tuple[str, ...]] = {
    SchedulerOutput: ("scheduled_new_reqs", "scheduled_cached_reqs", "num_scheduled_tokens"),
    NewRequestData: ("req_id", "block_ids", "num_computed_tokens"),
    CachedRequestData: ("req_ids", "resumed_req_ids", "new_block_ids", "num_computed_tokens"),
    KVConnectorOutput: ("finished_recving", "invalid_block_ids"),
}
#: Kinds of cache whose blocks hold the keys and values of tokens, and nothing else.
_SPECS = {"FullAttentionSpec", "MLAAttentionSpec", "SlidingWindowSpec", "UniformTypeKVCacheSpecs"}
#: Settings under which a block of this process is no whole page of the model.
_PARALLEL = ("pipeline_parallel_size", "decode_context_parallel_size", "prefill_context_parallel_size")


def version() -> str:
    """Return vLLM's version, such as ``"0.32.0"``."""
    return str(vllm.__version__)


def interface_problem() -> str | None:
    """Return what is wrong with the engine that is installed, or None."""
    signatures = {KVConnectorBase_V1: _SIGNATURES}
    problem = version_problem("vLLM", version(), KNOWN_VERSIONS) or signature_problem(
        "vLLM", version(), signatures
    )
    if problem is not None:
        return problem
    for kind, wanted in _FIELDS.items():
        missing = set(wanted) - {field.name for field in dataclasses.fields(kind)}
        if missing:
            return (
                f"vLLM {version()} has no {', '.join(sorted(missing))} in {kind.__name__}: a changed build?"
            )
    return None


def configuration_problem(config: VllmConfig, cache: KVCacheConfig) -> str | None:
    """Return what this connector cannot serve in a configuration, or None."""
    policy = config.kv_transfer_config.kv_load_failure_policy
    if policy != "recompute":
        return (
            f"kv_load_failure_policy is {policy!r}, with which a page that cannot be loaded ends a request: "
            'add "kv_load_failure_policy": "recompute" to --kv-transfer-config'
        )
    for name in _PARALLEL:
        if getattr(config.parallel_config, name, 1) != 1:
            return f"{name} is not 1"
    if len(cache.kv_cache_groups) != 1:
        return f"the model has {len(cache.kv_cache_groups)} groups of caches; one is served"
    spec = cache.kv_cache_groups[0].kv_cache_spec
    kinds = {type(one).__name__ for one in getattr(spec, "kv_cache_specs", {"": spec}).values()}
    if not kinds <= _SPECS:
        return (
            f"the cache is of kind {', '.join(sorted(kinds - _SPECS))}; served: {', '.join(sorted(_SPECS))}"
        )
    if getattr(config.cache_config, "calculate_kv_scales", False):
        return "calculate_kv_scales gives every process scales of its own"
    return None


def layer_slots(cache: KVCacheConfig) -> dict[str, int]:
    """Return the layers of a page, in order, and the bytes that a block of each takes."""
    group = cache.kv_cache_groups[0]
    owners = {name for tensor in cache.kv_cache_tensors for name in tensor.layers}
    specs = getattr(group.kv_cache_spec, "kv_cache_specs", {})
    names = [name for name in group.layer_names if name in owners]
    return {name: specs.get(name, group.kv_cache_spec).page_size_bytes for name in names}


def facts(config: VllmConfig, cache: KVCacheConfig, identity: str | None) -> dict[str, object]:
    """Return all that a page's content depends on beside tokens, adapter and salt.

    What is the same for two engines may be read by both. Where it is not known whether something matters, it is here:
    a page too few is slow, a page too many is wrong.
    """
    model = config.model_config
    spec = cache.kv_cache_groups[0].kv_cache_spec
    shown: dict[str, object] = {
        "model": identity or model.model,
        "dtype": str(model.dtype),
        "quantization": str(model.quantization),
        "max_model_len": model.max_model_len,
        "architecture": model.hf_config.to_json_string(use_diff=False),
        "cache": repr(spec),
        "layers": layer_slots(cache),
        "layout": str(cache.kv_cache_layout),
        "attention": repr(getattr(config, "attention_config", None)),
        "engine": version(),
        "tensor_parallel_size": config.parallel_config.tensor_parallel_size,
        "machine": _machine(),
    }
    if identity is None:
        shown["revision"] = [str(model.revision), str(getattr(model.hf_config, "_commit_hash", None))]
        shown["weights"] = weights_of(model.model)
        shown["load_format"] = str(config.load_config.load_format)
    return shown


def _machine() -> list[object]:
    """Return what decides how the engine arranges numbers within a block: on a CPU that is the instructions it has."""
    if torch.cuda.is_available():
        return ["cuda", torch.cuda.get_device_name(), torch.cuda.get_device_capability()]
    tiles = getattr(torch.cpu, "_is_amx_tile_supported", lambda: None)()
    return ["cpu", platform.machine(), torch.backends.cpu.get_cpu_capability(), tiles]


def tensor_rank(config: VllmConfig) -> int:
    """Return which of the ranks that share the heads this worker is."""
    return int(config.parallel_config.rank) % int(config.parallel_config.tensor_parallel_size)


class RequestView:
    """A request of vLLM, as the scheduler's side asks it."""

    def __init__(self, request: Request, origin: bytes, block_size: int, digests: AdapterDigests) -> None:
        self.request_id: str = request.request_id
        self._request, self._origin, self._block_size = request, origin, block_size
        self._adapter: str | None = None
        # The tokens of a session that is fed bit by bit may change behind its keys.
        self._is_named = request.prompt_embeds is None and getattr(request, "streaming_queue", None) is None
        adapter = request.lora_request
        if adapter is not None:
            self._adapter = digests.of(
                adapter.lora_int_id,
                adapter.lora_name,
                adapter.lora_path,
                again=getattr(adapter, "load_inplace", False),
            )
            self._is_named &= self._adapter is not None

    def is_of(self, request: Request) -> bool:
        """Return whether this is a view of that request."""
        return self._request is request

    @property
    def token_ids(self) -> Sequence[int]:
        """The tokens so far."""
        tokens: Sequence[int] = self._request.all_token_ids
        return tokens

    @property
    def num_tokens(self) -> int:
        """How many those are."""
        return int(self._request.num_tokens)

    @property
    def num_prompt_tokens(self) -> int:
        """How many of them are the prompt's."""
        return int(self._request.num_prompt_tokens)

    @property
    def cacheable_tokens(self) -> int:
        """Those before the first image; none where tokens or adapter do not tell what is computed."""
        if not self._is_named:
            return 0
        features = self._request.mm_features
        return min((feature.mm_position.offset for feature in features), default=self.num_tokens)

    def key_chain(self) -> KeyChain:
        """Return the keys of its blocks, to be made."""
        return KeyChain(self._origin, self._block_size, salt=self._request.cache_salt, adapter=self._adapter)
