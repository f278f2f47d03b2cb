"""
MMAR + its clips -> the benchmark with the columns of avqa-audio, and MMAR's own.

    python dataset_builders/mmar.py --annotations MMAR-meta.jsonl --media_dir audio --output_dir mmar

Takes `MMAR-meta.jsonl` of ddlBoJack/MMAR at commit 3bce090, byte for byte. Another file, such as `MMAR-meta.json` from before
MMAR-Rubrics, is refused with a note on how it differs, unless `--allow_unpinned` is given. Clips are found by the file name in
`audio_path`, at any depth. Questions and choices are the official ones, except that empty choices at the end (4 rows) are left
out. `rubric`, `cue` and `thinking`, by which MMAR-Rubrics scores reasoning, are kept.
"""

from dataclasses import dataclass, field

from sightsound.benchmarks import get_benchmark
from sightsound.building.audio_dataset import AudioDatasetArguments, build_dataset
from sightsound.cli import parse_arguments, run


@dataclass(kw_only=True)
class MmarArguments(AudioDatasetArguments):
    annotations: str = field(metadata={"help": "MMAR-meta.jsonl"})
    allow_unpinned: bool = field(default=False, metadata={"help": "build from another file than the pinned one"})


def main() -> None:
    args = parse_arguments(MmarArguments, __doc__)
    _, revision = get_benchmark("mmar").read(args.annotations, args.allow_unpinned)
    build_dataset("mmar", args, {"test": args.annotations}, revision=revision)


if __name__ == "__main__":
    run(main)
