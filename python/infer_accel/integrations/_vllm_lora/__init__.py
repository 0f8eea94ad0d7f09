"""Parts of :mod:`infer_accel.integrations.vllm_lora`."""
