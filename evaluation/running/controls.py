"""
Control conditions: the same questions with the audio or the choices changed.

`silent` replaces the clip by silence of the same length, `swapped` replaces it by another clip, and `text_only` leaves it out.
A model that uses the audio is more accurate with the clip than under these controls. `shuffled` keeps the clip and gives every
choice another letter: a model that chooses by content chooses the same text again.
"""

from __future__ import annotations

import random

from evaluation.benchmarks import Row
from sightsound.method.audio_contribution import SILENT, TEXT_ONLY


NO_CONTROL = "none"
SWAPPED, SHUFFLED = "swapped", "shuffled"
CONTROLS = {
    SILENT: "silent audio",
    SWAPPED: "another clip's audio",
    TEXT_ONLY: "text only",
    SHUFFLED: "shuffled choices",
}
AUDIO_CONTROLS = (SILENT, SWAPPED)  # a model that ignores the audio is as accurate under these as with the clip


def shuffle_choices(row: Row) -> Row:
    """
    The question with every choice at another letter, in the same order for every model.

    No choice keeps its letter, so a model that always answers B never chooses the same text twice.
    """
    order = list(range(len(row["choices"])))
    rng = random.Random(row["id"])
    while any(new == old for new, old in enumerate(order)):
        rng.shuffle(order)
    return row | {"choices": [row["choices"][i] for i in order], "answer": order.index(row["answer"])}
