"""The page as HTML: one file of text, style and script, next to the retrieval data and the clips."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

TEMPLATES = Path(__file__).parent


def render_page(contents: Mapping[str, Any]) -> str:
    """index.html: `contents` are the names that page.html uses."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        style=(TEMPLATES / "page.css").read_text(encoding="utf-8"),
        script=(TEMPLATES / "page.js").read_text(encoding="utf-8"),
        **contents,
    )


def render_data(targets: Mapping[str, Any]) -> str:
    """data.js: what the browser shows. A script, because a page opened from disk may not fetch JSON."""
    return f"window.RETRIEVED = {json.dumps(targets, separators=(',', ':'), ensure_ascii=True)};\n"
