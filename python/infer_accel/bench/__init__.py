"""Benchmarks that check before they time.

`infer-accel bench` is the way in. A part (`lora`, `kvcache`, `tokenize`) is one module of this package with
one function, ``cases(bench)``, that yields a :class:`~infer_accel.bench.harness.Case` a row; the module
:mod:`infer_accel.bench.harness` shows how one is written.
"""
