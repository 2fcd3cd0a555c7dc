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
    - Two mixtures of a labeled and an unlabeled clip: both parts mean the same.
    - Two mixtures of two labeled clips: both parts mean the same, in either order.
    """
    count = len(batch.keys)
    columns = [[normalised(caption) for caption in batch.captions], batch.keys]
    columns += [batch.partner_keys or [""] * count, [normalised(text) for text in batch.partner_captions or []]]
    identities = [[identity(text) for text in column or [""] * count] for column in columns]
    own_B4 = send(torch.tensor(identities, dtype=torch.int64), device).T
    caption_N, clip_N, partner_N, partner_caption_N = gather_rows(own_B4).unbind(1)

    def equal(first_N: Tensor, second_N: Tensor) -> Tensor:
        return first_N[:, None] == second_N

    labeled_NN = equal(caption_N, caption_N) | equal(clip_N, clip_N)
    partner_NN = equal(partner_N, partner_N)
    partner_pair_NN = equal(partner_caption_N, partner_caption_N) | partner_NN
    crossed_NN = equal(caption_N, partner_caption_N) | equal(clip_N, partner_N)
    return {
        "info_nce": labeled_NN,
        "a2t": partner_NN,
        "composed": labeled_NN & partner_NN,
        "concatenate": (labeled_NN & partner_pair_NN) | (crossed_NN & crossed_NN.T),
    }
