"""
The small verifier: an audio language model that scores how much more likely a trace is with its clip than without.

The paper (section 3.2) allows an audio-text verifier, trained on a small calibration set, in place of the checker. It does not
say which. Ours scores a trace r about a clip a by the evidence, in nats,

    evidence(r, a) = log p(r | a) - log p(r | no audio),

under a student with a LoRA on its language model (the audio tower is frozen). It is trained so that a logistic function of
the evidence separates accepted from rejected traces.

Why not a head on pooled CLAP embeddings: a pooled vector does not distinguish "a dog, then a bell" from "a bell, then a dog",
nor one bark from two, and these are the claims that a teacher without audio gets wrong. Why the difference: the influence of
the trace's length and wording cancels, and what remains depends on this clip.

A verifier is an ordinary student checkpoint with a section `verifier` in its config.json (prompt, Platt scaling, threshold,
figures). The section is made by `calibration.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sightsound.data.audio import encode_wav
from sightsound.engines.base import ChatRequest, ChatResult, Completion, Sampling
from sightsound.models.family import family_of, family_of_processor
from sightsound.models.loading import load_processor, safetensors_only, student_class
from sightsound.stage import fingerprint
from sightsound.training.calibration import probabilities
from sightsound.training.collator import IGNORED, CompletionCollator


if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, ProcessorMixin

VERIFIER_MODE = "verifier"  # its value in the column `verdict_mode`


class PairCollator:
    """
    Collate traces with their clips, and the same traces without audio.

    A call takes rows with `think`, `audio` and, for training, `accepted`. It returns a `dict`: `with_audio` and
    `without_audio`, each a batch of `CompletionCollator`, and `labels` `(batch,)`, 1 where accepted.

    Args:
        processor (`ProcessorMixin`): Of the verifier.
        prompt (`str`): The user's message, before the trace.
    """

    def __init__(self, processor: ProcessorMixin, prompt: str):
        self._collate = CompletionCollator(processor)
        self._prompt = [{"role": "user", "content": prompt}]

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        import torch

        with_audio = [{"prompt": self._prompt, "completion": row["think"], "audio": row["audio"]} for row in rows]
        without_audio = [{**row, "audio": None} for row in with_audio]
        labels = torch.tensor([float(row.get("accepted", False)) for row in rows])
        return {"with_audio": self._collate(with_audio), "without_audio": self._collate(without_audio), "labels": labels}


def log_likelihoods(model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of the completions' tokens (0 elsewhere), and the mask of these tokens: both `(batch, length - 1)`."""
    from trl.trainer.utils import selective_log_softmax

    target = batch["labels"][:, 1:]
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**inputs, use_cache=False).logits[:, :-1]
    is_completion = target != IGNORED
    return selective_log_softmax(logits.float(), target.clamp(min=0)) * is_completion, is_completion


def score(
    model: PreTrainedModel, collator: PairCollator, rows: Sequence[Mapping[str, Any]], *, batch_size: int, description: str
) -> np.ndarray:
    """The evidence of each row's `audio` for its `think`, `(num_rows,)`, in nats."""
    import torch
    from tqdm import tqdm

    model.eval()
    evidence: list[float] = []
    with torch.inference_mode():
        for start in tqdm(range(0, len(rows), batch_size), description, unit="batch", disable=len(rows) <= batch_size):
            batch = collator([rows[i] for i in range(start, min(start + batch_size, len(rows)))])
            with_audio, without_audio = (
                log_likelihoods(model, {name: value.to(model.device) for name, value in batch[kind].items()})[0].sum(dim=1)
                for kind in ("with_audio", "without_audio")
            )
            evidence += (with_audio - without_audio).tolist()
    return np.array(evidence)


def read_verifier(model: str, revision: str | None = None) -> dict[str, Any] | None:
    """The section `verifier` of a checkpoint's config.json (folder or Hub id); None if it has none, or is not found."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model, revision=revision)
    except (OSError, ValueError):  # the error of loading it as a checker says what is wrong
        return None
    return getattr(family_of(config).model_config(config), "verifier", None)


class VerifierEngine:
    """
    A verifier with the interface of a checker: the `text` of a request is a trace's reasoning, the reply its probability.

    Args:
        model (`str`): Local folder or Hub id.
        verifier (`dict`): The result of `read_verifier`.
        batch_size (`int`): Number of traces that are scored at once.
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
        """Score requests, all with audio. `sampling` is not used."""
        # 16 bits, as in the FLAC that the audio was decoded from: no precision is lost.
        cells = [{"bytes": encode_wav(r.audio), "path": None} for r in requests if r.audio is not None]
        rows = [{"think": r.text, "audio": cell} for r, cell in zip(requests, cells, strict=True)]
        p = probabilities(score(self.model, self._collator, rows, batch_size=len(rows), description="verdicts"), self.verifier)
        texts = [probability_text(each) for each in p]
        yield [ChatResult(r.key, r.text, [Completion(t, "stop")]) for r, t in zip(requests, texts, strict=True)]


def probability_text(p: float) -> str:
    """The reply of `VerifierEngine`, which `verdict_text` records."""
    return f"p={p:.4f}"


def parse_probability(text: str) -> float | None:
    """The probability in a reply of `VerifierEngine`; None without a reply."""
    found = re.fullmatch(r"p=(\d\.\d{4})", text)
    return float(found.group(1)) if found else None
