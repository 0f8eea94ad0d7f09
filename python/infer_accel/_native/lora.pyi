"""
Low-rank adapters.
"""

from _typeshed import Incomplete, SupportsGetItem
from collections.abc import Sequence
from infer_accel._typing import Tensor
from os import PathLike
from typing import Any, SupportsFloat, SupportsIndex, final

__all__ = ["Adapter", "AdapterLayer", "AdapterLedger", "AdapterStack", "AdapterStore", "AdapterTensor", "AdapterUpdate", "QuantizationReport", "Residue", "apply_adapter", "apply_adapters", "combine", "examine_adapter", "merge_checkpoint", "merge_many", "merge_quantized", "merge_weights", "read_headers", "unmerge_checkpoint", "unmerge_weights"]

@final
class Adapter:
    """
    An adapter.
    """
    def config(self, /) -> list[tuple[str, str]]:
        """
        Name and value of what the configuration says.
        """
    def digest(self, /) -> str:
        """
        What the adapter means, as 64 hexadecimal digits.
        """
    @staticmethod
    def from_parts(layers: SupportsGetItem[int, tuple[str, SupportsFloat | SupportsIndex, tuple[str, SupportsGetItem[int, SupportsIndex], bytes | bytearray], tuple[str, SupportsGetItem[int, SupportsIndex], bytes | bytearray]]], use_rslora: bool) -> Adapter:
        """
        An adapter of linear and convolutional layers.
        """
    def layers(self, /) -> list[AdapterLayer]:
        """
        The low-rank updates.
        """
    @property
    def nbytes(self, /) -> int:
        """
        Bytes of all tensors.
        """
    @property
    def rank(self, /) -> int:
        """
        The largest rank of a layer.
        """
    def replacements(self, /) -> list[tuple[str, str, AdapterTensor]]:
        """
        Name, part of a pipeline, and tensor of what is replaced as a whole.
        """
    def resolve(self, /, base: str | PathLike[str], *, follow_symlinks: bool) -> AdapterLedger:
        """
        Finds the place of every delta in a base.
        """
    def save(self, /, path: str | PathLike[str]) -> None:
        """
        Writes a PEFT directory.
        """
    def validate(self, /, base: str | PathLike[str], *, follow_symlinks: bool) -> list[tuple[str, str, str]]:
        """
        Everything that is wrong between the adapter and a base.
        """

@final
class AdapterLayer:
    """
    A low-rank update of one module.
    """
    @property
    def alpha(self, /) -> float:
        """
        What the scaling is made from.
        """
    @property
    def bias(self, /) -> AdapterTensor | None:
        """
        What is added to the module's bias.
        """
    @property
    def component(self, /) -> str:
        """
        The part of a pipeline that the module belongs to, or nothing.
        """
    @property
    def fan_in_fan_out(self, /) -> bool:
        """
        Whether the configuration says that the weight is stored transposed.
        """
    @property
    def kind(self, /) -> str:
        """
        Linear, embedding, convolution or experts.
        """
    @property
    def lora_a(self, /) -> AdapterTensor:
        """
        The first factor.
        """
    @property
    def lora_b(self, /) -> AdapterTensor:
        """
        The second factor.
        """
    @property
    def magnitude(self, /) -> AdapterTensor | None:
        """
        The lengths of rows of `DoRA`.
        """
    @property
    def path(self, /) -> str:
        """
        The module in the base.
        """
    @property
    def rank(self, /) -> int:
        """
        The rank.
        """
    @property
    def scaling(self, /) -> float:
        """
        What the product is multiplied by.
        """

@final
class AdapterLedger:
    """
    Where every delta of an adapter goes.
    """
    @property
    def exchanges(self, /) -> list[tuple[str, AdapterTensor]]:
        """
        Replaced tensors.
        """
    @property
    def problems(self, /) -> list[tuple[str, str, str]]:
        """
        What has no place in the base.
        """
    @property
    def untied(self, /) -> tuple[str, str] | None:
        """
        Embedding and head that no longer share their weight.
        """
    @property
    def updates(self, /) -> list[AdapterUpdate]:
        """
        Low-rank updates.
        """

@final
class AdapterStack:
    """
    The adapters of one layer, packed.
    """
    def __new__(cls, /, adapters: SupportsGetItem[int, SupportsGetItem[int, tuple[Tensor, Tensor, SupportsFloat | SupportsIndex] | None]], ids: Tensor | Sequence[int] | Sequence[Sequence[int]], slices: SupportsGetItem[int, int] | None = None) -> AdapterStack:
        """
        Packs the adapters: of each its products, one for each slice or one for all, and its id.
        """
    @property
    def ids(self, /) -> list[int]:
        """
        Ids of the adapters, ascending.
        """
    @property
    def in_features(self, /) -> int | None:
        """
        Features of a token, where an adapter tells.
        """
    @property
    def nbytes(self, /) -> int:
        """
        Bytes of the packed matrices.
        """
    @property
    def ranks(self, /) -> list[int]:
        """
        The largest rank of each adapter.
        """
    @property
    def slices(self, /) -> list[int | None]:
        """
        Outputs of each slice, where an adapter or the caller told.
        """

@final
class AdapterStore:
    """
    Adapters in memory, packed, bounded by bytes.
    """
    def __new__(cls, /, capacity_bytes: int) -> AdapterStore: ...
    def evict(self, /, name: str) -> None:
        """
        Takes an adapter out.
        """
    def get(self, /, name: str) -> tuple[str, int, int, list[str], int, int, int]:
        """
        What the store says of an adapter, which counts as used now.
        """
    def load(self, /, name: str, layers: SupportsGetItem[int, tuple[str, tuple[Tensor, Tensor, SupportsFloat | SupportsIndex]]]) -> tuple[str, int, int, list[str], int, int, int]:
        """
        Checks and packs an adapter, layer by layer, and puts it in under a name.
        """
    def load_adapter(self, /, name: str, adapter: Adapter) -> tuple[str, int, int, list[str], int, int, int]:
        """
        Packs an adapter that was read from a file, and puts it in under a name.
        """
    def names(self, /) -> list[str]:
        """
        Names, the least recently used first.
        """
    def pin(self, /, name: str) -> tuple[str, int, int, list[str], int, int, int]:
        """
        Keeps an adapter from being evicted.
        """
    def stack(self, /, layers: SupportsGetItem[int, str], slices: SupportsGetItem[int, int] | None = None) -> AdapterStack:
        """
        The adapters of a layer, or of several that the model has fused.
        """
    def stacks(self, /, layers: SupportsGetItem[int, tuple[SupportsGetItem[int, str], SupportsGetItem[int, SupportsIndex] | None]]) -> list[AdapterStack]:
        """
        The stacks of several layers at one moment.
        """
    def stats(self, /) -> tuple[int, int, int, int, int, int, int, int, int, int]:
        """
        Bytes: capacity, used, stored, pinned; adapters; loads, swaps, evictions, hits, misses.
        """
    def unpin(self, /, name: str) -> None:
        """
        Takes a pin away.
        """

@final
class AdapterTensor:
    """
    The bytes of a tensor of an adapter, which they keep alive. Read-only.
    """
    @property
    def dtype(self, /) -> str:
        """
        Name of the number format.
        """
    @property
    def nbytes(self, /) -> int:
        """
        Bytes of all elements.
        """
    @property
    def shape(self, /) -> list[int]:
        """
        Entries of each axis.
        """

@final
class AdapterUpdate:
    """
    One low-rank update of one tensor of a base.
    """
    @property
    def a(self, /) -> tuple[AdapterTensor, tuple[int, tuple[int, int], tuple[int, int]]]:
        """
        The first factor, and where in its tensor it lies.
        """
    @property
    def b(self, /) -> tuple[AdapterTensor, tuple[int, tuple[int, int], tuple[int, int]]]:
        """
        The second factor, likewise.
        """
    @property
    def layer(self, /) -> int:
        """
        The index of the layer.
        """
    @property
    def magnitude(self, /) -> AdapterTensor | None:
        """
        The lengths of rows of `DoRA`.
        """
    @property
    def place(self, /) -> tuple[int, tuple[int, int], tuple[int, int]]:
        """
        Where the matrix lies within the tensor.
        """
    @property
    def scaling(self, /) -> float:
        """
        What the product is multiplied by.
        """
    @property
    def source(self, /) -> str:
        """
        The tensor of the base that it starts from.
        """
    @property
    def target(self, /) -> str:
        """
        The tensor that changes.
        """

@final
class QuantizationReport:
    """
    What a merge into codes did.
    """
    @property
    def changed(self, /) -> int: ...
    @property
    def delta_norm(self, /) -> float: ...
    @property
    def elements(self, /) -> int: ...
    @property
    def largest_delta(self, /) -> float: ...
    @property
    def largest_error(self, /) -> float: ...
    @property
    def rms_error(self, /) -> float: ...
    @property
    def saturated(self, /) -> int: ...
    @property
    def scales(self, /) -> int: ...
    @property
    def scales_changed(self, /) -> int: ...
    @property
    def survived(self, /) -> float | None: ...

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

def apply_adapter(x: Tensor, lora_A: Tensor, lora_B: Tensor, *, scaling: SupportsFloat | SupportsIndex = 1.0, out: Tensor, num_threads: int | None = None) -> None:
    """
    Adds ``scaling · (x @ lora_A.T) @ lora_B.T`` to `out`.
    """

def apply_adapters(x: Tensor, stack: AdapterStack, adapter_ids: Tensor | Sequence[int] | Sequence[Sequence[int]], *, out: Tensor, num_threads: int | None = None) -> None:
    """
    Adds to each token's outputs what its adapter makes of it.
    """

def combine(adapters: SupportsGetItem[int, Adapter], weights: SupportsGetItem[int, SupportsFloat | SupportsIndex], *, method: str, density: SupportsFloat | SupportsIndex | None = None, rank: int | None = None, seed: int | None = None, num_threads: int | None = None) -> Adapter:
    """
    One adapter out of several.
    """

def examine_adapter(path: str | PathLike[str], *, follow_symlinks: bool, max_tensors: int | None = None, num_threads: int | None = None) -> tuple[Adapter | None, list[tuple[str, str, str]], str]:
    """
    Reads what lies at a path: the layers without a fault, every fault, and the text of the refusal.
    """

def merge_checkpoint(base_dir: str | PathLike[str], adapters: SupportsGetItem[int, Adapter | str | PathLike[str]], out_dir: str | PathLike[str], *, weights: SupportsGetItem[int, SupportsFloat | SupportsIndex], method: str = "sum", density: SupportsFloat | SupportsIndex | None = None, rank: int | None = None, seed: int | None = None, dtype: str | None = None, residue: bool = False, verify: bool = True, resume: bool = True, allow_unused: bool = False, dry_run: bool = False, num_threads: int | None = None, progress: Any | None = None) -> str:
    """
    Adds adapters to a checkpoint; the report as JSON.
    """

def merge_many(weights: SupportsGetItem[int, Tensor], adapters: SupportsGetItem[int, tuple[Tensor, Tensor, SupportsFloat | SupportsIndex]], *, num_threads: int | None = None) -> None:
    """
    Adds to each of `weights` the product of one of `adapters`, each ``(lora_A, lora_B, scaling)``, in place.
    """

def merge_quantized(weight: Tensor, weight_scale: Tensor, lora_A: Tensor, lora_B: Tensor, *, scaling: SupportsFloat | SupportsIndex = 1.0, global_scale: SupportsFloat | SupportsIndex | None = None, scales: str = "grow", return_report: bool = False, num_threads: int | None = None) -> QuantizationReport | None:
    """
    Adds ``scaling · lora_B @ lora_A`` to a weight of codes, in place; tells what it did if that is asked for.
    """

def merge_weights(weight: Tensor, lora_A: Tensor, lora_B: Tensor, *, scaling: SupportsFloat | SupportsIndex = 1.0, out: Tensor | None = None, rounding: str = "nearest", seed: int | None = None, magnitude: Tensor | None = None, return_residue: bool = False, num_threads: int | None = None) -> Residue | None:
    """
    Adds ``scaling · lora_B @ lora_A`` to `weight`, in place or into `out`; gives back the residue if it is asked for.
    """

def read_headers(path: str | PathLike[str], *, follow_symlinks: bool) -> list[tuple[str, str, str, list[int], int]]:
    """
    The tensors of one safetensors file or of a checkpoint directory, by its headers.
    """

def unmerge_checkpoint(merged_dir: str | PathLike[str], out_dir: str | PathLike[str], *, adapters: SupportsGetItem[int, Adapter | str | PathLike[str]], residue_dir: str | PathLike[str] | None = None, resume: bool = True, num_threads: int | None = None, progress: Any | None = None) -> str:
    """
    Gives the base of a merged checkpoint back; the report as JSON.
    """

def unmerge_weights(weight: Tensor, lora_A: Tensor, lora_B: Tensor, *, scaling: SupportsFloat | SupportsIndex = 1.0, residue: Residue, out: Tensor | None = None, num_threads: int | None = None) -> None:
    """
    Gives back the bits that `weight` had before a merge, in place or into `out`.
    """
