"""Captions of a soundscape: a dataset's phrases, filled with the captions of its recordings."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from pipeline.data.small_study.recordings import Recording
from pipeline.data.small_study.styles import Style

BACKGROUND_GAP_DB = 4.0
"""An event that is softer than all others by this much may be described as in the background."""


def write_captions(
    style: Style,
    split: str,
    chosen: Sequence[Recording],
    gains_db: Sequence[float],
    is_sequence: bool,
    generator: np.random.Generator,
) -> tuple[str, ...]:
    """Return as many different captions as the split has per clip, from different templates if possible.

    `chosen` are the recordings of the events in order, and `gains_db` their gains.
    """
    wanted = style.splits[split].captions
    if wanted == 0:
        return ()
    situation = "sequence" if is_sequence else ("alone", "two", "three")[len(chosen) - 1]
    # Which recording may fill which slot of which phrase.
    by_gain = sorted(range(len(chosen)), key=lambda place: -gains_db[place])
    orders: list[tuple[int, ...]] = [tuple(range(len(chosen)))]
    if not is_sequence:
        orders = list(itertools.permutations(range(len(chosen))))
    choices = [(phrase, orders) for phrase in style.phrases[situation]]
    if len(chosen) > 1 and not is_sequence:
        gap_db = gains_db[by_gain[-2]] - gains_db[by_gain[-1]]
        if gap_db >= BACKGROUND_GAP_DB:
            others = [(*order, by_gain[-1]) for order in itertools.permutations(by_gain[:-1])]
            choices += [(phrase, others) for phrase in style.phrases.get(f"{situation}, one quiet", ())]
    # Fill the phrases in random order until there are enough captions.
    choices = [choices[place] for place in generator.permutation(len(choices))]
    captions: list[str] = []
    for phrase, possible in itertools.islice(itertools.cycle(choices), 100):
        order = possible[int(generator.integers(len(possible)))]
        words = {f"c{slot}": chosen[place].clause for slot, place in enumerate(order)}
        words |= {f"n{slot}": chosen[place].noun_phrase for slot, place in enumerate(order)}
        text = phrase.format(**words)
        text = text[0].upper() + text[1:] + style.final
        if text not in captions:
            captions.append(text)
        if len(captions) == wanted:
            return tuple(captions)
    raise AssertionError(f"the phrases of {situation!r} make fewer than {wanted} captions")
