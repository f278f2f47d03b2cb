"""AudioGRPOTrainer: its log-probabilities equal those of a direct forward with the clip of each row; resuming; logs."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from peft import LoraConfig
from transformers import Qwen2AudioForConditionalGeneration
from trl import GRPOConfig
from trl.trainer.utils import create_model_from_path

from sightsound.cli import InputError
from sightsound.data.audio import encode_flac
from sightsound.method import rewards as rewards_module
from sightsound.method.rewards import find_rewards, format_reward
from sightsound.models.family import ClipFeatures, family_of
from sightsound.training.grpo import ZERO_ADVANTAGE_BATCHES, check_fills_a_batch
from sightsound.training.rollout_buffer import buffer_file
from tests.support.trainers import make_rows, make_trainer, some_reward


@pytest.fixture(scope="module")
def rows(questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return make_rows(questions)


def direct_logps(
    model: torch.nn.Module, batch: dict[str, Any], audio: list[ClipFeatures], temperature: float = 1.0
) -> torch.Tensor:
    """Log-probabilities of the completion tokens by a plain forward with the clips, `(rows, completion length)`."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, **family_of(model.config).stack_features(audio)).logits
    logps = torch.log_softmax(logits[:, :-1].float() / temperature, dim=-1).gather(-1, ids[:, 1:, None])[..., 0]
    return logps[:, -batch["completion_ids"].shape[1] :]


@pytest.mark.parametrize("temperature", [1.0, 1.3])
def test_policy_old_and_reference_logps_equal_a_direct_forward_with_the_clip(
    student_checkpoint, rows, tmp_path, temperature
) -> None:
    # Two iterations per batch make the trainer keep the old policy's log-probabilities.
    settings = {"num_iterations": 2, "per_device_train_batch_size": 16, "temperature": temperature}
    trainer = make_trainer(student_checkpoint, rows, tmp_path, **settings)
    trainer.model.train()
    batch = trainer._generate_and_score_completions([row for row in rows for _ in range(4)])
    shown = batch["completion_mask"].bool()
    model = Qwen2AudioForConditionalGeneration.from_pretrained(student_checkpoint)
    expected = direct_logps(model, batch, batch["audio"], temperature)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    policy, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, batch["completion_ids"].shape[1])
    for logps in (policy, batch["old_per_token_logps"], batch["ref_per_token_logps"]):
        assert (logps - expected)[shown].abs().max() < 1e-5
    other_clips = batch["audio"][4:] + batch["audio"][:4]
    assert (direct_logps(model, batch, other_clips, temperature) - expected)[shown].abs().max() > 1e-3


def test_each_clip_is_encoded_once_per_forward(student_checkpoint, rows, tmp_path) -> None:
    trainer = make_trainer(student_checkpoint, rows, tmp_path, per_device_train_batch_size=16, beta=0.0)
    tower = trainer._tower_of(trainer.model)
    trainer._generate_and_score_completions([row for row in rows for _ in range(4)])
    assert tower.rows_encoded == 4  # 16 completions of 4 clips, in one prefill


def test_sharing_a_clip_does_not_mix_clips_up(student_checkpoint, rows, tmp_path) -> None:
    """With groups in any order, every sequence keeps its own clip."""
    trainer = make_trainer(student_checkpoint, rows, tmp_path, per_device_train_batch_size=16)
    order = [0, 1, 0, 2, 3, 1, 2, 0]
    audio = trainer._read_audio([rows[i]["audio"] for i in order])
    tower = trainer.model.model.audio_tower
    features = trainer._family.stack_features(audio)["input_features"]
    with torch.no_grad():
        alone = tower(features).last_hidden_state
        with trainer._tower_of(trainer.model).sharing(audio):
            shared = tower(features).last_hidden_state
    assert torch.allclose(alone, shared, atol=1e-6)
    assert not torch.allclose(alone[0], alone[1], atol=1e-3)


def test_training_changes_the_weights_and_logs_reward_and_kl(student_checkpoint, rows, tmp_path) -> None:
    trainer = make_trainer(student_checkpoint, rows, tmp_path)
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "kl" in entry]
    assert len(logged) == 2 and all("reward" in entry for entry in logged)
    assert logged[0]["kl"] < 1e-6 < logged[1]["kl"]  # the first batch is the reference's own, the second no longer
    assert any(not torch.equal(before[name], weight) for name, weight in trainer.model.named_parameters())
    assert not hasattr(trainer.model.config, "image_token_id")


def test_no_model_is_spread_over_all_gpus_that_a_process_sees(student_checkpoint, rows, tmp_path, monkeypatch) -> None:
    """As TRL does by default where there is a GPU; in several processes such a model cannot be trained."""
    asked = []

    def load(*args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs.get("device_map", "auto"))
        return create_model_from_path(*args, **kwargs)

    for module in ("sightsound.training.grpo", "trl.trainer.grpo_trainer"):
        monkeypatch.setattr(f"{module}.create_model_from_path", load)
    make_trainer(student_checkpoint, rows, tmp_path)
    assert asked == [None, None]  # policy and reference


def test_the_loss_of_a_mixture_of_experts_is_refused(student_checkpoint, rows, tmp_path) -> None:
    with pytest.raises(InputError, match=r"^router_aux_loss_coef: 0.001 is for SFT alone; leave it out of GRPO$"):
        make_trainer(student_checkpoint, rows, tmp_path, router_aux_loss_coef=0.001)


def test_arguments_of_the_chat_template_are_refused(student_checkpoint, rows, tmp_path) -> None:
    with pytest.raises(InputError, match=r"^chat_template_kwargs: {'enable_thinking': False}: prompts are written as the "):
        make_trainer(student_checkpoint, rows, tmp_path, chat_template_kwargs={"enable_thinking": False})


def test_tokens_that_a_yaml_suppresses_are_added_to_the_placeholder(student_checkpoint, rows, tmp_path) -> None:
    trainer = make_trainer(student_checkpoint, rows, tmp_path, generation_kwargs={"suppress_tokens": [5]})
    assert trainer.generation_config.suppress_tokens == [trainer.model.config.audio_token_id, 5]
    assert trainer.args.generation_kwargs == {"suppress_tokens": [5]}
    assert trainer.args.model_init_kwargs is None


def test_the_audio_placeholder_is_never_sampled(student_checkpoint, rows, tmp_path) -> None:
    trainer = make_trainer(student_checkpoint, rows, tmp_path)
    assert trainer.generation_config.suppress_tokens == [trainer.model.config.audio_token_id]


def test_a_clip_longer_than_the_window_is_cut(student_checkpoint, rows, tmp_path) -> None:
    trainer = make_trainer(student_checkpoint, rows, tmp_path)
    noise = np.random.default_rng(0).normal(0, 0.1, 5 * 16_000).astype(np.float32)
    whole, first = ({"bytes": encode_flac(wave), "path": None} for wave in (noise, noise[: 2 * 16_000]))
    long_clip, short_clip = trainer._read_audio([whole, first])
    assert torch.equal(long_clip.tensors[0], short_clip.tensors[0]) and long_clip.num_tokens == short_clip.num_tokens


TIMES = ("time/", "step_time", "train_", "total_flos")  # the last entry sums up what one process did


@pytest.mark.parametrize(
    "changed",
    [
        {"gradient_accumulation_steps": 1},
        {"num_iterations": 2, "gradient_accumulation_steps": 4, "steps_per_generation": 4},
        {"gradient_accumulation_steps": 1, "steps_per_generation": 4, "logging_steps": 2},
        {"gradient_accumulation_steps": 1, "steps_per_generation": 4, "num_iterations": 2},
        {"max_steps": 6, "save_steps": 5},
    ],
    ids=["at its end", "second iteration", "steps_per_generation", "both", "third epoch"],
)
def test_a_run_resumed_anywhere_equals_an_uninterrupted_one(changed, student_checkpoint, rows, tmp_path) -> None:
    """Weights and logs, also where the rollout buffer is half used or the checkpoint is in a later epoch."""
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 3, **changed}
    whole = make_trainer(student_checkpoint, rows, tmp_path, **settings)
    whole.train()
    resumed = make_trainer(student_checkpoint, rows, tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{settings['save_steps']}"))
    expected = dict(whole.model.named_parameters())
    for name, weight in resumed.model.named_parameters():
        assert torch.equal(weight, expected[name]), name
    start = dict(Qwen2AudioForConditionalGeneration.from_pretrained(student_checkpoint).named_parameters())
    assert any(not torch.equal(start[name], weight) for name, weight in expected.items())
    logs = [
        [{k: v for k, v in entry.items() if not k.startswith(TIMES)} for entry in trainer.state.log_history]
        for trainer in (whole, resumed)
    ]
    assert logs[0] == logs[1]


def test_a_checkpoint_where_an_epoch_cut_an_accumulation_short_resumes(student_checkpoint, rows, tmp_path) -> None:
    """Three micro-steps an epoch, two an optimizer step: the second has one, and the rollout buffer is used up after it."""
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "steps_per_generation": 3}
    batch = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
    whole = make_trainer(student_checkpoint, rows[:3], tmp_path, **settings, **batch)
    whole.train()
    resumed = make_trainer(student_checkpoint, rows[:3], tmp_path, **settings, **batch)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    expected = dict(whole.model.named_parameters())
    assert all(torch.equal(weight, expected[name]) for name, weight in resumed.model.named_parameters())


def test_a_half_used_rollout_buffer_needs_the_number_of_processes_that_wrote_it(student_checkpoint, rows, tmp_path) -> None:
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "num_iterations": 2}
    make_trainer(student_checkpoint, rows, tmp_path, **settings).train()
    buffer_file(tmp_path / "checkpoint-1", 0).unlink()
    with pytest.raises(InputError, match="number of processes that wrote"):
        resumed = make_trainer(student_checkpoint, rows, tmp_path, **settings)
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_logs_hold_the_time_of_each_part_and_the_rows_that_were_not_encoded_again(student_checkpoint, rows, tmp_path) -> None:
    trainer = make_trainer(student_checkpoint, rows, tmp_path, max_steps=1, log_completions=True, report_to="tensorboard")
    trainer.train()
    log = trainer.state.log_history[0]
    parts = [log[f"time/{part}"] for part in ("rollout_s", "score_s", "train_s")]
    assert min(parts) > 0 and sum(parts) == pytest.approx(log["step_time"], rel=0.05)
    # 8 completions of 2 clips: sampled, scored under the reference, trained on in 2 micro-batches of one clip each.
    assert log["audio_tower/rows_saved"] == 3 * 8 - 3 * 2
    assert log["unanswered"] == 1.0  # random weights
    assert 0 <= log["frac_reward_zero_std"] <= 1 and "rewards/accuracy_reward/mean" in log
    (table,) = (tmp_path / "completions").glob("*.parquet")
    columns = pq.read_table(table).to_pylist()
    assert len(columns) == 8 and {"prompt", "completion", "accuracy_reward"} <= columns[0].keys()
    assert table.stat().st_size < 50_000 and "bytes" not in str(columns[0]["prompt"])
    assert list(tmp_path.rglob("events.out.tfevents*"))


def test_a_frozen_tower_keeps_its_weights_and_the_rest_learns(student_checkpoint, rows, tmp_path) -> None:
    trainer = make_trainer(student_checkpoint, rows, tmp_path, freeze_audio_tower=True)
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    changed = {name for name, weight in trainer.model.named_parameters() if not torch.equal(before[name], weight)}
    assert not [name for name in changed if "audio_tower" in name]
    assert [name for name in changed if "projector" in name] and [name for name in changed if "language_model" in name]


def test_a_reward_that_is_added_trains_with_its_weight(student_checkpoint, rows, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(rewards_module, "some_reward", some_reward, raising=False)
    names, weights = ["accuracy_reward", "some_reward"], [1.0, 0.5]
    trainer = make_trainer(student_checkpoint, rows, tmp_path, rewards=find_rewards(names, weights), reward_weights=weights)
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["rewards/some_reward/mean"] > 0
    assert log["reward"] == pytest.approx(log["rewards/accuracy_reward/mean"] + 0.5 * log["rewards/some_reward/mean"])


def test_rewards_that_never_differ_stop_the_run(student_checkpoint, rows, tmp_path) -> None:
    trainer = make_trainer(student_checkpoint, rows, tmp_path, max_steps=20, rewards=[format_reward])
    with pytest.raises(InputError, match="first 10 batches all completions of every prompt got equal rewards"):
        trainer.train()
    assert trainer.state.global_step == ZERO_ADVANTAGE_BATCHES - 1


@pytest.mark.parametrize("share_prompts", [True, False])
def test_lora_with_gradient_checkpointing_trains_only_the_adapter(share_prompts, student_checkpoint, rows, tmp_path) -> None:
    """The reference is the model without its adapter: their KL is zero until the first step, and then it is not."""
    pattern = r".*language_model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"
    lora = LoraConfig(r=4, target_modules=pattern, task_type="CAUSAL_LM")
    trainer = make_trainer(
        student_checkpoint, rows, tmp_path, gradient_checkpointing=True, peft_config=lora, share_prompts=share_prompts
    )
    trainer.train()
    kl = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
    assert kl[0] < 1e-6 < kl[1]
    trained = [name for name, weight in trainer.model.named_parameters() if weight.requires_grad]
    assert trained and all("lora_" in name for name in trained)


def sizes(folder: Path, rows: int, steps: int, generations: int) -> GRPOConfig:
    settings = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": steps, "num_generations": generations}
    return GRPOConfig(output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", **settings)


@pytest.mark.parametrize(
    ("questions", "rows", "steps", "generations"),
    [(12, 104, 1, 8), (3, 8, 4, 8), (1, 64, 2, 8), (5, 16, 8, 4), (7, 6, 20, 3), (1, 1, 48, 8), (2, 512, 1, 2)],
)
def test_too_few_questions_for_a_batch_are_answered_with_settings_that_fit(questions, rows, steps, generations, tmp_path):
    with pytest.raises(InputError, match=f"^{questions} questions do not fill one batch of ") as refused:
        check_fills_a_batch(questions, sizes(tmp_path, rows, steps, generations))
    message = str(refused.value)
    for field in ("per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation", "num_generations"):
        assert field in message
    found = re.search(r"set per_device_train_batch_size: (\d+) and gradient_accumulation_steps: (\d+)", message)
    corrected = sizes(tmp_path, int(found[1]), int(found[2]), generations)
    check_fills_a_batch(questions, corrected)
    assert corrected.generation_batch_size // generations >= (questions + 1) // 2, "a step wastes most of the questions"
