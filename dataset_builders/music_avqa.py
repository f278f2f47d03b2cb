"""
MUSIC-AVQA's test questions + videos -> a multiple-choice benchmark with the columns of avqa-audio (paper, Table 2).

    python dataset_builders/music_avqa.py --annotations avqa-test.json --media_dir videos --output_dir music-avqa

Takes the official `avqa-test.json` and a folder with the videos, `<video_id>.mp4` at any depth, one minute each; the whole
sound is kept. Placeholders are filled in order. MUSIC-AVQA is open-ended, over a vocabulary of 42 answers: the choices of a
question are the answers that its kind of question admits (`CHOICES`), always all of them and in one order, so that they say
nothing of the gold answer. `modality` tells what a question needs (Audio, Visual, Audio-Visual); `in_paper` marks the four
types, over all modalities, that the paper evaluates on (6,984 of 9,129). "video" in lower case becomes "audio" in `question`,
as in avqa-audio; `video_question` is the official text.
"""

from dataclasses import dataclass, field
from operator import itemgetter

from sightsound.benchmarks.music_avqa import CHOICES, ID_KEY, PINNED, to_row
from sightsound.building.audio_dataset import AudioDataset, AudioDatasetArguments, build_dataset
from sightsound.cli import parse_arguments, run
from sightsound.data import schema
from sightsound.data.annotations import read_annotations


OFFICIAL_FILE = "MUSIC-AVQA's avqa-test.json"


@dataclass(kw_only=True)
class MusicAvqaArguments(AudioDatasetArguments):
    annotations: str = field(metadata={"help": "avqa-test.json"})


MUSIC_AVQA = AudioDataset(
    features=schema.music_avqa_features,
    to_row=to_row,
    clip_name=itemgetter("video_id"),
    id_key=ID_KEY,
    official_file=OFFICIAL_FILE,
    card="dataset_music_avqa.md",
    front_matter={
        "license": "other",
        "license_name": "music-avqa-mit-or-gpl-3.0",
        "language": "en",
        "pretty_name": "MUSIC-AVQA, audio, multiple choice",
        "source_datasets": ["extended|other-music-avqa"],
        "task_categories": ["audio-text-to-text", "question-answering", "multiple-choice"],
        "tags": ["audio", "music", "benchmark", "audio-question-answering", "music-avqa", "sightsound-r1"],
    },
)


def main() -> None:
    args = parse_arguments(MusicAvqaArguments, __doc__)
    kinds = [{"beginning": beginning, "choices": choices} for beginning, choices in CHOICES]
    annotations = read_annotations(args.annotations, OFFICIAL_FILE)
    revision = PINNED.check(args.annotations, annotations, allow_unpinned=True)  # the card says so
    build_dataset(MUSIC_AVQA, args, {"test": args.annotations}, revision=revision, kinds=kinds)


if __name__ == "__main__":
    run(main)
