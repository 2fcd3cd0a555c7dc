"""A part of a run's clips, chosen so that a smaller part lies within every larger one."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pyarrow as pa

from pipeline.pairs import Clips


def subset(clips: Clips, fraction: float, seed: int) -> Clips:
    """The share `fraction` of the clips, at least one, in their order.

    Clips are ranked by a hash of the seed and their key: parts of one seed are nested, and new clips in a split push
    out few of the old. All splits of a role are ranked together, so that each gives about the same share.
    """
    if fraction == 1:
        return clips
    seed_bytes = seed.to_bytes(8, "little")
    digests = (hashlib.blake2b(key.as_py().encode(), digest_size=8, key=seed_bytes) for key in clips.keys)
    ranks = np.fromiter((int.from_bytes(digest.digest(), "little") for digest in digests), np.uint64, len(clips))
    chosen = np.sort(np.argsort(ranks, kind="stable")[: max(1, round(fraction * len(clips)))])
    return replace(
        clips, keys=clips.keys.take(pa.array(chosen)), frames=clips.frames[chosen], captions=clips.captions[chosen]
    )
