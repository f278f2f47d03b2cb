"""
Build the requests of a run: a benchmark's question with the prompt of a method, under a control, with the clip in a modality.

`controls` describes the controls.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from evaluation.benchmarks import Row
from evaluation.running.controls import CONTROLS, NO_CONTROL, SHUFFLED, SILENT, SWAPPED, TEXT_ONLY, shuffle_choices
from sightsound.cli import InputError
from sightsound.data.audio import decode_audio
from sightsound.data.clips import Clip
from sightsound.data.frames import Frames, frames_of_first
from sightsound.engines.base import ChatRequest, Engine
from sightsound.method.ledger import stream_rows
from sightsound.method.prompts import (
    COT_DISTILL_PROMPT,
    COT_PROMPT,
    DIRECT_PROMPT,
    TEACHER_PROMPT,
    ZERO_SHOT_AUDIO_COT_PROMPT,
    ZERO_SHOT_COT_PROMPT,
    question_text,
)
from sightsound.method.verdicts import ACCEPT


if TYPE_CHECKING:
    from datasets import Dataset

AUDIO, VIDEO, AUDIO_VIDEO = "audio", "video", "audio_video"
DIRECT, COT, COT_DISTILL = "direct", "cot", "cot_distill"
# The prompt of each method. A model is evaluated with the prompt that it was trained with: a distilled student with `cot`.
METHODS = {
    DIRECT: DIRECT_PROMPT,
    COT: COT_PROMPT,
    "zero_shot_cot": ZERO_SHOT_COT_PROMPT,
    "zero_shot_audio_cot": ZERO_SHOT_AUDIO_COT_PROMPT,
    COT_DISTILL: COT_DISTILL_PROMPT,
}
NO_TRACE = "no_trace"  # outcome of a question without the reasoning that `cot_distill` needs


def default_prompt(modality: str, method: str) -> str:
    """The prompt of a method. A silent video with `cot` gets the teacher's prompt."""
    return TEACHER_PROMPT if (modality, method) == (VIDEO, COT) else METHODS[method]


@dataclass(frozen=True)
class QuestionFormat:
    """How a run asks its questions. A video becomes `num_frames` frames of at most `max_pixels` pixels each."""

    modality: str = AUDIO
    method: str = DIRECT
    controls: tuple[str, ...] = ()
    num_frames: int = 16
    max_pixels: int = 360 * 420
    prompt: str | None = None  # replaces the method's prompt

    @property
    def instruction(self) -> str:
        return self.prompt or default_prompt(self.modality, self.method)


class RequestBuilder:
    """
    The requests for a benchmark's rows. The key of a request is `<row number>/<control>`.

    Args:
        rows (`Dataset`): The benchmark, with undecoded audio.
        asking (`QuestionFormat`): Modality, method and controls.
        engine (`Engine`): Clips are cut to its window.
        find_videos (`Callable`, *optional*): A row -> the files of its video; needed by the modalities with video.
        reasoning (`dict`, *optional*): Reasoning of a teacher by question id, for `cot_distill`.
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
        """Keys of the requests that can be built."""
        return self._keys(lacking=False)

    def without_reasoning(self) -> list[str]:
        """Keys of the requests that cannot be built: `cot_distill` without reasoning for the question."""
        return self._keys(lacking=True)

    def _keys(self, lacking: bool) -> list[str]:
        ids = self.rows["id"]
        lacks = [self._reasoning is not None and row_id not in self._reasoning for row_id in ids]
        return [f"{i}/{control}" for control in self.controls() for i in range(len(ids)) if lacks[i] == lacking]

    def row(self, key: str) -> Row:
        """The question as it is asked: under `shuffled` with its choices, and the index of the right one, in another order."""
        number, control = key.split("/")
        row = self._texts[int(number)]
        return shuffle_choices(row) if control == SHUFFLED else row

    def block(self, key: str) -> int:
        """Number of the control. Requests of one block go to the engine together: all with audio, or all without."""
        return [NO_CONTROL, *CONTROLS].index(key.split("/")[1])

    def __call__(self, key: str) -> ChatRequest:
        """
        Raises:
            `MediaError`: The clip is missing or cannot be decoded.
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
        """The prompt. It says "audio" if the model gets only the audio, and "video" if it gets the video."""
        question = row["question"] if self._asking.modality == AUDIO else row["video_question"]
        fields = {} if self._reasoning is None else {"think": self._reasoning[row["id"]]}
        return question_text(question, row["choices"], self._asking.instruction, **fields)

    def _other_clip(self, number: int) -> int:
        """Row with another clip, the same for every model: half the dataset further on, or the first one after that."""
        clips, count = self._clips, len(self.rows)
        for step in range(count // 2, count // 2 + count):
            if clips[(number + step) % count] != clips[number]:
                return (number + step) % count
        raise AssertionError("`check_controls` refuses a dataset with a single clip")

    def _frames(self, row: Row) -> Frames:
        assert self._find_videos is not None, "a modality that shows videos needs `find_videos`"
        return frames_of_first(self._find_videos(row), self._asking.num_frames, self._asking.max_pixels)


def check_controls(rows: Dataset, controls: Collection[str]) -> None:
    """
    Check before any request that these questions support the controls.

    Raises:
        `InputError`: `swapped` with all questions on one clip.
    """
    if SWAPPED in controls and len(set(rows["video_id"])) < 2:
        raise InputError("--controls swapped needs questions on at least two clips; give a larger --limit, or leave it out")


def read_reasoning(source: str, rows: Dataset) -> dict[str, str]:
    """
    A teacher's reasoning about a benchmark's questions, without its answer, by question id.

    It comes from the first trace with reasoning, or from the first accepted one if the traces have verdicts.

    Args:
        source (`str`): Dataset of traces, verdicts or the corpus built from them: folder or Hub id.
        rows (`Dataset`): The questions; traces of other questions are ignored.

    Raises:
        `InputError`: The source has no traces, none on these questions, or traces about other clips or choices.
    """
    columns = ["id", "choices", "media_sha256", "traces"]
    asked = {row["id"]: (row["choices"], row["media_sha256"]) for row in rows.select_columns(columns[:3])}
    found, num_traced = {}, 0
    for row in stream_rows(source, columns, may_be_corpus=True):
        if row["id"] not in asked:
            continue
        if (row["choices"], row["media_sha256"]) != asked[row["id"]]:
            seen = f"{source} has question {row['id']} with another clip or other choices"
            raise InputError(f"--traces: {seen}; give traces of this dataset and split")
        num_traced += 1
        is_verified = any(trace["verdict"] is not None for trace in row["traces"])
        usable = [trace["think"] for trace in row["traces"] if not is_verified or trace["verdict"] == ACCEPT]
        if think := next((think for think in usable if think and think.strip()), None):
            found[row["id"]] = think.strip()
    if not num_traced:
        raise InputError(f"--traces: {source} has none of the {len(asked)} questions; give traces of this dataset and split")
    return found
