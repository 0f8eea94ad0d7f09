"""Run notebooks from top to bottom and keep what they show.

    python notebooks/run.py                                # all of them
    python notebooks/run.py notebooks/prefix_caching.ipynb

A notebook is written only when every cell has run. What differs from run to run without meaning anything (times of
cells, the kernel's version) is left out, so that a change in a notebook is a change in what it says.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
from nbclient import NotebookClient

if TYPE_CHECKING:
    from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parent
_SECONDS_A_CELL = 300


def notebooks() -> list[Path]:
    """Return every notebook of this folder."""
    return sorted(FOLDER.glob("*.ipynb"))


def run(path: Path) -> NotebookNode:
    """Return the notebook with the outputs of a fresh run; a cell that fails raises."""
    notebook = nbformat.read(path, as_version=4)
    place = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=_SECONDS_A_CELL, kernel_name="python3", resources=place).execute()
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata = {}
    return notebook


def main(paths: list[Path]) -> None:
    for path in paths or notebooks():
        print(path.name)
        nbformat.write(run(path), path)


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
