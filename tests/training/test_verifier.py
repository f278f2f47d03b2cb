"""The small verifier: what it is calibrated on, what it hears, where it draws the line, and its place behind verdicts.py."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from dataset_builders import verdicts
from sightsound.cli import InputError
from sightsound.data import parquet
from sightsound.data.statistics import wilson_interval
from sightsound.method.prompts import CHECKER_TRANSCRIPT
from sightsound.method.verdicts import ACCEPT, INVALID, NO_REASONING, REJECT
from sightsound.training.audio_rows import join_audio
from sightsound.training.calibration import (
    PARTS,
    THRESHOLD_CONFIDENCE,
    Example,
    calibrate,
    calibration_parts,
    choose_threshold,
    figures,
    part_of,
    platt_scaling,
    probabilities,
    use_of_traces,
)
from sightsound.training.verifier import (
    VERIFIER_MODE,
    PairCollator,
    parse_probability,
    probability_text,
    read_verifier,
    score,
)
from tests.support import tiny
from tests.support.calibration import calibration, clips, run_main, train, verifier_flags
from tests.support.card_rules import validate
from tests.support.loopback_hub import client_environment, loopback_hub


__all__ = ["calibration", "loopback_hub"]  # the fixtures


def row(clip: str, verdicts: dict[str | None, str], id: str | None = None) -> dict[str, Any]:
    traces = [{"think": think, "verdict": verdict} for think, verdict in verdicts.items()]
    return {"id": id or clip, "media_sha256": clip, "traces": traces}


def test_a_clip_is_always_in_the_same_part_and_the_parts_have_their_shares():
    parts = [part_of(clip) for clip in clips(2000)]
    assert parts == [part_of(clip) for clip in clips(2000)]
    shares = {part: parts.count(part) / 2000 for part in PARTS}
    assert shares == {
        "held_out": pytest.approx(0.2, abs=0.03),
        "threshold": pytest.approx(0.2, abs=0.03),
        "train": pytest.approx(0.6, abs=0.03),
    }


def test_no_clip_is_in_two_parts_though_it_has_several_questions():
    rows = [row(clip, {f"yes {i}": ACCEPT, f"no {i}": REJECT}, f"{clip}/{i}") for clip in clips(60) for i in range(2)]
    parts = calibration_parts(rows)
    assert sum(map(len, parts.values())) == 60 * 2 * 2
    found = {part: {example.clip for example in examples} for part, examples in parts.items()}
    assert sum(map(len, found.values())) == len(set().union(*found.values())) == 60


def test_repeated_texts_count_once_and_unclear_verdicts_not_at_all():
    rows = [row(clip, {"yes": ACCEPT, "no": REJECT, "hm": INVALID, None: INVALID}) for clip in clips(60)]
    for each in rows:
        each["traces"] *= 3
    rows.append({"id": "untraced", "media_sha256": "untraced", "traces": []})
    examples = [example for members in calibration_parts(rows).values() for example in members]
    assert sorted((e.id, e.think, e.accepted) for e in examples) == sorted(
        (clip, think, think == "yes") for clip in clips(60) for think in ("yes", "no")
    )


def test_a_trace_that_cannot_be_calibrated_on_keeps_the_reason():
    given = {
        "yes": ACCEPT,
        "no": REJECT,
        "hm": "unclear",
        "sorry": "refused",
        "long": "cut",
        "old": INVALID,
        None: NO_REASONING,
    }
    rows = [row(clip, given) for clip in clips(60)]
    used = use_of_traces(rows, calibration_parts(rows))
    outcomes = {(each["detail"], each["outcome"]) for each in used if each["detail"] not in ("yes", "no")}
    assert outcomes == {
        ("hm", "unclear"),
        ("sorry", "refused"),
        ("long", "cut"),
        ("old", "no_verdict"),
        (None, "no_reasoning"),
    }


def test_max_clips_draws_the_same_clips_whatever_their_order():
    rows = [row(clip, {"yes": ACCEPT, "no": REJECT}) for clip in clips(200)]
    one, other = (calibration_parts(r, max_clips=60) for r in (rows, rows[::-1]))
    drawn = [{e.clip for examples in parts.values() for e in examples} for parts in (one, other)]
    assert drawn[0] == drawn[1] and len(drawn[0]) == 60


@pytest.mark.parametrize("verdict", [ACCEPT, REJECT])
def test_verdicts_of_one_kind_only_are_refused(verdict):
    rows = [row(clip, {"text": verdict}) for clip in clips(60)]
    counts = "{} accepted and {} rejected traces in the calibration part"
    count = sum(part_of(clip) == "held_out" for clip in clips(60))
    with pytest.raises(InputError, match=counts.format(*((count, 0) if verdict == ACCEPT else (0, count)))):
        calibration_parts(rows)


def test_platt_scaling_recovers_the_odds_and_stays_finite_where_classes_are_apart():
    generator = np.random.default_rng(0)
    evidence = generator.normal(5, 10, 20_000)
    accepted = generator.random(20_000) < 1 / (1 + np.exp(-(0.3 * evidence - 2)))
    assert platt_scaling(evidence, accepted) == (pytest.approx(0.3, abs=0.02), pytest.approx(-2, abs=0.1))
    slope, offset = platt_scaling(np.array([-3.0, -2.0, 2.0, 3.0]), np.array([False, False, True, True]))
    assert 0 < slope < 10 and abs(offset) < 1e-3
    assert all(map(np.isfinite, platt_scaling(np.zeros(4), np.array([False, False, True, True]))))


def test_the_threshold_is_the_lowest_that_can_be_relied_on():
    p = np.linspace(0, 1, 201)
    accepted = p >= 0.5
    threshold = choose_threshold(p, accepted, 0.9)
    taken = p >= threshold
    assert wilson_interval(int((accepted & taken).sum()), int(taken.sum()), THRESHOLD_CONFIDENCE)[0] >= 0.9
    lower = p >= threshold - 0.005
    assert wilson_interval(int((accepted & lower).sum()), int(lower.sum()), THRESHOLD_CONFIDENCE)[0] < 0.9
    assert choose_threshold(p, accepted, 0.5) < threshold < 0.5


def test_a_precision_that_no_threshold_reaches_is_refused():
    with pytest.raises(
        InputError, match=r"no threshold reaches a precision of 0\.9 \(the best one is right on 5 of 5 traces: lower end"
    ):
        choose_threshold(np.linspace(0, 1, 10), np.arange(10) >= 5, 0.9)
    with pytest.raises(InputError, match=r"precision of 1 .*; lower --target_precision, calibrate on more clips"):
        choose_threshold(np.linspace(0, 1, 1000), np.arange(1000) >= 500, 1.0)


def test_figures_are_counts_with_their_intervals():
    message = figures(np.array([0.9, 0.8, 0.7, 0.1]), np.array([True, True, False, True]), 0.7)
    assert {k: message[k] for k in ("traces", "accepted_by_checker", "accepted", "both")} == {
        "traces": 4, "accepted_by_checker": 3, "accepted": 3, "both": 2
    }  # fmt: skip
    assert message["precision"] == message["recall"] == 2 / 3
    assert message["precision_interval"] == list(wilson_interval(2, 3))
    assert figures(np.array([0.1]), np.array([True]), 0.7)["precision"] is None


def test_the_verdict_follows_from_the_text_alone():
    p = probabilities(np.array([-50.0, 0.0, 1.23456, 50.0]), {"slope": 1.0, "offset": 0.0})
    assert [parse_probability(probability_text(each)) for each in p] == p.tolist() == [0.0, 0.5, 0.7746, 1.0]
    assert parse_probability("") is None


@pytest.fixture(scope="module")
def verifier_run(calibration, student_checkpoint, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("verifier") / "run"
    train(calibration, student_checkpoint, output)
    return output


def held_out_rows(calibration: dict[str, Path]) -> tuple[list[Example], Dataset]:
    examples = calibration_parts(parquet.open_dataset(str(calibration["verdicts"]), "train"))["held_out"]
    audio = parquet.AudioById(parquet.open_dataset(str(calibration["audio"]), "train"))
    return examples, join_audio([asdict(example) for example in examples], audio)


def load(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

    return Qwen2AudioForConditionalGeneration.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


def test_a_verifier_is_a_usual_checkpoint_without_pickles_and_says_what_it_is(verifier_run, calibration, student_checkpoint):
    verifier = read_verifier(str(verifier_run / "model"))
    assert verifier is not None and read_verifier(str(student_checkpoint)) is None and read_verifier("no/such-model") is None
    assert (verifier["checker"], verifier["checker_verdict_mode"], verifier["prompt"]) == (
        "scripted",
        "yes_no",
        CHECKER_TRANSCRIPT,
    )
    assert verifier["clips"] == {"held_out": 4, "threshold": 4, "train": 4} and verifier["seed"] == 42
    files = {path.suffix for path in (verifier_run / "model").iterdir()}
    assert files <= {".json", ".jinja", ".safetensors", ".md"}
    card = (verifier_run / "model" / "README.md").read_text()
    assert "scripted" in card and f"p >= {verifier['threshold']}" in card and card.startswith("---\n")
    assert validate(card, "model") == ([], []) and "| carbon emissions | not measured |" in card and "{{" not in card
    ledger, rows = tiny.read_ledger(verifier_run), tiny.read_rows(calibration["verdicts"])
    assert sum(entry["outcome"] in PARTS for entry in ledger) == 12 * 3
    assert {entry["outcome"] for entry in ledger} == {*PARTS, "no_reasoning"}
    assert len(ledger) == sum(max(1, len(row["traces"])) for row in rows), "every trace has its outcome"


def test_the_figures_on_the_card_are_those_of_the_model_that_was_saved(verifier_run, calibration):
    model, processor = load(verifier_run / "model")
    verifier = model.config.verifier
    examples, rows = held_out_rows(calibration)
    assert verifier["base"] == Path(verifier["base"]).name, "and not where it lies"
    evidence = score(model, PairCollator(processor, verifier["prompt"]), rows, batch_size=128, description="held out")
    message = figures(probabilities(evidence, verifier), np.array([e.accepted for e in examples]), verifier["threshold"])
    assert message == verifier["held_out"]


def test_only_the_language_model_is_trained(verifier_run, student_checkpoint):
    import torch

    before, after = (load(folder)[0].state_dict() for folder in (student_checkpoint, verifier_run / "model"))
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed and all("language_model.layers" in name for name in changed)


def test_the_score_is_the_difference_of_two_likelihoods_and_needs_the_sound(student_checkpoint, calibration):
    """By hand: log p(trace | audio) - log p(trace | no audio); another clip changes it, other traces in the batch do not."""
    import torch

    from sightsound.training.collator import CompletionCollator

    model, processor = load(student_checkpoint)
    _, rows = held_out_rows(calibration)
    collator = PairCollator(processor, CHECKER_TRANSCRIPT)
    evidence = score(model, collator, rows, batch_size=5, description="batches")
    assert evidence == pytest.approx(score(model, collator, rows, batch_size=1, description="one by one"), abs=1e-4)
    expected = []
    for audio in (rows[0]["audio"], None):
        turn = {"prompt": [{"role": "user", "content": CHECKER_TRANSCRIPT}], "completion": rows[0]["think"], "audio": audio}
        batch = CompletionCollator(processor)([turn])
        with torch.no_grad():
            logits = model(**batch).logits[0, :-1].double()
        expected.append(-torch.nn.functional.cross_entropy(logits, batch["labels"][0, 1:], reduction="sum").item())
    assert evidence[0] == pytest.approx(expected[0] - expected[1], abs=1e-3)
    others = [{**each, "audio": rows[(i + 3) % len(rows)]["audio"]} for i, each in enumerate(rows)]
    # Random weights hardly listen; rounding is a thousand times less.
    assert np.median(np.abs(score(model, collator, others, batch_size=5, description="swapped") - evidence)) > 1e-3


def test_training_makes_the_sound_speak_for_accepted_traces(calibration, student_checkpoint, tmp_path):
    train(calibration, student_checkpoint, tmp_path / "run", max_steps=30, learning_rate=1e-2, save_steps=30)
    examples, rows = held_out_rows(calibration)
    accepted = np.array([example.accepted for example in examples])
    lead = []
    for folder in (student_checkpoint, tmp_path / "run" / "model"):
        model, processor = load(folder)
        evidence = score(model, PairCollator(processor, CHECKER_TRANSCRIPT), rows, batch_size=128, description="held out")
        lead.append(evidence[accepted].mean() - evidence[~accepted].mean())
    assert lead[1] > lead[0] + 1


def test_training_continues_from_its_last_checkpoint_with_the_same_result(
    verifier_run, calibration, student_checkpoint, tmp_path
):
    from safetensors.torch import load_file

    output = tmp_path / "run"
    shutil.copytree(verifier_run, output)
    for done in ("model", "checkpoint-2"):
        shutil.rmtree(output / done)
    stage = json.loads((output / "stage.json").read_text())
    (output / "stage.json").write_text(json.dumps({**stage, "complete": False}))
    train(calibration, student_checkpoint, output)
    one, other = (load_file(run / "model" / "model.safetensors") for run in (verifier_run, output))
    assert all((one[name] == other[name]).all() for name in one)
    assert read_verifier(str(output / "model")) == read_verifier(str(verifier_run / "model"))


def judged(calibration: dict[str, Path], model: Path, journal: Path) -> list[dict[str, Any]]:
    folders = {"dataset": str(calibration["audio"]), "traces": str(calibration["verdicts"]), "output_dir": "unused"}
    args = verdicts.VerdictsArguments(**folders, checker=str(model), verdict_mode=VERIFIER_MODE, batch_size=5)
    checked = verdicts.CheckerRun(args, read_verifier(str(model)))
    return [trace for row, _ in checked.verify(checked.ids, journal) for trace in row["traces"]]


def test_an_interrupted_run_of_verdicts_ends_with_the_same_ones(verifier_run, calibration, tmp_path):
    whole = judged(calibration, verifier_run / "model", tmp_path / "whole.jsonl")
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 12 * 3
    (tmp_path / "cut.jsonl").write_bytes(b"".join(lines[:12]) + lines[12][:9])  # in the middle of a call, and of a line
    assert judged(calibration, verifier_run / "model", tmp_path / "cut.jsonl") == whole
    threshold = read_verifier(str(verifier_run / "model"))["threshold"]
    for trace in whole:
        p = parse_probability(trace["verdict_text"] or "")
        assert trace["verdict"] == (NO_REASONING if p is None else ACCEPT if p >= threshold else REJECT)
    assert [trace["verdict_text"] for trace in whole[3::4]] == [None] * 12, "a trace without reasoning is not scored"


def test_verdicts_py_knows_a_verifier_when_it_is_given_one(verifier_run, calibration, tmp_path, capsys):
    flags = {"dataset": calibration["audio"], "traces": calibration["verdicts"], "checker": verifier_run / "model"}
    run_main(verdicts.main, "verdicts.py", **flags, limit=11, output_dir=tmp_path / "out")
    rows = tiny.read_rows(tmp_path / "out")
    assert {row["verdict_mode"] for row in rows} == {VERIFIER_MODE} and {row["checker_heard_s"] for row in rows} == {2.0}
    assert {row["checker"] for row in rows} == {f"{verifier_run.name}/model"}, "and not where it lies"
    message = [trace["verdict_text"] for row in rows for trace in row["traces"][:3]]
    assert all(text.startswith("p=0.") or text == "p=1.0000" for text in message)
    assert "44 traces: " in capsys.readouterr().out and len(rows) == 11


@pytest.mark.slow
def test_a_verifier_is_published_by_its_recipe_and_known_by_its_id(
    loopback_hub, verifier_run, calibration, student_checkpoint, tmp_path
):
    environment = {**client_environment(loopback_hub, tmp_path / "home"), "USE_TORCH": "1"}
    (tmp_path / "home").mkdir()
    output = tmp_path / "run"
    shutil.copytree(verifier_run, output)
    for stray in (".env", "hf_token.txt", "credentials.json", "trainer_state.json", "optimizer.safetensors"):
        (output / "model" / stray).write_text("hf_inAFileOfItsOwn")
    hub_flags = {"push_to_hub": "true", "hub_model_id": "alice/verifier", "hub_private_repo": "true"}
    command = tiny._command("recipes/verifier.py", {**verifier_flags(calibration, student_checkpoint, output), **hub_flags})
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "is complete" in done.stdout, done.stderr[-3000:]

    repo = loopback_hub.repos["models/alice/verifier"]
    files = {path.name: path.read_bytes() for path in (verifier_run / "model").iterdir()}
    assert repo.private and repo.tree().keys() == files.keys() | {".gitattributes"}
    assert {name: loopback_hub.content(repo.tree()[name]) for name in files} == files
    assert f"refs/tags/{done.stdout.split()[-1]}" in repo.refs

    read = "from sightsound.training.verifier import read_verifier"
    read = f"import json; {read}; print(json.dumps(read_verifier('alice/verifier')))"
    known = subprocess.run([sys.executable, "-c", read], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(known.stdout) == read_verifier(str(verifier_run / "model"))


def test_publishing_says_where_to(calibration, student_checkpoint, tmp_path):
    with pytest.raises(InputError, match="push_to_hub with hub_model_id None: expected ORG/NAME"):
        train(calibration, student_checkpoint, tmp_path / "run", push_to_hub=True)
    assert not (tmp_path / "run").exists()


def test_calibrating_needs_lora(tmp_path: Path):
    missing = {"verdicts": Path("v"), "audio": Path("a")}
    with pytest.raises(InputError, match="the verifier is a LoRA on the language model: set use_peft: true"):
        train(missing, Path("m"), tmp_path / "run", use_peft=False)
    assert not (tmp_path / "run").exists()


def test_calibrate_reports_the_parts_under_their_own_names():
    parts = {part: [Example(str(i), f"{part}-{i // 2}", "t", i % 2 == 0) for i in range(200)] for part in PARTS}
    evidence = {part: np.array([5.0 if e.accepted else -5.0 for e in parts[part]]) for part in ("threshold", "held_out")}
    evidence["held_out"][0] = -5.0  # one that it misses
    section = calibrate(evidence, parts, 0.9)
    assert section["clips"] == dict.fromkeys(PARTS, 100)
    assert (section["threshold_part"]["recall"], section["held_out"]["recall"]) == (1.0, 0.99)
    assert json.loads(json.dumps(section)) == section, "it goes into config.json"
