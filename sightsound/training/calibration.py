"""
Calibration of the small verifier: which clips are used for what, and the threshold from which a trace is accepted.

The clips of a calibration set are split by the hash of the clip: `train`, `threshold` (for Platt scaling and the threshold) and
`held_out` (for the figures on the card).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sightsound.cli import InputError
from sightsound.data.statistics import wilson_interval
from sightsound.method.verdicts import ACCEPT, INVALID, NO_REASONING, REJECT


PARTS = {"held_out": 0.2, "threshold": 0.4, "train": 1.0}  # upper ends of the hash's range

# Why a trace is in no part, besides the reasons that its verdict gives (`method.verdicts.VERDICTS`).
NO_VERDICT, NOT_DRAWN, REPEATED = "no_verdict", "not_drawn", "repeated"

# The lower end of an 80 % interval is a one-sided 90 % bound. A bound is needed because the threshold is chosen on the same
# traces, which makes their precision look better than it is.
THRESHOLD_CONFIDENCE = 0.8


@dataclass(frozen=True)
class Example:
    """One distinct trace about one clip. `id` is that of its question, `accepted` the checker's verdict."""

    id: str
    clip: str
    think: str
    accepted: bool


def _uniform(salt: str, clip: str) -> float:
    """A number in [0, 1) that depends only on its arguments."""
    return int.from_bytes(hashlib.sha256(f"{salt}/{clip}".encode()).digest()[:8], "big") / 2**64


def part_of(clip: str) -> str:
    """`held_out`, `threshold` or `train`. It depends on the clip alone, not on the rest of the calibration set."""
    return next(part for part, end in PARTS.items() if _uniform("part", clip) < end)


def calibration_parts(rows: Iterable[Mapping[str, Any]], max_clips: int | None = None) -> dict[str, list[Example]]:
    """
    Split a checker's verdicts by clip.

    Several traces of a clip with the same text are one example: counted separately they would make the intervals too narrow.
    Traces without reasoning or without a verdict are left out.

    Args:
        rows (`Iterable[Mapping]`): Of a verdicts folder: `id`, `media_sha256` (the clip) and `traces` are read.
        max_clips (`int`, *optional*): Use this many clips, drawn by their hash.

    Raises:
        `InputError`: A part lacks accepted or rejected traces.
    """
    with_traces = [row for row in rows if row["traces"]]
    clips = sorted({row["media_sha256"] for row in with_traces}, key=lambda clip: _uniform("draw", clip))
    drawn = set(clips[:max_clips])
    examples: dict[tuple[str, str], Example] = {}
    for row in with_traces:
        clip = row["media_sha256"]
        for trace in row["traces"]:
            if clip in drawn and trace["think"] is not None and trace["verdict"] in (ACCEPT, REJECT):
                example = Example(row["id"], clip, trace["think"], trace["verdict"] == ACCEPT)
                examples.setdefault((clip, trace["think"]), example)
    parts: dict[str, list[Example]] = {part: [] for part in PARTS}
    for example in examples.values():
        parts[part_of(example.clip)].append(example)
    for part, members in parts.items():
        counts = Counter(example.accepted for example in members)
        if not counts[True] or not counts[False]:
            found = f"{counts[True]} accepted and {counts[False]} rejected traces in the calibration part '{part}'"
            raise InputError(f"{found} ({len(drawn)} clips in all); each part needs both: calibrate on more clips")
    return parts


def use_of_traces(rows: Iterable[Mapping[str, Any]], parts: Mapping[str, Sequence[Example]]) -> Iterator[dict[str, Any]]:
    """
    The use of every calibration trace, for the ledger: its part, or the reason why it is in none.

    Args:
        rows, parts: The argument and the result of `calibration_parts`. A question without traces keeps its own outcome.
    """
    used = {(example.clip, example.think): part for part, examples in parts.items() for example in examples}
    seen: set[tuple[str, str]] = set()
    for row in rows:
        if not row["traces"]:
            yield {"id": row["id"], "outcome": row["outcome"], "detail": None}
        for trace in row["traces"]:
            key = (row["media_sha256"], trace["think"])
            if trace["think"] is None:
                outcome = NO_REASONING
            elif trace["verdict"] not in (ACCEPT, REJECT):
                outcome = trace["verdict"] if trace["verdict"] not in (None, INVALID) else NO_VERDICT
            elif key not in used:
                outcome = NOT_DRAWN
            else:
                outcome = REPEATED if key in seen else used[key]
                seen.add(key)
            yield {"id": row["id"], "outcome": outcome, "detail": trace["think"]}


def platt_scaling(evidence: np.ndarray, accepted: np.ndarray) -> tuple[float, float]:
    """
    Fit p = 1 / (1 + exp(-slope * evidence - offset)).

    The targets are smoothed as in Platt 1999, so that the slope stays finite where the classes are separable.

    Args:
        evidence (`np.ndarray`): `(num_examples,)`, nats.
        accepted (`np.ndarray`): `(num_examples,)`, bool.

    Returns:
        `tuple[float, float]`: Slope and offset.
    """
    from scipy.optimize import minimize
    from scipy.special import log_expit

    positive = int(accepted.sum())
    target = np.where(accepted, (positive + 1) / (positive + 2), 1 / (len(accepted) - positive + 2))
    spread = float(evidence.std()) or 1.0
    scaled = (evidence - evidence.mean()) / spread

    def loss(line: np.ndarray) -> float:
        logit = line[0] * scaled + line[1]
        return float(-(target * log_expit(logit) + (1 - target) * log_expit(-logit)).mean())

    slope, offset = minimize(loss, np.array([1.0, 0.0])).x
    return float(slope / spread), float(offset - slope * evidence.mean() / spread)


def probabilities(evidence: np.ndarray, verifier: Mapping[str, Any]) -> np.ndarray:
    """
    The probability that the checker accepts, `(num_examples,)`.

    Rounded to four decimals, as in `verdict_text`, so that a verdict follows from its text alone.
    """
    from scipy.special import expit

    return expit(verifier["slope"] * evidence + verifier["offset"]).round(4)


def choose_threshold(p: np.ndarray, accepted: np.ndarray, target_precision: float) -> float:
    """
    The lowest threshold at which the lower end of the precision's Wilson interval reaches `target_precision`.

    Args:
        p, accepted (`np.ndarray`): `(num_examples,)`, of the threshold part.

    Raises:
        `InputError`: No threshold reaches it.
    """
    best, chosen = (0.0, 0, 0), None
    for candidate in np.unique(p):
        taken = p >= candidate
        hits = int(accepted[taken].sum())
        low = wilson_interval(hits, int(taken.sum()), THRESHOLD_CONFIDENCE)[0]
        best = max(best, (low, hits, int(taken.sum())))
        if low >= target_precision and chosen is None:
            chosen = float(candidate)
    if chosen is None:
        low, hits, taken_count = best
        found = f"the best one is right on {hits} of {taken_count} traces: lower end {low:.3f}"
        remedy = "lower --target_precision, calibrate on more clips or train for longer, in a new folder"
        raise InputError(f"no threshold reaches a precision of {target_precision:g} ({found}); {remedy}")
    return chosen


def figures(p: np.ndarray, accepted: np.ndarray, threshold: float) -> dict[str, Any]:
    """Precision and recall at a threshold, with their 95 % Wilson intervals and the counts that they are made of."""
    taken = p >= threshold
    hits, num_taken, num_accepted = int((taken & accepted).sum()), int(taken.sum()), int(accepted.sum())
    result: dict[str, Any] = {"traces": len(p), "accepted_by_checker": num_accepted, "accepted": num_taken, "both": hits}
    for name, total in (("precision", num_taken), ("recall", num_accepted)):
        result |= {name: hits / total if total else None, f"{name}_interval": list(wilson_interval(hits, total))}
    return result


def calibrate(
    evidence: Mapping[str, np.ndarray], parts: Mapping[str, Sequence[Example]], target_precision: float
) -> dict[str, Any]:
    """
    Fit the probability and choose the threshold, for the section `verifier` of config.json.

    Args:
        evidence (`dict`): `(num_examples,)` for each of the parts `threshold` and `held_out`, nats.
        parts (`dict`): The result of `calibration_parts`.
        target_precision (`float`): For `choose_threshold`.

    Returns:
        `dict`: `slope`, `offset`, `threshold`, `target_precision`; `held_out` and `threshold_part`, the `figures` of these
        parts; `clips`, the number of clips of each part.

    Raises:
        `InputError`: No threshold reaches the target.
    """
    accepted = {part: np.array([example.accepted for example in examples]) for part, examples in parts.items()}
    slope, offset = platt_scaling(evidence["threshold"], accepted["threshold"])
    section: dict[str, Any] = {"slope": slope, "offset": offset, "target_precision": target_precision}
    p = {part: probabilities(values, section) for part, values in evidence.items()}
    section["threshold"] = choose_threshold(p["threshold"], accepted["threshold"], target_precision)
    for part, name in (("held_out", "held_out"), ("threshold", "threshold_part")):
        section[name] = figures(p[part], accepted[part], section["threshold"])
    return section | {"clips": {part: len({example.clip for example in examples}) for part, examples in parts.items()}}
