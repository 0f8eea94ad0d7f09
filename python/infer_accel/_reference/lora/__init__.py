"""The specification of ``infer_accel.lora``: every rounding in the order in which it happens."""

from __future__ import annotations

from infer_accel._reference.lora._adapter import Adapter, combine
from infer_accel._reference.lora._apply import AdapterStack, apply_adapter, apply_adapters
from infer_accel._reference.lora._combine import Term, combine_module, dare_mask
from infer_accel._reference.lora._merge import merge_many, merge_weights, unmerge_weights
from infer_accel._reference.lora._quantized import QuantizationReport, merge_quantized
from infer_accel._reference.lora._residue import Residue
from infer_accel._reference.lora._store import AdapterStore

__all__ = [
    "Adapter",
    "AdapterStack",
    "AdapterStore",
    "QuantizationReport",
    "Residue",
    "Term",
    "apply_adapter",
    "apply_adapters",
    "combine",
    "combine_module",
    "dare_mask",
    "merge_many",
    "merge_quantized",
    "merge_weights",
    "unmerge_weights",
]
