"""The short list of bodies in one process, for compute-sanitizer: `python -m tests.gpu.sanitized`.

Memory is asked for one tensor at a time, so that what lies behind a tensor is nobody's; the first error of a body ends
the run, as what comes after an access to memory that is not there says nothing.
"""

from __future__ import annotations

import os
import sys


def main() -> int:
    os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # read when torch first allocates
    os.environ["TRITON_INTERPRET"] = "0"
    import torch
    from tests.gpu.bodies import Place, cases

    if not torch.cuda.is_available():
        sys.stdout.write("no CUDA device: nothing was checked\n")
        return 1
    done = 0
    for name, is_short, body in cases():
        # A graph's memory is a pool of its own, which the allocator without a cache does not have.
        if is_short:
            try:
                body(Place(torch.device("cuda", 0), is_captured=False))
            except Exception as error:  # noqa: BLE001 - whatever it is, it is said of this body
                sys.stdout.write(f"{name}: {type(error).__name__}: {error}\n")
                return 1
            done += 1
    sys.stdout.write(f"{done} bodies\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
