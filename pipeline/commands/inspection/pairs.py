"""A pairs file: its splits and where they are, and its contents as values for JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.commands.inspection.columns import batches, distributions, evenly_spaced, read_schema
from pipeline.commands.inspection.splits import check_manifest
from pipeline.data.leaks import LEAKED_SCHEMA, leaked_path, read_leaked
from pipeline.data.pairs import NO_CAPTION, read_facts
from pipeline.data.shards.reader import hashes_of
from pipeline.errors import PipelineError
from pipeline.files import sha256_of
from pipeline.training.settings import PairingSettings

PLAN = {"seed", "epochs", "steps_per_epoch", "batch_size", "window_frames", "sample_rate_hz"}
"""Entries in the footer of every pairs file that describe its plan."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedSplit:
    """A split that a pairs file draws from."""

    role: Literal["labeled", "unlabeled"]
    name: str
    """DATASET/SPLIT."""
    manifest_sha256: str
    """Of the manifest that the pairs were made from."""
    folder: Path | None
    """Where its manifest is now; None if it was not found."""

    @property
    def manifest(self) -> Path:
        """The manifest of a split that was found."""
        assert self.folder is not None
        return self.folder / "manifest.parquet"

    def state(self) -> Literal["as paired", "has changed", "not found"]:
        """Whether the manifest is still the one that the pairs were made from."""
        if self.folder is None:
            return "not found"
        is_the_same = sha256_of(self.manifest) == self.manifest_sha256
        return "as paired" if is_the_same else "has changed"


def read_footer(path: Path) -> dict[str, Any]:
    """The plan and the splits of a pairs file; PipelineError where its footer lacks any of them."""
    footer = read_facts(path)
    if missing := sorted((PLAN | {"labeled", "unlabeled"}) - set(footer)):
        raise PipelineError(f"{path}: its footer has no {', '.join(missing)}; make it again with pair_clips")
    return footer


def splits_of(pairs: Path, footer: Mapping[str, Any], shards: Path | None) -> list[PairedSplit]:
    """The splits of a pairs file, with their folders.

    They are sought in `shards`. Without it, in a folder `shards` next to the pairs or to one of the folders above, and
    then where they were when the pairs were made.
    """
    splits = []
    for role in ("labeled", "unlabeled"):
        for recorded, checksum in footer[role].items():
            name = "/".join(Path(recorded).parts[-2:])
            nearby = [parent / "shards" / name for parent in pairs.absolute().parents]
            folders = [*nearby, Path(recorded)] if shards is None else [shards / name]
            folder = next((folder for folder in folders if (folder / "manifest.parquet").is_file()), None)
            splits.append(PairedSplit(role=role, name=name, manifest_sha256=checksum, folder=folder))
    return splits


def leaked_of(pairs: Path, footer: Mapping[str, Any]) -> tuple[str, pa.Table]:
    """Whether the list of a run's leaked clips agrees with its pairs, and the list; an empty one where it is missing.

    Pairs that leave none out need no list.
    """
    path, expected = leaked_path(pairs), sum(footer.get("left_out_as_leaked", {}).values())
    if not path.is_file():
        return "missing" if expected else "agrees", LEAKED_SCHEMA.empty_table()
    leaked = read_leaked(path)
    return "agrees" if len(leaked) == expected else "is of other pairs", leaked


def describe_pairs(path: Path, shards: Path | None, samples: int) -> dict[str, Any]:
    """Sections on a pairs file: its plan, how evenly it uses the clips, and rows with the captions that were drawn."""
    footer = read_footer(path)
    splits = splits_of(path, footer, shards)
    found = [split for split in splits if split.folder is not None]
    for split in found:
        check_manifest(split.manifest)
    clips = {split.name: clips_of(split) for split in found}
    state, leaked = leaked_of(path, footer)
    plan, uses = describe_plan(path, footer)
    for role, used in zip(("labeled", "unlabeled"), uses.values(), strict=False):
        names = [split.name for split in splits if split.role == role]
        if names and clips.keys() >= set(names):
            plan[f"{role}_clips_never_used"] = sum(clips[name] for name in names) - len(used)
    plan |= {"clips_left_out_as_leaked": sum(footer.get("left_out_as_leaked", {}).values()), "list_of_leaked": state}
    return {
        "plan": plan,
        "drawing": PairingSettings.of(footer).model_dump(),
        "splits": [
            {
                "split": split.name,
                "role": split.role,
                "clips": clips.get(split.name),
                "manifest": split.state(),
            }
            for split in splits
        ],
        "left_out": left_out_counts(leaked),
        "leaked": leaked.slice(0, samples).to_pylist(),
        "distributions": distributions(uses),
        "samples": pair_samples(path, splits, footer["sample_rate_hz"], samples),
    }


def describe_plan(path: Path, footer: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The plan of a pairs file, and how often it uses each labeled clip and each partner.

    Of partners of both kinds, only the unlabeled ones are counted.
    """
    labeled = np.concatenate([hashes_of(batch["labeled_key"]) for batch in batches(path, ["labeled_key"])])
    partner_parts, labeled_parts, partners = [], [], 0
    for batch in batches(path, ["partner_key", "partner_caption"]):
        partner_parts.append(hashes_of(pc.fill_null(batch["partner_key"], "")))
        labeled_parts.append(batch["partner_caption"].to_numpy() != NO_CAPTION)
        partners += len(batch["partner_key"]) - batch["partner_key"].null_count
    partner, is_labeled = np.concatenate(partner_parts), np.concatenate(labeled_parts)
    if len(labeled) != len(partner):
        raise PipelineError(
            f"{path}: {len(labeled)} labeled clips and {len(partner)} partners can be read; the file is damaged, "
            "make it again with pair_clips"
        )
    kinds = [name for name, rows in (("unlabeled", ~is_labeled), ("labeled", is_labeled)) if rows.any()]
    partner_role = "none" if partners == 0 else " and ".join(kinds)

    uses = {"uses_of_a_labeled_clip": np.unique(labeled, return_counts=True)[1]}
    fractions = [name for name in ("labeled_fraction", "unlabeled_fraction") if name in footer]
    plan = {
        **{name: footer[name] for name in [*sorted(PLAN), *fractions]},
        "window_s": footer["window_frames"] / footer["sample_rate_hz"],
        "steps": footer["epochs"] * footer["steps_per_epoch"],
        "rows": len(labeled),
        "partners": partner_role,
    }
    if partner_role != "none":
        of_one_kind = partner if len(kinds) == 1 else partner[~is_labeled]
        uses["uses_of_a_partner"] = np.unique(of_one_kind, return_counts=True)[1]
        mixed = labeled * np.uint64(0x9E3779B97F4A7C15) + partner  # an odd factor, so that order counts
        plan["distinct_pairs"] = len(np.unique(mixed))
        plan["distinct_pairs_share"] = plan["distinct_pairs"] / len(mixed)
    return plan, uses


def left_out_counts(leaked: pa.Table) -> list[dict[str, Any]]:
    """How many clips of which split were left out, by what they share with which held-out split."""
    names = ["role", "dataset", "split", "reason", "shared", "held_out_dataset", "held_out_split"]
    counted = leaked.group_by(names).aggregate([([], "count_all")]).sort_by([(name, "ascending") for name in names])
    return counted.rename_columns([*names, "clips"]).to_pylist()


def clips_of(split: PairedSplit) -> int:
    """The usable clips of a split that was found."""
    return sum(batch.num_rows for batch in batches(split.manifest, [], usable=True))


def captions_of(splits: Iterable[PairedSplit], keys: Sequence[str]) -> dict[str, list[str]]:
    """The captions of some clips of the splits that were found."""
    captions: dict[str, list[str]] = {}
    for split in splits:
        if split.folder is None:
            continue
        for batch in batches(split.manifest, ["key", "captions"], usable=True):
            rows = batch.filter(pc.is_in(batch["key"], pa.array(keys, pa.string())))
            captions |= dict(zip(rows["key"].to_pylist(), rows["captions"].to_pylist(), strict=True))
    return captions


def pair_samples(path: Path, splits: Sequence[PairedSplit], sample_rate_hz: int, count: int) -> list[dict[str, Any]]:
    """Rows of a pairs file with the captions in place of their indices, where the splits are found."""
    rows = evenly_spaced(path, read_schema(path).names, count)
    keys = [row[name] for row in rows for name in ("labeled_key", "partner_key") if row[name] is not None]
    captions = captions_of(splits, keys)

    def caption(row: dict[str, Any], key: str, column: str) -> str | None:
        index, known = row[column], captions.get(row[key], [])
        if index < 0:
            return None
        own = known[index] if index < len(known) else f"(caption {index})"
        return row.get(f"{column}_text") or own  # a paraphrase

    shown = []
    for row in rows:
        shown.append(
            {
                **{name: row[name] for name in ("epoch", "step", "slot", "labeled_key")},
                "caption": caption(row, "labeled_key", "caption"),
                "labeled_start_s": row["labeled_start"] / sample_rate_hz,
            }
        )
        if row["partner_key"] is not None:
            shown[-1] |= {
                "partner_key": row["partner_key"],
                "partner_caption": caption(row, "partner_key", "partner_caption"),
                "partner_start_s": row["partner_start"] / sample_rate_hz,
            }
    return shown
