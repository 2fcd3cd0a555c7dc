"""Write the shards of one part of a split: WebDataset tars of resampled mono audio, and a row file per tar.

Complete shards that were made from the same rows with the same settings are kept.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import math
import os
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.audio import CHANNELS
from pipeline.data.catalogs import OK, SEGMENT_COLUMNS
from pipeline.data.containers import Members
from pipeline.data.parquet import write_parquet
from pipeline.data.shards.format import FACTS_KEY, ShardFacts, read_rows, rows_table
from pipeline.data.shards.partition import Assignment, part_of, read_plan, read_shard
from pipeline.data.shards.settings import AudioSettings
from pipeline.data.shards.stretch_reader import StretchReader
from pipeline.data.shards.writer import write_clips
from pipeline.errors import PipelineError, lacks_memory
from pipeline.files import sha256_of, write_atomically, write_json
from pipeline.stages import VERSIONS, at_least, between, run

logger = logging.getLogger(__name__)


def sources_digest(clips: Sequence[Mapping[str, Any]]) -> str:
    """Return a digest of the sizes and times of the clips' files; it shows that a file was replaced."""
    digest = hashlib.sha256()
    for path in sorted({clip["path"] for clip in clips if clip["status"] == OK}):
        try:
            found = os.stat(path)
            digest.update(f"{path}\0{found.st_size}\0{found.st_mtime_ns}\n".encode(errors="surrogateescape"))
        except OSError:
            digest.update(f"{path}\0missing\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]


@dataclass(frozen=True, kw_only=True)
class ShardMaker:
    """Makes the shards of a catalog in a folder."""

    catalog: Path
    folder: Path
    settings: AudioSettings

    def kept(self, assignment: Assignment) -> ShardFacts | None:
        """Return the facts of a complete shard with these rows and settings; None if the shard must be made."""
        rows = self.folder / f"{assignment.shard}.parquet"
        if not rows.exists():
            return None
        try:
            _, facts = read_rows(rows)
            if not self._has_same_settings(facts, assignment):
                return None
            clips = read_shard(self.catalog, assignment).to_pylist()
            if facts.sources not in (None, sources_digest(clips)):
                return None
            if rows.with_suffix(".tar").stat().st_size != facts.bytes:
                return None
        except FileNotFoundError:
            return None
        except PipelineError as error:
            logger.warning("%s (making it now)", error)
            return None
        return facts

    def _has_same_settings(self, facts: ShardFacts, assignment: Assignment) -> bool:
        settings = self.settings
        expected = (assignment.digest, VERSIONS["shard_audio"], settings.sample_rate_hz, settings.audio_format)
        found = (facts.rows_digest, facts.version, facts.sample_rate_hz, facts.format)
        same_duration = facts.min_duration_s in (None, settings.min_duration_s)
        same_levels = facts.channels == settings.channels and facts.min_level_dbfs == settings.min_level_dbfs
        return found == expected and same_levels and same_duration

    def stretches_of(self, assignments: Sequence[Assignment]) -> StretchReader:
        """Return the reader of the stretches of recordings in some shards, which are made in this order."""

        def clips() -> Iterator[Mapping[str, Any]]:
            for assignment in assignments:
                yield from read_shard(self.catalog, assignment).to_pylist()

        return StretchReader(clips(), self.folder, self.settings)

    def make(self, assignment: Assignment, stretches: StretchReader) -> ShardFacts:
        """Write a shard's tar, then its row file, each atomically."""
        clips = read_shard(self.catalog, assignment).to_pylist()
        sources = sources_digest(clips)  # before reading, so that the next run notices a file that changes now
        tar_path = self.folder / f"{assignment.shard}.tar"
        rows_path = tar_path.with_suffix(".parquet")
        rows_path.unlink(missing_ok=True)  # rows of an earlier tar must not be next to a new tar
        with write_atomically(tar_path) as temporary:
            rows = self._write_tar(clips, stretches, temporary, assignment.shard)
            facts = ShardFacts(
                shard=assignment.shard,
                format=self.settings.audio_format,
                sample_rate_hz=self.settings.sample_rate_hz,
                channels=self.settings.channels,
                min_duration_s=self.settings.min_duration_s,
                min_level_dbfs=self.settings.min_level_dbfs,
                version=VERSIONS["shard_audio"],
                sources=sources,
                clips=sum(row["status"] == OK for row in rows),
                bytes=temporary.stat().st_size,
                sha256=sha256_of(temporary),
                rows_digest=assignment.digest,
            )
        write_parquet(rows_table(rows).replace_schema_metadata({FACTS_KEY: facts.footer()}), rows_path)
        logger.info("%s: %d of %d clips, %d bytes", tar_path, facts.clips, len(rows), facts.bytes)
        return facts

    def _write_tar(
        self, clips: Sequence[Mapping[str, Any]], stretches: StretchReader, path: Path, shard: str
    ) -> list[dict[str, Any]]:
        whole = [clip for clip in clips if clip["status"] == OK and clip.get(SEGMENT_COLUMNS[0]) is None]
        places = [(clip["path"], clip["member"]) for clip in whole if clip["member"]]
        with (
            tempfile.TemporaryFile(dir=path.parent) as spool,
            tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            return write_clips(clips, tar, Members(places, spool), stretches, shard=shard, settings=self.settings)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--catalog", type=Path, required=True, help="Parquet file of index_audio")
    parser.add_argument("--plan", type=Path, required=True, help="Parquet file of index_audio, one row per shard")
    parser.add_argument(
        "--part", default="0-of-1", help="part of the shards, such as 2-of-4 (default: %(default)s, all)"
    )
    parser.add_argument("--sample-rate-hz", type=at_least(1), required=True)
    parser.add_argument(
        "--format", choices=["wav", "flac"], required=True, help="wav: read by offset; flac: half the size"
    )
    parser.add_argument(
        "--channels", choices=CHANNELS, default="mean", help="mono signal of several channels (default: %(default)s)"
    )
    parser.add_argument(
        "--min-duration-s", type=between(0, math.inf), default=0.1, help="drop shorter clips (default: %(default)s)"
    )
    parser.add_argument(
        "--min-level-dbfs", type=float, help="drop stretches of recordings whose mean level is lower (default: none)"
    )
    parser.add_argument("--shards", type=Path, required=True, help="folder to write tars and row files to")
    parser.add_argument("--done", type=Path, required=True, help="JSON file to write when all shards are complete")
    args = parser.parse_args(argv)

    settings = AudioSettings(
        sample_rate_hz=args.sample_rate_hz,
        audio_format=args.format,
        channels=args.channels,
        min_duration_s=args.min_duration_s,
        min_level_dbfs=args.min_level_dbfs,
    )
    maker = ShardMaker(catalog=args.catalog, folder=args.shards, settings=settings)
    assignments = part_of(read_plan(args.plan), args.part)
    complete = {assignment.shard: maker.kept(assignment) for assignment in assignments}
    missing = [assignment for assignment in assignments if complete[assignment.shard] is None]
    stretches = maker.stretches_of(missing)
    shards, errors = {}, []
    for assignment in assignments:
        try:
            facts = complete[assignment.shard] or maker.make(assignment, stretches)
        except PipelineError as error:  # the other shards are made, and kept when the same command is given again
            if lacks_memory(error):
                raise
            logger.error("shard %s: %s", assignment.shard, error)
            errors.append(error)
        else:
            shards[facts.shard] = {"sha256": facts.sha256, "rows_digest": facts.rows_digest}
    if errors:
        raise PipelineError(f"{len(errors)} of {len(assignments)} shards cannot be made: {errors[0]}")
    write_json({"part": args.part, "shards": shards}, args.done)
    logger.info("part %s: %d shards, %d of them kept", args.part, len(assignments), len(assignments) - len(missing))


if __name__ == "__main__":
    run(main)
