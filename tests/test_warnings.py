"""What a run that made nothing usable says at its end, and how to mend it."""

import pytest

from dataset_builders import traces, verdicts
from sightsound.cli import InputError
from sightsound.engines.diagnosis import warning_of_equal_traces, warning_of_no_reasoning
from sightsound.stage import Journal
from tests.support.house_server import HouseServer, choice
from tests.support.tiny import trace, trace_row, write_traces


def journal_of(folder, *answers):
    journal = Journal(folder / "journal.jsonl")
    of = lambda texts: {"completions": [{"text": text, "finish_reason": "stop"} for text in texts]}  # noqa: E731
    journal.append((str(i), of(texts)) for i, texts in enumerate(answers))
    journal.close()
    return journal


@pytest.mark.parametrize(
    ("answers", "is_told"),
    [
        ([["dog"]], True),
        ([["dog", ""]] * 19, True),
        ([["dog"]] * 20, False),  # `check_reasoning` has stopped that run
        ([["dog"], ["<think>I hear a dog.</think>dog"]], False),
        ([], False),
    ],
)
def test_a_short_run_without_reasoning_ends_with_a_warning(tmp_path, answers, is_told):
    warning = warning_of_no_reasoning(journal_of(tmp_path, *answers), "lab/tiny")
    assert bool(warning) == is_told
    assert not is_told or warning.startswith(f"warning: the first {len(answers)} answers of lab/tiny hold no reasoning")


def test_empty_texts_are_no_equal_traces(tmp_path):
    assert warning_of_equal_traces(journal_of(tmp_path, *[["", ""]] * 9)) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (choice("length", content="A dog, since"), "all 4 answers were cut at --max_tokens 512; raise --max_tokens"),
        (choice("stop", content=None, refusal="I cannot."), "all 4 answers were refused; choose another --model"),
        (choice("content_filter", content=""), "all 4 answers were filtered; choose another --model"),
        (choice("stop", content=""), "all 4 answers were empty; see what the server writes"),
        (choice("stop", content="I do not know."), "all 4 answers were without a choice that can be read"),
    ],
    ids=["cut", "refused", "filtered", "empty", "unread"],
)  # fmt: skip
def test_a_teacher_without_an_answer_is_told_by_how_its_answers_end(
    monkeypatch, capsys, tiny_dataset, tiny_world, tmp_path, given, message
):
    words = ["--dataset", str(tiny_dataset), "--media_dir", str(tiny_world / "clips"), "--model", "other", "--limit", "2"]
    words += ["--num_traces", "2", "--num_frames", "2", "--output_dir", str(tmp_path)]
    with HouseServer(lambda _: {"choices": [given, given]}) as server:
        monkeypatch.setattr("sys.argv", ["traces.py", *words, "--base_url", server.base_url])
        with pytest.raises(InputError) as raised:
            traces.main()
    assert message in str(raised.value) and "media_dir" not in str(raised.value)
    assert "warning: the first 2 answers of other hold no reasoning" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (choice(content="Perhaps."), "unclear; the checker says neither yes nor no"),
        (choice(content=None, refusal="I cannot."), "refused; the checker refuses"),
        (choice(content="Yes."), None),
    ],
)
def test_a_checker_without_a_verdict_is_told(monkeypatch, capsys, tiny_dataset, questions, tmp_path, given, reason):
    spoken = write_traces([trace_row(q, [trace("dog", 0, "I hear a dog.")] * 2) for q in questions], tmp_path / "spoken")
    words = [
        "--dataset",
        str(tiny_dataset),
        "--traces",
        str(spoken),
        "--checker",
        "other",
        "--output_dir",
        str(tmp_path / "out"),
    ]
    with HouseServer(lambda _: {"choices": [given]}) as server:
        monkeypatch.setattr("sys.argv", ["verdicts.py", *words, "--base_url", server.base_url])
        verdicts.main()
    message = capsys.readouterr().err
    assert ("warning: not one of" in message) == (reason is not None)
    assert reason is None or reason in message
