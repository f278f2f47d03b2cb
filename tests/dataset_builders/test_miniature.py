"""The procedural world: what it asks, what it teaches the small models, and that its clips hold what was drawn."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from dataset_builders import miniature
from sightsound.building import miniature_world
from sightsound.cli import InputError
from sightsound.data.audio import decode_audio
from sightsound.data.frames import load_frames
from sightsound.data.parquet import AudioById, open_dataset
from sightsound.method.prompts import COT_PROMPT, TEACHER_PROMPT, heard_sounds
from sightsound.method.question_filters import OF_TEXT, Facts, dropped_by
from sightsound.method.question_writing import SHARES, read_reply
from tests.support.tiny import WORLD_SIZE, miniature_builders, run_script


def scenes_with_questions(count: int) -> list[tuple[miniature_world.Scene, miniature_world.Question]]:
    generators = [miniature_world.clip_generator(1, "test", index) for index in range(count)]
    scenes = [miniature_world.draw_scene(rng, traps=True) for rng in generators]
    return [(scene, miniature_world.ask(scene, rng)) for scene, rng in zip(scenes, generators, strict=True)]


def test_a_question_is_about_what_is_heard_and_has_one_right_choice() -> None:
    asked = scenes_with_questions(300)
    assert {question.type for _, question in asked} == {"Which", "First", "Last", "Count", "Compare"}
    for scene, question in asked:
        heard = [miniature_world.NAMES[kind] for kind in scene.sounds]
        assert len(question.choices) == len(set(question.choices)) == 4 and question.gold in question.choices
        if question.type == "Which":
            assert [choice for choice in question.choices if choice in heard] == [question.gold]
        elif question.type in ("First", "Last"):
            assert question.gold == heard[0 if question.type == "First" else -1] and len(set(heard)) > 1
        elif question.type == "Count":
            assert miniature_world.NUMBERS.index(question.gold) == len(heard)


@pytest.mark.parametrize("instruction", [COT_PROMPT, TEACHER_PROMPT])
def test_the_models_write_every_count_before_the_method_starts(instruction: str) -> None:
    """LoRA leaves the output head alone: a student that had never written "one" could not learn it from the traces."""
    rows = [miniature.reasoning_from_notes(np.random.default_rng(i), instruction) for i in range(400)]
    answers = [row["completion"].split("<answer>")[1].removesuffix("</answer>") for row in rows]
    for number in ("one", "two", "three"):
        assert answers.count(number) >= 5, number
    for name in miniature_world.NAMES:
        assert answers.count(name) >= 5, name


def test_a_transcript_is_read_back_as_the_sounds_of_the_scene() -> None:
    for scene, question in scenes_with_questions(50):
        names = [miniature_world.NAMES[kind] for kind in scene.sounds]
        assert heard_sounds(miniature_world.reasoning(scene.sounds, question)) == names


def test_the_teacher_grows_up_where_all_that_is_seen_is_heard() -> None:
    for index in range(50):
        scene = miniature_world.draw_scene(miniature_world.clip_generator(0, "teacher", index), traps=False)
        assert scene.seen == scene.heard


def test_a_writing_teacher_learns_questions_that_are_read_and_right(tiny_world: Path) -> None:
    """In the form that `questions.py` reads, about the scene of the video, of the type that is asked for where there is one."""
    prompt = miniature.WRITE_PROMPT.read_text(encoding="utf-8").removesuffix("\n")
    as_asked = 0
    for index in range(300):
        (row,) = miniature.build_questions_row(index, 0, prompt)
        (slot,) = read_reply(row["completion"], "stop", 1, SHARES)
        assert slot.question is not None and dropped_by(slot.question, Facts(), OF_TEXT) is None
        as_asked += f"1. {slot.question.type}: " in row["prompt"]
        heard = miniature_world.draw_scene(miniature_world.clip_generator(0, "teacher", index), traps=False).sounds
        names, answer = [miniature_world.NAMES[kind] for kind in heard], slot.question.choices[slot.question.answer]
        if slot.question.type == "which":
            assert [choice for choice in slot.question.choices if choice in names] == [answer]
        elif slot.question.type in ("first", "last"):
            assert answer == names[0 if slot.question.type == "first" else -1] and len(set(names)) > 1
        elif slot.question.type == "how_many":
            assert answer == miniature_world.NUMBERS[len(names)]
    assert 200 <= as_asked < 300, "another type where there are not two sounds to compare"
    rows = list(open_dataset(str(tiny_world / "pretraining" / "questions"), "train"))
    assert len(rows) == WORLD_SIZE["teacher"]
    assert all((tiny_world / "pretraining" / "questions" / row["video"]).is_file() for row in rows)


def test_a_world_of_an_earlier_version_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no pretraining/questions: it is of an earlier version; delete it and make it"):
        miniature_builders().load_rows(tmp_path, "questions")


def test_a_world_stays_the_same() -> None:
    """The figures in the README are of these scenes and questions: a change of the order of draws makes another world."""
    drawn = repr(scenes_with_questions(100))
    assert hashlib.sha256(drawn.encode()).hexdigest()[:16] == "035c9ac50c3f97f7"


def test_relation_tells_traps_from_clean_clips(tiny_world: Path) -> None:
    for row in json.loads((tiny_world / "train_qa.json").read_text()):
        scene = miniature_world.draw_scene(miniature_world.clip_generator(0, "train", row["id"]), traps=True)
        assert row["question_relation"] == ("Both" if scene.seen == scene.heard else "Sound")


def test_clips_hold_the_frames_and_the_sound_that_were_drawn(tiny_world: Path, tiny_dataset: Path) -> None:
    row = json.loads((tiny_world / "train_qa.json").read_text())[0]
    rng = miniature_world.clip_generator(0, "train", row["id"])
    scene = miniature_world.draw_scene(rng, traps=True)
    miniature_world.ask(scene, rng)
    waveform, frames = miniature_world.render_audio(scene, rng), miniature_world.render_video(scene, rng)
    clip = str(tiny_world / "clips" / f"{row['video_name']}.mp4")
    seen = load_frames(clip, num_frames=6, max_pixels=miniature_world.SIDE**2).pixels
    assert seen.shape == (6, 56, 56, 3) and np.abs(seen.astype(float) - frames).mean() < 12
    heard = decode_audio(AudioById(open_dataset(str(tiny_dataset), "train"))[str(row["id"])]).waveform
    assert abs(len(heard) - len(waveform)) <= 1
    assert np.abs(heard[:32_000] - waveform[: len(heard)].clip(-1, 1)).max() < 1e-3  # lossless but for 16 bits


def test_a_world_is_a_function_of_its_seed(tiny_world: Path, tmp_path: Path) -> None:
    sizes = {f"num_{part}": count for part, count in WORLD_SIZE.items()}
    for seed in (0, 1):
        done = run_script("dataset_builders/miniature.py", output_dir=tmp_path / str(seed), num_proc=2, seed=seed, **sizes)
        assert done.returncode == 0, done.stderr
    again, other = (json.loads((tmp_path / seed / "train_qa.json").read_text()) for seed in "01")
    assert again == json.loads((tiny_world / "train_qa.json").read_text()) != other
    files = ("data/train-00000-of-00001.parquet", "README.md")
    for file in (f"pretraining/{name}/{file}" for name in ("student", "teacher", "checker") for file in files):
        assert (tmp_path / "0" / file).read_bytes() == (tiny_world / file).read_bytes()
