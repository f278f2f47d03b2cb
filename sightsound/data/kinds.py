"""The kinds of dataset that the stages read, and the check that an input is of the expected kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sightsound.cli import InputError
from sightsound.data import parquet, schema


if TYPE_CHECKING:
    from datasets import Dataset, Features


@dataclass(frozen=True)
class Kind:
    """
    A kind of dataset.

    Args:
        name (`str`): Name used in error messages.
        columns (`tuple`): The columns that are read, with the types that `schema` gives for avqa-audio and traces.
        made_by (`str`): What the error message tells the user to give.
        optional (`tuple`): Columns that are read where they are there: older datasets lack them.
    """

    name: str
    columns: tuple[str, ...]
    made_by: str
    optional: tuple[str, ...] = ()


_SHARED = ("id", "question", "choices", "media_sha256")

CLIPS = Kind(
    "clips with questions (avqa-audio)",
    (*_SHARED, "audio", "duration_s", "video_id", "start_s", "video_question", "answer"),
    "the output folder of a builder such as dataset_builders/avqa_audio.py, or its Hub id",
    schema.CONTRIBUTION_COLUMNS,
)
SEGMENTS = Kind(
    "segments of videos",
    ("id", "video_id", "start_s", "audio", "duration_s", "media_sha256"),
    "the output folder of dataset_builders/videos.py, or its Hub id",
)
TRACES = Kind(
    "teacher traces",
    (*_SHARED, "traces", "teacher_answer", "unanimous", "outcome"),
    "the output folder of dataset_builders/traces.py",
    schema.CONTRIBUTION_COLUMNS,
)
VERDICTS = Kind(
    "traces with verdicts",
    (*TRACES.columns, "checker", "verdict_mode"),
    "the output folder of dataset_builders/verdicts.py",
    schema.CONTRIBUTION_COLUMNS,
)
CORPUS = Kind(
    "a corpus with the config `traces`",
    TRACES.columns,
    "the output folder of dataset_builders/cot_corpus.py, or its Hub id",
    schema.CONTRIBUTION_COLUMNS,
)


LATER_TRACE_FIELDS = ("claims", "rewritten")  # of a trace; older files lack them


def _is_like(found: Any, expected: Any) -> bool:
    """Whether a column has the expected type, apart from its width: `int64` is like `int32`."""
    from datasets import Audio, List, Value

    if isinstance(expected, Audio):
        return isinstance(found, Audio)
    if isinstance(expected, List):
        return isinstance(found, List) and _is_like(found.feature, expected.feature)
    if isinstance(expected, dict):
        if not isinstance(found, dict):
            return False
        compared = [name for name in expected if name not in LATER_TRACE_FIELDS or name in found]
        return all(_is_like(found.get(name), expected[name]) for name in compared)
    if not isinstance(found, Value):
        return False
    texts, numbers = ("string", "large_string", "null"), ("int", "uint", "float", "null")
    return found.dtype in texts if expected.dtype == "string" else found.dtype.startswith((*numbers, expected.dtype))


def check_kind(features: Features, source: str, kind: Kind) -> None:
    """
    Refuse a dataset of another kind.

    Raises:
        `InputError`: A column is missing, or has another type.
    """
    expected = {**schema.avqa_audio_features(), **schema.traces_features()}
    missing = [name for name in kind.columns if name not in features]
    if missing:
        found = f"it lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)} (it has: {', '.join(features) or 'none'})"
    else:
        read = [*kind.columns, *(name for name in kind.optional if name in features)]
        wrong = [name for name in read if not _is_like(features[name], expected[name])]
        if not wrong:
            return
        found = f"its column {wrong[0]} is of another type ({_shown_type(features[wrong[0]])})"
    raise InputError(f"{source} does not hold {kind.name}: {found}; give {kind.made_by}")


def _shown_type(feature: Any) -> str:
    text = str(feature)
    return text if len(text) <= 80 else f"{text[:80]}..."


def open_input(source: str, split: str, kind: Kind, config: str | None = None) -> Dataset:
    """
    Open a split of a dataset of the expected kind. Its audio stays encoded.

    Args:
        source (`str`): A folder, a Hub id, or `ORG/NAME@REVISION`.

    Raises:
        `InputError`: As for `parquet.open_dataset`, or the dataset is of another kind.
    """
    dataset = parquet.open_dataset(source, split, config)
    check_kind(dataset.features, f"split '{split}' of {source}", kind)
    return dataset
