"""What a tier of pages is, whatever it stands on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from infer_accel._typing import Tensor


@runtime_checkable
class Tier(Protocol):
    """A store of pages that delivers what was stored under a key, or nothing.

    :class:`DiskTier` is one, as are :class:`infer_accel.integrations.redis.RedisTier` and
    :class:`infer_accel.integrations.object_store.ObjectStoreTier`; each can stand behind a :class:`TieredCache`.
    """

    @property
    def page_bytes(self) -> int:
        """Bytes of a page."""
        ...

    def store(self, keys: Tensor | Sequence[bytes], pages: Tensor) -> int:
        """Store the pages whose keys are new; return how many those were, or raise a StorageError."""
        ...

    def load(
        self, keys: Tensor | Sequence[bytes], out: Tensor, *, num_threads: int | None = None
    ) -> npt.NDArray[np.bool_]:
        """Load the pages that are there to the rows of `out`; return which. What fails or is late is a miss."""
        ...

    def contains(self, keys: Tensor | Sequence[bytes]) -> npt.NDArray[np.bool_]:
        """Return which pages are there, as far as is known."""
        ...

    def flush(self) -> None:
        """Return when what was stored is as safe as this tier makes it, or raise a StorageError."""
        ...

    def refresh(self) -> None:
        """Look for what others have stored."""
        ...

    def stats(self) -> object:
        """Return a dataclass of numbers."""
        ...

    def close(self) -> None:
        """Give back what is held."""
        ...
