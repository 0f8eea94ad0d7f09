"""The specification of ``infer_accel.lora``."""
