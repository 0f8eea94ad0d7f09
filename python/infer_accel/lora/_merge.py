"""Merging an adapter into a weight, and undoing it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, overload

from infer_accel import _backend
from infer_accel.errors import ArgumentError
from infer_accel.lora._quantized import merge_codes, refuse_options
from infer_accel.lora._residue import wrap

if TYPE_CHECKING:
    from infer_accel._typing import Tensor, TensorT
    from infer_accel.lora._quantized import QuantizationReport, ScaleRule
    from infer_accel.lora._residue import Residue

__all__ = ["Rounding", "merge_weights", "unmerge_weights"]

_core = _backend.load("lora")

#: How values between two numbers of a format are rounded.
Rounding = Literal["nearest", "stochastic"]


@overload
def merge_weights(
    weight: TensorT,
    lora_A: Tensor,
    lora_B: Tensor,
    *,
    scaling: float = 1.0,
    out: TensorT | None = None,
    rounding: Rounding = "nearest",
    seed: int | None = None,
    magnitude: Tensor | None = None,
    weight_scale: Tensor | None = None,
    global_scale: float | None = None,
    scales: ScaleRule = "grow",
    return_residue: Literal[False] = False,
    return_report: Literal[False] = False,
    num_threads: int | None = None,
) -> TensorT: ...
@overload
def merge_weights(
    weight: TensorT,
    lora_A: Tensor,
    lora_B: Tensor,
    *,
    scaling: float = 1.0,
    out: TensorT | None = None,
    rounding: Rounding = "nearest",
    seed: int | None = None,
    magnitude: Tensor | None = None,
    weight_scale: None = None,
    global_scale: None = None,
    scales: ScaleRule = "grow",
    return_residue: Literal[True],
    return_report: Literal[False] = False,
    num_threads: int | None = None,
) -> tuple[TensorT, Residue]: ...
@overload
def merge_weights(
    weight: TensorT,
    lora_A: Tensor,
    lora_B: Tensor,
    *,
    scaling: float = 1.0,
    out: None = None,
    rounding: Rounding = "nearest",
    seed: None = None,
    magnitude: None = None,
    weight_scale: Tensor,
    global_scale: float | None = None,
    scales: ScaleRule = "grow",
    return_residue: Literal[False] = False,
    return_report: Literal[True],
    num_threads: int | None = None,
) -> tuple[TensorT, QuantizationReport]: ...
def merge_weights(
    weight: TensorT,
    lora_A: Tensor,
    lora_B: Tensor,
    *,
    scaling: float = 1.0,
    out: TensorT | None = None,
    rounding: Rounding = "nearest",
    seed: int | None = None,
    magnitude: Tensor | None = None,
    weight_scale: Tensor | None = None,
    global_scale: float | None = None,
    scales: ScaleRule = "grow",
    return_residue: bool = False,
    return_report: bool = False,
    num_threads: int | None = None,
) -> TensorT | tuple[TensorT, Residue] | tuple[TensorT, QuantizationReport]:
    """Add ``scaling · lora_B @ lora_A`` to a weight, in place.

    The sum is accumulated in float32 in one order for every processor and number of threads and rounded once,
    to the weight's own format; no delta-sized array is made.

    Parameters
    ----------
    weight
        ``[out_features, in_features]`` of float32, float16 or bfloat16, any strides; a transposed view
        (``fan_in_fan_out``) is as fast as a plain one. Written, unless `out` is given. With `weight_scale` it holds
        codes: see there.
    lora_A
        ``[rank, in_features]`` of float32, float16 or bfloat16.
    lora_B
        ``[out_features, rank]`` of float32, float16 or bfloat16; its format may differ from `lora_A`'s.
    scaling
        What the product is multiplied by: ``alpha / rank``, or ``alpha / sqrt(rank)``. Rounded to float32
        once.
    out
        Where the result goes instead: shape of `weight`, and memory of its own (or `weight` itself). It may be
        of another of the three formats: then the result is rounded to that one.
    rounding
        ``"nearest"``, ties to even; or ``"stochastic"``: up or down by chance, so that what is lost to the
        format's grid is right on average. The draw depends on `seed`, row and column and on nothing else.
    seed
        Of ``rounding="stochastic"``, which needs one; 0 to 2⁶⁴ − 1.
    magnitude
        DoRA: ``[out_features]`` or ``[out_features, 1]`` of one of the three formats. Each row of
        ``weight + scaling · lora_B @ lora_A`` is divided by its Euclidean norm and multiplied by its magnitude,
        as PEFT merges such adapters.
    weight_scale
        What the codes of a quantized weight are multiplied by; written in place, together with `weight`, where a
        scale must grow. For codes of ``float8_e4m3fn``, ``float8_e5m2`` or int8: float32, float16 or bfloat16, of
        one element, of ``[out_features]`` or ``[out_features, 1]``, or one for each block of 128 × 128,
        ``[⌈out_features / 128⌉, ⌈in_features / 128⌉]`` (the ``weight_scale_inv`` of DeepSeek's checkpoints). For codes
        of four bits, two in a byte of uint8 (``[out_features, in_features / 2]``, the lower four bits first): uint8 and
        ``[out_features, in_features / 32]`` (MXFP4), ``float8_e4m3fn`` and ``[out_features, in_features / 16]``
        (NVFP4).
        `out`, `rounding`, `seed`, `magnitude` and `return_residue` are refused beside it.
    global_scale
        NVFP4: what all of `weight_scale` is multiplied by; not written.
    scales
        ``"grow"``: a scale stays, unless an element of its block has no code at it any more; then it is doubled until
        all have one (of int8: becomes the one at which the largest element is 127). ``"keep"``: scales stay, and
        what has no code gets the last one.
    return_residue
        Whether to return what :func:`unmerge_weights` needs as well. It costs about another merge.
    return_report
        With `weight_scale`: whether to return what the merge changed and what encoding lost.
    num_threads
        The most threads to use; None is ``INFER_ACCEL_NUM_THREADS``, or the processors of this process. The
        result does not depend on it.

    Returns
    -------
    TensorT
        The object that was written: `weight`, or `out` where it is given.
    residue : Residue
        With ``return_residue=True`` only.
    report : QuantizationReport
        With ``return_report=True`` only.

    Raises
    ------
    ShapeError, DTypeError
        Shapes or formats that do not fit; the message says which.
    ReadOnlyError, OverlapError, LayoutError
        A target that may not be written, that shares memory with an argument that is read, or that names an
        element twice.
    GradientError, DeviceError
        A torch tensor whose gradient is being recorded, or that lies on another device.
    ArgumentError
        A `scaling` that is not finite in float32, a `num_threads` below 1, a `rounding` that is not known, a
        seed without stochastic rounding or the other way round, a residue of a merge with magnitudes, an option that
        quantized weights do not have, a sum that is not finite and so has no code.
    BackendError
        CUDA tensors, and no Triton.
    IntegrityError
        A scale that is not above zero or not finite, or a code that is not a finite number.

    Notes
    -----
    ``sum = 0``, then ``sum = fma(lora_B[i, k], lora_A[k, j], sum)`` for each `k`, then
    ``weight[i, j] = round(fma(scaling, sum, weight[i, j]))``, to nearest even. `k` ascends, except between
    two bfloat16 matrices: 1, 0, 3, 2, … there, the order of the instruction ``vdpbf16ps``. Subnormal numbers
    are kept. A result that is not a number is the positive quiet NaN. Zeros follow IEEE 754: −0.0 plus a
    delta of +0.0 is +0.0. With rank 0 every bit stays.

    With a magnitude, the sums of squares are kept in sixteen float32 parts for each row, column `j` in part
    ``j % 16``, which are added up by halves.

    Codes: ``before = value(code) · scale`` and the sum as above, in float32; then the code nearest to ``sum / scale'``,
    ties to even. An element has no code at a scale where the quotient would round to a number behind the last
    code: above 464 in ``float8_e4m3fn``, from 61440 on in ``float8_e5m2``, outside −128 … 127 in int8, from 7 on in
    codes of four bits. Doubling leaves codes of floats on the grid that they lay on, so that a block whose scale
    grows is not rounded once more as a whole, and a scale that is a power of two stays one.

    CUDA tensors, all on one GPU, take the options `scaling`, `out` and, for codes of eight-bit floats,
    ``weight_scale=`` with ``scales="keep"``. The bits are those of the CPU, except for ranks above 32 where both
    matrices are float16 or both bfloat16: tensor cores sum those in an order of their own, within the bound that the
    page "CUDA tensors" gives. The call is asynchronous, on torch's current stream. Codes and scales are not looked at
    first, as the host would have to wait for that: a code that is no finite number gives NaN.

    Nothing is written when an error is raised. The work is ``out · in · rank`` multiplications (twice that with
    a magnitude or with codes) and one pass over the weight (two over codes); the memory does not grow with the
    weight, except for a residue.

    Examples
    --------
    >>> import numpy as np
    >>> weight = np.array([[1, 2], [3, 4]], np.float32)
    >>> lora_A = np.array([[1, 10]], np.float32)
    >>> lora_B = np.array([[0.5], [-0.5]], np.float32)
    >>> merge_weights(weight, lora_A, lora_B, scaling=2.0)
    array([[ 2., 12.],
           [ 2., -6.]], dtype=float32)

    Codes of eight bits, whose scale is too small for what is added:

    >>> codes, scale = np.array([[10, -20, 100]], np.int8), np.array([0.5], np.float32)
    >>> adapter = np.array([[1, 2, 77]], np.float32), np.array([[1]], np.float32)
    >>> merge_weights(codes, *adapter, weight_scale=scale), scale
    (array([[  6,  -8, 127]], dtype=int8), array([1.], dtype=float32))

    References
    ----------
    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, arXiv:2106.09685.
    Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", 2024, arXiv:2402.09353.
    """
    if getattr(weight, "is_cuda", False):
        return _merge_on_cuda(
            weight,
            lora_A,
            lora_B,
            scaling=scaling,
            out=out,
            weight_scale=weight_scale,
            rounding=rounding != "nearest",
            seed=seed is not None,
            magnitude=magnitude is not None,
            global_scale=global_scale is not None,
            return_residue=return_residue,
            return_report=return_report,
            scales=scales != ("grow" if weight_scale is None else "keep"),
        )
    if weight_scale is not None:
        given = {"out": out, "seed": seed, "magnitude": magnitude}
        came = {name: value is not None for name, value in given.items()}
        came |= {"rounding": rounding != "nearest", "return_residue": return_residue}
        refuse_options(is_quantized=True, **came)
        report = merge_codes(
            weight,
            weight_scale,
            lora_A,
            lora_B,
            scaling=scaling,
            global_scale=global_scale,
            scales=scales,
            return_report=return_report,
            num_threads=num_threads,
        )
        return weight if report is None else (weight, report)
    refuse_options(
        is_quantized=False,
        global_scale=global_scale is not None,
        scales=scales != "grow",
        return_report=return_report,
    )
    residue = _core.merge_weights(
        weight,
        lora_A,
        lora_B,
        scaling=scaling,
        out=out,
        rounding=rounding,
        seed=seed,
        magnitude=magnitude,
        return_residue=return_residue,
        num_threads=num_threads,
    )
    target = weight if out is None else out
    return (target, wrap(residue)) if return_residue else target


def _merge_on_cuda(
    weight: TensorT,
    lora_A: Tensor,
    lora_B: Tensor,
    *,
    scaling: float,
    out: TensorT | None,
    weight_scale: Tensor | None,
    scales: bool,
    **refused: bool,
) -> TensorT:
    """Merge into a CUDA tensor, unless an option came that only the CPU has."""
    from infer_accel.kernels import merge_weights as cuda  # noqa: PLC0415 - with the first CUDA tensor, not before
    from infer_accel.kernels._arguments import refuse_options as refuse  # noqa: PLC0415

    name = 'scales="grow" (pass scales="keep")' if weight_scale is not None else "scales"
    refuse("merge_weights", **refused, **{name: scales}, out=out is not None and weight_scale is not None)
    cuda.merge_weights(weight, lora_A, lora_B, scaling=scaling, out=out, weight_scale=weight_scale)
    return weight if out is None else out


def unmerge_weights(
    weight: TensorT,
    lora_A: Tensor,
    lora_B: Tensor,
    *,
    scaling: float = 1.0,
    residue: Residue,
    out: TensorT | None = None,
    num_threads: int | None = None,
) -> TensorT:
    """Give back the bits that a weight had before a merge, in place.

    What the merge added is computed again, bit for bit, and taken away; the exceptions that `residue` lists are
    put right, so that −0.0 and the payloads of NaN come back too.

    Parameters
    ----------
    weight
        ``[out_features, in_features]``: the merged weight, any strides. Written, unless `out` is given.
    lora_A, lora_B, scaling
        Those of the merge: the same bits in the same formats.
    residue
        What ``merge_weights(..., return_residue=True)`` returned.
    out
        Where the base goes instead: of the format that the base had, and memory of its own. It is needed where
        the merge went to another format.
    num_threads
        The most threads to use; None is ``INFER_ACCEL_NUM_THREADS``, or the processors of this process.

    Returns
    -------
    TensorT
        The object that was written: `weight`, or `out` where it is given.

    Raises
    ------
    IntegrityError
        A residue of another adapter, another weight, or another revision of the arithmetic.
    ShapeError, DTypeError
        Shapes or formats that do not fit each other, or not the residue.
    ReadOnlyError, OverlapError, LayoutError, GradientError, DeviceError, ArgumentError
        As :func:`merge_weights`.

    Notes
    -----
    Nothing is written when an error is raised: the weight is read once to see whether it is the merged one. The
    rest costs as much as a merge.

    Examples
    --------
    >>> import numpy as np
    >>> weight = np.array([[1.0, -0.0]], np.float32)
    >>> adapter = np.array([[0.1, 0.0]], np.float32), np.array([[0.3]], np.float32)
    >>> merged, residue = merge_weights(weight, *adapter, return_residue=True)
    >>> merged
    array([[1.03, 0.  ]], dtype=float32)
    >>> unmerge_weights(weight, *adapter, residue=residue)
    array([[ 1., -0.]], dtype=float32)
    """
    try:
        core = residue._core  # noqa: SLF001 - the backend's own object
    except AttributeError:
        came = type(residue).__name__
        message = f"{came} came as a residue; pass what merge_weights(..., return_residue=True) returned"
        raise ArgumentError(message, code="argument.residue") from None
    _core.unmerge_weights(
        weight,
        lora_A,
        lora_B,
        scaling=scaling,
        residue=core,
        out=out,
        num_threads=num_threads,
    )
    return weight if out is None else out
