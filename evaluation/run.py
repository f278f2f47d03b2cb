r"""
Run a model over benchmarks: batched inference -> predictions -> results.

    python -m evaluation run --benchmark avqa --dataset avqa-audio --split test --model sft-tts_agfv/model --method cot \
        --controls silent swapped text_only shuffled --output_dir evaluation-runs/sft-tts_agfv
    python -m evaluation run --benchmark avqa,mmau,music_avqa --dataset avqa=avqa-audio mmau=mmau music_avqa=music-avqa \
        --model student --base_url http://localhost:8000/v1 --method cot --output_dir evaluation-runs/student

The model is a folder or a Hub id, of a whole model or of a LoRA, or what a server calls it: `--base_url` may be given several
times, for replicas; `--request_field`, `--omit_field` and `--frames` change its requests as those of
`dataset_builders/traces.py`. With several benchmarks each has a sub-folder of its own in `output_dir`; `--dataset`, `--split`,
`--media_dir` and `--traces` are then given per benchmark as `NAME=VALUE`, all but `--dataset` also once for all of them.

Written: `data/predictions-*.parquet`, one row per question and control, with the exact prompt, the raw output and how it was
matched; `results.json`, the figures. A question whose clip cannot be read, or that a server refuses, is unanswered and
counted. A run that was killed continues. Controls may be added to a run, also to a finished one, and left out of it: rows and
figures of one that is left out go, its answers stay in `left_out.jsonl`, and adding it again asks nothing anew. A model that
refuses requests without audio is scored on all others; its `text_only` is `refused`.

The controls show whether the model listens, and whether it goes by what the choices say: `silent` gives it silence of the
clip's length, `swapped` another clip's sound, `text_only` no clip at all, and `shuffled` every choice at another letter.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.benchmarks import Row, get_benchmark, load_benchmark
from evaluation.reporting.finished_runs import RESULTS_FILE, predictions_file
from evaluation.reporting.sections import summary_line
from evaluation.running.arguments import RunArguments, Source, check_arguments, pin_source, read_sources, settings_of
from evaluation.running.controls import NO_CONTROL, TEXT_ONLY
from evaluation.running.requests import AUDIO, NO_TRACE, QuestionFormat, RequestBuilder, check_controls, read_reasoning
from evaluation.scoring.accuracy import ANSWERED, score_run
from evaluation.scoring.prediction_files import read_rows
from evaluation.scoring.protocols import OFFICIAL, PAPER, protocols_of
from sightsound.benchmarks.pinned import TEXTS
from sightsound.cli import parse_arguments, read_json
from sightsound.data import parquet, schema
from sightsound.data.sources import shown_source
from sightsound.engines import make_engine
from sightsound.engines.base import Engine, EngineFlags, Sampling
from sightsound.engines.runner import run_requests
from sightsound.hub.cards import write_dataset_card
from sightsound.method.answers import is_correct, parse_answer
from sightsound.models.sources import pin_model
from sightsound.stage import JOURNAL_FILE, Journal, Stage, read_journal, write_atomically
from sightsound.training.trained_on import count_trained_on


if TYPE_CHECKING:
    from datasets import Dataset

LEFT_OUT_FILE = "left_out.jsonl"  # what was answered under controls that a run has no more, as in its journal


def to_prediction(row: Row, key: str, entry: dict[str, Any], provenance: dict[str, Any]) -> dict[str, Any]:
    """A benchmark row and what the journal holds for it -> one row of predictions. A clip that failed is unanswered."""
    completion = (entry.get("completions") or [{"text": "", "finish_reason": entry.get("outcome", "")}])[0]
    answer = parse_answer(completion["text"], row["choices"])
    return {
        **{name: row[name] for name in ("id", "video_id", "question_type", "question_relation", "choices", "duration_s")},
        "control": key.split("/")[1],
        "prompt": entry.get("prompt", ""),
        "output": completion["text"] if "completions" in entry else None,  # None: no answer came, which is not an empty answer
        "finish_reason": completion["finish_reason"],
        "answer": answer.index,
        "matched_by": answer.matched_by,
        "gold": row["answer"],
        "correct": is_correct(answer, row["answer"], row["choices"]),
        "in_paper": row.get("in_paper"),
        "heard_s": entry.get("heard_s"),
        **provenance,
    }


def to_entry(prediction: dict[str, Any]) -> dict[str, Any]:
    """A row of predictions -> what the journal held for it; the reverse of `to_prediction`."""
    if prediction["output"] is None:
        return {"outcome": prediction["finish_reason"], "detail": None}
    completion = {"text": prediction["output"], "finish_reason": prediction["finish_reason"]}
    sampling = json.loads(prediction["generation"])
    return {"prompt": prediction["prompt"], "completions": [completion], "heard_s": prediction["heard_s"], "sampling": sampling}


@dataclass
class BenchmarkRun:
    """
    One benchmark of a run, in a folder of its own.

    Args:
        rows, revision: From `load_benchmark`.
        model_commit (`str`, *optional*): From `resolved_revision`.
        reasoning (`dict`, *optional*): From `read_reasoning`.
    """

    args: RunArguments
    source: Source
    rows: "Dataset"
    revision: str
    model_commit: str | None
    reasoning: dict[str, str] | None
    sampling: Sampling

    def run(self, output_dir: Path, open_engine: Callable[[], Engine]) -> None:
        """Ask, or go on asking, and write predictions and results."""
        with Stage(output_dir, settings_of(self.args, self.source, self.revision, self.model_commit)) as stage:
            finished = self._finished_controls(stage) if stage.complete else []
            if set(finished) == {NO_CONTROL, *(self.args.controls or ())}:
                print(f"{stage.path} is complete")
                return
            journal = Journal(stage.path / JOURNAL_FILE)
            try:
                if stage.complete:
                    self._reopen(stage, journal)
                build, revision = self._ask(journal, open_engine)
            finally:
                journal.close()
            self._write(stage, build, journal, revision)
            self._keep_left_out(stage, build, journal)
            stage.finish()

    def _finished_controls(self, stage: Stage) -> list[str]:
        return list(read_json(str(stage.path / RESULTS_FILE))["results"])

    def _reopen(self, stage: Stage, journal: Journal) -> None:
        """Go on with a finished run: its predictions become a journal again, before the folder is marked as incomplete."""
        numbers: dict[str, Iterator[int]] = defaultdict(count)  # under each control questions are in the order of the dataset
        predictions = read_rows(str(predictions_file(stage.path, self.source.benchmark)))
        journal.append((f"{next(numbers[row['control']])}/{row['control']}", to_entry(row)) for row in predictions)
        left_out = stage.path / LEFT_OUT_FILE
        if left_out.is_file():
            journal.append((key, entry) for key, entry, _ in read_journal(left_out))
        stage.reopen()

    def _keep_left_out(self, stage: Stage, build: RequestBuilder, journal: Journal) -> None:
        """The journal goes when the run is finished; answers under controls that are left out stay, and are not asked again."""
        counts = Counter(name for key in journal if (name := key.split("/")[1]) not in build.controls())
        lines = [json.dumps([k, journal[k]], ensure_ascii=False) + "\n" for k in journal if k.split("/")[1] in counts]
        write_atomically(stage.path / LEFT_OUT_FILE, "".join(lines))
        if counts:
            told = ", ".join(f"{count} of {name}" for name, count in counts.items())
            print(f"left out of the results, and kept in {stage.path / LEFT_OUT_FILE}: answers under controls ({told})")
        else:
            (stage.path / LEFT_OUT_FILE).unlink()

    def _ask(self, journal: Journal, open_engine: Callable[[], Engine]) -> tuple[RequestBuilder, str]:
        """All requests are in the journal after this. Returns what made them, and which model answered."""
        args, engine = self.args, open_engine()
        sizes, prompt = (args.num_frames, args.max_pixels), args.chosen_prompt.text
        asking = QuestionFormat(args.modality, args.method, tuple(args.controls or ()), *sizes, prompt)
        build = RequestBuilder(self.rows, asking, engine, self.source.find_videos(), self.reasoning)
        run_requests(
            engine,
            build.keys(),
            build,
            self.sampling,
            journal,
            f"{args.name}, {self.source.benchmark}",
            block_of=build.block,
            is_optional=lambda key: key.endswith(f"/{TEXT_ONLY}"),  # the only requests of another form than the run's own
        )
        missing = {"outcome": NO_TRACE, "detail": "no trace of this question has any reasoning"}
        journal.append((key, missing) for key in build.without_reasoning())
        served = f", revision {args.model_revision} as told" if args.base_url and args.model_revision else ""
        return build, engine.revision + served

    def _num_trained_on(self, split: str) -> int | None:
        """None of a served model that is no local folder: a server may give any model the name of a Hub id."""
        if self.args.base_url and not Path(self.args.model).is_dir():
            return None
        return count_trained_on(self.args.model, self.args.model_revision, self.rows, self.source.dataset, split)

    def _write(self, stage: Stage, build: RequestBuilder, journal: Journal, model_revision: str) -> None:
        args, benchmark = self.args, self.source.benchmark
        prompt = args.chosen_prompt
        generation = {
            **asdict(self.sampling),
            "prompt_version": prompt.version,
            "engine": stage.settings["engine"],
            **({"requests": summary} if (summary := args.options().summary()) else {}),
            **({"num_frames": args.num_frames, "max_pixels": args.max_pixels} if args.modality != AUDIO else {}),
            **({"traces": stage.settings["traces"]} if self.reasoning is not None else {}),
        }
        provenance = {
            "benchmark": benchmark,
            "split": self.source.split or get_benchmark(benchmark).split,
            "benchmark_revision": self.revision,
            "model": shown_source(args.model),
            "model_revision": model_revision,
            # A prompt of the user's own is none of the paper's methods: reports must not take it for one.
            "method": f"{args.modality}/{prompt.version if prompt.sha256 else args.method}",
        }

        def provenance_of(key: str) -> dict[str, Any]:
            return provenance | {"generation": json.dumps(generation | journal[key].get("sampling", {}))}

        asked = {name: [build.row(f"{i}/{name}") for i in range(len(self.rows))] for name in build.controls()}
        predictions = [
            to_prediction(row, f"{i}/{name}", journal[f"{i}/{name}"], provenance_of(f"{i}/{name}"))
            for name, rows in asked.items()
            for i, row in enumerate(rows)
        ]
        path = predictions_file(stage.path, benchmark)
        parquet.write_parquet(predictions, schema.predictions_features(), path)
        text = f"# Predictions of {args.name}\n"
        write_dataset_card(stage.path, text, {"default": {"train": "data/*.parquet"}})
        outputs = {name: [p["output"] for p in predictions if p["control"] == name] for name in asked}
        scored = score_run(benchmark, protocols_of(benchmark), outputs, asked)
        outcomes = {
            name: Counter(journal[f"{i}/{name}"].get("outcome", ANSWERED) for i in range(len(rows)))
            for name, rows in asked.items()
        }
        pinned = get_benchmark(benchmark).pinned
        results = {
            "arm": args.name,
            "seed": args.seed,
            # The resolved path of the clips would say where they lie on this machine.
            "settings": stage.settings | {"controls": self.args.controls, "media_dir": self.source.media_dir},
            **provenance,
            "generation": next((p for p in predictions if p["output"] is not None), predictions[0])["generation"],
            "benchmark_questions": pinned.questions,
            "benchmark_pinned": pinned.asks(self.rows.select_columns(list(TEXTS))),
            "trained_on": self._num_trained_on(provenance["split"]),
            "outcomes": outcomes,
            "clips_cut": sum(
                p["heard_s"] is not None and p["heard_s"] < p["duration_s"] for p in predictions[: len(self.rows)]
            ),
            **scored[PAPER],
            **({OFFICIAL: scored[OFFICIAL]["results"]} if OFFICIAL in scored else {}),
        }
        write_atomically(stage.path / RESULTS_FILE, json.dumps(results, indent=2) + "\n")
        print(summary_line(results))


def main(argv: list[str]) -> None:
    args = parse_arguments(RunArguments, __doc__, argv)
    sources = read_sources(args)
    check_arguments(args, sources)
    sampling = Sampling(n=1, temperature=0.0, max_tokens=args.max_tokens, seed=args.seed)

    @cache
    def open_engine() -> Engine:
        flags = EngineFlags(
            model=args.model,
            sampling=sampling,
            base_url=args.base_url,
            batch_size=args.batch_size,
            concurrency=args.concurrency,
            options=args.options(),
            revision=commit,
            base_model=args.base_model,
        )
        return make_engine(flags)

    # Report what is wrong with the last benchmark before hours are spent on the first.
    runs = []
    commit = None if args.base_url else pin_model("model", args.model, None, args.model_revision, args.base_model)
    for source in map(pin_source, sources):
        rows, revision = load_benchmark(source.benchmark, source.dataset, source.split, args.limit)
        check_controls(rows, args.controls or ())
        reasoning = read_reasoning(source.traces, rows) if source.traces else None
        runs.append(BenchmarkRun(args, source, rows, revision, commit, reasoning, sampling))
    for run in runs:
        run.run(Path(args.output_dir, run.source.benchmark) if len(runs) > 1 else Path(args.output_dir), open_engine)
