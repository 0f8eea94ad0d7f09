"""Tokenizers of ``transformers`` with their calls served natively, beside the same without."""

from __future__ import annotations

import copy
import importlib.util
import logging
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infer_accel.errors import TokenizerError
from infer_accel.integrations._tokenizer.core import Core
from infer_accel.integrations.transformers_tokenizer import accelerate
from infer_accel.tokenize import ChatTemplate

tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

from tests import transformers_double as double  # noqa: E402 - it needs jinja2

if TYPE_CHECKING:
    from pathlib import Path

TEMPLATE = """\
{%- if tools %}{{ '<|im_start|>system\\nTools:' }}
    {%- for tool in tools %}{{ ' ' + tool['name'] }}{% endfor %}{{ '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message['role'] == 'nobody' %}{{ raise_exception('nobody may not speak') }}{% endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}{% if thinking %}{{ '<think>' }}{% endif %}
{%- endif %}
"""
SPECIAL = ["<|im_start|>", "<|im_end|>"]
WORDS = "The pages of a prompt are kept, and found again when it grows. It's 2026; naïve café — 東京。\n\n  def f(x):"


def backend() -> Any:
    """Return a byte-level tokenizer, trained on a line or two."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=SPECIAL,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    made.train_from_iterator([WORDS] * 4, trainer)
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", made.token_to_id("<|im_start|>"))]
    )
    return made


BACKEND = backend()


def of_the_double() -> Any:
    return double.PreTrainedTokenizerFast(
        copy.deepcopy(BACKEND), TEMPLATE, bos_token="<|im_start|>", eos_token="<|im_end|>"
    )


def of_transformers() -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=copy.deepcopy(BACKEND),
        chat_template=TEMPLATE,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


KINDS = ["double"] + (["transformers"] if importlib.util.find_spec("transformers") is not None else [])


@pytest.fixture(params=KINDS)
def plain(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a tokenizer as it is without us."""
    if request.param == "transformers":
        return of_transformers()
    double.install(monkeypatch)
    return of_the_double()


def growing() -> list[list[dict[str, str]]]:
    """Return the turns of a conversation, each with all before it."""
    messages = [{"role": "system", "content": "Be brief. <|im_end|> is not yours to write."}]
    turns = []
    for turn in range(8):
        messages.append({"role": "user", "content": WORDS[turn:] * (turn + 1)})
        turns.append(list(messages))
        messages.append({"role": "assistant", "content": f"{turn}: {WORDS[::-1]}"})
    return turns


def outcome(tokenizer: Any, call: Any) -> tuple[Any, Exception | None]:
    try:
        return call(tokenizer), None
    except Exception as error:  # noqa: BLE001 - whatever it is, it has to be the same
        return None, error


def same(ours: Any, theirs: Any, call: Any) -> Any:
    """Return what a call gives, which is the same for both, errors included."""
    expected, error = outcome(theirs, call)
    found, ours_error = outcome(ours, call)
    assert (type(ours_error), str(ours_error)) == (type(error), str(error))
    assert type(found) is type(expected)
    assert (dict(found) if hasattr(found, "keys") else found) == (
        dict(expected) if hasattr(expected, "keys") else expected
    )
    return found


def test_growing_conversations_are_the_same(plain: Any) -> None:
    ours = accelerate(plain)
    assert isinstance(ours, type(plain))
    assert type(ours) is not type(plain)
    options = {"add_generation_prompt": True}
    for messages in growing():
        prompt = same(ours, plain, lambda one: one.apply_chat_template(messages, tokenize=False, **options))  # noqa: B023 - called at once
        ids = same(ours, plain, lambda one: one(prompt, add_special_tokens=False))["input_ids"]  # noqa: B023
        same(ours, plain, lambda one: one.encode(prompt, truncation=True, max_length=100_000))  # noqa: B023
        same(ours, plain, lambda one: one.apply_chat_template(messages, thinking=True, **options))  # noqa: B023
        same(ours, plain, lambda one: one.apply_chat_template(messages, return_dict=False))  # noqa: B023
        same(ours, plain, lambda one: one.decode(ids))  # noqa: B023
        same(ours, plain, lambda one: one.decode(ids, skip_special_tokens=True))  # noqa: B023
        same(ours, plain, lambda one: one.decode(ids[-1]))  # noqa: B023


def test_the_frequent_calls_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    double.install(monkeypatch)
    ours = accelerate(of_the_double())
    turns = growing()
    for messages in turns[:3]:
        ours.apply_chat_template(messages, tokenize=False)
    ours.calls.clear()
    for messages in turns[3:]:
        prompt = ours.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, thinking=True)
        ids = ours(prompt, add_special_tokens=False, truncation=True, max_length=1 << 20)["input_ids"]
        assert ours.encode(prompt, add_special_tokens=False) == ids
        assert ours.decode(ids) == prompt
        assert ours.apply_chat_template(messages, tools=[{"name": "f"}], return_dict=False)
    assert ours.calls == []
    stats = ours._infer_accel_core.cache.stats
    assert stats.hit_rate > 0.5


CALLS: dict[str, Any] = {
    "cut off": lambda one: one.encode(WORDS, truncation=True, max_length=5),
    "cut off by length alone": lambda one: one.encode(WORDS, max_length=5),
    "exactly long enough": lambda one: one(WORDS, truncation=True, max_length=len(one(WORDS)["input_ids"])),
    "not cut off": lambda one: one.encode(WORDS, truncation=False, max_length=5),
    "a pair": lambda one: one.encode(WORDS, "more"),
    "a batch": lambda one: one([WORDS, "more"], add_special_tokens=False),
    "padding": lambda one: one(WORDS, padding=True),
    "nothing": lambda one: one.encode(""),
    "half a character": lambda one: one.encode("\ud800"),
    "no text": lambda one: one.encode(7),
    "an id that there is not": lambda one: one.decode([5, 99_999]),
    "a negative id": lambda one: one.decode([-1]),
    "no ids": lambda one: one.decode([]),
    "special tokens in the text": lambda one: one.encode("a<|im_end|>b<|im_start|> <|im_end|>"),
    "an open end": lambda one: one.apply_chat_template(
        [{"role": "user", "content": "and so"}], continue_final_message=True, tokenize=False
    ),
    "a template that refuses": lambda one: one.apply_chat_template(
        [{"role": "nobody", "content": "x"}], tokenize=False
    ),
    "a message without content": lambda one: one.apply_chat_template([{"role": "user"}], tokenize=False),
    "another template": lambda one: one.apply_chat_template(
        [{"role": "user", "content": "x"}],
        chat_template="{{ bos_token }}{{ messages[0].content }}{{ more }}",
        more="!",
    ),
    "no template": lambda one: one.apply_chat_template(
        [{"role": "user", "content": "x"}], chat_template="{{ messages[", tokenize=False
    ),
    "variables that are no JSON": lambda one: one.apply_chat_template(
        [{"role": "user", "content": "x"}], thinking=range(3), add_generation_prompt=True, tokenize=False
    ),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_whatever_is_asked_it_is_the_same(plain: Any, call: Any) -> None:
    ours = accelerate(plain)
    for _ in range(5):  # a template is compared at first, and served then
        same(ours, plain, call)


SHARED = of_the_double()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.sampled_from([*SPECIAL, "user\n", " the", "\n\n", "é", "東", "'ll", "  ", "12345"])
        | st.text(max_size=9)
    )
)
def test_any_text_has_the_same_ids(monkeypatch: pytest.MonkeyPatch, parts: list[str]) -> None:
    double.install(monkeypatch)
    ours, text = accelerate(SHARED), "".join(parts)
    for length in {len(text) // 2, len(text)}:
        ids = same(ours, SHARED, lambda one, length=length: one(text[:length]))["input_ids"]
        same(ours, SHARED, lambda one, ids=ids: one.decode(ids))


def test_copies_share_the_cache_and_pickles_begin_anew(plain: Any) -> None:
    ours = accelerate(plain)
    for copied in (copy.copy(ours), copy.deepcopy(ours)):
        assert type(copied) is type(ours)
        assert copied._infer_accel_core is ours._infer_accel_core
        same(copied, plain, lambda one: one.encode(WORDS))
    loaded = pickle.loads(pickle.dumps(ours))
    assert type(loaded) is type(ours)
    same(loaded, plain, lambda one: one.encode(WORDS))
    assert accelerate(ours) is ours


def test_added_tokens_are_known(plain: Any) -> None:
    ours = accelerate(plain)
    plain = copy.deepcopy(plain)
    for one in (ours, plain):
        one._add_tokens(["<|new|>"], special_tokens=True)
    assert same(ours, plain, lambda one: one.encode("a<|new|>b"))
    assert ours._infer_accel_core is not None


def test_threads_share_one(plain: Any) -> None:
    ours, turns = accelerate(plain), growing()
    expected = [plain.apply_chat_template(messages, tokenize=False) for messages in turns]
    ids = [plain.encode(prompt) for prompt in expected]

    def one(place: int) -> bool:
        prompt = ours.apply_chat_template(turns[place], tokenize=False)
        return bool(prompt == expected[place] and ours.encode(prompt) == ids[place])

    for prompt in expected[:3]:  # what comes first is compared, in the other library
        ours.apply_chat_template(turns[expected.index(prompt)], tokenize=False)
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, [place % len(turns) for place in range(200)]))


def test_a_template_that_differs_is_left_alone(
    plain: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ours, messages = accelerate(plain), growing()[0]
    monkeypatch.setattr(ChatTemplate, "render", lambda *_, **__: "something else")
    for _ in range(3):
        same(ours, plain, lambda one: one.apply_chat_template(messages, tokenize=False))
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "renders it differently" in caplog.text


def test_what_cannot_be_the_same_is_left_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    double.install(monkeypatch)

    class OwnEncode(double.PreTrainedTokenizerFast):
        def encode(self, *args: Any, **kwargs: Any) -> list[int]:
            return [1, 2, 3]

    class Newer(double.PreTrainedTokenizerFast):
        def decode(self, tokens: Any, /, **kwargs: Any) -> str:  # type: ignore[override]  # that is the point
            return ""

        decode.__module__ = double.HOME

    slow, splitting, words = of_the_double(), of_the_double(), of_the_double()
    slow._tokenizer = None
    splitting.split_special_tokens = True
    words._tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")
    )
    own, newer = (kind(copy.deepcopy(BACKEND), TEMPLATE) for kind in (OwnEncode, Newer))
    reasons = {
        "no fast tokenizer": slow,
        "splits special tokens": splitting,
        "not native here": words,
        "own encode": own,
        "decode('tokens'": newer,
    }
    for reason, tokenizer in reasons.items():
        caplog.clear()
        assert accelerate(tokenizer) is tokenizer
        assert [record.levelno for record in caplog.records] == [logging.WARNING], reason
        assert reason in caplog.text

    caplog.clear()
    tokenizer = of_the_double()
    with monkeypatch.context() as patch:
        patch.setattr(Core, "encode", lambda *_, **__: [7])
        assert accelerate(tokenizer) is tokenizer
    assert "would be [7]" in caplog.text

    def malformed(self: Core, description: str, capacity_bytes: int) -> None:
        raise TokenizerError("of a kind that is not known", code="tokenizer.unknown_format")

    caplog.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Core, "__init__", malformed)
        assert accelerate(tokenizer) is tokenizer
    assert "of a kind that is not known" in caplog.text


def test_nothing_is_left_on_disk(plain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert type(accelerate(plain)) is not type(plain)
    assert list(tmp_path.iterdir()) == []
