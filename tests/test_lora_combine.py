"""Combining adapters: against the specification bit for bit, and against PEFT's own `add_weighted_adapter`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infer_accel import errors, reference
from infer_accel.lora import Adapter, combine

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from infer_accel.lora._combine import CombineMethod

safetensors_numpy = pytest.importorskip("safetensors.numpy")

METHODS: tuple[CombineMethod, ...] = (
    "linear",
    "cat",
    "svd",
    "ties",
    "dare_linear",
    "dare_ties",
    "magnitude_prune",
)
ELEMENTWISE = tuple(method for method in METHODS if method not in {"cat", "svd"})
#: Of the largest element: float32 sums of a few products, in two orders.
CLOSE = 4 * 2.0**-24

Matrices = dict[str, tuple[np.ndarray, np.ndarray]]


def options(method: str, *, density: float = 0.4, seed: int = 5, rank: int | None = None) -> dict[str, Any]:
    """Return the settings that a method takes."""
    taken: dict[str, Any] = {}
    if method not in {"linear", "cat", "svd"}:
        taken["density"] = density
    if method.startswith("dare"):
        taken["seed"] = seed
    if method == "svd" and rank is not None:
        taken["rank"] = rank
    return taken


def random_matrices(
    seed: int, rank: int, modules: Sequence[str], sizes: tuple[int, int] = (12, 20)
) -> Matrices:
    rng = np.random.default_rng(seed)
    rows, columns = sizes
    return {
        module: (
            rng.standard_normal((rank, columns)).astype(np.float32),
            rng.standard_normal((rows, rank)).astype(np.float32),
        )
        for module in modules
    }


def saved(where: Path, matrices: Matrices, *, alpha: float, **config: Any) -> Path:
    """Write an adapter as PEFT does."""
    where.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for module, (a, b) in matrices.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
    safetensors_numpy.save_file(tensors, where / "adapter_model.safetensors")
    rank = next(iter(matrices.values()))[0].shape[0]
    targets = sorted({module.rsplit(".", 1)[-1] for module in matrices})
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": targets, **config}
    (where / "adapter_config.json").write_text(json.dumps(settings))
    return where


def loaded(where: Path) -> tuple[Matrices, dict[str, Any]]:
    """Return the matrices of a saved adapter, and its configuration."""
    tensors = safetensors_numpy.load_file(where / "adapter_model.safetensors")
    suffix = ".lora_A.weight"
    names = [name.removesuffix(suffix) for name in tensors if name.endswith(suffix)]
    matrices = {
        name.removeprefix("base_model.model."): (tensors[name + suffix], tensors[f"{name}.lora_B.weight"])
        for name in names
    }
    return matrices, json.loads((where / "adapter_config.json").read_text())


def terms(adapters: Sequence[tuple[Matrices, float]], weights: Sequence[float], module: str) -> list[Any]:
    term = reference.lora.Term
    return [
        term(index, *matrices[module], scaling, weight)
        for index, ((matrices, scaling), weight) in enumerate(zip(adapters, weights, strict=True))
        if module in matrices
    ]


def product(matrices: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    a, b = (matrix.astype(np.float64) for matrix in matrices)
    return b @ a


# The specification ------------------------------------------------------------------------------------------


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32),
    method=st.sampled_from(METHODS),
    ranks=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    alphas=st.lists(st.sampled_from([1.0, 8.0, 0.3]), min_size=4, max_size=4),
    weights=st.lists(st.floats(-2, 2), min_size=4, max_size=4),
    density=st.floats(0.01, 1.0),
    rank=st.none() | st.integers(1, 30),
    sizes=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    num_threads=st.sampled_from([None, 1, 2]),
)
def test_combining_equals_the_specification(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    method: CombineMethod,
    ranks: list[int],
    alphas: list[float],
    weights: list[float],
    density: float,
    rank: int | None,
    sizes: tuple[int, int],
    num_threads: int | None,
) -> None:
    if method in ELEMENTWISE:
        ranks = ranks[:1] * len(ranks)
    weights, where = weights[: len(ranks)], tmp_path_factory.mktemp("adapters")
    names = ["model.q_proj", "model.v_proj"]
    adapters, inputs = [], []
    for index, adapter_rank in enumerate(ranks):
        modules = names[: 1 + (index + 1) % 2]  # every other adapter lacks v_proj
        matrices = random_matrices(seed + index, adapter_rank, modules, sizes)
        inputs.append((matrices, alphas[index] / adapter_rank))
        adapters.append(Adapter.load(saved(where / str(index), matrices, alpha=alphas[index])))
    given_options = options(method, density=density, seed=seed, rank=rank)
    combined = combine(adapters, weights, method=method, **given_options, num_threads=num_threads)
    combined.save(where / "out")
    got, _ = loaded(where / "out")
    assert set(got) == set(names)
    for module in names:
        expected = reference.lora.combine_module(
            module, terms(inputs, weights, module), method=method, **given_options
        )
        if method != "svd":
            np.testing.assert_array_equal(bits(got[module][0]), bits(expected[0]))
            np.testing.assert_array_equal(bits(got[module][1]), bits(expected[1]))
        else:
            assert got[module][0].shape == expected[0].shape
            check_best(got[module], terms(inputs, weights, module))


def bits(array: np.ndarray) -> np.ndarray:
    return array.view(np.uint32)


def check_best(got: tuple[np.ndarray, np.ndarray], parts: list[Any]) -> None:
    """Nothing of that rank comes closer to the sum (Eckart and Young, 1936)."""
    delta = sum(part.factor * product((part.lora_A, part.lora_B)) for part in parts)
    values = np.linalg.svd(delta, compute_uv=False)
    left_over = float(np.sqrt(np.sum(values[got[0].shape[0] :] ** 2)))
    # What float32 cannot hold is lost below its smallest numbers.
    assert np.linalg.norm(delta - product(got)) <= left_over + 1e-6 * float(values[0]) + 1e-37


# PEFT -------------------------------------------------------------------------------------------------------

RANKS = {"cat": (4, 2, 6), "svd": (4, 2, 6)}
WEIGHTS = (0.7, -1.3, 0.5)
ALPHAS = (8.0, 4.0, 6.0)


@pytest.fixture
def torch() -> Iterator[Any]:
    module = pytest.importorskip("torch")
    state = module.random.get_rng_state()
    module.manual_seed(1)
    yield module
    module.random.set_rng_state(state)


def peft_model(torch: Any, peft: Any, ranks: Sequence[int]) -> Any:
    """Return a small model with three adapters, of which the second leaves one module alone."""

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj = torch.nn.Linear(40, 24, bias=False)
            self.v_proj = torch.nn.Linear(40, 56, bias=False)

        def forward(self, x: Any) -> Any:
            return self.q_proj(x), self.v_proj(x)

    model: Any = None
    for index, (rank, alpha) in enumerate(zip(ranks, ALPHAS, strict=True)):
        targets = ["q_proj"] if index == 1 else ["q_proj", "v_proj"]
        config = peft.LoraConfig(
            r=rank,
            lora_alpha=alpha,
            target_modules=targets,
            init_lora_weights=False,
            use_rslora=index == 2,
        )
        if model is None:
            model = peft.get_peft_model(Block(), config, adapter_name="0")
        else:
            model.add_adapter(str(index), config)
    return model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", METHODS)
def test_combining_means_what_it_means_in_peft(
    torch: Any, tmp_path: Path, method: CombineMethod, monkeypatch: pytest.MonkeyPatch
) -> None:
    peft = pytest.importorskip("peft", exc_type=ImportError)
    names = ["0", "1", "2"]
    model = peft_model(torch, peft, RANKS.get(method, (4, 4, 4)))
    model.save_pretrained(tmp_path, selected_adapters=names)
    adapters = [Adapter.load(tmp_path / name) for name in names]
    ours = combine(adapters, WEIGHTS, method=method, **options(method, rank=3))
    ours.save(tmp_path / "ours")
    got, _ = loaded(tmp_path / "ours")
    if method.startswith("dare"):
        masks = peft_masks(torch, [loaded(tmp_path / name)[0] for name in names])
        monkeypatch.setattr(torch, "bernoulli", lambda _: next(masks))
    settings = (
        {"density": 0.4} if "density" in options(method) else {"svd_rank": 3 if method == "svd" else None}
    )
    model.add_weighted_adapter(names, list(WEIGHTS), "theirs", combination_type=method, **settings)
    for module, layer in (
        ("q_proj", model.base_model.model.q_proj),
        ("v_proj", model.base_model.model.v_proj),
    ):
        assert layer.scaling["theirs"] == 1.0
        theirs = tuple(
            getattr(layer, matrix)["theirs"].weight.detach().numpy() for matrix in ("lora_A", "lora_B")
        )
        if method == "cat":
            # PEFT fills up with zeros where an adapter leaves a module alone.
            rank = got[module][0].shape[0]
            assert not theirs[0][rank:].any()
            theirs = (theirs[0][:rank], theirs[1][:, :rank])
        pairs = zip(got[module], theirs, strict=True)
        if method == "svd":
            # Signs, and order among equal values, are open: the products are compared, in float32's accuracy.
            np.testing.assert_allclose(
                product(got[module]), product(theirs), atol=1e-5 * np.abs(product(theirs)).max()
            )
            continue
        for mine, other in pairs:
            assert np.max(np.abs(mine - other)) <= CLOSE * np.max(np.abs(other))


def peft_masks(torch: Any, adapters: list[Matrices]) -> Iterator[Any]:
    """Yield our random choices in the order in which PEFT draws its own."""
    for module in ("q_proj", "v_proj"):
        for side, matrix in enumerate(("lora_A", "lora_B")):
            for index, matrices in enumerate(adapters):
                if module in matrices:
                    mask = reference.lora.dare_mask(
                        matrices[module][side].shape,
                        density=0.4,
                        seed=5,
                        module=module,
                        matrix=matrix,
                        adapter=index,
                    )
                    yield torch.from_numpy(mask).float()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["cat", "svd", "linear"])
def test_peft_loads_what_was_combined(torch: Any, tmp_path: Path, method: CombineMethod) -> None:
    peft = pytest.importorskip("peft", exc_type=ImportError)
    names = ["0", "1", "2"]
    model = peft_model(torch, peft, RANKS.get(method, (4, 4, 4)))
    model.save_pretrained(tmp_path, selected_adapters=names)
    ours = combine([Adapter.load(tmp_path / name) for name in names], WEIGHTS, method=method)
    ours.save(tmp_path / "ours")
    model.load_adapter(tmp_path / "ours", "ours")
    got, _ = loaded(tmp_path / "ours")
    for module, layer in (
        ("q_proj", model.base_model.model.q_proj),
        ("v_proj", model.base_model.model.v_proj),
    ):
        delta = layer.get_delta_weight("ours").detach().numpy()
        expected = product(got[module])
        assert np.max(np.abs(delta - expected)) <= 1e-5 * np.max(np.abs(expected))


# What is refused --------------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path: Path) -> list[Adapter]:
    names = ["model.q_proj", "model.v_proj"]
    return [
        Adapter.load(saved(tmp_path / str(seed), random_matrices(seed, 4, names), alpha=8)) for seed in (1, 2)
    ]


@pytest.mark.parametrize(
    ("weights", "method", "given_options", "named"),
    [
        ([1.0], "cat", {}, ["2 adapters and 1 weights"]),
        ([1.0, float("nan")], "cat", {}, [r"weights\[1\]=NaN"]),
        ([float("inf"), float("-inf")], "cat", {}, [r"weights\[0\]=inf", r"weights\[1\]=-inf"]),
        ([1.0, 1.0], "cat", {"density": 0.5}, ["density came"]),
        ([1.0, 1.0], "sum", {}, ["method=.sum. came", "allowed: linear, cat, svd"]),
        ([1.0, 1.0], "ties", {}, ["ties needs density"]),
        ([1.0, 1.0], "ties", {"density": 0.0}, ["density=0 came"]),
        ([1.0, 1.0], "ties", {"density": 1.5}, ["density=1.5 came"]),
        ([1.0, 1.0], "dare_ties", {"density": float("nan")}, ["density=NaN came", "dare_ties needs seed"]),
        ([1.0, 1.0], "svd", {"rank": 0}, ["rank=0 came"]),
        ([1.0, 1.0], "linear", {"rank": 4, "seed": 1}, ["rank came", "seed came"]),
    ],
)
def test_wrong_settings_are_refused(
    pair: list[Adapter], weights: list[float], method: str, given_options: dict[str, Any], named: list[str]
) -> None:
    with pytest.raises(errors.ArgumentError) as caught:
        combine(pair, weights, method=method, **given_options)  # type: ignore[arg-type]
    assert caught.value.code == "argument.combine"
    for text in named:
        assert caught.match(text)


def test_paths_are_not_adapters(tmp_path: Path) -> None:
    with pytest.raises(errors.ArgumentError, match=r"adapters\[0\] is of type PosixPath.*Adapter\.load"):
        combine([tmp_path], [1.0], method="cat")  # type: ignore[list-item]


def test_no_adapter_is_refused() -> None:
    with pytest.raises(errors.ArgumentError, match="no adapter came"):
        combine([], [], method="cat")


def test_everything_that_does_not_fit_is_named(tmp_path: Path) -> None:
    names = ["model.q_proj", "model.v_proj"]
    first = random_matrices(1, 4, names)
    wider = random_matrices(2, 4, names[:1], (12, 24)) | random_matrices(3, 4, names[1:])
    ranks = random_matrices(4, 2, names)
    adapters = [
        Adapter.load(saved(tmp_path / str(index), matrices, alpha=8))
        for index, matrices in enumerate([first, wider, ranks])
    ]
    with pytest.raises(errors.AdapterError) as caught:
        combine(adapters, [1.0, 1.0, 1.0], method="ties", density=0.5)
    assert caught.value.code == "adapter.combine"
    for text in (
        "model.q_proj: adapter 0 has lora_A",
        "different bases",
        "model.v_proj: adapter 0 has rank 4",
    ):
        assert caught.match(text)
    combine([adapters[0], adapters[2]], [1.0, 1.0], method="svd")


def test_what_no_method_combines_is_refused(tmp_path: Path) -> None:
    names = ["model.q_proj"]
    plain = Adapter.load(saved(tmp_path / "plain", random_matrices(1, 4, names), alpha=8))
    where = saved(tmp_path / "dora", random_matrices(1, 4, names), alpha=8, use_dora=True)
    tensors = safetensors_numpy.load_file(where / "adapter_model.safetensors")
    tensors["base_model.model.model.q_proj.lora_magnitude_vector"] = np.ones(12, np.float32)
    safetensors_numpy.save_file(tensors, where / "adapter_model.safetensors")
    with pytest.raises(errors.AdapterError, match="adapter 1 is DoRA"):
        combine([plain, Adapter.load(where)], [1.0, 1.0], method="cat")


def test_what_float32_cannot_hold_is_refused(pair: list[Adapter]) -> None:
    with pytest.raises(errors.AdapterError, match="beyond what float32 can hold"):
        combine(pair, [1e300, 1.0], method="cat")
