"""What holds for every test."""

from __future__ import annotations

from hypothesis import settings

# Nothing here may fail because a machine is slow; what hangs is ended by pytest-timeout.
settings.register_profile("infer-accel", deadline=None)
settings.load_profile("infer-accel")
