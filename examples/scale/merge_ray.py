"""Merge every adapter of a directory into a base, one output each, on a Ray cluster.

    python examples/scale/merge_ray.py base/ adapters/ merged/

All three lie on a file system that every machine has. Start it again after anything: what is finished is found, what
was begun is gone on with.
"""

from __future__ import annotations

import sys
from pathlib import Path

import ray

from infer_accel.integrations.ray import MergeJob, MergeOutcome, merge_adapters


def tell(outcome: MergeOutcome) -> None:
    """Print what became of an output."""
    state = outcome.error or ("there already" if outcome.was_there else "merged")
    print(f"{outcome.job.out_dir}: {state}", flush=True)


def main(base: str, adapters: str, output: str) -> int:
    """Merge; return how many failed."""
    ray.init()
    Path(output).mkdir(parents=True, exist_ok=True)
    found = sorted(file.parent for file in Path(adapters).glob("*/adapter_config.json"))
    jobs = [MergeJob(base, (str(adapter),), str(Path(output) / adapter.name)) for adapter in found]
    outcomes = merge_adapters(jobs, num_cpus=1, on_outcome=tell)
    return sum(bool(outcome.error) for outcome in outcomes)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
