"""The moving average of the weights, and the average with the pretrained weights."""

from __future__ import annotations

import csv
import shutil

import pytest
import torch
from safetensors.torch import load_file
from test_training import arguments

from pipeline.errors import PipelineError
from pipeline.models import load_model, mini, save_model
from pipeline.results.export import export_run
from pipeline.stages import average_weights, train
from pipeline.training.averaging import WeightAverage
from pipeline.training.trainer import Trainer


def test_the_average_is_the_sum_of_all_weights_with_falling_shares():
    layer = torch.nn.Linear(2, 2)
    average = WeightAverage(layer, 0.25)
    weights, shares = [layer.weight.detach().double().clone()], [1.0]
    for step in range(6):
        torch.nn.init.normal_(layer.weight)
        average.update(step)
        decay = min(0.25, [1 / 10, 2 / 11, 3 / 12][min(step, 2)])
        shares = [share * decay for share in shares] + [1 - decay]
        weights.append(layer.weight.detach().double().clone())
    expected = sum(share * value for share, value in zip(shares, weights, strict=True))
    torch.testing.assert_close(average.state_dict()["weight"].double(), expected, rtol=1e-6, atol=1e-6)


def test_the_average_is_in_place_inside_the_block_alone():
    layer = torch.nn.Linear(2, 2)
    average = WeightAverage(layer, 0.5)
    torch.nn.init.normal_(layer.weight)
    average.update(0)
    own, averaged = layer.weight.detach().clone(), average.state_dict()["weight"].clone()
    with average.in_place():
        assert torch.equal(layer.weight, averaged)
    assert torch.equal(layer.weight, own) and torch.equal(average.state_dict()["weight"], averaged)


def test_a_training_writes_the_average_of_its_steps(tiny_study, tmp_path, monkeypatch):
    """Computed from the weights after each step of a training without an average."""
    name, seen = "audio_encoder.projection.linear1.weight", []
    take_step = Trainer.take_step

    def recorded(trainer, batch):
        row = take_step(trainer, batch)
        seen.append(dict(trainer.model.named_parameters())[name].detach().double().clone())
        return row

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "take_step", recorded)
        train.main(arguments(tiny_study, tmp_path / "plain", "composed"))
    train.main(arguments(tiny_study, tmp_path / "averaged", "composed", "--average-decay=0.4"))
    expected = load_file(tiny_study.pretrained / "model.safetensors")[name].double()
    for step, weights in enumerate(seen):
        decay = min(0.4, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weights
    found = load_file(tmp_path / "averaged" / "model.safetensors")[name]
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-7)
    assert not torch.equal(found, load_file(tmp_path / "plain" / "model.safetensors")[name])


# --- with the pretrained weights


def average(study, trained, out, *flags):
    average_weights.main(
        ["--pretrained", str(study.pretrained), "--trained", str(trained), "--device=cpu", "--out", str(out)]
        + ["--validation", str(study.shards / "labeled" / "train"), *flags]
    )


@pytest.fixture(scope="module")
def averaged_run(tiny_study, composed, tmp_path_factory):
    """results/averaged/composed/seed0 of a composed run."""
    out = tmp_path_factory.mktemp("results") / "averaged" / "composed" / "seed0"
    average(tiny_study, composed, out)
    return out


def figures_of(run):
    with (run / "validation.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_chosen_average_has_the_highest_validation_figure(averaged_run):
    rows = figures_of(averaged_run)
    assert [float(row["alpha"]) for row in rows] == pytest.approx([tenth / 10 for tenth in range(11)])
    figures = [float(row["validation_mAP10"]) for row in rows]
    assert [row["chosen"] for row in rows].index("True") == figures.index(max(figures))
    assert [row["chosen"] for row in rows].count("True") == 1


def test_the_weights_are_those_of_the_chosen_share(tiny_study, composed, averaged_run):
    alpha = next(float(row["alpha"]) for row in figures_of(averaged_run) if row["chosen"] == "True")
    first, last, found = (
        load_file(folder / "model.safetensors") for folder in (tiny_study.pretrained, composed, averaged_run)
    )
    assert found.keys() == last.keys()
    for name, value in found.items():
        expected = last[name].double()
        if name in first and value.is_floating_point():
            expected = (1 - alpha) * first[name].double() + alpha * expected
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_at_the_ends_the_average_is_either_model_to_the_bit(tiny_study, composed, alpha):
    ends = [load_file(folder / "model.safetensors") for folder in (tiny_study.pretrained, composed)]
    found = average_weights.averaged(*ends, alpha)
    assert all(torch.equal(found[name], value) for name, value in ends[int(alpha)].items())


def test_an_averaged_run_is_loaded_and_exported_like_any_run(averaged_run, tmp_path):
    assert load_model(averaged_run).a2t is not None
    assert {path.name for path in export_run(averaged_run, tmp_path / "export")} >= {"model.safetensors", "README.md"}
    assert "plus the rest times the pretrained ones (WiSE-FT)" in (tmp_path / "export" / "README.md").read_text()


def test_the_weights_before_the_average_are_not_exported_with_its_figures(composed, averaged_run, tmp_path):
    trained = shutil.copytree(composed, averaged_run.parents[2] / "runs" / "composed" / "seed0")
    with pytest.raises(PipelineError, match=r"are those of the average in .*averaged/composed/seed0; export that fold"):
        export_run(trained, tmp_path / "export")


def test_the_same_average_again_is_kept(tiny_study, composed, averaged_run, monkeypatch):
    before = (averaged_run / "model.safetensors").read_bytes()
    monkeypatch.setattr(average_weights, "write_average", lambda *_: pytest.fail("was made again"))
    average(tiny_study, composed, averaged_run)
    assert (averaged_run / "model.safetensors").read_bytes() == before


def test_a_model_of_another_vocabulary_is_refused(tiny_study, composed, tmp_path):
    save_model(mini.build(mini.byte_tokenizer()), tmp_path / "other")
    with pytest.raises(PipelineError, match=r"composed\w*: its model has another shape or vocabulary than that of"):
        average_weights.main(
            ["--pretrained", str(tmp_path / "other"), "--trained", str(composed), "--out", str(tmp_path / "out")]
            + ["--validation", str(tiny_study.shards / "labeled" / "train")]
        )
    assert not (tmp_path / "out").exists()
