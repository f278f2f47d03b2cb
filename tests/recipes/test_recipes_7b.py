"""The recipes for real students: each YAML is read by its script's own dataclasses, and its sizes fit together."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from sightsound.method.selection import ARMS
from sightsound.models.family import family_of
from tests.support.families import build_family
from tests.support.recipes import launch
from tests.support.students import GRPO_ARMS, RECIPES, SFT_ARMS, STUDENTS, recipe_parser, released_model, yaml_of
from tests.support.tiny import write_corpus


SFT = [(student, arm) for student in STUDENTS for arm in SFT_ARMS]
GRPO = [(student, arm) for student in STUDENTS for arm in GRPO_ARMS]
ON_ONE_GPU = sorted(RECIPES.glob("*/grpo_lora.yaml"))


PLACES = ["--audio", "a", "--output_dir", "o"]


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Any:
    return recipe_parser(monkeypatch)


def test_there_is_a_recipe_for_every_row_of_table_2_and_every_student() -> None:
    assert {"audio_flamingo_3", "qwen2_5_omni_3b", "qwen2_5_omni_7b", "qwen2_audio_7b"} <= set(STUDENTS)
    for stage, rows in (("sft", SFT), ("grpo", GRPO)):
        assert [row for row in rows if not Path(yaml_of(row[0], stage, row[1])).is_file()] == []


@pytest.mark.parametrize(("student", "arm"), SFT)
def test_sft_is_read_and_a_step_on_eight_gpus_has_64_rows(student, arm, parse) -> None:
    script, training, model = parse("sft", "--config", yaml_of(student, "sft", arm), "--selection", arm, *PLACES)
    assert script.selection == arm and arm in ARMS and script.traces is None
    assert 8 * training.per_device_train_batch_size * training.gradient_accumulation_steps == 64
    assert model.use_peft and model.lora_target_modules is None, "taken from the student's family"
    assert_best_is_kept(script, training)


@pytest.mark.parametrize(("student", "arm"), GRPO)
def test_grpo_is_read_and_a_step_on_six_gpus_has_24_prompts_of_8(student, arm, parse) -> None:
    config = yaml_of(student, "grpo", arm)
    script, training, model = parse("grpo", "--config", config, "--selection", arm, "--traces", "t", *PLACES)
    assert script.selection == arm and script.freeze_audio_tower and script.share_prompts
    assert model.model_name_or_path is None or arm == "label", "the full method starts from its SFT"
    assert not model.use_peft and model.attn_implementation == "sdpa", "with which prompts are shared"
    # TRL knows one process here, and six on the training GPUs.
    completions = 6 * training.generation_batch_size // training.world_size
    assert (completions, completions // training.num_generations) == (192, 24)
    assert training.steps_per_generation == training.gradient_accumulation_steps, "one generation per optimizer step"
    assert training.use_vllm and training.vllm_mode == "server"
    assert_best_is_kept(script, training)


@pytest.mark.parametrize("config", ON_ONE_GPU, ids=lambda path: path.parent.name)
def test_grpo_on_one_gpu_trains_a_lora_on_as_many_completions(config, parse) -> None:
    script, training, model = parse("grpo", "--config", str(config), "--traces", "t", *PLACES)
    assert script.selection == "tts_agfv" and model.use_peft and model.lora_target_modules is None
    assert (training.generation_batch_size, training.generation_batch_size // training.num_generations) == (192, 24)
    assert training.steps_per_generation == training.gradient_accumulation_steps
    assert training.per_device_train_batch_size == training.num_generations, "a prompt's completions are in one batch"
    assert training.use_vllm and training.vllm_mode == "colocate"
    assert training.vllm_max_model_length > training.max_completion_length
    with_all_weights = yaml.safe_load(config.with_name("grpo.yaml").read_text())
    assert training.learning_rate == pytest.approx(10 * with_all_weights["learning_rate"])
    assert_best_is_kept(script, training)


def assert_best_is_kept(script: Any, training: Any) -> None:
    assert training.load_best_model_at_end and training.metric_for_best_model == "eval_accuracy" and training.greater_is_better
    assert training.eval_strategy == "steps" and training.save_steps % training.eval_steps == 0
    assert script.validation_split == "validation" and not training.push_to_hub


@pytest.mark.parametrize("config", sorted(RECIPES.glob("*_7b/verifier.yaml")), ids=lambda path: path.parent.name)
def test_the_verifier_has_a_recipe_too(config, parse) -> None:
    _, _, model = parse("verifier", "--config", str(config), "--verdicts", "v", *PLACES)
    assert model.use_peft and model.lora_target_modules is None


# Settings in which students differ, or that a student has in several arms' YAMLs.
OWN = {"model_name_or_path", "selection", "validation_max_tokens"}


@pytest.mark.parametrize(("stage", "arm"), [("sft", "tts_agfv"), ("grpo", "tts_agfv")])
def test_students_differ_in_nothing_but_the_model(stage, arm) -> None:
    """So that a table compares students, and not settings."""
    settings = [yaml.safe_load(Path(yaml_of(student, stage, arm)).read_text()) for student in STUDENTS]
    shared = [{name: value for name, value in each.items() if name not in OWN} for each in settings]
    assert all(each == shared[0] for each in shared)


@pytest.mark.parametrize("student", STUDENTS)
def test_the_memory_of_a_readme_is_that_of_the_released_sizes(student) -> None:
    """Parameters are counted on the student's own class; bytes follow by the README's arithmetic."""
    model = released_model(student)
    family = family_of(model.config)
    modules = dict(model.named_modules())
    targets = [name for name in modules if re.fullmatch(family.lora_target_modules, name)]
    assert all(family.in_language_model(name) for name in targets)
    lora = sum(8 * (modules[name].in_features + modules[name].out_features) for name in targets) / 1e9
    total = sum(parameter.numel() for parameter in model.parameters()) / 1e9
    family.freeze_fixed_parts(model)
    family.audio_tower_of(model).requires_grad_(False)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) / 1e9
    state = trained * (2 + 4 + 8)
    text = " ".join((RECIPES / student / "README.md").read_text().split())
    for figure in (
        f"has {total:.3f} B parameters",
        f"{1000 * lora:.1f} M (rank 8 on {len(targets)} projections)",
        f"{1000 * lora:.1f} M x (4 + 4 + 8) B = {16 * lora:.1f} GB",
        f"| {2 * total:.1f} GB |",
        f"{trained:.3f} B x (2 + 4 + 8) B = {state:.1f} GB",
        f"{4 * total + state:.1f} GB / 6 = {(4 * total + state) / 6:.1f} GB",
        f"{trained:.3f} B x 12 B + {2 * total:.1f} GB = {12 * trained + 2 * total:.0f} GB",
    ):
        assert figure in text, figure


# What a CPU and a tiny model need in place of the YAMLs' sizes.
ON_A_CPU = {
    "use_cpu": "true",
    "bf16": "false",
    "dtype": "float32",
    "gradient_checkpointing": "false",
    "max_steps": 2,
    "eval_steps": 1,
    "save_steps": 1,
    "logging_steps": 1,
    "num_validation": 4,
    "validation_max_tokens": 8,
    "report_to": "none",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "student", "of_grpo"),
    [("qwen2_5_omni", "qwen2_5_omni_7b", "grpo.yaml"), ("audio_flamingo_3", "audio_flamingo_3", "grpo_lora.yaml")],
)
def test_the_yamls_of_another_student_train_a_small_model_of_its_family(
    family, student, of_grpo, questions, tiny_dataset, tmp_path
) -> None:
    """The label arm of SFT, then GRPO from its merged model; transformers samples in place of vLLM."""
    given = {"audio": tiny_dataset, "traces": write_corpus(questions, tmp_path / "corpus"), "selection": "label", **ON_A_CPU}
    sft, grpo = tmp_path / "sft", tmp_path / "grpo"
    base = build_family(family, tmp_path / "base")
    config, rows = RECIPES / student / "sft.yaml", {"per_device_train_batch_size": 2}
    done = launch("sft", config=config, model_name_or_path=base, output_dir=sft, **given, **rows)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "modules of the language model, 0 of the audio tower" in done.stdout
    given |= {"gradient_accumulation_steps": 2, "max_completion_length": 8, "use_vllm": "false"}
    done = launch("grpo", config=RECIPES / student / of_grpo, model_name_or_path=sft / "model", output_dir=grpo, **given)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (grpo / "model" / "config.json").is_file()
