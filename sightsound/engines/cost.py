"""
What a run would cost, before it starts: requests, tokens and price, from a sample of its requests.

`--dry_run` of a stage builds `SAMPLE_SIZE` requests as the run would, spread over all of them, counts their tokens and scales
up. Tokens are counted by the model's own processor where the model is a folder here; for a server they are estimated, and the
table says so. Completions are as long as those journaled so far, or `max_tokens` when there are none yet: an upper bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sightsound.cli import InputError
from sightsound.data.clips import MediaError
from sightsound.data.schema import SAMPLING_RATE
from sightsound.engines.base import ChatRequest, Sampling
from sightsound.engines.openai_models import look_up_all
from sightsound.method.prompts import user_message
from sightsound.scale.ranks import journals
from sightsound.stage import is_complete, read_journal


SAMPLE_SIZE = 20
PRICES = Path(__file__).with_name("prices.yaml")
PER_MILLION = ("prompt", "audio", "completion")

# OpenAI's help page on tokens: "1 token ~= 4 characters in English".
CHARACTERS_PER_TOKEN = 4
# Role and turn marks around the one user turn: <|im_start|>user, <|im_end|>, <|im_start|>assistant and the line ends of ChatML,
# plus a default system turn: 20 or 21 with the tokenizer of Qwen2.5.
TEMPLATE_TOKENS = 20
# The students, arXiv 2407.10759 and 2503.20215: a pooled frame of the encoder is 40 ms of sound.
AUDIO_TOKENS_PER_S = 25.0
# Qwen2.5-VL, arXiv 2502.13923: patches of 14 pixels, merged two by two, and frames in pairs.
PIXELS_PER_TOKEN_SIDE = 28
FRAMES_PER_TOKEN = 2


@dataclass(frozen=True)
class PromptTokens:
    """Of one prompt: `audio` tokens of sound, `other` ones (text, frames, the template)."""

    audio: int
    other: int


class Counter(Protocol):
    """Counts tokens; `told` says how, for the table."""

    told: str

    def prompt(self, request: ChatRequest) -> PromptTokens: ...

    def text(self, text: str) -> int: ...


class HeuristicCounter:
    """
    Estimates for a model behind a server, from what its makers say of their kind; see the constants above.

    Args:
        audio_tokens_per_s (`float`): How the model counts sound.
    """

    def __init__(self, audio_tokens_per_s: float = AUDIO_TOKENS_PER_S):
        self._audio_tokens_per_s = audio_tokens_per_s
        self.told = (
            f"estimated: {CHARACTERS_PER_TOKEN} characters, {1000 / audio_tokens_per_s:g} ms of sound, or {FRAMES_PER_TOKEN} "
            f"frames' square of {PIXELS_PER_TOKEN_SIDE} pixels a token"
        )

    def prompt(self, request: ChatRequest) -> PromptTokens:
        other = TEMPLATE_TOKENS + self.text(request.text)
        if request.video is not None:
            count, height, width = request.video.pixels.shape[:3]
            squares = math.prod(max(1, round(side / PIXELS_PER_TOKEN_SIDE)) for side in (height, width))
            other += squares * math.ceil(count / FRAMES_PER_TOKEN)
        seconds = 0.0 if request.audio is None else len(request.audio) / SAMPLING_RATE
        return PromptTokens(math.ceil(seconds * self._audio_tokens_per_s), other)

    def text(self, text: str) -> int:
        return math.ceil(len(text) / CHARACTERS_PER_TOKEN)


class ProcessorCounter:
    """
    What a model really gets: its own template, tokenizer and processor, without its weights.

    Args:
        model (`str`): Local folder.
    """

    def __init__(self, model: str):
        from sightsound.models.family import family_of_processor
        from sightsound.models.loading import load_processor

        self._processor = load_processor(model)
        self._family = family_of_processor(self._processor)
        self.told = f"counted with the processor of {model}"
        sound = getattr(self._processor, "audio_token", None)
        self._audio_token = None if sound is None else self._processor.tokenizer.convert_tokens_to_ids(sound)

    def prompt(self, request: ChatRequest) -> PromptTokens:
        message = user_message(request.text, *request.media)
        prompt = self._processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        audio = [] if request.audio is None else [request.audio]
        videos = [] if request.video is None else [request.video]
        encoded = self._family.encode(self._processor, [prompt], audio=audio, videos=videos, return_tensors="pt")
        ids = encoded["input_ids"][0].tolist()
        num_audio = ids.count(self._audio_token)
        return PromptTokens(num_audio, len(ids) - num_audio)

    def text(self, text: str) -> int:
        return len(self._processor.tokenizer(text, add_special_tokens=False)["input_ids"])


@dataclass(frozen=True)
class Price:
    """USD per million tokens, and of when that is."""

    prompt: float
    audio: float
    completion: float
    date: str

    def usd(self, prompt: float, audio: float, completion: float) -> float:
        return (prompt * self.prompt + audio * self.audio + completion * self.completion) / 1e6


def read_price(model: str, file: Path = PRICES) -> tuple[Price | None, float]:
    """
    A model's price, None where the table does not have it, and how many tokens it counts for a second of sound.

    Raises:
        `InputError`: The table cannot be read.
    """
    import yaml

    try:
        table = yaml.safe_load(file.read_text(encoding="utf-8"))
        entry = table["models"].get(model.rpartition("/")[2])
        if entry is None:
            return None, AUDIO_TOKENS_PER_S
        date = str(entry.get("date", table["date"]))
        price = Price(float(entry["prompt"]), float(entry["audio"]), float(entry["completion"]), date)
        return price, float(entry.get("audio_tokens_per_s", AUDIO_TOKENS_PER_S))
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        told = f"{file} cannot be used ({type(error).__name__}: {error})"
        raise InputError(
            f"{told}; expected `date` and, per model, USD per million of {', '.join(PER_MILLION)} tokens"
        ) from error


def make_counter(model: str, base_url: str | Sequence[str] | None) -> Counter:
    """The model's own processor where the model is a folder here, else estimates."""
    if base_url is None or Path(model).is_dir():
        return ProcessorCounter(model)
    return HeuristicCounter(read_price(model)[1])


@dataclass(frozen=True)
class Estimate:
    """
    Of a whole run and of what is left of it; tokens of a request are means over the sample.

    `requests` are all of the run, `journaled` those of them that are finished; `unusable` is the share of the sample whose clip
    cannot be read: no request is made for them.
    """

    requests: int
    journaled: int
    sampled: int
    unusable: float
    prompt: float
    audio: float
    completion: float
    is_bound: bool

    @property
    def left(self) -> int:
        return self.requests - self.journaled

    def tokens(self, requests: int) -> dict[str, float]:
        made = requests * (1 - self.unusable)
        return {
            "requests": made,
            "prompt": made * self.prompt,
            "audio": made * self.audio,
            "completion": made * self.completion,
        }


def estimate(
    keys: Sequence[str],
    build: Callable[[str], ChatRequest],
    sampling: Sampling,
    counter: Counter,
    output_dir: str | Path,
) -> Estimate:
    """
    Build a sample of the requests of a stage and count.

    Args:
        keys (`Sequence[str]`): All requests of the stage.
        build (`Callable`): Key to request, as `run_requests` takes it; a `MediaError` is a request that is not made.
        output_dir (`str`): Where the journals of the stage would be.
    """
    if not keys:
        raise InputError("there is nothing to ask: no row, or none that needs a request")
    size = min(SAMPLE_SIZE, len(keys))
    prompts = []
    for key in (keys[i * len(keys) // size] for i in range(size)):
        try:
            prompts.append(counter.prompt(build(key)))
        except MediaError:
            continue
    finished, lengths = _finished(output_dir, set(keys), counter)
    per_completion = sum(lengths) / len(lengths) if lengths else sampling.max_tokens
    usable = max(1, len(prompts))
    return Estimate(
        requests=len(keys),
        journaled=finished,
        sampled=size,
        unusable=1 - len(prompts) / size,
        prompt=sum(tokens.other for tokens in prompts) / usable,
        audio=sum(tokens.audio for tokens in prompts) / usable,
        completion=sampling.n * per_completion,
        is_bound=not lengths,
    )


def _finished(output_dir: str | Path, keys: Collection[str], counter: Counter) -> tuple[int, list[int]]:
    """How many of the requests are journaled, by whichever rank, and the lengths of the first completions there."""
    found: set[str] = set()
    lengths: list[int] = []
    for file in journals(output_dir):
        for key, value, _ in read_journal(file):
            if key in keys:
                found.add(key)
                if len(lengths) < SAMPLE_SIZE * 10:
                    lengths += [counter.text(completion["text"]) for completion in value.get("completions", [])]
    return len(found), lengths


def render(what: Estimate, model: str, counter: Counter, price: Price | None, notes: Iterable[str] = ()) -> str:
    """The table that `--dry_run` prints."""
    whole, left = what.tokens(what.requests), what.tokens(what.left)
    at_most = "at most " if what.is_bound else ""
    head = f"{model}: {whole['requests']:,.0f} requests, {whole['requests'] - left['requests']:,.0f} of them journaled"
    lines = [f"{head}; from a sample of {what.sampled}", ""]
    lines.append(f"{'':<22}{'per request':>14}{'whole run':>18}{'still to do':>18}")
    names = {"requests": "requests", "prompt": "prompt tokens", "audio": "audio tokens", "completion": "completion tokens"}
    for name, label in names.items():
        each = 1.0 if name == "requests" else getattr(what, name)
        lines.append(f"{label:<22}{each:>14,.1f}{whole[name]:>18,.0f}{left[name]:>18,.0f}")
    if price is not None:
        usd = [price.usd(*(part[name] for name in PER_MILLION)) for part in (what.tokens(1), whole, left)]
        lines.append(f"{f'USD, {at_most}prices of {price.date}':<22}{usd[0]:>14,.4f}{usd[1]:>18,.2f}{usd[2]:>18,.2f}")
    lines += ["", f"Tokens are {counter.told}."]
    if what.is_bound:
        lines.append("Nothing is journaled yet: completions are counted as long as --max_tokens allows, an upper bound.")
    if what.unusable:
        lines.append(
            f"{100 * what.unusable:.0f} % of the sample has no clip that can be read; nothing is asked about such rows."
        )
    if price is None:
        lines.append(f"{model} is not in {PRICES.parent.name}/{PRICES.name}: its price is not known here.")
    return "\n".join([*lines, *notes])


def dry_run(
    keys: Sequence[str],
    build: Callable[[str], ChatRequest],
    sampling: Sampling,
    model: str,
    base_url: str | Sequence[str] | None,
    output_dir: str | Path,
    notes: Iterable[str] = (),
) -> str:
    """
    What the run would cost, as text; nothing is written and no model is asked. Arguments as for `estimate`.

    Raises:
        `InputError`: A server at `base_url` does not serve the model.
    """
    if is_complete(Path(output_dir)):
        return f"{output_dir} is complete: there is nothing left to pay"
    urls = [base_url] if isinstance(base_url, str) else base_url or []
    notes = [*look_up_all(model, [url.replace("{rank}", "0") for url in urls]), *notes]
    counter = make_counter(model, base_url)
    return render(estimate(keys, build, sampling, counter, output_dir), model, counter, read_price(model)[0], notes)
