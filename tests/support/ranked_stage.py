"""
A stage as small as one can be, with the lines that `traces.py` and `verdicts.py` have for `--num_tasks`.

Its engine draws what depends on all requests of a call, as the one in this process does, and writes every request that it is
asked into a file, so that a test can count what would have been paid.
"""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sightsound.cli import InputError, parse_arguments, run
from sightsound.data import schema
from sightsound.data.clips import MediaError
from sightsound.engines.base import ChatRequest, ChatResult, Completion, Sampling
from sightsound.engines.runner import run_requests
from sightsound.hub.cards import write_dataset_card
from sightsound.method.selection import UNVERIFIED, trace_outcome
from sightsound.scale.executors import SCALE_FIELDS, ScaleArguments, for_rank
from sightsound.scale.ranks import Result, collect, finish, open_stage, write_results
from sightsound.stage import Journal


CHOICES = ["dog", "bell"]
NO_CLIP = 5  # every so many questions have none


@dataclass
class StageArguments(ScaleArguments):
    output_dir: str = field(metadata={"help": "where to write"})
    asked: str = field(metadata={"help": "file for the engine's requests"})
    base_url: str = field(default="http://localhost", metadata={"help": "told in the rows"})
    num_questions: int = field(default=22, metadata={"help": "how many"})
    calls_of: int = field(default=4, metadata={"help": "requests per call"})
    stop_at: str | None = field(default=None, metadata={"help": "question at which the engine fails"})
    delay_s: float = field(default=0.0, metadata={"help": "of every call"})


class ScriptedEngine:
    window_s = None
    revision = "1"

    def __init__(self, args: StageArguments):
        self.requests_per_call = args.calls_of
        self.args = args

    def complete(self, requests: Sequence[ChatRequest], sampling: Sampling) -> Iterator[list[ChatResult]]:
        call = ",".join(request.key for request in requests)
        if self.args.stop_at in call.split(","):
            raise InputError(f"the server does not know {self.args.stop_at}")
        time.sleep(self.args.delay_s)
        with open(self.args.asked, "a") as asked:
            asked.writelines(f"{request.key}\n" for request in requests)
        for request in requests:
            texts = [f"<think>{call} as {request.key}</think><answer>dog</answer>" for _ in range(sampling.n)]
            yield [ChatResult(request.key, request.text, [Completion(text, "stop") for text in texts])]


def to_result(row_id: str, entry: dict[str, Any]) -> Result:
    said = [(completion["text"], completion["finish_reason"]) for completion in entry.get("completions", [])]
    empty = {"think": None, "answer": 0, "verdict": None, "verdict_text": None}
    traces = [{"text": text, "finish_reason": reason, **empty} for text, reason in said]
    judged = trace_outcome(traces) if traces else {"teacher_answer": None, "unanimous": False, "outcome": entry["outcome"]}
    made = {"teacher": "t", "teacher_revision": "1", "prompt_version": "1", "num_traces": 2, "temperature": 1.0}
    made |= {"max_tokens": 8, "seed": 0, "media_sha256": "0"}
    row = {"id": row_id, "question": "What?", "choices": CHOICES, "traces": traces, **judged, **UNVERIFIED, **made}
    return row, entry.get("detail")


def build(key: str) -> ChatRequest:
    if int(key) % NO_CLIP == NO_CLIP - 1:
        raise MediaError(schema.MISSING_MEDIA, f"no clip of {key}")
    return ChatRequest(key, f"question {key}")


def main() -> None:
    args = parse_arguments(StageArguments, __doc__)
    ignored = (*SCALE_FIELDS, "output_dir", "asked", "stop_at", "delay_s")
    settings = {name: value for name, value in asdict(args).items() if name not in ignored}
    with open_stage(args, args.output_dir, settings) as stage:
        if stage.complete:
            print(f"{stage.path} is complete")
            return

        def work(ids: Sequence[str], journal_file: Path) -> Iterator[Result]:
            print(f"server: {for_rank(args.base_url, args)}, process {os.getpid()}")
            journal = Journal(journal_file)
            run_requests(ScriptedEngine(args), ids, build, Sampling(2, 1.0, 8, 0), journal, "questions")
            yield from (to_result(row_id, journal[row_id]) for row_id in ids)
            journal.close()

        ids = [str(i) for i in range(args.num_questions)]
        results = collect(args, args.output_dir, stage, ids, args.calls_of, work)
        if results is None:
            return
        write_results(results, stage.path / "data" / "train-00000-of-00001.parquet", stage.path / "ledger.parquet")
        write_dataset_card(stage.path, "# Traces\n", {"default": {"train": "data/*.parquet"}})
        finish(stage)


if __name__ == "__main__":
    run(main)
