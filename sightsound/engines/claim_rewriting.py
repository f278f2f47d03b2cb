"""
Have traces with false claims written again from their true ones, and verify the new ones.

The rewriter, normally the teacher, gets the question and the true claims as notes, and no clip. It writes reasoning and answer
anew, so that the answer follows from what is left. The new trace is verified as the old one was. What is not accepted is
dropped, as is a trace without a true claim.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sightsound.engines.base import ChatRequest, Engine, Sampling
from sightsound.engines.checker import Checker, ask_yes_no, claim_name
from sightsound.engines.runner import run_requests
from sightsound.method.answers import extract_think, has_trace_format, parse_answer
from sightsound.method.claims import Claim, claims_of, notes_of, verdict_of_claims
from sightsound.method.prompts import heard_sounds, question_text
from sightsound.method.selection import BAD_FORMAT, Trace, TraceRow
from sightsound.method.verdicts import REJECT, compare_with_transcript
from sightsound.stage import Journal


_REWRITING_KEY = re.compile(r".+/w[0-9a-f]{12}", re.DOTALL)  # what `rewriting_key` makes


@dataclass
class Rewriter:
    """
    A model that writes traces again.

    Args:
        engine (`Engine`): The model.
        prompt (`str`): With the fields `{claims}`, `{question}` and `{choices}`.
        sampling (`Sampling`): Of its requests.
        question_of (`Callable`): Question id -> the question as the teacher was asked it.
        block_of (`Callable`): Question id -> block, as `run_requests` takes it.
    """

    engine: Engine
    prompt: str
    sampling: Sampling
    question_of: Callable[[str], str]
    block_of: Callable[[str], int]

    def rewrite(self, rows: list[TraceRow], journal: Journal, *, is_part: bool) -> None:
        """
        Fill in `rewritten` of every rejected trace with a true claim, as far as the model answers; without its verdict.

        Args:
            journal (`Journal`): Of the run, with the requests to the checker.
            is_part (`bool`): The rows are a rank's share.
        """
        keys: dict[str, tuple[TraceRow, str]] = {}  # of a request -> its question, and the notes
        traces: dict[str, list[Trace]] = {}
        for row in rows:
            for trace in row["traces"]:
                if notes := _notes(trace):
                    key = rewriting_key(row["id"], notes)
                    keys[key] = row, notes
                    traces.setdefault(key, []).append(trace)

        def build(key: str) -> ChatRequest:
            row, notes = keys[key]
            return ChatRequest(key, question_text(self.question_of(row["id"]), row["choices"], self.prompt, claims=notes))

        run_requests(
            self.engine,
            list(keys),
            build,
            self.sampling,
            journal,
            "traces written again",
            block_of=lambda key: self.block_of(keys[key][0]["id"]),
            is_part=is_part,
        )
        for key, (row, _) in keys.items():
            if (new := _read(journal[key], row["choices"])) is not None:
                for trace in traces[key]:
                    trace["rewritten"] = dict(new)


def verify_rewritten_claims(
    rows: list[TraceRow], checker: Checker, verdicts: dict[str, str], prompt: str, sampling: Sampling, *, num_retries: int
) -> None:
    """
    Verify what was written again by its claims. Only those that no trace made before are requested.

    Args:
        verdicts (`dict`): From `verify_claims`.
        prompt (`str`), sampling (`Sampling`), num_retries (`int`): As there.
    """
    questions = {
        f"{name}#0": (row["id"], prompt.format(claim=claim.question))
        for row, new in _rewritten(rows)
        for claim in claims_of(new["think"])
        if (name := claim_name(row["id"], claim)) not in verdicts
    }
    replies = ask_yes_no(checker, questions, sampling, num_retries=num_retries)
    known = verdicts | {name: verdict for name, (verdict, _) in replies.items()}
    for row, new in _rewritten(rows):
        of_claims = [known[claim_name(row["id"], claim)] for claim in claims_of(new["think"])]
        new["verdict"] = _in_format(new, verdict_of_claims(new["think"], of_claims))


def verify_rewritten_transcript(rows: list[TraceRow]) -> None:
    """Verify what was written again by the transcript of its clip, which is known."""
    for row in rows:
        for trace in row["traces"]:
            if (new := trace["rewritten"]) is not None:
                new["verdict"] = _in_format(new, compare_with_transcript(new["think"], trace["verdict_text"] or ""))


def _in_format(new: Trace, verdict: str) -> str:
    """A verdict; `bad_format` where the trace cannot be trained on, whatever it claims."""
    return verdict if has_trace_format(new["text"]) and new["answer"] is not None else BAD_FORMAT


def _rewritten(rows: list[TraceRow]) -> Iterator[tuple[TraceRow, Trace]]:
    return ((row, trace["rewritten"]) for row in rows for trace in row["traces"] if trace["rewritten"] is not None)


def _notes(trace: Trace) -> str | None:
    """The notes for a trace that is to be written again; None for others."""
    if trace["verdict"] != REJECT:
        return None
    # A list that goes on in the next line is one list to the transcript modes, and a list and a sentence to `claims_of`.
    sounds = {claim.text for claim in claims_of(trace["think"]) if claim.sound is not None}
    sounds.update(heard_sounds(trace["think"] or "") or ())
    claims = [Claim(each["claim"], each["claim"] if each["claim"] in sounds else None) for each in trace["claims"]]
    return notes_of(claims, [each["verdict"] for each in trace["claims"]])


def rewriting_key(row_id: str, notes: str) -> str:
    """The key of a request; equal notes about a question are one request."""
    return f"{row_id}/w{hashlib.sha256(notes.encode()).hexdigest()[:12]}"


def is_rewriting(key: str) -> bool:
    """
    Whether a key of the journal is of a request to the rewriter, and not to the checker.

    The key of a transcript is the id of its question, which may begin with a "w".
    """
    return _REWRITING_KEY.fullmatch(key) is not None


def _read(entry: dict[str, Any], choices: list[str]) -> Trace | None:
    """The trace that was written; None where the request failed."""
    if "outcome" in entry:
        return None
    (completion,) = entry["completions"]
    text, is_whole = completion["text"], completion["finish_reason"] == "stop"
    return {
        "text": text,
        "think": extract_think(text),
        "answer": parse_answer(text, choices).index if is_whole else None,
        "finish_reason": completion["finish_reason"],
        "verdict": None,
    }
