"""
Have a checker give the verdicts on traces, in one of five ways. Its replies are read by `sightsound.method.verdicts`.

- `verify_yes_no`: one request per trace. A reply that is no clear yes or no is requested again, with other seeds.
- `verify_claims`: one such request per claim of a trace (`claims.py`). `claim_rewriting.py` then has traces written again.
- `verify_transcript`: one request per clip. The reply lists what is heard, and is compared with what each trace claims;
  `verify_transcript_claims` also looks up each claimed sound in it.
- `verify_by_probability`: one request per trace to a trained verifier.

All of them fill in `verdict` and `verdict_text` of every trace.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sightsound.data.schema import REFUSED
from sightsound.engines.base import ChatRequest, Engine, Sampling
from sightsound.engines.runner import run_requests
from sightsound.method.claims import Claim, claims_of, looked_up, verdict_of_claims
from sightsound.method.prompts import heard_sounds
from sightsound.method.selection import TraceRow
from sightsound.method.verdicts import (
    ACCEPT,
    CUT,
    NO_REASONING,
    REJECT,
    compare_with_transcript,
    parse_cut_yes_no,
    parse_yes_no,
)
from sightsound.stage import Journal


# Key of a request -> the id of its question, and the text that goes with the clip.
Questions = dict[str, tuple[str, str]]

# Why a text is not a complete reply, by its finish reason.
UNFINISHED = {"length": CUT, "refusal": REFUSED, "content_filter": REFUSED}


@dataclass
class Checker:
    """
    An engine, and the journal of its replies.

    Args:
        build (`Callable`): Key, question id, text and the engine's `window_s` -> request.
        block_of (`Callable`): Question id -> block, as `run_requests` takes it.
        is_part (`bool`): The questions are a rank's share.
    """

    engine: Engine
    journal: Journal
    build: Callable[[str, str, str, float | None], ChatRequest]
    block_of: Callable[[str], int]
    is_part: bool

    def send(self, questions: Questions, sampling: Sampling, description: str) -> None:
        """Make the requests that are not in the journal yet."""
        run_requests(
            self.engine,
            list(questions),
            lambda key: self.build(key, *questions[key], self.engine.window_s),
            sampling,
            self.journal,
            description,
            clip_of=lambda key: questions[key][0],
            block_of=lambda key: self.block_of(questions[key][0]),
            is_part=self.is_part,
        )

    def reply(self, key: str) -> tuple[str | None, str | None]:
        """The reply, None if there is none; and the reason why it is not complete, None if it is."""
        entry = self.journal[key]
        if "outcome" in entry:
            return None, entry["outcome"]
        (completion,) = entry["completions"]
        return completion["text"], UNFINISHED.get(completion["finish_reason"])


def verify_transcript(rows: list[TraceRow], checker: Checker, questions: Questions, sampling: Sampling) -> None:
    """Compare the claims of all traces of a clip with one transcript. `questions` have the ids of rows as keys."""
    checker.send(questions, sampling, "transcripts")
    for row in rows:
        text, problem = checker.reply(row["id"]) if row["id"] in questions else (None, NO_REASONING)
        for trace in row["traces"]:
            verdict = NO_REASONING if trace["think"] is None else problem
            trace |= {"verdict": verdict or compare_with_transcript(trace["think"], text or ""), "verdict_text": text}


def verify_yes_no(
    rows: list[TraceRow], checker: Checker, questions: Questions, sampling: Sampling, *, num_retries: int
) -> None:
    """
    Ask about every trace; the first request is greedy, repeated ones are sampled.

    Args:
        questions (`Questions`): The first requests; their keys are `ID/TRACE#0`.
        num_retries (`int`): How often an unclear reply is requested again.
    """
    replies = ask_yes_no(checker, questions, sampling, num_retries=num_retries)
    for row in rows:
        for i, trace in enumerate(row["traces"]):
            verdict, text = replies.get(f"{row['id']}/{i}", (NO_REASONING, None))
            trace |= {"verdict": verdict, "verdict_text": text}


def ask_yes_no(
    checker: Checker, questions: Questions, sampling: Sampling, *, num_retries: int
) -> dict[str, tuple[str, str | None]]:
    """
    The verdicts of yes/no questions, and the replies, by the name in `NAME#0`; the arguments are those of `verify_yes_no`.
    """
    verdicts: dict[str, tuple[str, str | None]] = {}
    for attempt in range(num_retries + 1):
        drawn = replace(sampling, temperature=0.0 if attempt == 0 else 1.0, seed=sampling.seed + attempt)
        checker.send(questions, drawn, f"verdicts (attempt {attempt + 1})")
        unclear: Questions = {}
        for key, question in questions.items():
            name, (text, problem) = key.rpartition("#")[0], checker.reply(key)
            verdict = parse_cut_yes_no(text or "") if problem == CUT else problem or parse_yes_no(text or "")
            verdicts[name] = verdict, text
            if text is not None and verdict not in (ACCEPT, REJECT):
                unclear[f"{name}#{attempt + 1}"] = question
        questions = unclear
        if not questions:
            break
    return verdicts


def claim_questions(rows: Iterable[TraceRow], prompt: str) -> Questions:
    """The first requests about the claims of all traces: one for each claim of a clip, whichever traces make it."""
    return {
        f"{claim_name(row['id'], claim)}#0": (row["id"], prompt.format(claim=claim.question))
        for row in rows
        for trace in row["traces"]
        for claim in claims_of(trace["think"])
    }


def claim_name(row_id: str, claim: Claim) -> str:
    """The name of a claim about a clip: equal claims have the same."""
    return f"{row_id}/c{hashlib.sha256(claim.question.casefold().encode()).hexdigest()[:12]}"


def verify_claims(
    rows: list[TraceRow], checker: Checker, prompt: str, sampling: Sampling, *, num_retries: int
) -> dict[str, str]:
    """
    Ask about every claim, and give each trace its claims and the verdict that follows from them.

    Returns:
        `dict`: The verdicts by `claim_name`.
    """
    replies = ask_yes_no(checker, claim_questions(rows, prompt), sampling, num_retries=num_retries)
    verdicts = {name: verdict for name, (verdict, _) in replies.items()}
    for row in rows:
        for trace in row["traces"]:
            claims = claims_of(trace["think"])
            of_claims = [verdicts[claim_name(row["id"], claim)] for claim in claims]
            trace |= {"verdict": verdict_of_claims(trace["think"], of_claims), **claimed(claims, of_claims)}
            wrong = [f"{each['claim']}: {each['verdict']}" for each in trace["claims"] if each["verdict"] != ACCEPT]
            trace["verdict_text"] = "; ".join(wrong) or None
    return verdicts


def verify_transcript_claims(rows: list[TraceRow], checker: Checker, questions: Questions, sampling: Sampling) -> None:
    """As `verify_transcript`, and look up each claimed sound in the transcript."""
    verify_transcript(rows, checker, questions, sampling)
    for row in rows:
        for trace in row["traces"]:
            claims = [Claim(sound, sound) for sound in heard_sounds(trace["think"] or "") or ()]
            heard = heard_sounds(trace["verdict_text"] or "") if trace["verdict"] in (ACCEPT, REJECT) else None
            verdicts = [trace["verdict"]] * len(claims) if heard is None else looked_up([each.text for each in claims], heard)
            trace |= claimed(claims, verdicts)


def claimed(claims: Sequence[Claim], verdicts: Sequence[str]) -> dict[str, Any]:
    """The columns of a trace that hold its claims, before it is written again."""
    pairs = [{"claim": claim.text, "verdict": verdict} for claim, verdict in zip(claims, verdicts, strict=True)]
    return {"claims": pairs, "rewritten": None}


def verify_by_probability(
    rows: list[TraceRow], checker: Checker, questions: Questions, sampling: Sampling, *, verdict_of: Callable[[str], str]
) -> None:
    """Score every trace with a verifier; `verdict_of` reads its reply. The keys of `questions` are `ID/TRACE`."""
    checker.send(questions, sampling, "verdicts")
    for row in rows:
        for i, trace in enumerate(row["traces"]):
            text, problem = (None, NO_REASONING) if trace["think"] is None else checker.reply(f"{row['id']}/{i}")
            trace |= {"verdict": problem or verdict_of(text or ""), "verdict_text": text}


@dataclass
class CheckerRecord:
    """
    What the journal holds about the requests of one question.

    Args:
        heard_s (`float`, *optional*): Seconds of the clip that the checker was given.
        detail (`str`, *optional*): What was seen where there is no reply.
        sampling (`list[dict]`): Of each attempt, the greedy one first.
    """

    heard_s: float | None = None
    detail: str | None = None
    sampling: list[dict[str, Any]] = field(default_factory=list)


def records_of(entries: Mapping[str, dict[str, Any]], ids: Collection[str]) -> dict[str, CheckerRecord]:
    """Question id -> its record; `ids` are those of all questions, which may hold a slash as keys of requests do."""
    records: dict[str, CheckerRecord] = {}
    for key, entry in entries.items():
        row_id = key if key in ids else key.rpartition("/")[0]
        record = records.setdefault(row_id, CheckerRecord(entry.get("heard_s")))
        if "sampling" in entry and entry["sampling"] not in record.sampling:
            record.sampling.append(entry["sampling"])
        record.detail = entry.get("detail", record.detail)
    return records
