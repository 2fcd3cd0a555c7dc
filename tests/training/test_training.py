"""Training: the paper's terms, exact over processes, and the same weights to the bit after any kill."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from pipeline.data.leaks import leaked_path
from pipeline.data.pairs import NO_CAPTION, read_facts
from pipeline.data.shards.reader import open_shards
from pipeline.errors import PipelineError
from pipeline.files import read_json
from pipeline.models import load_model
from pipeline.stages import pair_clips, train
from pipeline.training.batches import PairedBatches
from pipeline.training.composition import CompositionLoss
from pipeline.training.inputs import PCM_SCALE
from pipeline.training.losses import info_nce
from pipeline.training.settings import TrainingSettings
from pipeline.training.trainer import Trainer, learning_rate_factor
from tests.forks import Forked

OBJECTIVES = ["finetune", "composed", "concatenate"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
EXACT = ["--a2t-dropout=0", "--learning-rate=1e-4"]
"""No dropout, which each process draws for itself; at 1e-3 the losses stand at chance after a few steps."""
IS_ROOT = os.geteuid() == 0
KILL_IN_STEP = str(Path(__file__).with_name("kill_in_step.py"))
RATES = ["--learning-rate=0.001", "--a2t-learning-rate=0.001"]


def arguments(study, run, objective, *flags, pairs=None):
    return [
        "--pretrained", str(study.pretrained), "--pairs", str(pairs or study.pairs(objective)),
        "--shards", str(study.shards), "--seed", "0", "--out", str(run), "--objective", objective, *RATES, *flags,
    ]  # fmt: skip


def launch(words, *, start_new_session=False, fresh=False, **variables):
    """Python with these arguments, in a process of its own: a fork of this one, or a fresh interpreter."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1", **variables}
    start = subprocess.Popen if fresh else Forked
    return start(
        [sys.executable, *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=start_new_session,
    )  # fmt: skip


def finish(process, status=0):
    output, _ = process.communicate(timeout=240)
    assert process.returncode == status, output
    return output


def assert_same_training(unbroken, resumed):
    """Equal weights and logs, to the bit, and no checkpoint left."""
    assert_same_weights(unbroken, resumed)
    one, two = (pq.read_table(run / "training.parquet") for run in (unbroken, resumed))
    assert one.equals(two)
    assert not (resumed / "checkpoints").exists()


def assert_same_weights(first, second, tolerance=0.0):
    one, two = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=tolerance, atol=tolerance, msg=name)


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
        gradients.append(model.audio_encoder.projection.linear1.weight.grad.clone())
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


def test_a_training_pads_short_clips_where_its_pairs_say_so_and_its_model_keeps_that_and_the_channels(
    tiny_study, composed, tmp_path
):
    pairs, default = tmp_path / "pairs.parquet", tiny_study.pairs("composed")
    manifests = ["--labeled", str(tiny_study.manifest("labeled")), "--unlabeled", str(tiny_study.manifest("unlabeled"))]
    plan = ["--backbone=mini", "--epochs=2", "--batch-size=8", "--seed=0", "--short-clips=pad"]
    pair_clips.main([*manifests, *plan, "--pairs", str(pairs), "--leaked", str(leaked_path(pairs))])
    assert pq.read_table(pairs).equals(pq.read_table(default)), "the same is drawn"
    assert read_facts(pairs) == {**read_facts(default), "short_clips": "pad"}
    padded, repeated = PairedBatches(pairs, tiny_study.shards)[0], PairedBatches(default, tiny_study.shards)[0]
    frames = {key: reader.frames(key) for reader in readers(tiny_study) for key in reader.keys}
    for keys, own, other in (
        (padded.keys, padded.labeled_BS, repeated.labeled_BS),
        (padded.partner_keys, padded.partner_BS, repeated.partner_BS),
    ):
        assert any(frames[key] < 40_960 for key in keys)
        for slot, key in enumerate(keys):
            heard = min(frames[key], 40_960)
            assert torch.equal(own[slot, :heard], other[slot, :heard]) and not own[slot, heard:].any()
    shards = shutil.copytree(tiny_study.shards, tmp_path / "shards")
    for path in shards.rglob("manifest.json"):
        path.write_text(json.dumps({**read_json(path), "channels": "first"}))
    train.main([*arguments(tiny_study, tmp_path / "run", "composed", pairs=pairs), "--shards", str(shards)])
    kept = [(model.short_clips, model.channels) for model in map(load_model, (tmp_path / "run", composed))]
    assert kept == [("pad", "first"), ("repeat", "mean")]
    losses = [pq.read_table(run / "training.parquet")["loss"][0].as_py() for run in (tmp_path / "run", composed)]
    assert abs(losses[0] - losses[1]) > 1e-4


@pytest.mark.parametrize("flags", [(), ("--micro-batch=3",)])
def test_a_fixed_temperature_stays_the_checkpoints_to_the_bit_and_costs_the_optimizer_nothing(
    tiny_study, composed, tmp_path, monkeypatch, flags
):
    """Also against weight decay and a bound below it, and in a training that goes on."""
    kept = "--no-learn-temperature", "--weight-decay=0.5", "--max-logit-scale=2", *flags
    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(Trainer, "take_step", stopped_in_step(2))
        train.main(arguments(tiny_study, tmp_path, "composed", *kept))
    state = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)
    learnable = [name for name, value in load_model(composed).named_parameters() if value.requires_grad]
    assert len(state["optimizer"]["state"]) == len(learnable) - 1
    train.main(arguments(tiny_study, tmp_path, "composed", *kept))
    own, start, learned = (
        load_file(folder / "model.safetensors")["logit_scale"] for folder in (tmp_path, tiny_study.pretrained, composed)
    )
    assert torch.equal(own, start) and not torch.equal(learned, start)
    assert set(pq.read_table(tmp_path / "training.parquet")["logit_scale"].to_pylist()) == {start.exp().item()}


def stopped_in_step(step):
    """The trainer's method, in which the training is asked to stop at a step."""
    take_step = Trainer.take_step

    def stopped(trainer, batch):
        if trainer.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return take_step(trainer, batch)

    return stopped


def readers(study):
    return [open_shards(study.shards / dataset / "train") for dataset in ("labeled", "unlabeled")]


def test_batches_hold_what_the_pairs_and_the_shards_say(tiny_study):
    """Read the long way round: row by row of the file, key by key of the readers."""
    for objective in [*OBJECTIVES, "mostly_labeled", "two_partners"]:
        pairs = tiny_study.pairs(objective)
        labeled, unlabeled = (open_shards(tiny_study.manifest(name).parent) for name in ("labeled", "unlabeled"))
        rows = iter(pq.read_table(pairs).to_pylist())
        batches = PairedBatches(pairs, tiny_study.shards)
        for batch in (batches[step] for step in range(len(batches))):
            for slot in range(8):
                row = next(rows)
                assert batch.keys[slot] == row["labeled_key"]
                assert batch.captions[slot] == labeled.captions(row["labeled_key"])[row["caption"]]
                window = labeled.read_window(row["labeled_key"], row["labeled_start"], 40_960)
                assert (batch.labeled_BS[slot].numpy() == window).all()
                if row["partner_key"] is None:
                    assert batch.partner_BS is None
                    continue
                reader = unlabeled if row["partner_caption"] == NO_CAPTION else labeled
                window = reader.read_window(row["partner_key"], row["partner_start"], 40_960)
                assert (batch.partner_BS[slot].numpy() == window).all()
                if reader is labeled:
                    caption = labeled.captions(row["partner_key"])[row["partner_caption"]]
                    assert batch.partner_captions[slot] == caption
                else:
                    assert batch.partner_captions is None or batch.partner_captions[slot] is None
                if objective == "two_partners":
                    window = labeled.read_window(row["second_key"], row["second_start"], 40_960)
                    assert (batch.second_BS[slot].numpy() == window).all()
                    caption = labeled.captions(row["second_key"])[row["second_caption"]]
                    assert batch.second_captions[slot] == caption
        assert next(rows, None) is None


def test_memory_does_not_grow_with_epochs(tiny_study):
    """Objects that Python tracks, and memory that numpy and Python hold, after 20 and after 40 epochs."""
    batches = PairedBatches(tiny_study.pairs("composed", epochs=40), tiny_study.shards)
    tracemalloc.start()
    held = []
    for step in range(len(batches)):
        batches[step]
        if step in (len(batches) // 2, len(batches) - 1):
            gc.collect()
            held.append((len(gc.get_objects()), tracemalloc.get_traced_memory()[0]))
    tracemalloc.stop()
    assert held[1][0] - held[0][0] < 100 and held[1][1] - held[0][1] < 20_000


def test_the_log_has_a_row_a_step_with_every_term(composed):
    table = pq.read_table(composed / "training.parquet")
    assert table["step"].to_pylist() == [0, 1, 2, 3, 4, 5]
    assert table["epoch"].to_pylist() == [0, 0, 0, 1, 1, 1]
    assert {"loss", "info_nce", "a2t", "composed", "learning_rate", "logit_scale"} <= set(table.column_names)
    assert table["learning_rate"][0].as_py() == pytest.approx(0.001)


def test_training_moves_the_encoders_and_the_a2t_module_but_not_batch_norm(tiny_study, composed):
    before, after = load_file(tiny_study.pretrained / "model.safetensors"), load_file(composed / "model.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("audio_encoder.base") for name in moved)
    assert any(name.startswith("caption_encoder.base") for name in moved)
    assert "logit_scale" in moved
    assert not any("bn0.running" in name for name in moved)
    assert load_model(composed).a2t is not None


def test_a_training_that_is_killed_in_a_step_ends_with_the_weights_of_an_unbroken_one(tiny_study, tmp_path, composed):
    words = arguments(tiny_study, tmp_path, "composed", "--steps-per-checkpoint=2")
    finish(launch([KILL_IN_STEP, "SIGKILL", "3", *words]), -signal.SIGKILL)
    assert torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)["step"] == 2
    train.main(words)
    assert_same_training(composed, tmp_path)


def test_a_training_that_stops_after_sigterm_ends_with_the_weights_of_an_unbroken_one(
    tiny_study, tmp_path, composed, monkeypatch
):
    words = arguments(tiny_study, tmp_path, "composed")
    with monkeypatch.context() as patched, pytest.raises(SystemExit) as stopped:
        patched.setattr(Trainer, "take_step", stopped_in_step(3))
        train.main(words)
    assert stopped.value.code == 128 + signal.SIGTERM
    train.main(words)
    assert_same_training(composed, tmp_path)


KILLED_IN_THE_SAVE = """
import os, signal, sys, torch
from pipeline.stages import train

saves, save = [], torch.save

def save_half(state, path):
    saves.append(path)
    save(state, path)
    if len(saves) == 3:
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

torch.save = save_half
train.main(sys.argv[1:])
"""


def test_a_kill_while_the_checkpoint_is_written_costs_no_more_than_that_checkpoint(tiny_study, tmp_path, composed):
    process = launch(
        ["-c", KILLED_IN_THE_SAVE, *arguments(tiny_study, tmp_path, "composed", "--steps-per-checkpoint=1")]
    )
    output, _ = process.communicate(timeout=240)
    assert process.returncode == -signal.SIGKILL, output
    checkpoints = tmp_path / "checkpoints"
    assert torch.load(checkpoints / "last.pt", weights_only=True)["step"] == 2
    assert len(list(checkpoints.glob("*last.pt*"))) == 3, "half a checkpoint lies beside the whole one"
    train.main(arguments(tiny_study, tmp_path, "composed"))
    assert_same_weights(composed, tmp_path)
    assert not checkpoints.exists()


@pytest.fixture(scope="module")
def killed_on_two(tiny_study, tmp_path_factory):
    """A training of which one process of two was killed in its fourth step."""
    run = tmp_path_factory.mktemp("killed")
    words = arguments(tiny_study, run, "composed", *EXACT, "--steps-per-checkpoint=2")
    finish(launch([*TORCHRUN, KILL_IN_STEP, "SIGKILL", "3", *words]), 1)
    assert not (run / "model.safetensors").exists()
    return run


def losses_of(run):
    return torch.tensor(pq.read_table(run / "training.parquet")["loss"].to_pylist())


def test_two_processes_have_the_losses_of_one(on_one_process, on_two_processes):
    assert len(losses_of(on_one_process)) == 6
    torch.testing.assert_close(losses_of(on_two_processes), losses_of(on_one_process), rtol=1e-5, atol=0)


def test_a_training_of_which_a_process_was_killed_goes_on_to_the_weights_of_an_unbroken_one(
    tiny_study, tmp_path, killed_on_two, on_two_processes
):
    run = shutil.copytree(killed_on_two, tmp_path / "run")
    words = arguments(tiny_study, run, "composed", *EXACT)
    assert "resuming from" in finish(launch([*TORCHRUN, "-m", "pipeline.stages.train", *words]))
    assert_same_weights(on_two_processes, run)


def test_a_training_of_two_processes_goes_on_with_one(tiny_study, tmp_path, killed_on_two, on_one_process):
    run = shutil.copytree(killed_on_two, tmp_path / "run")
    train.main(arguments(tiny_study, run, "composed", *EXACT))
    torch.testing.assert_close(losses_of(run), losses_of(on_one_process), rtol=1e-5, atol=0)


def test_a_composed_run_is_finetuned_on_two_processes_without_its_a2t_module(stopped_on_two):
    names = torch.load(stopped_on_two.checkpoint, weights_only=True)["model"]
    assert names and not any(name.startswith("a2t") for name in names)


def test_pairs_of_another_objective_are_refused(tiny_study, tmp_path):
    with pytest.raises(PipelineError, match="pairs hold none, the objective `composed` needs unlabeled partners"):
        train.main(arguments(tiny_study, tmp_path, "composed", pairs=tiny_study.pairs("finetune")))


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_clips(tiny_study, tmp_path):
    with pytest.raises(
        PipelineError, match=r"step 1: the loss is (nan|inf).*clips of its batch: labeled_train"
    ) as error:
        train.main(arguments(tiny_study, tmp_path, "composed", "--learning-rate=1e30"))
    batch = PairedBatches(tiny_study.pairs("composed"), tiny_study.shards)[1]
    assert str(error.value).split("clips of its batch: ")[1].split(", ") == [*batch.keys, *batch.partner_keys]
    assert not (tmp_path / "model.safetensors").exists()


def test_the_checkpoint_kept_by_a_training_that_diverges_has_finite_weights(tiny_study, tmp_path):
    flags = ["--learning-rate=1e30", "--steps-per-checkpoint=1"]
    with pytest.raises(PipelineError, match=r"step \d: the loss is (nan|inf).*last.pt is kept"):
        train.main(arguments(tiny_study, tmp_path, "finetune", *flags))
    state = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)
    assert all(value.isfinite().all() for value in state["model"].values())


@pytest.mark.parametrize("is_last", [False, True])
def test_weights_that_a_gradient_spoiled_are_neither_kept_nor_saved(tiny_study, tmp_path, is_last):
    """The loss of the step is finite; only the weights after it are not."""
    pairs = tiny_study.pairs("finetune", epochs=1, batch_size=24 if is_last else 8)
    flags = ["--learning-rate=1e39", "--steps-per-checkpoint=1"]
    with pytest.raises(PipelineError, match=r"step 0: .* is not finite after it; there is no checkpoint yet"):
        train.main(arguments(tiny_study, tmp_path, "finetune", *flags, pairs=pairs))
    assert not (tmp_path / "checkpoints").exists() and not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize(("rate", "outcome"), [("1e30", "step 1: the loss is nan"), ("1e-4", "finished")])
def test_a_candidate_of_the_sweep_that_diverges_says_so_and_does_not_fail(tiny_study, tmp_path, rate, outcome):
    train.main(
        arguments(tiny_study, tmp_path, "finetune", f"--learning-rate={rate}", f"--outcome={tmp_path / 'outcome.txt'}")
    )
    assert (tmp_path / "outcome.txt").read_text().startswith(outcome)
    steps = pq.read_table(tmp_path / "training.parquet")["step"].to_pylist()
    assert steps == (list(range(6)) if outcome == "finished" else [0, 1])
    written = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert written >= {"model.safetensors", "model.json", "tokenizer.json", "learning_curves.svg", "training.json"}
    assert read_json(tmp_path / "training.json")["outcome"].startswith(outcome)
    assert not (tmp_path / "checkpoints").exists()


def test_a_candidate_whose_last_step_leaves_weights_too_large_to_embed_with_has_diverged(tiny_study, tmp_path):
    pairs, file = tiny_study.pairs("finetune", epochs=1, batch_size=24), tmp_path / "outcome.txt"
    flags = ["--learning-rate=1e30", f"--outcome={file}"]
    train.main(arguments(tiny_study, tmp_path, "finetune", *flags, pairs=pairs))
    assert file.read_text().startswith("step 0: the loss after it is nan")


def test_uneven_shares_are_refused(tiny_study):
    with pytest.raises(PipelineError, match="batches of 8 cannot be divided equally among 3 processes"):
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
