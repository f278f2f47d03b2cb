r"""
MUSIC-AVQA (Li et al., CVPR 2022): 9,129 test questions about musical performances, with a vocabulary of 42 answers. One
annotation (question_id 12), whose `type` and `templ_values` are JSON inside a string, and whose answer is called `anser`:

    {"video_id": "00000093", "question_id": 12, "type": "[\"Audio\", \"Counting\"]",
     "question_content": "How many musical instruments were heard throughout the video?", "templ_values": "[]",
     "question_deleted": 0, "anser": "one"}

The benchmark is open-ended. The choices of a question are all answers that its kind of question admits, always in one order:
they depend on the template alone and so reveal nothing of the right answer.
"""

from __future__ import annotations

import json
import re
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from sightsound.benchmarks import TASK_CATEGORIES, Benchmark, OfficialRule
from sightsound.data import schema
from sightsound.data.annotations import Row, RowError, audio_question, expect_id, expect_keys, expect_text
from sightsound.data.pinned import PinnedFile


if TYPE_CHECKING:
    from datasets import Features

PINNED = PinnedFile(
    "data/json_update/avqa-test.json of GeWu-Lab/MUSIC-AVQA at commit cc88095",
    "76ce24ee02fd85e28038605aedd4f62633e1335ccda96a1fcf7340b5feaf230e",
    questions=9129,
    texts_sha256="683a35a43893105a7aa03922c4e01616f6e73dee7153fe4ff5273ec8308d645a",
)
EXPECTED_KEYS = ("video_id", "question_id", "type", "question_content", "templ_values", "anser")
PAPER_TYPES = ("Counting", "Comparative", "Temporal", "Existential")
PLACEHOLDER = re.compile(r"<[A-Za-z]+>")
VIDEO_ID = re.compile(r"[A-Za-z0-9_-]+")  # a file name without a path
OUTER = re.compile(r"^\W+|\W+$")

YES_NO = ("yes", "no")
COUNTS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "more than ten")
PLACES = ("indoor", "outdoor")
POSITIONS = ("left", "middle", "right")
# fmt: off
INSTRUMENTS = (
    "accordion", "acoustic_guitar", "bagpipe", "banjo", "bassoon", "cello", "clarinet", "congas", "drum", "electric_bass",
    "erhu", "flute", "guzheng", "piano", "pipa", "saxophone", "suona", "trumpet", "tuba", "ukulele", "violin", "xylophone",
)
# fmt: on
# Beginning of a question's template -> its choices; the first that fits. Together they are the official 42 answers. In the
# official data every answer is in its question's group, and each answer of a group makes sense.
CHOICES = (
    ("Is ", YES_NO),
    ("Are ", YES_NO),
    ("How many ", COUNTS),
    ("Where is the performance", PLACES),
    ("Where is ", POSITIONS),
    ("Which <Object> makes the sound ", (*POSITIONS, "simultaneously")),
    ("Which ", INSTRUMENTS),
    ("What ", INSTRUMENTS),
)
# All 42 answers; the official rule accepts no other text as an answer.
VOCABULARY = frozenset(answer for _, choices in CHOICES for answer in choices)


def features() -> Features:
    """
    The columns of avqa-audio and MUSIC-AVQA's own.

    `question_relation` repeats `modality` (Audio, Visual, Audio-Visual), and `question_type` is the official type; evaluation
    breaks both down. `template` is the question before its placeholders are filled. `in_paper` is true for the four types
    that the paper averages over.
    """
    from datasets import Features, Value

    own = {"modality": Value("string"), "template": Value("string"), "in_paper": Value("bool")}
    return Features({**schema.avqa_audio_features(), **own})


def texts_in(annotation: Row, key: str) -> list[str]:
    """A list of texts that the official file stores as JSON inside a string: `'["Audio", "Counting"]'`."""
    try:
        texts = json.loads(annotation[key])
    except (TypeError, ValueError, RecursionError):
        texts = None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise RowError(schema.BAD_ANNOTATION, f"expected a list of texts, written as JSON, as {key}, found {annotation[key]!r}")
    return texts


def fill(template: str, values: list[str]) -> str:
    """Fill placeholders in order, one occurrence each: the two of "Is the <Object> louder than the <Object>?" differ."""
    count = len(PLACEHOLDER.findall(template))
    if count != len(values):
        raise RowError(schema.BAD_ANNOTATION, f"{count} placeholders in {template!r}, but {len(values)} templ_values")
    remaining = iter(values)
    return PLACEHOLDER.sub(lambda _: next(remaining), template)


def choices_of(template: str) -> list[str]:
    """All answers that a question of this template admits."""
    for beginning, choices in CHOICES:
        if template.startswith(beginning):
            return list(choices)
    raise RowError(schema.BAD_ANNOTATION, f"{template!r} is none of MUSIC-AVQA's kinds of question: its choices are unknown")


def to_row(annotation: Any) -> Row:
    """An annotation -> its row without the audio. Texts stay as in the file, full-width question marks included."""
    expect_keys(annotation, EXPECTED_KEYS)
    if not VIDEO_ID.fullmatch(str(annotation["video_id"])):
        raise RowError(
            schema.BAD_ANNOTATION, f"video_id {annotation['video_id']!r} is not the name of a video such as 00000093"
        )
    kinds = texts_in(annotation, "type")
    if len(kinds) != 2:
        raise RowError(schema.BAD_ANNOTATION, f"expected modality and type as type, found {kinds!r}")
    modality, question_type = kinds
    template = expect_text(annotation, "question_content")
    question = fill(template, texts_in(annotation, "templ_values"))
    choices, answer = choices_of(template), annotation["anser"]
    if answer not in choices:
        raise RowError(schema.ANSWER_NOT_A_CHOICE, f"{answer!r} is none of {', '.join(choices)}")
    return {
        "id": expect_id(annotation, "question_id"),
        "video_id": str(annotation["video_id"]),
        "start_s": 0.0,
        "question": audio_question(question),
        "video_question": question,
        "choices": choices,
        "answer": choices.index(answer),
        "answer_text": answer,
        "question_relation": modality,
        "question_type": question_type,
        "modality": modality,
        "template": template,
        "in_paper": question_type in PAPER_TYPES,
    }


def plain(text: str) -> str:
    """A text in the form in which answers are compared: case, outer punctuation and underscores do not matter."""
    return " ".join(OUTER.sub("", text.casefold().replace("_", " ")).split())


KNOWN_ANSWERS = {plain(answer): answer for answer in VOCABULARY}


def word_of(text: str) -> str | None:
    """The answer of the vocabulary that a text is, in the vocabulary's spelling; None for any other text."""
    return KNOWN_ANSWERS.get(plain(text))


def decide(answer_text: str, reference: str) -> bool | None:
    """
    MUSIC-AVQA's official rule on an extracted answer: exact match over the vocabulary.

    The benchmark's own models classify into the 42 answers, so every other text is no answer: "2" is not "two", and an option
    letter is none of the 42.

    Args:
        answer_text (`str`): The extracted answer.
        reference (`str`): The right answer.

    Returns:
        `bool` or `None`: None for a text outside the vocabulary.
    """
    word = word_of(answer_text)
    return None if word is None else word == reference or word == word_of(reference)


FRONT_MATTER = {
    "license": "other",
    "license_name": "music-avqa-mit-or-gpl-3.0",
    "language": "en",
    "pretty_name": "MUSIC-AVQA, audio, multiple choice",
    "source_datasets": ["extended|other-music-avqa"],
    "task_categories": TASK_CATEGORIES,
    "tags": ["audio", "music", "benchmark", "audio-question-answering", "music-avqa", "sightsound-r1"],
}
BENCHMARK = Benchmark(
    pinned=PINNED,
    official_file="MUSIC-AVQA's avqa-test.json",
    id_key="question_id",
    to_row=to_row,
    text_keys={"question_content": ("template",), "anser": ("answer_text",)},
    features=features,
    card="dataset_music_avqa.md",
    front_matter=FRONT_MATTER,
    describe=lambda _: (FRONT_MATTER, {"kinds": [{"beginning": beginning, "choices": group} for beginning, group in CHOICES]}),
    averages_in_paper=True,  # without the type Location
    official_rule=OfficialRule("vocabulary", lambda answer_text, row: decide(answer_text, row["answer_text"])),
    video_name=itemgetter("video_id"),  # some ids look like YouTube's, but every one is a whole video
)
