"""Writing questions where models fail, processes are killed at chosen moments, and ranks share the work."""

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
from datasets import Features, Value

from sightsound.data import parquet, schema
from sightsound.hub.cards import write_dataset_card
from sightsound.method.question_filters import ANSWERABLE
from tests.support.house_server import HouseServer, chat, text_of
from tests.support.segments import question, reply, write_segments
from tests.support.tiny import kill_script_when, read_ledger, read_rows, run_script


SCRIPT = "dataset_builders/questions.py"


def number_of(text: str) -> int:
    """The same for the same text in every run."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def model(body: dict[str, Any]) -> Any:
    """A teacher, and a model that answers without the clip. What either says follows from the request alone."""
    text = text_of(body)
    if "JSON" in text:
        seed = body["seed"]
        return chat("no JSON" if seed % 5 == 0 else reply(question(seed), question(seed + 1, question="Which one ends it?")))
    return chat("ABCD"[number_of(text + str(body["seed"])) % 4])


def flags_of(segments: Path, base_url: str, output_dir: Path, **more: Any) -> dict[str, Any]:
    shared = {"dataset": segments, "media_dir": segments / "segments", "model": "scripted", "base_url": base_url}
    shared |= {"answerer": "ears", "answerer_base_url": base_url, "blind_tries": 2, "questions_per_segment": 2}
    return shared | {"num_frames": 2, "concurrency": 4, "output_dir": output_dir, **more}


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.glob("**/*.parquet")}


@pytest.mark.parametrize(
    "moments",
    [
        # After the first replies of the teacher, in the tries with the question alone, and in those with silence.
        pytest.param([7, 40, 90], id="in each part"),
        pytest.param([1, 25, 26, 27, 60, 61, 100, 140], id="often", marks=pytest.mark.slow),
    ],
)
def test_kills_in_each_part_leave_an_equal_dataset_and_ask_nothing_twice(tmp_path: Path, moments: list[int]) -> None:
    segments = write_segments(tmp_path / "segments", 24, per_video=4)
    with HouseServer(model) as server:
        whole = run_script(SCRIPT, **flags_of(segments, server.base_url, tmp_path / "whole"))
        assert whole.returncode == 0, whole.stderr
        asked_by_one_run = len(server.bodies)
        server.bodies.clear()
        flags = flags_of(segments, server.base_url, tmp_path / "killed")
        for moment in moments:
            assert kill_script_when(tmp_path / "killed" / "journal.jsonl", moment, SCRIPT, **flags) >= moment
        done = run_script(SCRIPT, **flags)
        assert done.returncode == 0, done.stderr
        assert len(server.bodies) <= asked_by_one_run + 4 * len(moments), "only what is in flight is asked again"
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "killed")
    assert not list((tmp_path / "killed").glob("*.part"))
    outcomes = {entry["outcome"] for entry in read_ledger(tmp_path / "whole")}
    assert {schema.BUILT, ANSWERABLE, "not_json"} <= outcomes, "the test has something to lose"


@pytest.mark.storm
def test_two_ranks_under_ray_give_the_dataset_of_one_run(tmp_path: Path) -> None:
    segments = write_segments(tmp_path / "segments", 24, per_video=4)
    with HouseServer(model) as server:
        for name, ranks in (("one", {}), ("ray", {"num_tasks": 2, "executor": "ray"})):
            done = run_script(SCRIPT, **flags_of(segments, server.base_url, tmp_path / name, **ranks))
            assert done.returncode == 0, done.stderr
    assert files_of(tmp_path / "one") == files_of(tmp_path / "ray")


def test_an_answerer_that_fails_makes_no_question_one_that_needs_its_sound(tmp_path: Path) -> None:
    """The first segment's tries are refused, the second's are cut, and those of the third are answered."""
    segments = write_segments(tmp_path / "segments", 3)
    of_text: dict[str, int] = {}

    def ears(body: dict[str, Any]) -> Any:
        text = text_of(body)
        if "JSON" in text:
            number = of_text.setdefault(str(body["seed"]), len(of_text))
            return chat(reply(question(number)))
        if "part 0" in text:
            return 400, {"error": {"message": "this model takes no such request"}}
        if "part 1" in text:
            return {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Let"}, "finish_reason": "length"}]}
        return chat("I cannot tell.")

    with HouseServer(ears) as server:
        flags = flags_of(segments, server.base_url, tmp_path / "out", questions_per_segment=1, blind_tries=4)
        done = run_script(SCRIPT, **flags)
    assert done.returncode == 0, done.stderr
    known = {re.findall(r"part (\d)", row["question"])[0]: row for row in read_rows(tmp_path / "out")}
    assert {part: row["audio_contribution"] for part, row in known.items()} == {"0": "unknown", "1": "unknown", "2": "strong"}
    assert {part: row["silent_correct"] for part, row in known.items()} == {"0": None, "1": None, "2": 0.0}
    said = "of the 1 questions that were tried need the sound"
    failed = "Of 2 questions that is not known: fewer than half of their tries have a complete answer."
    for text in (done.stdout, (tmp_path / "out" / "README.md").read_text()):
        assert said in text and failed in text


def test_without_an_answerer_card_and_summary_say_that_nobody_tried(tmp_path: Path) -> None:
    segments = write_segments(tmp_path / "segments", 2)
    with HouseServer(model) as server:
        flags = flags_of(segments, server.base_url, tmp_path / "out", types="which=1")
        for name in ("answerer", "answerer_base_url", "blind_tries"):
            del flags[name]
        done = run_script(SCRIPT, **flags)
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Nobody tried to answer these questions" in done.stdout and "Nobody tried to answer these questions" in card
    assert re.search(r"\| which \| 100\.0 % \| [1-4] \| 100\.0 % \|", card) and "| why | 0.0 % | 0 | 0.0 % |" in card


@pytest.mark.parametrize("size", [200_000, 10_000_000])
def test_a_reply_of_any_size_is_one_outcome(tmp_path: Path, size: int) -> None:
    segments = write_segments(tmp_path / "segments", 3)

    def teacher(body: dict[str, Any]) -> Any:
        is_first = body["seed"] == min(each["seed"] for each in server.bodies)
        return chat("{" * size if is_first and len(server.bodies) == 1 else reply(question(body["seed"])))

    with HouseServer(teacher) as server:
        flags = flags_of(segments, server.base_url, tmp_path / "out", questions_per_segment=1, concurrency=1)
        for name in ("answerer", "answerer_base_url", "blind_tries"):
            del flags[name]
        done = run_script(SCRIPT, **flags)
    assert done.returncode == 0, done.stderr
    outcomes = [entry["outcome"] for entry in read_ledger(tmp_path / "out") if entry["kind"] == "question"]
    assert len(outcomes) == 3 and outcomes.count(schema.BUILT) >= 2


def test_a_dataset_of_questions_is_no_dataset_of_segments(tmp_path: Path) -> None:
    segments = write_segments(tmp_path / "segments", 2)
    (file,) = segments.glob("data/*.parquet")
    rows = [{"question": "What is heard?"} | row for row in parquet.read_parquet([file])]
    parquet.write_parquet(rows, Features({**schema.segments_features(), "question": Value("string")}), file)
    write_dataset_card(segments, "# Questions\n", {"default": {"train": "data/train-*.parquet"}})
    done = run_script(SCRIPT, **flags_of(segments, "http://localhost:1/v1", tmp_path / "out"))
    assert done.returncode == 2 and "has questions already; expected segments of videos" in done.stderr.splitlines()[-1]
