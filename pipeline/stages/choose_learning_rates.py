"""Choose the learning rate of every run from the sweep, by one rule: the highest mAP@10 on the validation splits.

The figure of a candidate is the mean mAP@10 over both directions and the targets of the run. Of equal candidates the
lower rate is chosen. A candidate whose training diverged has no figure and is never chosen. The user writes the choices
into config.yaml, so that the study records its settings.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import pandas as pd

from pipeline.errors import PipelineError
from pipeline.evaluation.metrics import PROTOCOLS
from pipeline.files import read_json, write_atomically
from pipeline.stages import run

logger = logging.getLogger(__name__)


def read_candidate(path: Path, protocol: str) -> dict[str, object]:
    """Return one evaluation of the sweep, with `mAP10` or `diverged`.

    The path is LEARNING_RATE/RUN/TARGET/metrics.json.
    """
    metrics = read_json(path)
    try:
        candidate = {
            "run": metrics["run"],
            "learning_rate": float(path.parts[-4]),
            "target": metrics["target"],
        }
        if "diverged" in metrics:
            return {**candidate, "diverged": metrics["diverged"]}
        figures = metrics["protocols"][protocol]
        return {**candidate, "mAP10": (figures["t2a_mAP10"] + figures["a2t_mAP10"]) / 2}
    except (IndexError, KeyError, ValueError) as error:
        raise PipelineError(
            f"{path}: not an evaluation of the sweep with protocol {protocol} ({error!r}); run `make sweep` again"
        ) from error


def choose(candidates: pd.DataFrame) -> pd.DataFrame:
    """Return one row per run and learning rate with its mean validation mAP@10; `chosen` marks the best of each run.

    Args:
        candidates: one row per evaluation, with run, learning_rate, target, mAP10 (NaN if it diverged) and diverged
            (NaN if it did not).

    Raises:
        PipelineError: All candidates of a run diverged.
    """
    has_diverged = candidates["diverged"].notna()
    evaluated = candidates[~has_diverged]
    lost = sorted(set(candidates["run"]) - set(evaluated["run"]))
    if lost:
        raise PipelineError(
            f"every training of the sweep diverged for {', '.join(lost)}; add lower rates to sweep.learning_rates"
        )
    figures = evaluated.groupby(["run", "learning_rate"], as_index=False).agg(
        targets=("target", lambda targets: "+".join(sorted(targets))), mAP10=("mAP10", "mean")
    )
    diverged = candidates.loc[has_diverged, ["run", "learning_rate", "diverged"]].drop_duplicates()
    table = figures.merge(diverged, on=["run", "learning_rate"], how="outer")
    best = table.groupby("run")["mAP10"].idxmax()
    return table.assign(chosen=table.index.isin(best))[
        ["run", "learning_rate", "targets", "mAP10", "chosen", "diverged"]
    ]


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--metrics", type=Path, nargs="+", required=True, help="LEARNING_RATE/RUN/TARGET/metrics.json of all candidates"
    )
    parser.add_argument("--protocol", choices=PROTOCOLS, required=True)
    parser.add_argument("--csv", type=Path, required=True, help="CSV file to write")
    args = parser.parse_args(argv)

    candidates = [read_candidate(path, args.protocol) for path in args.metrics]
    table = choose(pd.DataFrame(candidates, columns=["run", "learning_rate", "target", "mAP10", "diverged"]))
    with write_atomically(args.csv) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")
    for row in table[table.chosen].itertuples():
        logger.info("%s: learning_rate %g (validation mAP@10 %.2f)", row.run, row.learning_rate, row.mAP10)


if __name__ == "__main__":
    run(main)
