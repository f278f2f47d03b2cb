"""What the build of a teacher's questions prints, writes on its card, and says when no question is left."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from sightsound.building.questions_join import Counts
from sightsound.building.report import sample_row
from sightsound.building.videos_report import license_counts, license_front_matter
from sightsound.cli import InputError
from sightsound.data import schema
from sightsound.data.statistics import wilson_interval
from sightsound.hub.cards import as_json, dataset_info, markdown_table, provenance, render_card, write_dataset_card
from sightsound.method.audio_contribution import STRONG, WEAK, WEAK_ABOVE
from sightsound.method.question_filters import outcome_meanings
from sightsound.method.question_writing import TYPES


Row = dict[str, Any]

CONFIGS = {"default": {"train": "data/train-*.parquet"}}
NO_QUESTION_MEANING = "of a segment: none of its questions is in the dataset, each for its own reason"


def summary(counts: Counts) -> str:
    """`120 of 200 questions are kept, about 90 of 100 segments`."""
    segments = counts.segments
    about = f"about {segments[schema.BUILT]} of {segments.total()} segments"
    return f"{counts.kept} of {counts.questions.total()} questions are kept, {about}"


def outcome_table(counts: Counts) -> str:
    """How many segments and questions had which outcome, as a Markdown table."""
    meanings = outcome_meanings()
    # Outcomes of requests that are not listed there, and `no_question`.
    others = {name: NO_QUESTION_MEANING for name in (counts.segments | counts.questions) if name not in meanings}
    rows = [
        [outcome, counts.segments[outcome], counts.questions[outcome], meaning]
        for outcome, meaning in (meanings | others).items()
    ]
    totals = ["all", counts.segments.total(), counts.questions.total(), ""]
    return "\n".join(markdown_table(["outcome", "segments", "questions", "meaning"], [*rows, totals]))


def need_for_sound(counts: Counts, settings: Row, answerers: str | None) -> str:
    """
    The share of questions that need the sound, with its interval, in a sentence.

    Args:
        settings (`dict`): Of the stage.
        answerers (`str`, *optional*): The models that tried; None where nobody did.
    """
    strong, weak, unknown = (counts.contributions[name] for name in (STRONG, WEAK, schema.UNKNOWN))
    if answerers is None:
        return "Nobody tried to answer these questions without their clips: whether they need the sound is not known."
    failed = f"Of {unknown} questions that is not known: fewer than half of their tries have a complete answer."
    failed = failed if unknown else ""
    if not strong + weak:
        return failed or "No question was left to be tried without its clip."
    low, high = wilson_interval(strong, strong + weak)
    share = f"{100 * strong / (strong + weak):.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
    return (
        f"{share} of the {strong + weak} questions that were tried need the sound (`strong`): without the clip, at most "
        f"{WEAK_ABOVE:.0%} of {settings['blind_tries']} tries were right. {failed}".rstrip()
    )


def report(counts: Counts, settings: Row, written: Row) -> str:
    """What a build prints at its end; arguments as of `write_card`."""
    needed = need_for_sound(counts, settings, written["answerers"])
    return f"{summary(counts)}\n{needed}\n\n{outcome_table(counts)}"


def why_no_question(counts: Counts, folder: Path) -> str:
    """The error of a build without any question: the most common reasons, and what to do about them."""
    seen = ", ".join(f"{count} {outcome}" for outcome, count in counts.questions.most_common(3))
    of_segments = ", ".join(f"{count} {outcome}" for outcome, count in counts.segments.most_common(3))
    return (
        f"no question is left of {counts.questions.total()} about {counts.segments.total()} segments ({seen or of_segments}); "
        f"{folder / 'ledger.parquet'} has the reason of each: correct --media_dir, --model, --max_tokens or --prompt_file, "
        "delete that folder and start again"
    )


def check_licenses(folder: Path) -> None:
    """
    Raises:
        `InputError`: A row has no licence. Such a dataset is not published.
    """
    licenses = license_counts(folder)
    if unknown := licenses[schema.UNKNOWN]:
        raise InputError(
            f"{unknown} of {licenses.total()} rows state no licence, so nothing was published; {folder} is complete: give the "
            "dataset of segments its --license (videos.py) and build the questions again"
        )


def write_card(folder: Path, counts: Counts, settings: Row, written: Row) -> None:
    """
    Write the README.md.

    Args:
        folder (`Path`): Holds data and ledger already.
        counts (`Counts`): Of the build.
        settings (`dict`): Of the stage.
        written (`dict`): A row of `schema.written_features` with its provenance.
    """
    licenses = license_counts(folder)
    asked = {name: share / sum(settings["types"].values()) for name, share in settings["types"].items()}
    types = [
        [name, f"{100 * asked.get(name, 0):.1f} %", counts.types[name], f"{100 * counts.types[name] / counts.kept:.1f} %"]
        for name in TYPES
    ]
    letters = Counter({"ABCD"[position]: count for position, count in counts.letters.items()})
    text = render_card(
        "dataset_questions.md",
        summary=summary(counts),
        funnel=outcome_table(counts),
        types="\n".join(markdown_table(["type", "asked for", "kept", "share of the kept"], types)),
        letters=", ".join(f"{letter} {letters[letter]}" for letter in "ABCD"),
        num_texts=len(counts.texts),
        need_for_sound=need_for_sound(counts, settings, written["answerers"]),
        max_guessed=f"{settings['max_guessed']:.0%}",
        teacher=written["teacher"],
        teacher_revision=written["teacher_revision"],
        answerers=written["answerers"],
        prompt_version=settings["prompt_version"],
        licenses="\n".join(markdown_table(["licence", "questions"], licenses.most_common())),
        sample=as_json(sample_row(folder, ["train"])),
        repository=folder.resolve().name,
        split="train",
        **provenance(),
    )
    info = dataset_info(folder, CONFIGS, {"default": schema.questions_features()})
    front_matter = license_front_matter(licenses) | {
        "pretty_name": "Questions that a model wrote about what is heard in videos",
        "task_categories": ["audio-text-to-text"],
        "tags": ["audio", "audio-question-answering", "synthetic", "sightsound-r1"],
        "annotations_creators": ["machine-generated"],
    }
    write_dataset_card(folder, text, CONFIGS, dataset_info=info, **front_matter)
