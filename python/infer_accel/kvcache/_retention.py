"""What a pool keeps, for how long, and what it must forget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infer_accel._numbers import real

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infer_accel._typing import Tensor


class Retention:
    """Pins, time limits, and forgetting: the part of :class:`BlockPool` that decides what stays cached."""

    #: The pool of the native core.
    _native_pool: Any

    def pin(self, hashes: Tensor | Sequence[bytes], *, seconds: float | None = None) -> int:
        """Keep the longest cached prefix, whatever else is needed.

        Parameters
        ----------
        hashes
            As for :meth:`lookup`.
        seconds
            How long, by the time that :meth:`advance` tells; ``None`` until :meth:`unpin`. A block that is
            pinned already is kept until the later of both ends.

        Returns
        -------
        int
            Blocks of the prefix: those of the first hashes.

        Raises
        ------
        OutOfBlocksError
            More blocks would be pinned than `pin_blocks` allows; none was. ``needed`` and ``free`` say how many.
        ArgumentError
            `seconds` is not above 0.

        Examples
        --------
        >>> from infer_accel.kvcache import BlockPool, hash_blocks
        >>> pool = BlockPool(4, pin_blocks=2)
        >>> hashes = hash_blocks(range(32), block_size=16)
        >>> blocks = pool.alloc(2)
        >>> pool.cache(blocks, hashes)
        2
        >>> pool.free(blocks)
        >>> pool.pin(hashes, seconds=60)
        2
        >>> pool.stats().free_blocks
        1
        """
        pinned: int = self._native_pool.pin(hashes, seconds=seconds)
        return pinned

    def unpin(self, hashes: Tensor | Sequence[bytes]) -> int:
        """Take the pins of these blocks off; return how many there were.

        Parameters
        ----------
        hashes
            As for :meth:`lookup`; those that are not pinned are passed over.

        Returns
        -------
        int
            Blocks that may be evicted again.
        """
        taken: int = self._native_pool.unpin(hashes)
        return taken

    def forget(self, hashes: Tensor | Sequence[bytes]) -> int:
        """Forget what these blocks hold: it was lost, or must not be used again.

        Parameters
        ----------
        hashes
            As for :meth:`lookup`. Blocks that are lent out stay so, and are found no more.

        Returns
        -------
        int
            Blocks that were forgotten, in all cache groups.
        """
        forgotten: int = self._native_pool.forget(hashes)
        return forgotten

    def reset(self) -> None:
        """Forget what every block holds and unpin everything: the model has changed.

        Blocks that are lent out stay so, and are found no more.
        """
        self._native_pool.reset()

    def advance(self, seconds: float) -> None:
        """Tell the pool the time: it has no clock of its own.

        Parameters
        ----------
        seconds
            From any beginning, such as ``time.monotonic()``, in tenths. Pins whose time is over are taken off.
            Without a call nothing ever runs out.

        Raises
        ------
        ArgumentError
            The time goes back.
        """
        self._native_pool.advance(real(seconds))
