"""
Make a page to look at traces and answers: clip, question, choices, every trace with its verdict, the student before and after.

    python -m evaluation browse --dataset avqa-audio --split train --corpus corpus --media_dir videos --output_dir browser
    python -m evaluation browse --dataset avqa-audio --runs evaluation-base evaluation-grpo --output_dir browser

`index.html` in `output_dir` holds all that it shows and asks the network for nothing: open it from disk, or mail it.
The README.md beside it makes the folder a static Space:

    hf repos create ORG/NAME --type space --sdk static
    hf upload ORG/NAME browser --type space
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.reporting.finished_runs import answers_of, find_runs, run_names, split_of
from sightsound.benchmarks import get_benchmark
from sightsound.cli import InputError, parse_arguments
from sightsound.data import parquet, schema
from sightsound.data.audio import stored_bytes
from sightsound.data.clips import Clip, MediaError, MediaFolder
from sightsound.data.frames import load_frames
from sightsound.data.sources import shown_source
from sightsound.method.selection import outcome_meanings, shown
from sightsound.stage import write_atomically


if TYPE_CHECKING:
    from datasets import Dataset

TEMPLATE = "browse.html"
TITLE = "Traces and answers"
MEGABYTE = 1_000_000  # bytes, as file managers and the Hub count
# What browsers play of the containers that `MediaFolder` finds.
VIDEO_TYPES = {".mp4": "video/mp4", ".m4v": "video/mp4", ".webm": "video/webm"}

Question = dict[str, Any]


@dataclass
class BrowseArguments:
    dataset: str = field(metadata={"help": "avqa-audio or a benchmark in its columns: folder or Hub id"})
    output_dir: str = field(metadata={"help": "where to write index.html and README.md"})
    corpus: str | None = field(default=None, metadata={"help": "traces with verdicts, by cot_corpus.py: folder or Hub id"})
    split: str = field(default="train", metadata={"help": "split of the dataset that the corpus is about"})
    runs: list[str] | None = field(default=None, metadata={"help": "folders of `run`: the student, or before and after"})
    runs_split: str | None = field(default=None, metadata={"help": "split that the runs are about (default: as they say)"})
    benchmark: str | None = field(default=None, metadata={"help": "of the dataset (default: the first run's, else avqa)"})
    media_dir: str | None = field(default=None, metadata={"help": "folder with the videos, to show them too"})
    media_mb: int = field(default=25, metadata={"help": "room for clips in the page, MB", "minimum": 0})
    limit: int | None = field(default=None, metadata={"help": "only the first N questions of a split", "minimum": 1})


@dataclass
class Source:
    """Where a question stands, and what tells its clip from others: the file's digest and the clip's start in it."""

    dataset: Dataset
    position: int
    clip: tuple[str, float]


class Clips:
    """
    The clips that the page carries, as base64 text; each once, however many questions are about it.

    Args:
        media_dir (`str`, *optional*): Where the videos are.
        budget (`int`): Bytes of base64 text that all of them may take.
        clip_name (`Callable` or `None`): A row -> the name of its video; None where there are only sounds.
    """

    def __init__(self, media_dir: str | None, budget: int, clip_name: Callable[[dict[str, Any]], str] | None):
        self.embedded: list[dict[str, str]] = []
        self._media = MediaFolder(media_dir) if media_dir else None
        self._left = budget
        self._clip_name = clip_name
        self._number: dict[tuple[str, float], int] = {}

    def number_of(self, source: Source) -> int | None:
        """Which of the clips is a question's; None once there was one for which there was no room."""
        if source.clip not in self._number and self._left > 0:
            row = source.dataset[source.position]
            clip = {"sound": base64.b64encode(stored_bytes(row["audio"])).decode(), **self._video(row)}
            size = len(clip["sound"]) + len(clip.get("video", ""))
            if size <= self._left:
                self._number[source.clip] = len(self.embedded)
                self.embedded.append(clip)
            self._left -= size  # below zero it is full, or else every clip of a large dataset would be read for its size
        return self._number.get(source.clip)

    def _video(self, row: dict[str, Any]) -> dict[str, str]:
        """The video, or why there is none."""
        if self._media is None:
            return {}
        if self._clip_name is None:
            return {"no_video": "This benchmark has sounds only."}
        name = self._clip_name(row)
        reasons = []
        for found in self._media.candidates(name, row["media_sha256"]):
            path = Path(found.path)
            if (reason := _why_not_shown(found)) is None:
                return {"video": base64.b64encode(path.read_bytes()).decode(), "video_type": VIDEO_TYPES[path.suffix.lower()]}
            reasons.append(reason)
        return {"no_video": next(iter(reasons), f"No video named {name} in the media folder.")}


def _why_not_shown(clip: Clip) -> str | None:
    """Why the page cannot show a file; None where it can."""
    path = Path(clip.path)
    if clip.max_duration_s is not None:
        return f"The video {path.name} is longer than the clip and is not cut here."
    if path.suffix.lower() not in VIDEO_TYPES:
        return f"Browsers do not show {path.name}."
    try:
        load_frames(clip.path, num_frames=2, max_pixels=64 * 64)
    except MediaError as error:
        return f"The video {path.name} cannot be shown: {error}"
    return None


def to_question(row: dict[str, Any], split: str) -> Question:
    """A dataset's row, in what the page shows of it."""
    return {
        **{name: row[name] for name in ("id", "question", "choices", "question_type", "question_relation")},
        "split": split,
        "gold": row["answer"],
        "clip": None,
    }


def to_traced(row: dict[str, Any]) -> Question:
    """What a row of the ledger adds to its question."""
    kept = ("text", "answer", "finish_reason", "verdict", "verdict_text")
    traces = [{name: trace[name] for name in kept} for trace in row["traces"]]
    return {"outcome": row["outcome"], "teacher_answer": row["teacher_answer"], "traces": traces}


def to_answered(predictions: Sequence[dict[str, Any]]) -> Question:
    """What the predictions of one or two runs add to their question; `change` is what one filters by."""
    states = ["unanswered" if p["answer"] is None else "right" if p["correct"] else "wrong" for p in predictions]
    answers = [
        {"output": p["output"] or "", "answer": p["answer"], "matched_by": p["matched_by"], "state": state}
        for p, state in zip(predictions, states, strict=True)
    ]
    return {"change": " → ".join(states), "answers": answers}


def read_run(folder: str, benchmark: str) -> dict[str, dict[str, Any]]:
    """Predictions of a finished run by question id; those of its controls are left to the report."""
    found = next((run for run in find_runs([folder]) if run.results["benchmark"] == benchmark), None)
    if found is None:
        raise InputError(f"{folder} holds no predictions on {benchmark}; give a folder written by `python -m evaluation run`")
    return answers_of(found)


def join_runs(runs: dict[str, dict[str, dict[str, Any]]], dataset: Dataset, split: str) -> dict[str, Question]:
    """
    Question id -> what the runs answered.

    Raises:
        `InputError`: The runs are about different questions, or not about those of this split: ids repeat across splits.
    """
    first, *others = runs
    for other in others:
        if differing := runs[first].keys() ^ runs[other].keys():
            told = f"{len(differing)} questions (first: {min(differing)}) are in only one of {first} and {other}"
            raise InputError(f"{told}; give two runs on the same questions")
    texts = dataset.select_columns(["id", "choices", "answer"])
    known = {row["id"]: (row["choices"], row["answer"]) for row in texts}
    other_rows = [p["id"] for run in runs.values() for p in run.values() if known.get(p["id"]) != (p["choices"], p["gold"])]
    if other_rows:
        raise InputError(
            f"{len(other_rows)} predictions (first: {other_rows[0]}) are not about questions of split '{split}'; "
            "give the split that was evaluated as --runs_split"
        )
    return {row_id: to_answered([run[row_id] for run in runs.values()]) for row_id in runs[first]}


def gather(dataset: Dataset, split: str, added: dict[str, Question], limit: int | None) -> tuple[list[Question], list[Source]]:
    """Questions of a split that have traces or answers, in the dataset's order."""
    questions, sources = [], []
    for position, row in enumerate(dataset.remove_columns("audio")):
        if row["id"] in added and len(questions) < (limit or len(dataset)):
            questions.append({**to_question(row, split), **added[row["id"]]})
            sources.append(Source(dataset, position, (row["media_sha256"], row["start_s"])))
    return questions, sources


def by_turns(questions: Sequence[Question]) -> list[int]:
    """The order in which questions get their clips: the first of every split and outcome, then the second of each, …"""
    seen: Counter[tuple[Any, ...]] = Counter()
    turns = []
    for position, question in enumerate(questions):
        group = (question["split"], question.get("outcome"), question.get("change"))
        turns.append((seen[group], position))
        seen[group] += 1
    return [position for _, position in sorted(turns)]


def render_page(page: dict[str, Any], clips: Clips) -> str:
    """The page. Text of the data is only ever JSON without `<`, which the page's own code shows as text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, undefined=StrictUndefined, autoescape=True, keep_trailing_newline=True)
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    return environment.get_template(TEMPLATE).render(title=TITLE, page=page, clips=clips.embedded)


def write_space_card(folder: Path) -> None:
    """The README.md that makes a folder with an index.html a static Space."""
    import yaml

    metadata = {
        "title": TITLE,
        "emoji": "👂",
        "colorFrom": "blue",
        "colorTo": "green",
        "sdk": "static",
        "app_file": "index.html",
    }
    front = yaml.safe_dump({**metadata, "pinned": False}, sort_keys=False, allow_unicode=True)
    text = "Questions with their clips, the teacher's traces with verdicts, and the student's answers. Made by\n"
    text += "`python -m evaluation browse` of SightSound-R1; `index.html` also opens from disk.\n"
    write_atomically(folder / "README.md", f"---\n{front}---\n\n# {TITLE}\n\n{text}")


def check(args: BrowseArguments) -> None:
    """Refuse what would make an empty page, or one that cannot be read."""
    if not args.corpus and not args.runs:
        raise InputError("there is nothing to show; give --corpus, --runs, or both")
    if args.runs and len(args.runs) > 2:
        raise InputError(f"--runs takes one folder, or two (before and after); found {len(args.runs)}")


def asked_of(args: BrowseArguments) -> tuple[str, str]:
    """The benchmark, and the split of it that the runs are about: as given, else as the first run says."""
    by_benchmark = {run.results["benchmark"]: run.results for folder in (args.runs or [])[:1] for run in find_runs([folder])}
    benchmark = args.benchmark or next(iter(by_benchmark), "avqa")
    default = split_of(by_benchmark[benchmark]) if benchmark in by_benchmark else get_benchmark(benchmark).split
    return benchmark, args.runs_split or default


def write_page(args: BrowseArguments) -> None:
    """
    Make the page and the card beside it.

    Raises:
        `InputError`: There is nothing to show, or what is given does not belong together.
    """
    check(args)
    benchmark, runs_split = asked_of(args)
    clips = Clips(args.media_dir, args.media_mb * MEGABYTE, get_benchmark(benchmark).video_name)
    added: dict[str, dict[str, Question]] = {}  # split -> question id -> traces and answers
    datasets: dict[str, Dataset] = {}
    provenance: dict[str, Any] = {}
    if args.corpus:
        datasets[args.split] = parquet.open_dataset(args.dataset, args.split)
        ledger = list(parquet.open_dataset(args.corpus, "train", "traces"))
        if not ledger:
            raise InputError(f"{args.corpus} holds no traces; run traces.py, verdicts.py and cot_corpus.py first")
        parquet.check_same_clips(ledger, datasets[args.split], f"split '{args.split}' of {args.dataset}")
        added[args.split] = {row["id"]: to_traced(row) for row in ledger}
        provenance = {name: ledger[0][name] for name in ("verdict_mode", "temperature", "prompt_version")}
        models = {name: ledger[0][name] for name in ("teacher", "checker")}
        provenance = {name: model and shown_source(model) for name, model in models.items()} | provenance
    runs = {folder: read_run(folder, benchmark) for folder in args.runs or []}
    if runs:
        dataset = datasets.setdefault(runs_split, parquet.open_dataset(args.dataset, runs_split))
        traced = added.setdefault(runs_split, {})
        for row_id, answered in join_runs(runs, dataset, runs_split).items():
            traced[row_id] = {**traced.get(row_id, {}), **answered}

    questions: list[Question] = []
    sources: list[Source] = []
    splits = []
    for split, dataset in datasets.items():
        found, found_at = gather(dataset, split, added[split], args.limit)
        questions += found
        sources += found_at
        splits.append({"name": split, "shown": len(found), "found": len(added[split]), "total": len(dataset)})
    for i in by_turns(questions):
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
    told = ", ".join(f"{split['shown']} of {split['found']} questions of {split['name']}" for split in splits)
    print(f"{told}, {page['num_with_clip']} with clip, {size_mb:.1f} MB: {output / 'index.html'}")


def main(argv: list[str]) -> None:
    write_page(parse_arguments(BrowseArguments, __doc__, argv))
