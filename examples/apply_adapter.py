"""Serve a LoRA adapter beside a layer, without merging it.

Run it with ``python examples/apply_adapter.py``; it needs numpy only.
"""

from __future__ import annotations

import numpy as np

from infer_accel import lora

RANK, ALPHA = 8, 16
rng = np.random.default_rng(0)
weight = rng.normal(0, 0.02, (1024, 512)).astype(np.float32)
lora_A = rng.normal(0, 0.02, (RANK, 512)).astype(np.float32)
lora_B = rng.normal(0, 0.02, (1024, RANK)).astype(np.float32)
tokens = rng.normal(0, 1, (5, 512)).astype(np.float32)

# The layer computes its own output, the adapter adds to it.
out = tokens @ weight.T
lora.apply_adapter(tokens, lora_A, lora_B, scaling=ALPHA / RANK, out=out)

merged = weight.copy()
lora.merge_weights(merged, lora_A, lora_B, scaling=ALPHA / RANK)
print("largest distance from the merged layer:", float(np.abs(out - tokens @ merged.T).max()))

# A token's share has the same bits whether it comes alone or in a batch: batching does not change an answer.
together, alone = np.zeros((5, 1024), np.float32), np.zeros((1, 1024), np.float32)
lora.apply_adapter(tokens, lora_A, lora_B, out=together)
lora.apply_adapter(tokens[3:4], lora_A, lora_B, out=alone)
print("bits that depend on the batch:", int((together[3:4].view(np.uint32) != alone.view(np.uint32)).sum()))
