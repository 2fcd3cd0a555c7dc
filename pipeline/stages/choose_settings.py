"""Choose the settings of every run from the sweep, by one rule: the highest mAP@10 on the validation splits.

The figure of a candidate is the mean mAP@10 over both directions, the seeds and the targets of the run. Of equal
candidates the first is chosen. A candidate of which a training diverged has no figure and is never chosen.

The standard errors are of the choice of validation clips: the deviation over bootstrap samples of the clips, the same
samples for all candidates of a run.
"""

from __future__ import annotations

import argparse
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.evaluation.metrics import PROTOCOLS, resampled, totals
from pipeline.files import read_json, write_atomically
from pipeline.results.comparisons import mean_over_seeds, read_contributions
from pipeline.stages import run
from pipeline.study.candidates import candidate_values, chosen_entry

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

SAMPLES = 1000
"""Bootstrap samples of the validation clips."""
CHOSEN_BY = ("t2a_mAP10", "a2t_mAP10")


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """The place of an evaluation: results/sweep/CANDIDATE/RUN/seedN/TARGET."""

    candidate: str
    run: str
    target: str


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """The figure of a candidate of a run."""

    run: str
    name: str
    targets: str = ""
    mAP10: float = float("nan")
    samples_S: NDArray[np.float64] | None = None
    """mAP@10 of each bootstrap sample; None if a training diverged."""
    diverged: str | None = None
    """The reason why a training diverged."""


def place_of(folder: Path) -> Place:
    """Return the place that a folder's path says; PipelineError for another path."""
    try:
        candidate, run_name, _, target = folder.parts[-4:]
        candidate_values(candidate)
    except ValueError as error:
        raise PipelineError(f"{folder}: is not the folder CANDIDATE/RUN/seedN/TARGET of a sweep ({error})") from None
    return Place(candidate=candidate, run=run_name, target=target)


def read_candidate(run_name: str, name: str, folders: dict[str, list[Path]], protocol: str) -> Candidate:
    """Return a candidate from the folders of its evaluations, one per seed, by target.

    Raises:
        PipelineError: A file is missing or damaged, or has no figures of the protocol.
    """
    for folder in (folder for of_target in folders.values() for folder in of_target):
        metrics = read_json(folder / "metrics.json")
        if not isinstance(metrics, dict) or not {"diverged", "protocols"} & set(metrics):
            raise PipelineError(f"{folder}/metrics.json: is not an evaluation of the sweep; run `make sweep` again")
        if "diverged" in metrics:
            return Candidate(run=run_name, name=name, diverged=metrics["diverged"])
    figures, samples = [], []
    for of_target in folders.values():
        found = mean_over_seeds(
            [read_contributions(folder / "contributions.parquet", protocol) for folder in of_target]
        )
        chosen_by = [found.figures.index(name) for name in CHOSEN_BY]
        means_F = found.contributions_NF.sum(axis=0) / totals(found.queries)
        samples_SF = resampled(found.contributions_NF, found.queries, samples=SAMPLES)
        figures.append(100 * means_F[chosen_by].mean())
        samples.append(100 * samples_SF[:, chosen_by].mean(axis=1))
    return Candidate(
        run=run_name,
        name=name,
        targets="+".join(sorted(folders)),
        mAP10=float(np.mean(figures)),
        samples_S=np.mean(samples, axis=0),
    )


def choose(candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    """Return one row per candidate of a run, the best first; `chosen` marks it.

    `difference` is to the chosen candidate, and `difference_error` its standard error on the same clips.

    Raises:
        PipelineError: All candidates diverged.
    """
    ranked = sorted(candidates, key=lambda one: float("inf") if one.samples_S is None else -one.mAP10)
    best = ranked[0]
    if best.samples_S is None:
        raise PipelineError(
            f"every training of the sweep diverged for {best.run}; add lower rates to sweep.grid.learning_rate"
        )
    rows = []
    for one in ranked:
        row = {"run": one.run, **candidate_values(one.name), "targets": one.targets, "chosen": one is best}
        if one.samples_S is not None:
            row |= {
                "mAP10": one.mAP10,
                "standard_error": one.samples_S.std(ddof=1),
                "difference": one.mAP10 - best.mAP10,
                "difference_error": (one.samples_S - best.samples_S).std(ddof=1),
            }
        rows.append({**row, "diverged": one.diverged})
    return rows


def table_of(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return the rows as a table: the run, the settings of the grid, then the figures."""
    import pandas as pd

    last = ["targets", "mAP10", "standard_error", "difference", "difference_error", "chosen", "diverged"]
    settings = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in ("run", *last)]
    return pd.DataFrame(rows, columns=["run", *settings, *last])


def configuration_of(rows: Sequence[dict[str, Any]], settings: Sequence[str]) -> str:
    """Return the chosen settings as YAML that `--configfile` takes."""
    runs = {row["run"]: chosen_entry({key: row[key] for key in settings}) for row in rows if row["chosen"]}
    opening = "# Chosen on the validation splits by `make sweep`; give it after the study's own --configfile.\n"
    return opening + yaml.safe_dump({"runs": runs}, sort_keys=False)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--evaluations",
        type=Path,
        nargs="+",
        required=True,
        metavar="DIR",
        help="folders CANDIDATE/RUN/seedN/TARGET with metrics.json and contributions.parquet",
    )
    parser.add_argument("--protocol", choices=PROTOCOLS, required=True)
    parser.add_argument("--csv", type=Path, required=True, help="CSV file to write: all candidates, the best first")
    parser.add_argument("--yaml", type=Path, required=True, help="configuration file to write: the chosen settings")
    args = parser.parse_args(argv)

    folders: dict[str, dict[str, dict[str, list[Path]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for folder in args.evaluations:
        place = place_of(folder)
        folders[place.run][place.candidate][place.target].append(folder)
    rows = []
    for run_name, of_run in folders.items():
        rows += choose([read_candidate(run_name, name, found, args.protocol) for name, found in of_run.items()])
    table = table_of(rows)
    settings = list(table.columns[1 : table.columns.get_loc("targets")])
    with write_atomically(args.csv) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")
    with write_atomically(args.yaml) as temporary:
        temporary.write_text(configuration_of(rows, settings), encoding="utf-8")
    for row in rows:
        if row["chosen"]:
            values = ", ".join(f"{key} {row[key]}" for key in settings)
            logger.info(
                "%s: %s (validation mAP@10 %.2f, standard error %.2f)",
                row["run"], values, row["mAP10"], row["standard_error"],
            )  # fmt: skip


if __name__ == "__main__":
    run(main)
