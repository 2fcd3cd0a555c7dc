"""Write the captioning page: index.html and the audio of the clips, in a folder that can be a dataset's root.

The page saves captions.csv, in the layout of the adapter `folder`. So with that file in it, the folder is the root of a
dataset with one split, `captions`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import soundfile

from pipeline.data.shards.reader import ShardReader
from pipeline.errors import PipelineError
from pipeline.evaluation.selection import Suggestion
from pipeline.files import make_folder_atomically
from pipeline.results.page.render import render_template

TEMPLATE = Path(__file__).with_name("captioning.html")


def check_new_folder(folder: Path) -> None:
    """Raise PipelineError unless a folder is empty or does not exist: a page in it may hold captions."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        found = "captions.csv" if (folder / "captions.csv").exists() else "other files"
        raise PipelineError(f"{folder}: holds {found} already and is not written to; give a new folder with --page")


def write_page(suggestions: Sequence[Suggestion], shards: ShardReader, folder: Path) -> None:
    """Write index.html and `audio/KEY.flac` of every clip to a new folder, which appears when it is complete.

    The samples are those of the shards. So shards of the folder hold the same audio, by which the leak guard and
    `suggest` recognise it.

    Raises:
        PipelineError: The folder holds files, or cannot be written, or a tar of the shards is damaged.
    """
    check_new_folder(folder)
    with make_folder_atomically(folder) as temporary:
        (temporary / "audio").mkdir()
        for clip in suggestions:
            shards.check_tar_of(clip.key)
            path = temporary / "audio" / f"{clip.key}.flac"
            soundfile.write(path, shards.read(clip.key), shards.sample_rate_hz, subtype="PCM_16")
        (temporary / "index.html").write_text(render(suggestions, shards), encoding="utf-8")


def render(suggestions: Sequence[Suggestion], shards: ShardReader) -> str:
    """Return the page as HTML, without other files than the audio."""
    keys = "\n".join(clip.key for clip in suggestions)
    return render_template(
        TEMPLATE,
        styles=["page.css", "captioning.css"],
        scripts=["player.js", "captioning.js"],
        split=f"{shards.dataset}/{shards.split}",
        page=hashlib.sha256(f"{shards.manifest_sha256}\n{keys}".encode()).hexdigest()[:16],
        clips=[
            {
                "file": f"audio/{clip.key}.flac",
                "name": clip.source_name,
                "source_id": clip.source_id or "",
                "seconds": shards.frames(clip.key) / shards.sample_rate_hz,
            }
            for clip in suggestions
        ],
    )
