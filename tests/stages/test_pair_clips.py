"""The pairs file: complete, reproducible, fair, and refused when it cannot be right."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import PipelineError
from pipeline.files import sha256_of
from pipeline.pairs import NO_CAPTION, Clips, pair_epoch, read_clips, read_epoch, read_facts
from pipeline.stages import pair_clips


def clips(prefix, count, seed=0):
    generator = np.random.default_rng(seed)
    return Clips(
        keys=pa.array([f"{prefix}_{index}" for index in range(count)]),
        frames=generator.integers(1_000, 90_000, count),
        captions=generator.integers(1, 6, count),
    )


def epoch(number=0, *, labeled=None, unlabeled=None, seed=0, mix_labeled=False):
    return pair_epoch(
        seed=seed, epoch=number, batch_size=8, window_frames=40_960, labeled=labeled or clips("l", 50),
        unlabeled=unlabeled, mix_labeled=mix_labeled,
    )  # fmt: skip


def test_same_seed_gives_the_same_bytes(tiny_study):
    first = tiny_study.pairs("composed", seed=3)
    checksum = sha256_of(first)
    first.unlink()
    assert sha256_of(tiny_study.pairs("composed", seed=3)) == checksum


def test_an_epoch_does_not_depend_on_the_others():
    assert epoch(5, unlabeled=clips("u", 30)).equals(epoch(5, unlabeled=clips("u", 30)))


def test_seeds_and_epochs_give_different_pairs():
    orders = [tuple(epoch(number, seed=seed)["labeled_key"].to_pylist()) for number in (0, 1) for seed in (0, 1)]
    assert len(set(orders)) == 4


def test_every_labeled_clip_appears_at_most_once_an_epoch_and_batches_are_full():
    table = epoch()
    keys = table["labeled_key"].to_pylist()
    assert len(keys) == len(set(keys)) == 48
    assert table["step"].to_pylist() == sorted([*range(6)] * 8)
    assert table["slot"].to_pylist() == [*range(8)] * 6


def test_the_clips_left_out_change_from_epoch_to_epoch():
    every = {f"l_{index}" for index in range(50)}
    left_out = [frozenset(every - set(epoch(number)["labeled_key"].to_pylist())) for number in range(6)]
    assert len(set(left_out)) > 1


def test_every_unlabeled_clip_is_used_before_one_is_used_again():
    counts = epoch(unlabeled=clips("u", 20))["partner_key"].value_counts().to_pylist()
    assert len(counts) == 20
    assert {count["counts"] for count in counts} == {2, 3}


def test_windows_stay_inside_their_clips_and_short_clips_start_at_zero():
    labeled = clips("l", 50)
    frames = dict(zip(labeled.keys.to_pylist(), labeled.frames.tolist(), strict=True))
    for number in range(20):
        table = epoch(number, labeled=labeled)
        for key, start in zip(table["labeled_key"].to_pylist(), table["labeled_start"].to_pylist(), strict=True):
            assert 0 <= start <= max(0, frames[key] - 40_960)


def test_captions_exist_and_all_are_drawn():
    labeled = Clips(keys=pa.array([f"l_{i}" for i in range(8)]), frames=np.full(8, 9), captions=np.full(8, 5))
    drawn = [caption for number in range(20) for caption in epoch(number, labeled=labeled)["caption"].to_pylist()]
    assert set(drawn) == {0, 1, 2, 3, 4}


def test_concatenate_never_mixes_a_clip_with_itself_and_draws_the_partner_a_caption():
    for number in range(50):
        table = epoch(number, mix_labeled=True)
        rows = table.to_pylist()
        assert all(row["labeled_key"] != row["partner_key"] for row in rows)
        assert all(row["partner_caption"] >= 0 for row in rows)


def test_unlabeled_partners_have_no_caption_and_finetune_has_no_partner():
    assert set(epoch(unlabeled=clips("u", 9))["partner_caption"].to_pylist()) == {NO_CAPTION}
    assert epoch()["partner_key"].null_count == 48


def test_the_file_says_what_it_was_made_of(tiny_study):
    path = tiny_study.pairs("composed", epochs=2)
    facts = read_facts(path)
    assert facts["steps_per_epoch"] == 3 and facts["epochs"] == 2 and facts["window_frames"] == 40_960
    assert facts["labeled"] == {str(tiny_study.manifest("labeled").parent): sha256_of(tiny_study.manifest("labeled"))}
    assert pq.ParquetFile(path).num_row_groups == 2
    assert set(read_epoch(path, 1)["epoch"].to_pylist()) == {1}


def test_a_batch_larger_than_the_labeled_set_is_refused_by_name(tiny_study):
    with pytest.raises(
        PipelineError, match=r"batch_size is 25, but the labeled set holds 24 clips .*manifest\.parquet"
    ):
        tiny_study.pairs("finetune", batch_size=25)
    assert not list((tiny_study.folder / "pairs").glob("*_25*"))


def test_shards_of_another_rate_are_refused(tiny_study, tmp_path):
    manifest = str(tiny_study.manifest("labeled"))
    with pytest.raises(PipelineError, match="at 16000 Hz, the backbone hears 44100 Hz"):
        pair_clips.main(
            ["--labeled", manifest, "--backbone", "msclap-2023", "--epochs", "1", "--batch-size", "2", "--seed", "0"]
            + ["--pairs", str(tmp_path / "pairs.parquet")]
        )


def test_a_split_without_usable_clips_is_refused(tiny_study, tmp_path):
    table = pq.read_table(tiny_study.manifest("labeled")).slice(0, 0)
    pq.write_table(table, tmp_path / "manifest.parquet")
    with pytest.raises(PipelineError, match="no usable clip"):
        read_clips([tmp_path / "manifest.parquet"])


def test_a_file_that_is_no_pairs_file_is_refused(tiny_study):
    with pytest.raises(PipelineError, match="is not a pairs file"):
        read_facts(tiny_study.manifest("labeled"))
