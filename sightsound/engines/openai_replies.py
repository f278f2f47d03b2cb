"""
Read the reply of an OpenAI-compatible server: completions in one form, whatever the server.

Servers differ in how they write the same thing. `ChatCompletion.model_validate_json` of the openai package refuses most of what
follows (lists as content, finish reasons that OpenAI does not have, a choice without a message), so the reply is read here:

- Reasoning may be in a field of its own (`reasoning_content`, `reasoning`, `reasoning_details`), in a part of a content that
  is a list, or before a `</think>` whose opening the chat template wrote. A completion's text is always
  `<think>reasoning</think>content`.
- Finish reasons become `stop`, `length`, `content_filter` or `refusal`. Servers have many words for a text that is complete
  (`eos_token`, `end_turn`, `STOP`, null): every word that is not listed below is `stop`.
- An error may come with status 200, instead of the choices or inside one of them: it is a failure, not an answer.
- A text that was cut may end in half a surrogate pair, which cannot be written to a file. It becomes U+FFFD.
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

# The HTTP status of an error in a body whose code is a word.
_STATUS_OF_CODE = {"rate_limit_exceeded": BUSY, "insufficient_quota": BUSY, "overloaded": 503, "server_error": 500}


def read_reply(body: bytes, n: int, url: str) -> tuple[list[Completion], Usage | None]:
    """
    Read a chat completion strictly: a row of the ledger is made of it.

    A refusal of the model (`message.refusal`) is a completion with the finish reason `refusal`.

    Args:
        n (`int`): How many choices the request asked for.
        url (`str`): Of the server, for messages.

    Raises:
        `RequestFailure`: Not JSON, not a chat completion, not `n` choices, or an error of the server.
    """
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _malformed(f"not JSON ({error}): {body[:80]!r}", url) from error
    if isinstance(answer, dict) and (answer.get("error") or answer.get("object") == "error"):
        raise _reported(answer.get("error") or answer, f"no choices: {_excerpt(answer)}", url)
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list):
        raise _malformed(f"no choices: {body[:80]!r}", url)
    completions = [_completion(choice, url) for choice in choices]
    if len(choices) != n:
        remedy = "; --omit_field n makes a request of each completion" if len(choices) == 1 else ""
        raise _malformed(f"{len(choices)} choices for n={n}; it needs to support n{remedy}", url)
    return completions, _usage(answer.get("usage"))


def _malformed(seen: str, url: str) -> RequestFailure:
    return RequestFailure(BAD_RESPONSE, f"{url} did not answer with a chat completion: {seen}")


def _reported(error: Any, seen: str, url: str, in_choice: bool = False) -> RequestFailure:
    """
    An error inside a body counts as if it had come with its HTTP status.

    Args:
        in_choice (`bool`): It came after the server had accepted the request, so it is never final.
    """
    code = error.get("code", error.get("status")) if isinstance(error, dict) else None
    status = int(code) if isinstance(code, str) and code.isdigit() else _STATUS_OF_CODE.get(str(code), code)
    if isinstance(status, int) and 400 <= status < 600 and (status == BUSY or not in_choice):
        return failure_of_reported(status, error, url)
    return RequestFailure(SERVER_ERROR, f"{url} answered with an error: {seen}")


def _completion(choice: Any, url: str) -> Completion:
    no_text = _malformed(f"a choice without a text: {_excerpt(choice)}", url)
    if not isinstance(choice, dict):
        raise no_text
    reason = _KNOWN.get(str(choice.get("finish_reason")).lower().replace("-", "_"), "stop")
    if choice.get("error") or reason == "error":
        raise _reported(choice.get("error") or choice, _excerpt(choice), url, in_choice=True)
    message = choice.get("message")
    if message is None and reason in ("length", "content_filter"):  # a filter or the limit left no text
        message = {}
    if not isinstance(message, dict):
        raise no_text
    content = message.get("content")
    if not isinstance(content, str | list | None):
        raise no_text
    text, refusal = _text_of(content), _text_of(message.get("refusal"))
    if refusal and not text:
        return Completion(encodable(refusal), "refusal")
    fields = (_text_of(message.get(name)) for name in ("reasoning_content", "reasoning", "reasoning_details"))
    reasoning = next((each for each in fields if each.strip()), "") or _thinking_of(content)
    return Completion(encodable(_joined(reasoning, text, is_cut=reason == "length")), reason)


def _text_of(content: Any) -> str:
    """The text of a string or of a list of parts; "" for anything else."""
    if isinstance(content, str):
        return content
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    return "".join(part["text"] for part in parts if isinstance(part.get("text"), str) and not _is_thinking(part))


def _thinking_of(content: Any) -> str:
    """The reasoning among the parts of a content: a string, or a list of parts (Mistral)."""
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    return "".join(_text_of(part.get("thinking") or part.get("text")) for part in parts if _is_thinking(part))


def _is_thinking(part: dict[str, Any]) -> bool:
    return part.get("type") in ("thinking", "reasoning")


def _joined(reasoning: str, content: str, is_cut: bool) -> str:
    """Join reasoning and content. If the content already has `<think>`, keep it as it is."""
    if not reasoning.strip() or "<think>" in content:
        return open_reasoning(content)
    if "</think>" in content:  # the server split the reasoning too early; the rest is in the content
        return f"<think>{reasoning.lstrip().removeprefix('<think>')}{content}"
    reasoning = reasoning.strip().removeprefix("<think>").removesuffix("</think>").strip()
    if is_cut and not content.strip():
        return f"<think>{reasoning}"
    return f"<think>{reasoning}</think>{content}"


def _usage(usage: Any) -> Usage | None:
    """The tokens as the server counted them; None where it did not."""
    if not isinstance(usage, dict):
        return None
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"), cached)
    prompt, completion, cached = (count if isinstance(count, int) else None for count in counts)
    return None if prompt is None or completion is None else Usage(prompt, completion, cached)


def _excerpt(value: Any) -> str:
    return json.dumps(value)[:200]
