"""The candidates of a sweep: every combination of settings in its grid, for every run of the tables."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote

from pipeline.study.configuration import Run, RunSettings, Sweep

OBJECTIVE = "objective"
"""The entry of a grid that replaces the objective of a run. All other entries replace settings."""

Values = dict[str, Any]


def candidates(sweep: Sweep) -> list[Values]:
    """Return every combination of the values in the grid; the last entry of the grid varies fastest."""
    return [dict(zip(sweep.grid, values, strict=True)) for values in itertools.product(*sweep.grid.values())]


def candidate_name(values: Mapping[str, Any]) -> str:
    """Return a candidate's name in paths, such as `objective=composed,learning_rate=0.0003`."""
    return ",".join(f"{key}={quote(_as_text(value), safe='')}" for key, value in values.items())


def candidate_values(name: str) -> Values:
    """Return the values in a candidate's name. Raises ValueError for another text."""
    values: Values = {}
    for entry in name.split(","):
        key, separator, text = entry.partition("=")
        if not separator or not key.isidentifier():
            raise ValueError(f"{entry!r} is no KEY=VALUE")
        values[key] = _of_text(unquote(text))
    return values


def candidate_run(run: Run, values: Mapping[str, Any]) -> Run:
    """Return a run with the values of a candidate. An objective without unlabeled audio leaves it out."""
    own = run.settings.model_dump(exclude_unset=True)
    entry = chosen_entry({OBJECTIVE: run.objective, **own, **values})
    return run.model_copy(update={**entry, "settings": RunSettings.of_values(entry["settings"])})


def chosen_entry(values: Mapping[str, Any]) -> Values:
    """Return the entry of a configuration's `runs` that gives a run these values."""
    settings = {key: value for key, value in values.items() if key != OBJECTIVE}
    if OBJECTIVE not in values:
        return {"settings": settings}
    unused = {} if values[OBJECTIVE] == "composed" else {"unlabeled": None, "unlabeled_fraction": None}
    return {OBJECTIVE: values[OBJECTIVE], **unused, "settings": settings}


def _as_text(value: Any) -> str:
    """JSON, but plain words for texts that no reader takes for anything else."""
    if isinstance(value, str) and _of_text(value) == value:
        return value
    return json.dumps(value)


def _of_text(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
