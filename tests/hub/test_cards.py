"""Cards of students: what they were made of, and the figures of their runs, the same in every place."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from evaluation import publish
from evaluation.reporting.sections import coverage_note
from evaluation.scoring.accuracy import NO_CONTROL
from sightsound import __version__
from sightsound.data import parquet
from sightsound.data.schema import LETTERS
from sightsound.hub import cards
from sightsound.hub.publish import PublishArguments
from sightsound.stage import Stage
from sightsound.training.card import chosen_by
from tests.support import tiny
from tests.support.card_rules import validate
from tests.support.openai_server import OpenAIServer
from tests.support.release import REPO_ID, corpus, evaluate, make_stage, mmau, model, released, runs, write_card


__all__ = ["corpus", "mmau", "model", "released", "runs"]  # the fixtures

FRONT = re.compile(r"\A---\n(.*?)---\n", re.DOTALL)


def front_of(card: str) -> dict[str, Any]:
    return yaml.safe_load(FRONT.match(card)[1])


@pytest.mark.parametrize(
    ("stage", "selection", "is_adapter"),
    [("SFT", "tts_agfv", False), ("SFT", "tts_agfv", True), ("GRPO", "tts_agfv", False), ("SFT", "ground_truth", False)],
)
def test_a_students_card_says_what_it_is_and_where_its_data_went(
    stage, selection, is_adapter, tiny_dataset, corpus, tmp_path
) -> None:
    folder = tmp_path / "run" / "weights"
    folder.mkdir(parents=True)
    if is_adapter:
        (folder / "adapter_config.json").write_text("{}")
    ids = [row["id"] for row in tiny.read_rows(tiny_dataset)]
    outcomes = [("used", row_id) for row_id in ids[2:]] * 2 + [("too_long", ids[0]), ("missing_audio", ids[1])]
    ledger = [{"id": row_id, "outcome": outcome, "detail": None} for outcome, row_id in outcomes]
    parquet.write_ledger(ledger, tmp_path / "run" / "ledger.parquet")
    traces = None if selection == "ground_truth" else corpus
    card = write_card(folder, stage, tiny_dataset, traces, "Qwen/Qwen2-Audio-7B-Instruct", selection)
    assert validate(card, "model") == ([], [])
    front = front_of(card)
    assert front["base_model"] == "Qwen/Qwen2-Audio-7B-Instruct" and front["license"] == "apache-2.0"
    assert front["base_model_relation"] == ("adapter" if is_adapter else "finetune")
    assert front["library_name"] == ("peft" if is_adapter else "transformers")
    steps = ["asked", "answered by the teacher", "unanimous", "with a verdict", "accepted"] if traces else []
    funnel = [f"| {step} | 12 |" for step in [*steps, f"selected: arm `{selection}`"]] + ["| used in training | 10 |"]
    assert "\n".join(funnel) in card and "20 rows were trained on; left out: 1 too_long, 1 missing_audio." in card
    assert "| carbon emissions | not measured |" in card and "| training time | 1.5 min since the last start |" in card
    assert "CPU, 1 process |" in card and "None were published" in card and "arXiv:2509.15661" in card
    assert ("The teacher cannot hear" in card) == (selection != "ground_truth")
    assert "They chose the checkpoint" not in card and str(tmp_path) not in FRONT.sub("", card).split("## How it was built")[0]
    assert not re.search(r"\bNone\b(?! were)|{{|{%|\n\n\n", card), card


def test_a_students_card_says_which_questions_were_selected_by_their_audio_contribution(tiny_dataset, corpus, tmp_path) -> None:
    folder = tmp_path / "run" / "weights"
    folder.mkdir(parents=True)
    ids = [row["id"] for row in tiny.read_rows(tiny_dataset)]
    ledger = [{"id": row_id, "outcome": "used" if i < 9 else "not_strong", "detail": None} for i, row_id in enumerate(ids)]
    parquet.write_ledger(ledger, tmp_path / "run" / "ledger.parquet")
    card = write_card(folder, "GRPO", tiny_dataset, corpus, "Qwen/Qwen2-Audio-7B-Instruct", "tts_agfv", "strong")
    assert validate(card, "model") == ([], [])
    assert "on the arm `tts_agfv`, questions of\nstrong audio contribution only (not answered right more often than not" in card
    funnel = "| selected: arm `tts_agfv` | 12 |\n| audio contribution `strong` | 9 |\n| used in training | 9 |\n"
    assert funnel in card and "9 rows were trained on; left out: 3 not_strong." in card
    assert not re.search(r"{{|{%|\n\n\n", card), card


def test_a_checkpoint_that_validation_chose_says_so_in_its_card_and_results(
    student_checkpoint, tiny_dataset, corpus, mmau, tmp_path
) -> None:
    folder = tmp_path / "chosen"
    model = make_stage(folder, student_checkpoint, tiny_dataset, corpus, "alice/base", load_best_model_at_end=True)
    card = (model / "README.md").read_text()
    assert re.search(r"\bstep 6\b[^.]*\b4 validation\s+questions: 75\.0 %", card)
    evaluate(model, tmp_path / "run", [f"avqa={tiny_dataset}", f"mmau={mmau}"])
    publish.assemble(model, publish.read_runs([str(tmp_path / "run")], model), REPO_ID, tmp_path / "release")
    card = (tmp_path / "release" / "README.md").read_text()
    assert re.search(r"same split\s+of\s+avqa\b", card)
    message = {result.dataset_name: result.metric_name for result in ModelCard(card).data.eval_results}
    assert "was chosen on questions of this split" in message["avqa"] and "chosen" not in message["mmau"]


def test_what_chose_a_checkpoint_is_known_of_those_that_are_trained_from_it(tmp_path) -> None:
    """Also when the first is gone: a stage's settings hold what chose its base."""
    own = {"load_best_model_at_end": True, "audio": "a", "validation_split": "validation"}
    with Stage(tmp_path / "sft", own) as stage:
        stage.finish()
    inherited = {"base_chosen_by": chosen_by(str(tmp_path / "sft" / "model")), "load_best_model_at_end": False}
    with Stage(tmp_path / "grpo", inherited) as stage:
        stage.finish()
    shutil.rmtree(tmp_path / "sft")
    with Stage(
        tmp_path / "again", own | {"audio": "b", "base_chosen_by": chosen_by(str(tmp_path / "grpo" / "model"))}
    ) as stage:
        stage.finish()
    assert chosen_by(str(tmp_path / "grpo" / "model")) == [["a", "validation"]]
    assert chosen_by(str(tmp_path / "again" / "model")) == [["a", "validation"], ["b", "validation"]]
    assert chosen_by("alice/base") == []


def test_a_checkpoint_of_a_checkpoint_names_the_model_of_the_hub_behind_it(model, tiny_dataset, corpus, tmp_path) -> None:
    (tmp_path / "run" / "model").mkdir(parents=True)
    parquet.write_ledger([{"id": "1", "outcome": "used", "detail": None}], tmp_path / "run" / "ledger.parquet")
    card = write_card(tmp_path / "run" / "model", "GRPO", tiny_dataset, corpus, str(model), "tts_agfv")
    assert front_of(card)["base_model"] == "alice/base" and "`run/model` after GRPO" in card
    assert front_of(card)["license"] == "other" and validate(card, "model") == ([], [])


def test_a_card_states_a_commit_only_if_it_holds_the_code(monkeypatch, tmp_path) -> None:
    """An environment can lie in the checkout of something else."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    code = tmp_path / ".venv" / "sightsound" / "cards.py"
    code.parent.mkdir(parents=True)
    code.touch()
    (tmp_path / ".gitignore").write_text(".venv")
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "add", ".gitignore"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", "theirs"], check=True)
    monkeypatch.setattr(cards, "__file__", str(code))
    assert cards.provenance()["versions"]["sightsound"] == __version__
    subprocess.run([*git, "add", "--force", str(code)], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", "ours"], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert cards.provenance()["versions"]["sightsound"] == f"{__version__} (commit {commit})"


def test_a_script_is_named_as_in_its_repository(monkeypatch, tmp_path) -> None:
    (tmp_path / "dataset_builders").mkdir()
    for named in ("traces.py", "dataset_builders/traces.py"):  # without the file that marks a repository, and with it
        monkeypatch.setattr(sys, "argv", [str(tmp_path / "dataset_builders" / "traces.py")])
        assert cards.provenance()["command"] == f"python {named}"
        (tmp_path / "pyproject.toml").touch()


def test_a_table_is_markdown() -> None:
    assert cards.markdown_table(["a", "b"], [[1, ""]]) == ["| a | b |", "| --- | --- |", "| 1 | |"]


def check_figures(card: str, runs: Path) -> list[float]:
    """Every place says what `results.json` says; returns the accuracies."""
    assert validate(card, "model") == ([], [])
    expected = []
    for name in ("avqa", "mmau"):
        results = json.loads((runs / name / "results.json").read_text())
        protocols = {"paper": results["results"][NO_CONTROL]}
        protocols |= {"official": results["official"][NO_CONTROL]} if "official" in results else {}
        for protocol, figures in protocols.items():
            value, low, high, unanswered = (round(figures[key], 2) for key in ("accuracy", "low", "high", "unanswered"))
            expected.append((name, protocol, value))
            part = f" (asked: {coverage_note(results)})" if coverage_note(results) else ""
            message = f"| {name} | audio/direct | {protocol} | {value} [{low}, {high}] | {unanswered} | {figures['n']}{part} |"
            assert message in card
        assert f"revision `{results['benchmark_revision']}`" in card
    found = ModelCard(card).data.eval_results
    protocols_found = [re.search(r": (\w+) protocol", result.metric_name)[1] for result in found]
    assert [(r.dataset_name, p, r.metric_value) for r, p in zip(found, protocols_found, strict=True)] == expected
    return [value for *_, value in expected]


def test_the_card_says_what_was_not_answered_and_what_was_cut(released, model, runs) -> None:
    avqa, mmau = publish.read_runs([str(runs)], model)
    lost = {"outcomes": {"none": {"answered": 2, "missing_media": 1, "refused": 1}, "silent": {"answered": 4}}, "clips_cut": 2}
    card = publish.write_card((released / "README.md").read_text(), [replace(avqa, results=avqa.results | lost), mmau], REPO_ID)
    assert validate(card, "model") == ([], []) and not re.search(r"\n\n\n", card)
    assert card.count("| the clip |") == 1 and "| the clip | 2 | 1 missing_media, 1 refused | 2 |\n" in card
    assert "the clip" not in (released / "README.md").read_text()


def test_nothing_that_is_published_says_where_it_lay(released, tmp_path_factory) -> None:
    parts = ["run/model", str(tmp_path_factory.getbasetemp())]
    card = (released / "README.md").read_text()
    rows = [row for file in (released / "predictions").iterdir() for row in pq.read_table(file).to_pylist()]
    assert {row["model"] for row in rows} == {parts[0]}
    assert parts[1] not in card and parts[1] not in json.dumps(rows)


def test_card_and_index_say_the_figures_of_the_results(released, model, runs) -> None:
    card = (released / "README.md").read_text()
    check_figures(card, runs)
    assert card.count("## Results") == 1 and "None were published" not in card
    mute = [f"{name} (audio/direct) answers none of its {n} questions" for name, n in (("avqa", 4), ("mmau", 3))]
    assert f"ANSWERS NOTHING: {'; '.join(mute)}." in card and "answers to" not in card, "its weights are random"
    assert f'from_pretrained("{REPO_ID}")' in card and "PATH_OR_ID" not in card
    assert not list((released / ".eval_results").iterdir()), "their questions came from folders"
    assert publish.write_card(card, publish.read_runs([str(runs)], model), REPO_ID) == card, "written once more, it is the same"
    seen = [replace(run, results=run.results | {"method": "video/direct"}) for run in publish.read_runs([str(runs)], model)]
    assert "Audio use not tested: no run received audio." in publish.write_card(card, seen, REPO_ID)


def test_answers_of_a_server_are_said_to_be_that(model, tiny_dataset, questions, mmau, tmp_path) -> None:
    letter = LETTERS[questions[0]["answer"]]
    with OpenAIServer(lambda ask: [f"<answer>{letter}</answer>"] * ask.n) as server:
        evaluate("tiny", tmp_path / "run", [f"avqa={tiny_dataset}", f"mmau={mmau}"], base_url=server.base_url)
    publish.assemble(model, publish.read_runs([str(tmp_path / "run")], model), REPO_ID, tmp_path / "release")
    card = (tmp_path / "release" / "README.md").read_text()
    _, paper, official = check_figures(card, tmp_path / "run")
    assert paper > 0 == official, "a letter is an answer to one protocol and not to the other"
    assert "The answers to mmau (audio/direct) came from a server that called its model `tiny`" in card


def test_results_on_a_dataset_of_the_hub_are_in_eval_results_with_its_revision(model, runs) -> None:
    commit = "0123456789" * 4
    [run] = publish.read_runs([str(runs / "mmau")], model)
    settings = run.results["settings"] | {"dataset": "alice/mmau"}
    run = replace(run, results=run.results | {"settings": settings, "benchmark_revision": commit})
    from huggingface_hub import eval_result_entries_to_yaml

    entries = parse_eval_result_entries(yaml.safe_load(yaml.safe_dump(eval_result_entries_to_yaml(run.entries(REPO_ID)))))
    assert [(e.dataset_id, e.task_id, e.dataset_revision) for e in entries] == [
        ("alice/mmau", "mmau_paper", commit),
        ("alice/mmau", "mmau_official", commit),
    ]
    indexed = [(each.dataset_type, each.dataset_revision, each.metric_value) for each in run.model_index()]
    assert indexed == [("alice/mmau", commit, entry.value) for entry in entries]
    assert entries[0].source_url.endswith("/alice/student/blob/main/predictions/mmau-audio-direct.parquet")
    assert "95 % interval [" in entries[0].notes and "n = 3 (asked: 3 of 1,000 questions)" in entries[0].notes


READING = re.compile(r"^## Reading it$.*?^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def test_a_dataset_cards_lines_read_the_audio_without_ffmpeg(tiny_dataset, tmp_path) -> None:
    """In a process of its own, as written, where the card's dataset is a folder; torchcodec would fail without ffmpeg."""
    card = (tiny_dataset / "README.md").read_text()
    assert 'pip install "datasets>=4" soundfile' in card
    lines = READING.search(card)[1]
    assert f'load_dataset("{tiny_dataset.name}"' in lines
    (tmp_path / tiny_dataset.name).symlink_to(tiny_dataset)
    check = "\nimport sys\nassert 'torchcodec' not in sys.modules\nprint(sampling_rate, len(waveform), waveform.ndim)"
    done = subprocess.run([sys.executable, "-c", lines + check], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["16000", "32000", "1"], done.stderr


def test_publishing_puts_the_repositorys_name_into_the_lines_of_the_card(monkeypatch, tmp_path) -> None:
    from sightsound.hub import publish as hub

    monkeypatch.setattr(hub, "publish_dataset", lambda folder, name, private: "build-0")
    (tmp_path / "README.md").write_text('load_dataset("avqa-audio", split="train")')
    for name in ("my-lab/avqa-audio", "my-lab/other"):
        PublishArguments(push_to_hub=name).publish(tmp_path)
        assert (tmp_path / "README.md").read_text() == f'load_dataset("{name}", split="train")'
