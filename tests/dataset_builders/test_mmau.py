"""MMAU test-mini: the pinned file, its texts unchanged; another file is refused unless it is allowed."""

import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from sightsound.benchmarks import mmau
from sightsound.cli import InputError
from sightsound.data import parquet, schema
from sightsound.data.annotations import RowError
from tests.support.card_rules import validate
from tests.support.mmau import annotation
from tests.support.tiny import REPO, read_ledger, run_script


SCRIPT = "dataset_builders/mmau.py"


@pytest.fixture(scope="module")
def pinned(real_data) -> Path:
    return real_data / "annotations" / "mmau" / "mmau-test-mini.json"


@pytest.fixture(scope="module")
def before(real_data) -> Path:
    return real_data / "annotations" / "mmau" / "mmau-test-mini.pre-v05.15.25.json"


def test_every_official_row_keeps_its_texts(pinned):
    official = json.loads(pinned.read_bytes())
    rows = [mmau.to_row(each) for each in official]
    assert len({row["id"] for row in rows}) == len(rows) == mmau.PINNED.questions == 1000
    assert Counter(row["task"] for row in rows) == {"sound": 333, "music": 334, "speech": 333}
    assert Counter(row["difficulty"] for row in rows) == {"easy": 224, "medium": 540, "hard": 236}
    assert Counter(row["category"] for row in rows) == {"Reasoning": 677, "Information Extraction": 323}
    assert len({row["sub_category"] for row in rows}) == 27
    repeated = 0
    for source, row in zip(official, rows, strict=True):
        assert row["question"] == row["video_question"] == source["question"]
        assert row["choices"] == source["choices"]
        assert row["answer_text"] == source["answer"] == row["choices"][row["answer"]]
        assert source["answer"] not in row["choices"][: row["answer"]], "the first equal choice"
        assert row["video_id"] == Path(source["audio_id"]).stem == row["id"]
        repeated += len(set(row["choices"])) < len(row["choices"])
    assert repeated == 27


def test_the_pinned_file_is_recognised_under_any_name(pinned):
    message = mmau.PINNED.check(str(pinned), None, allow_unpinned=False)
    assert message == f"the pinned file: {mmau.PINNED.source}, unchanged"
    assert mmau.digest_of(json.loads(pinned.read_bytes())) == (mmau.PINNED_CONTENT, mmau.PINNED_IDS)
    assert hashlib.sha256(pinned.read_bytes()).hexdigest() == mmau.PINNED.sha256


def change_one(rows: list) -> list:
    return [{**rows[0], "answer": "Woman"}, *rows[1:]]


def replace_one(rows: list) -> list:
    return [{**rows[0], "id": "other"}, *rows[1:]]


DIFFERENCES = {
    "formatted": (lambda rows: rows[::-1], "the same rows, but not the same bytes"),
    "one answer changed": (change_one, "the same 1000 ids, but other questions, choices, answers or labels"),
    "one id replaced": (replace_one, "some of its ids are others"),
    "cut": (lambda rows: rows[:999], "999 rows instead of 1000"),
    "an object": (lambda rows: {"rows": rows}, "no list of rows but a dict"),
    "rows are text": (lambda rows: ["\ud800"], "1 rows instead of 1000"),
}


@pytest.mark.parametrize("case", DIFFERENCES)
def test_another_file_is_refused_with_its_difference(case, pinned, tmp_path):
    change, message = DIFFERENCES[case]
    file = tmp_path / "mmau-test-mini.json"
    changed = change(json.loads(pinned.read_bytes()))
    file.write_text(json.dumps(changed))
    with pytest.raises(InputError, match=message):
        mmau.PINNED.check(str(file), changed, allow_unpinned=False)
    assert message in mmau.PINNED.check(str(file), changed, allow_unpinned=True)


def test_the_file_before_v05_15_25_is_refused_in_one_line_and_built_when_allowed(before, tmp_path, write_clip):
    rows = json.loads(before.read_bytes())
    write_clip(tmp_path / "clips" / Path(rows[1]["audio_id"]).name, fps=0)
    flags = {"annotations": before, "media_dir": tmp_path / "clips", "output_dir": tmp_path / "out", "num_proc": 1}
    done = run_script(SCRIPT, **flags)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "this is the file before v05.15.25 (commit 1f675a9)" in done.stderr
    assert f"sha256 {mmau.PINNED.sha256[:12]}... expected, e8cc09223b49... found" in done.stderr
    assert not (tmp_path / "out").exists()

    given = [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
    command = [sys.executable, str(REPO / SCRIPT), *given, "--limit", "30", "--allow_unpinned"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Counter(entry["outcome"] for entry in read_ledger(tmp_path / "out")) == {"built": 1, "missing_media": 29}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "NOT the pinned file" in card and "figures are not comparable" in card
    assert validate(card, "dataset") == ([], [])


def test_the_pinned_file_is_built_from_untrusted_names(pinned, tmp_path, write_clip):
    first, second = json.loads(pinned.read_bytes())[:2]
    clips = tmp_path / "clips"
    write_clip(clips / "test-mini-audios" / f"{first['id']}.wav", [(440.0, 22_050, 1)], fps=0)
    (clips / f"{second['id']}.wav").write_bytes(b"RIFF")
    out = tmp_path / "out"
    done = run_script(SCRIPT, annotations=pinned, media_dir=clips, output_dir=out, num_proc=1, limit=4)
    assert done.returncode == 0, done.stderr
    assert [entry["outcome"] for entry in read_ledger(out)] == ["built", "corrupt_media", "missing_media", "missing_media"]
    row = parquet.open_dataset(str(out), "test")[0]
    assert list(row) == list(mmau.features())
    assert list(row)[:17] == list(schema.avqa_audio_features())
    shown = {name: row[name] for name in ("id", "choices", "answer", "answer_text", "question_type", "task", "source_dataset")}
    assert shown == {
        "id": first["id"],
        "choices": ["Man", "Woman", "Child", "Robot"],
        "answer": 0,
        "answer_text": "Man",
        "question_type": "sound",
        "task": "sound",
        "source_dataset": "AudioSet",
    }
    card = (out / "README.md").read_text()
    assert f"the pinned file: {mmau.PINNED.source}, unchanged" in card
    assert mmau.PINNED.sha256 in card


OUTCOMES = {
    "answer is no choice": ({"answer": "Child"}, "answer_not_a_choice"),
    "answer is null": ({"answer": None}, "answer_not_a_choice"),
    "one choice": ({"choices": ["Man"]}, "wrong_choice_count"),
    "more choices than letters": ({"choices": [str(i) for i in range(27)], "answer": "1"}, "wrong_choice_count"),
    "a choice is null": ({"choices": ["Man", None]}, "bad_annotation"),
    "a folder": ({"audio_id": "./test-mini-audios/"}, "bad_annotation"),
    "the folder above": ({"audio_id": "../.."}, "bad_annotation"),
    "no task": ({"task": None}, "bad_annotation"),
    "a blank question": ({"question": " "}, "bad_annotation"),
}


@pytest.mark.parametrize("case", OUTCOMES)
def test_an_annotation_that_cannot_be_used_is_an_outcome(case):
    changed, outcome = OUTCOMES[case]
    with pytest.raises(RowError) as raised:
        mmau.to_row(annotation("a", **changed))
    assert raised.value.outcome == outcome


@pytest.mark.parametrize("path", ["/etc/passwd.wav", "../../../etc/passwd.wav", "..\\passwd.wav", "passwd.wav"])
def test_of_an_audio_path_only_the_file_name_counts(path):
    assert mmau.to_row(annotation("a", audio_id=path))["video_id"] == "passwd"


def test_equal_choices_and_a_category_in_a_list():
    row = mmau.to_row(annotation("a", answer="Man"))
    assert (row["answer"], row["category"], row["question_relation"]) == (0, "Reasoning", "Reasoning")
    assert row["question"] == "What is in the video?", "the official text: R1-AQA's rule is about AVQA"
