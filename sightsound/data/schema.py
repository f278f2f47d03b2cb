"""
The columns of every published dataset and every stage's output, and the outcome words of the ledgers.

Changing a column is a breaking change for people who call `load_dataset`.
"""

from __future__ import annotations

import string
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from datasets import Features

SAMPLING_RATE = 16_000  # Hz, of every audio column; the rate of Whisper's feature extractor, which the students use


class RowError(Exception):
    """
    An input that cannot become a row of the output.

    Args:
        outcome (`str`): The word for it in the ledger; one of those below.
        detail (`str`): What was expected and what was found.
    """

    def __init__(self, outcome: str, detail: str):
        super().__init__(detail)
        self.outcome = outcome


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
    SILENT: "the audio stream is silent",
    TOO_SHORT: "too little audio remains in the clip, or the video ends before the part that the question is about",
    DECODER_CRASHED: "the decoding process crashed, and crashed again when it decoded only this clip",
    BAD_ANNOTATION: "the annotation lacks a field, or a field cannot be used",
    DUPLICATE_ID: "an earlier row has the same id",
    WRONG_CHOICE_COUNT: "not the number of choices that the benchmark has",
    ANSWER_OUT_OF_RANGE: "the answer is no index into the choices",
    ANSWER_NOT_A_CHOICE: "the answer is none of the choices",
}

# Outcome of a video, or of a part of one that may become a segment, in `dataset_builders/videos.py`.
NO_VIDEO = "no_video"
STILL_PICTURE = "still_picture"
SAME_SOUND = "same_sound"
SAME_PICTURE = "same_picture"
DUPLICATE_VIDEO = "duplicate_video"
NO_SEGMENT = "no_segment"
TAKEN_DOWN = "taken_down"
VIDEO_OUTCOMES = {
    BUILT: "in the dataset; of a video: at least one of its segments is",
    SILENT: "there is no sound, or next to none",
    STILL_PICTURE: "the picture does not change",
    SAME_SOUND: "an earlier segment has nearly the same sound",
    SAME_PICTURE: "an earlier segment has nearly the same pictures",
    DUPLICATE_VIDEO: "an earlier video has the same bytes",
    DUPLICATE_ID: "an earlier segment has the same id",
    TAKEN_DOWN: "on the takedown list",
    MISSING_MEDIA: "the row of the source holds no video",
    CORRUPT_MEDIA: "it cannot be decoded",
    NO_AUDIO: "the video has no audio stream",
    NO_VIDEO: "the file has no video stream, or it has no frame in this part",
    TOO_SHORT: "too little sound remains",
    DECODER_CRASHED: "the decoding process crashed, and crashed again when it decoded only this video",
    NO_SEGMENT: "of a video: none of its segments is in the dataset, each for its own reason",
}
UNKNOWN = "unknown"  # licence or author of a video, where its source states none; audio contribution that nobody measured

# Outcome of a request to which a server gave no completions.
REFUSED = "refused"  # for good: its content policy, or the request is longer than the model's context
BAD_RESPONSE = "bad_response"  # every reply was something else than a chat completion
SERVER_ERROR = "server_error"  # the server failed every time, and answered other requests

# Outcome of a question in the traces corpus: accepted, or why not; `NO_VIDEO` is one too.
ACCEPTED = "accepted"
NO_ANSWER = "no_answer"
NOT_UNANIMOUS = "not_unanimous"
ALL_REJECTED = "all_traces_rejected"
NOT_VERIFIED = "not_verified"

CONTRIBUTION_COLUMNS = ("audio_contribution", "text_only_correct", "silent_correct", "blind_tries")


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
            **contribution_features(),
        }
    )


def contribution_features() -> Features:
    """
    Whether a question needs its clip (see `method.audio_contribution`): columns of question datasets, traces and corpus.

    `audio_contribution` is "strong", "weak" or "unknown". `text_only_correct` and `silent_correct` are the shares of
    `blind_tries` that were right with the question alone, and with silence of the clip's length; None where nobody tried, or
    too few tries have a complete answer.
    """
    from datasets import Features, Value

    types = ("string", "float32", "float32", "int32")
    return Features({name: Value(dtype) for name, dtype in zip(CONTRIBUTION_COLUMNS, types, strict=True)})


def traces_features() -> Features:
    """
    The whole ledger of the corpus: one row per question, without audio (join by `id`).

    `sampling` is JSON: every field of the teacher's request that decides a draw (see `sampling.effective`), null for a field
    that was not sent to its server. `checker_sampling` is a JSON list of such objects, one per kind of request to the checker.

    `claims` and `rewritten` of a trace are filled by the modes of claims of `verdicts.py`: the claims with their verdicts, and
    the trace that the `rewriter` wrote from the true ones, with the verdict on it.
    """
    from datasets import Features, List, Value

    trace = {
        "text": Value("string"),
        "think": Value("string"),
        "answer": Value("int32"),
        "finish_reason": Value("string"),
        "verdict": Value("string"),
        "verdict_text": Value("string"),
        "claims": List({"claim": Value("string"), "verdict": Value("string")}),
        "rewritten": {
            "text": Value("string"),
            "think": Value("string"),
            "answer": Value("int32"),
            "finish_reason": Value("string"),
            "verdict": Value("string"),
        },
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
            "rewriter": Value("string"),
            "rewriter_revision": Value("string"),
            "prompt_version": Value("string"),
            "num_traces": Value("int32"),
            "temperature": Value("float64"),
            "max_tokens": Value("int32"),
            "seed": Value("int64"),
            "sampling": Value("string"),
            "media_sha256": Value("string"),
            **contribution_features(),
        }
    )


def verified_features() -> Features:
    """Accepted questions only, ready for training: `prompt` (messages), and each accepted trace as a completion."""
    from datasets import Audio, Features, List, Value

    return Features(
        {
            "id": Value("string"),
            "audio": Audio(sampling_rate=SAMPLING_RATE),
            "prompt": List({"role": Value("string"), "content": Value("string")}),
            "completions": List(Value("string")),
            "teacher_answer": Value("int32"),
            "choices": List(Value("string")),
            **contribution_features(),
        }
    )


def predictions_features() -> Features:
    """
    One row per benchmark question and control of one evaluation run.

    `output` is None where no answer came; `in_paper` is None for benchmarks that are averaged over all questions.
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


def judgements_features() -> Features:
    """
    One row per benchmark question of one run whose reasoning a judge scored by rubrics.

    `run_scores` are the judge's, from 0 to 1, `score` the mean of the middle ones: None where the outcome is not `judged`.
    `correct_official` and `correct_paper` are by the two protocols; a figure counts 0 where its protocol says wrong.
    """
    from datasets import Features, List, Value

    texts = ("id", "video_id", "outcome", "reasoning", "predicted", "benchmark", "benchmark_revision", "predictions")
    more = ("judge", "judge_revision", "prompt_version", "sampling")
    return Features(
        {
            **{name: Value("string") for name in texts},
            "correct_official": Value("bool"),
            "correct_paper": Value("bool"),
            "score": Value("float64"),
            "run_scores": List(Value("float64")),
            "replies": List(Value("string")),
            **{name: Value("string") for name in more},
        }
    )


def ledger_features() -> Features:
    """One row per input row of a stage."""
    from datasets import Features, Value

    return Features({"id": Value("string"), "outcome": Value("string"), "detail": Value("string")})


def build_ledger_features() -> Features:
    """One row per annotation of an audio dataset. Two splits may have the same ids."""
    from datasets import Features, Value

    return Features({**ledger_features(), "split": Value("string")})


def segments_features() -> Features:
    """
    Segments of videos: the columns of avqa-audio that are not about a question, and where each segment comes from.

    `segment` is the name of its file in `segments/`, without `.mp4`, `media_sha256` that file's digest. `license` and `author`
    are the source's, or "unknown".
    """
    from datasets import Features, Value

    shared = ("id", "video_id", "start_s", "audio", "duration_s", "media_sha256")
    own = ("segment", "source", "license", "author", "video_sha256")
    columns = avqa_audio_features()
    return Features({**{name: columns[name] for name in shared}, **{name: Value("string") for name in own}})


def questions_features() -> Features:
    """
    Questions that a teacher wrote about segments: the columns of avqa-audio, and where each segment comes from.

    `answer` is the teacher's own. `segment` and what follows it are as in `segments_features`.
    """
    from datasets import Features

    segments = segments_features()
    own = ("segment", "source", "license", "author", "video_sha256")
    return Features({**avqa_audio_features(), **{name: segments[name] for name in own}})


def written_features() -> Features:
    """
    What a teacher wrote about each segment, before the questions are chosen: one row per segment.

    A slot is a question that was asked for, `question` in its "video" wording. Its `outcome` is None while no filter has
    dropped it. The shares are in double precision: they are compared with `--max_guessed`, and 0.8 as a float32 is above 0.8.
    """
    from datasets import Features, List, Value

    texts = ("outcome", "detail", "type", "question")
    shares = {name: Value("float64") for name in ("text_only_correct", "silent_correct")}
    numbers = {name: Value("int32") for name in ("answer", "blind_tries")}
    slot = {**{name: Value("string") for name in texts}, "choices": List(Value("string")), **numbers, **shares}
    provenance = {name: Value("string") for name in ("teacher", "teacher_revision", "answerers", "sampling")}
    return Features({"id": Value("string"), "outcome": Value("string"), **provenance, "slots": List(slot)})


def segments_ledger_features() -> Features:
    """
    One row per input, followed by one per part of it. `kind` is "video" or "segment" in `dataset_builders/videos.py`, "segment"
    or "question" in `questions.py`.
    """
    from datasets import Features, Value

    return Features({**ledger_features(), "kind": Value("string"), "source": Value("string")})


LETTERS = string.ascii_uppercase
