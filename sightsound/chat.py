"""
Ask a model: n completions per request, from an in-process transformers model or an OpenAI-compatible server.

Both engines take the same `ChatRequest` and give the same `ChatResult`, so a stage does not know which one it talks to.
`run_requests` drives either, journals what is finished and continues after a kill.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .checkpoints import load_processor
from .cli import InputError
from .journal import Journal, fingerprint
from .media import Frames, MediaError, encode_wav
from .prompts import user_message
from .schema import REFUSED, SAMPLING_RATE


@dataclass(frozen=True)
class ChatRequest:
    """
    One user turn.

    Args:
        key (`str`): Identifies the request in the journal.
        text (`str`): The user's text.
        audio (`np.ndarray`, *optional*): `(num_samples,)` at 16 kHz, already cut to the engine's `window_s`.
        video (`Frames`, *optional*): Frames of a silent video.
        note (`dict`): Anything the stage wants back with the result; journaled, never sent.
    """

    key: str
    text: str
    audio: np.ndarray | None = None
    video: Frames | None = None
    note: dict[str, Any] = field(default_factory=dict)

    @property
    def media(self) -> str | None:
        return "audio" if self.audio is not None else "video" if self.video is not None else None


@dataclass(frozen=True)
class Sampling:
    """`n` completions at `temperature` (0 is greedy) of at most `max_tokens` tokens; `seed` fixes the draw."""

    n: int
    temperature: float
    max_tokens: int
    seed: int


@dataclass(frozen=True)
class Completion:
    """`finish_reason` is `"stop"`, or `"length"` when the token limit cut the text."""

    text: str
    finish_reason: str


@dataclass(frozen=True)
class ChatResult:
    """The completions of one request and the exact prompt that they answer; or, in `refused`, why the server will not."""

    key: str
    prompt: str
    completions: list[Completion]
    refused: str | None = None


class Engine(Protocol):
    """
    What `run_requests` needs.

    `window_s`: longer sounds must be cut by the caller; None when the engine says nothing. `whole_calls`: what a request
    draws depends on the others of its call, so a call is only ever made with all its members. `complete` yields results as
    they are finished, several at a time where they finish together.
    """

    requests_per_call: int
    window_s: float | None
    revision: str
    whole_calls: bool

    def complete(self, requests: Sequence[ChatRequest], sampling: Sampling) -> Iterator[list[ChatResult]]: ...


def _seed_of(seed: int, keys: Sequence[str]) -> int:
    """A seed for these requests alone, so that a batch draws the same completions whenever it is (re)run."""
    return int.from_bytes(hashlib.sha256(json.dumps([seed, *keys]).encode()).digest()[:4], "big")


class TransformersEngine:
    """
    A model in this process, batched.

    Args:
        model (`str`): Local folder or Hub id of an audio or vision language model.
        batch_size (`int`): Sequences generated at once; a call takes `batch_size // n` requests.
        sampling (`Sampling`): Only `n` is read here, to size the calls.
    """

    whole_calls = True

    def __init__(self, model: str, batch_size: int, sampling: Sampling):
        import torch
        import transformers

        if (Path(model) / "adapter_config.json").is_file():
            raise InputError(f"{model} is an adapter; give the merged model, which training writes beside it (model/)")
        self.processor = load_processor(model)
        config = transformers.AutoConfig.from_pretrained(model)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        architecture = getattr(transformers, config.architectures[0])
        self.model = architecture.from_pretrained(model, dtype="auto").to(device).eval()
        self.requests_per_call = max(1, batch_size // sampling.n)
        extractor = getattr(self.processor, "feature_extractor", None)
        self.window_s = float(extractor.chunk_length) if extractor is not None else None
        self._takes = {"audio": extractor is not None, "video": getattr(self.processor, "video_processor", None) is not None}
        # The commit that was loaded, which need not be the Hub's newest.
        self.revision = (fingerprint(model) if Path(model).is_dir() else config._commit_hash) or ""
        # A sampled placeholder would ask the next forward for a clip that is not there.
        names = ("audio_token_id", "image_token_id", "video_token_id")
        self._placeholders = [i for i in (getattr(config, name, None) for name in names) if i is not None]

    def _inputs(self, requests: Sequence[ChatRequest], prompts: list[str]) -> Any:
        media: dict[str, Any] = {}
        kind = requests[0].media
        if kind and not self._takes[kind]:  # a processor without it would drop the clips and say nothing
            raise InputError(f"a {type(self.model).__name__} takes no {kind}; give a model that does")
        if kind == "audio":
            media = {"audio": [r.audio for r in requests], "sampling_rate": SAMPLING_RATE}
        elif kind == "video":
            videos = [r.video for r in requests if r.video is not None]
            media = {"videos": [v.pixels for v in videos], "do_sample_frames": False}
            media["video_metadata"] = [v.metadata() for v in videos]
        return self.processor(text=prompts, padding=True, padding_side="left", return_tensors="pt", **media)

    def complete(self, requests: Sequence[ChatRequest], sampling: Sampling) -> Iterator[list[ChatResult]]:
        """Generate for requests that all carry the same kind of media."""
        import torch

        conversations = [user_message(r.text, r.media) for r in requests]
        prompts = [self.processor.apply_chat_template(c, add_generation_prompt=True, tokenize=False) for c in conversations]
        inputs = self._inputs(requests, prompts).to(self.model.device)
        torch.manual_seed(_seed_of(sampling.seed, [r.key for r in requests]))
        draw: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            draw = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
        with torch.inference_mode():
            output = self.model.generate(
                **inputs,
                max_new_tokens=sampling.max_tokens,
                num_return_sequences=sampling.n,
                suppress_tokens=self._placeholders,
                **draw,
            )
        new = output[:, inputs["input_ids"].shape[1] :]
        ends = self.model.generation_config.eos_token_id
        ended = torch.isin(new, torch.tensor(ends, device=new.device)).any(dim=1).tolist()
        texts = self.processor.batch_decode(new, skip_special_tokens=True)
        completions = [Completion(t, "stop" if e else "length") for t, e in zip(texts, ended, strict=True)]
        n = sampling.n
        yield [
            ChatResult(request.key, prompt, completions[i * n : (i + 1) * n])
            for i, (request, prompt) in enumerate(zip(requests, prompts, strict=True))
        ]


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


# What is wrong with the request and not with the server: asked again, it would be refused again.
_REFUSALS = (400, 413, 422)


class OpenAIEngine:
    """
    An OpenAI-compatible server, through the `openai` client (its retries and backoff included).

    Audio travels as `input_audio` (WAV); frames as vLLM's frame list, a `video_url` of base64 images (lossless, so that
    the server sees the pixels that the in-process engine would). The key comes from `OPENAI_API_KEY`.

    Args:
        model (`str`): The name under which the server serves the model.
        base_url (`str`): Such as `http://localhost:8000/v1`.
        concurrency (`int`): Requests in flight at once.
    """

    # A server takes what it is sent; the ~30 s of Qwen2-Audio's encoder is the window of the models served in practice.
    window_s: float | None = 30.0
    whole_calls = False

    def __init__(self, model: str, base_url: str, concurrency: int):
        import os

        from openai import OpenAI

        self.model = model
        self.revision = f"{model} at its server"
        self.requests_per_call = 4 * concurrency
        self._concurrency = concurrency
        self._client = OpenAI(base_url=base_url, api_key=os.environ.get("OPENAI_API_KEY", "EMPTY"), max_retries=5)

    def _content(self, request: ChatRequest) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = []
        if request.audio is not None:
            data = base64.b64encode(encode_wav(request.audio)).decode()
            parts.append({"type": "input_audio", "input_audio": {"data": data, "format": "wav"}})
        if request.video is not None:
            frames = ",".join(base64.b64encode(_png(frame)).decode() for frame in request.video.pixels)
            parts.append({"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{frames}"}})
        return [*parts, {"type": "text", "text": request.text}]

    def _one(self, request: ChatRequest, sampling: Sampling) -> ChatResult:
        extra = {} if request.video is None else {"mm_processor_kwargs": {"fps": request.video.metadata()["fps"]}}
        response = self._client.chat.completions.create(
            model=self.model,
            messages=[{"role": "user", "content": self._content(request)}],  # type: ignore[list-item,misc]
            n=sampling.n,
            temperature=sampling.temperature,
            max_tokens=sampling.max_tokens,
            seed=_seed_of(sampling.seed, [request.key]),
            extra_body=extra,
        )
        completions = [Completion(c.message.content or "", c.finish_reason) for c in response.choices]
        if len(completions) != sampling.n:
            raise InputError(f"{self.model} returned {len(completions)} completions for n={sampling.n}; it needs to support n")
        return ChatResult(request.key, request.text, completions)

    def complete(self, requests: Sequence[ChatRequest], sampling: Sampling) -> Iterator[list[ChatResult]]:
        """
        Send the requests, `concurrency` at a time.

        A request that the server refuses as such (400, 413, 422) is a result. The first other failure that outlives the
        retries is raised, after what is in flight has been answered: that was paid for.
        """
        from openai import APIConnectionError, APIStatusError

        failure: APIConnectionError | APIStatusError | None = None
        stopped = threading.Event()

        def ask(request: ChatRequest) -> ChatResult | None:
            return None if stopped.is_set() else self._one(request, sampling)

        with ThreadPoolExecutor(self._concurrency) as pool:
            answers = {pool.submit(ask, request): request for request in requests}
            try:
                for answer in as_completed(answers):
                    request = answers[answer]
                    try:
                        result = answer.result()
                    except (APIConnectionError, APIStatusError) as error:
                        if getattr(error, "status_code", None) in _REFUSALS:
                            yield [ChatResult(request.key, request.text, [], refused=str(error))]
                        else:
                            failure = failure or error
                            stopped.set()
                        continue
                    if result is not None:
                        yield [result]
            finally:
                stopped.set()
        if isinstance(failure, APIStatusError):
            told = f"{self._client.base_url} answered {failure.status_code}: {failure.message}"
            raise InputError(f"{told}; finished requests are kept, rerun to continue") from failure
        if failure is not None:
            raise InputError(f"no answer from {self._client.base_url}: is the server running?") from failure


def make_engine(model: str, base_url: str | None, batch_size: int, concurrency: int, sampling: Sampling) -> Engine:
    """`OpenAIEngine` when a `base_url` is given, else `TransformersEngine`."""
    if base_url:
        return OpenAIEngine(model, base_url, concurrency)
    return TransformersEngine(model, batch_size, sampling)


def run_requests(
    engine: Engine,
    keys: Sequence[str],
    build: Callable[[str], ChatRequest],
    sampling: Sampling,
    journal: Journal,
    description: str,
) -> None:
    """
    Make every request that the journal lacks; results and failures are journaled as they come.

    Calls are cut from the full list of keys, whatever is journaled already. An engine with `whole_calls` repeats an
    interrupted call with the same members and so draws the same completions.

    Args:
        keys (`Sequence[str]`): All requests of the stage, in order.
        build (`Callable`): Key to request. A `MediaError` is journaled as the request's outcome.
        description (`str`): For the progress bar.

    The journal then holds, per key, `{"prompt", "completions": [{"text", "finish_reason"}], **note}` or
    `{"outcome", "detail"}`.
    """
    from tqdm import tqdm

    with tqdm(total=len(keys), desc=description, unit="row", mininterval=1.0) as bar:
        for start in range(0, len(keys), engine.requests_per_call):
            call = keys[start : start + engine.requests_per_call]
            missing = [key for key in call if key not in journal]
            if missing:
                _make(engine, call if engine.whole_calls else missing, build, sampling, journal)
            bar.update(len(call))


def _make(
    engine: Engine, keys: Sequence[str], build: Callable[[str], ChatRequest], sampling: Sampling, journal: Journal
) -> None:
    requests: dict[str, ChatRequest] = {}
    for key in keys:
        try:
            requests[key] = build(key)
        except MediaError as error:
            journal.append([(key, {"outcome": error.outcome, "detail": str(error)})])
    if not requests:
        return
    refused: list[ChatResult] = []
    for results in engine.complete(list(requests.values()), sampling):
        refused += [result for result in results if result.refused]
        answered = [result for result in results if not result.refused]
        journal.append((result.key, {**_entry(result), **requests[result.key].note}) for result in answered)
    # A server that has not answered a single request does not dislike this one: it is set up for something else.
    if refused and not any("completions" in entry for entry in journal.entries.values()):
        raise InputError(f"the server refuses every request: {refused[0].refused}")
    journal.append((result.key, {"outcome": REFUSED, "detail": result.refused}) for result in refused)


def _entry(result: ChatResult) -> dict[str, Any]:
    return {"prompt": result.prompt, "completions": [asdict(completion) for completion in result.completions]}
