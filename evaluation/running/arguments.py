"""The flags of `python -m evaluation run`: how they are read and checked, and which of them a rerun must repeat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from evaluation.benchmarks import Row
from evaluation.reporting.paper_tables import TABLES
from evaluation.running.controls import AUDIO_CONTROLS, CONTROLS
from evaluation.running.requests import AUDIO, AUDIO_VIDEO, COT_DISTILL, DIRECT, METHODS, VIDEO, default_prompt
from sightsound.benchmarks import benchmark_names, get_benchmark
from sightsound.cli import InputError
from sightsound.data import schema
from sightsound.data.clips import Clip, MediaError, MediaFolder
from sightsound.data.sources import COMMIT, shown_source
from sightsound.engines import request_fields
from sightsound.hub.inputs import pin_dataset
from sightsound.method.prompts import QUESTION_FIELDS, Prompt, choose_prompt
from sightsound.stage import fingerprint


@dataclass
class RunArguments(request_fields.RequestFieldArguments):
    model: str = field(metadata={"help": "folder or Hub id of a model or a LoRA, or its name at --base_url"})
    output_dir: str = field(metadata={"help": "where to write predictions and results"})
    dataset: list[str] = field(metadata={"help": "dataset of the benchmark, folder or Hub id; for several: NAME=VALUE each"})
    benchmark: str = field(default="avqa", metadata={"help": f"one of {', '.join(benchmark_names())}, or several with commas"})
    split: list[str] | None = field(default=None, metadata={"help": "split of the dataset (default: the benchmark's)"})
    modality: str = field(default=AUDIO, metadata={"help": "what the model gets", "choices": [AUDIO, VIDEO, AUDIO_VIDEO]})
    method: str = field(default=DIRECT, metadata={"help": "instruction that ends the prompt", "choices": list(METHODS)})
    prompt_file: str | None = field(
        default=None,
        metadata={"help": "your own prompt: a text file with {question} and {choices}, for --method cot_distill also {think}"},
    )
    controls: list[str] | None = field(
        default=None, metadata={"help": "additional control conditions", "choices": list(CONTROLS)}
    )
    media_dir: list[str] | None = field(
        default=None, metadata={"help": "folder with the videos, for --modality video and audio_video"}
    )
    traces: list[str] | None = field(
        default=None, metadata={"help": "a teacher's traces, folder or Hub id, for --method cot_distill"}
    )
    model_revision: str | None = field(
        default=None, metadata={"help": "revision of a Hub model; for a served model it is only recorded"}
    )
    base_model: str | None = field(default=None, metadata={"help": "base model of a LoRA, if it was moved"})
    base_url: list[str] | None = field(default=None, metadata={"help": "OpenAI-compatible server; several URLs are replicas"})
    arm: str | None = field(default=None, metadata={"help": "name of the row in reports (default: the model)"})
    table: str | None = field(default=None, metadata={"help": "with --row: table of the paper", "choices": list(TABLES)})
    row: str | None = field(
        default=None, metadata={"help": "key of a row of --table: gives --model, --modality, --method, --arm and --benchmark"}
    )
    max_tokens: int = field(default=512, metadata={"help": "maximum tokens per output", "minimum": 1})
    num_frames: int = field(default=16, metadata={"help": "frames per video", "minimum": 1})
    max_pixels: int = field(default=360 * 420, metadata={"help": "larger frames are scaled down to this area, in pixels"})
    frames: str = field(
        default=request_fields.VIDEO,
        metadata={"help": request_fields.FRAMES_HELP, "choices": [request_fields.VIDEO, request_fields.IMAGES]},
    )
    batch_size: int = field(default=16, metadata={"help": "sequences generated at once in this process", "minimum": 1})
    concurrency: int = field(default=32, metadata={"help": "requests in flight at --base_url", "minimum": 1})
    limit: int | None = field(default=None, metadata={"help": "only the first N questions of each benchmark", "minimum": 1})
    seed: int = field(default=0, metadata={"help": "recorded with the results; the answers themselves are greedy"})

    def options(self) -> request_fields.RequestOptions:
        return request_fields.options_of(self, self.base_url, ("max_tokens", "seed"), self.frames)

    @cached_property
    def chosen_prompt(self) -> Prompt:
        if self.prompt_file is not None and self.method not in (DIRECT, COT_DISTILL):
            raise InputError(f"--method {self.method} and --prompt_file {self.prompt_file} are two prompts; give one of them")
        fields = (*QUESTION_FIELDS, "think") if self.method == COT_DISTILL else QUESTION_FIELDS
        return choose_prompt(self.prompt_file, default_prompt(self.modality, self.method), fields)

    @property
    def name(self) -> str:
        """Name of the run in reports."""
        return self.arm or shown_source(self.model)


PER_BENCHMARK = ("dataset", "split", "media_dir", "traces")


@dataclass(frozen=True)
class Source:
    """One benchmark of a run, with the values of its flags."""

    benchmark: str
    dataset: str
    split: str | None = None
    media_dir: str | None = None
    traces: str | None = None

    def find_videos(self) -> Callable[[Row], list[Clip]] | None:
        """A function from a row to the files of its video, in the order to try them; None for a run without videos."""
        name_of = get_benchmark(self.benchmark).video_name
        if self.media_dir is None or name_of is None:
            return None
        media = MediaFolder(self.media_dir)

        def find(row: Row) -> list[Clip]:
            clips = media.candidates(name_of(row), row["media_sha256"])
            if not clips:
                raise MediaError(schema.MISSING_MEDIA, f"no clip named {name_of(row)}.*")
            return clips

        return find


def _by_benchmark(flag: str, values: list[str] | None, names: list[str], may_share: bool) -> dict[str, str]:
    """A flag's value per benchmark: from `NAME=VALUE ...`, or one value for the only benchmark or for all of them."""
    given: dict[str, str] = {}
    for value in values or []:
        name, is_named, rest = value.partition("=")
        if is_named and name in benchmark_names():  # any other "=" is part of a path
            if name not in names:
                raise InputError(f"--{flag} {value}: {name} is not among --benchmark {','.join(names)}")
            found = {name: rest}
        elif len(names) == 1 or may_share:
            found = dict.fromkeys(names, value)
        else:
            raise InputError(f"--{flag} {value}: name the benchmark ({', '.join(names)}), as NAME={value}")
        for target, part in found.items():
            if target in given:
                raise InputError(f"--{flag}: two values for {target}, {given[target]} and {part}; give one")
            given[target] = part
    return given


def read_sources(args: RunArguments) -> list[Source]:
    """
    The benchmarks of a run, in the order given.

    Raises:
        `InputError`: A benchmark is unknown or has no dataset, or a flag's values do not fit the benchmarks.
    """
    names = list(dict.fromkeys(name.strip() for name in args.benchmark.split(",")))
    for name in names:
        get_benchmark(name)
    given = {flag: _by_benchmark(flag, getattr(args, flag), names, flag != "dataset") for flag in PER_BENCHMARK}
    for name in names:
        if name not in given["dataset"]:
            raise InputError(f"--dataset: nothing for {name}; give {name}=FOLDER_OR_HUB_ID")
    optional = [flag for flag in PER_BENCHMARK if flag != "dataset"]
    return [Source(name, given["dataset"][name], **{flag: given[flag].get(name) for flag in optional}) for name in names]


def pin_source(source: Source) -> Source:
    """The same source with the current commits of its datasets on the Hub."""
    given = {flag: name for flag in ("dataset", "traces") if (name := getattr(source, flag)) is not None}
    return replace(source, **{flag: pin_dataset(flag, name) for flag, name in given.items()})


def check_arguments(args: RunArguments, sources: list[Source]) -> None:
    """
    Check the flags against each other, before anything is loaded.

    Raises:
        `InputError`: Two flags contradict each other, one is missing, or one would be ignored.
    """
    args.options()  # raises for request fields that contradict each other
    if args.modality == VIDEO and set(args.controls or []) & set(AUDIO_CONTROLS):
        raise InputError(f"--controls {' and '.join(AUDIO_CONTROLS)} change the sound; --modality video has none")
    if args.base_url and args.base_model:
        raise InputError("--base_model is for a LoRA that is loaded here; the server at --base_url has its own base")
    if not args.base_url and args.model_revision and Path(args.model).is_dir():
        raise InputError(f"--model_revision is of a Hub model, and {args.model} is a folder; leave one of them out")
    for source in sources:
        if args.modality != AUDIO and get_benchmark(source.benchmark).video_name is None:
            raise InputError(f"{source.benchmark} has no videos; ask it with --modality audio")
        for flag, is_needed, why in (
            ("media_dir", args.modality != AUDIO, f"--modality {args.modality}"),
            ("traces", args.method == COT_DISTILL, f"--method {COT_DISTILL}"),
        ):
            if is_needed and getattr(source, flag) is None:
                traces = "the folder or Hub id with the teacher's traces"
                what = {"media_dir": "the folder with the videos", "traces": traces}[flag]
                raise InputError(f"{why} needs --{flag}, {what}, for {source.benchmark}")
            if not is_needed and getattr(source, flag) is not None:
                raise InputError(f"--{flag} is not read with --modality {args.modality} --method {args.method}; leave it out")


def settings_of(args: RunArguments, source: Source, revision: str, model_commit: str | None) -> dict[str, Any]:
    """
    The settings that decide the outputs: `stage.json` records them, and a rerun must have the same.

    The addresses and the number of servers are not among them, and neither are the controls: each control's requests are
    independent of the others.

    Args:
        revision (`str`): Revision of the questions. A Hub dataset may change between a kill and the rerun.
        model_commit (`str`, *optional*): Commit of a Hub model, which may change too.
    """
    ignored = ["benchmark", "controls", "table", "row", *PER_BENCHMARK]  # a row's values are in the other flags
    settings = request_fields.settings_of_requests(args, ignored, model_commit=model_commit, frames=args.frames)
    settings |= asdict(source)
    settings |= {name: fingerprint(getattr(source, name)) for name in ("dataset", "traces")}
    settings |= {"model": args.model if args.base_url else fingerprint(args.model), "base_model": fingerprint(args.base_model)}
    return settings | {"dataset_commit": revision if COMMIT.fullmatch(revision) else None}
