"""One step's losses and gradients in many cases, alone or as one of several processes; the first writes them."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from pipeline.models import load_model
from pipeline.models.clap import ClapModel
from pipeline.training.batches import PairedBatches
from pipeline.training.composition import CompositionLoss
from pipeline.training.distributed import Processes, join_processes, synchronize_batch_norms
from pipeline.training.settings import TrainingSettings
from pipeline.training.trainer import backward_pass


def model_of(pretrained, settings: TrainingSettings) -> ClapModel:
    """The model in the training mode of the settings, with f_a2t of a fixed seed without dropout where it is used."""
    model = load_model(pretrained)
    if settings.uses_a2t:
        torch.manual_seed(0)
        model.add_a2t(dropout=0.0)
    if settings.batch_norm == "synchronized":
        synchronize_batch_norms(model.audio_encoder)
    model.set_training_mode(batch_norm="frozen" if settings.batch_norm == "frozen" else "batch")
    return model


def gradients(pretrained, shards, pairs, settings, micro_batch, processes: Processes) -> dict[str, torch.Tensor]:
    """The losses of the first global batch of `pairs`, every gradient, and the statistics of BatchNorm after it."""
    model = model_of(pretrained, settings)
    objective = CompositionLoss(model, settings)
    batch = PairedBatches(Path(pairs), Path(shards), processes.rank, processes.count)[0]
    losses = backward_pass(objective, settings, processes, micro_batch)(batch)
    found = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    statistics = {name: value.clone() for name, value in model.named_buffers() if "bn0.running" in name}
    return {**found, **statistics, **{f"losses.{name}": value.detach() for name, value in losses.items()}}


def main(pretrained: str, shards: str, out: str, cases: str) -> None:
    """`cases` is JSON: by name, the pairs file, the settings and the micro-batch of each."""
    torch.set_num_threads(1)
    with join_processes(torch.device("cpu")) as processes:
        for name, (pairs, settings, micro_batch) in json.loads(cases).items():
            found = gradients(pretrained, shards, pairs, TrainingSettings(**settings), micro_batch, processes)
            if processes.is_first:
                save_file({key: value.contiguous() for key, value in found.items()}, f"{out}/{name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
