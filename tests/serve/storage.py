"""How SGLang and LMCache make a place for pages, ours and their own: by their factories, as their servers do."""

from __future__ import annotations

import argparse
import json
from typing import Any


class Memory:
    """SGLang's host memory, as far as a back end asks it."""

    layout = "layer_first"

    def __init__(self, page_bytes: int) -> None:
        self._page_bytes = page_bytes

    def get_dummy_flat_data_page(self) -> Any:
        """Return a page."""
        import torch

        return torch.zeros(self._page_bytes // 2, dtype=torch.bfloat16)


def sglang_options(root: str, **more: Any) -> dict[str, Any]:
    """Return what a user gives SGLang to have our back end."""
    return {
        "backend_name": "infer_accel",
        "module_path": "infer_accel.integrations.sglang",
        "class_name": "InferAccelStorage",
        "root_dir": root,
        **more,
    }


def sglang_backend(page_bytes: int, kind: str = "dynamic", **options: Any) -> Any:
    """Return a back end that SGLang's factory has made, and told of the host memory."""
    from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig
    from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory

    config = HiCacheStorageConfig(
        tp_rank=0,
        tp_size=1,
        pp_rank=0,
        pp_size=1,
        attn_cp_rank=0,
        attn_cp_size=1,
        is_mla_model=False,
        enable_storage_metrics=False,
        is_page_first_layout=False,
        model_name="m",
        extra_config=options,
    )
    backend = StorageBackendFactory.create_backend(kind, config, Memory(page_bytes))
    backend.register_mem_pool_host(Memory(page_bytes))
    return backend


def lmcache_specification(root: str, **more: Any) -> dict[str, Any]:
    """Return what a user types after ``--l2-adapter`` to have ours."""
    return {
        "type": "plugin",
        "module_path": "infer_accel.integrations.lmcache",
        "class_name": "InferAccelL2Adapter",
        "adapter_params": {"root_dir": root, **more},
    }


def lmcache_adapter(specification: dict[str, Any]) -> Any:
    """Return an adapter that LMCache has made from its command line."""
    from lmcache.v1.distributed.l2_adapters import create_l2_adapter
    from lmcache.v1.distributed.l2_adapters.config import (
        add_l2_adapters_args,
        parse_args_to_l2_adapters_config,
    )

    parser = add_l2_adapters_args(argparse.ArgumentParser())
    config = parse_args_to_l2_adapters_config(parser.parse_args(["--l2-adapter", json.dumps(specification)]))
    return create_l2_adapter(config.adapters[0])
