"""Two hundred requests, sixteen at a time, in the shape of a recorded trace: no error, no wrong token, no leak."""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from tests.serve.load import ask_all, ids, prompts
from tests.serve.run import make_tiny
from tests.serve.server import OPTIONS, Server, serving, with_connector
from tests.serve.server_log import tracebacks

if TYPE_CHECKING:
    from pathlib import Path

    from tests.serve.load import Prompt
    from tests.serve.server import Answer

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed: make test-serve", allow_module_level=True)

REQUESTS, AT_ONCE, ANSWER, BLOCK = 200, 16, 8, 32
#: Two crowds that share nothing but their first block.
WAVES = [prompts(REQUESTS, seed, block=BLOCK, most=1900) for seed in (1, 2)]
#: Tokens of SmolLM2's vocabulary that are text.
VOCABULARY = 49_000
#: vLLM's own cache holds 16 prompts of the longest kind, and not all that come again.
ENGINE = ["--block-size", str(BLOCK), "--num-gpu-blocks-override", "1000", "--max-num-seqs", str(AT_ONCE)]
#: Bytes of a page of the tiny model: 4 layers, keys and values, 2 heads of 32 floats.
PAGE_BYTES = 4 * 2 * 2 * 32 * 4 * BLOCK


def ask(server: Server, prompt: Prompt) -> Answer:
    return server.stream(ids(prompt, block=BLOCK, vocabulary=VOCABULARY), ANSWER)


def wave(server: Server, number: int) -> list[Answer]:
    answers = ask_all(functools.partial(ask, server), WAVES[number], AT_ONCE)
    return [answer for answer in answers if answer is not None]


def tokens(answers: list[Answer]) -> list[list[int]]:
    return [answer.tokens for answer in answers]


def computed(number: int, answers: list[Answer]) -> int:
    return sum(prompt.tokens for prompt in WAVES[number]) - sum(answer.cached for answer in answers)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a model of random weights, with a tokenizer: a server wants one."""
    folder = tmp_path_factory.mktemp("tiny")
    return make_tiny("MistralConfig", {"architectures": ["MistralForCausalLM"]}, folder, with_text=True)


def command(model: str, connector: list[str]) -> list[str]:
    options = [*OPTIONS, *ENGINE, "--enable-prompt-tokens-details"]
    return ["vllm", "serve", model, "--host", "127.0.0.1", *options, *connector]


@dataclass(frozen=True)
class Stock:
    """What vLLM does without us."""

    answers: list[list[Answer]]
    #: By how much its memory grows between the first time of both crowds and the third.
    growth: int


@pytest.fixture(scope="module")
def stock(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Stock:
    with serving(command(tiny, []), tiny, tmp_path_factory.mktemp("stock") / "log") as server:
        answers = [wave(server, 0), wave(server, 1)]
        before = server.memory()
        for number in (0, 1, 0, 1):
            wave(server, number)
        return Stock(answers, server.memory() - before)


@pytest.mark.timeout(1800)
def test_the_server_is_killed_in_the_middle(tiny: str, stock: Stock, tmp_path: Path) -> None:
    # The disk holds about half of what comes, and the host's memory an eighth: both evict all the time.
    distinct = sum(prompt.tokens // BLOCK for number in (0, 1) for prompt in WAVES[number])
    connector = with_connector(
        root_dir=str(tmp_path / "kv"),
        capacity_bytes=distinct * PAGE_BYTES // 2,
        host_bytes=distinct * PAGE_BYTES // 8,
    )
    with serving(command(tiny, connector), tiny, tmp_path / "killed.log") as server:

        def kill(answers: int) -> None:
            if answers == REQUESTS // 2:
                server.kill()

        came = ask_all(functools.partial(ask, server), WAVES[0], AT_ONCE, kill)
    answered = {place: answer for place, answer in enumerate(came) if answer is not None}
    assert REQUESTS // 2 <= len(answered) < REQUESTS
    for place, answer in answered.items():
        assert answer.tokens == stock.answers[0][place].tokens

    with serving(command(tiny, connector), tiny, tmp_path / "again.log") as server:
        again = wave(server, 0)
        assert tokens(again) == tokens(stock.answers[0])
        assert server.metric("loaded_pages") > 0
        # Half of the prompts have been computed by the server that was killed.
        assert computed(0, again) < 0.8 * computed(0, stock.answers[0])
        assert tokens(wave(server, 1)) == tokens(stock.answers[1])
        before = server.memory()
        for number in (0, 1, 0, 1):
            assert tokens(wave(server, number)) == tokens(stock.answers[number])
        # vLLM's own grows for a while, with and without us. A page a request would be 50 MB.
        assert server.memory() - before <= stock.growth + (32 << 20), "memory grows with requests"
        for name in ("failed_pages", "corrupt_pages", "late_pages", "tier_errors", "unwritten_pages"):
            assert server.metric(name) == 0, name
    assert tracebacks((tmp_path / "again.log").read_text()) == []


@pytest.mark.timeout(1800)
def test_the_disk_fills_up(tiny: str, stock: Stock, tmp_path: Path) -> None:
    connector = with_connector(root_dir=str(tmp_path / "kv"), capacity_bytes=1 << 30, host_bytes=16 << 20)
    with serving(command(tiny, connector), tiny, tmp_path / "log") as server:
        assert tokens(wave(server, 0)) == tokens(stock.answers[0])
        assert server.metric("unwritten_pages") == 0
        # From here on nothing can be written.
        server.limit_files(1 << 20)
        for number in (1, 0):
            assert tokens(wave(server, number)) == tokens(stock.answers[number])
        assert server.metric("unwritten_pages") > 0
        assert server.metric("corrupt_pages") == 0
    assert tracebacks((tmp_path / "log").read_text()) == []
    # What was written before is there.
    with serving(command(tiny, connector), tiny, tmp_path / "again.log") as server:
        again = wave(server, 0)
        assert tokens(again) == tokens(stock.answers[0])
        assert computed(0, again) < 0.2 * computed(0, stock.answers[0])
        assert server.metric("corrupt_pages") == 0
