"""
Sampling that a checkpoint's `generation_config.json` cannot change, and what is recorded of it.

transformers' `generate` and vLLM's server fill every sampling field that is left out from that file. A released 7B student
ships top_k 20, top_p 0.5 and repetition_penalty 1.1; another checkpoint once had top_k 1, which makes all n traces equal.
Here every field is set, so that only the temperature, the seed and the model decide what is sampled.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any


# The value that turns a sampling field off, for all but the temperature. The first three are OpenAI's, the others vLLM's.
NEUTRAL: dict[str, float] = {
    "top_p": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}
OPENAI_FIELDS = ("top_p", "presence_penalty", "frequency_penalty")
# A server that refuses fields without naming them gets requests without the last of these groups, then the last two, ...
GROUPS = (("top_p",), ("presence_penalty", "frequency_penalty"), ("top_k", "min_p", "repetition_penalty"))

# Statuses of a refused field: OpenAI's API answers 400, servers made with FastAPI 422.
REFUSES_A_FIELD = (400, 422)
# "top_p", "topP", "top-p"; OpenAI, vLLM, Google and Mistral spell it differently.
_NAMED = {name: re.compile(rf"\b{name.replace('_', '[_ -]?')}\b", re.IGNORECASE) for name in NEUTRAL}
_NOT_ACCEPTED = re.compile(
    r"\b(?:unknown|unrecogni[sz]ed|unexpected|unsupported|extra|additional propert|invalid (?:json|field|parameter|argument)"
    r"|validation|schema"
    r"|(?:not|n't) (?:be )?(?:supported|permitted|allowed|enabled|accepted|recogni[sz]ed))",
    re.IGNORECASE,
)


def in_process(temperature: float) -> dict[str, Any]:
    """The arguments of transformers' `generate` for sampling at `temperature`, within `neutral_generation`."""
    if temperature == 0:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": NEUTRAL["top_p"]}


@contextmanager
def neutral_generation(model: Any, tokenizer: Any) -> Iterator[list[int]]:
    """
    Within this context `model.generate` uses only the special tokens of the checkpoint's generation config.

    A field that is None in a call is filled from `model.generation_config`. To set the known fields in the call is not enough,
    because None is the neutral value of many (suppress_tokens, bad_words_ids, forced_eos_token_id, ...).

    Args:
        model (`PreTrainedModel` or `PeftModel`): Its generation config is restored afterwards.
        tokenizer (`PreTrainedTokenizerBase`): Its end of text is used where the generation config has none.

    Yields:
        `list[int]`: The tokens that end a text.
    """
    from transformers import GenerationConfig

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = base.generation_config
    eos = tokenizer.eos_token_id if own.eos_token_id is None else own.eos_token_id
    ends = [eos] if isinstance(eos, int) else list(eos or [])
    kept = {"bos_token_id": own.bos_token_id, "pad_token_id": own.pad_token_id}
    base.generation_config = GenerationConfig(eos_token_id=ends, **kept)
    try:
        yield ends
    finally:
        base.generation_config = own


def effective(body: Mapping[str, Any]) -> dict[str, Any]:
    """
    What a row records of a request: every field that decides what is sampled, without the seed.

    Args:
        body (`Mapping`): What was sent. A field that was left out is recorded as None: the server's own default.
    """
    other = ("model", "messages", "seed", "media_io_kwargs", "mm_processor_kwargs")
    sent = {name: value for name, value in body.items() if name not in other}
    return {**dict.fromkeys(("n", "temperature", "max_tokens", *NEUTRAL)), **sent}


class NeutralFields:
    """
    The neutral fields that one server accepts: all of `NEUTRAL`, until it has answered a request without some of them.

    OpenAI, Gemini and others refuse fields that they do not know, and some models refuse fields that the server knows. A
    request that is refused for its fields is made again without them. The fields of the first answered request are sent from
    then on: a later refusal has another reason.
    """

    def __init__(self) -> None:
        self._offered: dict[str, float] = dict(NEUTRAL)
        self._is_settled = False

    def offered(self) -> dict[str, float]:
        """What to send. For several threads: the dictionary is replaced, never changed."""
        return self._offered

    def settle(self, sent: dict[str, float]) -> None:
        """The server has answered a request with the fields `sent`."""
        if not self._is_settled:
            self._offered, self._is_settled = sent, True

    def without(self, sent: dict[str, float], error: Any) -> dict[str, float] | None:
        """
        What to send instead, after a request with `sent` was refused; None where the fields are not the reason.

        Args:
            error (`APIStatusError`): The refusal.
        """
        if self._is_settled:
            return None if sent == self._offered or error.status_code not in REFUSES_A_FIELD else self._offered
        refused = _refused_fields(error, sent)
        return {name: value for name, value in sent.items() if name not in refused} if refused else None


def named_fields(error: Any, sent: Iterable[str]) -> list[str]:
    """The fields of `sent` that a refusal names."""
    if error.status_code not in REFUSES_A_FIELD:
        return []
    return [name for name in sent if _NAMED[name].search(f"{error.message} {error.body}")]


def _refused_fields(error: Any, sent: Iterable[str]) -> list[str]:
    """The fields that a refusal names; if it names none and is about something that is not accepted, the last group of them."""
    named = named_fields(error, sent)
    if named or error.status_code not in REFUSES_A_FIELD or not _NOT_ACCEPTED.search(f"{error.message} {error.body}"):
        return named
    left = [[name for name in group if name in sent] for group in GROUPS]
    return next((group for group in reversed(left) if group), [])
