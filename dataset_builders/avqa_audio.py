r"""
AVQA annotations + clips -> avqa-audio, the audio variant of AVQA (paper, section 4.1).

    python dataset_builders/avqa_audio.py --train_annotations train_qa.json --validation_annotations val_qa.json \
        --media_dir videos --output_dir avqa-audio

Takes AVQA's own annotation format, as a JSON list or JSON lines, and a folder of clips, searched at any depth. Needed are

- `id`, a number or a text, of which no two are equal in a split;
- `question_text`;
- `multi_choice`, exactly four choices; where all four begin with their letters ("A. Dog"), the letters are taken off;
- `answer`, the index of the right choice, counted from 0: 0 to 3;
- `video_name`, see below.

`question_relation` and `question_type` are kept where they are given; other fields are ignored. `video_name` is one of

- AVQA's names, `<youtube id>_<6-digit start second>` without an extension: the clip is a file of that name, or
  `<youtube id>_<start second>`, with any audio or video extension, or else a whole video named `<youtube id>`, which is cut
  at start..start+10 s;
- the name of any file of yours, with or without its extension and its folders: it is taken whole, and `start_s` is 0. Give the
  extension where the name looks like AVQA's, as `holiday_vid_202401.ogg` does.

Where a clip has several files, one that cannot be used gives way to the next: a silent `x.mp4` to `x.wav`. In questions
every "video" in lower case becomes "audio", also in "videos"; "Video" stays, as in R1-AQA. The original is kept in
`video_question`.

Every annotation ends in `ledger.parquet` with its outcome. Work is done in shards: a run that was killed continues.
`--push_to_hub ORG/NAME` publishes the finished dataset. One annotation (val_qa.json, id 1139):

    {"id": 1139, "video_name": "06GyG4-wONQ_000006", "video_id": 1395,
     "question_text": "How many animals are there in the video?", "multi_choice": ["3", "One", "4", "2"], "answer": 3,
     "question_relation": "Both", "question_type": "Which"}
"""

from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from sightsound.benchmarks.avqa import ID_KEY, check_answers, to_row
from sightsound.building.audio_dataset import AudioDataset, AudioDatasetArguments, build_dataset
from sightsound.cli import InputError, parse_arguments, run
from sightsound.data import schema


@dataclass(kw_only=True)
class AvqaAudioArguments(AudioDatasetArguments):
    train_annotations: str | None = field(default=None, metadata={"help": "train_qa.json; `answer` counts from 0"})
    validation_annotations: str | None = field(default=None, metadata={"help": "val_qa.json, likewise"})
    test_annotations: str | None = field(default=None, metadata={"help": "held-out questions; AVQA publishes none"})

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


TASKS = ["audio-text-to-text", "question-answering", "multiple-choice"]
OF_AVQA = {
    "license": "other",
    "license_name": "avqa-states-none",
    "language": "en",
    "pretty_name": "avqa-audio",
    "source_datasets": ["extended|other-avqa"],
    "task_categories": TASKS,
    "tags": ["audio", "audio-question-answering", "avqa", "sightsound-r1"],
}
# Of own clips neither the licence nor the language is known.
OF_OWN_CLIPS = {
    "license": "unknown",
    "pretty_name": "Audio questions in AVQA's format",
    "task_categories": TASKS,
    "tags": ["audio", "audio-question-answering", "sightsound-r1"],
}


def describe(rows: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Front matter and card values: whose clips the rows are about, as far as their names tell."""
    num_own = sum(row["video_name"] == row["video_id"] for row in rows)
    front_matter = OF_OWN_CLIPS if num_own == len(rows) else OF_AVQA
    if 0 < num_own < len(rows):
        front_matter = OF_AVQA | {"license_name": "mixed", "pretty_name": "avqa-audio and other clips"}
    return front_matter, {"num_own": num_own, "num_avqa": len(rows) - num_own}


AVQA_AUDIO = AudioDataset(
    features=schema.avqa_audio_features,
    to_row=to_row,
    clip_name=itemgetter("video_name"),
    id_key=ID_KEY,
    choices_key="multi_choice",
    official_file="AVQA's train_qa.json",
    card="dataset_avqa_audio.md",
    front_matter=OF_AVQA,
    check_file=check_answers,
    describe=describe,
)


def main() -> None:
    args = parse_arguments(AvqaAudioArguments, __doc__)
    build_dataset(AVQA_AUDIO, args, args.annotations())


if __name__ == "__main__":
    run(main)
