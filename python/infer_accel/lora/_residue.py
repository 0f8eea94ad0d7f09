"""What makes a merge undoable bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from infer_accel import _backend

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["Residue", "wrap"]

_core = _backend.load("lora")


class _Core(Protocol):
    """What both backends offer."""

    nbytes: int
    exceptions: int
    shape: tuple[int, int]
    base_dtype: str
    merged_dtype: str
    kernel_revision: int
    adapter_digest: int
    merged_digest: int

    def to_bytes(self) -> bytes: ...
    def entries(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint32]]: ...


class Residue:
    """The elements of a merged weight that subtraction alone does not give back.

    A merge rounds ``W + Δ`` to the grid of its format. Rounding ``W′ − Δ`` gives ``W`` back, except where bits
    were lost: in elements whose exponent changed, in zeros with a sign, in what is not a number. For adapters
    as they are trained that is less than one element in a hundred, and a residue, which is the list of them,
    takes about one percent of the weight's bytes.

    It comes from :func:`merge_weights` with ``return_residue=True``, or from :meth:`from_bytes`, and goes into
    :func:`unmerge_weights`, which refuses it for another adapter, another weight or another revision of the
    arithmetic. It does not change, can be shared between threads, pickled, and compared.

    Raises
    ------
    TypeError
        When it is called: a residue is not made by hand.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_accel import lora
    >>> weight = np.array([[1.0, -0.0, 1e-9]], np.float32)
    >>> adapter = np.array([[0.1, 0.0, 1.0]], np.float32), np.array([[0.3]], np.float32)
    >>> _, residue = lora.merge_weights(weight, *adapter, return_residue=True)
    >>> residue.exceptions
    2
    >>> lora.unmerge_weights(weight, *adapter, residue=lora.Residue.from_bytes(residue.to_bytes()))
    array([[ 1.e+00, -0.e+00,  1.e-09]], dtype=float32)

    References
    ----------
    The digests are sums of NH hashes: RFC 4418, "UMAC: Message Authentication Code using Universal Hashing".
    They tell accidents apart; they are no defence against forgery.
    """

    __slots__ = ("_core",)
    _core: _Core

    def __init__(self) -> None:
        message = "a residue comes from merge_weights(..., return_residue=True) or from Residue.from_bytes"
        raise TypeError(message)

    @classmethod
    def from_bytes(cls, data: bytes) -> Residue:
        """Return the residue that was stored.

        Parameters
        ----------
        data
            What :meth:`to_bytes` gave.

        Returns
        -------
        Residue
            Equal to the one that was stored.

        Raises
        ------
        IntegrityError
            Bytes that are no residue, or that were cut off or changed.

        Examples
        --------
        >>> Residue.from_bytes(b"no residue")
        Traceback (most recent call last):
            ...
        infer_accel.errors.IntegrityError: these bytes are no residue: it is shorter than its header; ...
        """
        return wrap(_core.Residue.from_bytes(bytes(data)))

    def to_bytes(self) -> bytes:
        """Return the residue as :attr:`nbytes` bytes: a header of 72 bytes with a checksum, then the exceptions."""
        return self._core.to_bytes()

    def entries(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint32]]:
        """Return where the exceptions are and what they miss.

        Returns
        -------
        indices : int64[exceptions]
            Places in a dense weight, rising.
        differences : uint32[exceptions]
            What must be added to the bits of ``round(W′ − Δ)`` there, modulo 2¹⁶ or 2³².
        """
        return self._core.entries()

    @property
    def nbytes(self) -> int:
        """Bytes that the residue takes when it is stored."""
        return self._core.nbytes

    @property
    def exceptions(self) -> int:
        """Elements that are noted."""
        return self._core.exceptions

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the weight, ``(out_features, in_features)``."""
        return self._core.shape

    @property
    def base_dtype(self) -> str:
        """Name of the weight's number format before the merge."""
        return self._core.base_dtype

    @property
    def merged_dtype(self) -> str:
        """Name of the weight's number format after the merge."""
        return self._core.merged_dtype

    @property
    def kernel_revision(self) -> int:
        """Revision of the arithmetic that the residue belongs to."""
        return self._core.kernel_revision

    @property
    def adapter_digest(self) -> int:
        """A number of 64 bits that tells the adapter from others: matrices, formats, scaling."""
        return self._core.adapter_digest

    @property
    def merged_digest(self) -> int:
        """A number of 64 bits that tells the merged weight from others."""
        return self._core.merged_digest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Residue) and self.to_bytes() == other.to_bytes()

    def __hash__(self) -> int:
        return hash((self.adapter_digest, self.merged_digest, self.exceptions))

    def __reduce__(self) -> tuple[object, ...]:
        return (Residue.from_bytes, (self.to_bytes(),))

    def __repr__(self) -> str:
        formats = " → ".join(dict.fromkeys([self.base_dtype, self.merged_dtype]))
        weight = f"a {self.shape[0]} × {self.shape[1]} weight of {formats}"
        return f"<Residue of {weight}: {self.exceptions} exceptions, {self.nbytes} bytes>"


def wrap(core: _Core) -> Residue:
    """Return a residue around the backend's own."""
    residue = object.__new__(Residue)
    residue._core = core
    return residue
