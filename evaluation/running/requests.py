"""
What a model is asked: a benchmark's question under a method and a control, with the clip in a modality.

The controls show whether the model listens, and whether it goes by what the choices say (see `controls`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.benchmarks import Row
from evaluation.running.controls import CONTROLS, NO_CONTROL, SHUFFLED, SILENT, SWAPPED, TEXT_ONLY, shuffled
from sightsound.cli import InputError
from sightsound.data.audio import decode_audio
from sightsound.data.clips import Clip
from sightsound.data.frames import Frames, frames_of_first
from sightsound.data.kinds import TRACES, check_kind
from sightsound.data.parquet import parquet_schema, read_parquet
from sightsound.data.sources import split_revision
from sightsound.engines.base import ChatRequest, Engine
from sightsound.method.prompts import (
    COT_DISTILL_INSTRUCTION,
    COT_INSTRUCTION,
    DIRECT_INSTRUCTION,
    TEACHER_INSTRUCTION,
    ZERO_SHOT_AUDIO_COT_INSTRUCTION,
    ZERO_SHOT_COT_INSTRUCTION,
    question_text,
)
from sightsound.method.verdicts import ACCEPT


if TYPE_CHECKING:
    from datasets import Dataset

AUDIO, VIDEO, AUDIO_VIDEO = "audio", "video", "audio_video"
DIRECT, COT, COT_DISTILL = "direct", "cot", "cot_distill"
# How the model is asked. One tuned with a prompt is evaluated with that prompt: a student that was distilled, with `cot`.
METHODS = {
    DIRECT: DIRECT_INSTRUCTION,
    COT: COT_INSTRUCTION,
    "zero_shot_cot": ZERO_SHOT_COT_INSTRUCTION,
    "zero_shot_audio_cot": ZERO_SHOT_AUDIO_COT_INSTRUCTION,
    COT_DISTILL: COT_DISTILL_INSTRUCTION,
}
NO_TRACE = "no_trace"  # outcome of a question that `cot_distill` has no reasoning for


def default_prompt(modality: str, method: str) -> str:
    """The prompt of a method; for reasoning about a silent video it is the teacher's own."""
    return TEACHER_INSTRUCTION if (modality, method) == (VIDEO, COT) else METHODS[method]


@dataclass(frozen=True)
class QuestionFormat:
    """How all questions of a run are asked; `num_frames` of at most `max_pixels` are what is seen of a video."""

    modality: str = AUDIO
    method: str = DIRECT
    controls: tuple[str, ...] = ()
    num_frames: int = 16
    max_pixels: int = 360 * 420
    prompt: str | None = None  # another than the method's

    @property
    def instruction(self) -> str:
        return self.prompt or default_prompt(self.modality, self.method)


class RequestBuilder:
    """
    Requests for a benchmark's rows; a key is `<row number>/<control>`.

    Args:
        rows (`Dataset`): The benchmark, audio undecoded.
        asking (`QuestionFormat`): How they are asked.
        engine (`Engine`): Clips are cut to its window.
        find_videos (`Callable`, *optional*): From a row to the files of its video, for the modalities that show it.
        reasoning (`dict`, *optional*): A teacher's, by id, for `cot_distill`.
    """

    def __init__(
        self,
        rows: Dataset,
        asking: QuestionFormat,
        engine: Engine,
        find_videos: Callable[[Row], list[Clip]] | None = None,
        reasoning: dict[str, str] | None = None,
    ):
        self.rows = rows
        self._texts = rows.remove_columns("audio")
        self._audio = rows.select_columns(["audio"])
        self._clips = list(rows["video_id"])
        self._asking, self._engine = asking, engine
        self._find_videos, self._reasoning = find_videos, reasoning

    def controls(self) -> list[str]:
        return list(dict.fromkeys([NO_CONTROL, *self._asking.controls]))

    def keys(self) -> list[str]:
        """Of the questions that can be asked."""
        return self._keys(lacking=False)

    def without_reasoning(self) -> list[str]:
        """Keys of the questions that `cot_distill` has nothing for."""
        return self._keys(lacking=True)

    def _keys(self, lacking: bool) -> list[str]:
        ids = self.rows["id"]
        lacks = [self._reasoning is not None and row_id not in self._reasoning for row_id in ids]
        return [f"{i}/{control}" for control in self.controls() for i in range(len(ids)) if lacks[i] == lacking]

    def row(self, key: str) -> Row:
        """The question as it is asked: under `shuffled` its choices stand elsewhere, and so does the right one."""
        number, control = key.split("/")
        row = self._texts[int(number)]
        return shuffled(row) if control == SHUFFLED else row

    def block(self, key: str) -> int:
        """The control's number: a call has requests of one kind, all with sound or all without."""
        return [NO_CONTROL, *CONTROLS].index(key.split("/")[1])

    def __call__(self, key: str) -> ChatRequest:
        """
        Raises:
            `MediaError`: Its clip is not there, or cannot be read.
        """
        number, control = key.split("/")
        row, modality = self.row(key), self._asking.modality
        text = self._text(row)
        if control == TEXT_ONLY:
            return ChatRequest(key, text)
        video = self._frames(row) if modality in (VIDEO, AUDIO_VIDEO) else None
        if modality == VIDEO:
            return ChatRequest(key, text, video=video)
        source = self._other_clip(int(number)) if control == SWAPPED else int(number)
        heard = decode_audio(self._audio[source]["audio"], self._engine.window_s)
        waveform = np.zeros_like(heard.waveform) if control == SILENT else heard.waveform
        return ChatRequest(key, text, audio=waveform, video=video, note={"heard_s": heard.heard_s})

    def _text(self, row: Row) -> str:
        """The prompt: it says "audio" where the model gets only sound, and "video" where it gets the video."""
        question = row["question"] if self._asking.modality == AUDIO else row["video_question"]
        fields = {} if self._reasoning is None else {"think": self._reasoning[row["id"]]}
        return question_text(question, row["choices"], self._asking.instruction, **fields)

    def _other_clip(self, number: int) -> int:
        """Row of another clip, the same one for every model: half the dataset away, or the next that is not this clip."""
        clips, count = self._clips, len(self.rows)
        for step in range(count // 2, count // 2 + count):
            if clips[(number + step) % count] != clips[number]:
                return (number + step) % count
        raise AssertionError("`check_controls` refuses a single clip")

    def _frames(self, row: Row) -> Frames:
        assert self._find_videos is not None, "a modality that shows videos needs `find_videos`"
        return frames_of_first(self._find_videos(row), self._asking.num_frames, self._asking.max_pixels)


def check_controls(rows: Dataset, controls: Collection[str]) -> None:
    """
    Refuse, before anything is asked, what these questions cannot be put under.

    Raises:
        `InputError`: There is no other clip to swap in.
    """
    if SWAPPED in controls and len(set(rows["video_id"])) < 2:
        raise InputError("--controls swapped needs questions on at least two clips; give a larger --limit, or leave it out")


def read_reasoning(source: str, rows: Dataset) -> dict[str, str]:
    """
    A teacher's reasoning about a benchmark's questions, without the answer that it came to: by id.

    Of a question's traces it is the first that has any; where they were verified, the first that was accepted.

    Args:
        source (`str`): Traces, verdicts or a corpus of theirs: folder or Hub id.
        rows (`Dataset`): The questions that are asked; others are passed over.

    Raises:
        `InputError`: There are no traces there, none on these questions, or they are about other clips or choices.
    """
    columns = ["id", "choices", "media_sha256", "traces"]
    asked = {row["id"]: (row["choices"], row["media_sha256"]) for row in rows.select_columns(columns[:3])}
    found, num_traced = {}, 0
    for row in read_parquet(_files_of_traces(source), columns):
        if row["id"] not in asked:
            continue
        if (row["choices"], row["media_sha256"]) != asked[row["id"]]:
            told = f"{source} has question {row['id']} with another clip or other choices"
            raise InputError(f"--traces: {told}; was another dataset or split traced?")
        num_traced += 1
        is_verified = any(trace["verdict"] is not None for trace in row["traces"])
        usable = [trace["think"] for trace in row["traces"] if not is_verified or trace["verdict"] == ACCEPT]
        if think := next((think for think in usable if think and think.strip()), None):
            found[row["id"]] = think.strip()
    if not num_traced:
        raise InputError(f"--traces: {source} has none of the {len(asked)} questions; was another dataset or split traced?")
    return found


def _files_of_traces(source: str) -> Collection[Any]:
    """In a corpus they are a part of their own, beside what is published to be trained on."""
    import pyarrow as pa
    from datasets import Features, get_dataset_config_names, load_dataset_builder

    name, revision = split_revision(source)
    try:
        config = "traces" if "traces" in get_dataset_config_names(name, revision=revision) else None
        files = load_dataset_builder(name, config, revision=revision).config.data_files["train"]
        found = Features.from_arrow_schema(parquet_schema(files[0]))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--traces: {source} cannot be opened ({reason}); expected a folder or a Hub id of traces") from error
    check_kind(found, source, TRACES)
    return files
