"""MMAR: all 1,000 rows of the pinned file with their metadata; another file is refused unless it is allowed."""

import json
from collections import Counter
from pathlib import Path

import pytest

from evaluation.benchmarks import load_benchmark, read_annotations
from sightsound.benchmarks import get_benchmark, mmar
from sightsound.cli import InputError
from sightsound.data import parquet, schema
from sightsound.data.annotations import RowError
from sightsound.data.annotations import read_annotations as read_file
from tests.support.card_rules import validate
from tests.support.mmar import annotation, criterion, write_clips
from tests.support.tiny import read_ledger, run_script


SCRIPT = "dataset_builders/mmar.py"
LAYERS = {"Semantic Layer": 412, "Perception Layer": 404, "Cultural Layer": 141, "Signal Layer": 43}
MODALITIES = {
    "speech": 294,
    "mix-sound-speech": 218,
    "music": 206,
    "sound": 165,
    "mix-music-speech": 82,
    "mix-sound-music-speech": 24,
    "mix-sound-music": 11,
}


@pytest.fixture(scope="module")
def pinned(real_data) -> Path:
    return real_data / "annotations" / "mmar" / "MMAR-meta.jsonl"


@pytest.fixture(scope="module")
def official(pinned) -> list[dict]:
    return read_file(str(pinned), "")


@pytest.fixture(scope="module")
def built(pinned, official, tmp_path_factory) -> Path:
    """The whole benchmark, with a short sound as every clip."""
    folder = tmp_path_factory.mktemp("mmar")
    clips = write_clips((Path(each["audio_path"]).name for each in official), folder / "clips" / "audio")
    done = run_script(SCRIPT, annotations=pinned, media_dir=clips.parent, output_dir=folder / "out", num_proc=1)
    assert done.returncode == 0, done.stderr
    return folder / "out"


def test_all_thousand_rows_are_built_with_their_texts_and_metadata(built, official):
    assert Counter(entry["outcome"] for entry in read_ledger(built)) == {"built": 1000}
    dataset = parquet.open_dataset(str(built), "test")
    assert list(dataset.features) == list(mmar.features())
    shared = list(schema.avqa_audio_features())
    assert list(dataset.features)[: len(shared)] == shared
    rows = dataset.remove_columns("audio").to_list()
    assert get_benchmark("mmar").pinned.asks(rows), "the digest of the pinned questions"
    num_shortened = 0
    for source, row in zip(official, rows, strict=True):
        assert row["question"] == row["video_question"] == source["question"]
        assert row["answer_text"] == source["answer"] == row["choices"][row["answer"]]
        kept = ("modality", "category", "source", "url", "timestamp", "thinking", "cue", "rubric")
        assert {name: row[name] for name in kept} == {name: source[name] for name in kept}
        assert (row["sub_category"], row["language"]) == (source["sub-category"], source["language"] or "")
        assert (row["question_type"], row["question_relation"]) == (row["modality"], row["category"])
        assert row["choices"] == [choice for choice in source["choices"] if choice]
        num_shortened += len(row["choices"]) < len(source["choices"])
    assert num_shortened == 4
    assert Counter(row["modality"] for row in rows) == MODALITIES
    assert Counter(row["category"] for row in rows) == LAYERS
    assert len({row["sub_category"] for row in rows}) == 16
    assert {row["audio_contribution"] for row in rows} == {"unknown"}
    assert len({row["video_id"] for row in rows}) == 911, "clips of one video are told to be of one"


def test_the_card_says_what_a_user_has_to_know(built):
    card = (built / "README.md").read_text()
    assert validate(card, "dataset") == ([], [])
    assert f"the pinned file: {mmar.PINNED.source}, unchanged" in card and mmar.PINNED.sha256 in card
    assert "REVEAL THE ANSWER" in card and "states no licence" in card
    assert "letters (A, B, ...)" not in card, "what is left out of four rows are no letters"


def test_the_dataset_and_the_annotation_file_hold_the_same_questions(built, pinned):
    rows, _ = load_benchmark("mmar", str(built), None, None)
    from_file, _ = read_annotations("mmar", str(pinned), allow_unpinned=False)
    ours = rows.remove_columns(["audio", "duration_s", "media_sha256"])
    shared = [name for name in ours.column_names if name in from_file[0]]
    assert len(shared) == 20
    assert ours.select_columns(shared).to_list() == [{name: row[name] for name in shared} for row in from_file]


@pytest.mark.parametrize(
    ("path", "video_id", "start_s"),
    [
        ("./audio/qx8hrhBZJ98_00-01-32_00-02-02.wav", "qx8hrhBZJ98", 92.0),
        ("./audio/-9aXVbeu4-Q_01-00-05_01-00-30.wav", "-9aXVbeu4-Q", 3605.0),
        ("./audio/__sJVNK0enM_00-00-00_00-00-19.wav", "__sJVNK0enM", 0.0),
        ("./audio/BV1wv4y1f7Mh_multi_segment.wav", "BV1wv4y1f7Mh", 0.0),
        ("./audio/BV1ibZSYJEAa_00-00-30_00-00-52_combined.wav", "BV1ibZSYJEAa", 30.0),
        ("/etc/passwd.wav", "passwd", 0.0),
        ("..\\passwd.wav", "passwd", 0.0),
    ],
)
def test_video_and_start_are_read_from_the_name_of_the_clip(path, video_id, start_s):
    row = mmar.to_row(annotation("a", audio_path=path))
    assert (row["video_id"], row["start_s"]) == (video_id, start_s)
    assert get_benchmark("mmar").clip_name(row) == path.replace("\\", "/").rpartition("/")[2].removesuffix(".wav")


OUTCOMES = {
    "answer is no choice": ({"answer": "Dog"}, "answer_not_a_choice"),
    "answer is the empty choice": ({"choices": ["Man", "Woman", ""], "answer": ""}, "answer_not_a_choice"),
    "one choice and an empty one": ({"choices": ["Man", ""]}, "wrong_choice_count"),
    "an empty choice before the last": ({"choices": ["", "Man"]}, "bad_annotation"),
    "choices are a text": ({"choices": "Man"}, "wrong_choice_count"),
    "the folder above": ({"audio_path": "../.."}, "bad_annotation"),
    "no modality": ({"modality": None}, "bad_annotation"),
    "cue is a text": ({"cue": "voice"}, "bad_annotation"),
    "a cue is a number": ({"cue": [3]}, "bad_annotation"),
    "rubric is an object": ({"rubric": {"name": "x"}}, "bad_annotation"),
    "a criterion without points": ({"rubric": [criterion("x", choices=[])]}, "bad_annotation"),
    "a criterion with no point to win": ({"rubric": [criterion("x", choices=[0])]}, "bad_annotation"),
    "a criterion without a name": ({"rubric": [criterion("x") | {"name": None}]}, "bad_annotation"),
}


@pytest.mark.parametrize("case", OUTCOMES)
def test_an_annotation_that_cannot_be_used_is_an_outcome(case):
    changed, outcome = OUTCOMES[case]
    with pytest.raises(RowError) as raised:
        mmar.to_row(annotation("a", **changed))
    assert raised.value.outcome == outcome


def test_annotations_of_the_file_before_the_rubrics_are_rows_without_them():
    old = {name: value for name, value in annotation("a").items() if name not in ("thinking", "cue", "rubric")}
    row = mmar.to_row(old | {"language": None})
    assert (row["thinking"], row["cue"], row["rubric"], row["language"]) == ("", [], [], "")


DIFFERENCES = {
    "cut": (lambda rows: rows[:999], "this has 999 rows instead of 1000"),
    "one answer changed": (lambda rows: [rows[0] | {"answer": rows[0]["choices"][0]}, *rows[1:]], "it has other bytes"),
}


@pytest.mark.parametrize("case", DIFFERENCES)
def test_another_file_is_refused_with_its_difference(case, official, tmp_path):
    change, message = DIFFERENCES[case]
    file = tmp_path / "MMAR-meta.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in change(official)))
    with pytest.raises(InputError, match=f"is not MMAR-meta.jsonl of ddlBoJack/MMAR at commit 3bce090: {message}"):
        get_benchmark("mmar").read(str(file), allow_unpinned=False)
    assert message in get_benchmark("mmar").read(str(file), allow_unpinned=True)[1]


def test_the_earlier_official_file_is_known_by_its_digest():
    [sha256] = mmar.KNOWN_FILES
    assert "MMAR-meta.json before MMAR-Rubrics" in mmar.difference([], sha256)
