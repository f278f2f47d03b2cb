"""Rewards agree with the grader, for text and for conversational completions."""

import pytest

from sightsound.cli import InputError
from sightsound.method import rewards
from sightsound.method.rewards import PAPER_REWARDS, accuracy_reward, find_rewards, format_reward, no_reward_warning


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

    assert no_reward_warning([step(0.0, 0.0), {"train_runtime": 1.0}]).startswith("WITHOUT REWARD: no logged step")
    assert "(no other reward was earned)" in no_reward_warning([step(0.0, 0.0)])
    assert "(format_reward was earned)" in no_reward_warning([step(0.0, 0.0), step(0.0, 1.0)])
    assert no_reward_warning([step(0.0, 1.0), step(0.125, 0.0)]) is None and no_reward_warning([]) is None
    assert no_reward_warning([{"rewards/format_reward/mean": 0.0}]) is None, "without the accuracy reward nothing is missing"


def test_a_reward_is_added_in_the_module_alone(monkeypatch):
    def short_reward(completions, **_):
        return [float(len(text) < 5) for text in completions]

    monkeypatch.setattr(rewards, "short_reward", short_reward, raising=False)
    assert find_rewards(PAPER_REWARDS) == [accuracy_reward, format_reward]
    assert find_rewards(["short_reward", "accuracy_reward"], [0.5, 1.0]) == [short_reward, accuracy_reward]


@pytest.mark.parametrize(
    ("names", "weights", "message"),
    [
        (["speed_reward"], None, "unknown reward 'speed_reward'; expected one or more of accuracy_reward, format_reward"),
        (["find_rewards"], None, "unknown reward 'find_rewards'"),
        ([], None, r"reward_funcs: \[\]; expected one or more of accuracy_reward, format_reward, each once"),
        (["format_reward", "format_reward"], None, "each once"),
        (PAPER_REWARDS, [1.0], "reward_weights has 1 numbers for 2 reward_funcs; give one for each"),
    ],
)
def test_rewards_that_cannot_be_used_are_one_clear_error(names, weights, message):
    with pytest.raises(InputError, match=message):
        find_rewards(names, weights)
