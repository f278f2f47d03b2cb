"""Controls of `python -m evaluation run` that a server refuses, that are added to a run, and that are left out of one."""

import json
from collections import Counter
from pathlib import Path

import pytest

from evaluation import report
from evaluation import run as generate
from sightsound.cli import InputError
from sightsound.data import schema
from sightsound.engines.runner import MAX_UNANSWERED
from tests.support.evaluation import always, read, run, write_benchmark
from tests.support.openai_server import OpenAIServer


@pytest.fixture(scope="module")
def many(questions, tmp_path_factory) -> Path:
    """More questions than a server may leave unanswered in a row, on clips of their own as far as the server knows."""
    rows = [questions[i % 4] | {"id": f"q{i}", "video_id": f"v{i}"} for i in range(MAX_UNANSWERED + 5)]
    folder = tmp_path_factory.mktemp("many")
    return write_benchmark(rows, schema.avqa_audio_features(), "validation", folder / "avqa")


def needs_audio(ask):
    """As gpt-4o-audio-preview: 400 to a request without audio."""
    if ask.audio is None:
        raise ValueError("This model requires that either input content or output modality contain audio.")
    return ["<answer>A</answer>"] * ask.n


def kinds(server: OpenAIServer) -> Counter:
    return Counter("text" if ask.audio is None else "silent" if not ask.audio.any() else "clip" for ask in server.asked)


def test_a_control_that_the_model_refuses_is_refused_and_the_rest_is_finished(many, tmp_path, capsys):
    count = MAX_UNANSWERED + 5
    flags = {"dataset": many, "model": "tiny", "output_dir": tmp_path / "run", "concurrency": 2}
    with OpenAIServer(needs_audio) as server:
        run(**flags, base_url=server.base_url, controls=["text_only", "silent"])
        assert kinds(server) == {"clip": count, "silent": count, "text": count}
    results, predictions = read(tmp_path / "run")
    assert results["outcomes"] == {
        "none": {"answered": count},
        "text_only": {"refused": count},
        "silent": {"answered": count},
    }
    assert {(p["control"], p["finish_reason"]) for p in predictions} == {
        ("none", "stop"), ("silent", "stop"), ("text_only", "refused"),
    }  # fmt: skip
    assert set(results["gains"]) == {"silent"} and results["results"]["none"]["n"] == count
    assert f"; text_only: not asked or not answered: {count} refused" in capsys.readouterr().out
    report.main(["--runs", str(tmp_path / "run"), "--output_dir", str(tmp_path / "report")])
    assert f"| tiny | 0 | text only | 0 | {count} refused | 0 |" in (tmp_path / "report" / "report.md").read_text()


def test_a_server_that_refuses_everything_stops_the_run_and_nothing_is_recorded_as_refused(many, tmp_path):
    def refuse(ask):
        raise ValueError("no audio here")

    flags = {"dataset": many, "model": "tiny", "output_dir": tmp_path / "run", "limit": 3, "controls": ["text_only"]}
    with OpenAIServer(refuse) as server, pytest.raises(InputError, match=r"the server answers no request: .*no audio here"):
        run(**flags, base_url=server.base_url)
    with OpenAIServer(always("<answer>A</answer>")) as server:
        run(**flags, base_url=server.base_url)
        assert kinds(server) == {"clip": 3, "text": 3}


def interrupted(flags: dict, controls: list[str], num_answers: int) -> None:
    """A run that the server leaves after so many answers."""
    answered = 0

    def answer(ask):
        nonlocal answered
        answered += 1
        return ["<answer>A</answer>"]

    server = OpenAIServer(answer, fault_of=lambda _: 401 if answered >= num_answers else None)
    with server, pytest.raises(InputError):
        run(**flags, base_url=server.base_url, controls=controls, concurrency=1)


def test_controls_are_added_to_and_left_out_of_a_run_that_was_interrupted(many, tmp_path):
    flags = {"dataset": many, "model": "tiny", "output_dir": tmp_path / "run", "limit": 4}
    interrupted(flags, ["silent"], 6)
    with OpenAIServer(always("<answer>A</answer>")) as server:
        run(**flags, base_url=server.base_url, controls=["text_only"])
        assert kinds(server) == {"text": 4}, "what was answered is not asked again, and silence not at all"
    results, predictions = read(tmp_path / "run")
    assert list(results["results"]) == ["none", "text_only"] == list(results["outcomes"])
    assert {p["control"] for p in predictions} == {"none", "text_only"}
    assert results["settings"]["controls"] == ["text_only"]


def test_controls_are_added_to_and_left_out_of_a_finished_run(many, tmp_path, capsys):
    flags = {"dataset": many, "model": "tiny", "output_dir": tmp_path / "run", "limit": 4}
    with OpenAIServer(needs_audio) as server:
        run(**flags, base_url=server.base_url, controls=["text_only"])
    first, before = read(tmp_path / "run")
    with OpenAIServer(needs_audio) as server:
        run(**flags, base_url=server.base_url, controls=["silent", "text_only"])
        assert kinds(server) == {"silent": 4}
    results, predictions = read(tmp_path / "run")
    assert [p for p in predictions if p["control"] != "silent"] == before
    assert results["results"]["none"] == first["results"]["none"] and "silent" in results["gains"]
    assert results["outcomes"]["text_only"] == {"refused": 4}
    capsys.readouterr()
    run(**flags, base_url="http://127.0.0.1:1/v1", controls=["text_only", "silent"])
    assert capsys.readouterr().out == f"{tmp_path / 'run'} is complete\n", "the same controls in another order"
    run(**flags, base_url="http://127.0.0.1:1/v1")  # nothing is left to be asked
    results, predictions = read(tmp_path / "run")
    assert list(results["results"]) == ["none"] and [p for p in before if p["control"] == "none"] == predictions
    assert results["gains"] == {} and json.loads((tmp_path / "run" / "stage.json").read_text())["complete"]


def test_a_finished_run_that_was_killed_while_controls_were_added_goes_on(many, tmp_path, monkeypatch):
    flags = {"dataset": many, "model": "tiny", "output_dir": tmp_path / "run", "limit": 4}
    with OpenAIServer(always("<answer>A</answer>")) as server:
        run(**flags, base_url=server.base_url)
    for at in ("stage.reopen", "asked in part"):
        with monkeypatch.context() as patch:
            if at == "stage.reopen":
                patch.setattr(generate.Stage, "reopen", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
                with pytest.raises(KeyboardInterrupt):
                    run(**flags, base_url="http://127.0.0.1:1/v1", controls=["silent"])
            else:
                interrupted(flags, ["silent"], 2)
    with OpenAIServer(always("<answer>A</answer>")) as server:
        run(**flags, base_url=server.base_url, controls=["silent"])
        assert kinds(server) == {"silent": 2}
    results, predictions = read(tmp_path / "run")
    assert len(predictions) == 8 and results["outcomes"] == {"none": {"answered": 4}, "silent": {"answered": 4}}


def test_answers_of_a_control_that_is_left_out_are_kept_and_not_asked_again(many, tmp_path, capsys, monkeypatch):
    flags = {"dataset": many, "model": "tiny", "output_dir": tmp_path / "run", "limit": 4}
    nobody = "http://127.0.0.1:1/v1"
    with OpenAIServer(needs_audio) as server:
        run(**flags, base_url=server.base_url, controls=["silent", "text_only"])
    first, before = read(tmp_path / "run")
    left_out = tmp_path / "run" / "left_out.jsonl"
    assert not left_out.exists()
    capsys.readouterr()
    run(**flags, base_url=nobody)
    message = f"left out of the results, and kept in {left_out}: answers under controls (4 of silent, 4 of text_only)"
    assert message in capsys.readouterr().out
    results, predictions = read(tmp_path / "run")
    assert list(results["results"]) == ["none"] == list(results["outcomes"]) and len(predictions) == 4
    run(**flags, base_url=nobody, controls=["silent"])  # the other stays left out, through another rerun
    assert "(4 of text_only)" in capsys.readouterr().out
    for failing in ("_keep_removed_controls", "_write_results"):  # killed before and after what is left out is read back
        with monkeypatch.context() as patch:
            patch.setattr(generate.BenchmarkRun, failing, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                run(**flags, base_url=nobody)
    with monkeypatch.context() as patch:  # killed when it is written, and not yet finished
        patch.setattr(generate.Stage, "finish", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(**flags, base_url=nobody)
    run(**flags, base_url=nobody, controls=["silent", "text_only"])
    results, predictions = read(tmp_path / "run")
    assert predictions == before and not left_out.exists()
    assert (results["outcomes"], results["gains"]) == (first["outcomes"], first["gains"])


def test_answers_of_an_interrupted_control_that_is_left_out_are_kept(many, tmp_path):
    flags = {"dataset": many, "model": "tiny", "output_dir": tmp_path / "run", "limit": 4}
    interrupted(flags, ["silent"], 6)
    for controls, asked in (["text_only"], {"text": 4}), (["silent", "text_only"], {"silent": 2}):
        with OpenAIServer(always("<answer>A</answer>")) as server:
            run(**flags, base_url=server.base_url, controls=controls)
            assert kinds(server) == asked
