"""MMAR is run, scored and reported by both protocols; what its script skips is told and counted."""

import json
from pathlib import Path

import pytest

from evaluation import judge, report, score
from sightsound.data.annotations import read_annotations as read_file
from tests.support.evaluation import always, read, run
from tests.support.mmar import annotation, write_clips
from tests.support.openai_server import OpenAIServer
from tests.support.tiny import run_script


NUM_SKIPPED, NUM_EMPTY, NUM_WRONG = 20, 10, 30


@pytest.fixture(scope="module")
def annotations(real_data) -> Path:
    return real_data / "annotations" / "mmar" / "MMAR-meta.jsonl"


@pytest.fixture(scope="module")
def submission(annotations, tmp_path_factory) -> Path:
    """What MMAR's script takes: each annotation with the prediction, right except for the first ones."""
    rows = read_file(str(annotations), "")
    for i, row in enumerate(rows):
        row["thinking_prediction"] = "I hear it."
        if i >= NUM_SKIPPED:
            wrong = "nothing of the kind" if i < NUM_SKIPPED + NUM_EMPTY + NUM_WRONG else row["answer"]
            row["answer_prediction"] = "" if i < NUM_SKIPPED + NUM_EMPTY else wrong
    file = tmp_path_factory.mktemp("submission") / "predictions.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


def test_the_script_s_total_stands_beside_the_one_over_all_questions(annotations, submission, capsys) -> None:
    flags = ["--benchmark", "mmar", "--annotations", str(annotations), "--predictions", str(submission)]
    score.main([*flags, "--json"])
    scored = json.loads(capsys.readouterr().out)
    assert (scored["missing"], scored["read_from"], scored["benchmark_pinned"]) == ({"none": 20}, "answer_prediction", True)
    official = scored["protocols"]["official"]["results"]["none"]
    assert (official["n"], official["accuracy"], official["unanswered"]) == (1000, 94.0, 3.0)
    over = official["over_predicted"]
    assert (over["n"], over["skipped"], over["accuracy"]) == (980, 20, pytest.approx(100 * 940 / 980))
    assert over["low"] < over["accuracy"] < over["high"]
    assert official["over_answered"]["n"] == 970, "an empty prediction is no answer, but it is a prediction"
    assert "over_predicted" not in scored["protocols"]["paper"]["results"]["none"]
    assert {name: len(official[name]) for name in ("by_modality", "by_category", "by_sub_category")} == {
        "by_modality": 7,
        "by_category": 4,
        "by_sub_category": 16,
    }

    score.main(flags)
    text = capsys.readouterr().out
    skipped = "official rule: 20 of 1,000 questions have no prediction; its script skips them and gives 95.9 [94.5, 97.0]"
    assert f"{skipped} over 980;" in text
    assert "counted as wrong, as here, it is 94.0 [92.4, 95.3]" in text
    assert "| average, as the official script counts | – | 95.9 [94.5, 97.0] (n=980, 20 skipped) | – |" in text
    assert "| modality: mix-sound-music | 11 |" in text and "| category: Signal Layer | 43 |" in text


def test_nothing_is_told_where_nothing_is_skipped(annotations, submission, tmp_path, capsys) -> None:
    rows = [json.loads(line) | {"answer_prediction": ""} for line in submission.read_text().splitlines()]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    score.main(["--benchmark", "mmar", "--annotations", str(annotations), "--predictions", str(tmp_path / "p.json")])
    text = capsys.readouterr().out
    assert "skips" not in text and "(n=1000, 0 skipped)" in text


def test_choices_copied_from_the_official_file_may_end_in_an_empty_one(annotations, tmp_path, capsys) -> None:
    short = [row for row in read_file(str(annotations), "") if "" in row["choices"]]
    rows = [{"id": row["id"], "choices": row["choices"], "answer_prediction": row["answer"]} for row in short]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    flags = ["--annotations", str(annotations), "--predictions", str(tmp_path / "p.json"), "--json"]
    score.main(["--benchmark", "mmar", *flags])
    assert json.loads(capsys.readouterr().out)["missing"] == {"none": 996}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mmar")
    rows = [annotation(f"v{i}_00-00-0{i}_00-00-10", modality=["speech", "music"][i % 2]) for i in range(4)]
    rows[3]["question"] = "What is never heard?"
    (folder / "mmar.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    clips = write_clips((Path(row["audio_path"]).name for row in rows), folder / "clips")
    flags = {"annotations": folder / "mmar.jsonl", "media_dir": clips, "output_dir": folder / "out", "num_proc": 1}
    done = run_script("dataset_builders/mmar.py", **flags, allow_unpinned=True)
    assert done.returncode == 0, done.stderr
    return folder / "out"


def test_a_run_is_reported_by_modality_and_with_what_the_script_would_skip(dataset, tmp_path) -> None:
    def refuse_one(text: str) -> int | None:
        return 400 if text.startswith("What is never heard?") else None

    with OpenAIServer(always("<think>A voice.</think><answer>Man</answer>"), fault_of=refuse_one) as server:
        flags = {"benchmark": "mmar", "dataset": dataset, "model": "tiny", "base_url": server.base_url, "arm": "a"}
        run(**flags, output_dir=tmp_path / "run")
    assert len(server.asked) == 3
    assert not any(secret in ask.text for ask in server.asked for secret in ("A man speaks.", "Award", "voice"))
    results, _ = read(tmp_path / "run")
    assert results["outcomes"]["none"] == {"answered": 3, "refused": 1}
    assert results["official"]["none"]["accuracy"] == results["results"]["none"]["accuracy"] == 75.0
    report.main(["--runs", str(tmp_path / "run"), "--output_dir", str(tmp_path / "report")])
    text = (tmp_path / "report" / "report.md").read_text()
    assert all(f"### By {name}" in text for name in ("modality", "category", "sub-category"))
    assert "a (seed 0), official rule: 1 of 4 questions have no prediction; its script skips them and gives 100.0" in text


def test_the_reasoning_of_a_run_is_judged_by_the_rubrics_of_its_dataset(dataset, tmp_path) -> None:
    outputs = {
        "v0": "<think>Low voice.</think><answer>Man</answer>",
        "v1": "Man",
        "v2": "<think>High.</think><answer>Woman</answer>",
    }

    def grade(ask) -> list[str]:
        seen = next(i for i, said in enumerate(("Low voice.", "==\nMan\n==")) if said in ask.text)
        return [json.dumps([{"score": 1}] * (4 - seen) + [{"score": 0}] * (1 + seen))]

    replies = iter([*outputs.values(), ""])
    with OpenAIServer(lambda ask: [next(replies)]) as server:
        flags = {"benchmark": "mmar", "dataset": dataset, "model": "tiny", "base_url": server.base_url, "concurrency": 1}
        run(**flags, output_dir=tmp_path / "run")
    with OpenAIServer(grade) as server:
        given = ["--run", tmp_path / "run", "--dataset", dataset, "--judge", "grader", "--base_url", server.base_url]
        judge.main([*map(str, given), "--output_dir", str(tmp_path / "judgements")])
    assert len(server.asked) == 10 and all("Award 1 point for point 4." in ask.text for ask in server.asked)
    figures = json.loads((tmp_path / "judgements" / "judgements.json").read_text())
    assert figures["outcomes"] == {"judged": 2, "wrong": 2}
    assert (figures["official"]["score"], figures["official"]["accuracy"]) == (pytest.approx(35.0), 50.0)
