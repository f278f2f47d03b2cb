r"""
Score the reasoning of a run by the rubric of each question (MMAR-Rubrics, arXiv 2602.14224), with a judge at a server.

    python -m evaluation judge --run evaluation-runs/grpo/mmar --annotations MMAR-meta.jsonl --judge gpt-4o-2024-11-20 \
        --base_url https://api.openai.com/v1 --output_dir judgements --dry_run

`--run` is the folder of a finished run, or a file of predictions of another tool, such as MMAR's submissions with
`thinking_prediction` and `answer_prediction`. The questions with their rubrics come from the official annotation file or from
the dataset built from it (`--dataset`). The reasoning of a run is what its outputs have in `<think>`; of an output without it,
the whole output.

The judge, any text model behind an OpenAI-compatible server, is asked five times about each answer that the official rule or
the paper's protocol takes: greedily, with another seed each time. The mean of the middle three is the question's score. A wrong
answer scores 0 and costs no request. A reply that is not the list of points that was asked for is requested again with another
seed, at most `--num_retries` times. A question without five scores is left out of the mean, and counted: `unjudged`.

Written: `data/judgements-*.parquet`, one row per question with its outcome, scores and the judge's replies, and
`judgements.json`, the figures under both protocols. Figures of different judges or prompts are not comparable: both are part of
the figure's name. A killed run continues with the same command. `--dry_run` prints what the requests cost, and sends none.
"""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from evaluation.benchmarks import load_questions
from evaluation.reporting.finished_runs import find_runs, predictions_file
from evaluation.running.controls import NO_CONTROL
from evaluation.scoring.prediction_files import read_rows
from evaluation.scoring.predictions import Predictions
from evaluation.scoring.rubric_scores import JUDGED, PROTOCOLS, Judged, figures_of, select
from sightsound.benchmarks import benchmark_names, get_benchmark
from sightsound.cli import InputError, parse_arguments
from sightsound.data import parquet, schema
from sightsound.engines import make_engine
from sightsound.engines.base import ChatRequest, EngineFlags, Sampling
from sightsound.engines.checker import Checker, Questions, records_of
from sightsound.engines.cost import dry_run
from sightsound.engines.request_fields import RequestFieldArguments, RequestOptions, options_of, settings_of_requests
from sightsound.hub.cards import markdown_table, write_dataset_card
from sightsound.method.prompts import JUDGE_FIELDS, JUDGE_RUBRIC, Prompt, choose_prompt
from sightsound.method.rubrics import NUM_RUNS, UNREADABLE, read_score, write_request
from sightsound.stage import JOURNAL_FILE, Journal, Stage, fingerprint, write_atomically


RESULTS_FILE = "judgements.json"


@dataclass(kw_only=True)
class JudgeArguments(RequestFieldArguments):
    run: str = field(metadata={"help": "folder written by `python -m evaluation run`, or a file of predictions"})
    judge: str = field(metadata={"help": "the judge's name at --base_url"})
    base_url: list[str] = field(metadata={"help": "OpenAI-compatible server; several are replicas"})
    output_dir: str = field(metadata={"help": "where to write the judgements"})
    benchmark: str = field(default="mmar", metadata={"help": "benchmark with rubrics that was answered"})
    annotations: str | None = field(default=None, metadata={"help": "its official annotation file"})
    dataset: str | None = field(default=None, metadata={"help": "or the dataset built from it, folder or Hub id"})
    split: str | None = field(default=None, metadata={"help": "split of --dataset (default: the benchmark's)"})
    allow_unpinned: bool = field(default=False, metadata={"help": "accept an annotation file other than the pinned one"})
    num_retries: int = field(default=2, metadata={"help": "how often an unreadable reply is requested again", "minimum": 0})
    max_tokens: int = field(default=1024, metadata={"help": "maximum tokens of a reply", "minimum": 1})
    prompt_file: str | None = field(
        default=None, metadata={"help": f"another prompt: a text file with the fields {', '.join(JUDGE_FIELDS)} in braces"}
    )
    concurrency: int = field(default=16, metadata={"help": "requests in flight at --base_url", "minimum": 1})
    request_timeout_s: float = field(
        default=600.0, metadata={"help": "a request that --base_url does not answer for so long is made again", "minimum": 1}
    )
    seed: int = field(default=0, metadata={"help": "random seed of the requests"})
    dry_run: bool = field(default=False, metadata={"help": "print what the run would cost, from a sample, and stop"})

    def options(self) -> RequestOptions:
        return options_of(self, self.base_url, ("max_tokens", "seed"))

    @cached_property
    def chosen_prompt(self) -> Prompt:
        return choose_prompt(self.prompt_file, JUDGE_RUBRIC, JUDGE_FIELDS)


def predictions_of(run: str, benchmark: str) -> str:
    """
    The file with a run's predictions on a benchmark; another tool's file is that file itself.

    Raises:
        `InputError`: The folder holds no finished run on the benchmark.
    """
    if not Path(run).is_dir():
        return run
    found = {each.results["benchmark"]: each.folder for each in find_runs([run])}
    if benchmark not in found:
        raise InputError(f"--run {run} holds no run on {benchmark}, but on {', '.join(found)}; give one on {benchmark}")
    return str(predictions_file(Path(found[benchmark]), benchmark))


class JudgeRun:
    """The answers of a run, and the requests about their reasoning."""

    def __init__(self, args: JudgeArguments):
        self._args = args
        with_rubrics = [name for name in benchmark_names() if "rubric" in get_benchmark(name).features()]
        if args.benchmark not in with_rubrics:
            raise InputError(f"--benchmark {args.benchmark} has no rubrics; expected {', '.join(with_rubrics)}")
        self.file = predictions_of(args.run, args.benchmark)
        questions, self.revision, _ = load_questions(
            args.benchmark, args.annotations, args.dataset, args.split, args.allow_unpinned
        )
        predictions = Predictions(self.file, args.benchmark, questions, self.revision)
        written = ((str(row.get("id")), row.get("thinking_prediction")) for row in read_rows(self.file))
        beside = {row_id: text for row_id, text in written if isinstance(text, str)}
        self.judged = select(args.benchmark, questions, predictions.outputs[NO_CONTROL], beside)
        if not any(each.row["rubric"] for each in self.judged):
            official = get_benchmark(args.benchmark).official_file
            raise InputError(f"the questions have no rubrics; give {official} as it is pinned, or a dataset built from it")
        self.by_id = {each.row["id"]: each for each in self.judged}
        self.sampling = Sampling(1, 0.0, args.max_tokens, args.seed)

    def first_requests(self) -> Questions:
        """The requests of all runs of the judge; their keys are `ID/RUN#0`."""
        asked = (each for each in self.judged if each.is_asked)
        return {f"{each.row['id']}/{i}#0": (each.row["id"], self._text(each)) for each in asked for i in range(NUM_RUNS)}

    def _text(self, each: Judged) -> str:
        row = each.row
        return write_request(
            self._args.chosen_prompt.text,
            question=row["question"],
            answer=row["answer_text"],
            reference=row["thinking"],
            rubric=row["rubric"],
            reasoning=each.reasoning,
            predicted=each.predicted,
        )

    def estimate(self) -> str:
        """What `--dry_run` prints."""
        args, requests = self._args, self.first_requests()
        num_asked = len(requests) // NUM_RUNS
        notes = [
            f"{num_asked:,} of {len(self.judged):,} questions are answered right and have a rubric: {NUM_RUNS} requests each.",
            f"Unreadable replies are requested again, up to {args.num_retries} times: not counted here.",
        ]
        return dry_run(
            list(requests),
            lambda key: ChatRequest(key, requests[key][1]),
            self.sampling,
            model=args.judge,
            base_url=args.base_url,
            output_dir=args.output_dir,
            notes=notes,
        )

    def ask(self, journal: Journal) -> str:
        """Get every score that the journal lacks; returns the judge's revision."""
        args, requests = self._args, self.first_requests()
        flags = EngineFlags(
            model=args.judge,
            sampling=self.sampling,
            base_url=args.base_url,
            concurrency=args.concurrency,
            timeout_s=args.request_timeout_s,
            options=args.options(),
        )
        engine = make_engine(flags)
        checker = Checker(engine, journal, lambda key, _, text, __: ChatRequest(key, text), lambda _: 0, is_part=False)
        for attempt in range(args.num_retries + 1):
            drawn = replace(self.sampling, temperature=0.0 if attempt == 0 else 1.0, seed=args.seed + attempt)
            if requests:
                checker.send(requests, drawn, f"judgements (attempt {attempt + 1})")
            unreadable: Questions = {}
            for key, request in requests.items():
                name = key.rpartition("#")[0]
                if self._read(name, *checker.reply(key)):
                    unreadable[f"{name}#{attempt + 1}"] = request
            requests = unreadable
        for each in self.judged:
            if each.is_asked:
                each.outcome = each.problems[min(each.problems)] if each.problems else JUDGED
        return engine.revision

    def _read(self, name: str, text: str | None, problem: str | None) -> bool:
        """Read the reply of one run of the judge; returns whether it is to be requested again."""
        row_id, _, number = name.rpartition("/")
        each, run = self.by_id[row_id], int(number)
        each.replies[run] = text
        score = None if text is None or problem else read_score(text, each.row["rubric"])
        if score is None:
            each.problems[run] = problem or UNREADABLE
            return text is not None
        each.scores[run] = score
        each.problems.pop(run, None)  # of an earlier reply
        return False

    def rows(self, journal: Journal, provenance: dict[str, Any]) -> list[dict[str, Any]]:
        """One row per question."""
        records = records_of(journal.entries, self.by_id)
        return [
            {
                "id": each.row["id"],
                "video_id": each.row["video_id"],
                "outcome": each.outcome,
                "reasoning": each.reasoning,
                "predicted": each.predicted,
                **{f"correct_{protocol}": each.correct[protocol] for protocol in PROTOCOLS},
                "score": each.score,
                "run_scores": [each.scores[i] for i in sorted(each.scores)],
                "replies": [each.replies[i] for i in sorted(each.replies)],
                "sampling": json.dumps(record.sampling) if (record := records.get(each.row["id"])) else None,
                **provenance,
            }
            for each in self.judged
        ]


def settings_of(args: JudgeArguments, run: JudgeRun) -> dict[str, Any]:
    """What a rerun has to share: every flag and input that decides a score."""
    ignored = ["annotations", "dataset", "split", "allow_unpinned"]
    return settings_of_requests(args, ignored) | {"run": fingerprint(run.file), "benchmark_revision": run.revision}


def name_of(args: JudgeArguments) -> str:
    """Name of the figure: the benchmark's rubrics, the judge, and the version of the prompt."""
    return f"{args.benchmark}_rubrics, judge {args.judge}, prompt {args.chosen_prompt.version}"


def _cell(figures: dict[str, Any], name: str, low: str, high: str) -> str:
    if figures[name] is None:
        return "–"
    interval = "" if figures[low] is None else f" [{figures[low]:.1f}, {figures[high]:.1f}]"
    return f"{figures[name]:.1f}{interval}"


def table(figures: dict[str, Any]) -> list[str]:
    """A row per group of questions; per protocol the score, the accuracy, and the score of the right answers alone."""
    heads = [f"{protocol}: {what}" for protocol in PROTOCOLS for what in ("score", "accuracy", "score of right answers")]
    first = figures[PROTOCOLS[0]]
    groups = [("all", None, None)]
    groups += [(f"{by.removeprefix('by_')}: {name}", by, name) for by in first if by.startswith("by_") for name in first[by]]
    rows = []
    for label, by, name in groups:
        parts = [figures[protocol] if by is None else figures[protocol][by][name] for protocol in PROTOCOLS]
        cells = [
            cell
            for part in parts
            for cell in (
                _cell(part, "score", "low", "high"),
                _cell(part, "accuracy", "accuracy_low", "accuracy_high"),
                "–" if part["of_right"] is None else f"{part['of_right']:.1f}",
            )
        ]
        rows.append([label.replace("_", " ") if by else label, parts[0]["n"], *cells])
    return markdown_table(["questions", "n", *heads], rows)


def write_results(args: JudgeArguments, stage: Stage, run: JudgeRun, journal: Journal, revision: str) -> None:
    provenance = {
        "benchmark": args.benchmark,
        "benchmark_revision": run.revision,
        "predictions": Path(run.file).name,
        "judge": args.judge,
        "judge_revision": revision,
        "prompt_version": args.chosen_prompt.version,
    }
    path = stage.path / "data" / f"judgements-{args.benchmark}.parquet"
    parquet.write_parquet(run.rows(journal, provenance), schema.judgements_features(), path)
    figures = figures_of(run.judged, get_benchmark(args.benchmark))
    written = {"figure": name_of(args), "runs_of_judge": NUM_RUNS, **provenance, "questions": len(run.judged), **figures}
    write_atomically(stage.path / RESULTS_FILE, json.dumps(written, indent=2) + "\n")
    outcomes = ", ".join(f"{count:,} {outcome}" for outcome, count in figures["outcomes"].items())
    lines = [f"{name_of(args)}: {len(run.judged):,} questions: {outcomes}"]
    if unjudged := figures[PROTOCOLS[0]]["unjudged"]:
        lines.append(f"left out of the official score, for lack of five scores or of a rubric: {unjudged:,} right answers")
    lines += ["", *table(figures)]
    write_dataset_card(stage.path, "\n".join([f"# {name_of(args)}", "", *lines, ""]), {"default": {"test": "data/*.parquet"}})
    print("\n".join(lines))


def main(argv: list[str]) -> None:
    args = parse_arguments(JudgeArguments, __doc__, argv)
    args.options()
    run = JudgeRun(args)
    if args.dry_run:
        print(run.estimate())
        return
    with Stage(args.output_dir, settings_of(args, run)) as stage:
        if stage.complete:
            print(f"{stage.path} is complete")
            return
        with closing(Journal(stage.path / JOURNAL_FILE)) as journal:
            revision = run.ask(journal)
            write_results(args, stage, run, journal, revision)
        stage.finish()
