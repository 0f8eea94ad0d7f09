"""The connector in vLLM itself: real weights, greedy tokens in float32, beside vLLM without it.

`make test-serve` runs this in an environment of its own. Every engine is a process, started and ended here; nothing
listens but on the loopback interface.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import pytest
from tests.serve.run import make_tiny, run

if TYPE_CHECKING:
    from pathlib import Path

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed: make test-serve", allow_module_level=True)

#: Prompts (which text, how many tokens), and tokens of an answer.
PROMPTS = [[1, 1100], [2, 700], [3, 300]]
ANSWER = 16
ALL = ["generate", PROMPTS, ANSWER]
#: Block sizes: vLLM's own for CPUs, and the smallest that its kernel for CPUs takes.
BLOCK_SIZES = [128, 32]


def whole_blocks(block_size: int) -> list[int]:
    return [(tokens - 1) // block_size * block_size for _, tokens in PROMPTS]


#: Models of random weights: every layer sees a window, or every other one does.
WINDOWS: dict[str, tuple[str, dict[str, Any]]] = {
    "sliding window": ("MistralConfig", {"architectures": ["MistralForCausalLM"]}),
    "hybrid": ("Gemma3TextConfig", {"architectures": ["Gemma3ForCausalLM"], "query_pre_attn_scalar": 32}),
}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("config", "given"), WINDOWS.values(), ids=WINDOWS)
def test_models_that_see_a_window(config: str, given: dict[str, Any], tmp_path: Path) -> None:
    engine = {"model": make_tiny(config, given, tmp_path / "model"), "skip_tokenizer_init": True}
    found = whole_blocks(32)
    cold, hits = run([ALL, ALL], 32, None, **engine)
    assert hits["tokens"] == cold["tokens"]
    connector = {"root_dir": str(tmp_path / "kv"), "capacity_bytes": 1 << 30}
    steps: list[list[Any]] = [ALL, ["reset"], ALL, ["flush"]]
    first, _, reset, _ = run(steps, 32, connector, **engine)
    restart, stats = run([ALL, ["stats"]], 32, connector, **engine)
    assert first["tokens"] == reset["tokens"] == restart["tokens"] == cold["tokens"]
    assert (reset["cached"], restart["cached"]) == (found, found)
    assert stats["failed_pages"] == 0
    assert stats["loaded_pages"] > 0


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_pages_come_back_and_no_token_changes(block_size: int, tmp_path: Path) -> None:
    found = whole_blocks(block_size)
    cold, hits = run([ALL, ALL], block_size, None)
    assert (cold["cached"], hits["cached"]) == ([0, 0, 0], found)
    expected = cold["tokens"]
    assert hits["tokens"] == expected, "vLLM's own hits change tokens here: these prompts prove nothing"

    connector = {"root_dir": str(tmp_path / "kv"), "capacity_bytes": 4 << 30}
    # One process ends as a server that is stopped does, the other is killed.
    end = ["flush"] if block_size == BLOCK_SIZES[0] else ["kill"]
    steps: list[list[Any]] = [ALL, ["reset"], ALL, ["stats"], ["flush"], end]
    if end == ["flush"]:
        first, _, reset, stats, *_ = run(steps, block_size, connector)
        assert (first["tokens"], first["cached"]) == (expected, [0, 0, 0])
        assert (reset["tokens"], reset["cached"]) == (expected, found)
        assert stats["loaded_pages"] == stats["matched_blocks"] == sum(found) // block_size
        assert stats["failed_pages"] == stats["refused_pages"] == stats["tier_errors"] == 0
    else:
        run(steps, block_size, connector)

    # A new process: what it has is what lies on disk. First all is well, then a bit of each 64 KiB is flipped.
    first_two = ["generate", PROMPTS[:2], ANSWER]
    last = ["generate", PROMPTS[2:], ANSWER]
    salted = ["generate", PROMPTS[:1], ANSWER, ["another tenant"]]
    steps = [first_two, salted, ["stats"], ["flip", 65_536], last, ["stats"], ["reset"], last]
    restart, tenant, before, flipped, wrong, after, _, again = run(steps, block_size, connector)
    assert (restart["tokens"], restart["cached"]) == (expected[:2], found[:2])
    assert (tenant["tokens"], tenant["cached"]) == (expected[:1], [0])
    assert before["loaded_pages"] == sum(found[:2]) // block_size
    assert before["failed_pages"] == before["corrupt_pages"] == 0
    assert flipped > 100
    assert wrong["tokens"] == expected[2:], "a flipped bit has changed a token"
    pages = found[2] // block_size
    assert after["failed_pages"] == pages
    assert after["corrupt_pages"] >= 1
    assert after["loaded_pages"] == before["loaded_pages"]
    # What was computed again was stored again.
    assert (again["tokens"], again["cached"]) == (expected[2:], found[2:])
