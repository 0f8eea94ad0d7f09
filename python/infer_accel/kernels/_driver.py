"""The CUDA driver's own copies, through ``cuda-bindings``: what one call is to move, as lists of addresses."""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Any, Protocol

from infer_accel.errors import DeviceError

if TYPE_CHECKING:
    from types import ModuleType

    import numpy as np
    import numpy.typing as npt

__all__ = ["LARGEST_BATCH", "CopyDriver", "Driver", "copy_driver", "device_of_stream"]

#: Copies that one call of the driver is given: beyond that its queue blocks the caller.
LARGEST_BATCH = 4096
#: The first driver with ``cuMemcpyBatchAsync``.
_BATCH_VERSION = 12080


class CopyDriver(Protocol):
    """What moves bytes between addresses, in the order of a stream."""

    #: Whether `copy` works on the legacy default stream.
    takes_default_stream: bool

    def copy(
        self,
        sources: npt.NDArray[np.int64],
        targets: npt.NDArray[np.int64],
        sizes: npt.NDArray[np.int64],
        stream: int,
    ) -> None:
        """Copy ``sizes[i]`` bytes from ``sources[i]`` to ``targets[i]``, at most `LARGEST_BATCH` of them."""


class Driver:
    """The driver itself: one batched call where it knows them, a loop of single copies elsewhere."""

    def __init__(self, module: Any, version: int) -> None:  # noqa: ANN401 - cuda.bindings.driver
        self._module = module
        self._batches = version >= _BATCH_VERSION and hasattr(module, "cuMemcpyBatchAsync")
        self.takes_default_stream = not self._batches
        if self._batches:
            self._attributes = module.CUmemcpyAttributes()
            self._attributes.srcAccessOrder = module.CUmemcpySrcAccessOrder.CU_MEMCPY_SRC_ACCESS_ORDER_STREAM

    def copy(
        self,
        sources: npt.NDArray[np.int64],
        targets: npt.NDArray[np.int64],
        sizes: npt.NDArray[np.int64],
        stream: int,
    ) -> None:
        """Copy ``sizes[i]`` bytes from ``sources[i]`` to ``targets[i]``."""
        pointer, handle = self._module.CUdeviceptr, self._module.CUstream(stream)
        fro, to = [pointer(address) for address in sources.tolist()], [pointer(at) for at in targets.tolist()]
        lengths = sizes.tolist()
        if self._batches:
            attributes = [self._attributes]
            result = self._module.cuMemcpyBatchAsync(to, fro, lengths, len(to), attributes, [0], 1, handle)
            _require_success(result)
            return
        for target, source, length in zip(to, fro, lengths, strict=True):
            _require_success(self._module.cuMemcpyAsync(target, source, length, handle))


def _require_success(result: tuple[Any, ...]) -> None:
    if int(result[0]) != 0:
        message = f"the CUDA driver refused a copy between host and device: {result[0]}"
        raise DeviceError(message, code="device.driver")


@functools.cache
def _bindings() -> ModuleType | None:
    """Return ``cuda.bindings.driver`` if it is installed and finds a driver."""
    try:
        module = importlib.import_module("cuda.bindings.driver")
        result, _ = module.cuDriverGetVersion()
    except (ImportError, RuntimeError, OSError):
        return None
    return module if int(result) == 0 else None


@functools.cache
def copy_driver() -> CopyDriver | None:
    """Return the driver, or None where ``cuda-bindings`` is not installed."""
    module = _bindings()
    return None if module is None else Driver(module, int(module.cuDriverGetVersion()[1]))


def device_of_stream(handle: int) -> int | None:
    """Return the device that a stream belongs to, None where the driver cannot be asked."""
    module = _bindings()
    # 0, 1 and 2 are the default streams, which every device has.
    if module is None or handle in {0, 1, 2} or not hasattr(module, "cuStreamGetDevice"):
        return None
    result, *device = module.cuStreamGetDevice(module.CUstream(handle))
    return int(device[0]) if int(result) == 0 else None
