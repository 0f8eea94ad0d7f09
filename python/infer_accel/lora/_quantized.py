"""What merging into a quantized weight did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from infer_accel import _backend
from infer_accel._numbers import real
from infer_accel.errors import ArgumentError

if TYPE_CHECKING:
    from infer_accel._typing import Tensor

__all__ = ["QuantizationReport", "ScaleRule", "merge_codes", "refuse_options"]

_core = _backend.load("lora")

#: What becomes of the scales of a quantized weight.
ScaleRule = Literal["grow", "keep"]


@dataclass(frozen=True, slots=True)
class QuantizationReport:
    """What a merge into a quantized weight did, in numbers, not in codes.

    ``merge_weights(..., weight_scale=..., return_report=True)`` returns one.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_accel.lora import merge_weights
    >>> weight, scale = np.array([[10, -20, 100]], np.int8), np.array([0.5], np.float32)
    >>> adapter = np.array([[1, 2, 3]], np.float32), np.array([[0.3]], np.float32)
    >>> _, report = merge_weights(weight, *adapter, weight_scale=scale, return_report=True)
    >>> report.changed, report.saturated, report.scales_changed, round(report.largest_error, 3)
    (3, 0, 0, 0.2)
    """

    #: Elements of the weight, and those among them whose number is another than before.
    elements: int
    changed: int
    #: Frobenius norm of what was to be added, its largest magnitude, and how much of it is left: 1.0 is all of it, 0.0
    #: nothing; None where nothing was to be added.
    delta_norm: float
    survived: float | None
    largest_delta: float
    #: Elements beyond the last code, which got that one: none, as long as scales may grow.
    saturated: int
    #: Scales of the weight, and those among them that are others than before.
    scales: int
    scales_changed: int
    #: What encoding lost: the stored number against the sum before it was rounded to a code.
    rms_error: float
    largest_error: float


def merge_codes(
    weight: Tensor,
    weight_scale: Tensor,
    lora_A: Tensor,
    lora_B: Tensor,
    *,
    scaling: float,
    global_scale: float | None,
    scales: ScaleRule,
    return_report: bool,
    num_threads: int | None,
) -> QuantizationReport | None:
    """Merge into codes, and wrap what the backend tells."""
    found = _core.merge_quantized(
        weight,
        weight_scale,
        lora_A,
        lora_B,
        scaling=scaling,
        global_scale=None if global_scale is None else real(global_scale),
        scales=scales,
        return_report=return_report,
        num_threads=num_threads,
    )
    if found is None:
        return None
    return QuantizationReport(
        elements=found.elements,
        changed=found.changed,
        delta_norm=found.delta_norm,
        survived=found.survived,
        largest_delta=found.largest_delta,
        saturated=found.saturated,
        scales=found.scales,
        scales_changed=found.scales_changed,
        rms_error=found.rms_error,
        largest_error=found.largest_error,
    )


def refuse_options(*, is_quantized: bool, **came: bool) -> None:
    """Refuse options that quantized weights do not have, or that only these have."""
    for option, did_come in came.items():
        if did_come and is_quantized:
            message = f"{option}= came with weight_scale=; a merge into codes does not take it: leave it out"
            raise ArgumentError(message, code="argument.quantized")
        if did_come:
            message = f"{option}= came without weight_scale=; it belongs to quantized weights: leave it out"
            raise ArgumentError(message, code="argument.quantized")
