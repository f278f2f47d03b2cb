"""The figures of a report, as PNG: accuracy by arm, training curves, and our figures beside the paper's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.reporting.paper_tables import Table, match
from sightsound.cli import read_json


OURS, CONTROL = "#4c72b0", "#c44e52"


def plot_accuracy(by_benchmark: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Accuracy by arm with intervals, one panel per benchmark. Hollow markers are the audio controls."""
    from matplotlib.figure import Figure

    width = 1.5 + 1.1 * max(map(len, by_benchmark.values()))
    figure = Figure(figsize=(width, 4 * len(by_benchmark)), layout="constrained")
    panels = figure.subplots(len(by_benchmark), squeeze=False)[:, 0]
    for axes, (benchmark, entries) in zip(panels, by_benchmark.items(), strict=True):
        several = len({entry["seed"] for entry in entries}) > 1
        labels = [f"{e['arm']}\nseed {e['seed']}" if several else e["arm"] for e in entries]
        # At 0 or 100 % rounding can put an end of the interval beyond the accuracy: matplotlib refuses negative lengths.
        errors = [[max(0.0, e["accuracy"] - e["low"]) for e in entries], [max(0.0, e["high"] - e["accuracy"]) for e in entries]]
        axes.bar(range(len(entries)), [e["accuracy"] for e in entries], yerr=errors, capsize=4, color=OURS)
        axes.set_xticks(range(len(entries)), labels)
        for control, marker in (("silent_accuracy", "o"), ("swapped_accuracy", "s")):
            shown = [(i, e[control]) for i, e in enumerate(entries) if e[control] is not None]
            if shown:
                name = control.removesuffix("_accuracy") + " audio"
                axes.plot(*zip(*shown, strict=True), marker, mfc="white", mec=CONTROL, ls="", label=name)
                axes.legend()
        axes.set(ylabel="accuracy, %", ylim=(0, 100), title=f"{benchmark}: accuracy by arm, 95 % Wilson intervals")
    figure.savefig(path, dpi=120)


def plot_curves(logs: dict[str, list[dict[str, Any]]], metrics: dict[str, str], title: str, path: Path) -> None:
    """One panel per metric, one line per training run that logged it."""
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


def plot_table(table: Table, runs: Sequence[dict[str, Any]], path: Path) -> None:
    """One panel per column, one line per row: the paper's figure hollow, ours with its interval if there is a run."""
    from matplotlib.figure import Figure

    matched = match(table, runs)
    across = min(5, len(table.columns))
    down = -(-len(table.columns) // across)
    figure = Figure(figsize=(4 + 2.6 * across, down * (1 + 0.32 * len(table.rows))), layout="constrained")
    panels = figure.subplots(down, across, sharey=True, squeeze=False).ravel()
    height = {row.key: -i for i, row in enumerate(table.rows)}
    for axes, column in zip(panels, table.columns, strict=False):
        paper = [(row.paper[column.paper], height[row.key]) for row in table.rows if row.paper[column.paper] is not None]
        axes.plot(*zip(*paper, strict=True), "o", mfc="white", mec="black", ls="", label="paper")
        for key, by_seed in matched.items():
            for by_benchmark in by_seed.values():
                run = by_benchmark.get(column.benchmark)
                if run and (figures := column.of(run)):
                    middle = figures["accuracy"]
                    ends = [[max(0.0, middle - figures["low"])], [max(0.0, figures["high"] - middle)]]
                    axes.errorbar(middle, height[key] - 0.25, xerr=ends, fmt="o", color=OURS, capsize=3, label="ours")
        axes.set_yticks(list(height.values()), [f"{row.name}, {row.label}" for row in table.rows], fontsize=8)
        axes.set_title(column.title.replace(", ", ",\n"), fontsize=9)
        axes.grid(alpha=0.3)
    for axes in panels[len(table.columns) :]:
        axes.axis("off")
    labels = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=len(labels))
    figure.suptitle(table.title)
    figure.savefig(path, dpi=120)


def read_logs(folders: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Log history of every training run, by folder name (with its parent folder if names repeat)."""
    names = [Path(folder).name for folder in folders]
    logs = {}
    for folder, name in zip(folders, names, strict=True):
        label = name if names.count(name) == 1 else f"{Path(folder).parent.name}/{name}"
        logs[label] = read_json(str(Path(folder) / "trainer_state.json"))["log_history"]
    return logs
