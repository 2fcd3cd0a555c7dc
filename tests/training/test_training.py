"""Training: the paper's terms, exact over processes, and the same weights to the bit after any kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import save_gradients
import torch
from safetensors.torch import load_file

from pipeline.errors import PipelineError
from pipeline.models import load_model
from pipeline.objectives import info_nce
from pipeline.stages import train
from pipeline.training.batches import PairedBatches
from pipeline.training.composition import PCM_SCALE, CompositionLoss
from pipeline.training.loop import SAVED_AND_STOPPED, learning_rate_factor
from pipeline.training.settings import TrainingSettings

OBJECTIVES = ["finetune", "composed", "concatenate"]
RATES = ["--learning-rate=0.001", "--a2t-learning-rate=0.001"]


def arguments(study, run, objective, *flags, pairs=None):
    return [
        "--pretrained", str(study.pretrained), "--pairs", str(pairs or study.pairs(objective)),
        "--shards", str(study.shards), "--seed", "0", "--out", str(run), "--objective", objective, *RATES, *flags,
    ]  # fmt: skip


def start(study, run, objective, *flags, processes=0, pairs=None):
    """The stage as a command: under torchrun with that many processes, or alone."""
    module = ["-m", "pipeline.stages.train"]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *module]
    arguments_of_stage = arguments(study, run, objective, *flags, pairs=pairs)
    return launch([*(launcher if processes else module), *arguments_of_stage])


def launch(words):
    """Python with these arguments, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process, status=0):
    output, _ = process.communicate(timeout=240)
    assert process.returncode == status, output
    return output


def assert_same_weights(first, second, tolerance=0.0):
    one, two = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=tolerance, atol=tolerance, msg=name)


@pytest.fixture(scope="module")
def unbroken(tiny_study, tmp_path_factory):
    """A composed training that nothing disturbed."""
    run = tmp_path_factory.mktemp("unbroken")
    train.main(arguments(tiny_study, run, "composed"))
    return run


def model_and_batch(study, objective):
    model = load_model(study.pretrained)
    torch.manual_seed(0)
    model.add_a2t(dropout=0.0)
    model.set_training_mode()
    return model, PairedBatches(study.pairs(objective), study.shards)[0]


def test_composed_is_equation_18_written_with_three_separate_passes(tiny_study):
    model, batch = model_and_batch(tiny_study, "composed")
    labeled, unlabeled = batch.labeled_BS * PCM_SCALE, batch.partner_BS * PCM_SCALE
    scale = model.logit_scale.exp()
    z_unlabel = model.encode_audio(unlabeled)
    z_a2t = model.a2t(z_unlabel)
    expected = {
        "info_nce": info_nce(model.encode_audio(labeled), model.encode_text(batch.captions), scale),
        "a2t": info_nce(z_unlabel, model.encode_text(["this sound is"] * 8, pseudo_tokens=z_a2t), scale),
        "composed": info_nce(
            model.encode_audio((labeled + unlabeled) / 2), model.encode_text(batch.captions, pseudo_tokens=z_a2t), scale
        ),
    }
    losses = CompositionLoss(model, TrainingSettings(objective="composed"))(batch)
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-4), name
    assert losses["loss"].item() == pytest.approx(sum(value.item() for value in expected.values()), rel=1e-4)


def test_concatenate_joins_both_captions_and_mixes_both_clips(tiny_study):
    model, batch = model_and_batch(tiny_study, "concatenate")
    settings = TrainingSettings(objective="concatenate", conjunction=" and ")
    mixed = (batch.labeled_BS * PCM_SCALE + batch.partner_BS * PCM_SCALE) / 2
    joined = [f"{one} and {two}" for one, two in zip(batch.captions, batch.partner_captions, strict=True)]
    expected = info_nce(model.encode_audio(mixed), model.encode_text(joined), model.logit_scale.exp())
    assert CompositionLoss(model, settings)(batch)["concatenate"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_detaching_keeps_the_composed_text_from_the_audio_encoder(tiny_study):
    model, batch = model_and_batch(tiny_study, "composed")
    gradients = []
    for detach in (False, True):
        model.zero_grad()
        CompositionLoss(model, TrainingSettings(objective="composed", detach_unlabeled=detach))(batch)[
            "loss"
        ].backward()
        gradients.append(model.audio_encoder["projection"].linear1.weight.grad.clone())
    assert not torch.allclose(gradients[0], gradients[1])


@pytest.mark.parametrize("term", ["info_nce", "a2t", "composed"])
def test_a_term_of_weight_zero_leaves_the_sum(tiny_study, term):
    model, batch = model_and_batch(tiny_study, "composed")
    whole = CompositionLoss(model, TrainingSettings(objective="composed"))(batch)
    without = CompositionLoss(model, TrainingSettings(objective="composed", **{f"{term}_weight": 0.0}))(batch)
    assert without["loss"].item() == pytest.approx(whole["loss"].item() - whole[term].item(), rel=1e-4)


def test_batches_are_the_same_on_one_process_and_on_four(tiny_study):
    pairs = tiny_study.pairs("composed")
    whole = PairedBatches(pairs, tiny_study.shards)
    parts = [PairedBatches(pairs, tiny_study.shards, rank, 4) for rank in range(4)]
    for step in range(len(whole)):
        batches = [part[step] for part in parts]
        assert [key for batch in batches for key in batch.keys] == whole[step].keys
        assert torch.equal(torch.cat([batch.labeled_BS for batch in batches]), whole[step].labeled_BS)
        assert torch.equal(torch.cat([batch.partner_BS for batch in batches]), whole[step].partner_BS)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_processes_have_the_loss_and_gradients_of_one(tiny_study, tmp_path, objective):
    inputs = [str(tiny_study.pretrained), str(tiny_study.pairs(objective)), str(tiny_study.shards), objective]
    save_gradients.main(*inputs, str(tmp_path / "one"))
    script = [str(Path(save_gradients.__file__)), *inputs, str(tmp_path / "two")]
    finish(launch(["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *script]))
    one, two = load_file(tmp_path / "one"), load_file(tmp_path / "two")
    assert one.keys() == two.keys() and len(one) > 100
    for name in one:
        torch.testing.assert_close(
            two[name], one[name], rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_a_training_on_two_processes_logs_the_losses_of_one(tiny_study, tmp_path):
    train.main(arguments(tiny_study, tmp_path / "one", "composed", "--a2t-dropout=0"))
    finish(start(tiny_study, tmp_path / "two", "composed", "--a2t-dropout=0", processes=2))
    one, two = (pq.read_table(tmp_path / name / "training.parquet")["loss"].to_numpy() for name in ("one", "two"))
    torch.testing.assert_close(torch.from_numpy(two), torch.from_numpy(one), rtol=1e-4, atol=1e-4)


def test_the_log_has_a_row_a_step_with_every_term(unbroken):
    table = pq.read_table(unbroken / "training.parquet")
    assert table["step"].to_pylist() == [0, 1, 2, 3, 4, 5]
    assert table["epoch"].to_pylist() == [0, 0, 0, 1, 1, 1]
    assert {"loss", "info_nce", "a2t", "composed", "learning_rate", "logit_scale"} <= set(table.column_names)
    assert table["learning_rate"][0].as_py() == pytest.approx(0.001)


def test_training_moves_the_encoders_and_the_a2t_module_but_not_batch_norm(tiny_study, unbroken):
    before, after = load_file(tiny_study.pretrained / "model.safetensors"), load_file(unbroken / "model.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("audio_encoder.base") for name in moved)
    assert any(name.startswith("caption_encoder.base") for name in moved)
    assert "logit_scale" in moved
    assert not any("bn0.running" in name for name in moved)
    assert load_model(unbroken).a2t is not None


@pytest.fixture(scope="module")
def long_pairs(tiny_study):
    """Pairs of enough steps that a training can be hit in the middle."""
    return tiny_study.pairs("composed", epochs=40)


def interrupt(study, run, pairs, signal_number):
    """Send a training a signal after its first checkpoint; its output and exit status."""
    process = start(study, run, "composed", "--steps-per-checkpoint=1", pairs=pairs)
    while not (run / "checkpoints" / "last.pt").exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    process.send_signal(signal_number)
    output, _ = process.communicate(timeout=60)
    assert not (run / "model.safetensors").exists(), "the training ended before the signal reached it"
    return output, process.returncode


@pytest.mark.parametrize(("signal_number", "status"), [(signal.SIGKILL, -9), (signal.SIGTERM, SAVED_AND_STOPPED)])
def test_a_killed_training_ends_with_the_weights_of_an_unbroken_one(
    tiny_study, tmp_path, long_pairs, signal_number, status
):
    train.main(arguments(tiny_study, tmp_path / "unbroken", "composed", pairs=long_pairs))
    output, found = interrupt(tiny_study, tmp_path / "killed", long_pairs, signal_number)
    assert found == status, output
    assert "resuming from" in finish(start(tiny_study, tmp_path / "killed", "composed", pairs=long_pairs))
    assert_same_weights(tmp_path / "unbroken", tmp_path / "killed")
    assert not (tmp_path / "killed" / "checkpoints").exists()
    logs = [pq.read_table(tmp_path / name / "training.parquet") for name in ("unbroken", "killed")]
    assert logs[0].equals(logs[1])


def test_a_checkpoint_of_other_settings_is_refused_by_name(tiny_study, tmp_path, long_pairs):
    interrupt(tiny_study, tmp_path, long_pairs, signal.SIGKILL)
    with pytest.raises(PipelineError, match=r"another training \(different: settings\); delete .*checkpoints"):
        train.main(arguments(tiny_study, tmp_path, "composed", "--a2t-dropout=0.2", pairs=long_pairs))


def test_pairs_of_another_objective_are_refused(tiny_study, tmp_path):
    with pytest.raises(PipelineError, match="pairs hold none, the objective `composed` needs unlabeled partners"):
        train.main(arguments(tiny_study, tmp_path, "composed", pairs=tiny_study.pairs("finetune")))


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_clips(tiny_study, tmp_path):
    with pytest.raises(PipelineError, match=r"step \d: the loss is (nan|inf).*clips of its batch: labeled_train"):
        train.main(arguments(tiny_study, tmp_path, "finetune", "--learning-rate=1e30"))
    assert not (tmp_path / "model.safetensors").exists()


def test_uneven_shares_are_refused(tiny_study):
    with pytest.raises(PipelineError, match="batches of 8 cannot be shared by 3 processes"):
        PairedBatches(tiny_study.pairs("finetune"), tiny_study.shards, 0, 3)


def test_learning_rate_warms_up_and_falls_to_zero_as_a_cosine():
    assert [learning_rate_factor(step, 10, 0) for step in (0, 5, 10)] == pytest.approx([1, 0.5, 0])
    assert [learning_rate_factor(step, 10, 4) for step in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert learning_rate_factor(4, 10, 4) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_gpu_in_bfloat16_starts_from_the_losses_of_the_cpu(tiny_study, tmp_path, objective):
    """The first step's loss within bfloat16's two to three digits, and the training ends."""
    train.main(arguments(tiny_study, tmp_path / "cpu", objective, "--device=cpu", "--a2t-dropout=0"))
    train.main(arguments(tiny_study, tmp_path / "gpu", objective, "--device=cuda", "--a2t-dropout=0"))
    cpu, gpu = (pq.read_table(tmp_path / name / "training.parquet")["loss"][0].as_py() for name in ("cpu", "gpu"))
    assert gpu == pytest.approx(cpu, rel=2e-2)
    assert (tmp_path / "gpu" / "model.safetensors").exists()
