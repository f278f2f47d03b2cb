"""
Gather finished runs into a report: a table on the terminal, `report.md`, `report.json` and figures.

    python -m evaluation report --runs outputs/miniature/seed-*/evaluation/* --training outputs/miniature/seed-*/sft-* \
        --output_dir outputs/miniature

The first line says whether a model is deaf. Every accuracy comes with its 95 % Wilson interval; unanswered questions count as
not correct and have a column of their own.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluation.controls import CONTROLS, NO_CONTROL, OF_SOUND, verdict
from evaluation.statistics import Comparison
from sightsound.cli import InputError, parse_arguments, read_json
from sightsound.journal import write_atomically


# Breakdowns that a benchmark may have, and what they say.
BREAKDOWNS = {
    "by_type": ("By question type", ""),
    "by_relation": ("By relation", 'In the miniature "Both" are clean clips (heard as seen), "Sound" are traps.'),
    "by_difficulty": ("By difficulty", ""),
    "by_sub_category": ("By sub-category", ""),
    "by_position": ("By position of the right choice", "Even figures mean that the model does not go by the letter."),
}
TABLE_HEAD = "| arm | seed | questions | accuracy [95 % interval] | unanswered | silent audio | another clip's audio |"


@dataclass
class ReportArguments:
    runs: list[str] = field(metadata={"help": "folders written by `python -m evaluation run`"})
    output_dir: str = field(metadata={"help": "where to write the report"})
    training: list[str] | None = field(default=None, metadata={"help": "folders of training runs, for the curves"})


def to_entry(results: dict[str, Any]) -> dict[str, Any]:
    """One run's `results.json` -> one entry of `report.json`; accuracies in percent, None for a control that was not run."""
    scored, controls = results["results"][NO_CONTROL], results["results"]
    return {
        "arm": results["arm"],
        "seed": results["seed"],
        **{name: scored[name] for name in ("n", "accuracy", "low", "high", "unanswered")},
        **{f"{name}_accuracy": controls[name]["accuracy"] if name in controls else None for name in OF_SOUND},
    }


def name_of(results: dict[str, Any]) -> str:
    return f"{results['arm']} (seed {results['seed']})"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _with_interval(figures: dict[str, Any], name: str = "accuracy") -> str:
    return f"{figures[name]:.1f} [{figures['low']:.1f}, {figures['high']:.1f}]"


def main_table(entries: list[dict[str, Any]]) -> list[str]:
    """The table of arms, as Markdown lines."""
    lines = [TABLE_HEAD, "| --- | --- | --- | --- | --- | --- | --- |"]
    for e in entries:
        accuracy = _with_interval(e)
        shown = [_percent(e[name]) for name in ("unanswered", "silent_accuracy", "swapped_accuracy")]
        lines.append(f"| {e['arm']} | {e['seed']} | {e['n']} | {accuracy} | {' | '.join(shown)} |")
    return lines


def controls_table(runs: list[dict[str, Any]]) -> list[str]:
    """What each run gains over its controls, and how often it keeps its choice when choices are shuffled."""
    heads = [f"gain over {told}" for told in CONTROLS.values()]
    lines = [f"| arm | seed | {' | '.join(heads)} | same choice when shuffled |", "| --- " * (len(heads) + 3) + "|"]
    for run in runs:
        gains = [str(Comparison(**run["gains"][name])) if name in run["gains"] else "–" for name in CONTROLS]
        kept = _with_interval(run["consistency"], "same_choice") if "consistency" in run else "–"
        lines.append(f"| {run['arm']} | {run['seed']} | {' | '.join(gains)} | {kept} |")
    return lines


def official_table(runs: list[dict[str, Any]]) -> list[str]:
    """The official protocol's figure beside the paper's, for benchmarks that have one."""
    lines = [
        "| arm | seed | benchmark | paper's protocol | official protocol | unanswered |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for run in runs:
        paper, official = run["results"][NO_CONTROL], run["official"][NO_CONTROL]
        cells = [run["benchmark"], _with_interval(paper), _with_interval(official), _percent(official["unanswered"])]
        lines.append(f"| {run['arm']} | {run['seed']} | {' | '.join(cells)} |")
    return lines


def breakdown_table(runs: list[dict[str, Any]], group: str) -> list[str]:
    """Accuracy per question type or relation, as Markdown lines."""
    names = sorted({name for run in runs for name in run["results"][NO_CONTROL][group]})
    lines = [f"| arm | seed | {' | '.join(names)} |", "| --- " * (len(names) + 2) + "|"]
    for run in runs:
        parts = run["results"][NO_CONTROL][group]
        cells = [f"{parts[n]['accuracy']:.1f} (n={parts[n]['n']})" if n in parts else "–" for n in names]
        lines.append(f"| {run['arm']} | {run['seed']} | {' | '.join(cells)} |")
    return lines


def plot_accuracy(entries: list[dict[str, Any]], path: Path) -> None:
    """Accuracy by arm with intervals; controls as hollow markers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 + 1.1 * len(entries), 4), layout="constrained")
    axes = figure.subplots()
    several = len({entry["seed"] for entry in entries}) > 1
    labels = [f"{e['arm']}\nseed {e['seed']}" if several else e["arm"] for e in entries]
    heights = [e["accuracy"] for e in entries]
    errors = [[e["accuracy"] - e["low"] for e in entries], [e["high"] - e["accuracy"] for e in entries]]
    axes.bar(labels, heights, yerr=errors, capsize=4, color="#4c72b0")
    for control, marker in (("silent_accuracy", "o"), ("swapped_accuracy", "s")):
        shown = [(label, e[control]) for label, e in zip(labels, entries, strict=True) if e[control] is not None]
        if shown:
            name = control.removesuffix("_accuracy") + " audio"
            axes.plot(*zip(*shown, strict=True), marker, mfc="white", mec="#c44e52", ls="", label=name)
            axes.legend()
    axes.set(ylabel="accuracy, %", ylim=(0, 100), title="Accuracy by arm, 95 % Wilson intervals")
    figure.savefig(path, dpi=120)


def plot_curves(logs: dict[str, list[dict[str, Any]]], metrics: dict[str, str], title: str, path: Path) -> None:
    """One panel per metric, one line per training run; runs that did not log a metric are left out of its panel."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(metrics), 3.8), layout="constrained")
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axes, (metric, label) in zip(panels, metrics.items(), strict=True):
        for name, log in logs.items():
            points = [(entry["step"], entry[metric]) for entry in log if metric in entry]
            if points:
                axes.plot(*zip(*points, strict=True), marker=".", label=name)
        axes.set(xlabel="step", ylabel=label)
        if axes.lines:
            axes.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def read_logs(folders: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Log history of every training run, by folder name (with its parent where names repeat)."""
    names = [Path(folder).name for folder in folders]
    logs = {}
    for folder, name in zip(folders, names, strict=True):
        label = name if names.count(name) == 1 else f"{Path(folder).parent.name}/{name}"
        logs[label] = read_json(str(Path(folder) / "trainer_state.json"))["log_history"]
    return logs


def main(argv: list[str]) -> None:
    args = parse_arguments(ReportArguments, __doc__, argv)
    runs = [read_json(str(Path(folder) / "results.json")) for folder in args.runs]
    unfinished = [f for f in args.runs if not read_json(str(Path(f) / "stage.json"))["complete"]]
    if unfinished:
        raise InputError(f"{unfinished[0]} is not complete; rerun its evaluation first")
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    entries = [to_entry(run) for run in runs]
    write_atomically(output / "report.json", json.dumps(entries, indent=2) + "\n")
    table = main_table(entries)
    told = verdict([(name_of(run), run["gains"]) for run in runs])
    lines = [told, "", "# Report", "", *table, "", "![accuracy by arm](accuracy.png)", ""]
    if official := [run for run in runs if "official" in run]:
        lines += ["## Official protocol", "", *official_table(official), ""]
    if controlled := [run for run in runs if run["gains"]]:
        lines += ["## Controls", "", "Percent points, with 95 % intervals over clips.", "", *controls_table(controlled), ""]
    for group, (title, note) in BREAKDOWNS.items():
        if broken_down := [run for run in runs if group in run["results"][NO_CONTROL]]:
            lines += [f"## {title}", "", *([note, ""] if note else []), *breakdown_table(broken_down, group), ""]
    plot_accuracy(entries, output / "accuracy.png")
    logs = read_logs(args.training or [])
    sft = {name: log for name, log in logs.items() if not any("reward" in entry for entry in log)}
    grpo = {name: log for name, log in logs.items() if name not in sft}
    if sft:
        plot_curves(sft, {"loss": "loss"}, "SFT", output / "sft_loss.png")
        lines += ["## Training", "", "![SFT loss](sft_loss.png)", ""]
    if grpo:
        metrics = {"reward": "mean reward (0 to 2)", "kl": "KL to the SFT model, nats per token"}
        plot_curves(grpo, metrics, "GRPO", output / "grpo.png")
        lines += ["![GRPO reward and KL](grpo.png)", ""]
    write_atomically(output / "report.md", "\n".join(lines))
    print("\n".join([told, "", *table]))
    print(f"report: {output / 'report.md'}")
