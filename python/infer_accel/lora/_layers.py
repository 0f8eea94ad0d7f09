"""What an adapter is made of, where each delta goes in a base, and what can be wrong with either."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from infer_accel.errors import DTypeError

if TYPE_CHECKING:
    from types import ModuleType

    from numpy.typing import NDArray

    Array = NDArray[np.generic]
    Place = tuple[int, tuple[int, int], tuple[int, int]]

__all__ = ["AdapterLayer", "AdapterLedger", "AdapterUpdate", "Problem", "array_of", "layer_of"]


class CoreTensor(Protocol):
    """The bytes of a tensor, by the buffer protocol."""

    dtype: str
    shape: list[int]
    nbytes: int


class CoreLayer(Protocol):
    path: str
    component: str
    kind: str
    rank: int
    alpha: float
    scaling: float
    fan_in_fan_out: bool
    lora_a: CoreTensor
    lora_b: CoreTensor
    magnitude: CoreTensor | None
    bias: CoreTensor | None


class CoreUpdate(Protocol):
    target: str
    source: str
    layer: int
    place: Place
    a: tuple[CoreTensor, Place]
    b: tuple[CoreTensor, Place]
    scaling: float
    magnitude: CoreTensor | None


class CoreLedger(Protocol):
    updates: list[CoreUpdate]
    exchanges: list[tuple[str, CoreTensor]]
    untied: tuple[str, str] | None
    problems: list[tuple[str, str, str]]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with an adapter.

    Attributes
    ----------
    code : str
        The kind, stable between releases, such as ``"adapter.not_finite"``.
    tensor : str
        The tensor that has it, by its name in the file; or a module, a field of the configuration, a file;
        empty where it is the whole.
    message : str
        What came, what is allowed, what to do.

    Examples
    --------
    >>> print(Problem("adapter.rank", "r", "a rank of 0 came; 1 to 16384 are allowed"))
    r: a rank of 0 came; 1 to 16384 are allowed
    """

    code: str
    tensor: str
    message: str

    def __str__(self) -> str:
        # Names come from files: escaped, so that none can play with a terminal.
        name = self.tensor.encode("unicode_escape").decode("ascii")
        return f"{name}: {self.message}" if name else self.message


@dataclass(frozen=True, slots=True)
class AdapterLayer:
    """A low-rank update of one module. Its arrays are views of the adapter's memory: read-only, no copies.

    Attributes
    ----------
    path : str
        The module in the base, such as ``model.layers.0.self_attn.q_proj``; with underscores for dots in a file
        of kohya's.
    component : str
        The part of a pipeline that the module belongs to, such as ``unet``; empty for an ordinary model.
    kind : str
        ``linear``, ``embedding``, ``convolution`` or ``experts``.
    rank : int
        The rank; for experts that of each.
    alpha : float
        What the scaling is made from.
    scaling : float
        ``alpha / rank``, or ``alpha / sqrt(rank)`` of rsLoRA.
    fan_in_fan_out : bool
        Whether the configuration says that the weight is stored ``[in, out]``; the base's shape has the last
        word.
    lora_A : array
        ``[rank, in]``; ``[rank, in, kernel…]`` of a convolution, ``[rank, rows]`` of an embedding,
        ``[experts · rank, in]``.
    lora_B : array
        ``[out, rank]``; ``[out, rank, 1…]`` of a convolution, ``[out, rank · experts]``.
    magnitude : array or None
        ``[out]`` of DoRA.
    bias : array or None
        ``[out]`` of ``lora_bias``: `scaling` times this is added to the module's bias.
    """

    path: str
    component: str
    kind: str
    rank: int
    alpha: float
    scaling: float
    fan_in_fan_out: bool
    dtype: str
    _tensors: dict[str, CoreTensor] = field(repr=False)

    @property
    def lora_A(self) -> Array:  # noqa: N802 - the field's name
        """The first factor."""
        return array_of(self._tensors["lora_A"])

    @property
    def lora_B(self) -> Array:  # noqa: N802 - the field's name
        """The second factor."""
        return array_of(self._tensors["lora_B"])

    @property
    def magnitude(self) -> Array | None:
        """The lengths of rows of DoRA."""
        return array_of(self._tensors["magnitude"]) if "magnitude" in self._tensors else None

    @property
    def bias(self) -> Array | None:
        """What is added to the module's bias."""
        return array_of(self._tensors["bias"]) if "bias" in self._tensors else None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor by its name, without making an array."""
        return {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self._tensors.values())


@dataclass(frozen=True, slots=True)
class AdapterUpdate:
    """One low-rank update of one tensor of a base: ``view(tensor) += scaling · lora_B @ lora_A``.

    Layers of every kind come in this form, a parameter of many experts as one update for each of them.

    Attributes
    ----------
    target : str
        The tensor of the merged checkpoint that changes.
    source : str
        The tensor of the base that it starts from: `target`, except for a head that shared its weight.
    layer : str
        The module, as the adapter names it.
    shape : tuple of int
        ``(out, in)``.
    scaling : float
        What the product is multiplied by.
    """

    target: str
    source: str
    layer: str
    shape: tuple[int, int]
    scaling: float
    _core: CoreUpdate = field(repr=False)

    @property
    def lora_A(self) -> Array:  # noqa: N802 - the field's name
        """``[rank, in]``, read-only."""
        return _matrix(*self._core.a)

    @property
    def lora_B(self) -> Array:  # noqa: N802 - the field's name
        """``[out, rank]``, read-only."""
        return _matrix(*self._core.b)

    @property
    def magnitude(self) -> Array | None:
        """``[out]`` of DoRA: the length that each row of the sum gets."""
        return None if self._core.magnitude is None else array_of(self._core.magnitude)

    def view(self, tensor: Array) -> Array:
        """Return the matrix ``[out, in]`` that is updated, as a view of the base's whole tensor.

        Parameters
        ----------
        tensor
            The tensor :attr:`source` of the base: contiguous, in the base's shape.

        Returns
        -------
        array
            Shares the memory of `tensor`; transposed where the weight is stored so.
        """
        offset, shape, strides = self._core.place
        flat = tensor.reshape(-1)[offset:]
        steps = tuple(step * tensor.itemsize for step in strides)
        return np.lib.stride_tricks.as_strided(flat, shape, steps)


@dataclass(frozen=True, slots=True)
class AdapterLedger:
    """Where every delta of an adapter goes: it is in `updates` or `replacements`, or named in `problems`.

    Attributes
    ----------
    updates : list of AdapterUpdate
        Low-rank updates, ordered by target.
    replacements : dict of str to array
        Tensors that are replaced as a whole (before any update of the same target).
    untied : tuple of str, or None
        Embedding and head that shared one tensor in the base and no longer do: the merged checkpoint must store
        the head by itself.
    problems : list of Problem
        What has no place in the base, and whatever else does not fit.
    """

    updates: list[AdapterUpdate]
    replacements: dict[str, Array]
    untied: tuple[str, str] | None
    problems: list[Problem]


def layer_of(core: CoreLayer) -> AdapterLayer:
    named = {"lora_A": core.lora_a, "lora_B": core.lora_b, "magnitude": core.magnitude, "bias": core.bias}
    return AdapterLayer(
        path=core.path,
        component=core.component,
        kind=core.kind,
        rank=core.rank,
        alpha=core.alpha,
        scaling=core.scaling,
        fan_in_fan_out=core.fan_in_fan_out,
        dtype=core.lora_a.dtype,
        _tensors={name: tensor for name, tensor in named.items() if tensor is not None},
    )


def array_of(tensor: CoreTensor) -> Array:
    """Return a read-only array over the memory of a tensor, which it keeps alive."""
    flat = np.frombuffer(memoryview(tensor), np.uint8)  # type: ignore[arg-type]
    return flat.view(_numpy_dtype(tensor.dtype)).reshape(tensor.shape)


def _matrix(tensor: CoreTensor, place: Place) -> Array:
    """Return a part of a tensor as a read-only matrix."""
    offset, shape, strides = place
    flat = array_of(tensor).reshape(-1)[offset:]
    steps = tuple(step * flat.itemsize for step in strides)
    return np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False)


def _numpy_dtype(name: str) -> np.dtype[np.generic]:
    if name != "bfloat16":
        return np.dtype(name)
    dtype: np.dtype[np.generic] = np.dtype(_formats().bfloat16)
    return dtype


@functools.cache
def _formats() -> ModuleType:
    """Return the package that gives numpy its bfloat16."""
    try:
        import ml_dtypes  # noqa: PLC0415 - optional, and needed for this format alone
    except ImportError:
        message = "numpy has no bfloat16 of its own: install ml_dtypes to see these weights as arrays"
        raise DTypeError(message, code="dtype.ml_dtypes") from None
    module: ModuleType = ml_dtypes
    return module
