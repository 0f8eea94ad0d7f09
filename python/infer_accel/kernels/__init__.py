"""The same operations on CUDA tensors: Triton kernels, and what plans and launches them.

Nothing here is imported before a CUDA tensor comes, so that neither torch nor Triton is needed for anything else.
The public functions of :mod:`infer_accel.kvcache` and :mod:`infer_accel.lora` turn off to this package at their
first step. ``<operation>_triton.py`` holds device code alone; ``<operation>.py`` checks, plans and launches.
"""
