"""SGLang's hierarchical cache on disk: a storage back end for ``--hicache-storage-backend dynamic``.

::

    python -m sglang.launch_server --model-path MODEL --enable-hierarchical-cache \
      --hicache-storage-backend dynamic --hicache-storage-backend-extra-config '{
        "backend_name": "infer_accel", "module_path": "infer_accel.integrations.sglang",
        "class_name": "InferAccelStorage", "root_dir": "/var/cache/kv", "capacity_bytes": 1099511627776}'
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

try:
    from sglang.srt.mem_cache.hicache_storage import HiCacheStorage
except ImportError as error:
    _message = f"this back end needs SGLang 0.5.23, and what is installed has no such interface: {error}"
    raise ModuleNotFoundError(_message, name="sglang") from error

from infer_accel.errors import ArgumentError
from infer_accel.integrations._page_files import PageFiles

if TYPE_CHECKING:
    import torch
    from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig, HiCacheStorageExtraInfo
    from sglang.srt.mem_cache.pool_host import HostKVCache

__all__ = ["InferAccelStorage"]

#: What tells SGLang which class this is, and is no option of ours.
_SGLANGS_OWN = {
    "backend_name",
    "module_path",
    "class_name",
    "interface_v1",
    "prefetch_threshold",
    "prefetch_timeout_base",
    "prefetch_timeout_per_ki_token",
    "hicache_storage_pass_prefix_keys",
}


class InferAccelStorage(HiCacheStorage):
    """Pages of SGLang's host memory in a :class:`~infer_accel.kvcache.DiskTier`.

    Parameters
    ----------
    storage_config
        SGLang's. ``root_dir`` and ``capacity_bytes`` of its extra configuration must be there; ``segment_bytes``,
        ``checksum``, ``compression``, ``deadline`` and ``write_deadline`` are those of ``DiskTier``.
    kwargs
        SGLang's; not used.

    Raises
    ------
    ArgumentError
        An option that is unknown or missing; or, later, a pool beside that of keys and values (Mamba, windows).

    Notes
    -----
    A page that is damaged, late or cannot be read is one that is not there: SGLang computes it. A page is named by
    SGLang's chain of SHA-256, in a directory that is named by model, ranks, layout, dtype and size of a page.
    """

    def __init__(self, storage_config: HiCacheStorageConfig, kwargs: dict[str, Any] | None = None) -> None:
        del kwargs
        config = storage_config
        options = {
            name: value for name, value in (config.extra_config or {}).items() if name not in _SGLANGS_OWN
        }
        self._facts: dict[str, object] = {
            "engine": "sglang",
            "model": config.model_name,
            # Ranks hold the same page where heads are not split.
            "tensor": None if config.is_mla_model else [config.tp_rank, config.tp_size],
            "pipeline": [config.pp_rank, config.pp_size],
            "context": [config.attn_cp_rank, config.attn_cp_size],
            "decode_context": [config.dcp_rank, config.dcp_size],
            "is_page_first": config.is_page_first_layout,
        }
        self._options = options
        self._files = PageFiles(options, self._facts)

    def register_mem_pool_host(self, mem_pool_host: HostKVCache) -> None:
        """Take note of SGLang's memory, and open the directory of its pages."""
        super().register_mem_pool_host(mem_pool_host)
        page = mem_pool_host.get_dummy_flat_data_page()
        facts = {"dtype": str(page.dtype), "layout": str(getattr(mem_pool_host, "layout", ""))}
        self._files.close()
        self._files = PageFiles(self._options, self._facts | facts)
        self._files.open(page.numel() * page.element_size())

    def register_mem_host_pool_v2(self, host_pool: HostKVCache, host_pool_name: object) -> None:
        """Take note of a pool of SGLang's; that of keys and values alone is served."""
        if str(host_pool_name) != "kv":
            message = f"the pool {str(host_pool_name)!r} came; that of keys and values alone is served"
            raise ArgumentError(message, code="argument.connector_option")
        super().register_mem_host_pool_v2(host_pool, host_pool_name)

    def get(
        self,
        key: str,
        target_location: torch.Tensor | None = None,
        target_sizes: object = None,
    ) -> torch.Tensor | None:
        """Fill a page; returns it, or None where it is not there."""
        del target_sizes
        return self.batch_get([key], [target_location])[0]

    def batch_get(
        self,
        keys: list[str],
        target_locations: list[torch.Tensor | None] | None = None,
        target_sizes: object = None,
    ) -> list[torch.Tensor | None]:
        """Fill pages; returns each, or None where it is not there."""
        del target_sizes
        targets = [target for target in target_locations or [] if target is not None]
        if len(targets) != len(keys):
            message = f"{len(targets)} targets came for {len(keys)} pages; each needs one"
            raise ArgumentError(message, code="argument.connector_option")
        found = self._files.load(keys, targets)
        return [target if is_there else None for target, is_there in zip(targets, found, strict=True)]

    def set(
        self,
        key: str,
        value: torch.Tensor | None = None,
        target_location: object = None,
        target_sizes: object = None,
    ) -> bool:
        """Store a page; returns whether it is there now."""
        return self.batch_set([key], [value], target_location, target_sizes)

    def batch_set(
        self,
        keys: list[str],
        values: list[torch.Tensor | None] | None = None,
        target_locations: object = None,
        target_sizes: object = None,
    ) -> bool:
        """Store pages; returns whether all are there now."""
        del target_locations, target_sizes
        pages = [value.contiguous() for value in values or [] if value is not None]
        if len(pages) != len(keys):
            message = f"{len(pages)} values came for {len(keys)} pages; each needs one"
            raise ArgumentError(message, code="argument.connector_option")
        return self._files.store(keys, pages)

    def exists(self, key: str) -> bool:
        """Return whether a page is there."""
        return self._files.leading([key]) == 1

    def batch_exists(self, keys: list[str], extra_info: HiCacheStorageExtraInfo | None = None) -> int:
        """Return how many leading pages are there."""
        del extra_info
        return self._files.leading(keys)

    def close(self) -> None:
        """Make what was stored durable, and close the directory."""
        self._files.close()
