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
    styles, scripts = ["page.css"], ["player.js", "page.js"]
    if contents["pools"]:
        styles, scripts = [*styles, "map.css"], [*scripts, "map.js"]
    return render_template(TEMPLATES / "page.html", styles=styles, scripts=scripts, **contents)


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


def render_data(targets: Mapping[str, Any], pools: Mapping[str, Any]) -> str:
    """Return data.js: what the browser and the maps show. A script, because a page opened from disk may not fetch JSON.

    pools: the maps by name; without one, data.js does not mention them.
    """
    shown = {"RETRIEVED": targets, **({"POOLS": pools} if pools else {})}
    return "".join(
        f"window.{name} = {json.dumps(value, separators=(',', ':'), ensure_ascii=True)};\n"
        for name, value in shown.items()
    )
