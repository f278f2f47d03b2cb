"""
Traces + verdicts -> the fact-checked chain-of-thought corpus.

    python dataset_builders/cot_corpus.py --dataset avqa-audio --traces traces --verdicts verdicts --output_dir corpus

Two configs: `verified` (the default) holds the accepted questions with their audio, ready for training; `traces` is the whole
ledger, every question with its outcome. `FILTERS` in `sightsound/method/selection.py` decides which questions are accepted, and
training arms are selections of the ledger. `--push_to_hub ORG/NAME` publishes the finished corpus.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightsound.cli import InputError, parse_arguments, run
from sightsound.data import parquet, schema
from sightsound.data.kinds import CLIPS, open_input
from sightsound.data.parquet import read_parquet
from sightsound.hub.cards import FUNNEL_FIGURE, SHOWN_AUDIO, as_json, dataset_info, provenance, render_card, write_dataset_card
from sightsound.hub.inputs import front_matter_of, pin_datasets
from sightsound.hub.publish import PublishArguments
from sightsound.method.audio_contribution import contributions_of, known_contribution
from sightsound.method.ledger import Unjoined, join_verdicts, stream_rows
from sightsound.method.prompts import question_text
from sightsound.method.selection import ARMS, FULL_METHOD, Funnel, TraceRow, shown, trace_outcome
from sightsound.method.verdicts import ACCEPT, REJECT, VERDICTS
from sightsound.stage import Stage, fingerprint


if TYPE_CHECKING:
    from datasets import Dataset

ROWS_PER_SHARD = 500  # of `verified`, which holds the audio: under the 500 MB per file that the Hub suggests
TRACES_ROWS_PER_SHARD = 10_000  # with eight traces per row about 100 MB of text, before compression
VERIFIED_FROM = ("id", "question", "choices", "teacher_answer", "unanimous", "traces", "outcome", *schema.CONTRIBUTION_COLUMNS)
AS_DATASET = "other"  # `--license` by default: the card repeats the licence of the dataset
# `license_name`, or else `license`, on the dataset's card -> the sentence on the corpus's card.
LICENCES = {
    "avqa-states-none": (
        "AVQA, whose questions and clips this builds on, states no licence for its annotations, and the clips belong to those "
        "who uploaded them, so the licence is given as `other`."
    ),
    "mixed": (
        "Part of the questions and clips that this builds on is AVQA's, which states no licence for its annotations; the clips "
        "belong to those who uploaded them. The licence of the other clips, and of the questions about them, is not known: the "
        "publisher of this corpus has to state it, so the licence is given as `other`."
    ),
    "unknown": (
        "The licence of the clips that this builds on, and of the questions about them, is not known: this card was written "
        "automatically, and the publisher of this corpus has to state it."
    ),
    "": "The dataset that this builds on states no licence, so the licence is given as `other`.",
}


@dataclass(kw_only=True)
class CotCorpusArguments(PublishArguments):
    dataset: str = field(metadata={"help": "avqa-audio: folder or Hub id"})
    traces: str = field(metadata={"help": "output of traces.py"})
    verdicts: str = field(metadata={"help": "output of verdicts.py"})
    output_dir: str = field(metadata={"help": "where to write the corpus"})
    split: str = field(default="train", metadata={"help": "split of the dataset that was traced"})
    license: str = field(
        default=AS_DATASET, metadata={"help": "licence of the corpus, for its card; other: as the dataset's card says"}
    )


def verified_row(row: TraceRow, audio: dict[str, Any]) -> dict[str, Any]:
    """An accepted question, ready for training."""
    arm = ARMS[FULL_METHOD]
    content = question_text(row["question"], row["choices"], arm.prompt)
    return {
        "id": row["id"],
        "audio": audio,
        "prompt": [{"role": "user", "content": content}],
        "completions": arm.completions(row),
        "teacher_answer": row["teacher_answer"],
        "choices": row["choices"],
        **known_contribution(row),
    }


def shard_names(rows: int, rows_per_shard: int) -> list[str]:
    """File names of a config's `train` split; without any row it is one empty file."""
    count = max(1, -(-rows // rows_per_shard))
    return [f"train-{i:05d}-of-{count:05d}.parquet" for i in range(count)]


def read_traces(folder: Path, columns: Sequence[str]) -> Iterator[TraceRow]:
    """The `traces` config as it was written."""
    return read_parquet(sorted(folder.glob("train-*.parquet")), columns)


def write_traces(rows: Iterator[TraceRow], count: int, folder: Path) -> None:
    """Write the shards of the `traces` config while the join is read."""
    for name in shard_names(count, TRACES_ROWS_PER_SHARD):
        parquet.write_parquet(islice(rows, TRACES_ROWS_PER_SHARD), schema.traces_features(), folder / name)


def write_verified(accepted: Iterator[TraceRow], count: int, audio: parquet.AudioById, folder: Path) -> None:
    """Write the shards of the `verified` config, with one row group of audio in memory at a time."""
    rows = (verified_row(row, audio[row["id"]]) for row in accepted)
    for name in shard_names(count, ROWS_PER_SHARD):
        parquet.write_parquet(islice(rows, ROWS_PER_SHARD), schema.verified_features(), folder / name)


def plot_funnel(funnel: Funnel, path: Path) -> None:
    """Bars of the questions that are left after each step, with their share of all."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.4), layout="constrained")
    axes = figure.subplots()
    steps = funnel.steps()
    bars = axes.barh(list(steps), list(steps.values()), color="#4c72b0")
    axes.bar_label(bars, [f"{n:,} ({100 * n / funnel.questions:.1f} %)" for n in steps.values()], padding=4)
    axes.invert_yaxis()
    axes.set(xlabel="questions", xlim=(0, 1.25 * funnel.questions))
    axes.spines[["top", "right"]].set_visible(False)
    # Without the version of matplotlib, the same ledger gives the same bytes.
    figure.savefig(path, dpi=120, metadata={"Software": None})


def origin(dataset: dict[str, Any], licence: str) -> tuple[dict[str, Any], str]:
    """
    Front matter, and a sentence on the licence of the clips and questions, taken from the card of their dataset.

    Args:
        dataset (`dict`): Front matter of that card.
        licence (`str`): `--license`.
    """
    front: dict[str, Any] = {name: dataset[name] for name in ("language", "source_datasets") if name in dataset}
    if licence != AS_DATASET:
        return {"license": licence, **front}, f"`{licence}`."
    stated: dict[str, Any] = {name: dataset[name] for name in ("license", "license_name", "license_link") if name in dataset}
    named = str(stated.get("license_name", stated.get("license", "")))
    sentence = LICENCES.get(named, f"As of the dataset that this builds on: `{named}`.")
    return {"license": AS_DATASET, **stated, **front}, sentence


def card_values(funnel: Funnel, data: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Values of the card: the funnel, counts of outcomes and verdicts, provenance, one row and one trace."""
    names = ["teacher", "teacher_revision", "checker", "checker_revision", "verdict_mode", "prompt_version", "num_traces"]
    names += ["temperature", "seed", "sampling", "rewriter"]
    made = next(row for row in read_traces(data, names) if row["checker"])
    sample = next(row for row in read_traces(data, VERIFIED_FROM) if row["outcome"] == schema.ACCEPTED)
    return {
        **made,
        "questions": funnel.questions,
        "accepted": funnel.accepted,
        "steps": funnel.card_steps(made["num_traces"]),
        "outcomes": [(shown(outcome), count) for outcome, count in funnel.outcomes.most_common()],
        "verdicts": [(shown(verdict), count, VERDICTS.get(verdict, "")) for verdict, count in funnel.verdicts.most_common()],
        "row": as_json(verified_row(sample, {}) | {"audio": SHOWN_AUDIO}),
        "sample": ARMS[FULL_METHOD].completions(sample)[0],
        "claims": (funnel.claims[ACCEPT], funnel.claims[REJECT], funnel.claims.total()),
        "rewritten": (funnel.rewritten[ACCEPT], funnel.rewritten.total()),
        "figure": FUNNEL_FIGURE,
        "inputs": {name: settings[name] for name in ("dataset", "traces", "verdicts")},
        **provenance(),
    }


def check_inputs(args: CotCorpusArguments, dataset: Dataset) -> int:
    """
    Refuse inputs that do not belong together, as far as this shows before they are joined.

    Returns:
        `int`: The number of traced questions.

    Raises:
        `InputError`: There are no verdicts, or the traces are about other clips.
    """
    if not any(row["checker"] for row in stream_rows(args.verdicts, ["checker"])):
        raise InputError(f"{args.verdicts} holds no verdicts; give the output of verdicts.py")
    count = 0

    def traced() -> Iterator[dict[str, Any]]:
        nonlocal count
        for count, row in enumerate(stream_rows(args.traces, ["id", "media_sha256"]), 1):  # noqa: B007
            yield row

    parquet.check_same_clips(traced(), dataset, f"split '{args.split}' of {args.dataset}")
    return count


def build(args: CotCorpusArguments, stage: Stage) -> None:
    from tqdm import tqdm

    dataset = open_input(args.dataset, args.split, CLIPS)
    front_matter, licence = origin(front_matter_of(args.dataset), args.license)
    count = check_inputs(args, dataset)
    traces, verified = stage.path / "data" / "traces", stage.path / "data" / "verified"
    for old in (traces, verified):  # of a run that was killed: its inputs may have had another number of rows
        shutil.rmtree(old, ignore_errors=True)
    funnel, unjoined = Funnel(), Unjoined()
    joined = join_verdicts(stream_rows(args.traces), stream_rows(args.verdicts), unjoined)
    # The dataset may have been labelled after its questions were traced.
    contributions = contributions_of(dataset)
    labelled = (row | known_contribution(contributions.get(row["id"], {}), row) for row in joined)
    # Again, so that a filter that was changed after the verdicts needs no new ones. A question without traces keeps its reason.
    rows = (row | trace_outcome(row["traces"]) if row["traces"] else row for row in labelled)
    write_traces(funnel.count(tqdm(rows, "traces", count, unit="row", mininterval=1.0, disable=None)), count, traces)
    unjoined.check(args.verdicts)
    parquet.write_ledger(read_traces(traces, ("id", "outcome")), stage.path / "ledger.parquet")
    print(funnel)
    if not funnel.accepted:
        raise InputError(f"no question was accepted ({funnel.summary}); {stage.path}/ledger.parquet has the outcome of each")
    accepted = (row for row in read_traces(traces, VERIFIED_FROM) if row["outcome"] == schema.ACCEPTED)
    write_verified(accepted, funnel.accepted, parquet.AudioById(dataset), verified)
    plot_funnel(funnel, stage.path / FUNNEL_FIGURE)
    configs = {name: {"train": f"data/{name}/train-*.parquet"} for name in ("verified", "traces")}
    features = {"verified": schema.verified_features(), "traces": schema.traces_features()}
    write_dataset_card(
        stage.path,
        render_card(
            "dataset_traces.md",
            **card_values(funnel, traces, stage.settings),
            licence=licence,
            repository=stage.path.resolve().name,
            split="train",
        ),
        configs,
        dataset_info=dataset_info(stage.path, configs, features),
        **front_matter,
        pretty_name="SightSound-R1 traces",
        task_categories=["audio-text-to-text"],
        tags=["audio", "reasoning", "chain-of-thought", "distillation", "sightsound-r1"],
    )
    stage.finish()


def main() -> None:
    args = parse_arguments(CotCorpusArguments, __doc__)
    pin_datasets(args, ["dataset", "traces", "verdicts"], args.output_dir)
    settings = {name: fingerprint(getattr(args, name)) for name in ("dataset", "traces", "verdicts")}
    with Stage(args.output_dir, {**settings, "split": args.split, "license": args.license}) as stage:
        if stage.complete:
            print(f"{stage.path} is complete")
        else:
            try:
                build(args, stage)
            except InputError:
                # The corrected command may read other inputs and make other rows.
                shutil.rmtree(stage.path / "data", ignore_errors=True)
                raise
        args.publish(stage.path)


if __name__ == "__main__":
    run(main)
