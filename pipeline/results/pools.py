"""The description of unlabeled audio: how well it covers a target's held-out clips. Files, reader and words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.data.catalogs import read_table
from pipeline.errors import PipelineError
from pipeline.evaluation.intervals import wilson_interval
from pipeline.files import read_json, write_json

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of cosines and levels in the summary."""

_CLIP = [
    pa.field("key", pa.string(), nullable=False),
    pa.field("dataset", pa.string(), nullable=False),
    pa.field("split", pa.string(), nullable=False),
    pa.field("source_name", pa.string(), nullable=False),
]

UNLABELED_SCHEMA = pa.schema(
    [
        *_CLIP,
        pa.field("duration_s", pa.float64(), nullable=False),
        pa.field("peak_dbfs", pa.float32(), nullable=False),
        pa.field("rms_dbfs", pa.float32(), nullable=False),
        pa.field("leaked", pa.bool_(), nullable=False),  # also in a held-out split, so no run trains on it
        pa.field("nearest_labeled", pa.string(), nullable=False),
        pa.field("labeled_cosine", pa.float32(), nullable=False),
        pa.field("nearest_held_out", pa.string(), nullable=False),
        pa.field("held_out_cosine", pa.float32(), nullable=False),
        pa.field("near_duplicate_of", pa.string()),  # a held-out clip with a stretch of the same sound
    ]
)
"""Columns of unlabeled.parquet, one row per usable clip of the unlabeled splits."""

HELD_OUT_SCHEMA = pa.schema(
    [
        *_CLIP,
        pa.field("captions", pa.list_(pa.string()), nullable=False),
        pa.field("nearest_labeled", pa.string(), nullable=False),
        pa.field("labeled_cosine", pa.float32(), nullable=False),
        pa.field("nearest_unlabeled", pa.string(), nullable=False),
        pa.field("unlabeled_cosine", pa.float32(), nullable=False),
    ]
)
"""Columns of held_out.parquet, one row per usable clip of the held-out split."""

GROUPS = ("unlabeled", "labeled", "held_out")
"""Groups of dots, in the order in which the map draws them."""

MAP_SCHEMA = pa.schema(
    [
        *_CLIP,
        pa.field("group", pa.string(), nullable=False),  # one of GROUPS
        pa.field("captions", pa.list_(pa.string()), nullable=False),
        pa.field("x", pa.float32(), nullable=False),
        pa.field("y", pa.float32(), nullable=False),
        pa.field("nearest_labeled", pa.string()),  # null for labeled clips
        pa.field("labeled_cosine", pa.float32()),
        pa.field("nearest_unlabeled", pa.string()),  # null but for held-out clips
        pa.field("unlabeled_cosine", pa.float32()),
        pa.field("nearest_held_out", pa.string()),  # null but for unlabeled clips
        pa.field("held_out_cosine", pa.float32()),
    ]
)
"""Columns of map.parquet, one row per dot. Places are in the unit square."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UnlabeledFigures:
    """An unlabeled split, or all of them together, next to a target's held-out and labeled clips."""

    name: str
    """DATASET/SPLIT, or `all`."""
    clips: int
    """Without those that leak."""
    leaked: int
    """Clips that are also in a held-out split: no run trains on them."""
    hours: float
    not_used: dict[str, int]
    """Rows of the split that gave no clip, by reason; `silent` is one."""
    quiet: int
    """Clips whose RMS is below `QUIET_DBFS`."""
    rms_dbfs: list[float]
    """`QUANTILES` of the clips' levels."""
    near_duplicates: int | None
    """Clips with a stretch of sound of a held-out clip; None if this was not looked for."""
    held_out_nearer: int
    """Held-out clips that are nearer to one of these clips than to any labeled clip."""
    held_out_near: int
    """Held-out clips with one of these clips at least as near as `PoolSummary.near_cosine`."""
    held_out_near_drawn: int
    """The same for as many of these clips, drawn at random, as there are labeled ones (or all, if they are fewer)."""
    to_held_out: list[float]
    """`QUANTILES` over the held-out clips of the cosine to the nearest of these clips."""
    from_labeled: list[float]
    """`QUANTILES` over these clips of the cosine to the nearest labeled clip."""


QUIET_DBFS = -60.0
"""Below it, a clip holds little but the noise of its recorder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolSummary:
    """The figures of a description: summary.json."""

    target: str
    role: str
    """Role of the held-out split: test or validation."""
    held_out: str
    """DATASET/SPLIT of the held-out clips."""
    held_out_clips: int
    labeled: list[str]
    """DATASET/SPLIT of the labeled clips."""
    labeled_clips: int
    weights_sha256: str
    """Of the model that embedded all clips."""
    near_cosine: float
    """The median, over the held-out clips, of the cosine to the nearest labeled clip."""
    labeled_to_held_out: list[float]
    """`QUANTILES` over the held-out clips of the cosine to the nearest labeled clip."""
    unlabeled: list[UnlabeledFigures]
    """One per unlabeled split, and `all` if there are several."""
    dots: dict[str, int]
    """Number of clips that each group of the map shows."""
    neighbours_kept: float
    """Share of the 10 nearest clips of a dot that are also its nearest dots."""

    @property
    def whole(self) -> UnlabeledFigures:
        """All unlabeled clips together."""
        return self.unlabeled[-1]


def write_summary(summary: PoolSummary, path: Path) -> None:
    """Write summary.json."""
    write_json(asdict(summary), path)


def read_pool(folder: Path) -> tuple[PoolSummary, pa.Table]:
    """Return the figures and the dots (`MAP_SCHEMA`) that describe_pool wrote to a folder.

    Raises:
        PipelineError: A file is missing, damaged or of another kind.
    """
    path = folder / "summary.json"
    return _parsed(read_json(path), path), read_table(folder / "map.parquet", MAP_SCHEMA, "describe_pool")


def _parsed(values: Mapping[str, Any], path: Path) -> PoolSummary:
    wanted = {field.name for field in fields(PoolSummary)}
    sets = values.get("unlabeled")
    if wanted != values.keys() or not isinstance(sets, list) or not sets:
        raise PipelineError(f"{path}: is not a summary of describe_pool; delete it and make it again")
    try:
        figures = [UnlabeledFigures(**found) for found in sets]
    except TypeError as error:
        raise PipelineError(f"{path}: is not a summary of describe_pool; delete it and make it again") from error
    return PoolSummary(**{**values, "unlabeled": figures})


def answer(summary: PoolSummary, figures: UnlabeledFigures) -> list[str]:
    """Return the answer to "does my unlabeled audio cover what I want to find?", in sentences."""
    clips, role = summary.held_out_clips, summary.role
    low, high = wilson_interval(figures.held_out_near, clips)
    verdict = "better than" if low > 0.5 else "less well than" if high < 0.5 else "about as well as"
    near, nearer = figures.held_out_near, figures.held_out_nearer
    return [
        f"The unlabeled audio covers the {role} clips {verdict} the labeled audio does.",
        f"{share(near, clips)} of the {clips:,} {role} clips have an unlabeled clip near them, and half have a labeled "
        "clip near them: that is how near is defined.",
        f"{share(nearer, clips)} are nearer to an unlabeled clip than to any labeled one.",
        f"With only as many unlabeled clips as labeled ones ({min(summary.labeled_clips, figures.clips):,}, drawn at "
        f"random), {share(figures.held_out_near_drawn, clips)} have one near them.",
    ]


def share(count: int, total: int) -> str:
    """Return a count as a percentage of a total."""
    return f"{100 * count / total:.0f} %"
