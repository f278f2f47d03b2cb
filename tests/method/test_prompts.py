"""Prompts: their form, what can be read back from them, and that no text changes without a new version."""

import hashlib

import pytest

from sightsound.cli import InputError
from sightsound.method import prompts
from sightsound.method.prompts import (
    QUESTION_FIELDS,
    Prompt,
    choose_prompt,
    heard_sounds,
    lettered,
    question_text,
    render_label,
    render_trace,
    user_message,
    with_audio,
)
from sightsound.method.question_writing import write_prompt


def test_choices_are_lettered_one_per_line_without_outer_spaces():
    assert lettered([" dog", "bell ", "fire engine"]) == "A. dog\nB. bell\nC. fire engine"


def test_a_question_is_followed_by_its_choices_and_the_instruction():
    text = question_text(" What is {x}? ", ["dog", "{bell}"], "{question}\n{choices}\nAnswer.")
    assert text == "What is {x}?\nA. dog\nB. {bell}\nAnswer.", "braces in the data are no fields"


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
    "claim": "Claim about this audio: a dog is heard\nIs the claim true? Answer yes or no.",
    "rewrite": "Notes: a dog, then a bell.\nWhat is heard?\nA. dog\nB. bell\nThe video is silent: infer its sound. Inside "
    '<think></think> start with "I hear", list the sounds in order and reason about them alone, then give one choice inside '
    "<answer></answer>.",
    "write_questions": "Watch this video. It is shown to you without its sound. Write 2 multiple-choice questions about what "
    "must be heard in it: a listener who has only the sound, and sees nothing, has to be able to answer them. Do not ask about "
    "colours, clothes, written text or anything else that is only seen, and do not give the answer away in the question.\n\n"
    "Write one question of each of these types:\n1. which: which of the four is heard\n2. why: why something is heard: what "
    "happens that makes the sound\n\nEach question has four short choices that differ clearly, and exactly one of them is "
    'right. Reply with JSON alone, in this form:\n{"questions": [{"type": "which", "question": "Which instrument is heard in '
    'the video?", "choices": ["a violin", "a trumpet", "drums", "a flute"], "answer": "a trumpet"}]}',
    "trace": "<think>I hear a dog.</think><answer>dog</answer>",
    "label": "<answer>dog</answer>",
}


def test_no_prompt_changes_without_a_new_version():
    of_questions = {
        "cot": prompts.COT_PROMPT,
        "direct": prompts.DIRECT_PROMPT,
        "teacher": prompts.TEACHER_PROMPT,
        "zero_shot_cot": prompts.ZERO_SHOT_COT_PROMPT,
        "zero_shot_audio_cot": prompts.ZERO_SHOT_AUDIO_COT_PROMPT,
        "cot_distill": prompts.COT_DISTILL_PROMPT,
    }
    fields = {"think": "I hear a dog."}
    now = {name: question_text("What is heard?", ["dog", "bell"], text, **fields) for name, text in of_questions.items()}
    now |= {"yes_no": prompts.CHECKER_YES_NO.format(think="I hear a dog."), "transcript": prompts.CHECKER_TRANSCRIPT}
    now |= {"claim": prompts.CHECKER_CLAIM.format(claim="a dog is heard")}
    now["rewrite"] = question_text("What is heard?", ["dog", "bell"], prompts.REWRITE_PROMPT, claims="a dog, then a bell")
    now["write_questions"] = write_prompt(prompts.WRITE_QUESTIONS_PROMPT, ["which", "why"])
    now |= {"trace": render_trace("I hear a dog.", "dog"), "label": render_label("dog")}
    assert now == SNAPSHOT, (
        "a prompt changed: bump PROMPT_VERSION (a new one needs none), then update this snapshot and the digest"
    )
    # Ties the snapshot to the version, so that editing the snapshot alone is not enough.
    digest = hashlib.sha256("\n".join([prompts.PROMPT_VERSION, *SNAPSHOT.values()]).encode()).hexdigest()[:16]
    assert (prompts.PROMPT_VERSION, digest) == ("1", "a81e9f82135c1d0a")


# Prompts with other fields, by their file's digest: a change is a new `PROMPT_VERSION` here too.
OTHERS = {"judge_rubric": "15c6a65bff317abc"}


def test_every_text_of_the_package_is_a_prompt_that_is_pinned_above():
    files = {file.stem: file.read_text() for file in prompts._TEXTS.iterdir()}
    assert all(text.endswith("\n") for text in files.values())
    others = {name: files.pop(name) for name in OTHERS}
    assert {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in others.items()} == OTHERS
    assert len(files) == len(SNAPSHOT) - 2
    pinned = {" ".join(text.split()) for text in SNAPSHOT.values()}
    shown = {"question": "What is heard?", "choices": "A. dog B. bell", "think": "I hear a dog."}
    shown |= {"claim": "a dog is heard", "claims": "a dog, then a bell", "num_questions": "2"}
    shown["types"] = SNAPSHOT["write_questions"].split("types:\n")[1].split("\n\n")[0]
    assert {" ".join(text.format(**shown).split()) for text in files.values()} <= pinned


def test_a_prompt_is_a_file_with_named_fields_whose_digest_is_recorded(tmp_path):
    content = b"\xef\xbb\xbfListen.\r\n{question}\r\n{choices}\r\nWrite {{}} nowhere.\r\n"
    (tmp_path / "short.v2.txt").write_bytes(content)
    prompt = choose_prompt(str(tmp_path / "short.v2.txt"), "", QUESTION_FIELDS)
    assert question_text("What?", ["dog"], prompt.text) == "Listen.\nWhat?\nA. dog\nWrite {} nowhere."
    digest = hashlib.sha256(content).hexdigest()
    assert prompt.settings == {"prompt_version": f"short.v2@{digest[:12]}", "prompt_sha256": digest}


def test_the_default_prompt_adds_nothing_to_what_is_recorded():
    assert choose_prompt(None, "Listen.", ()) == Prompt("Listen.", "1", None)
    assert Prompt("Listen.").settings == {"prompt_version": "1"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty; write a prompt with \{question\} and \{choices\}"),
        (b" \n", "is empty"),
        ("{question}\n{choices}\nRéponds.".encode("latin-1"), r"is not UTF-8 \(byte 22\); save it as UTF-8"),
        (b"{question}", r"lacks the field \{choices\}; write a prompt with \{question\} and \{choices\}"),
        (b"{question} {choices} {trace}", r"has the unknown field \{trace\}; here a prompt is with"),
        (b"{question} {choices} {}", r"unknown field \{\}"),
        (b"{question} {choices.__class__}", r"unknown field \{choices.__class__\}"),
        (b"{question} {choices!r:>{width}}", r"unknown field \{choices!r:>\{width\}\}"),
        (b"{question} {choices} {", "write a brace that is no field twice, as {{ and }}"),
        (b'{question} {choices} {"answer": 1}', 'unknown field {"answer": 1}'),
    ],
)
def test_a_prompt_file_that_cannot_be_used_is_one_clear_error(content, message, tmp_path):
    (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(InputError, match=f"^--prompt_file {tmp_path}/p.txt:? .*{message}"):
        choose_prompt(str(tmp_path / "p.txt"), "", QUESTION_FIELDS)


def test_a_prompt_file_that_is_not_there_is_named(tmp_path):
    for file in (tmp_path, tmp_path / "gone.txt"):
        with pytest.raises(InputError, match=f"--prompt_file {file} cannot be read"):
            choose_prompt(str(file), "", ())


def test_a_prompt_without_fields_says_so(tmp_path):
    (tmp_path / "p.txt").write_text("List the sounds: {think}")
    with pytest.raises(InputError, match=r"unknown field \{think\}; here a prompt is without fields"):
        choose_prompt(str(tmp_path / "p.txt"), "", ())
