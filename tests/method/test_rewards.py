"""The rewards are the grader's, for text and for conversational completions."""

import pytest

from sightsound.method.rewards import accuracy_reward, format_reward, without_reward


CHOICES = ["dog", "bell"]
RIGHT = "<think>it rings</think><answer>bell</answer>"
WRONG = "<think>it barks</think><answer>dog</answer>"
LETTER = "B"
UNANSWERED = "<think>it rings, so bell"


def chat(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize("wrap", [str, chat])
def test_accuracy_is_agreement_with_the_teacher(wrap):
    completions = [wrap(text) for text in (RIGHT, WRONG, LETTER, UNANSWERED)]
    rewards = accuracy_reward(completions, teacher_answer=[1] * 4, choices=[CHOICES] * 4, prompts=None)
    assert rewards == [1.0, 0.0, 1.0, 0.0]


def test_each_completion_is_judged_by_its_own_question():
    rewards = accuracy_reward([RIGHT, RIGHT], teacher_answer=[1, 2], choices=[CHOICES, ["bell", "dog", "cat"]])
    assert rewards == [1.0, 0.0]


def test_a_choice_with_the_teachers_text_is_rewarded():
    assert accuracy_reward(["A"], teacher_answer=[1], choices=[["Bell", "bell "]]) == [1.0]


@pytest.mark.parametrize("wrap", [str, chat])
def test_format_is_rewarded_whatever_the_answer(wrap):
    completions = [wrap(text) for text in (RIGHT, WRONG, LETTER, UNANSWERED)]
    assert format_reward(completions, teacher_answer=[1] * 4) == [1.0, 1.0, 0.0, 0.0]


def test_rows_that_do_not_line_up_are_an_error():
    with pytest.raises(ValueError, match="shorter"):
        accuracy_reward([RIGHT, RIGHT], teacher_answer=[1], choices=[CHOICES])


def test_a_run_that_earned_no_reward_says_so():
    def step(accuracy: float, form: float) -> dict[str, float]:
        return {"step": 1, "rewards/accuracy_reward/mean": accuracy, "rewards/format_reward/mean": form}

    assert without_reward([step(0.0, 0.0), {"train_runtime": 1.0}]).startswith("WITHOUT REWARD: in no logged step")
    assert "nor was any format reward" in without_reward([step(0.0, 0.0)])
    assert "only format rewards were earned" in without_reward([step(0.0, 0.0), step(0.0, 1.0)])
    assert without_reward([step(0.0, 1.0), step(0.125, 0.0)]) is None and without_reward([]) is None
