"""
Run a model over a benchmark: batched inference -> predictions -> results.

    python -m evaluation run --benchmark avqa --dataset avqa-audio --split test --model sft-tts_agfv/model --method cot \
        --controls silent swapped text_only shuffled --output_dir evaluation-runs/sft-tts_agfv

Written to `output_dir`: `data/predictions-*.parquet`, one row per question and control, with the exact prompt, the raw output
and how it was matched; `results.json`, the figures. The controls show whether the model listens, and whether it goes by what
the choices say: `silent` gives it silence of the clip's length, `swapped` another clip's sound, `text_only` no sound, and
`shuffled` every choice at another letter.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from evaluation.benchmarks import AUDIO, BENCHMARKS, INSTRUCTIONS, VIDEO, load_benchmark
from evaluation.controls import CONTROLS, NO_CONTROL, OF_SOUND, SHUFFLED, SILENT, SWAPPED, TEXT_ONLY, shuffled
from evaluation.protocols import OFFICIAL, PAPER, protocols_of
from evaluation.scoring import score_run
from sightsound import schema
from sightsound.answers import is_correct, parse_answer
from sightsound.chat import ChatRequest, Engine, Sampling, make_engine, run_requests
from sightsound.cli import InputError, parse_arguments
from sightsound.hub import write_dataset_card
from sightsound.journal import JOURNAL_FILE, Journal, Stage, fingerprint, write_atomically
from sightsound.media import MediaError, MediaFolder, decode_audio, load_frames, video_name
from sightsound.prompts import PROMPT_VERSION, question_text


@dataclass
class RunArguments:
    model: str = field(metadata={"help": "folder or Hub id, or its name at --base_url"})
    output_dir: str = field(metadata={"help": "where to write predictions and results"})
    dataset: str = field(metadata={"help": "the benchmark's rows: avqa-audio, folder or Hub id"})
    benchmark: str = field(default="avqa", metadata={"help": "which benchmark", "choices": list(BENCHMARKS)})
    split: str | None = field(default=None, metadata={"help": "split of the dataset (default: the benchmark's)"})
    modality: str = field(default=AUDIO, metadata={"help": "what the model is given", "choices": [AUDIO, VIDEO]})
    method: str = field(default="direct", metadata={"help": "how it is asked", "choices": ["direct", "cot"]})
    controls: list[str] | None = field(default=None, metadata={"help": "what else it is given", "choices": list(CONTROLS)})
    media_dir: str | None = field(default=None, metadata={"help": "folder with the videos, for --modality video"})
    base_url: str | None = field(default=None, metadata={"help": "OpenAI-compatible server"})
    arm: str | None = field(default=None, metadata={"help": "name of the row in reports (default: the model)"})
    max_tokens: int = field(default=512, metadata={"help": "per answer", "minimum": 1})
    num_frames: int = field(default=16, metadata={"help": "frames per video", "minimum": 1})
    max_pixels: int = field(default=360 * 420, metadata={"help": "frames are scaled down to this area"})
    batch_size: int = field(default=16, metadata={"help": "sequences generated at once in this process", "minimum": 1})
    concurrency: int = field(default=32, metadata={"help": "requests in flight at --base_url", "minimum": 1})
    limit: int | None = field(default=None, metadata={"help": "only the first N questions", "minimum": 1})
    seed: int = field(default=0, metadata={"help": "recorded with the results; the answers themselves are greedy"})


class RequestBuilder:
    """Requests for a benchmark's rows; a key is `<row number>/<control>`."""

    def __init__(self, rows: Any, args: RunArguments, engine: Engine):
        self.rows = rows
        self._texts = rows.remove_columns("audio")
        self._audio = rows.select_columns(["audio"])
        self._clips = list(rows["video_id"])
        self._engine = engine
        self._args = args
        self._instruction = INSTRUCTIONS[args.modality, args.method]
        self._media = MediaFolder(args.media_dir) if args.media_dir else None

    def controls(self) -> list[str]:
        return list(dict.fromkeys([NO_CONTROL, *(self._args.controls or [])]))

    def keys(self) -> list[str]:
        return [f"{i}/{control}" for control in self.controls() for i in range(len(self.rows))]

    def row(self, key: str) -> dict[str, Any]:
        """The question as it is asked: under `shuffled` its choices stand elsewhere, and so does the right one."""
        number, control = key.split("/")
        row = self._texts[int(number)]
        return shuffled(row) if control == SHUFFLED else row

    def block(self, key: str) -> int:
        """The control's number: a call has requests of one kind, all with sound or all without."""
        return [NO_CONTROL, *CONTROLS].index(key.split("/")[1])

    def __call__(self, key: str) -> ChatRequest:
        number, control = key.split("/")
        row = self.row(key)
        question = row["video_question"] if self._args.modality == VIDEO else row["question"]
        text = question_text(question, row["choices"], self._instruction)
        if control == TEXT_ONLY:
            return ChatRequest(key, text)
        if self._args.modality == VIDEO:
            return self._video_request(key, row, text)
        source = self._other_clip(int(number)) if control == SWAPPED else int(number)
        heard = decode_audio(self._audio[source]["audio"], self._engine.window_s)
        waveform = np.zeros_like(heard.waveform) if control == SILENT else heard.waveform
        return ChatRequest(key, text, audio=waveform, note={"heard_s": heard.heard_s})

    def _other_clip(self, number: int) -> int:
        """Row of another clip, the same one for every model: half the dataset away, or the next that is not this clip."""
        clips, count = self._clips, len(self.rows)
        for step in range(count // 2, count // 2 + count):
            if clips[(number + step) % count] != clips[number]:
                return (number + step) % count
        raise InputError("--controls swapped needs questions on at least two clips")

    def _video_request(self, key: str, row: dict[str, Any], text: str) -> ChatRequest:
        clip = self._media.find(video_name(row)) if self._media else None
        if clip is None:
            raise MediaError(schema.MISSING_MEDIA, f"no clip named {video_name(row)}.*")
        frames = load_frames(clip.path, self._args.num_frames, self._args.max_pixels, clip.start_s, clip.max_duration_s)
        return ChatRequest(key, text, video=frames)


def to_prediction(row: dict[str, Any], key: str, entry: dict[str, Any], provenance: dict[str, Any]) -> dict[str, Any]:
    """A benchmark row and what the journal holds for it -> one row of predictions. A clip that failed is unanswered."""
    completion = (entry.get("completions") or [{"text": "", "finish_reason": entry.get("outcome", "")}])[0]
    answer = parse_answer(completion["text"], row["choices"])
    return {
        **{name: row[name] for name in ("id", "video_id", "question_type", "question_relation", "choices", "duration_s")},
        "control": key.split("/")[1],
        "prompt": entry.get("prompt", ""),
        "output": completion["text"],
        "finish_reason": completion["finish_reason"],
        "answer": answer.index,
        "matched_by": answer.matched_by,
        "gold": row["answer"],
        "correct": is_correct(answer, row["answer"], row["choices"]),
        "heard_s": entry.get("heard_s"),
        **provenance,
    }


def check(args: RunArguments) -> None:
    """Refuse combinations that cannot be what was meant."""
    if args.modality == VIDEO and not args.media_dir:
        raise InputError("--modality video needs --media_dir, the folder with the videos")
    if args.modality == VIDEO and set(args.controls or []) & set(OF_SOUND):
        raise InputError(f"--controls {' and '.join(OF_SOUND)} change the sound; --modality video has none")


def main(argv: list[str]) -> None:
    args = parse_arguments(RunArguments, __doc__, argv)
    check(args)
    ignored = ("output_dir", "concurrency", *(["batch_size"] if args.base_url else []))
    settings = {k: v for k, v in asdict(args).items() if k not in ignored} | {"prompt_version": PROMPT_VERSION}
    settings |= {"model": fingerprint(args.model), "dataset": fingerprint(args.dataset)}
    with Stage(args.output_dir, settings) as stage:
        if stage.complete:
            print(f"{stage.path} is complete")
            return
        rows, revision = load_benchmark(args.benchmark, args.dataset, args.split, args.limit)
        sampling = Sampling(n=1, temperature=0.0, max_tokens=args.max_tokens, seed=args.seed)
        engine = make_engine(args.model, args.base_url, args.batch_size, args.concurrency, sampling)
        build = RequestBuilder(rows, args, engine)
        journal = Journal(stage.path / JOURNAL_FILE)
        run_requests(engine, build.keys(), build, sampling, journal, args.arm or args.model, block_of=build.block)
        provenance = {
            "benchmark": args.benchmark,
            "benchmark_revision": revision,
            "model": args.model,
            "model_revision": engine.revision,
            "method": f"{args.modality}/{args.method}",
            "generation": json.dumps({**asdict(sampling), "prompt_version": PROMPT_VERSION}),
        }
        predictions = [to_prediction(build.row(key), key, journal[key], provenance) for key in build.keys()]  # noqa: SIM118 - not a dict
        path = stage.path / "data" / f"predictions-{args.benchmark}.parquet"
        schema.write_parquet(predictions, schema.predictions_features(), path)
        text = f"# Predictions of {args.arm or args.model}\n"
        write_dataset_card(stage.path, text, {"default": {"train": "data/*.parquet"}})
        outputs = {name: [p["output"] for p in predictions if p["control"] == name] for name in build.controls()}
        asked = {name: [build.row(f"{i}/{name}") for i in range(len(rows))] for name in build.controls()}
        scored = score_run(args.benchmark, protocols_of(args.benchmark), outputs, asked)
        heard = [p for p in predictions if p["control"] == NO_CONTROL]
        results = {
            "arm": args.arm or args.model,
            "seed": args.seed,
            "settings": stage.settings,
            **provenance,
            "clips_cut": sum(p["heard_s"] is not None and p["heard_s"] < p["duration_s"] for p in heard),
            **scored[PAPER],
            **({OFFICIAL: scored[OFFICIAL]["results"]} if OFFICIAL in scored else {}),
        }
        write_atomically(stage.path / "results.json", json.dumps(results, indent=2) + "\n")
        journal.close()
        stage.finish()
        figures = results["results"][NO_CONTROL]
        print(f"{results['arm']}: {figures['accuracy']:.1f} [{figures['low']:.1f}, {figures['high']:.1f}] on {figures['n']}")
