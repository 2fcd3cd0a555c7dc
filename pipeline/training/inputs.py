"""The inputs of one training step: the audio and the texts of every term of the loss, and the noise before f_a2t.

Shapes: B = slots of this process, U = slots whose partner is unlabeled, S = samples, D = joint width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.models.devices import send
from pipeline.training.batches import Batch
from pipeline.training.settings import TrainingSettings

PCM_SCALE = 1 / 32768
"""int16 to [-1, 1)."""


@dataclass(frozen=True)
class Text:
    """An input of the text encoder."""

    words: str
    has_pseudo_tokens: bool = False


def unlabeled_slots(batch: Batch) -> list[int]:
    """Return the slots whose partner is unlabeled; it gets pseudo-tokens."""
    if batch.partner_BS is None:
        return []
    captions = batch.partner_captions or [None] * len(batch.keys)
    return [slot for slot, caption in enumerate(captions) if caption is None]


def windows_of(batch: Batch, settings: TrainingSettings, device: torch.device) -> dict[str, Tensor]:
    """Return the audio of every term in [-1, 1]: (B, S), and (U, S) of `a2t`."""
    labeled_BS = batch.labeled_BS.to(device, non_blocking=True) * PCM_SCALE
    windows = {"info_nce": labeled_BS}

    def mixed(partner_BS: Tensor) -> Tensor:
        # Eq. (11); a gain of 0.5 gives exactly half of the sum, because halving is exact.
        return (1 - settings.mixing_gain) * labeled_BS + settings.mixing_gain * partner_BS

    if settings.objective != "finetune":
        assert batch.partner_BS is not None
        partner_BS = batch.partner_BS.to(device, non_blocking=True) * PCM_SCALE
        if settings.objective == "composed":
            slots = unlabeled_slots(batch)
            all_are = len(slots) == len(batch.keys)
            windows["a2t"] = partner_BS if all_are else partner_BS[send(torch.tensor(slots).long(), device)]
        windows[settings.objective] = mixed(partner_BS)
    if "text_mixing" in settings.term_weights:
        assert batch.second_BS is not None
        windows["text_mixing"] = mixed(batch.second_BS.to(device, non_blocking=True) * PCM_SCALE)
    return windows


def texts_of(batch: Batch, settings: TrainingSettings) -> dict[str, list[Text]]:
    """Return the texts of every term: as many as `windows_of` has windows, in their order."""
    texts = {"info_nce": [Text(caption) for caption in batch.captions]}

    def joined(partner_captions: list[str | None] | None) -> list[Text]:
        """Return the texts of mixtures, Eq. (15): a partner's caption has the place of the pseudo-token."""
        partners = partner_captions or [None] * len(batch.captions)
        return [
            Text(caption, has_pseudo_tokens=True) if partner is None else Text(caption + settings.conjunction + partner)
            for caption, partner in zip(batch.captions, partners, strict=True)
        ]

    if settings.objective == "composed":
        texts["a2t"] = [Text(settings.prompt, has_pseudo_tokens=True)] * len(unlabeled_slots(batch))  # Eq. (8)
    if settings.objective != "finetune":
        texts[settings.objective] = joined(batch.partner_captions)
    if "text_mixing" in settings.term_weights:
        texts["text_mixing"] = joined(batch.second_captions)
    return texts


def noise_of(batch: Batch, audio_UD: Tensor) -> Tensor:
    """Return standard Gaussian noise (U, D) for the embeddings of unlabeled partners, in units of their RMS.

    The noise depends on the slot's place in the training alone, not on processes or micro-batches.
    """
    assert batch.places is not None
    drawn_UD = np.empty(audio_UD.shape, np.float32)
    for row, slot in enumerate(unlabeled_slots(batch)):
        seed, step, place = batch.places[slot]
        # The last word of the counter is 0 in the generators of the pairs, whose keys may be the same.
        counter = np.array([0, 0, 0, place + 1], np.uint64)
        generator = np.random.Generator(np.random.Philox(key=np.array([seed, step], np.uint64), counter=counter))
        generator.standard_normal(dtype=np.float32, out=drawn_UD[row])
    rms_U1 = audio_UD.detach().float().square().mean(dim=1, keepdim=True).sqrt()
    return (rms_U1 * send(torch.from_numpy(drawn_UD), audio_UD.device)).to(audio_UD.dtype)
