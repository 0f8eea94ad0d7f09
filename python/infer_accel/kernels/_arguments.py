"""What comes in: tensors that may be used as they are, and tables of integers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from infer_accel.errors import (
    ArgumentError,
    DeviceError,
    DTypeError,
    GradientError,
    IdError,
    LayoutError,
    ReadOnlyError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

__all__ = ["extent_bytes", "integers", "refuse_options", "require_one_device", "strided"]


def strided(tensor: object, name: str, *, written: bool) -> torch.Tensor:
    """Return a tensor after a look at everything that could make its memory other than it says.

    Raises
    ------
    DTypeError
        It is no tensor.
    LayoutError
        It is sparse, conjugated or negated in name only, or its storage was freed or is shorter than its shape.
    GradientError
        Its gradient is being recorded.
    ReadOnlyError
        An array of numpy that must not be written.
    """
    if isinstance(tensor, np.ndarray):
        tensor = _tensor_of_array(tensor, name, written=written)
    if not isinstance(tensor, torch.Tensor):
        message = f"{name} is a {type(tensor).__name__}; pass a tensor of torch, or an array of numpy in pinned memory"
        raise DTypeError(message, code="dtype.not_a_tensor")
    if tensor.layout != torch.strided:
        message = f"{name} has the layout {tensor.layout}; make it dense first"
        raise LayoutError(message, code="layout.export")
    if tensor.is_neg() or tensor.is_conj():
        message = f"{name} keeps other values than it shows; pass tensor.resolve_neg().resolve_conj()"
        raise LayoutError(message, code="layout.negated")
    if tensor.requires_grad and torch.is_grad_enabled():
        message = f"{name} has requires_grad=True; call under torch.no_grad(), or pass tensor.detach()"
        raise GradientError(message, code="gradient.recorded")
    needed = tensor.storage_offset() * tensor.element_size() + extent_bytes(tensor)
    found = tensor.untyped_storage().nbytes()
    if extent_bytes(tensor) and needed > found:
        message = (
            f"{name} needs {needed} bytes of its storage, which has {found}: it was resized or freed after the "
            "tensor was made; make the tensor again"
        )
        raise LayoutError(message, code="layout.storage")
    return tensor


def _tensor_of_array(array: npt.NDArray[Any], name: str, *, written: bool) -> torch.Tensor:
    if not array.flags.writeable:
        use = "written" if written else "lent to torch"
        message = f"{name} is a read-only array, which must not be {use}; pass one that may be written"
        raise ReadOnlyError(message, code="read_only")
    if any(stride < 0 for stride in array.strides):
        message = f"{name} runs backwards through memory; pass numpy.ascontiguousarray of it"
        raise LayoutError(message, code="layout.strides")
    is_foreign = array.dtype.name in {"bfloat16", "float8_e4m3fn", "float8_e5m2"}
    bits = array.view(np.uint8 if array.itemsize == 1 else np.uint16) if is_foreign else array
    try:
        tensor = torch.from_numpy(bits)
    except (TypeError, ValueError) as error:
        message = f"{name} is an array of {array.dtype} that torch cannot view: {error}"
        raise DTypeError(message, code="dtype.unknown") from error
    return tensor.view(getattr(torch, array.dtype.name)) if is_foreign else tensor


def extent_bytes(tensor: torch.Tensor) -> int:
    """Return how many bytes lie from the first element to the end of the last."""
    if tensor.numel() == 0:
        return 0
    steps: int = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    item: int = tensor.element_size()
    return (steps + 1) * item


def require_one_device(tensors: Iterable[tuple[str, torch.Tensor]]) -> torch.device:
    """Return the device that all tensors lie on.

    Raises
    ------
    DeviceError
        They lie on several.
    """
    named = list(tensors)
    first_name, first = named[0]
    for name, tensor in named:
        if tensor.device != first.device:
            message = (
                f"{first_name} lies on {first.device} and {name} on {tensor.device}; nothing is moved between devices "
                "in silence: move one of them first"
            )
            raise DeviceError(message, code="device.mixed")
    return first.device


def integers(values: object, code: str) -> npt.NDArray[np.int64]:
    """Return a private copy of a table of integers that lies on the host.

    Raises
    ------
    DTypeError
        Something else than integers.
    IdError
        An integer beyond 64 bits.
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().numpy()
    array = np.asarray(values)
    if array.size == 0:
        return array.astype(np.int64)
    if array.dtype.kind not in "iu":
        message = f"{array.dtype} came where ids are expected; pass integers of at most 64 bits"
        raise DTypeError(message, code=code)
    if array.dtype.kind == "u" and int(array.max()) >= 1 << 63:
        raise IdError("an id above 2⁶³ − 1 came; no page has it", code="id.range")
    return array.astype(np.int64)


def refuse_options(operation: str, **came: bool) -> None:
    """Refuse options that an operation has for tensors on the CPU alone.

    Raises
    ------
    ArgumentError
        One of them came.
    """
    names = [name for name, is_given in came.items() if is_given]
    if names:
        message = f"{operation} on CUDA tensors does not take {', '.join(names)}; leave it out, or do this on the CPU"
        raise ArgumentError(message, code="argument.cuda")
