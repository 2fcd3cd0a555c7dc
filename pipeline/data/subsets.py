"""A part of a run's clips, chosen so that a smaller part lies within every larger one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.data.pairs import Clips, keys_in_order


def subset(clips: Clips, manifests: Sequence[Path], fraction: float, seed: int) -> Clips:
    """The share `fraction` of the clips, at least one, in their order; `manifests` are those that they were read from.

    Clips are ranked by a hash of the seed and their key: parts of one seed are nested, and new clips in a split push
    out few of the old. All splits of a role are ranked together, so that each gives about the same share.
    """
    if fraction == 1:
        return clips
    seed_bytes = seed.to_bytes(8, "little")
    keys = (key for batch in keys_in_order(manifests, clips.rows) for key in batch.to_pylist())
    digests = (hashlib.blake2b(key.encode(), digest_size=8, key=seed_bytes) for key in keys)
    ranks = np.fromiter((int.from_bytes(digest.digest(), "little") for digest in digests), np.uint64, len(clips))
    chosen = np.sort(np.argsort(ranks, kind="stable")[: max(1, round(fraction * len(clips)))])
    return Clips(rows=clips.rows[chosen], frames=clips.frames[chosen], captions=clips.captions[chosen])
