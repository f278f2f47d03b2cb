"""
The benchmarks: one file of this folder is one benchmark, and holds all that its builder and the evaluation need.

To add a benchmark, write three files; nothing else lists them:

- `sightsound/benchmarks/<name>.py` with a constant `BENCHMARK`; `--benchmark <name>` works from then on;
- a builder of about 20 lines, such as `dataset_builders/mmau.py`;
- a card, such as `sightsound/hub/templates/dataset_mmau.md`, named in the benchmark's `card`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from sightsound.cli import InputError
from sightsound.data.annotations import Row, read_annotations
from sightsound.data.pinned import PinnedFile


if TYPE_CHECKING:
    from datasets import Features

# Front matter of every benchmark's card: the Hub's names for what the questions are.
TASK_CATEGORIES = ["audio-text-to-text", "question-answering", "multiple-choice"]


class Breakdown(NamedTuple):
    """
    Accuracy by group of questions.

    Args:
        column (`str`): The column that holds a question's group.
        title (`str`): Title in a report.
        note (`Callable`): Names of the groups that occur -> a sentence below the title, or nothing.
    """

    column: str
    title: str
    note: Callable[[set[str]], str] = lambda _: ""


class OfficialRule(NamedTuple):
    """
    The benchmark's own rule for grading an answer.

    Args:
        matched_by (`str`): Name of the rule, recorded as `matched_by` of each answer that it grades.
        decide (`Callable`): The extracted answer and the question's row -> right or wrong, or None for an answer that counts
            as none.
        skips_missing (`bool`): The published script leaves questions without a prediction out of its total. Here they count as
            wrong, and the script's figure is reported as well.
    """

    matched_by: str
    decide: Callable[[str, Row], bool | None]
    skips_missing: bool = False


BREAKDOWNS = {
    "by_type": Breakdown("question_type", "By question type"),
    "by_relation": Breakdown("question_relation", "By relation"),
}


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """
    All that sets one benchmark apart from the others.

    Official annotations:

        pinned (`PinnedFile`): The file that figures are compared on.
        official_file (`str`): Name of the expected file, for messages.
        id_key (`str`): Key of an annotation's id.
        to_row (`Callable`): An annotation, of any JSON type, -> its row without `audio`, `duration_s` and `media_sha256`.
            Raises `RowError`.
        choices_key (`str`, *optional*): Key of an annotation's choices; None where the row function makes them.
        text_keys (`Mapping`): Keys under which an annotation repeats texts of its row -> the columns they may equal. Where
            predictions hold such a key, its text is compared with the question's.
        check_answers (`Callable`, *optional*): A file's path and its annotations; raises `InputError` where most of its
            answers would be misread.

    Built dataset:

        features (`Callable`): Its columns: those of `schema.avqa_audio_features` first, then its own.
        clip_name (`Callable`): A row of `to_row` -> name of its clip, without the extension.
        card (`str`): Template in `sightsound/hub/templates/`.
        front_matter (`dict`): Front matter of the card.
        describe (`Callable`, *optional*): The rows that were built, without their audio -> front matter to use instead, and
            further values for the card.

    Evaluation:

        split (`str`): Split that is evaluated by default.
        breakdowns (`Mapping`): Breakdowns of the accuracy, by their key in `results.json`.
        averages_in_paper (`bool`): Average only the questions whose column `in_paper` is true, as the paper does.
        official_rule (`OfficialRule`, *optional*): The protocol `official`; without it, only `paper` is there.
        video_name (`Callable`, *optional*): A row of the dataset -> name of its video; None for a benchmark without videos.
    """

    pinned: PinnedFile
    official_file: str
    id_key: str
    to_row: Callable[[Any], Row]
    choices_key: str | None = None
    text_keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    check_answers: Callable[[str, list[Any]], None] | None = None

    features: Callable[[], Features]
    clip_name: Callable[[Row], str] = itemgetter("video_id")
    card: str
    front_matter: Row
    describe: Callable[[list[Row]], tuple[Row, Row]] | None = None

    split: str = "test"
    breakdowns: Mapping[str, Breakdown] = field(default_factory=lambda: BREAKDOWNS)
    averages_in_paper: bool = False
    official_rule: OfficialRule | None = None
    video_name: Callable[[Row], str] | None = None

    def counts(self, row: Row) -> bool:
        """Whether a question, or a prediction on it, is in the average."""
        return not self.averages_in_paper or bool(row["in_paper"])

    def read(self, path: str, allow_unpinned: bool) -> tuple[list[Any], str]:
        """
        The annotations in a file, and a phrase for the card that says whether it is the pinned file.

        Raises:
            `InputError`: The file holds no annotations, or is not the pinned one and `allow_unpinned` is false.
        """
        annotations = read_annotations(path, self.official_file)
        return annotations, self.pinned.check(path, annotations, allow_unpinned)


def benchmark_names() -> list[str]:
    """Names of all benchmarks: those of the files in this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


@cache
def get_benchmark(name: str) -> Benchmark:
    """
    A benchmark by its name.

    Raises:
        `InputError`: There is no benchmark of that name.
    """
    if name not in (names := benchmark_names()):
        raise InputError(f"unknown benchmark '{name}'; expected one of {', '.join(names)}")
    found: Benchmark = importlib.import_module(f"{__name__}.{name}").BENCHMARK
    return found


def front_matter_for(name: str) -> Row:
    """Front matter by which a built dataset says which benchmark it is."""
    return {"sightsound": {"benchmark": name}}


def benchmark_in(front_matter: Row) -> str | None:
    """The benchmark that a dataset says it is, in the front matter of its card; None where it does not say."""
    ours = front_matter.get("sightsound")
    name = ours.get("benchmark") if isinstance(ours, dict) else None
    return name if isinstance(name, str) else None
