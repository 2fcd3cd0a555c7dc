"""The arithmetic of the data benchmark's report; no test asserts its measurements."""

from bench.data import hours_lines, ratio, total


def test_hours_follow_from_the_measured_figures():
    inputs = {
        "clips_per_s": 100.0, "flac_clips_per_s": 50.0, "clip_s": 10.0, "wav_bytes": 900_000.0, "flac_bytes": 400_000.0,
        "manifest_bytes": 100.0, "pairs_bytes": 20.0, "start_s": 1.0,
    }  # fmt: skip
    ten_thousand, million = list(hours_lines(inputs))[-2:]
    # 10,000 h are 3.6 million clips in 3,600 shards: 36,000 s of work and 3,600 s of starts are 11 core-hours.
    assert (
        ten_thousand == "| 10,000 | 3,600,000 | 3.24 TB | 1.44 TB | 11.0 | 21.0 | 3,600 | 7,202 | 0.36 GB | 0.072 GB |"
    )
    assert (
        million
        == "| 1,000,000 | 360,000,000 | 324 TB | 144 TB | 1,100.0 | 2,100.0 | 360,000 | 720,002 | 36 GB | 7.2 GB |"
    )


def test_ratios_are_taken_within_repetitions():
    times = {"ours": [1.0, 10.0, 1.0], "a": [1.0, 10.0, 2.0], "b": [1.0, 10.0, 2.0]}
    assert ratio(total(times, "a", "b"), times["ours"]) == 2.0
