"""
MMAU test-mini + its clips -> the benchmark with the columns of avqa-audio (paper, Table 2).

    python dataset_builders/mmau.py --annotations mmau-test-mini.json --media_dir test-mini-audios --output_dir mmau

Takes `mmau-test-mini.json` of Sakshi113/MMAU at commit f0a4a97, byte for byte: the file "v05.15.25" was edited after its date,
so its version does not identify the questions. Another file is refused with a note on how it differs, unless
`--allow_unpinned` is given. Clips are found by file name at any depth. Questions and choices are the official ones; `answer`
is the first choice that equals the official answer (27 rows hold equal choices).
"""

from dataclasses import dataclass, field

from sightsound.benchmarks import get_benchmark
from sightsound.building.audio_dataset import AudioDatasetArguments, build_dataset
from sightsound.cli import parse_arguments, run


@dataclass(kw_only=True)
class MmauArguments(AudioDatasetArguments):
    annotations: str = field(metadata={"help": "mmau-test-mini.json"})
    allow_unpinned: bool = field(default=False, metadata={"help": "build from another file than the pinned one"})


def main() -> None:
    args = parse_arguments(MmauArguments, __doc__)
    _, revision = get_benchmark("mmau").read(args.annotations, args.allow_unpinned)
    build_dataset("mmau", args, {"test": args.annotations}, revision=revision)


if __name__ == "__main__":
    run(main)
