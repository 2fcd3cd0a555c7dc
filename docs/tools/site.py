"""Hook of MkDocs: pages that are files of the project's root, and equations as MathML.

README.md is the home page. Equations are blocks of LaTeX after ```math, which repository hosts render as well.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#]*)(#[^)]*)?\)")


def page(text: str) -> str:
    """The text of a root file as a page: links into docs/ and to other pages stay, links to other files become text."""

    def link(match: re.Match[str]) -> str:
        shown, target, anchor = match[1], match[2], match[3] or ""
        if target.startswith("docs/"):
            return f"[{shown}]({target.removeprefix('docs/')}{anchor})"
        if target in PAGES:
            return f"[{shown}]({PAGES[target]}{anchor})"
        return match[0] if "://" in target or not target else shown

    return LINK.sub(link, text).replace("](docs/", "](")


def math(source: str, *_: Any, **__: Any) -> str:
    """The MathML of a fenced block; a blank line begins another equation."""
    return "".join(convert(equation, display="block") for equation in source.strip().split("\n\n"))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    fences = config.mdx_configs.setdefault("pymdownx.superfences", {}).setdefault("custom_fences", [])
    fences.append({"name": "math", "class": "math", "format": math})
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The text of a page of docs/, its links to root files as links to their pages."""
    for name, uri in PAGES.items():
        markdown = markdown.replace(f"](../{name}", f"]({uri}")
    return markdown


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, uri in PAGES.items():
        files.append(File.generated(config, uri, content=page((ROOT / name).read_text(encoding="utf-8"))))
    return files
