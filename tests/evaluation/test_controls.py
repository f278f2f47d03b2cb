"""Controls: position bias, and the deaf model that the report's first line has to name."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from evaluation import compare, report
from evaluation import run as generate
from evaluation.running.controls import CONTROLS, shuffle_choices
from evaluation.scoring.audio_use import audio_use_statement, consistency, controls_without_gain, gains_over
from evaluation.scoring.protocols import Decision
from sightsound.cli import InputError
from sightsound.data import parquet, schema
from sightsound.data.audio import encode_flac
from sightsound.engines.transformers import TransformersEngine
from sightsound.hub.cards import write_dataset_card
from sightsound.method.prompts import DIRECT_PROMPT, question_text, render_label


@pytest.mark.parametrize("count", [2, 4, 26])
def test_shuffling_moves_every_choice_and_is_the_same_for_every_model(count):
    orders = set()
    for i in range(20):
        row = {"id": f"{i}", "choices": [f"c{j}" for j in range(count)], "answer": i % count}
        asked = shuffle_choices(row)
        assert asked == shuffle_choices(row) and row["choices"] == [f"c{j}" for j in range(count)]
        assert asked["choices"][asked["answer"]] == f"c{row['answer']}"
        assert all(new != old for new, old in zip(asked["choices"], row["choices"], strict=True))
        assert sorted(asked["choices"]) == sorted(row["choices"])
        orders.add(tuple(asked["choices"]))
    assert len(orders) > 1 or count == 2


def choosing(rows: list[dict], letter: int | None) -> list[Decision]:
    """Always the same letter; None: always the right choice."""
    texts = [row["choices"][row["answer"] if letter is None else letter] for row in rows]
    return [Decision(t == row["choices"][row["answer"]], "letter", t) for t, row in zip(texts, rows, strict=True)]


def test_a_model_that_goes_by_the_letter_never_keeps_its_choice():
    rows = [{"id": str(i), "choices": ["dog", "bell", "drum", "siren"], "answer": i % 4} for i in range(40)]
    moved = [shuffle_choices(row) for row in rows]
    assert consistency(choosing(rows, 1), choosing(moved, 1))["same_choice"] == 0.0
    assert consistency(choosing(rows, None), choosing(moved, None))["same_choice"] == 100.0
    silent = [Decision(False, "none")] * 40
    assert consistency(silent, silent)["same_choice"] == 0.0


def decided(*right: bool) -> list[Decision]:
    return [Decision(value, "letter") for value in right]


def gains_of(decisions: dict[str, list[Decision]], clips: list[str]) -> dict[str, dict]:
    """Over all questions."""
    return gains_over(decisions, clips, dict.fromkeys(decisions, range(len(clips))))


def test_deaf_is_no_better_than_any_control_of_sound():
    clips = [str(i) for i in range(40)]
    heard, chance, none = [True] * 36 + [False] * 4, [i % 2 == 0 for i in range(40)], [False] * 40
    hears = gains_of({"none": decided(*heard), "silent": decided(*chance), "swapped": decided(*none)}, clips)
    assert controls_without_gain(hears) == []
    same = {"none": decided(*heard), "silent": decided(*none), "swapped": decided(*heard), "text_only": decided(*heard)}
    assert controls_without_gain(gains_of(same, clips)) == ["swapped"], "text alone is another question"
    lucky = gains_of({"none": decided(*chance), "silent": decided(False, *chance[1:])}, clips)
    assert lucky["silent"]["difference"] == 2.5 and controls_without_gain(lucky) == ["silent"], "one question more is chance"


def figures(n: int, **gains: tuple[int, float]) -> dict:
    """A run's figures, as far as the verdict reads them: of each control the pairs, and the lower end of the gain."""
    message = {name: {"n": pairs, "difference": low + 5, "low": low, "high": low + 10} for name, (pairs, low) in gains.items()}
    return {"results": {"none": {"n": n}}, "gains": message}


def test_the_verdict_names_who_is_deaf_and_who_was_not_tested():
    line = audio_use_statement(
        [("a", figures(40, silent=(40, -5.0))), ("b", figures(40)), ("c", figures(40, text_only=(40, 1.0)))]
    )
    assert line == (
        "DEAF: a does no better with the clip than with silent audio (+0.0 points, 95 % interval [-5.0, +5.0], n = 40). "
        "There is no sign that the model uses the audio. Audio use not tested: b, c. Run with --controls silent swapped."
    )
    assert audio_use_statement([]) == "Audio use not tested: no run received audio."


def test_who_answers_nothing_is_not_called_deaf():
    mute = figures(40, silent=(40, -5.0))
    mute["results"]["none"]["unanswered"] = 100.0
    message = "ANSWERS NOTHING: a answers none of its 40 questions. That does not show whether it uses the sound: look at the"
    assert audio_use_statement([("a", mute)]).startswith(message)
    line = audio_use_statement([("a", mute), ("b", figures(40, silent=(40, 5.0)))])
    assert line.startswith("Not deaf: every other run does better") and message in line
    line = audio_use_statement([("a", mute), ("b", figures(40, silent=(40, -5.0))), ("c", figures(40))])
    assert line.startswith("DEAF: b does no better") and "Audio use not tested: c." in line and message in line


def test_the_verdict_says_where_it_rests_on_a_part_of_the_questions():
    line = audio_use_statement([("a", figures(1000, silent=(1000, 5.0), swapped=(10, 5.0)))])
    assert line.startswith("Not deaf: every run does better")
    message = "Only questions that got an output both ways are compared"
    assert line.endswith(f" {message}: a with another clip's audio on 10 of 1,000.")


NUM_QUESTIONS = 22  # half of them is odd: another clip's audio is the other tone
WORDS = ("bell", "drum")


def asked(number: int) -> tuple[np.ndarray, dict]:
    """A low tone is a bell, a high one a drum; which of them stands first says nothing."""
    rng = np.random.default_rng(number)
    kind, flip = number % 2, int(rng.integers(2))
    hz = (300, 3000)[kind] * (1 + 0.02 * rng.standard_normal())
    choices = list(WORDS[::-1] if flip else WORDS)
    waveform = (0.3 * np.sin(2 * np.pi * hz * np.arange(16_000) / 16_000)).astype(np.float32)
    return waveform, {"question": "Which sound is heard?", "choices": choices, "answer": choices.index(WORDS[kind])}


@pytest.fixture(scope="module")
def tones(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tones")

    def rows() -> Iterator[dict]:
        for i in range(NUM_QUESTIONS):
            waveform, question = asked(10_000 + i)
            labels = {"question_relation": "Sound", "question_type": "Which", "media_sha256": str(i)}
            clip = {"id": str(i), "video_id": str(i), "start_s": 0.0, "duration_s": 1.0, "video_question": question["question"]}
            sound = {"audio": {"bytes": encode_flac(waveform), "path": f"{i}.flac"}}
            yield question | labels | clip | sound | {"answer_text": question["choices"][question["answer"]]}

    parquet.write_parquet(rows(), schema.avqa_audio_features(), folder / "data" / "validation-00000-of-00001.parquet")
    write_dataset_card(folder, "# Tones\n", {"default": {"validation": "data/*.parquet"}})
    return folder


def drop_the_audio(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mistake that leaves a model deaf and says nothing: the processor is called without its clips."""
    call = TransformersEngine._inputs

    def deaf(self, requests, prompts):
        return call(self, [type(r)(r.key, r.text) for r in requests], prompts)

    monkeypatch.setattr(TransformersEngine, "_inputs", deaf)


def evaluate(model: Path, tones: Path, folder: Path, *controls: str) -> tuple[dict, str]:
    """The results of a run, and the first line of the report on it."""
    given = {"model": model, "dataset": tones, "output_dir": folder / "run", "max_tokens": 12, "arm": folder.name}
    flags = [str(part) for name, value in given.items() for part in (f"--{name}", value)]
    generate.main([*flags, "--controls", *controls])
    report.main(["--runs", str(folder / "run"), "--output_dir", str(folder / "report")])
    line = (folder / "report" / "report.md").read_text().splitlines()[0]
    return json.loads((folder / "run" / "results.json").read_text()), line


def test_every_control_is_run_and_reported(student_checkpoint, tones, tmp_path):
    results, line = evaluate(student_checkpoint, tones, tmp_path / "untrained", *CONTROLS)
    assert list(results["results"]) == ["none", *CONTROLS] and list(results["gains"]) == list(CONTROLS)
    assert results["consistency"]["n"] == NUM_QUESTIONS
    assert line.startswith(
        "ANSWERS NOTHING: untrained (seed 0) answers none of its 22 questions. That does not show whether it"
    )
    with pytest.raises(InputError, match="expected two folders, found 1"):
        compare.main(["--runs", str(tmp_path / "untrained" / "run")])


@pytest.fixture(scope="module")
def hearing_checkpoint(student_checkpoint, tmp_path_factory) -> Path:
    """The tiny student, taught to tell the two tones apart: half a minute of sound, a few seconds of training."""
    import torch
    from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

    from sightsound.training.checkpoints import save_checkpoint
    from sightsound.training.collator import CompletionCollator

    model = Qwen2AudioForConditionalGeneration.from_pretrained(student_checkpoint, dtype="float32")
    processor = AutoProcessor.from_pretrained(student_checkpoint)
    collate = CompletionCollator(processor)
    trained = [weight for name, weight in model.named_parameters() if "embed_positions" not in name]
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    for step in range(120):
        rows = []
        for i in range(8):
            waveform, question = asked(8 * step + i)
            text = question_text(question["question"], question["choices"], DIRECT_PROMPT)
            audio = {"bytes": encode_flac(waveform), "path": None}
            label = render_label(question["choices"][question["answer"]])
            rows.append({"prompt": [{"role": "user", "content": text}], "completion": label, "audio": audio})
        loss = model(**collate(rows)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("hearing") / "model"
    save_checkpoint(model, processor, folder)
    return folder


@pytest.mark.slow
def test_a_model_that_hears_is_told_from_the_same_model_without_its_audio(
    hearing_checkpoint, tones, tmp_path, monkeypatch, capsys
):
    results, line = evaluate(hearing_checkpoint, tones, tmp_path / "hears", "silent", "swapped")
    assert line.startswith("Not deaf"), line
    assert results["results"]["none"]["accuracy"] >= 90

    drop_the_audio(monkeypatch)
    results, line = evaluate(hearing_checkpoint, tones, tmp_path / "deaf", "silent", "swapped")
    assert line.startswith("DEAF: deaf (seed 0) does no better with the clip than with silent audio"), line
    assert results["gains"]["swapped"]["difference"] == 0.0

    capsys.readouterr()
    compare.main(["--runs", str(tmp_path / "hears" / "run"), str(tmp_path / "deaf" / "run"), "--json"])
    compared = json.loads(capsys.readouterr().out)["avqa"]
    assert compared["n"] == NUM_QUESTIONS and compared["low"] > 0 and compared["p_value"] < 0.05
