r"""
Run a model over benchmarks: batched inference -> predictions -> results.

    python -m evaluation run --benchmark avqa --dataset avqa-audio --split test --model sft-tts_agfv/model --method cot \
        --controls silent swapped text_only shuffled --output_dir evaluation-runs/sft-tts_agfv
    python -m evaluation run --benchmark avqa,mmau,music_avqa --dataset avqa=avqa-audio mmau=mmau music_avqa=music-avqa \
        --model student --base_url http://localhost:8000/v1 --method cot --output_dir evaluation-runs/student

The model is a folder or a Hub id, of a whole model or of a LoRA, or what a server calls it: `--base_url` may be given several
times, for replicas; what its requests hold otherwise is a matter of `--request_field`, `--omit_field` and `--frames`, as for
`dataset_builders/traces.py`. With several benchmarks each has a sub-folder of its own in `output_dir`; `--dataset`, `--split`,
`--media_dir` and `--traces` are then given per benchmark as `NAME=VALUE`, all but `--dataset` also once for all of them.

Written: `data/predictions-*.parquet`, one row per question and control, with the exact prompt, the raw output and how it was
matched; `results.json`, the figures. A question whose clip cannot be read, or that a server refuses, is unanswered and
counted. A run that was killed continues. Controls may be added to a run, also to a finished one, and left out of it: what was
answered is kept. A model that refuses requests without audio is scored on all others; its `text_only` is `refused`.

The controls show whether the model listens, and whether it goes by what the choices say: `silent` gives it silence of the
clip's length, `swapped` another clip's sound, `text_only` no clip at all, and `shuffled` every choice at another letter.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.benchmarks import BENCHMARKS, Row, get_benchmark, load_benchmark
from evaluation.controls import CONTROLS, NO_CONTROL, OF_SOUND, TEXT_ONLY
from evaluation.finished_runs import RESULTS_FILE, predictions_file
from evaluation.prediction_files import read_rows
from evaluation.protocols import OFFICIAL, PAPER, protocols_of
from evaluation.request_builder import (
    AUDIO,
    AUDIO_VIDEO,
    COT_DISTILL,
    METHODS,
    NO_TRACE,
    VIDEO,
    Asking,
    RequestBuilder,
    check_controls,
    read_reasoning,
)
from evaluation.scoring import ANSWERED, score_run
from evaluation.sections import summary_line
from sightsound import schema
from sightsound.answers import is_correct, parse_answer
from sightsound.benchmarks.pinned import TEXTS
from sightsound.chat import Engine, Sampling, TransformersEngine, make_engine, run_requests
from sightsound.cli import InputError, parse_arguments, read_json
from sightsound.hub import write_dataset_card
from sightsound.inputs import pin_dataset, pin_model
from sightsound.journal import JOURNAL_FILE, Journal, Stage, fingerprint, write_atomically
from sightsound.media import Clip, MediaError, MediaFolder
from sightsound.prompts import PROMPT_VERSION
from sightsound.publishing import COMMIT, shown_source
from sightsound.request_fields import (
    FRAMES_HELP,
    IMAGES,
    RequestFieldArguments,
    RequestOptions,
    options_of,
    recorded,
)
from sightsound.request_fields import (
    VIDEO as ONE_VIDEO,
)
from sightsound.trained_on import count_trained_on


if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class RunArguments(RequestFieldArguments):
    model: str = field(metadata={"help": "folder or Hub id of a model or a LoRA, or its name at --base_url"})
    output_dir: str = field(metadata={"help": "where to write predictions and results"})
    dataset: list[str] = field(metadata={"help": "the benchmark's rows, folder or Hub id; of several: NAME=VALUE each"})
    benchmark: str = field(default="avqa", metadata={"help": f"of {', '.join(BENCHMARKS)}: one, or several with commas"})
    split: list[str] | None = field(default=None, metadata={"help": "split of the dataset (default: the benchmark's)"})
    modality: str = field(default=AUDIO, metadata={"help": "what the model is given", "choices": [AUDIO, VIDEO, AUDIO_VIDEO]})
    method: str = field(default="direct", metadata={"help": "how it is asked", "choices": list(METHODS)})
    controls: list[str] | None = field(default=None, metadata={"help": "what else it is given", "choices": list(CONTROLS)})
    media_dir: list[str] | None = field(default=None, metadata={"help": "folder with the videos, for those who see them"})
    traces: list[str] | None = field(default=None, metadata={"help": "a teacher's, folder or Hub id, for cot_distill"})
    model_revision: str | None = field(default=None, metadata={"help": "of a Hub model; of a served one it is noted"})
    base_model: str | None = field(default=None, metadata={"help": "where the base of a LoRA is now, if it was moved"})
    base_url: list[str] | None = field(default=None, metadata={"help": "OpenAI-compatible server; several are replicas"})
    arm: str | None = field(default=None, metadata={"help": "name of the row in reports (default: the model)"})
    max_tokens: int = field(default=512, metadata={"help": "per answer", "minimum": 1})
    num_frames: int = field(default=16, metadata={"help": "frames per video", "minimum": 1})
    max_pixels: int = field(default=360 * 420, metadata={"help": "frames are scaled down to this area"})
    frames: str = field(default=ONE_VIDEO, metadata={"help": FRAMES_HELP, "choices": [ONE_VIDEO, IMAGES]})
    batch_size: int = field(default=16, metadata={"help": "sequences generated at once in this process", "minimum": 1})
    concurrency: int = field(default=32, metadata={"help": "requests in flight at --base_url", "minimum": 1})
    limit: int | None = field(default=None, metadata={"help": "only the first N questions of each benchmark", "minimum": 1})
    seed: int = field(default=0, metadata={"help": "recorded with the results; the answers themselves are greedy"})

    def options(self) -> RequestOptions:
        return options_of(self, self.base_url, ("max_tokens", "seed"), self.frames)

    @property
    def name(self) -> str:
        """What the run is called in reports."""
        return self.arm or shown_source(self.model)


PER_BENCHMARK = ("dataset", "split", "media_dir", "traces")


@dataclass(frozen=True)
class Source:
    """One benchmark of a run, and where what belongs to it is."""

    benchmark: str
    dataset: str
    split: str | None = None
    media_dir: str | None = None
    traces: str | None = None

    def find_video(self) -> Callable[[Row], Clip] | None:
        """What finds the videos of its rows; None where nobody sees them."""
        name_of = get_benchmark(self.benchmark).clip_name
        if self.media_dir is None or name_of is None:
            return None
        media = MediaFolder(self.media_dir)

        def find(row: Row) -> Clip:
            clip = media.find(name_of(row))
            if clip is None:
                raise MediaError(schema.MISSING_MEDIA, f"no clip named {name_of(row)}.*")
            return clip

        return find


def _by_benchmark(flag: str, values: list[str] | None, names: list[str], may_share: bool) -> dict[str, str]:
    """`NAME=VALUE ...`, or one value for the only benchmark, or for all of them."""
    given: dict[str, str] = {}
    for value in values or []:
        name, is_named, rest = value.partition("=")
        if is_named and name in BENCHMARKS:  # other signs of equality are a path's own
            if name not in names:
                raise InputError(f"--{flag} {value}: {name} is not among --benchmark {','.join(names)}")
            found = {name: rest}
        elif len(names) == 1 or may_share:
            found = dict.fromkeys(names, value)
        else:
            raise InputError(f"--{flag} {value}: which of {', '.join(names)} is it? Give NAME={value}")
        for target, part in found.items():
            if target in given:
                raise InputError(f"--{flag}: two values for {target}, {given[target]} and {part}; give one")
            given[target] = part
    return given


def sources_of(args: RunArguments) -> list[Source]:
    """
    The benchmarks of a run.

    Raises:
        `InputError`: One is unknown, or what it needs is not given.
    """
    names = list(dict.fromkeys(name.strip() for name in args.benchmark.split(",")))
    for name in names:
        get_benchmark(name)
    given = {flag: _by_benchmark(flag, getattr(args, flag), names, flag != "dataset") for flag in PER_BENCHMARK}
    for name in names:
        if name not in given["dataset"]:
            raise InputError(f"--dataset: nothing for {name}; give {name}=FOLDER_OR_HUB_ID")
    return [Source(name, **{flag: given[flag].get(name) for flag in PER_BENCHMARK}) for name in names]


def pinned(source: Source) -> Source:
    """The same with the commits of its datasets on the Hub."""
    given = {flag: name for flag in ("dataset", "traces") if (name := getattr(source, flag)) is not None}
    return replace(source, **{flag: pin_dataset(flag, name) for flag, name in given.items()})


def check(args: RunArguments, sources: list[Source]) -> None:
    """
    Refuse combinations that cannot be what was meant.

    Raises:
        `InputError`: One of them.
    """
    args.options()
    if args.modality == VIDEO and set(args.controls or []) & set(OF_SOUND):
        raise InputError(f"--controls {' and '.join(OF_SOUND)} change the sound; --modality video has none")
    if args.base_url and args.base_model:
        raise InputError("--base_model is for a LoRA that is loaded here; the server at --base_url has its own base")
    if not args.base_url and args.model_revision and Path(args.model).is_dir():
        raise InputError(f"--model_revision is of a Hub model, and {args.model} is a folder; leave one of them out")
    for source in sources:
        if args.modality != AUDIO and get_benchmark(source.benchmark).clip_name is None:
            raise InputError(f"{source.benchmark} has no videos; ask it with --modality audio")
        for flag, is_needed, why in (
            ("media_dir", args.modality != AUDIO, f"--modality {args.modality}"),
            ("traces", args.method == COT_DISTILL, f"--method {COT_DISTILL}"),
        ):
            if is_needed and getattr(source, flag) is None:
                what = {"media_dir": "the folder with the videos", "traces": "the teacher's"}[flag]
                raise InputError(f"{why} needs --{flag}, {what}, for {source.benchmark}")
            if not is_needed and getattr(source, flag) is not None:
                raise InputError(f"--{flag} is not read with --modality {args.modality} --method {args.method}; leave it out")


def settings_of(args: RunArguments, source: Source, revision: str, model_commit: str | None) -> dict[str, Any]:
    """
    What a rerun has to share: all that decides what is answered. Which servers answer, and how many, does not; nor do the
    controls, each of which is asked by itself.

    Args:
        revision (`str`): Of the questions. A Hub dataset may move between a kill and the rerun, a Hub model too.
        model_commit (`str`, *optional*): Of a Hub model.
    """
    ignored = ["output_dir", "base_url", "concurrency", "benchmark", "controls", *PER_BENCHMARK]
    ignored += ["batch_size"] if args.base_url else []
    settings = {name: value for name, value in asdict(args).items() if name not in ignored} | asdict(source)
    settings |= {name: fingerprint(getattr(source, name)) for name in ("dataset", "traces")}
    settings |= {"model": args.model if args.base_url else fingerprint(args.model), "base_model": fingerprint(args.base_model)}
    settings |= {"dataset_commit": revision if COMMIT.fullmatch(revision) else None, "model_commit": model_commit}
    settings |= recorded(args, args.frames)
    return settings | {"engine": "server" if args.base_url else "in process", "prompt_version": PROMPT_VERSION}


def to_prediction(row: Row, key: str, entry: dict[str, Any], provenance: dict[str, Any]) -> dict[str, Any]:
    """A benchmark row and what the journal holds for it -> one row of predictions. A clip that failed is unanswered."""
    completion = (entry.get("completions") or [{"text": "", "finish_reason": entry.get("outcome", "")}])[0]
    answer = parse_answer(completion["text"], row["choices"])
    return {
        **{name: row[name] for name in ("id", "video_id", "question_type", "question_relation", "choices", "duration_s")},
        "control": key.split("/")[1],
        "prompt": entry.get("prompt", ""),
        "output": completion["text"] if "completions" in entry else None,  # the model did not say nothing: it was not heard
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
            stage.finish()

    def _finished_controls(self, stage: Stage) -> list[str]:
        return list(read_json(str(stage.path / RESULTS_FILE))["results"])

    def _reopen(self, stage: Stage, journal: Journal) -> None:
        """Go on with a finished run: its predictions become a journal again, before the folder is marked as incomplete."""
        numbers: dict[str, Iterator[int]] = defaultdict(count)  # under each control questions are in the order of the dataset
        predictions = read_rows(str(predictions_file(stage.path, self.source.benchmark)))
        journal.append((f"{next(numbers[row['control']])}/{row['control']}", to_entry(row)) for row in predictions)
        stage.reopen()

    def _ask(self, journal: Journal, open_engine: Callable[[], Engine]) -> tuple[RequestBuilder, str]:
        """All requests are in the journal after this. Returns what made them, and which model answered."""
        args, engine = self.args, open_engine()
        asking = Asking(args.modality, args.method, tuple(args.controls or ()), args.num_frames, args.max_pixels)
        build = RequestBuilder(self.rows, asking, engine, self.source.find_video(), self.reasoning)
        told = f"{args.name}, {self.source.benchmark}"
        run_requests(
            engine,
            build.keys(),
            build,
            self.sampling,
            journal,
            told,
            block_of=build.block,
            may_refuse=lambda key: key.endswith(f"/{TEXT_ONLY}"),  # the only requests of another form than the run's own
        )
        missing = {"outcome": NO_TRACE, "detail": "no trace of this question has any reasoning"}
        journal.append((key, missing) for key in build.without_reasoning())
        served = f", revision {args.model_revision} as told" if args.base_url and args.model_revision else ""
        return build, engine.revision + served

    def _num_trained_on(self, split: str) -> int | None:
        """Of a served model only a folder's name tells: the server may call anything by a Hub id."""
        if self.args.base_url and not Path(self.args.model).is_dir():
            return None
        return count_trained_on(self.args.model, self.args.model_revision, self.rows, self.source.dataset, split)

    def _write(self, stage: Stage, build: RequestBuilder, journal: Journal, model_revision: str) -> None:
        args, benchmark = self.args, self.source.benchmark
        generation = {
            **asdict(self.sampling),
            "prompt_version": PROMPT_VERSION,
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
            "method": f"{args.modality}/{args.method}",
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
        schema.write_parquet(predictions, schema.predictions_features(), path)
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
            "settings": stage.settings | {"controls": self.args.controls},
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
    sources = sources_of(args)
    check(args, sources)
    sampling = Sampling(n=1, temperature=0.0, max_tokens=args.max_tokens, seed=args.seed)

    @cache
    def open_engine() -> Engine:
        if args.base_url:
            options = args.options()
            return make_engine(args.model, args.base_url, args.batch_size, args.concurrency, sampling, options=options)
        return TransformersEngine.load(args.model, args.batch_size, sampling, commit, args.base_model)

    # What is wrong with the last benchmark is told before hours are spent on the first.
    runs = []
    commit = None if args.base_url else pin_model("model", args.model, None, args.model_revision, args.base_model)
    for source in map(pinned, sources):
        rows, revision = load_benchmark(source.benchmark, source.dataset, source.split, args.limit)
        check_controls(rows, args.controls or ())
        reasoning = read_reasoning(source.traces, rows) if source.traces else None
        runs.append(BenchmarkRun(args, source, rows, revision, commit, reasoning, sampling))
    for run in runs:
        run.run(Path(args.output_dir, run.source.benchmark) if len(runs) > 1 else Path(args.output_dir), open_engine)
