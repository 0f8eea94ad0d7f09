"""The parts of :mod:`infer_accel.integrations.transformers_tokenizer`."""
