"""Questions of the miniature that give their answer away, among ordinary ones, and the filter that has to find them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sightsound.building.miniature_world import NAMES, clip_generator, draw_scene
from sightsound.engines import make_engine
from sightsound.engines.base import EngineFlags, Sampling
from sightsound.engines.blind_answers import Asked, BlindTries
from sightsound.method.audio_contribution import SILENT, TEXT_ONLY
from sightsound.method.prompts import COT_PROMPT
from sightsound.method.question_filters import FILTERS, Facts, dropped_by
from sightsound.method.question_writing import WrittenQuestion
from sightsound.stage import Journal


NUM_TRIES, MAX_GUESSED = 8, 0.7  # as in the demo


def annotated_questions(world: Path, seed: int, first: int, count: int, with_notes: bool) -> list[Asked]:
    """Questions of the training split; with notes of what is heard in their text, as in the base student's examples."""
    asked = []
    for row in json.loads((world / "train_qa.json").read_text())[first : first + count]:
        text = row["question_text"]
        if with_notes:
            scene = draw_scene(clip_generator(seed, "train", row["id"]), traps=True)
            text = f"Notes: {', then '.join(NAMES[kind] for kind in scene.sounds)}.\n{text}"
        question = WrittenQuestion(row["question_type"], text, tuple(row["multi_choice"]), row["answer"])
        asked.append(Asked(row["video_name"], f"{row['video_name']}/q0", question, 2.0))
    return asked


def dropped_as_guessable(
    student: Path, asked: Sequence[Asked], folder: Path
) -> list[tuple[Asked, dict[str, float], str | None]]:
    """Each question with its shares of right tries, and the outcome of the filter that drops it."""
    sampling = Sampling(1, 1.0, 64, 0)
    engine = make_engine(EngineFlags(model=str(student), sampling=sampling, batch_size=256))
    number = {each.segment_id: i for i, each in enumerate(asked)}
    journal = Journal(folder / "journal.jsonl")
    tries = BlindTries(journal, COT_PROMPT, NUM_TRIES, sampling, lambda segment: number[segment] // 256, False)
    for condition in (TEXT_ONLY, SILENT):
        tries.ask(engine, condition, asked)
    results: list[Any] = []
    for each in asked:
        shares = {condition: tries.share_right(condition, each) for condition in (TEXT_ONLY, SILENT)}
        facts = Facts(guessed=max(shares.values()), max_guessed=MAX_GUESSED)
        dropped = dropped_by(each.question, facts, FILTERS)
        results.append((each, shares, dropped and dropped[0]))
    journal.close()
    return results
