"""
What an OpenAI-compatible server replied: completions in one form, whatever the server.

Servers differ in how they say the same thing. Here it becomes one form:

- Reasoning may stand in a field of its own (`reasoning_content`, `reasoning`, `reasoning_details`), in a part of a content that
  is a list, or before a `</think>` whose opening the chat template wrote. A completion's text is always
  `<think>reasoning</think>content`.
- Finish reasons become `stop`, `length`, `content_filter` or `refusal`. Servers have many words for a text that ended by itself
  (`eos_token`, `end_turn`, `STOP`, null): all that is not known as one of the others is `stop`.
- An error may come with status 200, instead of the choices or inside one of them: it is a failure, not an answer.
- A text that was cut may end in half a surrogate pair, which cannot be written to a file: it becomes U+FFFD.
"""

from __future__ import annotations

import json
from typing import Any

from sightsound.data.schema import BAD_RESPONSE, SERVER_ERROR
from sightsound.engines.base import Completion, Usage
from sightsound.engines.openai_protocol import BUSY, RequestFailure, encodable, failure_of_reported
from sightsound.method.prompts import open_reasoning


# Finish reasons, in lower case and with underscores. Sources: the API references of OpenAI, Mistral (model_length), Anthropic
# (max_tokens, refusal), Gemini (MAX_TOKENS, SAFETY and what follows it), Z.ai (sensitive, network_error,
# model_context_window_exceeded), DeepSeek (insufficient_system_resource), OpenRouter (error), vLLM and SGLang (abort).
_REASONS = {
    "length": ("length", "max_tokens", "max_output_tokens", "max_length", "model_length", "model_context_window_exceeded"),
    "content_filter": (
        *("content_filter", "safety", "recitation", "blocklist", "prohibited_content", "spii", "image_safety", "sensitive"),
    ),
    "refusal": ("refusal",),
    "error": ("error", "network_error", "insufficient_system_resource", "abort", "aborted", "cancelled"),
}
_KNOWN = {word: reason for reason, words in _REASONS.items() for word in words}

# Codes of an error in a body, where they are words, as HTTP statuses.
_STATUS_OF_CODE = {"rate_limit_exceeded": BUSY, "insufficient_quota": BUSY, "overloaded": 503, "server_error": 500}


class ErrorReply(ValueError):
    """A reply that reports an error: `error` is what it says, `status` the HTTP status that it names, if any."""

    def __init__(self, message: str, error: Any):
        super().__init__(message)
        self.error = error
        code = error.get("code", error.get("status")) if isinstance(error, dict) else None
        code = int(code) if isinstance(code, str) and code.isdigit() else _STATUS_OF_CODE.get(str(code), code)
        self.status: int | None = code if isinstance(code, int) and 400 <= code < 600 else None


class ErrorInChoice(ErrorReply):
    """An error that came after the request had been accepted, beside whatever was written until then."""


def read_reply(body: bytes, n: int, url: str) -> tuple[list[Completion], Usage | None]:
    """
    `parse_completions`, and what the failure of a reply means for its request.

    Raises:
        `RequestFailure`: The reply holds no completions. An error in it counts as if it had come with its HTTP status; inside
            a choice it is never final, since the request itself was accepted.
    """
    try:
        return parse_completions(body, n)
    except ErrorReply as error:
        if error.status is not None and (error.status == BUSY or not isinstance(error, ErrorInChoice)):
            raise failure_of_reported(error.status, error.error, url) from error
        raise RequestFailure(f"{url} answered with an error: {error}", SERVER_ERROR) from error
    except ValueError as error:
        raise RequestFailure(f"{url} did not answer with a chat completion: {error}", BAD_RESPONSE) from error


def parse_completions(body: bytes, n: int) -> tuple[list[Completion], Usage | None]:
    """
    Read a chat completion strictly: a row of the ledger is made of it.

    A refusal of the model (`message.refusal`) is a completion with the finish reason `refusal`.

    Raises:
        `ValueError`: Not JSON, not a chat completion, or not `n` choices; the message says what was found.
        `ErrorReply`: An error of the server.
    """
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error}): {body[:80]!r}") from error
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if isinstance(answer, dict) and (answer.get("error") or answer.get("object") == "error"):
        raise ErrorReply(f"no choices: {_excerpt(answer)}", answer.get("error") or answer)
    if not isinstance(choices, list):
        raise ValueError(f"no choices: {body[:80]!r}")
    completions = [_completion(choice) for choice in choices]
    if len(choices) != n:
        remedy = "; --omit_field n makes a request of each completion" if len(choices) == 1 else ""
        raise ValueError(f"{len(choices)} choices for n={n}; it needs to support n{remedy}")
    return completions, _usage(answer.get("usage"))


def _completion(choice: Any) -> Completion:
    if not isinstance(choice, dict):
        raise ValueError(f"a choice without a text: {_excerpt(choice)}")
    reason = _KNOWN.get(str(choice.get("finish_reason")).lower().replace("-", "_"), "stop")
    if choice.get("error") or reason == "error":
        raise ErrorInChoice(_excerpt(choice), choice.get("error") or choice)
    message = choice.get("message")
    if message is None and reason in ("length", "content_filter"):  # a filter, or the limit, left nothing of it
        message = {}
    if not isinstance(message, dict):
        raise ValueError(f"a choice without a text: {_excerpt(choice)}")
    content = message.get("content")
    if not isinstance(content, str | list | None):
        raise ValueError(f"a choice without a text: {_excerpt(choice)}")
    text, refusal = _text_of(content), _text_of(message.get("refusal"))
    if refusal and not text:
        return Completion(encodable(refusal), "refusal")
    fields = (_text_of(message.get(name)) for name in ("reasoning_content", "reasoning", "reasoning_details"))
    reasoning = next((each for each in fields if each.strip()), "") or _thinking_of(content)
    return Completion(encodable(_joined(reasoning, text, is_cut=reason == "length")), reason)


def _text_of(content: Any) -> str:
    """Of a string, or of a list of parts; "" for anything else."""
    if isinstance(content, str):
        return content
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    return "".join(part["text"] for part in parts if isinstance(part.get("text"), str) and not _is_thinking(part))


def _thinking_of(content: Any) -> str:
    """The reasoning among the parts of a content: a string, or parts of its own (Mistral)."""
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    return "".join(_text_of(part.get("thinking") or part.get("text")) for part in parts if _is_thinking(part))


def _is_thinking(part: dict[str, Any]) -> bool:
    return part.get("type") in ("thinking", "reasoning")


def _joined(reasoning: str, content: str, is_cut: bool) -> str:
    """One text. Content with its own `<think>` repeats the reasoning, or is what the prompt asked for: it stays as it is."""
    if not reasoning.strip() or "<think>" in content:
        return open_reasoning(content)
    if "</think>" in content:  # the server took the beginning of the reasoning for all of it
        return f"<think>{reasoning.lstrip().removeprefix('<think>')}{content}"
    reasoning = reasoning.strip().removeprefix("<think>").removesuffix("</think>").strip()
    if is_cut and not content.strip():
        return f"<think>{reasoning}"
    return f"<think>{reasoning}</think>{content}"


def _usage(usage: Any) -> Usage | None:
    """What the server counted; None where it did not."""
    if not isinstance(usage, dict):
        return None
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"), cached)
    prompt, completion, cached = (count if isinstance(count, int) else None for count in counts)
    return None if prompt is None or completion is None else Usage(prompt, completion, cached)


def _excerpt(value: Any) -> str:
    return json.dumps(value)[:200]
