"""Many adapters beside one PyTorch model: as PEFT computes, and as a row alone would."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import numpy as np
import pytest

from infer_accel import errors
from infer_accel.lora import AdapterStore, LoraModel, apply_adapter

torch = pytest.importorskip("torch")
nn: Any = torch.nn

WIDTH, KEYS = 48, 16


class Attention(nn.Module):
    """Just enough of a transformer's layer: separate or fused projections, a residue, an output."""

    def __init__(self, *, is_fused: bool) -> None:
        super().__init__()
        self.is_fused = is_fused
        if is_fused:
            self.qkv_proj = nn.Linear(WIDTH, WIDTH + 2 * KEYS)
        else:
            self.q_proj = nn.Linear(WIDTH, WIDTH)
            self.k_proj, self.v_proj = nn.Linear(WIDTH, KEYS), nn.Linear(WIDTH, KEYS)
        self.o_proj = nn.Linear(WIDTH + 2 * KEYS, WIDTH, bias=False)

    def forward(self, x: Any) -> Any:
        parts = self.qkv_proj(x) if self.is_fused else torch.cat([p(x) for p in self.parts()], dim=-1)
        return x + self.o_proj(torch.tanh(parts))

    def parts(self) -> list[Any]:
        return [self.q_proj, self.k_proj, self.v_proj]


def model(*, is_fused: bool = False, layers: int = 2, dtype: Any = torch.float32) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(*(Attention(is_fused=is_fused) for _ in range(layers))).to(dtype).eval()


def adapter(
    seed: int, rank: int, layers: dict[str, tuple[int, int]], dtype: Any = torch.float32
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Any:
        return (torch.randn(shape, generator=generator) * 0.3).to(dtype)

    return {name: (random(rank, into), random(out, rank), 0.7) for name, (out, into) in layers.items()}


def sizes(of: Any) -> dict[str, tuple[int, int]]:
    return {
        name: (module.out_features, module.in_features)
        for name, module in of.named_modules()
        if isinstance(module, nn.Linear)
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_each_row_is_as_it_would_be_alone(dtype: Any) -> None:
    base = model(dtype=dtype)
    served = LoraModel(base, AdapterStore(1 << 22))
    for index, name in enumerate("ab"):
        served.load(name, adapter(index, 4 + 3 * index, sizes(base), dtype))
    x = torch.randn((4, 5, WIDTH), generator=torch.Generator().manual_seed(9)).to(dtype)
    rows = ["a", None, "b", "a"]
    with torch.inference_mode():
        plain = base(x)
        with served.use(rows):
            mixed = base(x)
        assert torch.equal(base(x), plain), "outside of a block nothing is applied"
        assert torch.equal(mixed[1], plain[1])
        for row in (0, 2, 3):
            assert not torch.equal(mixed[row], plain[row])
        # torch's own product may sum in another order for another batch: the same batch, one adapter for all rows.
        for name in "ab":
            with served.use([name] * 4):
                alone = base(x)
            assert all(torch.equal(alone[row], mixed[row]) for row in range(4) if rows[row] == name)
        tokens = [[name] * 5 for name in rows]
        with served.use(tokens):
            assert torch.equal(base(x), mixed)


def test_one_layer_is_apply_adapter() -> None:
    torch.manual_seed(1)
    base = nn.Sequential(nn.Linear(30, 20)).bfloat16()
    served = LoraModel(base, AdapterStore(1 << 20), num_threads=1)
    source = adapter(3, 6, {"0": (20, 30)}, torch.bfloat16)
    served.load("a", source)
    x = torch.randn(7, 30).bfloat16()
    with torch.no_grad():
        expected = base(x)
        apply_adapter(x[2:5], *source["0"][:2], scaling=0.7, out=expected[2:5])
        with served.use([None, None, "a", "a", "a", None, None]):
            assert torch.equal(base(x), expected)


def test_fused_layers_take_adapters_of_their_parts_and_their_own() -> None:
    separate, fused = model(), model(is_fused=True)
    with torch.no_grad():
        for one, all_of_it in zip(separate, fused, strict=True):
            all_of_it.qkv_proj.weight.copy_(torch.cat([part.weight for part in one.parts()]))
            all_of_it.qkv_proj.bias.copy_(torch.cat([part.bias for part in one.parts()]))
            all_of_it.o_proj.weight.copy_(one.o_proj.weight)
    parts = {"qkv_proj": {"q_proj": WIDTH, "k_proj": KEYS, "v_proj": KEYS}}
    store = AdapterStore(1 << 22)
    beside = LoraModel(separate, AdapterStore(1 << 22))
    served = LoraModel(fused, store, fused=parts)
    layers = sizes(separate)
    some = {name: layers[name] for name in layers if "k_proj" not in name}
    for name, chosen in {"all": layers, "some": some}.items():
        source = adapter(len(chosen), 5, chosen)
        beside.load(name, source)
        served.load(name, source)
    served.load("whole", adapter(5, 3, {"0.qkv_proj": (WIDTH + 2 * KEYS, WIDTH)}))
    x = torch.randn((3, 2, WIDTH), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        with beside.use(["all", "some", None]):
            expected = separate(x)
        with served.use(["all", "some", None]):
            torch.testing.assert_close(fused(x), expected)
        with served.use(["whole", None, None]):
            out = fused(x)
        assert torch.equal(out[1:], fused(x)[1:])
        assert not torch.allclose(out[0], fused(x)[0])
    assert "0.qkv_proj" in served.layers
    assert "1.v_proj" in served.layers


def test_as_peft_computes() -> None:
    """Within the bound of apply_adapter, and that of PEFT's two products and a sum."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(2)
    features, outputs, rank, alpha = 300, 200, 8, 16
    base = nn.Sequential(nn.Linear(features, outputs))
    config = {"r": rank, "lora_alpha": alpha, "target_modules": ["0"], "init_lora_weights": False}
    theirs = peft.get_peft_model(base, peft.LoraConfig(**config), adapter_name="first")
    theirs.add_adapter("second", peft.LoraConfig(**config))
    layer = theirs.base_model.model[0]
    served = LoraModel(theirs.base_model.model, AdapterStore(1 << 22))
    x = torch.randn(9, features)
    for name in ("first", "second"):
        pair = layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach()
        served.load(name, {"0.base_layer": (*pair, alpha / rank)})
        with torch.no_grad():
            theirs.set_adapter(name)
            expected = theirs(x)
            with theirs.disable_adapter(), served.use([name] * 9):
                got = theirs(x)
        size = alpha / rank * (x.abs() @ pair[0].abs().T @ pair[1].abs().T)
        bound = (features + rank + 20) * 2.0**-23 * size + 2.0**-22 * expected.abs()
        assert torch.all((got - expected).abs() <= bound)


def test_threads_serve_different_batches_at_once() -> None:
    base = model()
    served = LoraModel(base, AdapterStore(1 << 22))
    for index, name in enumerate("abcd"):
        served.load(name, adapter(index, 4, sizes(base)))
    x = torch.randn(2, 3, WIDTH)
    with torch.no_grad():
        expected = {}
        for name in (*"abcd", None):
            with served.use([name, name]):
                expected[name] = base(x)
    for one, other in itertools.combinations(expected.values(), 2):
        assert not torch.allclose(one, other, rtol=1e-3, atol=1e-4)
    problems: list[object] = []

    def run(name: str | None) -> None:
        with torch.no_grad():
            for _ in range(20):
                with served.use([name, name]):
                    # The layer's own product is torch's, which may sum in another order on another thread.
                    if not torch.allclose(base(x), expected[name], rtol=1e-4, atol=1e-5):
                        problems.append(name)

    workers = [threading.Thread(target=run, args=(name,)) for name in (*"abcd", None)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert problems == []


def test_a_swap_does_not_reach_a_running_block() -> None:
    base = model()
    served = LoraModel(base, AdapterStore(1 << 22))
    served.load("a", adapter(0, 4, sizes(base)))
    x = torch.randn(1, 3, WIDTH)
    with torch.no_grad(), served.use(["a"]):
        expected = base(x)
        served.load("a", adapter(1, 4, sizes(base)))
        assert torch.equal(base(x), expected)
        served.store.evict("a")
        assert torch.equal(base(x), expected)
        with pytest.raises(errors.AdapterError), served.use(["a"]):
            pass


def test_outputs_that_are_not_contiguous() -> None:
    class Transposed(nn.Linear):
        def forward(self, x: Any) -> Any:
            return super().forward(x).transpose(0, 1).contiguous().transpose(0, 1)

    torch.manual_seed(3)
    base = nn.Sequential(Transposed(8, 6))
    plain = nn.Sequential(nn.Linear(8, 6))
    plain.load_state_dict(base.state_dict())
    x = torch.randn(4, 3, 8)[:, ::2]
    outs = []
    for each in (base, plain):
        served = LoraModel(each, AdapterStore(1 << 20))
        served.load("a", adapter(1, 2, {"0": (6, 8)}))
        with torch.no_grad(), served.use(["a", None, "a", None]):
            outs.append(each(x))
    assert torch.equal(*outs)


def test_close_takes_the_hooks_off() -> None:
    base = model()
    keys = list(base.state_dict())
    with LoraModel(base, AdapterStore(1 << 22)) as served:
        assert "Sequential" in repr(served)
        assert served.model is base
    assert list(base.state_dict()) == keys
    assert not any(module._forward_hooks for module in base.modules())


def test_refused() -> None:
    base = model()
    store = AdapterStore(1 << 22)
    served = LoraModel(base, store)
    codes: dict[str, Any] = {
        "adapter.layer_absent": lambda: served.load("a", adapter(0, 2, {"9.q_proj": (WIDTH, WIDTH)})),
        "adapter.other_base": lambda: served.load("a", adapter(0, 2, {"0.q_proj": (WIDTH, WIDTH + 1)})),
        "argument.model": lambda: LoraModel(nn.Sequential(nn.ReLU()), store),
        "argument.matrices": lambda: served.load("a", {"0.q_proj": (np.ones((1, 2), np.float32),)}),  # type: ignore[dict-item]
    }
    for code, call in codes.items():
        with pytest.raises(errors.InferAccelError) as caught:
            call()
        assert caught.value.code == code
    with pytest.raises(errors.ArgumentError):
        LoraModel(model(is_fused=True), store, fused={"qkv_proj": {"q_proj": WIDTH}})
    assert len(store) == 0
    served.load("a", adapter(0, 2, sizes(base)))
    x = torch.randn(3, 2, WIDTH)
    with torch.no_grad():
        with served.use(["a"] * 4), pytest.raises(errors.ShapeError):
            base(x)
        with pytest.raises(errors.AdapterError), served.use(["a", "b", None]):
            pass
        with pytest.raises(errors.ShapeError, match="different lengths"), served.use([["a"], ["a", "a"]]):
            pass
    with served.use(["a"] * 3), pytest.raises(errors.GradientError):
        base(x)
    assert np.isfinite(base(x).detach().numpy()).all()
