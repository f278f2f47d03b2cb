"""
Traces + verdicts -> the fact-checked chain-of-thought corpus.

    python dataset_builders/cot_corpus.py --dataset avqa-audio --traces traces --verdicts verdicts --output_dir corpus

Two configs: `verified` (default), accepted questions with their audio, ready for training; `traces`, the whole ledger. A
question is accepted when all n traces agree on an answer and the checker accepted at least one of them; every question is
in the ledger with its outcome. Training arms are selections of this ledger (`sightsound/corpus.py`). `--push_to_hub ORG/NAME`
publishes the finished corpus.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sightsound import schema
from sightsound.cli import InputError, parse_arguments, run
from sightsound.corpus import SELECTIONS, TraceRow
from sightsound.hub import render_card, write_dataset_card
from sightsound.journal import Stage, fingerprint
from sightsound.prompts import COT_INSTRUCTION, question_text
from sightsound.publishing import SHOWN_AUDIO, PublishArguments, as_json, dataset_info, provenance


ROWS_PER_SHARD = 500
OTHER_LICENCE = (
    "AVQA, whose questions and clips this builds on, states no licence for its annotations, and the clips belong to those who "
    "uploaded them: hence `other`."
)


@dataclass(kw_only=True)
class CotCorpusArguments(PublishArguments):
    dataset: str = field(metadata={"help": "avqa-audio: folder or Hub id"})
    traces: str = field(metadata={"help": "output of traces.py"})
    verdicts: str = field(metadata={"help": "output of verdicts.py"})
    output_dir: str = field(metadata={"help": "where to write the corpus"})
    split: str = field(default="train", metadata={"help": "split of the dataset that was traced"})
    license: str = field(default="other", metadata={"help": "licence of the corpus, for its card"})


def join(traces: list[TraceRow], verdicts: dict[str, TraceRow]) -> list[TraceRow]:
    """Every traced question with its verdicts; one that was never verified keeps the outcome that says so."""
    stale = [row["id"] for row in traces if row["id"] in verdicts and _texts(row) != _texts(verdicts[row["id"]])]
    if stale:
        raise InputError(f"{len(stale)} questions (first: {stale[0]}) have verdicts on other traces; run verdicts.py on these")
    return [verdicts.get(row["id"], row) for row in traces]


def _texts(row: TraceRow) -> list[str]:
    return [trace["text"] for trace in row["traces"]]


def verified_row(row: TraceRow, audio: dict[str, Any]) -> dict[str, Any]:
    """An accepted question, ready for training."""
    content = question_text(row["question"], row["choices"], COT_INSTRUCTION)
    return {
        "id": row["id"],
        "audio": audio,
        "prompt": [{"role": "user", "content": content}],
        "completions": SELECTIONS["tts_agfv"](row),
        "teacher_answer": row["teacher_answer"],
        "choices": row["choices"],
    }


def write_verified(accepted: list[TraceRow], audio: schema.AudioById, folder: Path) -> None:
    """Shards of the `verified` config; one row group of audio in memory at a time."""
    count = max(1, -(-len(accepted) // ROWS_PER_SHARD))
    for i in range(count):
        shard = accepted[i * ROWS_PER_SHARD : (i + 1) * ROWS_PER_SHARD]
        rows = (verified_row(row, audio[row["id"]]) for row in shard)
        schema.write_parquet(rows, schema.verified_features(), folder / f"train-{i:05d}-of-{count:05d}.parquet")


def card_values(rows: list[TraceRow], accepted: list[TraceRow], settings: dict[str, Any]) -> dict[str, Any]:
    """What the card says: the funnel, counts of outcomes and verdicts, provenance, one row, one trace."""
    first = next((row for row in rows if row["checker"]), rows[0])
    names = "teacher teacher_revision checker checker_revision verdict_mode prompt_version num_traces temperature seed"
    return {
        **{name: first[name] for name in names.split()},
        "questions": len(rows),
        "answered": sum(row["teacher_answer"] is not None for row in rows),
        "unanimous": sum(row["unanimous"] and row["teacher_answer"] is not None for row in rows),
        "accepted": len(accepted),
        "outcomes": Counter(row["outcome"] for row in rows).most_common(),
        "verdicts": Counter(trace["verdict"] or "none" for row in rows for trace in row["traces"]).most_common(),
        "row": as_json(verified_row(accepted[0], {}) | {"audio": SHOWN_AUDIO}),
        "sample": SELECTIONS["tts_agfv"](accepted[0])[0],
        "inputs": {name: settings[name] for name in ("dataset", "traces", "verdicts")},
        "licence": OTHER_LICENCE if settings["license"] == "other" else f"`{settings['license']}`.",
        **provenance(),
    }


def build(args: CotCorpusArguments, stage: Stage) -> None:
    verdicts = {row["id"]: row for row in schema.open_dataset(args.verdicts, "train")}
    unverified = any(row["outcome"] == schema.NOT_VERIFIED for row in verdicts.values())
    if unverified and not any(row["checker"] for row in verdicts.values()):
        raise InputError(f"{args.verdicts} holds no verdicts; give the output of verdicts.py")
    rows = join(list(schema.open_dataset(args.traces, "train")), verdicts)
    dataset = schema.open_dataset(args.dataset, args.split)
    schema.check_same_clips(rows, dataset, f"split '{args.split}' of {args.dataset}")
    ledger = ({"id": row["id"], "outcome": row["outcome"]} for row in rows)
    schema.write_ledger(ledger, stage.path / "ledger.parquet")
    data = stage.path / "data"
    schema.write_parquet(rows, schema.traces_features(), data / "traces" / "train-00000-of-00001.parquet")
    accepted = [row for row in rows if row["outcome"] == schema.ACCEPTED]
    told = ", ".join(f"{n} {outcome}" for outcome, n in Counter(row["outcome"] for row in rows).most_common())
    print(f"{len(rows)} questions: {told}")
    if not accepted:
        raise InputError(f"no question was accepted ({told}); {stage.path}/ledger.parquet tells every one's outcome")
    write_verified(accepted, schema.AudioById(dataset), data / "verified")
    configs = {name: {"train": f"data/{name}/train-*.parquet"} for name in ("verified", "traces")}
    features = {"verified": schema.verified_features(), "traces": schema.traces_features()}
    write_dataset_card(
        stage.path,
        render_card("dataset_traces.md", **card_values(rows, accepted, stage.settings)),
        configs,
        dataset_info=dataset_info(stage.path, configs, features),
        license=args.license,
        language="en",
        pretty_name="SightSound-R1 traces",
        source_datasets=["extended|other-avqa"],
        task_categories=["audio-text-to-text"],
        tags=["audio", "reasoning", "chain-of-thought", "distillation", "sightsound-r1"],
    )
    stage.finish()


def main() -> None:
    args = parse_arguments(CotCorpusArguments, __doc__)
    settings = {name: fingerprint(getattr(args, name)) for name in ("dataset", "traces", "verdicts")}
    with Stage(args.output_dir, {**settings, "split": args.split, "license": args.license}) as stage:
        if stage.complete:
            print(f"{stage.path} is complete")
        else:
            build(args, stage)
        args.publish(stage.path)


if __name__ == "__main__":
    run(main)
