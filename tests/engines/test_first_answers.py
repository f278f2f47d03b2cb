"""A teacher that does not reason is noticed after its first answers, whoever gives them, and when the run is started again."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dataset_builders import traces
from sightsound.cli import InputError
from sightsound.data import parquet, schema
from sightsound.engines.base import ChatRequest, Completion, Sampling
from sightsound.engines.diagnosis import NUM_FIRST, check_reasoning
from sightsound.engines.openai import OpenAIEngine
from sightsound.engines.runner import run_requests
from sightsound.hub.cards import write_dataset_card
from sightsound.stage import Journal
from tests.support.house_server import HouseServer, chat, choice


GREEDY = Sampling(n=1, temperature=0.0, max_tokens=12, seed=0)
CONCURRENCY = 4


def journal_of(folder: Path, *answers: Any) -> Journal:
    """Of answers, each a list of texts or an outcome."""
    journal = Journal(folder / "journal.jsonl")
    for i, answer in enumerate(answers):
        completions = [{"text": text, "finish_reason": "stop"} for text in answer]
        journal.append([(str(i), {"outcome": answer} if isinstance(answer, str) else {"completions": completions})])
    return journal


@pytest.mark.parametrize(
    "answers",
    [
        [["dog"]] * 19,
        [["dog"]] * 19 + [["<think>I hear a dog.</think>dog"]],
        [["dog", "<think>I hear a dog.</think>dog"]] + [["dog", "dog"]] * 30,
        [["<think>I hear a d"]] + [["dog"]] * 30,
        [["dog"]] * 19 + ["refused"] * 30,
    ],
    ids=["too few", "the last of them", "one of several traces", "cut reasoning", "failures are no answers"],
)
def test_a_teacher_that_reasons_or_has_not_said_enough_goes_on(tmp_path, answers):
    with closing(journal_of(tmp_path, *answers)) as journal:
        check_reasoning(journal, "tiny", "traces")


@pytest.mark.parametrize(
    "text", ["dog", "", "<think></think>dog", "<think> </think>dog", "I think: a dog", "<answer>dog</answer>"]
)
def test_twenty_answers_without_reasoning_are_told_in_one_line(tmp_path, text):
    answers = ["corrupt_media", *[[text, text]] * 20, ["<think>I hear a dog.</think>"]]
    with closing(journal_of(tmp_path, *answers)) as journal, pytest.raises(InputError) as stopped:
        check_reasoning(journal, "lab/tiny", "traces")
    assert str(stopped.value).startswith("the first 20 answers of lab/tiny hold no reasoning") and "\n" not in str(
        stopped.value
    )


def test_answers_that_were_all_cut_have_another_remedy(tmp_path):
    with closing(Journal(tmp_path / "journal.jsonl")) as journal:
        cut = {"completions": [{"text": "A dog, since", "finish_reason": "length"}]}
        journal.append((str(i), cut) for i in range(20))
        with pytest.raises(InputError, match="raise --max_tokens"):
            check_reasoning(journal, "tiny", "traces")


def test_what_is_in_flight_is_kept_and_a_rerun_asks_nothing(tmp_path):
    def run(server: HouseServer) -> None:
        with closing(Journal(tmp_path / "journal.jsonl")) as journal:
            engine = OpenAIEngine("tiny", server.base_url, CONCURRENCY)
            keys = [str(i) for i in range(200)]
            build = lambda key: ChatRequest(key, key)  # noqa: E731
            run_requests(
                engine, keys, build, GREEDY, journal, "t", check=lambda journal: check_reasoning(journal, "tiny", "traces")
            )

    with HouseServer(lambda _: chat("dog")) as server:
        with pytest.raises(InputError, match="hold no reasoning"):
            run(server)
        # Those whose clips were decoded already are sent, too.
        assert NUM_FIRST <= len(server.bodies) <= NUM_FIRST + 3 * CONCURRENCY
        assert (tmp_path / "journal.jsonl").read_bytes().count(b"\n") == len(server.bodies), "what was paid for is kept"
        num_asked = len(server.bodies)
        with pytest.raises(InputError, match="hold no reasoning"):
            run(server)
        assert len(server.bodies) == num_asked


@pytest.fixture(scope="module")
def thirty_questions(questions, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("thirty")
    rows = [{**questions[i % len(questions)], "id": str(i)} for i in range(30)]
    parquet.write_parquet(rows, schema.avqa_audio_features(), folder / "data" / "train-00000-of-00001.parquet")
    write_dataset_card(folder, "# Thirty\n", {"default": {"train": "data/*.parquet"}})
    return folder


@pytest.mark.parametrize("reasoning", [None, "I hear a dog."])
def test_the_stage_stops_unless_a_server_tells_reasoning(monkeypatch, thirty_questions, tiny_world, tmp_path, reasoning):
    flags = {"dataset": thirty_questions, "media_dir": tiny_world / "clips", "model": "lab/tiny", "num_traces": 2}
    flags |= {"num_frames": 2, "concurrency": 1, "output_dir": tmp_path / "traces"}
    answers = [choice(content=f"<answer>{letter}</answer>", reasoning_content=reasoning) for letter in "AB"]
    with HouseServer(lambda _: {"choices": answers}) as server:
        words = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
        monkeypatch.setattr("sys.argv", ["traces.py", *words, "--base_url", server.base_url])
        if reasoning:
            traces.main()
            assert len(server.bodies) == 30
        else:
            for _ in range(2):
                with pytest.raises(InputError, match="the first 20 answers of lab/tiny hold no reasoning"):
                    traces.main()
                assert len(server.bodies) < 30


def test_an_engine_in_this_process_is_stopped_too(tmp_path):
    class Mute:
        requests_per_call, window_s, revision = 4, None, ""
        calls = 0

        def complete(self, requests, sampling):
            from sightsound.engines.base import ChatResult

            self.calls += 1
            yield [ChatResult(request.key, "", [Completion("dog", "stop")]) for request in requests]

    engine = Mute()
    with closing(Journal(tmp_path / "journal.jsonl")) as journal, pytest.raises(InputError, match="hold no reasoning"):
        keys = [str(i) for i in range(100)]
        check = lambda journal: check_reasoning(journal, "tiny", "traces")  # noqa: E731
        run_requests(engine, keys, lambda key: ChatRequest(key, key), GREEDY, journal, "t", check=check)
    assert engine.calls == 5
