"""Applying one adapter, or a mixed batch of them, to CUDA tensors."""

from __future__ import annotations

import numpy as np
import torch

from infer_accel.errors import ArgumentError, DeviceError, DTypeError, LayoutError, ShapeError
from infer_accel.kernels import _batch, _triton
from infer_accel.kernels._arguments import require_one_device
from infer_accel.kernels._device import Launch
from infer_accel.kernels._matrices import FORMATS, matrix, refuse_shared, require_equal, require_unlike_rows
from infer_accel.kernels._stack import CudaStack

__all__ = ["apply_adapter", "apply_adapters"]

#: Features that one program sums up: long inner products are cut, so that few tokens keep many programs busy. The parts
#: depend on the layer alone, and so does the order of every sum.
_PART = 1024
#: Features of a step, with tensor cores and with fused multiply-adds; outputs of a program.
_FEATURES, _PLAIN_FEATURES = 128, 32
_OUTPUTS = 128
#: Ranks of a step of the expansion. 32 of them, by 128 outputs, are more addresses than registers.
_EXPAND_RANKS = 16
_WARPS = 4


def apply_adapter(x: object, lora_A: object, lora_B: object, *, scaling: float, out: object) -> None:
    """Add to the outputs of all tokens what one adapter makes of them; its matrices are used where they lie."""
    features, x_format = matrix(x, "x")
    target, out_format = matrix(out, "out", written=True)
    a, b = matrix(lora_A, "lora_A")[0], matrix(lora_B, "lora_B")[0]
    require_equal("out and x", "number of tokens", len(target), len(features))
    require_equal("lora_A and lora_B", "rank", a.shape[0], b.shape[1])
    require_equal("lora_A and x", "in_features", a.shape[1], features.shape[1])
    require_equal("lora_B and out", "out_features", b.shape[0], target.shape[1])
    _require_tokens_in_rows(features, target)
    named = [("x", features), ("lora_A", a), ("lora_B", b)]
    device = require_one_device([*named, ("out", target)])
    require_unlike_rows(target, "out")
    refuse_shared([("out", target)], named, "overlap.adapter")
    stack = CudaStack([[(a, b, scaling)]], [0], None, is_lent=True)
    if target.numel() and stack.rank:
        launch = Launch.on(device)
        with launch.entered():
            batch = _batch.items_of_one(len(features), device)
            _launch(features, target, stack, *batch, formats=(x_format, out_format))


def apply_adapters(x: object, stack: object, adapter_ids: object, *, out: object) -> None:
    """Add to each token's outputs what its own adapter makes of it."""
    if not isinstance(stack, CudaStack):
        message = "x lies on a GPU and the stack on the host; make an AdapterStack of CUDA tensors"
        raise DeviceError(message, code="device.mixed")
    features, x_format = matrix(x, "x")
    target, out_format = matrix(out, "out", written=True)
    _require_shapes(features, target, stack)
    tokens = len(features)
    is_on_device = isinstance(adapter_ids, torch.Tensor) and adapter_ids.is_cuda
    order, work = None, None
    if is_on_device:
        _require_ids_on_device(adapter_ids, tokens, features.device)
    else:
        order, work = _batch.items_on_host(_batch.checked_ids(adapter_ids, tokens), stack.ids)
    device = require_one_device([("x", features), ("out", target)])
    if stack.table is None or stack.names is None or tokens == 0 or target.numel() == 0 or stack.rank == 0:
        return
    if stack.device != device:
        message = f"x lies on {device} and the stack on {stack.device}; make a stack for each GPU"
        raise DeviceError(message, code="device.mixed")
    require_unlike_rows(target, "out")
    refuse_shared([("out", target)], [("x", features)], "overlap.adapter")
    launch = Launch.on(device)
    if launch.captured and not is_on_device:
        message = "adapter_ids of the host came while a graph is captured; pass them on the GPU"
        raise ArgumentError(message, code="argument.capture")
    with launch.entered():
        if order is None or work is None:
            batch = _batch.items_on_device(adapter_ids, stack.names)
        else:
            table = launch.upload(np.concatenate([work.reshape(-1), order]))
            batch = table[work.size :], table[: work.size].view(-1, 3)
        if len(batch[1]):
            _launch(features, target, stack, *batch, formats=(x_format, out_format))


def _require_shapes(features: torch.Tensor, target: torch.Tensor, stack: CudaStack) -> None:
    if len(features) != len(target):
        message = f"out and x must have the same number of tokens; {len(target)} and {len(features)} came"
        raise ShapeError(message, code="shape.mismatch")
    if stack.in_features not in {None, features.shape[1]}:
        message = f"x has {features.shape[1]} features, and the stack is of a layer with {stack.in_features}"
        raise ShapeError(message, code="shape.stack")
    if None not in stack.slices and target.shape[1] != stack.out_features:
        message = f"out has {target.shape[1]} outputs, and the stack is of a layer with {stack.out_features}"
        raise ShapeError(message, code="shape.stack")
    _require_tokens_in_rows(features, target)


def _require_tokens_in_rows(features: torch.Tensor, target: torch.Tensor) -> None:
    for name, tensor in (("x", features), ("out", target)):
        if tensor.shape[1] > 1 and tensor.stride(1) != 1:
            message = f"the numbers of a token do not lie one after the other in {name}; pass it contiguous"
            raise LayoutError(message, code="layout.tokens")


def _require_ids_on_device(ids: object, tokens: int, device: torch.device) -> None:
    assert isinstance(ids, torch.Tensor)  # noqa: S101 - the caller asked
    if ids.dtype not in {torch.int32, torch.int64}:
        raise DTypeError(
            f"adapter_ids of {ids.dtype} came; on the GPU int32 or int64 is needed", code="dtype.ids"
        )
    if tuple(ids.shape) != (tokens,):
        message = f"adapter_ids of shape {tuple(ids.shape)} came for {tokens} tokens; pass one for each"
        raise ShapeError(message, code="shape.adapter_ids")
    if ids.device != device:
        message = (
            f"adapter_ids lie on {ids.device} and x on {device}; pass them on the same device, or on the host"
        )
        raise DeviceError(message, code="device.mixed")


def _launch(
    x: torch.Tensor,
    out: torch.Tensor,
    stack: CudaStack,
    order: torch.Tensor,
    work: torch.Tensor,
    *,
    formats: tuple[int, int],
) -> None:
    """Launch both steps; the stream is entered."""
    code = _triton.device_code("apply_adapters_triton")
    ranks = 16 if stack.rank <= 16 else 32 if stack.rank <= 32 else 64
    padded = -(-stack.rank // ranks) * ranks
    features, slices, positions = x.shape[1], len(stack.slices), len(order)
    parts = -(-features // _PART)
    # bfloat16 is handled by its bits, see `rounding_triton.py`.
    x, out = (tensor.view(torch.uint16) if tensor.dtype is torch.bfloat16 else tensor for tensor in (x, out))
    hidden = torch.empty(parts * positions * slices * padded, dtype=torch.float32, device=x.device)
    has_cores = formats[0] == stack.format in {FORMATS["float16"], FORMATS["bfloat16"]}
    shared = {"ADAPTER": stack.format, "TOKENS": _batch.TOKENS, "num_warps": _WARPS}
    shared["INTERPRETED"] = _triton.is_interpreted()
    code.shrink[(len(work), slices * (padded // ranks), parts)](
        x,
        hidden,
        order,
        work,
        stack.table,
        positions,
        slices,
        padded,
        features,
        x.stride(0),
        _PART,
        X=formats[0],
        TENSOR_CORES=has_cores,
        RANKS=ranks,
        FEATURES=_FEATURES if has_cores else _PLAIN_FEATURES,
        **shared,
    )
    widest = max(width or 0 for width in stack.slices)
    code.expand[(len(work), -(-widest // _OUTPUTS), slices)](
        hidden,
        out,
        order,
        work,
        stack.table,
        positions,
        slices,
        padded,
        parts,
        out.stride(0),
        OUT=formats[1],
        RANKS=_EXPAND_RANKS,
        OUTPUTS=_OUTPUTS,
        **shared,
    )
