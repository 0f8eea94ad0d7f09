"""Count the tokens of Parquet files on a Ray cluster.

    python examples/scale/count_ray.py tokenizer.json texts/ counted/

The cluster is that of ``RAY_ADDRESS`` in the environment; without it Ray starts on this machine. The tokenizer lies
under the same path on every machine.
"""

from __future__ import annotations

import sys

import ray

from infer_accel.integrations.ray import count_tokens


def main(tokenizer: str, texts: str, output: str) -> None:
    """Count each row once, and write the counts beside the texts."""
    ray.init()
    counted = count_tokens(ray.data.read_parquet(texts), tokenizer).materialize()
    counted.write_parquet(output)
    print(f"{counted.count()} texts, {counted.sum('tokens')} tokens")


if __name__ == "__main__":
    main(*sys.argv[1:])
