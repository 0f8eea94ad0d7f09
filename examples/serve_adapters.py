"""Serve many LoRA adapters with one PyTorch model on a CPU.

Run it with ``python examples/serve_adapters.py``; it needs torch.
"""

from __future__ import annotations

import torch
from torch import nn

from infer_accel.lora import AdapterStore, LoraModel

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 256)).bfloat16()


def adapter(rank: int) -> dict[str, tuple[torch.Tensor, torch.Tensor, float]]:
    """Return matrices as a training run would have left them; `store.load` takes PEFT directories as well."""
    return {
        "0": (torch.randn(rank, 256).bfloat16(), torch.randn(512, rank).bfloat16() * 0.02, 2.0),
        "2": (torch.randn(rank, 512).bfloat16(), torch.randn(256, rank).bfloat16() * 0.02, 2.0),
    }


# At most 64 MiB of adapters: the least recently used go when there is no room.
store = AdapterStore(64 << 20)
served = LoraModel(model, store)
for name, rank in {"sql": 8, "poetry": 16, "support": 4}.items():
    served.load(name, adapter(rank))
print(store)

# A batch of four sequences: each names its own adapter, or none.
x = torch.randn(4, 10, 256).bfloat16()
with torch.inference_mode():
    plain = model(x)
    with served.use(["sql", None, "poetry", "sql"]):
        mixed = model(x)
    with served.use(["poetry"] * 4):
        poetry = model(x)
for row, name in enumerate(["sql", None, "poetry", "sql"]):
    print(f"row {row}, {name}: moved by up to {(mixed[row] - plain[row]).abs().max():.3f}")
print("poetry has the same bits in either batch:", torch.equal(mixed[2], poetry[2]))
