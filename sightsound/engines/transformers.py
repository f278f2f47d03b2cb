"""A model in this process: batched generation with transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sightsound.cli import InputError
from sightsound.engines.base import ChatRequest, ChatResult, Completion, EngineFlags, Sampling, Usage, seed_of
from sightsound.engines.sampling import NEUTRAL, effective, in_process, neutral_generation
from sightsound.method.prompts import user_message
from sightsound.models.family import family_of_processor
from sightsound.models.loading import load_generator


class TransformersEngine:
    """
    A model in this process, batched.

    Args:
        model (`PreTrainedModel`): An audio or vision language model.
        processor (`ProcessorMixin`): The model's.
        batch_size (`int`): Sequences generated at once; a call takes `batch_size // n` requests.
        sampling (`Sampling`): Only `n` is read here, to size the calls.
        revision (`str`): Commit or fingerprint of the model, recorded in the rows.
    """

    def __init__(self, model: Any, processor: Any, batch_size: int, sampling: Sampling, revision: str = ""):
        self.model, self.processor, self.revision = model, processor, revision
        self.requests_per_call = max(1, batch_size // sampling.n)
        self._family = family_of_processor(processor)
        self.window_s = self._family.window_s(processor)
        parts = {"audio": "feature_extractor", "video": "video_processor"}
        self._takes = {kind: getattr(processor, part, None) is not None for kind, part in parts.items()}
        self._placeholders = self._family.media_token_ids(model.config)

    @classmethod
    def load(
        cls, model: str, batch_size: int, sampling: Sampling, revision: str | None = None, base_model: str | None = None
    ) -> TransformersEngine:
        """From a local folder or a Hub id: a model, or a LoRA on its base; see `loading.load_generator`."""
        import torch

        loaded, processor, identity = load_generator(model, revision, base_model)
        loaded = loaded.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        return cls(loaded, processor, batch_size, sampling, identity)

    def _inputs(self, requests: Sequence[ChatRequest], prompts: list[str]) -> Any:
        for kind in requests[0].media:
            if not self._takes[kind]:  # its processor would ignore the clips without an error
                raise InputError(f"a {type(self.model).__name__} takes no {kind}; give a model that does")
        return self._family.encode(
            self.processor,
            prompts,
            audio=[r.audio for r in requests if r.audio is not None],
            videos=[r.video for r in requests if r.video is not None],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )

    def complete(self, requests: Sequence[ChatRequest], sampling: Sampling) -> Iterator[list[ChatResult]]:
        """Generate for requests that all carry the same kinds of media."""
        import torch

        prompts = [self._family.render(self.processor, user_message(r.text, *r.media), for_answer=True) for r in requests]
        copies = 1 if self._family.expands_for_sampling else sampling.n
        rows = range(len(requests) * copies)
        inputs = self._inputs([requests[i // copies] for i in rows], [prompts[i // copies] for i in rows]).to(self.model.device)
        torch.manual_seed(seed_of(sampling.seed, [r.key for r in requests]))
        with torch.inference_mode(), neutral_generation(self.model, self.processor.tokenizer) as ends:
            output = self.model.generate(
                **inputs,
                max_new_tokens=sampling.max_tokens,
                num_return_sequences=sampling.n // copies,
                suppress_tokens=self._placeholders,
                synced_gpus=False,  # in validation, processes have different numbers of questions
                **in_process(sampling.temperature),
            )
        new = output[:, inputs["input_ids"].shape[1] :]
        is_end = torch.isin(new, torch.tensor(ends, device=new.device))
        ended = is_end.any(dim=1).tolist()
        # Up to and with the first end: the rest is padding.
        written = torch.where(is_end.any(dim=1), is_end.int().argmax(dim=1) + 1, new.shape[1]).tolist()
        prompted = inputs["attention_mask"].sum(dim=1).tolist()
        texts = self.processor.batch_decode(new, skip_special_tokens=True)
        # A template may open the reasoning. The opening is part of the text, as in `openai_replies`.
        opening = "<think>" if prompts[0].rstrip().endswith("<think>") else ""
        completions = [Completion(opening + t, "stop" if e else "length") for t, e in zip(texts, ended, strict=True)]
        n = sampling.n
        drawn = effective({"n": n, "temperature": sampling.temperature, "max_tokens": sampling.max_tokens, **NEUTRAL})
        yield [
            ChatResult(
                request.key,
                prompt,
                completions[i * n : (i + 1) * n],
                usage=Usage(prompted[i * copies], sum(written[i * n : (i + 1) * n])),
                sampling=drawn,
            )
            for i, (request, prompt) in enumerate(zip(requests, prompts, strict=True))
        ]


def make(flags: EngineFlags) -> TransformersEngine:
    return TransformersEngine.load(flags.model, flags.batch_size, flags.sampling, flags.revision, flags.base_model)
