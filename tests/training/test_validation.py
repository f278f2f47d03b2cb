"""The best checkpoint by validation accuracy: what it is measured on, that it leaves training alone, and that it is loaded."""

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoProcessor, Trainer
from trl import GRPOConfig, SFTConfig

from sightsound.cli import InputError
from sightsound.method.answers import is_correct, parse_answer
from sightsound.method.prompts import COT_PROMPT, DIRECT_PROMPT, question_text
from sightsound.training.collator import IGNORED, CompletionCollator
from sightsound.training.grpo import AudioGRPOTrainer
from sightsound.training.validation import METRIC, ValidationSet, early_stopping, evenly_spaced, validation_set
from tests.support.trainers import settings, sft_trainer


def evaluating(**changed: Any) -> dict[str, Any]:
    """Every step is evaluated and saved, and the best one loaded."""
    best = {"load_best_model_at_end": True, "metric_for_best_model": METRIC}
    return {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, **best, **changed}


def grpo_trainer(checkpoint: Path, questions: list[dict[str, Any]], output: Path, **changed: Any) -> AudioGRPOTrainer:
    changed = {"per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 8, **changed}
    validation = ValidationSet(Dataset.from_list(questions[:3]), COT_PROMPT, batch_size=2, max_tokens=4)
    prompt = [{"role": "user", "content": "What is heard?"}]
    return AudioGRPOTrainer(
        str(checkpoint),
        reward_funcs=[lambda completions, **_: [float(len(c[0]["content"]) % 3) for c in completions]],
        args=GRPOConfig(**settings(output, **changed)),
        train_dataset=Dataset.from_list([{"prompt": prompt, "audio": row["audio"]} for row in questions[:4]]),
        validation=validation,
        processing_class=AutoProcessor.from_pretrained(checkpoint),
    )


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def are_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_questions_are_spread_over_the_split() -> None:
    rows = Dataset.from_dict({"id": [str(i) for i in range(10)]})
    assert evenly_spaced(rows, 4)["id"] == ["0", "2", "5", "7"]
    assert evenly_spaced(rows, 10)["id"] == rows["id"]
    with pytest.raises(InputError, match="num_validation 11: the split has 10 questions"):
        evenly_spaced(rows, 11)


def accuracies(trainer: Trainer) -> dict[int, float]:
    return {entry["step"]: entry[METRIC] for entry in trainer.state.log_history if METRIC in entry}


def log(trainer: Trainer) -> list[dict[str, Any]]:
    """What was logged, but for how long it took."""
    timed = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "step_time")
    return [
        {name: value for name, value in entry.items() if not name.startswith(("time/", *timed))}
        for entry in trainer.state.log_history
    ]


def test_accuracy_is_that_of_greedy_answers_by_the_projects_grader(student_checkpoint, questions, tmp_path) -> None:
    """And a run may keep the checkpoints alone that are the best so far."""
    best = evaluating(eval_steps=10, save_strategy="best")
    trainer = sft_trainer(student_checkpoint, questions, tmp_path, max_steps=40, **best)
    trainer.train()
    collator, right, unanswered = CompletionCollator(trainer.processing_class), 0, 0
    trainer.model.eval()
    for row in trainer.validation.rows:  # one by one, where evaluation answers in batches
        prompt = question_text(row["question"], row["choices"], DIRECT_PROMPT)
        message = {"prompt": [{"role": "user", "content": prompt}], "audio": row["audio"], "completion": ""}
        batch = collator([message])
        inputs = {name: value for name, value in batch.items() if name not in ("labels", "input_ids", "attention_mask")}
        ids = batch["input_ids"][batch["labels"] == IGNORED][None]
        output = trainer.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs, max_new_tokens=12)
        answer = parse_answer(
            trainer.processing_class.decode(output[0, ids.shape[1] :], skip_special_tokens=True), row["choices"]
        )
        right, unanswered = right + is_correct(answer, row["answer"], row["choices"]), unanswered + (answer.index is None)
    entry = trainer.state.log_history[-2]
    assert (entry["step"], entry[METRIC], entry["eval_unanswered"]) == (40, right / 5, unanswered / 5)
    seen = accuracies(trainer)
    assert seen[10] < entry[METRIC] == 0.8, "four questions were learnt by heart, the fifth was never seen"
    risen = {f"checkpoint-{step}" for step in seen if all(seen[step] > seen[earlier] for earlier in seen if earlier < step)}
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == risen


@pytest.mark.parametrize("make", [sft_trainer, grpo_trainer])
def test_the_best_checkpoint_is_what_training_ends_with(make, student_checkpoint, questions, tmp_path) -> None:
    """Nothing is answered after so few steps; of equals, the first is the best."""
    trainer = make(student_checkpoint, questions, tmp_path, max_steps=3, **evaluating())
    trainer.train()
    assert accuracies(trainer) == {1: 0.0, 2: 0.0, 3: 0.0}
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")
    other = make(student_checkpoint, questions, tmp_path / "one", max_steps=1)
    other.train()
    best = weights(other.model)
    assert are_equal(weights(trainer.model), best)
    if make is grpo_trainer:
        # What is wrong upstream, and the reason for ours: once this fails, ours can go.
        trainer._load_from_checkpoint(str(tmp_path / "checkpoint-3"))
        last = weights(trainer.model)
        assert not are_equal(last, best)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Trainer._load_best_model(trainer)
        assert are_equal(weights(trainer.model), last), "it has loaded nothing"


@pytest.mark.parametrize("make", [sft_trainer, grpo_trainer])
def test_evaluation_leaves_training_as_it_is(make, student_checkpoint, questions, tmp_path) -> None:
    """LoRA's dropout and GRPO's samples are drawn as if nothing had been evaluated, and no logged figure is touched."""
    plain = make(student_checkpoint, questions, tmp_path / "plain", max_steps=3)
    plain.train()
    evaluated = make(student_checkpoint, questions, tmp_path / "eval", max_steps=3, eval_strategy="steps", eval_steps=1)
    evaluated.train()
    assert are_equal(weights(plain.model), weights(evaluated.model))
    assert len(accuracies(evaluated)) == 3
    assert log(plain) == [entry for entry in log(evaluated) if METRIC not in entry]


def arguments(**changed: Any) -> SimpleNamespace:
    return SimpleNamespace(
        **{"early_stopping_patience": None, "validation_split": "validation", "num_validation": 4, **changed}
    )


def test_early_stopping_counts_on_after_a_kill(student_checkpoint, questions, tmp_path) -> None:
    patient = early_stopping(arguments(early_stopping_patience=3))
    resumable = {"restore_callback_states_from_checkpoint": True, "save_total_limit": 5}
    steps = evaluating(max_steps=9, **resumable)
    trainer = sft_trainer(student_checkpoint, questions, tmp_path, **steps)
    trainer.add_callback(patient[0])
    trainer.train()
    assert list(accuracies(trainer)) == [1, 2, 3, 4], "three evaluations after the best"
    resumed = sft_trainer(student_checkpoint, questions, tmp_path, **steps)
    resumed.add_callback(early_stopping(arguments(early_stopping_patience=3))[0])
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert list(accuracies(resumed)) == [1, 2, 3, 4]


def test_sft_goes_on_as_if_it_had_not_been_interrupted(student_checkpoint, questions, tmp_path) -> None:
    """Weights and log. The checkpoint falls between two logs, and a metric of TRL's counts from the start."""
    steps = {"max_steps": 5, "logging_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = sft_trainer(student_checkpoint, questions, tmp_path, **steps)
    whole.train()
    resumed = sft_trainer(student_checkpoint, questions, tmp_path, **steps)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert are_equal(weights(whole.model), weights(resumed.model))
    assert log(whole) == log(resumed) and {entry["step"] for entry in log(whole)} == {2, 4, 5}


@pytest.mark.parametrize(
    ("flags", "script", "entry"),
    [
        ({}, {"early_stopping_patience": 2}, "early_stopping_patience needs evaluations: set eval_strategy: steps"),
        ({"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "reward"}, {}, "set it to eval_accuracy"),
        ({"eval_strategy": "steps", "eval_steps": 1}, {"num_validation": 5}, "the split has 4 questions"),
    ],
)
def test_a_selection_that_cannot_be_made_is_refused(flags, script, entry, tiny_dataset, tmp_path) -> None:
    args = SFTConfig(**settings(tmp_path, **flags))
    with pytest.raises(InputError, match=entry):
        validation_set(arguments(audio=str(tiny_dataset), validation_max_tokens=8, **script), args, DIRECT_PROMPT)


def test_evaluation_under_fsdp_is_refused() -> None:
    """It would hang: each forward waits for all processes, and they answer for different numbers of tokens."""
    state = SimpleNamespace(distributed_type=SimpleNamespace(value="FSDP"))
    args = SimpleNamespace(eval_strategy="steps", distributed_state=state)
    with pytest.raises(InputError, match="evaluation does not work under FSDP"):
        validation_set(arguments(audio="no/such-dataset"), args, DIRECT_PROMPT)


def test_the_best_checkpoint_is_by_accuracy_where_no_metric_is_named(tiny_dataset) -> None:
    """transformers then fills in the loss, which nothing measures here."""
    state = SimpleNamespace(distributed_type=SimpleNamespace(value="NO"))
    args = SimpleNamespace(
        eval_strategy="steps", distributed_state=state, metric_for_best_model="loss", per_device_eval_batch_size=2
    )
    validation_set(arguments(audio=str(tiny_dataset), validation_max_tokens=8), args, DIRECT_PROMPT)
    assert args.metric_for_best_model == "eval_accuracy" and args.greater_is_better


def test_without_evaluation_nothing_is_read(tmp_path) -> None:
    assert validation_set(arguments(audio="no/such-dataset"), SFTConfig(**settings(tmp_path)), DIRECT_PROMPT) is None
