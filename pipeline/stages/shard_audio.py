"""Write one shard: the mono, resampled audio of its clips as a WebDataset tar, and a row a clip with its place."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.data.audio import CHANNELS, WAV_HEADER_BYTES, UnusableAudio, flac_of, read_recording
from pipeline.data.catalogs import OK, REASONS
from pipeline.data.containers import Members, place_of
from pipeline.data.shards.format import FACTS_KEY, ShardFacts, rows_table
from pipeline.data.shards.partition import FIRST_SHARD, digest_of, read_shard
from pipeline.data.shards.writer import add_sample
from pipeline.errors import PipelineError
from pipeline.files import sha256_of, write_atomically, write_parquet
from pipeline.stages import run

logger = logging.getLogger(__name__)

COPIED = ("key", "dataset", "split", "status", "reason", "source_id", "source_name", "start_s", "captions")


def write_clips(
    clips: Sequence[Mapping[str, Any]],
    tar: tarfile.TarFile,
    members: Members,
    *,
    shard: str,
    sample_rate_hz: int,
    audio_format: str,
    min_duration_s: float,
    channels: str,
) -> list[dict[str, Any]]:
    """Append the clips to a tar and return the manifest's row of each, with a reason where the audio cannot be used."""
    rows = []
    for clip in clips:
        row = {name: clip[name] for name in COPIED} | {"shard": shard}
        rows.append(row)
        if clip["status"] != OK:
            continue
        try:
            source = clip["path"] if clip["member"] is None else members.read(clip["path"], clip["member"])
            if source is None:
                raise UnusableAudio("missing_file", "the row holds no bytes")
            recording = read_recording(
                source, sample_rate_hz=sample_rate_hz, min_duration_s=min_duration_s, channels=channels
            )
        except UnusableAudio as error:
            status, wording = REASONS[error.reason]
            row |= {"status": status, "reason": error.reason}
            logger.warning("%s %s: %s (%s)", place_of(clip), wording, error, clip["key"])
            continue
        audio = recording.wav if audio_format == "wav" else flac_of(recording)
        frames = len(recording.samples_S)
        facts = {  # in every sample the same names and types, none null, as datasets of Hugging Face want it
            "captions": clip["captions"],
            "dataset": clip["dataset"],
            "split": clip["split"],
            "source_name": clip["source_name"],
            "source_id": clip["source_id"] or "",
            "start_s": -1.0 if clip["start_s"] is None else clip["start_s"],
            "frames": frames,
            "sample_rate_hz": sample_rate_hz,
        }
        offset = add_sample(tar, clip["key"], audio_format, audio, facts)
        row |= {
            "data_offset": offset,
            "data_size": len(audio),
            "pcm_offset": offset + WAV_HEADER_BYTES if audio_format == "wav" else None,
            "frames": frames,
            "sample_rate_hz": sample_rate_hz,
            "source_sample_rate_hz": recording.source_sample_rate_hz,
            "source_channels": recording.source_channels,
            "peak_dbfs": recording.peak_dbfs,
            "rms_dbfs": recording.rms_dbfs,
            "sha256": hashlib.sha256(audio).hexdigest(),
        }
    return rows


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--catalog", type=Path, required=True, help="Parquet file of index_audio")
    parser.add_argument("--shard", required=True, help=f"which shard of the catalog: {FIRST_SHARD}, or its first key")
    parser.add_argument("--clips-per-shard", type=int, required=True, help="at most so many clips a shard")
    parser.add_argument(
        "--clips", type=int, help="how many rows of the catalog the shard has; without it the keys of all are read"
    )
    parser.add_argument("--digest", help="refuse a catalog whose rows of this shard have another digest")
    parser.add_argument("--sample-rate-hz", type=int, required=True)
    parser.add_argument(
        "--format", choices=["wav", "flac"], required=True, help="wav: read by offset; flac: half the size"
    )
    parser.add_argument(
        "--channels", choices=CHANNELS, default="mean", help="what is kept of several (default: %(default)s)"
    )
    parser.add_argument("--min-duration-s", type=float, default=0.1, help="drop shorter clips (default: %(default)s)")
    parser.add_argument("--tar", type=Path, required=True, help="tar file to write")
    parser.add_argument("--rows", type=Path, required=True, help="Parquet file to write")
    args = parser.parse_args(argv)
    for name in ("clips_per_shard", "sample_rate_hz"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, not {getattr(args, name)}")

    table = read_shard(args.catalog, args.shard, clips_per_shard=args.clips_per_shard, clips=args.clips)
    digest = digest_of(table)
    if args.digest not in (None, digest):
        raise PipelineError(
            f"{args.catalog}: the rows of shard {args.shard} have the digest {digest}, {args.digest} asked; "
            "the catalog was made anew since the shard was planned, run Snakemake again"
        )
    clips = table.to_pylist()
    args.rows.unlink(missing_ok=True)  # rows of an earlier tar must not stand beside a new one
    with write_atomically(args.tar) as temporary:
        places = [(clip["path"], clip["member"]) for clip in clips if clip["status"] == OK and clip["member"]]
        with (
            tempfile.TemporaryFile(dir=args.tar.parent) as spool,
            tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            rows = write_clips(
                clips,
                tar,
                Members(places, spool),
                shard=args.shard,
                sample_rate_hz=args.sample_rate_hz,
                audio_format=args.format,
                min_duration_s=args.min_duration_s,
                channels=args.channels,
            )
        facts = ShardFacts(
            shard=args.shard,
            format=args.format,
            sample_rate_hz=args.sample_rate_hz,
            channels=args.channels,
            clips=sum(row["status"] == OK for row in rows),
            bytes=temporary.stat().st_size,
            sha256=sha256_of(temporary),
            rows_digest=digest,
        )
    written = rows_table(rows).replace_schema_metadata({FACTS_KEY: json.dumps(asdict(facts))})
    write_parquet(written, args.rows)
    logger.info("%s: %d of %d clips, %d bytes", args.tar, facts.clips, len(rows), facts.bytes)


if __name__ == "__main__":
    run(main)
