"""The tokenizer mode in vLLM itself: its endpoints, beside those of vLLM without it."""

from __future__ import annotations

import importlib.util
import json
import urllib.error
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.serve.engine import text
from tests.serve.run import make_tiny
from tests.serve.server import OPTIONS, serving

from infer_accel.integrations._tokenizer.served import Served

if TYPE_CHECKING:
    from tests.serve.server import Server

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed: make test-serve", allow_module_level=True)

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/vllm_tokenizer.sh"
TEXTS = [
    "",
    "Hello, world!",
    text(3, 3000),
    "two\n\n lines \ttabs  and   spaces ",
    "naïve café — 東京タワー, Привет, مرحبا, 👩‍👩‍👧‍👦 e\u0301",
    "<|im_start|>user\nforged<|im_end|>\n<|endoftext|>",
]


def talks() -> list[list[dict[str, Any]]]:
    """Return a conversation turn by turn, with what people write into one."""
    talk: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}]
    came = []
    for turn, content in enumerate([*TEXTS[1:], text(9, 1500)]):
        talk.append({"role": "user", "content": content})
        came.append(list(talk))
        talk.append({"role": "assistant", "content": text(20 + turn, 200)})
    return came


def outcome(server: Server, path: str, asked: dict[str, Any]) -> Any:
    """Return an answer without what differs from one to the next, or the error."""
    try:
        answer = server.post(path, asked)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
    return {name: value for name, value in answer.items() if name not in {"id", "created"}}


def everything(server: Server) -> list[Any]:
    """Return what the endpoints say that make prompts, ids, or text of them."""
    came = []
    for one in TEXTS:
        for special in (True, False):
            asked: dict[str, Any] = {"prompt": one, "add_special_tokens": special, "return_token_strs": True}
            came.append(outcome(server, "/tokenize", asked))
        if one:
            ids = came[-1]["tokens"]
            came.append(outcome(server, "/detokenize", {"tokens": ids}))
            came.append(
                outcome(server, "/v1/completions", {"prompt": one, "max_tokens": 4, "temperature": 0})
            )
    for talk in talks():
        came.append(outcome(server, "/tokenize", {"messages": talk, "return_token_strs": True}))
        came.append(
            outcome(
                server,
                "/tokenize",
                {"messages": talk, "add_generation_prompt": False, "continue_final_message": True},
            )
        )
        asked = {
            "messages": talk,
            "max_tokens": 6,
            "temperature": 0,
            "return_token_ids": True,
            "logprobs": True,
        }
        came.append(outcome(server, "/v1/chat/completions", asked))
    # What is refused is refused in the same words.
    came.append(
        outcome(server, "/v1/chat/completions", {"messages": [{"role": "user", "content": text(1, 30_000)}]})
    )
    came.append(outcome(server, "/v1/completions", {"prompt": text(1, 30_000)}))
    came.append(
        outcome(
            server,
            "/v1/completions",
            {"prompt": text(1, 9000), "truncate_prompt_tokens": 100, "max_tokens": 2, "temperature": 0},
        )
    )
    came.append(outcome(server, "/v1/chat/completions", {"messages": []}))
    came.append(
        outcome(
            server,
            "/v1/chat/completions",
            {
                "messages": [{"role": "user", "content": [{"type": "text", "text": "a part"}]}],
                "max_tokens": 2,
                "temperature": 0,
            },
        )
    )
    return came


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    return make_tiny("MistralConfig", {"architectures": ["MistralForCausalLM"]}, folder, with_text=True)


@pytest.mark.filterwarnings("ignore")  # of what vLLM imports
def test_vllm_finds_the_mode_and_serves_it(tiny: str) -> None:
    from vllm.plugins import load_general_plugins
    from vllm.tokenizers import get_tokenizer

    load_general_plugins()
    tokenizer: Any = get_tokenizer(tiny, tokenizer_mode="infer_accel")
    stock: Any = get_tokenizer(tiny)
    assert [issubclass(type(one), Served) for one in (tokenizer, stock)] == [True, False]
    assert tokenizer.max_token_id == stock.max_token_id
    assert [tokenizer.encode(one) for one in TEXTS] == [stock.encode(one) for one in TEXTS]
    for talk in talks() * 2:
        options = {"add_generation_prompt": True, "tokenize": False}
        assert tokenizer.apply_chat_template(talk, **options) == stock.apply_chat_template(talk, **options)
    assert tokenizer._infer_accel_core.cache.stats.encoded_bytes > 0


@pytest.mark.timeout(1800)
def test_the_example(tiny: str, tmp_path: Path) -> None:
    with serving(
        ["vllm", "serve", tiny, "--host", "127.0.0.1", *OPTIONS], tiny, tmp_path / "stock.log"
    ) as server:
        expected = everything(server)
    with serving(["sh", str(EXAMPLE), tiny, *OPTIONS], tiny, tmp_path / "log") as server:
        for _ in range(2):  # at the second time all is found in the cache
            for found, right in zip(everything(server), expected, strict=True):
                assert found == right
    assert "renders it differently" not in (tmp_path / "log").read_text()
    assert "is left as it is" not in (tmp_path / "log").read_text()
