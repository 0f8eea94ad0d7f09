"""A device, a stream on it, and what is asynchronous there."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from infer_accel.errors import ArgumentError, DeviceError
from infer_accel.kernels import _driver, _triton

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from infer_accel._typing import Stream

__all__ = ["Launch", "is_served", "keep_until"]

#: The oldest architecture with what the kernels are compiled for: bfloat16 in its tensor cores.
_OLDEST = (8, 0)

#: Tables that calls share, by device and content, and those of them that graphs read.
_constants: dict[tuple[torch.device, str, bytes], torch.Tensor] = {}
_captured: set[tuple[torch.device, str, bytes]] = set()
_MOST_CONSTANTS = 4096

#: What copies under way still read or write, with the event that ends each.
_pending: list[tuple[Any, tuple[Any, ...]]] = []


def is_served(tensor: torch.Tensor) -> bool:
    """Return whether kernels work on this tensor: one on CUDA, or one of the CPU where they are interpreted."""
    return tensor.is_cuda or (tensor.device.type == "cpu" and _triton.is_interpreted())


@dataclass(frozen=True, slots=True)
class Launch:
    """Where kernels run: a device and a stream of it. The interpreter has neither."""

    device: torch.device
    stream: Any = None
    #: Whether the stream is being captured into a graph.
    captured: bool = False

    @classmethod
    def on(cls, device: torch.device, stream: Stream | int | None = None) -> Launch:
        """Return a device with the caller's stream, torch's current one where none is named.

        Raises
        ------
        DeviceError
            The architecture is not served, or the stream belongs to another device.
        BackendError
            Triton is not installed.
        """
        _triton.device_code("page_copy_triton")
        if device.type != "cuda":
            return cls(device)
        _require_architecture(device)
        owned = _stream_on(device, stream)
        with torch.cuda.stream(owned):
            return cls(device, owned, bool(torch.cuda.is_current_stream_capturing()))

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Make device and stream torch's current ones."""
        if self.stream is None:
            yield
        else:
            with torch.cuda.stream(self.stream):
                yield

    @property
    def is_current(self) -> bool:
        """Whether the stream is torch's current one."""
        return self.stream is None or self.stream == torch.cuda.current_stream(self.device)

    @property
    def multiprocessors(self) -> int:
        """Multiprocessors of the device."""
        return 2 if self.stream is None else _multiprocessors(self.device)

    def upload(self, array: npt.NDArray[np.generic]) -> torch.Tensor:
        """Return a copy of a small table on the device, in the order of the stream, which must be entered."""
        table = torch.from_numpy(np.ascontiguousarray(array))
        if self.stream is None:
            return table.clone()
        # torch's allocator of pinned memory gives it to nobody else before this copy is done.
        return table.pin_memory().to(self.device, non_blocking=True)

    def constant(self, table: npt.NDArray[np.generic]) -> torch.Tensor:
        """Return a table on the device that is the same from call to call, and was uploaded at the first.

        It is there when this returns, whatever the stream; a graph that is being captured keeps it for ever.

        Raises
        ------
        ArgumentError
            The stream is being captured, and the table was never uploaded.
        """
        key = self.device, table.dtype.str, table.tobytes()
        found = _constants.get(key)
        if found is None:
            if self.captured:
                message = (
                    "a graph is captured with tensors that this operation has not seen before; call it once with the "
                    "same tensors before the capture, as torch asks for anyway"
                )
                raise ArgumentError(message, code="argument.capture")
            found = self._uploaded_at_once(table)
            if len(_constants) >= _MOST_CONSTANTS:
                self._forget_constants()
            _constants[key] = found
        if self.captured:
            _captured.add(key)
        return found

    def _uploaded_at_once(self, table: npt.NDArray[np.generic]) -> torch.Tensor:
        if self.stream is None:
            return torch.from_numpy(table.copy())
        with torch.cuda.stream(_upload_stream(self.device)):
            return torch.from_numpy(table.copy()).to(self.device)

    def _forget_constants(self) -> None:
        """Forget the tables that no graph uses, when nothing can be reading them any more."""
        if self.stream is not None:
            torch.cuda.synchronize(self.device)
        for key in [key for key in _constants if key not in _captured]:
            del _constants[key]

    def record(self) -> Any:  # noqa: ANN401 - an event of torch, or none in the interpreter
        """Return an event behind everything that the stream was given so far."""
        if self.stream is None:
            return None
        event = torch.cuda.Event()
        event.record(self.stream)
        return event


def _stream_on(device: torch.device, stream: Stream | int | None) -> torch.cuda.Stream:
    """Return a stream as torch has it, if it belongs to the device."""
    if stream is None:
        return torch.cuda.current_stream(device)
    if isinstance(stream, torch.cuda.Stream):
        index, owned = stream.device.index, stream
    else:
        handle = stream if isinstance(stream, int) else stream.cuda_stream
        index, owned = _driver.device_of_stream(handle), torch.cuda.ExternalStream(handle, device=device)
    if index is not None and index != device.index:
        message = f"a stream of device {index} came for tensors on {device}; pass one of the same device"
        raise DeviceError(message, code="device.stream")
    return owned


def keep_until(event: Any, objects: Sequence[Any]) -> None:  # noqa: ANN401 - an event of torch
    """Hold on to `objects` until `event` has passed; looked at whenever more is to be held."""
    _pending[:] = [entry for entry in _pending if not entry[0].query()]
    _pending.append((event, tuple(objects)))


@functools.cache
def _upload_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@functools.cache
def _require_architecture(device: torch.device) -> None:
    if getattr(torch.version, "hip", None) is not None:
        message = "a tensor on a GPU of ROCm came; the kernels are made for CUDA: move it to the CPU first"
        raise DeviceError(message, code="device.architecture")
    found = tuple(torch.cuda.get_device_capability(device))
    if found < _OLDEST:
        name = torch.cuda.get_device_name(device)
        message = (
            f"{name} has compute capability {found[0]}.{found[1]}; the kernels need {_OLDEST[0]}.{_OLDEST[1]} or "
            "newer (A100 and later): move the tensors to the CPU first"
        )
        raise DeviceError(message, code="device.architecture")
