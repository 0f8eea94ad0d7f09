"""Adapters in the real vLLM, with the plugins and without: tokens, refusals, and what a bad adapter leaves behind."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", exc_type=ImportError)

from tests.serve import lora_adapters, supervised
from tests.serve.run import ask, make_tiny

# Of torch and vLLM, when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore")

BOTH = "infer_accel_lora_guard,infer_accel_lora_grouped"
#: No plugin of this package.
NONE = "none"

PROMPTS = [[1, 40], [2, 30], [3, 50], [4, 20], [5, 33]]
NAMES: list[str | None] = ["a1", "a2", None, "a3", "a4"]


def run(steps: list[Any], adapters: dict[str, str], plugins: str, **engine: Any) -> tuple[list[Any], str]:
    """Start an engine, do the steps; return what came of them, and what it wrote to its log."""
    arguments = {"dtype": "float32", "max_model_len": 512, "max_num_seqs": 8, "block_size": 32, **engine}
    job = {"engine": arguments, "adapters": adapters, "steps": steps}
    answers, log = ask("lora_engine.py", job, VLLM_PLUGINS=plugins)
    assert answers is not None
    return answers, log


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lora")


@pytest.fixture(scope="module")
def tiny(work: Path) -> dict[str, Any]:
    """A model of random weights, as an engine is told of it."""
    model = make_tiny("LlamaConfig", {"architectures": ["LlamaForCausalLM"]}, work / "tiny")
    return {"model": model, "skip_tokenizer_init": True, "max_loras": 4, "max_lora_rank": 16}


@pytest.fixture(scope="module")
def adapters(tiny: dict[str, Any], work: Path) -> dict[str, str]:
    model = tiny["model"]
    return {
        f"a{seed}": lora_adapters.write(
            work / f"a{seed}", lora_adapters.factors(model, seed, 4 + 4 * (seed % 3)), model
        )
        for seed in range(1, 7)
    }


@pytest.fixture(scope="module")
def alone(tiny: dict[str, Any], adapters: dict[str, str], work: Path) -> list[list[int]]:
    """What vLLM alone says to each prompt, asked by itself: no request is beside it."""
    steps = [["generate", [prompt], 16, [name]] for prompt, name in zip(PROMPTS, NAMES, strict=True)]
    # Without an adapter in any slot, a request that names none is answered by the model itself.
    base = NAMES.index(None)
    steps.insert(0, steps.pop(base))
    answers, _ = run(steps, adapters, NONE, **tiny)
    tokens = [answer["tokens"][0] for answer in answers]
    tokens.insert(base, tokens.pop(0))
    return tokens


def test_a_mixed_batch_says_what_each_request_says_alone(
    tiny: dict[str, Any], adapters: dict[str, str], alone: list[list[int]], work: Path
) -> None:
    steps = [
        ["wrapper"],
        ["generate", PROMPTS, 16, NAMES],
        # Adapters beyond the slots: each takes the place of another one.
        ["generate", [[7, 30], [8, 30]], 8, ["a5", "a6"]],
        ["generate", PROMPTS, 16, NAMES],
    ]
    (wrapper, first, _, second), _ = run(steps, adapters, BOTH, **tiny)
    assert wrapper == "GroupedPunicaWrapper"
    assert first["tokens"] == alone
    assert second["tokens"] == alone
    assert len({tuple(tokens) for tokens in alone}) == len(alone), "the adapters say different things"


def test_a_compiled_model_says_the_same(
    tiny: dict[str, Any], adapters: dict[str, str], alone: list[list[int]], work: Path
) -> None:
    steps = [["wrapper"], ["generate", PROMPTS, 16, NAMES]]
    (wrapper, answer), _ = run(steps, adapters, BOTH, **tiny, enforce_eager=False)
    assert wrapper == "GroupedPunicaWrapper"
    assert answer["tokens"] == alone


def test_every_hostile_adapter_is_refused_and_nothing_stays(tiny: dict[str, Any], work: Path) -> None:
    model = tiny["model"]
    good = lora_adapters.write(work / "good", lora_adapters.factors(model, 9, 8), model)
    hostile = lora_adapters.write_hostile(work / "hostile", model)
    prompt = [[11, 40]]
    steps: list[Any] = [["generate", prompt, 8, [None]], ["generate", prompt, 8, ["good"]]]
    for name in hostile:
        steps += [["load", name], ["generate", prompt, 8, [name]]]
    by_the_engine = ["wrong_shape", "unknown_layer", "nothing_fits", "unknown_module"]
    steps += [["forget_base"], *(["load", name] for name in [*by_the_engine, "good"])]
    steps += [["not_finite"], ["generate", prompt, 8, [None]], ["generate", prompt, 8, ["good"]]]
    answers, _ = run(steps, {"good": good, **hostile}, BOTH, **tiny)
    for place, name in enumerate(hostile):
        loaded, asked = answers[2 + 2 * place : 4 + 2 * place]
        for said in (loaded, asked.get("error", "")):
            assert f"the adapter '{name}'" in str(said), (name, said)
            assert "is refused: " in said, (name, said)
            assert lora_adapters.HOSTILE[name] in said, (name, said)
    shape, layer, nothing, module, fine = answers[-8:-3]
    assert "lora_A of shape [8, 100] and lora_B of shape [128, 8], where the model has 128" in shape
    assert "modules that the model does not have" in layer
    assert "none of its 16 modules" in nothing
    assert "it would change nothing" in nothing
    assert "zzz_proj" in module, "vLLM's own words"
    assert fine is None
    not_finite, base, again = answers[-3:]
    assert not_finite == 0
    assert base["tokens"] == answers[0]["tokens"]
    assert again["tokens"] == answers[1]["tokens"]


def test_vllm_alone_is_poisoned_by_one_of_them(tiny: dict[str, Any], work: Path) -> None:
    """So that the test above is known to test something: the same adapter, without the plugin."""
    hostile = {"nan": str(work / "hostile/nan")}
    if not Path(hostile["nan"]).is_dir():
        hostile = lora_adapters.write_hostile(work / "hostile", tiny["model"])
    steps = [["load", "nan"], ["generate", [[11, 40]], 8, ["nan"]], ["not_finite"]]
    (loaded, _, not_finite), _ = run(steps, {"nan": hostile["nan"]}, NONE, **tiny)
    assert loaded is None, "vLLM takes it"
    assert not_finite > 0, "and keeps what came of it"


@pytest.mark.parametrize("part", ["guard", "grouped"])
def test_another_version_is_one_line_and_no_change(
    part: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.lora.worker_manager import WorkerLoRAManager
    from vllm.platforms.cpu import CpuPlatform

    from infer_accel.integrations import vllm_lora
    from infer_accel.integrations._vllm_lora import versions

    before = WorkerLoRAManager._load_adapter, CpuPlatform.get_punica_wrapper()
    monkeypatch.setattr(versions, "version", lambda: "0.34.1")
    register = getattr(vllm_lora, f"register_{part}")
    assert not register()
    (record,) = [record for record in caplog.records if record.name == "infer_accel"]
    assert record.getMessage().endswith("vLLM 0.34.1 came; known to work: 0.32")
    assert (WorkerLoRAManager._load_adapter, CpuPlatform.get_punica_wrapper()) == before


def test_a_changed_method_is_one_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.lora.worker_manager import WorkerLoRAManager

    from infer_accel.integrations import vllm_lora

    def changed(self: object, request: object, path: str) -> None:
        """Take other parameters."""

    monkeypatch.setattr(WorkerLoRAManager, "_load_adapter", changed)
    assert not vllm_lora.register_guard()
    (record,) = [record for record in caplog.records if record.name == "infer_accel"]
    assert "WorkerLoRAManager._load_adapter('request', 'path'), where _load_adapter(" in record.getMessage()


def test_what_was_there_is_there_again() -> None:
    from vllm.lora.worker_manager import WorkerLoRAManager
    from vllm.platforms.cpu import CpuPlatform

    from infer_accel.integrations import vllm_lora
    from infer_accel.integrations._vllm_lora import grouped, guard

    before = WorkerLoRAManager._load_adapter, CpuPlatform.get_punica_wrapper()
    try:
        assert vllm_lora.register_guard()
        assert vllm_lora.register_guard()
        assert vllm_lora.register_grouped()
        assert WorkerLoRAManager._load_adapter is not before[0]
        assert CpuPlatform.get_punica_wrapper().endswith(".GroupedPunicaWrapper")
    finally:
        guard.uninstall()
        grouped.uninstall()
    assert (WorkerLoRAManager._load_adapter, CpuPlatform.get_punica_wrapper()) == before


# A real model -----------------------------------------------------------------------------------------------------


@cache
def real_adapter(root: Path) -> tuple[str, str]:
    """Return SmolLM2, and an adapter for it."""
    from tests.models import smollm2
    from tests.serve.engine import model

    directory = model()
    trained = smollm2.adapter_dir("rslora")
    if trained.is_dir():
        return directory, str(trained)
    # Training takes minutes; `make proof` has it. Random weights move the tokens as well.
    tensors = lora_adapters.factors(directory, 3, 16, strength=6.0)
    return directory, lora_adapters.write(root / "random", tensors, directory)


def test_merged_and_applied_adapters_say_what_peft_says(work: Path) -> None:
    """Four ways to the same tokens: PEFT, vLLM with an adapter, vLLM and transformers on what `merge` wrote."""
    import torch
    from transformers import AutoModelForCausalLM

    peft = pytest.importorskip("peft", exc_type=ImportError)
    model, adapter = real_adapter(work)
    merged = work / "merged"
    command = [sys.executable, "-m", "infer_accel", "merge", model, adapter, "-o", str(merged)]
    supervised.run(
        [*command, "--dtype", "float32"], stdout=subprocess.DEVNULL, timeout=600
    ).check_returncode()
    shared = {"max_lora_rank": 16, "max_loras": 2}
    prompts = [[1, 48], [2, 17]]
    steps = [["generate", [prompt], 24, [name]] for prompt in prompts for name in (None, "real")]
    answers, _ = run(steps, {"real": adapter}, BOTH, model=model, **shared)
    applied = [answer["tokens"][0] for answer in answers[1::2]]
    assert applied != [answer["tokens"][0] for answer in answers[::2]], "the adapter changes what is said"
    steps = [["generate", [prompt], 24, [None]] for prompt in prompts]
    answers, _ = run(steps, {}, BOTH, model=str(merged), enable_lora=False)
    assert [answer["tokens"][0] for answer in answers] == applied, "vLLM on the merged checkpoint"

    from tests.serve.engine import text
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = [tokenizer.encode(text(seed, tokens * 6))[:tokens] for seed, tokens in prompts]
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    for name, judge in (
        ("PEFT", peft.PeftModel.from_pretrained(plain, adapter)),
        (
            "transformers on the merged checkpoint",
            AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32),
        ),
    ):
        said = []
        for prompt in ids:
            told = torch.tensor([prompt])
            output = judge.generate(
                input_ids=told,
                attention_mask=torch.ones_like(told),
                max_new_tokens=24,
                eos_token_id=None,
                do_sample=False,
                pad_token_id=0,
            )
            said.append(output[0, len(prompt) :].tolist())
        assert said == applied, name
