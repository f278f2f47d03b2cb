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
# All that was written, until the dataset is. No `.parquet`: nothing that looks for data may find it.
WRITTEN_FILE, WRITTEN_LEDGER = "written.part", "written_ledger.part"

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
    """
    What became of the questions that were asked for.

    `types`, `letters` and `texts` are of those that are kept. `contributions` are of all that models tried to answer without
    the clip, with those that were dropped because they could, and of those that nobody tried.
    """

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

    def decide(self, row: Row, detail: str | None, video: str) -> tuple[list[Row], list[Row]]:
        """
        Choose among the questions of a segment.

        Args:
            row (`dict`): Of `schema.written_features`.
            detail (`str`, *optional*): What was seen where its request failed.
            video (`str`): Id of the segment's video.

        Returns:
            `tuple`: The kept questions, without their audio; and the ledger's entries of the segment and its questions.
        """
        kept, of_questions = self._of_segment(row, video)
        outcome = row["outcome"] or (schema.BUILT if kept else NO_QUESTION)
        self.counts.segments[outcome] += 1
        if detail is None and of_questions:
            detail = f"{len(kept)} of {len(of_questions)} questions"
        entry = {"id": row["id"], "outcome": outcome, "detail": detail, "kind": SEGMENT, "source": None}
        return kept, [entry, *of_questions]

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
                contribution = contribution_of(slot["text_only_correct"], slot["silent_correct"])
                self.counts.contributions[contribution] += 1
                if outcome == schema.BUILT:
                    seen.add(key_of(question))
                    kept.append(self._row(row["id"], number, question, slot | {"audio_contribution": contribution}))
            self.counts.questions[outcome] += 1
            entry = {"id": question_id(row["id"], number), "outcome": outcome, "detail": detail}
            entries.append(entry | {"kind": QUESTION, "source": None})
        return kept, entries

    def _row(self, segment_id: str, number: int, written: WrittenQuestion, slot: Row) -> Row:
        question = self._letters.place(written)
        self.counts.types[question.type] += 1
        self.counts.letters[question.answer] += 1
        self.counts.texts[question.text] += 1
        return {
            "id": question_id(segment_id, number),
            "question": audio_question(question.text),
            "video_question": question.text,
            "choices": list(question.choices),
            "answer": question.answer,
            "answer_text": question.choices[question.answer],
            "question_relation": schema.UNKNOWN,  # AVQA's column: what the answer can be told from
            "question_type": question.type,
            **{name: slot[name] for name in schema.CONTRIBUTION_COLUMNS},
        }


def write_questions(folder: Path, segments: Dataset, max_guessed: float, seed: int) -> Counts:
    """
    Write ledger and shards, with a row group of audio in memory at a time.

    Args:
        folder (`Path`): Of the dataset; holds `WRITTEN_FILE` and `WRITTEN_LEDGER`.
        segments (`Dataset`): All that were asked about, with undecoded audio.
        max_guessed (`float`), seed (`int`): See `QuestionJoin`.
    """
    position = {segment_id: i for i, segment_id in enumerate(segments["id"])}
    videos = dict(zip(segments["id"], segments["video_id"], strict=True))

    def decided(join: QuestionJoin) -> Iterator[tuple[str, list[Row], list[Row]]]:
        details = parquet.read_parquet([folder / WRITTEN_LEDGER], ["detail"])
        for row, entry in zip(parquet.read_parquet([folder / WRITTEN_FILE]), details, strict=True):
            yield row["id"], *join.decide(row, entry["detail"], videos[row["id"]])

    # Decided twice, in the same way, so that neither ledger nor rows are in memory.
    first = QuestionJoin(max_guessed, seed)
    entries = (entry for _, _, each in decided(first) for entry in each)
    parquet.write_parquet(entries, schema.segments_ledger_features(), folder / "ledger.parquet")
    shared = [name for name in schema.questions_features() if name not in OF_QUESTION]
    unknown = ("license", "author")  # of clips that are no segments of videos.py
    absent = {name: schema.UNKNOWN if name in unknown else None for name in shared if name not in segments.column_names}

    def rows() -> Iterator[Row]:
        for segment_id, kept, _ in decided(QuestionJoin(max_guessed, seed)):
            if kept:
                segment = absent | segments[position[segment_id]]
                yield from ({name: segment[name] for name in shared} | row for row in kept)

    remaining = rows()
    for number in range(count := math.ceil(first.counts.kept / ROWS_PER_SHARD)):
        file = folder / "data" / f"train-{number:05d}-of-{count:05d}.parquet"
        parquet.write_parquet(islice(remaining, ROWS_PER_SHARD), schema.questions_features(), file)
    return first.counts
