"""The unlabeled audio on the page: figures in words and tables, and the dots of the maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.results.pools import QUANTILES, PoolSummary, UnlabeledFigures, answer, read_pool, share

LISTED = 10
"""Clips in each of the two lists: held-out clips worst covered, unlabeled clips farthest from all others."""


@dataclass(frozen=True, kw_only=True)
class PagePool:
    """A description as page.html and page.js show it."""

    summary: PoolSummary
    dots: pa.Table
    """See `pipeline.results.pools.MAP_SCHEMA`."""

    @property
    def name(self) -> str:
        """Name of the description: the held-out split."""
        return f"{self.summary.target}: {self.summary.held_out.split('/')[1]} clips"

    @property
    def answer(self) -> list[str]:
        """The answer to the section's question, of all unlabeled clips together."""
        return answer(self.summary, self.summary.whole)

    @property
    def coverage(self) -> list[list[str]]:
        """Rows of the table of unlabeled splits."""
        return [self._coverage(figures) for figures in self.summary.unlabeled]

    def _coverage(self, figures: UnlabeledFigures) -> list[str]:
        total = self.summary.held_out_clips
        return [
            figures.name,
            f"{figures.clips:,}",
            f"{figures.hours:.2f}",
            share(figures.held_out_near, total),
            share(figures.held_out_near_drawn, total),
            share(figures.held_out_nearer, total),
            "-" if figures.near_duplicates is None else f"{figures.near_duplicates:,}",
            f"{figures.leaked:,}",
            f"{figures.not_used.get('silent', 0):,}",
            f"{figures.quiet:,}",
            " / ".join(f"{figures.rms_dbfs[QUANTILES.index(part)]:.0f}" for part in (0.05, 0.5, 0.95)),
        ]

    @property
    def cosines(self) -> list[list[str]]:
        """Rows of the table of cosines: their meaning, then `QUANTILES`."""
        role, whole = self.summary.role, self.summary.whole
        rows = [
            (f"{role} clip to its nearest labeled clip", self.summary.labeled_to_held_out),
            (f"{role} clip to its nearest unlabeled clip", whole.to_held_out),
            ("unlabeled clip to its nearest labeled clip", whole.from_labeled),
        ]
        return [[meaning, *(f"{cosine:.3f}" for cosine in cosines)] for meaning, cosines in rows]

    @property
    def note(self) -> str:
        """Sentences under the map: its clips, and how to read it."""
        summary = self.summary
        totals = {
            "unlabeled": summary.whole.clips,
            "labeled": summary.labeled_clips,
            "held_out": summary.held_out_clips,
        }
        names = {"unlabeled": "unlabeled", "labeled": "labeled", "held_out": summary.role}
        shown = ", ".join(f"{summary.dots[group]:,} of {totals[group]:,} {names[group]}" for group in names)
        return (
            f"Shown: {shown} clips, drawn at random; those of the two lists are always shown. Near dots are clips that "
            f"the pretrained model embeds near each other (t-SNE): {100 * summary.neighbours_kept:.0f} % of a clip's "
            "ten nearest clips are among its ten nearest dots. Sizes of gaps mean little. Labeled and unlabeled clips "
            "play their first 10 s."
        )

    def data(self) -> dict[str, Any]:
        """Return the dots as JSON, and the two lists as numbers of dots."""
        rows = self.dots.to_pylist()
        splits = list(dict.fromkeys(f"{row['dataset']}/{row['split']}" for row in rows))
        worst = [number for number, row in enumerate(rows) if row["group"] == "held_out"]
        far = [number for number, row in enumerate(rows) if row["group"] == "unlabeled"]
        worst.sort(key=lambda number: rows[number]["unlabeled_cosine"])
        far.sort(key=lambda number: max(rows[number]["labeled_cosine"], rows[number]["held_out_cosine"]))
        return {
            "role": self.summary.role,
            "note": self.note,
            "splits": splits,
            "worst": worst[:LISTED],
            "far": far[:LISTED],
            "dots": [
                {
                    "key": row["key"],
                    "file": row["source_name"],
                    "split": splits.index(f"{row['dataset']}/{row['split']}"),
                    "group": row["group"],
                    "x": round(row["x"], 4),
                    "y": round(row["y"], 4),
                    "captions": row["captions"],
                    "near": [
                        [group, row[f"nearest_{group}"], round(row[f"{group}_cosine"], 3)]
                        for group in ("labeled", "unlabeled", "held_out")
                        if row[f"nearest_{group}"] is not None
                    ],
                }
                for row in rows
            ],
        }


def read_pools(folders: Sequence[Path]) -> list[PagePool]:
    """Return the descriptions in folders of describe_pool."""
    pools = []
    for folder in folders:
        summary, dots = read_pool(folder)
        pools.append(PagePool(summary=summary, dots=dots))
    return pools
