"""What the training recipes train on: every arm joined with its clips, and what cannot be used is said before training."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers import AutoProcessor

from sightsound.cli import InputError
from sightsound.data import parquet, schema
from sightsound.data.audio import encode_flac
from sightsound.data.kinds import CLIPS, open_input
from sightsound.hub.cards import write_dataset_card
from sightsound.method.audio_contribution import STRONG, UNKNOWN, WEAK
from sightsound.method.prompts import COT_PROMPT, render_trace
from sightsound.training.audio_rows import audio_rows
from sightsound.training.collator import CompletionCollator
from tests.support import tiny


@pytest.fixture(scope="module")
def collator(student_checkpoint) -> CompletionCollator:
    return CompletionCollator(AutoProcessor.from_pretrained(student_checkpoint))


def write_dataset(rows: list[dict[str, Any]], folder: Path, without: str | None = None) -> Path:
    features = schema.avqa_audio_features()
    if without:
        features.pop(without)
    parquet.write_parquet(rows, features, folder / "data" / "train-00000-of-00001.parquet")
    write_dataset_card(folder, "# Audio\n", {"default": {"train": "data/*.parquet"}})
    return folder


def write_corpus(rows: list[dict[str, Any]], folder: Path) -> Path:
    parquet.write_parquet(rows, schema.traces_features(), folder / "data" / "traces" / "train-00000-of-00001.parquet")
    write_dataset_card(folder, "# Corpus\n", {"traces": {"train": "data/traces/*.parquet"}})
    return folder


def arguments(audio: Path, selection: str, traces: Path | None = None, contribution: str | None = None) -> SimpleNamespace:
    given = {"audio": str(audio), "selection": selection, "traces": None if traces is None else str(traces), "split": "train"}
    return SimpleNamespace(**given, audio_contribution=contribution)


@pytest.fixture(scope="module")
def long_clip(questions, tmp_path_factory) -> tuple[Path, Path]:
    """avqa-audio and a corpus in which the first clip is longer than the window, and the second question's label is blank."""
    folder = tmp_path_factory.mktemp("long")
    noise = np.random.default_rng(0).normal(0, 0.1, 5 * 16_000).astype(np.float32)
    rows = [dict(row) for row in questions[:3]]
    rows[0] |= {"audio": {"bytes": encode_flac(noise), "path": None}, "duration_s": 5.0}
    rows[1]["choices"] = [" "] * 4
    traced = []
    for row in rows:
        text = render_trace("I hear a dog.", row["answer_text"])
        traced.append(tiny.trace_row(row, [tiny.trace(text, row["answer"], "I hear a dog.", "accept")]))
    return write_dataset(rows, folder / "audio"), write_corpus(traced, folder / "corpus")


def test_sft_leaves_out_an_empty_target_and_says_which_clips_it_cuts(collator, long_clip, tmp_path, capsys) -> None:
    audio, corpus = long_clip
    rows = audio_rows(arguments(audio, "label", corpus), collator, tmp_path / "ledger.parquet")
    ledger = tiny.read_ledger(tmp_path)
    assert [(entry["outcome"], entry["detail"]) for entry in ledger] == [
        ("used", "cut: the model hears 2 of 5.00 s"),
        ("empty_completion", "nothing to learn in '<answer></answer>'"),
        ("used", None),
    ]
    assert capsys.readouterr().out == "label: 2 used, 1 empty_completion; 1 clips cut to 2 s\n"
    assert len(rows) == 2 and rows[0]["audio"]["bytes"]


def test_grpo_cuts_knowingly_too_and_always_asks_for_reasoning(collator, long_clip, tmp_path, capsys) -> None:
    audio, corpus = long_clip
    rows = audio_rows(arguments(audio, "label", corpus), collator, tmp_path / "ledger.parquet", for_grpo=True)
    assert [entry["detail"] for entry in tiny.read_ledger(tmp_path)] == ["cut: the model hears 2 of 5.00 s", None, None]
    assert "1 clips cut to 2 s" in capsys.readouterr().out
    assert all(row["prompt"][0]["content"].endswith(COT_PROMPT.splitlines()[-1]) for row in rows)


def test_the_ground_truth_arm_needs_no_traces_and_its_ledger_says_what_it_saw(collator, long_clip, tmp_path) -> None:
    audio, corpus = long_clip
    rows = audio_rows(arguments(audio, "ground_truth"), collator, tmp_path / "ledger.parquet")
    gold = list(parquet.open_dataset(str(audio), "train"))
    assert [row["completion"] for row in rows] == [f"<answer>{gold[i]['answer_text'].strip()}</answer>" for i in (0, 2)]
    ledger = tiny.read_ledger(tmp_path)
    assert [entry["detail"] for entry in ledger] == [
        "ground truth; cut: the model hears 2 of 5.00 s",
        "nothing to learn in '<answer></answer>'",
        "ground truth",
    ]
    with pytest.raises(InputError, match="selection ground_truth uses the answers of --audio and no traces: leave --traces"):
        audio_rows(arguments(audio, "ground_truth", corpus), collator, tmp_path / "ledger.parquet")
    with pytest.raises(InputError, match="selection ground_truth is for SFT: GRPO's label is the teacher's answer"):
        audio_rows(arguments(audio, "ground_truth"), collator, tmp_path / "ledger.parquet", for_grpo=True)
    with pytest.raises(InputError, match="selection label is made from a corpus: give it with --traces"):
        audio_rows(arguments(audio, "label"), collator, tmp_path / "ledger.parquet")


def test_an_unknown_arm_and_traces_that_are_no_corpus_are_named(collator, long_clip, tmp_path) -> None:
    audio, corpus = long_clip
    for traces in (None, corpus):
        for is_grpo, known in ((False, "ground_truth, label, "), (True, "label, ")):
            message = f"^unknown selection 'typo'; expected one of {known}cot, agfv, tts, tts_agfv, tts_claims$"
            with pytest.raises(InputError, match=message):
                audio_rows(arguments(audio, "typo", traces), collator, tmp_path / "ledger.parquet", for_grpo=is_grpo)
    message = (
        f"^--traces: cannot open split 'train' of {audio} .*'traces' not found.* with the config `traces`, as .*/cot_corpus"
    )
    with pytest.raises(InputError, match=message):
        audio_rows(arguments(audio, "cot", audio), collator, tmp_path / "ledger.parquet", for_grpo=True)


def test_nothing_but_empty_targets_is_refused(collator, questions, tmp_path) -> None:
    blank = write_dataset([{**questions[0], "choices": [""] * 4}], tmp_path / "audio")
    with pytest.raises(
        InputError, match=r"no selected row can be used \(1 empty_completion\); .*ledger.parquet has the reason"
    ):
        audio_rows(arguments(blank, "ground_truth"), collator, tmp_path / "ledger.parquet")


@pytest.mark.parametrize("column", ["audio", "media_sha256"])
def test_a_dataset_of_another_kind_is_refused(column, questions, tmp_path) -> None:
    rows = [{name: value for name, value in questions[0].items() if name != column}]
    folder = write_dataset(rows, tmp_path / "audio", without=column)
    message = rf"split 'train' of {folder} does not hold clips .*: it lacks the column {column} \(it has: id, .*avqa_audio.py"
    with pytest.raises(InputError, match=message):
        open_input(str(folder), "train", CLIPS)


@pytest.fixture(scope="module")
def labelled(questions, tmp_path_factory) -> tuple[Path, Path]:
    """Four questions of two traces: strong, weak, strong, unknown. The corpus knows two of them, the dataset the third."""
    folder = tmp_path_factory.mktemp("labelled")
    words = [STRONG, WEAK, STRONG, UNKNOWN]
    rows = [row | {"audio_contribution": word} for row, word in zip(questions, words, strict=False)]
    traced = []
    for row in rows[:2] + [row | {"audio_contribution": UNKNOWN} for row in rows[2:]]:
        text = render_trace("I hear a dog.", row["answer_text"])
        traced.append(tiny.trace_row(row, [tiny.trace(text, row["answer"], "I hear a dog.", "accept")] * 2))
    unlabelled = [row | {"audio_contribution": UNKNOWN} for row in rows[:2]]
    return write_dataset(unlabelled + rows[2:], folder / "audio"), write_corpus(traced, folder / "corpus")


def test_only_questions_of_the_audio_contribution_are_trained_on(collator, labelled, questions, tmp_path, capsys) -> None:
    audio, corpus = labelled
    ids = [row["id"] for row in questions[:4]]
    for wanted, used, outcome in ((STRONG, [ids[0], ids[2]], "not_strong"), (WEAK, [ids[1]], "not_weak")):
        args = arguments(audio, "tts_agfv", corpus, wanted)
        rows = audio_rows(args, collator, tmp_path / "ledger.parquet")
        assert [row["id"] for row in rows] == [row_id for row_id in used for _ in range(2)], "every trace of a question"
        ledger = [(entry["id"], entry["outcome"]) for entry in tiny.read_ledger(tmp_path)]
        assert ledger == [(row_id, "used" if row_id in used else outcome) for row_id in ids for _ in range(2)]
        out = capsys.readouterr().out
        assert f"{2 * len(used)} used" in out and f"{8 - 2 * len(used)} {outcome}" in out
        assert [row["id"] for row in audio_rows(args, collator, tmp_path / "ledger.parquet", for_grpo=True)] == used
    details = {entry["detail"] for entry in tiny.read_ledger(tmp_path)}
    assert details == {None, "its audio contribution is strong", "its audio contribution is unknown"}
    assert len(audio_rows(arguments(audio, "tts_agfv", corpus), collator, tmp_path / "ledger.parquet")) == 8


def test_the_ground_truth_can_be_selected_by_audio_contribution_too(collator, labelled, questions, tmp_path) -> None:
    rows = audio_rows(arguments(labelled[0], "ground_truth", None, STRONG), collator, tmp_path / "ledger.parquet")
    assert [row["id"] for row in rows] == [questions[2]["id"]]


def test_an_audio_contribution_that_no_question_has_says_how_many_have_which(collator, long_clip, tmp_path) -> None:
    audio, corpus = long_clip
    message = (
        r"^audio_contribution strong leaves no question of selection tts_agfv \(0 strong, 0 weak, 3 unknown\); label "
        r"--audio with dataset_builders/audio_contribution.py, or leave audio_contribution out$"
    )
    with pytest.raises(InputError, match=message):
        audio_rows(arguments(audio, "tts_agfv", corpus, STRONG), collator, tmp_path / "ledger.parquet")
    with pytest.raises(InputError, match=r"^unknown audio_contribution 'Strong'; expected strong or weak$"):
        audio_rows(arguments(audio, "tts_agfv", corpus, "Strong"), collator, tmp_path / "ledger.parquet")


def test_a_dataset_without_the_columns_can_be_trained_on(collator, questions, tmp_path) -> None:
    features = schema.avqa_audio_features()
    for name in schema.CONTRIBUTION_COLUMNS:
        features.pop(name)
    parquet.write_parquet(questions[:2], features, tmp_path / "audio" / "data" / "train-00000-of-00001.parquet")
    write_dataset_card(tmp_path / "audio", "# Old\n", {"default": {"train": "data/*.parquet"}})
    assert len(audio_rows(arguments(tmp_path / "audio", "ground_truth"), collator, tmp_path / "ledger.parquet")) == 2
    with pytest.raises(InputError, match=r"\(0 strong, 0 weak, 2 unknown\)"):
        audio_rows(arguments(tmp_path / "audio", "ground_truth", None, WEAK), collator, tmp_path / "ledger.parquet")
