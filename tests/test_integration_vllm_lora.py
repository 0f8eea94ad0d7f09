"""What is checked of an adapter before vLLM has it: files, base, modules. vLLM itself is in `tests/serve`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.serve import lora_adapters

from infer_accel.integrations._vllm_lora.checks import AdapterChecks, loaded_problem
from infer_accel.lora import Adapter


@pytest.fixture
def base(tmp_path: Path) -> str:
    return lora_adapters.write_base(tmp_path / "base")


def test_every_hostile_adapter_is_refused_in_one_line(base: str, tmp_path: Path) -> None:
    known = AdapterChecks(base)
    for name, path in lora_adapters.write_hostile(tmp_path / "hostile", base).items():
        problem = known.problem(path)
        assert problem is not None, name
        assert lora_adapters.HOSTILE[name] in problem, (name, problem)
        assert "\n" not in problem
        assert len(problem) < 900


def test_a_good_one_is_read_once_until_it_changes(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = lora_adapters.write(tmp_path / "good", lora_adapters.factors(base, 1, 4), base)
    read = []
    load = Adapter.load

    def count(*arguments: object, **options: object) -> object:
        read.append(arguments)
        return load(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Adapter, "load", count)
    known = AdapterChecks(base)
    assert [known.problem(path) for _ in range(3)] == [None] * 3
    assert len(read) == 1
    weights = Path(path) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert "but the file has 92" in str(known.problem(path))
    assert len(read) == 2


def test_without_a_base_the_files_alone_are_checked(base: str, tmp_path: Path) -> None:
    hostile = lora_adapters.write_hostile(tmp_path / "hostile", base)
    for known in (AdapterChecks(None), AdapterChecks("an-organisation/a-model")):
        assert known.problem(hostile["nothing_fits"]) is None
        assert "NaN" in str(known.problem(hostile["nan"]))


def test_a_base_that_cannot_be_read_says_nothing(base: str, tmp_path: Path) -> None:
    path = lora_adapters.write(tmp_path / "good", lora_adapters.factors(base, 1, 4), base)
    (Path(base) / "model.safetensors").write_bytes(b"no safetensors")
    assert AdapterChecks(base).problem(path) is None


def test_links_are_followed_as_caches_of_downloads_need_it(base: str, tmp_path: Path) -> None:
    path = Path(lora_adapters.write(tmp_path / "good", lora_adapters.factors(base, 1, 4), base))
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in path.iterdir():
        (linked / file.name).symlink_to(file)
    assert AdapterChecks(base).problem(str(linked)) is None


MODULES: dict[str, tuple[int, int] | None] = {"layers.0.q_proj": (6, 8), "layers.0.k_proj": None}
PAIR = torch.ones(2, 6), torch.ones(8, 2)


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        ({"layers.0.q_proj": PAIR, "layers.0.k_proj": PAIR}, None),
        ({}, "it holds no weights"),
        ({"q": PAIR}, "none of its 1 modules (q) is one of the model's: it would change nothing"),
        ({"layers.0.q_proj": PAIR, "q": PAIR}, "modules that the model does not have"),
        ({"layers.0.q_proj": (PAIR[0], None)}, "layers.0.q_proj: lora_B is missing"),
        ({"layers.0.q_proj": (None, PAIR[1])}, "layers.0.q_proj: lora_A is missing"),
        ({"layers.0.k_proj": (torch.ones(3, 6), PAIR[1])}, "are no pair"),
        ({"layers.0.k_proj": (torch.ones(6), PAIR[1])}, "are no pair"),
        ({"layers.0.q_proj": (torch.ones(2, 7), PAIR[1])}, "where the model has 6 features in and 8 out"),
        ({"layers.0.q_proj": (PAIR[0] * float("nan"), PAIR[1])}, "not finite"),
        ({"layers.0.q_proj": (PAIR[0], PAIR[1].half() * float("inf"))}, "not finite"),
    ],
)
def test_what_an_engine_read_is_held_against_its_modules(
    factors: dict[str, tuple[torch.Tensor, torch.Tensor]], expected: str | None
) -> None:
    problem = loaded_problem(factors, MODULES)
    assert problem == expected if expected is None else expected in str(problem)


def test_without_vllm_each_plugin_is_one_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    from infer_accel.integrations import vllm_lora

    for name in [name for name in sys.modules if name.startswith("infer_accel.integrations._vllm_lora")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert not vllm_lora.register_guard()
    assert not vllm_lora.register_grouped()
    for record, what in zip(caplog.records, ("not checked", "vLLM's own operations"), strict=True):
        assert what in record.getMessage()
        assert "known to work: 0.32" in record.getMessage()
