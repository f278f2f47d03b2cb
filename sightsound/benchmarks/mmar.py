"""
MMAR (Ma et al., arXiv 2505.13032): 1,000 questions about sound, speech, music and their mixtures. One annotation, of which
`rubric` has five entries:

    {"id": "6kIjOvBVAHQ_00-00-00_00-00-06", "audio_path": "./audio/6kIjOvBVAHQ_00-00-00_00-00-06.wav",
     "question": "Does the man think there is too much or too little food?",
     "choices": ["Too little", "Just right, no opinion", "Too much, need to give some to others", "Too much, can't finish"],
     "answer": "Too little", "modality": "speech", "category": "Semantic Layer", "sub-category": "Content Analysis",
     "language": "en", "source": "youtube", "url": "https://www.youtube.com/watch?v=6kIjOvBVAHQ",
     "timestamp": "00:00:00,00:00:06", "thinking": "...", "cue": ["..."],
     "rubric": [{"name": "...", "scoring_point": "Award 1 point if ...", "note": "...", "choices": [0, 1]}]}

`thinking` (how the authors reach the answer), `cue` and `rubric` are what MMAR-Rubrics (arXiv 2602.14224) scores reasoning by.
"""

from __future__ import annotations

import re
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from sightsound.benchmarks import TASK_CATEGORIES, Benchmark, Breakdown, OfficialRule
from sightsound.benchmarks.mmau import decide
from sightsound.data import schema
from sightsound.data.annotations import Row, RowError, expect_answer_text, expect_id, expect_keys, expect_text, optional_label
from sightsound.data.pinned import PinnedFile


if TYPE_CHECKING:
    from datasets import Features

# The other official file that people have.
KNOWN_FILES = {
    "7240ecca11b252c782ef44d4d19f711dd9b8424656a2bc3f92c548e318d25cee": (
        "MMAR-meta.json before MMAR-Rubrics (commit 6249700): 6 questions have other answers or choices, and none has a rubric"
    ),
}
EXPECTED_KEYS = ("id", "audio_path", "question", "choices", "answer", "modality", "category", "sub-category")
CRITERION_TEXTS = ("name", "scoring_point", "note")
# The id of the source video, where the clip begins there, and what was done to it: a name without a path. A few clips are
# joined from several parts of a video ("multi_segment").
CLIP_FILE = re.compile(
    r"(?P<clip>(?P<video>[\w-]+?)(?:_(?P<h>\d\d)-(?P<m>\d\d)-(?P<s>\d\d)_\d\d-\d\d-\d\d)?"
    r"(?:_multi_segment|_combined|_reverse)?)\.[A-Za-z0-9]+",
    re.ASCII,
)


def difference(rows: Any, sha256: str) -> str:
    """How a file differs from the pinned one, as far as that is known."""
    if sha256 in KNOWN_FILES:
        return f"this is {KNOWN_FILES[sha256]}"
    if len(rows) != PINNED.questions:
        return f"this has {len(rows)} rows instead of {PINNED.questions}"
    return "it has other bytes"


PINNED = PinnedFile(
    "MMAR-meta.jsonl of ddlBoJack/MMAR at commit 3bce090",
    "1c9a343e7bebf1037482b935c54eacd43cc63df7b2c668724b5560caf1f84fad",
    questions=1000,
    difference=difference,
    texts_sha256="82b129409cab8d70f546f54fed13bb29b8f44a4d83c7f0817abc7a033e462928",
)


def features() -> Features:
    """
    The columns of avqa-audio and MMAR's own.

    `question_type` repeats `modality`, `question_relation` repeats `category`. `language` is empty where nobody speaks.
    `source`, `url` and `timestamp` say where the clip comes from. `thinking`, `cue` and `rubric` reveal the answer: no model
    under test may see them.
    """
    from datasets import Features, List, Value

    texts = ("modality", "category", "sub_category", "language", "source", "url", "timestamp", "thinking")
    criterion = {**{name: Value("string") for name in CRITERION_TEXTS}, "choices": List(Value("int32"))}
    own = {**{name: Value("string") for name in texts}, "cue": List(Value("string")), "rubric": List(criterion)}
    return Features({**schema.avqa_audio_features(), **own})


def _criterion(value: Any) -> Row:
    """One entry of a rubric: what is scored, and the points that can be given."""
    is_usable = (
        isinstance(value, dict)
        and all(isinstance(value.get(name), str) for name in CRITERION_TEXTS)
        and isinstance(points := value.get("choices"), list)
        and all(type(point) is int for point in points)
        and max(points, default=0) > 0
    )
    if not is_usable:
        expected = f"{', '.join(CRITERION_TEXTS)} and the points to choose from as each entry of rubric"
        raise RowError(schema.BAD_ANNOTATION, f"expected {expected}, found {value!r}")
    return {name: value[name] for name in (*CRITERION_TEXTS, "choices")}


def _optional_list(annotation: Row, key: str) -> list[Any]:
    """A list that the annotations of the earlier file lack; a missing one, or null, is empty."""
    value = annotation.get(key)
    if value is not None and not isinstance(value, list):
        raise RowError(schema.BAD_ANNOTATION, f"expected a list as {key}, found {value!r}")
    return value or []


def to_row(annotation: Any) -> Row:
    """
    An annotation -> its row without the audio. Texts stay as they are; `answer` is the first choice that equals it. Empty
    choices after the last one, which 4 annotations have, are left out: an option without a text cannot be chosen.

    `video_id` and `start_s` are the source video and where the clip begins in it, as the clip's name says; several clips come
    from one video. `clip`, the name itself, is no column.
    """
    expect_keys(annotation, EXPECTED_KEYS)
    found = CLIP_FILE.fullmatch(re.split(r"[/\\]", str(annotation["audio_path"]))[-1])
    if found is None:
        seen = f"audio_path {annotation['audio_path']!r}"
        raise RowError(schema.BAD_ANNOTATION, f"{seen} does not end in a file name such as <video>_00-01-32_00-02-02.wav")
    if isinstance(given := annotation["choices"], list):
        annotation = annotation | {"choices": given[: max((i for i, each in enumerate(given, 1) if each != ""), default=0)]}
    choices, answer = expect_answer_text(annotation, "choices", "answer")
    question, modality, category = (expect_text(annotation, key) for key in ("question", "modality", "category"))
    cues = _optional_list(annotation, "cue")
    if not all(isinstance(cue, str) for cue in cues):
        raise RowError(schema.BAD_ANNOTATION, f"expected a list of texts as cue, found {cues!r}")
    return {
        "id": expect_id(annotation, "id"),
        "clip": found["clip"],
        "video_id": found["video"],
        "start_s": float(3600 * int(found["h"] or 0) + 60 * int(found["m"] or 0) + int(found["s"] or 0)),
        "question": question,
        "video_question": question,
        "choices": choices,
        "answer": answer,
        "answer_text": choices[answer],
        "question_relation": category,
        "question_type": modality,
        "modality": modality,
        "category": category,
        "sub_category": optional_label(annotation, "sub-category"),
        **{name: optional_label(annotation, name) for name in ("language", "source", "url", "timestamp", "thinking")},
        "cue": cues,
        "rubric": [_criterion(each) for each in _optional_list(annotation, "rubric")],
    }


BENCHMARK = Benchmark(
    pinned=PINNED,
    official_file="MMAR's MMAR-meta.jsonl",
    id_key="id",
    choices_key="choices",
    to_row=to_row,
    features=features,
    clip_name=itemgetter("clip"),
    card="dataset_mmar.md",
    front_matter={
        "license": "other",
        "license_name": "mmar-states-none-in-its-repository",
        "language": "en",
        "pretty_name": "MMAR",
        "source_datasets": ["extended|other-mmar"],
        "task_categories": TASK_CATEGORIES,
        "tags": ["audio", "speech", "music", "benchmark", "audio-question-answering", "mmar", "sightsound-r1"],
    },
    breakdowns={
        "by_modality": Breakdown("modality", "By modality"),
        "by_category": Breakdown("category", "By category"),
        "by_sub_category": Breakdown("sub_category", "By sub-category"),
    },
    # MMAR's script is MMAU's with the same rule.
    official_rule=OfficialRule(
        "words",
        lambda answer_text, row: decide(answer_text, row["answer_text"], row["choices"]),
        skips_missing=True,
    ),
)
