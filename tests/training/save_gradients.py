"""One backward pass of an objective, alone or as one of several processes; the first writes every gradient."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn.parallel import DistributedDataParallel

from pipeline.models import load_model
from pipeline.training.batches import PairedBatches
from pipeline.training.composition import CompositionLoss
from pipeline.training.distributed import join_processes
from pipeline.training.settings import TrainingSettings


def main(pretrained: str, pairs: str, shards: str, objective: str, out: str) -> None:
    torch.set_num_threads(1)
    with join_processes(torch.device("cpu")) as processes:
        model = load_model(pretrained)
        if objective == "composed":
            torch.manual_seed(0)
            model.add_a2t(dropout=0.0)
        model.set_training_mode()
        loss = CompositionLoss(model, TrainingSettings(objective=objective))
        batch = PairedBatches(Path(pairs), Path(shards), processes.rank, processes.count)[0]
        # Kept by a name: its hooks average the gradients only as long as it lives.
        objective_of_all = DistributedDataParallel(loss) if processes.count > 1 else loss
        losses = objective_of_all(batch)
        losses["loss"].backward()
        if processes.is_first:
            gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
            save_file({**gradients, "loss": losses["loss"].detach()}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
