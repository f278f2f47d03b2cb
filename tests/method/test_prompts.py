"""Prompts: their form, what can be read back from them, and that no text changes without a new version."""

import hashlib

import pytest

from sightsound.method import prompts
from sightsound.method.prompts import (
    heard_sounds,
    lettered,
    question_text,
    render_label,
    render_trace,
    user_message,
    with_audio,
)


def test_choices_are_lettered_one_per_line_without_outer_spaces():
    assert lettered([" dog", "bell ", "fire engine"]) == "A. dog\nB. bell\nC. fire engine"


def test_a_question_is_followed_by_its_choices_and_the_instruction():
    assert question_text(" What is heard? ", ["dog", "bell"], "Answer.") == "What is heard?\nA. dog\nB. bell\nAnswer."


@pytest.mark.parametrize(
    ("text", "sounds"),
    [
        ("I hear a dog, then a bell.", ["dog", "bell"]),
        ("I hear a dog and then a bell.", ["dog", "bell"]),
        ("I hear a dog, and then the bell, then an engine.", ["dog", "bell", "engine"]),
        ("I hear a man, a woman, and a child.", ["man", "woman", "child"]),
        ("I hear a Fire Engine. The bell is not heard.", ["fire engine"]),
        ("<think>i hear a bandsaw\nthen thunder", ["bandsaw", "thunder"]),
        ("I hear a dog, then a dog.", ["dog", "dog"]),
        ("I hear nothing.", []),
        ("I hear nothing", []),
    ],
)
def test_claimed_sounds_are_read_in_order(text, sounds):
    assert heard_sounds(text) == sounds


@pytest.mark.parametrize("text", ["", "A dog barks.", "They hear a dog.", "yes"])
def test_a_text_without_a_claim_claims_none(text):
    assert heard_sounds(text) is None


def test_a_user_message_puts_the_clip_before_the_text():
    assert user_message("hi") == [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    assert user_message("hi", "video")[0]["content"] == [{"type": "video"}, {"type": "text", "text": "hi"}]
    assert [part["type"] for part in user_message("hi", "audio", "video")[0]["content"]] == ["audio", "video", "text"]


def test_only_the_user_turn_of_stored_messages_gets_audio():
    stored = [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "a dog"}]
    assert with_audio(stored) == [
        {"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "what?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a dog"}]},
    ]
    # The Qwen2-Audio template takes any part that has an "audio" key, even None, for a clip.
    assert all("audio" not in part for message in with_audio(stored) for part in message["content"])


SNAPSHOT = {
    "cot": "What is heard?\nA. dog\nB. bell\nThink about what you hear inside <think></think>, then give one choice inside "
    "<answer></answer>.",
    "direct": "What is heard?\nA. dog\nB. bell\nGive one choice inside <answer></answer>.",
    "teacher": "What is heard?\nA. dog\nB. bell\nThe video is silent: infer its sound. Inside <think></think> start with "
    '"I hear", list the sounds in order and reason about them alone, then give one choice inside <answer></answer>.',
    "zero_shot_cot": "What is heard?\nA. dog\nB. bell\nLet's think step by step. Write your reasoning inside <think></think>, "
    "then give one choice inside <answer></answer>.",
    "zero_shot_audio_cot": "What is heard?\nA. dog\nB. bell\nLet's think step by step about the sounds that can be heard. "
    "Write your reasoning inside <think></think>, then give one choice inside <answer></answer>.",
    "cot_distill": "What is heard?\nA. dog\nB. bell\nSomeone who saw the video without its sound wrote about the sound:\n"
    "I hear a dog.\nListen, use what fits, then give one choice inside <answer></answer>.",
    "yes_no": "A listener wrote about this audio:\nI hear a dog.\nIs every sound that the listener claims really heard? "
    "Answer yes or no.",
    "transcript": 'List the sounds in order, starting with "I hear".',
    "trace": "<think>I hear a dog.</think><answer>dog</answer>",
    "label": "<answer>dog</answer>",
}


def test_no_prompt_changes_without_a_new_version():
    instructions = {
        "cot": prompts.COT_INSTRUCTION,
        "direct": prompts.DIRECT_INSTRUCTION,
        "teacher": prompts.TEACHER_INSTRUCTION,
        "zero_shot_cot": prompts.ZERO_SHOT_COT_INSTRUCTION,
        "zero_shot_audio_cot": prompts.ZERO_SHOT_AUDIO_COT_INSTRUCTION,
        "cot_distill": prompts.COT_DISTILL_INSTRUCTION.format(think="I hear a dog."),
    }
    now = {name: question_text("What is heard?", ["dog", "bell"], text) for name, text in instructions.items()}
    now |= {"yes_no": prompts.CHECKER_YES_NO.format(think="I hear a dog."), "transcript": prompts.CHECKER_TRANSCRIPT}
    now |= {"trace": render_trace("I hear a dog.", "dog"), "label": render_label("dog")}
    assert now == SNAPSHOT, (
        "a prompt changed: bump PROMPT_VERSION (a new one needs none), then update this snapshot and the digest"
    )
    # Ties the snapshot to the version, so that editing the snapshot alone is not enough.
    digest = hashlib.sha256("\n".join([prompts.PROMPT_VERSION, *SNAPSHOT.values()]).encode()).hexdigest()[:16]
    assert (prompts.PROMPT_VERSION, digest) == ("1", "6cfc6dc3504249a1")
