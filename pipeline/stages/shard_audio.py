"""Write one shard: the mono, resampled audio of its clips as a WebDataset tar, and a row a clip with its place."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.audio import WAV_HEADER_BYTES, UnusableAudio, flac_of, read_recording
from pipeline.catalogs import OK, REASONS, read_catalog
from pipeline.errors import PipelineError
from pipeline.files import sha256_of, write_atomically, write_parquet
from pipeline.shards import FACTS_KEY, ShardFacts, add_sample, rows_table, shard_name
from pipeline.stages import run

logger = logging.getLogger(__name__)

COPIED = ("key", "dataset", "split", "status", "reason", "source_id", "source_name", "start_s", "captions")


def clips_of_shard(catalog: pa.Table, shard: str, clips_per_shard: int, path: Path) -> list[dict[str, Any]]:
    """The catalog's rows that belong in a shard; PipelineError for a shard beyond its end."""
    shards = math.ceil(len(catalog) / clips_per_shard)
    names = [shard_name(index) for index in range(shards)]
    if shard not in names:
        raise PipelineError(
            f"{path}: no shard {shard}; {len(catalog)} clips, {clips_per_shard} a shard, make the shards "
            f"{names[0]} to {names[-1]}"
        )
    return catalog.slice(names.index(shard) * clips_per_shard, clips_per_shard).to_pylist()


def write_clips(
    clips: Iterable[Mapping[str, Any]],
    tar: tarfile.TarFile,
    *,
    shard: str,
    sample_rate_hz: int,
    audio_format: str,
    min_duration_s: float,
) -> list[dict[str, Any]]:
    """Append the clips to a tar and return the manifest's row of each, with a reason where the audio cannot be used."""
    rows = []
    for clip in clips:
        row = {name: clip[name] for name in COPIED} | {"shard": shard}
        rows.append(row)
        if clip["status"] != OK:
            continue
        try:
            recording = read_recording(clip["path"], sample_rate_hz=sample_rate_hz, min_duration_s=min_duration_s)
        except UnusableAudio as error:
            status, wording = REASONS[error.reason]
            row |= {"status": status, "reason": error.reason}
            logger.warning("%s %s: %s (%s)", clip["path"], wording, error, clip["key"])
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
    parser.add_argument("--shard", required=True, help="which shard of the catalog: 00000, 00001, ...")
    parser.add_argument("--clips-per-shard", type=int, required=True)
    parser.add_argument("--sample-rate-hz", type=int, required=True)
    parser.add_argument(
        "--format", choices=["wav", "flac"], required=True, help="wav: read by offset; flac: half the size"
    )
    parser.add_argument("--min-duration-s", type=float, default=0.1, help="drop shorter clips (default: %(default)s)")
    parser.add_argument("--tar", type=Path, required=True, help="tar file to write")
    parser.add_argument("--rows", type=Path, required=True, help="Parquet file to write")
    args = parser.parse_args(argv)
    for name in ("clips_per_shard", "sample_rate_hz"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, not {getattr(args, name)}")

    clips = clips_of_shard(read_catalog(args.catalog), args.shard, args.clips_per_shard, args.catalog)
    args.rows.unlink(missing_ok=True)  # rows of an earlier tar must not stand beside a new one
    with write_atomically(args.tar) as temporary:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            rows = write_clips(
                clips,
                tar,
                shard=args.shard,
                sample_rate_hz=args.sample_rate_hz,
                audio_format=args.format,
                min_duration_s=args.min_duration_s,
            )
        facts = ShardFacts(
            shard=args.shard,
            format=args.format,
            sample_rate_hz=args.sample_rate_hz,
            clips=sum(row["status"] == OK for row in rows),
            bytes=temporary.stat().st_size,
            sha256=sha256_of(temporary),
        )
    table = rows_table(rows).replace_schema_metadata({FACTS_KEY: json.dumps(asdict(facts))})
    write_parquet(table, args.rows)
    logger.info("%s: %d of %d clips, %d bytes", args.tar, facts.clips, len(rows), facts.bytes)


if __name__ == "__main__":
    run(main)
