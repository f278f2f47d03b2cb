"""`evaluation judge`: a scripted judge that fails, replies nonsense or is killed; no score lost, none asked for twice."""

import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from evaluation import judge
from sightsound.cli import InputError
from sightsound.method.rubrics import middle_mean
from sightsound.stage import read_journal
from tests.support.evaluation import always
from tests.support.house_server import HouseServer, chat
from tests.support.mmar import annotation
from tests.support.openai_server import DROP, OpenAIServer
from tests.support.tiny import REPO


def reply(*points: object) -> str:
    return json.dumps([{"name": f"point {i}", "score": score, "reason": "Because."} for i, score in enumerate(points)])


def drawn_points(seed: int) -> list[int]:
    return [random.Random(f"{seed}/{i}").randint(0, 1) for i in range(5)]


def write_submission(folder: Path, rows: list[dict], name: str = "predictions.jsonl") -> dict[str, Path]:
    """Annotations and a submission in MMAR's own form."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mmar.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return {"annotations": folder / "mmar.jsonl", "run": folder / name}


def answered(row_id: str, answer: str | None = "Man", **fields) -> dict:
    given = {} if answer is None else {"answer_prediction": answer}
    return annotation(row_id, thinking_prediction=f"{row_id}: a low voice.", **given, **fields)


def run_judge(**flags) -> None:
    parts = [part for name, value in flags.items() for part in (f"--{name}", *([] if value is True else [str(value)]))]
    judge.main([*parts, "--judge", "grader", "--allow_unpinned"])


def results_in(folder: Path) -> tuple[dict, dict[str, dict]]:
    rows = pq.read_table(folder / "data" / "judgements-mmar.parquet").to_pylist()
    return json.loads((folder / "judgements.json").read_text()), {row["id"]: row for row in rows}


def test_wrong_answers_score_zero_without_a_request_and_the_others_the_middle_of_five(tmp_path, capsys):
    rows = [
        answered("right"),
        answered("letter", "(A)", modality="music"),
        answered("wrong", "Woman", modality="music"),
        answered("missing", None),
        answered("bare", rubric=[]),
    ]
    scores = {"right": iter([5, 4, 0, 3, 5]), "letter": iter([2] * 5)}

    def grade(ask) -> list[str]:
        name = next(name for name in scores if f"{name}: a low voice." in ask.text)
        num = next(scores[name])
        return [reply(*[1] * num, *[0] * (5 - num))]

    with OpenAIServer(grade) as server:
        run_judge(**write_submission(tmp_path, rows), base_url=server.base_url, output_dir=tmp_path / "out", concurrency=1)
    assert len(server.asked) == 10 and len({ask.seed for ask in server.asked}) == 10
    assert {ask.temperature for ask in server.asked} == {0.0}
    assert all("The model's answer: Man" in ask.text for ask in server.asked), "the choice's text in place of its letter"
    figures, judged = results_in(tmp_path / "out")
    outcomes = {"right": "judged", "letter": "judged", "wrong": "wrong", "missing": "no_prediction", "bare": "no_rubric"}
    assert {row_id: row["outcome"] for row_id, row in judged.items()} == outcomes
    assert judged["right"]["run_scores"] == [1.0, 0.8, 0.0, 0.6, 1.0]
    assert judged["right"]["score"] == pytest.approx(0.8) and judged["letter"]["score"] == pytest.approx(0.4)
    assert (judged["letter"]["correct_official"], judged["letter"]["correct_paper"]) == (False, True)
    assert figures["figure"] == "mmar_rubrics, judge grader, prompt 1" and figures["questions"] == 5
    official, paper = figures["official"], figures["paper"]
    assert (official["n"], official["unjudged"], paper["n"]) == (4, 1, 4), "an answer without a rubric has no score"
    assert (official["score"], paper["score"]) == (pytest.approx(20.0), pytest.approx(30.0))
    assert (official["accuracy"], paper["accuracy"]) == (25.0, 50.0)
    assert (official["of_right"], paper["of_right"]) == (pytest.approx(80.0), pytest.approx(60.0))
    assert paper["by_modality"]["music"]["score"] == pytest.approx(20.0)
    text = capsys.readouterr().out
    assert "mmar_rubrics, judge grader, prompt 1: 5 questions: 2 judged, 1 no_prediction, 1 no_rubric, 1 wrong" in text
    assert "left out of the official score, for lack of five scores or of a rubric: 1 right answers" in text
    assert "| modality: music | 2 | 0.0 " in text


def test_a_reply_that_is_no_list_of_points_is_requested_again_and_then_counted(tmp_path):
    rows = [answered("good"), answered("later"), answered("never")]

    def grade(ask) -> list[str]:
        if "never: a low voice." in ask.text or ("later: a low voice." in ask.text and ask.temperature == 0):
            return ["I would say 4 of 5."]
        return [reply(1, 1, 1, 1, 0)]

    with OpenAIServer(grade) as server:
        flags = write_submission(tmp_path, rows)
        run_judge(**flags, base_url=server.base_url, output_dir=tmp_path / "out", num_retries=1)
    assert Counter(ask.temperature for ask in server.asked) == {0.0: 15, 1.0: 10}
    figures, judged = results_in(tmp_path / "out")
    assert {row_id: row["outcome"] for row_id, row in judged.items()} == {
        "good": "judged",
        "later": "judged",
        "never": "unreadable",
    }
    assert judged["never"]["score"] is None and judged["never"]["replies"] == ["I would say 4 of 5."] * 5
    assert (figures["official"]["n"], figures["official"]["unjudged"]) == (2, 1)
    assert figures["official"]["score"] == pytest.approx(80.0)


def test_the_outcome_is_that_of_a_run_without_a_score(tmp_path):
    """The first run of the judge is refused; the second is unreadable at first, and then has a score."""
    replies = iter([(400, {"error": {"message": "the prompt is against the policy"}}), chat("I would say 4 of 5.")])

    with HouseServer(lambda _: next(replies, chat(reply(1, 1, 1, 1, 0)))) as server:
        flags = write_submission(tmp_path, [answered("v")])
        run_judge(**flags, base_url=server.base_url, output_dir=tmp_path / "out", concurrency=1)
        assert len(server.bodies) == 6
    _, judged = results_in(tmp_path / "out")
    assert (judged["v"]["outcome"], judged["v"]["run_scores"], judged["v"]["score"]) == ("refused", [0.8] * 4, None)


NUM_ROWS = 60


@pytest.mark.parametrize("num_rows", [NUM_ROWS, pytest.param(1000, marks=pytest.mark.storm)])
def test_of_a_judge_that_fails_one_time_in_five_no_score_is_lost_or_asked_for_twice(tmp_path, num_rows):
    draw = random.Random(0)
    faults = [draw.choice([429, 500, 503, DROP, 502]) if draw.random() < 0.2 else None for _ in range(20 * num_rows)]
    with OpenAIServer(lambda ask: [reply(*drawn_points(ask.seed))], faults=faults) as server:
        flags = write_submission(tmp_path, [answered(f"v{i}") for i in range(num_rows)])
        run_judge(**flags, base_url=server.base_url, output_dir=tmp_path / "out")
    met = Counter(status for status in server.statuses)
    assert 0.15 < 1 - met[200] / met.total() < 0.25
    assert len(server.asked) == len({ask.seed for ask in server.asked}) == 5 * num_rows, "each is answered exactly once"
    figures, judged = results_in(tmp_path / "out")
    assert figures["outcomes"] == {"judged": num_rows}
    given = Counter(tuple(drawn_points(ask.seed)) for ask in server.asked)
    kept = Counter(tuple(each["score"] for each in json.loads(text)) for row in judged.values() for text in row["replies"])
    assert kept == given, "every score that the judge gave is in the rows"
    for row in judged.values():
        assert row["score"] == middle_mean([sum(each["score"] for each in json.loads(text)) / 5 for text in row["replies"]])


def test_a_run_that_stops_in_the_middle_continues_without_paying_twice(tmp_path):
    flags = write_submission(tmp_path, [answered(f"v{i}") for i in range(8)]) | {"output_dir": tmp_path / "out"}

    class Stopped(BaseException):
        pass

    append, count = judge.Journal.append, iter(range(1000))

    def stop_after_some(self, items) -> None:
        append(self, items)
        if next(count) == 12:
            raise Stopped

    with OpenAIServer(lambda ask: [reply(*drawn_points(ask.seed))]) as server:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(judge.Journal, "append", stop_after_some)
            with pytest.raises(Stopped):
                run_judge(**flags, base_url=server.base_url, concurrency=1)
        journaled = {key for key, _, _ in read_journal(tmp_path / "out" / "journal.jsonl")}
        assert 10 <= len(journaled) < 40
        before = len(server.asked)
        run_judge(**flags, base_url=server.base_url, concurrency=1)
        assert len(server.asked) - before == 40 - len(journaled)
        run_judge(**flags, base_url=server.base_url)
        assert len(server.asked) - before == 40 - len(journaled), "a complete folder asks nothing"
    with OpenAIServer(lambda ask: [reply(*drawn_points(ask.seed))]) as other:
        run_judge(**flags | {"output_dir": tmp_path / "whole"}, base_url=other.base_url)
    assert results_in(tmp_path / "out") == results_in(tmp_path / "whole")


@pytest.mark.slow  # starts the command three times
def test_after_kills_each_score_is_there_once_and_only_what_was_in_flight_is_paid_twice(tmp_path):
    flags = write_submission(tmp_path, [answered(f"v{i}") for i in range(40)]) | {"judge": "grader", "concurrency": 4}

    def grade(ask) -> list[str]:
        time.sleep(0.02)
        return [reply(*drawn_points(ask.seed))]

    def start(base_url: str) -> subprocess.Popen:
        given = flags | {"base_url": base_url, "output_dir": tmp_path / "out"}
        parts = [part for name, value in given.items() for part in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "evaluation", "judge", *parts, "--allow_unpinned"]
        return subprocess.Popen(command, cwd=REPO, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    with OpenAIServer(grade) as server:
        for kill_at in (30, 110):
            process = start(server.base_url)
            while len(server.asked) < kill_at and process.poll() is None:
                time.sleep(0.005)
            process.kill()
            process.wait()
            assert not (tmp_path / "out" / "judgements.json").exists(), "the kill came too late to interrupt anything"
        assert start(server.base_url).wait() == 0
    seeds = Counter(ask.seed for ask in server.asked)
    assert len(seeds) == 200 and seeds.total() - 200 <= 2 * 4, "at most what was in flight is asked again"
    figures, judged = results_in(tmp_path / "out")
    assert figures["outcomes"] == {"judged": 40}
    kept = Counter(text for row in judged.values() for text in row["replies"])
    assert kept == Counter(reply(*drawn_points(seed)) for seed in seeds)


def test_the_cost_is_told_before_anything_is_sent(tmp_path, capsys):
    rows = [answered("right"), answered("other"), answered("wrong", "Woman")]
    with OpenAIServer(always(reply(1, 1, 1, 1, 1))) as server:
        flags = write_submission(tmp_path, rows) | {"base_url": server.base_url, "output_dir": tmp_path / "out"}
        run_judge(**flags, dry_run=True)
        assert server.asked == [] and not (tmp_path / "out").exists()
    text = capsys.readouterr().out
    assert "grader: 10 requests, 0 of them journaled" in text
    assert "2 of 3 questions are answered right and have a rubric: 5 requests each." in text


def test_another_judge_or_prompt_is_another_figure_and_needs_another_folder(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("{question} {answer} {reference} {reasoning} {predicted} {criteria}\n")
    flags = write_submission(tmp_path, [answered("a")]) | {"output_dir": tmp_path / "out"}
    with OpenAIServer(always(reply(1, 1, 1, 1, 1))) as server:
        run_judge(**flags, base_url=server.base_url)
        with pytest.raises(InputError, match="was started with other settings"):
            run_judge(**flags, base_url=server.base_url, prompt_file=tmp_path / "mine.txt")
        other = flags | {"output_dir": tmp_path / "other", "prompt_file": tmp_path / "mine.txt"}
        run_judge(**other, base_url=server.base_url)
    assert "mmar_rubrics, judge grader, prompt mine@" in results_in(tmp_path / "other")[0]["figure"]


def test_what_cannot_be_judged_is_one_line(tmp_path):
    flags = write_submission(tmp_path, [answered("a", rubric=[])]) | {"base_url": "http://x/v1", "output_dir": tmp_path / "out"}
    with pytest.raises(InputError, match=r"^the questions have no rubrics; give MMAR's MMAR-meta\.jsonl as it is pinned"):
        run_judge(**flags)
    with pytest.raises(InputError, match=r"^--benchmark mmau has no rubrics; expected mmar$"):
        run_judge(**flags, benchmark="mmau")
    assert not (tmp_path / "out").exists()
