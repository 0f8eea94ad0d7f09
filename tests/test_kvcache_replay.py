"""Replay: against its specification, and against vLLM's manager where that is installed."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.soak import repeats
from typer.testing import CliRunner

from infer_accel import errors, kvcache, reference
from infer_accel.cli.app import app

if TYPE_CHECKING:
    from pathlib import Path


def some_trace(seed: int, requests: int = 60) -> bytes:
    """Prompts that begin alike, in Mooncake's format."""
    chance = random.Random(seed)
    lines = []
    open_prefixes: list[list[int]] = [[number] for number in range(3)]
    fresh = 1000
    for number in range(requests):
        ids = list(chance.choice(open_prefixes))[: chance.randrange(1, 5)]
        while chance.random() < 0.6:
            ids.append(fresh)
            fresh += 1
        open_prefixes.append(ids)
        length = len(ids) * 512 - chance.choice([0, 0, 1, 100, 511])
        row = {"timestamp": number * 50, "input_length": length, "output_length": 9, "hash_ids": ids}
        lines.append(json.dumps(row))
    return "\n".join(lines).encode()


@pytest.mark.parametrize("seed", range(repeats(6, 60)))
@pytest.mark.parametrize("block_size", [64, 512])
def test_equals_the_specification(seed: int, block_size: int) -> None:
    data = some_trace(seed)
    trace, model = kvcache.Trace.parse(data), reference.kvcache.Trace.parse(data)
    assert len(trace) == len(model) == 60
    assert [trace.request(number) for number in range(60)] == model.requests
    for num_blocks in (2, 20, 100, 1000, 5000):
        report = kvcache.replay(trace, num_blocks=num_blocks, block_size=block_size)
        expected = reference.kvcache.replay(
            model,
            num_blocks=num_blocks,
            block_size=block_size,
            host_blocks=0,
            outputs=False,
            seconds_per_token=None,
        )
        got = (report.blocks, report.hits, report.host_hits, report.waits)
        for mine, theirs in zip(got, expected, strict=False):
            np.testing.assert_array_equal(mine, theirs)
        assert report.evictions == expected[5]


def test_reports() -> None:
    trace = kvcache.Trace.synthetic(400, seed=1)
    seen: list[int] = []
    report = kvcache.replay(trace, num_blocks=3000, host_blocks=50_000, progress=seen.append)
    assert seen[-1] == 400
    assert 0 < report.hit_rate < 1
    assert report.host_hit_rate > 0
    assert report.evictions > 0
    assert report.refused == 0
    assert set(report.percentiles()) == {"hit_rate", "wait_ms", "used_blocks"}
    moved = report.bytes_moved(1000)
    assert moved == {"stored": report.host_stores * 16_000, "loaded": int(report.host_hits.sum()) * 16_000}
    curve = kvcache.replay_curve(trace, capacities=[1000, 5000, 100_000])
    rates = [rate for _, rate in curve]
    assert rates == sorted(rates)
    crowded = kvcache.replay(trace, num_blocks=3000, seconds_per_token=0.5)
    assert crowded.percentiles()["wait_ms"]["p90"] > 0
    assert "400 requests, with ids" in repr(trace)
    with pytest.raises(IndexError):
        trace.request(400)


def test_azure_drives_load(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    rows = [
        f"2023-11-16 18:15:{second:02}.{second}000000,{100 + second},{second}" for second in range(10, 59)
    ]
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(rows) + "\n")
    report = kvcache.replay(path, num_blocks=100, seconds_per_token=0.1)
    assert report.hit_rate == 0
    assert report.used.max() > 20
    model = reference.kvcache.Trace.parse(path.read_bytes())
    trace = kvcache.Trace.load(path)
    assert not trace.has_ids
    assert [trace.request(number)[1:] for number in range(49)] == [row[1:] for row in model.requests]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n\n",
        b"{",
        b"\xff\xfe",
        b"a,b\n1,2",
        b'{"timestamp": 0}',
        b'{"timestamp": 0, "input_length": 512, "output_length": 1, "hash_ids": [1, 2]}',
        b'{"timestamp": 0, "input_length": -1, "output_length": 1, "hash_ids": []}',
        b'{"timestamp": 0, "input_length": 512, "output_length": 1, "hash_ids": [-1]}',
        b"TIMESTAMP,ContextTokens,GeneratedTokens\nnever,1,1",
        b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,x,1",
    ],
)
def test_what_is_no_trace(data: bytes) -> None:
    with pytest.raises(errors.ArgumentError, match="line") as caught:
        kvcache.Trace.parse(data)
    assert caught.value.code == "argument.trace"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"num_blocks": 1}, "argument.num_blocks"),
        ({"num_blocks": 100, "block_size": 0}, "argument.replay_block_size"),
        ({"num_blocks": 100, "block_size": 100}, "argument.replay_block_size"),
        ({"num_blocks": 100, "host_blocks": -1}, "argument.count"),
        ({"num_blocks": 100, "host_blocks": 1 << 60}, "argument.num_blocks"),
        ({"num_blocks": 100, "seconds_per_token": 0.0}, "argument.seconds"),
        ({"num_blocks": 100, "seconds_per_token": float("nan")}, "argument.seconds"),
    ],
)
def test_replays_that_cannot_be(options: dict[str, Any], code: str) -> None:
    with pytest.raises(errors.ArgumentError) as caught:
        kvcache.replay(kvcache.Trace.synthetic(3), **options)
    assert caught.value.code == code


def test_the_command(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path, out, picture = tmp_path / "trace.jsonl", tmp_path / "out.json", tmp_path / "curve.png"
    path.write_bytes(some_trace(3))
    call = ["replay", str(path), "--blocks", "500", "--json", str(out), "--plot", str(picture)]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    document = json.loads(out.read_text())
    assert document["hit_rate"] == kvcache.replay(path, num_blocks=500).hit_rate
    assert document["curve"][-1]["hit_rate"] >= document["curve"][0]["hit_rate"]
    assert picture.stat().st_size > 1000
    made = CliRunner().invoke(app, ["replay", "--requests", "50"])
    assert made.exit_code == 0
    assert "hit rate" in made.output
    for wrong in (["replay", str(tmp_path / "none")], ["replay", "--blocks", "1"], ["replay", str(out)]):
        assert CliRunner().invoke(app, wrong).exit_code == 2
