"""What is known about a question from the tries of models that have not got its clip."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sightsound.engines.base import Sampling
from sightsound.engines.blind_answers import Asked, BlindTries, shuffled
from sightsound.method.audio_contribution import SILENT
from sightsound.method.prompts import DIRECT_PROMPT
from sightsound.method.question_writing import WrittenQuestion
from sightsound.stage import Journal


ASKED = Asked("clip", "clip/q0", WrittenQuestion("which", "What is heard?", ("a bell", "a dog", "rain", "a car"), 0), 1.0)
FAILED = {"outcome": "server_error", "detail": "HTTP 500"}


def answered(text: str, finish_reason: str = "stop") -> dict[str, Any]:
    return {"completions": [{"text": text, "finish_reason": finish_reason}]}


RIGHT, WRONG, MUTE, CUT = answered("a bell"), answered("a dog"), answered("I hear nothing."), answered("a bell", "length")


@pytest.mark.parametrize(
    ("tries", "share"),
    [
        ([RIGHT, RIGHT, WRONG, MUTE], 0.5),
        ([RIGHT, RIGHT, RIGHT, FAILED], 1.0),  # a request that failed is no try
        ([RIGHT, RIGHT, RIGHT, CUT], 0.75),
        ([RIGHT, WRONG, FAILED, CUT], 1 / 3),
        ([MUTE] * 4, 0.0),  # it had its chance
        ([RIGHT, FAILED, FAILED, CUT], None),
        ([FAILED] * 4, None),
        ([CUT] * 4, None),
    ],
)
def test_a_share_is_of_what_was_answered_and_unknown_where_too_little_was(
    tmp_path: Path, tries: list[dict[str, Any]], share: float | None
) -> None:
    with closing(Journal(tmp_path / "journal.jsonl")) as journal:
        journal.append((f"clip/q0.{SILENT}.{i}", entry) for i, entry in enumerate(tries))
        blind = BlindTries(journal, DIRECT_PROMPT, len(tries), Sampling(1, 1.0, 16, 0), lambda _: 0, False)
        assert blind.share_right(SILENT, ASKED) == share


def test_a_try_has_its_own_order_of_choices_and_the_answer_moves_with_it() -> None:
    orders = [shuffled(ASKED, SILENT, i) for i in range(24)]
    assert len({each.choices for each in orders}) > 8 and orders == [shuffled(ASKED, SILENT, i) for i in range(24)]
    assert {each.choices[each.answer] for each in orders} == {"a bell"} and len({each.answer for each in orders}) == 4
