"""
MUSIC-AVQA's test questions + videos -> a multiple-choice benchmark with the columns of avqa-audio (paper, Table 2).

    python dataset_builders/music_avqa.py --annotations avqa-test.json --media_dir videos --output_dir music-avqa

Takes the official `avqa-test.json` and a folder with the videos, `<video_id>.mp4` at any depth, one minute each; the whole
audio is kept. Placeholders are filled in order. MUSIC-AVQA is open-ended, with a vocabulary of 42 answers. The choices of a
question are all answers that its kind of question admits, always in one order, so that they reveal nothing of the right answer
(`CHOICES` in `sightsound/benchmarks/music_avqa.py`). `modality` is what a question needs (Audio, Visual, Audio-Visual).
`in_paper` is true for the four types, over all modalities, that the paper evaluates on (6,984 of 9,129). "video" in lower case
becomes "audio" in `question`, as in avqa-audio; `video_question` is the official text.
"""

from dataclasses import dataclass, field

from sightsound.benchmarks import get_benchmark
from sightsound.building.audio_dataset import AudioDatasetArguments, build_dataset
from sightsound.cli import parse_arguments, run


@dataclass(kw_only=True)
class MusicAvqaArguments(AudioDatasetArguments):
    annotations: str = field(metadata={"help": "avqa-test.json"})


def main() -> None:
    args = parse_arguments(MusicAvqaArguments, __doc__)
    _, revision = get_benchmark("music_avqa").read(args.annotations, allow_unpinned=True)  # the card says which file it is
    build_dataset("music_avqa", args, {"test": args.annotations}, revision=revision)


if __name__ == "__main__":
    run(main)
