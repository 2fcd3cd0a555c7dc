"""Mix one raw dataset of the small study from the recordings, in its publisher's layout.

    python -m pipeline.stages.mix_soundscapes --recordings data/recordings --dataset clotho --out results/raw/clotho

The adapters of the full study read the result as they read the real dataset. Its `soundscapes.csv` lists the
recordings of each clip. The same recordings, seed and scale give the same bytes.
"""

from __future__ import annotations

import argparse
import io
import logging
from pathlib import Path

import soundfile as sf

from pipeline.data.small_study.layouts import LAYOUTS, PROVENANCE, write_provenance
from pipeline.data.small_study.mixing import render
from pipeline.data.small_study.recordings import load_recordings
from pipeline.data.small_study.soundscapes import Soundscape, draw_split
from pipeline.data.small_study.styles import STYLES
from pipeline.errors import PipelineError
from pipeline.files import make_folder_atomically
from pipeline.stages import run

logger = logging.getLogger(__name__)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recordings", type=Path, required=True, help="folder with recordings.csv and audio/")
    parser.add_argument("--dataset", required=True, help=f"one of {', '.join(STYLES)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the number of clips of every split")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder to write; an earlier output of this stage is replaced"
    )
    args = parser.parse_args(argv)
    if args.dataset not in STYLES:
        raise PipelineError(f"--dataset {args.dataset}: no such dataset; choose one of {', '.join(STYLES)}")
    if args.seed < 0 or not args.scale > 0:
        raise PipelineError(f"--seed {args.seed} --scale {args.scale}: give a seed of at least 0 and a scale above 0")
    mix_dataset(args.dataset, args.recordings, args.out, seed=args.seed, scale=args.scale)


def mix_dataset(dataset: str, recordings_folder: Path, out: Path, *, seed: int, scale: float = 1.0) -> None:
    """Write a raw dataset to the folder `out`, which appears when it is complete.

    Raises:
        PipelineError: The recordings are unusable, or `out` contains other files.
    """
    if out.exists() and not (out / PROVENANCE).is_file() and (out.is_file() or any(out.iterdir())):
        raise PipelineError(f"{out}: contains files other than soundscapes; move them or choose another --out")
    recordings = {recording.file_name: recording for recording in load_recordings(recordings_folder)}
    layout = LAYOUTS[dataset]
    with make_folder_atomically(out) as temporary:
        clips: list[tuple[Soundscape, Path]] = []
        for split, settings in STYLES[dataset].splits.items():
            count = max(1, round(settings.clips * scale))
            drawn = draw_split(dataset, split, list(recordings.values()), seed=seed, clips=count)
            clips += [(one, layout.name(one, seed)) for one in drawn]
        for soundscape, name in clips:
            path = temporary / name
            path.parent.mkdir(exist_ok=True)
            # In memory, because soundfile waits for the disk after each file.
            buffer, samples = io.BytesIO(), render(soundscape, recordings)
            sf.write(buffer, samples, soundscape.rate_hz, format=path.suffix[1:], subtype="PCM_16")
            path.write_bytes(buffer.getvalue())
        layout.write_lists(temporary, clips, recordings, seed)
        write_provenance(temporary, clips)
    logger.info("%s: %d clips mixed from %d recordings in %s", dataset, len(clips), len(recordings), out)


if __name__ == "__main__":
    run(main)
