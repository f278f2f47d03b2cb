"""
The small verifier: an audio language model that scores how much better a clip explains a trace than silence does.

The paper (section 3.2) allows an audio-text verifier trained on a small calibration set in place of the checker, and does not
say which. Ours scores a trace r about a clip a by the evidence that the sound gives for the words, in nats,

    evidence(r, a) = log p(r | a) - log p(r | no audio),

under the student with LoRA on its language model (audio tower frozen), trained so that a logistic function of the evidence
tells accepted from rejected traces. Why not a head on pooled CLAP embeddings: a pooled vector cannot tell "a dog, then a bell"
from "a bell, then a dog", nor one bark from two, and those are the claims that a teacher without ears gets wrong. Why the
difference: how long a trace is and how it is worded cancels, what its words say about this clip stays.

A verifier is an ordinary student checkpoint with a section `verifier` in its config.json (prompt, Platt scaling, threshold,
figures). Calibration clips are split by the hash of the clip: train, threshold, held_out.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sightsound.cli import InputError
from sightsound.data.audio import encode_wav
from sightsound.data.parquet import AudioById
from sightsound.data.statistics import wilson_interval
from sightsound.engines.base import ChatRequest, ChatResult, Completion, Sampling
from sightsound.method.verdicts import ACCEPT, INVALID, NO_REASONING, REJECT
from sightsound.models.family import family_of_processor
from sightsound.models.loading import load_processor, safetensors_only, student_class
from sightsound.stage import fingerprint
from sightsound.training.collator import IGNORED, CompletionCollator


if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, ProcessorMixin

VERIFIER_MODE = "verifier"  # what `verdict_mode` records
PARTS = {"held_out": 0.2, "threshold": 0.4, "train": 1.0}  # upper ends of the hash's range

# Why a trace is in none of them, where that is not what its verdict says (`corpus.VERDICTS`).
NO_VERDICT, NOT_DRAWN, REPEATED = "no_verdict", "not_drawn", "repeated"

# Half of it bounds the precision from below with 90 % confidence: the threshold's own traces flatter it.
THRESHOLD_CONFIDENCE = 0.8


@dataclass(frozen=True)
class Example:
    """One distinct trace about one clip: `id` is its question's, for the audio; `accepted` is the checker's verdict."""

    id: str
    clip: str
    think: str
    accepted: bool


def _uniform(salt: str, clip: str) -> float:
    """A number in [0, 1) that a clip always gets."""
    return int.from_bytes(hashlib.sha256(f"{salt}/{clip}".encode()).digest()[:8], "big") / 2**64


def part_of(clip: str) -> str:
    """`held_out`, `threshold` or `train`; a clip is in one of them, whatever else is in the calibration set."""
    return next(part for part, end in PARTS.items() if _uniform("part", clip) < end)


def calibration_parts(rows: Iterable[Mapping[str, Any]], max_clips: int | None = None) -> dict[str, list[Example]]:
    """
    Split a checker's verdicts by clip.

    A text that several traces of a clip share is one example: counted four times it would narrow the intervals. Traces without
    reasoning, and those without a verdict, are left out.

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
            told = f"{counts[True]} accepted and {counts[False]} rejected traces in the calibration part '{part}'"
            raise InputError(f"{told} ({len(drawn)} clips in all); a verifier needs both in each: calibrate on more clips")
    return parts


def use_of_traces(rows: Iterable[Mapping[str, Any]], parts: Mapping[str, Sequence[Example]]) -> Iterator[dict[str, Any]]:
    """
    What became of every calibration trace, for the ledger: the part that it is in, or why it is in none.

    Args:
        rows, parts: Given to and returned by `calibration_parts`. A question without traces keeps its own outcome.
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
    `(slope, offset)` with p = 1 / (1 + exp(-slope * evidence - offset)), targets smoothed as in Platt 1999, so that classes
    that can be told apart do not make the slope infinite.

    Args:
        evidence (`np.ndarray`): `(num_examples,)`, nats.
        accepted (`np.ndarray`): `(num_examples,)`, bool.
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
    """`(num_examples,)`: how likely the checker accepts. Four decimals, as `verdict_text` says them: verdicts follow it."""
    from scipy.special import expit

    return expit(verifier["slope"] * evidence + verifier["offset"]).round(4)


def choose_threshold(p: np.ndarray, accepted: np.ndarray, target_precision: float) -> float:
    """
    The lowest probability from which on the precision is `target_precision`, at the lower end of its Wilson interval.

    Args:
        p, accepted (`np.ndarray`): `(num_examples,)`, of the threshold part.

    Raises:
        `InputError`: There is none.
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
        told = f"{hits} of {taken_count} traces right at the best one, so no more than {low:.3f} can be relied on"
        remedy = "lower --target_precision, calibrate on more clips or train for longer, in a new folder"
        raise InputError(f"no threshold reaches a precision of {target_precision:g} ({told}); {remedy}")
    return chosen


def figures(p: np.ndarray, accepted: np.ndarray, threshold: float) -> dict[str, Any]:
    """Precision and recall at a threshold, with their 95 % Wilson intervals and the counts behind them."""
    taken = p >= threshold
    hits, num_taken, num_accepted = int((taken & accepted).sum()), int(taken.sum()), int(accepted.sum())
    told: dict[str, Any] = {"traces": len(p), "accepted_by_checker": num_accepted, "accepted": num_taken, "both": hits}
    for name, total in (("precision", num_taken), ("recall", num_accepted)):
        told |= {name: hits / total if total else None, f"{name}_interval": list(wilson_interval(hits, total))}
    return told


def calibrate(
    evidence: Mapping[str, np.ndarray], parts: Mapping[str, Sequence[Example]], target_precision: float
) -> dict[str, Any]:
    """
    From the evidence of the parts `threshold` and `held_out` to what a verifier's config says of it.

    Returns:
        `dict`: `slope`, `offset`, `threshold`, `target_precision`; `figures` of the held-out part and, as `threshold_part`, of
        the one that the threshold was chosen on; `clips` per part.

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


class ExamplesWithAudio(Sequence[dict[str, Any]]):
    """Examples as rows for `PairCollator`; a clip is read when a batch needs it."""

    def __init__(self, examples: Sequence[Example], audio: AudioById):
        self._examples, self._audio = examples, audio

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, position: Any) -> Any:
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(len(self)))]
        example = self._examples[position]
        return {"think": example.think, "accepted": example.accepted, "audio": self._audio[example.id]}


class PairCollator:
    """
    Collate traces with their clips, and the same traces without.

    Args:
        processor (`ProcessorMixin`): Of the verifier.
        prompt (`str`): What the user says before the trace.

    Returns of a call on rows with `think`, `audio` and, to train on, `accepted`:
        `dict`: `heard` and `deaf`, each a batch of `CompletionCollator`, and `labels` `(batch,)`, 1 where accepted.
    """

    def __init__(self, processor: ProcessorMixin, prompt: str):
        self._collate = CompletionCollator(processor)
        self._prompt = [{"role": "user", "content": prompt}]

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        import torch

        heard = [{"prompt": self._prompt, "completion": row["think"], "audio": row["audio"]} for row in rows]
        deaf = [{**row, "audio": None} for row in heard]
        labels = torch.tensor([float(row.get("accepted", False)) for row in rows])
        return {"heard": self._collate(heard), "deaf": self._collate(deaf), "labels": labels}


def log_likelihoods(model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of the completions' tokens, 0 elsewhere, and which tokens those are: both `(batch, length - 1)`."""
    from trl.trainer.utils import selective_log_softmax

    target = batch["labels"][:, 1:]
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**inputs, use_cache=False).logits[:, :-1]
    is_completion = target != IGNORED
    return selective_log_softmax(logits.float(), target.clamp(min=0)) * is_completion, is_completion


def score(
    model: PreTrainedModel, collator: PairCollator, rows: Sequence[Mapping[str, Any]], batch_size: int, description: str
) -> np.ndarray:
    """The evidence, in nats, that each row's `audio` gives for its `think`: `(num_rows,)`."""
    import torch
    from tqdm import tqdm

    model.eval()
    evidence: list[float] = []
    with torch.inference_mode():
        for start in tqdm(range(0, len(rows), batch_size), description, unit="batch", disable=len(rows) <= batch_size):
            batch = collator(rows[start : start + batch_size])
            heard, deaf = (
                log_likelihoods(model, {name: value.to(model.device) for name, value in batch[kind].items()})[0].sum(dim=1)
                for kind in ("heard", "deaf")
            )
            evidence += (heard - deaf).tolist()
    return np.array(evidence)


def read_verifier(model: str, revision: str | None = None) -> dict[str, Any] | None:
    """The section `verifier` of a checkpoint's config.json (folder or Hub id); None when it is no verifier, or not there."""
    from transformers import PreTrainedConfig

    try:
        return PreTrainedConfig.get_config_dict(model, revision=revision)[0].get("verifier")
    except OSError:  # loading it as a checker says what is wrong
        return None


class VerifierEngine:
    """
    A verifier behind the checkers' interface: a request's `text` is the reasoning of a trace, the answer its probability.

    Args:
        model (`str`): Local folder or Hub id.
        verifier (`dict`): Of `read_verifier`.
        batch_size (`int`): Traces scored at once.
        revision (`str`, *optional*): Of a Hub model.
    """

    def __init__(self, model: str, verifier: dict[str, Any], batch_size: int, revision: str | None = None):
        import torch

        processor = load_processor(model, revision)
        self.verifier = verifier
        self.requests_per_call = batch_size
        with safetensors_only(model):
            architecture = student_class(model, revision)
            self.model = architecture.from_pretrained(model, revision=revision, dtype="auto", use_safetensors=True)
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        self.revision = (fingerprint(model) if Path(model).is_dir() else self.model.config._commit_hash) or ""
        self._collator = PairCollator(processor, verifier["prompt"])
        self.window_s = family_of_processor(processor).window_s(processor)

    def complete(self, requests: Sequence[ChatRequest], sampling: Sampling) -> Iterator[list[ChatResult]]:
        """Score requests that all carry audio; nothing is sampled."""
        # 16 bits, like the FLAC that the sound came from: nothing is lost.
        cells = [{"bytes": encode_wav(r.audio), "path": None} for r in requests if r.audio is not None]
        rows = [{"think": r.text, "audio": cell} for r, cell in zip(requests, cells, strict=True)]
        p = probabilities(score(self.model, self._collator, rows, len(rows), "verdicts"), self.verifier)
        texts = [probability_text(each) for each in p]
        yield [ChatResult(r.key, r.text, [Completion(t, "stop")]) for r, t in zip(requests, texts, strict=True)]


def probability_text(p: float) -> str:
    return f"p={p:.4f}"


def parse_probability(text: str) -> float | None:
    """The probability that `VerifierEngine` answered; None when there was no answer."""
    found = re.fullmatch(r"p=(\d\.\d{4})", text)
    return float(found.group(1)) if found else None
