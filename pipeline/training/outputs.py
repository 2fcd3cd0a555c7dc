"""The output folder of a training: its lock, its checksums, and the check whether its outputs are complete.

Imports no torch, so that a training with complete outputs ends in a second.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pipeline.data.parquet import content_sha256
from pipeline.data.shards.format import read_summary
from pipeline.errors import PipelineError, write_error_message
from pipeline.files import read_json, sha256_of, try_lock
from pipeline.provenance import is_kept, restore
from pipeline.stages import VERSIONS
from pipeline.training.settings import TrainingSettings

logger = logging.getLogger(__name__)

FINISHED = "finished"
"""Outcome of a training that did not diverge."""

ACCOUNT = "training.json"
CHECKPOINTS = "checkpoints"
"""Folder of the checkpoint in the output folder; removed when the outputs are written."""

LOCK_WAIT_S = 20
"""How long a training waits for another one in its folder: one that lost its launcher saves and ends in this time."""


@dataclass(frozen=True, kw_only=True)
class ValidationPlan:
    """The splits on which a training is validated, and how."""

    folders: tuple[Path, ...]
    """Folders of the shards."""
    windows: str
    """Windows of a clip; see `pipeline.evaluation.windows`."""
    protocol: str
    """One of `pipeline.evaluation.metrics.PROTOCOLS`."""

    def made_from(self) -> dict[str, Any]:
        """Return all that determines the figures of given weights."""
        splits = {
            "/".join(folder.parts[-2:]): read_summary(folder / "manifest.json")["manifest_sha256"]
            for folder in self.folders
        }
        return {"splits": splits, "windows": self.windows, "protocol": self.protocol}


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Everything that determines the result of a training, except for the rounding of sums."""

    pairs_sha256: str
    starting_weights_sha256: str
    """Checksum of the starting weights; for random weights their description."""
    settings: dict[str, Any]
    """Those of `TrainingSettings.recorded`, and `seed`."""
    stage: str
    version: int
    """Version of the stage (`pipeline.stages.VERSIONS`); it rises when the same inputs give other weights."""
    validation: dict[str, Any] = field(default_factory=dict)
    """`ValidationPlan.made_from`; empty without validation."""

    @classmethod
    def of(
        cls,
        stage: str,
        pairs: Path,
        starting_weights: Path | str,
        settings: TrainingSettings,
        seed: int,
        validation: ValidationPlan | None = None,
    ) -> Self:
        """Return the origin of a new training; `starting_weights` is a file or a description of random weights."""
        if isinstance(starting_weights, Path):
            starting_weights = _sha256_of_input(starting_weights)
        return cls(
            pairs_sha256=_sha256_of_input(pairs, content_sha256),
            starting_weights_sha256=starting_weights,
            settings={**settings.recorded(), "seed": seed},
            stage=stage,
            version=VERSIONS[stage],
            validation={} if validation is None else validation.made_from(),
        )

    def taught_by(self, teachers: Sequence[Path]) -> Self:
        """Return this origin with the checksums of the teachers' folders; without any it stays as it is."""
        if not teachers:
            return self
        checksums_of = [_sha256_of_input(folder / "model.safetensors") for folder in teachers]
        return dataclasses.replace(self, settings={**self.settings, "teachers": checksums_of})

    @classmethod
    def of_account(cls, account: dict[str, Any]) -> Self:
        """Return the origin in the training.json of a finished training; KeyError or TypeError for another format."""
        return cls(settings=account["settings"], **account["made_from"])

    def made_from(self) -> dict[str, Any]:
        """Return the entry of the same name in training.json; the settings have a separate entry."""
        return {name: value for name, value in self.entries().items() if name != "settings"}

    def entries(self) -> dict[str, Any]:
        """Return all entries by name; `validation` only where it is used, as in the records of earlier versions."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "validation" or value}

    def differences(self, found: Origin) -> list[str]:
        """Return the names of the entries that differ in `found`; settings and versions with both values."""
        names = {
            "pairs_sha256": "pairs",
            "starting_weights_sha256": "starting weights",
            "validation": "validation",
            "stage": "stage",
        }
        different = [text for name, text in names.items() if getattr(found, name) != getattr(self, name)]
        changed = [
            f"{name} {found.settings.get(name)!r}, now {self.settings.get(name)!r}"
            for name in sorted({*found.settings, *self.settings})
            if found.settings.get(name) != self.settings.get(name)
        ]
        if changed:
            different.append(f"settings: {', '.join(changed)}")
        if found.version != self.version:
            different.append(f"version of the training: {found.version}, now {self.version}")
        return different


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training: its inputs and outputs."""

    pairs: Path
    shards: Path
    settings: TrainingSettings
    seed: int
    origin: Origin
    out: Path
    outcome: Path | None = None
    """File to write `FINISHED` or the way of divergence to; with None, divergence raises."""
    teachers: tuple[Path, ...] = ()
    """Folders of the models whose similarities are soft targets."""
    validation: ValidationPlan | None = None
    """None if `settings.validate_every` is 0."""

    @property
    def outputs(self) -> list[Path]:
        """All outputs except training.json, which records their checksums."""
        names = ["model.safetensors", "model.json", "tokenizer.json", "training.parquet", "learning_curves.svg"]
        return [self.out / name for name in names] + ([] if self.outcome is None else [self.outcome])

    @property
    def files(self) -> list[Path]:
        """All outputs."""
        return [*self.outputs, self.out / ACCOUNT]

    @property
    def made_from(self) -> dict[str, Any]:
        """The inputs that determine the outputs, for `pipeline.provenance`."""
        return self.origin.entries()


def _sha256_of_input(path: Path, checksum: Callable[[Path], str] = sha256_of) -> str:
    try:
        return checksum(path)
    except OSError as error:
        raise PipelineError(f"{path}: cannot be read ({error.strerror}); make it, or give another") from error


def checksums(files: Sequence[Path]) -> dict[str, str]:
    """Return the SHA-256 of each file by name, the entry `files_sha256` of training.json."""
    return {file.name: sha256_of(file) for file in files}


def keep_outputs(job: Job) -> bool:
    """Return whether the outputs of this job are complete: the present ones, or those that an earlier run kept.

    When inputs are written again, even with the same bytes, Snakemake deletes the outputs and plans the training; see
    `pipeline.provenance`. Other numbers of processes, threads, loader processes or micro-batches do not matter. To
    train again anyway, delete training.json and the folder .kept.
    """
    is_first = os.environ.get("RANK", "0") == "0"
    if is_kept(job.files, job.made_from):
        is_whole = not is_first or restore(job.files, job.made_from)
    else:
        is_whole = _outputs_are_whole(job)
    if is_whole and is_first:
        remove_checkpoints(job.out)  # of a training that was killed at its very end
    return is_whole


def _outputs_are_whole(job: Job) -> bool:
    account = job.out / ACCOUNT
    try:
        recorded = read_json(account)
        if Origin.of_account(recorded) != job.origin or checksums(job.outputs) != recorded["files_sha256"]:
            return False
    except (PipelineError, OSError, KeyError, TypeError):
        return False
    for file in (*job.outputs, account):
        os.utime(file)
    logger.info("%s: pairs, starting weights, settings and seed are the same; keeping its outputs", job.out)
    return True


def remove_checkpoints(out: Path) -> None:
    """Delete the resume point of a training whose outputs are written, and what a kill left next to it."""
    shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock an output folder against other trainings; the kernel releases the lock when this process ends.

    Raises PipelineError if another process holds it for `LOCK_WAIT_S`; see `pipeline.files.try_lock`.
    """
    path = folder / CHECKPOINTS / "lock"
    made = [parent for parent in (folder, path.parent) if not parent.exists()]
    file = _open_locked(path)
    try:
        _write_owner(file, path)
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
            for parent in reversed(made):  # remove the folders of a training that has written nothing
                parent.rmdir()
        os.close(file)


def _write_owner(file: int, path: Path) -> None:
    try:
        os.truncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {platform.node()}".encode(), 0)
    except OSError as error:
        raise PipelineError(write_error_message(path, error)) from error


def _open_locked(path: Path) -> int:
    deadline = time.monotonic() + LOCK_WAIT_S
    is_logged = False
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        if try_lock(file, path) and path.exists() and os.path.samestat(os.fstat(file), os.stat(path)):
            return file  # else its owner has just removed it
        owner = os.pread(file, 200, 0).decode(errors="replace") or "another process"
        os.close(file)
        if time.monotonic() > deadline:
            raise PipelineError(
                f"{path.parent.parent}: {owner} is training into this folder; wait for its end, or give another --out"
            )
        if not is_logged:
            logger.info("%s: waiting for %s to end", path.parent.parent, owner)
            is_logged = True
        time.sleep(0.2)
