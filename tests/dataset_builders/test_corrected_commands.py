"""A command that a server refused is corrected and given again: the folder takes it, or the message says how to start anew."""

import shutil
from pathlib import Path

import pytest

from dataset_builders import traces, verdicts
from evaluation import run as generate
from sightsound.cli import InputError
from sightsound.engines.base import ChatRequest, Sampling
from sightsound.engines.openai import OpenAIEngine
from sightsound.engines.runner import run_requests
from sightsound.stage import Journal
from tests.support.house_server import HouseServer, chat
from tests.support.tiny import read_rows, trace, trace_row, write_traces


GREEDY = Sampling(n=1, temperature=0.0, max_tokens=12, seed=0)


@pytest.fixture
def spoken(questions, tmp_path) -> Path:
    return write_traces([trace_row(q, [trace("dog", 0, "I hear a dog.")] * 2) for q in questions], tmp_path / "spoken")


def teach(monkeypatch, tiny_dataset, tiny_world, folder, server, *more):
    words = ["--dataset", str(tiny_dataset), "--media_dir", str(tiny_world / "clips"), "--model", "other", "--num_traces", "2"]
    words += ["--num_frames", "2", "--base_url", server.base_url, "--output_dir", str(folder)]
    monkeypatch.setattr("sys.argv", ["traces.py", *words, *more])
    traces.main()


def refuses(name, message):
    """A server that refuses a field by its name."""

    def reply(body):
        return (400, {"error": {"message": message}}) if name in body else chat(*["<think>I hear a dog.</think>A"] * body["n"])

    return HouseServer(reply)


def test_the_corrected_command_goes_on_in_a_folder_without_an_answer(monkeypatch, tiny_dataset, tiny_world, tmp_path):
    clips = tmp_path / "world"
    shutil.copytree(tiny_world, clips)
    next((clips / "clips").iterdir()).unlink()  # a question without its clip is in the journal, and has no answer
    with refuses("seed", "Unsupported parameter: 'seed'") as server:
        with pytest.raises(InputError, match="--omit_field seed leaves it out; nothing was answered, so the corrected"):
            teach(monkeypatch, tiny_dataset, clips, tmp_path / "out", server)
        assert not (tmp_path / "out").exists()
        teach(monkeypatch, tiny_dataset, clips, tmp_path / "out", server, "--omit_field", "seed")
    assert read_rows(tmp_path / "out")


def test_the_corrected_evaluation_and_check_go_on_too(monkeypatch, tiny_dataset, spoken, tmp_path):
    words = ["--benchmark", "avqa", "--dataset", str(tiny_dataset), "--split", "validation", "--model", "other", "--limit", "2"]
    check = ["--dataset", str(tiny_dataset), "--traces", str(spoken), "--checker", "other"]
    with refuses("seed", "Unsupported parameter: 'seed'") as server:
        for name, main in (("run", lambda more: generate.main([*words, *more])), ("check", verdicts.main)):
            more = ["--base_url", server.base_url, "--output_dir", str(tmp_path / name)]
            monkeypatch.setattr("sys.argv", ["verdicts.py", *check, *more])
            with pytest.raises(InputError, match="nothing was answered"):
                main(more) if name == "run" else main()
            monkeypatch.setattr("sys.argv", ["verdicts.py", *check, *more, "--omit_field", "seed"])
            main([*more, "--omit_field", "seed"]) if name == "run" else main()
            assert (tmp_path / name / "data").is_dir()


def test_a_folder_with_answers_is_to_be_deleted_before_another_field(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append([("0", {"prompt": "", "completions": [{"text": "yes", "finish_reason": "stop"}]})])
    with refuses("seed", "Unsupported parameter: 'seed'") as server:
        engine = OpenAIEngine("tiny", server.base_url, 1)
        with pytest.raises(InputError, match=r"delete the folder and start again with --omit_field seed$"):
            run_requests(engine, [str(i) for i in range(30)], lambda key: ChatRequest(key, key), GREEDY, journal, "t")
    journal.close()
