"""
MMAU test-mini: the official annotations, one file known by its bytes, row by row.

"v05.15.25" was edited after its date, so that version name alone does not say which questions were asked.
"""

import hashlib
import json
import re
from typing import Any

from sightsound.benchmarks.pinned import PinnedFile
from sightsound.data import schema
from sightsound.data.annotations import RowError, expect_choices, expect_id, expect_keys, expect_text, optional_label
from sightsound.data.schema import LETTERS


# Of the pinned rows whatever their formatting, and of their ids, in any order: how another file differs is told by these.
PINNED_CONTENT = "d2b51b55002cb100fe4a5eec1d05bac207a16a18af0629fbfd4ed05bab5c40c1"
PINNED_IDS = "2ac4dcd841a6f273a0396d8940bc2056f18d3830e5d166ede4c4c3fc4b0549b3"
# Other states of the official file that people have.
KNOWN_FILES = {
    "e8cc09223b497191781756212cb616315690aaa6ea7ac359db1b65d97d1e2433": (
        "the file before v05.15.25 (commit 1f675a9): since then 106 questions were replaced and 258 of the others changed"
    ),
}
ID_KEY = "id"
EXPECTED_KEYS = ("id", "audio_id", "question", "choices", "answer", "task", "difficulty", "category", "sub-category")
CLIP_FILE = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]*)\.[A-Za-z0-9]+")  # a name and an extension, no path


def digest_of(rows: list[Any]) -> tuple[str, str]:
    """sha256 of the rows and of their ids, neither depending on formatting and order."""
    texts = (json.dumps(row, sort_keys=True) for row in rows)
    ids = (json.dumps(row.get("id")) if isinstance(row, dict) else "" for row in rows)
    content, named = ("\n".join(sorted(part)).encode() for part in (texts, ids))
    return hashlib.sha256(content).hexdigest(), hashlib.sha256(named).hexdigest()


def difference(rows: Any, sha256: str) -> str:
    """How a file differs from the pinned one, as far as can be told without it."""
    if sha256 in KNOWN_FILES:
        return f"this is {KNOWN_FILES[sha256]}"
    if not isinstance(rows, list):
        return f"this holds no list of rows but a {type(rows).__name__}"
    content, ids = digest_of(rows)
    if content == PINNED_CONTENT:
        return "this holds the same rows, but not the same bytes (formatting or order)"
    if ids == PINNED_IDS:
        return f"this has the same {PINNED.questions} ids, but other questions, choices, answers or labels"
    told = f"this has {len(rows)} rows instead of {PINNED.questions}"
    return told if len(rows) != PINNED.questions else "some of its ids are others"


PINNED = PinnedFile(
    "mmau-test-mini.json of Sakshi113/MMAU at commit f0a4a97",
    "9f18fda99f8dbc2bc5ecd6323fb5063309f54969810b5c6f1caeb3b8d904cf1c",
    questions=1000,
    difference=difference,
    texts_sha256="8e9a2d07448b2e50f7165bceefcc67ec380ad431df7381e479f512a7ca3610b7",
)


def to_row(annotation: Any) -> dict[str, Any]:
    """
    One annotation -> one row without its sound. An annotation:

        {"id": "3fe64f3d-282c-4bc8-a753-68f8f6c35652",
         "audio_id": "./test-mini-audios/3fe64f3d-282c-4bc8-a753-68f8f6c35652.wav",
         "question": "Based on the given audio, identify the source of the speaking voice.",
         "choices": ["Man", "Woman", "Child", "Robot"], "answer": "Man", "dataset": "AudioSet", "task": "sound",
         "split": "test-mini", "category": "Reasoning", "sub-category": "Acoustic Source Inference", "difficulty": "medium"}
    """
    expect_keys(annotation, EXPECTED_KEYS)
    clip = CLIP_FILE.fullmatch(re.split(r"[/\\]", str(annotation["audio_id"]))[-1])
    if clip is None:
        raise RowError(
            schema.BAD_ANNOTATION, f"audio_id {annotation['audio_id']!r} does not end in a file name such as <id>.wav"
        )
    choices, answer = expect_choices(annotation["choices"], 2, len(LETTERS)), annotation["answer"]
    as_given = [str(choice) for choice in annotation["choices"]]
    if answer in as_given:  # with its letter, where the choices have theirs
        answer = choices[as_given.index(answer)]
    if answer not in choices:
        raise RowError(schema.ANSWER_NOT_A_CHOICE, f"{answer!r} is none of {choices!r}")
    if isinstance(category := annotation["category"], list) and len(category) == 1:  # as 13 rows hold it
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
        "answer": choices.index(answer),
        "answer_text": answer,
        "question_relation": labels["category"],
        "question_type": labels["task"],
        **labels,
    }
