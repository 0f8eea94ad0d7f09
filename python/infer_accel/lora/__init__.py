"""LoRA adapters on a CPU: merged into weights, and applied to activations, at the speed of memory.

Every array argument takes numpy arrays (``ml_dtypes`` formats included), torch tensors and whatever else
exports DLPack, without a copy and with any strides. Results are defined to the bit;
``infer_accel.reference.lora`` is that definition in numpy.

Examples
--------
>>> import numpy as np
>>> from infer_accel import lora
>>> weight = np.zeros((2, 3), np.float32)
>>> lora.merge_weights(weight, np.ones((1, 3), np.float32), np.ones((2, 1), np.float32), scaling=0.5)
array([[0.5, 0.5, 0.5],
       [0.5, 0.5, 0.5]], dtype=float32)
"""

from __future__ import annotations

from infer_accel.lora._adapter import Adapter
from infer_accel.lora._apply import AdapterStack, apply_adapter, apply_adapters
from infer_accel.lora._checkpoint import merge_checkpoint, unmerge_checkpoint
from infer_accel.lora._combine import combine
from infer_accel.lora._layers import AdapterLayer, AdapterLedger, AdapterUpdate, Problem
from infer_accel.lora._many import merge_many
from infer_accel.lora._merge import merge_weights, unmerge_weights
from infer_accel.lora._module import LoraModel
from infer_accel.lora._quantized import QuantizationReport
from infer_accel.lora._report import (
    MergedAdapter,
    MergeReport,
    OutputFile,
    Quantization,
    TensorChange,
    UnmergeReport,
    Verification,
)
from infer_accel.lora._residue import Residue
from infer_accel.lora._store import AdapterStore, StoredAdapter, StoreStats

__all__ = [
    "Adapter",
    "AdapterLayer",
    "AdapterLedger",
    "AdapterStack",
    "AdapterStore",
    "AdapterUpdate",
    "LoraModel",
    "MergeReport",
    "MergedAdapter",
    "OutputFile",
    "Problem",
    "Quantization",
    "QuantizationReport",
    "Residue",
    "StoreStats",
    "StoredAdapter",
    "TensorChange",
    "UnmergeReport",
    "Verification",
    "apply_adapter",
    "apply_adapters",
    "combine",
    "merge_checkpoint",
    "merge_many",
    "merge_weights",
    "unmerge_checkpoint",
    "unmerge_weights",
]
