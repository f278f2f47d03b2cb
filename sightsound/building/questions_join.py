"""
Choose among the questions that a teacher wrote about segments, and write those that are kept as a dataset.

What depends on other segments is decided here, in the order of the segments: repeated questions of a video, and the letter of
each right answer. So the result depends neither on ranks nor on kills.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightsound.cli import InputError
from sightsound.data import parquet, schema
from sightsound.data.annotations import audio_question
from sightsound.method.audio_contribution import contribution_of
from sightsound.method.question_filters import OF_OTHERS, Facts, dropped_by, key_of
from sightsound.method.question_writing import NUM_CHOICES, WrittenQuestion


if TYPE_CHECKING:
    from datasets import Dataset

Row = dict[str, Any]

SEGMENT, QUESTION = "segment", "question"  # kinds of the ledger's rows
NO_QUESTION = "no_question"  # outcome of a segment none of whose questions is kept
ROWS_PER_SHARD = 500  # as of avqa-audio
CHOSEN_FILE = "chosen.parquet"  # the kept questions, without their audio, until the shards are written


def write_written(results: Iterable[tuple[Row, str | None]], data: Path, ledger: Path) -> None:
    """Write what was written about segments, then the ledger part that marks it as complete."""
    details: dict[str, str | None] = {}

    def rows() -> Iterator[Row]:
        for row, detail in results:
            details[row["id"]] = detail
            yield row

    parquet.write_parquet(rows(), schema.written_features(), data)
    written = parquet.read_parquet([data], ["id", "outcome"])
    parquet.write_ledger((entry | {"detail": details[entry["id"]]} for entry in written), ledger)


def question_id(segment_id: str, number: int) -> str:
    return f"{segment_id}-q{number}"


@dataclass
class Counts:
    """What became of the questions that were asked for."""

    segments: Counter[str] = field(default_factory=Counter)
    questions: Counter[str] = field(default_factory=Counter)
    types: Counter[str] = field(default_factory=Counter)
    letters: Counter[int] = field(default_factory=Counter)
    contributions: Counter[str] = field(default_factory=Counter)
    texts: Counter[str] = field(default_factory=Counter)

    @property
    def kept(self) -> int:
        return self.questions[schema.BUILT]


class Letters:
    """Positions of the right answers: each of four equally often, in an order that cannot be guessed."""

    def __init__(self, seed: int):
        self._rng = random.Random(f"letters {seed}")
        self._left: list[int] = []

    def place(self, question: WrittenQuestion) -> WrittenQuestion:
        """The question with its answer at the next position, and the other choices in random order."""
        if not self._left:
            self._left = self._rng.sample(range(NUM_CHOICES), NUM_CHOICES)
        position = self._left.pop()
        others = [choice for i, choice in enumerate(question.choices) if i != question.answer]
        self._rng.shuffle(others)
        choices = (*others[:position], question.choices[question.answer], *others[position:])
        return question._replace(choices=choices, answer=position)


class QuestionJoin:
    """
    The choice among all questions of a run.

    Args:
        max_guessed (`float`): Questions that were answered more often without the clip are dropped.
        seed (`int`): Of the run, for the order of the choices.
    """

    def __init__(self, max_guessed: float, seed: int):
        self.counts = Counts()
        self._max_guessed, self._letters = max_guessed, Letters(seed)
        self._of_videos: dict[str, set[tuple[object, ...]]] = {}

    def choose(self, results: Iterable[tuple[Row, str | None]], videos: dict[str, str], folder: Path) -> None:
        """
        Write `ledger.parquet` and the kept questions, without their audio.

        Args:
            results (`Iterable`): Rows of `schema.written_features` with their detail, in the order of the segments.
            videos (`dict`): Segment id -> id of its video.
            folder (`Path`): Of the dataset.
        """
        entries: list[Row] = []

        def chosen() -> Iterator[Row]:
            for row, detail in results:
                kept, of_questions = self._of_segment(row, videos[row["id"]])
                outcome = row["outcome"] or (schema.BUILT if kept else NO_QUESTION)
                self.counts.segments[outcome] += 1
                if detail is None and of_questions:
                    detail = f"{len(kept)} of {len(of_questions)} questions"
                entries.append({"id": row["id"], "outcome": outcome, "detail": detail, "kind": SEGMENT, "source": None})
                entries.extend(of_questions)
                yield from kept

        from datasets import Features, Value

        features = Features({name: each for name, each in schema.questions_features().items() if name in OF_QUESTION})
        parquet.write_parquet(chosen(), Features({**features, "segment_id": Value("string")}), folder / CHOSEN_FILE)
        parquet.write_parquet(entries, schema.segments_ledger_features(), folder / "ledger.parquet")

    def _of_segment(self, row: Row, video: str) -> tuple[list[Row], list[Row]]:
        """The kept questions of a segment, and the ledger's entries of all its questions."""
        kept, entries = [], []
        for number, slot in enumerate(row["slots"]):
            outcome, detail = slot["outcome"], slot["detail"]
            if outcome is None:
                question = WrittenQuestion(slot["type"], slot["question"], tuple(slot["choices"]), slot["answer"])
                shares = [slot[name] for name in ("text_only_correct", "silent_correct") if slot[name] is not None]
                seen = self._of_videos.setdefault(video, set())
                facts = Facts(in_video=seen, guessed=max(shares, default=None), max_guessed=self._max_guessed)
                outcome, detail = dropped_by(question, facts, OF_OTHERS) or (schema.BUILT, None)
                if outcome == schema.BUILT:
                    seen.add(key_of(question))
                    kept.append(self._row(row["id"], number, question, slot))
            self.counts.questions[outcome] += 1
            entry = {"id": question_id(row["id"], number), "outcome": outcome, "detail": detail}
            entries.append(entry | {"kind": QUESTION, "source": None})
        return kept, entries

    def _row(self, segment_id: str, number: int, written: WrittenQuestion, slot: Row) -> Row:
        question = self._letters.place(written)
        contribution = contribution_of(slot["text_only_correct"], slot["silent_correct"])
        self.counts.types[question.type] += 1
        self.counts.letters[question.answer] += 1
        self.counts.contributions[contribution] += 1
        self.counts.texts[question.text] += 1
        return {
            "id": question_id(segment_id, number),
            "segment_id": segment_id,
            "question": audio_question(question.text),
            "video_question": question.text,
            "choices": list(question.choices),
            "answer": question.answer,
            "answer_text": question.choices[question.answer],
            "question_relation": schema.UNKNOWN,  # AVQA's column: what the answer can be told from
            "question_type": question.type,
            "audio_contribution": contribution,
            **{name: slot[name] for name in ("text_only_correct", "silent_correct", "blind_tries")},
        }


OF_QUESTION = (
    "id",
    "question",
    "video_question",
    "choices",
    "answer",
    "answer_text",
    "question_relation",
    "question_type",
    *schema.CONTRIBUTION_COLUMNS,
)


def write_shards(folder: Path, segments: Dataset, num_kept: int) -> None:
    """
    Write the kept questions with the audio and the provenance of their segments, a row group in memory at a time.

    Args:
        folder (`Path`): Of the dataset; holds what `QuestionJoin.choose` wrote.
        segments (`Dataset`): With undecoded audio.
        num_kept (`int`): Number of kept questions.
    """
    if not num_kept:
        raise InputError("no question is left")
    position = {segment_id: i for i, segment_id in enumerate(segments["id"])}
    shared = [name for name in schema.questions_features() if name not in OF_QUESTION]
    absent = dict.fromkeys(name for name in shared if name not in segments.column_names)

    def rows() -> Iterator[Row]:
        for row in parquet.read_parquet([folder / CHOSEN_FILE]):
            segment = absent | segments[position[row.pop("segment_id")]]
            yield {name: segment[name] for name in shared} | row

    remaining = rows()
    for number in range(count := math.ceil(num_kept / ROWS_PER_SHARD)):
        file = folder / "data" / f"train-{number:05d}-of-{count:05d}.parquet"
        parquet.write_parquet(islice(remaining, ROWS_PER_SHARD), schema.questions_features(), file)
    (folder / CHOSEN_FILE).unlink()
