r"""
Evaluation runs without the clips -> the audio contribution of each question: a dataset again, with its questions labelled.

    python -m evaluation run --benchmark avqa --dataset avqa-audio --split train --model MODEL --controls silent text_only \
        --output_dir blind/MODEL
    python dataset_builders/audio_contribution.py --dataset avqa-audio --split train --runs blind/MODEL blind/OTHER_MODEL \
        --output_dir avqa-audio-labelled

Each run is one try of each question with the question alone (`text_only`), and one with silence in place of the clip
(`silent`). Give runs of several models or with several methods: answers of the evaluation are greedy, so another seed alone
repeats them. `text_only_correct` and `silent_correct` are the shares of the tries that were right; no answer is not right.
`audio_contribution` is `weak` where the larger share is above one half, else `strong`, and `unknown` for questions that no run
asked (`sightsound/method/audio_contribution.py`). A run on the first questions (`--limit`) labels those.
Do not give runs of a model that was trained on these questions: it may know the answers by heart.

The output has all splits of the dataset, and can be used in its place: to trace, to build a corpus from traces that exist
already, and to train with `audio_contribution: strong`. Audio is copied as it is. Questions by `questions.py --answerer` have
these columns already; with runs given here, they get new values.
"""

from dataclasses import dataclass, field

from sightsound.benchmarks import benchmark_in
from sightsound.building.blind_runs import check_together, labels_of, predictions_of, read_questions, read_run
from sightsound.building.contribution_labels import (
    copy_all,
    count_words,
    features_with_labels,
    files_of,
    write_card,
    write_ledger,
)
from sightsound.building.questions_report import check_licenses
from sightsound.building.takedown import carry_takedown
from sightsound.cli import InputError, parse_arguments, run
from sightsound.hub.inputs import front_matter_of, pin_datasets
from sightsound.hub.publish import PublishArguments
from sightsound.method.audio_contribution import CONTRIBUTIONS
from sightsound.stage import Stage, fingerprint


@dataclass(kw_only=True)
class AudioContributionArguments(PublishArguments):
    dataset: str = field(metadata={"help": "questions about clips, such as avqa-audio: folder or Hub id"})
    runs: list[str] = field(metadata={"help": "folders of finished evaluation runs with the controls silent and text_only"})
    output_dir: str = field(metadata={"help": "where to write the dataset"})
    split: str = field(default="train", metadata={"help": "split of the dataset that the runs are about"})


def label(args: AudioContributionArguments, benchmark: str, stage: Stage) -> None:
    files = files_of(args.dataset, args.split)
    questions = read_questions(files[args.split])
    runs = [read_run(folder, predictions_of(folder, benchmark), args.split, questions) for folder in args.runs]
    check_together(runs)
    labels = labels_of(runs)
    copy_all(files, args.split, stage.path, labels)
    write_ledger(args.dataset, args.split, stage.path, labels)
    carry_takedown(args.dataset, stage.path)
    write_card(args.dataset, files, args.split, stage.path, runs)
    counts = count_words(stage.path, args.split)
    print(f"{counts.total()} questions: {', '.join(f'{counts[word]} {word}' for word in CONTRIBUTIONS)}")
    if len(labels) < len(questions):
        print(f"{len(questions) - len(labels)} of {len(questions)} questions are in no run, and keep what was known of them")
    stage.finish()


def main() -> None:
    args = parse_arguments(AudioContributionArguments, __doc__)
    if len(set(args.runs)) < len(args.runs):
        raise InputError("--runs names a folder twice; a run is one try")
    pin_datasets(args, ["dataset"], args.output_dir)
    benchmark = benchmark_in(front_matter_of(args.dataset)) or "avqa"
    runs = sorted(str(fingerprint(predictions_of(folder, benchmark).parents[1])) for folder in args.runs)
    settings = {"dataset": fingerprint(args.dataset), "split": args.split, "runs": runs}
    with Stage(args.output_dir, settings) as stage:
        if stage.complete:
            print(f"{stage.path} is complete")
        else:
            label(args, benchmark, stage)
        if args.push_to_hub and "license" in features_with_labels(next(iter((stage.path / "data").glob("*.parquet")))):
            check_licenses(stage.path)
        args.publish(stage.path)


if __name__ == "__main__":
    run(main)
