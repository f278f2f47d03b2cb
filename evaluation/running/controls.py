"""
Controls: does the model listen, and does it look at what the choices say or at where they stand?

`silent` gives it silence of the clip's length, `swapped` another clip's sound, `text_only` no sound at all. A model that hears
does better with the clip than with silence and with another clip; one that does not is deaf, whatever its accuracy. `shuffled`
gives it the clip and every choice at another letter: a model that goes by what the choices say chooses the same one again.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from evaluation.benchmarks import Row
from evaluation.scoring.protocols import Decision
from evaluation.scoring.statistics import compare, wilson_interval


NO_CONTROL = "none"
SILENT, SWAPPED, TEXT_ONLY, SHUFFLED = "silent", "swapped", "text_only", "shuffled"
CONTROLS = {
    SILENT: "silent audio",
    SWAPPED: "another clip's audio",
    TEXT_ONLY: "text only",
    SHUFFLED: "shuffled choices",
}
AUDIO_CONTROLS = (SILENT, SWAPPED)  # what a deaf model does as well with


def shuffled(row: Row) -> Row:
    """
    The question with every choice at another letter, the same for every model.

    Moving all of them makes the two ends plain: a model that always says B never chooses the same text twice.
    """
    order = list(range(len(row["choices"])))
    rng = random.Random(row["id"])
    while any(new == old for new, old in enumerate(order)):
        rng.shuffle(order)
    return row | {"choices": [row["choices"][i] for i in order], "answer": order.index(row["answer"])}


def consistency(first: Sequence[Decision], second: Sequence[Decision]) -> dict[str, float]:
    """How often a question is answered with the same choice in both orders; unanswered ones are not."""
    pairs = [(a.choice, b.choice) for a, b in zip(first, second, strict=True)]
    same = sum(a is not None and b is not None and a.split() == b.split() for a, b in pairs)
    low, high = wilson_interval(same, len(pairs))
    return {"n": len(pairs), "same_choice": 100 * same / len(pairs), "low": low, "high": high}


def gains_over(
    decisions: Mapping[str, Sequence[Decision]], clips: Sequence[str], pairs: Mapping[str, Sequence[int]]
) -> dict[str, dict[str, Any]]:
    """
    What the model gains over each control, question by question.

    Args:
        decisions (`Mapping`): Per control, `"none"` among them, in the same order of questions.
        clips (`Sequence[str]`): The clip of each question.
        pairs (`Mapping`): Per control, the questions that tell: an answer that never came is no wrong one.

    Returns:
        `dict`: Per control a `statistics.Comparison`, as a dict, of the run with the run under that control; none of a control
        without pairs.
    """
    heard = decisions[NO_CONTROL]
    return {
        name: asdict(
            compare(
                [heard[i].correct for i in pairs[name]],
                [decisions[name][i].correct for i in pairs[name]],
                [clips[i] for i in pairs[name]],
            )
        )
        for name in CONTROLS
        if name in decisions and pairs[name]
    }


def answers_nothing(scored: dict[str, Any]) -> bool:
    """Whether the model answered no question with the clip: such a run cannot show whether it uses the sound."""
    return bool(scored["results"][NO_CONTROL].get("unanswered") == 100)


def deaf_by(gains: dict[str, dict[str, Any]]) -> list[str]:
    """The controls of sound that a run is no better than: those where the interval of its gain holds nothing, or less."""
    return [name for name in AUDIO_CONTROLS if name in gains and gains[name]["low"] <= 0]


def part_of_pairs(scored: dict[str, Any], n: int) -> str | None:
    """`"10 of 1,000"`: how many of a run's questions were answered with the clip and under a control; None when all were."""
    asked = scored["results"][NO_CONTROL]["n"]
    return None if n == asked else f"{n:,} of {asked:,}"


def audio_use_statement(runs: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """
    The first line of a report.

    Args:
        runs: Name of each run that is given sound, and its figures under one protocol: `results` and `gains`.
    """
    if not runs:
        return "Not tested for deafness: no run is given any sound."
    deaf, untested, parts, mute = [], [], [], []
    for name, scored in runs:
        if answers_nothing(scored):
            mute.append(f"{name} answers none of its {scored['results'][NO_CONTROL]['n']:,} questions")
            continue
        gains = {control: scored["gains"][control] for control in AUDIO_CONTROLS if control in scored["gains"]}
        if not gains:
            untested.append(name)
        for control in deaf_by(gains):
            gain = gains[control]
            seen = f"{gain['difference']:+.1f} points, 95 % interval [{gain['low']:+.1f}, {gain['high']:+.1f}], n = {gain['n']}"
            deaf.append(f"{name} does no better with the clip than with {CONTROLS[control]} ({seen})")
        found = {control: part_of_pairs(scored, gain["n"]) for control, gain in gains.items()}
        parts += [f"{name} with {CONTROLS[control]} on {part}" for control, part in found.items() if part]
    lines = []
    if deaf:
        lines.append(f"DEAF: {'; '.join(deaf)}. Nothing shows that it listens.")
    if untested:
        lines.append(f"Not tested for deafness: {', '.join(untested)}. Run with --controls {' '.join(AUDIO_CONTROLS)}.")
    if not lines and len(mute) < len(runs):
        gain_shown = "run does better with the clip than under each control of its sound, beyond the 95 % interval"
        lines.append(f"Not deaf: every {'other ' if mute else ''}{gain_shown}.")
    if mute:
        remedy = "That does not show whether it uses the sound: look at the outputs, at --max_tokens and at the prompt"
        lines.append(f"ANSWERS NOTHING: {'; '.join(mute)}. {remedy}.")
    if parts:
        lines.append(f"Only questions to which a text came back both ways are compared: {'; '.join(parts)}.")
    return " ".join(lines)
