r"""
Teacher traces: n audio-focused chains of thought per question, from silent video (paper, section 3.1).

    python dataset_builders/traces.py --dataset avqa-audio --split train --media_dir videos \
        --model Qwen/Qwen2.5-VL-32B-Instruct --base_url http://localhost:8000/v1 --num_traces 8 --temperature 1.0 \
        --output_dir traces

The teacher is a model in this process, or one behind an OpenAI-compatible server. `--base_url` may be given several times, for
replicas of one model; a rerun may have other replicas, more or fewer. A vLLM server is started with

    vllm serve Qwen/Qwen2.5-VL-32B-Instruct --trust-request-mm-kwargs --enable-prompt-tokens-details \
        --max-num-batched-tokens 65536 --generation-config vllm

so that it accepts frames with their rate, reports the share of a prompt that it found in its cache ("cached" in the progress
bar), and computes a prompt once for all its traces. For that `--max-num-batched-tokens` must cover the video tokens of all
requests in flight at one server (16 frames of 360 x 420 are 1,560). Where the memory does not suffice, give `--prime`.

Some servers need other fields in a request: `--request_field max_completion_tokens=4096 --omit_field max_tokens`, `--omit_field
seed`, `--omit_field n` (each trace is then a request of its own), `--frames images` (an `image_url` per frame). Reasoning that
a server sends in a field of its own is put before the text, in `<think></think>`. Before the first request, and by `--dry_run`,
the model is looked up at the server's `/v1/models`.

The teacher gets frames sampled over the clip and the question in its "video" wording, and no sound. Finished requests are
journaled: a run that was killed continues. The output has one row per question, and `ledger.parquet` has every question.

Traces are sampled at `--temperature` from all tokens: a checkpoint's `generation_config.json` changes nothing, and the column
`sampling` records what was sent. The run stops when the first 20 answers have no reasoning, or when the traces of nearly all of
the first 20 questions are equal.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from sightsound.cli import InputError, parse_arguments, run
from sightsound.data.clips import MediaFolder
from sightsound.data.frames import frames_of_row
from sightsound.data.kinds import CLIPS, open_input
from sightsound.data.parquet import read_parquet
from sightsound.data.sources import shown_source
from sightsound.engines import make_engine
from sightsound.engines.base import ChatRequest, EngineFlags, Sampling
from sightsound.engines.cost import dry_run
from sightsound.engines.diagnosis import (
    check_reasoning,
    check_traces_differ,
    warning_of_equal_traces,
    warning_of_no_reasoning,
    why_no_answer,
)
from sightsound.engines.request_fields import (
    FRAMES_HELP,
    IMAGES,
    VIDEO,
    RequestFieldArguments,
    RequestOptions,
    options_of,
    settings_of_requests,
)
from sightsound.engines.runner import run_requests
from sightsound.hub.cards import write_dataset_card
from sightsound.hub.inputs import pin_datasets
from sightsound.method.answers import extract_think, parse_answer
from sightsound.method.audio_contribution import known_contribution
from sightsound.method.prompts import PROMPT_VERSION, QUESTION_FIELDS, TRACE_PROMPTS, Prompt, choose_prompt, question_text
from sightsound.method.selection import UNVERIFIED, TraceRow, trace_outcome
from sightsound.models.sources import pin_model
from sightsound.scale.executors import ScaleArguments, for_rank
from sightsound.scale.ranks import Result, collect, finish, open_stage, write_results
from sightsound.stage import Journal, fingerprint


@dataclass
class TracesArguments(ScaleArguments, RequestFieldArguments):
    dataset: str = field(metadata={"help": "avqa-audio: folder or Hub id"})
    media_dir: str = field(metadata={"help": "folder with the videos"})
    model: str = field(metadata={"help": "the teacher: folder or Hub id, or its name at --base_url"})
    output_dir: str = field(metadata={"help": "where to write the traces"})
    split: str = field(default="train", metadata={"help": "split of the dataset"})
    base_url: list[str] | None = field(default=None, metadata={"help": "OpenAI-compatible server; several are replicas"})
    num_traces: int = field(default=8, metadata={"help": "traces per question", "minimum": 1})
    temperature: float = field(default=1.0, metadata={"help": "sampling temperature", "minimum": 0})
    max_tokens: int = field(
        default=512, metadata={"help": "per trace; a longer trace is cut (finish_reason length)", "minimum": 1}
    )
    num_frames: int = field(default=16, metadata={"help": "frames per video", "minimum": 1})
    max_pixels: int = field(default=360 * 420, metadata={"help": "frames are scaled down to this area"})
    batch_size: int = field(default=16, metadata={"help": "sequences generated at once in this process", "minimum": 1})
    concurrency: int = field(default=32, metadata={"help": "requests in flight at --base_url", "minimum": 1})
    request_timeout_s: float = field(
        default=600.0, metadata={"help": "a request that --base_url does not answer for so long is made again", "minimum": 1}
    )
    frames: str = field(default=VIDEO, metadata={"help": FRAMES_HELP, "choices": [VIDEO, IMAGES]})
    prime: bool = field(
        default=False, metadata={"help": "have --base_url compute each prompt once before its traces are sampled; see above"}
    )
    prompt: str = field(
        default="audio_focused", metadata={"help": "instruction that ends the prompt", "choices": list(TRACE_PROMPTS)}
    )
    prompt_file: str | None = field(
        default=None, metadata={"help": "another prompt: a text file with the fields {question} and {choices}"}
    )
    seed: int = field(default=0, metadata={"help": "random seed for sampling"})
    limit: int | None = field(default=None, metadata={"help": "only the first N questions", "minimum": 1})
    dry_run: bool = field(default=False, metadata={"help": "print what the run would cost, from a sample, and stop"})

    def options(self) -> RequestOptions:
        return options_of(self, self.base_url, ("temperature", "max_tokens", "seed"), self.frames)

    @cached_property
    def chosen_prompt(self) -> Prompt:
        if self.prompt_file is not None and self.prompt != "audio_focused":
            raise InputError(f"--prompt {self.prompt} and --prompt_file {self.prompt_file} are two prompts; give one of them")
        return choose_prompt(self.prompt_file, TRACE_PROMPTS[self.prompt], QUESTION_FIELDS)


def build_request(row: dict[str, Any], media: MediaFolder, args: TracesArguments, prompt: str) -> ChatRequest:
    """The question to the teacher, with the frames of its clip."""
    frames = frames_of_row(row, media, args.num_frames, args.max_pixels)
    return ChatRequest(row["id"], question_text(row["video_question"], row["choices"], prompt), video=frames)


def to_row(row: dict[str, Any], entry: dict[str, Any], provenance: dict[str, Any]) -> TraceRow:
    """A question and what the journal holds for it -> one row of the ledger."""
    traces = []
    for completion in entry.get("completions", []):
        is_whole = completion["finish_reason"] == "stop"
        answer = parse_answer(completion["text"], row["choices"]).index if is_whole else None
        think = extract_think(completion["text"])
        trace = {
            "text": completion["text"],
            "think": think,
            "answer": answer,
            "finish_reason": completion["finish_reason"],
        }
        traces.append({**trace, "verdict": None, "verdict_text": None})
    shared = {key: row[key] for key in ("id", "question", "choices", "media_sha256")}
    judged = trace_outcome(traces) if traces else {"teacher_answer": None, "unanimous": False, "outcome": entry["outcome"]}
    sampling = json.dumps(entry["sampling"]) if "sampling" in entry else None
    return {**shared, **known_contribution(row), "traces": traces, **judged, **UNVERIFIED, **provenance, "sampling": sampling}


def settings_of(args: TracesArguments, model_commit: str | None = None) -> dict[str, Any]:
    """What a rerun has to share: every flag and input that decides what is sampled."""
    settings = settings_of_requests(args, ["prime"], model_commit=model_commit, frames=args.frames)
    return settings | {"dataset": fingerprint(args.dataset), "model": fingerprint(args.model)}


class TeacherRun:
    """The questions of a run and their clips."""

    def __init__(self, args: TracesArguments, model_commit: str | None = None):
        dataset = open_input(args.dataset, args.split, CLIPS).remove_columns("audio")
        self.rows = {row["id"]: row for row in dataset.select(range(min(len(dataset), args.limit or len(dataset))))}
        self.sampling = Sampling(args.num_traces, args.temperature, args.max_tokens, args.seed)
        self._args, self._media, self._model_commit = args, MediaFolder(args.media_dir), model_commit
        self._prompt = args.chosen_prompt

    def build(self, key: str) -> ChatRequest:
        return build_request(self.rows[key], self._media, self._args, self._prompt.text)

    def trace(self, ids: Sequence[str], journal_file: Path) -> Iterator[Result]:
        """Have the teacher write the traces of these questions; then yield the rows of the ledger."""
        args = self._args
        urls = [for_rank(url, args) for url in args.base_url or []]
        flags = EngineFlags(
            model=args.model,
            sampling=self.sampling,
            base_url=urls,
            batch_size=args.batch_size,
            concurrency=args.concurrency,
            timeout_s=args.request_timeout_s,
            prime=args.prime,
            options=args.options(),
            revision=self._model_commit,
        )
        engine = make_engine(flags)
        journal = Journal(journal_file)
        teacher, is_part = shown_source(args.model), args.rank is not None

        def check(journal: Journal) -> None:
            check_reasoning(journal, teacher, args.output_dir)
            check_traces_differ(journal, args.output_dir)

        try:
            run_requests(engine, ids, self.build, self.sampling, journal, "traces", is_part=is_part, check=check)
            for warning in (warning_of_no_reasoning(journal, teacher), warning_of_equal_traces(journal)):
                if warning:
                    print(warning, file=sys.stderr)
        finally:
            journal.close()
        provenance = {
            "teacher": shown_source(args.model),
            "teacher_revision": engine.revision,
            "prompt_version": self._prompt.version if args.prompt == "audio_focused" else f"{PROMPT_VERSION} {args.prompt}",
            "num_traces": args.num_traces,
            "temperature": args.temperature,
            "max_tokens": args.max_tokens,
            "seed": args.seed,
        }
        return ((to_row(self.rows[key], journal[key], provenance), journal[key].get("detail")) for key in ids)


def main() -> None:
    args = parse_arguments(TracesArguments, __doc__)
    if args.num_traces > 1 and args.temperature == 0:
        raise InputError(f"--temperature 0 gives {args.num_traces} times the same trace; raise it, or give --num_traces 1")
    args.options()
    pin_datasets(args, ["dataset"], args.output_dir)
    model_commit = None if args.base_url else pin_model("model", args.model, args.output_dir)
    if args.dry_run:
        teacher = TeacherRun(args, model_commit)
        notes = ["--prime sends each prompt twice, the first time for one token: not counted here."] if args.prime else []
        estimate = dry_run(
            list(teacher.rows),
            teacher.build,
            teacher.sampling,
            model=args.model,
            base_url=args.base_url,
            output_dir=args.output_dir,
            notes=notes,
        )
        print(estimate)
        return
    with open_stage(args, args.output_dir, settings_of(args, model_commit)) as stage:
        if stage.complete:
            print(f"{stage.path} is complete")
            return
        teacher = TeacherRun(args, model_commit)
        # In this process, what is sampled depends on all members of a call: a rank has whole calls.
        align = 1 if args.base_url else max(1, args.batch_size // args.num_traces)
        results = collect(args, args.output_dir, stage, list(teacher.rows), align, teacher.trace)
        if results is None:
            return
        data = stage.path / "data" / "train-00000-of-00001.parquet"
        funnel = write_results(results, data, stage.path / "ledger.parquet")
        write_dataset_card(stage.path, "# Teacher traces, before verification\n", {"default": {"train": "data/*.parquet"}})
        print(funnel)
        if not funnel.answered:
            traces = (trace for row in read_parquet([data], ["traces"]) for trace in row["traces"])
            raise InputError(
                f"{args.model} answered none of {funnel.questions} questions ({funnel.summary}); {stage.path} has every one's "
                f"outcome and what was written: {why_no_answer(traces, args.max_tokens)}, delete that folder and start again"
            )
        finish(stage)


if __name__ == "__main__":
    run(main)
