"""The adapters read the publishers' layouts as they are found on disks."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable
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


@pytest.mark.parametrize(
    "name",
    [
        *(
            "aaaaaaaaa_1_30_40.wav",
            "Yaaaaaaaaa_1_30_40.wav",
            "aaaaaaaaa_1_30.0-40.0.wav",
            "aaaaaaaaa_1_30000_40000.flac",
        ),
        *("Yaaaaaaaaa_1_000030.wav", "aaaaaaaaa_1_30000.wav", "aaaaaaaaa_1_30.00.wav", "aaaaaaaaa_1_30.mkv"),
    ],
)
def test_names_of_download_tools_say_which_clip_is_meant(tmp_path: Path, name: str) -> None:
    audiocaps(tmp_path, (1, "aaaaaaaaa_1", 30, "one"), (2, "aaaaaaaaa_1", 0, "two"), (3, "bbbbbbbbbbb", 30, "three"))
    file = touch(tmp_path / "val" / name)
    rows = read("audiocaps", tmp_path, "val")
    assert [row.path for row in rows] == [file.as_posix(), None, None]
    assert [row.reason for row in rows] == [None, "missing_file", "missing_file"]


def test_a_title_with_an_id_does_for_the_only_clip_of_a_video(tmp_path: Path) -> None:
    audiocaps(tmp_path, (1, "aaaaaaaaaaa", 30, "a"), (2, "bbbbbbbbbbb", 0, "b"), (3, "bbbbbbbbbbb", 30, "c"))
    only, _ = touch(tmp_path / "val/Rain [loud] [aaaaaaaaaaa].wav"), touch(tmp_path / "val/Sea [bbbbbbbbbbb].wav")
    rows = read("audiocaps", tmp_path, "val")
    assert [(row.path, row.reason) for row in rows] == [
        (only.as_posix(), None), (None, "ambiguous_file"), (None, "ambiguous_file"),
    ]  # fmt: skip


def test_a_range_of_seconds_is_not_read_as_milliseconds(tmp_path: Path) -> None:
    audiocaps(tmp_path, (1, "aaaaaaaaaaa", 1, "one"), (2, "aaaaaaaaaaa", 1000, "two"))
    touch(tmp_path / "val/aaaaaaaaaaa_1000_1010.wav"), touch(tmp_path / "val/aaaaaaaaaaa_1000_11000.wav")
    names = [Path(row.path or "").name for row in read("audiocaps", tmp_path, "val")]
    assert names == ["aaaaaaaaaaa_1000_11000.wav", "aaaaaaaaaaa_1000_1010.wav"]


def test_a_video_does_not_take_the_place_of_sound(tmp_path: Path) -> None:
    audiocaps(tmp_path, (1, "aaaaaaaaaaa", 30, "one"), (2, "bbbbbbbbbbb", 30, "two"))
    touch(tmp_path / "val/aaaaaaaaaaa_30.mkv"), touch(tmp_path / "val/bbbbbbbbbbb_30.3gp")
    touch(tmp_path / "val/Yaaaaaaaaaaa.wav")
    names = [Path(row.path or "").name for row in read("audiocaps", tmp_path, "val")]
    assert names == ["Yaaaaaaaaaaa.wav", "bbbbbbbbbbb_30.3gp"]


def test_names_that_nothing_fits_are_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    audiocaps(tmp_path, *((n, f"{n:011d}", 0, "x") for n in range(5)))
    for n in range(4):
        touch(tmp_path / f"val/clip{n}.wav")
    read("audiocaps", tmp_path, "val")
    assert any(
        "5 clips have no file and 4 files belong to no clip; "
        'looked for "00000000000_0", "00000000001_0", "00000000002_0"; '
        'found "clip0.wav", "clip1.wav", "clip2.wav"' in message
        for message in caplog.messages
    )


def test_captions_that_go_on_in_the_next_line_are_mended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = ["audiocap_id,youtube_id,start_time,caption", "1,aaaaaaaaaaa,0,a dog", "barks twice", "", "and howls"]
    lines += ['2,bbbbbbbbbbb,0,"a cat', 'purrs"', "3,ccccccccccc,0,", "a cow"]
    (tmp_path / "val.csv").write_text("\n".join(lines))
    touch(tmp_path / "val/x.wav")
    rows = read("audiocaps", tmp_path, "val")
    assert [row.captions for row in rows] == [("a dog barks twice and howls",), ("a cat purrs",), ("a cow",)]
    assert any("3 rows are the rest of a caption without quotes" in message for message in caplog.messages)


@pytest.mark.parametrize("rest", ["7", "a dog,barks", ",,,"])
def test_lines_that_may_be_rows_are_not_joined(tmp_path: Path, rest: str) -> None:
    (tmp_path / "val.csv").write_text(f"audiocap_id,youtube_id,start_time,caption\n1,aaaaaaaaaaa,0,one\n{rest},,\n")
    touch(tmp_path / "val/aaaaaaaaaaa_0.wav")
    if rest == ",,,":
        assert len(read("audiocaps", tmp_path, "val")) == 1  # a blank row
        return
    with pytest.raises(PipelineError, match=r"val.csv row 3: (no youtube_id|start time)"):
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


@pytest.mark.parametrize("separator", [";", "\t"])
def test_audioset_lists_with_other_separators_are_read(tmp_path: Path, separator: str) -> None:
    rows = [["aaaaaaaaaaa", "2.5", "12.5", '"/m/09x0r,/m/2"'], ["bbbbbbbbbbb", "0", "10", "/m/1"]]
    (tmp_path / "eval_segments.csv").write_text("# YTID, a, b\n" + "\n".join(separator.join(row) for row in rows))
    touch(tmp_path / "eval/aaaaaaaaaaa_2.5.wav")
    assert [row.source_name for row in read("audioset", tmp_path, "eval")] == ["aaaaaaaaaaa_2.5", "bbbbbbbbbbb_0"]


# --- spreadsheets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["#NAME?", "#NOM?", "#¿NOMBRE?", "#REF!", "#WERT!", "#N/A", "#DIV/0!", "Err:508"])
@pytest.mark.parametrize("adapter", ["audioset", "audiocaps", "clotho", "folder"])
def test_an_error_value_of_a_spreadsheet_is_named(tmp_path: Path, adapter: str, value: str) -> None:
    lists = {
        "audioset": ("x_segments.csv", f"# YTID, start,,\n{value},420,430,/m/1\n", "YTID"),
        "audiocaps": ("x.csv", f"{','.join(AUDIOCAPS_HEADER)}\n1,{value},0,dog\n", "youtube_id"),
        "clotho": ("clotho_captions_x.csv", f"{','.join(CLOTHO_HEADER)}\na.wav,a,b,c,d,{value}\n", "caption_5"),
        "folder": ("x.csv", f"file_name,caption_1,other\n{value},dog,#NAME?\n", "file_name"),
    }
    name, text, column = lists[adapter]
    (tmp_path / name).write_text(text, encoding="utf-8")
    touch(tmp_path / "x/a.wav")
    with pytest.raises(
        PipelineError, match=rf"{name} row 2: {column} is {re.escape(value)}, the error value of a spre"
    ):
        read(adapter, tmp_path, "x")


@pytest.mark.parametrize("youtube_id", ["1.23E+10", "=0xzrMun0Rs", "01.03.2026", "'-0DdlOuIFUI", "a b"])
@pytest.mark.parametrize("adapter", ["audioset", "audiocaps"])
def test_an_id_that_no_video_has_is_named(tmp_path: Path, adapter: str, youtube_id: str) -> None:
    (tmp_path / "x_segments.csv").write_text(f"aaaaaaaaaaa,0,10,/m/1\n{youtube_id},0,10,/m/1\n")
    audiocaps(tmp_path, (2, youtube_id, 0, "two"), split="x")
    touch(tmp_path / "x/aaaaaaaaaaa_0.wav")
    with pytest.raises(PipelineError, match=rf'row 2: "{re.escape(youtube_id)}" is no id of YouTube; if a spreadsheet'):
        read(adapter, tmp_path, "x")


def test_ids_of_another_length_are_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    audiocaps(tmp_path, (1, "aaaaaaaaaaa", 0, "one"), (2, "1-Mar", 0, "two"), (3, "12345678", 0, "three"))
    touch(tmp_path / "val/aaaaaaaaaaa_0.wav")
    assert len(read("audiocaps", tmp_path, "val")) == 3
    assert any("2 ids do not have 11 characters" in line and 'row 3: "1-Mar"' in line for line in caplog.messages)


def test_fields_that_people_protect_from_a_spreadsheet_are_read(tmp_path: Path) -> None:
    (tmp_path / "val.csv").write_text(f'{",".join(AUDIOCAPS_HEADER)}\n1,="-0DdlOuIFUI",0,"=""a """"loud"""" dog"""\n')
    file = touch(tmp_path / "val/-0DdlOuIFUI_0.wav")
    (row,) = read("audiocaps", tmp_path, "val")
    assert (row.path, row.source_id, row.captions) == (file.as_posix(), "-0DdlOuIFUI", ('a "loud" dog',))


def test_freesound_ids_that_pandas_made_decimals_stay_ids(tmp_path: Path) -> None:
    clotho(tmp_path, "Rain.wav", "Sea.wav")
    touch(tmp_path / "development" / "Rain.wav")
    write_csv(tmp_path / "clotho_metadata_development.csv", ["file_name", "sound_id"], ["Rain.wav", "123456.0"],
              ["Sea.wav", "1.5"])  # fmt: skip
    assert [row.source_id for row in read("clotho", tmp_path, "development")] == ["123456", None]


# --- folder ----------------------------------------------------------------------------------------------------------


def test_a_list_of_a_folder_may_name_the_recordings(tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav"):
        touch(tmp_path / "train" / name)
    write_csv(
        tmp_path / "train.csv",
        ["file_name", "caption", "source_id"],
        ["a.wav", "rain", " -0Dd "],
        ["b.wav", "wind", ""],
    )
    assert [row.source_id for row in read("folder", tmp_path, "train")] == ["-0Dd", None]


def test_a_folder_without_a_list_gives_all_its_audio(tmp_path: Path) -> None:
    kinds = {"a.wav": {}, "b.flac": {}, "sub/c.ogg": {}, "sub/deeper/d.opus": {"format": "OGG", "subtype": "OPUS"}}
    for name, kind in (kinds | {"e.mp3": {}, "f.AIFF": {}}).items():
        write_audio(tmp_path / "train" / name, tone(), **kind)
    for name in ("notes.txt", ".hidden.wav", "._a.wav", ".cache/z.wav", "__MACOSX/a.wav"):
        touch(tmp_path / "train" / name)
    touch(tmp_path / "train/g.m4a")
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


@pytest.mark.parametrize(
    "listed",
    [
        *("./dog/1.wav", "dog\\1.wav", ".\\train\\dog\\1.wav", "./train/dog/1.wav", "dog//1.wav"),
        *("/home/someone/train/dog/1.wav", "C:\\data\\dog\\1.wav", "/old/dog/1.wav"),
    ],
)
def test_other_spellings_of_a_path_are_read(tmp_path: Path, listed: str) -> None:
    write_csv(tmp_path / "train.csv", ["file_name"], [listed], ["cat/1.wav"])
    dog, cat = touch(tmp_path / "train/dog/1.wav"), touch(tmp_path / "train/cat/1.wav")
    rows = read("folder", tmp_path, "train")
    assert [(row.source_name, row.path) for row in rows] == [(listed, dog.as_posix()), ("cat/1.wav", cat.as_posix())]


def test_an_absolute_name_is_the_file_that_is_there(tmp_path: Path) -> None:
    outside, inside = touch(tmp_path / "elsewhere/1.wav"), touch(tmp_path / "root/train/1.wav")
    names = [str(outside), str(inside), str(tmp_path / "gone/2.wav"), "/etc/passwd"]
    write_csv(tmp_path / "root/train.csv", ["file_name"], *([name] for name in names))
    rows = read("folder", tmp_path / "root", "train")
    assert [row.path for row in rows] == [str(outside), inside.as_posix(), None, None]


def test_a_name_as_it_is_listed_comes_before_other_spellings(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", ["file_name"], ["./a.wav"], ["a.wav"], ["dog\\b.wav"])
    first, second = touch(tmp_path / "train/a.wav"), touch(tmp_path / "train/dog\\b.wav")
    touch(tmp_path / "train/dog/b.wav")
    assert [row.path for row in read("folder", tmp_path, "train")] == [None, first.as_posix(), second.as_posix()]


def test_formats_that_people_have_are_listed(tmp_path: Path) -> None:
    names = ["a.w64", "b.mp2", "c.weba", "d.mkv", "e.3gp", "f.MOV", "g.wav"]
    for name in names:
        touch(tmp_path / "train" / name)
    assert [row.source_name for row in read("folder", tmp_path, "train")] == names


def test_a_column_split_says_which_rows_count(tmp_path: Path) -> None:
    rows = [["train/a.wav", "dog", "train"], ["test/b.wav", "cat", "test"], ["c.wav", "cow", " train "]]
    write_csv(tmp_path / "metadata.csv", ["file_name", "caption_1", "split"], *rows)
    for name in ("train/a.wav", "test/b.wav", "train/c.wav"):
        touch(tmp_path / name)
    assert [row.captions for row in read("folder", tmp_path, "train")] == [("dog",), ("cow",)]
    assert [row.captions for row in read("folder", tmp_path, "test")] == [("cat",)]
    with pytest.raises(PipelineError, match=r"metadata.csv: its column split has no val; found test, train"):
        read("folder", tmp_path, "val")


@pytest.mark.parametrize("name", ["captions.csv", "train/captions.jsonl", "metadata.json"])
def test_lists_of_other_names_are_shown(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path / "train/a.wav"), touch(tmp_path / name), touch(tmp_path / "~$captions.csv")
    assert len(read("folder", tmp_path, "train")) == 1
    message = "no list of captions; looked for train, train/metadata and metadata (.csv, .tsv, .jsonl)"
    assert f"{message} in {tmp_path}, found {name}" in caplog.messages


LISTS = {
    ".csv": "file_name,caption\na.wav,a dog\nb.wav,\n",
    ".tsv": "file_name\tcaption\na.wav\ta dog\nb.wav\t\n",
    ".jsonl": '{"file_name": "a.wav", "caption": "a dog"}\n\n{"file_name": "b.wav", "caption": null, "n": 1}\n',
}


@pytest.mark.parametrize("extension", LISTS)
@pytest.mark.parametrize("stem", ["train", "train/metadata", "metadata"])
def test_lists_of_the_hub_are_read(tmp_path: Path, stem: str, extension: str) -> None:
    touch(tmp_path / "train/a.wav"), touch(tmp_path / "train/b.wav"), touch(tmp_path / "train/c.wav")
    (tmp_path / f"{stem}{extension}").write_text(LISTS[extension])
    rows = read("folder", tmp_path, "train")
    assert [(Path(row.path or "").name, row.captions) for row in rows] == [("a.wav", ("a dog",)), ("b.wav", ())]


@pytest.mark.parametrize(
    ("line", "captions"),
    [
        ('"captions": ["a dog", null, " a  cat"]', ("a dog", "a cat")),
        ('"text": "a dog", "caption": "a cat"', ("a cat",)),
        ('"caption_2": "a cat", "caption_1": "a dog", "text": "x"', ("a dog", "a cat")),
    ],
)
def test_json_lines_give_captions_by_any_known_name(tmp_path: Path, line: str, captions: tuple[str, ...]) -> None:
    touch(tmp_path / "train/a.wav")
    (tmp_path / "metadata.jsonl").write_text(f'{{"file_name": "a.wav", {line}}}')
    assert [row.captions for row in read("folder", tmp_path, "train")] == [captions]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "no file_name"),
        ('{"caption": "a dog"}', "no file_name"),
        ('{"file_name": "a.wav"', "is no JSON object"),
        ('{"file_name": "a.wav", "text": "a", "text": "b"}', "is there twice"),
        ('{"file_name": "a.wav", "text": {"en": "a dog"}}', "captions are text or a list of text"),
        ('{"file_name": "a.wav", "text": "\\ud800"}', "is no JSON object"),
    ],
)
def test_a_broken_json_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    touch(tmp_path / "train/a.wav")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "b.wav"}\n' + line)
    with pytest.raises(PipelineError, match=rf"metadata.jsonl row 2: .*{message}"):
        read("folder", tmp_path, "train")


def test_of_a_shared_list_the_rows_in_the_folder_of_the_split_count(tmp_path: Path) -> None:
    rows = [["train/a.wav", "dog"], ["test/b.wav", "cat"], ["train/c.wav", "cow"]]
    write_csv(tmp_path / "metadata.csv", ["file_name", "caption"], *rows)
    for name, _ in rows:
        touch(tmp_path / name)
    assert [row.captions for row in read("folder", tmp_path, "train")] == [("dog",), ("cow",)]
    assert [row.captions for row in read("folder", tmp_path, "test")] == [("cat",)]


def test_a_second_list_of_a_split_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path / "train/a.wav")
    for name in ("train.csv", "metadata.csv"):
        write_csv(tmp_path / name, ["file_name", "caption"], ["a.wav", name])
    assert [row.captions for row in read("folder", tmp_path, "train")] == [("train.csv",)]
    assert f"{tmp_path}/train.csv is read, and not {tmp_path}/metadata.csv" in caplog.messages


def test_a_column_of_captions_with_an_unknown_name_is_named(tmp_path: Path) -> None:
    touch(tmp_path / "train/a.wav")
    write_csv(tmp_path / "train.csv", ["file_name", "Caption_en"], ["a.wav", "a dog"])
    with pytest.raises(PipelineError, match=r"no column caption_1 or caption; found file_name, Caption_en; rename"):
        read("folder", tmp_path, "train")


def test_a_list_that_is_a_named_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train.csv")
    with pytest.raises(PipelineError, match=r"train.csv: is a named pipe"):
        read("folder", tmp_path, "train")


def test_a_missing_list_comes_with_the_lists_that_are_there(tmp_path: Path) -> None:
    touch(tmp_path / "validation.csv"), touch(tmp_path / "readme.txt")
    with pytest.raises(PipelineError, match=r"val.csv: cannot be read .*; lists found there: validation.csv$"):
        read("audiocaps", tmp_path, "val")


def test_a_missing_folder_comes_with_the_folders_that_are_there(tmp_path: Path) -> None:
    touch(tmp_path / "train/a.wav"), (tmp_path / ".cache").mkdir()
    with pytest.raises(PipelineError, match=r"no audio files below .*training; .* has the folders train; is the split"):
        read("folder", tmp_path, "training")


# --- lists and walks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252"])
def test_lists_are_read_in_any_encoding_in_use(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "train.csv").write_bytes("file_name,caption_1\r\n\r\nCafé.wav,a crowded café\r\n".encode(encoding))
    file = touch(tmp_path / "train/Café.wav")
    (row,) = read("folder", tmp_path, "train")
    assert (row.path, row.captions, row.row) == (file.as_posix(), ("a crowded café",), 3)


@pytest.mark.parametrize("separator", [";", "\t"])
@pytest.mark.parametrize("setting", ["", "sep={}\n"])
def test_lists_with_other_separators_are_read(tmp_path: Path, separator: str, setting: str) -> None:
    rows = [["file_name", "caption_1"], ["a.wav", "a dog, barking"], ["b.wav", '"a cat; purring"']]
    text = setting.format(separator) + "\n".join(separator.join(row) for row in rows)
    (tmp_path / "train.csv").write_text(text)
    touch(tmp_path / "train/a.wav"), touch(tmp_path / "train/b.wav")
    found = read("folder", tmp_path, "train")
    assert [row.captions for row in found] == [("a dog, barking",), ("a cat; purring",)]
    assert [row.row for row in found] == ([3, 4] if setting else [2, 3])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file_name,caption_1,caption_1\na.wav,dog,cat\n", r"train.csv: two columns are named caption_1"),
        ("file_name, file_name\na.wav,b.wav\n", r"train.csv: two columns are named file_name"),
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


def test_two_links_to_one_folder_are_both_read(tmp_path: Path) -> None:
    touch(tmp_path / "disk/a.wav")
    (tmp_path / "train").mkdir()
    for name in ("one", "two"):
        (tmp_path / "train" / name).symlink_to(tmp_path / "disk")
    (tmp_path / "disk/self").symlink_to(".")
    assert [row.source_name for row in read("folder", tmp_path, "train")] == ["one/a.wav", "two/a.wav"]


def test_two_links_to_one_file_are_no_ambiguity(tmp_path: Path) -> None:
    audiocaps(tmp_path, (1, "aaaaaaaaaaa", 0, "one"))
    file = touch(tmp_path / "val/a/aaaaaaaaaaa_0.wav")
    (tmp_path / "val/b").symlink_to(file.parent)
    clotho(tmp_path, "Rain.wav")
    rain = touch(tmp_path / "development/a/Rain.wav")
    (tmp_path / "development/b").symlink_to(rain.parent)
    assert [row.path for row in read("audiocaps", tmp_path, "val")] == [file.as_posix()]
    assert [row.path for row in read("clotho", tmp_path, "development")] == [rain.as_posix()]


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("gone.wav"), lambda path: path.symlink_to(path.name),
                                  os.mkfifo], ids=["broken link", "link to itself", "named pipe"])  # fmt: skip
@pytest.mark.parametrize("adapter", ["folder", "listed folder", "clotho", "audiocaps", "audioset"])
def test_what_is_no_file_is_a_missing_file(tmp_path: Path, adapter: str, make: Callable[[Path], None]) -> None:
    names = ("aaaaaaaaaaa_0.wav", "bbbbbbbbbbb_0.wav")
    if adapter == "listed folder":
        write_csv(tmp_path / "x.csv", ["file_name"], *([name] for name in names))
    clotho(tmp_path, *names, split="x")
    if adapter == "audiocaps":
        audiocaps(tmp_path, *((n, name[:11], 0, "dog") for n, name in enumerate(names)), split="x")
    (tmp_path / "x_segments.csv").write_text("".join(f"{name[:11]},0,10,/m/1\n" for name in names))
    file = touch(tmp_path / "x" / names[0])
    make(tmp_path / "x" / names[1])
    rows = read(adapter.rpartition(" ")[2], tmp_path, "x")
    assert [(row.path, row.reason) for row in rows] == [(file.as_posix(), None), (None, "missing_file")]


def test_a_file_serves_where_a_link_of_its_name_leads_nowhere(tmp_path: Path) -> None:
    audiocaps(tmp_path, (1, "aaaaaaaaaaa", 0, "one"))
    file = touch(tmp_path / "val/b/aaaaaaaaaaa_0.wav")
    (tmp_path / "val/a").mkdir()
    (tmp_path / "val/a/aaaaaaaaaaa_0.wav").symlink_to("gone.wav")
    assert [row.path for row in read("audiocaps", tmp_path, "val")] == [file.as_posix()]


def test_a_file_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    try:
        with open(os.fsencode(tmp_path / "train") + b"/caf\xe9.wav", "wb"):
            pass
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(PipelineError, match=r"1 file names are not UTF-8, the first 'caf.*wav'"):
        read("folder", tmp_path, "train")
