"""The losses of one training step: one audio pass and one text pass encode all inputs, then InfoNCE compares them.

Shapes: B = slots of this process, N = global batch, S = samples, D = joint width, E = token width, T = pseudo-tokens of
a clip, P = texts with pseudo-tokens, K = terms of the loss (up to three for `composed`, two for `concatenate`, one for
`finetune`).
"""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn

from pipeline.models.clap import ClapModel
from pipeline.training.batches import Batch
from pipeline.training.distributed import gather_rows
from pipeline.training.losses import info_nce
from pipeline.training.negatives import equal_pairs
from pipeline.training.settings import TrainingSettings

PCM_SCALE = 1 / 32768
"""int16 to [-1, 1)."""


class CompositionLoss(nn.Module):
    """The objective of a training as a module around the model, so that DDP sees one forward pass per step.

    The constructor makes the model's temperature learnable or fixed, as the settings say.
    """

    def __init__(self, model: ClapModel, settings: TrainingSettings) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        model.logit_scale.requires_grad_(settings.learn_temperature)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of the loss over the global batch and their weighted sum `loss`, as scalars."""
        return self.compare(self.embed(batch), batch)

    def embed(self, batch: Batch) -> Tensor:
        """Return embeddings (B, K, 2, D): audio and text of each slot and term. Slots do not depend on each other.

        Only inputs that a term needs are encoded. On a GPU the encoders use bfloat16 where autocast allows it.
        """
        device = self.model.logit_scale.device
        with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
            return self._embed(batch, device)

    def compare(self, own_BK2D: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the losses of the global batch, from the embeddings of all processes."""
        weights, scale = self.settings.term_weights, self.model.logit_scale.exp()
        all_NK2D = gather_rows(own_BK2D)  # one gather for all terms
        equal = equal_pairs(batch, own_BK2D.device) if self.settings.mask_false_negatives else {}
        terms = {
            name: info_nce(all_NK2D[:, kind, 0], all_NK2D[:, kind, 1], scale, equal_BB=equal.get(name))
            for kind, name in enumerate(weights)  # Eqs. (5), (10), (17)
        }
        return {"loss": torch.stack([weights[name] * term for name, term in terms.items()]).sum(), **terms}  # Eq. (18)

    def _embed(self, batch: Batch, device: torch.device) -> Tensor:
        settings = self.settings
        labeled_BS = batch.labeled_BS.to(device, non_blocking=True) * PCM_SCALE
        if settings.objective == "finetune":
            windows, texts = {"info_nce": labeled_BS}, {"info_nce": batch.captions}
        else:
            assert batch.partner_BS is not None
            partner_BS = batch.partner_BS.to(device, non_blocking=True) * PCM_SCALE
            # Eq. (11); a gain of 0.5 gives exactly half of the sum, because halving is exact.
            mixed_BS = (1 - settings.mixing_gain) * labeled_BS + settings.mixing_gain * partner_BS
            if settings.objective == "composed":
                windows = {"info_nce": labeled_BS, "a2t": partner_BS, "composed": mixed_BS}
                # Texts of Eq. (8), a2t, and Eq. (15), composed; `encode_text` adds the pseudo-tokens.
                prompts = [settings.prompt] * len(labeled_BS)
                texts = {"info_nce": batch.captions, "a2t": prompts, "composed": batch.captions}
            else:
                windows = {"info_nce": labeled_BS, "concatenate": mixed_BS}
                texts = {"info_nce": batch.captions, "concatenate": self._joined_captions(batch)}
        terms = settings.term_weights
        audio_names = [name for name in windows if name in terms or (name == "a2t" and settings.uses_a2t)]
        text_names = [name for name in texts if name in terms]
        count = len(labeled_BS)

        encoded_BD = self.model.encode_audio(
            torch.cat([windows[name] for name in audio_names])
        )  # Eqs. (1), (6), (12), (13)
        audio = dict(zip(audio_names, encoded_BD.split(count), strict=True))
        tokens_PTE = None
        if settings.uses_a2t:
            unlabeled_BD = audio["a2t"].detach() if settings.detach_unlabeled else audio["a2t"]
            tokens_BTE = self.model.a2t(unlabeled_BD)  # type: ignore[misc]  # Eqs. (7), (14)
            tokens_PTE = torch.cat([tokens_BTE for name in text_names if name != "info_nce"])
        encoded_BD = self.model.encode_text(  # Eqs. (2), (9), (16) of the texts of Eqs. (8), (15)
            list(chain.from_iterable(texts[name] for name in text_names)),
            pseudo_tokens=tokens_PTE,
            pseudo_position=settings.pseudo_position,
        )
        text = dict(zip(text_names, encoded_BD.split(count), strict=True))
        return torch.stack([torch.stack([audio[name], text[name]], dim=1) for name in terms], dim=1)

    def _joined_captions(self, batch: Batch) -> list[str]:
        assert batch.partner_captions is not None
        joined = zip(batch.captions, batch.partner_captions, strict=True)
        return [first + self.settings.conjunction + second for first, second in joined]
