"""Merge a LoRA adapter into a bfloat16 weight, in place, and see that nothing else is needed.

Run it with ``python examples/merge_weights.py``; it needs numpy, and uses torch where that is installed.
"""

from __future__ import annotations

import numpy as np

from infer_accel import lora, reference

RANK, ALPHA = 16, 32
rng = np.random.default_rng(0)

# A float32 layer: lora_A is [rank, in_features], lora_B is [out_features, rank], as PEFT stores them.
weight = rng.normal(0, 0.02, (512, 768)).astype(np.float32)
lora_A = rng.normal(0, 0.02, (RANK, 768)).astype(np.float32)
lora_B = rng.normal(0, 0.02, (512, RANK)).astype(np.float32)
delta = ALPHA / RANK * (lora_B @ lora_A)
merged = weight.copy()
lora.merge_weights(merged, lora_A, lora_B, scaling=ALPHA / RANK)
print("largest distance from W + scaling · B @ A in numpy:", float(np.abs(merged - (weight + delta)).max()))

# The result is defined to the bit, by code that can be read.
specified = weight.copy()
reference.lora.merge_weights(specified, lora_A, lora_B, scaling=ALPHA / RANK)
print("elements that differ from the specification:", int((merged != specified).sum()))

# Any strides: the key projection of a fused qkv weight, and a layer that is stored as [in, out].
qkv = np.zeros((3 * 512, 768), np.float32)
lora.merge_weights(qkv[512:1024], lora_A, lora_B)
stored = np.zeros((768, 512), np.float32)
lora.merge_weights(stored.T, lora_A, lora_B)
print("the transposed layer got the same numbers:", np.array_equal(stored.T, qkv[512:1024]))

# torch tensors, bfloat16 among them, are written where they lie.
try:
    import torch
except ImportError:
    print("torch is not installed: no bfloat16 here")
else:
    layer = torch.nn.Linear(768, 512, bias=False, dtype=torch.bfloat16)
    with torch.no_grad():
        lora.merge_weights(layer.weight, torch.from_numpy(lora_A), torch.from_numpy(lora_B), scaling=2.0)
    print("merged a bfloat16 layer with a float32 adapter:", tuple(layer.weight.shape))
