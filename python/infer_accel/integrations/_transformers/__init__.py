"""Parts of :mod:`infer_accel.integrations.transformers`."""
