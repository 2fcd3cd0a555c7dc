"""Choose the learning rate of every run from the sweep, by one rule: the highest mAP@10 on the validation splits.

The figure of a candidate is the mean of both directions' mAP@10 over the targets that the run serves. Ties go to the
lower rate. The choices are written into config.yaml by hand, so that a study says what it ran with.
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


def choose(candidates: pd.DataFrame) -> pd.DataFrame:
    """A row a run and learning rate with its validation mAP@10 over all targets; `chosen` marks each run's best."""
    table = candidates.groupby(["run", "learning_rate"], as_index=False, sort=True).agg(
        targets=("target", lambda targets: "+".join(sorted(targets))), mAP10=("mAP10", "mean")
    )
    best = table.groupby("run")["mAP10"].idxmax()
    return table.assign(chosen=table.index.isin(best))


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--metrics", type=Path, nargs="+", required=True, help="metrics.json files of the sweep")
    parser.add_argument("--protocol", required=True)
    parser.add_argument("--csv", type=Path, required=True)
    args = parser.parse_args(argv)

    table = choose(pd.DataFrame([read_candidate(path, args.protocol) for path in args.metrics]))
    with write_atomically(args.csv) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")
    for row in table[table.chosen].itertuples():
        logger.info("%s: learning_rate %g (validation mAP@10 %.2f)", row.run, row.learning_rate, row.mAP10)


if __name__ == "__main__":
    run(main)
