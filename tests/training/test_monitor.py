"""What is seen and kept of a training: event files, learning curves, training.json."""

from __future__ import annotations

import json
import signal
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_training import arguments, stopped_in_step

from pipeline.data.parquet import content_sha256
from pipeline.files import read_json, sha256_of
from pipeline.models import load_model
from pipeline.results.plots import training_curves
from pipeline.stages import train
from pipeline.training.batches import PairedBatches
from pipeline.training.composition import CompositionLoss
from pipeline.training.distributed import Processes
from pipeline.training.micro_batches import micro_batches
from pipeline.training.monitor import Monitor, git_state
from pipeline.training.settings import TrainingSettings
from pipeline.training.throughput import flop_counter, peak_flops, utilization
from pipeline.training.trainer import Trainer

SVG = "{http://www.w3.org/2000/svg}"


def scalars(run):
    """Steps and values of everything in a run's event files, as TensorBoard shows them."""
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def account(run):
    return read_json(run / "training.json")


def test_tensorboard_shows_every_step_of_the_log(composed):
    shown, log = scalars(composed), pq.read_table(composed / "training.parquet")
    for tag in ("loss/loss", "loss/composed", "schedule/a2t_learning_rate", "schedule/logit_scale"):
        steps, values = zip(*shown[tag], strict=True)
        assert list(steps) == log["step"].to_pylist(), tag
        assert list(values) == pytest.approx(log[tag.split("/")[1]].to_pylist(), rel=1e-6), tag
    assert all(value > 0 for _, value in shown["machine/clips_per_s"])


def test_training_json_says_what_it_was_made_from_on_what_and_how_fast(tiny_study, composed):
    found = account(composed)
    assert found["versions"]["torch"] == torch.__version__
    assert found["settings"] == json.loads(pq.read_schema(composed / "training.parquet").metadata[b"settings"])
    assert found["made_from"]["starting_weights_sha256"] == sha256_of(tiny_study.pretrained / "model.safetensors")
    assert found["made_from"]["pairs_sha256"] == content_sha256(tiny_study.pairs("composed"))
    assert (found["steps"], found["steps_taken"], len(found["parts"])) == (6, 6, 1)
    assert found["clips_per_s"] == pytest.approx(6 * 8 / found["wall_s"])
    assert found["flops_per_s"] == pytest.approx(6 * found["flops_a_step"] / found["wall_s"])
    assert found["gpu_s"] == 0 and found["model_flops_utilization"] is None and found["hardware"]["gpus"] == []


def test_operations_of_a_step_are_those_of_all_processes(tiny_study, composed, on_two_processes):
    """Each encodes its share, padded to the longest caption of it, and compares the whole batch."""

    def operations(*batches):
        model = load_model(composed)
        model.set_training_mode()
        objective = CompositionLoss(model, TrainingSettings(objective="composed"))
        with flop_counter() as counter:
            for batch in batches:
                objective(batch)["loss"].backward()
        return counter.get_total_flops()

    def compared(slots):
        return 3 * 3 * 2 * slots * slots * 128  # three terms, a product forward and two backward, 128 dimensions

    found, pairs = account(on_two_processes), tiny_study.pairs("composed")
    assert account(composed)["flops_a_step"] == operations(PairedBatches(pairs, tiny_study.shards)[0])
    shares = [PairedBatches(pairs, tiny_study.shards, rank, 2)[0] for rank in range(2)]
    assert found["flops_a_step"] == operations(*shares) + 2 * (compared(8) - compared(4))
    assert found["flops_per_s"] == pytest.approx(6 * found["flops_a_step"] / found["wall_s"])
    assert found["clips_per_s"] == pytest.approx(6 * 8 / found["wall_s"]) and found["hardware"]["processes"] == 2


def test_what_micro_batches_encode_twice_is_the_hardwares_and_counts_once_as_the_models(tiny_study, composed, tmp_path):
    model = load_model(composed)
    model.set_training_mode()
    objective = CompositionLoss(model, TrainingSettings(objective="composed"))
    batch = PairedBatches(tiny_study.pairs("composed"), tiny_study.shards)[0]
    with flop_counter() as once:
        embeddings = torch.cat([objective.embed(part) for part in micro_batches(batch, 3)])
        objective.compare(embeddings, batch)["loss"].backward()
    with flop_counter() as again, torch.no_grad():
        for part in micro_batches(batch, 3):
            objective.embed(part)
    train.main(arguments(tiny_study, tmp_path, "composed", "--micro-batch=3"))
    found, whole = account(tmp_path), account(composed)
    assert found["flops_a_step"] == once.get_total_flops()
    assert (
        found["hardware_flops_a_step"] - found["flops_a_step"] == again.get_total_flops() > 0.2 * found["flops_a_step"]
    )
    assert found["flops_per_s"] == pytest.approx(6 * found["flops_a_step"] / found["wall_s"])
    assert whole["hardware_flops_a_step"] == whole["flops_a_step"]


def test_operations_done_twice_are_told_apart_in_step_0_alone(tmp_path):
    processes = Processes(rank=0, count=1, device=torch.device("cpu"))
    monitor = Monitor(tmp_path, steps=1, first_step=0, batch_size=8, processes=processes)
    first, second = torch.ones(2, 3), torch.ones(3, 5)
    with monitor.counting():
        with monitor.repeating():
            first @ second
        first @ second
    with monitor.repeating():
        first @ second  # of a later step
    assert (monitor.flops, monitor.hardware_flops) == (2 * 2 * 3 * 5, 2 * 2 * 2 * 3 * 5)


def test_utilization_is_of_the_peak_of_all_gpus():
    assert utilization(989e12, ["NVIDIA H200"] * 2) == 0.5
    assert utilization(1e12, []) is None and utilization(1e12, ["NVIDIA GeForce RTX 3060"]) is None


def test_a_stopped_training_accounts_for_both_parts_and_shows_no_step_twice(
    tiny_study, composed, tmp_path, monkeypatch
):
    with monkeypatch.context() as patched, pytest.raises(SystemExit) as stopped:
        patched.setattr(Trainer, "take_step", stopped_in_step(3))
        train.main(arguments(tiny_study, tmp_path, "composed"))
    assert stopped.value.code == 128 + signal.SIGTERM
    time.sleep(1 - time.time() % 1)  # of two files of one second, TensorBoard may read the later one first
    train.main(arguments(tiny_study, tmp_path, "composed"))
    found = account(tmp_path)
    first, second = found["parts"]
    assert [first["first_step"], first["last_step"], second["first_step"], second["last_step"]] == [0, 3, 4, 5]
    assert found["wall_s"] == pytest.approx(first["wall_s"] + second["wall_s"]) and first["wall_s"] > 0
    for name in ("flops_a_step", "hardware_flops_a_step"):
        assert found[name] == account(composed)[name]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    assert [step for step, _ in scalars(tmp_path)["loss/loss"]] == list(range(6))


def test_steps_lost_by_a_kill_count_as_time_and_are_hidden_once_they_are_taken_again(tmp_path):
    processes = Processes(rank=0, count=1, device=torch.device("cpu"))

    def part(first_step):
        return Monitor(tmp_path, steps=6, first_step=first_step, batch_size=8, processes=processes)

    def rows(first, end):
        return [{"step": step, "epoch": 0, "loss": float(first), "learning_rate": 0.1} for step in range(first, end)]

    killed = part(0)
    killed.report(rows(0, 5))
    killed.note()  # then the kill: the last checkpoint is that of step 2
    # TensorBoard sorts event files by their names: the second, the host, the process, a counter ("10" before "9").
    # A real continuation is another process and starts seconds later.
    time.sleep(1)
    again = part(2)
    again.report(rows(2, 6))
    assert [(part["first_step"], part["last_step"]) for part in again.account()["parts"]] == [(0, 4), (2, 5)]
    again.note()
    shown = scalars(tmp_path)["loss/loss"]
    assert shown == [(0, 0.0), (1, 0.0), (2, 2.0), (3, 2.0), (4, 2.0), (5, 2.0)]


def test_a_new_training_shows_nothing_of_the_one_before(tiny_study, tmp_path):
    for _ in range(2):
        train.main(arguments(tiny_study, tmp_path, "finetune"))
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def test_learning_curves_are_the_same_bytes_for_the_same_training(tiny_study, composed, tmp_path):
    train.main(arguments(tiny_study, tmp_path, "composed"))
    name = "learning_curves.svg"
    assert (tmp_path / name).read_bytes() == (composed / name).read_bytes()


def test_learning_curves_draw_every_quantity_and_stay_light_however_long(composed):
    log = pq.read_table(composed / "training.parquet")
    noise = np.random.default_rng(0).normal(size=20_000)
    long = pa.table({name: noise for name in log.column_names})
    for table in (log, long):
        text = training_curves(table, "a <title> & $more")
        words = {element.text for element in ElementTree.fromstring(text).iter(f"{SVG}text")}
        assert words >= set(log.column_names) - {"epoch"} and "a <title> & $more" in words
        assert len(text) < 120_000


def test_learning_curves_of_an_empty_log_are_drawn_empty():
    ElementTree.fromstring(training_curves(pa.table({}), "diverged in its first step"))


def test_operations_are_counted_with_attention_forward_and_backward():
    query = torch.randn(2, 3, 5, 8, requires_grad=True)
    weight = torch.randn(8, 4, requires_grad=True)
    with flop_counter() as counter:
        attended = torch.nn.functional.scaled_dot_product_attention(query, query, query)
        (attended @ weight).sum().backward()
    attention = 2 * (2 * 3) * 5 * 5 * 8  # one product of (5, 8) and (8, 5), six heads
    linear = 2 * (2 * 3 * 5) * 8 * 4
    # Attention: two products forward, five backward (the scores are computed anew); linear: one and two.
    assert counter.get_total_flops() == 7 * attention + 3 * linear


def test_peaks_are_known_by_the_names_that_drivers_give():
    assert peak_flops("NVIDIA H100 80GB HBM3") == peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12 and peak_flops("NVIDIA H100 NVL") == 835e12
    assert peak_flops("NVIDIA H100 80GB HBM3 MIG 1g.10gb") is None
    assert peak_flops("NVIDIA L40S") == 362e12 and peak_flops("NVIDIA L4") == 121e12
    assert peak_flops("NVIDIA GeForce RTX 3060") is None


def test_git_state_names_the_commit_and_tells_whether_files_differ(tmp_path):
    assert git_state(tmp_path) is None
    root = Path(__file__).parents[2]
    words = ["git", "-C", str(root), "rev-parse", "HEAD"]
    head = subprocess.run(words, capture_output=True, text=True, check=False)
    if head.returncode == 0:  # not where the project was unpacked from an archive
        state = git_state(root)
        assert state is not None and state["commit"] == head.stdout.strip()
