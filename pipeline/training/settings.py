"""What defines a training, apart from its data: each open question of the paper is a field and a key of the config.

`PairingSettings` say how the pairs are drawn, before the training; `TrainingSettings` are those of the training itself.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeVar, get_args, get_origin, get_type_hints

from pipeline.errors import PipelineError

Objective = Literal["finetune", "composed", "concatenate"]


def _documented(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class PairingSettings:
    """How a pairs file draws from the clips; `python -m pipeline.stages.pair_clips --help` prints every field."""

    captions_per_clip: Literal["one", "all"] = _documented(
        "one", "captions of a labeled clip in an epoch: one, drawn anew each epoch, or all, each in a slot of its own"
    )
    partners: Literal["each_epoch", "fixed"] = _documented(
        "each_epoch", "when a labeled clip's partner is drawn: anew each epoch, or once for the whole training"
    )
    windows: Literal["random", "first", "center"] = _documented(
        "random", "window of a clip that is longer than one: drawn anew each time, its beginning, or its middle"
    )
    short_clips: Literal["repeat", "pad"] = _documented(
        "repeat", "what fills the window of a shorter clip: the clip again, or silence; kept in model.json"
    )

    def differing(self) -> dict[str, str]:
        """What is not the default: the entries of a pairs file's footer, which says nothing of the others."""
        return {
            item.name: getattr(self, item.name)
            for item in dataclasses.fields(self)
            if getattr(self, item.name) != item.default
        }

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Self:
        """Those of a pairs file, by its footer."""
        return cls(**{item.name: facts.get(item.name, item.default) for item in dataclasses.fields(cls)})


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """The settings of one training; `python -m pipeline.stages.train --help` prints every field with its meaning."""

    objective: Objective = _documented(
        "finetune",
        "finetune: Eq. (5); composed: Eq. (18); concatenate: Eq. (5) and InfoNCE of mixtures of two labeled clips",
    )
    learning_rate: float = _documented(1e-5, "peak learning rate of the encoders")
    a2t_learning_rate: float = _documented(1e-4, "peak learning rate of the a2t module (Pic2Word: 1e-4)")
    warmup_steps: int = _documented(0, "steps over which the learning rates rise linearly before the cosine")
    weight_decay: float = _documented(0.0, "Adam's weight decay")
    a2t_dropout: float = _documented(0.1, "dropout of the a2t module (Pic2Word: 0.1)")
    detach_unlabeled: bool = _documented(
        False, "keep the gradient of the pseudo-token out of the audio encoder; Eq. (18) read as one sum lets it in"
    )
    pseudo_tokens: int = _documented(1, "pseudo-tokens that the a2t module makes of a clip; Eq. (7) makes one")
    pseudo_position: Literal["before_end", "after_end"] = _documented(
        "before_end", "where the pseudo-token stands to the end-of-text token; pooled at the later of the two"
    )
    prompt: str = _documented("this sound is", "text before the pseudo-token in Eq. (8)")
    conjunction: str = _documented(" ", "text between the two captions of `concatenate`")
    mixing_gain: float = _documented(
        0.5, "gain g of the partner in a mixture, (1 - g) X + g X_unlabel, between 0 and 1; Eq. (11) has 0.5"
    )
    info_nce_weight: float = _documented(1.0, "weight of L_InfoNCE in Eq. (18); 0 leaves the term out")
    a2t_weight: float = _documented(1.0, "weight of L_a2t in Eq. (18); 0 leaves the term out")
    composed_weight: float = _documented(
        1.0, "weight of L_composed in Eq. (18), for concatenate of the mixtures' loss; 0 leaves the term out"
    )
    mask_false_negatives: bool = _documented(
        False,
        "leave rows of the batch that say the same (equal captions, or the same clips) out of each other's negatives; "
        "the sums of Eqs. (3) and (4) keep them",
    )
    learn_temperature: bool = _documented(
        True, "learn the temperature, from the checkpoint's on; else it stays at the checkpoint's, whatever the bound"
    )
    max_logit_scale: float = _documented(100.0, "upper bound of 1/tau, as CLIP's")
    encoder_regularisation: bool = _documented(
        False, "ms-clap's own SpecAugment, DropPath and projection dropout during training"
    )
    batch_norm: Literal["frozen", "batch", "synchronized"] = _documented(
        "frozen",
        "statistics of the front end's BatchNorm: the checkpoint's, or learned, from each process's share of the batch "
        "or from the global batch",
    )

    def __post_init__(self) -> None:
        if not 0 <= self.mixing_gain <= 1:
            raise PipelineError(f"mixing_gain is {self.mixing_gain}; a number between 0 and 1 was expected")
        if not self.term_weights:
            raise PipelineError(
                f"every term of the objective {self.objective} has weight 0, so that there is nothing to train; "
                "give one of info_nce_weight, a2t_weight and composed_weight another value"
            )

    @property
    def term_weights(self) -> dict[str, float]:
        """The terms of the loss that are computed, with their weights: those of weight 0 are left out."""
        info_nce, a2t, composed = self.info_nce_weight, self.a2t_weight, self.composed_weight
        weights = {
            "finetune": {"info_nce": 1.0},
            "composed": {"info_nce": info_nce, "a2t": a2t, "composed": composed},
            "concatenate": {"info_nce": info_nce, "concatenate": composed},
        }[self.objective]
        return {name: weight for name, weight in weights.items() if weight != 0}

    @property
    def uses_a2t(self) -> bool:
        """True where a term goes through the a2t module: composed training, unless both its terms are left out."""
        return self.objective == "composed" and not {"a2t", "composed"}.isdisjoint(self.term_weights)


def add_settings_arguments(parser: argparse.ArgumentParser, kind: type[PairingSettings | TrainingSettings]) -> None:
    """One command-line option a field: `--learning-rate 1e-4`, `--detach-unlabeled`/`--no-detach-unlabeled`."""
    group = parser.add_argument_group("settings of the training")
    types = get_type_hints(kind)
    for item in dataclasses.fields(kind):
        name, text, type_of = (
            "--" + item.name.replace("_", "-"),
            item.metadata["help"].replace("%", "%%"),
            types[item.name],
        )
        text += " (default: %(default)r)"
        if type_of is bool:
            group.add_argument(name, action=argparse.BooleanOptionalAction, default=item.default, help=text)
        elif get_origin(type_of) is Literal:
            group.add_argument(name, choices=get_args(type_of), default=item.default, help=text)
        else:
            group.add_argument(name, type=type_of, default=item.default, help=text)


Settings = TypeVar("Settings", PairingSettings, TrainingSettings)


def settings_from_arguments(args: argparse.Namespace, kind: type[Settings]) -> Settings:
    """The settings in what a parser with `add_settings_arguments` has parsed."""
    return kind(**{item.name: getattr(args, item.name) for item in dataclasses.fields(kind)})
