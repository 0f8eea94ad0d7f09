"""The tokenizer mode in stand-ins for vLLM's registries."""

from __future__ import annotations

import importlib
import logging
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from infer_accel import integrations
from infer_accel.errors import ArgumentError
from infer_accel.integrations import _vllm_plugins

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

from tests import transformers_double
from tests.test_integration_transformers_tokenizer import WORDS, of_the_double

if TYPE_CHECKING:
    from collections.abc import Callable

OURS = "infer_accel.integrations.vllm_tokenizer"


class Registry:
    """As vLLM's two are: modes, and where their classes lie."""

    def __init__(self) -> None:
        self.tokenizers: dict[str, tuple[str, str]] = {}
        self.renderers = self.tokenizers

    def register(self, mode: str, module: str, class_name: str) -> None:
        assert mode not in self.tokenizers, "registered twice"
        self.tokenizers[mode] = (module, class_name)


class RenamedRegistry(Registry):
    def register(self, mode: str, path: str) -> None:  # type: ignore[override]  # that is the point
        self.tokenizers[mode] = (path, "")


class CachedHfTokenizer:
    @classmethod
    def from_pretrained(cls, path_or_repo_id: str, *args: Any, **kwargs: Any) -> Any:
        tokenizer = of_the_double()
        tokenizer.read = (path_or_repo_id, args, kwargs)
        return tokenizer


def resolve(name: str, *args: Any, tokenizer_mode: str, **kwargs: Any) -> tuple[Any, ...]:
    return tokenizer_mode, f"/snapshots/{name}", args, {**kwargs, "mistral_format": False}


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return what imports the module, beside a vLLM of a version."""

    def load_it(version: str = "0.32.0", registry: type[Registry] = Registry) -> Any:
        transformers_double.install(monkeypatch)
        names: dict[str, Any] = {
            "TokenizerRegistry": registry(),
            "RENDERER_REGISTRY": registry(),
            "CachedHfTokenizer": CachedHfTokenizer,
            "resolve_tokenizer_args": resolve,
            "__version__": version,
        }
        for name in (
            "vllm",
            "vllm.renderers",
            "vllm.renderers.registry",
            "vllm.tokenizers",
            "vllm.tokenizers.hf",
            "vllm.tokenizers.registry",
        ):
            module = ModuleType(name)
            module.__dict__.update(names)
            monkeypatch.setitem(sys.modules, name, module)
        forget(monkeypatch)
        return importlib.import_module(OURS)

    return load_it


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, OURS, raising=False)
    monkeypatch.delattr(integrations, "vllm_tokenizer", raising=False)


def test_the_mode_is_known_to_vllm(load: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    module = load()
    # Every process of a server does this, and some do it twice.
    _vllm_plugins.tokenizer()
    _vllm_plugins.tokenizer()
    assert module.TokenizerRegistry.tokenizers == {"infer_accel": (OURS, "InferAccelTokenizer")}
    assert module.RENDERER_REGISTRY.renderers == {"infer_accel": ("vllm.renderers.hf", "HfRenderer")}
    assert caplog.records == []


def test_a_tokenizer_is_read_as_vllm_reads_it_and_served(
    load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load()
    monkeypatch.setenv(module.CACHE_VARIABLE, "1000000")
    tokenizer = module.InferAccelTokenizer.from_pretrained(
        "some/model", revision="abc", truncation_side="left"
    )
    assert tokenizer.read == (
        "/snapshots/some/model",
        (),
        {"revision": "abc", "truncation_side": "left", "mistral_format": False},
    )
    assert tokenizer.name_or_path == "some/model"
    assert tokenizer._infer_accel_core.cache.capacity_bytes == 1_000_000
    tokenizer.calls.clear()  # what was compared before it is served
    assert tokenizer.encode(WORDS) == of_the_double().encode(WORDS)
    assert tokenizer.calls == []


@pytest.mark.parametrize("given", ["much", "-1", "1e6"])
def test_a_capacity_that_is_none_is_refused(
    load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    module = load()
    monkeypatch.setenv(module.CACHE_VARIABLE, given)
    with pytest.raises(ArgumentError, match="pass a number of bytes") as raised:
        module.InferAccelTokenizer.from_pretrained("some/model")
    assert raised.value.code == "argument.environment"


@pytest.mark.parametrize(
    ("version", "registry", "reason"),
    [
        ("0.34.1", Registry, "0.34.1 came; known to work: 0.32, 0.33"),
        ("0.33.0", RenamedRegistry, "a changed build"),
    ],
)
def test_under_a_vllm_that_is_not_known_the_mode_is_its_own(
    load: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
    version: str,
    registry: type[Registry],
    reason: str,
) -> None:
    module = load(version, registry)
    if registry is RenamedRegistry:
        # Who registers in another way has no place for the mode; vLLM then says that it does not know it.
        assert reason in module.problem()
        return
    module.register()
    assert "infer_accel" in module.TokenizerRegistry.tokenizers
    tokenizer = module.InferAccelTokenizer.from_pretrained("some/model")
    assert type(tokenizer) is transformers_double.PreTrainedTokenizerFast
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert reason in caplog.text


def test_without_the_interface_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    forget(monkeypatch)
    _vllm_plugins.tokenizer()
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "0.32 and 0.33 are known to work" in caplog.text
