"""One training step's losses: what is encoded, in one fused audio pass and one fused text pass, and how it is compared.

Shapes: B = slots of this process, N = global batch, S = samples, D = joint width, E = token width, K = kinds of pairs
(plain, prompt and composed for `composed`; plain and mixed for `concatenate`; plain for `finetune`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.models.clap import ClapModel
from pipeline.objectives import info_nce
from pipeline.training.batches import Batch
from pipeline.training.distributed import gather_rows
from pipeline.training.settings import TrainingSettings

PCM_SCALE = 1 / 32768
"""int16 to [-1, 1)."""


class CompositionLoss(nn.Module):
    """The objective of a training as a module over the model, so that DDP sees one forward pass a step."""

    def __init__(self, model: ClapModel, settings: TrainingSettings) -> None:
        super().__init__()
        self.model = model
        self.settings = settings

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of the loss over the global batch and their weighted sum `loss`, as scalars."""
        device = self.model.logit_scale.device
        labeled_BS = batch.labeled_BS.to(device, non_blocking=True) * PCM_SCALE
        partner_BS = None if batch.partner_BS is None else batch.partner_BS.to(device, non_blocking=True) * PCM_SCALE
        if self.settings.objective == "composed":
            pairs, weights = self._composed(batch, labeled_BS, partner_BS)
        elif self.settings.objective == "concatenate":
            pairs, weights = self._concatenated(batch, labeled_BS, partner_BS)
        else:
            pairs = {"info_nce": (self.model.encode_audio(labeled_BS), self.model.encode_text(batch.captions))}
            weights = {"info_nce": 1.0}

        # One gather for everything: (B, K, 2, D) -> (N, K, 2, D).
        own_BK2D = torch.stack([torch.stack(pair, dim=1) for pair in pairs.values()], dim=1)
        all_NK2D = gather_rows(own_BK2D)
        scale = self.model.logit_scale.exp()
        terms = {name: info_nce(all_NK2D[:, kind, 0], all_NK2D[:, kind, 1], scale) for kind, name in enumerate(pairs)}
        return {"loss": torch.stack([weights[name] * term for name, term in terms.items()]).sum(), **terms}

    def _composed(
        self, batch: Batch, labeled_BS: Tensor, unlabeled_BS: Tensor | None
    ) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, float]]:
        settings, count = self.settings, len(labeled_BS)
        assert unlabeled_BS is not None and self.model.a2t is not None
        weights = {
            "info_nce": settings.info_nce_weight,
            "a2t": settings.a2t_weight,
            "composed": settings.composed_weight,
        }
        composed_BS = (labeled_BS + unlabeled_BS) / 2  # Eq. (11)
        audio = self.model.encode_audio(torch.cat([labeled_BS, unlabeled_BS, composed_BS]))  # Eqs. (1), (6), (12)
        audio_BD, unlabeled_BD, composed_audio_BD = audio.split(count)

        pseudo_BE = self.model.a2t(unlabeled_BD.detach() if settings.detach_unlabeled else unlabeled_BD)  # Eq. (7)
        text = self.model.encode_text(
            [*batch.captions, *[settings.prompt] * count, *batch.captions],  # Eqs. (2), (8), (15)
            pseudo_tokens=torch.cat([pseudo_BE, pseudo_BE]),
            pseudo_position=settings.pseudo_position,
        )
        text_BD, prompt_BD, composed_text_BD = text.split(count)
        pairs = {
            "info_nce": (audio_BD, text_BD),  # Eq. (5)
            "a2t": (unlabeled_BD, prompt_BD),  # Eq. (10)
            "composed": (composed_audio_BD, composed_text_BD),  # Eq. (17)
        }
        return pairs, weights  # Eq. (18)

    def _concatenated(
        self, batch: Batch, labeled_BS: Tensor, partner_BS: Tensor | None
    ) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, float]]:
        assert partner_BS is not None and batch.partner_captions is not None
        mixed_BS = (labeled_BS + partner_BS) / 2
        mixed_captions = [
            first + self.settings.conjunction + second
            for first, second in zip(batch.captions, batch.partner_captions, strict=True)
        ]
        audio_BD, mixed_audio_BD = self.model.encode_audio(torch.cat([labeled_BS, mixed_BS])).split(len(labeled_BS))
        text_BD, mixed_text_BD = self.model.encode_text([*batch.captions, *mixed_captions]).split(len(labeled_BS))
        pairs = {"info_nce": (audio_BD, text_BD), "concatenate": (mixed_audio_BD, mixed_text_BD)}
        return pairs, {"info_nce": self.settings.info_nce_weight, "concatenate": self.settings.composed_weight}
