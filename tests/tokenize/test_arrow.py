"""Arrow arrays of strings: the same as lists of them, and whatever a producer can get wrong."""

from __future__ import annotations

import ctypes
import gc
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.soak import repeats

from infer_accel import errors, reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from infer_accel.tokenize import Tokenizer

TEXTS = ["plain", "", "漢字 🦜 é", "twelve bytes", "longer than twelve bytes, and then some", "a\0b"]


def same(tokenizer: Tokenizer, arrow: Any, texts: Sequence[str]) -> None:
    batch, expected = tokenizer.encode_batch(arrow), tokenizer.encode_batch(list(texts))
    assert batch.ids.tolist() == expected.ids.tolist()
    assert batch.offsets.tolist() == expected.offsets.tolist()
    assert tokenizer.count_batch(arrow).tolist() == tokenizer.count_batch(list(texts)).tolist()


@pytest.fixture(params=["string", "large_string", "string_view"])
def make(request: pytest.FixtureRequest) -> Callable[[Sequence[str | None]], Any]:
    pyarrow = pytest.importorskip("pyarrow", reason="pip install pyarrow")
    kind = getattr(pyarrow, request.param)()
    return lambda texts: pyarrow.array(texts, kind)


def test_arrays_are_lists(small: Tokenizer, make: Any) -> None:
    same(small, make(TEXTS), TEXTS)
    same(small, make([]), [])
    many = [f"{text} {number}" for number in range(3000) for text in TEXTS]
    same(small, make(many), many)


def test_slices_and_chunks(small: Tokenizer, make: Any) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    array = make(TEXTS * 5)
    for start, length in [(0, 3), (2, 9), (7, 0), (29, 1), (9, 21)]:
        same(small, array.slice(start, length), (TEXTS * 5)[start : start + length])
    chunked = pyarrow.chunked_array([array.slice(3, 4), array.slice(0, 0), array.slice(20)])
    same(small, chunked, (TEXTS * 5)[3:7] + (TEXTS * 5)[20:])
    same(small, pyarrow.chunked_array([], array.type), [])
    table = pyarrow.table({"text": chunked})
    same(small, table["text"], chunked.to_pylist())


def test_nulls_are_refused_where_they_are(small: Tokenizer, make: Any) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    array = make([*TEXTS, None, "after"])
    for arrow, place in ((array, 6), (array.slice(4), 2), (pyarrow.chunked_array([make(TEXTS), array]), 12)):
        with pytest.raises(errors.DTypeError, match=f"position {place} is null") as refused:
            small.encode_batch(arrow)
        assert refused.value.code == "tokenizer.null_text"
        with pytest.raises(errors.DTypeError):
            small.count_batch(arrow)
    same(small, array.slice(0, 6), TEXTS)  # the null lies outside
    same(small, array.slice(7), ["after"])


@given(
    st.lists(st.text(max_size=30), max_size=12),
    st.integers(0, 12),
    st.sampled_from(["string", "large_string", "string_view"]),
)
@settings(deadline=None, max_examples=repeats(60, 1200))
def test_any_texts(small: Tokenizer, texts: list[str], start: int, kind: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    same(small, pyarrow.array(texts, getattr(pyarrow, kind)()).slice(start), texts[start:])


def test_what_is_no_text_is_refused(small: Tokenizer) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    for arrow in (
        pyarrow.array([1, 2]),
        pyarrow.array([b"x"]),
        pyarrow.array(["a", "b", "a"]).dictionary_encode(),
        pyarrow.array([None]),
        pyarrow.table({"text": ["a"]}),
        pyarrow.array([["a"]]),
    ):
        with pytest.raises(errors.DTypeError) as refused:
            small.encode_batch(arrow)
        assert refused.value.code == "tokenizer.not_text"


def test_threads_share_an_array(small: Tokenizer) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    texts = TEXTS * 500
    array, expected = pyarrow.array(texts), small.count_batch(texts).tolist()
    wrong: list[int] = []

    def work() -> None:
        wrong.extend(1 for _ in range(5) if small.count_batch(array).tolist() != expected)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class Schema(ctypes.Structure):
    """ArrowSchema."""


class Array(ctypes.Structure):
    """ArrowArray."""


RELEASE_SCHEMA = ctypes.CFUNCTYPE(None, ctypes.POINTER(Schema))
RELEASE_ARRAY = ctypes.CFUNCTYPE(None, ctypes.POINTER(Array))
Schema._fields_ = [
    ("format", ctypes.c_char_p),
    ("name", ctypes.c_char_p),
    ("metadata", ctypes.c_char_p),
    ("flags", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("children", ctypes.c_void_p),
    ("dictionary", ctypes.c_void_p),
    ("release", RELEASE_SCHEMA),
    ("private_data", ctypes.c_void_p),
]
Array._fields_ = [
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.c_void_p),
    ("dictionary", ctypes.c_void_p),
    ("release", RELEASE_ARRAY),
    ("private_data", ctypes.c_void_p),
]

capsule = ctypes.pythonapi.PyCapsule_New
capsule.restype, capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


class Producer:
    """Exports whatever it is told to, and counts what is released."""

    def __init__(self, form: bytes, buffers: Sequence[Any], length: int, **fields: int) -> None:
        self.released: list[str] = []
        # Eight bytes more than are needed, so that nothing is read outside.
        self.memory = [
            None if content is None else ctypes.create_string_buffer(bytes(content) + bytes(8))
            for content in buffers
        ]
        self.pointers = (ctypes.c_void_p * max(len(buffers), 1))(
            *[None if content is None else ctypes.addressof(content) for content in self.memory]
        )

        def release_schema(pointer: Any) -> None:
            self.released.append("schema")
            pointer[0].release = RELEASE_SCHEMA()

        def release_array(pointer: Any) -> None:
            self.released.append("array")
            pointer[0].release = RELEASE_ARRAY()

        self.schema = Schema(format=form, release=RELEASE_SCHEMA(release_schema))
        self.array = Array(
            length=length,
            n_buffers=fields.pop("n_buffers", len(buffers)),
            buffers=ctypes.cast(self.pointers, ctypes.POINTER(ctypes.c_void_p)),
            release=RELEASE_ARRAY(release_array),
            **fields,
        )
        self.names = (b"arrow_schema", b"arrow_array")

    def __arrow_c_array__(self, requested_schema: object | None = None) -> Any:
        structures = (self.schema, self.array)
        return tuple(
            capsule(ctypes.addressof(structure), name, None)
            for structure, name in zip(structures, self.names, strict=True)
        )


def offsets(*numbers: int, dtype: Any = np.int32) -> bytes:
    return np.array(numbers, dtype).tobytes()


def view(length: int, buffer: int = 0, start: int = 0, inline: bytes = b"") -> bytes:
    if inline:
        return np.int32(length).tobytes() + inline.ljust(12, b"\0")
    return np.array([length, 0, buffer, start], np.int32).tobytes()


LONG = b"a text of more than twelve bytes"
SIZE = np.int64(len(LONG)).tobytes()


def producers() -> Iterator[tuple[str, Producer, list[str] | None]]:
    """Yield what an array is, the array, and its texts; None where it must be refused."""
    yield "plain", Producer(b"u", [None, offsets(0, 1, 3), b"abc"], 2), ["a", "bc"]
    yield "offset", Producer(b"u", [None, offsets(9, 1, 3), b"abc"], 1, offset=1), ["bc"]
    yield "starts late", Producer(b"u", [None, offsets(1, 2), b"abc"], 1), ["b"]
    yield "valid", Producer(b"u", [b"\x03", offsets(0, 1, 3), b"abc"], 2, null_count=-1), ["a", "bc"]
    yield (
        "null elsewhere",
        Producer(b"u", [b"\x02", offsets(0, 1, 3), b"abc"], 1, null_count=1, offset=1),
        ["bc"],
    )
    yield "nothing", Producer(b"u", [None, None, None], 0), []
    yield "no buffers, nothing", Producer(b"vu", [], 0), []
    yield "empty strings", Producer(b"U", [None, offsets(0, 0, dtype=np.int64), None], 1), [""]
    yield (
        "views",
        Producer(b"vu", [None, view(32) + view(2, inline=b"xy"), LONG, SIZE], 2),
        [LONG.decode(), "xy"],
    )
    yield "views in place", Producer(b"vu", [None, view(12, inline=b"x" * 12), None], 1), ["x" * 12]
    yield "null", Producer(b"u", [b"\x01", offsets(0, 1, 3), b"abc"], 2, null_count=1), None
    yield "back", Producer(b"u", [None, offsets(0, 3, 1), b"abc"], 2), None
    yield "negative", Producer(b"u", [None, offsets(-1, 1), b"abc"], 1), None
    yield "far back", Producer(b"U", [None, offsets(-(1 << 62), 1, dtype=np.int64), b"abc"], 1), None
    yield "no offsets", Producer(b"u", [None, None, b"abc"], 1), None
    yield "no bytes", Producer(b"u", [None, offsets(0, 1), None], 1), None
    yield "no UTF-8", Producer(b"u", [None, offsets(0, 2), b"\xff\xfe"], 1), None
    yield "half a character", Producer(b"u", [None, offsets(0, 1, 3), "é!".encode()], 2), None
    yield "a surrogate", Producer(b"u", [None, offsets(0, 3), b"\xed\xa0\x80"], 1), None
    yield "negative length", Producer(b"u", [None, offsets(0), b""], -1), None
    yield "negative offset", Producer(b"u", [None, offsets(0, 1), b"a"], 1, offset=-1), None
    yield "no such length", Producer(b"u", [None, offsets(0, 1), b"a"], (1 << 63) - 1, offset=1), None
    yield "too few buffers", Producer(b"u", [None, offsets(0, 1)], 1), None
    yield "negative buffers", Producer(b"u", [None, offsets(0, 1), b"a"], 1, n_buffers=-1), None
    yield "binary", Producer(b"z", [None, offsets(0, 1), b"a"], 1), None
    yield "numbers", Producer(b"i", [None, offsets(1)], 1), None
    yield "no format", Producer(b"", [None, offsets(0, 1), b"a"], 1), None
    yield "strange format", Producer(b"\xff\xff", [None, offsets(0, 1), b"a"], 1), None
    yield "view outside", Producer(b"vu", [None, view(32, start=1), LONG, SIZE], 1), None
    yield "view of another buffer", Producer(b"vu", [None, view(32, buffer=1), LONG, SIZE], 1), None
    yield "view before", Producer(b"vu", [None, view(32, start=-1), LONG, SIZE], 1), None
    yield "view without length", Producer(b"vu", [None, view(-1), LONG, SIZE], 1), None
    yield "no views", Producer(b"vu", [None, None, LONG, SIZE], 1), None
    yield "no sizes", Producer(b"vu", [None, view(32), LONG, None], 1), None
    yield "view no UTF-8", Producer(b"vu", [None, view(1, inline=b"\xff"), None], 1), None


@pytest.mark.parametrize("name", [name for name, _, _ in producers()])
def test_whatever_is_exported_is_right_or_refused_and_released_once(small: Tokenizer, name: str) -> None:
    for call in (small.encode_batch, small.count_batch):
        producer, texts = next((made, texts) for found, made, texts in producers() if found == name)
        if texts is None:
            with pytest.raises((errors.ArgumentError, errors.DTypeError)):
                call(producer)
        else:
            got: Any = call(producer)
            expected: Any = call(texts)
            assert np.array_equal(getattr(got, "ids", got), getattr(expected, "ids", expected))
        gc.collect()
        assert sorted(producer.released) == ["array", "schema"]
        with pytest.raises(errors.ArgumentError, match="used before") as twice:
            call(producer)
        assert twice.value.code == "tokenizer.arrow"
        assert len(producer.released) == 2


def test_capsules_of_other_names_are_refused(small: Tokenizer) -> None:
    for names in ((b"arrow_schema", b"arrow_schema"), (b"x", b"arrow_array"), (b"dltensor", b"arrow_array")):
        producer = Producer(b"u", [None, offsets(0, 1), b"a"], 1)
        producer.names = names
        with pytest.raises(errors.ArgumentError):
            small.encode_batch(producer)

    class Odd:
        def __init__(self, returned: Any) -> None:
            self.returned = returned

        def __arrow_c_array__(self, requested_schema: object | None = None) -> Any:
            if isinstance(self.returned, Exception):
                raise self.returned
            return self.returned

    class OddStream(Odd):
        def __arrow_c_stream__(self, requested_schema: object | None = None) -> Any:
            return self.__arrow_c_array__()

    for kind in (Odd, OddStream):
        odd: Any
        for odd in (None, (1, 2), [], (1,), "text"):
            with pytest.raises(errors.ArgumentError):
                small.encode_batch(kind(odd))
        with pytest.raises(ZeroDivisionError):
            small.encode_batch(kind(ZeroDivisionError()))


class Stream(ctypes.Structure):
    """ArrowArrayStream."""


GET = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(Stream), ctypes.c_void_p)
LAST_ERROR = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(Stream))
RELEASE_STREAM = ctypes.CFUNCTYPE(None, ctypes.POINTER(Stream))
Stream._fields_ = [
    ("get_schema", GET),
    ("get_next", GET),
    ("get_last_error", LAST_ERROR),
    ("release", RELEASE_STREAM),
    ("private_data", ctypes.c_void_p),
]


REASON = ctypes.create_string_buffer(b"out of text")


class FailingStream:
    """Exports some arrays, then fails."""

    def __init__(self, arrays: list[Producer], schema_fails: bool) -> None:
        self.released: list[str] = []

        def get_schema(_: Any, out: int) -> int:
            if schema_fails:
                return 22
            ctypes.memmove(out, ctypes.addressof(arrays[0].schema), ctypes.sizeof(Schema))
            return 0

        left = list(arrays)

        def get_next(_: Any, out: int) -> int:
            if not left:
                return 5
            ctypes.memmove(out, ctypes.addressof(left.pop(0).array), ctypes.sizeof(Array))
            return 0

        def release(pointer: Any) -> None:
            self.released.append("stream")
            pointer[0].release = RELEASE_STREAM()

        self.stream = Stream(
            GET(get_schema),
            GET(get_next),
            LAST_ERROR(lambda _: ctypes.addressof(REASON)),
            RELEASE_STREAM(release),
        )

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> Any:
        return capsule(ctypes.addressof(self.stream), b"arrow_array_stream", None)


@pytest.mark.parametrize("schema_fails", [False, True])
def test_a_stream_that_fails_says_why_and_leaves_nothing_behind(small: Tokenizer, schema_fails: bool) -> None:
    arrays = [Producer(b"u", [None, offsets(0, 1), b"a"], 1) for _ in range(3)]
    stream = FailingStream(arrays, schema_fails)
    with pytest.raises(errors.ArgumentError, match="out of text"):
        small.encode_batch(stream)
    assert stream.released == ["stream"]
    assert [array.released.count("array") for array in arrays] == [0 if schema_fails else 1] * 3


def test_the_specification_takes_arrays_too(small: Tokenizer, make: Any) -> None:
    specification = reference.tokenize.Tokenizer.from_file(small._source[1])
    ids, offsets = specification.encode_batch(make(TEXTS), True, False, None)
    batch = small.encode_batch(make(TEXTS))
    assert (batch.ids.tolist(), batch.offsets.tolist()) == (ids.tolist(), offsets.tolist())
    with pytest.raises(errors.DTypeError) as refused:
        specification.count_batch(make([None]), True, False, False, None)
    assert refused.value.code == "tokenizer.null_text"
