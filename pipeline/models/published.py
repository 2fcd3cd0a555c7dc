"""Getting and reading what a model's publisher gives: files of the Hugging Face hub, and checkpoints of ms-clap."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download

from pipeline.errors import PipelineError


def from_hub(repository: str, file: str, instead: str) -> str:
    """The path of a file of the hub's, fetched on first use.

    Raises PipelineError saying what to give `instead` where it cannot be had.
    """
    try:
        return hf_hub_download(repository, file)
    except OSError as error:  # the hub's own errors, a missing network and its offline mode are all OSError
        raise not_to_be_had(repository, file, error, instead) from error


def not_to_be_had(repository: str, what: str, error: Exception, instead: str) -> PipelineError:
    """The error that names what the hub did not give, why, and what to do."""
    return PipelineError(
        f"{what} of the Hugging Face hub's {repository} is not to be had ({str(error).splitlines()[0]}); "
        f"get it where there is a network, and give {instead}"
    )


def read_msclap_checkpoint(
    path: str | Path, backbone: str, published_as: str, constants: re.Pattern[str]
) -> dict[str, torch.Tensor]:
    """The state dict of a checkpoint in ms-clap's format, without the constants that older transformers put there.

    Raises PipelineError where the file is missing, damaged or of another format.
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
