"""Adapter files: what is right is read as it is meant, and fits a base or says why not."""

from __future__ import annotations

import os
import pickle
import re
import warnings
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import adapter_files as files

from infer_accel import errors, lora
from infer_accel.lora import Adapter
from infer_accel.lora._adapter import examine

if TYPE_CHECKING:
    from pathlib import Path

    from infer_accel.lora import AdapterLedger

A = "base_model.model.m.q.lora_A.weight"
B = "base_model.model.m.q.lora_B.weight"


# What is right ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_weights_are_views_of_what_was_read(tmp_path: Path, dtype: str) -> None:
    kind = files.BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype)
    tensors = files.pair("m.q", dtype=kind)
    adapter = Adapter.load(files.write_adapter(tmp_path, tensors))
    (layer,) = adapter.layers
    assert (layer.path, layer.kind, layer.rank, layer.scaling, layer.dtype) == (
        "m.q",
        "linear",
        2,
        2.0,
        dtype,
    )
    for found, expected in ((layer.lora_A, tensors[A]), (layer.lora_B, tensors[B])):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found.view(np.uint8), expected.view(np.uint8))
        assert not found.flags.writeable
    assert np.shares_memory(layer.lora_A, adapter.layers[0].lora_A), "a look copies nothing"
    assert adapter.nbytes == sum(tensor.nbytes for tensor in tensors.values())
    kept = layer.lora_A
    del adapter, layer
    np.testing.assert_array_equal(kept.view(np.uint8), tensors[A].view(np.uint8))


def test_what_happens_to_the_file_later_does_not_matter(tmp_path: Path) -> None:
    tensors = files.pair("m.q", 512, 512)
    adapter = Adapter.load(files.write_adapter(tmp_path, tensors))
    os.truncate(tmp_path / "adapter_model.safetensors", 0)
    np.testing.assert_array_equal(adapter.layers[0].lora_A, tensors[A])
    assert len(adapter.digest) == 64


def test_ranks_and_alphas_by_pattern(tmp_path: Path) -> None:
    tensors = files.pair("m.0.q", rank=3) | files.pair("m.10.q") | files.pair("m.1.k", rank=4)
    config = {
        "rank_pattern": {"m.0.q": 3, r"m\.\d\.k": 4, "k": 9},
        "alpha_pattern": {"^m.10.*": 5.5, "q": 6},
        "use_rslora": True,
    }
    layers = {
        layer.path: layer for layer in Adapter.load(files.write_adapter(tmp_path, tensors, **config)).layers
    }
    assert {path: (layer.rank, layer.alpha) for path, layer in layers.items()} == {
        "m.0.q": (3, 6),
        "m.10.q": (2, 5.5),
        "m.1.k": (4, 4),
    }
    assert layers["m.10.q"].scaling == 5.5 / 2**0.5


def test_the_first_pattern_wins_as_in_a_python_dict(tmp_path: Path) -> None:
    config = {"alpha_pattern": {"z.*": 1, "a?q": 2, "q": 3}}
    adapter = Adapter.load(files.write_adapter(tmp_path, files.pair("m.q"), **config))
    assert adapter.layers[0].alpha == 2


@given(
    key=st.text(alphabet="ab.*+?()[]|^\\d-", max_size=8),
    name=st.text(alphabet="ab1.", min_size=1, max_size=10).filter(lambda name: not name.startswith(".")),
)
def test_patterns_mean_what_python_means(
    key: str, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # sets within sets, which Python may read one day
            expected = re.match(rf"(.*\.)?({key})$", name) is not None
    except (re.error, RecursionError):
        return
    folder = tmp_path_factory.mktemp("pattern")
    files.write_adapter(folder, files.pair(name), alpha_pattern={key: 7})
    found, problems, _ = examine(folder)
    if problems:
        # What one engine reads and the other does not is refused, never read in another sense.
        assert [problem.code for problem in problems] == ["adapter.config"]
    elif found is not None:
        assert (found.layers[0].alpha == 7) == expected, (key, name)


def test_names_hold_the_name_of_an_adapter(tmp_path: Path) -> None:
    tensors = {name.replace(".weight", ".default.weight"): it for name, it in files.pair("m.q").items()}
    assert Adapter.load(files.write_adapter(tmp_path, tensors)).layers[0].path == "m.q"


def test_save_and_load_give_the_same_adapter(tmp_path: Path) -> None:
    tensors = files.pair("m.0.q", rank=3) | files.pair("m.1.q")
    tensors["base_model.model.head.weight"] = files.ramp(4, 6)
    config = {"rank_pattern": {"m.0.q": 3}, "alpha_pattern": {"m.1.q": 0.75}, "modules_to_save": ["head"]}
    adapter = Adapter.load(files.write_adapter(tmp_path / "one", tensors, **config))
    adapter.save(tmp_path / "two")
    again = Adapter.load(tmp_path / "two")
    assert again.digest == adapter.digest
    assert [(it.path, it.rank, it.scaling) for it in again.layers] == [
        (it.path, it.rank, it.scaling) for it in adapter.layers
    ]
    np.testing.assert_array_equal(again.replacements["head.weight"], tensors["base_model.model.head.weight"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"], "nothing is left beside it"
    with pytest.raises(errors.AdapterError, match="not empty"):
        adapter.save(tmp_path / "two")
    with pytest.raises(errors.AdapterError, match="cannot be written"):
        adapter.save(tmp_path / "missing" / "two")


def test_adapters_of_arrays() -> None:
    a, b = files.ramp(2, 6)[:, ::-1], files.ramp(5, 2)
    adapter = Adapter.from_arrays({"q": (a, b), "k": (a, b)}, alpha={"q": 2, "k": 3})
    assert {it.path: it.scaling for it in adapter.layers} == {"q": 1.0, "k": 1.5}
    assert adapter.scaling is None
    np.testing.assert_array_equal(adapter.layers[1].lora_A, a)
    with pytest.raises(errors.AdapterError) as refused:
        Adapter.from_arrays({"q": (a, files.ramp(5, 3))}, alpha=1)
    assert refused.value.code == "adapter.rank"
    with pytest.raises(errors.DTypeError):
        Adapter.from_arrays({"q": (a.astype(np.float64), b)}, alpha=1)


def test_an_adapter_is_not_pickled_or_made_by_hand() -> None:
    adapter = Adapter.from_arrays({"q": (files.ramp(2, 6), files.ramp(5, 2))}, alpha=2)
    with pytest.raises(TypeError, match="path"):
        pickle.dumps(adapter)
    with pytest.raises(TypeError, match=r"Adapter\.load"):
        Adapter()
    error = errors.AdapterError(
        "text", problems=(lora.Problem("adapter.rank", "r", "no"),), code="adapter.rank"
    )
    assert pickle.loads(pickle.dumps(error)).problems == error.problems


# What it does to a base -------------------------------------------------------------------------------------


def merged(adapter: Adapter, base: Path, tensors: dict[str, files.Array]) -> dict[str, files.Array]:
    """Return the tensors of a base with an adapter in them, by the ledger."""
    ledger: AdapterLedger = adapter.resolve(base)
    assert ledger.problems == []
    result = {name: tensor.copy() for name, tensor in tensors.items()} | dict(ledger.replacements)
    for update in ledger.updates:
        target = result.setdefault(update.target, tensors[update.source].copy())
        lora.merge_weights(
            update.view(target),
            update.lora_A,
            update.lora_B,
            scaling=update.scaling,
            magnitude=update.magnitude,
        )
    return result


def test_kohyas_names(tmp_path: Path) -> None:
    base = {"down.0.to_q.weight": files.ramp(5, 6), "down.0.conv.weight": files.ramp(5, 6, 3, 3)}
    tensors = {
        "lora_unet_down_0_to_q.lora_down.weight": files.ramp(2, 6, seed=1),
        "lora_unet_down_0_to_q.lora_up.weight": files.ramp(5, 2, seed=2),
        "lora_unet_down_0_to_q.alpha": np.asarray(1.0, np.float32),
        "lora_unet_down_0_conv.lora_down.weight": files.ramp(2, 6, 3, 3, seed=3),
        "lora_unet_down_0_conv.lora_up.weight": files.ramp(5, 2, 1, 1, seed=4),
    }
    path = tmp_path / "kohya.safetensors"
    path.write_bytes(files.safetensors_bytes(tensors))
    adapter = Adapter.load(path)
    found = {layer.path: (layer.component, layer.kind, layer.scaling) for layer in adapter.layers}
    assert found == {"down_0_to_q": ("unet", "linear", 0.5), "down_0_conv": ("unet", "convolution", 1.0)}
    result = merged(adapter, files.write_base(tmp_path / "base", base), base)
    linear = (
        tensors["lora_unet_down_0_to_q.lora_up.weight"] @ tensors["lora_unet_down_0_to_q.lora_down.weight"]
    )
    np.testing.assert_array_equal(result["down.0.to_q.weight"], base["down.0.to_q.weight"] + 0.5 * linear)
    conv = np.einsum(
        "orab,rixy->oixy",
        tensors["lora_unet_down_0_conv.lora_up.weight"],
        tensors["lora_unet_down_0_conv.lora_down.weight"],
    )
    np.testing.assert_array_equal(result["down.0.conv.weight"], base["down.0.conv.weight"] + conv)
    with pytest.raises(errors.AdapterError) as refused:
        adapter.save(tmp_path / "saved")
    assert refused.value.code == "adapter.unsupported"


@pytest.mark.parametrize(
    ("down", "up"),
    [
        ("unet.d.attn.to_q.lora_A.weight", "unet.d.attn.to_q.lora_B.weight"),
        ("unet.d.attn.to_q.lora.down.weight", "unet.d.attn.to_q.lora.up.weight"),
        ("unet.d.attn.processor.to_q_lora.down.weight", "unet.d.attn.processor.to_q_lora.up.weight"),
    ],
)
def test_diffusers_names(tmp_path: Path, down: str, up: str) -> None:
    base = {"d.attn.to_q.weight": files.ramp(5, 6)}
    tensors = {down: files.ramp(2, 6, seed=1), up: files.ramp(5, 2, seed=2)}
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "pytorch_lora_weights.safetensors").write_bytes(files.safetensors_bytes(tensors))
    adapter = Adapter.load(tmp_path / "lora")
    assert adapter.layers[0].component == "unet"
    result = merged(adapter, files.write_base(tmp_path / "base", base), base)
    expected = base["d.attn.to_q.weight"] + tensors[up] @ tensors[down]
    np.testing.assert_array_equal(result["d.attn.to_q.weight"], expected)


@pytest.mark.parametrize(
    ("note", "code"),
    [
        (
            '{"unet.r": 2, "unet.lora_alpha": 2, "unet.target_modules": ["to_q"], "unet.alpha_pattern": {}}',
            None,
        ),
        ('{"unet.r": 2, "unet.lora_alpha": 4}', "adapter.unsupported"),
        ('{"unet.r": 2, "unet.lora_alpha": 2, "unet.use_rslora": true}', "adapter.unsupported"),
        ('{"unet.lora_alpha": 2}', "adapter.unsupported"),
        ("no JSON", "adapter.config"),
    ],
)
def test_a_noted_scaling_is_never_overlooked(tmp_path: Path, note: str, code: str | None) -> None:
    tensors = {"unet.to_q.lora_A.weight": files.ramp(2, 6), "unet.to_q.lora_B.weight": files.ramp(5, 2)}
    path = tmp_path / "pytorch_lora_weights.safetensors"
    path.write_bytes(files.safetensors_bytes(tensors, {"lora_adapter_metadata": note}))
    if code is None:
        assert Adapter.load(tmp_path).scaling == 1
    else:
        assert files.codes(tmp_path) == [code]


def test_flattened_names_that_fit_two_modules(tmp_path: Path) -> None:
    base = files.write_base(
        tmp_path / "base", {"a.b_c.weight": files.ramp(5, 6), "a_b.c.weight": files.ramp(5, 6)}
    )
    tensors = {
        "lora_unet_a_b_c.lora_down.weight": files.ramp(2, 6),
        "lora_unet_a_b_c.lora_up.weight": files.ramp(5, 2),
    }
    path = tmp_path / "kohya.safetensors"
    path.write_bytes(files.safetensors_bytes(tensors))
    assert [it.code for it in Adapter.load(path).validate(base)] == ["adapter.ambiguous"]


def test_everything_that_does_not_fit_a_base_is_named(tmp_path: Path) -> None:
    base = files.write_base(
        tmp_path / "base",
        {f"m.{name}.weight": files.ramp(5, 6) for name in ("q", "k", "v")} | {"m.q.bias": files.ramp(5)},
        shards=2,
    )
    tensors = files.pair("m.q") | files.pair("m.k", features=7) | files.pair("m.999.zzz") | files.pair("m.v")
    tensors["base_model.model.head.weight"] = files.ramp(4, 6)
    adapter = Adapter.load(files.write_adapter(tmp_path / "a", tensors, modules_to_save=["head"]))
    found = {problem.tensor: problem.code for problem in adapter.validate(base)}
    assert found == {
        "m.k": "adapter.shape",
        "m.999.zzz": "adapter.unknown_module",
        "head.weight": "adapter.unknown_module",
    }
    ledger = adapter.resolve(base)
    applied = {update.layer for update in ledger.updates} | set(ledger.replacements)
    deltas = {layer.path for layer in adapter.layers} | set(adapter.replacements)
    assert applied | set(found) == deltas, "every delta is applied somewhere, or named"
    assert applied & set(found) == set()


def test_a_delta_beyond_float16_is_named(tmp_path: Path) -> None:
    base = files.write_base(tmp_path / "base", {"m.q.weight": files.ramp(5, 6, dtype=np.float16)})
    big = {A: np.full((2, 6), 300, np.float16), B: np.full((5, 2), 300, np.float16)}
    adapter = Adapter.load(files.write_adapter(tmp_path / "a", big))
    (problem,) = adapter.validate(base)
    assert (problem.code, problem.tensor) == ("adapter.overflow", "m.q")


def test_a_base_that_cannot_be_read_is_its_own_fault(tmp_path: Path) -> None:
    adapter = Adapter.load(files.write_adapter(tmp_path / "a", files.pair("m.q")))
    with pytest.raises(errors.IntegrityError):
        adapter.validate(tmp_path / "missing")
    base = files.write_base(tmp_path / "base", {"m.q.weight": files.ramp(5, 6)})
    (base / "model.safetensors.index.json").write_text(
        '{"weight_map": {"m.q.weight": "../a/adapter_model.safetensors"}}'
    )
    with pytest.raises(errors.IntegrityError, match="plain name") as refused:
        adapter.validate(base)
    assert refused.value.code == "adapter.path"
