"""
What GRPO adds to the SFT student of the full method on the miniature, on prompts that SFT never saw.

    python -m tests.benchmarks.grpo_gain --seeds 0 1 2 3 4 --output_dir outputs/grpo_gain

Per seed the stages of `recipes/miniature/run.sh` up to the student of TTS + AGFV; then other clips of a second world, traced by
the same teacher and verified by the same checker, and GRPO on their questions (`recipes/miniature/grpo_fresh.yaml`). Both
students answer the same 600 held-out questions greedily, so gains are paired by question.

A stage that is complete is skipped without asking with which settings it was made: after a change of a recipe delete its
folder. One that was killed continues. What the stages print is in `logs/` of each seed.
"""

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from sightsound.cli import InputError, parse_arguments, run
from sightsound.data.parquet import read_parquet
from sightsound.stage import is_complete


ROOT = Path(__file__).resolve().parents[2]
RECIPES = "recipes/miniature"
LAUNCH = ["accelerate", "launch", "--config_file", "accelerate_configs/cpu.yaml"]
# A world is a function of its seed. The second one of seed s is that of seed s + 100: no clip of it is in the first.
FRESH_WORLD = 100
FRESH_CLIPS = 4800  # one in six ends as a prompt: unanimous, and accepted by the checker


@dataclass
class BenchmarkArguments:
    seeds: list[int] = field(metadata={"help": "worlds, each with models of its own"})
    output_dir: str = field(metadata={"help": "folder for all of it"})


@dataclass(frozen=True)
class Gain:
    """Of one seed, in percent of the questions; `gain` lies in `low`..`high` with 95 %."""

    seed: int
    prompts: int
    sft_accuracy: float
    grpo_accuracy: float
    gain: float
    low: float
    high: float
    sft_unanswered: float
    grpo_unanswered: float


def flags(**values: Any) -> list[str]:
    """`a=1, b=["x", "y"]` -> `--a 1 --b x y`."""
    listed = {name: value if isinstance(value, list) else [value] for name, value in values.items()}
    return [word for name, several in listed.items() for word in (f"--{name}", *map(str, several))]


@dataclass(frozen=True)
class Stages:
    """Runs the scripts for one seed, each into a folder of its own below `folder`."""

    seed: int
    folder: Path

    def stage(self, name: str, command: list[str], **values: Any) -> Path:
        output = self.folder / name
        if is_complete(output):
            return output
        print(f"seed {self.seed}: {name}", flush=True)
        log = self.folder / "logs" / f"{name.replace('/', '-')}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "HF_DATASETS_CACHE": str(self.folder / ".cache"), "TRANSFORMERS_VERBOSITY": "error"}
        environment = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **environment}
        with open(log, "a", encoding="utf-8") as file:
            done = subprocess.run(
                [*command, *flags(**values, output_dir=output)], cwd=ROOT, env=environment, stdout=file, stderr=file
            )
        if done.returncode:
            raise InputError(f"{name} of seed {self.seed} ended with {done.returncode}, see {log}")
        return output

    def pretrain(self, model: str, world: Path, **values: Any) -> Path:
        command = [sys.executable, f"{RECIPES}/pretrain.py"]
        config = f"{RECIPES}/{model}.yaml"
        return self.stage(f"models/{model}", command, config=config, world=world, seed=self.seed, **values) / "model"

    def corpus(self, part: str, world: Path, audio: Path, teacher: Path, checker: Path) -> Path:
        """Traces, verdicts and their corpus, with the settings of the demo."""
        asked = {"dataset": audio, "split": "train", "batch_size": 256}
        traces = self.stage(
            f"{part}traces",
            [sys.executable, "dataset_builders/traces.py"],
            **asked,
            media_dir=world / "clips",
            model=teacher,
            num_traces=4,
            temperature=1.0,
            max_tokens=64,
            num_frames=6,
            seed=self.seed,
        )
        verdicts = self.stage(
            f"{part}verdicts",
            [sys.executable, "dataset_builders/verdicts.py"],
            **asked,
            traces=traces,
            checker=checker,
            verdict_mode="transcript",
            max_tokens=32,
        )
        joined = {"dataset": audio, "traces": traces, "verdicts": verdicts, "license": "apache-2.0"}
        return self.stage(f"{part}corpus", [sys.executable, "dataset_builders/cot_corpus.py"], **joined)

    def train(self, name: str, script: str, **values: Any) -> Path:
        return self.stage(name, [*LAUNCH, script], config=f"{RECIPES}/{name}.yaml", seed=self.seed, **values)

    def evaluate(self, arm: str, model: Path, audio: Path) -> Path:
        command = [sys.executable, "-m", "evaluation", "run"]
        asked = {"benchmark": "avqa", "dataset": audio, "split": "test", "modality": "audio", "method": "cot"}
        asked |= {"max_tokens": 64, "batch_size": 256, "arm": arm, "seed": self.seed}
        return self.stage(f"evaluation/{arm}", command, **asked, model=model)


def run_seed(seed: int, folder: Path) -> Gain:
    stages = Stages(seed, folder)
    builder = [sys.executable, "dataset_builders/miniature.py"]
    extractor = [sys.executable, "dataset_builders/avqa_audio.py"]
    world = stages.stage("world", builder, seed=seed)
    audio = stages.stage(
        "avqa-audio",
        extractor,
        train_annotations=world / "train_qa.json",
        validation_annotations=world / "val_qa.json",
        test_annotations=world / "test_qa.json",
        media_dir=world / "clips",
    )
    student = stages.pretrain("student", world)
    checker = stages.pretrain("checker", world, init_from=student)
    teacher = stages.pretrain("teacher", world)
    corpus = stages.corpus("", world, audio, teacher, checker)
    sft = stages.train("sft_tts_agfv", "recipes/sft.py", traces=corpus, audio=audio, model_name_or_path=student) / "model"

    no_rows = dict.fromkeys(("num_validation", "num_test", "num_student", "num_teacher", "num_checker"), 0)
    fresh_world = stages.stage("fresh/world", builder, seed=FRESH_WORLD + seed, num_train=FRESH_CLIPS, **no_rows)
    fresh_audio = stages.stage(
        "fresh/avqa-audio",
        extractor,
        train_annotations=fresh_world / "train_qa.json",
        media_dir=fresh_world / "clips",
    )
    fresh_corpus = stages.corpus("fresh/", fresh_world, fresh_audio, teacher, checker)
    grpo = stages.train("grpo_fresh", "recipes/grpo.py", traces=fresh_corpus, audio=fresh_audio, model_name_or_path=sft)

    before = stages.evaluate("sft", sft, audio)
    after = stages.evaluate("grpo", grpo / "model", audio)
    prompts = sum(row["outcome"] == "used" for row in read_parquet([grpo / "ledger.parquet"], ["outcome"]))
    return compare(seed, prompts, predictions_of(before), predictions_of(after))


def predictions_of(evaluation: Path) -> dict[str, tuple[bool, bool]]:
    """Whether each question was answered correctly, and whether it was answered."""
    rows = read_parquet([evaluation / "data" / "predictions-avqa.parquet"], ["id", "control", "correct", "answer"])
    return {row["id"]: (bool(row["correct"]), row["answer"] is not None) for row in rows if row["control"] == "none"}


def compare(seed: int, prompts: int, before: dict[str, tuple[bool, bool]], after: dict[str, tuple[bool, bool]]) -> Gain:
    if before.keys() != after.keys():
        raise InputError(f"seed {seed}: the two evaluations have other questions; delete both and rerun")

    def percent(answers: dict[str, tuple[bool, bool]], which: int) -> float:
        return 100 * mean(answer[which] for answer in answers.values())

    differences = [100 * (after[name][0] - before[name][0]) for name in before]
    gain, margin = mean(differences), 1.96 * stdev(differences) / math.sqrt(len(differences))
    accuracies = (percent(before, 0), percent(after, 0))
    return Gain(
        seed, prompts, *accuracies, gain, gain - margin, gain + margin, 100 - percent(before, 1), 100 - percent(after, 1)
    )


def interval_over_seeds(gains: list[float]) -> tuple[float, float] | None:
    """95 % t interval of the mean gain; one seed has none."""
    from scipy.stats import t

    if len(gains) == 1:
        return None
    margin = t.ppf(0.975, len(gains) - 1) * stdev(gains) / math.sqrt(len(gains))
    return mean(gains) - margin, mean(gains) + margin


def main() -> None:
    args = parse_arguments(BenchmarkArguments, __doc__)
    output = Path(args.output_dir).absolute()
    rows = [run_seed(seed, output / f"seed-{seed}") for seed in args.seeds]
    print("| seed | prompts | SFT | GRPO | gain [95 %, paired] | unanswered, SFT | unanswered, GRPO |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        message = f"{row.gain:+.1f} [{row.low:+.1f}, {row.high:+.1f}] | {row.sft_unanswered:.1f} | {row.grpo_unanswered:.1f}"
        print(f"| {row.seed} | {row.prompts} | {row.sft_accuracy:.1f} | {row.grpo_accuracy:.1f} | {message} |")
    gains = [row.gain for row in rows]
    interval = interval_over_seeds(gains)
    message = (
        "one seed, no interval" if interval is None else f"[{interval[0]:+.2f}, {interval[1]:+.2f}], t interval over seeds"
    )
    positive = sum(gain > 0 for gain in gains)
    print(f"mean gain {mean(gains):+.2f} ({message}), positive on {positive} of {len(rows)}")
    print(
        json.dumps({"mean_gain": mean(gains), "interval": interval, "positive": positive, "seeds": [asdict(r) for r in rows]})
    )


if __name__ == "__main__":
    run(main)
