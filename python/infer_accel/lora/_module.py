"""Many adapters beside one PyTorch model on a CPU."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np

from infer_accel.errors import AdapterError, ArgumentError, GradientError, ShapeError
from infer_accel.lora._adapter import Adapter
from infer_accel.lora._apply import apply_adapters
from infer_accel.lora._store import layer_products

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Self

    import torch
    from numpy.typing import NDArray
    from torch.utils.hooks import RemovableHandle

    from infer_accel.lora._apply import AdapterStack, Product
    from infer_accel.lora._store import AdapterStore, StoredAdapter

    Ids = NDArray[np.int64]
    _Hook = Callable[[torch.nn.Module, tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor | None]

__all__ = ["LoraModel"]

#: Of a token to which nothing is applied.
_NO_ADAPTER = -1


@dataclass(frozen=True, slots=True)
class _Active:
    """What the running block applies: an id for each row, and the stacks of each module as they were at its start."""

    ids: Ids
    stacks: dict[str, list[AdapterStack]]


class LoraModel:
    """A PyTorch model on a CPU whose ``nn.Linear`` layers serve the adapters of a store.

    The model stays as it is: its modules, weights and state dict are not touched, and outside of :meth:`use` it
    computes what it always did. Inside, each linear layer adds what the adapters of the rows make of its input: one
    :func:`apply_adapters` call a layer, for all adapters of the batch together.

    Parameters
    ----------
    model
        Any module made of ``torch.nn.Linear`` (subclasses that compute ``x @ weight.T + bias`` included) on the CPU,
        in float32, float16 or bfloat16.
    store
        Where the adapters lie. Layers are called as ``model.named_modules()`` calls them. Several models may share a
        store if their layers are called the same.
    fused
        Modules of which adapters know the parts: the last component of the module's name, and under it the parts'
        names with their outputs, in order: ``{"qkv_proj": {"q_proj": 4096, "k_proj": 1024, "v_proj": 1024}}``.
        Adapters that were trained on the fused module itself work beside those.
    num_threads
        As in :func:`apply_adapters`.

    Raises
    ------
    ArgumentError
        A model without linear layers, or fused parts that are not as wide as their module.

    Notes
    -----
    Inference only: inside :meth:`use`, run under ``torch.no_grad()`` or ``torch.inference_mode()``. Which adapters are
    in use belongs to the thread or task that said so (a context variable), so that threads may serve different batches
    with one model at once.

    Each result has the bits of :func:`apply_adapter` on that row alone. Beside PEFT's runtime, which rounds what
    lies between the two products and their sum to the model's format, it is the more exact one; with a float32
    model they differ in the order of summation only.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from infer_accel.lora import AdapterStore
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3, bias=False))
    >>> served = LoraModel(model, AdapterStore(1 << 20))
    >>> adapter = served.load("sql", {"0": (np.ones((1, 2), np.float32), np.ones((3, 1), np.float32))})
    >>> x = torch.ones(2, 2)
    >>> with torch.no_grad(), served.use([None, "sql"]):
    ...     out = model(x)
    >>> (out - model(x)).detach().round().tolist()
    [[0.0, 0.0, 0.0], [2.0, 2.0, 2.0]]
    """

    def __init__(
        self,
        model: torch.nn.Module,
        store: AdapterStore,
        *,
        fused: Mapping[str, Mapping[str, int]] | None = None,
        num_threads: int | None = None,
    ) -> None:
        from torch import nn  # noqa: PLC0415 - whoever has a model has imported it

        self._model = model
        self._store = store
        self._num_threads = num_threads
        self._active: ContextVar[_Active | None] = ContextVar("infer_accel.lora", default=None)
        self._widths: dict[str, tuple[int, int]] = {}
        self._keys: dict[str, list[tuple[list[str], list[int] | None]]] = {}
        self._handles: list[RemovableHandle] = []
        linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        if not linear:
            message = f"a {type(model).__name__} without torch.nn.Linear came; there is nothing to serve adapters with"
            raise ArgumentError(message, code="argument.model")
        for name, module in linear.items():
            self._add(name, module, (fused or {}).get(name.rpartition(".")[2]))
        for name, module in linear.items():
            self._handles.append(module.register_forward_hook(self._hook(name)))

    def _add(self, name: str, module: torch.nn.Linear, parts: Mapping[str, int] | None) -> None:
        """Note which layers of adapters a module answers to."""
        self._widths[name] = module.out_features, module.in_features
        self._keys[name] = [([name], None)]
        if parts is None:
            return
        if sum(parts.values()) != module.out_features:
            message = f"{name} has {module.out_features} outputs, but its parts {dict(parts)}"
            raise ArgumentError(message, code="argument.model")
        prefix = name.removesuffix(name.rpartition(".")[2])
        self._widths |= {prefix + part: (width, module.in_features) for part, width in parts.items()}
        self._keys[name].append(([prefix + part for part in parts], list(parts.values())))

    @property
    def model(self) -> torch.nn.Module:
        """The model."""
        return self._model

    @property
    def store(self) -> AdapterStore:
        """The store."""
        return self._store

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that adapters may have."""
        return tuple(self._widths)

    def load(self, name: str, source: str | PathLike[str] | Adapter | Mapping[str, Product]) -> StoredAdapter:
        """Load an adapter into the store, after a look whether it belongs to this model.

        (What ``store.load`` itself loads is applied where the names of layers agree.)

        Parameters
        ----------
        name, source
            As :meth:`AdapterStore.load` takes them.

        Raises
        ------
        AdapterError
            A layer that the model does not have, or not of this width (``adapter.layer_absent``,
            ``adapter.other_base``), or what :meth:`AdapterStore.load` refuses.
        """
        if isinstance(source, str | PathLike):
            source = Adapter.load(source)
        if isinstance(source, Adapter):
            shapes = {layer.path: (layer.shapes["lora_B"], layer.shapes["lora_A"]) for layer in source.layers}
        else:
            products = layer_products(source)
            shapes = {layer: (tuple(b.shape), tuple(a.shape)) for layer, (a, b, _) in products.items()}
        for layer, (up, down) in shapes.items():
            if layer not in self._widths:
                message = (
                    f"the adapter {name!r} has the layer {layer!r}, which this model does not have as a linear layer "
                    f"(it has {', '.join(list(self._widths)[:3])}, …): rename the layers, or pass fused="
                )
                raise AdapterError(message, code="adapter.layer_absent")
            width = up[:1] + down[-1:]
            if width != self._widths[layer]:
                message = (
                    f"the layer {layer!r} of the adapter {name!r} has [out, in] = {list(width)}, the model's "
                    f"{list(self._widths[layer])}: they belong to different models"
                )
                raise AdapterError(message, code="adapter.other_base")
        return self._store.load(name, source)

    @contextmanager
    def use(self, adapters: Sequence[str | None] | Sequence[Sequence[str | None]]) -> Iterator[None]:
        """Apply adapters to what the model computes in a block.

        Parameters
        ----------
        adapters
            A name or None for each sequence of the batch (dimension 0 of the inputs); or for each token: a list of
            lists for inputs ``[batch, tokens, …]``, a flat one for inputs ``[tokens, …]``.

        Raises
        ------
        AdapterError
            A name that the store does not hold.
        ShapeError
            Lists of different lengths; or, from the model, names for another number of sequences or tokens.

        Notes
        -----
        The adapters are those of the moment at which the block begins: one that is replaced or evicted meanwhile stays
        as it was until the block ends, in all layers.
        """
        token = self._active.set(self._resolve(adapters))
        try:
            yield
        finally:
            self._active.reset(token)

    def _resolve(self, adapters: Sequence[str | None] | Sequence[Sequence[str | None]]) -> _Active:
        names = np.array(adapters, dtype=object)
        if any(isinstance(name, list | tuple) for name in names.flat):
            message = "sequences of different lengths came; name an adapter or None for every token of each"
            raise ShapeError(message, code="shape.adapter_ids")
        known: dict[str | None, int] = {None: _NO_ADAPTER}
        for name in names.flat:
            if name not in known:
                known[name] = self._store.get(name).id
        ids = np.array([known[name] for name in names.flat], np.int64).reshape(names.shape)
        keys = [key for keys in self._keys.values() for key in keys]
        stacks = iter(self._store.stacks(keys))
        active = _Active(ids, {name: [next(stacks) for _ in keys] for name, keys in self._keys.items()})
        present = {*next(iter(active.stacks.values()))[0].ids, _NO_ADAPTER}
        for name, adapter_id in known.items():
            if adapter_id not in present:
                message = f"the adapter {name!r} was evicted just now: load it again, or pin it"
                raise AdapterError(message, code="adapter.absent")
        # Layers that no adapter touches cost nothing.
        return _Active(
            ids, {name: [s for s in found if any(s.ranks)] for name, found in active.stacks.items()}
        )

    def _hook(self, name: str) -> _Hook:
        def add(
            _: torch.nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor
        ) -> torch.Tensor | None:
            active = self._active.get()
            if active is None or not active.stacks[name]:
                return None
            if output.requires_grad:
                message = "adapters are served without gradients: run the model under torch.no_grad()"
                raise GradientError(message, code="gradient")
            x = arguments[0]
            ids = _token_ids(active.ids, x.shape[:-1])
            out = output if output.is_contiguous() else output.contiguous()
            for stack in active.stacks[name]:
                apply_adapters(
                    x.reshape(-1, x.shape[-1]),
                    stack,
                    ids,
                    out=out.view(-1, out.shape[-1]),
                    num_threads=self._num_threads,
                )
            return out

        return add

    def close(self) -> None:
        """Take the hooks off the model; it then serves no adapters any more."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Take the hooks off the model."""
        self.close()

    def __repr__(self) -> str:
        """Return what it is, in short."""
        return f"<LoraModel: {type(self._model).__name__}, {len(self._keys)} linear layers, {self._store!r}>"


def _token_ids(ids: Ids, shape: tuple[int, ...]) -> Ids:
    """Return the id of each row of an input of this shape (its features left out)."""
    tokens = int(np.prod(shape, dtype=np.int64))
    if tuple(shape[: ids.ndim]) != ids.shape and (len(shape) != 1 or shape[0] != ids.size):
        message = (
            f"adapters of shape {ids.shape} are in use, but a layer's input is {tuple(shape)} (and its features): "
            "name one for each sequence or for each token"
        )
        raise ShapeError(message, code="shape.adapter_ids")
    return np.repeat(ids.ravel(), tokens // max(ids.size, 1))
