"""Losses and gradients of a step are the same on one, two and four processes, whole or in micro-batches."""

from __future__ import annotations

import copy
import gc
import json
import re
from pathlib import Path

import pytest
import save_gradients
import torch
from safetensors.torch import load_file
from test_training import finish, launch

from pipeline.data.leaks import leaked_path
from pipeline.errors import PipelineError
from pipeline.models import load_model
from pipeline.stages import pair_clips, train
from pipeline.training.batches import PairedBatches
from pipeline.training.composition import CompositionLoss
from pipeline.training.distributed import Processes, synchronized
from pipeline.training.micro_batches import backward_in_micro_batches, micro_batches
from pipeline.training.settings import TrainingSettings

OBJECTIVES = ("finetune", "composed", "concatenate")
CASES = {
    "finetune": {"objective": "finetune"},
    "composed": {"objective": "composed"},
    "concatenate": {"objective": "concatenate"},
    "detached": {"objective": "composed", "detach_unlabeled": True},
    "no_a2t_term": {"objective": "composed", "a2t_weight": 0.0},
    "no_composed_term": {"objective": "composed", "composed_weight": 0.0},
    "first_term_alone": {"objective": "composed", "a2t_weight": 0.0, "composed_weight": 0.0},
    "fixed_temperature": {"objective": "composed", "learn_temperature": False},
    "masked": {"objective": "composed", "mask_false_negatives": True},
    "masked_concatenate": {"objective": "concatenate", "mask_false_negatives": True},
    "mostly_labeled": {"objective": "composed", "mask_false_negatives": True},
    "two_partners": {"objective": "composed", "text_mixing_weight": 0.5, "teachers": 2},
    "taught": {"objective": "finetune", "teachers": 1},
    "decoded": {"objective": "composed", "a2t_kind": "decoder", "pseudo_tokens": 3, "a2t_noise": 0.5},
    **{f"{objective}_synchronized": {"objective": objective, "batch_norm": "synchronized"} for objective in OBJECTIVES},
}
OWN_PAIRS = {"mostly_labeled": "mostly_labeled", "two_partners": "two_partners", "decoded": "mostly_labeled"}
"""Pairs of cases; the others take those of their objective."""
PLAIN = {f"{objective}_plain": {"objective": objective, "batch_norm": "batch"} for objective in OBJECTIVES}
"""BatchNorm with the statistics of each process's share, which is no function of the whole batch."""
ON_FOUR = ["finetune", "composed", "concatenate", "masked_concatenate", "composed_synchronized"]
ON_FOUR += ["mostly_labeled", "two_partners", "decoded"]  # where a process has no unlabeled partner
IN_MICRO_BATCHES = ["finetune", "composed", "detached", "fixed_temperature", "masked_concatenate"]
IN_MICRO_BATCHES += ["mostly_labeled", "two_partners", "decoded"]
ALONE = Processes(rank=0, count=1, device=torch.device("cpu"))


def cases(study, names, micro_batch=0):
    """What save_gradients takes: pairs, settings and micro-batch of each case."""
    settings = {name: {**CASES, **PLAIN}[name] for name in names}
    kinds = {name: OWN_PAIRS.get(name, varied["objective"]) for name, varied in settings.items()}
    return {name: (str(study.pairs(kinds[name])), varied, micro_batch) for name, varied in settings.items()}


@pytest.fixture(scope="module")
def alone(tiny_study, tmp_path_factory):
    """Losses and gradients of every case on one process, the batch in one piece."""
    out = tmp_path_factory.mktemp("alone")
    save_gradients.save(str(tiny_study.pretrained), str(tiny_study.shards), str(out), cases(tiny_study, CASES))
    return {name: load_file(out / name) for name in CASES}


@pytest.fixture(scope="module")
def together(tiny_study, tmp_path_factory):
    """The same on several processes, by their number; on two also in micro-batches of three of the four slots."""
    micro = cases(tiny_study, IN_MICRO_BATCHES, micro_batch=3)
    asked_of = {
        2: cases(tiny_study, [*CASES, *PLAIN]) | {f"{name}-micro": case for name, case in micro.items()},
        4: cases(tiny_study, [*ON_FOUR, *PLAIN]),
    }
    folders = {count: tmp_path_factory.mktemp(f"together{count}") for count in asked_of}
    groups = json.dumps({count: (str(folders[count]), asked) for count, asked in asked_of.items()})
    finish(launch([save_gradients.__file__, str(tiny_study.pretrained), str(tiny_study.shards), groups]))
    return {count: {name: load_file(folders[count] / name) for name in asked} for count, asked in asked_of.items()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys() and len(expected) > 100
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize(("count", "case"), [*((2, case) for case in CASES), *((4, case) for case in ON_FOUR)])
def test_several_processes_have_the_losses_and_gradients_of_one(alone, together, count, case):
    assert_equal(together[count][case], alone[case])


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("case", PLAIN)
def test_plain_batch_norm_normalises_each_share_by_itself_in_the_loss_of_the_whole_batch(
    tiny_study, together, case, count
):
    """Against one process that encodes the shares one after the other; the statistics kept are the first one's."""
    pairs, settings, _ = cases(tiny_study, [case])[case]
    model = save_gradients.model_of(tiny_study.pretrained, TrainingSettings(**settings))
    objective, shares = CompositionLoss(model, TrainingSettings(**settings)), []
    batch = PairedBatches(Path(pairs), tiny_study.shards)[0]
    for share in micro_batches(batch, 8 // count):
        shares.append(objective.embed(share))
        if len(shares) == 1:
            kept = {name: value.clone() for name, value in model.named_buffers() if "bn0.running" in name}
    losses = objective.compare(torch.cat(shares), batch)
    losses["loss"].backward()
    expected = {f"losses.{name}": value.detach() for name, value in losses.items()}
    assert_equal(together[count][case], {**gradients_of(objective.model), **kept, **expected})


@pytest.mark.parametrize("case", IN_MICRO_BATCHES)
def test_micro_batches_on_two_processes_have_the_losses_and_gradients_of_the_whole(alone, together, case):
    assert_equal(together[2][f"{case}-micro"], alone[case])


@pytest.mark.parametrize(("case", "slots"), [("finetune", 3), ("composed", 1), ("composed", 3), ("concatenate", 3)])
def test_micro_batches_have_the_losses_and_gradients_of_the_whole(tiny_study, alone, case, slots):
    pairs, settings, _ = cases(tiny_study, CASES)[case]
    found = save_gradients.gradients(tiny_study.pretrained, tiny_study.shards, pairs, settings, slots, ALONE)
    assert_equal(found, alone[case])


@pytest.fixture
def regularised(tiny_study):
    """A composed objective with every source of randomness switched on, and a batch."""
    model = load_model(tiny_study.pretrained)
    torch.manual_seed(0)
    model.add_a2t(dropout=0.5)
    model.set_training_mode(encoder_regularisation=True)
    batch = PairedBatches(tiny_study.pairs("composed"), tiny_study.shards)[0]
    return CompositionLoss(model, TrainingSettings(objective="composed")), batch


def gradients_of(objective):
    found = {name: value.grad for name, value in objective.named_parameters() if value.grad is not None}
    objective.zero_grad(set_to_none=True)
    return found


def test_both_passes_of_a_micro_batch_have_the_same_dropout_and_spec_augment(regularised):
    objective, batch = regularised
    torch.manual_seed(1)
    embeddings = torch.cat([objective.embed(part) for part in micro_batches(batch, 3)])
    objective.compare(embeddings, batch)["loss"].backward()
    expected = gradients_of(objective)
    torch.manual_seed(1)
    backward_in_micro_batches(objective, batch, 3, ALONE)
    assert_equal(gradients_of(objective), expected)


def test_one_micro_batch_of_all_slots_draws_the_random_numbers_of_a_plain_step(regularised):
    objective, batch = regularised
    torch.manual_seed(1)
    objective(batch)["loss"].backward()
    expected = gradients_of(objective)
    torch.manual_seed(1)
    backward_in_micro_batches(objective, batch, 8, ALONE)
    assert_equal(gradients_of(objective), expected)


@pytest.mark.parametrize("batch_norm", ["batch", "synchronized"])
def test_statistics_of_the_batch_are_refused_in_micro_batches(tiny_study, tmp_path, batch_norm):
    with pytest.raises(PipelineError, match=f"micro_batch is 3, but batch_norm is {batch_norm}.*set micro_batch to 0"):
        train.main(
            ["--pretrained", str(tiny_study.pretrained), "--pairs", str(tiny_study.pairs("finetune"))]
            + ["--shards", str(tiny_study.shards), "--seed=0", "--out", str(tmp_path)]
            + ["--micro-batch=3", f"--batch-norm={batch_norm}"]
        )


def test_synchronized_batch_norm_alone_is_batch_norm():
    torch.manual_seed(0)
    own = torch.nn.BatchNorm2d(3, momentum=0.2)
    torch.nn.init.normal_(own.weight)
    other = synchronized(copy.deepcopy(own))
    rows = torch.randn(4, 3, 5, 1) * 20 - 30
    for training in (True, False):
        inputs = [rows.clone().requires_grad_() for _ in range(2)]
        outputs = [norm.train(training)(given) for norm, given in zip((own, other), inputs, strict=True)]
        for output in outputs:
            output.square().mul(torch.arange(5)[:, None]).sum().backward()
        torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(other.weight.grad, own.weight.grad)
    for name, value in own.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value)


def test_synchronized_batch_norm_sums_bfloat16_in_float32():
    torch.manual_seed(0)
    rows = (torch.randn(8, 3, 40, 1) + 30).bfloat16()
    own, other = torch.nn.BatchNorm2d(3), synchronized(torch.nn.BatchNorm2d(3))
    found, expected = other(rows), own(rows.float())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(other.running_mean, own.running_mean)


class ShortOfMemory(CompositionLoss):
    """A GPU that holds no more than so many slots, on machines without one."""

    room = 3

    def embed(self, batch):
        if len(batch.keys) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore of it.")
        return super().embed(batch)


@pytest.mark.parametrize(
    ("room", "advice"), [(3, "2 fit: give --micro-batch 2, in a profile"), (0, "not even one fits next to")]
)
def test_a_step_that_does_not_fit_names_the_micro_batch_that_does(tiny_study, monkeypatch, tmp_path, room, advice):
    monkeypatch.setattr(ShortOfMemory, "room", room)
    monkeypatch.setattr("pipeline.training.trainer.CompositionLoss", ShortOfMemory)
    arguments = ["--pretrained", str(tiny_study.pretrained), "--pairs", str(tiny_study.pairs("finetune"))]
    arguments += ["--shards", str(tiny_study.shards), "--seed=0", "--out", str(tmp_path)]
    with pytest.raises(PipelineError, match=f"memory does not hold 8 slots of a step; {advice}.*2.00 GiB"):
        train.main(arguments)
    if room:
        train.main([*arguments, "--micro-batch=2"])


def test_a_step_that_does_not_fit_is_not_told_to_split_what_batch_norm_needs_whole(tiny_study, monkeypatch, tmp_path):
    monkeypatch.setattr("pipeline.training.trainer.CompositionLoss", ShortOfMemory)
    arguments = ["--pretrained", str(tiny_study.pretrained), "--pairs", str(tiny_study.pairs("finetune"))]
    arguments += ["--shards", str(tiny_study.shards), "--seed=0", "--out", str(tmp_path), "--batch-norm=synchronized"]
    with pytest.raises(PipelineError, match="batch_norm is synchronized and needs them at once: take more GPUs"):
        train.main(arguments)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_out_of_memory_names_a_micro_batch_with_which_the_training_ends(tiny_study, tmp_path):
    # 48 slots, of which half fit: with fewer, the 20 MB that torch takes at a time would decide.
    pairs = tmp_path / "pairs.parquet"
    pair_clips.main(
        ["--labeled", str(tiny_study.manifest("labeled")), "--unlabeled", str(tiny_study.manifest("unlabeled"))]
        + ["--backbone=mini", "--epochs=2", "--batch-size=48", "--captions-per-clip=all", "--seed=0"]
        + ["--pairs", str(pairs), "--leaked", str(leaked_path(pairs))]
    )
    arguments = ["--pretrained", str(tiny_study.pretrained), "--pairs", str(pairs), "--shards", str(tiny_study.shards)]
    arguments += ["--seed=0", "--device=cuda", "--objective=composed"]
    torch.cuda.reset_peak_memory_stats()
    train.main([*arguments, "--out", str(tmp_path / "whole")])
    peak = torch.cuda.max_memory_allocated()
    gc.collect()
    torch.cuda.empty_cache()
    weights = sum(value.nbytes for value in load_file(tmp_path / "whole" / "model.safetensors").values())
    # No micro-batch makes these less: cuBLAS's workspace, the weights, their gradients and Adam's two moments.
    fixed = torch.cuda.memory_allocated() + 4 * weights
    limit = fixed + 0.85 * (peak - fixed)
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    arguments += ["--out", str(tmp_path / "parted")]
    try:
        with pytest.raises(PipelineError, match="does not hold 48 slots") as error:
            train.main(arguments)
        slots = re.search(r"give --micro-batch (\d+)", str(error.value))[1]
        del error
        train.main([*arguments, f"--micro-batch={slots}"])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
