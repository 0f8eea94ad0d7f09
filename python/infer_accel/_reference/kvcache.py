"""The specification of ``infer_accel.kvcache``."""
