"""Measure what a step of each objective and each method beyond the paper costs, next to finetune, on this machine.

All steps run in turn on clips of one batch, in one process: ms-clap 2023 at full size with random weights, with the
optimizer's step. The table has operations per captioned clip and seconds per step.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.train import Contestant, gpt2_tokenizer, model_to_train, write_study
from pipeline.models.clap import ClapModel
from pipeline.models.devices import add_device_argument, choose_device, device_name
from pipeline.training.batches import Batch, PairedBatches
from pipeline.training.composition import CompositionLoss
from pipeline.training.settings import TrainingSettings

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Method:
    """Settings of a step, and what its batch and model have."""

    label: str
    settings: dict[str, Any]
    labeled_share: float = 0
    """Share of the slots whose partner has a caption."""
    has_teacher: bool = False


METHODS = (
    Method("finetune", {"objective": "finetune"}),
    Method("finetune, one teacher", {"objective": "finetune"}, has_teacher=True),
    Method("text mixing", {"objective": "concatenate"}, labeled_share=1),
    Method("text mixing, one teacher", {"objective": "concatenate"}, labeled_share=1, has_teacher=True),
    Method("composed", {"objective": "composed"}),
    Method("composed, half of the partners labeled", {"objective": "composed"}, labeled_share=0.5),
    Method("composed with text mixing", {"objective": "composed", "text_mixing_weight": 1}),
    Method(
        "composed with text mixing, one teacher", {"objective": "composed", "text_mixing_weight": 1}, has_teacher=True
    ),
    Method(
        "composed, decoder with noise",
        {"objective": "composed", "a2t_kind": "decoder", "pseudo_tokens": 4, "a2t_noise": 0.1},
    ),
)


class MethodStep(nn.Module):
    """The loss of a method on a batch of `composed`, whose partners get the captions that the method needs."""

    def __init__(self, method: Method, model: ClapModel) -> None:
        super().__init__()
        self.method = method
        settings = TrainingSettings(**method.settings)
        self.loss = CompositionLoss(model, settings, [model] if method.has_teacher else ())

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the terms of the loss."""
        return self.loss(with_captions(batch, self.method))


def with_captions(batch: Batch, method: Method) -> Batch:
    """Return the batch with captions for the method's share of the partners, and with second partners."""
    others = [*batch.captions[1:], batch.captions[0]]
    labeled = round(len(others) * method.labeled_share)
    partners = [*others[:labeled], *[None] * (len(others) - labeled)]
    return dataclasses.replace(
        batch,
        partner_captions=partners if labeled else None,
        second_BS=batch.labeled_BS.roll(-1, dims=0),
        second_captions=others,
        second_keys=[*batch.keys[1:], batch.keys[0]],
    )


@contextmanager
def a2t_of(model: ClapModel, a2t: nn.Module) -> Iterator[None]:
    """Give the model this f_a2t inside the block."""
    own, model.a2t = model.a2t, a2t
    try:
        yield
    finally:
        model.a2t = own


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.methods", description=__doc__)
    parser.add_argument("--batch-size", type=int, help="clips of a step (default: 64 on a GPU, 8 on a CPU)")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each method")
    add_device_argument(parser)
    args = parser.parse_args(argv)
    device = choose_device(args.device)
    batch_size = args.batch_size or (64 if device.type == "cuda" else 8)
    tokenizer = gpt2_tokenizer()
    model, optimizer = model_to_train(tokenizer, TrainingSettings(objective="composed"), device)
    mlp = model.a2t
    model.add_a2t(kind="decoder", tokens=4)
    decoder, model.a2t = model.a2t, mlp
    assert mlp is not None
    assert decoder is not None
    optimizer.add_param_group({"params": list(decoder.parameters())})
    with tempfile.TemporaryDirectory() as folder:
        pairs, shards = write_study(
            Path(folder), tokenizer, clips=batch_size, batch_size=batch_size, epochs=args.steps + 1
        )
        batches = PairedBatches(pairs, shards)
        contestants = {}
        for method in METHODS:
            a2t = decoder if method.settings.get("a2t_kind") == "decoder" else mlp
            contestants[method.label] = Contestant(
                MethodStep(method, model), optimizer, device, state=partial(a2t_of, model, a2t)
            )
        for step in range(args.steps + 1):
            for label, contestant in contestants.items():
                if step == 0:
                    contestant.warm_up(batches[0], batch_size)
                else:
                    contestant.measure(batches[step])
                logger.info("step %d of %d: %s", step, args.steps, label)
    found = {label: contestant.facts(None) for label, contestant in contestants.items()}
    base = found["finetune"]
    print(
        f"msclap-2023 with random weights, batch {batch_size}, {device_name(device)}, {torch.get_num_threads()} threads"
    )
    print("| method | GFLOP per captioned clip | seconds per step (min to max) | times finetune's |")
    print("|---|---:|---:|---:|")
    for label, facts in found.items():
        print(
            f"| {label} | {facts['gflop_per_clip']:.0f} | {facts['step_s']:.2f} ({facts['step_s_min']:.2f} to "
            f"{facts['step_s_max']:.2f}) | {facts['step_s'] / base['step_s']:.2f} |"
        )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    main(sys.argv[1:])
