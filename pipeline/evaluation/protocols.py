"""The named protocols: their figures, what each figure is averaged over, and how figures are written.

`paper`, `best-of-5` and `dcase` follow from a similarity matrix alone (`metrics.py`). `dcase2025` needs a relevance
file (`relevance.py`), `moments` the windows of whole recordings (`moment_metrics.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.metrics import FIGURES, PROTOCOLS

DCASE2025, MOMENTS = "dcase2025", "moments"
OF_CLIPS = "clips"
"""Instead of a column: every row of the contributions is one query."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Figures that are averaged over the same queries."""

    figures: tuple[str, ...]
    queries: str
    """The column of contributions.parquet with the number of queries per row, or `OF_CLIPS`."""


_OF_MATRIX = (
    Group(figures=FIGURES[:4], queries="captions"),
    Group(figures=FIGURES[4:], queries=OF_CLIPS),
)
ALL_PROTOCOLS: dict[str, tuple[Group, ...]] = {
    **dict.fromkeys(PROTOCOLS, _OF_MATRIX),
    DCASE2025: (Group(figures=FIGURES[:4], queries="captions"), Group(figures=("t2a_mAP16",), queries="queries")),
    MOMENTS: (Group(figures=("t2m_R1_50", "t2m_R1_70", "t2m_mAP_50", "t2m_mAP_75", "t2m_mAP"), queries="captions"),),
}
DIRECTIONS = {
    "t2a": "text \N{RIGHTWARDS ARROW} audio",
    "a2t": "audio \N{RIGHTWARDS ARROW} text",
    "t2m": "text \N{RIGHTWARDS ARROW} moment",
}
MEASURES = {
    **{"R1": "R@1", "R5": "R@5", "R10": "R@10", "mAP10": "mAP@10", "mAP16": "mAP@16"},
    **{"R1_50": "R1@0.5", "R1_70": "R1@0.7", "mAP_50": "mAP@0.5", "mAP_75": "mAP@0.75", "mAP": "mAP"},
}


def figures_of(protocol: str) -> tuple[str, ...]:
    """Return the names of a protocol's figures, in the order of tables."""
    return tuple(name for group in ALL_PROTOCOLS[protocol] for name in group.figures)


ALL_FIGURES = tuple(dict.fromkeys(name for protocol in ALL_PROTOCOLS for name in figures_of(protocol)))


def direction_of(figure: str) -> str:
    """Return the direction of a figure, a key of `DIRECTIONS`."""
    return figure.partition("_")[0]


def measure_of(figure: str) -> str:
    """Return a figure as printed, without its direction: `R@1` for `t2a_R1`."""
    return MEASURES[figure.partition("_")[2]]


def by_direction(figures: Sequence[str]) -> dict[str, list[str]]:
    """Return the figures of each direction, in their order."""
    groups: dict[str, list[str]] = {}
    for name in figures:
        groups.setdefault(direction_of(name), []).append(name)
    return groups


def query_counts(
    protocol: str, columns: Mapping[str, NDArray[np.integer]], rows: int
) -> list[tuple[int, NDArray[np.integer]]]:
    """Return the groups of a protocol's figures as `resampled` takes them: width, and queries of each row.

    columns: the columns of the contributions that count queries.
    """
    ones = np.ones(rows, np.int64)
    return [
        (len(group.figures), ones if group.queries == OF_CLIPS else columns[group.queries])
        for group in ALL_PROTOCOLS[protocol]
    ]
