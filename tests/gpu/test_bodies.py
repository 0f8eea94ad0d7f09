"""Every kernel in every number format on a GPU, against the CPU's kernels and through graphs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import torch
from tests.gpu.bodies import Place, cases

if TYPE_CHECKING:
    from tests.gpu.bodies import Body

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: nothing was checked on a GPU"),
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted: `make test-gpu`"
    ),
]


@pytest.mark.parametrize("body", [pytest.param(body, id=name) for name, _, body in cases()])
def test_it_is_what_the_cpu_says(body: Body) -> None:
    body(Place(torch.device("cuda", 0)))
