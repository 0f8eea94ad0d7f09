"""One way to merge an adapter into a checkpoint, in a process of its own: ``python -m … WAY BASE ADAPTER``.

The process imports what it needs, prints a line, and then merges into each directory that it is told, one a line. For
each it prints the peak of its memory above what it had when it was ready. So neither the start of an interpreter nor
that of torch counts, and one way's memory is not another's.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    Way = Callable[[Path], None]

__all__ = ["main"]


def main() -> None:
    """Serve one way until the standard input ends."""
    way, base, adapter = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    merge = _WAYS[way](base, adapter)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        before = _forget_peak()
        merge(Path(line.strip()))
        sys.stdout.write(f"{_status('VmHWM') - before}\n")
        sys.stdout.flush()


def _forget_peak() -> int:
    """Begin to measure a new peak; return the memory in use, in bytes."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _status("VmHWM")
    return _status("VmRSS")


def _status(name: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def _ours(base: Path, adapter: Path) -> Way:
    from infer_accel import lora

    def merge(out: Path) -> None:
        lora.merge_checkpoint(base, adapter, out)

    return merge


def _peft(base: Path, adapter: Path) -> Way:
    import peft
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()

    def merge(out: Path) -> None:
        model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
        merged = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
        merged.save_pretrained(out, max_shard_size="600MB")

    return merge


def _torch_shards(base: Path, adapter: Path) -> Way:
    import torch
    from safetensors.torch import load_file, save_file

    settings = json.loads((adapter / "adapter_config.json").read_text())
    scaling = settings["lora_alpha"] / settings["r"]

    def merge(out: Path) -> None:
        matrices = load_file(adapter / "adapter_model.safetensors")
        wide = {name: matrix.float() for name, matrix in matrices.items()}
        out.mkdir()
        for shard in sorted(base.glob("*.safetensors")):
            tensors = load_file(shard)
            for name, weight in tensors.items():
                module = f"base_model.model.{name.removesuffix('.weight')}"
                if f"{module}.lora_A.weight" in wide:
                    a, b = wide[f"{module}.lora_A.weight"], wide[f"{module}.lora_B.weight"]
                    tensors[name] = torch.addmm(weight.float(), b, a, alpha=scaling).to(weight.dtype)
            save_file(tensors, out / shard.name, metadata={"format": "pt"})
        for other in base.glob("*.json"):
            shutil.copy(other, out)

    torch.set_grad_enabled(False)
    return merge


_WAYS: dict[str, Callable[[Path, Path], Way]] = {"ours": _ours, "peft": _peft, "torch": _torch_shards}

if __name__ == "__main__":
    main()
