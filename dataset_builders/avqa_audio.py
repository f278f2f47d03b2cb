r"""
AVQA annotations + clips -> avqa-audio, the audio variant of AVQA (paper, section 4.1).

    python dataset_builders/avqa_audio.py --train_annotations train_qa.json --validation_annotations val_qa.json \
        --media_dir videos --output_dir avqa-audio

Takes AVQA's own annotation format and a folder of clips, searched at any depth: `<youtube id>_<6-digit start second>` or
`<youtube id>_<start second>` with any audio or video extension, else a whole video named `<youtube id>`, which is cut at
start..start+10 s. "video" becomes "audio" in questions as in R1-AQA; the original is kept in `video_question`.

Every annotation ends in `ledger.parquet` with its outcome. Work is done in shards: a run that was killed continues.
`--push_to_hub ORG/NAME` publishes the finished dataset. One annotation (val_qa.json, id 1139):

    {"id": 1139, "video_name": "06GyG4-wONQ_000006", "video_id": 1395,
     "question_text": "How many animals are there in the video?", "multi_choice": ["3", "One", "4", "2"], "answer": 3,
     "question_relation": "Both", "question_type": "Which"}
"""

from dataclasses import dataclass, field

from sightsound import schema
from sightsound.audio_dataset import AudioDataset, AudioDatasetArguments, build_dataset
from sightsound.benchmarks.avqa import ID_KEY, to_row
from sightsound.cli import InputError, parse_arguments, run
from sightsound.media import video_name


@dataclass(kw_only=True)
class AvqaAudioArguments(AudioDatasetArguments):
    train_annotations: str | None = field(default=None, metadata={"help": "train_qa.json"})
    validation_annotations: str | None = field(default=None, metadata={"help": "val_qa.json"})
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


AVQA_AUDIO = AudioDataset(
    features=schema.avqa_audio_features,
    to_row=to_row,
    clip_name=video_name,
    id_key=ID_KEY,
    official_file="AVQA's train_qa.json",
    example_clip="06GyG4-wONQ_000006.mp4",
    card="dataset_avqa_audio.md",
    front_matter={
        "license": "other",
        "license_name": "avqa-states-none",
        "language": "en",
        "pretty_name": "avqa-audio",
        "source_datasets": ["extended|other-avqa"],
        "task_categories": ["audio-text-to-text", "question-answering", "multiple-choice"],
        "tags": ["audio", "audio-question-answering", "avqa", "sightsound-r1"],
    },
)


def main() -> None:
    args = parse_arguments(AvqaAudioArguments, __doc__)
    build_dataset(AVQA_AUDIO, args, args.annotations())


if __name__ == "__main__":
    run(main)
