"""
Low-rank adapters.
"""

from _typeshed import Incomplete
from infer_accel._typing import Tensor
from typing import SupportsFloat, SupportsIndex, final

__all__ = ["Residue", "apply_adapter", "merge_weights", "unmerge_weights"]

@final
class Residue:
    """
    The exceptions of the merge of one weight.
    """
    @property
    def adapter_digest(self, /) -> int:
        """
        The digest of the adapter.
        """
    @property
    def base_dtype(self, /) -> str:
        """
        Name of the number format before the merge.
        """
    def entries(self, /) -> tuple[Incomplete, Incomplete]:
        """
        The index of each exception in a dense weight, and what is added to its bits.
        """
    @property
    def exceptions(self, /) -> int:
        """
        Elements that are noted.
        """
    @staticmethod
    def from_bytes(data: bytes) -> Residue:
        """
        The residue that was stored.
        """
    @property
    def kernel_revision(self, /) -> int:
        """
        The revision of the arithmetic.
        """
    @property
    def merged_digest(self, /) -> int:
        """
        The digest of the merged weight.
        """
    @property
    def merged_dtype(self, /) -> str:
        """
        Name of the number format after the merge.
        """
    @property
    def nbytes(self, /) -> int:
        """
        Bytes that it takes when it is stored.
        """
    @property
    def shape(self, /) -> tuple[int, int]:
        """
        Shape of the weight.
        """
    def to_bytes(self, /) -> bytes:
        """
        The residue as bytes.
        """

def apply_adapter(x: Tensor, lora_A: Tensor, lora_B: Tensor, *, scaling: SupportsFloat | SupportsIndex = 1.0, out: Tensor, num_threads: SupportsIndex | None = None) -> None:
    """
    Adds ``scaling · (x @ lora_A.T) @ lora_B.T`` to `out`.
    """

def merge_weights(weight: Tensor, lora_A: Tensor, lora_B: Tensor, *, scaling: SupportsFloat | SupportsIndex = 1.0, out: Tensor | None = None, rounding: str = "nearest", seed: SupportsIndex | None = None, magnitude: Tensor | None = None, return_residue: bool = False, num_threads: SupportsIndex | None = None) -> Residue | None:
    """
    Adds ``scaling · lora_B @ lora_A`` to `weight`, in place or into `out`; gives back the residue if it is asked for.
    """

def unmerge_weights(weight: Tensor, lora_A: Tensor, lora_B: Tensor, *, scaling: SupportsFloat | SupportsIndex = 1.0, residue: Residue, out: Tensor | None = None, num_threads: SupportsIndex | None = None) -> None:
    """
    Gives back the bits that `weight` had before a merge, in place or into `out`.
    """
