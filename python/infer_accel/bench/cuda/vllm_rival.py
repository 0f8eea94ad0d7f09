"""vLLM's own kernels, where vLLM is installed with them: copies of cache blocks, and LoRA's shrink and expand.

They are no public interface, so each is looked at before it is called: one that takes other arguments than this bench
knows is named below the table, with what it takes, and not timed.
"""

from __future__ import annotations

import inspect
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from infer_accel.bench.cuda.device import require
from infer_accel.bench.harness import describe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

    import numpy.typing as npt

    from infer_accel.bench.cuda.device import Gpu
    from infer_accel.bench.harness import Bench, Contender

    Tensors = tuple[torch.Tensor, torch.Tensor]
    Watch = tuple[Callable[[object], None], Callable[[], None]]

__all__ = ["LoraKernels", "batched_copies", "block_copies", "lora_kernels"]

_OPERATIONS = "_C_cache_ops"
_LORA = "vllm.lora.ops.triton_ops"


def block_copies(
    bench: Bench, gpu: Gpu, sides: Tensors, pairs: npt.NDArray[np.int64], work: float
) -> list[Contender]:
    """Return ``swap_blocks``, which asks the driver for one copy after the other; `work` is what `pairs` move."""
    swap = _operation(bench, "swap_blocks", ("Tensor", "Tensor", "int", "Tensor"))
    if swap is None:
        return []
    source, target = sides
    mapping, size = torch.from_numpy(np.ascontiguousarray(pairs)), source[0].nbytes
    fro, to = (mapping[:, side].contiguous() for side in (0, 1))

    def check(_: object) -> None:
        found = target.index_select(0, to.to(target.device)).cpu()
        aim = source.index_select(0, fro.to(source.device)).cpu()
        require(torch.equal(found, aim), "pages differ")

    def poison() -> None:
        target.fill_(0x55)

    who = gpu.contender(
        "vLLM swap_blocks", lambda _: swap(source, target, size, mapping), check=check, prepare=poison
    )
    return [replace(who, work=work)]


def batched_copies(
    bench: Bench, gpu: Gpu, sides: Tensors, pairs: npt.NDArray[np.int64], watch: Watch
) -> list[Contender]:
    """Return ``swap_blocks_batch``, which gives the driver all copies at once; `watch` checks and poisons."""
    swap = _operation(bench, "swap_blocks_batch", ("Tensor", "Tensor", "Tensor", "bool"))
    if swap is None:
        return []
    size = sides[0][0].nbytes
    addresses = [
        torch.from_numpy(side.data_ptr() + size * pairs[:, place]) for place, side in enumerate(sides)
    ]
    sizes = torch.full((len(pairs),), size, dtype=torch.int64)
    check, poison = watch
    who = gpu.contender(
        "vLLM swap_blocks_batch",
        lambda _: swap(*addresses, sizes, False),  # noqa: FBT003 - the operation names it by its place
        check=check,
        prepare=poison,
    )
    return [who]


@dataclass(frozen=True, slots=True)
class LoraKernels:
    """vLLM's Triton kernels for LoRA, and what describes a batch to them."""

    shrink: Callable[..., object]
    expand: Callable[..., object]
    description: Any

    def call(
        self,
        x: torch.Tensor,
        stacks: Sequence[Tensors],
        ids: torch.Tensor,
        outs: Sequence[torch.Tensor],
        scaling: float,
    ) -> Callable[[int], None]:
        """Return a call that adds to ``outs[i]`` what ``stacks[i]`` (all lora_A, all lora_B) make of the tokens.

        The batch is described once, before: a server does so once a step, for all layers.
        """
        tokens, adapters, rank = len(x), len(stacks[0][0]), stacks[0][0].shape[1]
        described = self.description.make(adapters, tokens, x.device)
        described.prepare_tensors(ids)
        arguments = described.meta_args(tokens, False)  # noqa: FBT003 - named by its place in some versions
        hidden = torch.empty(1, tokens, rank, dtype=torch.float32, device=x.device)

        def run(turn: int) -> None:
            a, b = stacks[turn]
            self.shrink(x, [a], hidden, *arguments, scaling)
            self.expand(hidden, [b], outs[turn], *arguments, 0, True)  # noqa: FBT003 - as above

        return run


def lora_kernels(bench: Bench) -> LoraKernels | None:
    """Return vLLM's kernels for LoRA, or None where there are none that this bench knows how to call."""
    if _loaded(bench, "vllm") is None or (module := _loaded(bench, _LORA)) is None:
        return None
    named = "vLLM's LoRA kernels"
    try:
        functions = [_function(bench, "shrink"), _function(bench, "expand"), module.LoRAKernelMeta.meta_args]
        found = [tuple(inspect.signature(function).parameters) for function in functions]
    except (AttributeError, TypeError, ValueError) as error:
        bench.rivals.absent[named] = f"installed, but: {describe(error)}"
        return None
    known = [
        found[0][:3] == ("inputs", "lora_a_weights", "output_tensor") and found[0][-1] == "scaling",
        found[1][:3] == ("inputs", "lora_b_weights", "output_tensor")
        and found[1][-2:] == ("offset_start", "add_inputs"),
        found[2] == ("self", "token_nums", "specialize_active_lora"),
    ]
    if not all(known):
        bench.rivals.absent[named] = f"installed, but with arguments that this bench does not know: {found}"
        return None
    return LoraKernels(module.lora_shrink, module.lora_expand, module.LoRAKernelMeta)


def _function(bench: Bench, step: str) -> Callable[..., object]:
    """Return the plain function behind a registered operation, whose signature can be read."""
    module = _loaded(bench, f"{_LORA}.lora_{step}_op")
    function: Callable[..., object] = getattr(module, f"_lora_{step}")
    return function


def _operation(bench: Bench, name: str, wanted: tuple[str, ...]) -> Callable[..., object] | None:
    """Return an operation of vLLM's extension module, if it takes arguments of the kinds that are wanted."""
    if _loaded(bench, "vllm") is None or _loaded(bench, "vllm._custom_ops") is None:
        return None
    operation = getattr(getattr(torch.ops, _OPERATIONS), name, None)
    if operation is None:
        bench.rivals.absent[f"vLLM {name}"] = "this vLLM is built without it; its build for CUDA has it"
        return None
    found = tuple(str(argument.type) for argument in operation.default._schema.arguments)  # noqa: SLF001
    if found != wanted:
        bench.rivals.absent[f"vLLM {name}"] = f"installed, but takes {found}, and this bench passes {wanted}"
        return None
    function: Callable[..., object] = operation
    return function


def _loaded(bench: Bench, name: str) -> ModuleType | None:
    """Return a module of vLLM; whatever its import does wrong is no fault of the row."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        return bench.rival(name)
    except Exception as error:  # noqa: BLE001 - an engine's import may fail in any way
        bench.rivals.absent[name] = f"installed, but: {describe(error)}"
        return None
