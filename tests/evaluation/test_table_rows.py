"""`python -m evaluation run --table table1 --row KEY`: the flags that a row stands for, its run, its place in the report."""

from pathlib import Path

import pytest

from evaluation import report
from evaluation.reporting.paper_tables import TABLES, Row, load_table
from evaluation.running.arguments import RunArguments
from evaluation.running.table_rows import with_row
from sightsound.cli import InputError, parse_arguments
from sightsound.data import schema
from tests.support.evaluation import always, read, run, write_benchmark
from tests.support.families import build_family
from tests.support.openai_server import OpenAIServer
from tests.support.tiny import trace, trace_row, write_traces


ROWS = [(name, row) for name in TABLES for row in load_table(name).rows if row.by is None]


@pytest.fixture(scope="module")
def dataset(questions, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark") / "avqa"
    return write_benchmark(questions[:3], schema.avqa_audio_features(), "validation", folder)


def parse(*flags: str) -> RunArguments:
    return parse_arguments(RunArguments, None, with_row([*flags, "--dataset", "d", "--output_dir", "o"]))


@pytest.mark.parametrize(("name", "row"), ROWS, ids=[f"{name}-{row.key}" for name, row in ROWS])
def test_a_row_is_the_flags_that_it_says(name: str, row: Row) -> None:
    trained = ["--model", "out/model"] if row.recipe else []
    args = parse("--table", name, "--row", row.key, *trained)
    assert args.model == ("out/model" if row.recipe else row.model)
    assert (args.modality, args.method, args.arm) == (row.modality, row.method, row.key)
    assert args.benchmark == {"table1": "avqa", "table2": "mmau,music_avqa"}[name]
    if row.recipe:
        with pytest.raises(InputError, match=f"is of a trained model: train it with {row.recipe} and give it with --model"):
            parse("--table", name, "--row", row.key)


def test_what_equals_the_row_may_be_given_and_the_model_may_be_another() -> None:
    asked = ("--table", "table1", "--row=omni-3b", "--model", "served", "--modality", "audio_video", "--arm=omni-3b")
    args = parse(*asked, "--method", "direct", "--benchmark", "avqa")
    assert (args.model, args.modality, args.arm, args.benchmark) == ("served", "audio_video", "omni-3b", "avqa")
    assert parse("--table", "table2", "--row", "base-direct", "--benchmark", "music_avqa").benchmark == "music_avqa"
    assert with_row(["--model", "m"]) == ["--model", "m"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--table table3 --row x", "unknown table 'table3'; expected one of table1, table2"),
        ("--table table1", "--table table1 needs --row, one of omni-3b-audio, omni-7b-audio, base-direct"),
        ("--row vl-7b", "--row vl-7b is a row of a table of the paper; give --table table1 or table2"),
        ("--table table1 --row omni-5b", "--row omni-5b: table1 has no such row; expected one of omni-3b-audio"),
        ("--table table2 --row audio-thinker-sft", "are by Audio-Thinker, .* expected one of base-direct, sft-ground_truth"),
        ("--table table1 --row vl-7b --modality audio", "--modality audio: --row vl-7b is run with --modality video; leave"),
        ("--table table1 --row vl-7b --method cot", "--method cot: --row vl-7b is run with --method direct; leave"),
        ("--table table1 --row vl-7b --arm mine", "--arm mine: --row vl-7b is run with --arm vl-7b; leave"),
        ("--table table1 --row vl-7b --benchmark mmau", "--benchmark mmau: the table of --row vl-7b is about avqa"),
        ("--table table1 --row vl-7b --prompt_file p.txt", "--row vl-7b has the prompt of its method"),
    ],
)
def test_what_is_no_row_or_contradicts_it_is_one_error(flags: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(*flags.split())


def test_a_row_needs_the_media_and_traces_that_its_flags_need(dataset, tmp_path) -> None:
    flags = {"table": "table1", "dataset": dataset, "output_dir": tmp_path / "run"}
    with pytest.raises(InputError, match="--modality video needs --media_dir, the folder with the videos, for avqa"):
        run(**flags, row="vl-32b-cot")
    with pytest.raises(InputError, match="--method cot_distill needs --traces"):
        run(**flags, row="base-cot_distill")


def row_of(key: str) -> Row:
    (row,) = (row for name, row in ROWS if (name, row.key) == ("table1", key))
    return row


def line_of(capsys: pytest.CaptureFixture[str], key: str, *runs: Path) -> list[str]:
    """The cells of our line of a row in the report's Table 1, and the note on models."""
    capsys.readouterr()
    report.main(["--table", "table1", "--runs", *map(str, runs)])
    lines = capsys.readouterr().out.splitlines()
    row = row_of(key)
    at = next(i for i, line in enumerate(lines) if line.startswith(f"| {row.name} | {row.label} | paper |"))
    return [cell.strip() for cell in lines[at + 1].split("|")[3:-1]] + [line for line in lines if line.startswith("Ours, ")]


def test_rows_are_run_in_this_process_and_the_report_has_them_in_their_place(
    dataset, student_checkpoint, teacher_checkpoint, tiny_world, tmp_path, capsys
) -> None:
    flags = {"table": "table1", "dataset": dataset, "max_tokens": 2}
    heard, seen = tmp_path / "heard", tmp_path / "seen"
    run(**flags, row="base-zero_shot_cot", model=student_checkpoint, output_dir=heard)
    sight = {"media_dir": tiny_world / "clips", "num_frames": 4}
    run(**flags, **sight, row="vl-7b", model=teacher_checkpoint, output_dir=seen)
    for folder, key, method in ((heard, "base-zero_shot_cot", "audio/zero_shot_cot"), (seen, "vl-7b", "video/direct")):
        results, predictions = read(folder)
        assert (results["arm"], results["method"], len(predictions)) == (key, method, 3)
        whose, figure, note = line_of(capsys, key, heard, seen)
        assert whose == "ours, seed 0" and figure.endswith("(n=3)")
        assert "student (base-zero_shot_cot)" in note and "teacher (vl-7b)" in note
    # The row is no setting of its own: the same flags, spelled out, are the same run.
    spelled = {"modality": "audio", "method": "zero_shot_cot", "arm": "base-zero_shot_cot", "model": student_checkpoint}
    run(dataset=dataset, max_tokens=2, output_dir=heard, **spelled)
    assert "is complete" in capsys.readouterr().out


def test_a_model_that_hears_and_sees_is_run_in_three_rows(dataset, tiny_world, tmp_path, capsys) -> None:
    model = build_family("qwen2_5_omni", tmp_path / "Qwen2.5-Omni-3B")
    flags = {"table": "table1", "model": model, "dataset": dataset, "max_tokens": 2}
    for key, modality in (("omni-3b-audio", "audio"), ("omni-3b-video", "video"), ("omni-3b", "audio_video")):
        videos = {} if modality == "audio" else {"media_dir": tiny_world / "clips", "num_frames": 4}
        run(**flags, **videos, row=key, output_dir=tmp_path / key)
        assert read(tmp_path / key)[0]["method"] == f"{modality}/direct"
    for key in ("omni-3b-audio", "omni-3b-video", "omni-3b"):
        whose, figure, *notes = line_of(
            capsys, key, *(tmp_path / name for name in ("omni-3b-audio", "omni-3b-video", "omni-3b"))
        )
        assert (whose, figure.endswith("(n=3)"), notes) == ("ours, seed 0", True, []), "a copy is known by its folder's name"


def test_rows_are_asked_at_a_server_under_the_name_of_the_paper(dataset, questions, tiny_world, tmp_path, capsys) -> None:
    said = [trace("<think>I hear a bell.</think><answer>bell</answer>", 0, "I hear a bell.")]
    traces = write_traces([trace_row(question, said) for question in questions[:3]], tmp_path / "traces")
    videos = {"media_dir": tiny_world / "clips", "num_frames": 4}
    asked = {
        "omni-3b-audio": ({}, "Qwen/Qwen2.5-Omni-3B", (True, False)),
        "omni-7b": (videos, "Qwen/Qwen2.5-Omni-7B", (True, True)),
        "vl-32b-audio_cot": (videos, "Qwen/Qwen2.5-VL-32B-Instruct", (False, True)),
        "base-cot_distill": ({"traces": traces}, "Qwen/Qwen2-Audio-7B-Instruct", (True, False)),
    }
    for key, (more, model, media) in asked.items():
        with OpenAIServer(always("<answer>A</answer>")) as server:
            run(table="table1", row=key, dataset=dataset, base_url=server.base_url, output_dir=tmp_path / key, **more)
        assert {(ask.model, ask.audio is not None, ask.video is not None) for ask in server.asked} == {(model, *media)}
        whose, figure, *notes = line_of(capsys, key, tmp_path / key)
        assert (whose, figure.endswith("(n=3)"), notes) == ("ours, seed 0", True, [])


def test_a_trained_student_is_named_by_the_model_that_it_was_trained_from(dataset, tmp_path, capsys) -> None:
    """So that a table filled with another student does not pass for the paper's."""
    for base, is_other in (("Qwen/Qwen2.5-Omni-7B", True), ("Qwen/Qwen2-Audio-7B-Instruct", False)):
        model = tmp_path / base.split("/")[1] / "model"
        model.mkdir(parents=True)
        (model / "README.md").write_text(f"---\nbase_model: {base}\n---\n# Student\n")
        with OpenAIServer(always("<answer>A</answer>")) as server:
            flags = {"dataset": dataset, "model": model, "base_url": server.base_url, "output_dir": model.parent / "run"}
            run(table="table1", row="sft-ground_truth", **flags)
        notes = line_of(capsys, "sft-ground_truth", model.parent / "run")[2:]
        assert [f"{base} (sft-ground_truth)" in note for note in notes] == [True] * is_other
