"""Every kernel as machine code for GPUs that need not be here: it fits into registers, and moves vectors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.kernels.variants import ARCHITECTURES, variants

ROOT = Path(__file__).resolve().parents[2]
PROCESSES = 2


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], dict[str, Any]]:
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.kernels.compiled", str(part), str(PROCESSES)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for part in range(PROCESSES)
    ]
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for process in running:
        lines, errors = process.communicate(timeout=280)
        assert process.returncode == 0, errors[-4000:]
        for entry in map(json.loads, lines.splitlines()):
            found[entry["name"], entry["architecture"]] = entry
    return found


def test_every_variant_fits_into_registers(built: dict[tuple[str, int], dict[str, Any]]) -> None:
    complaints = []
    for variant in variants():
        for architecture in ARCHITECTURES:
            entry = built[variant.name, architecture]
            where = f"{variant.name}, sm_{architecture}"
            spilled = [name for name in entry["instructions"] if name.startswith(("LDL", "STL"))]
            if entry["local"] or spilled:
                complaints.append(f"{where}: {entry['local']} bytes of local memory {spilled}")
            if entry["registers"] > variant.most_registers:
                complaints.append(
                    f"{where}: {entry['registers']} registers, at most {variant.most_registers}"
                )
    assert not complaints, "\n".join(complaints)


def test_every_variant_has_the_instructions_it_is_made_for(
    built: dict[tuple[str, int], dict[str, Any]],
) -> None:
    complaints = []
    for variant in variants():
        for architecture in ARCHITECTURES:
            instructions = built[variant.name, architecture]["instructions"]
            missing = [name for name in variant.needed if not any(i.startswith(name) for i in instructions)]
            present = [name for name in variant.forbidden if any(i.startswith(name) for i in instructions)]
            if missing or present:
                complaints.append(f"{variant.name}, sm_{architecture}: without {missing}, with {present}")
    assert not complaints, "\n".join(complaints)
