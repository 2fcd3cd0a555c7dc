"""The JSON schema of a configuration and its documentation page, both made from the typed models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipeline.study.configuration import Configuration


def schema() -> dict[str, Any]:
    """Return the JSON schema of a configuration, for editors and for the documentation."""
    found = Configuration.model_json_schema()
    found["title"] = "Configuration of a study"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


def markdown() -> str:
    """Return the documentation page of the configuration: one table per group of settings."""
    definitions = schema()
    lines = [
        "# Configuration",
        "",
        "Generated from the models in `pipeline/study/configuration.py` by `make schema`.",
        "",
    ]
    for group in [definitions, *(definitions["$defs"][name] for name in sorted(definitions["$defs"]))]:
        lines += [f"## {group['title']}", "", group["description"].partition("\n")[0], ""]
        lines += ["| key | default | values | meaning |", "|---|---|---|---|"]
        for name, key in group["properties"].items():
            default = "required" if name in group.get("required", []) else f"`{json.dumps(key.get('default'))}`"
            if isinstance(key.get("default"), dict):
                default = ""
            text = key.get("description") or _definition(key, definitions).get("description", "").partition("\n")[0]
            cells = [f"`{name}`", default, _values(key), text]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _definition(key: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    return definitions["$defs"].get(key.get("$ref", "").rpartition("/")[2], {})


def _values(key: Mapping[str, Any]) -> str:
    """Return the values that a key takes, as text for a table."""
    if "anyOf" in key:
        return ", ".join(filter(None, map(_values, key["anyOf"])))
    if "$ref" in key:
        return f"see {key['$ref'].rpartition('/')[2]}"
    if "enum" in key:
        return ", ".join(map(str, key["enum"]))
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {key[name]:g}" for name, sign in bounds.items() if name in key and key[name] < 2**53]
    return " ".join([key.get("type", ""), *limits])
