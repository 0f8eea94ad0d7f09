"""Adapters: read strictly, matched with their base, written."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from infer_accel import _backend
from infer_accel.errors import AdapterError, DTypeError

if TYPE_CHECKING:
    from types import ModuleType

    from numpy.typing import NDArray

    Array = NDArray[np.generic]
    Place = tuple[int, tuple[int, int], tuple[int, int]]

__all__ = ["Adapter", "AdapterLayer", "AdapterLedger", "AdapterUpdate", "Problem", "examine", "wrap"]


class _CoreTensor(Protocol):
    """The bytes of a tensor, by the buffer protocol."""

    dtype: str
    shape: list[int]
    nbytes: int


class _CoreLayer(Protocol):
    path: str
    component: str
    kind: str
    rank: int
    alpha: float
    scaling: float
    fan_in_fan_out: bool
    lora_a: _CoreTensor
    lora_b: _CoreTensor
    magnitude: _CoreTensor | None
    bias: _CoreTensor | None


class _CoreUpdate(Protocol):
    target: str
    source: str
    layer: int
    place: Place
    a: tuple[_CoreTensor, Place]
    b: tuple[_CoreTensor, Place]
    scaling: float
    magnitude: _CoreTensor | None


class _CoreLedger(Protocol):
    updates: list[_CoreUpdate]
    exchanges: list[tuple[str, _CoreTensor]]
    untied: tuple[str, str] | None
    problems: list[tuple[str, str, str]]


class _CoreAdapter(Protocol):
    """What the native core offers."""

    rank: int
    nbytes: int

    def digest(self) -> str: ...
    def config(self) -> list[tuple[str, str]]: ...
    def layers(self) -> list[_CoreLayer]: ...
    def replacements(self) -> list[tuple[str, str, _CoreTensor]]: ...
    def resolve(self, base: str, *, follow_symlinks: bool) -> _CoreLedger: ...
    def validate(self, base: str, *, follow_symlinks: bool) -> list[tuple[str, str, str]]: ...
    def save(self, path: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with an adapter.

    Attributes
    ----------
    code : str
        The kind, stable between releases, such as ``"adapter.not_finite"``.
    tensor : str
        The tensor that has it, by its name in the file; or a module, a field of the configuration, a file;
        empty where it is the whole.
    message : str
        What came, what is allowed, what to do.

    Examples
    --------
    >>> print(Problem("adapter.rank", "r", "a rank of 0 came; 1 to 16384 are allowed"))
    r: a rank of 0 came; 1 to 16384 are allowed
    """

    code: str
    tensor: str
    message: str

    def __str__(self) -> str:
        # Names come from files: escaped, so that none can play with a terminal.
        name = self.tensor.encode("unicode_escape").decode("ascii")
        return f"{name}: {self.message}" if name else self.message


@dataclass(frozen=True, slots=True)
class AdapterLayer:
    """A low-rank update of one module. Its arrays are views of the adapter's memory: read-only, no copies.

    Attributes
    ----------
    path : str
        The module in the base, such as ``model.layers.0.self_attn.q_proj``; with underscores for dots in a file
        of kohya's.
    component : str
        The part of a pipeline that the module belongs to, such as ``unet``; empty for an ordinary model.
    kind : str
        ``linear``, ``embedding``, ``convolution`` or ``experts``.
    rank : int
        The rank; for experts that of each.
    alpha : float
        What the scaling is made from.
    scaling : float
        ``alpha / rank``, or ``alpha / sqrt(rank)`` of rsLoRA.
    fan_in_fan_out : bool
        Whether the configuration says that the weight is stored ``[in, out]``; the base's shape has the last
        word.
    lora_A : array
        ``[rank, in]``; ``[rank, in, kernel…]`` of a convolution, ``[rank, rows]`` of an embedding,
        ``[experts · rank, in]``.
    lora_B : array
        ``[out, rank]``; ``[out, rank, 1…]`` of a convolution, ``[out, rank · experts]``.
    magnitude : array or None
        ``[out]`` of DoRA.
    bias : array or None
        ``[out]`` of ``lora_bias``: `scaling` times this is added to the module's bias.
    """

    path: str
    component: str
    kind: str
    rank: int
    alpha: float
    scaling: float
    fan_in_fan_out: bool
    dtype: str
    _tensors: dict[str, _CoreTensor] = field(repr=False)

    @property
    def lora_A(self) -> Array:  # noqa: N802 - the field's name
        """The first factor."""
        return _array(self._tensors["lora_A"])

    @property
    def lora_B(self) -> Array:  # noqa: N802 - the field's name
        """The second factor."""
        return _array(self._tensors["lora_B"])

    @property
    def magnitude(self) -> Array | None:
        """The lengths of rows of DoRA."""
        return _array(self._tensors["magnitude"]) if "magnitude" in self._tensors else None

    @property
    def bias(self) -> Array | None:
        """What is added to the module's bias."""
        return _array(self._tensors["bias"]) if "bias" in self._tensors else None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor by its name, without making an array."""
        return {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self._tensors.values())


@dataclass(frozen=True, slots=True)
class AdapterUpdate:
    """One low-rank update of one tensor of a base: ``view(tensor) += scaling · lora_B @ lora_A``.

    Layers of every kind come in this form, a parameter of many experts as one update for each of them.

    Attributes
    ----------
    target : str
        The tensor of the merged checkpoint that changes.
    source : str
        The tensor of the base that it starts from: `target`, except for a head that shared its weight.
    layer : str
        The module, as the adapter names it.
    shape : tuple of int
        ``(out, in)``.
    scaling : float
        What the product is multiplied by.
    """

    target: str
    source: str
    layer: str
    shape: tuple[int, int]
    scaling: float
    _core: _CoreUpdate = field(repr=False)

    @property
    def lora_A(self) -> Array:  # noqa: N802 - the field's name
        """``[rank, in]``, read-only."""
        return _matrix(*self._core.a)

    @property
    def lora_B(self) -> Array:  # noqa: N802 - the field's name
        """``[out, rank]``, read-only."""
        return _matrix(*self._core.b)

    @property
    def magnitude(self) -> Array | None:
        """``[out]`` of DoRA: the length that each row of the sum gets."""
        return None if self._core.magnitude is None else _array(self._core.magnitude)

    def view(self, tensor: Array) -> Array:
        """Return the matrix ``[out, in]`` that is updated, as a view of the base's whole tensor.

        Parameters
        ----------
        tensor
            The tensor :attr:`source` of the base: contiguous, in the base's shape.

        Returns
        -------
        array
            Shares the memory of `tensor`; transposed where the weight is stored so.
        """
        offset, shape, strides = self._core.place
        flat = tensor.reshape(-1)[offset:]
        steps = tuple(step * tensor.itemsize for step in strides)
        return np.lib.stride_tricks.as_strided(flat, shape, steps)


@dataclass(frozen=True, slots=True)
class AdapterLedger:
    """Where every delta of an adapter goes: it is in `updates` or `replacements`, or named in `problems`.

    Attributes
    ----------
    updates : list of AdapterUpdate
        Low-rank updates, ordered by target.
    replacements : dict of str to array
        Tensors that are replaced as a whole (before any update of the same target).
    untied : tuple of str, or None
        Embedding and head that shared one tensor in the base and no longer do: the merged checkpoint must store
        the head by itself.
    problems : list of Problem
        What has no place in the base, and whatever else does not fit.
    """

    updates: list[AdapterUpdate]
    replacements: dict[str, Array]
    untied: tuple[str, str] | None
    problems: list[Problem]


class Adapter:
    """A LoRA adapter that passed every check which needs no base.

    It comes from :meth:`load`. Its weights were read once into memory of their own: what happens to the file
    later cannot hurt. It does not change and can be shared between threads. It cannot be pickled: pass its path.

    Raises
    ------
    TypeError
        When it is called: an adapter is loaded.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> factors = np.ones((2, 4), np.float32), np.zeros((3, 2), np.float32)
    >>> folder = tempfile.mkdtemp() + "/adapter"
    >>> Adapter.from_arrays({"layers.0.q_proj": factors}, alpha=4).save(folder)
    >>> adapter = Adapter.load(folder)
    >>> adapter
    <Adapter of rank 2: 1 layer, 0 replaced tensors, 56 bytes>
    >>> adapter.layers[0].path, adapter.scaling
    ('layers.0.q_proj', 2.0)
    >>> adapter.layers[0].lora_A.shape
    (2, 4)
    """

    __slots__ = ("_core", "_layers")
    _core: _CoreAdapter
    _layers: tuple[AdapterLayer, ...] | None

    def __init__(self) -> None:
        message = "an adapter comes from Adapter.load(path) or Adapter.from_arrays(layers, alpha=...)"
        raise TypeError(message)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        follow_symlinks: bool = False,
        max_tensors: int | None = None,
        num_threads: int | None = None,
    ) -> Adapter:
        """Read an adapter, strictly.

        Parameters
        ----------
        path
            A PEFT directory (``adapter_config.json`` and ``adapter_model.safetensors``; unsloth writes the
            same), or one safetensors file of kohya's or diffusers' naming, or a directory with
            ``pytorch_lora_weights.safetensors``.
        follow_symlinks
            Whether a symbolic link in the place of a file is followed, as caches of downloaded models need it.
        max_tensors
            The most tensors that the file may hold; None is 65,536.
        num_threads
            The most threads to use; None is ``INFER_ACCEL_NUM_THREADS``, or the processors of this process.

        Returns
        -------
        Adapter
            All of whose weights are finite, in pairs that fit each other.

        Raises
        ------
        AdapterError
            Anything is wrong; ``problems`` holds all of it, ``code`` that of the first.

        Notes
        -----
        Read are plain files of that directory alone: no link, no pipe, no pickle; nothing that the
        configuration names is imported or opened. Ranks and alphas have PEFT's meaning: a key of
        ``rank_pattern`` is a regular expression for the end of a module's name, the first that matches wins.
        Refused are methods that change more than a product of two matrices can say, and adapters that fit only
        a base changed in training (PiSSA, OLoRA, CorDA, LoftQ), which PEFT converts with
        ``path_initial_model_for_weight_conversion``.

        The work is one pass over the file at the speed of memory.
        """
        found, problems, text = examine(
            path, follow_symlinks=follow_symlinks, max_tensors=max_tensors, num_threads=num_threads
        )
        if found is None or problems:
            raise AdapterError(text, problems=tuple(problems), code=problems[0].code)
        return found

    @classmethod
    def from_arrays(
        cls,
        layers: Mapping[str, tuple[Array, Array]],
        *,
        alpha: float | Mapping[str, float],
        use_rslora: bool = False,
    ) -> Adapter:
        """Return an adapter of arrays, which are copied.

        Parameters
        ----------
        layers
            ``lora_A`` and ``lora_B`` of each module: ``[rank, in]`` and ``[out, rank]``, or
            ``[rank, in, kernel…]`` and ``[out, rank, 1…]`` of a convolution; float32, float16 or bfloat16
            (``ml_dtypes``), any strides.
        alpha
            The alpha of all modules, or of each.
        use_rslora
            Whether the scaling is ``alpha / sqrt(rank)`` instead of ``alpha / rank``.

        Returns
        -------
        Adapter
            Under the same checks as one that is loaded.

        Raises
        ------
        AdapterError
            Numbers that are not finite, shapes that do not fit; ``problems`` holds all of them.
        DTypeError
            Another number format.

        Examples
        --------
        >>> import numpy as np
        >>> factors = np.ones((4, 8), np.float16), np.ones((6, 4), np.float16)
        >>> Adapter.from_arrays({"q_proj": factors}, alpha=8, use_rslora=True).scaling
        4.0
        """
        parts = [
            (name, float(alpha[name] if isinstance(alpha, Mapping) else alpha), _parts(a), _parts(b))
            for name, (a, b) in layers.items()
        ]
        return wrap(_backend.native().lora.Adapter.from_parts(parts, use_rslora))

    @property
    def rank(self) -> int:
        """The largest rank of a layer."""
        return self._core.rank

    @property
    def scaling(self) -> float | None:
        """The scaling that all layers share; None where they differ (see :attr:`layers`)."""
        scalings = {layer.scaling for layer in self.layers}
        return scalings.pop() if len(scalings) == 1 else None

    @property
    def layers(self) -> tuple[AdapterLayer, ...]:
        """The low-rank updates, ordered by module."""
        if self._layers is None:
            self._layers = tuple(_layer(layer) for layer in self._core.layers())
        return self._layers

    @property
    def replacements(self) -> dict[str, Array]:
        """Tensors of the base that are replaced as a whole, by name: ``modules_to_save``, biases, embeddings."""
        return {name: _array(tensor) for name, _, tensor in self._core.replacements()}

    @property
    def replaced_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor of :attr:`replacements`, without making an array."""
        return {name: tuple(tensor.shape) for name, _, tensor in self._core.replacements()}

    @property
    def digest(self) -> str:
        """SHA-256 of what the adapter does, 64 hexadecimal digits: the same after saving and loading.

        It covers each layer's module, kind, rank, scaling and matrices, and each replaced tensor; not names of
        files, nor what the configuration notes beside. Computed on first use, at the speed of SHA-256.
        """
        return self._core.digest()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self._core.nbytes

    @property
    def config(self) -> dict[str, str]:
        """What the configuration says, as text."""
        return dict(self._core.config())

    def validate(self, base_dir: str | os.PathLike[str], *, follow_symlinks: bool = False) -> list[Problem]:
        """Return everything that is wrong between the adapter and a base; an empty list is good.

        Parameters
        ----------
        base_dir
            A checkpoint directory, or one safetensors file. Only headers are read.
        follow_symlinks
            As in :meth:`load`.

        Returns
        -------
        list of Problem
            Each with the module or tensor that has it.

        Raises
        ------
        IntegrityError
            The base itself cannot be read.
        """
        found = self._core.validate(os.fspath(base_dir), follow_symlinks=follow_symlinks)
        return [Problem(*problem) for problem in found]

    def resolve(self, base_dir: str | os.PathLike[str], *, follow_symlinks: bool = False) -> AdapterLedger:
        """Return where every delta goes in a base.

        Parameters
        ----------
        base_dir
            A checkpoint directory, or one safetensors file. Only headers are read.
        follow_symlinks
            As in :meth:`load`.

        Returns
        -------
        AdapterLedger
            Every delta of the adapter: applied somewhere, or named.

        Raises
        ------
        IntegrityError
            The base itself cannot be read.
        """
        ledger = self._core.resolve(os.fspath(base_dir), follow_symlinks=follow_symlinks)
        layers = self.layers
        return AdapterLedger(
            updates=[
                AdapterUpdate(
                    target=update.target,
                    source=update.source,
                    layer=layers[update.layer].path,
                    shape=update.place[1],
                    scaling=update.scaling,
                    _core=update,
                )
                for update in ledger.updates
            ],
            replacements={target: _array(tensor) for target, tensor in ledger.exchanges},
            untied=ledger.untied,
            problems=[Problem(*problem) for problem in ledger.problems],
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a PEFT directory: complete under its name, or not there at all.

        Parameters
        ----------
        path
            A directory that does not exist yet, or is empty. Nothing is overwritten.

        Raises
        ------
        AdapterError
            The directory is not empty, the disk refuses, or the adapter belongs to a pipeline of several models,
            which this layout cannot say. Nothing is left behind.

        Notes
        -----
        The files are written beside the target, made durable and then renamed. What :meth:`load` reads of them
        has the same :attr:`digest`.
        """
        self._core.save(os.fspath(path))

    def __reduce__(self) -> tuple[object, ...]:
        message = (
            "an adapter cannot be pickled, for it is large and lies in files: pass its path and load it there"
        )
        raise TypeError(message)

    def __repr__(self) -> str:
        layers, replaced = len(self.layers), len(self._core.replacements())
        return (
            f"<Adapter of rank {self.rank}: {layers} layer{'s' * (layers != 1)}, "
            f"{replaced} replaced tensor{'s' * (replaced != 1)}, {self.nbytes} bytes>"
        )


def examine(
    path: str | os.PathLike[str],
    *,
    follow_symlinks: bool = False,
    max_tensors: int | None = None,
    num_threads: int | None = None,
) -> tuple[Adapter | None, list[Problem], str]:
    """Return the layers without a fault, every fault, and the text of the refusal."""
    core, found, text = _backend.native().lora.examine_adapter(
        os.fspath(path), follow_symlinks=follow_symlinks, max_tensors=max_tensors, num_threads=num_threads
    )
    return None if core is None else wrap(core), [Problem(*problem) for problem in found], text


def wrap(core: _CoreAdapter) -> Adapter:
    """Return an adapter around the core's own."""
    adapter = object.__new__(Adapter)
    adapter._core = core
    adapter._layers = None
    return adapter


def _parts(array: Array) -> tuple[str, list[int], bytes]:
    """Return format, shape and bytes of an array."""
    return array.dtype.name, list(array.shape), np.ascontiguousarray(array).tobytes()


def _layer(core: _CoreLayer) -> AdapterLayer:
    named = {"lora_A": core.lora_a, "lora_B": core.lora_b, "magnitude": core.magnitude, "bias": core.bias}
    return AdapterLayer(
        path=core.path,
        component=core.component,
        kind=core.kind,
        rank=core.rank,
        alpha=core.alpha,
        scaling=core.scaling,
        fan_in_fan_out=core.fan_in_fan_out,
        dtype=core.lora_a.dtype,
        _tensors={name: tensor for name, tensor in named.items() if tensor is not None},
    )


def _array(tensor: _CoreTensor) -> Array:
    """Return a read-only array over the memory of a tensor, which it keeps alive."""
    flat = np.frombuffer(memoryview(tensor), np.uint8)  # type: ignore[arg-type]
    return flat.view(_numpy_dtype(tensor.dtype)).reshape(tensor.shape)


def _matrix(tensor: _CoreTensor, place: Place) -> Array:
    """Return a part of a tensor as a read-only matrix."""
    offset, shape, strides = place
    flat = _array(tensor).reshape(-1)[offset:]
    steps = tuple(step * flat.itemsize for step in strides)
    return np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False)


def _numpy_dtype(name: str) -> np.dtype[np.generic]:
    if name != "bfloat16":
        return np.dtype(name)
    dtype: np.dtype[np.generic] = np.dtype(_formats().bfloat16)
    return dtype


@functools.cache
def _formats() -> ModuleType:
    """Return the package that gives numpy its bfloat16."""
    try:
        import ml_dtypes  # noqa: PLC0415 - optional, and needed for this format alone
    except ImportError:
        message = "numpy has no bfloat16 of its own: install ml_dtypes to see these weights as arrays"
        raise DTypeError(message, code="dtype.ml_dtypes") from None
    module: ModuleType = ml_dtypes
    return module
