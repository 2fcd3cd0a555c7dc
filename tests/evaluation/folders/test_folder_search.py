"""Search in a folder of recordings: real files and a real model in, moments out."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from recordings import HOP_S, WINDOW_S, field, tone, write

import pipeline
from pipeline.errors import PipelineError
from pipeline.evaluation.embedding import embed_sounds
from pipeline.evaluation.folders import indexing
from pipeline.evaluation.folders.chance import leads, reference_captions, threshold
from pipeline.evaluation.folders.search import search_folder
from pipeline.evaluation.vectors import unit_rows
from pipeline.models import load_model, mini, save_model
from tests.forks import run_python

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def model(tiny_study) -> pipeline.AudioTextModel:
    return pipeline.load(tiny_study.pretrained)


@pytest.fixture
def recordings(tmp_path) -> Path:
    return field(tmp_path / "recordings")


@pytest.fixture
def embedded(monkeypatch) -> list[str]:
    """The names of the files whose windows are embedded, one per window."""
    names: list[str] = []
    add = indexing._Embedder.add
    monkeypatch.setattr(
        indexing._Embedder, "add", lambda self, file, window: (names.append(file.name), add(self, file, window))
    )
    return names


def test_scores_are_the_cosines_of_the_windows(model, recordings, tmp_path):
    found = search_folder("a tone", model, recordings, top=50, index=tmp_path / "index")
    samples = np.concatenate([tone(4, 300), tone(5, 2500, 1)])
    text_D = model.embed_text(["a tone"])[0]
    best = max(found.hits, key=lambda hit: (hit.file == "a.wav", hit.score))
    scores = []
    for number in range(7):  # the last but one ends at 8.96 s
        first = round(number * HOP_S * 16_000)
        window = (samples[first : first + 40_960].astype(np.float32), 16_000)
        scores.append(float(unit_rows(embed_sounds(model.network, [window], "first", 1, "mean"))[0] @ text_D))
    assert best.score == pytest.approx(max(scores), abs=1e-4)
    assert (found.files, found.windows) == (3, 7 + 4 + 1) and found.duration_s == pytest.approx(15.1)
    assert [hit.rank for hit in found.hits] == list(range(1, len(found.hits) + 1))
    assert [hit.score for hit in found.hits] == sorted((hit.score for hit in found.hits), reverse=True)


def test_a_sound_of_the_folder_finds_its_place(model, recordings, tmp_path):
    example = write(tmp_path / "example.wav", tone(WINDOW_S, 900, 9))
    hit = search_folder(example, model, recordings, top=1, index=tmp_path / "index").hits[0]
    assert hit.file == "sub/b.flac" and 0 <= hit.start_s < hit.end_s <= 6


def test_hits_lie_in_their_recordings_and_do_not_overlap(model, recordings, tmp_path):
    found = search_folder("noise hisses", model, recordings, top=50, index=tmp_path / "index")
    lengths = {"a.wav": 9, "sub/b.flac": 6, "short.wav": 0.1}
    by_file: dict[str, list[tuple[float, float]]] = {}
    for hit in found.hits:
        assert 0 <= hit.start_s < hit.end_s <= lengths[hit.file]
        by_file.setdefault(hit.file, []).append((hit.start_s, hit.end_s))
    assert set(by_file) == set(lengths)
    for spans in by_file.values():
        spans.sort()
        assert all(one[1] <= other[0] for one, other in itertools.pairwise(spans))


def test_top_hits_are_the_first_of_all(model, recordings, tmp_path):
    all_hits = search_folder("a high tone", model, recordings, top=100, index=tmp_path / "index").hits
    for top in range(1, len(all_hits)):
        assert search_folder("a high tone", model, recordings, top=top, index=tmp_path / "index").hits == all_hits[:top]


def test_only_new_and_changed_files_are_embedded(model, recordings, tmp_path, embedded):
    def search() -> list[str]:
        embedded.clear()
        found = search_folder("a tone", model, recordings, top=100, index=tmp_path / "index")
        assert {hit.file for hit in found.hits} == {
            path.relative_to(recordings).as_posix() for path in recordings.rglob("*.*")
        }
        return sorted(set(embedded))

    assert search() == ["a.wav", "short.wav", "sub/b.flac"]
    assert search() == []
    write(recordings / "new.ogg", tone(3, 1200, 4))
    assert search() == ["new.ogg"]
    write(recordings / "a.wav", tone(5, 200, 5))
    assert search() == ["a.wav"]
    (recordings / "short.wav").unlink()
    assert search() == []


def test_an_index_that_grew_equals_a_new_one(model, recordings, tmp_path):
    search_folder("a tone", model, recordings, index=tmp_path / "index")
    write(recordings / "a.wav", tone(7, 200, 5))
    write(recordings / "new.flac", tone(12, 1500, 6))
    (recordings / "sub" / "b.flac").unlink()
    grown = search_folder("a tone", model, recordings, index=tmp_path / "index")
    made = search_folder("a tone", model, recordings, index=tmp_path / "another")
    assert [(hit.file, hit.start_s, hit.end_s) for hit in grown.hits] == [
        (hit.file, hit.start_s, hit.end_s) for hit in made.hits
    ]
    assert [hit.score for hit in grown.hits] == pytest.approx([hit.score for hit in made.hits], abs=1e-5)
    assert (grown.files, grown.windows, grown.duration_s) == (made.files, made.windows, made.duration_s)


def test_mostly_dead_indexes_shrink(model, recordings, tmp_path):
    for number in range(6):
        write(recordings / f"{number}.wav", tone(6, 300 + 200 * number, number))
    search_folder("a tone", model, recordings, index=tmp_path / "index")
    (vectors,) = (tmp_path / "index").glob("*/vectors-*.f32")
    before = vectors.stat().st_size
    for number in range(6):
        (recordings / f"{number}.wav").unlink()
    found = search_folder("a tone", model, recordings, index=tmp_path / "index")
    (vectors,) = (tmp_path / "index").glob("*/vectors-*.f32")
    assert vectors.stat().st_size == 4 * 128 * found.windows < before / 2


def test_another_model_or_hop_has_an_index_of_its_own(model, tiny_study, recordings, tmp_path):
    before = search_folder("a tone", model, recordings, index=tmp_path / "index")
    changed = load_model(tiny_study.pretrained)
    with torch.no_grad():
        next(changed.audio_encoder.projection.parameters()).add_(0.1)
    save_model(changed, tmp_path / "run")
    other = search_folder("a tone", tmp_path / "run", recordings, index=tmp_path / "index")
    assert other.hits != before.hits
    assert search_folder("a tone", model, recordings, hop_s=2.56, index=tmp_path / "index").windows < before.windows
    assert len(list((tmp_path / "index").iterdir())) == 3
    assert search_folder("a tone", model, recordings, index=tmp_path / "index") == before


def test_files_that_cannot_be_decoded_are_listed_with_their_reasons(model, recordings, tmp_path, embedded):
    (recordings / "text.wav").write_text("no sound")
    (recordings / "empty.flac").touch()
    write(recordings / "silent.wav", np.zeros(50_000))
    write(recordings / "no samples.wav", np.zeros(0))
    (recordings / "link.wav").symlink_to("nowhere.wav")
    cut = write(recordings / "cut.wav", tone(20, 500))
    os.truncate(cut, cut.stat().st_size // 2)
    expected = {
        "text.wav": "undecodable",
        "empty.flac": "empty",
        "silent.wav": "silent",
        "no samples.wav": "empty",
        "link.wav": "unreadable",
        "cut.wav": "truncated",
    }
    found = search_folder("a tone", model, recordings, index=tmp_path / "index")
    assert {entry.file: entry.reason for entry in found.unsearched} == expected
    parts = {entry.file: entry.searched_s for entry in found.unsearched if entry.searched_s}
    assert list(parts) == ["cut.wav"] and 5 < parts["cut.wav"] <= 10
    embedded.clear()
    again = search_folder("a tone", model, recordings, index=tmp_path / "index")
    assert {entry.file: entry.reason for entry in again.unsearched} == expected and not embedded
    assert again.hits == found.hits


def test_a_folder_without_a_usable_recording_is_refused(model, tmp_path):
    folder = tmp_path / "recordings"
    folder.mkdir()
    (folder / "a.wav").touch()
    (folder / "b.wav").touch()
    with pytest.raises(PipelineError, match=r"none of 2 audio files can be searched; the first, a\.wav, is empty"):
        search_folder("a tone", model, folder, index=tmp_path / "index")


@pytest.mark.parametrize("change", ["vanishes", "changes"])
def test_a_recording_that_changes_meanwhile_is_listed_and_indexed_next_time(
    model, recordings, tmp_path, monkeypatch, change
):
    path = recordings / "sub" / "b.flac"
    stream = indexing.decode_ahead

    def meanwhile(*args):
        for file, item in stream(*args):
            if path.exists() and file.name == "a.wav" and not meanwhile.done:
                meanwhile.done = True
                path.unlink() if change == "vanishes" else os.utime(path, (5, 5))
            yield file, item

    meanwhile.done = False
    monkeypatch.setattr(indexing, "decode_ahead", meanwhile)
    found = search_folder("a tone", model, recordings, top=100, index=tmp_path / "index")
    (entry,) = found.unsearched
    assert entry.file == "sub/b.flac" and entry.reason == ("unreadable" if change == "vanishes" else "changed")
    assert "sub/b.flac" not in {hit.file for hit in found.hits}
    again = search_folder("a tone", model, recordings, top=100, index=tmp_path / "index")
    assert ("sub/b.flac" in {hit.file for hit in again.hits}) == (change == "changes") and not again.unsearched


def test_a_killed_search_goes_on(model, tiny_study, recordings, tmp_path, embedded):
    """The kill comes in the middle of a long recording, after a commit of its first windows."""
    write(recordings / "long.flac", tone(100, 700, 8))
    code = (
        "import os, signal, sys\n"
        "from pipeline.evaluation.folders import index, indexing, search\n"
        "indexing._COMMIT_S, indexing.BATCH_SIZE = 0, 8\n"
        "commit, commits = index.IndexWriter.commit, []\n"
        "def kill(self):\n"
        "    commit(self)\n"
        "    commits.append(1)\n"
        "    if self._rows > 30:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "index.IndexWriter.commit = kill\n"
        "search.search_folder('a tone', sys.argv[1], sys.argv[2], index=sys.argv[3])\n"
    )
    arguments = [str(tiny_study.pretrained), str(recordings), str(tmp_path / "index")]
    killed = run_python("-c", code, *arguments, cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-500:]
    found = search_folder("a tone", model, recordings, index=tmp_path / "index")
    total = found.windows
    assert 0 < len(embedded) < total - 25 and "long.flac" in embedded
    made = search_folder("a tone", model, recordings, index=tmp_path / "another")
    assert [(hit.file, hit.start_s, hit.end_s) for hit in found.hits] == [
        (hit.file, hit.start_s, hit.end_s) for hit in made.hits
    ]
    assert made.windows == total


@pytest.mark.parametrize(
    "name", ["tab\tand\nline.wav", "<script>alert(1).wav", os.fsdecode(b"not utf-8 \xff.wav"), '"; rm -rf.wav']
)
def test_names_of_every_kind_are_found(model, tmp_path, name):
    folder = tmp_path / "recordings"
    write(folder / "a.wav", tone(3)).rename(folder / name)
    for _ in range(2):
        assert search_folder("a tone", model, folder, index=tmp_path / "index").hits[0].file == name


def test_a_diverged_model_is_named(tmp_path, recordings):
    network = mini.build(mini.byte_tokenizer())
    with torch.no_grad():
        for parameter in network.audio_encoder.parameters():
            parameter.fill_(torch.nan)
    save_model(network, tmp_path / "run")
    with pytest.raises(PipelineError, match=r"the embedding of a\.wav, window 0, is not finite .* diverge"):
        search_folder("x", tmp_path / "run", recordings)


def test_the_index_is_next_to_the_run_unless_it_cannot_be_written(
    tiny_study, recordings, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = Path(shutil.copytree(tiny_study.pretrained, tmp_path / "run"))
    expected = search_folder("a tone", run, recordings)
    assert len(list(run.glob("index/folder-*/vectors-0.f32"))) == 1
    shutil.rmtree(run / "index")
    (run / "index").write_text("a file where the folder would be")
    assert search_folder("a tone", run, recordings) == expected
    assert len(list(tmp_path.glob("cache/audio-composed-text/index/folder-*/vectors-0.f32"))) == 1
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("a file where the folder would be")
    assert search_folder("a tone", run, recordings) == expected and "the index cannot be kept" in caplog.text


def test_a_complete_index_is_used_where_it_cannot_be_written(tiny_study, recordings, tmp_path, monkeypatch, embedded):
    """A read-only folder is simulated: root may write everywhere."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = Path(shutil.copytree(tiny_study.pretrained, tmp_path / "run"))
    expected = search_folder("a tone", run, recordings)
    make = tempfile.TemporaryFile

    def refuse(*args, dir=None, **options):
        if dir is not None and Path(dir).is_relative_to(run):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(dir))
        return make(*args, dir=dir, **options)

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    embedded.clear()
    assert search_folder("a tone", run, recordings) == expected and not embedded
    write(recordings / "new.wav", tone(3, 1000, 7))
    assert search_folder("a tone", run, recordings).files == 4 and "a.wav" in embedded
    assert len(list(tmp_path.glob("cache/audio-composed-text/index/folder-*"))) == 1


def test_refusals_name_the_cause(model, recordings, tmp_path):
    def refused(message: str, query: str | Path = "x", **options: float) -> None:
        with pytest.raises(PipelineError, match=message):
            search_folder(query, model, recordings, index=tmp_path / "index", **options)

    refused("the query text is blank", " ")
    refused(r"a hop of 3 s; give 0\.0256 to 2\.56 s", hop_s=3)
    refused("a hop of 0 s; give", hop_s=0)
    refused("like_chance is 1; give a probability", like_chance=1)
    refused("like_chance compares a text with other texts", recordings / "a.wav", like_chance=0.01)
    with pytest.raises(PipelineError, match="nowhere: not found; give the folder of a split or of recordings"):
        search_folder("x", model, tmp_path / "nowhere")


# --- chance ----------------------------------------------------------------------------------------------------------


def test_captions_of_absent_sounds_exceed_the_threshold_as_often_as_asked():
    """Scores without structure: the maxima over 500 windows, of references and of texts, have one distribution."""
    generator = np.random.default_rng(0)
    shown = []
    for _ in range(40):
        windows, references, texts = (unit_rows(generator.standard_normal((n, 32))) for n in (500, 200, 50))
        searched = np.ones(500, bool)
        highest = [leads(windows, searched, text, references) for text in texts]
        shown += [lead.max() > threshold(maxima, 0.1) for lead, maxima in highest]
    assert 0.05 < np.mean(shown) < 0.16


def test_sounds_that_are_there_do_not_raise_the_threshold():
    generator = np.random.default_rng(1)
    windows, references = (unit_rows(generator.standard_normal((n, 32))) for n in (500, 200))
    searched = np.ones(500, bool)
    before = threshold(leads(windows, searched, references[0], references)[1], 0.01)
    windows[:40] = references[:40]  # a fifth of the references sounds
    after = threshold(leads(windows, searched, references[0], references)[1], 0.01)
    assert after < 1.3 * before


def test_dead_rows_do_not_count_for_the_references():
    generator = np.random.default_rng(2)
    windows, references = (unit_rows(generator.standard_normal((n, 8))) for n in (60, 20))
    living = np.arange(60) < 40
    highest = leads(windows, living, references[0], references)[1]
    np.testing.assert_allclose(highest, leads(windows[:40], living[:40], references[0], references)[1])


def test_reference_captions_are_distinct():
    captions = reference_captions()
    assert len(captions) == len(set(captions)) >= 200 and all(caption.strip() == caption != "" for caption in captions)


def test_like_chance_shows_a_part_of_the_hits(model, recordings, tmp_path):
    def shown(like_chance: float | None) -> int:
        return len(
            search_folder("a tone", model, recordings, top=99, like_chance=like_chance, index=tmp_path / "i").hits
        )

    assert shown(1e-9) <= shown(0.01) <= shown(0.9) <= shown(None)
    assert shown(1e-9) == 0
