"""The storage back end under SGLang's own base class, factory and host memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.serve import storage

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("sglang", exc_type=ImportError)
torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")

PAGE = 128


def made(root: Path, **more: Any) -> Any:
    base = pytest.importorskip("sglang.srt.mem_cache.hicache_storage", exc_type=ImportError)
    pytest.importorskip("sglang.srt.mem_cache.storage.backend_factory", exc_type=ImportError)
    options = storage.sglang_options(str(root), capacity_bytes=1 << 24, **more)
    backend = storage.sglang_backend(2 * PAGE, **options)
    assert isinstance(backend, base.HiCacheStorage)
    backend.on_host_pools_registered()
    return backend


def test_pages_come_back_after_a_restart(tmp_path: Path) -> None:
    values = [torch.full((PAGE,), place + 1, dtype=torch.bfloat16) for place in range(4)]
    keys = [f"{place:064x}" for place in range(4)]
    backend = made(tmp_path)
    assert backend.batch_exists(keys) == 0
    assert backend.batch_set(keys[:3], values[:3])
    assert backend.set(keys[0], values[0]), "again"
    assert backend.batch_exists(keys, None) == 3
    backend.close()
    backend = made(tmp_path)
    targets = [storage.Memory(2 * PAGE).get_dummy_flat_data_page() for _ in keys]
    found = backend.batch_get(keys, targets)
    assert [None if page is None else int(page[0]) for page in found] == [1, 2, 3, None]
    assert found[0] is targets[0], "SGLang's own memory"
    assert backend.get(keys[3], targets[3]) is None
    assert backend.exists(keys[2])
    assert not backend.exists(keys[3])
    backend.close()


def test_what_is_not_served_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="allowed: root_dir"):
        made(tmp_path, capactiy=3)
    backend = made(tmp_path)
    with pytest.raises(ValueError, match="'mamba' came"):
        backend.register_mem_host_pool_v2(storage.Memory(2 * PAGE), "mamba")
    with pytest.raises(ValueError, match="each needs one"):
        backend.batch_get(["a"], None)
    backend.close()
