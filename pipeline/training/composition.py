"""The losses of one training step: one audio pass and one text pass encode all inputs, then InfoNCE compares them.

Shapes: B = slots of this process, N = global batch, U = slots whose partner is unlabeled, S = samples, D = joint width,
E = token width, T = pseudo-tokens of a clip, P = texts with pseudo-tokens, K = terms of the loss (up to four for
`composed`, two for `concatenate`, one for `finetune`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from pipeline.models.clap import ClapModel
from pipeline.models.devices import send
from pipeline.training.batches import Batch
from pipeline.training.distributed import gather_rows
from pipeline.training.inputs import Text, noise_of, texts_of, unlabeled_slots, windows_of
from pipeline.training.losses import cosine_logits, distillation, info_nce
from pipeline.training.negatives import equal_pairs
from pipeline.training.settings import TrainingSettings


class CompositionLoss(nn.Module):
    """The objective of a training as a module around the model, so that DDP sees one forward pass per step.

    The constructor makes the model's temperature learnable or fixed, as the settings say. The teachers are models in
    evaluation mode that are not trained, so they are no submodules.
    """

    def __init__(self, model: ClapModel, settings: TrainingSettings, teachers: Sequence[ClapModel] = ()) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self.teachers = tuple(teachers)
        model.logit_scale.requires_grad_(settings.learn_temperature)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of the loss over the global batch and their weighted sum `loss`, as scalars."""
        return self.compare(self.embed(batch), batch, self.teach(batch))

    def embed(self, batch: Batch) -> Tensor:
        """Return embeddings (B, K, 2, D): audio and text of each slot and term. Slots do not depend on each other.

        Only inputs that a term needs are encoded. On a GPU the encoders use bfloat16 where autocast allows it.
        """
        device = self.model.logit_scale.device
        with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
            return self._embed(batch, device)

    def teach(self, batch: Batch) -> list[Tensor]:
        """Return every teacher's embeddings (B, K, 2, D) of the terms without pseudo-tokens; slots are independent."""
        if not self.teachers:
            return []
        device, taught = self.model.logit_scale.device, []
        windows, texts = windows_of(batch, self.settings, device), texts_of(batch, self.settings)
        samples_BS = torch.cat([windows[name] for name in self.settings.taught_terms])
        words = [text.words for name in self.settings.taught_terms for text in texts[name]]
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
            for teacher in self.teachers:
                both_B2D = torch.stack([teacher.encode_audio(samples_BS), teacher.encode_text(words)], dim=1)
                taught.append(torch.stack(both_B2D.split(len(batch.keys)), dim=1))
        return taught

    def compare(self, own_BK2D: Tensor, batch: Batch, taught: Sequence[Tensor] = ()) -> dict[str, Tensor]:
        """Return the losses of the global batch, from the embeddings of all processes and those of the teachers."""
        weights, scale = self.settings.term_weights, self.model.logit_scale.exp()
        all_NK2D = gather_rows(own_BK2D)  # one gather for all terms
        equal = equal_pairs(batch, own_BK2D.device) if self.settings.mask_false_negatives else {}
        present = {}
        if "a2t" in weights and batch.partner_captions is not None:  # on all processes or on none
            is_unlabeled_B = torch.tensor([caption is None for caption in batch.partner_captions], dtype=torch.uint8)
            present["a2t"] = gather_rows(send(is_unlabeled_B, own_BK2D.device)).bool()
        terms = {
            name: info_nce(
                all_NK2D[:, kind, 0],
                all_NK2D[:, kind, 1],
                scale,
                equal_BB=equal.get(name),
                present_B=present.get(name),
            )
            for kind, name in enumerate(weights)  # Eqs. (5), (10), (17)
        }
        if taught:
            terms["teacher"] = self._distil(dict(zip(weights, all_NK2D.unbind(1), strict=True)), scale, taught)
            share = self.settings.teacher_weight
            hard = {name: weights[name] * (1 - share if name in self.settings.taught_terms else 1) for name in weights}
            weights = {**hard, "teacher": share}
        return {"loss": torch.stack([weights[name] * term for name, term in terms.items()]).sum(), **terms}  # Eq. (18)

    def _distil(self, own: dict[str, Tensor], scale: Tensor, taught: Sequence[Tensor]) -> Tensor:
        """Return the weighted sum of the losses to the teachers' probabilities, from embeddings (N, 2, D) per term."""
        all_taught = [gather_rows(taught_BK2D) for taught_BK2D in taught]
        losses = []
        for kind, name in enumerate(self.settings.taught_terms):
            logits_NN = torch.stack(
                [
                    cosine_logits(taught_NK2D[:, kind, 0], taught_NK2D[:, kind, 1], teacher.logit_scale.exp())
                    for teacher, taught_NK2D in zip(self.teachers, all_taught, strict=True)
                ]
            )
            targets_NN = logits_NN.mean(dim=0) / self.settings.teacher_temperature
            student_NN = cosine_logits(own[name][:, 0], own[name][:, 1], scale)
            losses.append(self.settings.term_weights[name] * distillation(student_NN, targets_NN))
        return torch.stack(losses).sum()

    def _embed(self, batch: Batch, device: torch.device) -> Tensor:
        settings, terms = self.settings, self.settings.term_weights
        windows, texts = windows_of(batch, settings, device), texts_of(batch, settings)
        audio_names = [name for name in windows if name in terms or (name == "a2t" and settings.uses_a2t)]
        encoded_BD = self.model.encode_audio(
            torch.cat([windows[name] for name in audio_names])
        )  # Eqs. (1), (6), (12), (13)
        sizes = [len(windows[name]) for name in audio_names]
        audio = dict(zip(audio_names, encoded_BD.split(sizes), strict=True))

        tokens_UTE = None
        if settings.uses_a2t and self.model.a2t is not None:
            unlabeled_UD = audio["a2t"].detach() if settings.detach_unlabeled else audio["a2t"]
            if settings.a2t_noise:
                unlabeled_UD = unlabeled_UD + settings.a2t_noise * noise_of(batch, unlabeled_UD)
            tokens_UTE = self.model.a2t(unlabeled_UD)  # Eqs. (7), (14)
        text = self._encode_texts({name: texts[name] for name in texts if name in terms}, tokens_UTE)
        if "a2t" in terms and len(unlabeled := unlabeled_slots(batch)) < len(batch.keys):
            slots_U = send(torch.tensor(unlabeled, dtype=torch.long), device)
            for encoded in (audio, text):  # `compare` leaves out the other rows
                rows_UD = encoded["a2t"]
                encoded["a2t"] = rows_UD.new_zeros(len(batch.keys), rows_UD.shape[1]).index_copy(0, slots_U, rows_UD)
        return torch.stack([torch.stack([audio[name], text[name]], dim=1) for name in terms], dim=1)

    def _encode_texts(self, texts: dict[str, list[Text]], tokens_UTE: Tensor | None) -> dict[str, Tensor]:
        """Return the embeddings of the texts of every term, encoded together: Eqs. (2), (9), (16)."""
        listed = list(chain.from_iterable(texts.values()))
        order = sorted(range(len(listed)), key=lambda place: listed[place].has_pseudo_tokens)  # they come last
        tokens_PTE = None
        if tokens_UTE is not None and len(tokens_UTE):
            terms = sum(text.has_pseudo_tokens for text in listed) // len(tokens_UTE)
            tokens_PTE = torch.cat([tokens_UTE] * terms)
        encoded_BD = self.model.encode_text(
            [listed[place].words for place in order],
            pseudo_tokens=tokens_PTE,
            pseudo_position=self.settings.pseudo_position,
        )
        if tokens_UTE is not None and tokens_PTE is None:
            encoded_BD = encoded_BD + tokens_UTE.sum()  # 0: other processes wait for a gradient of the a2t module
        if order != sorted(order):
            places = torch.tensor(order).argsort()
            encoded_BD = encoded_BD[send(places, encoded_BD.device)]
        return dict(zip(texts, encoded_BD.split([len(part) for part in texts.values()]), strict=True))
