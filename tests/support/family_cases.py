"""A family and its tiny checkpoint, with three clips and three questions, and what transformers computes of them by hand."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from sightsound.data.audio import decode_audio, encode_flac
from sightsound.engines.base import ChatRequest, ChatResult, Sampling
from sightsound.engines.transformers import TransformersEngine
from sightsound.models.family import ClipFeatures, StudentFamily, family_of
from sightsound.models.loading import student_class
from sightsound.training.grpo import AudioGRPOTrainer
from tests.support.trainers import make_trainer
from tests.support.voxtral import voxtral_inputs


RATE = 16_000
# Lengths of three clips, seconds: unequal, within the window, and one beyond 30 s where the window is longer.
SECONDS = {
    "qwen2_audio": (0.7, 1.3, 2.0),
    "qwen2_5_omni": (0.7, 2.6, 45.0),
    "qwen3_omni": (2.6, 9.1, 45.0),
    "audio_flamingo_3": (0.7, 20.0, 45.0),
    "voxtral": (0.7, 2.6, 35.0),
}
# Voxtral's is 40 minutes; the fixture shortens it.
WINDOW_S = {"qwen2_audio": 2.0, "qwen2_5_omni": 300.0, "qwen3_omni": None, "audio_flamingo_3": 600.0, "voxtral": 60.0}
QUESTIONS = ("What is heard?", "Which of these is heard first in the audio?\nA. dog\nB. bell", "Is it a siren?")
COMPLETIONS = ("<answer>dog</answer>", "<think>I hear a bell, then a dog.</think><answer>bell</answer>", "no")


# The question and the clip of each row: groups that are not adjacent and of unequal sizes, one clip with two questions.
ROWS = [(0, 0), (1, 1), (0, 0), (2, 0), (0, 2), (1, 1), (0, 2), (0, 0)]
WRITTEN = [6, 1, 3, 4, 0, 6, 2, 5]  # tokens of each completion; one is empty


def noise(seconds: float, seed: int) -> dict[str, Any]:
    """A clip as it is stored: noise that differs from second to second."""
    generator = np.random.default_rng(seed)
    loud = generator.uniform(0.02, 0.3, int(seconds) + 1).repeat(RATE)[: round(seconds * RATE)]
    return {"bytes": encode_flac((loud * generator.normal(0, 1, len(loud))).astype(np.float32)), "path": None}


def messages(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": text}]}]


def left_padded(prompts: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


@dataclass
class Case:
    """A family and its tiny checkpoint."""

    name: str
    checkpoint: Path
    folder: Path

    @cached_property
    def family(self) -> StudentFamily:
        return family_of(transformers.AutoConfig.from_pretrained(self.checkpoint))

    @cached_property
    def processor(self) -> Any:
        return transformers.AutoProcessor.from_pretrained(self.checkpoint)

    @cached_property
    def model(self) -> Any:
        """The checkpoint in the class that training loads, in eval mode. Tests do not train it."""
        return student_class(str(self.checkpoint)).from_pretrained(self.checkpoint).eval()

    @cached_property
    def direct(self) -> Any:
        """Of transformers' own class."""
        return getattr(transformers, self.family.architecture).from_pretrained(self.checkpoint).eval()

    @cached_property
    def trainer(self) -> AudioGRPOTrainer:
        rows = [{**row, "teacher_answer": 0, "choices": ["dog", "bell"]} for row in self.rows]
        # Two iterations per batch make the trainer keep the old policy's log-probabilities.
        sizes = {"num_iterations": 2, "per_device_train_batch_size": 12, "max_steps": 2}
        return make_trainer(self.checkpoint, rows, self.folder / "grpo", **sizes)

    @cached_property
    def cells(self) -> list[dict[str, Any]]:
        return [noise(seconds, seed) for seed, seconds in enumerate(SECONDS[self.name])]

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Of training: a prompt, a completion and a clip, all of unequal lengths."""
        prompts = [[{"role": "user", "content": text}] for text in QUESTIONS]
        columns = zip(prompts, COMPLETIONS, self.cells, strict=True)
        return [{"prompt": prompt, "completion": completion, "audio": cell} for prompt, completion, cell in columns]

    def logits(self, text: str, cell: dict[str, Any], completion: Sequence[int]) -> torch.Tensor:
        """Logits of a completion, `(tokens, vocabulary)`, of one row: the processor's own call, its own padding, no batch."""
        waveform = decode_audio(cell, WINDOW_S[self.name]).waveform
        if self.name == "voxtral":
            inputs = voxtral_inputs(self.processor, messages(text), [waveform])
        else:
            prompt = self.processor.apply_chat_template(messages(text), add_generation_prompt=True, tokenize=False)
            inputs = self.processor(text=[prompt], audio=[waveform], sampling_rate=RATE, return_tensors="pt")
        ids = torch.cat([inputs.pop("input_ids"), torch.tensor([list(completion)])], dim=1)
        inputs["attention_mask"] = torch.ones_like(ids)
        with torch.no_grad():
            return self.direct(input_ids=ids, **inputs).logits[0, -len(completion) - 1 : -1]

    def log_probs(self, text: str, cell: dict[str, Any], completion: Sequence[int]) -> torch.Tensor:
        """Of each token of a completion, as `logits`."""
        scores = torch.log_softmax(self.logits(text, cell, completion), dim=-1)
        return scores.gather(-1, torch.tensor(completion)[:, None])[:, 0]

    def num_audio_tokens(self, batch: dict[str, torch.Tensor]) -> list[int]:
        """Of each row of a batch."""
        return (batch["input_ids"] == self.direct.config.audio_token_id).sum(dim=1).tolist()

    def ask(self, engine: TransformersEngine, order: Sequence[int], sampling: Sampling) -> list[ChatResult]:
        """The answers to the questions about their clips, in one call."""
        waveforms = [decode_audio(cell, engine.window_s).waveform for cell in self.cells]
        requests = [ChatRequest(str(i), QUESTIONS[i], audio=waveforms[i]) for i in order]
        return [result for results in engine.complete(requests, sampling) for result in results]

    def prompts_of_rows(self) -> tuple[list[list[int]], list[ClipFeatures]]:
        """Ids and clips of `ROWS`; the trainer now has their clips."""
        features = self.trainer._read_audio([self.cells[clip] for _, clip in ROWS])
        self.trainer._audio = features
        return self.trainer._tokenize_prompts([messages(QUESTIONS[question]) for question, _ in ROWS])[0], features
