"""Links for the roles in docstrings (`:func:` and its like), which mkdocs would show as they stand."""  # noqa: INP001 - loaded by path

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.structure.pages import Page

_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):<code>(?P<short>~?)(?P<name>[\w.]+)</code>")


def on_page_content(html: str, *, page: Page, **_: object) -> str:
    """Turn each role into a link to what it names, or into plain code where that has no place of its own."""
    part = page.file.src_uri.removeprefix("api/").removesuffix(".md")

    def link(role: re.Match[str]) -> str:
        name = role["name"]
        target = name if name.startswith("infer_accel") else f"infer_accel.{part}.{name}"
        shown = name.rpartition(".")[2] if role["short"] else name
        return f'<autoref identifier="{target}" optional><code>{shown}</code></autoref>'

    return _ROLE.sub(link, html)
