"""Every error that infer-accel raises.

Each class is also the built-in exception it resembles, so ``except ValueError`` keeps working, and each instance
carries a ``code``: a short name of the exact case that stays the same between releases. The page "Errors" of the
documentation explains every code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from infer_accel.lora import Problem

__all__ = [
    "AdapterError",
    "ArgumentError",
    "BackendError",
    "CheckpointError",
    "DTypeError",
    "DeviceError",
    "GradientError",
    "IdError",
    "InferAccelError",
    "IntegrityError",
    "InternalError",
    "LayoutError",
    "OutOfBlocksError",
    "OverlapError",
    "ReadOnlyError",
    "ShapeError",
    "StaleBlockError",
    "StorageError",
    "StoreFullError",
    "TokenizerError",
]


class InferAccelError(Exception):
    """The root of every error of this package.

    Parameters
    ----------
    message
        What came, what is allowed, and what to do.
    code
        The exact case; the class's own ``code`` when it is left out.

    Attributes
    ----------
    code : str
        A name of the exact case, stable between releases, such as ``"shape.rank"``.
    """

    code: str = "error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        # One line, whatever came: logs and shells show it whole.
        super().__init__(" ".join(message.split()) if "\n" in message else message)
        if code is not None:
            self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions are rebuilt from their positional arguments alone: without this, `code` would be lost
        # on the way out of a worker process.
        return (type(self), self.args, self.__dict__)


class ShapeError(InferAccelError, ValueError):
    """Shapes do not fit each other, or not the operation."""

    code = "shape"


class DTypeError(InferAccelError, TypeError):
    """An object is no tensor, or its number format is not served."""

    code = "dtype"


class DeviceError(InferAccelError, ValueError):
    """A tensor lies on another device than the operation works on."""

    code = "device"


class LayoutError(InferAccelError, ValueError):
    """The strides, alignment or byte order of a tensor cannot be served without a copy."""

    code = "layout"


class ReadOnlyError(InferAccelError, ValueError):
    """A target must not be written, its exporter says."""

    code = "read_only"


class OverlapError(InferAccelError, ValueError):
    """A target shares memory with a source in a way that would change the result."""

    code = "overlap"


class GradientError(InferAccelError, RuntimeError):
    """A tensor's gradient is being recorded, which this package would break in silence."""

    code = "gradient"


class ArgumentError(InferAccelError, ValueError):
    """An argument is not among those that are allowed."""

    code = "argument"


class IdError(InferAccelError, IndexError):
    """An id is negative, out of range, or named twice."""

    code = "id"


class OutOfBlocksError(InferAccelError, MemoryError):
    """The pool has fewer free blocks than were asked for; nothing was taken.

    Attributes
    ----------
    needed : int
        Blocks that were asked for.
    free : int
        Blocks that could have been had, those that can be evicted included.
    """

    code = "out_of_blocks"

    def __init__(self, message: str, *, needed: int = 0, free: int = 0, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.needed = needed
        self.free = free


class StoreFullError(InferAccelError, MemoryError):
    """A store of adapters has no room for one more, whatever may be evicted; it is as before.

    Attributes
    ----------
    needed : int
        Bytes that the adapter takes.
    free : int
        Bytes that are free.
    pinned : int
        Bytes of pinned adapters.
    """

    code = "store_full"

    def __init__(
        self, message: str, *, needed: int = 0, free: int = 0, pinned: int = 0, code: str | None = None
    ) -> None:
        super().__init__(message, code=code)
        self.needed = needed
        self.free = free
        self.pinned = pinned


class StaleBlockError(InferAccelError, ValueError):
    """A handle names a block that was freed since: a double free, or a use after one."""

    code = "stale_block"


class AdapterError(InferAccelError, ValueError):
    """An adapter must not be used as it is.

    Attributes
    ----------
    problems : tuple of infer_accel.lora.Problem
        Everything that is wrong with it, where more than the text is known.
    """

    code = "adapter"

    def __init__(self, message: str, *, problems: tuple[Problem, ...] = (), code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.problems = problems


class TokenizerError(InferAccelError, ValueError):
    """A tokenizer file, or a text given to one, cannot be served."""

    code = "tokenizer"


class IntegrityError(InferAccelError, ValueError):
    """Stored bytes are not the bytes that were stored."""

    code = "integrity"


class CheckpointError(InferAccelError, ValueError):
    """A directory is no checkpoint that can be served, or must not become one."""

    code = "checkpoint"


class StorageError(InferAccelError, OSError):
    """A directory, a file or a device cannot serve: it is full, fails, is in use, or is closed."""

    code = "storage"


class BackendError(InferAccelError, ImportError):
    """The backend that ``INFER_ACCEL_BACKEND`` names does not exist, or cannot be loaded."""

    code = "backend"


class InternalError(InferAccelError, RuntimeError):
    """A defect of this package; please report it. The operation may not have finished."""

    code = "internal"
