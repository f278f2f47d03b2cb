"""The recipes of the paper's Table 2: each YAML is read by its script's own dataclasses, and its sizes fit together."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments
from trl import GRPOConfig, ModelConfig, SFTConfig

from dataset_builders.avqa_audio import AvqaAudioArguments
from dataset_builders.cot_corpus import CotCorpusArguments
from dataset_builders.traces import TracesArguments
from dataset_builders.verdicts import VerdictsArguments
from evaluation.report import ReportArguments
from evaluation.running.arguments import RunArguments
from sightsound.cli import parse_arguments
from sightsound.engines.openai_models import LookUpArguments
from sightsound.method.selection import ARMS, GROUND_TRUTH
from sightsound.models.qwen2_audio import FAMILY
from sightsound.training.recipe import parse_config
from tests.support.tiny import REPO


RECIPES = REPO / "recipes" / "qwen2_audio_7b"
SFT = ["agfv", "cot", "ground_truth", "label", "tts_agfv"]
GRPO = ["label", "tts_agfv"]


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A recipe's command line, read as the recipe reads it."""
    monkeypatch.syspath_prepend(str(REPO / "recipes"))
    import grpo
    import sft
    import verifier

    dataclasses = {
        "sft": (sft.SFTScriptArguments, SFTConfig, ModelConfig),
        "grpo": (grpo.GRPOScriptArguments, GRPOConfig, ModelConfig),
        "verifier": (verifier.VerifierScriptArguments, TrainingArguments, ModelConfig),
    }

    def parse(recipe: str, arguments: list[str]) -> tuple[Any, Any, Any]:
        # Where there is no GPU, `TrainingArguments` refuses bfloat16 without it.
        monkeypatch.setattr(sys, "argv", [f"{recipe}.py", *arguments, "--use_cpu", "true"])
        monkeypatch.chdir(REPO)
        return parse_config(dataclasses[recipe])

    return parse


def test_there_is_a_recipe_for_every_row_of_table_2() -> None:
    names = [*(f"grpo_{arm}" for arm in GRPO), *(f"sft_{arm}" for arm in SFT), "verifier"]
    assert sorted(path.stem for path in RECIPES.glob("*.yaml")) == names


@pytest.mark.parametrize("arm", SFT)
def test_sft_is_read_and_a_step_on_eight_gpus_has_64_rows(arm, parse, tmp_path) -> None:
    flags = ["--audio", "a", "--output_dir", str(tmp_path)]
    script, training, model = parse("sft", ["--config", str(RECIPES / f"sft_{arm}.yaml"), *flags])
    assert script.selection == arm and arm in ARMS and script.traces is None
    assert 8 * training.per_device_train_batch_size * training.gradient_accumulation_steps == 64
    assert model.use_peft and model.lora_target_modules == FAMILY.lora_target_modules
    assert_best_is_kept(script, training)


@pytest.mark.parametrize("arm", GRPO)
def test_grpo_is_read_and_a_step_on_six_gpus_has_24_prompts_of_8(arm, parse, tmp_path) -> None:
    flags = ["--audio", "a", "--traces", "t", "--output_dir", str(tmp_path)]
    script, training, model = parse("grpo", ["--config", str(RECIPES / f"grpo_{arm}.yaml"), *flags])
    assert script.selection == arm and script.freeze_audio_tower and script.share_prompts
    assert (model.model_name_or_path is None) == (arm == "tts_agfv"), "the full method starts from its SFT"
    assert not model.use_peft
    # TRL knows one process here, and six on the training GPUs.
    completions = 6 * training.generation_batch_size // training.world_size
    assert (completions, completions // training.num_generations) == (192, 24)
    assert training.steps_per_generation == training.gradient_accumulation_steps, "one generation per optimizer step"
    assert training.use_vllm and training.vllm_mode == "server"
    assert_best_is_kept(script, training)


def assert_best_is_kept(script: Any, training: Any) -> None:
    assert training.load_best_model_at_end and training.metric_for_best_model == "eval_accuracy" and training.greater_is_better
    assert training.eval_strategy == "steps" and training.save_steps % training.eval_steps == 0
    assert script.validation_split == "validation" and not training.push_to_hub


def test_the_verifier_has_a_recipe_too(parse, tmp_path) -> None:
    flags = ["--audio", "a", "--verdicts", "v", "--output_dir", str(tmp_path)]
    _, _, model = parse("verifier", ["--config", str(RECIPES / "verifier.yaml"), *flags])
    assert model.use_peft and model.lora_target_modules == FAMILY.lora_target_modules


# What run.sh calls, in place of the programs: each writes down its arguments and succeeds. A server is ready once it has.
STUB = """#!{python}
import json, os, sys, time

def calls_with(program, port):
    lines = open(os.environ["CALLS"]).read().splitlines()
    return sum(line.startswith('["' + program) and port in line for line in lines)

if os.path.basename(sys.argv[0]) == "curl" and "/health" in sys.argv[-1]:
    port = sys.argv[-1].split(":")[-1].split("/")[0]
    while calls_with("vllm", port) <= calls_with("curl", port):
        time.sleep(0.01)
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
if os.path.basename(sys.argv[0]) == "vllm":
    time.sleep(60)
"""
BUILDERS = {
    "avqa_audio": AvqaAudioArguments,
    "traces": TracesArguments,
    "verdicts": VerdictsArguments,
    "cot_corpus": CotCorpusArguments,
}


def calls_of(folder: Path, **environment: str) -> list[list[str]]:
    """Every command that run.sh runs, with its real arguments: the script itself is run."""
    for name in ("python", "accelerate", "vllm", "curl"):
        (folder / name).write_text(STUB.format(python=sys.executable))
        (folder / name).chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    given = {"ANNOTATIONS": "avqa", "VIDEOS": "videos", "OUTPUT": "out", "CALLS": str(folder / "calls"), "PATH": path}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CHECKER")}
    run = [["bash", "-n", str(RECIPES / "run.sh")], ["bash", str(RECIPES / "run.sh")]]
    for command in run:
        subprocess.run(command, env={**kept, **given, **environment}, check=True, capture_output=True, timeout=120)
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    return calls_of(tmp_path_factory.mktemp("stubs"))


def test_the_checker_is_one_that_run_sh_serves(calls) -> None:
    (verdicts,) = [call for call in calls if "dataset_builders/verdicts.py" in call]
    args = parse_arguments(VerdictsArguments, None, verdicts[2:])
    (served,) = [call for call in calls if call[:2] == ["vllm", "serve"] and call[2] == args.checker]
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


def test_every_command_of_the_pipeline_is_one_that_its_script_takes(calls, parse) -> None:
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
            script, training, model = parse(recipe, arguments[at + 1 :])
            assert training.output_dir == f"out/{recipe}-{script.selection}" and model.model_name_or_path
            assert (script.traces is None) == (script.selection == GROUND_TRUTH)
            assert arguments[3:5] == ["--num_processes", {"sft": "8", "grpo": "6"}[recipe]]
            seen.append(f"{recipe}-{script.selection}")
    rows = ["sft-ground_truth", "sft-label", "sft-cot", "sft-agfv", "sft-tts_agfv", "grpo-label", "grpo-tts_agfv"]
    assert seen == ["avqa_audio", "traces", "verdicts", "cot_corpus", *rows, *["run"] * (2 + len(rows)), "report"]


def test_the_full_method_starts_from_its_sft_and_samples_from_it(calls) -> None:
    served = [arguments[1] for program, *arguments in calls if program == "vllm"]
    teacher, instruct = "Qwen/Qwen2.5-VL-32B-Instruct", "Qwen/Qwen2-Audio-7B-Instruct"
    assert served == [teacher, "Qwen/Qwen2.5-Omni-7B", instruct, "out/sft-tts_agfv/model"]
    trained = [call for call in calls if "recipes/grpo.py" in call]
    assert [call[call.index("--model_name_or_path") + 1] for call in trained] == served[2:]
