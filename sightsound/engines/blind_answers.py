"""
Have models answer questions without their clip, to find those that can be answered by guessing.

Each question is tried several times under two conditions: `text_only`, the question alone, and `silent`, with silence of the
clip's length. Every try has the choices in another order and is sampled at temperature 1: a model that prefers one letter is
then right by chance, and not always or never. An answer without a choice, or one that was cut, counts as not right. A request
that failed is no try.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sightsound.data.annotations import audio_question
from sightsound.data.schema import SAMPLING_RATE
from sightsound.engines.base import ChatRequest, Engine, Sampling
from sightsound.engines.runner import run_requests
from sightsound.method.answers import is_correct, parse_answer
from sightsound.method.audio_contribution import TEXT_ONLY
from sightsound.method.prompts import question_text
from sightsound.method.question_writing import WrittenQuestion
from sightsound.stage import Journal


TEMPERATURE = 1.0


@dataclass(frozen=True)
class Asked:
    """
    A question to be tried.

    Args:
        segment_id (`str`): Of its segment.
        key (`str`): Begins the keys of its requests: `SEGMENT/qN`.
        question (`WrittenQuestion`): As it was written.
        duration_s (`float`): Of the clip.
    """

    segment_id: str
    key: str
    question: WrittenQuestion
    duration_s: float


def shuffled(asked: Asked, condition: str, number: int) -> WrittenQuestion:
    """The question with the choices in the order of a try; the same in every run."""
    order = list(range(len(asked.question.choices)))
    random.Random(f"{asked.key}.{condition}.{number}").shuffle(order)
    choices = tuple(asked.question.choices[i] for i in order)
    return asked.question._replace(choices=choices, answer=order.index(asked.question.answer))


@dataclass
class BlindTries:
    """
    The tries of a run, or of a rank's share.

    Args:
        journal (`Journal`): Of the run; the keys of the tries are `SEGMENT/qN.CONDITION.TRY`.
        prompt (`str`): Prompt of the answers.
        num_tries (`int`): Per question and condition.
        sampling (`Sampling`): Its length and seed are used.
        block_of (`Callable`): Segment id -> block, as `run_requests` takes it.
        is_part (`bool`): The questions are a rank's share.
    """

    journal: Journal
    prompt: str
    num_tries: int
    sampling: Sampling
    block_of: Callable[[str], int]
    is_part: bool

    def ask(self, engine: Engine, condition: str, questions: Sequence[Asked]) -> None:
        """Make the tries under a condition that the journal lacks."""
        tries = {_key(asked, condition, i): (asked, i) for asked in questions for i in range(self.num_tries)}

        def build(key: str) -> ChatRequest:
            asked, number = tries[key]
            question = shuffled(asked, condition, number)
            text = question_text(audio_question(question.text), question.choices, self.prompt)
            if condition == TEXT_ONLY:
                return ChatRequest(key, text)
            heard_s = min(asked.duration_s, engine.window_s or asked.duration_s)
            return ChatRequest(key, text, audio=np.zeros(max(1, round(heard_s * SAMPLING_RATE)), np.float32))

        run_requests(
            engine,
            list(tries),
            build,
            replace(self.sampling, n=1, temperature=TEMPERATURE),
            self.journal,
            f"answers without the clip ({condition})",
            block_of=lambda key: self.block_of(tries[key][0].segment_id),
            is_part=self.is_part,
        )

    def share_right(self, condition: str, asked: Asked) -> float | None:
        """
        The share of the answered tries of a question that were right. A cut answer counts as not right; a request that failed
        is left out.

        Returns:
            `float` or `None`: None where fewer than half of all tries have a complete answer. That is too little to say that
                the question needs its clip.
        """
        answers = [
            (number, completion)
            for number in range(self.num_tries)
            for completion in self.journal[_key(asked, condition, number)].get("completions", ())
        ]
        complete = [(number, each["text"]) for number, each in answers if each["finish_reason"] == "stop"]
        if 2 * len(complete) < self.num_tries:
            return None
        return sum(self._is_right(text, shuffled(asked, condition, number)) for number, text in complete) / len(answers)

    def _is_right(self, text: str, question: WrittenQuestion) -> bool:
        return is_correct(parse_answer(text, question.choices), question.answer, question.choices)


def _key(asked: Asked, condition: str, number: int) -> str:
    return f"{asked.key}.{condition}.{number}"
