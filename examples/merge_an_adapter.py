"""Merge a LoRA adapter into a layer in place, and see what one rounding instead of two is worth."""

import numpy as np

from infer_accel import lora

rng = np.random.default_rng(0)
weight = (rng.standard_normal((1024, 1024)) * 0.02).astype(np.float16)
lora_A = (rng.standard_normal((16, 1024)) * 0.02).astype(np.float16)
lora_B = (rng.standard_normal((1024, 16)) * 0.02).astype(np.float16)
scaling = 2.0

exact = weight.astype(np.float64) + scaling * lora_B.astype(np.float64) @ lora_A.astype(np.float64)
best = exact.astype(np.float16)

rounded_twice = weight + (np.float16(scaling) * (lora_B @ lora_A)).astype(np.float16)
lora.merge_weights(weight, lora_A, lora_B, scaling=scaling)  # in place: no delta of the layer's size is made

for name, merged in (("numpy in float16", rounded_twice), ("merge_weights", weight)):
    print(f"{name:>16}: {np.mean(merged != best):8.4%} of the elements are not the nearest float16")
