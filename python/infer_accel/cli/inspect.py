"""`infer-accel inspect`: what an adapter or a checkpoint holds, and everything that is wrong with it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from infer_accel.cli.output import EXIT_FELL, errors, refuse, require_existing, results

if TYPE_CHECKING:
    from collections.abc import Iterable

    from infer_accel.bench.rows import Json
    from infer_accel.lora import Adapter, Problem

__all__ = ["run"]

#: File, name, format, shape and bytes of a tensor.
Entry = tuple[str, str, str, list[int], int]

_ADAPTER_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
    "pytorch_lora_weights.safetensors",
)

#: Parts of names by which a file of tensors is known to be an adapter.
_ADAPTER_NAMES = (
    "lora_A",
    "lora_B",
    "lora_down",
    "lora_up",
    "lora_embedding_A",
    "lora_linear_layer",
    "_lora.",
)


def run(
    path: Annotated[
        Path, typer.Argument(help="An adapter, a checkpoint directory, or one safetensors file.")
    ],
    base: Annotated[
        Path | None, typer.Option("--base", help="Match the adapter with this checkpoint.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False,
    follow_symlinks: Annotated[
        bool, typer.Option("--follow-symlinks", help="Read through links, as caches of downloads need it.")
    ] = False,
) -> None:
    """Print modules, ranks, formats and sizes, and end with 1 if anything is wrong."""
    require_existing(path, "an adapter's directory, a checkpoint's directory, or a safetensors file")
    if base is not None:
        require_existing(base, "--base the directory of the checkpoint that the adapter is for")
    if _is_adapter(path, follow_symlinks=follow_symlinks):
        _adapter(path, base, as_json=as_json, follow_symlinks=follow_symlinks)
    else:
        if base is not None:
            refuse(f"--base {base}: {path} is no adapter")
        _checkpoint(path, as_json=as_json, follow_symlinks=follow_symlinks)


def _is_adapter(path: Path, *, follow_symlinks: bool) -> bool:
    from infer_accel.errors import InferAccelError

    if path.is_dir():
        return any((path / name).exists() or (path / name).is_symlink() for name in _ADAPTER_FILES)
    try:
        return any(part in name for _, name, *_ in _headers(path, follow_symlinks) for part in _ADAPTER_NAMES)
    except InferAccelError:
        return False


def _headers(path: Path, follow_symlinks: bool) -> list[Entry]:
    from infer_accel import _backend

    entries: list[Entry] = _backend.files().lora.read_headers(str(path), follow_symlinks=follow_symlinks)
    return entries


# Adapters ---------------------------------------------------------------------------------------------------


def _adapter(path: Path, base: Path | None, *, as_json: bool, follow_symlinks: bool) -> None:
    from infer_accel.errors import InferAccelError
    from infer_accel.lora import _adapter as adapters

    adapter, problems, _ = adapters.examine(path, follow_symlinks=follow_symlinks)
    if adapter is not None and base is not None:
        try:
            problems += adapter.validate(base, follow_symlinks=follow_symlinks)
        except InferAccelError as error:
            refuse(f"--base {base}: {error}")
    if as_json:
        typer.echo(json.dumps(_adapter_facts(path, adapter, problems), indent=2, ensure_ascii=False))
    else:
        if adapter is not None:
            _print_adapter(path, adapter)
        _print_problems(problems)
    if problems:
        raise typer.Exit(EXIT_FELL)


def _adapter_facts(path: Path, adapter: Adapter | None, problems: Iterable[Problem]) -> dict[str, Json]:
    facts: dict[str, Json] = {"kind": "adapter", "path": str(path)}
    if adapter is not None:
        facts |= {
            "rank": adapter.rank,
            "nbytes": adapter.nbytes,
            "digest": adapter.digest,
            "config": dict(adapter.config),
            "layers": [
                {
                    "path": layer.path,
                    "component": layer.component,
                    "kind": layer.kind,
                    "rank": layer.rank,
                    "alpha": layer.alpha,
                    "scaling": layer.scaling,
                    "dtype": layer.dtype,
                    "shapes": {name: list(shape) for name, shape in layer.shapes.items()},
                    "nbytes": layer.nbytes,
                }
                for layer in adapter.layers
            ],
            "replacements": {name: list(shape) for name, shape in adapter.replaced_shapes.items()},
        }
    facts["problems"] = [
        {"code": problem.code, "tensor": problem.tensor, "message": problem.message} for problem in problems
    ]
    return facts


def _print_adapter(path: Path, adapter: Adapter) -> None:
    console = results()
    config = ", ".join(
        f"{name} {value}" for name, value in adapter.config.items() if value not in {"", "false"}
    )
    console.print(Text(f"adapter {path}", style="bold"))
    console.print(Text(f"{config}; {_bytes(adapter.nbytes)}; digest {adapter.digest[:16]}…"))
    groups: Counter[tuple[str, ...]] = Counter()
    sizes: Counter[tuple[str, ...]] = Counter()
    for layer in adapter.layers:
        shapes = layer.shapes
        name = layer.path.rpartition(".")[2] if "." in layer.path else layer.path
        extra = [part for part in ("magnitude", "bias") if part in shapes]
        key = (
            f"{layer.component} {name}".strip(),
            " + ".join([layer.kind, *extra]),
            str(layer.rank),
            f"{layer.scaling:g}",
            layer.dtype,
            f"{_shape(shapes['lora_A'])} {_shape(shapes['lora_B'])}",
        )
        groups[key] += 1
        sizes[key] += layer.nbytes
    table = _table("module", "kind", "rank", "scaling", "dtype", "lora_A lora_B", "layers", "size")
    for row, count in groups.items():
        table.add_row(*map(_plain, row), str(count), _bytes(sizes[row]))
    console.print(table)
    for name, shape in adapter.replaced_shapes.items():
        console.print(Text.assemble("replaces ", _plain(name), f" {_shape(shape)}"))


def _print_problems(problems: list[Problem]) -> None:
    console = errors()
    for problem in problems:
        console.print(Text.assemble((f"{problem.code}: ", "bold red"), str(problem)), soft_wrap=True)
    if not problems:
        results().print(Text("nothing is wrong", style="green"))


# Checkpoints ------------------------------------------------------------------------------------------------


def _checkpoint(path: Path, *, as_json: bool, follow_symlinks: bool) -> None:
    from infer_accel.errors import InferAccelError

    entries: list[Entry] = []
    problem: dict[str, Json] | None = None
    try:
        entries = _headers(path, follow_symlinks)
    except InferAccelError as error:
        problem = {"code": error.code, "tensor": "", "message": str(error)}
    if as_json:
        tensors: list[Json] = [
            {"file": file, "name": name, "dtype": dtype, "shape": list(shape), "nbytes": size}
            for file, name, dtype, shape, size in entries
        ]
        facts: dict[str, Json] = {"kind": "checkpoint", "path": str(path), "tensors": tensors}
        facts["problems"] = [] if problem is None else [problem]
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
    elif problem is None:
        _print_checkpoint(path, entries)
    else:
        errors().print(
            Text.assemble((f"{problem['code']}: ", "bold red"), str(problem["message"])), soft_wrap=True
        )
    if problem is not None:
        raise typer.Exit(EXIT_FELL)


def _print_checkpoint(path: Path, entries: list[Entry]) -> None:
    console = results()
    total = sum(size for *_, size in entries)
    console.print(Text(f"checkpoint {path}", style="bold"))
    console.print(Text(f"{len(entries)} tensors, {_bytes(total)}"))
    formats = _table("dtype", "tensors", "elements", "size")
    for dtype in dict.fromkeys(dtype for _, _, dtype, _, _ in entries):
        of = [(shape, size) for _, _, other, shape, size in entries if other == dtype]
        elements = sum(_product(shape) for shape, _ in of)
        formats.add_row(dtype, str(len(of)), f"{elements:,}", _bytes(sum(size for _, size in of)))
    console.print(formats)
    modules = _table("tensor", "dtype", "shape", "count", "size")
    rows: Counter[tuple[str, str, str]] = Counter()
    sizes: Counter[tuple[str, str, str]] = Counter()
    for _, name, dtype, shape, size in entries:
        pattern = ".".join("*" if part.isdecimal() else part for part in name.split("."))
        rows[pattern, dtype, _shape(shape)] += 1
        sizes[pattern, dtype, _shape(shape)] += size
    for (pattern, dtype, shape_text), count in rows.items():
        size_text = _bytes(sizes[pattern, dtype, shape_text])
        modules.add_row(_plain(pattern), dtype, shape_text, str(count), size_text)
    console.print(modules)


# Words ------------------------------------------------------------------------------------------------------


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        is_number = column in {"rank", "scaling", "layers", "size", "tensors", "elements", "count"}
        table.add_column(column, justify="right" if is_number else "left", overflow="fold")
    return table


def _plain(name: str) -> Text:
    """Return a name of a file so that it can neither style nor move anything on a terminal."""
    return Text(name.encode("unicode_escape").decode("ascii"))


def _shape(shape: Iterable[int]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def _product(shape: Iterable[int]) -> int:
    product = 1
    for extent in shape:
        product *= extent
    return product


def _bytes(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
