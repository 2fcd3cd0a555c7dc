"""The adapters read the publishers' layouts as they are found on disks."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
from audio_files import tone, write_audio, write_csv

from pipeline.data.adapters import ADAPTERS, SourceRow
from pipeline.errors import PipelineError

CLOTHO_HEADER = ["file_name", *(f"caption_{number}" for number in range(1, 6))]
AUDIOCAPS_HEADER = ["audiocap_id", "youtube_id", "start_time", "caption"]


def read(adapter: str, root: Path, split: str) -> list[SourceRow]:
    return list(ADAPTERS[adapter](root, split))


def touch(path: Path) -> Path:
    """A file of the right name; adapters look at names only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def clotho(root: Path, *names: str, split: str = "development") -> Path:
    write_csv(root / f"clotho_captions_{split}.csv", CLOTHO_HEADER, *([name, *"abcde"] for name in names))
    return root


# --- Clotho ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listed", "on_disk"),
    [
        ("Chuck-will&#39;s-widow.wav", "Chuck-will's-widow.wav"),
        ("Chuck-will's-widow.wav", "Chuck-will&#39;s-widow.wav"),
        ("121006_rain&amp;storm.wav", "121006_rain&storm.wav"),
        ("121006_rain&storm.wav", "121006_rain&amp;storm.wav"),
        ("Rain .wav", "Rain .wav"),
        ("Rain .wav", "Rain.wav"),
        ("two  spaces.wav", "two  spaces.wav"),
        ("v1.2 final.mix.wav", "v1.2 final.mix.wav"),
        ("v1.2 final.mix.wav", "v1.2 final.mix.flac"),
        ("pr#6F9A9E.wav", "pr#6F9A9E.wav"),
        ("_Stream 2 at Krka falls.wav", "_Stream 2 at Krka falls.wav"),
        ("-dash.wav", "-dash.WAV"),
        (unicodedata.normalize("NFC", "Café.wav"), unicodedata.normalize("NFD", "Café.wav")),
    ],
)
def test_clotho_finds_wild_names(tmp_path: Path, listed: str, on_disk: str) -> None:
    clotho(tmp_path, listed)
    file = touch(tmp_path / "development" / on_disk)
    (row,) = read("clotho", tmp_path, "development")
    assert (row.source_name, row.path, row.captions, row.row) == (listed, file.as_posix(), tuple("abcde"), 2)


def test_a_missing_file_never_takes_that_of_a_similar_name(tmp_path: Path) -> None:
    clotho(tmp_path, "Rain .wav", "Rain.wav", "a&amp;b.wav", "a&b.wav")
    rain, a_b = touch(tmp_path / "development/Rain.wav"), touch(tmp_path / "development/a&amp;b.wav")
    rows = read("clotho", tmp_path, "development")
    assert [row.path for row in rows] == [None, rain.as_posix(), a_b.as_posix(), None]
    assert [row.reason for row in rows] == ["missing_file", None, None, "missing_file"]


def test_clotho_splits_with_the_same_file_name_keep_their_own_audio(tmp_path: Path) -> None:
    for split in ("development", "evaluation"):
        clotho(tmp_path, "Rain.wav", split=split)
        touch(tmp_path / split / "Rain.wav")
    clotho(tmp_path, "Rain.wav", split="validation")
    assert read("clotho", tmp_path, "evaluation")[0].path == (tmp_path / "evaluation/Rain.wav").as_posix()
    with pytest.raises(PipelineError, match=r"no audio files below .*validation or .*clotho_audio_validation"):
        read("clotho", tmp_path, "validation")


@pytest.mark.parametrize("folder", ["development", "clotho_audio_development", "clotho_audio_development/development"])
def test_clotho_audio_lies_in_any_folder_the_archive_may_make(tmp_path: Path, folder: str) -> None:
    file = touch(clotho(tmp_path, "Rain.wav") / folder / "Rain.wav")
    assert read("clotho", tmp_path, "development")[0].path == file.as_posix()


def test_clotho_metadata_in_latin_1_gives_freesound_ids(tmp_path: Path) -> None:
    clotho(tmp_path, "Café &amp; bar.wav", "Rain.wav", "Train.wav")
    touch(tmp_path / "development" / "Rain.wav")
    lines = [
        "file_name,keywords,sound_id,sound_link,start_end_samples,manufacturer,license",
        'Café & bar.wav,"café;bar",123456,https://freesound.org/s/123456,"[0, 882000]",someone,CC0',
        "Rain.wav,rain;été,Not found,Not found,,someone,CC0",
    ]
    (tmp_path / "clotho_metadata_development.csv").write_bytes("\r\n".join(lines).encode("latin-1"))
    assert [row.source_id for row in read("clotho", tmp_path, "development")] == ["123456", None, None]


def test_clotho_without_metadata_has_no_source_ids(tmp_path: Path) -> None:
    touch(clotho(tmp_path, "Rain.wav") / "development/Rain.wav")
    assert read("clotho", tmp_path, "development")[0].source_id is None


def test_a_name_that_two_files_fit_is_ambiguous(tmp_path: Path) -> None:
    clotho(tmp_path, "Rain.wav", "Wind.wav")
    for name in ("a/Rain.wav", "b/Rain.wav", "Wind.wav", "old/Wind.wav"):
        touch(tmp_path / "development" / name)
    rain, wind = read("clotho", tmp_path, "development")
    assert (rain.path, rain.reason) == (None, "ambiguous_file")
    assert wind.path == (tmp_path / "development/Wind.wav").as_posix(), (
        "the file where the publisher puts it comes first"
    )


def test_clotho_rows_with_missing_captions_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        ["Rain.wav", *"abcde"],
        ["Wind.wav", "a", "", "c", " ", "e"],
        ["Sea.wav", *"abcd", ""],
        ["Fog.wav", *" " * 5],
    ]
    write_csv(tmp_path / "clotho_captions_development.csv", CLOTHO_HEADER, *rows)
    for name, *_ in rows:
        touch(tmp_path / "development" / name)
    assert [len(row.captions) for row in read("clotho", tmp_path, "development")] == [5, 3, 4, 0]
    message = "clotho_captions_development.csv: 2 clips have fewer than 5 captions, in rows 3 (3), 4 (4)"
    assert [line for line in caplog.messages if line.endswith(message)]


def test_a_start_that_is_not_finite_is_named(tmp_path: Path) -> None:
    audiocaps(tmp_path, (1, "aaaaaaaaaaa", "nan", "one"))
    with pytest.raises(PipelineError, match=r'val.csv row 2: start time "nan" is not a number'):
        read("audiocaps", tmp_path, "val")


# --- AudioCaps -------------------------------------------------------------------------------------------------------


def audiocaps(root: Path, *rows: tuple[object, ...], split: str = "val") -> Path:
    write_csv(root / f"{split}.csv", AUDIOCAPS_HEADER, *rows)
    return root


def test_audiocaps_rows_of_one_clip_are_its_captions_in_order(tmp_path: Path) -> None:
    audiocaps(tmp_path, (9, "aaaaaaaaaaa", 30, "one"), (3, "bbbbbbbbbbb", 0, "else"), (1, "aaaaaaaaaaa", 30, "two"))
    touch(tmp_path / "val/aaaaaaaaaaa_30.wav")
    first, second = read("audiocaps", tmp_path, "val")
    assert (first.source_name, first.captions, first.row) == ("aaaaaaaaaaa_30", ("one", "two"), 2)
    assert (first.source_id, first.start_s) == ("aaaaaaaaaaa", 30.0)
    assert (second.captions, second.reason) == (("else",), "missing_file")


@pytest.mark.parametrize("folder", ["val", "audio/val", "val/wav/00", "audio", "."])
@pytest.mark.parametrize(
    "name",
    [
        *("-A_bC-dE_1_.wav", "Y-A_bC-dE_1_.wav", "97151.wav", "108945.mp3"),
        *("-A_bC-dE_1__30.flac", "Y-A_bC-dE_1__30.wav", "-A_bC-dE_1__30.000.wav"),
    ],
)
def test_audiocaps_finds_every_name_in_use(tmp_path: Path, folder: str, name: str) -> None:
    audiocaps(tmp_path, (97151, "-A_bC-dE_1_", 30, "one"), (108945, "-A_bC-dE_1_", 30, "two"))
    file = touch(tmp_path / folder / name)
    (row,) = read("audiocaps", tmp_path, "val")
    assert row.path is not None
    assert os.path.samefile(row.path, file)


def test_a_bare_id_of_a_video_with_two_clips_is_ambiguous(tmp_path: Path) -> None:
    audiocaps(tmp_path, (1, "aaaaaaaaaaa", 0, "one"), (2, "aaaaaaaaaaa", 30, "two"), (3, "aaaaaaaaaaa", 60, "three"))
    touch(tmp_path / "val/Yaaaaaaaaaaa.wav")
    exact = [touch(tmp_path / "val/aaaaaaaaaaa_30.wav"), touch(tmp_path / "val/3.wav")]
    rows = read("audiocaps", tmp_path, "val")
    assert [row.reason for row in rows] == ["ambiguous_file", None, None]
    assert [row.path for row in rows[1:]] == [path.as_posix() for path in exact]


def test_one_clip_in_two_formats_is_ambiguous(tmp_path: Path) -> None:
    audiocaps(tmp_path, (1, "aaaaaaaaaaa", 0, "one"))
    for extension in ("wav", "flac"):
        touch(tmp_path / f"val/aaaaaaaaaaa_0.{extension}")
    assert read("audiocaps", tmp_path, "val")[0].reason == "ambiguous_file"


@pytest.mark.parametrize("youtube_id", ["00012345678", "1234567e890", "-0000000001", "NaN", "null", "1_000_000_0"])
def test_ids_stay_text(tmp_path: Path, youtube_id: str) -> None:
    audiocaps(tmp_path, (1, youtube_id, 0, "one"))
    file = touch(tmp_path / f"val/{youtube_id}_0.wav")
    (row,) = read("audiocaps", tmp_path, "val")
    assert (row.source_id, row.path) == (youtube_id, file.as_posix())


def test_a_repeated_audiocaps_row_is_no_second_caption(tmp_path: Path) -> None:
    audiocaps(tmp_path, (1, "aaaaaaaaaaa", 0, "one"), (2, "aaaaaaaaaaa", 0, "two"), (1, "aaaaaaaaaaa", 0, "one"))
    touch(tmp_path / "val/aaaaaaaaaaa_0.wav")
    rows = read("audiocaps", tmp_path, "val")
    assert [(row.source_name, row.row) for row in rows] == [("aaaaaaaaaaa_0", 2), ("aaaaaaaaaaa_0", 4)]
    assert rows[0].captions == ("one", "two")


def test_one_audiocap_id_for_two_clips_is_refused(tmp_path: Path) -> None:
    audiocaps(tmp_path, (7, "aaaaaaaaaaa", 0, "one"), (7, "bbbbbbbbbbb", 0, "two"))
    with pytest.raises(
        PipelineError, match=r"val.csv row 3: audiocap_id 7 is bbbbbbbbbbb_0 here and aaaaaaaaaaa_0 in row 2"
    ):
        read("audiocaps", tmp_path, "val")


def test_a_start_that_is_no_number_is_named(tmp_path: Path) -> None:
    audiocaps(tmp_path, (1, "aaaaaaaaaaa", 0, "one"), (2, "bbbbbbbbbbb", "0:30", "two"))
    with pytest.raises(PipelineError, match=r'val.csv row 3: start time "0:30" is not a number'):
        read("audiocaps", tmp_path, "val")


# --- AudioSet --------------------------------------------------------------------------------------------------------


def test_audioset_original_and_mirror_give_the_same_rows(tmp_path: Path) -> None:
    head = "# Segments csv created Sun Mar  5 10:54:25 2017\n# num_ytids=2\n# YTID, start_seconds, end_seconds\n"
    original = '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"\n--aE2O5G5WE, 0.000, 10.000, "/m/03fwl"\n'
    mirror = '--PJHxphWEs,30,40,"/m/09x0r,/t/dd00088"\n--aE2O5G5WE,0,10,/m/03fwl\n'
    found = []
    for name, text in (("original", head + original), ("mirror", head + mirror)):
        root = tmp_path / name
        touch(root / "audio/balanced_train/Y--PJHxphWEs.wav")
        (root / "balanced_train_segments.csv").write_text(text)
        found.append(
            [
                (row.source_name, row.source_id, row.start_s, row.reason)
                for row in read("audioset", root, "balanced_train")
            ]
        )
    assert found[0] == found[1] == [
        ("--PJHxphWEs_30", "--PJHxphWEs", 30.0, None),
        ("--aE2O5G5WE_0", "--aE2O5G5WE", 0.0, "missing_file"),
    ]  # fmt: skip


def test_audioset_rows_carry_no_captions(tmp_path: Path) -> None:
    (tmp_path / "eval_segments.csv").write_text('aaaaaaaaaaa, 2.500, 12.500, "/m/09x0r"\n')
    file = touch(tmp_path / "eval/aaaaaaaaaaa_2.5.flac")
    (row,) = read("audioset", tmp_path, "eval")
    assert (row.captions, row.path, row.row) == ((), file.as_posix(), 1)


def test_an_audioset_row_of_another_shape_is_named(tmp_path: Path) -> None:
    (tmp_path / "eval_segments.csv").write_text('# comment\naaaaaaaaaaa, 0.0, 10.0, "/m/09x0r"\nbbbbbbbbbbb\t0.0\n')
    with pytest.raises(PipelineError, match=r"eval_segments.csv row 3: expected YTID, .*found 1 fields"):
        read("audioset", tmp_path, "eval")


# --- folder ----------------------------------------------------------------------------------------------------------


def test_a_folder_without_a_list_gives_all_its_audio(tmp_path: Path) -> None:
    kinds = {"a.wav": {}, "b.flac": {}, "sub/c.ogg": {}, "sub/deeper/d.opus": {"format": "OGG", "subtype": "OPUS"}}
    for name, kind in (kinds | {"e.mp3": {}, "f.AIFF": {}}).items():
        write_audio(tmp_path / "train" / name, tone(), **kind)
    for name in ("notes.txt", ".hidden.wav", "._a.wav", ".cache/z.wav", "__MACOSX/a.wav"):
        touch(tmp_path / "train" / name)
    touch(tmp_path / "train/g.m4a")  # not decodable, but not invisible either
    rows = read("folder", tmp_path, "train")
    assert [row.source_name for row in rows] == sorted([*kinds, "e.mp3", "f.AIFF", "g.m4a"])
    assert all(row.path == (tmp_path / "train" / row.source_name).as_posix() and not row.captions for row in rows)


@pytest.mark.parametrize("listing", ["train.csv", "metadata.csv"])
def test_a_list_gives_captions_by_number_without_empty_ones(tmp_path: Path, listing: str) -> None:
    columns = ["caption_10", "file_name", "caption_2", "caption_1", "licence"]
    write_csv(tmp_path / listing, columns, ["ten", "a.wav", " two\n lines ", "", "CC0"], ["", "b.wav", "", "", ""])
    touch(tmp_path / "train/a.wav"), touch(tmp_path / "train/b.wav")
    assert [row.captions for row in read("folder", tmp_path, "train")] == [("two lines", "ten"), ()]


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_listed_folders_are_kept_apart(tmp_path: Path, prefix: str) -> None:
    write_csv(tmp_path / "train.csv", ["file_name"], *([f"{prefix}{name}/1.wav"] for name in ("dog", "cat", "cow")))
    dog, cat = touch(tmp_path / "train/dog/1.wav"), touch(tmp_path / "train/cat/1.wav")
    touch(tmp_path / "train/hen/1.wav")
    rows = read("folder", tmp_path, "train")
    assert [row.path for row in rows] == [dog.as_posix(), cat.as_posix(), None]
    assert rows[2].reason == "missing_file"


# --- lists and walks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252"])
def test_lists_are_read_in_any_encoding_in_use(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "train.csv").write_bytes("file_name,caption_1\r\n\r\nCafé.wav,a crowded café\r\n".encode(encoding))
    file = touch(tmp_path / "train/Café.wav")
    (row,) = read("folder", tmp_path, "train")
    assert (row.path, row.captions, row.row) == (file.as_posix(), ("a crowded café",), 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name;caption_1\na.wav;dog\n", r"train.csv: no column file_name; found name;caption_1; expected file_name"),
        ("", r"train.csv: no column file_name; found nothing"),
        (
            "file_name,caption_1\na.wav,dogs bark, loudly\n",
            r"train.csv row 2: 3 fields under 2 columns; .* needs quotes",
        ),
        ('file_name,caption_1\na.wav,"dog\nb.wav,cat\n', r"train.csv row 2: .*quote"),
        ("file_name,caption_1\na.wav,dog\n ,cat\n", r"train.csv row 3: no file_name"),
    ],
)
def test_a_broken_list_is_named_with_its_row(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "train.csv").write_text(text)
    touch(tmp_path / "train/a.wav")
    with pytest.raises(PipelineError, match=message):
        read("folder", tmp_path, "train")


@pytest.mark.parametrize(
    ("adapter", "list_name"),
    [("clotho", "clotho_captions_x.csv"), ("audiocaps", "x.csv"), ("audioset", "x_segments.csv")],
)
def test_a_missing_root_or_list_is_named(tmp_path: Path, adapter: str, list_name: str) -> None:
    with pytest.raises(PipelineError, match=r"nowhere: expected the folder of the dataset, found nothing"):
        read(adapter, tmp_path / "nowhere", "x")
    with pytest.raises(PipelineError, match=f"{list_name}: cannot be read"):
        read(adapter, tmp_path, "x")


def test_clotho_columns_that_are_missing_and_found_are_named(tmp_path: Path) -> None:
    write_csv(tmp_path / "clotho_captions_x.csv", ["file_name", "caption_1", "text"], ["a.wav", "b", "c"])
    with pytest.raises(
        PipelineError, match=r"no column caption_2, .*caption_5; found file_name, caption_1, text; expected"
    ):
        read("clotho", tmp_path, "x")


def test_linked_folders_are_followed_and_circles_end(tmp_path: Path) -> None:
    file = touch(tmp_path / "elsewhere/a.wav")
    (tmp_path / "train").mkdir()
    (tmp_path / "train/linked").symlink_to(file.parent)
    (file.parent / "back").symlink_to(tmp_path / "train")
    assert [row.source_name for row in read("folder", tmp_path, "train")] == ["linked/a.wav"]


def test_a_file_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    try:
        with open(os.fsencode(tmp_path / "train") + b"/caf\xe9.wav", "wb"):
            pass
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(PipelineError, match=r"1 file names are not UTF-8, the first 'caf.*wav'"):
        read("folder", tmp_path, "train")
