"""What of vLLM the KV connector uses, for where vLLM is not there; and an engine that computes nothing but cares.

The engine's "keys and values" of a token are a number that depends on all tokens before it, on the adapter and on the
salt: a page of another prompt, or of another tenant, is seen at once.
"""

from __future__ import annotations

import sys
import time
import zlib
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from infer_accel import integrations

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest


class KVConnectorRole(Enum):
    SCHEDULER = 0
    WORKER = 1


class CacheHitSource(Enum):
    DISK = "disk"


class KVConnectorMetadata(ABC):  # noqa: B024 - as vLLM has it
    pass


class KVConnectorBase_V1(ABC):
    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        self._connector_metadata: KVConnectorMetadata | None = None

    def register_kv_caches(self, kv_caches: Any) -> None:
        return

    def bind_connector_metadata(self, connector_metadata: Any) -> None:
        self._connector_metadata = connector_metadata

    @abstractmethod
    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None: ...
    @abstractmethod
    def wait_for_layer_load(self, layer_name: str) -> None: ...
    @abstractmethod
    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None: ...
    @abstractmethod
    def wait_for_save(self) -> None: ...
    def get_finished(self, finished_req_ids: Any) -> Any:
        return None

    def get_block_ids_with_load_errors(self) -> Any:
        return None

    def get_kv_connector_stats(self) -> Any:
        return None

    @abstractmethod
    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> Any: ...
    @abstractmethod
    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None: ...
    @abstractmethod
    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata: ...
    def update_connector_output(self, connector_output: Any) -> None:
        return

    def request_finished(self, request: Any, block_ids: Any) -> Any:
        return None

    def reset_cache(self) -> Any:
        return None

    def shutdown(self) -> None:
        return


@dataclass
class NewRequestData:
    req_id: str
    block_ids: tuple[list[int], ...]
    num_computed_tokens: int


@dataclass
class CachedRequestData:
    req_ids: list[str] = field(default_factory=list)
    resumed_req_ids: set[str] = field(default_factory=set)
    new_block_ids: list[tuple[list[int], ...] | None] = field(default_factory=list)
    num_computed_tokens: list[int] = field(default_factory=list)


@dataclass
class SchedulerOutput:
    scheduled_new_reqs: list[NewRequestData] = field(default_factory=list)
    scheduled_cached_reqs: CachedRequestData = field(default_factory=CachedRequestData)
    num_scheduled_tokens: dict[str, int] = field(default_factory=dict)


@dataclass
class KVConnectorOutput:
    finished_recving: set[str] | None = None
    invalid_block_ids: set[int] = field(default_factory=set)


@dataclass
class KVConnectorStats:
    data: dict[str, Any] = field(default_factory=dict)


class KVConnectorPromMetrics:
    def __init__(self, vllm_config: Any, metric_types: Any, labelnames: Any, per_engine: Any) -> None: ...


_CLASSES = {name: value for name, value in globals().items() if isinstance(value, type)}
_MODULES = (
    "vllm",
    "vllm.distributed",
    "vllm.distributed.kv_transfer",
    "vllm.distributed.kv_transfer.kv_connector",
    "vllm.distributed.kv_transfer.kv_connector.v1",
    "vllm.distributed.kv_transfer.kv_connector.v1.base",
    "vllm.distributed.kv_transfer.kv_connector.v1.metrics",
    "vllm.v1",
    "vllm.v1.core",
    "vllm.v1.core.sched",
    "vllm.v1.core.sched.output",
    "vllm.v1.metrics",
    "vllm.v1.metrics.cache_hit_source",
    "vllm.v1.outputs",
)
OURS = (
    "infer_accel.integrations.vllm_connector",
    "infer_accel.integrations._vllm_engine",
    "infer_accel.integrations._vllm_metrics",
)


def install(monkeypatch: pytest.MonkeyPatch, *, version: str = "0.32.0") -> None:
    """Put these names where vLLM would have them, for one test."""
    for name in _MODULES:
        module = ModuleType(name)
        module.__dict__.update(_CLASSES, __version__=version)
        monkeypatch.setitem(sys.modules, name, module)
    for name in OURS:
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.delattr(integrations, name.rpartition(".")[2], raising=False)


@dataclass(frozen=True)
class FullAttentionSpec:
    block_size: int
    page_size_bytes: int
    dtype: str


class Blocks:
    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def get_block_ids(self) -> tuple[list[int], ...]:
        return (list(self.ids),)


@dataclass
class Adapter:
    lora_int_id: int
    lora_name: str
    lora_path: str
    load_inplace: bool = False


@dataclass(eq=False)
class Request:
    """A request, and where it stands."""

    request_id: str
    tokens: list[int]
    cache_salt: str | None = None
    lora_request: Adapter | None = None
    prompt_embeds: object = None
    mm_features: list[Any] = field(default_factory=list)
    answer: int = 1
    #: What the adapter's weights are: it changes what is computed.
    weights: int = 0

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.tokens)
        self.all_token_ids = list(self.tokens)
        self.blocks: list[int] = []
        self.computed = 0
        self.loading = False
        self.loaded = self.recomputed = 0

    @property
    def num_tokens(self) -> int:
        return len(self.all_token_ids)

    def numbers(self) -> list[int]:
        """What the model computes for each token."""
        number = zlib.crc32(repr((self.cache_salt, self.weights)).encode())
        found = []
        for token in self.all_token_ids:
            number = zlib.crc32(token.to_bytes(4, "big"), number)
            found.append(number)
        return found


class Engine:
    """A scheduler and a worker around two connectors, in the order of calls that vLLM 0.32 has.

    It has no prefix cache of its own but `local`: so many blocks of each prompt that it pretends to have.
    """

    LAYERS = 3
    HEADS = 2
    CONTENT = 4

    def __init__(
        self,
        connector: Any,
        root: object,
        *,
        block_size: int = 16,
        num_blocks: int = 64,
        dtype: torch.dtype = torch.float32,
        split: int = 1,
        token_major: bool = False,
        chunk: int = 24,
        local: int = 0,
        config: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.block_size, self.num_blocks, self.chunk, self.local = block_size, num_blocks, chunk, local
        shape = (num_blocks * split, self.HEADS, block_size // split, self.CONTENT)
        names = [f"layer.{number}" for number in range(self.LAYERS)]
        self.memory: dict[str, torch.Tensor] = {}
        for name in names:
            memory = torch.zeros(shape, dtype=dtype)
            if token_major:  # the same numbers, laid out with the tokens outside
                memory = torch.zeros((shape[0], shape[2], shape[1], shape[3]), dtype=dtype).transpose(1, 2)
            self.memory[name] = memory
        page = self.HEADS * block_size * self.CONTENT * dtype.itemsize
        spec = FullAttentionSpec(block_size, page, str(dtype))
        cache = SimpleNamespace(
            num_blocks=num_blocks,
            kv_cache_groups=[SimpleNamespace(layer_names=names, kv_cache_spec=spec)],
            kv_cache_tensors=[SimpleNamespace(layers=names)],
            kv_cache_layout="LBHNC",
        )
        given = {"root_dir": str(root), "capacity_bytes": 1 << 22, "host_bytes": 1 << 20} | options
        vllm_config = configuration(given, **(config or {}))
        roles = (KVConnectorRole.WORKER, KVConnectorRole.SCHEDULER)
        self.worker, self.scheduler = (connector(vllm_config, role, cache) for role in roles)
        self.worker.register_kv_caches(self.memory)
        self.free = deque(range(1, num_blocks))
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    def serve(self, *requests: Request, seconds: float = 30.0) -> None:
        """Run requests to their end."""
        self.waiting.extend(requests)
        until = time.monotonic() + seconds
        while self.waiting or self.running:
            assert time.monotonic() < until, "a request waits for ever"
            self.step()

    def step(self) -> None:
        output = SchedulerOutput()
        new = self._admit(output)
        for request in self.running:
            if request not in new:
                self._schedule(request, output, is_new=False)
        metadata = self.scheduler.build_connector_meta(output)
        self.worker.bind_connector_metadata(metadata)
        self.worker.start_load_kv(None)
        for name, count in output.num_scheduled_tokens.items():
            request = next(one for one in self.running if one.request_id == name)
            self._compute(request, request.computed, request.computed + count)
        self.worker.wait_for_save()
        _, received = self.worker.get_finished(set())
        result = KVConnectorOutput(received, self.worker.get_block_ids_with_load_errors())
        for request in self.waiting:
            if request.request_id in (received or ()):
                self._arrived(request, result.invalid_block_ids)
        self.scheduler.update_connector_output(result)
        for request in list(self.running):
            request.computed += output.num_scheduled_tokens.get(request.request_id, 0)
            if request.computed == request.num_tokens:
                self._sample(request)

    def wipe(self) -> None:
        """Let nothing of what was computed be found in memory."""
        for memory in self.memory.values():
            memory.fill_(-1.0)

    def close(self) -> None:
        self.scheduler.shutdown()
        self.worker.shutdown()

    def _admit(self, output: SchedulerOutput) -> list[Request]:
        new = []
        for request in list(self.waiting):
            if request.loading:
                continue
            if not request.blocks:
                local = min(self.local, (request.num_tokens - 1) // self.block_size)
                matched, later = self.scheduler.get_num_new_matched_tokens(request, local * self.block_size)
                assert later is (matched > 0)
                assert local * self.block_size + matched < request.num_tokens
                count = -(-(request.num_tokens + request.answer) // self.block_size)
                request.blocks = [self.free.popleft() for _ in range(count)]
                self._compute(request, 0, local * self.block_size)
                request.computed = local * self.block_size + matched
                request.loaded = matched
                self.scheduler.update_state_after_alloc(request, Blocks(request.blocks), matched)
                request.loading = later
                if later:
                    continue
            else:
                self.scheduler.update_state_after_alloc(request, Blocks(request.blocks), 0)
            self.waiting.remove(request)
            self.running.append(request)
            self._schedule(request, output, is_new=True)
            new.append(request)
        return new

    def _schedule(self, request: Request, output: SchedulerOutput, *, is_new: bool) -> None:
        count = min(self.chunk, request.num_tokens - request.computed)
        output.num_scheduled_tokens[request.request_id] = count
        if is_new:
            blocks = (list(request.blocks),)
            output.scheduled_new_reqs.append(NewRequestData(request.request_id, blocks, request.computed))
            return
        cached = output.scheduled_cached_reqs
        cached.req_ids.append(request.request_id)
        cached.new_block_ids.append(None)
        cached.num_computed_tokens.append(request.computed)

    def _arrived(self, request: Request, invalid: set[int]) -> None:
        """As vLLM does it: the request goes on behind the last block before the first that failed."""
        request.loading = False
        for index, block in enumerate(request.blocks[: request.computed // self.block_size]):
            if block in invalid:
                request.recomputed = request.computed - index * self.block_size
                request.computed = index * self.block_size
                break

    def _sample(self, request: Request) -> None:
        self.check(request)
        if request.num_tokens - request.num_prompt_tokens < request.answer:
            request.all_token_ids.append(request.numbers()[-1] % 1000)
            return
        self.finish(request)

    def finish(self, request: Request) -> None:
        self.scheduler.request_finished(request, request.blocks)
        self.running.remove(request)
        self.free.extend(request.blocks)

    def _compute(self, request: Request, begin: int, end: int) -> None:
        for place, value in self._places(request, begin, end):
            place[...] = value

    def check(self, request: Request) -> None:
        """What the engine has of a request is what the model computes for it, every number of it."""
        for place, value in self._places(request, 0, request.computed):
            assert torch.equal(place, value), f"wrong numbers in a block of {request.request_id}"

    def _places(self, request: Request, begin: int, end: int) -> Any:
        numbers = request.numbers()
        for position in range(begin, end):
            block, offset = request.blocks[position // self.block_size], position % self.block_size
            for layer, memory in enumerate(self.memory.values()):
                split = memory.shape[0] // self.num_blocks
                part, row = divmod(offset, self.block_size // split)
                place = memory[block * split + part, :, row]
                value = torch.arange(place.numel()).reshape(place.shape) + layer + numbers[position] % 200
                yield place, value.to(place.dtype)


class Model(SimpleNamespace):
    def to_json_string(self, *, use_diff: bool) -> str:
        return str(self.text)


def configuration(options: dict[str, Any], **changes: Any) -> Any:
    """As vLLM hands one to a connector."""
    model: dict[str, Any] = {"model": "a model", "revision": None, "dtype": "float32", "quantization": None}
    model |= {"max_model_len": 1024, "hf_config": Model(text="{}")}
    parallel: dict[str, Any] = {"tensor_parallel_size": 1, "pipeline_parallel_size": 1, "rank": 0}
    policy = changes.pop("policy", "recompute")
    for name, value in changes.items():
        (parallel if name in parallel else model)[name] = value
    transfer = SimpleNamespace(kv_connector_extra_config=options, kv_load_failure_policy=policy)
    return SimpleNamespace(
        kv_transfer_config=transfer,
        model_config=SimpleNamespace(**model),
        parallel_config=SimpleNamespace(**parallel),
        cache_config=SimpleNamespace(),
        load_config=SimpleNamespace(load_format="auto"),
        attention_config=None,
    )


def tokens(seed: int, count: int) -> Sequence[int]:
    return [(seed * 7919 + 31 * place) % 50_000 for place in range(count)]
