"""What holds for every test."""

from __future__ import annotations

import os

from hypothesis import settings
from tests.soak import is_long

# Triton reads this when it is imported, whichever test is the first to do so; `make test-gpu` says 0.
os.environ.setdefault("TRITON_INTERPRET", "1")

# Nothing here may fail because a machine is slow; what hangs is ended by pytest-timeout. `make test` tries the same
# examples every time, so that what fails is what was changed; `make soak` looks for new ones.
settings.register_profile("infer-accel", deadline=None, derandomize=not is_long())
settings.load_profile("infer-accel")
