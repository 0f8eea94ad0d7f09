"""How vLLM's kernels are called by the bench: doubles with its arguments, of torch, that do the work on the CPU."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from infer_accel.bench import cuda, parts
from infer_accel.bench.cuda import linking, paging, vllm_rival
from infer_accel.bench.cuda.device import Gpu
from infer_accel.bench.harness import Bench
from infer_accel.bench.rivals import Rivals

if TYPE_CHECKING:
    from collections.abc import Iterator


class Description:
    """vLLM's description of a batch, as far as it is asked for."""

    @classmethod
    def make(cls, max_loras: int, max_num_tokens: int, device: object) -> Description:
        assert max_loras >= 1
        assert max_num_tokens >= 1
        assert device is not None
        return cls()

    def prepare_tensors(self, token_lora_mapping: torch.Tensor) -> None:
        self.mapping = token_lora_mapping

    def meta_args(self, token_nums: int, specialize_active_lora: bool) -> tuple[torch.Tensor]:
        assert specialize_active_lora is False
        return (self.mapping[:token_nums],)


def shrink(inputs: Any, lora_a_weights: Any, output_tensor: Any, mapping: Any, scaling: float) -> None:
    chosen = lora_a_weights[0][mapping].float()
    output_tensor[0] = scaling * torch.einsum("ti,tri->tr", inputs.float(), chosen)


def expand(
    inputs: Any,
    lora_b_weights: Any,
    output_tensor: Any,
    mapping: Any,
    offset_start: int = 0,
    add_inputs: bool = False,
) -> None:
    assert (offset_start, add_inputs) == (0, True)
    output_tensor += torch.einsum("tr,tor->to", inputs[0], lora_b_weights[0][mapping].float()).to(
        output_tensor.dtype
    )


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The modules of vLLM that the bench asks for."""
    found: dict[str, Any] = {
        "vllm": ModuleType("vllm"),
        "vllm._custom_ops": ModuleType("vllm._custom_ops"),
        "vllm.lora.ops.triton_ops": SimpleNamespace(
            lora_shrink=shrink, lora_expand=expand, LoRAKernelMeta=Description
        ),
        "vllm.lora.ops.triton_ops.lora_shrink_op": SimpleNamespace(_lora_shrink=shrink),
        "vllm.lora.ops.triton_ops.lora_expand_op": SimpleNamespace(_lora_expand=expand),
    }
    monkeypatch.setattr(Rivals, "load", lambda _, name: found.get(name))
    return found


def test_lora_kernels_are_called_as_they_want_to_be(vllm: dict[str, Any]) -> None:
    kernels = vllm_rival.lora_kernels(Bench())
    assert kernels is not None
    x, ids = torch.randn(5, 8), torch.tensor([0, 2, 1, 0, 2])
    stacks = [(torch.randn(3, 4, 8), torch.randn(3, 6, 4)) for _ in range(2)]
    outs = [torch.ones(5, 6) for _ in range(2)]
    call = kernels.call(x, stacks, ids, outs, 0.5)
    for turn in range(2):
        call(turn)
    for (a, b), out in zip(stacks, outs, strict=True):
        wanted = 1 + 0.5 * torch.stack([b[i] @ (a[i] @ x[token]) for token, i in enumerate(ids.tolist())])
        assert torch.allclose(out, wanted, atol=1e-5)


def test_kernels_with_other_arguments_are_not_called(vllm: dict[str, Any]) -> None:
    bench = Bench()
    vllm["vllm.lora.ops.triton_ops.lora_shrink_op"] = SimpleNamespace(_lora_shrink=lambda inputs: inputs)
    assert vllm_rival.lora_kernels(bench) is None
    assert "does not know" in bench.rivals.absent["vLLM's LoRA kernels"]
    vllm["vllm.lora.ops.triton_ops.lora_shrink_op"] = SimpleNamespace()
    assert vllm_rival.lora_kernels(bench) is None
    assert "installed, but: AttributeError" in bench.rivals.absent["vLLM's LoRA kernels"]


def test_an_import_that_fails_in_its_own_way_is_no_fault_of_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: Rivals, name: str) -> None:
        raise RuntimeError(f"{name}: no platform")

    monkeypatch.setattr(Rivals, "load", load)
    bench = Bench()
    assert vllm_rival.lora_kernels(bench) is None
    assert bench.rivals.absent["vllm"] == "installed, but: RuntimeError: vllm: no platform"


@pytest.fixture
def operations(vllm: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Operations of vLLM's extension, registered as it does, that copy on the CPU."""
    library = torch.library.Library("_C_cache_ops", "DEF")
    calls: list[str] = []
    library.define(
        "swap_blocks(Tensor src, Tensor! dst, int block_size_in_bytes, Tensor block_mapping) -> ()"
    )
    library.define("swap_blocks_batch(Tensor src_ptrs, Tensor dst_ptrs, Tensor sizes, bool any_order) -> ()")

    def swap(src: torch.Tensor, dst: torch.Tensor, size: int, mapping: torch.Tensor) -> None:
        calls.append("swap_blocks")
        assert src[0].nbytes == size
        for fro, to in mapping.tolist():
            dst[to] = src[fro]

    def batched(fro: torch.Tensor, to: torch.Tensor, sizes: torch.Tensor, any_order: bool) -> None:
        import ctypes

        calls.append("swap_blocks_batch")
        assert any_order is False
        for source, target, size in zip(fro.tolist(), to.tolist(), sizes.tolist(), strict=True):
            ctypes.memmove(target, source, size)

    library.impl("swap_blocks", swap, "CPU")
    library.impl("swap_blocks_batch", batched, "CPU")
    for name in ("_ROUNDS_AT_LEAST", "_ROUNDS_AT_MOST"):
        monkeypatch.setattr(f"infer_accel.bench.harness.{name}", 1)
    monkeypatch.setattr(paging, "_PAGES", (4 << 10,) * 2)
    monkeypatch.setattr(linking, "_PAGES", (4 << 10,) * 2)
    yield calls
    library._destroy()


def test_copies_of_blocks_take_part(operations: list[str]) -> None:
    gpu = Gpu(torch.device("cpu"), call_bytes=32 << 10, calls=1)
    outcome = parts.run_parts(
        {"kvcache": cuda.source("kvcache", gpu)}, Bench(quick=True, seconds_a_case=0.01)
    )
    assert outcome.left_out == {}
    rivals = {row.case: set(row.peers) for row in outcome.rows}
    assert "vLLM swap_blocks" in rivals["cuda: page_copy 4 KiB pages"]
    for way in ("host to device", "device to host"):
        found = rivals[f"cuda: page_copy 4 KiB pages, {way}"]
        assert {"vLLM swap_blocks", "vLLM swap_blocks_batch"} <= found
    assert set(operations) == {"swap_blocks", "swap_blocks_batch"}


def test_operations_with_other_arguments_are_not_called(vllm: dict[str, Any]) -> None:
    library = torch.library.Library("_C_cache_ops", "DEF")
    library.define("swap_blocks(Tensor src, Tensor! dst, Tensor block_mapping) -> ()")
    bench = Bench()
    try:
        assert vllm_rival._operation(bench, "swap_blocks", ("Tensor", "Tensor", "int", "Tensor")) is None
        assert "installed, but takes" in bench.rivals.absent["vLLM swap_blocks"]
        assert vllm_rival._operation(bench, "swap_blocks_batch", ("Tensor",)) is None
        assert "built without it" in bench.rivals.absent["vLLM swap_blocks_batch"]
    finally:
        library._destroy()
