"""Every equation of the paper, and every setting that varies one, against an implementation written from the paper.

The implementation below takes the trained parts from the model (both encoders, the token embeddings, the weights of
f_a2t) and does all else by itself, one clip and one caption at a time, term by term. Losses and gradients must agree.
"""

from __future__ import annotations

import contextlib
import copy
import functools

import numpy as np
import pytest
import torch

from pipeline.models import mini
from pipeline.models.clap import AudioToTextDecoder
from pipeline.training.batches import Batch
from pipeline.training.composition import CompositionLoss
from pipeline.training.negatives import normalised
from pipeline.training.settings import TrainingSettings

CAPTIONS = ["a dog barks", "Rain falls.", "wind blows in the trees", "rain falls", "a dog barks", "birds sing, loudly"]
KEYS = ["dog_1", "rain_1", "wind", "rain_2", "dog_2", "wind"]
"""The clip `wind` has two captions in the batch; a caption of rain and one of a dog are those of two clips."""
UNLABELED = ["u1", "u2", "u3", "u2", "u4", "u1"]
PARTNERS = [5, 0, 3, 2, 5, 1]
"""Of `concatenate`: wind with rain is there in both orders, dogs with birds in both orders of slots."""
SECONDS = [3, 5, 4, 0, 2, 1]
"""Of the term for text mixing."""


def batch(settings, labeled_slots=()):
    """Six slots with clips and partners that occur more than once; `composed` may have some labeled partners."""
    objective = settings.objective
    generator = torch.Generator().manual_seed(7)
    clips = {name: torch.randint(-20_000, 20_000, (40_960,), generator=generator) for name in [*KEYS, *UNLABELED]}
    slots = {"finetune": (), "composed": labeled_slots, "concatenate": range(6)}[objective]
    partners = [KEYS[PARTNERS[slot]] if slot in slots else UNLABELED[slot] for slot in range(6)]
    captions = [CAPTIONS[PARTNERS[slot]] if slot in slots else None for slot in range(6)]
    seconds = [KEYS[i] for i in SECONDS] if "text_mixing" in settings.term_weights else None
    if objective == "finetune":
        partners = None
    return Batch(
        keys=KEYS,
        captions=CAPTIONS,
        labeled_BS=torch.stack([clips[key] for key in KEYS]).to(torch.int16),
        partner_BS=partners and torch.stack([clips[key] for key in partners]).to(torch.int16),
        partner_captions=captions if slots else None,
        partner_keys=partners,
        second_BS=seconds and torch.stack([clips[key] for key in seconds]).to(torch.int16),
        second_captions=seconds and [CAPTIONS[i] for i in SECONDS],
        second_keys=seconds,
        places=[(3, 7, slot) for slot in range(8, 14)],
    )


@functools.cache
def built():
    torch.manual_seed(0)
    return mini.build(mini.train_tokenizer([*CAPTIONS, "this sound is a recording of and followed by"], 300))


def model_of(settings):
    """The mini with weights from a fixed seed and f_a2t without dropout."""
    model = copy.deepcopy(built())
    torch.manual_seed(1)
    kind = {"kind": settings.a2t_kind, "layers": settings.a2t_layers, "heads": settings.a2t_heads}
    model.add_a2t(dropout=0.0, tokens=settings.pseudo_tokens, **kind)
    model.set_training_mode()
    return model


# The equations, written from the paper.


def encode_one_audio(model, samples):
    """Eqs. (1), (6), (12), (13)."""
    return model.encode_audio(samples[None])[0]


def attention(part, queries, memory):
    """Attention of some rows to others, head by head, with the weights of torch's module."""
    width, heads = queries.shape[1], part.num_heads
    weights, biases = part.in_proj_weight.split(width), part.in_proj_bias.split(width)
    rows = zip((queries, memory, memory), weights, biases, strict=True)
    q, k, v = ((x @ weight.T + bias).chunk(heads, dim=1) for x, weight, bias in rows)
    mixed = []
    for one_q, one_k, one_v in zip(q, k, v, strict=True):
        scores = (one_q @ one_k.T / one_q.shape[1] ** 0.5).exp()
        mixed.append(scores / scores.sum(dim=1, keepdim=True) @ one_v)
    return torch.cat(mixed, dim=1) @ part.out_proj.weight.T + part.out_proj.bias


def normed(norm, x):
    centred = x - x.mean(dim=1, keepdim=True)
    return centred / (centred.square().mean(dim=1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def decode(module, z_audio):
    """The Transformer decoder with its queries: each layer adds self-attention, cross-attention and two linear maps."""
    rows, memory = module.queries_KE, (module.memory.weight @ z_audio + module.memory.bias)[None]
    for layer in module.layers:
        own = normed(layer.norm1, rows)
        rows = rows + attention(layer.self_attn, own, own)
        rows = rows + attention(layer.multihead_attn, normed(layer.norm2, rows), memory)
        hidden = normed(layer.norm3, rows) @ layer.linear1.weight.T + layer.linear1.bias
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))  # GELU
        rows = rows + hidden @ layer.linear2.weight.T + layer.linear2.bias
    return normed(module.norm, rows) @ module.output.weight.T + module.output.bias


def noise_of(place, width):
    """Standard normal numbers of a slot's place: numpy's Philox with the seed and step as key, the slot as counter."""
    seed, step, slot = place
    philox = np.random.Philox(key=seed + (step << 64), counter=(slot + 1) << 192)
    return torch.from_numpy(np.random.Generator(philox).standard_normal(width, dtype=np.float32))


def a2t(model, z_audio):
    """Eqs. (7), (14): two hidden layers with ReLU, then the output layer; a row a pseudo-token."""
    if isinstance(model.a2t, AudioToTextDecoder):
        return decode(model.a2t, z_audio)
    linear = [layer for layer in model.a2t.modules() if isinstance(layer, torch.nn.Linear)]
    assert len(linear) == 3
    hidden = z_audio
    for layer in linear[:2]:
        hidden = (layer.weight @ hidden + layer.bias).clamp(min=0)
    return (linear[2].weight @ hidden + linear[2].bias).reshape(-1, model.token_dim)


def encode_one_text(model, text, tokens=None, after_end=False):
    """Eqs. (2), (8), (9), (15), (16): the text's token embeddings and the pseudo-tokens, along the token axis."""
    ids = model.tokenizer.encode(f"{text} <|endoftext|>").ids
    rows = [model.caption_encoder.base.wte.weight[i] for i in ids]
    if tokens is not None:
        rows = [*rows, *tokens] if after_end else [*rows[:-1], *tokens, rows[-1]]
    # With a mask of ones GPT-2 does not look for several texts in the row, which takes longer than the rest.
    inputs = {"inputs_embeds": torch.stack(rows)[None], "attention_mask": torch.ones(1, len(rows))}
    states = model.caption_encoder.base(**inputs).last_hidden_state
    return model.caption_encoder.projection(states[0, -1])


def info_nce(audio, text, scale, same):
    """Eqs. (3) to (5), averaged over the batch; without the negatives that `same` names."""

    def cosine(a, b):
        return (a * b).sum() / (a * a).sum().sqrt() / (b * b).sum().sqrt()

    total = 0
    for i in range(len(audio)):
        negatives = [j for j in range(len(audio)) if j != i and not same(i, j)]
        own = (scale * cosine(audio[i], text[i])).exp()
        texts = sum(((scale * cosine(audio[i], text[j])).exp() for j in negatives), own)
        audios = sum(((scale * cosine(text[i], audio[j])).exp() for j in negatives), own)
        total = total - (own / texts).log() - (own / audios).log()
    return total / len(audio)


def same_labeled(i, j):
    return normalised(CAPTIONS[i]) == normalised(CAPTIONS[j]) or KEYS[i] == KEYS[j]


def same_unlabeled(i, j):
    return UNLABELED[i] == UNLABELED[j]


def same_mixture(i, j, partners=PARTNERS):
    straight = same_labeled(i, j) and same_labeled(partners[i], partners[j])
    return straight or (same_labeled(i, partners[j]) and same_labeled(partners[i], j))


def losses_by_the_paper(model, settings, labeled_slots=()):
    given = batch(settings, labeled_slots)
    scale, gain = model.logit_scale.exp(), settings.mixing_gain
    labeled = [row / 32768 for row in given.labeled_BS.float()]
    after_end = settings.pseudo_position == "after_end"

    def term(audio, text, same):
        return info_nce(audio, text, scale, same if settings.mask_false_negatives else lambda i, j: False)

    z_audio = [encode_one_audio(model, row) for row in labeled]
    z_text = [encode_one_text(model, caption) for caption in CAPTIONS]
    terms = {"info_nce": term(z_audio, z_text, same_labeled)}  # Eq. (5)
    weights = {"info_nce": 1.0 if settings.objective == "finetune" else settings.info_nce_weight}
    if settings.objective != "finetune":
        partner = [row / 32768 for row in given.partner_BS.float()]
        mixed = [(1 - gain) * x + gain * u for x, u in zip(labeled, partner, strict=True)]  # Eq. (11)
        z_mixed = [encode_one_audio(model, row) for row in mixed]
    if settings.objective == "composed":
        unlabeled = [i for i in range(6) if i not in labeled_slots]
        z_unlabel = {i: encode_one_audio(model, partner[i]) for i in unlabeled}
        tokens = {}
        for i, z in z_unlabel.items():
            scale_of_noise = settings.a2t_noise * z.detach().square().mean().sqrt()
            noise = scale_of_noise * noise_of(given.places[i], len(z)) if settings.a2t_noise else 0
            tokens[i] = a2t(model, (z.detach() if settings.detach_unlabeled else z) + noise)
        z_hat = [encode_one_text(model, settings.prompt, tokens[i], after_end) for i in unlabeled]
        z_composed = [
            encode_one_text(model, text, tokens[i], after_end)
            if i in tokens
            else encode_one_text(model, text + settings.conjunction + CAPTIONS[PARTNERS[i]])
            for i, text in enumerate(CAPTIONS)
        ]

        def same_partner(i, j):
            if i in tokens and j in tokens:
                return same_labeled(i, j) and same_unlabeled(i, j)
            return i not in tokens and j not in tokens and same_mixture(i, j)

        terms["a2t"] = term(
            list(z_unlabel.values()), z_hat, lambda i, j: same_unlabeled(unlabeled[i], unlabeled[j])
        )  # Eq. (10)
        terms["composed"] = term(z_mixed, z_composed, same_partner)  # Eq. (17)
        weights |= {"a2t": settings.a2t_weight, "composed": settings.composed_weight}
        weights["text_mixing"] = settings.text_mixing_weight
        if settings.text_mixing_weight:
            second = [row / 32768 for row in given.second_BS.float()]
            z_second = [
                encode_one_audio(model, (1 - gain) * x + gain * u) for x, u in zip(labeled, second, strict=True)
            ]
            joined = [one + settings.conjunction + CAPTIONS[i] for one, i in zip(CAPTIONS, SECONDS, strict=True)]
            terms["text_mixing"] = term(
                z_second, [encode_one_text(model, text) for text in joined], lambda i, j: same_mixture(i, j, SECONDS)
            )
    if settings.objective == "concatenate":
        joined = [one + settings.conjunction + CAPTIONS[i] for one, i in zip(CAPTIONS, PARTNERS, strict=True)]
        terms["concatenate"] = term(z_mixed, [encode_one_text(model, text) for text in joined], same_mixture)
        weights["concatenate"] = settings.composed_weight
    loss = sum(weights[name] * terms[name] for name in terms)  # Eq. (18)
    return {"loss": loss, **{name: value for name, value in terms.items() if weights[name]}}


ABLATIONS = [
    {"objective": "finetune"},
    {"objective": "finetune", "mask_false_negatives": True},
    {"objective": "finetune", "learn_temperature": False},
    {"objective": "composed"},
    {"objective": "composed", "learn_temperature": False},
    {"objective": "composed", "info_nce_weight": 0.0},
    {"objective": "composed", "a2t_weight": 0.0},
    {"objective": "composed", "composed_weight": 0.0},
    {"objective": "composed", "a2t_weight": 0.0, "composed_weight": 0.0},
    {"objective": "composed", "info_nce_weight": 0.5, "a2t_weight": 2.0, "composed_weight": 0.25},
    {"objective": "composed", "detach_unlabeled": True},
    {"objective": "composed", "pseudo_position": "after_end"},
    {"objective": "composed", "pseudo_tokens": 3},
    {"objective": "composed", "pseudo_tokens": 3, "pseudo_position": "after_end"},
    {"objective": "composed", "mixing_gain": 0.3},
    {"objective": "composed", "prompt": "a recording of"},
    {"objective": "composed", "mask_false_negatives": True},
    {"objective": "concatenate"},
    {"objective": "concatenate", "conjunction": " followed by ", "mixing_gain": 0.3},
    {"objective": "concatenate", "info_nce_weight": 0.0, "conjunction": " and "},
    {"objective": "concatenate", "mask_false_negatives": True},
]
LABELED_PARTNERS = [
    ({}, (1, 4)),
    ({"mask_false_negatives": True}, (0, 1, 2, 4)),
    ({"pseudo_position": "after_end", "pseudo_tokens": 3}, (1, 4)),
    ({"conjunction": " and ", "mixing_gain": 0.3, "detach_unlabeled": True}, (0, 5)),
    ({"a2t_weight": 0.0}, (1, 4)),
    ({"composed_weight": 0.0}, (1, 4)),
    ({"info_nce_weight": 0.0}, (0, 1, 2, 3, 4)),
    ({"text_mixing_weight": 0.5}, ()),
    ({"a2t_kind": "decoder", "a2t_heads": 4}, ()),
    ({"a2t_kind": "decoder", "a2t_layers": 3, "pseudo_tokens": 4, "a2t_noise": 0.5}, (1, 4)),
    ({"a2t_noise": 0.5}, ()),
    ({"a2t_noise": 1.0, "detach_unlabeled": True, "pseudo_tokens": 2}, (0, 2)),
    ({"text_mixing_weight": 0.5, "mask_false_negatives": True, "conjunction": " and "}, (2, 3)),
]
CASES = [(varied, ()) for varied in ABLATIONS]
CASES += [({"objective": "composed", **varied}, slots) for varied, slots in LABELED_PARTNERS]


@pytest.mark.parametrize(
    ("varied", "labeled_slots"),
    CASES,
    ids=lambda given: "-".join(map(str, [*given.values(), *list(given)[1:]] if isinstance(given, dict) else given)),
)
def test_losses_and_gradients_are_those_of_the_equations(varied, labeled_slots):
    settings = TrainingSettings(**varied)
    model = model_of(settings)
    found = CompositionLoss(model, settings)(batch(settings, labeled_slots))
    found["loss"].backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    assert ("logit_scale" in gradients) is settings.learn_temperature
    model.zero_grad()
    expected = losses_by_the_paper(model, settings, labeled_slots)
    expected["loss"].backward()

    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name} {text}"
        )
    for name, value in model.named_parameters():
        if value.grad is not None and value.grad.count_nonzero():
            torch.testing.assert_close(
                gradients[name], value.grad, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name} {text}"
            )


def teacher_of(seed, scale):
    """A small model with other weights, another vocabulary and its own temperature."""
    torch.manual_seed(seed)
    model = mini.build(mini.train_tokenizer([*CAPTIONS, "and"], 270 + seed))
    torch.nn.init.constant_(model.logit_scale, scale)
    return model.eval().requires_grad_(False)


def soft_loss(model, teachers, clips, texts, temperature):
    """The cross entropies to the teachers' probabilities, entry by entry of the similarities."""

    def logits(one):
        with torch.set_grad_enabled(one is model):
            audio, text = (
                [encode_one_audio(one, clip) for clip in clips],
                [encode_one_text(one, each) for each in texts],
            )
            return [[one.logit_scale.exp() * torch.cosine_similarity(z, other, dim=0) for other in text] for z in audio]

    own, taught = logits(model), [logits(teacher) for teacher in teachers]
    total, places = 0, range(len(clips))
    for is_text in (False, True):
        for i in places:
            cells = [(j, i) if is_text else (i, j) for j in places]
            means = [sum(one[a][b] for one in taught) / len(teachers) / temperature for a, b in cells]
            targets = [value.exp() / sum(other.exp() for other in means) for value in means]
            normalizer = sum(own[a][b].exp() for a, b in cells).log()
            total = total - sum(t * (own[a][b] - normalizer) for t, (a, b) in zip(targets, cells, strict=True))
    return total / len(clips)


@pytest.mark.parametrize(
    ("varied", "teachers"),
    [
        ({"objective": "finetune"}, [(1, 2.0)]),
        ({"objective": "finetune", "teacher_weight": 1.0, "teacher_temperature": 2.0}, [(1, 2.0), (2, 3.0)]),
        ({"objective": "concatenate", "teacher_weight": 0.3, "composed_weight": 2.0}, [(1, 3.0)]),
        ({"objective": "composed", "text_mixing_weight": 0.5, "mask_false_negatives": True}, [(1, 2.0), (2, 3.0)]),
    ],
)
def test_a_teacher_adds_the_cross_entropy_to_its_probabilities(varied, teachers):
    settings = TrainingSettings(**varied)
    model, teachers = model_of(settings), [teacher_of(seed, scale) for seed, scale in teachers]
    given = batch(settings)
    found = CompositionLoss(model, settings, teachers)(given)
    found["loss"].backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()

    def mixed(partner_BS):
        return [(0.5 * x + 0.5 * u) / 32768 for x, u in zip(given.labeled_BS.float(), partner_BS.float(), strict=True)]

    def joined(partners):
        return [f"{one} {CAPTIONS[i]}" for one, i in zip(CAPTIONS, partners, strict=True)]

    inputs = {"info_nce": ([row / 32768 for row in given.labeled_BS.float()], CAPTIONS)}
    if settings.objective == "concatenate":
        inputs["concatenate"] = (mixed(given.partner_BS), joined(PARTNERS))
    if settings.text_mixing_weight:
        inputs["text_mixing"] = (mixed(given.second_BS), joined(SECONDS))
    expected = losses_by_the_paper(model, settings)
    weights, share = settings.term_weights, settings.teacher_weight
    soft = {name: soft_loss(model, teachers, *inputs[name], settings.teacher_temperature) for name in inputs}
    loss = sum(weights[name] * (1 - share if name in inputs else 1) * expected[name] for name in weights)
    loss = loss + share * sum(weights[name] * soft[name] for name in inputs)
    loss.backward()
    torch.testing.assert_close(found["loss"], loss, rtol=1e-4, atol=1e-5)
    for name, value in model.named_parameters():
        if value.grad is not None and value.grad.count_nonzero():
            torch.testing.assert_close(gradients[name], value.grad, rtol=1e-3, atol=1e-5, msg=name)
    assert all(value.grad is None for teacher in teachers for value in teacher.parameters())


def test_half_and_half_is_the_half_of_the_sum_to_the_bit():
    """Eq. (11) as the paper writes it, for windows of 16-bit audio."""
    labeled, partner = (rows / 32768 for rows in torch.randint(-32768, 32768, (2, 100_000)).float())
    assert torch.equal((1 - 0.5) * labeled + 0.5 * partner, (labeled + partner) / 2)


@pytest.mark.parametrize(
    ("varied", "windows", "captions"),
    [
        ({}, 18, 18),
        ({"info_nce_weight": 0.0}, 12, 12),
        ({"a2t_weight": 0.0}, 18, 12),
        ({"composed_weight": 0.0}, 12, 12),
        ({"a2t_weight": 0.0, "composed_weight": 0.0}, 6, 6),
        ({"info_nce_weight": 0.0, "a2t_weight": 0.0}, 12, 6),
        ({"info_nce_weight": 0.0, "composed_weight": 0.0}, 6, 6),
    ],
)
def test_a_term_of_weight_zero_is_not_encoded_and_carries_no_nan(monkeypatch, varied, windows, captions):
    settings = TrainingSettings(objective="composed", **varied)
    model = model_of(settings)
    heard, said = [], []
    encode_audio, encode_text = model.encode_audio, model.encode_text
    monkeypatch.setattr(model, "encode_audio", lambda rows: (heard.append(len(rows)), encode_audio(rows))[1])
    monkeypatch.setattr(
        model, "encode_text", lambda texts, **more: (said.append(len(texts)), encode_text(texts, **more))[1]
    )
    if not settings.uses_a2t:
        torch.nn.init.constant_(model.a2t.layers[-1].weight, torch.nan)
    losses = CompositionLoss(model, settings)(batch(settings))
    assert (heard, said) == ([windows], [captions])
    assert losses.keys() == {"loss", *settings.term_weights}
    assert all(value.isfinite() for value in losses.values())


def test_composed_with_labeled_partners_alone_is_concatenate():
    losses, gradients = [], []
    for objective in ("composed", "concatenate"):
        settings = TrainingSettings(objective=objective, mask_false_negatives=True)
        model = model_of(settings)
        found = CompositionLoss(model, settings)(batch(settings, range(6)))
        found["loss"].backward()
        losses.append({"mixtures" if name == objective else name: value.item() for name, value in found.items()})
        gradients.append({name: value.grad for name, value in model.named_parameters() if "a2t" not in name})
        assert all(value.grad is None or not value.grad.any() for value in model.a2t.parameters())
    assert losses[0].pop("a2t") == 0 and losses[0] == losses[1]
    assert all(torch.equal(value, gradients[1][name]) for name, value in gradients[0].items() if value is not None)


@pytest.mark.parametrize("objective", ["finetune", "composed", "concatenate"])
def test_a_step_never_waits_to_see_a_value_of_the_device(monkeypatch, objective):
    """On the meta device, whose tensors have no values to see: item(), cpu() and a mask as an index raise there."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # it does not know this device
    settings = TrainingSettings(objective=objective, mask_false_negatives=True)
    model = model_of(settings)
    model.set_training_mode(encoder_regularisation=True)
    model.to("meta")
    losses = CompositionLoss(model, settings)(batch(settings))
    losses["loss"].backward()
    assert all(value.is_meta for value in losses.values())
