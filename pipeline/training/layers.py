"""The layer groups of both encoders: which are frozen, and the learning rate of each."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from pipeline.errors import PipelineError
from pipeline.models.clap import ClapModel
from pipeline.training.settings import TrainingSettings

TOWERS: tuple[Literal["audio", "text"], ...] = ("audio", "text")


def encoder(model: ClapModel, tower: Literal["audio", "text"]) -> Any:
    """Return the encoder of a tower."""
    return model.audio_encoder if tower == "audio" else model.caption_encoder


def freeze_layers(model: ClapModel, settings: TrainingSettings) -> None:
    """Take the gradient from the frozen layer groups; the optimizer, autograd and DDP then leave them out.

    Raises:
        PipelineError: An encoder has no more groups than `unfrozen_groups`, so nothing of it would be frozen; or both
            encoders are frozen whole and there is no a2t module.
    """
    for tower in TOWERS:
        if not settings.freezes(tower):
            continue
        groups = encoder(model, tower).layer_groups()
        frozen = groups[: len(groups) - settings.unfrozen_groups]
        if not frozen:
            raise PipelineError(
                f"unfrozen_groups is {settings.unfrozen_groups}, but the {tower} encoder of {model.backbone} has "
                f"{len(groups)} layer groups, so none would be frozen; set at most {len(groups) - 1}"
            )
        for module in (module for group in frozen for module in group):
            module.requires_grad_(False)
    if not any(value.requires_grad for name, value in model.named_parameters() if name != "logit_scale"):
        raise PipelineError(
            "freeze is both, and the run trains no a2t module, so there is nothing to train; set unfrozen_groups above "
            "0, or freeze to audio or text"
        )


def enter_training_mode(model: ClapModel, settings: TrainingSettings) -> None:
    """Put the model into its training mode, see `ClapModel.set_training_mode`.

    An encoder that is frozen whole stays in evaluation mode: without SpecAugment, DropPath and dropout. One that is
    partly frozen has them in all its layers.
    """
    model.train()
    if settings.unfrozen_groups == 0:
        for tower in TOWERS:
            if settings.freezes(tower):
                encoder(model, tower).eval()


def parameter_groups(model: ClapModel, settings: TrainingSettings) -> list[dict[str, Any]]:
    """Return Adam's groups: the encoders with a learned temperature, and last the a2t module with its own rate.

    With a layer decay, each depth of the encoders below the last layer groups has its own group, nearest first. Frozen
    parameters are in no group. A group that would be empty is omitted.
    """
    a2t = [] if model.a2t is None else list(model.a2t.parameters())
    depths = layer_depths(model) if settings.layer_decay < 1 else {}
    by_depth: dict[int, list[nn.Parameter]] = {0: []}
    own = set(a2t)
    for value in model.parameters():
        if value.requires_grad and value not in own:
            by_depth.setdefault(depths.get(value, 0), []).append(value)
    groups = [
        {"params": values, "lr": settings.learning_rate * settings.layer_decay**depth}
        for depth, values in sorted(by_depth.items())
    ]
    return [group for group in [*groups, {"params": a2t, "lr": settings.a2t_learning_rate}] if group["params"]]


def layer_depths(model: ClapModel) -> dict[nn.Parameter, int]:
    """Return the depth of each parameter of both encoders: 0 in the last layer group, and one more per group below."""
    return {
        value: depth
        for tower in TOWERS
        for depth, group in enumerate(reversed(encoder(model, tower).layer_groups()))
        for module in group
        for value in module.parameters()
    }
