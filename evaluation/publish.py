"""
Publish a checkpoint with its results in one commit: weights, processor, generation config, card, figures and every output.

    python -m evaluation publish --model grpo-tts_agfv/model --runs evaluation-runs/grpo-tts_agfv --push_to_hub ORG/NAME

The card is the README.md that the recipe wrote. Its section "Results" and its `model-index` are filled from `results.json` of
the runs. `.eval_results/` holds the same figures for runs on a dataset of the Hub, and `predictions/` every output. The folder
on disk is not changed. The runs must be complete, evaluate exactly this checkpoint, and have no `--limit`. Where a dataset
lacks questions of the benchmark because their videos are gone, the card says "asked: n of N questions".
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from evaluation.reporting.finished_runs import FinishedRun, find_runs, is_given_audio, predictions_file, split_of
from evaluation.reporting.sections import by_protocol, coverage_note, missing_answers, overlap_note
from evaluation.scoring.audio_use import audio_use_statement
from sightsound.cli import InputError, parse_arguments
from sightsound.data.sources import COMMIT, REPO_ID, is_hub_id, split_revision
from sightsound.hub.cards import render_card
from sightsound.hub.publish import PublishArguments, publish_model
from sightsound.models.loading import meant_model
from sightsound.stage import fingerprint
from sightsound.training.card import TASK, chosen_by


if TYPE_CHECKING:
    from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData

CARD = "README.md"
# The section that recipes write into the card, up to the next heading.
SECTION = re.compile(r"^## Results\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
PLACEHOLDER = re.compile(r"PATH_OR_ID_OF_THIS_(?:MODEL|ADAPTER)")


@dataclass(kw_only=True)
class PublishRunsArguments(PublishArguments):
    model: str = field(metadata={"help": "`model/` or `adapter/` of a finished recipe"})
    runs: list[str] = field(metadata={"help": "folders written by `python -m evaluation run`"})


@dataclass(frozen=True)
class ScoredRun:
    """
    One benchmark of a run, and what the card says about it.

    Args:
        folder (`Path`): Of the run on this benchmark.
        results (`dict`): Its `results.json`.
        chosen_on (`bool`): Whether the checkpoint was selected by its accuracy on this split.
    """

    folder: Path
    results: dict[str, Any]
    chosen_on: bool

    @property
    def benchmark(self) -> str:
        return str(self.results["benchmark"])

    @property
    def name(self) -> str:
        """Stem of its files, unique within a repository."""
        return f"{self.benchmark}-{self.results['method'].replace('/', '-')}"

    @property
    def hub_dataset(self) -> str | None:
        """The dataset on the Hub; None for a folder, which is recorded by its fingerprint."""
        dataset, _ = split_revision(self.results["settings"]["dataset"])
        return dataset if REPO_ID.fullmatch(dataset) and COMMIT.fullmatch(self.results["benchmark_revision"]) else None

    @property
    def predictions(self) -> str:
        return f"predictions/{self.name}.parquet"

    def figures(self) -> list[dict[str, Any]]:
        """Per protocol the figures, to two digits, for the card, the `model-index` and `.eval_results`."""
        rounded = {"value": "accuracy", "low": "low", "high": "high", "unanswered": "unanswered"}
        return [
            {
                "benchmark": self.benchmark,
                "method": self.results["method"],
                "protocol": protocol,
                "n": figures["n"],
                "part": coverage_note(self.results),
                "chosen_on": self.chosen_on,
                "trained_on": overlap_note(self.results),
                **{name: round(figures[key], 2) for name, key in rounded.items()},
            }
            for protocol, figures in by_protocol(self.results).items()
        ]

    def row(self) -> dict[str, Any]:
        """The card's row about its questions and outputs."""
        return {
            "benchmark": self.benchmark,
            "method": self.results["method"],
            "source": f"`{self.hub_dataset}`" if self.hub_dataset else "a dataset built by `dataset_builders/`",
            "split": split_of(self.results),
            "revision": self.results["benchmark_revision"],
            "predictions": self.predictions,
            "served": self.results["model"] if is_served(self.results) else None,
            "losses": missing_answers(self.results),
        }

    def note(self, figures: dict[str, Any]) -> str:
        """What a reader must know beside a figure: protocol, prompt, interval and limits."""
        interval = f"95 % interval [{figures['low']}, {figures['high']}], n = {figures['n']}"
        part = f" (asked: {figures['part']})" if figures["part"] else ""
        chosen = "; the checkpoint, or one before it, was chosen on questions of this split" if self.chosen_on else ""
        trained = f"; the model was trained on {figures['trained_on']}" if figures["trained_on"] else ""
        return f"{figures['protocol']} protocol, asked as {figures['method']}, {interval}{part}{chosen}{trained}"

    def model_index(self) -> list[EvalResult]:
        from huggingface_hub import EvalResult

        return [
            EvalResult(
                task_type=TASK,
                task_name="Audio question answering",
                dataset_type=self.hub_dataset or self.benchmark,
                dataset_name=self.benchmark,
                dataset_split=split_of(self.results),
                dataset_revision=self.results["benchmark_revision"],
                metric_type="accuracy",
                metric_value=figures["value"],
                metric_name=f"accuracy, %: {self.note(figures)}",
            )
            for figures in self.figures()
        ]

    def entries(self, repo_id: str) -> list[EvalResultEntry]:
        """Entries of `.eval_results`, which can name only datasets of the Hub."""
        from huggingface_hub import EvalResultEntry, constants

        return [
            EvalResultEntry(
                dataset_id=self.hub_dataset,
                task_id=f"{self.benchmark}_{figures['protocol']}",
                dataset_revision=self.results["benchmark_revision"],
                value=figures["value"],
                source_url=f"{constants.ENDPOINT}/{repo_id}/blob/main/{self.predictions}",
                source_name="Every output",
                notes=self.note(figures),
            )
            for figures in self.figures()
            if self.hub_dataset is not None
        ]


def is_served(results: dict[str, Any]) -> bool:
    return bool(results["settings"].get("engine") == "server")


def check_model(model: Path) -> None:
    """
    Check that others will be able to load the checkpoint.

    Raises:
        `InputError`: It is not the finished output of a recipe, it is a LoRA on a model outside the Hub, or its card has no
            section for results.
    """
    config = model / "adapter_config.json"
    if not config.is_file() and (hint := meant_model(model)) and not (model / "config.json").is_file():
        raise InputError(f"{model} holds no config.json{hint}")
    if not (model / CARD).is_file():
        raise InputError(f"{model} holds no README.md; give the `model/` or `adapter/` folder of a finished recipe")
    fingerprint(model)  # raises for the output of a stage that has not finished
    base = json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"] if config.is_file() else None
    if base is not None and not is_hub_id(base):
        reason = "no model of the Hub, so nobody else could load it"
        raise InputError(f"{model} is a LoRA on {base}, {reason}; publish `model/` instead")
    if not SECTION.search((model / CARD).read_text(encoding="utf-8")):
        reason = 'no section "## Results", which the figures are written to'
        raise InputError(f'{model / CARD} has {reason}; add a line "## Results" there')


def check_run(run: FinishedRun, model: Path) -> None:
    """
    Check that a run evaluates this checkpoint on whole benchmarks.

    Raises:
        `InputError`: It evaluates another checkpoint, or was made with `--limit`.
    """
    folder, results = run
    settings = results["settings"]
    if settings["limit"] is not None:
        part = f"the first {settings['limit']} questions of {results['benchmark']}"
        raise InputError(f"{folder} is about {part}; a figure on a part is not the benchmark's: run it without --limit")
    if not is_served(results) and settings["model"] != fingerprint(model):
        note = "a copied or edited folder counts as another one"
        seen = f"{folder} holds answers of another checkpoint than {model} ({results['model']}; {note})"
        raise InputError(f"{seen}; give the folder that was evaluated, or evaluate this one")


def read_runs(folders: list[str], model: Path) -> list[ScoredRun]:
    """
    The runs in these folders, one per benchmark of each.

    Raises:
        `InputError`: A run is not complete or cannot be published, or two have the same benchmark and method.
    """
    runs: dict[str, ScoredRun] = {}
    for found in find_runs(folders):
        check_run(found, model)
        dataset, _ = split_revision(found.results["settings"]["dataset"])
        run = ScoredRun(Path(found.folder), found.results, [dataset, split_of(found.results)] in chosen_by(str(model)))
        if run.name in runs:
            seen = f"{runs[run.name].folder} and {run.folder} both answer {run.benchmark}, asked as {run.results['method']}"
            raise InputError(f"{seen}; give one of them")
        runs[run.name] = run
    return list(runs.values())


def write_card(card: str, runs: list[ScoredRun], repo_id: str) -> str:
    """The card of a checkpoint, with these results in place of its earlier ones."""
    from huggingface_hub import ModelCard

    section = render_card(
        "results.md",
        audio_use=audio_use_statement(
            [(f"{run.benchmark} ({run.results['method']})", run.results) for run in runs if is_given_audio(run.results)]
        ),
        results=[figures for run in runs for figures in run.figures()],
        runs=[run.row() for run in runs],
    )
    written = ModelCard(card)
    written.text = PLACEHOLDER.sub(repo_id, SECTION.sub(lambda _: section, written.text, count=1))
    data = cast("ModelCardData", written.data)
    data.model_name = repo_id.split("/")[1]
    data.eval_results = [result for run in runs for result in run.model_index()]
    return str(written)


def assemble(model: Path, runs: list[ScoredRun], repo_id: str, folder: Path) -> None:
    """Make a folder with the content of the repository: links to the checkpoint's files, card, results and predictions."""
    import yaml
    from huggingface_hub import eval_result_entries_to_yaml

    for part in (".eval_results", "predictions"):
        (folder / part).mkdir(parents=True)
    for file in model.iterdir():
        if file.is_file() and file.name != CARD:
            os.symlink(file.resolve(), folder / file.name)
    (folder / CARD).write_text(write_card((model / CARD).read_text(encoding="utf-8"), runs, repo_id), encoding="utf-8")
    for run in runs:
        os.symlink(predictions_file(run.folder, run.benchmark).resolve(), folder / run.predictions)
        if entries := run.entries(repo_id):
            text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)
            (folder / ".eval_results" / f"sightsound-{run.name}.yaml").write_text(text, encoding="utf-8")
        else:
            print(f"{run.benchmark}: its questions came from a folder, so its figures are in the card, not in .eval_results/")


def main(argv: list[str]) -> None:
    args = parse_arguments(PublishRunsArguments, __doc__, argv)
    if args.push_to_hub is None:
        raise InputError("--push_to_hub is missing; give the repository to publish to, as ORG/NAME")
    model = Path(args.model)
    check_model(model)
    runs = read_runs(args.runs, model)
    with tempfile.TemporaryDirectory(prefix="sightsound-") as temporary:
        release = Path(temporary, "release")
        assemble(model, runs, args.push_to_hub, release)
        revision = publish_model(release, args.push_to_hub, args.private)
    print(f"published: {args.push_to_hub}, revision {revision}")
