"""
AVQA annotations + clips -> avqa-audio, the audio variant of AVQA (paper, section 4.1).

    python dataset_builders/avqa_audio.py --train_annotations train_qa.json --validation_annotations val_qa.json \
        --media_dir videos --output_dir avqa-audio

Takes AVQA's own annotation format and a folder of clips, searched at any depth: `<youtube id>_<6-digit start second>` or
`<youtube id>_<start second>` with any audio or video extension, else a whole video named `<youtube id>`, which is cut at
start..start+10 s. "video" becomes "audio" in questions as in R1-AQA; the original is kept in `video_question`.

Every annotation ends in `ledger.parquet` with its outcome. Work is done in shards: a run that was killed continues.
"""

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from sightsound import schema
from sightsound.cli import InputError, parse_arguments, read_json, run
from sightsound.hub import write_dataset_card
from sightsound.journal import Stage, fingerprint, leave_with_parent
from sightsound.media import VIDEO_NAME, MediaError, MediaFolder, encode_flac, is_silent, load_clip, sha256_of


ROWS_PER_SHARD = 500
NUM_CHOICES = 4
EXPECTED_KEYS = ("id", "video_name", "question_text", "multi_choice", "answer")


@dataclass
class AvqaAudioArguments:
    media_dir: str = field(metadata={"help": "folder with the clips, searched recursively"})
    output_dir: str = field(metadata={"help": "where to write the dataset"})
    train_annotations: str | None = field(default=None, metadata={"help": "train_qa.json"})
    validation_annotations: str | None = field(default=None, metadata={"help": "val_qa.json"})
    test_annotations: str | None = field(default=None, metadata={"help": "held-out questions; AVQA publishes none"})
    limit: int | None = field(default=None, metadata={"help": "only the first N annotations of each split", "minimum": 1})
    num_proc: int = field(default=2, metadata={"help": "processes", "minimum": 1})

    def annotations(self) -> dict[str, str]:
        files = {
            "train": self.train_annotations,
            "validation": self.validation_annotations,
            "test": self.test_annotations,
        }
        given = {split: path for split, path in files.items() if path}
        if not given:
            raise InputError("no annotations: give --train_annotations, --validation_annotations or both")
        return given


class RowError(Exception):
    """An annotation that cannot become a row: its outcome in the ledger, and why."""

    def __init__(self, outcome: str, detail: str):
        super().__init__(detail)
        self.outcome = outcome


def check_annotation(annotation: Any) -> None:
    """Raise `RowError` unless the annotation has what AVQA's format promises."""
    if not isinstance(annotation, dict):
        raise RowError(schema.BAD_ANNOTATION, f"expected an object, found {type(annotation).__name__}")
    missing = [key for key in EXPECTED_KEYS if key not in annotation]
    if missing:
        raise RowError(schema.BAD_ANNOTATION, f"lacks {', '.join(missing)}")
    if not VIDEO_NAME.fullmatch(str(annotation["video_name"])):
        expected = "11-character YouTube id + '_' + 6-digit start second"
        raise RowError(schema.BAD_ANNOTATION, f"video_name {annotation['video_name']!r} is not {expected}")
    if annotation["id"] is None or not isinstance(annotation["question_text"], str):
        raise RowError(schema.BAD_ANNOTATION, "expected an id and a question_text, found null or another type")
    choices, answer = annotation["multi_choice"], annotation["answer"]
    if not isinstance(choices, list) or len(choices) != NUM_CHOICES:
        raise RowError(schema.WRONG_CHOICE_COUNT, f"expected {NUM_CHOICES} choices, found {choices!r}")
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise RowError(schema.ANSWER_OUT_OF_RANGE, f"expected an index below {len(choices)}, found {answer!r}")


def audio_question(video_question: str) -> str:
    """R1-AQA's rule: every "video" becomes "audio", nothing else changes."""
    return video_question.replace("video", "audio")


def build_row(annotation: dict, media: MediaFolder) -> dict:
    """
    One annotation and its clip -> one row of avqa-audio.

    Raises:
        `RowError`: The annotation or its clip cannot be used.
    """
    check_annotation(annotation)
    clip = media.find(annotation["video_name"])
    if clip is None:
        raise RowError(schema.MISSING_MEDIA, f"no clip named {annotation['video_name']}.*")
    try:
        waveform = load_clip(clip.path, start_s=clip.start_s, max_duration_s=clip.max_duration_s)
    except MediaError as error:
        raise RowError(error.outcome, f"{os.path.relpath(clip.path, media.root)}: {error}") from error
    if is_silent(waveform):
        raise RowError(schema.SILENT, f"{os.path.relpath(clip.path, media.root)}: the track carries no sound")
    choices = [str(choice) for choice in annotation["multi_choice"]]
    return {
        "id": str(annotation["id"]),
        "video_id": annotation["video_name"][:11],
        "start_s": float(annotation["video_name"][12:]),
        "audio": {"bytes": encode_flac(waveform), "path": f"{annotation['video_name']}.flac"},
        "duration_s": len(waveform) / schema.SAMPLING_RATE,
        "question": audio_question(annotation["question_text"]),
        "video_question": annotation["question_text"],
        "choices": choices,
        "answer": annotation["answer"],
        "answer_text": choices[annotation["answer"]],
        "question_relation": str(annotation.get("question_relation", "")),
        "question_type": str(annotation.get("question_type", "")),
        "media_sha256": sha256_of(clip.path),
    }


def build_shard(shard: tuple[str, list[tuple[Any, bool]]], folder: str, media: MediaFolder) -> None:
    """
    Write one shard of a split: its rows and, last, its part of the ledger, which marks the shard as done.

    Args:
        shard: Its name (`train-00000-of-00004`) and its annotations, each with whether its id stands in an earlier one.
    """
    name, annotations = shard
    ledger_path = Path(folder) / "ledger" / f"{name}.parquet"
    if ledger_path.exists():
        return
    rows, ledger = [], []
    for annotation, is_repeated in annotations:
        entry = {
            "id": str(annotation.get("id")) if isinstance(annotation, dict) else "",
            "outcome": schema.BUILT,
            "detail": None,
        }
        try:
            if is_repeated:
                raise RowError(schema.DUPLICATE_ID, "the id stands in an earlier row")
            rows.append(build_row(annotation, media))
        except RowError as error:
            entry |= {"outcome": error.outcome, "detail": str(error)}
        ledger.append(entry)
    schema.write_parquet(rows, schema.avqa_audio_features(), Path(folder) / "data" / f"{name}.parquet")
    schema.write_ledger(ledger, ledger_path)


def shards_of(split: str, annotations: list[Any]) -> Iterator[tuple[str, list[tuple[Any, bool]]]]:
    """Cut a split into shards, marking repeated ids. A row that is bad by itself neither takes an id nor repeats one."""
    seen: set[str] = set()
    marked = []
    for annotation in annotations:
        try:
            check_annotation(annotation)
        except RowError:  # `build_row` raises it again, and the ledger tells it
            marked.append((annotation, False))
        else:
            key = str(annotation["id"])
            marked.append((annotation, key in seen))
            seen.add(key)
    count = max(1, -(-len(marked) // ROWS_PER_SHARD))
    for i in range(count):
        yield f"{split}-{i:05d}-of-{count:05d}", marked[i * ROWS_PER_SHARD : (i + 1) * ROWS_PER_SHARD]


def write_coverage(stage: Stage, splits: list[str]) -> Counter[str]:
    """Join the shards' ledgers into `ledger.parquet`, write the README; returns how often each outcome occurred."""
    import pyarrow.parquet as pq
    from datasets import Dataset, concatenate_datasets

    parts = [Dataset(pq.read_table(file)) for s in splits for file in sorted((stage.path / "ledger").glob(f"{s}-*.parquet"))]
    ledger = concatenate_datasets(parts)
    schema.write_ledger(list(ledger), stage.path / "ledger.parquet")
    counts = Counter(ledger["outcome"])
    table = "\n".join(f"| {outcome} | {count} |" for outcome, count in counts.most_common())
    text = f"# avqa-audio\n\n| outcome of the annotation | rows |\n| --- | --- |\n{table}\n"
    write_dataset_card(stage.path, text, {"default": {split: f"data/{split}-*.parquet" for split in splits}})
    return counts


def main() -> None:
    args = parse_arguments(AvqaAudioArguments, __doc__)
    annotations = args.annotations()
    settings = {k: v for k, v in asdict(args).items() if k not in ("output_dir", "num_proc")}
    settings |= {f"{split}_annotations": fingerprint(path) for split, path in annotations.items()}
    with Stage(args.output_dir, settings) as stage:
        if stage.complete:
            print(f"{stage.path} is complete")
            return
        from tqdm import tqdm

        media = MediaFolder(args.media_dir)
        shards = []
        for split, path in annotations.items():
            rows = read_json(path)
            if not isinstance(rows, list):
                raise InputError(
                    f"{path}: expected a list of annotations as in AVQA's train_qa.json, found {type(rows).__name__}"
                )
            shards += shards_of(split, rows[: args.limit])
        build = partial(build_shard, folder=str(stage.path), media=media)
        with ProcessPoolExecutor(args.num_proc, initializer=leave_with_parent) as pool:
            for _ in tqdm(pool.map(build, shards), total=len(shards), desc="shards", unit="shard", mininterval=1.0):
                pass
        counts = write_coverage(stage, list(annotations))
        told = ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())
        print(f"{sum(counts.values())} annotations: {told}")
        if not counts[schema.BUILT]:
            shutil.rmtree(stage.path / "ledger")  # a rerun looks for clips again
            raise InputError(
                f"no row could be built from {sum(counts.values())} annotations ({told}); expected clips such as "
                f"{args.media_dir}/06GyG4-wONQ_000006.mp4; {stage.path}/ledger.parquet tells every row's outcome"
            )
        stage.finish()


if __name__ == "__main__":
    run(main)
