"""MUSIC-AVQA as multiple choice: official texts unchanged, choices by a rule, every annotation in the ledger."""

import json
import re
import shutil
from collections import Counter
from itertools import zip_longest
from types import SimpleNamespace

import pytest

from evaluation.benchmarks import load_benchmark
from evaluation.running.requests import QuestionFormat, RequestBuilder
from sightsound.benchmarks import music_avqa
from sightsound.data import schema
from sightsound.data.annotations import RowError
from tests.support.card_rules import validate
from tests.support.music_avqa import annotation
from tests.support.tiny import read_ledger, run_script


@pytest.fixture(scope="module")
def official(real_data) -> list[dict]:
    return json.loads((real_data / "annotations" / "music_avqa" / "avqa-test.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def rows(official) -> list[dict]:
    return [music_avqa.to_row(each) for each in official]


def test_the_official_test_set_is_whole(rows):
    assert len(rows) == len({row["id"] for row in rows}) == 9129
    assert Counter(row["question_type"] for row in rows) == {
        "Counting": 3479,
        "Location": 2145,
        "Comparative": 1695,
        "Existential": 988,
        "Temporal": 822,
    }
    assert Counter(row["modality"] for row in rows) == {"Audio-Visual": 5096, "Visual": 2422, "Audio": 1611}
    paper = [row for row in rows if row["in_paper"]]
    assert len(paper) == 6984
    assert "Location" not in {row["question_type"] for row in paper}
    assert {row["modality"] for row in paper} == {"Audio-Visual", "Visual", "Audio"}


def test_texts_are_the_official_ones_with_placeholders_filled_in_order(official, rows):
    all_at_once_is_wrong = 0
    for source, row in zip(official, rows, strict=True):
        template, values = source["question_content"], json.loads(source["templ_values"])
        between, holes = re.split("<[^>]*>", template), re.findall("<[^>]*>", template)
        filled = "".join(text + value for text, value in zip_longest(between, values, fillvalue=""))
        assert (row["template"], row["video_question"]) == (template, filled)
        assert row["question"] == filled.replace("video", "audio")
        assert (row["answer_text"], row["choices"][row["answer"]]) == (source["anser"], source["anser"])
        naive = template
        for hole, value in zip(holes, values, strict=True):
            naive = naive.replace(hole, value)
        all_at_once_is_wrong += naive != filled
    assert all_at_once_is_wrong == 2258
    assert sum(row["question"].endswith("？") for row in rows) == 427
    assert "Is the violin on the left louder than the cello on the right?" in {row["question"] for row in rows}


def test_choices_depend_on_the_kind_of_question_alone(rows):
    by_template: dict[str, set] = {}
    for row in rows:
        by_template.setdefault(row["template"], set()).add(tuple(row["choices"]))
    assert len(by_template) == 33
    assert {len(found) for found in by_template.values()} == {1}
    kinds = Counter(row["choices"][0] for row in rows)
    assert kinds == {"yes": 4140, "zero": 2284, "accordion": 1789, "left": 593, "indoor": 323}
    assert all(row["choices"] == ["yes", "no"] for row in rows if row["answer_text"] in ("yes", "no"))


def test_the_choices_are_the_official_vocabulary():
    answers = {choice for _, choices in music_avqa.CHOICES for choice in choices}
    assert len(answers) == 42
    assert {"acoustic_guitar", "more than ten", "ten", "simultaneously"} <= answers


BAD = {
    "not an object": (["a"], "bad_annotation"),
    "no answer": ({k: v for k, v in annotation(1).items() if k != "anser"}, "bad_annotation"),
    "one value for two placeholders": (annotation(1, templ_values='["violin"]'), "bad_annotation"),
    "values are no JSON": (annotation(1, templ_values="violin"), "bad_annotation"),
    "values are nested without end": (annotation(1, templ_values="[" * 100_000), "bad_annotation"),
    "values are null": (annotation(1, templ_values=None), "bad_annotation"),
    "type has one part": (annotation(1, type='["Temporal"]'), "bad_annotation"),
    "another kind of question": (annotation(1, question_content="Who plays?", templ_values="[]"), "bad_annotation"),
    "an answer of another kind": (annotation(1, anser="yes"), "answer_not_a_choice"),
    "an answer that is a list": (annotation(1, anser=["left"]), "answer_not_a_choice"),
    "a path": (annotation(1, video_id="../../etc/passwd"), "bad_annotation"),
    "NUL": (annotation(1, video_id="00000093\0"), "bad_annotation"),
    "no id": (annotation(None), "bad_annotation"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_annotation_that_cannot_be_used_is_an_outcome(case):
    bad, outcome = BAD[case]
    with pytest.raises(RowError) as raised:
        music_avqa.to_row(bad)
    assert raised.value.outcome == outcome


def test_the_benchmark_is_built_and_evaluation_reads_it(tmp_path, write_clip):
    write_clip(tmp_path / "clips" / "deep" / "00000093.mp4")
    write_clip(tmp_path / "clips" / "va00003871.wav", duration_s=0.5, fps=0)
    both = {"question_content": "Is the <Object> louder than the <Object>？", "templ_values": '["erhu", "video"]'}
    annotations = [
        annotation(7),
        annotation(8, "va00003871", type='["Audio", "Comparative"]', anser="no", **both),
        annotation(9, "va00000000"),
        annotation(10, templ_values="[]"),
        annotation(11, type=json.dumps(["\ud800", "Temporal"])),
        annotation(7),
        annotation(
            12, type='["Visual", "Location"]', question_content="Where is the performance?", templ_values="[]", anser="indoor"
        ),
    ]
    file, out = tmp_path / "avqa-test.json", tmp_path / "out"
    file.write_text(json.dumps(annotations))
    flags = {"annotations": file, "media_dir": tmp_path / "clips", "output_dir": out, "num_proc": 1}
    done = run_script("dataset_builders/music_avqa.py", **flags)
    assert done.returncode == 0, done.stderr
    message = f"warning: {file} is NOT data/json_update/avqa-test.json of GeWu-Lab/MUSIC-AVQA at commit cc88095; "
    assert message in done.stderr and "not comparable" in done.stderr
    outcomes = ["built", "built", "missing_media", "bad_annotation", "bad_annotation", "duplicate_id", "built"]
    assert [entry["outcome"] for entry in read_ledger(out)] == outcomes
    shutil.rmtree(out / "ledger")  # what a user downloads

    dataset, _ = load_benchmark("music_avqa", str(out), None, None)
    assert list(dataset.features) == list(music_avqa.features())
    assert list(music_avqa.features())[:17] == list(schema.avqa_audio_features())
    row = dataset.remove_columns(["audio", "duration_s", "media_sha256"])[1]
    assert row == {
        "id": "8",
        "video_id": "va00003871",
        "start_s": 0.0,
        "question": "Is the erhu louder than the audio？",
        "video_question": "Is the erhu louder than the video？",
        "choices": ["yes", "no"],
        "answer": 1,
        "answer_text": "no",
        "question_relation": "Audio",
        "question_type": "Comparative",
        "audio_contribution": "unknown",
        "text_only_correct": None,
        "silent_correct": None,
        "blind_tries": None,
        "modality": "Audio",
        "template": both["question_content"],
        "in_paper": True,
    }
    assert dataset["in_paper"][:] == [True, True, False]
    engine = SimpleNamespace(window_s=30.0)
    ask = RequestBuilder(dataset, QuestionFormat(), engine)
    request = ask("1/none")
    assert request.text.startswith("Is the erhu louder than the audio？\nA. yes\nB. no\n")
    assert len(request.audio) == 0.5 * schema.SAMPLING_RATE, "the whole sound"
    card = (out / "README.md").read_text()
    assert "NOT the pinned file (data/json_update/avqa-test.json of GeWu-Lab/MUSIC-AVQA at commit cc88095)" in card
    assert validate(card, "dataset") == ([], [])
    assert "| `Which <Object> makes the sound ` | left, middle, right, simultaneously |" in card


def test_the_file_of_another_benchmark_is_what_is_wrong(tmp_path):
    file = tmp_path / "mmau.json"
    file.write_text(
        json.dumps([{"id": "1", "audio_id": "a.wav", "question": "Who?", "choices": ["A", "B"], "answer": "A"}] * 2)
    )
    flags = {"annotations": file, "media_dir": tmp_path, "output_dir": tmp_path / "out", "num_proc": 1}
    done = run_script("dataset_builders/music_avqa.py", **flags)
    reason = f"{file} is not in the format of MUSIC-AVQA's avqa-test.json"
    message = f"no row could be built from 2 annotations (2 bad_annotation): {reason}"
    assert done.returncode == 2 and message in done.stderr and "clips" not in done.stderr.splitlines()[-1]
