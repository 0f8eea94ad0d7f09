"""The programs that we are measured against: which are installed, and how to get the others."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module, metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["Rivals", "installed_version"]

#: Module → what `pip install` wants. A rival that is not listed here is asked for by its own name.
_REQUIREMENTS = {
    "torch": "torch",
    "peft": "peft",
    "vllm": "vllm",
    "dynamo._core": "ai-dynamo-runtime",
    "sglang.srt.mem_cache.unified_radix_cache": "sglang",
    "tokenizers": "tokenizers",
    "safetensors.torch": "safetensors",
    "tiktoken": "tiktoken",
    "gigatoken": "gigatoken",
    "toktok": "toktok-rs",
    "fastokens": "fastokens",
    "sentencepiece": "sentencepiece",
}


@dataclass(slots=True)
class Rivals:
    """Modules by name, loaded when first asked for; the missing ones are remembered."""

    #: Version of each distribution of which a module was loaded.
    versions: dict[str, str] = field(default_factory=dict)
    #: Module → how to get it.
    absent: dict[str, str] = field(default_factory=dict)

    def load(self, name: str) -> ModuleType | None:
        """Return the module `name`, or None where it is not installed or does not load here."""
        if name in self.absent:
            return None
        try:
            module = import_module(name)
        except ImportError as error:
            missing = isinstance(error, ModuleNotFoundError) and error.name == name.partition(".")[0]
            self.absent[name] = (
                f"pip install {_distribution(name)}" if missing else f"installed, but: {error}"
            )
            return None
        self.versions[_distribution(name)] = installed_version(_distribution(name))
        return module

    def version(self, name: str) -> str:
        """Return the version of the distribution of module `name`, which was loaded."""
        return self.versions[_distribution(name)]


def _distribution(module: str) -> str:
    return _REQUIREMENTS.get(module, module.partition(".")[0])


def installed_version(distribution: str) -> str:
    """Return the version of a distribution, "unknown" where it has none."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "unknown"
