"""tokenize in a server: prompts that grow, ids that are shown as they come, conversations, loading."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infer_accel.bench.harness import Case, Contender, cost
from infer_accel.kvcache import hash_blocks, hash_prompt, none_hash
from infer_accel.tokenize import ChatTemplate, PromptCache, Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from infer_accel.bench import data
    from infer_accel.bench.harness import Bench

__all__ = ["cases"]

#: A conversation of about 40,000 tokens, to which about 1,000 are added at each turn.
_PROMPT_CHARACTERS = 160_000
_TURN_CHARACTERS = 4_000
_TURNS = 48
_STREAM_CHARACTERS = 4_000
_BLOCK = 16

_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}"
    "{{ '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def cases(bench: Bench, family: data.Family, prose: str) -> Iterator[Case]:
    """Yield the rows of one family; `prose` is text that nobody has met yet."""
    tokenizer = Tokenizer.from_file(family.tokenizer_json)
    most = _PROMPT_CHARACTERS + _TURNS * _TURN_CHARACTERS
    yield _growing(bench, family, tokenizer, prose.encode("ascii", "ignore").decode()[:most], "")
    # One character beyond ASCII, and a whole string must be converted to UTF-8 before anything else.
    yield _growing(bench, family, tokenizer, "Déjà vu 🦜. " + prose[-most:], ", not all ASCII")
    yield _stream(bench, family, tokenizer, prose[-_STREAM_CHARACTERS:])
    chat = _chat(bench, family, tokenizer, prose[:8_000])
    if chat is not None:
        yield chat
    hashed = _hashed(bench, family, prose[8_000:16_000])
    if hashed is not None:
        yield hashed
    yield _load(bench, family)


def _growing(bench: Bench, family: data.Family, tokenizer: Tokenizer, text: str, which: str) -> Case:
    """Time the ids of a prompt that has grown by one turn since the call before."""
    cache = PromptCache(tokenizer, 16 << 20)
    cache.encode(text[:_PROMPT_CHARACTERS])
    ways: dict[str, Callable[[str], Any]] = {"infer-accel PromptCache": cache.encode}
    ways["infer-accel encode"] = tokenizer.encode
    ranks, gigatoken, tiktoken = family.ranks, bench.rival("gigatoken"), bench.rival("tiktoken")
    if gigatoken is not None:
        ways["gigatoken"] = gigatoken.Tokenizer(str(family.tokenizer_json)).encode
    if tiktoken is not None and ranks is not None:
        encoding = tiktoken.Encoding(
            family.name, pat_str=ranks.pattern, mergeable_ranks=ranks.mergeable(), special_tokens={}
        )
        ways["tiktoken"] = encoding.encode_to_numpy
    for name, way in ways.items():
        if name != "infer-accel PromptCache":
            way(text[:_PROMPT_CHARACTERS])

    def make(name: str, call: Callable[[str], Any]) -> Contender:
        turns = _Growing(text)

        def check(result: Any) -> None:  # noqa: ANN401 - an array, of whichever kind
            if list(result) != tokenizer.encode_list(turns.current):
                raise AssertionError("the ids differ from those of the whole prompt")

        return Contender(name, lambda: call(turns.next()), check=check)

    ours, *peers = (make(name, way) for name, way in ways.items())
    title = f"a chat of 40k tokens grows by 1k{which}, {family.name}"
    return Case(title, cost("µs", 1e-6), 1, ours, peers, fresh_calls=_TURNS)


class _Growing:
    """Prompts that grow by a turn each time; the last one stays."""

    def __init__(self, text: str) -> None:
        ends = [_PROMPT_CHARACTERS + turn * _TURN_CHARACTERS for turn in range(1, _TURNS + 1)]
        self._prompts, self.current = [text[:end] for end in reversed(ends)], ""

    def next(self) -> str:
        if self._prompts:
            self.current = self._prompts.pop()
        return self.current


def _stream(bench: Bench, family: data.Family, tokenizer: Tokenizer, text: str) -> Case:
    """Time showing ids one by one."""
    ids = tokenizer.encode_list(text, add_special_tokens=False)

    def ours() -> str:
        stream = tokenizer.stream()
        return "".join([stream.step(number) for number in ids]) + stream.finish()

    def check(result: object) -> None:
        if result != text:
            raise AssertionError("the text that was shown is another one")

    contender, peers = Contender("infer-accel", ours, check=check), []
    tokenizers = bench.rival("tokenizers")
    if tokenizers is not None:
        rival = tokenizers.Tokenizer.from_file(str(family.tokenizer_json))

        def theirs() -> str:
            stream = tokenizers.decoders.DecodeStream(skip_special_tokens=True)
            return "".join([stream.step(rival, number) or "" for number in ids])

        peers.append(Contender("tokenizers DecodeStream", theirs, check=check))
    return Case(f"show one id of a stream, {family.name}", cost("ns/id", 1e-9), len(ids), contender, peers)


def _chat(bench: Bench, family: data.Family, tokenizer: Tokenizer, text: str) -> Case | None:
    """Time the number of tokens of a conversation, its template included."""
    chat = ChatTemplate(tokenizer, _TEMPLATE)
    messages = _messages(text)
    expected = len(tokenizer.encode(chat.render(messages), add_special_tokens=False, parse_special=True))

    def check(result: object) -> None:
        if result != expected:
            raise AssertionError(f"{result} tokens instead of {expected}")

    ours = Contender(
        "infer-accel ChatTemplate.count", lambda: chat.count(messages, trust_messages=True), check=check
    )
    jinja, tokenizers = bench.rival("jinja2"), bench.rival("tokenizers")
    if jinja is None or tokenizers is None:
        return None
    template = jinja.Environment(trim_blocks=True, lstrip_blocks=True).from_string(_TEMPLATE)
    rival = tokenizers.Tokenizer.from_file(str(family.tokenizer_json))
    peers = [
        Contender(
            "jinja2 and tokenizers",
            lambda: len(rival.encode(template.render(messages=messages), add_special_tokens=False).ids),
            check=check,
        ),
        Contender(
            "jinja2 and infer-accel",
            lambda: tokenizer.count(
                template.render(messages=messages), add_special_tokens=False, parse_special=True
            ),
            check=check,
        ),
    ]
    return Case(f"count a chat of 20 messages, {family.name}", cost("µs", 1e-6), 1, ours, peers)


def _messages(text: str) -> list[dict[str, str]]:
    """Return a conversation of 20 messages."""
    roles, each = ("user", "assistant"), len(text) // 20
    parts = [text[at : at + each] for at in range(0, len(text), each)]
    return [{"role": roles[turn % 2], "content": part} for turn, part in enumerate(parts)]


def _hashed(bench: Bench, family: data.Family, text: str) -> Case | None:
    """Time what a router asks caches for: from messages to the hashes of their blocks."""
    jinja, cbor2 = bench.rival("jinja2"), bench.rival("cbor2")
    if jinja is None or cbor2 is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "tokenizer.json").symlink_to(Path(family.tokenizer_json).resolve())
        Path(folder, "chat_template.jinja").write_text(_TEMPLATE)
        tokenizer = Tokenizer.from_dir(folder)
    messages = _messages(text)
    template = jinja.Environment(trim_blocks=True, lstrip_blocks=True).from_string(_TEMPLATE)

    def ids() -> NDArray[np.int32]:
        prompt = template.render(messages=messages, add_generation_prompt=True)
        return tokenizer.encode(prompt, add_special_tokens=False, parse_special=True)

    def one_by_one() -> list[bytes]:
        numbers, hashes, parent = ids().tolist(), [], none_hash("sha256_cbor")
        for at in range(0, len(numbers) - _BLOCK + 1, _BLOCK):
            block = (parent, tuple(numbers[at : at + _BLOCK]), None)
            parent = hashlib.sha256(cbor2.dumps(block, canonical=True)).digest()
            hashes.append(parent)
        return hashes

    expected = one_by_one()

    def check(result: Any) -> None:  # noqa: ANN401 - arrays or bytes
        if [bytes(digest) for digest in result] != expected:
            raise AssertionError("the hashes differ")

    options: dict[str, Any] = {"block_size": _BLOCK, "trust_messages": True}
    contender = Contender(
        "infer-accel hash_prompt", lambda: hash_prompt(tokenizer, messages, **options).hashes, check=check
    )
    peers = [
        Contender("jinja2, infer-accel and hashlib", one_by_one, check=check),
        Contender(
            "jinja2 and infer-accel, three calls",
            lambda: hash_blocks(ids(), block_size=_BLOCK),
            check=check,
        ),
    ]
    return Case(f"hash a chat of 20 messages, {family.name}", cost("µs", 1e-6), 1, contender, peers)


def _load(bench: Bench, family: data.Family) -> Case:
    """Time reading a tokenizer.json until the first ids."""
    path, text = str(family.tokenizer_json), "The first words, and 12 numbers."
    expected = Tokenizer.from_file(path).encode_list(text, add_special_tokens=False)

    def check(result: Any) -> None:  # noqa: ANN401 - a list or an array
        if list(result) != expected:
            raise AssertionError("the ids differ")

    def ours() -> Any:  # noqa: ANN401
        return Tokenizer.from_file(path).encode(text, add_special_tokens=False)

    peers = []
    gigatoken, tokenizers = bench.rival("gigatoken"), bench.rival("tokenizers")
    if gigatoken is not None:
        peers.append(Contender("gigatoken", lambda: gigatoken.Tokenizer(path).encode(text), check=check))
    if tokenizers is not None:

        def theirs() -> Any:  # noqa: ANN401
            return tokenizers.Tokenizer.from_file(path).encode(text, add_special_tokens=False).ids

        peers.append(Contender("tokenizers", theirs, check=check))
    return Case(
        f"load tokenizer.json, {family.name}",
        cost("ms", 1e-3),
        1,
        Contender("infer-accel", ours, check=check),
        peers,
    )
