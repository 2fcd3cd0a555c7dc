"""Rows of a global batch with the same meaning, which must not be negatives of each other.

Shapes: B = slots of this process, N = global batch.
"""

from __future__ import annotations

import hashlib
import re

import torch
from torch import Tensor

from pipeline.models.devices import send
from pipeline.training.batches import Batch
from pipeline.training.distributed import gather_rows


def normalised(caption: str) -> str:
    """Return the words of a caption in lower case with single spaces, without punctuation."""
    return " ".join(re.findall(r"\w+", caption.casefold()))


def identity(text: str) -> int:
    """Return a 64-bit number: equal for equal texts on every machine, in practice different for other texts."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)


def equal_pairs(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """Return, per term of the loss, which rows of the global batch mean the same: (N, N), boolean and symmetric.

    Every process passes its own slots and gets the same matrices.
    - Two labeled clips: their captions are equal except for case and punctuation, or they are one clip.
    - Two unlabeled clips: they are one clip.
    - Two mixtures: both parts mean the same, in either order. An unlabeled and a labeled clip never mean the same.
    """
    columns = [
        [normalised(caption) for caption in batch.captions],
        batch.keys,
        *_partner_columns(batch.partner_keys, batch.partner_captions),
        *_partner_columns(batch.second_keys, batch.second_captions),
    ]
    identities = [[identity(text) for text in column or [""] * len(batch.keys)] for column in columns]
    own_B6 = send(torch.tensor(identities, dtype=torch.int64), device).T
    meaning_N, clip_N, *partners = gather_rows(own_B6).unbind(1)

    def same(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
        """Return which clips of two columns mean the same, from their meanings and keys."""
        return (first[0][:, None] == second[0]) | (first[1][:, None] == second[1])

    labeled = (meaning_N, clip_N)
    labeled_NN = same(labeled, labeled)

    def same_mixtures(partner: tuple[Tensor, Tensor]) -> Tensor:
        crossed_NN = same(labeled, partner)
        return (labeled_NN & same(partner, partner)) | (crossed_NN & crossed_NN.T)

    partner, second = (partners[0], partners[1]), (partners[2], partners[3])
    mixtures_NN = same_mixtures(partner)
    return {
        "info_nce": labeled_NN,
        "a2t": partner[1][:, None] == partner[1],
        "composed": mixtures_NN,
        "concatenate": mixtures_NN,
        "text_mixing": same_mixtures(second),
    }


def _partner_columns(
    keys: list[str] | None, captions: list[str | None] | None
) -> tuple[list[str] | None, list[str] | None]:
    """Return the meaning and the key of each slot's partner: an unlabeled clip means only itself."""
    if keys is None:
        return None, None
    captions = captions or [None] * len(keys)
    meanings = [
        f"clip {key}!" if caption is None else normalised(caption)  # no normalised caption has punctuation
        for key, caption in zip(keys, captions, strict=True)
    ]
    return meanings, keys
