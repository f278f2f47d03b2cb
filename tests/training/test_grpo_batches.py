"""Too few questions for one batch of GRPO: the message has settings with which there are enough."""

import re

import pytest

from sightsound.cli import InputError
from sightsound.training.grpo_batches import check_fills_a_batch


def arguments(folder, rows: int, steps: int, generations: int):
    from trl import GRPOConfig

    sizes = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": steps, "num_generations": generations}
    return GRPOConfig(output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", **sizes)


@pytest.mark.parametrize(
    ("questions", "rows", "steps", "generations"),
    [(12, 104, 1, 8), (3, 8, 4, 8), (1, 64, 2, 8), (5, 16, 8, 4), (7, 6, 20, 3), (1, 1, 48, 8), (2, 512, 1, 2)],
)
def test_the_numbers_of_the_message_fit_the_questions(questions, rows, steps, generations, tmp_path):
    with pytest.raises(InputError, match=f"^{questions} questions do not fill one batch of ") as refused:
        check_fills_a_batch(questions, arguments(tmp_path, rows, steps, generations))
    told = str(refused.value)
    for field in ("per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation", "num_generations"):
        assert field in told
    found = re.search(r"set per_device_train_batch_size: (\d+) and gradient_accumulation_steps: (\d+)", told)
    corrected = arguments(tmp_path, int(found[1]), int(found[2]), generations)
    check_fills_a_batch(questions, corrected)
    assert corrected.generation_batch_size // generations >= (questions + 1) // 2, "a step wastes most of the questions"
