"""The settings of a training, each declared once: default, bounds, description and reason.

Configuration, JSON schema, `--help`, validation and the documentation page are made from these models.
`PairingSettings` control how pairs are drawn before the training, `TrainingSettings` the training itself.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Any, Literal, Self, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from pipeline.errors import PipelineError

Objective = Literal["finetune", "composed", "concatenate"]

Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]

ADDED = "added"
"""Marks a setting that came after the first studies. At its default it is neither a flag of a stage nor recorded, so it
changes no job and no output of a study that does not use it."""


class Settings(BaseModel):
    """A frozen group of settings; an unknown key is an error.

    Numbers may be given as text: YAML 1.1 reads 1e-4 as text, and Snakemake's --config passes text.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def of_values(cls, values: Mapping[str, Any], place: str = "") -> Self:
        """Return the settings with these values; raises one `PipelineError` with every wrong value."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise PipelineError("; ".join(describe_errors(error, cls, place))) from None

    def recorded(self) -> dict[str, Any]:
        """Return the values by name, without settings marked `ADDED` that have their default."""
        fields = type(self).model_fields
        values = self.model_dump().items()
        return {
            name: value for name, value in values if ADDED not in fields[name].metadata or value != fields[name].default
        }


class BatchPlan(Settings):
    """Length of a training and size of a batch."""

    epochs: Count = Field(
        30, description="Passes over the labeled clips. The paper trains 30 and evaluates the last one."
    )
    batch_size: Annotated[int, Field(ge=2)] = Field(
        32, description="Global batch, over all processes. The paper's is 256."
    )


class PairingSettings(Settings):
    """How clips are drawn for a pairs file."""

    captions_per_clip: Literal["one", "all"] = Field(
        "one",
        description="Captions of a labeled clip per epoch. one: drawn again in each epoch. all: each in its own slot; "
        "an epoch then covers all captions. With all, a batch of 256 has about seven pairs of Clotho captions of one "
        "clip, which are false negatives of each other (see mask_false_negatives).",
    )
    partners: Literal["each_epoch", "fixed"] = Field(
        "each_epoch",
        description="When the partner of a labeled clip is drawn: in each epoch, so that a clip gets many partners, or "
        "once for the whole training. The paper does not specify it.",
    )
    windows: Literal["random", "first", "center"] = Field(
        "random",
        description="Window of a training clip that is longer than the model's window. random: as ms-clap crops; over "
        "the epochs the whole clip is used. first, center: as in evaluation.windows.",
    )
    short_clips: Literal["repeat", "pad"] = Field(
        "repeat",
        description="How the window of a shorter clip is filled: with the repeated clip, as in ms-clap, or with "
        "silence. model.json records it, and evaluation, search and classification use it too.",
    )
    labeled_partners: Annotated[Fraction, ADDED] = Field(
        0.0,
        description="Share of the partners in `composed` that are drawn from the run's own labeled clips. The text of "
        "such a mixture has the partner's caption in place of the pseudo-token. 0 is Eq. (18), 1 is text mixing.",
    )

    def differing(self) -> dict[str, Any]:
        """Return the values that are not the default: entries of a pairs file's footer."""
        return self.model_dump(exclude_defaults=True)

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Self:
        """Return the pairing settings among some values, such as the footer of a pairs file."""
        return cls(**{name: facts[name] for name in cls.model_fields if name in facts})


class OptimizationSettings(Settings):
    """Losses, text composition and optimizer of a training."""

    learning_rate: Rate = Field(
        0.0001,
        description="Peak learning rate of the encoders. The paper gives none. Depends on the backbone: 0.0003 for "
        "mini, 0.00005 for published weights (as WavCaps; LAION-CLAP uses 0.0001, DCASE 2024 0.00002).",
    )
    a2t_learning_rate: Rate = Field(
        0.0001,
        description="Peak learning rate of the a2t module. Depends on the backbone: 0.001 for mini, 0.0001 for "
        "published weights, as in Pic2Word.",
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="Steps of linear warm-up before the cosine, for both learning rates. WavCaps uses none."
    )
    weight_decay: Weight = Field(0.0, description="Adam's weight decay. The paper uses Adam and mentions no decay.")
    a2t_dropout: Fraction = Field(0.1, description="Dropout of the a2t module, as in Pic2Word.")
    a2t_kind: Annotated[Literal["mlp", "decoder"], ADDED] = Field(
        "mlp",
        description="Kind of the a2t module. mlp: Eq. (7). decoder: a Transformer decoder whose query tokens become "
        "the pseudo-tokens, as in the paper's follow-up.",
    )
    a2t_layers: Annotated[Count, ADDED] = Field(
        2, description="Layers of the decoder. The abstract of the follow-up gives no number; 2 as in Eq. (7)."
    )
    a2t_heads: Annotated[Count, ADDED] = Field(
        8, description="Attention heads of the decoder, a divisor of the token width. torch's Transformer has 8."
    )
    a2t_noise: Annotated[Weight, ADDED] = Field(
        0.0,
        description="Standard deviation of Gaussian noise on the audio embedding before the a2t module, relative to "
        "the embedding's root mean square. The paper has none; its follow-up adds noise and gives no number.",
    )
    detach_unlabeled: bool = Field(
        False,
        description="Stop the gradient of the pseudo-token before the audio encoder. Eq. (18) is one sum whose terms "
        "train both encoders, so the default passes it on. Pic2Word freezes its encoders.",
    )
    pseudo_tokens: Annotated[int, Field(ge=1, le=16)] = Field(
        1, description="Pseudo-tokens per clip from the a2t module: the queries of a decoder. Eq. (7) has one."
    )
    pseudo_position: Literal["before_end", "after_end"] = Field(
        "before_end",
        description="Place of the pseudo-token relative to the end-of-text token. before_end: pooled at the end "
        "token, as in Pic2Word. after_end: [text ; z] read literally, pooled at z.",
    )
    prompt: Annotated[str, Field(min_length=1)] = Field(
        "this sound is", description="Text before the pseudo-token in Eq. (8), as in the paper."
    )
    conjunction: str = Field(
        " ",
        description="Text between two joined captions. The paper only says that texts are concatenated. "
        "Works that it cites use ` and ` and ` followed by `.",
    )
    mixing_gain: Fraction = Field(
        0.5, description="Gain g of the partner in a mixture (1 - g) X + g X_unlabel. Eq. (11) has 0.5."
    )
    info_nce_weight: Weight = Field(
        1.0,
        description="Weight of L_InfoNCE, the first term of Eq. (18); 0 omits it. `finetune` is this term alone, with "
        "weight 1.",
    )
    a2t_weight: Weight = Field(1.0, description="Weight of L_a2t, the second term of Eq. (18); 0 omits it.")
    composed_weight: Weight = Field(
        1.0,
        description="Weight of L_composed, the third term of Eq. (18), or of the loss of the mixtures in "
        "`concatenate`; 0 omits it.",
    )
    text_mixing_weight: Annotated[Weight, ADDED] = Field(
        0.0,
        description="Weight of a fourth term in `composed`: InfoNCE between mixtures of two labeled clips and their "
        "joined captions, as in `concatenate`. 0 omits it, as Eq. (18) does.",
    )
    teacher_weight: Annotated[Fraction, ADDED] = Field(
        0.5,
        description="Share of the teachers' soft targets in the losses of a run with a `teacher`; the captions' own "
        "targets have the rest. 1 trains on soft targets alone, as stage 2 of arXiv 2408.11641.",
    )
    teacher_temperature: Annotated[Rate, ADDED] = Field(
        1.0,
        description="Divisor of the teachers' logits; above 1 their targets are softer. arXiv 2408.11641 uses the "
        "teachers' own temperature, which is 1 here.",
    )
    mask_false_negatives: bool = Field(
        False,
        description="Rows of a batch with equal captions, or of the same clip, are not negatives of each other. In the "
        "sums of Eqs. (3) and (4) they are.",
    )
    learn_temperature: bool = Field(
        True, description="Learn the temperature, starting from the checkpoint's. false keeps the checkpoint's."
    )
    max_logit_scale: Rate = Field(
        100.0, description="Upper bound of a learned 1/tau, as in CLIP, LAION-CLAP and open_clip."
    )
    encoder_regularisation: bool = Field(
        False,
        description="Use the encoders' SpecAugment, DropPath and dropout in training. Depends on the backbone: true "
        "for published weights, as ms-clap trains; false for mini.",
    )
    batch_norm: Literal["frozen", "batch", "synchronized"] = Field(
        "frozen",
        description="Statistics of the front end's BatchNorm. frozen: the checkpoint's. batch: learned from each "
        "process's share of the batch. synchronized: learned from the global batch. Several encodings per step and "
        "small batches would change them, so frozen is the default.",
    )
    validate_every: Annotated[int, Field(ge=0), ADDED] = Field(
        0,
        description="Epochs between two validations, on the validation splits of the run's targets; 0: none. The last "
        "epoch is always validated. The paper does not validate while it trains.",
    )
    validation_windows: Annotated[Literal["mean", "first", "center"], ADDED] = Field(
        "center",
        description="Windows of a longer clip in a validation; see evaluation.windows. One window per clip keeps 1,000 "
        "clips of Clotho below 5 % of its epoch; mean takes four per clip and gives the figures of the evaluation.",
    )
    keep: Annotated[Literal["last", "best"], ADDED] = Field(
        "last",
        description="Weights that a training writes. last: those of the last step, as in the paper. best: those of "
        "the validation with the highest mAP@10, the mean of both directions and all targets; of equal ones the "
        "earlier.",
    )
    patience: Annotated[int, Field(ge=0), ADDED] = Field(
        0,
        description="Validations in a row without a new best one after which the training ends; 0: never. The cosine "
        "schedule stays that of all epochs.",
    )
    max_gradient_norm: Annotated[Weight, ADDED] = Field(
        0.0,
        description="Maximum of the norm of the gradient of all parameters together; a longer gradient is scaled to "
        "it. 0: no limit, because the paper mentions none. WavCaps uses 2.",
    )
    freeze: Annotated[Literal["none", "audio", "text", "both"], ADDED] = Field(
        "none",
        description="Encoders whose weights stay those of the start. The paper trains both. Pic2Word freezes both and "
        "trains the a2t module alone.",
    )
    unfrozen_groups: Annotated[int, Field(ge=0), ADDED] = Field(
        0,
        description="Last layer groups of a frozen encoder that are trained nevertheless. 1: the projection and the "
        "norm before it. Each further group is a block of the transformer or CNN.",
    )
    layer_decay: Annotated[Share, ADDED] = Field(
        1.0,
        description="Factor on the learning rate per layer group, counted down from the projection. 1: the same rate "
        "for all, as in the paper. 0.9 gives the group n below the projection 0.9^n of the rate.",
    )
    average_decay: Annotated[float, Field(ge=0, lt=1), ADDED] = Field(
        0.0,
        description="Decay d of an exponential moving average of the weights, which is then validated and written. "
        "After step t, from 0, the average A of the weights W becomes d A + (1 - d) W; in early steps d is at most "
        "(1 + t) / (10 + t). 0: no average, as in the paper.",
    )


class TrainingSettings(OptimizationSettings):
    """The settings of one training."""

    objective: Objective = Field(
        "finetune",
        description="finetune: Eq. (5); composed: Eq. (18); concatenate: Eq. (5) plus InfoNCE of mixtures of two "
        "labeled clips.",
    )

    def model_post_init(self, context: Any) -> None:
        """Raise `PipelineError` when nothing is left to train, or when settings exclude each other."""
        if not self.term_weights:
            raise PipelineError(
                f"every term of the objective {self.objective} has weight 0, so there is nothing to train; "
                "set one of info_nce_weight, a2t_weight and composed_weight above 0"
            )
        if self.freeze == "both" and self.unfrozen_groups == 0 and not self.uses_a2t:
            raise PipelineError(
                f"freeze is both, and the objective {self.objective} trains no a2t module, so there is nothing to "
                "train; set unfrozen_groups above 0, or freeze to audio or text"
            )
        if self.freeze == "none" and self.unfrozen_groups:
            raise PipelineError(
                f"unfrozen_groups is {self.unfrozen_groups}, but freeze is none; set freeze to audio, text or both"
            )
        if self.freezes("audio") and self.batch_norm != "frozen":
            raise PipelineError(
                f"freeze is {self.freeze}, but batch_norm is {self.batch_norm}, which changes the audio encoder; set "
                "batch_norm to frozen"
            )
        needing = {"keep": self.keep == "best", "patience": self.patience > 0}
        for name in (name for name, is_set in needing.items() if is_set and not self.validate_every):
            raise PipelineError(f"{name} is {getattr(self, name)}, but validate_every is 0; set validate_every above 0")

    def freezes(self, tower: Literal["audio", "text"]) -> bool:
        """Return whether weights of an encoder are frozen, all or some."""
        return self.freeze in (tower, "both")

    @property
    def term_weights(self) -> dict[str, float]:
        """The terms of the loss with their weights; terms of weight 0 are omitted."""
        info_nce, a2t, composed = self.info_nce_weight, self.a2t_weight, self.composed_weight
        weights = {
            "finetune": {"info_nce": 1.0},
            "composed": {
                "info_nce": info_nce,
                "a2t": a2t,
                "composed": composed,
                "text_mixing": self.text_mixing_weight,
            },
            "concatenate": {"info_nce": info_nce, "concatenate": composed},
        }[self.objective]
        return {name: weight for name, weight in weights.items() if weight != 0}

    @property
    def taught_terms(self) -> list[str]:
        """The terms whose texts a teacher can read: a pseudo-token means nothing to another model."""
        return [name for name in self.term_weights if name not in ("a2t", "composed")]

    @property
    def uses_a2t(self) -> bool:
        """True if a term uses the a2t module."""
        return self.objective == "composed" and not {"a2t", "composed"}.isdisjoint(self.term_weights)


# --- messages --------------------------------------------------------------------------------------------------------


def describe_errors(error: ValidationError, model: type[BaseModel], place: str = "") -> list[str]:
    """Return one line per error: the key, the problem, and the keys or values that are allowed."""
    lines: list[str] = []
    unknown: dict[tuple[str, ...], list[str]] = {}
    for item in error.errors(include_url=False):
        path = [str(part) for part in item["loc"] if part != "[key]"]
        if item["type"] == "extra_forbidden":
            unknown.setdefault(tuple(path[:-1]), []).append(path[-1])
            continue
        parent, key = path[:-1], path[-1] if path else ""
        if item["type"] == "missing":
            lines.append(f"{_joined(place, parent) or 'top level'}: {key!r} is missing")
        else:
            lines.append(f"{_joined(place, path) or 'top level'}: {_reason(item)}")
    for above, keys in unknown.items():
        lines.append(f"{_joined(place, above) or 'top level'}: {_unknown(keys, _known_keys(model, above))}")
    return lines


def _joined(place: str, path: list[str] | tuple[str, ...]) -> str:
    return ".".join(part for part in (place, *path) if part)


def _unknown(keys: list[str], known: list[str]) -> str:
    import difflib

    guesses = [match for key in keys for match in difflib.get_close_matches(key, known, n=1)]
    hint = f"did you mean {', '.join(guesses)}? " if guesses else ""
    return f"unknown key {', '.join(keys)}; {hint}known keys: {', '.join(sorted(known))}"


def _reason(item: Any) -> str:
    value, context = item["input"], item.get("ctx", {})
    match item["type"]:
        case "literal_error":
            allowed = context["expected"].replace("'", "").replace(" or ", ", ")
            return f"{value!r} is not one of {allowed}"
        case "float_type" | "int_type" | "float_parsing" | "int_parsing" | "int_from_float":
            return f"{value!r} is no {'number' if item['type'].startswith('float') else 'whole number'}"
        case "bool_type" | "bool_parsing":
            return f"{value!r} is neither true nor false"
        case "greater_than":
            return f"{value!r} must be above {context['gt']:g}"
        case "greater_than_equal":
            return f"{value!r} must be at least {context['ge']:g}"
        case "less_than_equal":
            return f"{value!r} must be at most {context['le']:g}"
        case "less_than":
            return f"{value!r} must be below {context['lt']:g}"
        case "value_error":
            return str(context["error"])
    return f"{value!r}: {item['msg'][0].lower()}{item['msg'][1:]}"


def _known_keys(model: type[BaseModel], path: tuple[str, ...]) -> list[str]:
    """Return the keys that a model allows at a path of keys."""
    kind: Any = model
    for part in path:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = _plain(kind.model_fields[part].annotation)
        else:  # a mapping or list: its values
            kind = _plain(get_args(kind)[-1])
    return list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else []


def _plain(annotation: Any) -> Any:
    """Return a type without Annotated and without None."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if isinstance(annotation, UnionType):
        return next(_plain(kind) for kind in get_args(annotation) if kind is not type(None))
    return annotation


# --- command line ----------------------------------------------------------------------------------------------------


Kind = TypeVar("Kind", bound=Settings)


def add_settings_arguments(parser: argparse.ArgumentParser, kind: type[Settings]) -> None:
    """Add one option per field: `--learning-rate 1e-4`, `--detach-unlabeled`/`--no-detach-unlabeled`."""
    group = parser.add_argument_group("settings of the training")
    for name, field in kind.model_fields.items():
        flag = "--" + name.replace("_", "-")
        text = f"{field.description} (default: {field.default!r})".replace("%", "%%")
        type_of = _plain(field.annotation)
        if type_of is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=field.default, help=text)
        elif get_origin(type_of) is Literal:
            group.add_argument(flag, choices=get_args(type_of), default=field.default, help=text)
        else:
            group.add_argument(flag, type=_checked(name, type_of, field), default=field.default, help=text)


def _checked(name: str, type_of: Any, field: FieldInfo) -> Any:
    """Return a type for argparse that checks the bounds of a field."""
    from pydantic import TypeAdapter

    adapter = TypeAdapter(Annotated[type_of, field])

    def convert(text: str) -> Any:
        value = type_of(text)
        try:
            return adapter.validate_python(value)
        except ValidationError as error:
            raise argparse.ArgumentTypeError(_reason(error.errors()[0])) from None

    convert.__name__ = type_of.__name__  # for argparse's message about text that is not a number
    return convert


def settings_from_arguments(args: argparse.Namespace, kind: type[Kind]) -> Kind:
    """Return the settings from the arguments of a parser with `add_settings_arguments`."""
    return kind.of_values({name: getattr(args, name) for name in kind.model_fields})


def settings_flags(settings: Settings) -> list[str]:
    """Return the settings as flags of a stage: `--learning-rate=0.001 --no-detach-unlabeled`; see `ADDED`."""
    return [_flag(name, value) for name, value in settings.recorded().items()]


def _flag(key: str, value: Any) -> str:
    name = key.replace("_", "-")
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={value}"
