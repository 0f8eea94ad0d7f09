"""vLLM's LoRA of linear layers on a CPU, computed by :func:`infer_accel.lora.apply_adapters`."""

from __future__ import annotations

import functools
from typing import Any

import torch
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms.cpu import CpuPlatform

from infer_accel.lora import AdapterStack, apply_adapters

_MARK = "_infer_accel_grouped"
_NAME = f"{__name__}.GroupedPunicaWrapper"
_DTYPES = {torch.float32, torch.float16, torch.bfloat16}


class Stacks:
    """The packed adapters of each layer, made when a layer is first used after a change."""

    def __init__(self) -> None:
        self._packed: dict[int, AdapterStack | None] = {}
        #: Of each layer, the ranks that the adapter of a slot uses. To find them costs more than to pack.
        self._ranks: dict[int, dict[int, list[int]]] = {}

    def forget(self, lora_a: tuple[torch.Tensor, ...], slot: int) -> None:
        """Take note that the adapter in a slot of a layer changes."""
        key = lora_a[0].data_ptr()
        self._packed.pop(key, None)
        self._ranks.get(key, {}).pop(slot, None)

    def get(
        self, lora_a: list[torch.Tensor], lora_b: list[torch.Tensor], scale: float
    ) -> AdapterStack | None:
        """Return a layer's adapters; None where none of them changes the layer."""
        key = lora_a[0].data_ptr()
        if key not in self._packed:
            self._packed[key] = _pack(lora_a, lora_b, scale, self._ranks.setdefault(key, {}))
        return self._packed[key]


STACKS = Stacks()


def _used_rank(factor_a: torch.Tensor, factor_b: torch.Tensor) -> int:
    """Return the rank that a pair uses: vLLM fills up to the largest with zeros."""
    used = (factor_a.any(1) & factor_b.any(0)).nonzero()
    return int(used[-1]) + 1 if len(used) else 0


def _pack(
    lora_a: list[torch.Tensor], lora_b: list[torch.Tensor], scale: float, ranks: dict[int, list[int]]
) -> AdapterStack | None:
    """Pack all slots of a layer, each at the ranks that it uses, which are known or are found."""
    entries = []
    for slot in range(lora_a[0].shape[0]):
        pairs = [
            (a[slot].flatten(0, -2), b[slot].flatten(0, -2)) for a, b in zip(lora_a, lora_b, strict=True)
        ]
        if slot not in ranks:
            ranks[slot] = [_used_rank(*pair) for pair in pairs]
        parts = [
            (factor_a[:rank], factor_b[:, :rank], scale) if rank else None
            for (factor_a, factor_b), rank in zip(pairs, ranks[slot], strict=True)
        ]
        entries.append(parts if any(ranks[slot]) else None)
    if not any(entry is not None for entry in entries):
        return None
    return AdapterStack(entries, slices=[int(b.shape[-2]) for b in lora_b])


def _lora_linear(  # noqa: PLR0917 - an operation of torch has no keywords
    y: torch.Tensor,
    x: torch.Tensor,
    lora_a: list[torch.Tensor],
    lora_b: list[torch.Tensor],
    ids: torch.Tensor,
    scale: float,
) -> None:
    stack = STACKS.get(lora_a, lora_b, scale)
    if stack is not None:
        apply_adapters(x, stack, ids, out=y, num_threads=torch.get_num_threads())


# The compiler sees one operation that writes to `y`, and nothing of what is inside.
_operation = torch.library.custom_op("infer_accel::lora_linear", _lora_linear, mutates_args=("y",))
_operation.register_fake(lambda y, x, lora_a, lora_b, ids, scale: None)  # noqa: ARG005 - the operation's signature


class GroupedPunicaWrapper(PunicaWrapperCPU):
    """vLLM's wrapper for CPUs; a linear layer's adapters are one call for the whole batch.

    vLLM copies both matrices of a token's adapter for each token. Here tokens of one adapter share them, and a token
    without one is left alone.
    """

    def add_lora_linear(  # noqa: PLR0917 - vLLM's
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        *,
        buffer: tuple[torch.Tensor, ...] | None = None,
        **kwargs: Any,  # noqa: ANN401 - vLLM's
    ) -> None:
        """Add what each token's adapter makes of it to the outputs of a layer."""
        widths = tuple(int(b.shape[-2]) for b in lora_b_stacked)
        served = x.dim() == 2 and {x.dtype, y.dtype, lora_a_stacked[0].dtype} <= _DTYPES
        if buffer is not None or not served or widths != tuple(output_slices) or sum(widths) != y.shape[-1]:
            super().add_lora_linear(
                y, x, lora_a_stacked, lora_b_stacked, scale, output_slices, buffer=buffer, **kwargs
            )
            return
        ids = self._token_lora_indices[: x.shape[0]]
        arguments = (y, x, list(lora_a_stacked), list(lora_b_stacked), ids, float(scale))
        if torch.compiler.is_compiling():
            _operation(*arguments)
        else:
            _lora_linear(*arguments)


def install() -> None:
    """Have engines that begin from now on use grouped kernels. A second call does nothing."""
    if hasattr(CpuPlatform, _MARK):
        return
    named, reset = CpuPlatform.get_punica_wrapper, BaseLinearLayerWithLoRA.reset_lora

    @functools.wraps(reset)
    def reset_lora(self: Any, index: int) -> None:  # noqa: ANN401 - vLLM's
        # Every change of a slot begins with this.
        STACKS.forget(self.lora_a_stacked, index)
        reset(self, index)

    CpuPlatform.get_punica_wrapper = classmethod(lambda _: _NAME)
    BaseLinearLayerWithLoRA.reset_lora = reset_lora
    setattr(CpuPlatform, _MARK, (named, reset))


def uninstall() -> None:
    """Let engines that begin from now on use vLLM's own."""
    before = getattr(CpuPlatform, _MARK, None)
    if before is None:
        return
    CpuPlatform.get_punica_wrapper, BaseLinearLayerWithLoRA.reset_lora = before
    delattr(CpuPlatform, _MARK)
