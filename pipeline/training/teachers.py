"""The teachers of a training: trained models whose similarities are soft targets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import PipelineError
from pipeline.models import load_model
from pipeline.training.settings import TrainingSettings

if TYPE_CHECKING:
    from pipeline.models.clap import ClapModel


def load_teachers(folders: Sequence[Path], model: ClapModel, settings: TrainingSettings) -> list[ClapModel]:
    """Return the models of some folders, in evaluation mode, frozen and on the device of `model`.

    Width and vocabulary may differ from the model's, because only similarities are compared.

    Raises:
        PipelineError: A folder holds no model, or one with another backbone, which takes other windows of audio. Or the
            settings leave no term that a teacher acts on.
    """
    if folders:
        check_taught_terms(settings)
    teachers = []
    for folder in folders:
        teacher = load_model(folder)
        if teacher.backbone != model.backbone:
            raise PipelineError(
                f"{folder}: the teacher is a {teacher.backbone} model, which takes {teacher.window_s} s at "
                f"{teacher.sample_rate_hz} Hz; give a teacher of the backbone {model.backbone}, as the run has"
            )
        teacher.a2t = None
        teachers.append(teacher.requires_grad_(False).to(model.logit_scale.device))
    return teachers


def check_taught_terms(settings: TrainingSettings) -> None:
    """Raise PipelineError if no term of the loss has texts that a teacher can read."""
    if not settings.taught_terms:
        raise PipelineError(
            "a teacher acts on terms without pseudo-tokens, and the run has only "
            f"{', '.join(settings.term_weights)}; set info_nce_weight or text_mixing_weight above 0"
        )
