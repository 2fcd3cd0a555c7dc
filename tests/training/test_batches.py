"""Batches: shards that are damaged are found before the first, and memory is used again."""

import gc
import re
import shutil

import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader

from pipeline.errors import PipelineError
from pipeline.stages import train
from pipeline.training.batches import PairedBatches
from pipeline.training.loading import load_batches


@pytest.fixture
def flipped(tiny_study, tmp_path):
    """The shards with one wrong bit in the last tar of the labeled clips, and that tar's name."""
    shards = tmp_path / "shards"
    shutil.copytree(tiny_study.shards, shards)
    tar = sorted((shards / "labeled" / "train").glob("*.tar"))[-1]
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 4
    tar.write_bytes(data)
    return shards, tar


def test_training_stops_before_its_first_step_at_a_tar_with_a_wrong_bit(tiny_study, flipped, tmp_path):
    shards, tar = flipped
    command = ["--pretrained", str(tiny_study.pretrained), "--pairs", str(tiny_study.pairs("composed"))]
    command += ["--shards", str(shards), "--seed", "0", "--out", str(tmp_path / "run"), "--objective", "composed"]
    with pytest.raises(PipelineError, match=rf"{tar}: SHA-256 \w+, \w+ expected; run the same Snakemake command again"):
        train.main(command)
    assert not (tmp_path / "run").exists()


def test_one_of_several_processes_finds_the_tar_with_a_wrong_bit(tiny_study, flipped):
    shards, tar = flipped
    found = []
    for rank in range(4):
        try:
            PairedBatches(tiny_study.pairs("composed"), shards, rank, 4, verify=True)
        except PipelineError as error:
            found.append(str(error))
    assert len(found) == 1 and str(tar) in found[0]


def test_a_window_that_is_still_looked_at_keeps_its_samples(tiny_study):
    batches = PairedBatches(tiny_study.pairs("composed"), tiny_study.shards)
    views, expected = [], []
    for step in range(len(batches)):
        batch = batches[step]
        views += [batch.labeled_BS[1], batch.partner_BS.numpy()[2], batch.labeled_BS.view(-1)[::7]]
        expected += [view.tolist() for view in views[-3:]]
        del batch
    gc.collect()
    assert [view.tolist() for view in views] == expected


def test_batches_that_are_gone_leave_their_memory_to_the_next(tiny_study):
    batches = PairedBatches(tiny_study.pairs("composed", epochs=6), tiny_study.shards)
    places = set()
    for batch in DataLoader(batches, batch_size=None):
        places |= {batch.labeled_BS.data_ptr(), batch.partner_BS.data_ptr()}
    assert len(batches) == 18 and len(places) == 4, "of this batch and the one before"


def test_a_loader_worker_reads_into_memory_that_both_processes_share(tiny_study):
    batches = PairedBatches(tiny_study.pairs("composed"), tiny_study.shards)
    for step, batch in enumerate(DataLoader(batches, batch_size=None, num_workers=1)):
        assert batch.labeled_BS.is_shared() and batch.partner_BS.is_shared()
        assert batch.labeled_BS.equal(batches[step].labeled_BS) and batch.partner_BS.equal(batches[step].partner_BS)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_tar_that_vanishes_during_training_is_named_in_one_line(tiny_study, flipped, tmp_path, workers):
    shards, tar = flipped
    batches = PairedBatches(tiny_study.pairs("composed"), shards)
    tar.unlink()
    reading = load_batches(batches, range(len(batches)), tmp_path, workers=workers)
    with pytest.raises(PipelineError) as caught, reading as loaded:
        list(loaded)
    message = rf"{tar}: cannot be read any more \(No such file or directory\), asked for labeled_train_clip_\w+; .*"
    assert re.fullmatch(message, str(caught.value))


def test_pairs_damaged_in_the_last_epoch_are_found_before_the_first_step(tiny_study, tmp_path):
    pairs = tmp_path / "pairs.parquet"
    whole = tiny_study.pairs("composed", epochs=3)
    starts = pq.ParquetFile(whole).metadata.row_group(2).column(5)  # a wrong start is a window like any other
    data = bytearray(whole.read_bytes())
    data[(starts.dictionary_page_offset or starts.data_page_offset) + starts.total_compressed_size - 1] ^= 1
    pairs.write_bytes(data)
    with pytest.raises(PipelineError, match=r"pairs\.parquet: is damaged, .* make it again with pair_clips"):
        PairedBatches(pairs, tiny_study.shards)
