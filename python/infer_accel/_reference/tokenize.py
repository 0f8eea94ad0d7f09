"""The specification of ``infer_accel.tokenize``."""
