"""
What every published dataset and every stage's output looks like: features, outcome words, reading and writing.

Changing a column here is a breaking change for people who call `load_dataset`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightsound.cli import InputError
from sightsound.hub.publishing import COMMIT, split_revision
from sightsound.locks import NO_FLOCK


if TYPE_CHECKING:
    from datasets import Dataset, Features
    from pyarrow import Table

SAMPLING_RATE = 16_000  # Hz, of every audio column; the rate of Whisper's feature extractor and so of Qwen2-Audio
ROW_GROUP_ROWS = 100  # the Hub's viewer reads a whole row group to show a page

# Rows with sound that are Python objects at a time; the rest of a row group waits as Arrow tables, which is one copy less.
AUDIO_CHUNK_ROWS = 10

# Outcome of an annotation row in avqa-audio and the benchmarks: built, or why not.
BUILT = "built"
BAD_ANNOTATION = "bad_annotation"
DUPLICATE_ID = "duplicate_id"
WRONG_CHOICE_COUNT = "wrong_choice_count"
ANSWER_OUT_OF_RANGE = "answer_out_of_range"
ANSWER_NOT_A_CHOICE = "answer_not_a_choice"
MISSING_MEDIA = "missing_media"
CORRUPT_MEDIA = "corrupt_media"
NO_AUDIO = "no_audio"
SILENT = "silent"
TOO_SHORT = "too_short"
DECODER_CRASHED = "decoder_crashed"
BUILD_OUTCOMES = {
    BUILT: "in the dataset",
    MISSING_MEDIA: "no clip of that name in the media folder",
    CORRUPT_MEDIA: "the clip cannot be decoded",
    NO_AUDIO: "the clip has no audio stream",
    SILENT: "the audio stream carries nothing",
    TOO_SHORT: "less sound remains of the clip than is needed, or the video ends before the question's seconds",
    DECODER_CRASHED: "the process that decoded the clip died, also when it was decoded alone",
    BAD_ANNOTATION: "the annotation lacks something, or holds what cannot be used",
    DUPLICATE_ID: "the id stands in an earlier row",
    WRONG_CHOICE_COUNT: "not the number of choices that the benchmark has",
    ANSWER_OUT_OF_RANGE: "the answer is no index into the choices",
    ANSWER_NOT_A_CHOICE: "the answer is none of the choices",
}

# Outcome of a request that a server did not answer with completions.
REFUSED = "refused"  # by the server, for good: its content policy, or longer than the model takes
BAD_RESPONSE = "bad_response"  # time after time what came was no chat completion
SERVER_ERROR = "server_error"  # time after time the server failed at this request, and not at others

# Outcome of a question in the traces corpus: accepted, or why not.
ACCEPTED = "accepted"
NO_VIDEO = "no_video"
NO_ANSWER = "no_answer"
NOT_UNANIMOUS = "not_unanimous"
ALL_REJECTED = "all_traces_rejected"
NOT_VERIFIED = "not_verified"


def avqa_audio_features() -> Features:
    """avqa-audio: one row per question. `answer` is an index into `choices`; `question` says "audio" for "video"."""
    from datasets import Audio, Features, List, Value

    return Features(
        {
            "id": Value("string"),
            "video_id": Value("string"),
            "start_s": Value("float64"),
            "audio": Audio(sampling_rate=SAMPLING_RATE),
            "duration_s": Value("float64"),
            "question": Value("string"),
            "video_question": Value("string"),
            "choices": List(Value("string")),
            "answer": Value("int32"),
            "answer_text": Value("string"),
            "question_relation": Value("string"),
            "question_type": Value("string"),
            "media_sha256": Value("string"),
        }
    )


def music_avqa_features() -> Features:
    """
    MUSIC-AVQA: the columns of avqa-audio and its own.

    `question_relation` repeats `modality` and `question_type` is the official one, so that evaluation breaks both down;
    `template` is the official question before its placeholders were filled; `in_paper` marks the four types that the paper
    evaluates on.
    """
    from datasets import Features, Value

    own = {"modality": Value("string"), "template": Value("string"), "in_paper": Value("bool")}
    return Features({**avqa_audio_features(), **own})


def mmau_features() -> Features:
    """
    MMAU: the columns of avqa-audio and its own.

    `question_type` repeats `task` (sound, speech, music: the columns of the paper's Table 2), `question_relation` repeats
    `category`; `source_dataset` is MMAU's field `dataset`.
    """
    from datasets import Features, Value

    own = ("task", "difficulty", "category", "sub_category", "source_dataset")
    return Features({**avqa_audio_features(), **{name: Value("string") for name in own}})


# Columns of `traces_features` that older files lack; they are written as None where a row comes from such a file.
LATER_COLUMNS = ("sampling", "checker_sampling")


def traces_features() -> Features:
    """
    The whole ledger of the corpus: one row per question, without audio (join by `id`).

    `sampling` is JSON: every field of the teacher's request that decides a draw (see `sampling.effective`), null for one that
    its server was not sent. `checker_sampling` is a JSON list of such objects, one for each way in which the checker was asked.
    """
    from datasets import Features, List, Value

    trace = {
        "text": Value("string"),
        "think": Value("string"),
        "answer": Value("int32"),
        "finish_reason": Value("string"),
        "verdict": Value("string"),
        "verdict_text": Value("string"),
    }
    return Features(
        {
            "id": Value("string"),
            "question": Value("string"),
            "choices": List(Value("string")),
            "teacher_answer": Value("int32"),
            "unanimous": Value("bool"),
            "traces": List(trace),
            "outcome": Value("string"),
            "teacher": Value("string"),
            "teacher_revision": Value("string"),
            "checker": Value("string"),
            "checker_revision": Value("string"),
            "verdict_mode": Value("string"),
            "checker_sampling": Value("string"),
            "checker_heard_s": Value("float64"),
            "prompt_version": Value("string"),
            "num_traces": Value("int32"),
            "temperature": Value("float64"),
            "max_tokens": Value("int32"),
            "seed": Value("int64"),
            "sampling": Value("string"),
            "media_sha256": Value("string"),
        }
    )


def verified_features() -> Features:
    """Accepted questions only, ready for training: `prompt` (messages), every accepted trace as a completion."""
    from datasets import Audio, Features, List, Value

    return Features(
        {
            "id": Value("string"),
            "audio": Audio(sampling_rate=SAMPLING_RATE),
            "prompt": List({"role": Value("string"), "content": Value("string")}),
            "completions": List(Value("string")),
            "teacher_answer": Value("int32"),
            "choices": List(Value("string")),
        }
    )


def predictions_features() -> Features:
    """
    One row per benchmark question and control of one evaluation run.

    `output` is None where no answer came; `in_paper` is MUSIC-AVQA's, None for benchmarks that are averaged over all questions.
    """
    from datasets import Features, List, Value

    texts = ("id", "video_id", "control", "question_type", "question_relation", "prompt", "output")
    return Features(
        {
            **{name: Value("string") for name in texts},
            "finish_reason": Value("string"),
            "answer": Value("int32"),
            "matched_by": Value("string"),
            "gold": Value("int32"),
            "choices": List(Value("string")),
            "correct": Value("bool"),
            "in_paper": Value("bool"),
            "duration_s": Value("float64"),
            "heard_s": Value("float64"),
            "benchmark": Value("string"),
            "split": Value("string"),
            "benchmark_revision": Value("string"),
            "model": Value("string"),
            "model_revision": Value("string"),
            "method": Value("string"),
            "generation": Value("string"),
        }
    )


def ledger_features() -> Features:
    """One row per input row of a stage."""
    from datasets import Features, Value

    return Features({"id": Value("string"), "outcome": Value("string"), "detail": Value("string")})


def build_ledger_features() -> Features:
    """One row per annotation of an audio dataset: ids of two splits may be the same."""
    from datasets import Features, Value

    return Features({**ledger_features(), "split": Value("string")})


def write_parquet(rows: Iterable[dict[str, Any]], features: Features, path: Path) -> None:
    """
    Write rows with the features in the file's metadata, atomically and with no more than one row group in memory.

    Audio is given as `{"bytes", "path"}` and stored as such: `Dataset.to_parquet` would keep local paths of anything else,
    and encoding through the feature would need torchcodec and a system ffmpeg.

    Args:
        rows (`Iterable[dict]`): Read as they are written, so that a generator's rows need not be in memory together.
        features (`Features`): Every one of them but `LATER_COLUMNS` is a key of every row; further keys are left out.
        path (`Path`): Its folder is created when missing.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Audio

    chunk_rows = AUDIO_CHUNK_ROWS if any(isinstance(feature, Audio) for feature in features.values()) else ROW_GROUP_ROWS
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    remaining = iter(rows)
    try:
        with pq.ParquetWriter(temporary, _to_table([], features).schema) as writer:
            # `datasets` cannot read an empty row group, but a file without any.
            while group := list(_tables(islice(remaining, ROW_GROUP_ROWS), features, chunk_rows)):
                writer.write_table(pa.concat_tables(group), row_group_size=ROW_GROUP_ROWS)
                group.clear()  # or it would be kept until the next one is complete
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())  # before what says that the file is done
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _tables(rows: Iterator[dict[str, Any]], features: Features, chunk_rows: int) -> Iterator[Table]:
    while chunk := list(islice(rows, chunk_rows)):
        yield _to_table(chunk, features)


def _to_table(rows: list[dict[str, Any]], features: Features) -> Table:
    from datasets import Audio, Dataset, Value

    plain = features.copy()
    audio = [name for name, feature in features.items() if isinstance(feature, Audio)]
    for name in audio:
        plain[name] = {"bytes": Value("binary"), "path": Value("string")}
    later = dict.fromkeys(LATER_COLUMNS)
    dataset = Dataset.from_dict({name: [(later | row)[name] for row in rows] for name in features}, features=plain)
    for name in audio:
        dataset = dataset.cast_column(name, Audio(sampling_rate=SAMPLING_RATE, decode=False))
    return dataset.data.table.replace_schema_metadata(features.arrow_schema.metadata)


def write_ledger(rows: Iterable[dict[str, Any]], path: Path) -> None:
    """Write `ledger.parquet`: `id`, `outcome` and `detail` of every input row."""
    write_parquet(({"detail": None, **row} for row in rows), ledger_features(), path)


def open_dataset(source: str, split: str, config: str | None = None) -> Dataset:
    """
    Open a split of a local dataset folder or of a Hub dataset, audio left encoded (`media.decode_audio` decodes it).

    A local folder has to carry a card by `hub.write_dataset_card`: see there for what `datasets` caches otherwise.

    Raises:
        `InputError`: There is no such dataset, config or split.
    """
    from datasets import Audio, disable_progress_bars, load_dataset
    from datasets.exceptions import DatasetsError
    from pyarrow import ArrowException

    disable_progress_bars()
    name, revision = split_revision(source)
    try:
        options = {"revision": revision} if revision else {}
        dataset = load_dataset(name, config, split=split, **options)
    except (OSError, ValueError, DatasetsError, ArrowException, NotImplementedError) as error:
        raise InputError(f"cannot open split '{split}' of {source} ({_reason(error)}); {_remedy(error)}") from error
    if COMMIT.fullmatch(revision or "") and (found := commit_of(dataset)) not in (None, revision):
        # Offline, and where the token is refused, `datasets` silently takes whichever commit is in its cache.
        raise InputError(f"{source} cannot be read: the cache has commit {found} only; unset HF_HUB_OFFLINE, check HF_TOKEN")
    for name, feature in dataset.features.items():
        if isinstance(feature, Audio):
            dataset = dataset.cast_column(name, Audio(sampling_rate=SAMPLING_RATE, decode=False))
            if not Path(source).exists():
                _check_paths(dataset, name, source)
    return dataset


def _check_paths(dataset: Dataset, column: str, source: str) -> None:
    """Raise `InputError` when a published dataset names sound files that did not come with it: it could name any file here."""
    import pyarrow.compute as pc
    from datasets import config
    from huggingface_hub.constants import HF_HUB_CACHE

    cells = dataset.data.column(column)
    paths = pc.struct_field(cells, "path").filter(pc.is_null(pc.struct_field(cells, "bytes")))
    downloads = [Path(folder).resolve() for folder in (HF_HUB_CACHE, config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH)]
    for path in paths.to_pylist():
        if path and not any(Path(path).resolve().is_relative_to(folder) for folder in downloads):
            raise InputError(
                f"{source} holds no sound in '{column}' but the path {path}, which is no file of that dataset; ask its author "
                "to publish it with `push_to_hub`, which embeds the sound"
            )


def _reason(error: BaseException) -> str:
    """The first line of what went wrong at the bottom: `datasets` wraps it."""
    root = error.__cause__ if type(error).__name__.startswith("DatasetGeneration") and error.__cause__ else error
    return next(iter(str(root).splitlines()), type(root).__name__)


def _remedy(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno in NO_FLOCK:
        return "its cache is on a file system without flock: set HF_HOME to a folder on a local disk"
    return "expected a dataset folder or a Hub dataset id, and one of its splits"


def commit_of(rows: Dataset) -> str | None:
    """The commit of a dataset that came from the Hub: `datasets` keeps each in a folder of that name, online and offline."""
    folders = {Path(file["filename"]).parent.name for file in rows.cache_files}
    return next((name for name in folders if COMMIT.fullmatch(name)), None)


def check_same_clips(rows: Iterable[dict[str, Any]], dataset: Dataset, source: str) -> None:
    """
    Make sure that traces were written about the clips of this dataset: ids alone may repeat across splits and datasets.

    Args:
        rows (`Iterable[dict]`): With `id` and `media_sha256`.
        dataset (`Dataset`): An avqa-audio split.
        source (`str`): Its name, for the message.

    Raises:
        `InputError`: A row's id is not in the dataset, or stands there for another clip.
    """
    known = dict(zip(dataset["id"], dataset["media_sha256"], strict=True))
    other = [row["id"] for row in rows if known.get(row["id"]) != row["media_sha256"]]
    if other:
        raise InputError(
            f"{len(other)} traced questions (first: {other[0]}) are not in {source}, or not about the same clip; was another "
            "dataset or split traced?"
        )


class AudioById:
    """
    The audio column of an avqa-audio split, looked up by row id; a cell is read when it is asked for.

    Args:
        dataset (`Dataset`): Opened with `open_dataset`.
    """

    def __init__(self, dataset: Dataset):
        self._audio = dataset.select_columns(["audio"])
        self._position = {row_id: i for i, row_id in enumerate(dataset["id"])}

    def __contains__(self, row_id: str) -> bool:
        return row_id in self._position

    def __getitem__(self, row_id: str) -> dict[str, Any]:
        return self._audio[self._position[row_id]]["audio"]
