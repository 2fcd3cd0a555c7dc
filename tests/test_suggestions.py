"""The experiment on suggestions: its pool, its datasets and its table."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile

from experiments.suggestions import caption, draw_pool, summary
from pipeline.data.adapters import ADAPTERS


def test_common_recordings_fill_most_of_a_repetitive_pool():
    shares = {}
    for kind in ("even", "repetitive"):
        pool = draw_pool(kind, 120)
        assert [one.index for one in pool] == list(range(120))
        counts = Counter(name for one in pool for name in one.recordings)
        shares[kind] = sum(count for _, count in counts.most_common(6)) / counts.total()
    assert shares["repetitive"] > 0.75 > 0.3 > shares["even"]


def test_captions_of_a_pool_make_a_dataset(tmp_path: Path):
    pool = tmp_path / "pool"
    (pool / "train").mkdir(parents=True)
    for number in range(3):
        soundfile.write(pool / "train" / f"{number}.wav", np.zeros(100), 16_000)
    (pool / "hidden.csv").write_text('clip,text,recordings\n0.wav,a dog,x\n1.wav,"rain, wind",y\n2.wav,a cat,z\n')
    caption(pool, {"first.wav": "1.wav", "2.wav": "2.wav"}, tmp_path / "root")
    rows = list(ADAPTERS["folder"](tmp_path / "root", "captions"))
    assert [(row.source_name, row.captions) for row in rows] == [
        ("audio/first.wav", ("rain, wind",)),
        ("audio/2.wav", ("a cat",)),
    ]
    assert (tmp_path / "root/audio/first.wav").samefile(pool / "train" / "1.wav")


def test_differences_are_paired_by_seed():
    """Differences 1, 2, 3: mean 2, standard error 1 / sqrt(3), and Student's t of two degrees of freedom 4.303."""
    found = pd.DataFrame(
        {"arm": ["random"] * 3 + ["suggested"] * 3, "seed": [0, 1, 2] * 2, "recordings": [10, 20, 30, 11, 22, 33]}
    ).assign(t2a_mAP10=5.0, a2t_mAP10=5.0)
    half = 4.303 / 3**0.5
    cells = summary(found, ["random", "suggested"]).splitlines()[-1].split(" | ")
    assert cells[:2] == ["| suggested less random", f"+2.0 [{2 - half:+.1f}, {2 + half:+.1f}]"]
    assert cells[2] == "+0.0 [+0.0, +0.0]"
