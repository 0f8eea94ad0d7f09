"""Adapters: read strictly, matched with their base, written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np

from infer_accel import _backend
from infer_accel._numbers import real
from infer_accel.errors import AdapterError, ArgumentError
from infer_accel.lora._layers import AdapterLedger, AdapterUpdate, Problem, array_of, layer_of

if TYPE_CHECKING:
    from infer_accel._typing import Tensor
    from infer_accel.lora._layers import AdapterLayer, Array, CoreLayer, CoreLedger, CoreTensor

__all__ = ["Adapter", "examine", "wrap"]


class _CoreAdapter(Protocol):
    """What the native core offers."""

    rank: int
    nbytes: int

    def digest(self) -> str: ...
    def config(self) -> list[tuple[str, str]]: ...
    def layers(self) -> list[CoreLayer]: ...
    def replacements(self) -> list[tuple[str, str, CoreTensor]]: ...
    def resolve(self, base: str, *, follow_symlinks: bool) -> CoreLedger: ...
    def validate(self, base: str, *, follow_symlinks: bool) -> list[tuple[str, str, str]]: ...
    def save(self, path: str) -> None: ...


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
        BackendError
            ``INFER_ACCEL_BACKEND=reference``, which knows tensors and no files: nor do :meth:`save`,
            :meth:`validate` and :meth:`resolve`.

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
        layers: Mapping[str, tuple[Tensor, Tensor]],
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
            (``ml_dtypes``, or torch's), any strides.
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
        DTypeError, LayoutError, GradientError
            Another number format or byte order, or a tensor that cannot be read as it lies.
        ArgumentError
            No pairs of matrices, or no alpha for a module.

        Examples
        --------
        >>> import numpy as np
        >>> factors = np.ones((4, 8), np.float16), np.ones((6, 4), np.float16)
        >>> Adapter.from_arrays({"q_proj": factors}, alpha=8, use_rslora=True).scaling
        4.0
        """
        _check_layers(layers, alpha)
        parts = [
            (name, real(alpha[name] if isinstance(alpha, Mapping) else alpha), *_matrices(name, pair))
            for name, pair in layers.items()
        ]
        return wrap(_backend.load("lora").Adapter.from_parts(parts, use_rslora))

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
            self._layers = tuple(layer_of(layer) for layer in self._core.layers())
        return self._layers

    @property
    def replacements(self) -> dict[str, Array]:
        """Tensors of the base that are replaced as a whole, by name: ``modules_to_save``, biases, embeddings."""
        return {name: array_of(tensor) for name, _, tensor in self._core.replacements()}

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
            replacements={target: array_of(tensor) for target, tensor in ledger.exchanges},
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
    core, found, text = _backend.files().lora.examine_adapter(
        os.fspath(path), follow_symlinks=follow_symlinks, max_tensors=max_tensors, num_threads=num_threads
    )
    return None if core is None else wrap(core), [Problem(*problem) for problem in found], text


def wrap(core: _CoreAdapter) -> Adapter:
    """Return an adapter around the core's own."""
    adapter = object.__new__(Adapter)
    adapter._core = core
    adapter._layers = None
    return adapter


def _check_layers(layers: object, alpha: object) -> None:
    if not isinstance(layers, Mapping):
        message = (
            f"{type(layers).__name__} came as layers; pass a dict of (lora_A, lora_B) by the names of modules"
        )
        raise ArgumentError(message, code="argument.matrices")
    if isinstance(alpha, Mapping) and (missing := [str(name) for name in layers if name not in alpha]):
        message = f"alpha has no value for {', '.join(missing)}; give one for each"
        raise ArgumentError(message, code="argument.alpha")


def _matrices(name: str, pair: object) -> list[tuple[str, list[int], bytes]]:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ArgumentError(f"{name}: what came is no pair; pass (lora_A, lora_B)", code="argument.matrices")
    return [_parts(matrix) for matrix in pair]


def _parts(matrix: Tensor) -> tuple[str, list[int], bytes]:
    """Return format, shape and bytes of a matrix."""
    from infer_accel._reference._floats import dtype_name  # noqa: PLC0415 - seldom needed
    from infer_accel._reference.kvcache import arguments  # noqa: PLC0415 - seldom needed

    array = arguments.array_of(matrix)
    return dtype_name(matrix), list(array.shape), np.ascontiguousarray(array).tobytes()
