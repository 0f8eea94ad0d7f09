"""Adapters that PEFT itself saved mean here what they mean there; adapters saved here load there."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests import adapter_files as files

from infer_accel import errors, lora
from infer_accel.lora import Adapter

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Tensors = dict[str, NDArray[Any]]

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = {
    "vocab_size": 31,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
}


def small(name: str, **more: object) -> Any:
    """Return a small model of a family of transformers, with weights that depend on nothing."""
    torch.manual_seed(0)
    if name == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=31, n_positions=64, n_embd=16, n_layer=2, n_head=2, **more
        )
        return transformers.GPT2LMHeadModel(config)
    if name == "qwen3_moe":
        experts = {
            "num_experts": 3,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 12,
            "decoder_sparse_step": 1,
        }
        return transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**SIZES | experts | more))
    if name == "gpt_oss":
        # As wide inside as outside: only the family says how such weights are stored.
        experts = {"num_local_experts": 3, "num_experts_per_tok": 2, "intermediate_size": 16}
        return transformers.GptOssForCausalLM(transformers.GptOssConfig(**SIZES | experts | more))
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES | more))


class Mixed(torch.nn.Module):  # type: ignore[name-defined]
    """One layer of each kind that PEFT wraps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = torch.nn.Embedding(11, 6)
        self.linear = torch.nn.Linear(6, 5)
        self.square = torch.nn.Linear(6, 6)
        self.waves = torch.nn.Conv1d(3, 4, 3)
        self.image = torch.nn.Conv2d(3, 4, 2)
        self.point = torch.nn.Conv2d(3, 4, 1)
        self.volume = torch.nn.Conv3d(3, 4, 2)
        self.head = torch.nn.Linear(5, 3)


def save_base(model: Any, folder: Path) -> Tensors:
    """Write a model and return its tensors."""
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(folder)
        return {
            name: tensor.copy()
            for file in folder.glob("*.safetensors")
            for name, tensor in files.read_tensors(file).items()
        }
    tensors = {name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}
    files.write_base(folder, tensors)
    return tensors


def adapted(model: Any, folder: Path, **config: Any) -> Any:
    """Return the model with an adapter that is not zero, after saving that adapter."""
    settings: dict[str, Any] = {"r": 2, "lora_alpha": 3, "init_lora_weights": False, **config}
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**settings))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    wrapped.save_pretrained(folder)
    return wrapped


def merged_by_ledger(adapter: Adapter, base: Path, tensors: Tensors) -> Tensors:
    """Return the base's tensors with the adapter in them."""
    ledger = adapter.resolve(base)
    assert ledger.problems == []
    result = {name: tensor.copy() for name, tensor in tensors.items()}
    result |= {name: np.array(tensor) for name, tensor in ledger.replacements.items()}
    if ledger.untied is not None:
        embedding, head = ledger.untied
        result.setdefault(head, tensors[embedding].copy())
    for update in ledger.updates:
        lora.merge_weights(
            update.view(result[update.target]),
            update.lora_A,
            update.lora_B,
            scaling=update.scaling,
            magnitude=update.magnitude,
        )
    return result


@dataclass(frozen=True)
class Case:
    """A model and the configuration of an adapter."""

    model: str
    config: dict[str, Any]
    more: dict[str, Any] = field(default_factory=dict)
    deltas: int = 0


ALL_KINDS = ["words", "linear", "square", "waves", "image", "point", "volume"]
CASES = {
    "plain": Case("llama", {"target_modules": ["q_proj", "down_proj"]}, deltas=4),
    "rsLoRA and patterns": Case(
        "llama",
        {
            "target_modules": "all-linear",
            "use_rslora": True,
            "rank_pattern": {r"layers\.1\..*_proj": 5, "^model.layers.0.self_attn.q_proj": 3},
            "alpha_pattern": {"mlp.up_proj": 7, ".*v_proj": 0.5},
        },
        deltas=14,
    ),
    "DoRA": Case("llama", {"target_modules": ["q_proj", "up_proj"], "use_dora": True}, deltas=4),
    "every kind of layer": Case("mixed", {"target_modules": ALL_KINDS}, deltas=7),
    "DoRA of every kind": Case("mixed", {"target_modules": ALL_KINDS, "use_dora": True}, deltas=7),
    "lora_bias": Case("mixed", {"target_modules": ["linear", "image"], "lora_bias": True}, deltas=4),
    "all biases": Case("mixed", {"target_modules": ["linear"], "bias": "all"}, deltas=1),
    "own biases": Case("mixed", {"target_modules": ["linear", "waves"], "bias": "lora_only"}, deltas=2),
    "modules to save": Case(
        "mixed", {"target_modules": ["linear"], "modules_to_save": ["head", "words"]}, deltas=1
    ),
    "transposed weights": Case(
        "gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}, deltas=8
    ),
    "transposed weights, flag forgotten": Case("gpt2", {"target_modules": ["c_attn", "c_proj"]}, deltas=6),
    "transposed weights of DoRA": Case(
        "gpt2", {"target_modules": ["c_attn", "c_proj"], "use_dora": True, "fan_in_fan_out": True}, deltas=6
    ),
    "embedding and head": Case(
        "llama", {"target_modules": ["embed_tokens", "lm_head"]}, {"tie_word_embeddings": False}, deltas=2
    ),
    "experts stored one by one": Case(
        "qwen3_moe",
        {
            "target_modules": ["q_proj"],
            "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        },
        deltas=2 + 2 * 3 * 3,
    ),
    "experts stored transposed and square": Case(
        "gpt_oss",
        {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
        deltas=2 * 2 * 3,
    ),
}


def build(case: Case) -> Any:
    return Mixed() if case.model == "mixed" else small(case.model, **case.more)


@pytest.mark.parametrize("name", CASES)
def test_merged_as_peft_merges(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = build(case)
    tensors = save_base(model, tmp_path / "base")
    wrapped = adapted(model, tmp_path / "adapter", **case.config)
    adapter = Adapter.load(tmp_path / "adapter")
    ledger = adapter.resolve(tmp_path / "base")
    assert (ledger.problems, ledger.untied, len(ledger.updates)) == ([], None, case.deltas)
    result = merged_by_ledger(adapter, tmp_path / "base", tensors)
    expected = save_base(wrapped.merge_and_unload(), tmp_path / "merged")
    assert result.keys() == expected.keys()
    changed = 0
    for tensor, value in expected.items():
        np.testing.assert_allclose(result[tensor], value, rtol=2e-5, atol=2e-6, err_msg=tensor)
        changed += not np.array_equal(result[tensor], tensors[tensor])
    assert changed == len({*(it.target for it in ledger.updates), *ledger.replacements})


@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head"]])
def test_tied_weights_part_as_in_training(targets: list[str], tmp_path: Path) -> None:
    model = small("llama", tie_word_embeddings=True)
    tensors = save_base(model, tmp_path / "base")
    assert "lm_head.weight" not in tensors
    wrapped = adapted(model, tmp_path / "adapter", target_modules=targets)
    adapter = Adapter.load(tmp_path / "adapter")
    ledger = adapter.resolve(tmp_path / "base")
    assert ledger.untied == ("model.embed_tokens.weight", "lm_head.weight")
    result = merged_by_ledger(adapter, tmp_path / "base", tensors)
    ids = torch.arange(31)[None, :20]
    with torch.no_grad():
        trained = wrapped(ids).logits.numpy()
        ours = small("llama", tie_word_embeddings=False)
        ours.load_state_dict({key: torch.from_numpy(value) for key, value in result.items()})
        np.testing.assert_allclose(ours(ids).logits.numpy(), trained, rtol=1e-4, atol=1e-5)


def test_saved_here_and_loaded_by_peft(tmp_path: Path) -> None:
    config = CASES["rsLoRA and patterns"].config
    wrapped = adapted(small("llama"), tmp_path / "adapter", **config)
    adapter = Adapter.load(tmp_path / "adapter")
    adapter.save(tmp_path / "saved")
    ids = torch.arange(31)[None, :20]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", category=RuntimeWarning)  # PEFT warns of keys that it cannot place
        again = peft.PeftModel.from_pretrained(small("llama"), tmp_path / "saved")
        np.testing.assert_array_equal(again(ids).logits.numpy(), wrapped(ids).logits.numpy())


def test_made_of_arrays_and_loaded_by_peft(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 16)).astype(np.float32), rng.normal(size=(16, 3)).astype(np.float32)
    adapter = Adapter.from_arrays({"model.layers.1.self_attn.q_proj": (a, b)}, alpha=1.5)
    adapter.save(tmp_path / "saved")
    model = small("llama")
    before = model.model.layers[1].self_attn.q_proj.weight.detach().numpy().copy()
    merged = peft.PeftModel.from_pretrained(model, tmp_path / "saved").merge_and_unload()
    after = merged.model.layers[1].self_attn.q_proj.weight.detach().numpy()
    np.testing.assert_allclose(after, before + 0.5 * (b @ a), rtol=1e-5, atol=1e-6)


def test_what_changed_the_base_is_refused(tmp_path: Path) -> None:
    model = small("llama")
    peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa")
    ).save_pretrained(tmp_path)
    with pytest.raises(errors.AdapterError) as refused:
        Adapter.load(tmp_path)
    assert [problem.code for problem in refused.value.problems] == ["adapter.unsupported"]


def test_trained_rows_of_an_embedding_are_refused(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [1, 2]})
    peft.get_peft_model(small("llama"), config).save_pretrained(tmp_path)
    with pytest.raises(errors.AdapterError) as refused:
        Adapter.load(tmp_path)
    assert {problem.code for problem in refused.value.problems} == {"adapter.unsupported"}
