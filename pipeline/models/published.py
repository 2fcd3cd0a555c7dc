"""Published models: downloads from the Hugging Face hub, and checkpoints of ms-clap."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download

from pipeline.errors import PipelineError


def from_hub(repository: str, file: str, instead: str) -> str:
    """Return the path of a file from the hub, downloaded on first use.

    Raises PipelineError that names what to give `instead` if the file is not available.
    """
    try:
        return hf_hub_download(repository, file)
    except OSError as error:  # the hub's own errors, a missing network and its offline mode are all OSError
        raise unavailable(repository, file, error, instead) from error


def unavailable(repository: str, what: str, error: Exception, instead: str) -> PipelineError:
    """Return the error for a file that the hub did not provide: the reason and the remedy."""
    return PipelineError(
        f"{what} of {repository} on the Hugging Face hub cannot be downloaded ({str(error).splitlines()[0]}); "
        f"download it on a machine with network access, and give {instead}"
    )


def read_msclap_checkpoint(
    path: str | Path, backbone: str, published_as: str, constants: re.Pattern[str]
) -> dict[str, torch.Tensor]:
    """Return the state dict of a checkpoint in ms-clap's format, without the constants of older transformers.

    Raises PipelineError if the file is missing, damaged or of another format.
    """
    path = Path(path)
    if not path.is_file():
        raise PipelineError(f"{path}: no such file; the weights of {backbone} are ms-clap's {published_as}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise PipelineError(f"{path}: not a readable checkpoint ({reason}); get the file again") from error
    state = checkpoint.get("model") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict):
        found = ", ".join(map(str, checkpoint)) if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise PipelineError(f'{path}: expected a state dict under "model", as in {published_as}; found {found}')
    return {name: value for name, value in state.items() if not constants.fullmatch(name)}
