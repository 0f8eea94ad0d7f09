"""Every kernel as machine code for GPUs that need not be here: it fits into registers, and moves vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.kernels.variants import ARCHITECTURES, READ_ARCHITECTURES, variants

if TYPE_CHECKING:
    from tests.kernels.conftest import MachineCode


@pytest.fixture(scope="module")
def built(machine_code: MachineCode) -> dict[tuple[str, int], dict[str, Any]]:
    return machine_code.wait()


def test_every_variant_fits_into_registers(built: dict[tuple[str, int], dict[str, Any]]) -> None:
    complaints = []
    for variant in variants():
        for architecture in ARCHITECTURES:
            entry = built[variant.name, architecture]
            where = f"{variant.name}, sm_{architecture}"
            spilled = [name for name in entry["instructions"] or () if name.startswith(("LDL", "STL"))]
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
        for architecture in READ_ARCHITECTURES:
            instructions = built[variant.name, architecture]["instructions"]
            missing = [name for name in variant.needed if not any(i.startswith(name) for i in instructions)]
            present = [name for name in variant.forbidden if any(i.startswith(name) for i in instructions)]
            if missing or present:
                complaints.append(f"{variant.name}, sm_{architecture}: without {missing}, with {present}")
    assert not complaints, "\n".join(complaints)
