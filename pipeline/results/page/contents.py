"""Contents of the page, read from the outputs of the other stages and checked to belong together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.parquet import read_parquet
from pipeline.data.shards.format import read_summary
from pipeline.errors import PipelineError
from pipeline.evaluation.npz import read_npz
from pipeline.files import read_json

if TYPE_CHECKING:
    import pandas as pd

NOT_LOSSES = ("step", "epoch", "learning_rate", "a2t_learning_rate", "logit_scale", "gradient_norm")
"""Columns of training.parquet that are no term of the loss; figures of validations are none either."""


RANKS = ("direction", "rank", "rank_one_caption", "top10", "top10_score")
"""Columns of ranks.parquet that the page shows."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A run evaluated on a target: the figures, and every query's ranks and answers."""

    folder: Path
    metrics: dict[str, Any]
    """Contents of metrics.json."""
    ranks: pa.Table
    """Contents of ranks.parquet, see `pipeline.stages.evaluate.ranks_table`."""

    @property
    def run(self) -> str:
        """Name of the run."""
        return self.metrics["run"]

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self.metrics["seed"]

    @property
    def target(self) -> str:
        """Dataset it is evaluated on."""
        return self.metrics["target"]

    def queries(self, direction: str) -> pa.Table:
        """The rows of one direction, `t2a` or `a2t`, one row per query in the order of the embeddings."""
        return self.ranks.filter(pc.equal(self.ranks["direction"], direction))


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """The clips and captions that all evaluations of a target rank."""

    target: str
    split: str
    keys: list[str]
    captions: list[str]
    """All captions, by clip and then by caption."""
    audio_of_text: list[int]
    """The clip of each caption, a row of `keys`."""


def read_evaluation(folder: Path) -> Evaluation:
    """The results of the stage `evaluate` in `folder`."""
    metrics, ranks = read_json(folder / "metrics.json"), read_parquet(folder / "ranks.parquet", "evaluate")
    if missing := [name for name in ("run", "seed", "target", "split") if name not in metrics]:
        raise PipelineError(f"{folder / 'metrics.json'}: holds no {', '.join(missing)}; make it again with evaluate")
    if missing := [name for name in RANKS if name not in ranks.column_names]:
        raise PipelineError(f"{folder / 'ranks.parquet'}: has no {', '.join(missing)}; make it again with evaluate")
    return Evaluation(folder=folder, metrics=metrics, ranks=ranks)


def by_target(evaluations: Iterable[Evaluation]) -> dict[str, list[Evaluation]]:
    """The evaluations of each target, in the order given."""
    groups: dict[str, list[Evaluation]] = {}
    for evaluation in evaluations:
        groups.setdefault(evaluation.target, []).append(evaluation)
    return groups


def read_test_set(evaluations: Sequence[Evaluation]) -> TestSet:
    """The test set of one target's evaluations; PipelineError if one of them ranked another."""
    first: TestSet | None = None
    for evaluation in evaluations:
        path = evaluation.folder / "embeddings.npz"
        arrays = read_npz(path, ("audio_key", "caption", "audio_of_text"), "embed")
        keys, captions, clips = (array.tolist() for array in arrays.values())
        found = TestSet(
            target=evaluation.target,
            split=evaluation.metrics["split"],
            keys=keys,
            captions=captions,
            audio_of_text=clips,
        )
        if evaluation.ranks.num_rows != len(keys) + len(captions):
            raise PipelineError(
                f"{evaluation.folder}: {evaluation.ranks.num_rows} queries in ranks.parquet, {len(captions)} captions "
                f"and {len(keys)} clips in embeddings.npz; evaluate it again"
            )
        if first is None:
            first = found
        elif found != first:
            raise PipelineError(
                f"{path}: holds other clips or captions than {evaluations[0].folder / 'embeddings.npz'}; "
                "evaluate every run of a target on the same shards"
            )
    if first is None:
        raise PipelineError("no evaluation to show")
    return first


def retrieved(evaluations: Sequence[Evaluation], test_set: TestSet) -> dict[str, Any]:
    """Contents of one target for the browser, as JSON: clips, captions, and each run's ranks and top ten.

    A run with several seeds is shown by its first.
    """
    runs: dict[str, Any] = {}
    for evaluation in evaluations:
        if evaluation.run in runs:
            continue
        runs[evaluation.run] = {"seed": evaluation.seed}
        for direction in ("t2a", "a2t"):
            queries = evaluation.queries(direction)
            runs[evaluation.run][direction] = {
                "rank": [round(rank, 1) for rank in queries["rank"].to_pylist()],
                "top": queries["top10"].to_pylist(),
                "score": [[round(score, 3) for score in scores] for scores in queries["top10_score"].to_pylist()],
            }
    return {
        "split": test_set.split,
        "keys": test_set.keys,
        "captions": test_set.captions,
        "audio_of_text": test_set.audio_of_text,
        "runs": runs,
    }


def recall_at(evaluations: Sequence[Evaluation], direction: str, protocol: str, depth: int) -> pd.DataFrame:
    """Share of queries, in percent, whose rank is at most k = 1 .. depth (rows), for each run (columns).

    Means over the run's seeds. Under `paper` a clip's rank is that of its first caption among all first captions,
    otherwise that of its best caption among all.
    """
    import pandas as pd

    column = "rank_one_caption" if direction == "a2t" and protocol == "paper" else "rank"
    of_run: dict[str, list[np.ndarray]] = {}
    cutoffs = np.arange(1, depth + 1)
    for evaluation in evaluations:
        ranks = evaluation.queries(direction)[column].to_numpy()
        of_run.setdefault(evaluation.run, []).append(100 * (ranks[:, None] <= cutoffs).mean(axis=0))
    return pd.DataFrame({run: np.mean(seeds, axis=0) for run, seeds in of_run.items()}, index=cutoffs)


def read_losses(path: Path) -> pd.DataFrame:
    """The mean of every term of the loss in each epoch (rows) of a training, from its training.parquet."""
    log = read_parquet(path, "train").to_pandas()
    if "epoch" not in log:
        raise PipelineError(f"{path}: has no column epoch, so it is not the log of a training; train the run again")
    terms = [name for name in log if name not in NOT_LOSSES and not name.startswith("validation_")]
    return log.groupby("epoch")[terms].mean()


@dataclass(frozen=True, kw_only=True)
class SplitAccount:
    """Counts of a split's rows, used and not used."""

    dataset: str
    split: str
    listed: int
    used: int
    hours: float
    not_used: str
    """Numbers and reasons, in words."""
    shards: int
    megabytes: float


def read_leaked(logs: Iterable[Path]) -> dict[tuple[str, str], int]:
    """The number of clips that trainings left out of a split (dataset, split) as held-out ones.

    It is read from the training.json next to each of `logs`.
    """
    leaked: dict[tuple[str, str], int] = {}
    for log in logs:
        account = log.with_name("training.json")
        data = read_json(account).get("data")
        if not isinstance(data, dict) or "left_out_as_leaked" not in data:
            raise PipelineError(f"{account}: has no data.left_out_as_leaked; train the run again")
        for folder, count in data["left_out_as_leaked"].items():
            dataset, split = Path(folder).parts[-2:]
            leaked[dataset, split] = max(count, leaked.get((dataset, split), 0))
    return leaked


def read_account(path: Path, leaked: Mapping[tuple[str, str], int]) -> SplitAccount:
    """The account of a split from its manifest.json, less the clips that trainings left out as held-out ones."""
    summary = read_summary(path)
    left_out = leaked.get((summary["dataset"], summary["split"]), 0)
    reasons = sorted(summary["reason"].items()) + ([("left out as leaked", left_out)] if left_out else [])
    return SplitAccount(
        dataset=summary["dataset"],
        split=summary["split"],
        listed=summary["rows"],
        used=summary["clips"] - left_out,
        hours=summary["duration_s"] / 3600,
        not_used=", ".join(f"{count} {reason}" for reason, count in reasons) or "none",
        shards=len(summary["shards"]),
        megabytes=sum(shard["bytes"] for shard in summary["shards"]) / 1e6,
    )
