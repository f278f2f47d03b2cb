"""
Teacher traces: n audio-focused chains of thought per question, from silent video (paper, section 3.1).

    python dataset_builders/traces.py --dataset avqa-audio --split train --media_dir videos \
        --model Qwen/Qwen2.5-VL-32B-Instruct --base_url http://localhost:8000/v1 --num_traces 8 --temperature 1.0 \
        --output_dir traces

The teacher is a model in this process, or one behind an OpenAI-compatible server (`--base_url`). It sees frames sampled
over the clip and the question in its "video" wording; it never hears anything. Finished requests are journaled: a run that
was killed continues. One row per question, and every question is in `ledger.parquet`.
"""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from sightsound import schema
from sightsound.answers import extract_think, parse_answer
from sightsound.chat import ChatRequest, Sampling, make_engine, run_requests
from sightsound.cli import InputError, parse_arguments, run
from sightsound.corpus import UNVERIFIED, TraceRow, trace_outcome
from sightsound.hub import write_dataset_card
from sightsound.journal import JOURNAL_FILE, Journal, Stage, fingerprint
from sightsound.media import MediaError, MediaFolder, load_frames, video_name
from sightsound.prompts import PROMPT_VERSION, TEACHER_INSTRUCTION, question_text


@dataclass
class TracesArguments:
    dataset: str = field(metadata={"help": "avqa-audio: folder or Hub id"})
    media_dir: str = field(metadata={"help": "folder with the videos"})
    model: str = field(metadata={"help": "the teacher: folder or Hub id, or its name at --base_url"})
    output_dir: str = field(metadata={"help": "where to write the traces"})
    split: str = field(default="train", metadata={"help": "split of the dataset"})
    base_url: str | None = field(default=None, metadata={"help": "OpenAI-compatible server"})
    num_traces: int = field(default=8, metadata={"help": "traces per question", "minimum": 1})
    temperature: float = field(default=1.0, metadata={"help": "sampling temperature"})
    max_tokens: int = field(
        default=512, metadata={"help": "per trace; a trace that reaches it is cut (finish_reason length)", "minimum": 1}
    )
    num_frames: int = field(default=16, metadata={"help": "frames per video", "minimum": 1})
    max_pixels: int = field(default=360 * 420, metadata={"help": "frames are scaled down to this area"})
    batch_size: int = field(default=16, metadata={"help": "sequences generated at once in this process", "minimum": 1})
    concurrency: int = field(default=32, metadata={"help": "requests in flight at --base_url", "minimum": 1})
    seed: int = field(default=0, metadata={"help": "of the sampling"})
    limit: int | None = field(default=None, metadata={"help": "only the first N questions", "minimum": 1})


def build_request(row: dict[str, Any], media: MediaFolder, args: TracesArguments) -> ChatRequest:
    """The question to the teacher, with the frames of its clip."""
    clip = media.find(video_name(row))
    if clip is None:
        raise MediaError(schema.MISSING_MEDIA, f"no clip named {video_name(row)}.*")
    frames = load_frames(clip.path, args.num_frames, args.max_pixels, clip.start_s, clip.max_duration_s)
    text = question_text(row["video_question"], row["choices"], TEACHER_INSTRUCTION)
    return ChatRequest(row["id"], text, video=frames)


def to_row(row: dict[str, Any], entry: dict[str, Any], provenance: dict[str, Any]) -> TraceRow:
    """A question and what the journal holds for it -> one row of the ledger."""
    traces = []
    for completion in entry.get("completions", []):
        is_whole = completion["finish_reason"] == "stop"
        answer = parse_answer(completion["text"], row["choices"]).index if is_whole else None
        think = extract_think(completion["text"])
        trace = {
            "text": completion["text"],
            "think": think,
            "answer": answer,
            "finish_reason": completion["finish_reason"],
        }
        traces.append({**trace, "verdict": None, "verdict_text": None})
    shared = {key: row[key] for key in ("id", "question", "choices", "media_sha256")}
    judged = trace_outcome(traces) if traces else {"teacher_answer": None, "unanimous": False, "outcome": entry["outcome"]}
    return {**shared, "traces": traces, **judged, **UNVERIFIED, **provenance}


def main() -> None:
    args = parse_arguments(TracesArguments, __doc__)
    if args.num_traces > 1 and args.temperature == 0:
        raise InputError(f"--temperature 0 gives {args.num_traces} times the same trace; raise it, or give --num_traces 1")
    ignored = ("output_dir", "batch_size" if args.base_url else "concurrency")
    settings = {k: v for k, v in asdict(args).items() if k not in ignored} | {"prompt_version": PROMPT_VERSION}
    settings |= {"dataset": fingerprint(args.dataset), "model": fingerprint(args.model)}
    with Stage(args.output_dir, settings) as stage:
        if stage.complete:
            print(f"{stage.path} is complete")
            return
        dataset = schema.open_dataset(args.dataset, args.split).remove_columns("audio")
        rows = {row["id"]: row for row in dataset.select(range(min(len(dataset), args.limit or len(dataset))))}
        media = MediaFolder(args.media_dir)
        sampling = Sampling(args.num_traces, args.temperature, args.max_tokens, args.seed)
        engine = make_engine(args.model, args.base_url, args.batch_size, args.concurrency, sampling)
        journal = Journal(stage.path / JOURNAL_FILE)
        run_requests(engine, list(rows), lambda key: build_request(rows[key], media, args), sampling, journal, "traces")
        provenance = {
            "teacher": args.model,
            "teacher_revision": engine.revision,
            "prompt_version": PROMPT_VERSION,
            "num_traces": args.num_traces,
            "temperature": args.temperature,
            "max_tokens": args.max_tokens,
            "seed": args.seed,
        }
        ledger = [to_row(row, journal[key], provenance) for key, row in rows.items()]
        schema.write_parquet(ledger, schema.traces_features(), stage.path / "data" / "train-00000-of-00001.parquet")
        entries = [{"id": r["id"], "outcome": r["outcome"], "detail": journal[r["id"]].get("detail")} for r in ledger]
        schema.write_ledger(entries, stage.path / "ledger.parquet")
        write_dataset_card(stage.path, "# Teacher traces, before verification\n", {"default": {"train": "data/*.parquet"}})
        journal.close()
        counts = Counter(row["outcome"] for row in ledger)
        told = ", ".join(f"{n} {outcome}" for outcome, n in counts.most_common())
        print(f"{len(ledger)} questions: {told}")
        if not any(row["teacher_answer"] is not None for row in ledger):
            raise InputError(
                f"{args.model} answered none of {len(ledger)} questions ({told}); {stage.path} has every one's outcome and "
                "what was written: mend --media_dir or --model, delete that folder and start again"
            )
        stage.finish()


if __name__ == "__main__":
    run(main)
