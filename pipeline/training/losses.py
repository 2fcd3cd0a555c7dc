"""The losses of the paper and that of self-distillation, as functions of embeddings.

Shapes: B = global batch, D = joint width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(
    audio_BD: Tensor,
    text_BD: Tensor,
    logit_scale: Tensor | float,
    *,
    equal_BB: Tensor | None = None,
    present_B: Tensor | None = None,
) -> Tensor:
    """Return InfoNCE of paired audio and text, Eq. (5): the sum, not the mean, of both directions' cross entropies.

    Row i of `audio_BD` belongs to row i of `text_BD`; every other row of the batch is a negative. The embeddings need
    not be normalised. `logit_scale` is the multiplier 1/tau of Eqs. (3) and (4), not its logarithm. Returns a
    scalar.

    `equal_BB` is a symmetric boolean matrix. Where it is true off its diagonal, the two rows mean the same, and neither
    is a negative of the other. The paper's sums leave out no row.

    `present_B` is a boolean mask of the rows that take part; the mean is over them, and is 0 without any. It keeps the
    shapes independent of values, for which a GPU would wait.

    Example:
        >>> import torch
        >>> round(info_nce(torch.eye(2), torch.eye(2), logit_scale=1.0).item(), 4)  # 2 log(1 + 1 / e)
        0.6265
    """
    logits_BB = cosine_logits(audio_BD, text_BD, logit_scale)
    own_BB = torch.eye(len(logits_BB), dtype=torch.bool, device=logits_BB.device)
    if equal_BB is not None:
        logits_BB = logits_BB.masked_fill(equal_BB & ~own_BB, -torch.inf)
    if present_B is not None:  # the other rows keep their own logit alone, so their loss and its gradient are 0
        logits_BB = logits_BB.masked_fill(~(present_B[:, None] & present_B) & ~own_BB, -torch.inf)
    pairs_B = torch.arange(len(logits_BB), device=logits_BB.device)
    audio_to_text = F.cross_entropy(logits_BB, pairs_B)  # Eq. (3)
    text_to_audio = F.cross_entropy(logits_BB.T, pairs_B)  # Eq. (4)
    loss = text_to_audio + audio_to_text  # Eq. (5)
    return loss if present_B is None else loss * len(present_B) / present_B.sum().clamp(min=1)


def cosine_logits(audio_BD: Tensor, text_BD: Tensor, logit_scale: Tensor | float) -> Tensor:
    """Return the scaled cosines of all audio with all texts, (B, B) in float32."""
    if audio_BD.shape != text_BD.shape or audio_BD.ndim != 2:
        raise ValueError(
            f"the losses take two (B, D) tensors of one shape, found {tuple(audio_BD.shape)} and {tuple(text_BD.shape)}"
        )
    # float32 also under autocast: at a scale of 100, bfloat16 rounds the logits to steps of 0.5.
    audio_BD, text_BD = F.normalize(audio_BD.float(), dim=-1), F.normalize(text_BD.float(), dim=-1)
    with torch.autocast(audio_BD.device.type, enabled=False):
        return logit_scale * (audio_BD @ text_BD.T)


def distillation(logits_BB: Tensor, teacher_logits_BB: Tensor) -> Tensor:
    """Return the cross entropies of both directions to a teacher's probabilities, summed as in `info_nce`.

    Rows are audio and columns texts. The targets are the softmax of the teacher's logits over the texts of a clip, and
    over the clips of a text. Teachers are averaged as logits. Returns a scalar.

    Source: Primus, Schmid, Widmer 2024, arXiv 2408.11641, and its code (OptimusPrimus/salsa).
    """
    audio_to_text = F.cross_entropy(logits_BB, teacher_logits_BB.softmax(dim=1))
    text_to_audio = F.cross_entropy(logits_BB.T, teacher_logits_BB.T.softmax(dim=1))
    return text_to_audio + audio_to_text
