"""Real weights: SmolLM2-135M, and adapters that PEFT trained, against PEFT itself.

`tests/models/smollm2.py` makes both; `make proof` makes them and runs this file. Without them the tests are skipped,
unless `INFER_ACCEL_PROOF` asks for them to be made.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.models import smollm2
from tests.soak import repeats

from infer_accel import lora

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft", exc_type=ImportError)
transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

#: Training took minutes; loading a model takes seconds. The libraries' own warnings are no business of these tests.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(1800)]

PREFIX = "base_model.model."
PROOF_VARIABLE = "INFER_ACCEL_PROOF"
PROMPTS = ["The with statement", "The capital of France is", "Function definitions"]
NEW_TOKENS = 16
#: Between two ways to compute the same logits in float32: of the largest logit.
LOGIT_BOUND = 2e-5
#: Of all elements: those that are not the exact sum, rounded once.
SHARE_OFF = 2e-5
#: Of the bytes of the weights that an adapter changes: what a residue may take.
RESIDUE_SHARE = 0.03
#: Of bfloat16 elements of a DoRA merge: those that PEFT's further roundings move by a step.
DORA_SHARE = 1e-4

ADDED = ["plain", "rslora"]


@pytest.fixture(autouse=True)
def _made(request: pytest.FixtureRequest) -> Iterator[None]:
    """Make what a test needs, or skip it; one thread, whose order of summation does not depend on the machine."""
    name = request.node.callspec.params["name"]
    if not smollm2.adapter_dir(name).is_dir():
        if os.environ.get(PROOF_VARIABLE, "0") == "0":
            pytest.skip(f"no adapter {name!r} in {smollm2.cache()}: `make proof` trains it, in minutes")
        smollm2.make([name])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def base_weights() -> dict[str, Any]:
    files = sorted(smollm2.base_dir().glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in safetensors_torch.load_file(file).items()}


def adapter_weights(name: str) -> dict[str, Any]:
    weights: dict[str, Any] = safetensors_torch.load_file(
        smollm2.adapter_dir(name) / "adapter_model.safetensors"
    )
    return weights


def deltas(name: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield the name of each weight that an adapter changes, and its two matrices."""
    weights = adapter_weights(name)
    suffix = ".lora_A.weight"
    for key in sorted(weights):
        if key.endswith(suffix):
            module = key.removeprefix(PREFIX).removesuffix(suffix)
            yield f"{module}.weight", weights[key], weights[key.replace("lora_A", "lora_B")]


def causal(where: Path, dtype: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(where, dtype=dtype).eval()


def with_adapter(name: str, dtype: Any) -> Any:
    """Return the model with an adapter beside its weights, as PEFT loads them: the adapter in float32."""
    return peft.PeftModel.from_pretrained(causal(smollm2.base_dir(), dtype), smollm2.adapter_dir(name)).eval()


def merged_by_us(name: str, dtype: Any) -> Any:
    """Return the model with an adapter merged into its own weights, layer by layer."""
    model = causal(smollm2.base_dir(), dtype)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for weight, a, b in deltas(name):
            lora.merge_weights(parameters[weight], a, b, scaling=smollm2.RECIPES[name].scaling)
    return model


def prompt_ids() -> list[Any]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2.base_dir())
    return [tokenizer(prompt, return_tensors="pt")["input_ids"] for prompt in PROMPTS]


def logits(model: Any) -> list[np.ndarray]:
    with torch.no_grad():
        return [model(input_ids=ids).logits.float().numpy() for ids in prompt_ids()]


def greedy(model: Any) -> list[list[int]]:
    settings = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
    with torch.no_grad():
        return [
            model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)[0].tolist()
            for ids in prompt_ids()
        ]


def bits(tensor: Any) -> np.ndarray:
    width = {2: torch.int16, 4: torch.int32}[tensor.element_size()]
    array: np.ndarray = tensor.detach().contiguous().view(width).numpy()
    return array


@pytest.mark.parametrize("name", sorted(smollm2.RECIPES))
def test_the_adapters_have_learnt_something(name: str) -> None:
    import json

    record = json.loads((smollm2.adapter_dir(name) / "training.json").read_text())
    assert record["loss_after"] <= smollm2.CLEARLY_FALLEN * record["loss_before"]


@pytest.mark.parametrize("name", ADDED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_merged_weights_are_pefts(name: str, dtype: Any) -> None:
    """Bit for bit: the adapters are float32 and their scaling a power of two, so that PEFT rounds once, too."""
    theirs = dict(with_adapter(name, dtype).merge_and_unload().named_parameters())
    ours = dict(merged_by_us(name, dtype).named_parameters())
    changed = {weight for weight, _, _ in deltas(name)}
    assert changed < set(ours)
    for weight, got in ours.items():
        different = np.count_nonzero(bits(got) != bits(theirs[weight]))
        assert different == 0, f"{weight}: {different} of {got.numel()} elements"


@pytest.mark.parametrize("name", ADDED)
def test_nearly_every_element_is_the_exact_sum_rounded_once(name: str) -> None:
    weights, scaling = base_weights(), smollm2.RECIPES[name].scaling
    off = count = 0
    for weight, a, b in deltas(name):
        exact = weights[weight].double() + scaling * (b.double() @ a.double())
        ours = lora.merge_weights(weights[weight].clone(), a, b, scaling=scaling)
        off += int(np.count_nonzero(ours.double().numpy() != rounded_once(exact.numpy())))
        count += ours.numel()
    assert off <= SHARE_OFF * count, f"{off} of {count}"


def rounded_once(wide: np.ndarray) -> np.ndarray:
    """Round float64 to bfloat16's grid in one step, ties to even."""
    quantum = np.exp2(np.maximum(np.frexp(wide)[1] - 8, -133).astype(np.float64))
    rounded: np.ndarray = np.rint(wide / quantum) * quantum
    return rounded


@pytest.mark.parametrize("name", ADDED)
def test_a_merged_model_says_what_peft_says(name: str) -> None:
    """In float32, where nothing is lost to storage: the merged model against PEFT's adapter beside the weights."""
    theirs, ours = with_adapter(name, torch.float32), merged_by_us(name, torch.float32)
    for expected, got in zip(logits(theirs), logits(ours), strict=True):
        assert np.max(np.abs(got - expected)) <= LOGIT_BOUND * np.max(np.abs(expected))
    assert greedy(ours) == greedy(theirs)


@pytest.mark.parametrize("name", ADDED)
def test_the_adapter_changes_what_the_model_says(name: str) -> None:
    """Otherwise the tests above could not fail."""
    base, ours = logits(causal(smollm2.base_dir(), torch.float32)), logits(merged_by_us(name, torch.float32))
    for before, after in zip(base, ours, strict=True):
        assert np.max(np.abs(after - before)) >= 1000 * LOGIT_BOUND * np.max(np.abs(before))


@pytest.mark.parametrize("name", ADDED)
def test_a_merge_is_undone_bit_for_bit(name: str) -> None:
    weights, scaling = base_weights(), smollm2.RECIPES[name].scaling
    stored = size = 0
    for weight, a, b in deltas(name):
        merged = weights[weight].clone()
        merged, residue = lora.merge_weights(merged, a, b, scaling=scaling, return_residue=True)
        stored += residue.nbytes
        size += merged.numel() * merged.element_size()
        lora.unmerge_weights(merged, a, b, scaling=scaling, residue=residue)
        np.testing.assert_array_equal(bits(merged), bits(weights[weight]))
    assert stored <= RESIDUE_SHARE * size, f"{stored / size:.2%} of the merged weights' bytes"


@pytest.mark.parametrize("name", ["plain"])
def test_many_cycles_end_where_they_began(name: str) -> None:
    weight, a, b = next(deltas(name))
    original, scaling = base_weights()[weight], smollm2.RECIPES[name].scaling
    model = original.clone()
    for _ in range(repeats(20, 1000)):
        _, residue = lora.merge_weights(model, a, b, scaling=scaling, return_residue=True)
        lora.unmerge_weights(model, a, b, scaling=scaling, residue=residue)
    np.testing.assert_array_equal(bits(model), bits(original))


def magnitudes(name: str) -> dict[str, Any]:
    suffix = ".lora_magnitude_vector"
    weights = adapter_weights(name).items()
    return {
        key.removeprefix(PREFIX).removesuffix(suffix): row for key, row in weights if key.endswith(suffix)
    }


@pytest.mark.parametrize("name", ["dora"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_dora_merges_as_in_peft(name: str, dtype: Any) -> None:
    """PEFT rounds the norm, the sum and the quotient on its way; storage hides nearly all of it."""
    theirs = dict(with_adapter(name, dtype).merge_and_unload().named_parameters())
    ours, rows = dict(causal(smollm2.base_dir(), dtype).named_parameters()), magnitudes(name)
    different = count = 0
    for weight, a, b in deltas(name):
        with torch.no_grad():
            scaling, magnitude = smollm2.RECIPES[name].scaling, rows[weight.removesuffix(".weight")]
            lora.merge_weights(ours[weight], a, b, scaling=scaling, magnitude=magnitude)
        expected, got = (model[weight].detach().double().numpy() for model in (theirs, ours))
        unit = 2.0 ** -(7 if dtype == torch.bfloat16 else 21)
        assert np.all(np.abs(got - expected) <= unit * np.abs(expected) + 1e-9), weight
        different += int(np.count_nonzero(got != expected))
        count += got.size
    if dtype == torch.bfloat16:
        assert different <= DORA_SHARE * count, f"{different / count:.2e}"


# Checkpoints ------------------------------------------------------------------------------------------------


def parameters(model: Any) -> dict[str, Any]:
    return dict(model.named_parameters())


@pytest.mark.parametrize("name", sorted(smollm2.RECIPES))
def test_a_merged_checkpoint_is_pefts_model(name: str, tmp_path: Path) -> None:
    """Loaded by transformers, it holds what PEFT's merge holds and says what that says; undone, it is the base."""
    base, out = smollm2.base_dir(), tmp_path / "merged"
    report = lora.merge_checkpoint(base, smollm2.adapter_dir(name), out, residue=True)
    assert {change.name for change in report.tensors} == {weight for weight, _, _ in deltas(name)}
    ours = causal(out, torch.bfloat16)
    theirs = with_adapter(name, torch.bfloat16).merge_and_unload()
    expected = parameters(theirs)
    different = sum(
        int(np.count_nonzero(bits(got) != bits(expected[weight]))) for weight, got in parameters(ours).items()
    )
    if name in ADDED:
        assert different == 0
        assert report.residue_bytes <= RESIDUE_SHARE * report.bytes, (
            f"{report.residue_bytes / report.bytes:.2%}"
        )
        for first, second in zip(logits(ours), logits(theirs), strict=True):
            np.testing.assert_array_equal(first, second)
        assert greedy(ours) == greedy(theirs)
    else:
        assert different <= DORA_SHARE * sum(change.elements for change in report.tensors)
    lora.unmerge_checkpoint(out, tmp_path / "base", adapters=smollm2.adapter_dir(name))
    for shard in base.glob("*.safetensors"):
        assert (tmp_path / "base" / shard.name).read_bytes() == shard.read_bytes(), shard.name


@pytest.mark.parametrize("name", sorted(smollm2.RECIPES))
def test_a_checkpoint_merged_into_float32_says_what_peft_says(name: str, tmp_path: Path) -> None:
    """Where storage takes nothing, DoRA too: PEFT's adapter beside the same weights, within the bound."""
    lora.merge_checkpoint(smollm2.base_dir(), smollm2.adapter_dir(name), tmp_path / "out", dtype="float32")
    ours, theirs = causal(tmp_path / "out", torch.float32), with_adapter(name, torch.float32)
    for expected, got in zip(logits(theirs), logits(ours), strict=True):
        assert np.max(np.abs(got - expected)) <= LOGIT_BOUND * np.max(np.abs(expected))
    assert greedy(ours) == greedy(theirs)


def product(layer: lora.AdapterLayer) -> np.ndarray:
    result: np.ndarray = layer.lora_B.astype(np.float64) @ layer.lora_A.astype(np.float64)
    return result


@pytest.mark.parametrize("name", ["plain"])
def test_adapters_are_combined_as_in_peft(name: str) -> None:
    """The sum of two real adapters of different ranks, exact and of rank 8, and the model that it makes."""
    other, weights = "rslora", (0.6, 0.4)
    if not smollm2.adapter_dir(other).is_dir():
        pytest.skip(f"no adapter {other!r}")
    model = with_adapter(name, torch.float32)
    model.load_adapter(smollm2.adapter_dir(other), other)
    names = ["default", other]
    model.add_weighted_adapter(names, list(weights), "theirs", combination_type="cat")
    adapters = [lora.Adapter.load(smollm2.adapter_dir(which)) for which in (name, other)]
    exact = lora.combine(adapters, weights, method="cat")
    small = lora.combine(adapters, weights, method="svd", rank=8)
    layers = dict(model.base_model.model.named_modules())
    pairs = list(zip(exact.layers, small.layers, strict=True))
    for whole, cut in pairs[::25]:
        expected = layers[whole.path].get_delta_weight("theirs").detach().double().numpy()
        got = product(whole)
        assert np.max(np.abs(got - expected)) <= 1e-5 * np.max(np.abs(expected))
        values = np.linalg.svd(expected, compute_uv=False)
        off = np.linalg.norm(expected - product(cut))
        assert off <= np.sqrt(np.sum(values[8:] ** 2)) * (1 + 1e-6) + 1e-5 * values[0]


# Serving ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ADDED)
def test_a_served_adapter_says_what_peft_says(name: str) -> None:
    """Beside the weights, in a batch with a row that has none: within the bound; greedy tokens are equal."""
    theirs, plain = with_adapter(name, torch.float32), causal(smollm2.base_dir(), torch.float32)
    expected, untouched = logits(theirs), logits(plain)
    store = lora.AdapterStore(64 << 20)
    store.load(name, smollm2.adapter_dir(name))
    with lora.LoraModel(plain, store) as served, torch.no_grad():
        for ids, with_it, without in zip(prompt_ids(), expected, untouched, strict=True):
            with served.use([name, None]):
                both = plain(input_ids=ids.repeat(2, 1)).logits.numpy()
            for got, wanted in zip(both, (with_it[0], without[0]), strict=True):
                assert np.max(np.abs(got - wanted)) <= LOGIT_BOUND * np.max(np.abs(wanted))
        with served.use([name]):
            said = greedy(plain)
    assert said == greedy(theirs)


@pytest.mark.parametrize("name", ["plain"])
def test_adapters_of_a_mixed_batch_do_not_disturb_each_other(name: str) -> None:
    """The bits of a row alone are its bits in a batch."""
    adapter = lora.Adapter.load(smollm2.adapter_dir(name))
    rng = np.random.default_rng(0)
    layer, width = adapter.layers[0], adapter.layers[0].lora_A.shape[1]
    product = (layer.lora_A, layer.lora_B, layer.scaling)
    stack = lora.AdapterStack([product, None, product])
    x = rng.normal(0, 1, (16, width)).astype(np.float32)
    ids = rng.integers(-1, 3, 16)
    out = rng.normal(0, 1, (16, layer.lora_B.shape[0])).astype(np.float32)
    alone = out.copy()
    for row, adapter_id in enumerate(ids):
        lora.apply_adapters(x[row : row + 1], stack, [int(adapter_id)], out=alone[row : row + 1])
    lora.apply_adapters(x, stack, ids, out=out)
    np.testing.assert_array_equal(out, alone)
