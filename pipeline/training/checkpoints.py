"""The checkpoint of a training: one file with a checksum and a record of its inputs."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging
import pickle
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import PipelineError
from pipeline.files import sha256_of, write_atomically
from pipeline.training.outputs import CHECKPOINTS, Origin

logger = logging.getLogger(__name__)

LIBRARIES = ("transformers", "msclap")
STATE = {"model", "optimizer", "scheduler", "rows", "step"}
"""The entries of a checkpoint that the training itself reads."""


class Checkpoints:
    """The last checkpoint of a training, replaced as a whole.

    A checkpoint with other pairs, settings or starting weights, or of another version of the training, is refused. To
    start again, delete the folder of checkpoints. To continue, restore the inputs that differ. If only the version of
    the training differs, `any_version` accepts the checkpoint; no single version then produces these weights.
    """

    def __init__(self, out: Path, origin: Origin, *, any_version: bool = False) -> None:
        self.path = out / CHECKPOINTS / "last.pt"
        self._digests = self.path.with_suffix(".pt.sha256")
        self._origin = origin
        self._any_version = any_version
        self._last_digest = ""

    def load(self) -> dict[str, Any] | None:
        """Return the saved state, None without one; PipelineError if it is damaged or belongs to another training."""
        if not self.path.exists():
            return None
        try:
            self._last_digest = sha256_of(self.path)
            if self._last_digest not in self._digests.read_text(encoding="ascii", errors="replace").split():
                raise PipelineError(self._damaged(f"its SHA-256 is not that in {self._digests.name}"))
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            origin, libraries = Origin(**state["origin"]), state["libraries"]
            if missing := STATE - state.keys():
                raise PipelineError(self._damaged(f"it lacks {', '.join(sorted(missing))}"))
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError, TypeError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise PipelineError(self._damaged(reason)) from error
        self._check(origin, libraries)
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint with this state; PipelineError if it cannot be written."""
        contents = {**state, "origin": self._origin.entries(), "libraries": library_versions()}
        try:
            with write_atomically(self.path) as temporary:
                torch.save(contents, temporary)
                digest = sha256_of(temporary)
                # Both digests, before the rename: after a kill between the two, either checkpoint has its digest.
                with write_atomically(self._digests) as digests:
                    digests.write_text(f"{digest}\n{self._last_digest}\n", encoding="ascii")
            self._last_digest = digest
        except (OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise PipelineError(
                f"{self.path}: cannot be written ({reason}); make room or give write access, then run the same command "
                "again: it continues from the checkpoint before"
            ) from error

    def _check(self, origin: Origin, libraries: dict[str, str]) -> None:
        different = self._origin.differences(origin)
        is_version_alone = origin == dataclasses.replace(self._origin, version=origin.version)
        if different and not (is_version_alone and self._any_version):
            way_on = "give --resume-any-version" if is_version_alone else "restore what it was made from"
            raise PipelineError(
                f"{self.path}: is the checkpoint of another training (different: {', '.join(different)}); "
                f"delete {self.path.parent} to start again, or {way_on} to continue"
            )
        for name, version in library_versions().items():
            if libraries.get(name) != version:
                logger.warning(
                    "%s: made with %s %s, going on with %s; delete %s to start again",
                    self.path, name, libraries.get(name), version, self.path.parent,
                )  # fmt: skip

    def _damaged(self, reason: str) -> str:
        return f"{self.path}: damaged checkpoint ({reason}); delete {self.path.parent} to start again"


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that may change the last bits of the weights."""
    return {
        "torch": str(torch.__version__),  # a plain str, which weights_only loading allows
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
    }
