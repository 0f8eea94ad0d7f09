"""Compile kernels for GPUs that are not here, and print what the machine code takes: a program of its own.

Triton either compiles or interprets in a process, and the tests' process interprets. Called with the number of this
process and of all; writes a line of JSON for each variant.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import triton
from tests.kernels.variants import ARCHITECTURES, READ_ARCHITECTURES, Variant, variants
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?(\S+)", re.MULTILINE)


def compiled(variant: Variant, architecture: int) -> dict[str, Any]:
    aligned = {(place,): [["tt.divisibility", 16]] for place in variant.aligned}
    constants = dict.fromkeys(variant.constants, "constexpr")
    source = ASTSource(
        variant.kernel,
        signature={**variant.signature, **constants},
        constexprs=variant.constants,
        attrs=aligned,
    )
    kernel = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=variant.options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = output("cuobjdump", "-res-usage", file.name)
        # Taking machine code apart takes as long as making it; without the flow of data (`-ndf`) a little less.
        is_read = architecture in READ_ARCHITECTURES
        code = Counter(INSTRUCTION.findall(output("nvdisasm", "-c", "-ndf", file.name))) if is_read else None
    return {
        "name": variant.name,
        "architecture": architecture,
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),  # type: ignore[index]
        "local": sum(int(size) for size in re.findall(r"(?:STACK|LOCAL):(\d+)", usage)),
        "shared": kernel.metadata.shared,
        "instructions": code,
    }


def output(tool: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout


def main() -> None:
    part, parts = map(int, sys.argv[1:])
    work = [(variant, architecture) for variant in variants() for architecture in ARCHITECTURES]
    for variant, architecture in work[part::parts]:
        sys.stdout.write(json.dumps(compiled(variant, architecture)) + "\n")


if __name__ == "__main__":
    main()
