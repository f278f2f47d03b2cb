"""Traces that are all equal stop a run before it is paid for; what is merely alike, short or asked once does not."""

import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sightsound.cli import InputError
from sightsound.engines.diagnosis import MOST_EQUAL, NUM_FIRST, check_traces_differ, warning_of_equal_traces
from sightsound.stage import Journal
from tests.support import tiny
from tests.support.openai_server import OpenAIServer
from tests.support.tiny import read_rows, run_script, write_traces


def journal_of(folder: Path, questions: list[list[str]], outcomes: int = 0) -> Journal:
    """What is journaled of questions with these traces, after `outcomes` that nobody answered."""
    journal = Journal(folder / "journal.jsonl")
    journal.append((f"x{i}", {"outcome": "corrupt_media", "detail": "no clip"}) for i in range(outcomes))
    journal.append(
        (f"q{i}", {"prompt": "?", "completions": [{"text": text, "finish_reason": "stop"} for text in texts]})
        for i, texts in enumerate(questions)
    )
    journal.close()
    return journal


SAME, OTHER, ONE = ["a bell", "a bell", "a bell"], ["a bell", "a dog", "a bell"], ["a bell"]


@pytest.mark.parametrize("outcomes", [0, 30])
@pytest.mark.parametrize("num_same", [MOST_EQUAL - 1, MOST_EQUAL, NUM_FIRST])
def test_nearly_every_one_of_the_first_questions_stops_a_run(tmp_path, num_same, outcomes):
    journal = journal_of(tmp_path, [OTHER] * (NUM_FIRST - num_same) + [SAME] * num_same, outcomes)
    if num_same < MOST_EQUAL:
        return check_traces_differ(journal, str(tmp_path))
    with pytest.raises(InputError, match=rf"{num_same} of the first 20 questions are all equal.*carries no information"):
        check_traces_differ(journal, str(tmp_path))


@pytest.mark.parametrize(
    "questions",
    [[ONE] * 40, [SAME] * (NUM_FIRST - 1), [OTHER] * 3 + [SAME] * 100, []],
    ids=["one trace", "too few to tell", "easy questions later on", "none"],
)
def test_other_runs_go_on(tmp_path, questions):
    check_traces_differ(journal_of(tmp_path, questions), "out")


@pytest.mark.parametrize(
    ("questions", "is_told"), [([SAME] * 5, True), ([SAME] * 4, False), ([SAME] * 4 + [OTHER] * 2, False), ([ONE] * 9, False)]
)
def test_a_short_run_ends_with_a_warning(tmp_path, questions, is_told):
    warning = warning_of_equal_traces(journal_of(tmp_path, questions))
    assert bool(warning) == is_told
    assert not is_told or warning.startswith("warning: the traces of 5 of the first 5 questions are all equal")


@pytest.fixture(scope="module")
def forty(tmp_path_factory) -> dict[str, Any]:
    """Flags of `traces.py` for forty questions."""
    folder = tmp_path_factory.mktemp("forty")
    sizes = {"train": 40, "validation": 4, "test": 8, "student": 8, "teacher": 8, "checker": 8}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "WORLD_SIZE", sizes)
        world = tiny.build_world(folder / "world")
    dataset = tiny.build_dataset(world, folder / "avqa-audio")
    return {"dataset": dataset, "media_dir": world / "clips", "split": "train", "num_frames": 6, "model": "scripted"}


def good(ask: Any) -> list[str]:
    return ["<think>I hear a bell.</think><answer>bell</answer>"] * ask.n


def test_a_teacher_that_does_not_draw_ends_in_one_line_and_so_does_its_rerun(forty, tmp_path):
    with OpenAIServer(good) as server:
        flags = {**forty, "base_url": server.base_url, "num_traces": 3, "concurrency": 2, "output_dir": tmp_path / "out"}
        done = run_script("dataset_builders/traces.py", **flags)
        num_asked = len(server.asked)
        again = run_script("dataset_builders/traces.py", **flags)
        assert len(server.asked) == num_asked, "a rerun does not get past it"
    assert NUM_FIRST <= num_asked <= NUM_FIRST + 6
    for each in (done, again):
        assert each.returncode == 2, each.stderr
        (message,) = [line for line in each.stderr.splitlines() if "error: " in line]
        assert re.search(r"error: the traces of 20 of the first 20 questions are all equal \(sent: .*\"top_k\": -1", message)
        assert message.endswith(f"delete {tmp_path / 'out'} and start again")


def test_the_remedy_under_ranks_is_to_delete_the_whole_run(forty, tmp_path):
    """The other ranks have journaled such traces, too."""
    with OpenAIServer(good) as server:
        flags = {**forty, "base_url": server.base_url, "num_traces": 2, "num_tasks": 2, "output_dir": tmp_path / "out"}
        done = run_script("dataset_builders/traces.py", **flags)
    assert done.returncode == 2 and f"delete {tmp_path / 'out'} and start again" in done.stderr.splitlines()[-1], done.stderr


def test_a_run_of_few_questions_is_warned_and_written(forty, tmp_path):
    with OpenAIServer(good) as server:
        flags = {**forty, "base_url": server.base_url, "num_traces": 2, "limit": 8, "output_dir": tmp_path / "out"}
        done = run_script("dataset_builders/traces.py", **flags)
    assert done.returncode == 0, done.stderr
    assert "warning: the traces of 8 of the first 8 questions are all equal" in done.stderr


def test_files_from_before_sampling_was_recorded_are_still_taken(questions, tiny_dataset, tmp_path):
    """Traces without the two columns: verdicts are written, and say of the traces that it is not known."""
    said = [tiny.trace("<think>I hear a dog.</think><answer>dog</answer>", 0, "I hear a dog.")] * 2
    traces = write_traces([tiny.trace_row(row, said) for row in questions[:3]], tmp_path / "traces")
    (file,) = (traces / "data").glob("*.parquet")
    old = pq.read_table(file).drop_columns(["sampling", "checker_sampling"])
    pq.write_table(old.replace_schema_metadata(None), file)
    with OpenAIServer(lambda ask: ["yes"]) as server:
        flags = {"dataset": tiny_dataset, "traces": traces, "checker": "scripted", "base_url": server.base_url}
        done = run_script("dataset_builders/verdicts.py", **flags, output_dir=tmp_path / "verdicts")
    assert done.returncode == 0, done.stderr
    rows = read_rows(tmp_path / "verdicts")
    assert [row["sampling"] for row in rows] == [None] * 3 and all(row["checker_sampling"] for row in rows)
    flags = {"dataset": tiny_dataset, "traces": traces, "verdicts": tmp_path / "verdicts", "output_dir": tmp_path / "corpus"}
    done = run_script("dataset_builders/cot_corpus.py", **flags)
    assert done.returncode == 0, done.stderr
