"""Eq. (3) to (5) against numbers worked out by hand and against a loop that follows the equations term by term."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import PipelineError
from pipeline.training.losses import info_nce
from pipeline.training.negatives import identity, normalised
from pipeline.training.settings import TrainingSettings


def info_nce_term_by_term(audio, text, scale, is_equal=lambda i, j: False):
    """Eqs. (3) to (5) as they are printed, over Python floats, without the negatives that are equal."""

    def cosine(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)

    total = 0.0
    for i in range(len(audio)):
        others = [j for j in range(len(audio)) if j == i or not is_equal(i, j)]
        own = math.exp(scale * cosine(audio[i], text[i]))
        total -= math.log(own / sum(math.exp(scale * cosine(audio[i], text[j])) for j in others))  # Eq. (3)
        total -= math.log(own / sum(math.exp(scale * cosine(text[i], audio[j])) for j in others))  # Eq. (4)
    return total / len(audio)


def test_two_orthogonal_pairs_give_the_loss_worked_out_by_hand():
    """Each direction: -log(e^s / (e^s + 1)) = log(1 + e^-s), and the two are summed, not halved."""
    scale = 2.0
    assert info_nce(torch.eye(2), torch.eye(2), scale).item() == pytest.approx(2 * math.log(1 + math.exp(-scale)))


def test_equal_embeddings_give_chance():
    ones = torch.ones(7, 3)
    assert info_nce(ones, ones, 100.0).item() == pytest.approx(2 * math.log(7), rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(2, 5), st.floats(0.1, 20), st.integers(0, 2**31))
def test_equals_the_equations_term_by_term(batch, width, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    audio, text = torch.randn(2, batch, width, generator=generator)
    expected = info_nce_term_by_term(audio.tolist(), text.tolist(), scale)
    assert info_nce(audio, text, scale).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.floats(0.1, 20), st.integers(0, 2**31))
def test_equal_rows_are_no_negatives_of_each_other_in_either_direction(labels, scale, seed):
    audio, text = torch.randn(2, len(labels), 4, generator=torch.Generator().manual_seed(seed))
    expected = info_nce_term_by_term(audio.tolist(), text.tolist(), scale, lambda i, j: labels[i] == labels[j])
    equal = torch.tensor(labels)[:, None] == torch.tensor(labels)
    assert info_nce(audio, text, scale, equal_BB=equal).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_rows_that_are_all_equal_leave_no_negative_and_a_finite_gradient():
    audio = torch.randn(3, 4, requires_grad=True)
    loss = info_nce(audio, torch.randn(3, 4), 10.0, equal_BB=torch.ones(3, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6) and torch.equal(audio.grad, torch.zeros(3, 4))


@pytest.mark.parametrize(
    ("first", "second", "is_equal"),
    [
        ("A dog barks.", "a dog  barks", True),
        ("Rain, then thunder", "rain then thunder!", True),
        ("a dog barks", "a dog barked", False),
        ("Straße", "STRASSE", True),
    ],
)
def test_captions_are_equal_but_for_case_spacing_and_punctuation(first, second, is_equal):
    assert (identity(normalised(first)) == identity(normalised(second))) is is_equal


def test_a_caption_has_the_same_identity_on_every_machine():
    assert identity("rain falls") == -4180707655128184642


@pytest.mark.parametrize("objective", ["composed", "concatenate"])
def test_an_objective_without_a_term_is_refused(objective):
    with pytest.raises(PipelineError, match=f"every term of the objective {objective} has weight 0"):
        TrainingSettings(objective=objective, info_nce_weight=0.0, a2t_weight=0.0, composed_weight=0.0)


def test_length_of_the_embeddings_does_not_matter():
    audio, text = torch.randn(2, 4, 5)
    assert info_nce(3 * audio, 0.1 * text, 5.0).item() == pytest.approx(info_nce(audio, text, 5.0).item(), rel=1e-5)


def test_logit_scale_may_be_a_tensor_that_learns():
    scale = torch.tensor(3.0, requires_grad=True)
    info_nce(torch.randn(4, 5), torch.randn(4, 5), scale).backward()
    assert scale.grad is not None and scale.grad.item() != 0


def test_bfloat16_embeddings_are_compared_in_float32():
    audio, text = torch.randn(2, 16, 8)
    expected = info_nce(audio.bfloat16().float(), text.bfloat16().float(), 100.0)
    assert info_nce(audio.bfloat16(), text.bfloat16(), 100.0).item() == pytest.approx(expected.item(), rel=1e-5)


def test_shapes_that_do_not_pair_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(2, 4\)"):
        info_nce(torch.ones(3, 4), torch.ones(2, 4), 1.0)
