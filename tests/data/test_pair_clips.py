"""The pairs file: complete, reproducible, fair, and refused when it cannot be right."""

import collections
import hashlib
import itertools
import json
import shutil
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.commands.inspection.pair_checks import verify_pairs
from pipeline.commands.inspection.pairs import describe_pairs
from pipeline.data import pairs
from pipeline.data.catalogs import OK
from pipeline.data.leaks import (
    LOOKED_AT,
    AudioForm,
    leaked_path,
    leaks_of,
    read_held_out,
    read_leaked,
    write_identities,
)
from pipeline.data.pairs import (
    NO_CAPTION,
    NO_PARTNER,
    SCHEMA,
    Clips,
    epoch_order,
    keys_in_order,
    pair_epoch,
    read_clips,
    read_epoch,
    read_facts,
    subset,
    with_keys,
    write_pairs,
)
from pipeline.data.parquet import write_parquet
from pipeline.data.shards.format import read_summary, rows_table
from pipeline.errors import PipelineError
from pipeline.evaluation.windows import window_starts as evaluation_starts
from pipeline.files import read_json, sha256_of, write_json
from pipeline.stages import pair_clips
from pipeline.training.batches import PairedBatches
from pipeline.training.settings import PairingSettings


def clips(count, seed=0):
    generator = np.random.default_rng(seed)
    return Clips(
        rows=np.arange(count, dtype=np.int32),
        frames=generator.integers(1_000, 90_000, count),
        captions=generator.integers(1, 6, count),
    )


def epoch(number=0, *, labeled=None, unlabeled=None, seed=0, mix_labeled=False, **settings):
    return pair_epoch(
        seed=seed, epoch=number, batch_size=8, window_frames=40_960, labeled=labeled or clips(50),
        unlabeled=unlabeled, mix_labeled=mix_labeled, settings=PairingSettings(**settings),
    )  # fmt: skip


def test_same_seed_gives_the_same_bytes(tiny_study):
    first = tiny_study.pairs("composed", seed=3)
    checksum = sha256_of(first)
    first.unlink()
    assert sha256_of(tiny_study.pairs("composed", seed=3)) == checksum


def test_an_epoch_does_not_depend_on_the_others():
    assert epoch(5, unlabeled=clips(30)).equals(epoch(5, unlabeled=clips(30)))


def test_seeds_and_epochs_give_different_pairs():
    orders = [tuple(epoch(number, seed=seed)["labeled_row"].to_pylist()) for number in (0, 1) for seed in (0, 1)]
    assert len(set(orders)) == 4


def test_every_labeled_clip_appears_at_most_once_an_epoch_and_batches_are_full():
    table = epoch()
    rows = table["labeled_row"].to_pylist()
    assert len(rows) == len(set(rows)) == 48
    assert table["step"].to_pylist() == sorted([*range(6)] * 8)
    assert table["slot"].to_pylist() == [*range(8)] * 6


def test_the_clips_left_out_change_from_epoch_to_epoch():
    left_out = [frozenset(set(range(50)) - set(epoch(number)["labeled_row"].to_pylist())) for number in range(6)]
    assert len(set(left_out)) > 1


def test_every_unlabeled_clip_is_used_before_one_is_used_again():
    counts = epoch(unlabeled=clips(20))["partner_row"].value_counts().to_pylist()
    assert len(counts) == 20
    assert {count["counts"] for count in counts} == {2, 3}


def test_few_of_millions_are_drawn_evenly_and_once_without_shuffling_all():
    generator = np.random.default_rng(0)
    drawn = [epoch_order(generator, 10_000_000, 20_000) for _ in range(3)]
    assert all(len(set(order.tolist())) == 20_000 for order in drawn)
    assert len(set(np.concatenate(drawn).tolist())) > 59_000, "the epochs differ"
    assert np.bincount(np.concatenate(drawn) // 1_000_000, minlength=10).min() > 5_500
    tracemalloc.start()
    epoch_order(generator, 1_000_000_000, 20_000)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_windows_stay_inside_their_clips_and_short_clips_start_at_zero():
    labeled = clips(50)
    for number in range(20):
        table = epoch(number, labeled=labeled)
        for row, start in zip(table["labeled_row"].to_pylist(), table["labeled_start"].to_pylist(), strict=True):
            assert 0 <= start <= max(0, labeled.frames[row] - 40_960)


def test_captions_exist_and_all_are_drawn():
    labeled = Clips(rows=np.arange(8, dtype=np.int32), frames=np.full(8, 9), captions=np.full(8, 5))
    drawn = [caption for number in range(20) for caption in epoch(number, labeled=labeled)["caption"].to_pylist()]
    assert set(drawn) == {0, 1, 2, 3, 4}


def test_concatenate_never_mixes_a_clip_with_itself_and_draws_the_partner_a_caption():
    for number in range(50):
        table = epoch(number, mix_labeled=True)
        rows = table.to_pylist()
        assert all(row["labeled_row"] != row["partner_row"] for row in rows)
        assert all(row["partner_caption"] >= 0 for row in rows)


def test_unlabeled_partners_have_no_caption_and_finetune_has_no_partner():
    assert set(epoch(unlabeled=clips(9))["partner_caption"].to_pylist()) == {NO_CAPTION}
    assert set(epoch()["partner_row"].to_pylist()) == {NO_PARTNER}


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


def test_labeled_clips_without_captions_are_refused(tiny_study, tmp_path):
    outputs = ["--pairs", str(tmp_path / "pairs.parquet"), "--leaked", str(tmp_path / "leaked.parquet")]
    plan = ["--backbone", "mini", "--epochs", "1", "--batch-size", "8", "--seed", "0"]
    with pytest.raises(PipelineError, match=r"20 of 20 labeled clips have no caption .*unlabeled/train/manifest"):
        pair_clips.main(["--labeled", str(tiny_study.manifest("unlabeled")), *plan, *outputs])


def test_shards_of_another_rate_are_refused(tiny_study, tmp_path):
    manifest = str(tiny_study.manifest("labeled"))
    with pytest.raises(PipelineError, match="at 16000 Hz, the backbone takes 44100 Hz"):
        pair_clips.main(
            ["--labeled", manifest, "--backbone", "msclap-2023", "--epochs", "1", "--batch-size", "2", "--seed", "0"]
            + ["--pairs", str(tmp_path / "pairs.parquet"), "--leaked", str(tmp_path / "leaked.parquet")]
        )


def test_a_split_without_usable_clips_is_refused(tiny_study, tmp_path):
    table = pq.read_table(tiny_study.manifest("labeled")).slice(0, 0)
    pq.write_table(table, tmp_path / "manifest.parquet")
    with pytest.raises(PipelineError, match="no usable clip"):
        read_clips([tmp_path / "manifest.parquet"], read_held_out([]), leaks="fail", role="labeled")


def test_a_file_that_is_no_pairs_file_is_refused(tiny_study):
    with pytest.raises(PipelineError, match="is not a pairs file"):
        read_facts(tiny_study.manifest("labeled"))


def held_out_split(study, folder, **columns):
    """A held-out split of one clip that shares the given columns with the training split's clip 3, and nothing else."""
    own = {"key": "other_test_0", "source_id": "otherVideo0", "sha256": "0" * 64, **columns}
    return write_manifest(study, folder, pq.read_table(study.manifest("labeled")).slice(3, 1), own)


def with_source_id(study, folder, source_id):
    """The training split with a source id for its clip 3."""
    table = pq.read_table(study.manifest("labeled"))
    own = {"source_id": [source_id if row == 3 else None for row in range(table.num_rows)]}
    folder.mkdir()
    return write_manifest(study, folder, table, own)


def write_manifest(study, folder, table, columns):
    for name, value in columns.items():
        values = pa.array(value if isinstance(value, list) else [value], pa.string())
        table = table.set_column(table.schema.get_field_index(name), name, values)
    pq.write_table(table, folder / "manifest.parquet")
    summary = read_json(study.manifest("labeled").with_suffix(".json"))
    write_json(summary | {"manifest_sha256": sha256_of(folder / "manifest.parquet")}, folder / "manifest.json")
    identities_of(folder)
    return folder / "manifest.parquet"


def identities_of(folder):
    """What index_shards writes of a split for the leak guard."""
    summary, path = read_summary(folder / "manifest.json"), folder / "identities.parquet"
    write_identities(folder / "manifest.parquet", AudioForm.of(summary), path)
    return path


def pair_with(held_out, folder, policy, labeled):
    identities = str(held_out.with_name("identities.parquet"))
    manifests = ["--labeled", str(labeled), "--held-out", identities, "--leaks", policy]
    plan = ["--backbone", "mini", "--epochs", "1", "--batch-size", "23", "--seed", "0"]
    path = folder / "pairs.parquet"
    pair_clips.main([*manifests, *plan, "--pairs", str(path), "--leaked", str(leaked_path(path))])
    return path


def test_a_clip_whose_audio_is_held_out_is_left_out_and_accounted_for(tiny_study, tmp_path):
    row = pq.read_table(tiny_study.manifest("labeled")).slice(3, 1).to_pylist()[0]
    held_out = held_out_split(tiny_study, tmp_path, sha256=row["sha256"])
    path = pair_with(held_out, tmp_path, "drop", tiny_study.manifest("labeled"))
    assert row["key"] not in read_epoch(path, 0)["labeled_key"].to_pylist()
    assert list(read_facts(path)["left_out_as_leaked"].values()) == [1]
    (leaked,) = read_leaked(leaked_path(path)).to_pylist()
    assert leaked == {
        **{"role": "labeled", "status": "dropped", "reason": "leaked", "shared": "sha256", "value": row["sha256"]},
        **{name: row[name] for name in ("dataset", "split", "key", "source_name")},
        **{"held_out_dataset": "labeled", "held_out_split": "train", "held_out_key": "other_test_0"},
    }


def test_a_clip_whose_source_is_held_out_is_left_out_and_accounted_for(tiny_study, tmp_path):
    labeled = with_source_id(tiny_study, tmp_path / "train", "-aVideoId_0")
    path = pair_with(held_out_split(tiny_study, tmp_path, source_id="-aVideoId_0"), tmp_path, "drop", labeled)
    key = pq.read_table(labeled)["key"][3].as_py()
    assert key not in read_epoch(path, 0)["labeled_key"].to_pylist()
    (leaked,) = read_leaked(leaked_path(path)).to_pylist()
    told = [leaked[name] for name in ("key", "shared", "value", "held_out_key")]
    assert told == [key, "source_id", "-aVideoId_0", "other_test_0"]


def test_of_several_held_out_clips_the_first_is_named_and_a_source_before_audio():
    def batch(key, **columns):
        rows = [{"key": key, "dataset": "d", "split": "s", "source_name": f"{key}.wav", "source_id": None} | columns]
        return rows_table(rows).to_batches()[0].select(LOOKED_AT)

    held_out = pa.Table.from_batches(
        [batch("audio", sha256="a"), batch("source", source_id="id", sha256="b")]
        + [batch("both", source_id="id", sha256="a"), batch("other", sha256="c")]
    ).combine_chunks()
    for columns, expected in {
        (("source_id", "id"), ("sha256", "a")): ("source_id", "id", "source"),
        (("source_id", None), ("sha256", "a")): ("sha256", "a", "audio"),
        (("source_id", "another"), ("sha256", "c")): ("sha256", "c", "other"),
    }.items():
        mask, leaked = leaks_of(batch("clip", **dict(columns)), held_out, "unlabeled")
        (row,) = leaked.to_pylist()
        assert mask.to_pylist() == [True] and (row["role"], row["key"]) == ("unlabeled", "clip")
        assert (row["shared"], row["value"], row["held_out_key"]) == expected
    mask, leaked = leaks_of(batch("clip", source_id="another", sha256="d"), held_out, "unlabeled")
    assert mask.to_pylist() == [False] and len(leaked) == 0


def test_a_leak_fails_with_both_clips_and_what_they_share_when_asked_to(tiny_study, tmp_path):
    labeled = with_source_id(tiny_study, tmp_path / "train", "-aVideoId_0")
    held_out = held_out_split(tiny_study, tmp_path, source_id="-aVideoId_0")
    key = pq.read_table(labeled)["key"][3].as_py()
    with pytest.raises(
        PipelineError,
        match=rf"1 of 24 clips are also in a validation or test split: {key} \(has source_id -aVideoId_0 of "
        r"labeled/train, other_test_0\); .* set leaks to drop",
    ):
        pair_with(held_out, tmp_path, "fail", labeled)
    assert not list(tmp_path.glob("pairs*"))


def test_a_split_of_leaks_alone_is_refused_under_either_policy(tiny_study, tmp_path):
    manifest = tiny_study.manifest("labeled")
    for policy in ("drop", "fail"):
        with pytest.raises(PipelineError, match=r"24 of 24 clips .*, \.\.\.; none is left, check datasets"):
            pair_with(manifest, tmp_path, policy, manifest)


def test_the_list_of_leaks_is_there_when_none_was_found(tiny_study, tmp_path):
    path = pair_with(held_out_split(tiny_study, tmp_path), tmp_path, "drop", tiny_study.manifest("labeled"))
    assert len(read_leaked(leaked_path(path))) == 0


def test_shards_of_two_formats_are_warned_of_because_their_checksums_differ(tiny_study, tmp_path, caplog):
    held_out = held_out_split(tiny_study, tmp_path)
    pair_with(held_out, tmp_path, "drop", tiny_study.manifest("labeled"))
    assert "another checksum" not in caplog.text
    summary = held_out.with_suffix(".json")
    write_json(read_json(summary) | {"format": "flac"}, summary)
    identities_of(tmp_path)
    pair_with(held_out, tmp_path, "drop", tiny_study.manifest("labeled"))
    assert "shards of flac and wav: the same audio has another checksum in each" in caplog.text


@pytest.mark.parametrize(("role", "name"), [("--unlabeled", "manifest.parquet"), ("--held-out", "identities.parquet")])
def test_shards_that_kept_other_channels_are_not_mixed(tiny_study, tmp_path, role, name):
    folder = shutil.copytree(tiny_study.manifest("unlabeled").parent, tmp_path / "first")
    summary = folder / "manifest.json"
    summary.write_text(json.dumps({**read_json(summary), "channels": "first"}))
    identities_of(folder)
    told = rf"kept the first of the channels \(.*first/{name}\) and the mean of the .* one shards.channels"
    with pytest.raises(PipelineError, match=told):
        pair_part(tiny_study, tmp_path / "pairs.parquet", role, str(folder / name))


def test_clips_without_a_source_id_are_not_taken_for_one_another(tiny_study, tmp_path):
    held_out = held_out_split(tiny_study, tmp_path, source_id=None)
    assert read_facts(pair_with(held_out, tmp_path, "fail", tiny_study.manifest("labeled")))["left_out_as_leaked"] == {}


def test_other_held_out_clips_without_leaks_leave_the_pairs_byte_identical(tiny_study, tmp_path):
    manifest, held_out = tiny_study.manifest("labeled"), held_out_split(tiny_study, tmp_path)
    before = pair_with(held_out, tmp_path, "fail", manifest).read_bytes()
    more = tmp_path / "more"
    more.mkdir()
    held_out_split(tiny_study, more, source_id="newVideo00", sha256="1" * 64)
    both = [str(folder / "identities.parquet") for folder in (tmp_path, more)]
    plan = ["--backbone", "mini", "--epochs", "1", "--batch-size", "23", "--seed", "0", "--leaks", "fail"]
    files = ["--pairs", str(tmp_path / "other.parquet"), "--leaked", str(tmp_path / "other.leaked.parquet")]
    pair_clips.main(["--labeled", str(manifest), "--held-out", *both, *plan, *files])
    assert (tmp_path / "other.parquet").read_bytes() == before


def pair_part(study, path, *flags, labeled=("labeled",), seed=0, batch_size=4, epochs=3):
    manifests = ["--labeled", *(str(study.manifest(name)) for name in labeled)]
    plan = ["--backbone", "mini", "--epochs", str(epochs), "--batch-size", str(batch_size), "--seed", str(seed)]
    pair_clips.main([*manifests, *flags, *plan, "--pairs", str(path), "--leaked", str(leaked_path(path))])
    return pq.read_table(path), read_facts(path)


def split_of(folder, count):
    """The manifest of a split of so many clips, every fifth row of which is not usable."""
    clip = {"dataset": "d", "split": "s", "source_name": "x", "shard": "00000", "sample_rate_hz": 16_000}
    rows = [
        clip | {"key": f"l_{row:06d}", "frames": 1_000 + row, "captions": ["x"] * (1 + row % 7), "sha256": f"{row}"}
        for row in range(count)
    ]
    rows = [row | {"status": OK} for row in rows]
    for row in rows[4::5]:
        row |= {"status": "failed", "reason": "undecodable"}
    folder.mkdir()
    write_parquet(rows_table(rows), folder / "manifest.parquet", row_group_size=300)
    return folder / "manifest.parquet"


def part_of(manifest, share, seed):
    """A part of a split's clips and their keys."""
    all_clips, _ = read_clips([manifest], read_held_out([]), leaks="fail", role="labeled")
    part = subset(all_clips, [manifest], share, seed)
    return part, [key for batch in keys_in_order([manifest], part.rows) for key in batch.to_pylist()]


def test_smaller_parts_lie_within_larger_ones_and_every_seed_has_its_own(tmp_path):
    manifest = split_of(tmp_path / "split", 1250)
    parts = [set(part_of(manifest, share, 3)[1]) for share in (0.001, 0.1, 0.25, 0.9, 1)]
    assert [len(part) for part in parts] == [1, 100, 250, 900, 1000]
    assert all(small < large for small, large in itertools.pairwise(parts))
    others = set(part_of(manifest, 0.1, 4)[1])
    assert len(others & parts[1]) < 30, "100 of 1,000 drawn twice have about 10 in common"


def test_a_part_keeps_each_clips_own_length_and_captions_in_order(tmp_path):
    part, keys = part_of(split_of(tmp_path / "split", 250), 0.3, 0)
    rows = [int(key.removeprefix("l_")) for key in keys]
    assert len(rows) == 60 and rows == sorted(rows)
    assert part.frames.tolist() == [1_000 + row for row in rows]
    assert part.captions.tolist() == [1 + row % 7 for row in rows]


def test_new_clips_in_a_split_push_out_few_of_the_old(tmp_path):
    before, after = (set(part_of(split_of(tmp_path / str(count), count), 0.2, 0)[1]) for count in (1250, 1310))
    assert len(before - after) < 20


def test_keys_are_those_of_the_rows_however_many_epochs_are_looked_up_together(tmp_path, monkeypatch):
    """Of two splits with unusable rows, and a clip left out of each as leaked."""
    manifests = [split_of(tmp_path / name, count) for name, count in (("one", 20), ("two", 900))]
    usable = [f"l_{row:06d}" for count in (20, 900) for row in range(count) if row % 5 != 4]
    held_out = rows_table([{"key": "h", "dataset": "d", "split": "t", "sha256": "7"}])
    drawn, left_out = read_clips(manifests, held_out, leaks="drop", role="unlabeled")
    assert [table["key"].to_pylist() for _, table in left_out] == [["l_000007"], ["l_000007"]]
    assert drawn.rows.tolist() == [row for row, key in enumerate(usable) if key != "l_000007"]
    epochs = [epoch(number, labeled=drawn, mix_labeled=True) for number in range(5)]
    tables = list(with_keys(epochs, manifests, manifests))
    for rows, table in zip(epochs, tables, strict=True):
        for role in ("labeled", "partner"):
            assert table[f"{role}_key"].to_pylist() == [usable[row] for row in rows[f"{role}_row"].to_pylist()]
    for together in (1, 2 * len(epochs[0])):
        monkeypatch.setattr(pairs, "ROWS_AT_ONCE", together)
        assert list(with_keys(epochs, manifests, manifests)) == tables


def test_a_part_of_the_labeled_clips_is_trained_on_in_as_many_steps_as_all(tiny_study, tmp_path):
    whole, all_facts = pair_part(tiny_study, tmp_path / "whole.parquet")
    half, facts = pair_part(tiny_study, tmp_path / "half.parquet", "--labeled-fraction=0.5")
    assert len(half) == len(whole) == 3 * 24 and facts["epochs"] == 6 and facts["steps_per_epoch"] == 3
    assert len(set(half["labeled_key"].to_pylist())) == facts["labeled_clips"] == 12
    assert all_facts["labeled_clips"] == 24 and all_facts["labeled_fraction"] == 1
    assert facts["labeled_captions"] == 24 and facts["labeled_fraction"] == 0.5
    assert 12 < facts["labeled_s"] < 48, "12 clips of 1 to 4 s"
    assert "3 steps" in verify_pairs(tmp_path / "half.parquet", tiny_study.shards, quick=False)


def test_a_part_of_the_unlabeled_clips_leaves_the_labeled_side_as_it_is(tiny_study, tmp_path):
    flags = ["--unlabeled", str(tiny_study.manifest("unlabeled"))]
    whole, all_facts = pair_part(tiny_study, tmp_path / "whole.parquet", *flags)
    part, facts = pair_part(tiny_study, tmp_path / "part.parquet", *flags, "--unlabeled-fraction=0.25")
    assert part["labeled_key"].equals(whole["labeled_key"])
    assert len(set(part["partner_key"].to_pylist())) == facts["unlabeled_clips"] == 5 and len(part) == len(whole)
    assert all_facts["unlabeled_clips"] == 20 and 5 < facts["unlabeled_s"] < all_facts["unlabeled_s"] < 80


def test_several_unlabeled_sets_are_one_from_which_every_clip_is_as_likely(tiny_study, tmp_path):
    flags = ["--unlabeled", str(tiny_study.manifest("unlabeled")), str(tiny_study.manifest("labeled"))]
    table, facts = pair_part(tiny_study, tmp_path / "both.parquet", *flags, epochs=11, batch_size=24)
    uses = collections.Counter(table["partner_key"].to_pylist())
    assert len(uses) == facts["unlabeled_clips"] == 44 and sum(uses.values()) == 11 * 24
    of_first = sum(count for key, count in uses.items() if key.startswith("unlabeled"))
    assert 0.35 < of_first / (11 * 24) < 0.56, "20 of 44 clips"
    assert set(facts["unlabeled"]) == {str(tiny_study.manifest(name).parent) for name in ("unlabeled", "labeled")}


@pytest.mark.parametrize("fraction", ["0", "1.5", "-0.1", "nan"])
def test_a_share_that_is_none_is_refused(tiny_study, tmp_path, capsys, fraction):
    with pytest.raises(SystemExit):
        pair_part(tiny_study, tmp_path / "pairs.parquet", f"--labeled-fraction={fraction}")
    assert "--labeled-fraction: must be above 0 and at most 1" in capsys.readouterr().err


def test_a_part_smaller_than_a_batch_is_refused_with_the_share(tiny_study, tmp_path):
    with pytest.raises(
        PipelineError, match=r"batch_size is 4, but the labeled set holds 2 clips .* labeled_fraction 0.1"
    ):
        pair_part(tiny_study, tmp_path / "pairs.parquet", "--labeled-fraction=0.1")


# --- how the pairs are drawn -----------------------------------------------------------------------------------------


def rows_of(column, table):
    return table[column].to_pylist()


def test_the_default_draws_what_it_always_has():
    """Of a version without settings of the drawing: a study's pairs do not change with the software."""

    def digest(table, partners):
        keys = {
            "labeled_key": [f"l_{row}" for row in rows_of("labeled_row", table)],
            "partner_key": [
                None if row == NO_PARTNER else f"{partners}_{row}" for row in rows_of("partner_row", table)
            ],
        }
        table = pa.table({**{name: table[name] for name in table.column_names}, **keys}).select(SCHEMA.names)
        return hashlib.sha256(repr(table.cast(SCHEMA).to_pylist()).encode()).hexdigest()[:16]

    found = {
        "finetune": digest(epoch(3), ""),
        "composed": digest(epoch(3, unlabeled=clips(20)), "u"),
        "concatenate": digest(epoch(3, mix_labeled=True), "l"),
    }
    assert found == {
        "finetune": "cb9be8adf335480e",
        "composed": "ca37faa8c04ad208",
        "concatenate": "e8f0eb62be89d49f",
    }


def test_what_is_not_asked_otherwise_is_not_in_the_footer(tiny_study):
    assert not {"captions_per_clip", "partners", "windows"} & read_facts(tiny_study.pairs("composed")).keys()


@pytest.mark.parametrize("partners", [{}, {"unlabeled": clips(20)}, {"mix_labeled": True}])
def test_all_captions_fill_a_slot_each_once_an_epoch(partners):
    labeled = clips(50)
    every = {(clip, number) for clip, count in enumerate(labeled.captions) for number in range(count)}
    drawn = []
    for number in range(6):
        table = epoch(number, labeled=labeled, captions_per_clip="all", **partners)
        rows = list(zip(rows_of("labeled_row", table), rows_of("caption", table), strict=True))
        assert len(rows) == len(set(rows)) == len(every) // 8 * 8 and set(rows) <= every
        assert rows_of("step", table) == sorted([*range(len(every) // 8)] * 8)
        drawn.append(rows)
    assert set().union(*map(set, drawn)) == every and drawn[0] != drawn[1]


def test_a_clip_with_all_its_captions_is_never_its_own_partner():
    labeled = Clips(rows=np.arange(3, dtype=np.int32), frames=np.full(3, 9), captions=np.array([12, 8, 4]))
    met = collections.Counter()
    for number in range(30):
        table = epoch(number, labeled=labeled, mix_labeled=True, captions_per_clip="all")
        pairs = list(zip(rows_of("labeled_row", table), rows_of("partner_row", table), strict=True))
        assert all(first != second for first, second in pairs)
        assert sorted(first for first, _ in pairs) == sorted(second for _, second in pairs), "each as often a partner"
        met.update(pairs)
    assert set(met) == {(0, 1), (1, 0), (0, 2), (2, 0)}, "half of all are of the first clip"
    with pytest.raises(PipelineError, match=r"one labeled clip fills 13 of the 24 slots .* captions_per_clip to one"):
        crowded = Clips(rows=labeled.rows, frames=labeled.frames, captions=np.array([13, 8, 3]))
        epoch(labeled=crowded, mix_labeled=True, captions_per_clip="all")


@pytest.mark.parametrize("captions_per_clip", ["one", "all"])
@pytest.mark.parametrize("mix_labeled", [False, True])
def test_fixed_partners_are_the_same_in_every_epoch_and_others_of_another_seed(mix_labeled, captions_per_clip):
    def partners(seed):
        drawing = {"partners": "fixed", "captions_per_clip": captions_per_clip, "mix_labeled": mix_labeled}
        unlabeled = None if mix_labeled else clips(20)
        tables = [epoch(number, seed=seed, unlabeled=unlabeled, **drawing) for number in range(8)]
        met = collections.defaultdict(set)
        for table in tables:
            for own, partner in zip(rows_of("labeled_row", table), rows_of("partner_row", table), strict=True):
                assert not mix_labeled or own != partner
                met[own].add(partner)
        assert len({tuple(rows_of("labeled_row", table)) for table in tables}) == 8, "the order is drawn each epoch"
        assert len({tuple(rows_of("partner_start", table)) for table in tables}) == 8, "and so are the windows"
        return met

    found = partners(0)
    assert len(found) == 50 and all(len(met) == 1 for met in found.values())
    uses = collections.Counter(partner for met in found.values() for partner in met)
    assert set(uses.values()) == ({1} if mix_labeled else {2, 3}), "partners are shared out evenly"
    assert found != partners(1)


# --- labeled partners in a composed run -----------------------------------------------------------------------------


@pytest.mark.parametrize("partners", ["each_epoch", "fixed"])
@pytest.mark.parametrize("captions_per_clip", ["one", "all"])
def test_labeled_partners_have_their_share_and_are_never_the_clip_itself(partners, captions_per_clip):
    labeled, shares = clips(50), []
    for number in range(20):
        drawing = {"partners": partners, "captions_per_clip": captions_per_clip, "labeled_partners": 0.3}
        rows = epoch(number, labeled=labeled, unlabeled=clips(20), **drawing).to_pylist()
        own = [row for row in rows if row["partner_caption"] != NO_CAPTION]
        assert all(row["labeled_row"] != row["partner_row"] for row in own)
        assert all(0 <= row["partner_caption"] < labeled.captions[row["partner_row"]] for row in own)
        assert all(row["partner_row"] < 20 for row in rows if row["partner_caption"] == NO_CAPTION)
        shares.append(len(own) / len(rows))
    assert np.mean(shares) == pytest.approx(0.3, abs=0.02 if partners == "each_epoch" else 0.08)


def test_labeled_partners_are_evenly_spread_over_the_slots():
    tables = [epoch(number, unlabeled=clips(20), labeled_partners=0.3) for number in range(10)]
    is_labeled = np.concatenate([table["partner_caption"].to_numpy() != NO_CAPTION for table in tables])
    assert set(is_labeled.reshape(-1, 4).sum(axis=1)) == {1, 2}, "of the four slots of each process"
    assert is_labeled.sum() == 0.3 * 480


@pytest.mark.parametrize("partners", ["each_epoch", "fixed"])
def test_a_share_of_none_or_all_draws_what_composed_or_concatenate_draws(partners):
    drawing = {"partners": partners, "captions_per_clip": "all"}
    none, every = (epoch(2, unlabeled=clips(20), labeled_partners=share, **drawing) for share in (0, 1))
    assert none.equals(epoch(2, unlabeled=clips(20), **drawing))
    assert every.equals(epoch(2, mix_labeled=True, **drawing))


def test_a_fixed_partner_stays_labeled_or_unlabeled():
    met = collections.defaultdict(set)
    for number in range(8):
        table = epoch(number, unlabeled=clips(20), labeled_partners=0.5, partners="fixed")
        captions = table["partner_caption"].to_numpy() == NO_CAPTION
        for own, partner in zip(
            rows_of("labeled_row", table), zip(rows_of("partner_row", table), captions, strict=True), strict=True
        ):
            met[own].add(partner)
    assert all(len(partners) == 1 for partners in met.values())


def test_second_partners_are_labeled_and_change_nothing_else():
    one = epoch(2, unlabeled=clips(20), labeled_partners=0.5)
    two = epoch(2, unlabeled=clips(20), labeled_partners=0.5, mix_labeled=True)
    assert two.select(one.column_names).equals(one)
    assert all(row["second_row"] != row["labeled_row"] and row["second_caption"] >= 0 for row in two.to_pylist())


def test_pairs_with_partners_of_both_kinds_are_verified_row_by_row(tiny_study, tmp_path):
    path = tmp_path / "pairs.parquet"
    flags = ["--unlabeled", str(tiny_study.manifest("unlabeled")), "--labeled-partners=0.5", "--mix-labeled"]
    table, facts = pair_part(tiny_study, path, *flags)
    assert facts["labeled_partners"] == 0.5
    assert "72 rows; their keys" in verify_pairs(path, tiny_study.shards, quick=False)
    labeled_slots = [slot for slot, caption in enumerate(rows_of("partner_caption", table)) if caption != NO_CAPTION]
    assert len(labeled_slots) == 36
    for slot, changed, told in (
        (labeled_slots[3], {"partner_caption": 7}, "has no caption 7"),
        (labeled_slots[3], {"partner_caption": NO_CAPTION}, "is no usable clip of the unlabeled splits"),
        (5, {"second_caption": 9}, "second_key .* has no caption 9"),
        (5, {"second_key": table["labeled_key"][5].as_py()}, "is its own second partner"),
    ):
        rows = table.to_pylist()
        rows[slot] |= changed
        epochs = [pa.Table.from_pylist(rows[24 * number : 24 * (number + 1)], table.schema) for number in range(3)]
        write_pairs(iter(epochs), path, facts)
        with pytest.raises(PipelineError, match=f"1 of 72 rows are wrong; the first: .*{told}"):
            verify_pairs(path, tiny_study.shards, quick=False)


def test_windows_of_long_clips_are_at_the_place_asked_and_nothing_else_changes():
    labeled, unlabeled = clips(50), clips(20)
    ways = ("random", "first", "center")
    tables = {name: epoch(2, labeled=labeled, unlabeled=unlabeled, windows=name) for name in ways}
    for role, clips_of_role in (("labeled", labeled), ("partner", unlabeled)):
        for name in ("first", "center"):
            table = tables[name]
            for row, start in zip(rows_of(f"{role}_row", table), rows_of(f"{role}_start", table), strict=True):
                assert [start] == evaluation_starts(int(clips_of_role.frames[row]), 40_960, name)
    others = ["labeled_row", "caption", "partner_row", "partner_caption"]
    assert tables["first"].select(others).equals(tables["random"].select(others))
    assert tables["center"].select(others).equals(tables["random"].select(others))


def test_a_part_of_the_clips_with_all_captions_takes_as_many_steps_as_all_of_them(tiny_study, tmp_path):
    """24 clips of two captions: 12 steps of 4 an epoch instead of 6."""
    flags = ["--captions-per-clip=all"]
    whole, facts = pair_part(tiny_study, tmp_path / "whole.parquet", *flags)
    assert (facts["steps_per_epoch"], facts["captions_per_clip"], len(whole)) == (12, "all", 3 * 48)
    part, facts = pair_part(tiny_study, tmp_path / "part.parquet", *flags, "--labeled-fraction=0.25")
    assert (facts["steps_per_epoch"], facts["epochs"], len(part)) == (3, 12, 3 * 48)
    with pytest.raises(PipelineError, match="batch_size is 49, but the labeled set holds 48 captions"):
        pair_part(tiny_study, tmp_path / "large.parquet", *flags, batch_size=49)
    pair_part(tiny_study, tmp_path / "large.parquet", *flags, batch_size=48)


def test_pairs_of_all_captions_are_verified_caption_by_caption(tiny_study, tmp_path):
    path = tmp_path / "pairs.parquet"
    flags = ["--captions-per-clip=all", "--partners=fixed", "--windows=first", "--mix-labeled"]
    table, facts = pair_part(tiny_study, path, *flags)
    assert "144 rows; their keys" in verify_pairs(path, tiny_study.shards, quick=False)
    first, again = table.slice(0, 1).to_pylist()[0], table.slice(5, 1).to_pylist()[0]
    rows = table.to_pylist()
    rows[5] = {**again, **{name: first[name] for name in ("labeled_key", "caption", "labeled_start", "partner_key")}}
    epochs = [pa.Table.from_pylist(rows[48 * number : 48 * (number + 1)], SCHEMA) for number in range(3)]
    write_pairs(iter(epochs), path, facts)
    told = f"caption {first['caption']} of labeled_key {first['labeled_key']} is in this epoch before"
    with pytest.raises(PipelineError, match=f"1 of 144 rows are wrong; the first: epoch 0, step 1, slot 1: {told}"):
        verify_pairs(path, tiny_study.shards, quick=False)


# --- paraphrases -----------------------------------------------------------------------------------------------------


def pair_paraphrased(study, folder, lines, *flags, **options):
    """Pairs of the tiny study with a CSV of paraphrases, and the labeled clips' captions by file name."""
    manifest = pq.read_table(study.manifest("labeled")).to_pylist()
    csv = folder / "paraphrases.csv"
    csv.write_text("\n".join(lines) + "\n")
    words = ["--paraphrases", str(study.manifest("labeled")), str(csv), *flags]
    table, facts = pair_part(study, folder / "pairs.parquet", *words, **options)
    return table, facts, {row["source_name"]: row for row in manifest}


@pytest.mark.parametrize("captions_per_clip", ["one", "all"])
def test_paraphrases_are_drawn_like_the_captions(tiny_study, tmp_path, captions_per_clip):
    lines = ["file_name,paraphrase", "clip 3.wav,it hums", 'clip 3.wav,"hum, hum"', "clip 7.wav, something  hisses "]
    flags = [f"--captions-per-clip={captions_per_clip}", "--mix-labeled"]
    epochs = 40 if captions_per_clip == "one" else 3
    table, facts, clips = pair_paraphrased(tiny_study, tmp_path, lines, *flags, epochs=epochs, batch_size=3)
    texts = {"clip 3.wav": ["it hums", "hum, hum"], "clip 7.wav": ["something hisses"]}
    names = {row["key"]: name for name, row in clips.items()}
    for role, column in (("labeled", "caption"), ("partner", "partner_caption")):
        drawn = collections.defaultdict(collections.Counter)
        for row in table.to_pylist():
            name, number = names[row[f"{role}_key"]], row[column]
            more = [None] * len(clips[name]["captions"]) + texts.get(name, [])
            assert row[f"{column}_text"] == more[number]
            drawn[name][number] += 1
        assert set(drawn["clip 3.wav"]) == {0, 1, 2, 3} and set(drawn["clip 7.wav"]) == {0, 1, 2}
        assert set().union(*(drawn[name] for name in drawn if name not in texts)) == {0, 1}
    assert (facts["labeled_captions"], facts["paraphrases"]) == (48, 3)
    assert "rows; their keys, captions" in verify_pairs(tmp_path / "pairs.parquet", tiny_study.shards, quick=False)


def test_a_batch_has_the_texts_of_the_paraphrases(tiny_study, tmp_path):
    names = [f"clip {number}.wav" for number in range(24)]
    lines = ["file_name,paraphrase", *(f"{name},{word} of {name}" for name in names for word in ("sound", "noise"))]
    flags = ["--unlabeled", str(tiny_study.manifest("unlabeled")), "--labeled-partners=0.5", "--mix-labeled"]
    table, _, clips = pair_paraphrased(tiny_study, tmp_path, lines, *flags)
    of_key = {row["key"]: [*row["captions"], f"sound of {name}", f"noise of {name}"] for name, row in clips.items()}
    batches = PairedBatches(tmp_path / "pairs.parquet", tiny_study.shards)
    rows = table.to_pylist()
    for step in range(len(batches)):
        batch = batches[step]
        for slot, row in enumerate(rows[step * 4 : step * 4 + 4]):
            assert batch.captions[slot] == of_key[row["labeled_key"]][row["caption"]]
            assert batch.second_captions[slot] == of_key[row["second_key"]][row["second_caption"]]
            number = row["partner_caption"]
            expected = None if number == NO_CAPTION else of_key[row["partner_key"]][number]
            assert batch.partner_captions[slot] == expected
    shown = [
        sample["caption"] for sample in describe_pairs(tmp_path / "pairs.parquet", tiny_study.shards, 8)["samples"]
    ]
    assert all("(caption" not in caption for caption in shown)


def test_a_run_without_paraphrases_has_no_column_for_them(tiny_study):
    assert read_epoch(tiny_study.pairs("composed"), 0).schema.names == SCHEMA.names


def test_a_paraphrase_that_is_there_already_is_left_out(tiny_study, tmp_path):
    own = pq.read_table(tiny_study.manifest("labeled")).to_pylist()[0]
    rows = [own["captions"][0], "it hums", "it  hums "]
    _, facts, _ = pair_paraphrased(
        tiny_study, tmp_path, ["file_name,paraphrase", *(f"{own['key']},{text}" for text in rows)]
    )
    assert facts["paraphrases"] == 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["file_name,paraphrase", "clip 99.wav,x"], r'csv row 2: labeled/train has no clip "clip 99\.wav"; remove'),
        (["file_name,paraphrase", "clip 1.wav,x", "clip 2.wav, "], "csv row 3: the paraphrase is empty"),
        (["file_name,caption,paraphrase", "clip 1.wav,no such,x"], 'row 2: "clip 1.wav" has no caption "no such"'),
        (["file_name,text", "clip 1.wav,x"], "csv: no column paraphrase; found file_name, text; expected file_name"),
        (["file_name,paraphrase", ",x"], "csv row 2: no file_name"),
    ],
)
def test_a_wrong_row_of_paraphrases_is_named(tiny_study, tmp_path, lines, message):
    with pytest.raises(PipelineError, match=message):
        pair_paraphrased(tiny_study, tmp_path, lines)
    assert not (tmp_path / "pairs.parquet").exists()


def test_paraphrases_of_a_split_that_is_not_labeled_are_refused(tiny_study, tmp_path):
    (tmp_path / "p.csv").write_text("file_name,paraphrase\n")
    words = ["--paraphrases", str(tiny_study.manifest("unlabeled")), str(tmp_path / "p.csv")]
    with pytest.raises(PipelineError, match="is no manifest of --labeled"):
        pair_part(tiny_study, tmp_path / "pairs.parquet", *words)
