"""
What a run costs: `--dry_run` of a stage builds a sample of its requests, sends none of them, and scales up.

Tokens are the usage of the requests that are answered already (an interrupted run keeps them in its journals). Before the first
answer they are a rough estimate from the constants below, and completions count as long as `max_tokens`, an upper bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sightsound.cli import InputError
from sightsound.data.clips import MediaError
from sightsound.data.schema import SAMPLING_RATE
from sightsound.engines.base import ChatRequest, Sampling
from sightsound.engines.openai_models import look_up_all
from sightsound.scale.ranks import journals
from sightsound.stage import is_complete, read_journal


if TYPE_CHECKING:
    import numpy as np

SAMPLE_SIZE = 20
PRICES = Path(__file__).with_name("prices.yaml")

# Rough figures, until the first requests are answered.
CHARACTERS_PER_TOKEN = 4  # OpenAI's help page on tokens, of English text
TEMPLATE_TOKENS = 20  # ChatML's marks around one user turn and a default system turn, with the tokenizer of Qwen2.5
AUDIO_TOKENS_PER_S = 25.0  # of most audio models with Whisper's encoder, arXiv 2407.10759 and 2503.20215: 40 ms a token
PIXELS_PER_TOKEN_SIDE, FRAMES_PER_TOKEN = 28, 2  # Qwen2.5-VL (arXiv 2502.13923): 14-pixel patches two by two, frames in pairs


@dataclass(frozen=True)
class Price:
    """USD per million tokens on a date, and how many tokens the model counts for a second of sound."""

    prompt: float
    audio: float
    completion: float
    date: str
    audio_tokens_per_s: float

    def usd(self, prompt: float, audio: float, completion: float) -> float:
        return (prompt * self.prompt + audio * self.audio + completion * self.completion) / 1e6


def read_price(model: str, file: Path | None = None) -> Price | None:
    """
    A model's price; None where the table does not have the model.

    Raises:
        `InputError`: The table cannot be read.
    """
    import yaml

    file = file or PRICES
    try:
        table = yaml.safe_load(file.read_text(encoding="utf-8"))
        entry = table["models"].get(model.rpartition("/")[2])
        if entry is None:
            return None
        usd = {name: float(entry[name]) for name in ("prompt", "audio", "completion")}
        rate = float(entry.get("audio_tokens_per_s", AUDIO_TOKENS_PER_S))
        return Price(**usd, date=str(entry.get("date", table["date"])), audio_tokens_per_s=rate)
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{file} cannot be used ({type(error).__name__}: {error}); expected `date` and, per model, USD per million of "
            "prompt, audio, completion tokens"
        ) from error


def rough_tokens(request: ChatRequest, audio_tokens_per_s: float = AUDIO_TOKENS_PER_S) -> tuple[int, int]:
    """Prompt tokens of sound, and all other prompt tokens (text, frames, template)."""
    seconds = 0.0 if request.audio is None else len(request.audio) / SAMPLING_RATE
    other = TEMPLATE_TOKENS + math.ceil(len(request.text) / CHARACTERS_PER_TOKEN)
    if request.video is not None:
        num_frames, height, width = request.video.pixels.shape[:3]
        squares = math.prod(max(1, round(side / PIXELS_PER_TOKEN_SIDE)) for side in (height, width))
        other += squares * math.ceil(num_frames / FRAMES_PER_TOKEN)
    return math.ceil(seconds * audio_tokens_per_s), other


def dry_run(
    keys: Sequence[str],
    build: Callable[[str], ChatRequest],
    sampling: Sampling,
    *,
    model: str,
    base_url: Sequence[str] | None,
    output_dir: str | Path,
    count_audio: Callable[[np.ndarray], int] | None = None,
    notes: Iterable[str] = (),
) -> str:
    """
    What `--dry_run` prints. Nothing is written, and the model gets no request; its name is looked up at its servers.

    Args:
        keys (`Sequence[str]`): All requests of the stage.
        build (`Callable`): Key to request, as `run_requests` takes it. A `MediaError` is a request that is not made.
        output_dir (`str`): Of the stage, with the journals of what it has done so far.
        count_audio (`Callable`, *optional*): A clip -> its tokens, for a model in this process, whose processor knows them.
        notes (`Iterable[str]`): Sentences for the end.

    Raises:
        `InputError`: A server does not serve the model, or the stage has no requests.
    """
    if is_complete(Path(output_dir)):
        return f"{output_dir} is complete: there is nothing left to pay"
    notes = [*look_up_all(model, [url.replace("{rank}", "0") for url in base_url or []]), *notes]
    if not keys:
        raise InputError("there is nothing to ask: no row, or none that needs a request")
    price = read_price(model)
    size, prompts = min(SAMPLE_SIZE, len(keys)), []
    for key in (keys[i * len(keys) // size] for i in range(size)):
        try:
            request = build(key)
        except MediaError:
            continue
        sound, other = rough_tokens(request, price.audio_tokens_per_s if price else AUDIO_TOKENS_PER_S)
        prompts.append((sound if count_audio is None or request.audio is None else count_audio(request.audio), other))
    wanted = set(keys)
    journaled = {k: entry.get("usage") for file in journals(output_dir) for k, entry, _ in read_journal(file) if k in wanted}
    usages = [usage for usage in journaled.values() if usage]

    audio, other = (sum(tokens) / max(1, len(prompts)) for tokens in zip(*prompts or [(0, 0)], strict=True))
    completion: float = sampling.n * sampling.max_tokens
    if usages:
        prompt, completion = (sum(u[name] for u in usages) / len(usages) for name in ("prompt_tokens", "completion_tokens"))
        other = max(0.0, prompt - audio)  # servers do not say which of their prompt tokens are sound
    usable = len(prompts) / size
    requests, left = len(keys) * usable, (len(keys) - len(journaled)) * usable
    done = f"{requests:,.0f} requests, {requests - left:,.0f} of them journaled"
    lines = [
        f"{model}: {done}; from a sample of {size}",
        "",
        f"{'':<22}{'per request':>14}{'whole run':>18}{'still to do':>18}",
    ]
    rows = {"requests": 1.0, "prompt tokens": other, "audio tokens": audio, "completion tokens": completion}
    lines += [f"{name:<22}{each:>14,.1f}{each * requests:>18,.0f}{each * left:>18,.0f}" for name, each in rows.items()]
    if price is not None:
        usd, name = price.usd(other, audio, completion), f"USD, {'' if usages else 'at most '}prices of {price.date}"
        lines.append(f"{name:<22}{usd:>14,.4f}{usd * requests:>18,.2f}{usd * left:>18,.2f}")
    if usages:
        lines += ["", f"Tokens are the usage of {len(usages)} answered requests."]
    else:
        lines += [
            "",
            "No request is answered yet: prompts are a rough estimate, and completions count as long as --max_tokens,",
        ]
        lines += ["an upper bound. Run a few questions and stop: the next --dry_run reads their usage."]
    if usable < 1:
        lines.append(f"{100 * (1 - usable):.0f} % of the sample has no clip that can be read: such rows get no request.")
    if price is None:
        lines.append(f"{model} is not in {PRICES.parent.name}/{PRICES.name}: its price is not known here.")
    return "\n".join([*lines, *notes])
