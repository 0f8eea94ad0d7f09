"""`generate_batch` of the transformers that is installed, with its blocks managed here and by itself."""

from __future__ import annotations

import logging
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers", exc_type=ImportError)
torch = pytest.importorskip("torch")

from infer_accel.integrations import transformers as accelerated  # noqa: E402
from infer_accel.integrations._transformers import versions  # noqa: E402

if versions.interface_problem() is not None:
    pytest.skip("a version of transformers that is not served", allow_module_level=True)

from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    ContinuousBatchingConfig,
    GenerationConfig,
    LlamaConfig,
    MistralConfig,
)
from transformers.generation.continuous_batching import continuous_api  # noqa: E402

from infer_accel.integrations._transformers.cache import ManagedCache  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 997,
    "max_position_embeddings": 2048,
    "initializer_range": 0.2,
}


def tiny(kind: Any = LlamaConfig, **more: Any) -> Any:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = kind(**(SIZES | more))
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa").eval()


def prompts() -> list[list[int]]:
    drawn = random.Random(1)
    alike = [drawn.randrange(3, 997) for _ in range(70)]
    several = [
        alike[: drawn.randrange(70)] + [drawn.randrange(3, 997) for _ in range(drawn.randrange(1, 60))]
        for _ in range(20)
    ]
    return several + several[:4]


def answers(
    model: Any, asked: list[list[int]], *, new_tokens: int = 24, returned: int = 1, **config: Any
) -> list[list[int]]:
    settings: dict[str, Any] = {"page_size": 16, "num_blocks": 64, "max_batch_tokens": 128} | config
    outputs = model.generate_batch(
        inputs=asked,
        generation_config=GenerationConfig(
            max_new_tokens=new_tokens,
            # More than one answer has to be drawn, if only from the best token.
            do_sample=returned > 1,
            top_k=1 if returned > 1 else None,
            eos_token_id=2,
            pad_token_id=0,
            num_return_sequences=returned,
        ),
        continuous_batching_config=ContinuousBatchingConfig(**settings),
        progress_bar=False,
    )
    assert all(output.error is None for output in outputs.values())
    return [list(outputs[name].generated_tokens) for name in sorted(outputs)]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"num_blocks": 20},
        {"num_blocks": 20, "max_batch_tokens": 37},
        {"allow_block_sharing": False},
        {"scheduler_type": "prefill_first"},
        {"page_size": 5, "num_blocks": 100},
        {"page_size": 64, "num_blocks": 11, "max_batch_tokens": 61},
    ],
    ids=str,
)
def test_tokens_are_the_same(config: dict[str, Any]) -> None:
    model = tiny()
    alone = answers(model, prompts(), **config)
    with accelerated.installed() as active:
        assert active
        assert answers(model, prompts(), **config) == alone
    assert any(alone)


def test_several_answers_to_one_prompt_are_the_same() -> None:
    model = tiny()
    alone = answers(model, prompts()[:6], returned=3)
    with accelerated.installed():
        assert answers(model, prompts()[:6], returned=3) == alone
    assert len(alone) == 18


def test_tokens_of_a_real_model_are_the_same() -> None:
    from tests.serve.engine import model as directory
    from transformers import AutoTokenizer

    path = directory()
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa").eval()
    system = "You know a little of everything, and say it in one sentence. " * 8
    asked = [
        tokenizer.apply_chat_template(
            [{"role": "system", "content": system}, {"role": "user", "content": f"What is {n} plus {n}?"}],
            add_generation_prompt=True,
            return_dict=False,
        )
        for n in range(6)
    ]
    alone = answers(model, asked, new_tokens=16, page_size=32)
    with accelerated.installed():
        assert answers(model, asked, new_tokens=16, page_size=32) == alone


def test_a_failed_step_leaves_nothing_that_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    alone = answers(model, prompts()[:3])
    caches: list[ManagedCache] = []
    made = ManagedCache.__init__

    def remember(self: ManagedCache, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        caches.append(self)

    monkeypatch.setattr(ManagedCache, "__init__", remember)
    with accelerated.installed():
        assert answers(model, prompts()[:3]) == alone
    (cache,) = caches
    cache.books.check_invariants()
    assert cache.books.free_blocks == cache.books.geometry.num_blocks, "every block came back"


class Alone:
    tp_size = 1

    def are_kv_heads_tp_ed(self) -> bool:
        return False


def a_batch(*, managed: bool, fast: bool, padded: bool) -> tuple[Any, list[Any]]:
    """Return a cache and the tensors of each step of a batch that was prefilled, and then decoded."""
    from transformers.generation.continuous_batching.cb_logits_processors import (
        ContinuousBatchingLogitsProcessorList,
    )
    from transformers.generation.continuous_batching.requests import RequestState
    from transformers.generation.continuous_batching.scheduler import FIFOScheduler
    from transformers.generation.logits_process import LogitsProcessorList

    config = LlamaConfig(**SIZES)
    config._attn_implementation = "paged|flash_attention_2"
    batching = ContinuousBatchingConfig(
        page_size=16,
        num_blocks=40,
        max_batch_tokens=64,
        max_requests_per_batch=8,
        max_blocks_per_request=16 if fast else 0,
        max_memory_percent=0.9,
        use_async_batching=False,
        use_cuda_graph=False,
    )
    processors = ContinuousBatchingLogitsProcessorList(LogitsProcessorList())
    if managed:
        assert accelerated.install()
    try:
        cache = continuous_api.PagedAttentionCache(
            config=config,
            continuous_batching_config=batching,
            device=torch.device("cpu"),
            distributed_helper=Alone(),
            dtype=torch.float32,
        )
        inputs = continuous_api.ContinuousBatchingIOs(
            cache=cache,
            config=config,
            continuous_batching_config=batching,
            device=torch.device("cpu"),
            model_dtype=torch.float32,
            logit_processor=processors,
        )
    finally:
        accelerated.uninstall()
    assert isinstance(cache, ManagedCache) == managed
    scheduler = FIFOScheduler(cache, 0.0, 8)
    for place, prompt in enumerate(prompts()[:6]):
        scheduler.add_waiting_request(RequestState(f"r{place}", prompt, max_new_tokens=1000, eos_token_id=-5))
    steps = []
    for step in range(20):
        requests, is_fast, queries, reads = scheduler.schedule_batch(60, cache.max_tokens_read)
        if padded:
            queries, reads = queries + 3, reads + 5 * (reads > 0)
        inputs.prepare_batch_tensors(requests, processors, is_fast, queries, reads, padded)
        given = inputs.get_model_kwargs(use_padding=padded)
        block_table = given["block_table"]
        states = [future.state for future in requests]
        told = [(state.initial_tokens + state.generated_tokens)[: state.position_offset] for state in states]
        steps.append(
            (
                given["input_ids"][0].tolist(),
                given["write_index"][0].numpy().copy(),
                given["read_index"][0].numpy().copy(),
                None if block_table is None else block_table[0].numpy().copy(),
                told,
            )
        )
        for place, future in enumerate(requests):
            if future.has_new_token:
                future.state.update_and_check_completion((step * 31 + place) % 900 + 3, None)
            cache.mark_complete_blocks(future.state, future.complete_blocks)
    return cache, steps


@pytest.mark.parametrize(("fast", "padded"), [(False, False), (True, False), (False, True)])
def test_indices_name_the_rows_of_the_tokens(fast: bool, padded: bool) -> None:
    own = a_batch(managed=False, fast=fast, padded=padded)
    ours = a_batch(managed=True, fast=fast, padded=padded)
    assert [step[0] for step in own[1]] == [step[0] for step in ours[1]], "the same tokens in the same steps"
    for cache, steps in (own, ours):
        allocator = cache.cache_allocators["full_attention"]
        memory = np.full(allocator.num_blocks * allocator.block_physical_stride * 2, -1)
        for ids, write, read, table, told in steps:
            if table is None:
                memory[write] = ids
                memory[allocator.write_trash_index] = -2
            else:
                rows = table[:, :, None] * allocator.tokens_per_page + np.arange(allocator.tokens_per_page)
                for row, tokens in zip(rows, told, strict=True):
                    memory[row.reshape(-1)[len(tokens) - 1]] = tokens[-1]
                    assert memory[row.reshape(-1)[: len(tokens)]].tolist() == tokens
            if len(read):
                all_told = [token for tokens in told for token in tokens]
                assert memory[read].tolist() == all_told + [-1] * (len(read) - len(all_told))
    assert any(step[3] is not None for step in ours[1]) == fast


@pytest.mark.parametrize("layers", ["sliding", "both"])
def test_a_model_with_windows_works_as_before(layers: str, caplog: pytest.LogCaptureFixture) -> None:
    more: dict[str, Any] = {"sliding_window": 32}
    if layers == "both":
        from transformers import Qwen2Config as Config

        kinds = ["sliding_attention", "full_attention", "sliding_attention"]
        more |= {"layer_types": kinds, "use_sliding_window": True}
    else:
        Config = MistralConfig
    model = tiny(Config, **more)
    alone = answers(model, prompts()[:4])
    with caplog.at_level(logging.WARNING, "infer_accel"), accelerated.installed():
        assert answers(model, prompts()[:4]) == alone
    (line,) = [record.getMessage() for record in caplog.records if record.name == "infer_accel"]
    assert "sliding_attention" in line
    assert "full_attention alone is served" in line


@pytest.mark.parametrize("version", ["5.24.0", "6.0.0.dev0", "nonsense"])
def test_another_version_is_one_line_and_no_change(
    version: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "version", lambda: version)
    own = continuous_api.PagedAttentionCache
    assert not accelerated.install()
    assert continuous_api.PagedAttentionCache is own
    (record,) = caplog.records
    assert record.getMessage() == (
        "infer-accel does not manage transformers' blocks: "
        f"transformers {version} came; known to work: {', '.join(versions.KNOWN_VERSIONS)}"
    )


def test_a_changed_method_is_one_line_and_no_change(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed(self: object, request_id: str) -> None:
        """Take other parameters."""

    monkeypatch.setattr(continuous_api.PagedAttentionCache, "free_blocks", changed)
    assert not accelerated.install()
    (record,) = caplog.records
    assert "PagedAttentionCache.free_blocks('request_id',), where free_blocks(" in record.getMessage()


def test_what_was_there_is_there_again() -> None:
    own = (continuous_api.PagedAttentionCache, continuous_api.ContinuousBatchingIOs)
    assert accelerated.install()
    assert accelerated.install()
    with accelerated.installed():
        assert continuous_api.PagedAttentionCache is not own[0]
    assert accelerated.is_installed(), "it was before the block"
    accelerated.uninstall()
    accelerated.uninstall()
    assert (continuous_api.PagedAttentionCache, continuous_api.ContinuousBatchingIOs) == own


def test_the_example_runs() -> None:
    example = Path(__file__).parents[2] / "examples/engines/transformers_batching.py"
    from tests.serve import supervised
    from tests.serve.engine import model as directory

    done = supervised.run(
        [sys.executable, str(example), directory()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "the same tokens" in done.stdout
