"""One step's losses and gradients in many cases, on one process or on several that share the batch.

As a command it starts groups of processes by a fork, so that torch is imported once for all of them.
"""

import copy
import functools
import json
import os
import socket
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.multiprocessing import start_processes

from pipeline.models import load_model, mini
from pipeline.models.clap import ClapModel
from pipeline.training.batches import PairedBatches
from pipeline.training.composition import CompositionLoss
from pipeline.training.distributed import Processes, join_processes, synchronize_batch_norms
from pipeline.training.settings import TrainingSettings
from pipeline.training.trainer import backward_pass

saved_model = functools.cache(load_model)  # for copies, which take less time than another reading


def model_of(pretrained, settings: TrainingSettings) -> ClapModel:
    """The model in the training mode of the settings, with f_a2t of a fixed seed without dropout where it is used."""
    model = copy.deepcopy(saved_model(pretrained))
    if settings.uses_a2t:
        torch.manual_seed(0)
        model.add_a2t(dropout=0.0, kind=settings.a2t_kind, tokens=settings.pseudo_tokens)
    if settings.batch_norm == "synchronized":
        synchronize_batch_norms(model.audio_encoder)
    model.set_training_mode(batch_norm="frozen" if settings.batch_norm == "frozen" else "batch")
    return model


def teachers_of(model: ClapModel, count: int) -> list[ClapModel]:
    """So many models with random weights and the model's vocabulary."""
    teachers = []
    for seed in range(count):
        torch.manual_seed(seed)
        teachers.append(mini.build(model.tokenizer).eval().requires_grad_(False))
    return teachers


def gradients(pretrained, shards, pairs, values, micro_batch, processes: Processes) -> dict[str, torch.Tensor]:
    """The losses of the first global batch of `pairs`, every gradient, and the statistics of BatchNorm after it.

    values: those of the settings, and the number of `teachers`.
    """
    settings = TrainingSettings(**{name: value for name, value in values.items() if name != "teachers"})
    model = model_of(pretrained, settings)
    objective = CompositionLoss(model, settings, teachers_of(model, values.get("teachers", 0)))
    batch = PairedBatches(Path(pairs), Path(shards), processes.rank, processes.count)[0]
    losses = backward_pass(objective, settings, processes, micro_batch)(batch)
    found = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    statistics = {name: value.clone() for name, value in model.named_buffers() if "bn0.running" in name}
    return {**found, **statistics, **{f"losses.{name}": value.detach() for name, value in losses.items()}}


def save(pretrained: str, shards: str, out: str, cases: dict[str, tuple]) -> None:
    """Write a file per case, which is the pairs file, the settings and the micro-batch."""
    torch.set_num_threads(1)
    with join_processes(torch.device("cpu")) as processes:
        for name, (pairs, settings, micro_batch) in cases.items():
            found = gradients(pretrained, shards, pairs, settings, micro_batch, processes)
            if processes.is_first:
                save_file({key: value.contiguous() for key, value in found.items()}, f"{out}/{name}")


def join_and_save(rank: int, count: int, port: int, *inputs) -> None:
    """Process `rank` of `count`, described as torchrun does."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    save(*inputs)


def main(pretrained: str, shards: str, groups: str) -> None:
    """`groups` is JSON: by number of processes, the output folder and the cases."""
    torch.set_num_threads(1)
    saved_model(pretrained)  # before the forks
    for count, (out, cases) in json.loads(groups).items():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        inputs = (int(count), port, pretrained, shards, out, cases)
        start_processes(join_and_save, inputs, nprocs=int(count), start_method="fork")


if __name__ == "__main__":
    main(*sys.argv[1:])
