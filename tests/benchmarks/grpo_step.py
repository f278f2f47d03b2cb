"""
Time of one GRPO step of ours against the plain way, which repeats each clip and each prompt for each of its completions.

    python -m tests.benchmarks.grpo_step [--family qwen2_5_omni] [--seconds 10 30] [--num_new_tokens 100] [--repeats 3]

Both are the same trainer with the same model, clips, prompts, seed, optimizer and micro-batches: 4 prompts with 8 completions
each in an optimizer step, 8 completions in a micro-batch, KL against a reference model. The plain way samples with
`model.generate` on 32 rows, scores each row by itself, sends a spectrogram per row through the audio tower and leaves the rows
as TRL shuffles them. The two have to write the same completions and to get the same loss and the same gradient.

The model has random weights and the proportions of Qwen2-Audio: the audio tower has 8 % of the language model's parameters, the
head a tenth of its layers'. Attention and convolutions weigh more in small models, so that the tower takes more of the work
than in the released 7B; both shares are printed, and what the 7B has to gain, in FLOPs. The more tokens a completion has, the
less there is to share.
The ways take turns on one thread; compared are the medians of CPU-seconds, which other programs on the machine disturb less
than the clock. On an idle core it takes about four minutes.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sightsound.cli import InputError, parse_arguments, run
from tests.support.shapes import HEAD_SIZE, RELEASED, Shape, save_model


NUM_PROMPTS, NUM_GENERATIONS = 4, 8
MAX_APART = 1e-5  # of the loss and, relative to its norm, of the gradient of each weight
TEXT_TOKENS = 100  # of a prompt: template, question, four choices, instruction
AUDIO_TOKENS_PER_S = 25  # of both families
WAYS = ("ours", "plain")
PARTS = ("whole_s", "rollout_s", "score_s", "train_s", "wall_s")


@dataclass
class BenchmarkArguments:
    family: str = field(default="qwen2_audio", metadata={"help": "of the student", "choices": list(RELEASED)})
    seconds: list[int] | None = field(
        default=None, metadata={"help": "lengths of the clips, 25 audio tokens a second (default: 10 30)"}
    )
    num_new_tokens: int = field(default=100, metadata={"help": "longest completion", "minimum": 1})
    repeats: int = field(default=3, metadata={"help": "turns", "minimum": 1})
    width: int = field(default=256, metadata={"help": "hidden size of the language model, a multiple of 128", "minimum": 128})


def flops_ratio(shape: Shape, seconds: int, completion: int, is_sampling: bool, group: int = NUM_GENERATIONS) -> float:
    """
    FLOPs of the plain way to those of ours for one group: reference and training (a backward is two forwards), and sampling.
    """
    prompt, tower = AUDIO_TOKENS_PER_S * seconds + TEXT_TOKENS, shape.tower_flops(seconds)
    whole = prompt + completion
    packed = prompt - 1 + group * completion
    seen = prompt**2 / 2 + group * completion * (prompt + completion / 2)
    plain = group * (shape.language_flops(whole, whole**2 / 2, completion) + tower)
    ours = shape.language_flops(packed, seen, group * completion) + tower
    plain, ours = (1 + 3) * plain, (1 + 3) * ours
    if is_sampling:
        decoded = shape.language_flops(completion, completion * (prompt + completion / 2), completion)
        prefill = shape.language_flops(prompt, prompt**2 / 2, 1) + tower
        plain, ours = plain + group * (prefill + decoded), ours + prefill + group * decoded
    return plain / ours


def shape_of(family: str, width: int) -> Shape:
    return Shape(family, width, 4, 43 * width // 16, width // HEAD_SIZE, 19 * width // 4, 17 * width // 32, 1, 4)


def make_rows(seconds: int) -> list[dict[str, Any]]:
    """A question each about a clip of noise; the questions are of different lengths."""
    import numpy as np

    from sightsound.data.audio import encode_flac
    from sightsound.data.schema import SAMPLING_RATE
    from sightsound.method.prompts import COT_PROMPT, question_text

    rng = np.random.default_rng(0)
    rows = []
    for i in range(NUM_PROMPTS):
        noise = rng.normal(0, 0.1, seconds * SAMPLING_RATE).astype(np.float32)
        question = " ".join(["What is the", *["first"] * i, "sound after the siren?"])
        choices = ["a dog barking", "a church bell", "a whistle", "an engine"]
        content = question_text(question, choices, COT_PROMPT)
        rows.append({"prompt": [{"role": "user", "content": content}], "audio": {"bytes": encode_flac(noise), "path": None}})
    return rows


@dataclass
class Step:
    """One optimizer step; seconds of the CPU, but for `wall_s`."""

    whole_s: float = 0.0
    wall_s: float = 0.0
    rollout_s: float = 0.0
    sampled_s: float = 0.0  # rollout, then rewards and the reference's log-probabilities
    loss: float = 0.0
    completions: list[list[int]] = field(default_factory=list)
    gradients: dict[str, Any] = field(default_factory=dict)

    @property
    def score_s(self) -> float:
        return self.sampled_s - self.rollout_s

    @property
    def train_s(self) -> float:
        return self.whole_s - self.sampled_s


def take_step(way: str, checkpoint: Path, rows: list[dict[str, Any]], num_new_tokens: int, output_dir: Path) -> Step:
    """The first optimizer step of a fresh trainer."""
    from datasets import Dataset
    from transformers import AutoProcessor, PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from sightsound.training.grpo import AudioGRPOTrainer

    step = Step()

    def spend(part: str, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        result = method(*args, **kwargs)
        setattr(step, part, getattr(step, part) + time.process_time() - start)
        return result

    class TimedTrainer(AudioGRPOTrainer):
        def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
            return spend("rollout_s", super()._generate_single_turn, *args, **kwargs)

        def _generate_and_score_completions(self, *args: Any, **kwargs: Any) -> Any:
            return spend("sampled_s", super()._generate_and_score_completions, *args, **kwargs)

    class PlainTrainer(TimedTrainer):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, share_prompts=False, **kwargs)
            for tower in self._towers.values():
                tower.sharing = nullcontext

        def _prepare_inputs(self, generation_batch: Any) -> Any:
            return GRPOTrainer._prepare_inputs(self, generation_batch)

    class Watch(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            step.whole_s, step.wall_s = -time.process_time(), -time.perf_counter()

        def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
            step.gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}

        def on_step_end(self, *_: Any, **__: Any) -> None:
            step.whole_s, step.wall_s = step.whole_s + time.process_time(), step.wall_s + time.perf_counter()

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        step.completions = completion_ids
        return [float(sum(ids) % 3) for ids in completion_ids]

    args = GRPOConfig(
        output_dir=str(output_dir),
        per_device_train_batch_size=NUM_GENERATIONS,
        gradient_accumulation_steps=NUM_PROMPTS,
        num_generations=NUM_GENERATIONS,
        max_completion_length=num_new_tokens,
        max_steps=1,
        learning_rate=1e-6,
        beta=0.04,
        loss_type="grpo",
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )
    trainer = (TimedTrainer if way == "ours" else PlainTrainer)(
        str(checkpoint),
        reward_funcs=[reward],
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoProcessor.from_pretrained(checkpoint),
        callbacks=[Watch()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    step.loss = trainer.state.log_history[0]["loss"]
    return step


def check_alike(ours: Step, plain: Step) -> float:
    """The largest distance between the two gradients of a weight, relative to its norm."""
    if ours.completions != plain.completions:
        raise InputError("the two ways wrote different completions, so that their times cannot be compared")
    apart = max(
        float((ours.gradients[name] - gradient).norm() / gradient.norm().clamp(min=1e-12))
        for name, gradient in plain.gradients.items()
    )
    if max(apart, abs(ours.loss - plain.loss)) > MAX_APART:
        raise InputError(f"losses {ours.loss} and {plain.loss}, gradients {apart:.1e} apart; expected at most {MAX_APART}")
    return apart


def report(seconds: int, steps: dict[str, list[Step]]) -> float:
    """Print the medians of both ways; returns the ratio of the whole steps."""
    print(f"{seconds} s clips | way | step CPU-s (range) | rollout | score | train | wall s")
    middle = {way: {part: statistics.median(getattr(step, part) for step in steps[way]) for part in PARTS} for way in WAYS}
    for way in WAYS:
        every = [step.whole_s for step in steps[way]]
        whole, rollout, score, train, wall = middle[way].values()
        spread = f"{whole:.1f} ({min(every):.1f}-{max(every):.1f})"
        print(f"{seconds} s clips | {way} | {spread} | {rollout:.1f} | {score:.1f} | {train:.1f} | {wall:.1f}")
    ratios = [middle["plain"][part] / middle["ours"][part] for part in PARTS]
    print(f"{seconds} s clips | ratio | {' | '.join(f'{ratio:.2f}' for ratio in ratios)}")
    return ratios[0]


def report_flops(name: str, shape: Shape, seconds: int, num_new_tokens: int) -> None:
    learned, whole = (flops_ratio(shape, seconds, num_new_tokens, is_sampling) for is_sampling in (False, True))
    row = AUDIO_TOKENS_PER_S * seconds + TEXT_TOKENS + num_new_tokens
    parts = shape.tower_flops(seconds) / shape.language_flops(row, row**2 / 2, num_new_tokens)
    print(
        f"{name}, {seconds} s clips, {num_new_tokens} new tokens: FLOPs of the plain way to ours {learned:.2f} for scoring and "
        f"training, {whole:.2f} with sampling; the tower takes {parts:.2f} of a row of the language model"
    )


def main() -> None:
    args = parse_arguments(BenchmarkArguments, __doc__)
    if args.width % HEAD_SIZE:
        raise InputError(f"--width {args.width}: expected a multiple of 128, the size of an attention head")
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    shape, ratios = shape_of(args.family, args.width), {}
    million = (shape.language_parameters() + 2 * shape.width * shape.vocabulary) / 1e6
    print(f"language model of {million:.1f} M parameters, audio tower of {shape.tower_parameters() / 1e6:.2f} M")
    with tempfile.TemporaryDirectory() as name:
        checkpoint = Path(name) / "model"
        save_model(shape, checkpoint)
        for seconds in args.seconds or (10, 30):
            steps: dict[str, list[Step]] = {way: [] for way in WAYS}
            rows = make_rows(seconds)
            for turn in range(args.repeats):
                for way in WAYS if turn % 2 == 0 else reversed(WAYS):
                    steps[way].append(take_step(way, checkpoint, rows, args.num_new_tokens, Path(name) / "run"))
                apart = check_alike(steps["ours"][-1], steps["plain"][-1])
            ratios[str(seconds)] = round(report(seconds, steps), 2)
            lengths = [len(ids) for ids in steps["ours"][-1].completions]
            print(f"{sum(lengths)} equal tokens in {len(lengths)} completions; gradients {apart:.1e} apart")
            report_flops("this model", shape, seconds, args.num_new_tokens)
            report_flops("the released 7B", RELEASED[args.family], seconds, args.num_new_tokens)
    print(json.dumps(ratios))


if __name__ == "__main__":
    run(main)
