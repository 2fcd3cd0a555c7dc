"""Pages as HTML, each one file of text, style and script, and the retrieval data of a study's page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

TEMPLATES = Path(__file__).parent


def render_page(contents: Mapping[str, Any]) -> str:
    """index.html: `contents` are the names that page.html uses."""
    return render_template(TEMPLATES / "page.html", styles=["page.css"], scripts=["player.js", "page.js"], **contents)


def render_template(template: Path, *, styles: Sequence[str], scripts: Sequence[str], **contents: Any) -> str:
    """Return a page as HTML: a template that uses the names `style`, `script` and those of `contents`.

    styles, scripts: names of files next to the template or in this package, which are joined in this order.
    """
    loader = jinja2.FileSystemLoader([template.parent, TEMPLATES])
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )

    def joined(names: Sequence[str]) -> str:
        return "\n".join(loader.get_source(environment, name)[0].rstrip("\n") for name in names)

    return environment.get_template(template.name).render(style=joined(styles), script=joined(scripts), **contents)


def render_data(targets: Mapping[str, Any]) -> str:
    """data.js: what the browser shows. A script, because a page opened from disk may not fetch JSON."""
    return f"window.RETRIEVED = {json.dumps(targets, separators=(',', ':'), ensure_ascii=True)};\n"
