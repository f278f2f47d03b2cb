"""
`recipes/grpo.py` with the same completions however many processes sample: what is left of a run is exactly comparable.

Each process draws its own completions, so two runs with different numbers of processes train on different ones. Here the real
sampling takes place and is then replaced, group by group, by texts of which some are right and some have the format.
"""

import runpy
from typing import Any

from sightsound.training.distributed import run_distributed
from sightsound.training.grpo import AudioGRPOTrainer
from tests.support.tiny import REPO


TEXTS = ("<think>a dog</think><answer>{}</answer>", "<answer>{}</answer>", "a bell and then a dog, so {}")

sample = AudioGRPOTrainer._generate_single_turn


def sample_then_replace(trainer: Any, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
    sample(trainer, prompt_ids, *args, **kwargs)
    completions = []
    for row, ids in enumerate(prompt_ids):
        number = row % trainer.num_generations  # rows of a group follow each other
        text = TEXTS[(number + sum(ids)) % len(TEXTS)].format("ABCD"[(number + trainer.state.global_step) % 4])
        completions.append(trainer.processing_class.tokenizer(text)["input_ids"])
    return completions, None


if __name__ == "__main__":
    AudioGRPOTrainer._generate_single_turn = sample_then_replace
    run_distributed(runpy.run_path(str(REPO / "recipes" / "grpo.py"))["main"])
