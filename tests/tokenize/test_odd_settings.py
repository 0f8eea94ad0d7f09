"""Documents that no model has, and what they must do all the same: wait, refuse, or change nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from infer_accel.errors import TokenizerError
from infer_accel.tokenize import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

tokenizers = pytest.importorskip("tokenizers", reason="the reference: pip install tokenizers")


def step(kind: str, **fields: object) -> dict[str, object]:
    return {"type": kind, **fields}


def sequence(*steps: dict[str, object]) -> dict[str, object]:
    return step("Sequence", decoders=list(steps))


def strip(start: int, stop: int) -> dict[str, object]:
    return step("Strip", content=" ", start=start, stop=stop)


def replace(pattern: str, content: str) -> dict[str, object]:
    return step("Replace", pattern={"String": pattern}, content=content)


BYTE_LEVEL = step("ByteLevel", add_prefix_space=True, trim_offsets=True, use_regex=True)
METASPACE = step("Metaspace", replacement="Ġ", prepend_scheme="always", split=False)


@pytest.fixture
def document(trained: dict[str, Any]) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(trained))
    return copy


def streamed(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    stream = tokenizer.stream()
    return [*(stream.step(number) for number in ids), stream.finish()]


@pytest.mark.parametrize(
    "decoder",
    [
        sequence(step("Fuse"), strip(0, 3)),
        sequence(step("Fuse"), strip(9, 0)),
        sequence(step("Fuse"), replace("eĠ", "")),
        sequence(step("Fuse"), BYTE_LEVEL),
        sequence(BYTE_LEVEL, strip(2, 2)),
        sequence(METASPACE, sequence(step("Fuse"), METASPACE)),
        sequence(replace("Ġ", " "), sequence(sequence(step("Fuse"), strip(1, 1)))),
    ],
    ids=json.dumps,
)
def test_a_stream_waits_where_the_last_id_can_change_the_first(
    document: dict[str, Any], save: Callable[[dict[str, Any]], Path], decoder: dict[str, object]
) -> None:
    document["decoder"] = decoder
    path = save(document)
    ours, theirs = Tokenizer.from_file(path), tokenizers.Tokenizer.from_file(str(path))
    for text in ("the  end of the line  ", "   漢字 and é  ", "e e e e e e e e e e e e e   "):
        ids = theirs.encode(text).ids
        *shown, last = streamed(ours, ids)
        assert "".join([*shown, last]) == theirs.decode(ids) == ours.decode(ids)
        assert not any(shown)


@pytest.mark.parametrize(
    "decoder", [BYTE_LEVEL, sequence(replace("Ġ", " "), step("Fuse"), strip(1, 0)), METASPACE]
)
def test_a_stream_does_not_wait_elsewhere(
    document: dict[str, Any], save: Callable[[dict[str, Any]], Path], decoder: dict[str, object]
) -> None:
    document |= {"decoder": decoder, "normalizer": step("Lowercase")}  # so that the pipeline is not native
    tokenizer = Tokenizer.from_file(save(document))
    assert not tokenizer.is_native
    ids = tokenizer.encode_list("the end of the line")
    *shown, last = streamed(tokenizer, ids)
    assert not last
    assert "".join(shown) == tokenizer.decode(ids)
    assert all(shown[1:])


@pytest.mark.parametrize("nested", [False, True])
def test_nothing_put_before_a_text_is_refused(
    document: dict[str, Any], save: Callable[[dict[str, Any]], Path], *, nested: bool
) -> None:
    empty = step("Prepend", prepend="")
    inner = step("Sequence", normalizers=[step("Prepend", prepend="the "), empty])
    document["normalizer"] = step("Sequence", normalizers=[inner]) if nested else empty
    with pytest.raises(TokenizerError, match="Prepend has nothing to put before a text"):
        Tokenizer.from_file(save(document))


@pytest.mark.parametrize("max_length", [0, 3])
def test_a_truncation_without_room_for_two_frames_is_refused(
    document: dict[str, Any], save: Callable[[dict[str, Any]], Path], max_length: int
) -> None:
    frames = [step(kind, sep=["!", 0], cls=["#", 2]) for kind in ("BertProcessing", "RobertaProcessing")]
    frames[1] |= {"trim_offsets": True, "add_prefix_space": False}
    document["post_processor"] = step("Sequence", processors=frames)
    truncation = {"direction": "Left", "max_length": max_length, "strategy": "LongestFirst", "stride": 0}
    with pytest.raises(
        TokenizerError, match=f"max_length is {max_length}, but the post-processor alone adds 4"
    ):
        Tokenizer.from_file(save(document | {"truncation": truncation}))
    path = save(document | {"truncation": truncation | {"max_length": 5}})
    expected = tokenizers.Tokenizer.from_file(str(path)).encode("the end of the line").ids
    assert Tokenizer.from_file(path).encode_list("the end of the line") == expected
    assert len(expected) == 5
