"""What `traces.py` and `verdicts.py` share: ranks write what one run writes, and a dry run tells the cost and does nothing."""

from pathlib import Path

import pytest

from sightsound.method.verdicts import CUT, NO_REASONING
from tests.support.openai_server import OpenAIServer
from tests.support.tiny import read_ledger, read_rows, run_script, trace, trace_row, write_traces


TRACES, VERDICTS = "dataset_builders/traces.py", "dataset_builders/verdicts.py"


@pytest.fixture(scope="module")
def spoken(questions, tmp_path_factory) -> Path:
    """Two traces of every question but the third, which has none; one of the first question's holds no reasoning."""
    rows = [trace_row(q, [trace("dog", 0, "I hear a dog."), trace("bell", 1, f"I hear {q['id']}.")]) for q in questions]
    rows[0]["traces"][0]["think"] = None
    rows[2] = trace_row(questions[2], [], outcome="missing_media", teacher_answer=None, unanimous=False)
    return write_traces(rows, tmp_path_factory.mktemp("spoken") / "traces")


def outcome_of(folder: Path) -> tuple[list, list, bytes]:
    return read_rows(folder), read_ledger(folder), (folder / "stage.json").read_bytes()


def run_ok(script: str, **flags) -> str:
    done = run_script(script, **flags)
    assert done.returncode == 0 or "answered none of" in done.stderr, done.stderr  # random weights may happen not to
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("script", [TRACES, VERDICTS])
def test_ranks_draw_what_one_run_draws(
    script, spoken, tiny_world, tiny_dataset, teacher_checkpoint, student_checkpoint, tmp_path
):
    """In this process, where a draw depends on the whole call: ranks may not cut one."""
    flags = {"dataset": tiny_dataset, "max_tokens": 8}
    if script == TRACES:
        flags |= {"media_dir": tiny_world / "clips", "model": teacher_checkpoint, "split": "train"}
        flags |= {"num_traces": 2, "num_frames": 6, "batch_size": 6}
    else:
        flags |= {"traces": spoken, "checker": student_checkpoint, "num_retries": 1, "batch_size": 5}
    one, several = tmp_path / "one", tmp_path / "several"
    run_ok(script, **flags, output_dir=one)
    for rank in (1, 0):
        message = run_ok(script, **flags, output_dir=several, num_tasks=2, rank=rank)
        size = {TRACES: [6, 6], VERDICTS: [5, 7]}[script][rank]
        assert message.splitlines()[-1] == f"rank {rank} of 2: {size} questions"
    # Nothing is left to ask: without weights, the command itself only joins.
    run_ok(script, **flags, output_dir=several, num_tasks=2)
    assert outcome_of(several) == outcome_of(one)
    rows = read_rows(one)
    assert len({t["verdict_text" if script == VERDICTS else "text"] for row in rows for t in row["traces"]}) > 4
    if script == VERDICTS:
        verdicts = {t["verdict"] for row in rows for t in row["traces"]}
        assert CUT in verdicts and verdicts <= {CUT, NO_REASONING}, "random weights: what was asked was asked twice"


@pytest.mark.storm
def test_two_ranks_under_ray_write_what_one_run_writes(tiny_world, tiny_dataset, spoken, tmp_path):
    """Both stages, with replicas of a server; Ray starts them on this machine."""
    for script, more in (
        (TRACES, {"media_dir": tiny_world / "clips", "model": "scripted", "num_traces": 2, "num_frames": 6}),
        (VERDICTS, {"traces": spoken, "checker": "scripted"}),
    ):
        folders = [tmp_path / Path(script).stem / name for name in ("one", "ray")]
        for folder, ranks in zip(folders, ({}, {"num_tasks": 2, "executor": "ray"}), strict=True):
            with OpenAIServer(
                lambda ask: [f"No. <think>{ask.seed} {i}</think><answer>A</answer>" for i in range(ask.n)]
            ) as server:
                flags = {"dataset": tiny_dataset, "base_url": server.base_url, **more, **ranks}
                run_ok(script, **flags, output_dir=folder)
                assert len(server.asked) == (12 if script == TRACES else 21)
        assert outcome_of(folders[0]) == outcome_of(folders[1])


def test_a_dry_run_of_the_teacher_tells_tokens_and_what_is_journaled_and_writes_nothing(
    tiny_world, tiny_dataset, teacher_checkpoint, tmp_path
):
    flags = {"dataset": tiny_dataset, "media_dir": tiny_world / "clips", "model": teacher_checkpoint}
    flags |= {"num_traces": 2, "num_frames": 6, "max_tokens": 8, "batch_size": 6}
    message = run_ok(TRACES, **flags, output_dir=tmp_path / "out", dry_run=True)
    assert message.startswith(f"{teacher_checkpoint}: 12 requests, 0 of them journaled; from a sample of 12\n")
    completion = next(line for line in message.splitlines() if line.startswith("completion tokens")).split()
    assert completion[2:] == ["16.0", "192", "192"], "two completions of eight tokens each: an upper bound"
    assert not (tmp_path / "out").exists()


def test_a_dry_run_of_the_checker_counts_its_sound_and_its_price(spoken, tiny_dataset, tmp_path):
    flags = {"dataset": tiny_dataset, "traces": spoken, "checker": "gpt-4o-audio-preview", "max_tokens": 1}
    with OpenAIServer(lambda ask: ["Yes."]) as server:
        flags |= {"base_url": server.base_url, "output_dir": tmp_path}
        message = run_ok(VERDICTS, **flags, dry_run=True)
        assert server.asked == []
        assert message.startswith("gpt-4o-audio-preview: 21 requests, 0 of them journaled; from a sample of 20\n")
        audio = next(line for line in message.splitlines() if line.startswith("audio tokens")).split()
        assert audio[2:] == ["20.0", "420", "420"], "two seconds at ten tokens a second"
        assert "USD, at most" in message and "requested again, up to 2 times: not counted here" in message
        run_ok(VERDICTS, **flags)
        assert len(server.asked) == 21
        assert run_ok(VERDICTS, **flags, dry_run=True) == f"{tmp_path} is complete: there is nothing left to pay\n"
