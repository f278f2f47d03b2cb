"""
Make a page to look at traces and answers: clip, question, choices, every trace with its verdict, the student before and after.

    python -m evaluation browse --dataset avqa-audio --split train --corpus corpus --media_dir videos --output_dir browser
    python -m evaluation browse --dataset avqa-audio --runs evaluation-base evaluation-grpo --output_dir browser

`index.html` in `output_dir` contains all its data and makes no network requests: open it from disk, or send it by mail. The
README.md beside it makes the folder a static Space:

    hf repos create ORG/NAME --type space --sdk static
    hf upload ORG/NAME browser --type space
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.reporting.embedded_clips import ClipSource, EmbeddedClips, embedding_order
from evaluation.reporting.finished_runs import answers_of, find_runs, run_names, split_of
from sightsound.benchmarks import get_benchmark
from sightsound.cli import InputError, parse_arguments
from sightsound.data import parquet, schema
from sightsound.data.sources import shown_source
from sightsound.hub.cards import save_card
from sightsound.method.selection import outcome_meanings, shown
from sightsound.stage import write_atomically


if TYPE_CHECKING:
    from datasets import Dataset

TEMPLATE = "browse.html"
TITLE = "Traces and answers"
MEGABYTE = 1_000_000  # bytes, as file managers and the Hub count

Question = dict[str, Any]


@dataclass
class BrowseArguments:
    dataset: str = field(metadata={"help": "avqa-audio or a dataset of a benchmark: folder or Hub id"})
    output_dir: str = field(metadata={"help": "where to write index.html and README.md"})
    corpus: str | None = field(default=None, metadata={"help": "traces with verdicts, by cot_corpus.py: folder or Hub id"})
    split: str = field(default="train", metadata={"help": "split of the dataset that the corpus is about"})
    runs: list[str] | None = field(
        default=None,
        metadata={"help": "one or two folders of `python -m evaluation run`: the student, or before and after"},
    )
    runs_split: str | None = field(default=None, metadata={"help": "split of the runs (default: the one they record)"})
    benchmark: str | None = field(
        default=None, metadata={"help": "benchmark of the dataset (default: the first run's, or avqa without runs)"}
    )
    media_dir: str | None = field(default=None, metadata={"help": "folder with the videos, to show them too"})
    media_mb: int = field(default=25, metadata={"help": "space for clips in the page, MB", "minimum": 0})
    limit: int | None = field(default=None, metadata={"help": "only the first N questions of a split", "minimum": 1})


def check_arguments(args: BrowseArguments) -> None:
    """
    Check that there is something to show, and that it fits the page.

    Raises:
        `InputError`: There is neither a corpus nor a run, or there are more than two runs.
    """
    if not args.corpus and not args.runs:
        raise InputError("there is nothing to show; give --corpus, --runs, or both")
    if args.runs and len(args.runs) > 2:
        raise InputError(f"--runs takes one folder, or two (before and after); found {len(args.runs)}")


def benchmark_and_split(args: BrowseArguments) -> tuple[str, str]:
    """The benchmark and the split of the runs: from the flags, or else as the first run records them."""
    by_benchmark = {run.results["benchmark"]: run.results for folder in (args.runs or [])[:1] for run in find_runs([folder])}
    benchmark = args.benchmark or next(iter(by_benchmark), "avqa")
    default = split_of(by_benchmark[benchmark]) if benchmark in by_benchmark else get_benchmark(benchmark).split
    return benchmark, args.runs_split or default


def read_corpus(args: BrowseArguments, dataset: Dataset) -> tuple[dict[str, Question], dict[str, Any]]:
    """
    What a corpus adds to the questions, by question id, and where its traces come from.

    Raises:
        `InputError`: It holds no traces, or is not about the clips of this dataset.
    """
    ledger = list(parquet.open_dataset(str(args.corpus), "train", "traces"))
    if not ledger:
        raise InputError(f"{args.corpus} holds no traces; run traces.py, verdicts.py and cot_corpus.py first")
    parquet.check_same_clips(ledger, dataset, f"split '{args.split}' of {args.dataset}")
    models = {name: ledger[0][name] for name in ("teacher", "checker")}
    provenance = {name: model and shown_source(model) for name, model in models.items()}
    provenance |= {name: ledger[0][name] for name in ("verdict_mode", "temperature", "prompt_version")}
    return {row["id"]: to_traced(row) for row in ledger}, provenance


def to_traced(row: dict[str, Any]) -> Question:
    """What a row of the corpus's ledger adds to its question."""
    kept = ("text", "answer", "finish_reason", "verdict", "verdict_text")
    traces = [{name: trace[name] for name in kept} | {"rewritten": trace.get("rewritten")} for trace in row["traces"]]
    return {"outcome": row["outcome"], "teacher_answer": row["teacher_answer"], "traces": traces}


def read_run(folder: str, benchmark: str) -> dict[str, dict[str, Any]]:
    """The predictions of a finished run by question id, without its controls: the report shows those."""
    found = next((run for run in find_runs([folder]) if run.results["benchmark"] == benchmark), None)
    if found is None:
        raise InputError(f"{folder} holds no predictions on {benchmark}; give a folder written by `python -m evaluation run`")
    return answers_of(found)


def join_runs(runs: dict[str, dict[str, dict[str, Any]]], dataset: Dataset, split: str) -> dict[str, Question]:
    """
    What the runs add to the questions, by question id. Ids repeat across splits, so choices and answers are compared too.

    Raises:
        `InputError`: The runs are about different questions, or not about those of this split.
    """
    first, *others = runs
    for other in others:
        if differing := runs[first].keys() ^ runs[other].keys():
            seen = f"{len(differing)} questions (first: {min(differing)}) are in only one of {first} and {other}"
            raise InputError(f"{seen}; give two runs on the same questions")
    texts = dataset.select_columns(["id", "choices", "answer"])
    known = {row["id"]: (row["choices"], row["answer"]) for row in texts}
    other_rows = [p["id"] for run in runs.values() for p in run.values() if known.get(p["id"]) != (p["choices"], p["gold"])]
    if other_rows:
        raise InputError(
            f"{len(other_rows)} predictions (first: {other_rows[0]}) are not about questions of split '{split}'; "
            "give the split that was evaluated as --runs_split"
        )
    return {row_id: to_answered([run[row_id] for run in runs.values()]) for row_id in runs[first]}


def to_answered(predictions: Sequence[dict[str, Any]]) -> Question:
    """What the predictions of one or two runs add to their question. The page can be filtered by `change`."""
    states = ["unanswered" if p["answer"] is None else "right" if p["correct"] else "wrong" for p in predictions]
    answers = [
        {"output": p["output"] or "", "answer": p["answer"], "matched_by": p["matched_by"], "state": state}
        for p, state in zip(predictions, states, strict=True)
    ]
    return {"change": " → ".join(states), "answers": answers}


def to_question(row: dict[str, Any], split: str) -> Question:
    """What the page shows of a dataset's row."""
    return {
        **{name: row[name] for name in ("id", "question", "choices", "question_type", "question_relation")},
        "split": split,
        "gold": row["answer"],
        "clip": None,
    }


def join_questions(
    dataset: Dataset, split: str, added: dict[str, Question], limit: int | None
) -> tuple[list[Question], list[ClipSource]]:
    """The questions of a split that have traces or answers, in the dataset's order."""
    questions: list[Question] = []
    sources = []
    for position, row in enumerate(dataset.remove_columns("audio")):
        if row["id"] in added and len(questions) < (limit or len(dataset)):
            questions.append({**to_question(row, split), **added[row["id"]]})
            sources.append(ClipSource(dataset, position, (row["media_sha256"], row["start_s"])))
    return questions, sources


def render_page(page: dict[str, Any], clips: EmbeddedClips) -> str:
    """
    The HTML of the page.

    Data reaches the page as JSON in which `<` is escaped, and its script inserts it as text: no data becomes HTML.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, undefined=StrictUndefined, autoescape=True, keep_trailing_newline=True)
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    return environment.get_template(TEMPLATE).render(title=TITLE, page=page, clips=clips.embedded)


def write_space_card(folder: Path) -> None:
    """Write the README.md that makes a folder with an index.html a static Space."""
    from huggingface_hub import SpaceCardData

    text = "Questions with their clips, the teacher's traces with verdicts, and the student's answers. Made by\n"
    text += "`python -m evaluation browse` of SightSound-R1; `index.html` also opens from disk.\n"
    data = SpaceCardData(
        title=TITLE, emoji="👂", colorFrom="blue", colorTo="green", sdk="static", app_file="index.html", pinned=False
    )
    save_card(folder, data, f"# {TITLE}\n\n{text}")


def write_page(args: BrowseArguments) -> None:
    """
    Make the page and the card beside it.

    Raises:
        `InputError`: There is nothing to show, or dataset, corpus and runs do not belong together.
    """
    check_arguments(args)
    benchmark, runs_split = benchmark_and_split(args)
    clips = EmbeddedClips(args.media_dir, args.media_mb * MEGABYTE, get_benchmark(benchmark).video_name)
    datasets: dict[str, Dataset] = {}
    added: dict[str, dict[str, Question]] = {}  # split -> question id -> traces and answers
    provenance: dict[str, Any] = {}
    if args.corpus:
        datasets[args.split] = parquet.open_dataset(args.dataset, args.split)
        added[args.split], provenance = read_corpus(args, datasets[args.split])
    runs = {folder: read_run(folder, benchmark) for folder in args.runs or []}
    if runs:
        dataset = datasets.setdefault(runs_split, parquet.open_dataset(args.dataset, runs_split))
        of_split = added.setdefault(runs_split, {})
        for row_id, answered in join_runs(runs, dataset, runs_split).items():
            of_split[row_id] = {**of_split.get(row_id, {}), **answered}

    questions: list[Question] = []
    sources: list[ClipSource] = []
    splits = []
    for split, dataset in datasets.items():
        found, found_sources = join_questions(dataset, split, added[split], args.limit)
        questions += found
        sources += found_sources
        splits.append({"name": split, "shown": len(found), "found": len(added[split]), "total": len(dataset)})
    for i in embedding_order(questions):
        questions[i]["clip"] = clips.number_of(sources[i])
    page = {
        "questions": questions,
        "splits": splits,
        "runs": run_names(list(runs)),
        "provenance": provenance,
        "outcomes": outcome_meanings(),
        "shown_as": {schema.NOT_VERIFIED: shown(None)},
        "media_mb": args.media_mb,
        "num_with_clip": sum(question["clip"] is not None for question in questions),
    }

    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / "index.html", render_page(page, clips))
    write_space_card(output)
    size_mb = (output / "index.html").stat().st_size / MEGABYTE
    counts = ", ".join(f"{split['shown']} of {split['found']} questions of {split['name']}" for split in splits)
    print(f"{counts}, {page['num_with_clip']} with clip, {size_mb:.1f} MB: {output / 'index.html'}")


def main(argv: list[str]) -> None:
    write_page(parse_arguments(BrowseArguments, __doc__, argv))
