"""
MMAU test-mini + its clips -> the benchmark with the columns of avqa-audio (paper, Table 2).

    python dataset_builders/mmau.py --annotations mmau-test-mini.json --media_dir test-mini-audios --output_dir mmau

Takes `mmau-test-mini.json` of Sakshi113/MMAU at commit f0a4a97, byte for byte: "v05.15.25" was edited after its date, so
that version name alone does not say which questions were asked. Another file is refused, and the difference told, unless
`--allow_unpinned` is given. Clips are found by file name at any depth. Questions and choices are the official ones;
`answer` is the first choice that equals the official answer (27 rows hold equal choices).
"""

from dataclasses import dataclass, field
from operator import itemgetter

from sightsound.benchmarks.mmau import ID_KEY, PINNED, to_row
from sightsound.building.audio_dataset import AudioDataset, AudioDatasetArguments, build_dataset
from sightsound.cli import parse_arguments, run
from sightsound.data import schema
from sightsound.data.annotations import read_annotations


OFFICIAL_FILE = "MMAU's mmau-test-mini.json"


@dataclass(kw_only=True)
class MmauArguments(AudioDatasetArguments):
    annotations: str = field(metadata={"help": "mmau-test-mini.json"})
    allow_unpinned: bool = field(default=False, metadata={"help": f"build from another file than {PINNED.source}"})


MMAU = AudioDataset(
    features=schema.mmau_features,
    to_row=to_row,
    clip_name=itemgetter("video_id"),
    id_key=ID_KEY,
    choices_key="choices",
    official_file=OFFICIAL_FILE,
    card="dataset_mmau.md",
    front_matter={
        "license": "other",
        "license_name": "annotations-apache-2.0-clips-of-their-sources",
        "language": "en",
        "pretty_name": "MMAU test-mini",
        "source_datasets": ["extended|other-mmau"],
        "task_categories": ["audio-text-to-text", "question-answering", "multiple-choice"],
        "tags": ["audio", "speech", "music", "benchmark", "audio-question-answering", "mmau", "sightsound-r1"],
    },
)


def main() -> None:
    args = parse_arguments(MmauArguments, __doc__)
    revision = PINNED.check(args.annotations, read_annotations(args.annotations, OFFICIAL_FILE), args.allow_unpinned)
    build_dataset(MMAU, args, {"test": args.annotations}, revision=revision)


if __name__ == "__main__":
    run(main)
