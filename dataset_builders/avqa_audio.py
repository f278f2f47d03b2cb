r"""
AVQA annotations + clips -> avqa-audio, the audio variant of AVQA (paper, section 4.1).

    python dataset_builders/avqa_audio.py --train_annotations train_qa.json --validation_annotations val_qa.json \
        --media_dir videos --output_dir avqa-audio

Takes AVQA's own annotation format, as a JSON list or JSON lines, and a folder of clips, searched at any depth. An annotation
needs

- `id`, a number or a text, unique in its split;
- `question_text`;
- `multi_choice`, exactly four choices; where all four begin with their letters ("A. Dog"), the letters are removed;
- `answer`, the index of the right choice, counted from 0: 0 to 3;
- `video_name`, see below.

`question_relation` and `question_type` are kept where they are given; other fields are ignored. `video_name` is one of

- a name in AVQA's form, `<youtube id>_<6-digit start second>` without an extension: the clip is a file of that name, or
  `<youtube id>_<start second>`, with any audio or video extension, or else a whole video named `<youtube id>`, which is cut
  at start..start+10 s;
- the name of any other file, with or without its extension and its folders: the whole file is used, and `start_s` is 0. Give
  the extension where the name is in AVQA's form, as `holiday_vid_202401.ogg` is.

Where a clip has several files, the first usable one is taken: `x.wav` where `x.mp4` is silent. In questions every "video" in
lower case becomes "audio", also in "videos"; "Video" stays, as in R1-AQA. `video_question` keeps the original.

`ledger.parquet` has every annotation with its outcome. The dataset is built in shards; the same command continues a killed
run. `--push_to_hub ORG/NAME` publishes the finished dataset. One annotation (val_qa.json, id 1139):

    {"id": 1139, "video_name": "06GyG4-wONQ_000006", "video_id": 1395,
     "question_text": "How many animals are there in the video?", "multi_choice": ["3", "One", "4", "2"], "answer": 3,
     "question_relation": "Both", "question_type": "Which"}
"""

from dataclasses import dataclass, field

from sightsound.building.audio_dataset import AudioDatasetArguments, build_dataset
from sightsound.cli import InputError, parse_arguments, run


@dataclass(kw_only=True)
class AvqaAudioArguments(AudioDatasetArguments):
    train_annotations: str | None = field(default=None, metadata={"help": "train_qa.json; `answer` counts from 0"})
    validation_annotations: str | None = field(default=None, metadata={"help": "val_qa.json, likewise"})
    test_annotations: str | None = field(default=None, metadata={"help": "held-out questions; AVQA itself has none"})

    def annotations(self) -> dict[str, str]:
        """Split -> its file, for the splits that are given."""
        files = {split: getattr(self, f"{split}_annotations") for split in ("train", "validation", "test")}
        given = {split: path for split, path in files.items() if path}
        if not given:
            raise InputError("no annotations: give --train_annotations, --validation_annotations or both")
        return given


def main() -> None:
    args = parse_arguments(AvqaAudioArguments, __doc__)
    build_dataset("avqa", args, args.annotations())


if __name__ == "__main__":
    run(main)
