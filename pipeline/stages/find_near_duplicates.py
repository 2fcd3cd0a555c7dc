"""Report the clips of a split that share a passage with a held-out clip, found by spectral fingerprints."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline.data.near_duplicates import FingerprintIndex, fingerprint_of
from pipeline.data.shards.format import usable_batches
from pipeline.data.shards.reader import ShardReader, open_shards
from pipeline.errors import PipelineError
from pipeline.files import write_json
from pipeline.stages import run

logger = logging.getLogger(__name__)

MEANING = (
    "Pairs of a clip of the split and a held-out clip that share a stretch of 1.9 s or more: `differing` is the share "
    "of fingerprint bits that differ (0: the same samples; up to 0.35 is reported; 0.5: no relation), `offset_s` where "
    "the held-out clip begins in the other. A pair is a reason to listen, not a proof; a pair that is missing proves "
    "nothing either. Of 27 recordings of 3.9 s to 10 s at 16 kHz all were found re-encoded (Ogg Vorbis, MP3), 6 dB "
    "louder or softer, cut to their middle half, and resampled through 8 and 44.1 kHz; 25 with white noise 20 dB below "
    "them, 16 mixed in equal parts with another recording, and none at 1.05 times the speed. No pair of distinct "
    "recordings among 86 was reported. Not seen: other speeds or pitches, clips that share less than 1.9 s, sounds "
    "without energy that changes between 300 and 2,000 Hz, and two recordings of one event."
)


def clips_of(reader: ShardReader, description: str) -> Iterator[tuple[str, NDArray[np.uint32]]]:
    """Yield key and fingerprint of every usable clip of a split, with a progress bar; memory holds one clip."""
    batches = usable_batches(reader.folder / "manifest.parquet", ["key"])
    keys = (key for batch in batches for key in batch["key"].to_pylist())
    for row, key in enumerate(tqdm(keys, total=len(reader), unit="clip", desc=description, disable=None)):
        yield key, fingerprint_of(reader.read_clip(row), reader.sample_rate_hz)


def near_duplicates(split: ShardReader, held_out: Sequence[ShardReader]) -> dict[str, Any]:
    """Return the report on the clips of a split that share a passage with a held-out clip."""
    held_out_clips = [clip for reader in held_out for clip in clips_of(reader, "held out")]
    index = FingerprintIndex([fingerprint for _, fingerprint in held_out_clips])
    pairs, too_short = [], 0
    for key, fingerprint in clips_of(split, "split"):
        too_short += len(fingerprint) == 0
        for match in index.matches(fingerprint):
            found = {"differing": match.differing, "offset_s": match.offset_s, "shared_s": match.shared_s}
            pairs.append({"key": key, "held_out_key": held_out_clips[match.clip][0], **found})
    return {
        "held_out": sorted(str(reader.folder) for reader in held_out),
        "clips": len(split),
        "clips_too_short": too_short,
        "held_out_clips": len(held_out_clips),
        "meaning": MEANING,
        "pairs": sorted(pairs, key=lambda pair: (pair["differing"], pair["key"], pair["held_out_key"])),
    }


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=Path, required=True, help="folder of the split's shards")
    parser.add_argument("--held-out", type=Path, nargs="+", required=True, help="folders of held-out splits' shards")
    parser.add_argument("--report", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args(argv)

    others = [folder for folder in args.held_out if folder.resolve() != args.shards.resolve()]
    split, *held_out = (open_shards(folder, verify=True) for folder in (args.shards, *others))
    if not held_out:
        raise PipelineError(f"{args.shards}: no held-out split other than this one; add one to --held-out")
    found = near_duplicates(split, held_out)
    write_json({"split": str(args.shards), **found}, args.report)
    logger.info(
        "%s: %d pairs of %d clips and %d held-out ones",
        args.report, len(found["pairs"]), found["clips"], found["held_out_clips"],
    )  # fmt: skip


if __name__ == "__main__":
    run(main)
