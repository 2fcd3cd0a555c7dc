"""Frozen layers, learning rates by depth, and the limit of the gradient's norm."""

from __future__ import annotations

import pytest
import save_gradients
import torch
from safetensors.torch import load_file
from test_training import arguments

from pipeline.errors import PipelineError
from pipeline.models import load_model
from pipeline.stages import train
from pipeline.training.batches import PairedBatches
from pipeline.training.composition import CompositionLoss
from pipeline.training.distributed import Processes
from pipeline.training.layers import TOWERS, encoder, enter_training_mode, freeze_layers, parameter_groups
from pipeline.training.options import RunOptions
from pipeline.training.outputs import Job, Origin
from pipeline.training.settings import TrainingSettings
from pipeline.training.trainer import Trainer, backward_pass
from tests.models.small import SMALL

ALONE = Processes(rank=0, count=1, device=torch.device("cpu"))
GROUPS = {"mini": (8, 3), "msclap-2022": (8, 4), "laion-clap": (6, 4)}
"""Layer groups of the audio and text encoder of each small model: its blocks and two more."""


@pytest.mark.parametrize("backbone", SMALL)
def test_every_trained_parameter_of_an_encoder_is_in_one_layer_group(tmp_path, backbone):
    model = SMALL[backbone](tmp_path)
    for tower, count in zip(TOWERS, GROUPS[backbone], strict=True):
        groups = encoder(model, tower).layer_groups()
        found = [value for group in groups for module in group for value in module.parameters() if value.requires_grad]
        trained = [value for value in encoder(model, tower).parameters() if value.requires_grad]
        assert len(groups) == count
        assert len(found) == len(set(found)) and set(found) == set(trained)


def gradients(study, settings, micro_batch=0):
    """The gradients of the first composed batch, by name."""
    model = save_gradients.model_of(study.pretrained, settings)
    freeze_layers(model, settings)
    enter_training_mode(model, settings)
    objective = CompositionLoss(model, settings)
    batch = PairedBatches(study.pairs("composed"), study.shards)[0]
    backward_pass(objective, settings, ALONE, micro_batch)(batch)
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


@pytest.fixture(scope="module")
def whole(tiny_study):
    """The gradients of a composed step in which nothing is frozen."""
    return gradients(tiny_study, TrainingSettings(objective="composed"))


FROZEN = {
    "audio": ("audio_encoder.",),
    "text": ("caption_encoder.",),
    "both": ("audio_encoder.", "caption_encoder."),
}


@pytest.mark.parametrize("micro_batch", [0, 3])
@pytest.mark.parametrize("freeze", FROZEN)
def test_what_is_not_frozen_has_the_gradient_of_a_step_without_freezing(tiny_study, whole, freeze, micro_batch):
    """The pseudo-token's too: it goes through the text encoder, frozen or not."""
    found = gradients(tiny_study, TrainingSettings(objective="composed", freeze=freeze), micro_batch)
    assert found.keys() == {name for name in whole if not name.startswith(FROZEN[freeze])}
    assert found["a2t.layers.0.0.weight"].abs().max() > 0
    for name, value in found.items():
        torch.testing.assert_close(value, whole[name], rtol=1e-5, atol=1e-5, msg=name)


def test_the_last_groups_of_a_frozen_encoder_have_their_gradient(tiny_study, whole):
    found = gradients(tiny_study, TrainingSettings(objective="composed", freeze="both", unfrozen_groups=2))
    trained = ("logit_scale", "a2t.", "audio_encoder.projection.", "audio_encoder.base.htsat.norm.",
               "audio_encoder.base.htsat.layers.2.blocks.1.", "caption_encoder.projection.",
               "caption_encoder.base.ln_f.", "caption_encoder.base.h.0.")  # fmt: skip
    assert found.keys() == {name for name in whole if name.startswith(trained)}
    for name, value in found.items():
        torch.testing.assert_close(value, whole[name], rtol=1e-5, atol=1e-5, msg=name)


def test_a_frozen_audio_encoder_keeps_nothing_for_a_backward_pass(tiny_study):
    model = load_model(tiny_study.pretrained)
    freeze_layers(model, TrainingSettings(freeze="audio"))
    assert not model.encode_audio(torch.zeros(1, model.window_frames)).requires_grad


def test_a_model_without_an_a2t_module_cannot_be_frozen_whole(tiny_study):
    """As with partners that are all labeled, where the settings of `composed` do not show it."""
    with pytest.raises(PipelineError, match="the run trains no a2t module, so there is nothing to train"):
        freeze_layers(load_model(tiny_study.pretrained), TrainingSettings(objective="composed", freeze="both"))


def test_frozen_parameters_are_not_in_the_optimizer(tiny_study):
    model = load_model(tiny_study.pretrained)
    freeze_layers(model, TrainingSettings(freeze="text"))
    held = {value for group in parameter_groups(model, TrainingSettings(freeze="text")) for value in group["params"]}
    assert held.isdisjoint(model.caption_encoder.parameters())
    assert held >= {value for value in model.audio_encoder.projection.parameters()}


def test_a_training_of_the_a2t_module_alone_moves_nothing_else(tiny_study, tmp_path):
    """As in Pic2Word; with a temperature that is not learned."""
    flags = ["--freeze=both", "--no-learn-temperature"]
    train.main(arguments(tiny_study, tmp_path, "composed", *flags))
    start = load_model(tiny_study.pretrained)
    torch.manual_seed(0)  # the seed of the run
    start.add_a2t()
    after = load_file(tmp_path / "model.safetensors")
    moved = {name for name, value in start.state_dict().items() if not torch.equal(after[name], value)}
    assert moved == {name for name in after if name.startswith("a2t.")}


def test_an_encoder_that_is_frozen_whole_has_no_spec_augment_and_no_dropout(tiny_study):
    model = load_model(tiny_study.pretrained)
    model.set_training_mode(encoder_regularisation=True)
    enter_training_mode(model, TrainingSettings(freeze="audio"))
    samples = torch.randn(2, model.window_frames) * 0.1
    with torch.no_grad():
        assert torch.equal(model.encode_audio(samples), model.encode_audio(samples))
        assert not torch.equal(model.encode_text(["a dog barks"]), model.encode_text(["a dog barks"]))
        enter_training_mode(model, TrainingSettings(freeze="audio", unfrozen_groups=1))
        assert not torch.equal(model.encode_audio(samples), model.encode_audio(samples))


DEPTHS = {
    "audio_encoder.projection.linear1.weight": 0,
    "audio_encoder.base.htsat.norm.bias": 0,
    "audio_encoder.base.htsat.layers.2.blocks.1.mlp.fc1.weight": 1,
    "audio_encoder.base.htsat.layers.1.downsample.reduction.weight": 3,
    "audio_encoder.base.htsat.layers.1.blocks.1.mlp.fc1.weight": 3,
    "audio_encoder.base.htsat.layers.0.blocks.0.attn.qkv.weight": 6,
    "audio_encoder.base.htsat.patch_embed.proj.weight": 7,
    "caption_encoder.projection.linear2.weight": 0,
    "caption_encoder.base.h.0.mlp.c_fc.weight": 1,
    "caption_encoder.base.wpe.weight": 2,
    "logit_scale": 0,
}


def test_the_first_step_moves_each_layer_by_its_learning_rate(tiny_study, tmp_path):
    """Adam's first step is the learning rate times the sign of the gradient; unused positions have none."""
    pairs = tiny_study.pairs("finetune", epochs=1, batch_size=24)
    train.main(arguments(tiny_study, tmp_path, "finetune", "--layer-decay=0.5", pairs=pairs))
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_study.pretrained, tmp_path))
    for name, depth in DEPTHS.items():
        moved = (after[name] - before[name]).abs()
        moved = moved[moved.any(dim=1)] if name.endswith("wpe.weight") else moved
        assert moved.median().item() == pytest.approx(0.001 * 0.5**depth, rel=0.02), name


def test_without_a_decay_the_optimizer_has_the_groups_of_the_paper(tiny_study):
    model = load_model(tiny_study.pretrained)
    model.add_a2t()
    groups = parameter_groups(model, TrainingSettings(objective="composed"))
    assert [group["lr"] for group in groups] == [1e-4, 1e-4]
    a2t = set(model.a2t.parameters())
    expected = [value for value in model.parameters() if value.requires_grad and value not in a2t]
    assert all(one is two for one, two in zip(groups[0]["params"], expected, strict=True))


@pytest.fixture
def trainer(tiny_study, tmp_path):
    """A trainer of a finetuning whose gradient may have a norm of 0.5, before its first step."""
    settings = TrainingSettings(max_gradient_norm=0.5)
    pairs, weights = tiny_study.pairs("finetune"), tiny_study.pretrained / "model.safetensors"
    origin = Origin.of("train", pairs, weights, settings, 0)
    job = Job(pairs=pairs, shards=tiny_study.shards, settings=settings, seed=0, origin=origin, out=tmp_path)
    return Trainer(load_model(tiny_study.pretrained), job, ALONE, RunOptions())


def norm_of(gradients):
    return sum(value.double().square().sum().item() for value in gradients) ** 0.5


def test_a_long_gradient_is_scaled_to_the_limit_and_its_norm_is_logged(tiny_study, trainer):
    batch = PairedBatches(tiny_study.pairs("finetune"), tiny_study.shards)[0]
    row = trainer.take_step(batch)
    model = save_gradients.model_of(tiny_study.pretrained, TrainingSettings())
    CompositionLoss(model, TrainingSettings())(batch)["loss"].backward()
    found = {name: value.grad for name, value in model.named_parameters()}
    norm = norm_of([found[name] for name, value in trainer.model.named_parameters() if value.grad is not None])
    assert norm > 0.5
    assert row["gradient_norm"].item() == pytest.approx(norm, rel=1e-5)
    for name, value in trainer.model.named_parameters():
        if value.grad is not None:
            torch.testing.assert_close(value.grad, found[name] * 0.5 / norm, rtol=1e-4, atol=1e-7, msg=name)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--freeze=both"], "freeze is both, and the objective finetune trains no a2t module, so there is nothing to"),
        (["--unfrozen-groups=1"], "unfrozen_groups is 1, but freeze is none"),
        (["--freeze=audio", "--batch-norm=batch"], "freeze is audio, but batch_norm is batch, which changes the audio"),
        (["--freeze=text", "--unfrozen-groups=3"], "the text encoder of mini has 3 layer groups, so none would be"),
    ],
)
def test_freezing_that_leaves_nothing_to_do_is_refused_before_the_first_step(tiny_study, tmp_path, flags, message):
    with pytest.raises(PipelineError, match=message):
        train.main(arguments(tiny_study, tmp_path, "finetune", *flags))
    assert not (tmp_path / "model.safetensors").exists()
