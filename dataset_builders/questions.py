r"""
Segments of videos -> multiple-choice questions about what must be heard, written by the teacher from the silent pictures.

    python dataset_builders/questions.py --dataset segments --split train --media_dir segments/segments \
        --model Qwen/Qwen2.5-VL-32B-Instruct --base_url http://localhost:8000/v1 --questions_per_segment 3 \
        --answerer AUDIO_MODEL --answerer_base_url http://localhost:8002/v1 --output_dir questions

`--dataset` and `--media_dir` are what `videos.py` wrote. The teacher is asked for `--questions_per_segment` questions of types
that are drawn by `--types which=0.5 first=0.5` (by default which, first, last, how_many, where, why, compare), each with four
choices and its own answer. A server gets the form of the reply as `response_format`; give `--omit_field response_format` where
it has none. The reply is read strictly either way. Filters (`sightsound/method/question_filters.py`) drop, with an outcome
each, what is malformed, has choices that are the same or contain each other, has an answer that is no choice, asks for what
can only be seen, repeats another question, or can be answered without the clip.

For the last one `--answerer`, any audio model, in this process or at `--answerer_base_url`, answers every question
`--blind_tries` times with the question alone, and as often with silence in place of the clip. `--text_answerer` names another
model for the question alone, such as one that refuses requests without sound. A question that is right in more than
`--max_guessed` of the tries is dropped. The columns `text_only_correct`, `silent_correct` and `audio_contribution` keep the
figures. Without an answerer nobody tries, and the questions are of unknown contribution.

The output has the columns of avqa-audio, and every later stage takes it like that. `answer` is the teacher's own; no person has
checked it. The right answers are at each letter equally often. `ledger.parquet` has every segment and every question that was
asked for. A killed run continues.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sightsound.building.questions_join import WRITTEN_FILE, WRITTEN_LEDGER, write_questions, write_written
from sightsound.building.questions_report import check_licenses, report, why_no_question, write_card
from sightsound.building.takedown import carry_takedown
from sightsound.cli import InputError, parse_arguments, run
from sightsound.data import parquet
from sightsound.data.clips import MediaFolder
from sightsound.data.frames import frames_of_row
from sightsound.data.kinds import SEGMENTS, open_input
from sightsound.data.sources import shown_source
from sightsound.engines import make_engine
from sightsound.engines.base import ChatRequest, Engine, EngineFlags, Sampling
from sightsound.engines.blind_answers import Asked, BlindTries
from sightsound.engines.cost import dry_run
from sightsound.engines.diagnosis import check_questions_differ
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
from sightsound.hub.inputs import pin_datasets
from sightsound.hub.publish import PublishArguments
from sightsound.method.audio_contribution import SILENT, TEXT_ONLY
from sightsound.method.prompts import COT_PROMPT, DIRECT_PROMPT, WRITE_FIELDS, WRITE_QUESTIONS_PROMPT, Prompt, choose_prompt
from sightsound.method.question_filters import OF_OTHERS, OF_TEXT, Facts, dropped_by
from sightsound.method.question_writing import (
    Slot,
    WrittenQuestion,
    draw_types,
    parse_shares,
    read_reply,
    reply_schema,
    write_prompt,
)
from sightsound.models.sources import pin_model
from sightsound.scale.executors import ScaleArguments, for_rank
from sightsound.scale.ranks import Result, collect, finish, open_stage
from sightsound.stage import Journal, fingerprint


ANSWER_PROMPTS = {"direct": DIRECT_PROMPT, "cot": COT_PROMPT}


@dataclass(kw_only=True)
class QuestionsArguments(PublishArguments, ScaleArguments, RequestFieldArguments):
    dataset: str = field(metadata={"help": "segments of videos (videos.py): folder or Hub id"})
    media_dir: str = field(metadata={"help": "folder with the segments' videos: segments/ of that dataset"})
    model: str = field(metadata={"help": "the teacher: folder or Hub id, or its name at --base_url"})
    output_dir: str = field(metadata={"help": "where to write the dataset"})
    split: str = field(default="train", metadata={"help": "split of the dataset"})
    base_url: list[str] | None = field(default=None, metadata={"help": "OpenAI-compatible server; several are replicas"})
    questions_per_segment: int = field(default=3, metadata={"help": "questions that are asked for", "minimum": 1})
    types: list[str] | None = field(default=None, metadata={"help": "types and their shares, such as which=0.5 first=0.5"})
    temperature: float = field(default=0.7, metadata={"help": "sampling temperature of the teacher", "minimum": 0})
    max_tokens: int = field(default=1024, metadata={"help": "maximum tokens of a reply of the teacher", "minimum": 1})
    num_frames: int = field(default=16, metadata={"help": "frames per segment", "minimum": 1})
    max_pixels: int = field(default=360 * 420, metadata={"help": "frames are scaled down to this area"})
    frames: str = field(default=VIDEO, metadata={"help": FRAMES_HELP, "choices": [VIDEO, IMAGES]})
    prompt_file: str | None = field(
        default=None, metadata={"help": "another prompt: a text file with the fields {num_questions} and {types}"}
    )
    answerer: str | None = field(default=None, metadata={"help": "an audio model that answers without the clip"})
    answerer_base_url: list[str] | None = field(default=None, metadata={"help": "server of --answerer"})
    text_answerer: str | None = field(default=None, metadata={"help": "another model for the question alone"})
    text_answerer_base_url: list[str] | None = field(default=None, metadata={"help": "server of --text_answerer"})
    answer_prompt: str = field(
        default="direct", metadata={"help": "prompt of the answers without the clip", "choices": list(ANSWER_PROMPTS)}
    )
    answer_max_tokens: int = field(default=256, metadata={"help": "maximum tokens of such an answer", "minimum": 1})
    blind_tries: int = field(default=8, metadata={"help": "tries per question with and without silence", "minimum": 1})
    max_guessed: float = field(default=0.7, metadata={"help": "drop a question if more of its tries are right", "minimum": 0})
    batch_size: int = field(default=16, metadata={"help": "sequences generated at once in this process", "minimum": 1})
    concurrency: int = field(default=32, metadata={"help": "requests in flight at a server", "minimum": 1})
    request_timeout_s: float = field(
        default=600.0, metadata={"help": "a request that a server does not answer for so long is made again", "minimum": 1}
    )
    seed: int = field(default=0, metadata={"help": "random seed for sampling, types and the order of choices"})
    limit: int | None = field(default=None, metadata={"help": "only the first N segments", "minimum": 1})
    dry_run: bool = field(default=False, metadata={"help": "print what the run would cost, from a sample, and stop"})

    def options(self) -> RequestOptions:
        return options_of(self, self.base_url, ("temperature", "max_tokens", "seed"), self.frames)

    @cached_property
    def shares(self) -> dict[str, float]:
        return parse_shares(self.types)

    @cached_property
    def chosen_prompt(self) -> Prompt:
        return choose_prompt(self.prompt_file, WRITE_QUESTIONS_PROMPT, WRITE_FIELDS)

    def answerers(self) -> dict[str, tuple[str, list[str] | None]]:
        """Condition -> model and servers that answer under it."""
        found: dict[str, tuple[str, list[str] | None]] = {}
        if self.text_answerer or self.answerer:
            own = (self.text_answerer, self.text_answerer_base_url) if self.text_answerer else None
            found[TEXT_ONLY] = own or (str(self.answerer), self.answerer_base_url)
        if self.answerer:
            found[SILENT] = (self.answerer, self.answerer_base_url)
        return found

    def check(self) -> None:
        """
        Check the flags against each other, before anything is opened.

        Raises:
            `InputError`: They contradict each other.
        """
        self.options()
        for name in ("answerer", "text_answerer"):
            urls = getattr(self, f"{name}_base_url")
            if urls and not getattr(self, name):
                raise InputError(f"--{name}_base_url is the server of --{name}; give that model's name as well")
            options_of(RequestFieldArguments(), urls, ())
        if self.max_guessed > 1:
            raise InputError(f"--max_guessed {self.max_guessed:g}: expected a share from 0 to 1, such as 0.75")
        _ = self.shares, self.chosen_prompt


def settings_of(args: QuestionsArguments, commits: dict[str, str | None]) -> dict[str, Any]:
    """What a rerun has to share: every flag and input that decides a question."""
    ignored = ["answerer_base_url", "text_answerer_base_url", "push_to_hub", "private"]
    settings = settings_of_requests(args, ignored, model_commit=commits["model"], frames=args.frames)
    settings["types"] = args.shares
    settings |= {name: fingerprint(settings[name]) for name in ("dataset", "model")}
    for name in ("answerer", "text_answerer"):
        in_process = not getattr(args, f"{name}_base_url")
        settings[name] = fingerprint(settings[name]) if settings[name] and in_process else settings[name]
        settings[f"{name}_commit"] = commits[name]
    return settings


class QuestionsRun:
    """The segments of a run, their pictures, and the models that are asked about them."""

    def __init__(self, args: QuestionsArguments, commits: dict[str, str | None]):
        self._args, self._commits = args, commits
        segments = open_input(args.dataset, args.split, SEGMENTS)
        if "question" in segments.column_names:
            raise InputError(f"{args.dataset} has questions already; expected {SEGMENTS.name}; give {SEGMENTS.made_by}")
        self.segments = segments.select(range(min(len(segments), args.limit or len(segments))))
        self.rows = {row["id"]: row for row in self.segments.remove_columns("audio")}
        if len(self.rows) < len(self.segments):
            raise InputError(f"split '{args.split}' of {args.dataset} has the same id twice; give the output of videos.py")
        self._position = {row_id: i for i, row_id in enumerate(self.rows)}
        self._media = MediaFolder(args.media_dir)
        self._schema = reply_schema(args.shares)
        self.sampling = Sampling(1, args.temperature, args.max_tokens, args.seed)

    def types_of(self, segment_id: str) -> list[str]:
        args = self._args
        return draw_types(segment_id, args.questions_per_segment, args.shares, args.seed)

    def build(self, key: str) -> ChatRequest:
        args = self._args
        frames = frames_of_row(self.rows[key], self._media, args.num_frames, args.max_pixels)
        text = write_prompt(args.chosen_prompt.text, self.types_of(key))
        return ChatRequest(key, text, video=frames, reply_schema=self._schema)

    def block_of(self, segment_id: str) -> int:
        """Only requests about segments of one block share a call of an engine in this process."""
        return self._position[segment_id] // self._args.batch_size

    def write(self, ids: Sequence[str], journal_file: Path) -> Iterator[Result]:
        """Have the teacher write about these segments and others answer without them; then yield what was written."""
        args, is_part = self._args, self._args.rank is not None
        teacher = self._engine(args.model, args.base_url, "model", self.sampling)
        asked_ids = set(ids)
        with closing(Journal(journal_file)) as journal:

            def check(journal: Journal) -> None:
                check_questions_differ(self._questions_of_replies(journal, asked_ids), args.output_dir)

            run_requests(
                teacher,
                ids,
                self.build,
                self.sampling,
                journal,
                "questions",
                block_of=self.block_of,
                is_part=is_part,
                check=check,
            )
            provenance: dict[str, str | None] = {"teacher": shown_source(args.model), "teacher_revision": teacher.revision}
            del teacher  # its memory is needed by the next model
            slots = {row_id: self._slots(row_id, journal[row_id]) for row_id in ids}
            asked = {
                (row_id, number): Asked(row_id, f"{row_id}/q{number}", slot.question, self.rows[row_id]["duration_s"])
                for row_id, each in slots.items()
                for number, slot in enumerate(each)
                if slot.question is not None and slot.outcome is None
            }
            tries = BlindTries(
                journal=journal,
                prompt=ANSWER_PROMPTS[args.answer_prompt],
                num_tries=args.blind_tries,
                sampling=Sampling(1, 1.0, args.answer_max_tokens, args.seed),
                block_of=self.block_of,
                is_part=is_part,
            )
            answerers = {condition: self._answer(tries, condition, list(asked.values())) for condition in args.answerers()}
        provenance["answerers"] = "; ".join(f"{condition}: {who}" for condition, who in answerers.items()) or None
        for row_id in ids:
            shares = [
                {condition: tries.share_right(condition, asked[row_id, i]) for condition in answerers}
                if (row_id, i) in asked
                else {}
                for i in range(len(slots[row_id]))
            ]
            rows = [_slot_row(slot, share, args.blind_tries) for slot, share in zip(slots[row_id], shares, strict=True)]
            entry = journal[row_id]
            sampling = json.dumps(entry["sampling"]) if "sampling" in entry else None
            row = {"id": row_id, "outcome": entry.get("outcome"), "sampling": sampling, "slots": rows, **provenance}
            yield row, entry.get("detail")

    def _answer(self, tries: BlindTries, condition: str, asked: list[Asked]) -> str:
        """Make the tries of a condition; returns the model and its revision."""
        args, (model, urls) = self._args, self._args.answerers()[condition]
        flag = "text_answerer" if condition == TEXT_ONLY and args.text_answerer else "answerer"
        engine = self._engine(model, urls, flag, tries.sampling)
        try:
            tries.ask(engine, condition, asked)
        except InputError as error:
            if condition == SILENT or args.text_answerer:
                raise
            raise InputError(
                f"{error}; a model that refuses requests without sound needs a --text_answerer beside it"
            ) from error
        return f"{shown_source(model)} ({engine.revision})"

    def _engine(self, model: str, base_url: list[str] | None, flag: str, sampling: Sampling) -> Engine:
        args = self._args
        options = args.options() if base_url else RequestOptions()
        if flag != "model":  # these requests have no form of the reply
            fields = {name: value for name, value in options.fields.items() if name != "response_format"}
            omitted = tuple(name for name in options.omitted if name != "response_format")
            options = replace(options, fields=fields, omitted=omitted)
        flags = EngineFlags(
            model=model,
            sampling=sampling,
            base_url=[for_rank(url, args) for url in base_url or []],
            batch_size=args.batch_size,
            concurrency=args.concurrency,
            timeout_s=args.request_timeout_s,
            options=options,
            revision=self._commits[flag],
        )
        return make_engine(flags)

    def _slots(self, row_id: str, entry: dict[str, Any]) -> list[Slot]:
        """The questions about a segment, as far as their own text and those before them decide."""
        args = self._args
        if "outcome" in entry:
            return [Slot(None, entry["outcome"], entry["detail"])] * args.questions_per_segment
        (completion,) = entry["completions"]
        slots, kept = [], list[WrittenQuestion]()
        for slot in read_reply(completion["text"], completion["finish_reason"], args.questions_per_segment, args.shares):
            dropped = dropped_by(slot.question, Facts(in_segment=kept), [*OF_TEXT, *OF_OTHERS]) if slot.question else None
            if slot.question is not None and dropped is None:
                kept.append(slot.question)
            slots.append(slot if dropped is None else Slot(slot.question, *dropped))
        return slots

    def _questions_of_replies(self, journal: Journal, ids: set[str]) -> Iterator[list[WrittenQuestion]]:
        """The questions of each reply of the teacher, as far as they can be read."""
        for key, entry in journal.entries.items():
            if key in ids and "completions" in entry:
                yield [slot.question for slot in self._slots(key, entry) if slot.question is not None]


def _slot_row(slot: Slot, shares: dict[str, float | None], num_tries: int) -> dict[str, Any]:
    question = slot.question
    written: dict[str, Any] = {"type": None, "question": None, "choices": [], "answer": None}
    if question is not None:
        written = {
            "type": question.type,
            "question": question.text,
            "choices": list(question.choices),
            "answer": question.answer,
        }
    figures = {"text_only_correct": shares.get(TEXT_ONLY), "silent_correct": shares.get(SILENT)}
    detail = None if slot.detail is None else parquet.storable(slot.detail)
    return {"outcome": slot.outcome, "detail": detail, **written, **figures, "blind_tries": num_tries if shares else None}


def questions_of_rows(file: Path) -> Iterator[list[WrittenQuestion]]:
    """The questions about each segment that was answered, as far as they could be read."""
    for row in parquet.read_parquet([file], ["outcome", "slots"]):
        if row["outcome"] is None:
            yield [
                WrittenQuestion(slot["type"], slot["question"], tuple(slot["choices"]), slot["answer"])
                for slot in row["slots"]
                if slot["question"] is not None
            ]


def estimate(questions: QuestionsRun, args: QuestionsArguments) -> str:
    """What `--dry_run` prints."""
    notes = []
    for condition, (model, _) in args.answerers().items():
        most = len(questions.rows) * args.questions_per_segment * args.blind_tries
        notes.append(
            f"{model} then answers up to {most:,} requests ({condition}), {args.blind_tries} for each question that is left."
        )
    return dry_run(
        list(questions.rows),
        questions.build,
        questions.sampling,
        model=args.model,
        base_url=args.base_url,
        output_dir=args.output_dir,
        notes=notes,
    )


def main() -> None:
    args = parse_arguments(QuestionsArguments, __doc__)
    args.check()
    pin_datasets(args, ["dataset"], args.output_dir)
    commits = {
        flag: None if urls or not getattr(args, flag) else pin_model(flag, getattr(args, flag), args.output_dir)
        for flag, urls in (
            ("model", args.base_url),
            ("answerer", args.answerer_base_url),
            ("text_answerer", args.text_answerer_base_url),
        )
    }
    if args.dry_run:
        print(estimate(QuestionsRun(args, commits), args))
        return
    settings = settings_of(args, commits)
    with open_stage(args, args.output_dir, settings) as stage:
        if stage.complete:
            print(f"{stage.path} is complete")
        else:
            questions = QuestionsRun(args, commits)
            in_process = not args.base_url or any(not urls for _, urls in args.answerers().values())
            align = args.batch_size if in_process else 1
            results = collect(args, args.output_dir, stage, list(questions.rows), align, questions.write, write_written)
            if results is None:
                return
            write_written(results, stage.path / WRITTEN_FILE, stage.path / WRITTEN_LEDGER)
            check_questions_differ(questions_of_rows(stage.path / WRITTEN_FILE), args.output_dir, at_end=True)
            counts = write_questions(stage.path, questions.segments, args.max_guessed, args.seed)
            if not counts.kept:
                raise InputError(why_no_question(counts, stage.path))
            carry_takedown(args.dataset, stage.path)
            written = next(parquet.read_parquet([stage.path / WRITTEN_FILE]))
            write_card(stage.path, counts, settings, written)
            print(report(counts, settings, written))
            for name in (WRITTEN_FILE, WRITTEN_LEDGER):
                (stage.path / name).unlink()
            finish(stage)
        if args.push_to_hub is not None:
            check_licenses(stage.path)
        args.publish(stage.path)


if __name__ == "__main__":
    run(main)
