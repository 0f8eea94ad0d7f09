"""One tokenizer in many hands: threads, forks, pickles, signals."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import subprocess
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from infer_accel import errors
from infer_accel.tokenize import TokenBatch, Tokenizer, count_tokens

if TYPE_CHECKING:
    from collections.abc import Callable


def test_sixteen_threads_share_a_tokenizer(small: Tokenizer, texts: list[str]) -> None:
    expected = [small.encode_list(text) for text in texts]
    start = threading.Barrier(16)

    def work(offset: int) -> bool:
        start.wait()
        order = texts[offset:] + texts[:offset]
        alone = [small.encode_list(text) for text in order]
        together = [ids.tolist() for ids in small.encode_batch(order)]
        counts = small.count_batch(order).tolist()
        decoded = small.decode_batch(small.encode_batch(order), skip_special_tokens=False)
        rotated = expected[offset:] + expected[:offset]
        return alone == together == rotated and counts == [len(ids) for ids in rotated] and decoded == order

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(work, range(0, 160, 10)))


def test_a_server_counts_on_the_thread_of_its_event_loop(small: Tokenizer, texts: list[str]) -> None:
    expected = [small.count(text) for text in texts]

    async def request(number: int) -> bool:
        await asyncio.sleep(0)
        counted = small.count(texts[number])
        await asyncio.sleep(0)
        # What takes longer goes to another thread, where it must not hold up those on this one.
        batch = await asyncio.to_thread(small.count_batch, texts[number : number + 5], num_threads=2)
        return counted == expected[number] and batch.tolist() == expected[number : number + 5]

    async def serve() -> list[bool]:
        return await asyncio.gather(*map(request, range(0, len(texts), 3)))

    assert all(asyncio.run(serve()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_goes_on_after_a_batch(small: Tokenizer, texts: list[str]) -> None:
    expected = small.count_batch(texts, num_threads=2).tolist()
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def child() -> None:
        batch = small.encode_batch(texts, num_threads=2)
        answers.put((small.count_batch(texts, num_threads=2).tolist(), batch.lengths.tolist()))

    process = context.Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert answers.get() == (expected, expected)


def test_pickling_reads_the_same_file_again(
    trained: dict[str, Any], save: Callable[[dict[str, Any]], Path]
) -> None:
    tokenizer = Tokenizer.from_file(save(trained))
    copied = pickle.loads(pickle.dumps(tokenizer))
    assert copied.encode_list("a text") == tokenizer.encode_list("a text")
    assert repr(copied) == repr(tokenizer)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c_ends_a_long_batch(small: Tokenizer, python: str) -> None:
    path = small.__reduce__()[1][1]  # type: ignore[index]
    program = f"""
        import os, signal, threading, time
        # Whoever runs the tests in the background may have had SIGINT ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from infer_accel.tokenize import Tokenizer
        tokenizer = Tokenizer.from_file({path!r})
        text = " ".join(str(i * 7919) for i in range(20_000))

        def seconds(texts):
            started = time.monotonic()
            try:
                tokenizer.count_batch(texts)
            finally:
                global elapsed
                elapsed = time.monotonic() - started

        seconds([text] * 100)
        unit = elapsed
        threading.Timer(2 * unit, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            seconds([text] * 10_000)
        except KeyboardInterrupt:
            # A call that does not listen raises, too, but only at its end, after 100 units.
            print("interrupted" if elapsed < 70 * unit else f"too late, after {{elapsed / unit}} units")
            assert tokenizer.count("still alive") > 0
    """
    done = subprocess.run(
        [python, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.strip() == "interrupted", done.stderr


def test_results_are_the_callers_own(small: Tokenizer) -> None:
    first, second = small.encode("the same text"), small.encode("the same text")
    first[:] = 0
    assert second.tolist() == small.encode_list("the same text")
    assert first.flags.writeable
    numbers = small.encode_list("the same text")
    numbers.clear()
    assert small.encode_list("the same text") == second.tolist()


def test_a_batch_is_a_sequence_of_views() -> None:
    batch = TokenBatch(np.array([1, 2, 3, 4], np.int32), np.array([0, 2, 2, 4], np.int64))
    assert len(batch) == 3
    assert [ids.tolist() for ids in batch] == [[1, 2], [], [3, 4]]
    assert batch[-1].tolist() == [3, 4]
    assert np.shares_memory(batch[0], batch.ids)
    assert batch.lengths.tolist() == [2, 0, 2]
    for wrong in (3, -4):
        with pytest.raises(IndexError):
            batch[wrong]
    ids, mask = batch.to_padded(9, width=3)
    assert ids.tolist() == [[1, 2, 9], [9, 9, 9], [3, 4, 9]]
    assert mask.tolist() == [[True, True, False], [False] * 3, [True, True, False]]
    ids, _ = batch.to_padded(9, width=3, side="left")
    assert ids.tolist() == [[9, 1, 2], [9, 9, 9], [9, 3, 4]]
    with pytest.raises(errors.ShapeError, match="width=1"):
        batch.to_padded(width=1)
    with pytest.raises(errors.ArgumentError, match="side"):
        batch.to_padded(side="up")  # type: ignore[arg-type]
    for pad_id in (1 << 31, -(1 << 31) - 1, 1 << 64):
        with pytest.raises(errors.IdError, match="pad_id"):
            batch.to_padded(pad_id)
    empty = TokenBatch(np.zeros(0, np.int32), np.zeros(1, np.int64))
    assert empty.to_padded()[0].shape == (0, 0)


def test_empty_batches(small: Tokenizer) -> None:
    batch = small.encode_batch([])
    assert (len(batch), batch.ids.tolist(), batch.offsets.tolist()) == (0, [], [0])
    assert small.count_batch(()).tolist() == []
    assert small.decode_batch([]) == []
    assert small.decode_batch([[], []]) == ["", ""]
    assert small.encode("").dtype == np.int32
    assert [ids.tolist() for ids in small.encode_batch(text for text in ("a", "b"))] == [
        small.encode_list("a"),
        small.encode_list("b"),
    ]


def test_a_directory_names_the_end_token(small: Tokenizer, tmp_path: Path) -> None:
    source = small.__reduce__()[1][1]  # type: ignore[index]
    (tmp_path / "tokenizer.json").write_bytes(Path(source).read_bytes())
    assert Tokenizer.from_dir(tmp_path).eos_token_id is None
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|begin|>"}}', "utf-8")
    assert Tokenizer.from_dir(tmp_path).eos_token_id == small.token_to_id("<|begin|>")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}', "utf-8")
    assert Tokenizer.from_dir(tmp_path).eos_token_id == small.token_to_id("<|end|>")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "no such token"}', "utf-8")
    with pytest.raises(ValueError, match="no such token"):
        Tokenizer.from_dir(tmp_path)


def test_count_tokens_takes_one_text_or_many(small: Tokenizer) -> None:
    source = small.__reduce__()[1][1]  # type: ignore[index]
    assert count_tokens("one text", small) == small.count("one text")
    assert count_tokens(["one", "more texts"], small).tolist() == [
        small.count("one"),
        small.count("more texts"),
    ]
    assert count_tokens("one text", source) == small.count("one text")


def test_tokenizers_are_read_not_made() -> None:
    with pytest.raises(TypeError, match="from_file"):
        Tokenizer()
