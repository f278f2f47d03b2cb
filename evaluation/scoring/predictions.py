"""
Match each output in a file of predictions to its question.

`prediction_files` reads the file. The id of a row may also be under the benchmark's own key. Nothing is guessed: a row that
does not belong to exactly one question is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from evaluation.benchmarks import Row
from evaluation.running.controls import CONTROLS, NO_CONTROL, SHUFFLED, shuffle_choices
from evaluation.scoring.prediction_files import output_key, outputs_of, read_rows, some_of
from sightsound.benchmarks import Benchmark, get_benchmark
from sightsound.cli import InputError
from sightsound.data.annotations import LETTERED, RowError, without_letters
from sightsound.data.schema import LETTERS


OWN_KEYS = {"gold", "matched_by"}  # in a file of `evaluation run`, where `answer` is the model's and not the correct one
# Keys of the question that other tools copy beside the output -> our columns with the same content. They are compared, to find
# a file that answers other questions. An official `question` is our `video_question`; `answer` is an index or a text. A
# benchmark adds its own keys as `text_keys`.
TEXTS = {
    **dict.fromkeys(("question", "video_question"), ("video_question", "question")),
    "choices": ("choices",),
    "answer_text": ("answer_text",),
    **dict.fromkeys(("answer", "gold"), ("answer",)),
}


def _ids(rows: list[Row], id_key: str, path: str) -> list[str]:
    ids = []
    for number, row in enumerate(rows):
        value = next((row[key] for key in ("id", id_key, "question_id") if row.get(key) is not None), None)
        if isinstance(value, bool) or not isinstance(value, str | int):
            expected = "id" if id_key == "id" else f"id or {id_key}"
            keys = f"it has {some_of(row) or 'no keys'}"
            if value is None and "doc_id" in row:
                keys += "; doc_id is a position in the harness's data, whose order may differ: put the id in the doc"
            seen = f"no id (under {expected})" if value is None else f"{value!r} as {expected}"
            raise InputError(f"{path}: row {number} has {seen}, expected a question's id; {keys}")
        ids.append(str(value))
    return ids


def _cause_of_unknown_ids(benchmark: str, num_questions: int, revision: str) -> str:
    """The likely cause of ids that belong to no question."""
    is_file = revision.startswith("sha256:")  # an annotation file also has the questions whose clips are gone
    total = get_benchmark(benchmark).pinned.questions
    source = "annotation file" if is_file else "dataset"
    part = f"the {source} holds {num_questions:,} of {total:,} questions; " if num_questions < (total or 0) else ""
    asked = f"{part}were another benchmark, split or revision answered"
    if is_file:
        return f"{asked}?"
    return f"{asked}, or does the dataset lack their clips? --annotations instead of --dataset has every question"


class Predictions:
    """
    The outputs of one run on a benchmark, in the order of its questions.

    Args:
        path (`str`): The file.
        benchmark (`str`): Its name.
        questions (`list[dict]`): Its rows.
        revision (`str`): Revision of the questions; compared with the file's, where the file has one.

    Attributes:
        ids (`set`): Ids of the questions that the file answers with the clip (no control).
        outputs (`dict`): Per control, an output per question; None where it is missing or not text.
        rows (`dict`): Per control, the questions as they were asked.
        key (`str`): The key of the outputs in the file.
        several (`int`): Number of rows with more than one output; the first one counts.
        missing (`dict`): Per control, the number of questions without a prediction.
        not_text (`dict`): Per control, the number of outputs that are not text.

    Raises:
        `InputError`: An id is unknown or occurs twice, or the file is about other questions.
    """

    def __init__(self, path: str, benchmark: str, questions: list[Row], revision: str):
        self._path, self._benchmark = path, benchmark
        rows = read_rows(path)
        self.key, ids = output_key(rows, path), _ids(rows, get_benchmark(benchmark).id_key, path)
        samples = [outputs_of(row[self.key], self.key) if self.key in row else [] for row in rows]
        self.several = sum(len(outputs) > 1 for outputs in samples)
        rows = [row | {self.key: outputs[0]} if outputs else row for row, outputs in zip(rows, samples, strict=True)]
        self._check_origin(rows, revision)
        asked = {row["id"]: row for row in questions}
        unknown = [row_id for row_id in ids if row_id not in asked]
        if unknown:
            seen = f"{len(unknown)} of {len(ids)} ids are no question of {benchmark} in this revision (first: {unknown[0]})"
            splits = sorted({row["split"] for row in rows if isinstance(row.get("split"), str)})
            named = f"; the file names split {' and '.join(splits)}" if splits else ""
            raise InputError(f"{path}: {seen}{named}; {_cause_of_unknown_ids(benchmark, len(questions), revision)}")
        found: dict[str, dict[str, Row]] = {}
        for row_id, row in zip(ids, rows, strict=True):
            control = row.get("control", NO_CONTROL)
            if control not in (NO_CONTROL, *CONTROLS):
                raise InputError(f"{path}: {control!r} is no control; expected {', '.join((NO_CONTROL, *CONTROLS))}")
            if row_id in found.setdefault(control, {}):
                raise InputError(f"{path}: id {row_id} occurs twice; keep only the output that counts")
            found[control][row_id] = row
        if NO_CONTROL not in found:
            raise InputError(f"{path} holds controls only ({', '.join(found)}), and no answer with the clip")
        self.ids = set(found[NO_CONTROL])
        self.rows = {c: [shuffle_choices(row) for row in questions] if c == SHUFFLED else questions for c in found}
        self.outputs: dict[str, list[str | None]] = {}
        self.missing: dict[str, int] = {}
        self.not_text: dict[str, int] = {}
        for control, by_id in found.items():
            self._check_texts(by_id, {row["id"]: row for row in self.rows[control]})
            values = [by_id[row["id"]].get(self.key) if row["id"] in by_id else None for row in questions]
            self.outputs[control] = [value if isinstance(value, str) else None for value in values]
            self.missing[control] = sum(row["id"] not in by_id or self.key not in by_id[row["id"]] for row in questions)
            self.not_text[control] = self.outputs[control].count(None) - self.missing[control]

    def _check_origin(self, rows: list[Row], revision: str) -> None:
        """Check the benchmark and revision that a file of `evaluation run` records."""
        for name, expected in (("benchmark", self._benchmark), ("benchmark_revision", revision)):
            others = {str(row[name]) for row in rows if row.get(name) not in (None, expected)}
            # An annotation file and the dataset built from it have different revisions: `_check_texts` compares them instead.
            if others and not (name == "benchmark_revision" and revision.startswith("sha256:")):
                seen = f"{name} {sorted(others)[0]}, expected {expected}"
                raise InputError(f"{self._path} answers other questions: {seen}; give the ones that it was made from")

    def _check_texts(self, by_id: dict[str, Row], questions: dict[str, Row]) -> None:
        """Check that whatever a prediction repeats of its question equals this benchmark's question."""
        benchmark = get_benchmark(self._benchmark)
        for row_id, row in by_id.items():
            question = questions[row_id]
            for name, seen, columns in _repeated(row, benchmark):
                known = [question[column] for column in columns if column in question]
                if name == "answer" and isinstance(seen, str) and seen.strip(" ().") == LETTERS[question["answer"]]:
                    continue  # the letter of the right choice
                forms = [_plain(each) for each in known]
                if known and _plain(seen) not in forms and _plain(_without_letters(seen)) not in forms:
                    differs = f"{name} {seen!r}, expected {known[0]!r}"
                    raise InputError(
                        f"{self._path}: question {row_id} has other texts there than in {self._benchmark} in this revision "
                        f"({differs}); give the questions that it was made from"
                    )


def _repeated(row: Row, benchmark: Benchmark) -> Iterator[tuple[str, Any, tuple[str, ...]]]:
    """What a prediction repeats of its question: the key, the value, and the columns that it may equal."""
    with suppress(RowError):  # a whole official annotation: MUSIC-AVQA's question is built from its template and values
        row = row | benchmark.to_row(row)
    for name, columns in (TEXTS | dict(benchmark.text_keys)).items():
        value = row.get(name)
        if value is None or (name == "answer" and OWN_KEYS & row.keys()):
            continue
        if columns == ("answer",) and isinstance(value, str):
            columns = ("answer_text",)
        yield name, value, columns


def _plain(value: Any) -> Any:
    """A text, or each text of a list that is not empty, with its spaces normalised, for comparison."""
    if isinstance(value, list):
        return [_plain(each) for each in value if each != ""]
    return " ".join(value.split()) if isinstance(value, str) else value


def _without_letters(value: Any) -> Any:
    """A choice, or a list of choices, without the prompt's letters. A list loses them only if every choice has its own."""
    if isinstance(value, str):
        found = LETTERED.match(value)
        return value[found.end() :] if found else value
    return without_letters(value) if isinstance(value, list) else value
