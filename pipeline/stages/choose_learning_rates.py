"""Choose the learning rate of every run from the sweep, by one rule: the highest mAP@10 on the validation splits.

The figure of a candidate is the mean of both directions' mAP@10 over the targets that the run serves. Ties go to the
lower rate; a candidate whose training diverged is worse than any other, and has no figure. The choices are written into
config.yaml by hand, so that a study says what it ran with.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import pandas as pd

from pipeline.errors import PipelineError
from pipeline.files import write_atomically
from pipeline.stages import run

logger = logging.getLogger(__name__)


def read_candidate(path: Path, protocol: str) -> dict[str, object]:
    """One evaluation of the sweep; the path is LEARNING_RATE/RUN/TARGET/metrics.json."""
    learning_rate = path.parts[-4]
    metrics = json.loads(path.read_text(encoding="utf-8"))
    try:
        figures = metrics["protocols"][protocol]
        return {
            "run": metrics["run"],
            "learning_rate": float(learning_rate),
            "target": metrics["target"],
            "split": metrics["split"],
            "mAP10": (figures["t2a_mAP10"] + figures["a2t_mAP10"]) / 2,
        }
    except (KeyError, ValueError) as error:
        raise PipelineError(f"{path}: is no evaluation of the sweep under {protocol}: {error}") from error


def read_diverged(path: Path) -> dict[str, object]:
    """One candidate that diverged, with what happened; the path is LEARNING_RATE/RUN/outcome.txt."""
    learning_rate, run = path.parts[-3:-1]
    try:
        return {"run": run, "learning_rate": float(learning_rate), "diverged": path.read_text(encoding="utf-8").strip()}
    except ValueError as error:
        raise PipelineError(f"{path}: is no outcome of the sweep: {error}") from error


def choose(candidates: pd.DataFrame, diverged: pd.DataFrame) -> pd.DataFrame:
    """A row a run and learning rate with its validation mAP@10 over all targets; `chosen` marks each run's best.

    Raises PipelineError for a run all of whose candidates diverged.
    """
    lost = sorted(set(diverged["run"]) - set(candidates["run"]))
    if lost:
        raise PipelineError(
            f"every training of the sweep diverged for {', '.join(lost)}; add lower rates to sweep.learning_rates"
        )
    figures = candidates.groupby(["run", "learning_rate"], as_index=False).agg(
        targets=("target", lambda targets: "+".join(sorted(targets))), mAP10=("mAP10", "mean")
    )
    table = figures.merge(diverged.astype({"learning_rate": float}), on=["run", "learning_rate"], how="outer")
    best = table.groupby("run")["mAP10"].idxmax()
    return table.assign(chosen=table.index.isin(best))[
        ["run", "learning_rate", "targets", "mAP10", "chosen", "diverged"]
    ]


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--metrics", type=Path, nargs="*", required=True, help="metrics.json files of the sweep")
    parser.add_argument("--diverged", type=Path, nargs="*", default=[], help="outcome.txt of candidates that diverged")
    parser.add_argument("--protocol", required=True)
    parser.add_argument("--csv", type=Path, required=True)
    args = parser.parse_args(argv)

    candidates = [read_candidate(path, args.protocol) for path in args.metrics]
    diverged = [read_diverged(path) for path in args.diverged]
    table = choose(
        pd.DataFrame(candidates, columns=["run", "learning_rate", "target", "split", "mAP10"]),
        pd.DataFrame(diverged, columns=["run", "learning_rate", "diverged"]),
    )
    with write_atomically(args.csv) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")
    for row in table[table.chosen].itertuples():
        logger.info("%s: learning_rate %g (validation mAP@10 %.2f)", row.run, row.learning_rate, row.mAP10)


if __name__ == "__main__":
    run(main)
