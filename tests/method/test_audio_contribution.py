"""Whether a question needs its clip: one rule, and rows of files that are older than it."""

import pytest

from sightsound.cli import InputError
from sightsound.data import parquet, schema
from sightsound.data.kinds import CLIPS, SEGMENTS, TRACES, check_kind
from sightsound.method.audio_contribution import (
    CONTRIBUTIONS,
    STRONG,
    UNKNOWN,
    WEAK,
    contribution_of,
    contribution_word,
    contributions_of,
    known_contribution,
)


NOBODY_TRIED = {"audio_contribution": UNKNOWN, "text_only_correct": None, "silent_correct": None, "blind_tries": None}
LABELLED = {"audio_contribution": WEAK, "text_only_correct": 0.75, "silent_correct": 0.5, "blind_tries": 8}


@pytest.mark.parametrize(
    ("text_only", "silent", "expected"),
    [
        (None, None, UNKNOWN),
        (0.0, 0.0, STRONG),
        (0.5, 0.5, STRONG),  # weak is above one half, not at it
        (0.625, 0.0, WEAK),
        (0.0, 0.625, WEAK),  # the larger share decides
        (None, 1.0, WEAK),
        (0.25, None, STRONG),
    ],
)
def test_a_question_that_is_guessed_more_often_than_not_is_weak(text_only, silent, expected) -> None:
    assert contribution_of(text_only, silent) == expected
    assert expected in CONTRIBUTIONS


@pytest.mark.parametrize("row", [{}, {"audio_contribution": None}, {"audio_contribution": "Strong"}, NOBODY_TRIED])
def test_what_an_older_file_lacks_is_unknown(row) -> None:
    assert contribution_word(row) == UNKNOWN
    assert known_contribution(row) == NOBODY_TRIED
    assert known_contribution(row, LABELLED) == LABELLED, "the next row knows"
    assert known_contribution(LABELLED, row) == LABELLED
    assert known_contribution() == NOBODY_TRIED


def test_the_columns_are_read_by_id_where_they_are_there() -> None:
    from datasets import Dataset

    rows = [{"id": "a", **LABELLED}, {"id": "b", **NOBODY_TRIED}]
    dataset = Dataset.from_list(rows)
    assert contributions_of(dataset) == {"a": LABELLED, "b": NOBODY_TRIED}
    assert known_contribution(contributions_of(dataset.remove_columns(["blind_tries"]))["a"]) == LABELLED | {
        "blind_tries": None
    }
    assert contributions_of(dataset.remove_columns(["audio_contribution"])) == {}


def test_a_dataset_may_lack_the_columns_and_may_not_have_others_of_their_name() -> None:
    from datasets import Value

    for kind, features in ((CLIPS, schema.avqa_audio_features()), (TRACES, schema.traces_features())):
        check_kind(features, "it", kind)
        older = type(features)({name: each for name, each in features.items() if name not in schema.CONTRIBUTION_COLUMNS})
        check_kind(older, "it", kind)
        other = type(features)({**features, "audio_contribution": Value("bool")})
        with pytest.raises(InputError, match=r"^it does not hold .*: its column audio_contribution is of another type"):
            check_kind(other, "it", kind)


def test_segments_are_told_from_questions() -> None:
    check_kind(schema.segments_features(), "it", SEGMENTS)
    with pytest.raises(InputError, match=r"does not hold clips with questions .* lacks the columns question, choices"):
        check_kind(schema.segments_features(), "it", CLIPS)
    with pytest.raises(InputError, match=r"does not hold segments of videos: it lacks .* give the output folder of .*videos"):
        check_kind(schema.traces_features(), "it", SEGMENTS)


def test_rows_without_the_columns_are_written_as_unknown(questions, tmp_path) -> None:
    rows = [{name: value for name, value in questions[0].items() if name not in schema.CONTRIBUTION_COLUMNS}]
    parquet.write_parquet(rows, schema.avqa_audio_features(), tmp_path / "x.parquet")
    [written] = parquet.read_parquet([tmp_path / "x.parquet"])
    assert {name: written[name] for name in NOBODY_TRIED} == NOBODY_TRIED
