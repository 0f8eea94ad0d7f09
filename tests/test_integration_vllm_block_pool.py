"""The block pool's plugin where it is not wanted or cannot be; and vLLM's own tests, where its sources are."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from infer_accel.integrations import vllm_block_pool

ROOT = Path(__file__).resolve().parents[1]

#: A checkout or source distribution of vLLM, of a version that is known, whose Python parts can be imported.
SOURCES = os.environ.get("INFER_ACCEL_VLLM_SOURCES")


@pytest.mark.parametrize("said", [None, "", "0", "off", " False "])
def test_it_is_off_unless_it_is_asked_for(said: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # it is not even imported
    if said is None:
        monkeypatch.delenv(vllm_block_pool.VARIABLE, raising=False)
    else:
        monkeypatch.setenv(vllm_block_pool.VARIABLE, said)
    assert not vllm_block_pool.register()


def test_without_the_interface_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(vllm_block_pool.VARIABLE, "1")
    for name in [name for name in sys.modules if name.startswith("infer_accel.integrations._vllm_blocks")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with caplog.at_level(logging.ERROR, logger="infer_accel"):
        assert not vllm_block_pool.register()
    (record,) = caplog.records
    assert "vLLM keeps its own block pool" in record.getMessage()
    assert "known to work: 0.32, 0.33" in record.getMessage()


def outcomes(plugins: list[str]) -> tuple[dict[str, str], str]:
    """Run vLLM's own tests of prefix caching; return what came of each, and what was printed."""
    assert SOURCES is not None
    paths = [SOURCES, str(Path(vllm_block_pool.__file__).resolve().parents[2]), str(ROOT / "tests")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
    }
    options = ["-q", "-rA", "--tb=no", "-W", "ignore", "-p", "no:cacheprovider", "--noconftest", *plugins]
    command = [
        sys.executable,
        "-m",
        "pytest",
        *options,
        "--rootdir",
        SOURCES,
        "tests/v1/core/test_prefix_caching.py",
    ]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=SOURCES, check=False)
    found = re.findall(r"^(PASSED|FAILED|ERROR) (\S+)", ran.stdout, re.MULTILINE)
    return {name: outcome for outcome, name in found}, ran.stdout + ran.stderr


@pytest.mark.skipif(SOURCES is None, reason="INFER_ACCEL_VLLM_SOURCES does not say where vLLM's sources are")
@pytest.mark.timeout(600)
def test_vllms_own_tests_pass_with_it_as_without_it() -> None:
    alone, printed = outcomes([])
    assert sum(outcome == "PASSED" for outcome in alone.values()) >= 200, printed[-3000:]
    ours, printed = outcomes(["-p", "vllm_own_pool"])
    assert ours == alone, printed[-3000:]
    counted = re.search(r"(\d+) tests took blocks from infer-accel's pool", printed)
    assert counted is not None, printed[-3000:]
    assert int(counted[1]) >= 17
