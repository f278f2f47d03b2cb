r"""
Run a model over benchmarks: batched inference -> predictions -> results.

    python -m evaluation run --benchmark avqa --dataset avqa-audio --split test --model sft-tts_agfv/model --method cot \
        --controls silent swapped text_only shuffled --output_dir evaluation-runs/sft-tts_agfv
    python -m evaluation run --benchmark avqa,mmau,music_avqa --dataset avqa=avqa-audio mmau=mmau music_avqa=music-avqa \
        --model student --base_url http://localhost:8000/v1 --method cot --output_dir evaluation-runs/student
    python -m evaluation run --table table1 --row vl-7b --dataset avqa-audio --media_dir avqa/videos \
        --output_dir evaluation-runs/vl-7b

The model is a folder or a Hub id of a whole model or of a LoRA, or the name of a served model. `--base_url` takes several URLs
of replicas; `--request_field`, `--omit_field` and `--frames` change the requests as in `dataset_builders/traces.py`. With
several benchmarks each has its own sub-folder of `output_dir`. `--dataset`, `--split`, `--media_dir` and `--traces` are then
given per benchmark as `NAME=VALUE`; all but `--dataset` may also be given once for all of them. `--table` and `--row` name a
row of the paper's tables (`evaluation/reporting/tables/`) instead of the model and how it is asked; `--model` may then still
name a copy, a served model, a trained checkpoint or another student.

Written: `data/predictions-*.parquet`, one row per question and control, with the exact prompt, the raw output and how it was
matched; and `results.json`, the figures. A question counts as unanswered if its clip cannot be read or a server refuses it. A
run that was killed continues. Controls may be added to a run or removed from it, even when it is finished. The rows and figures
of a removed control go, but its outputs are kept in `left_out.jsonl`, so adding it again sends no requests. If a model refuses
requests without audio, its `text_only` outcome is `refused`, and it is scored on everything else.

The controls show whether the model uses the audio, and whether it chooses by content: `silent` replaces the clip by silence of
the same length, `swapped` by another clip, `text_only` leaves it out, and `shuffled` gives every choice another letter.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.benchmarks import Row, load_benchmark
from evaluation.reporting.finished_runs import RESULTS_FILE, predictions_file
from evaluation.reporting.sections import summary_line
from evaluation.running.arguments import RunArguments, Source, check_arguments, pin_source, read_sources, settings_of
from evaluation.running.controls import NO_CONTROL, TEXT_ONLY
from evaluation.running.requests import AUDIO, NO_TRACE, QuestionFormat, RequestBuilder, check_controls, read_reasoning
from evaluation.running.table_rows import with_row
from evaluation.scoring.accuracy import ANSWERED, score_run
from evaluation.scoring.prediction_files import read_rows
from evaluation.scoring.protocols import OFFICIAL, PAPER, protocols_of
from sightsound.benchmarks import get_benchmark
from sightsound.cli import parse_arguments, read_json
from sightsound.data import parquet, schema
from sightsound.data.pinned import TEXTS
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

LEFT_OUT_FILE = "left_out.jsonl"  # journal entries of controls that were removed from the run


def to_prediction(row: Row, key: str, entry: dict[str, Any], provenance: dict[str, Any]) -> dict[str, Any]:
    """A benchmark row and its journal entry -> one row of predictions. A request that failed is unanswered."""
    completion = (entry.get("completions") or [{"text": "", "finish_reason": entry.get("outcome", "")}])[0]
    answer = parse_answer(completion["text"], row["choices"])
    return {
        **{name: row[name] for name in ("id", "video_id", "question_type", "question_relation", "choices", "duration_s")},
        "control": key.split("/")[1],
        "prompt": entry.get("prompt", ""),
        "output": completion["text"] if "completions" in entry else None,  # None: the request failed; "": an empty output
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
    """A row of predictions -> its journal entry; the reverse of `to_prediction`."""
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
        rows (`Dataset`), revision (`str`): From `load_benchmark`.
        model_commit (`str`, *optional*): Commit of a Hub model, from `pin_model`.
        reasoning (`dict`, *optional*): From `read_reasoning`, for `cot_distill`.
    """

    args: RunArguments
    source: Source
    rows: "Dataset"
    revision: str
    model_commit: str | None
    reasoning: dict[str, str] | None
    sampling: Sampling

    def run(self, output_dir: Path, open_engine: Callable[[], Engine]) -> None:
        """Send the requests that have no result yet, then write predictions and results."""
        with Stage(output_dir, settings_of(self.args, self.source, self.revision, self.model_commit)) as stage:
            finished = read_json(str(stage.path / RESULTS_FILE))["results"] if stage.complete else {}
            if set(finished) == {NO_CONTROL, *(self.args.controls or ())}:
                print(f"{stage.path} is complete")
                return
            journal = Journal(stage.path / JOURNAL_FILE)
            try:
                if stage.complete:
                    self._reopen(stage, journal)
                build, revision = self._send_requests(journal, open_engine)
            finally:
                journal.close()
            self._write_results(stage, build, journal, revision)
            self._keep_removed_controls(stage, build, journal)
            stage.finish()

    def _reopen(self, stage: Stage, journal: Journal) -> None:
        """Continue a finished run: write its predictions back to the journal, then mark the folder as incomplete."""
        numbers: dict[str, Iterator[int]] = defaultdict(count)  # the predictions of each control are in the dataset's order
        predictions = read_rows(str(predictions_file(stage.path, self.source.benchmark)))
        journal.append((f"{next(numbers[row['control']])}/{row['control']}", to_entry(row)) for row in predictions)
        left_out = stage.path / LEFT_OUT_FILE
        if left_out.is_file():
            journal.append((key, entry) for key, entry, _ in read_journal(left_out))
        stage.reopen()

    def _send_requests(self, journal: Journal, open_engine: Callable[[], Engine]) -> tuple[RequestBuilder, str]:
        """Fill the journal with the result of every request. Returns the builder of the requests and the model's revision."""
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
            is_optional=lambda key: key.endswith(f"/{TEXT_ONLY}"),  # a model may refuse requests without audio
        )
        missing = {"outcome": NO_TRACE, "detail": "no trace of this question has any reasoning"}
        journal.append((key, missing) for key in build.without_reasoning())
        served = f", revision {args.model_revision} as told" if args.base_url and args.model_revision else ""
        return build, engine.revision + served

    def _num_trained_on(self, split: str) -> int | None:
        """Number of questions that the model was trained on; None for a served model, whose name does not identify it."""
        if self.args.base_url and not Path(self.args.model).is_dir():
            return None
        return count_trained_on(self.args.model, self.args.model_revision, self.rows, dataset=self.source.dataset, split=split)

    def _trained_from(self) -> str | None:
        """The released model that a local checkpoint was trained from, as its card says."""
        from huggingface_hub import metadata_load

        card = Path(self.args.model, "README.md")
        base = (metadata_load(card) or {}).get("base_model") if card.is_file() else None
        return base if isinstance(base, str) else None

    def _write_results(self, stage: Stage, build: RequestBuilder, journal: Journal, model_revision: str) -> None:
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
            # A user's own prompt is not one of the paper's methods, so a report must not put it in their row.
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
            # As given: the resolved path would show where the clips lie on this machine.
            "settings": stage.settings | {"controls": self.args.controls, "media_dir": self.source.media_dir},
            **provenance,
            "generation": next((p for p in predictions if p["output"] is not None), predictions[0])["generation"],
            "benchmark_questions": pinned.questions,
            "benchmark_pinned": pinned.asks(self.rows.select_columns(list(TEXTS))),
            "trained_on": self._num_trained_on(provenance["split"]),
            "trained_from": self._trained_from(),
            "outcomes": outcomes,
            "clips_cut": sum(
                p["heard_s"] is not None and p["heard_s"] < p["duration_s"] for p in predictions[: len(self.rows)]
            ),
            **scored[PAPER],
            **({OFFICIAL: scored[OFFICIAL]["results"]} if OFFICIAL in scored else {}),
        }
        write_atomically(stage.path / RESULTS_FILE, json.dumps(results, indent=2) + "\n")
        print(summary_line(results))

    def _keep_removed_controls(self, stage: Stage, build: RequestBuilder, journal: Journal) -> None:
        """Finishing the stage deletes the journal. Entries of removed controls are kept, so that they are not asked again."""
        counts = Counter(name for key in journal if (name := key.split("/")[1]) not in build.controls())
        if not counts:
            (stage.path / LEFT_OUT_FILE).unlink(missing_ok=True)
            return
        lines = [json.dumps([k, journal[k]], ensure_ascii=False) + "\n" for k in journal if k.split("/")[1] in counts]
        write_atomically(stage.path / LEFT_OUT_FILE, "".join(lines))
        kept = ", ".join(f"{count} of {name}" for name, count in counts.items())
        print(f"left out of the results, and kept in {stage.path / LEFT_OUT_FILE}: answers under controls ({kept})")


def main(argv: list[str]) -> None:
    args = parse_arguments(RunArguments, __doc__, with_row(argv))
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

    # All benchmarks are loaded and checked first: an error in the last one must not come after hours on the first.
    runs = []
    commit = None if args.base_url else pin_model("model", args.model, None, args.model_revision, args.base_model)
    for source in map(pin_source, sources):
        rows, revision = load_benchmark(source.benchmark, source.dataset, source.split, args.limit)
        check_controls(rows, args.controls or ())
        reasoning = read_reasoning(source.traces, rows) if source.traces else None
        runs.append(BenchmarkRun(args, source, rows, revision, commit, reasoning, sampling))
    for run in runs:
        run.run(Path(args.output_dir, run.source.benchmark) if len(runs) > 1 else Path(args.output_dir), open_engine)
