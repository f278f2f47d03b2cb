"""`recipes/run.sh`: the commands of the whole pipeline, for each student. The programs are stubs."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from dataset_builders.avqa_audio import AvqaAudioArguments
from dataset_builders.cot_corpus import CotCorpusArguments
from dataset_builders.traces import TracesArguments
from dataset_builders.verdicts import VerdictsArguments
from evaluation.report import ReportArguments
from evaluation.reporting.paper_tables import load_table
from evaluation.running.arguments import RunArguments
from sightsound.cli import parse_arguments
from sightsound.engines.openai_models import LookUpArguments
from sightsound.method.selection import GROUND_TRUTH
from tests.support.run_sh import calls_of, run_script
from tests.support.students import RECIPES, STUDENTS, recipe_parser, yaml_of
from tests.support.tiny import REPO


BUILDERS = {
    "avqa_audio": AvqaAudioArguments,
    "traces": TracesArguments,
    "verdicts": VerdictsArguments,
    "cot_corpus": CotCorpusArguments,
}


@pytest.fixture(scope="module", params=STUDENTS)
def student(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def calls(student, tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    return calls_of(tmp_path_factory.mktemp("stubs"), STUDENT=student)


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Any:
    return recipe_parser(monkeypatch)


def base_of(student: str) -> str:
    return str(yaml.safe_load(Path(yaml_of(student, "sft", "label")).read_text())["model_name_or_path"])


def test_the_papers_student_is_the_default_and_has_a_script_of_its_own(tmp_path) -> None:
    commands = []
    for name in ("run.sh", "qwen2_audio_7b/run.sh"):
        (tmp_path / name).mkdir(parents=True)
        commands.append([call for call in calls_of(tmp_path / name, RECIPES / name) if call[0] != "curl"])
    assert commands[0] == commands[1]
    assert any("out/qwen2_audio_7b/sft-cot" in call for call in commands[0])


def test_a_student_without_recipes_is_refused_with_those_there_are(tmp_path) -> None:
    for name in ("qwen", "miniature"):
        done = run_script(RECIPES / "run.sh", tmp_path, STUDENT=name)
        assert (done.returncode, done.stdout) == (2, "")
        expected = f"error: STUDENT={name} is no folder of recipes/ with a README.md; expected one of: {' '.join(STUDENTS)}\n"
        assert done.stderr == expected
    assert not (tmp_path / "calls").exists()


def test_the_checker_is_one_that_run_sh_serves(calls) -> None:
    (verdicts,) = [call for call in calls if "dataset_builders/verdicts.py" in call]
    args = parse_arguments(VerdictsArguments, None, verdicts[2:])
    served = next(call for call in calls if call[:2] == ["vllm", "serve"] and call[2] == args.checker)
    assert args.checker == "Qwen/Qwen2.5-Omni-7B"
    assert args.base_url == [f"http://127.0.0.1:{served[served.index('--port') + 1]}/v1"]
    assert served[served.index("--generation-config") + 1] == "vllm"


def test_a_checker_elsewhere_is_looked_up_before_the_teacher_starts(tmp_path) -> None:
    calls = calls_of(tmp_path, CHECKER="gpt-audio-1.5", CHECKER_BASE_URL="https://api.openai.com/v1")
    assert calls[0][1:] == [
        "-m",
        "sightsound.engines.openai_models",
        "--model",
        "gpt-audio-1.5",
        "--base_url",
        "https://api.openai.com/v1",
    ]
    args = parse_arguments(LookUpArguments, None, calls[0][3:])
    assert (args.model, args.base_url) == ("gpt-audio-1.5", ["https://api.openai.com/v1"])
    (verdicts,) = [call for call in calls if "dataset_builders/verdicts.py" in call]
    args = parse_arguments(VerdictsArguments, None, verdicts[2:])
    assert (args.checker, args.base_url) == ("gpt-audio-1.5", ["https://api.openai.com/v1"])
    assert not any(call[0] == "vllm" and "gpt-audio-1.5" in call for call in calls)


def test_every_command_of_the_pipeline_is_one_that_its_script_takes(student, calls, parse) -> None:
    seen: list[str] = []
    for program, *arguments in calls:
        if program == "python" and arguments[0] == "-m":
            assert arguments[1] == "evaluation"
            parse_arguments({"run": RunArguments, "report": ReportArguments}[arguments[2]], None, arguments[3:])
            seen.append(arguments[2])
        elif program == "python":
            script = Path(arguments[0])
            assert (REPO / script).is_file()
            parse_arguments(BUILDERS[script.stem], None, arguments[1:])
            seen.append(script.stem)
        elif program == "accelerate":
            at = next(i for i, part in enumerate(arguments) if part.startswith("recipes/"))
            assert arguments[:2] == ["launch", "--config_file"] and (REPO / arguments[2]).is_file()
            recipe = Path(arguments[at]).stem
            script, training, model = parse(recipe, *arguments[at + 1 :])
            assert f"recipes/{student}/" in arguments[at + 2]
            assert training.output_dir == f"out/{student}/{recipe}-{script.selection}" and model.model_name_or_path
            assert script.audio == "out/avqa-audio" and script.traces in (None, "out/corpus"), "the same for all students"
            assert (script.traces is None) == (script.selection == GROUND_TRUTH)
            assert arguments[3:5] == ["--num_processes", {"sft": "8", "grpo": "6"}[recipe]]
            seen.append(f"{recipe}-{script.selection}")
    rows = ["sft-ground_truth", "sft-label", "sft-cot", "sft-agfv", "sft-tts_agfv", "grpo-label", "grpo-tts_agfv"]
    assert seen == ["avqa_audio", "traces", "verdicts", "cot_corpus", *rows, *["run"] * (2 + len(rows)), "report"]


def test_the_full_method_starts_from_its_sft_and_samples_from_it(student, calls) -> None:
    served = [arguments[1] for program, *arguments in calls if program == "vllm"]
    teacher, checker = "Qwen/Qwen2.5-VL-32B-Instruct", "Qwen/Qwen2.5-Omni-7B"
    assert served == [teacher, checker, base_of(student), f"out/{student}/sft-tts_agfv/model"]
    trained = [call for call in calls if "recipes/grpo.py" in call]
    assert [call[call.index("--model_name_or_path") + 1] for call in trained] == served[2:]


def test_every_row_is_evaluated_under_its_key(student, calls) -> None:
    runs = [parse_arguments(RunArguments, None, call[4:]) for call in calls if call[1:4] == ["-m", "evaluation", "run"]]
    rows = {row.key: row for row in load_table("table2").rows if row.by is None}
    assert {run.arm for run in runs} == {*rows, "base-zero_shot_cot"}
    for run in runs:
        is_trained = run.arm in rows and rows[run.arm].recipe
        assert run.model == (f"out/{student}/{run.arm}/model" if is_trained else base_of(student))
        assert run.arm not in rows or (run.modality, run.method) == (rows[run.arm].modality, rows[run.arm].method)
