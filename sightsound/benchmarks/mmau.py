"""
MMAU test-mini (Sakshi et al., arXiv 2410.19168): 1,000 questions about sounds, speech and music. One annotation:

    {"id": "3fe64f3d-282c-4bc8-a753-68f8f6c35652",
     "audio_id": "./test-mini-audios/3fe64f3d-282c-4bc8-a753-68f8f6c35652.wav",
     "question": "Based on the given audio, identify the source of the speaking voice.",
     "choices": ["Man", "Woman", "Child", "Robot"], "answer": "Man", "dataset": "AudioSet", "task": "sound",
     "split": "test-mini", "category": "Reasoning", "sub-category": "Acoustic Source Inference", "difficulty": "medium"}

The official file "v05.15.25" was edited after its date, so its version does not identify the questions; its sha256 does.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sightsound.benchmarks import BREAKDOWNS, TASK_CATEGORIES, Benchmark, Breakdown, OfficialRule
from sightsound.data import schema
from sightsound.data.annotations import Row, RowError, expect_answer_text, expect_id, expect_keys, expect_text, optional_label
from sightsound.data.pinned import PinnedFile


if TYPE_CHECKING:
    from datasets import Features

# Digests of the pinned rows and of their ids, whatever their order and formatting: they tell how another file differs.
PINNED_CONTENT = "d2b51b55002cb100fe4a5eec1d05bac207a16a18af0629fbfd4ed05bab5c40c1"
PINNED_IDS = "2ac4dcd841a6f273a0396d8940bc2056f18d3830e5d166ede4c4c3fc4b0549b3"
# Other versions of the official file that people have.
KNOWN_FILES = {
    "e8cc09223b497191781756212cb616315690aaa6ea7ac359db1b65d97d1e2433": (
        "the file before v05.15.25 (commit 1f675a9): since then 106 questions were replaced and 258 of the others changed"
    ),
}
EXPECTED_KEYS = ("id", "audio_id", "question", "choices", "answer", "task", "difficulty", "category", "sub-category")
CLIP_FILE = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]*)\.[A-Za-z0-9]+")  # a name and an extension, no path
WORD = re.compile(r"\w+")


def digest_of(rows: list[Any]) -> tuple[str, str]:
    """sha256 of the rows and of their ids; neither depends on formatting or order."""
    texts = (json.dumps(row, sort_keys=True) for row in rows)
    ids = (json.dumps(row.get("id")) if isinstance(row, dict) else "" for row in rows)
    content, named = ("\n".join(sorted(part)).encode() for part in (texts, ids))
    return hashlib.sha256(content).hexdigest(), hashlib.sha256(named).hexdigest()


def difference(rows: Any, sha256: str) -> str:
    """How a file differs from the pinned one, as far as its digests show."""
    if sha256 in KNOWN_FILES:
        return f"this is {KNOWN_FILES[sha256]}"
    if not isinstance(rows, list):
        return f"this holds no list of rows but a {type(rows).__name__}"
    content, ids = digest_of(rows)
    if content == PINNED_CONTENT:
        return "this holds the same rows, but not the same bytes (formatting or order)"
    if ids == PINNED_IDS:
        return f"this has the same {PINNED.questions} ids, but other questions, choices, answers or labels"
    if len(rows) != PINNED.questions:
        return f"this has {len(rows)} rows instead of {PINNED.questions}"
    return "some of its ids are others"


PINNED = PinnedFile(
    "mmau-test-mini.json of Sakshi113/MMAU at commit f0a4a97",
    "9f18fda99f8dbc2bc5ecd6323fb5063309f54969810b5c6f1caeb3b8d904cf1c",
    questions=1000,
    difference=difference,
    texts_sha256="8e9a2d07448b2e50f7165bceefcc67ec380ad431df7381e479f512a7ca3610b7",
)


def features() -> Features:
    """
    The columns of avqa-audio and MMAU's own.

    `question_type` repeats `task` (sound, speech, music: the columns of the paper's Table 2), `question_relation` repeats
    `category` (information extraction or reasoning); `source_dataset` is MMAU's field `dataset`.
    """
    from datasets import Features, Value

    own = ("task", "difficulty", "category", "sub_category", "source_dataset")
    return Features({**schema.avqa_audio_features(), **{name: Value("string") for name in own}})


def to_row(annotation: Any) -> Row:
    """An annotation -> its row without the audio. Texts stay as they are; `answer` is the first choice that equals it."""
    expect_keys(annotation, EXPECTED_KEYS)
    clip = CLIP_FILE.fullmatch(re.split(r"[/\\]", str(annotation["audio_id"]))[-1])
    if clip is None:
        raise RowError(
            schema.BAD_ANNOTATION, f"audio_id {annotation['audio_id']!r} does not end in a file name such as <id>.wav"
        )
    choices, answer = expect_answer_text(annotation, "choices", "answer")
    if isinstance(category := annotation["category"], list) and len(category) == 1:  # so in 13 rows of the pinned file
        annotation = annotation | {"category": category[0]}
    labels = {
        "task": expect_text(annotation, "task"),
        "difficulty": optional_label(annotation, "difficulty"),
        "category": optional_label(annotation, "category"),
        "sub_category": optional_label(annotation, "sub-category"),
        "source_dataset": optional_label(annotation, "dataset"),
    }
    question = expect_text(annotation, "question")
    return {
        "id": expect_id(annotation, "id"),
        "video_id": clip.group(1),
        "start_s": 0.0,
        "question": question,
        "video_question": question,
        "choices": choices,
        "answer": answer,
        "answer_text": choices[answer],
        "question_relation": labels["category"],
        "question_type": labels["task"],
        **labels,
    }


def words(text: str) -> set[str]:
    """The words that the official rule compares: runs of letters, digits and underscores, in lower case."""
    return set(WORD.findall(text.lower()))


@lru_cache(maxsize=65_536)  # enough for every question of a benchmark
def _expected(reference: str, choices: tuple[str, ...]) -> tuple[frozenset[str], frozenset[str]]:
    """Words that an answer must hold, and words that it must not hold."""
    required = words(reference)
    return frozenset(required), frozenset(words(" ".join(choices)) - required)


def decide(answer_text: str, reference: str, choices: Sequence[str]) -> bool | None:
    """
    MMAU's official rule on an extracted answer: every word of the right choice, and no word that only other choices hold.

    The rule reads no option letters: a letter alone is wrong, and so is "(A) Man" where another choice holds the word "a".

    Args:
        answer_text (`str`): The extracted answer.
        reference (`str`): The right choice.
        choices (`Sequence[str]`): All choices.

    Returns:
        `bool` or `None`: None for an answer without words; the official script counts it as wrong.
    """
    found = words(answer_text)
    if not found:
        return None
    required, excluded = _expected(reference, tuple(choices))
    return required <= found and excluded.isdisjoint(found)


BENCHMARK = Benchmark(
    pinned=PINNED,
    official_file="MMAU's mmau-test-mini.json",
    id_key="id",
    choices_key="choices",
    to_row=to_row,
    features=features,
    card="dataset_mmau.md",
    front_matter={
        "license": "other",
        "license_name": "annotations-apache-2.0-clips-of-their-sources",
        "language": "en",
        "pretty_name": "MMAU test-mini",
        "source_datasets": ["extended|other-mmau"],
        "task_categories": TASK_CATEGORIES,
        "tags": ["audio", "speech", "music", "benchmark", "audio-question-answering", "mmau", "sightsound-r1"],
    },
    breakdowns=BREAKDOWNS
    | {
        "by_difficulty": Breakdown("difficulty", "By difficulty"),
        "by_sub_category": Breakdown("sub_category", "By sub-category"),
    },
    official_rule=OfficialRule(
        "words",
        lambda answer_text, row: decide(answer_text, row["answer_text"], row["choices"]),
        skips_missing=True,
    ),
)
