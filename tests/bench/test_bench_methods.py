"""The benchmark of methods computes the terms of each method on the partners that it is about."""

from __future__ import annotations

import pytest
import torch

from bench.methods import METHODS, Method, MethodStep, a2t_of, with_captions
from pipeline.models import load_model
from pipeline.training.batches import PairedBatches

COMPOSED = {"loss", "info_nce", "a2t", "composed"}
TERMS = {
    "finetune": {"loss", "info_nce"},
    "finetune, one teacher": {"loss", "info_nce", "teacher"},
    "text mixing": {"loss", "info_nce", "concatenate"},
    "text mixing, one teacher": {"loss", "info_nce", "concatenate", "teacher"},
    "composed": COMPOSED,
    "composed, half of the partners labeled": COMPOSED,
    "composed with text mixing": {*COMPOSED, "text_mixing"},
    "composed with text mixing, one teacher": {*COMPOSED, "text_mixing", "teacher"},
    "composed, decoder with noise": COMPOSED,
}


@pytest.fixture
def batch(tiny_study):
    return PairedBatches(tiny_study.pairs("composed"), tiny_study.shards)[0]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.label)
def test_a_step_has_the_terms_of_its_method(tiny_study, batch, method: Method):
    model = load_model(tiny_study.pretrained)
    torch.manual_seed(0)
    model.add_a2t(kind=method.settings.get("a2t_kind", "mlp"), tokens=method.settings.get("pseudo_tokens", 1))
    terms = MethodStep(method, model)(batch)
    assert terms.keys() == TERMS[method.label]
    terms["loss"].backward()
    trained = model.a2t if "a2t" in terms else model.caption_encoder
    assert any(value.grad is not None and value.grad.abs().sum() > 0 for value in trained.parameters())


@pytest.mark.parametrize(("share", "labeled"), [(0, 0), (0.5, 4), (1, 8)])
def test_a_share_of_the_partners_has_captions(batch, share, labeled):
    assert len(batch.captions) == 8
    partners = with_captions(batch, Method("", {}, labeled_share=share)).partner_captions
    assert sum(caption is not None for caption in partners or ()) == labeled


def test_a_model_gets_its_own_a2t_back(tiny_study):
    model = load_model(tiny_study.pretrained)
    model.add_a2t()
    own = model.a2t
    with a2t_of(model, torch.nn.Identity()):
        assert model.a2t is not own
    assert model.a2t is own
