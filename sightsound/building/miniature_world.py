"""
The world of the miniature: scenes, how they look and sound, and questions about them with reasoned answers.

`dataset_builders/miniature.py` writes it as clips and annotations. Every function that draws takes a generator, and the order
of its draws decides the bytes of a world: keep it.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sightsound.data.schema import SAMPLING_RATE


DURATION_S = 2.0
NUM_SLOTS = 3
FRAMES_PER_SLOT = 2
FPS = NUM_SLOTS * FRAMES_PER_SLOT / DURATION_S
SIDE = 56  # pixels; four patches of Qwen2.5-VL
BELL, DRUM, SIREN, WHISTLE, DOG, ENGINE = range(6)
NAMES = ("bell", "drum", "siren", "whistle", "dog", "engine")
# The base student describes sounds in these words; it does not know the names yet.
DESCRIPTIONS = ("bright ringing", "low thump", "wavering wail", "high piping", "rough yelps", "deep hum")
NUMBERS = ("zero", "one", "two", "three", "four")
HEARD_INSTEAD = {DOG: WHISTLE, SIREN: ENGINE, DRUM: BELL}  # seen -> heard
TRAP_RATE = 0.6
MURKY_RATE = 0.15
TYPES = ("Which", "First", "Last", "Count", "Compare")  # of questions
TYPE_SHARES = (0.25, 0.2, 0.2, 0.25, 0.1)
# The same in `sightsound/method/question_writing.py`.
WRITTEN_TYPES = dict(zip(TYPES, ("which", "first", "last", "how_many", "compare"), strict=True))
# CLIP's mean pixel: the background is then close to zero after the processor's normalisation.
BACKGROUND = np.array([122.0, 117.0, 104.0])
COLOURS = np.array([[245, 210, 30], [215, 30, 35], [35, 60, 235], [30, 205, 70], [70, 35, 10], [250, 250, 250]], float)


@dataclass
class Scene:
    """What is seen and what is heard in each slot (None: nothing), and which sprites are murky."""

    seen: list[int | None]
    heard: list[int | None]
    murky: list[bool]

    @property
    def sounds(self) -> list[int]:
        return [c for c in self.heard if c is not None]

    @property
    def sights(self) -> list[int]:
        return [c for c in self.seen if c is not None]


@dataclass
class Question:
    """A question about a scene; `compared` are the two things of a Compare question."""

    type: str
    text: str
    choices: list[str]
    gold: str
    compared: tuple[int, int] | None = None


def synthesise(kind: int, rng: np.random.Generator) -> np.ndarray:
    """One sound event of 0.55 s at 16 kHz, peak 1."""
    n = int(0.55 * SAMPLING_RATE)
    t = np.arange(n) / SAMPLING_RATE
    phase = rng.uniform(0, 2 * np.pi)
    y = np.zeros(n)
    if kind == BELL:
        f = rng.uniform(700, 1000)
        partials = ((1.0, 1.0, 5), (0.6, 2.76, 8), (0.35, 5.4, 14))  # gain, ratio, decay per second
        y = sum(a * np.sin(2 * np.pi * f * m * t + phase) * np.exp(-t * d) for a, m, d in partials)
    elif kind == DRUM:
        f = rng.uniform(70, 120)
        for onset in (0, int(rng.uniform(0.2, 0.28) * SAMPLING_RATE)):
            u = t[: n - onset]
            y[onset:] += np.sin(2 * np.pi * f * u * (1 - 0.3 * u)) * np.exp(-u * 14) * 1.5
            y[onset:] += rng.normal(0, 0.5, n - onset) * np.exp(-u * 60)
    elif kind == SIREN:
        rate, f = rng.uniform(3, 5), rng.uniform(800, 1000)
        y = np.sin(2 * np.pi * f * t - (350 / rate) * np.cos(2 * np.pi * rate * t + phase))
    elif kind == WHISTLE:
        f, rate = rng.uniform(2300, 3300), rng.uniform(15, 25)
        y = np.sin(2 * np.pi * f * t + 3 * np.sin(2 * np.pi * rate * t)) * np.minimum(1, t * 30)
    elif kind == DOG:
        m = int(0.18 * SAMPLING_RATE)
        u = np.arange(m) / SAMPLING_RATE
        envelope = np.sin(np.pi * u / 0.18)
        for onset in (0, int(rng.uniform(0.24, 0.3) * SAMPLING_RATE)):
            f = rng.uniform(350, 550)
            p = 2 * np.pi * (f * u - f * 1.2 * u**2)
            bark = (sum(np.sin(k * p) / k for k in range(1, 6)) + rng.normal(0, 0.3, m)) * envelope
            y[onset : onset + m] += bark[: n - onset]
    else:
        f, rate = rng.uniform(45, 80), rng.uniform(8, 14)
        y = sum(np.sin(2 * np.pi * f * k * t + phase * k) / k**0.7 for k in range(1, 9))
        y = y * (1 + 0.4 * np.sin(2 * np.pi * rate * t))
    return y / (np.abs(y).max() + 1e-6)


def render_audio(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """The clip's sound: float32 `(32000,)`, events of varying loudness over noise."""
    n = int(SAMPLING_RATE * DURATION_S)
    y = np.zeros(n)
    for slot, kind in enumerate(scene.heard):
        if kind is None:
            continue
        onset = max(0, int((0.05 + 0.64 * slot + rng.uniform(-0.04, 0.04)) * SAMPLING_RATE))
        event = synthesise(kind, rng) * rng.uniform(0.25, 1.0)
        m = min(len(event), n - onset)
        y[onset : onset + m] += event[:m]
    return (y * 0.5 + rng.normal(0, 10 ** rng.uniform(-2.2, -1.1), n)).astype(np.float32)


def _sprite(kind: int, dx: np.ndarray, dy: np.ndarray, r: float) -> np.ndarray:
    """Mask of a sprite of radius `r` pixels centred on (0, 0)."""
    if kind == BELL:
        return (np.abs(dx) < (dy + r) * 0.6) & (dy < r) & (dy > -r)
    if kind == DRUM:
        return dx**2 + dy**2 < r * r * 0.8
    if kind == SIREN:
        return (np.abs(dx) < r * 0.8) & (np.abs(dy) < r * 0.8)
    if kind == WHISTLE:
        return (np.abs(dx) < r * 1.1) & (np.abs(dy) < r * 0.3)
    if kind == DOG:
        return (dx / 1.3) ** 2 + (dy / 0.7) ** 2 < r * r * 0.9
    return (np.abs(dx) < r * 1.1) & (np.abs(dy) < r * 0.7)


def render_video(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """The clip's frames: uint8 `(6, 56, 56, 3)`."""
    frames = []
    rows, columns = np.mgrid[:SIDE, :SIDE]
    background = BACKGROUND + rng.normal(0, 7, 3)
    for kind, murky in zip(scene.seen, scene.murky, strict=True):
        x, y = rng.uniform(16, SIDE - 16, 2)
        r = rng.uniform(12, 17)
        for step in range(FRAMES_PER_SLOT):
            frame = np.tile(background, (SIDE, SIDE, 1)) + rng.normal(0, 6, (SIDE, SIDE, 3))
            if kind is not None:
                drift = (step * 6 - 3) * rng.uniform(0.5, 1)
                mask = _sprite(kind, columns - (x + drift), rows - y, r)
                opacity = 10 ** rng.uniform(-1.3, -0.5) if murky else 1.0
                frame[mask] = (1 - opacity) * frame[mask] + opacity * COLOURS[kind]
            if murky:
                frame = frame * 0.6 + BACKGROUND * 0.4 + rng.normal(0, 22, frame.shape)
            frames.append(frame)
    return np.stack(frames).clip(0, 255).astype(np.uint8)


def clip_generator(seed: int, part: str, index: int) -> np.random.Generator:
    """Every clip has its own generator, so the world depends neither on `num_proc` nor on kills."""
    return np.random.default_rng([seed, *part.encode(), index])


def draw_scene(rng: np.random.Generator, traps: bool) -> Scene:
    """A random scene. Without traps, exactly what is seen is heard: the teacher is pretrained in such a world."""
    while True:
        count = rng.choice([1, 2, 3], p=[0.2, 0.35, 0.45])
        slots = rng.choice(NUM_SLOTS, count, replace=False)
        pool = rng.choice(len(NAMES), 2 if rng.random() < 0.6 else 3, replace=False)
        seen: list[int | None] = [int(rng.choice(pool)) if slot in slots else None for slot in range(NUM_SLOTS)]
        heard = list(seen)
        if traps:
            for slot, kind in enumerate(seen):
                u = rng.random()
                if kind in HEARD_INSTEAD and u < TRAP_RATE:
                    heard[slot] = HEARD_INSTEAD[kind]
                elif kind is not None and u > 1 - TRAP_RATE * 0.25:
                    heard[slot] = None  # seen, silent
                elif kind is None and u < TRAP_RATE * 0.15:
                    heard[slot] = int(rng.integers(len(NAMES)))  # heard off screen
        if any(kind is not None for kind in heard):
            return Scene(seen, heard, [bool(rng.random() < MURKY_RATE) for _ in range(NUM_SLOTS)])


def ask(scene: Scene, rng: np.random.Generator) -> Question:
    """A question about what is heard in the scene, with the gold answer."""
    return ask_for(str(rng.choice(TYPES, p=TYPE_SHARES)), scene, rng)


def ask_for(kind: str, scene: Scene, rng: np.random.Generator) -> Question:
    """The same, of a given type; of another one where the sounds are too few for first and last."""
    sounds, sights = scene.sounds, sorted(set(scene.sights))
    distinct = sorted(set(sounds))
    while kind in ("First", "Last") and len(distinct) < 2:
        kind = str(rng.choice(TYPES, p=TYPE_SHARES))

    def choices(gold: int, banned: list[int]) -> list[str]:
        ranked = dict.fromkeys([*rng.permutation(sights).tolist(), *rng.permutation(len(NAMES)).tolist()])
        distractors = [int(c) for c in ranked if c != gold and c not in banned][:3]
        return [NAMES[c] for c in rng.permutation([*distractors, gold])]

    if kind == "Which":
        gold = int(rng.choice(distinct))
        return Question(kind, "Which of these is heard in the video?", choices(gold, distinct), NAMES[gold])
    if kind in ("First", "Last"):
        gold = sounds[0 if kind == "First" else -1]
        return Question(kind, f"Which sound is heard {kind.lower()} in the video?", choices(gold, []), NAMES[gold])
    if kind == "Count":
        options = [str(n) for n in rng.permutation(NUMBERS[1:])]
        return Question(kind, "How many sounds are heard in the video?", options, NUMBERS[len(sounds)])
    present = rng.permutation(sorted(set(sounds + sights))).tolist()[: 2 if rng.random() < 0.6 else 1]
    a, b = [int(c) for c in dict.fromkeys([*present, *rng.permutation(len(NAMES)).tolist()])][:2]
    count_a, count_b = sounds.count(a), sounds.count(b)
    more = NAMES[a] if count_a > count_b else NAMES[b]
    gold_text = "neither" if count_a == count_b == 0 else "equal" if count_a == count_b else more
    options = [str(o) for o in rng.permutation([NAMES[a], NAMES[b], "equal", "neither"])]
    text = f"Which is heard more often in the video, the {NAMES[a]} or the {NAMES[b]}?"
    return Question(kind, text, options, gold_text, compared=(a, b))


def transcript(sounds: list[int]) -> str:
    """
    "I hear dog, then bell."

    Without articles, so that other words precede the first sound than the later ones. One attention head of a tiny model can
    use this.
    """
    return "I hear " + ", then ".join(NAMES[c] for c in sounds) + "." if sounds else "I hear nothing."


def reasoning(sounds: list[int], question: Question) -> str:
    """A chain of thought that leads from the sounds to the gold answer."""
    if question.type == "Count":
        step = f"That makes {question.gold}."
    elif question.compared is not None:
        a, b = question.compared
        step = f"The {NAMES[a]} is heard {NUMBERS[sounds.count(a)]} times and the {NAMES[b]} {NUMBERS[sounds.count(b)]} times."
    elif question.type in ("First", "Last"):
        step = f"The {question.type.lower()} sound is the {question.gold}."
    else:
        step = f"Of the choices, only the {question.gold} is heard."
    return f"{transcript(sounds)} {step}"


def written_question(question: Question) -> str:
    """
    A question in the form that a teacher writes it in, as JSON.

    Its choices are in a fixed order, with a thing that is heard first: a tiny model that had to learn any order would write
    choices twice. `questions.py` shuffles them.
    """
    order = [question.gold] if question.type in ("Which", "First", "Last") else []
    order += [NAMES[c] for c in question.compared or ()] or [*NAMES, *NUMBERS]
    choices = sorted(question.choices, key=[*order, "equal", "neither"].index)
    written = {"type": WRITTEN_TYPES[question.type], "question": question.text, "choices": choices, "answer": question.gold}
    return json.dumps({"questions": [written]})


def caption(sounds: list[int]) -> str:
    """The caption of a clip for the base student: acoustic words, no names."""
    return "A " + ", then a ".join(DESCRIPTIONS[c] for c in sounds) + "."


def write_mp4(path: Path, frames: np.ndarray, waveform: np.ndarray | None) -> None:
    """
    Encode one clip: H.264 and, unless silent, ALAC (lossless: the miniature measures the method, not a codec).
    """
    import av

    temporary = path.with_name(f".{path.name}.tmp")
    with av.open(str(temporary), "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=int(FPS), options={"crf": "8", "preset": "ultrafast", "threads": "1"})
        video.width = video.height = SIDE
        video.pix_fmt = "yuv420p"
        audio = None
        if waveform is not None:
            audio = container.add_stream("alac", rate=SAMPLING_RATE)
            audio.layout = "mono"
        for pixels in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode())
        if audio is not None and waveform is not None:
            samples = (waveform.clip(-1, 1) * 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(samples[None], format="s16p", layout="mono")
            frame.sample_rate = SAMPLING_RATE
            fifo = av.AudioFifo()
            fifo.write(frame)
            while (block := fifo.read(audio.codec_context.frame_size or 4096, partial=True)) is not None:
                container.mux(audio.encode(block))
            container.mux(audio.encode())
    os.replace(temporary, path)
