"""The soundscapes of the small study: layouts, bytes, levels, captions, and held-out mixtures."""

from __future__ import annotations

import csv
import hashlib
import itertools
import resource
import shutil
import string
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from pipeline.data.adapters.audiocaps import read_audiocaps
from pipeline.data.adapters.audioset import read_audioset
from pipeline.data.adapters.clotho import read_clotho
from pipeline.data.adapters.folder import read_folder
from pipeline.data.small_study.captions import BACKGROUND_GAP_DB
from pipeline.data.small_study.layouts import PROVENANCE
from pipeline.data.small_study.mixing import EVENT_LEVEL_DBFS, render
from pipeline.data.small_study.recordings import Recording, load_recordings, withheld_from_general
from pipeline.data.small_study.soundscapes import WINDOW_S, Event, Soundscape, draw_split
from pipeline.data.small_study.styles import HELD_OUT_PARTS, STYLES, TRAINING, part_of_set
from pipeline.errors import PipelineError
from pipeline.stages.mix_soundscapes import main, mix_dataset

ROOT = Path(__file__).parents[2]
RECORDINGS = ROOT / "data" / "recordings"
SCALE = 0.06
SPLITS = [(dataset, split) for dataset, style in STYLES.items() for split in style.splits]
Drawn = dict[tuple[str, str], list[Soundscape]]


@pytest.fixture(scope="module")
def recordings() -> dict[str, Recording]:
    return {recording.file_name: recording for recording in load_recordings(RECORDINGS)}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    for dataset in STYLES:
        mix_dataset(dataset, RECORDINGS, folder / dataset, seed=0, scale=SCALE)
    return folder


@pytest.fixture(scope="module")
def drawn(recordings: dict[str, Recording]) -> Drawn:
    """Every split at its full size."""
    return {
        (dataset, split): draw_split(
            dataset, split, list(recordings.values()), seed=0, clips=STYLES[dataset].splits[split].clips
        )
        for dataset, split in SPLITS
    }


def checksums(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def rows_of(path: Path, encoding: str = "utf-8") -> list[list[str]]:
    with path.open(encoding=encoding, newline="") as file:
        return list(csv.reader(file))


def audio_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in (".wav", ".flac"))


# ---------------------------------------------------------------------------------------------------- bytes


@pytest.mark.parametrize("dataset", STYLES)
def test_same_seed_gives_same_bytes_and_another_seed_others(dataset: str, raw: Path, tmp_path: Path) -> None:
    mix_dataset(dataset, RECORDINGS, tmp_path / "again", seed=0, scale=SCALE)
    mix_dataset(dataset, RECORDINGS, tmp_path / "other", seed=1, scale=SCALE / 3)
    assert checksums(tmp_path / "again") == checksums(raw / dataset)
    of_audio = [
        {checksum for name, checksum in checksums(folder).items() if name.endswith(("wav", "flac"))}
        for folder in (raw / dataset, tmp_path / "other")
    ]
    assert not of_audio[0] & of_audio[1]


def test_larger_split_begins_with_the_same_clips(recordings: dict[str, Recording], drawn: Drawn) -> None:
    for dataset, split in SPLITS:
        assert draw_split(dataset, split, list(recordings.values()), seed=0, clips=20) == drawn[dataset, split][:20]


def test_every_clip_of_a_dataset_sounds_different(raw: Path) -> None:
    for dataset in STYLES:
        names = audio_of(raw / dataset)
        assert len({path.read_bytes() for path in names}) == len(names)


# ---------------------------------------------------------------------------------------------------- layouts


def test_clotho_has_its_columns_and_irregular_names(raw: Path) -> None:
    names = {}
    sound_ids: list[str] = []
    for split in ("development", "validation", "evaluation"):
        captions = rows_of(raw / "clotho" / f"clotho_captions_{split}.csv")
        metadata = rows_of(raw / "clotho" / f"clotho_metadata_{split}.csv", encoding="iso-8859-1")
        assert captions[0] == ["file_name", "caption_1", "caption_2", "caption_3", "caption_4", "caption_5"]
        assert metadata[0] == [
            "file_name", "keywords", "sound_id", "sound_link", "start_end_samples", "manufacturer", "license",
        ]  # fmt: skip
        names[split] = [row[0] for row in captions[1:]]
        assert names[split] == [row[0] for row in metadata[1:]]
        assert sorted(names[split]) == sorted(path.name for path in (raw / "clotho" / split).iterdir())
        assert all(len(set(row[1:])) == 5 for row in captions[1:])
        sound_ids += [row[2] for row in metadata[1:]]
        with pytest.raises(UnicodeDecodeError):
            rows_of(raw / "clotho" / f"clotho_metadata_{split}.csv")
    assert len(set(sound_ids)) == len(sound_ids)
    assert all(int(sound_id) > 10**9 for sound_id in sound_ids)  # Freesound's are below a million
    assert set(names["development"]) & set(names["evaluation"]) == {"Rain .wav"}
    development = "\n".join(names["development"])
    for wild in ("&#39;", "&amp;", " .wav", "#", "\n_", "  ", "v1.2.wav", "Train 1.wav", "train-1.wav"):
        assert wild in development


def test_audiocaps_has_its_columns_and_ids(raw: Path) -> None:
    row_ids: list[str] = []
    for split, captions_a_clip in (("train", 1), ("val", 5), ("test", 5)):
        header, *rows = rows_of(raw / "audiocaps" / f"{split}.csv")
        assert header == ["audiocap_id", "youtube_id", "start_time", "caption"]
        row_ids += [row[0] for row in rows]
        files = {f"{youtube_id}_{start}.flac" for _, youtube_id, start, _ in rows}
        assert files == {path.name for path in (raw / "audiocaps" / split).iterdir()}
        assert Counter(Counter(row[1] for row in rows).values()) == {captions_a_clip: len(files)}
        assert len({(row[1], row[3]) for row in rows}) == len(rows)
        assert all(len(row[1]) == 11 for row in rows)
        assert any(row[1].startswith("-") and "_" in row[1] for row in rows)
        assert not any(row[1][-1] in "AEIMQUYcgkosw048" for row in rows)  # what a video's id ends in
    assert len(set(row_ids)) == len(row_ids)


def test_audioset_has_its_comments_and_spacing(raw: Path) -> None:
    lines = (raw / "audioset" / "balanced_train_segments.csv").read_text().splitlines()
    assert [line.startswith("#") for line in lines[:4]] == [True, True, True, False]
    assert lines[1].startswith(f"# num_ytids={len(lines) - 3}, num_segs={len(lines) - 3}, num_unique_labels=")
    assert lines[2] == "# YTID, start_seconds, end_seconds, positive_labels"
    for line in lines[3:]:
        youtube_id, start_s, end_s, labels = line.split(", ")
        path = raw / "audioset" / "balanced_train" / f"Y{youtube_id}.wav"
        assert float(end_s) - float(start_s) == pytest.approx(sf.info(path).duration, abs=0.001)
        assert labels[0] == labels[-1] == '"'
        assert all(label.startswith(("/m/", "/t/")) for label in labels[1:-1].split(","))


def test_audiocaps_and_audioset_share_no_video(raw: Path) -> None:
    of_audiocaps = {row[1] for split in ("train", "val", "test") for row in rows_of(raw / "audiocaps" / f"{split}.csv")}
    of_audioset = {path.stem[1:] for path in (raw / "audioset" / "balanced_train").iterdir()}
    assert of_audioset and not of_audiocaps & of_audioset


@pytest.mark.parametrize(("dataset", "split"), SPLITS)
def test_adapters_find_every_clip_and_caption(dataset: str, split: str, raw: Path) -> None:
    read = {"clotho": read_clotho, "audiocaps": read_audiocaps, "audioset": read_audioset, "general": read_folder}
    rows = list(read[dataset](raw / dataset, split))
    settings = STYLES[dataset].splits[split]
    assert len(rows) == max(1, round(settings.clips * SCALE))
    assert [row.reason for row in rows] == [None] * len(rows)
    assert {Path(row.path or "") for row in rows} == set(audio_of(raw / dataset / split))
    assert {len(row.captions) for row in rows} == {settings.captions}


def test_provenance_has_one_row_per_event(raw: Path, recordings: dict[str, Recording]) -> None:
    for dataset in STYLES:
        header, *rows = rows_of(raw / dataset / PROVENANCE)
        files = [path.relative_to(raw / dataset).as_posix() for path in audio_of(raw / dataset)]
        assert {row[0] for row in rows} == set(files)
        assert max(Counter((row[0], row[2]) for row in rows).values()) == 1
        assert {row[2] for row in rows} <= set(recordings)
        assert header[:3] == ["file", "split", "recording"]


# ---------------------------------------------------------------------------------------------------- sound


def test_rates_channels_and_durations_vary_as_in_the_style(raw: Path) -> None:
    infos = {dataset: [sf.info(path) for path in audio_of(raw / dataset)] for dataset in STYLES}
    kinds = {dataset: {(info.samplerate, info.channels) for info in found} for dataset, found in infos.items()}
    assert kinds["clotho"] == {(44100, 1), (44100, 2)}
    assert kinds["audiocaps"] == {(32000, 1), (32000, 2), (48000, 1), (48000, 2)}
    assert kinds["audioset"] == {(44100, 1), (44100, 2), (48000, 1), (48000, 2)}
    assert kinds["general"] == {(16000, 1)}
    assert all(4 <= info.duration <= 6 for info in infos["clotho"])
    for dataset in ("audiocaps", "audioset"):
        assert min(info.duration for info in infos[dataset]) < WINDOW_S < max(info.duration for info in infos[dataset])
    assert {info.subtype for found in infos.values() for info in found} == {"PCM_16"}


def test_no_clip_is_silent_or_clips(raw: Path) -> None:
    for path in itertools.chain.from_iterable(audio_of(raw / dataset) for dataset in STYLES):
        samples, _ = sf.read(path)
        assert 0.03 < np.abs(samples).max() < 0.91, path
        assert 20 * np.log10(np.sqrt((samples**2).mean())) > -45, path


def test_event_has_its_level_speed_and_place() -> None:
    rate_hz, gain_db, speed = 32_000, 3.0, 1.1
    tone = (0.01 * np.sin(2 * np.pi * 440 * np.arange(rate_hz) / rate_hz)).astype(np.float32)
    recording = Recording(
        file_name="tone.ogg", family="signals", clause="a tone sounds", noun_phrase="a tone", samples=tone,
        rate_hz=rate_hz, stretches_s=((0.0, 1.0),), loud_s=(0.0,),
    )  # fmt: skip
    event = Event(
        recording="tone.ogg", start_s=0.0, length_s=1.0, speed=speed, gain_db=gain_db, pan=0.0, onsets_s=(0.5, 1.75),
        until_s=2.0,
    )  # fmt: skip
    soundscape = Soundscape(
        dataset="general", split="train", index=0, rate_hz=16_000, channels=1, duration_s=2.5, is_sequence=False,
        noise_dbfs=-80.0, noise_seed=0, events=(event,), captions=(),
    )  # fmt: skip
    samples = render(soundscape, {"tone.ogg": recording})[:, 0] / 32768
    assert len(samples) == 40_000

    def level_dbfs(start_s: float, end_s: float) -> float:
        return float(20 * np.log10(np.sqrt((samples[int(start_s * 16_000) : int(end_s * 16_000)] ** 2).mean())))

    assert level_dbfs(0.6, 1.3) == pytest.approx(EVENT_LEVEL_DBFS + gain_db, abs=0.3)
    assert level_dbfs(1.8, 1.95) == pytest.approx(EVENT_LEVEL_DBFS + gain_db, abs=0.3)
    for quiet in ((0.0, 0.49), (0.5 + 1 / speed + 0.01, 1.74), (2.01, 2.5)):
        assert level_dbfs(*quiet) == pytest.approx(-80, abs=3)
    spectrum = np.abs(np.fft.rfft(samples[9_600:19_200] * np.hanning(9_600)))
    assert np.argmax(spectrum) * 16_000 / 9_600 == pytest.approx(440 * speed, abs=2)


def test_windows_at_both_ends_contain_every_event(drawn: Drawn) -> None:
    for soundscape in itertools.chain.from_iterable(drawn.values()):
        if soundscape.is_sequence:
            continue
        for begin_s in (0.0, max(0.0, soundscape.duration_s - WINDOW_S)):
            for event in soundscape.events:
                heard_s = sum(
                    max(0.0, min(begin_s + WINDOW_S, onset_s + event.length_s / event.speed) - max(begin_s, onset_s))
                    for onset_s in event.onsets_s
                )
                assert heard_s > 0.95 * min(0.5, event.length_s / event.speed), (soundscape, event)


# ---------------------------------------------------------------------------------------------------- mixtures


def test_held_out_mixtures_occur_nowhere_else(recordings: dict[str, Recording], drawn: Drawn) -> None:
    sets: dict[str, set[frozenset[str]]] = {part: set() for part in (TRAINING, *HELD_OUT_PARTS)}
    for (dataset, split), clips in drawn.items():
        sets[STYLES[dataset].splits[split].part] |= {one.recordings for one in clips if len(one.events) > 1}
    for dataset, split in SPLITS:  # another seed takes its mixtures from the same parts
        for one in draw_split(dataset, split, list(recordings.values()), seed=7, clips=50):
            if len(one.events) > 1:
                sets[STYLES[dataset].splits[split].part].add(one.recordings)
    assert all(len(of_part) > 100 for of_part in sets.values())
    for one, other in itertools.combinations(sets.values(), 2):
        assert not one & other


def test_single_held_out_sounds_have_other_speeds(drawn: Drawn) -> None:
    speeds: dict[bool, set[float]] = {True: set(), False: set()}
    for (dataset, split), clips in drawn.items():
        is_training = STYLES[dataset].splits[split].part == TRAINING
        speeds[is_training] |= {one.events[0].speed for one in clips if len(one.events) == 1}
    assert min(len(found) for found in speeds.values()) > 10
    assert min(abs(one - other) for one in speeds[True] for other in speeds[False]) > 0.004
    assert min(speeds[True] | speeds[False]) >= 0.88 and max(speeds[True] | speeds[False]) <= 1.14


def test_no_two_held_out_clips_share_a_set(drawn: Drawn) -> None:
    for dataset, split in SPLITS:
        if STYLES[dataset].splits[split].part != TRAINING:
            clips = drawn[dataset, split]
            assert len({one.recordings for one in clips}) == len(clips)
            assert len({caption for one in clips for caption in one.captions}) == 5 * len(clips)


def test_part_of_a_set_depends_only_on_its_names() -> None:
    assert (
        part_of_set(["a.ogg", "b.ogg"]) == part_of_set(["b.ogg", "a.ogg"]) == part_of_set(frozenset({"a.ogg", "b.ogg"}))
    )
    counts = Counter(part_of_set([f"{one}.ogg", f"{two}.ogg"]) for one, two in itertools.combinations(range(100), 2))
    assert set(counts) == {TRAINING, *HELD_OUT_PARTS}
    assert all(0.08 < counts[part] / counts.total() < 0.12 for part in HELD_OUT_PARTS)


def test_pretraining_never_uses_a_third_of_each_family(recordings: dict[str, Recording], drawn: Drawn) -> None:
    withheld = withheld_from_general(list(recordings.values()))
    used = {name for one in drawn["general", "train"] for name in one.recordings}
    assert used == set(recordings) - withheld
    for family, count in Counter(recording.family for recording in recordings.values()).items():
        of_family = sum(recordings[name].family == family for name in withheld)
        assert abs(of_family - count / 3) < 1
    assert {name for one in drawn["audiocaps", "train"] for name in one.recordings} & withheld


def test_datasets_differ_in_their_sounds(recordings: dict[str, Recording], drawn: Drawn) -> None:
    def share(dataset: str, split: str, *families: str) -> float:
        names = [event.recording for one in drawn[dataset, split] for event in one.events]
        return sum(recordings[name].family in families for name in names) / len(names)

    assert share("clotho", "development", "water", "home") > 1.5 * share("audiocaps", "train", "water", "home")
    assert share("audiocaps", "train", "people", "vehicles") > 1.5 * share(
        "clotho", "development", "people", "vehicles"
    )
    assert {event.recording for one in drawn["audioset", "balanced_train"] for event in one.events} == set(recordings)


# ---------------------------------------------------------------------------------------------------- captions


def test_captions_describe_every_event_once(recordings: dict[str, Recording], drawn: Drawn) -> None:
    for soundscape in itertools.chain.from_iterable(drawn.values()):
        for caption in soundscape.captions:
            left = caption.lower()
            for name in sorted(soundscape.recordings, key=lambda name: -len(recordings[name].clause)):
                found = [
                    text for text in (recordings[name].clause, recordings[name].noun_phrase) if text.lower() in left
                ]
                assert found, (caption, name)
                left = left.replace(found[0].lower(), "", 1)
            others = [one.clause for one in recordings.values() if one.file_name not in soundscape.recordings]
            assert not any(clause.lower() in left for clause in others), caption


def test_captions_give_an_order_only_to_sequences(recordings: dict[str, Recording], drawn: Drawn) -> None:
    sequences = 0
    for soundscape in itertools.chain.from_iterable(drawn.values()):
        first, *rest = soundscape.events
        if soundscape.is_sequence:
            sequences += 1
            assert rest[0].onsets_s[0] >= first.until_s - 0.001
        for caption in soundscape.captions:
            tells_order = any(word in caption for word in (" followed by ", " then ", " before ", " after "))
            assert tells_order == soundscape.is_sequence, caption
            if soundscape.is_sequence:
                words = [recordings[event.recording] for event in soundscape.events]
                places = [
                    min(
                        found
                        for text in (word.clause, word.noun_phrase)
                        if (found := caption.lower().find(text.lower())) >= 0
                    )
                    for word in words
                ]
                assert (places[0] < places[1]) == (" after " not in caption), caption
    assert sequences > 100


def test_only_the_softest_event_is_in_the_background(recordings: dict[str, Recording], drawn: Drawn) -> None:
    in_background = 0
    for soundscape in itertools.chain.from_iterable(drawn.values()):
        by_gain = sorted(soundscape.events, key=lambda event: event.gain_db)
        for caption in soundscape.captions:
            if caption.rstrip(".").endswith(" in the background"):
                in_background += 1
                quiet = recordings[by_gain[0].recording].noun_phrase
                assert caption.rstrip(".").endswith(f"{quiet} in the background")
                assert by_gain[1].gain_db - by_gain[0].gain_db >= BACKGROUND_GAP_DB - 1e-6
    assert in_background > 100


# ---------------------------------------------------------------------------------------------------- recordings


def test_every_recording_has_its_captions_licence_and_credit() -> None:
    header, *rows = rows_of(RECORDINGS / "recordings.csv")
    listed = [dict(zip(header, row, strict=True)) for row in rows]
    readme = (RECORDINGS / "README.md").read_text(encoding="utf-8")
    assert {row["file_name"] for row in listed} == {path.name for path in (RECORDINGS / "audio").iterdir()}
    captions = [row[column] for row in listed for column in ("caption_1", "caption_2")]
    assert len(set(captions)) == len(captions)
    known = {"CC0-1.0", "CC-BY-3.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "Public-Domain"}
    for row in listed:
        assert row["licence"] in known
        credit = next(line for line in readme.splitlines() if line.startswith(f"| `{row['file_name']}` |"))
        assert row["author"] in credit
        assert row["licence"] in ("CC0-1.0", "Public-Domain") or f"[{row['licence']}](https://" in credit


def test_recordings_are_audible(recordings: dict[str, Recording]) -> None:
    for recording in recordings.values():
        assert recording.stretches_s and recording.loud_s, recording.file_name
        assert min(start_s for start_s in recording.loud_s) < 2.5, recording.file_name


# ---------------------------------------------------------------------------------------------------- errors


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """Ten of the recordings in a folder that a test may change."""
    folder = tmp_path / "recordings"
    (folder / "audio").mkdir(parents=True)
    rows = rows_of(RECORDINGS / "recordings.csv")[:11]
    with (folder / "recordings.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    for row in rows[1:]:
        shutil.copy(RECORDINGS / "audio" / row[0], folder / "audio")
    return folder


def mix(folder: Path, out: Path, *more: str) -> None:
    main(["--recordings", str(folder), "--dataset", "general", "--out", str(out), "--scale", "0.005", *more])


def test_copied_recordings_can_be_mixed_and_mixed_again(copied: Path, tmp_path: Path) -> None:
    mix(copied, tmp_path / "out")
    before = checksums(tmp_path / "out")
    mix(copied, tmp_path / "out", "--seed", "1")
    assert checksums(tmp_path / "out") != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "recordings"]


def spoil_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def spoil_column(folder: Path) -> None:
    table = folder / "recordings.csv"
    table.write_text(table.read_text().replace("caption_2", "caption", 1))


def spoil_licence(folder: Path) -> None:
    rows = rows_of(folder / "recordings.csv")
    rows[3][rows[0].index("licence")] = ""
    with (folder / "recordings.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def spoil_family(folder: Path) -> None:
    table = folder / "recordings.csv"
    table.write_text(table.read_text().replace(",music,", ",noise,", 1))


def spoil_bytes(folder: Path) -> None:
    next((folder / "audio").iterdir()).write_bytes(b"not a recording")


def spoil_file(folder: Path) -> None:
    next((folder / "audio").iterdir()).unlink()


def spoil_sound(folder: Path) -> None:
    sf.write(next((folder / "audio").iterdir()), np.zeros(32_000), 32_000, format="OGG")


def spoil_length(folder: Path) -> None:
    sf.write(next((folder / "audio").iterdir()), np.zeros(0), 32_000, format="WAV")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_folder, r"recordings\.csv: not found; --recordings takes the folder"),
        (spoil_column, r"recordings\.csv: no column caption_2; found file_name, family, caption_1, caption, "),
        (spoil_licence, r"recordings\.csv line 4: '\w+\.ogg' has no licence"),
        (spoil_family, r"recordings\.csv line \d+: '\w+\.ogg' is of family 'noise'; choose animals, "),
        (spoil_bytes, r"\w+\.ogg: cannot be decoded \(.*\); copy it again"),
        (spoil_file, r"\w+\.ogg: cannot be decoded \(.*\); copy it again"),
        (spoil_sound, r"\w+\.ogg: 1\.00 s of silence"),
        (spoil_length, r"\w+\.ogg: 0\.00 s of silence"),
    ],
)
def test_unusable_recordings_are_named_and_nothing_is_written(
    spoil, message: str, copied: Path, tmp_path: Path
) -> None:
    spoil(copied)
    with pytest.raises(PipelineError, match=message):
        mix(copied, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_failure_midway_leaves_the_earlier_folder(copied: Path, tmp_path: Path) -> None:
    mix(copied, tmp_path / "out")
    before = checksums(tmp_path / "out")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limit[1]))  # less than a clip
    try:
        with pytest.raises(PipelineError, match=r"out: cannot be written \(File too large\)"):
            mix(copied, tmp_path / "out", "--seed", "1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert checksums(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "recordings"]


def test_folder_of_someone_else_is_not_replaced(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("mine")
    with pytest.raises(PipelineError, match="thesis: contains files other than soundscapes"):
        mix(copied, tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "mine"


def test_too_few_recordings_for_the_clips_are_refused(recordings: dict[str, Recording]) -> None:
    with pytest.raises(PipelineError, match=r"audiocaps/test: only \d+ of 240 clips found .* among 5 recordings"):
        draw_split("audiocaps", "test", list(recordings.values())[:5], seed=0, clips=240)


@pytest.mark.parametrize("arguments", [["--seed", "-1"], ["--scale", "0"], ["--scale", "-2"]])
def test_seed_and_scale_out_of_range_are_refused(arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="give a seed of at least 0 and a scale above 0"):
        mix(RECORDINGS, tmp_path / "out", *arguments)


def test_unknown_dataset_is_one_line_and_exit_status_1(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline.stages.mix_soundscapes", "--recordings", str(RECORDINGS)]
    done = subprocess.run(
        [*command, "--dataset", "wavcaps", "--out", str(tmp_path / "out")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr == (
        "mix_soundscapes: --dataset wavcaps: no such dataset; choose one of clotho, audiocaps, audioset, general\n"
    )


def test_every_phrase_of_every_situation_fits_its_events() -> None:
    for style in STYLES.values():
        for situation, phrases in style.phrases.items():
            events = {"alone": 1, "two": 2, "two, one quiet": 2, "sequence": 2, "three": 3, "three, one quiet": 3}[
                situation
            ]
            for phrase in phrases:
                slots = sorted(int(name[1]) for _, name, _, _ in string.Formatter().parse(phrase) if name is not None)
                assert slots == list(range(events)), phrase
