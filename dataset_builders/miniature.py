"""
The miniature: a procedural audio-visual world, written as real .mp4 files and annotations in AVQA's own format.

    python dataset_builders/miniature.py --output_dir outputs/miniature/seed-0/world --seed 0

A clip lasts two seconds and has three slots. In each slot, one of six things may be seen (a sprite) and one may be heard (a
synthesised sound). The video can mislead: another thing is heard than is seen, a visible thing is silent, a sound comes from
off screen, or a sprite is murky. Questions are about what is *heard*. Wrong choices are preferably things that are *seen*.

It writes

- `train_qa.json`, `val_qa.json`, `test_qa.json` and `clips/*.mp4`, which `avqa_audio.py` reads like the real AVQA
  (`question_relation` is "Both" where seen and heard agree, else "Sound");
- `pretraining/`, on which the small models are trained before the method starts: sounds with captions (student), silent videos
  of a world in which exactly the visible things are heard (teacher), sounds with transcripts (checker), examples of
  reasoning (student and teacher), and questions about the teacher's videos (a teacher that also writes questions).
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sightsound.building.miniature_world import (
    NAMES,
    TYPE_SHARES,
    TYPES,
    WRITTEN_TYPES,
    Scene,
    ask,
    ask_for,
    caption,
    clip_generator,
    draw_scene,
    reasoning,
    render_audio,
    render_video,
    transcript,
    write_mp4,
    written_question,
)
from sightsound.building.workers import leave_with_parent, worker_pool
from sightsound.cli import parse_arguments, run
from sightsound.data.schema import SAMPLING_RATE
from sightsound.hub.cards import write_dataset_card
from sightsound.method.prompts import (
    CHECKER_TRANSCRIPT,
    COT_PROMPT,
    TEACHER_PROMPT,
    WRITE_FIELDS,
    choose_prompt,
    question_text,
    render_trace,
)
from sightsound.method.question_writing import write_prompt
from sightsound.stage import Stage, write_atomically


# The teacher is trained to answer this prompt: `questions.py --prompt_file recipes/miniature/write_questions.txt`.
WRITE_PROMPT = Path(__file__).parents[1] / "recipes" / "miniature" / "write_questions.txt"

Row = dict[str, Any]


@dataclass
class MiniatureArguments:
    output_dir: str = field(metadata={"help": "folder to write the world into"})
    num_train: int = field(default=2400, metadata={"help": "clips (and questions) of the training split", "minimum": 0})
    num_validation: int = field(default=200, metadata={"help": "clips of the validation split", "minimum": 0})
    num_test: int = field(default=600, metadata={"help": "held-out clips", "minimum": 0})
    num_student: int = field(default=2000, metadata={"help": "captioned sounds for the base student", "minimum": 0})
    num_teacher: int = field(default=3000, metadata={"help": "silent videos for the teacher", "minimum": 0})
    num_checker: int = field(default=500, metadata={"help": "transcribed sounds for the checker", "minimum": 0})
    seed: int = field(default=0, metadata={"help": "random seed; the same seed gives the same clips and questions"})
    num_proc: int = field(default=2, metadata={"help": "processes", "minimum": 1})


def build_clip(index: int, part: str, seed: int, clips: Path) -> Row:
    """One clip of an annotated split, and its row in AVQA's format."""
    rng = clip_generator(seed, part, index)
    scene = draw_scene(rng, traps=True)
    question = ask(scene, rng)
    name = f"{part[:2]}{seed % 1000:03d}{index:06d}_000000"
    waveform, frames = render_audio(scene, rng), render_video(scene, rng)
    if not (clips / f"{name}.mp4").exists():
        write_mp4(clips / f"{name}.mp4", frames, waveform)
    return {
        "id": index,
        "video_name": name,
        "video_id": index,
        "question_text": question.text,
        "multi_choice": question.choices,
        "answer": question.choices.index(question.gold),
        "question_relation": "Both" if scene.seen == scene.heard else "Sound",
        "question_type": question.type,
    }


def reasoning_from_notes(rng: np.random.Generator, instruction: str) -> Row:
    """A question answered from written notes, or without any: an example of reasoning without perception."""
    scene = draw_scene(rng, traps=False)
    # More clips with several sounds: questions about "first" and "last" would be rare, and they are the hardest. But some clips
    # with one sound: LoRA on the layers cannot teach a student the word "one" if its output head never wrote it.
    while len(set(scene.sounds)) < 2 and rng.random() < 0.75:
        scene = draw_scene(rng, traps=False)
    question = ask(scene, rng)
    text = question.text if instruction == TEACHER_PROMPT else question.text.replace("video", "audio")
    prompt = question_text(text, question.choices, instruction)
    # Half of the prompts have no notes: the answer then has to follow from the "I hear ..." of the completion.
    if rng.random() < 0.5:
        prompt = "Notes: " + ", then ".join(NAMES[c] for c in scene.sounds) + f".\n{prompt}"
    return {"prompt": prompt, "completion": render_trace(reasoning(scene.sounds, question), question.gold)}


def sounding_scene(rng: np.random.Generator) -> tuple[Scene, Row]:
    """A scene and its sound as an audio cell."""
    from sightsound.data.audio import encode_flac

    scene = draw_scene(rng, traps=True)
    return scene, {"bytes": encode_flac(render_audio(scene, rng)), "path": None}


def build_student_row(index: int, seed: int) -> list[Row]:
    """A sound with its caption, and questions answered from notes. No row has both."""
    rng = clip_generator(seed, "student", index)
    scene, audio = sounding_scene(rng)
    noted = [reasoning_from_notes(rng, COT_PROMPT) | {"audio": None} for _ in range(3)]
    return [{"prompt": "Describe the sounds.", "completion": caption(scene.sounds), "audio": audio}, *noted]


def build_teacher_row(index: int, seed: int, clips: Path) -> list[Row]:
    """A silent video with a transcript and two questions, and one question answered from notes."""
    rng = clip_generator(seed, "teacher", index)
    scene = draw_scene(rng, traps=False)
    path = clips / f"{index:06d}.mp4"
    frames = render_video(scene, rng)
    if not path.exists():
        write_mp4(path, frames, waveform=None)
    video = {"video": f"clips/{path.name}"}
    rows = [{"prompt": CHECKER_TRANSCRIPT, "completion": transcript(scene.sounds)} | video]
    for _ in range(2):
        question = ask(scene, rng)
        target = render_trace(reasoning(scene.sounds, question), question.gold)
        prompt = question_text(question.text, question.choices, TEACHER_PROMPT)
        rows.append({"prompt": prompt, "completion": target} | video)
    return [*rows, reasoning_from_notes(rng, TEACHER_PROMPT) | {"video": None}]


def build_questions_row(index: int, seed: int, prompt: str) -> list[Row]:
    """A teacher's video with a question that is written about it. The scene is drawn first, so it is that of the video."""
    scene = draw_scene(clip_generator(seed, "teacher", index), traps=False)
    rng = clip_generator(seed, "questions", index)
    kind = str(rng.choice(TYPES, p=TYPE_SHARES))
    asked = write_prompt(prompt, [WRITTEN_TYPES[kind]])
    video = f"../teacher/clips/{index:06d}.mp4"
    return [{"prompt": asked, "completion": written_question(ask_for(kind, scene, rng)), "video": video}]


def build_checker_row(index: int, seed: int) -> list[Row]:
    """A sound and its transcript: the small calibration set of the paper's section 3.2."""
    scene, audio = sounding_scene(clip_generator(seed, "checker", index))
    return [{"prompt": CHECKER_TRANSCRIPT, "completion": transcript(scene.sounds), "audio": audio}]


def write_pretraining(rows: list[Row], medium: str, folder: Path) -> None:
    """One pretraining corpus in the layout of a Hub dataset: `prompt`, `completion` and the clip."""
    from datasets import Audio, Features, Value

    from sightsound.data.parquet import write_parquet

    media = Audio(sampling_rate=SAMPLING_RATE) if medium == "audio" else Value("string")
    features = Features({"prompt": Value("string"), "completion": Value("string"), medium: media})
    write_parquet(rows, features, folder / "data" / "train-00000-of-00001.parquet")
    text = f"# Pretraining rows of the miniature's {folder.name}\n"
    write_dataset_card(folder, text, {"default": {"train": "data/*.parquet"}})


def main() -> None:
    args = parse_arguments(MiniatureArguments, __doc__)
    settings = {k: v for k, v in asdict(args).items() if k not in ("output_dir", "num_proc")}
    with Stage(args.output_dir, settings) as stage:
        if stage.complete:
            print(f"{stage.path} is complete")
            return
        from tqdm import tqdm

        clips, pretraining = stage.path / "clips", stage.path / "pretraining"
        (pretraining / "teacher" / "clips").mkdir(parents=True, exist_ok=True)
        clips.mkdir(exist_ok=True)
        splits = {"train": args.num_train, "val": args.num_validation, "test": args.num_test}
        write = choose_prompt(str(WRITE_PROMPT), "", WRITE_FIELDS).text
        teacher = partial(build_teacher_row, clips=pretraining / "teacher" / "clips")
        corpora: dict[str, tuple[Callable[..., list[Row]], int, str]] = {
            "student": (build_student_row, args.num_student, "audio"),
            "teacher": (teacher, args.num_teacher, "video"),
            "checker": (build_checker_row, args.num_checker, "audio"),
            "questions": (partial(build_questions_row, prompt=write), args.num_teacher, "video"),
        }
        with worker_pool(args.num_proc, leave_with_parent) as pool:
            for part, count in splits.items():
                build = partial(build_clip, part=part, seed=args.seed, clips=clips)
                built = pool.map(build, range(count), chunksize=50)
                rows = list(tqdm(built, total=count, desc=f"clips ({part})", mininterval=1.0))
                write_atomically(stage.path / f"{part}_qa.json", json.dumps(rows, indent=1))
            for name, (build_rows, count, medium) in corpora.items():
                made = pool.map(partial(build_rows, seed=args.seed), range(count), chunksize=50)
                nested = list(tqdm(made, total=count, desc=f"pretraining ({name})", mininterval=1.0))
                write_pretraining([row for rows in nested for row in rows], medium, pretraining / name)
        configs = {name: {"train": f"pretraining/{name}/data/*.parquet"} for name in corpora}
        text = "# The miniature's world\n\nClips and questions in AVQA's format, and what the models are pretrained on.\n"
        write_dataset_card(stage.path, text, configs)
        stage.finish()


if __name__ == "__main__":
    run(main)
