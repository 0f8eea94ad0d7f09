"""Applying adapters to activations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infer_accel import _backend
from infer_accel._numbers import real
from infer_accel.errors import ArgumentError, DeviceError, ShapeError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from infer_accel._typing import Tensor, TensorT

    Product = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, float]

__all__ = ["AdapterStack", "apply_adapter", "apply_adapters"]

_core = _backend.load("lora")

_PRODUCT_RULE = (
    "an adapter of a layer is (lora_A, lora_B) or (lora_A, lora_B, scaling); for a layer of several slices a list of "
    "these, and None where it leaves something alone"
)


def apply_adapter(
    x: Tensor,
    lora_A: Tensor,
    lora_B: Tensor,
    *,
    scaling: float = 1.0,
    out: TensorT,
    num_threads: int | None = None,
) -> TensorT:
    """Add ``scaling · (x @ lora_A.T) @ lora_B.T`` to the output of a layer.

    What lies between the two products stays in float32, and `out` is rounded once. The result of a token has
    the same bits whatever batch it comes in, whatever the number of threads.

    Parameters
    ----------
    x
        ``[tokens, in_features]`` of float32, float16 or bfloat16, any strides.
    lora_A
        ``[rank, in_features]`` of float32, float16 or bfloat16.
    lora_B
        ``[out_features, rank]`` of float32, float16 or bfloat16.
    scaling
        What the product is multiplied by: ``alpha / rank``, or ``alpha / sqrt(rank)``. Rounded to float32
        once.
    out
        ``[tokens, out_features]`` of float32, float16 or bfloat16, any strides: what the layer itself
        computed. Added to. The formats of the four may differ.
    num_threads
        The most threads to use; None is ``INFER_ACCEL_NUM_THREADS``, or the processors of this process.

    Returns
    -------
    TensorT
        `out` itself.

    Raises
    ------
    ShapeError, DTypeError
        Shapes or formats that do not fit; the message says which.
    ReadOnlyError, OverlapError, LayoutError
        An `out` that may not be written, that shares memory with another argument, or that names an element
        twice.
    GradientError, DeviceError
        A torch tensor whose gradient is being recorded, or that lies on another device.
    ArgumentError
        A `scaling` that is not finite in float32, or a `num_threads` below 1.
    BackendError
        CUDA tensors, and no Triton.

    Notes
    -----
    On CUDA all four lie on one GPU, and the features of a token lie one after the other in `x` and `out`. The call is
    asynchronous, on torch's current stream, and its bound is the one that the page "CUDA tensors" gives; what is below
    holds for the CPU. To apply the same adapter often, or several, make an :class:`AdapterStack`.

    Let ``m = |scaling| · |x| @ |lora_A|.T @ |lora_B|.T``. Short of overflow and underflow, the result differs
    from the exact one, ``y``, by at most ``(⌈in_features / 16⌉ + rank + 6) · 2⁻²⁴ · 1.01 m + (u + 2⁻²³) ·
    |y|``, where ``u`` is 2⁻²⁴, 2⁻¹¹ or 2⁻⁸ for an `out` of float32, float16 or bfloat16. The order of
    accumulation is part of ``infer_accel.reference.lora``.

    Nothing is written when an error is raised. The work is ``tokens · rank · (in + out)`` multiplications.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[1, 2]], np.float32)
    >>> out = np.full((1, 3), 0.5, np.float32)
    >>> apply_adapter(x, np.ones((1, 2), np.float32), np.array([[1], [0], [-1]], np.float32), out=out)
    array([[ 3.5,  0.5, -2.5]], dtype=float32)
    """
    if getattr(x, "is_cuda", False):
        from infer_accel.kernels import apply_adapters as cuda  # noqa: PLC0415 - with the first CUDA tensor, not before

        cuda.apply_adapter(x, lora_A, lora_B, scaling=scaling, out=out)
        return out
    _core.apply_adapter(x, lora_A, lora_B, scaling=scaling, out=out, num_threads=num_threads)
    return out


class AdapterStack:
    """The adapters of one layer, packed once for :func:`apply_adapters`.

    Adapters may differ in rank, scaling and number format. Packing copies: the arrays may change or go away
    afterwards. A stack never changes; threads share it.

    Parameters
    ----------
    adapters
        One entry for each adapter: ``(lora_A, lora_B)`` or ``(lora_A, lora_B, scaling)``, where `lora_A` is
        ``[rank, in_features]`` and `lora_B` is ``[out_features, rank]``, each float32, float16 or bfloat16 of
        any strides, and `scaling` is 1.0 where it is left out; or None for an adapter that leaves this layer
        alone. For a layer of fused outputs (``qkv_proj``, ``gate_up_proj``) an entry is a list of these, one for
        each slice of the outputs, None where the adapter leaves a slice alone; an adapter that was trained on the
        fused layer itself has one pair for all of them. CUDA tensors make a stack on their GPU.
    slices
        Outputs of each slice, in order. Where it is left out, the adapters tell: there is one slice, or as many
        as the longest list has.
    ids
        What tokens name the adapters by: integers from 0 on, each once. Where it is left out: 0, 1, 2, …

    Attributes
    ----------
    ids : tuple of int
        The ids, ascending.
    ranks : tuple of int
        The largest rank of each adapter, in the order of `ids`; 0 for one that leaves the layer alone.
    in_features : int or None
        Features of a token; None where all adapters leave the layer alone.
    slices : tuple of int or None
        Outputs of each slice; None where nothing tells.
    core : object
        What the backend made of them.
    nbytes : int
        Bytes of the packed matrices: those of the arrays, and a little to fill up panels.

    Raises
    ------
    ShapeError, DTypeError
        Matrices or slices that do not fit each other, or formats that are not served.
    IdError
        An id that is negative or comes twice.
    ArgumentError
        A scaling that is not finite in float32.

    Examples
    --------
    >>> import numpy as np
    >>> one = np.ones((1, 4), np.float32), np.ones((6, 1), np.float32)
    >>> two = np.ones((8, 4), np.float16), np.ones((6, 8), np.float16), 0.5
    >>> stack = AdapterStack([one, two, None])
    >>> stack.ids, stack.ranks, stack.in_features, stack.slices
    ((0, 1, 2), (1, 8, 0), 4, (6,))
    """

    __slots__ = ("core",)

    def __init__(
        self,
        adapters: Sequence[Product | Sequence[Product | None] | None],
        *,
        slices: Sequence[int] | None = None,
        ids: Sequence[int] | None = None,
    ) -> None:
        names = list(range(len(adapters)) if ids is None else ids)
        if len(names) != len(adapters):
            message = f"{len(names)} ids came for {len(adapters)} adapters; each needs one"
            raise ShapeError(message, code="shape.adapter_ids")
        widths = None if slices is None else list(slices)
        products = [products_of(entry) for entry in adapters]
        if any(product and getattr(product[0], "is_cuda", False) for entry in products for product in entry):
            from infer_accel.kernels._stack import CudaStack  # noqa: PLC0415 - with the first CUDA tensor, not before

            self.core: Any = CudaStack(products, names, widths)
        else:
            self.core = _core.AdapterStack(products, names, widths)

    @classmethod
    def from_core(cls, core: object) -> AdapterStack:
        """Return the stack of an object of the backend."""
        stack = cls.__new__(cls)
        stack.core = core
        return stack

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids, ascending."""
        return tuple(self.core.ids)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The largest rank of each adapter."""
        return tuple(self.core.ranks)

    @property
    def in_features(self) -> int | None:
        """Features of a token."""
        features: int | None = self.core.in_features
        return features

    @property
    def slices(self) -> tuple[int | None, ...]:
        """Outputs of each slice."""
        return tuple(self.core.slices)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed matrices."""
        count: int = self.core.nbytes
        return count

    def __len__(self) -> int:
        """Return the number of adapters."""
        return len(self.core.ids)

    def __repr__(self) -> str:
        """Return what the stack holds, in short."""
        return (
            f"<AdapterStack: {len(self)} adapters, in_features={self.in_features}, slices={self.slices}, "
            f"{self.nbytes} bytes>"
        )


def products_of(
    entry: Product | Sequence[Product | None] | None, count: int | None = None
) -> list[tuple[Tensor, Tensor, float] | None]:
    """Return the products of one adapter, each with its scaling; exactly `count` of them where that is given."""
    if not isinstance(entry, list | tuple | None):
        raise ArgumentError(_PRODUCT_RULE, code="argument.matrices")
    parts: Sequence[Any]
    parts = [] if entry is None else [entry] if entry and hasattr(entry[0], "shape") else entry
    products: list[tuple[Tensor, Tensor, float] | None] = []
    for part in parts:
        if part is None and count is None:
            products.append(None)
        elif isinstance(part, tuple | list) and len(part) in {2, 3}:
            products.append((part[0], part[1], real(part[2]) if len(part) == 3 else 1.0))
        else:
            raise ArgumentError(_PRODUCT_RULE, code="argument.matrices")
    if count is not None and len(products) != count:
        raise ArgumentError(_PRODUCT_RULE, code="argument.matrices")
    return products


def apply_adapters(
    x: Tensor,
    stack: AdapterStack,
    adapter_ids: Tensor | Sequence[int],
    *,
    out: TensorT,
    num_threads: int | None = None,
) -> TensorT:
    """Add to each token's outputs what its own adapter makes of it: one call for a layer and a mixed batch.

    For every token ``t`` and every slice of the outputs, ``out[t] += scaling · (x[t] @ lora_A.T) @ lora_B.T``
    with the matrices of the adapter that ``adapter_ids[t]`` names. Each result has the bits that
    :func:`apply_adapter` gives for this token alone: it depends neither on the batch nor on the number of
    threads. A NaN in an adapter or in a token reaches the outputs of that token and no other.

    Parameters
    ----------
    x
        ``[tokens, in_features]`` of float32, float16 or bfloat16, any strides.
    stack
        The adapters of the layer.
    adapter_ids
        One integer for each token, an array, a tensor or a list; −1 is for none: every bit of that token's
        outputs stays. Any order; tokens of one adapter are gathered, so that each matrix is read once for six of
        them. Copied before it is checked.
    out
        ``[tokens, out_features]`` of float32, float16 or bfloat16, any strides: what the layer itself computed.
        Added to.
    num_threads
        The most threads to use; None is ``INFER_ACCEL_NUM_THREADS``, or the processors of this process.

    Returns
    -------
    TensorT
        `out` itself.

    Raises
    ------
    ShapeError, DTypeError
        Shapes or formats that do not fit; as many ids as tokens are needed.
    IdError
        An id that the stack does not have.
    ReadOnlyError, OverlapError, LayoutError
        An `out` that may not be written, that shares memory with `x`, or that names an element twice.
    GradientError, DeviceError
        A torch tensor whose gradient is being recorded, or that lies on another device.
    ArgumentError
        A `num_threads` below 1.
    BackendError
        CUDA tensors, and no Triton.

    Notes
    -----
    On CUDA all of it lies on one GPU: make the stack of CUDA tensors. The call is asynchronous, on torch's current
    stream; a token's result does not depend on its batch there either, but has another bound: see the page "CUDA
    tensors". Ids on the GPU, which graphs need, are not checked: one that the stack does not have counts as −1.

    Nothing is written when an error is raised. The bound of :func:`apply_adapter` holds for each token. The work
    is ``Σ rank · (in + out)`` multiplications over the tokens; where each adapter has a token or two, passing
    over its matrices is what takes the time.

    Examples
    --------
    >>> import numpy as np
    >>> one = np.ones((1, 2), np.float32), np.ones((3, 1), np.float32)
    >>> two = np.ones((1, 2), np.float32), -np.ones((3, 1), np.float32), 0.5
    >>> x = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
    >>> apply_adapters(x, AdapterStack([one, two]), [1, -1, 0], out=np.zeros((3, 3), np.float32))
    array([[-1.5, -1.5, -1.5],
           [ 0. ,  0. ,  0. ],
           [11. , 11. , 11. ]], dtype=float32)

    References
    ----------
    Chen et al., "Punica: Multi-Tenant LoRA Serving", 2023, arXiv:2310.18547.
    """
    if getattr(x, "is_cuda", False):
        from infer_accel.kernels import apply_adapters as cuda  # noqa: PLC0415 - with the first CUDA tensor, not before

        cuda.apply_adapters(x, stack.core, adapter_ids, out=out)
        return out
    try:
        core = stack.core
    except AttributeError:
        message = (
            f"{type(stack).__name__} came as a stack; make an AdapterStack of the layer's adapters first"
        )
        raise ArgumentError(message, code="argument.stack") from None
    if getattr(core, "device", None) is not None:
        message = f"a stack on {core.device} came for tokens of the host; make a stack of tensors of the host"
        raise DeviceError(message, code="device.mixed")
    _core.apply_adapters(x, core, adapter_ids, out=out, num_threads=num_threads)
    return out
