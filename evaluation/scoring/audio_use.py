"""Whether a model uses the audio: what it gains over each control, and the statement that opens a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from evaluation.running.controls import AUDIO_CONTROLS, CONTROLS, NO_CONTROL
from evaluation.scoring.protocols import Decision
from evaluation.scoring.statistics import compare, percent_interval


def consistency(first: Sequence[Decision], second: Sequence[Decision]) -> dict[str, float]:
    """How often the same choice was chosen in both orders, in percent. An unanswered question counts as not the same."""
    pairs = [(a.choice, b.choice) for a, b in zip(first, second, strict=True)]
    same = sum(a is not None and b is not None and a.split() == b.split() for a, b in pairs)
    low, high = percent_interval(same, len(pairs))
    return {"n": len(pairs), "same_choice": 100 * same / len(pairs), "low": low, "high": high}


def gains_over(
    decisions: Mapping[str, Sequence[Decision]], clips: Sequence[str], pairs: Mapping[str, Sequence[int]]
) -> dict[str, dict[str, Any]]:
    """
    What the model gains over each control, question by question.

    Args:
        decisions (`Mapping`): Decisions per control and with the clip (`"none"`), in the same order of questions.
        clips (`Sequence[str]`): The clip of each question.
        pairs (`Mapping`): Per control, the positions of the questions to compare: those that got an output both ways. A request
            that failed is not a wrong answer.

    Returns:
        `dict`: Per control the fields of a `statistics.Comparison`: with the clip less under the control. A control without
        pairs is left out.
    """
    with_clip = decisions[NO_CONTROL]
    return {
        name: asdict(
            compare(
                [with_clip[i].correct for i in pairs[name]],
                [decisions[name][i].correct for i in pairs[name]],
                [clips[i] for i in pairs[name]],
            )
        )
        for name in CONTROLS
        if name in decisions and pairs[name]
    }


def answers_nothing(scored: dict[str, Any]) -> bool:
    """Whether the model answered no question even with the clip. Such a run cannot show whether it uses the audio."""
    return bool(scored["results"][NO_CONTROL].get("unanswered") == 100)


def controls_without_gain(gains: dict[str, dict[str, Any]]) -> list[str]:
    """The audio controls whose gain interval includes zero or lies below it."""
    return [name for name in AUDIO_CONTROLS if name in gains and gains[name]["low"] <= 0]


def compared_part(scored: dict[str, Any], n: int) -> str | None:
    """`"10 of 1,000"` where only `n` of a run's questions were compared with a control; None where all were."""
    num_questions = scored["results"][NO_CONTROL]["n"]
    return None if n == num_questions else f"{n:,} of {num_questions:,}"


def audio_use_statement(runs: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """
    The first line of a report. It begins with "DEAF:" if a model does no better with the clip than with silence or with another
    clip's audio, and says "ANSWERS NOTHING:" of a model that answered no question even with the clip.

    Args:
        runs: Name of each run whose model gets audio, and its figures under one protocol: `results` and `gains`.
    """
    if not runs:
        return "Audio use not tested: no run received audio."
    without_gain, untested, parts, without_answers = [], [], [], []
    for name, scored in runs:
        if answers_nothing(scored):
            without_answers.append(f"{name} answers none of its {scored['results'][NO_CONTROL]['n']:,} questions")
            continue
        gains = {control: scored["gains"][control] for control in AUDIO_CONTROLS if control in scored["gains"]}
        if not gains:
            untested.append(name)
        for control in controls_without_gain(gains):
            gain = gains[control]
            interval = f"95 % interval [{gain['low']:+.1f}, {gain['high']:+.1f}], n = {gain['n']}"
            figures = f"{gain['difference']:+.1f} points, {interval}"
            without_gain.append(f"{name} does no better with the clip than with {CONTROLS[control]} ({figures})")
        for control, gain in gains.items():
            if part := compared_part(scored, gain["n"]):
                parts.append(f"{name} with {CONTROLS[control]} on {part}")
    sentences = []
    if without_gain:
        sentences.append(f"DEAF: {'; '.join(without_gain)}. There is no sign that the model uses the audio.")
    if untested:
        sentences.append(f"Audio use not tested: {', '.join(untested)}. Run with --controls {' '.join(AUDIO_CONTROLS)}.")
    if not sentences and len(without_answers) < len(runs):
        every = "every other run" if without_answers else "every run"
        sentences.append(
            f"Not deaf: {every} does better with the clip than under each control of its sound, beyond the 95 % interval."
        )
    if without_answers:
        remedy = "That does not show whether it uses the sound: look at the outputs, at --max_tokens and at the prompt"
        sentences.append(f"ANSWERS NOTHING: {'; '.join(without_answers)}. {remedy}.")
    if parts:
        sentences.append(f"Only questions that got an output both ways are compared: {'; '.join(parts)}.")
    return " ".join(sentences)
