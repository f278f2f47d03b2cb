"""Labels from evaluation runs without the clips: what is counted, what is copied, and which runs are refused."""

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from dataset_builders import audio_contribution
from sightsound.building import contribution_labels
from sightsound.cli import InputError
from sightsound.data import parquet, schema
from sightsound.data.statistics import wilson_interval
from sightsound.hub.cards import write_dataset_card
from sightsound.hub.inputs import front_matter_of
from sightsound.method.audio_contribution import contributions_of
from sightsound.stage import read_settings
from tests.support import evaluation
from tests.support.card_rules import FRONT, validate
from tests.support.loopback_hub import client_environment, loopback_hub
from tests.support.openai_server import OpenAIServer
from tests.support.tiny import REPO, read_ledger, read_rows


__all__ = ["loopback_hub"]  # the fixture


BLIND = ["silent", "text_only"]


def letter(index: int) -> str:
    return f"<answer>{'ABCD'[index]}</answer>"


def blind_run(folder: Path, dataset: Path, model: str, right: dict[str, set[str]], **flags: Any) -> Path:
    """A real run of a served model that is right under a condition on the questions in `right`; `flags` are further flags."""
    split = flags.get("split", "train")
    by_question = {row["question"]: row for row in parquet.open_dataset(str(dataset), split)}

    def answer(ask):
        row = by_question[ask.text.splitlines()[0]]
        condition = "text_only" if ask.audio is None else "silent" if not ask.audio.any() else "none"
        is_right = row["id"] in right.get(condition, ())
        return [letter(row["answer"] if is_right else (row["answer"] + 1) % 4)]

    with OpenAIServer(answer) as server:
        given = {"benchmark": "avqa", "dataset": dataset, "split": "train", "controls": BLIND, **flags}
        evaluation.run(**given, model=model, base_url=server.base_url, output_dir=folder)
    return folder


def label(monkeypatch, capsys=None, **flags: Any) -> str:
    parts = [[f"--{name}", *map(str, value if isinstance(value, list) else [value])] for name, value in flags.items()]
    monkeypatch.setattr(sys, "argv", ["dataset_builders/audio_contribution.py", *(part for flag in parts for part in flag)])
    audio_contribution.main()
    return capsys.readouterr().out if capsys is not None else ""


@pytest.fixture(scope="module")
def unique(questions, tiny_dataset, tmp_path_factory) -> Path:
    """The tiny dataset, with a text of its own for each question, so that a scripted model can tell them apart."""
    folder = tmp_path_factory.mktemp("unique") / "avqa-audio"
    for split in ("train", "validation"):
        rows = [dict(row) for row in parquet.open_dataset(str(tiny_dataset), split)]
        for row in rows:
            row["question"] = f"{row['id']}: {row['question']}"
        # Two files, so that a run can be stopped between them.
        for i, part in enumerate((rows[: len(rows) // 2], rows[len(rows) // 2 :])):
            name = f"{split}-{i:05d}-of-00002.parquet"
            parquet.write_parquet(part, schema.avqa_audio_features(), folder / "data" / name)
    entries = [{"id": row["id"], "outcome": "built", "detail": None, "split": "train"} for row in read_rows(tiny_dataset)]
    entries[0]["detail"] = "x.wav was used"
    entries += [{"id": "0", "outcome": "built", "detail": None, "split": "validation"}]
    entries += [{"id": "gone", "outcome": "missing_media", "detail": "no clip named gone.*", "split": "train"}]
    parquet.write_parquet(entries, schema.build_ledger_features(), folder / "ledger.parquet")
    configs = {"default": {split: f"data/{split}-*.parquet" for split in ("train", "validation")}}
    text = (Path(tiny_dataset) / "README.md").read_text()
    write_dataset_card(folder, FRONT.sub("", text).lstrip("\n"), configs, license="other", sightsound={"benchmark": "avqa"})
    return folder


@pytest.fixture(scope="module")
def runs(unique, tmp_path_factory) -> list[Path]:
    """Two models. Question 0 is always guessed, question 1 by one of them, question 2 with silence by both."""
    folder = tmp_path_factory.mktemp("runs")
    first = blind_run(folder / "a", unique, "a", {"text_only": {"0", "1"}, "silent": {"0", "2"}})
    second = blind_run(folder / "b", unique, "b", {"text_only": {"0"}, "silent": {"0", "2"}}, limit=8)
    return [first, second]


def columns(word: str, text_only: float, silent: float, tries: int) -> dict:
    return dict(zip(schema.CONTRIBUTION_COLUMNS, (word, text_only, silent, tries), strict=True))


EXPECTED = [columns("weak", 1.0, 1.0, 2), columns("strong", 0.5, 0.0, 2), columns("weak", 0.0, 1.0, 2)]
EXPECTED += [columns("strong", 0.0, 0.0, 2)] * 5 + [columns("strong", 0.0, 0.0, 1)] * 4


@pytest.fixture(scope="module")
def labelled(unique, runs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("labelled") / "out"
    with pytest.MonkeyPatch.context() as patch:
        label(patch, dataset=unique, split="train", runs=runs, output_dir=folder)
    return folder


def without_labels(rows: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name not in schema.CONTRIBUTION_COLUMNS} for row in rows]


def test_each_run_is_one_try_and_everything_else_is_copied(labelled, unique) -> None:
    for split in ("train", "validation"):
        before, after = (parquet.open_dataset(str(folder), split) for folder in (unique, labelled))
        assert after.features == before.features
        assert without_labels(list(after)) == without_labels(list(before)), "audio too, byte for byte"
    train = parquet.open_dataset(str(labelled), "train")
    assert list(contributions_of(train).values()) == EXPECTED
    assert set(parquet.open_dataset(str(labelled), "validation")["audio_contribution"]) == {"unknown"}


def test_the_ledger_keeps_every_annotation_and_says_the_label(labelled, unique) -> None:
    before, after = read_ledger(unique), read_ledger(labelled)
    assert [(e["id"], e["outcome"], e["split"]) for e in after] == [(e["id"], e["outcome"], e["split"]) for e in before]
    assert after[0]["detail"] == (
        "x.wav was used; audio contribution weak: 2 of 2 right with the question alone, 2 of 2 right with silence"
    )
    assert after[1]["detail"] == "audio contribution strong: 1 of 2 right with the question alone, 0 of 2 right with silence"
    assert after[12:] == before[12:], "another split, and an annotation without a clip"


def test_the_card_says_the_share_with_its_interval_and_who_was_asked(labelled) -> None:
    card = (labelled / "README.md").read_text()
    low, high = wilson_interval(10, 12)
    assert f"| `strong` | 10 | 83.3 % | {100 * low:.1f}-{100 * high:.1f} % |\n| `weak` | 2 | 16.7 % |" in card
    assert "| `unknown` | 0 | | |" in card
    assert re.search(r"\| `a` \| .* \| `audio/direct` \| 0 \| `[0-9a-z/._-]+` \| 16\.7 % of 12 \| 16\.7 % of 12 \|", card)
    assert re.search(r"\| `b` \| .* \| `audio/direct` \| 0 \| `.*` \| 12\.5 % of 8 \| 25\.0 % of 8 \|", card)
    assert card.index("## Audio contribution") < card.index("## Intended use") < card.index("## Licence")
    assert '"audio_contribution": "weak"' in card, "the row that the card shows"
    assert 'load_dataset("out"' in card and "python dataset_builders/audio_contribution.py --dataset avqa-audio" in card
    assert validate(card, "dataset") == ([], [])
    assert front_matter_of(str(labelled))["sightsound"] == {"benchmark": "avqa"}
    front = yaml.safe_load(FRONT.match(card)[1])
    assert front["license"] == "other"
    assert {split["name"]: split["num_examples"] for split in front["dataset_info"]["splits"]} == {"train": 12, "validation": 4}


def test_a_labelled_dataset_is_labelled_again_with_more_runs(labelled, unique, runs, tmp_path, monkeypatch, capsys) -> None:
    third = blind_run(tmp_path / "c", labelled, "c", {"text_only": {"1"}, "silent": set()})
    out = label(monkeypatch, capsys, dataset=labelled, runs=[*runs, third], output_dir=tmp_path / "again")
    assert out.endswith("12 questions: 9 strong, 3 weak, 0 unknown\n")
    found = contributions_of(parquet.open_dataset(str(tmp_path / "again"), "train"))
    assert found["1"] == columns("weak", pytest.approx(2 / 3), 0.0, 3)
    card, entry = (tmp_path / "again" / "README.md").read_text(), read_ledger(tmp_path / "again")[0]
    assert card.count("## Audio contribution\n") == 1 and "| `c` |" in card
    assert entry["detail"].count("audio contribution ") == 1 and entry["detail"].startswith("x.wav was used; ")
    out = label(monkeypatch, capsys, dataset=labelled, runs=[*runs, third], output_dir=tmp_path / "again")
    assert out == f"{tmp_path / 'again'} is complete\n"


def test_a_run_on_some_questions_leaves_the_others_unknown(unique, runs, tmp_path, monkeypatch, capsys) -> None:
    out = label(monkeypatch, capsys, dataset=unique, runs=[runs[1]], output_dir=tmp_path / "out")
    assert "12 questions: 6 strong, 2 weak, 4 unknown\n" in out
    assert out.endswith("4 of 12 questions are in no run, and keep what was known of them\n")
    assert "| `unknown` | 4 | | |" in (tmp_path / "out" / "README.md").read_text()


def test_a_dataset_that_is_older_than_the_columns_is_labelled(questions, tmp_path, monkeypatch, capsys) -> None:
    features = schema.avqa_audio_features()
    for name in schema.CONTRIBUTION_COLUMNS:
        features.pop(name)
    rows = [row | {"question": f"{row['id']}: {row['question']}"} for row in questions[:3]]
    parquet.write_parquet(rows, features, tmp_path / "old" / "data" / "train-00000-of-00001.parquet")
    write_dataset_card(tmp_path / "old", "# Old\n", {"default": {"train": "data/*.parquet"}})
    run = blind_run(tmp_path / "run", tmp_path / "old", "a", {"text_only": {"0"}})
    label(monkeypatch, capsys, dataset=tmp_path / "old", runs=[run], output_dir=tmp_path / "out")
    loaded = parquet.open_dataset(str(tmp_path / "out"), "train")
    assert loaded["audio_contribution"][:] == ["weak", "strong", "strong"]
    assert without_labels(list(loaded)) == without_labels(rows)
    assert list(loaded.features) == list(schema.avqa_audio_features())
    assert [entry["outcome"] for entry in read_ledger(tmp_path / "out")] == ["built"] * 3, "a ledger of its own"


def test_a_killed_run_goes_on_and_gives_the_same(labelled, unique, runs, tmp_path, monkeypatch) -> None:
    real, copied = contribution_labels.copy_labelled, []

    def stop_at_the_third(file, target, labels) -> None:
        copied.append(target.name)
        if len(copied) == 3:
            raise KeyboardInterrupt
        real(file, target, labels)

    flags = {"dataset": unique, "runs": runs, "output_dir": tmp_path / "out"}
    monkeypatch.setattr(contribution_labels, "copy_labelled", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        label(monkeypatch, **flags)
    label(monkeypatch, **flags)
    assert len(copied) == 5 and copied[2] == copied[3], "what was written is not written again"
    for file in sorted((labelled / "data").iterdir()):
        assert (tmp_path / "out" / "data" / file.name).read_bytes() == file.read_bytes()


def test_a_dataset_of_the_hub_is_labelled_at_its_commit(labelled, unique, runs, loopback_hub, tmp_path) -> None:
    files = {str(file.relative_to(unique)): file.read_bytes() for file in unique.rglob("*") if file.is_file()}
    loopback_hub.change("alice/avqa-audio", files)
    commit = loopback_hub.repos["datasets/alice/avqa-audio"].resolve("main")
    environment = client_environment(loopback_hub, tmp_path)
    flags = ["--dataset", "alice/avqa-audio", "--runs", *map(str, runs), "--output_dir", str(tmp_path / "out")]
    command = [sys.executable, str(REPO / "dataset_builders" / "audio_contribution.py"), *flags]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert read_settings(tmp_path / "out")["dataset"] == f"alice/avqa-audio@{commit}"
    for file in (*sorted((labelled / "data").iterdir()), labelled / "ledger.parquet"):
        written = tmp_path / "out" / file.relative_to(labelled)
        assert list(parquet.read_parquet([written])) == list(parquet.read_parquet([file])), "as from a folder"


@pytest.mark.slow
def test_kills_at_growing_delays_leave_what_an_uninterrupted_run_writes(labelled, unique, runs, tmp_path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, str(REPO / "dataset_builders" / "audio_contribution.py"), "--dataset", str(unique)]
    command += ["--runs", *map(str, runs), "--output_dir", str(out)]
    kills = 0
    for delay_s in (0.2 + 0.1 * i for i in range(60)):  # up to a machine that is six times as slow
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            time.sleep(delay_s)
            process.kill()
        kills += process.returncode != 0
        if process.returncode == 0:
            break
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and kills >= 2, done.stderr
    for file in (*sorted((labelled / "data").iterdir()), labelled / "ledger.parquet"):
        assert (out / file.relative_to(labelled)).read_bytes() == file.read_bytes()


def test_a_model_that_takes_no_question_without_sound_has_tried_silence_alone(unique, tmp_path, monkeypatch, capsys) -> None:
    def needs_audio(ask):
        if ask.audio is None:
            raise ValueError("This model requires that either input content or output modality contain audio.")
        return [letter(0)]

    with OpenAIServer(needs_audio) as server:
        given = {"benchmark": "avqa", "dataset": unique, "split": "train", "controls": BLIND, "base_url": server.base_url}
        evaluation.run(**given, model="gpt-audio", output_dir=tmp_path / "run")
    label(monkeypatch, capsys, dataset=unique, runs=[tmp_path / "run"], output_dir=tmp_path / "out")
    rows = parquet.open_dataset(str(tmp_path / "out"), "train")
    assert set(rows["text_only_correct"]) == {None} and set(rows["blind_tries"]) == {1}
    assert rows["silent_correct"][:] == [float(answer == 0) for answer in rows["answer"]]


def refused(monkeypatch, output_dir: Path, message: str, **flags: Any) -> None:
    with pytest.raises(InputError, match=message) as error:
        label(monkeypatch, **flags, output_dir=output_dir)
    assert "\n" not in str(error.value) and not output_dir.exists()


def test_runs_that_say_nothing_of_these_questions_are_refused(unique, runs, tiny_dataset, tmp_path, monkeypatch) -> None:
    out, first = tmp_path / "out", runs[0]
    plain = blind_run(tmp_path / "plain", unique, "a", {}, controls=["swapped"])
    other = blind_run(tmp_path / "other", unique, "a", {}, split="validation")
    silent = blind_run(tmp_path / "silent", unique, "c", {}, controls=["silent"])
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "stage.json").write_text('{"settings": {}, "complete": false}')
    cases = [
        ([plain], rf"^--runs: {plain} has only the controls none, swapped, expected text_only or silent; run the same"),
        ([other], rf"^--runs: {other} is about split 'validation', expected 'train'; evaluate with --split train$"),
        ([first, silent], r"^--runs: \S+/a has answers under text_only and silent, \S+/silent under silent; give runs with"),
        ([first, first], r"^--runs names a folder twice; a run is one try$"),
        ([tmp_path / "half"], r"^--runs: \S+/half is not complete; rerun its evaluation first$"),
        ([tmp_path / "none"], r"^--runs: \S+/none is no folder; give the --output_dir of a finished `python -m evaluation"),
        ([unique], r"^--runs: \S+ holds no predictions; give the --output_dir of a finished"),
    ]
    for folders, message in cases:
        refused(monkeypatch, out, message, dataset=unique, runs=folders)
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(first), str(copy)], check=True)
    message = r"\S+/a and \S+/copy have the same model \(a\), method \(audio/direct\) and seed \(0\): one try; give one of"
    refused(monkeypatch, out, message, dataset=unique, runs=[first, copy])
    message = r"^cannot open split 'test' of \S+ \('test'\); expected a dataset folder"
    refused(monkeypatch, out, message, dataset=unique, runs=[first], split="test")
    refused(monkeypatch, out, r"does not hold clips with questions", dataset=first, runs=[first])


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("method", "audio_video/direct", r"was asked with audio_video/direct: it saw the video; evaluate with"),
        ("generation", '{"seed": 0, "traces": "abc"}', r"was given a teacher's reasoning about the clips; evaluate"),
    ],
)
def test_a_run_that_was_given_something_of_the_clip_is_refused(
    column, value, message, unique, runs, tmp_path, monkeypatch
) -> None:
    subprocess.run(["cp", "-r", str(runs[0]), str(tmp_path / "run")], check=True)
    file = tmp_path / "run" / "data" / "predictions-avqa.parquet"
    rows = [row | {column: value} for row in parquet.read_parquet([file])]
    parquet.write_parquet(rows, schema.predictions_features(), file)
    refused(monkeypatch, tmp_path / "out", message, dataset=unique, runs=[tmp_path / "run"])


def test_runs_on_another_dataset_are_refused(unique, runs, tmp_path, monkeypatch) -> None:
    rows = read_rows(unique)
    for name, changed, message in (
        ("fewer", rows[:3], r"has a question 3 that --dataset lacks; give the --output_dir"),
        ("choices", [rows[0] | {"choices": ["x", *rows[0]["choices"][1:]]}, *rows[1:]], r"has question 0 with choices \["),
        ("longer", [*rows[:-1], rows[-1] | {"duration_s": 9.0}], r"question 11 with duration_s 2\.0, expected 9\.0;"),
    ):
        folder = tmp_path / name
        parquet.write_parquet(changed, schema.avqa_audio_features(), folder / "data" / "train-00000-of-00001.parquet")
        write_dataset_card(folder, "# Other\n", {"default": {"train": "data/*.parquet"}})
        refused(monkeypatch, tmp_path / "out", message, dataset=folder, runs=[runs[0]])


MEMORY = """
import os, resource, sys
from pathlib import Path
from sightsound.building.contribution_labels import copy_labelled
from sightsound.data import parquet, schema

def copy(count):
    file = Path(sys.argv[1]) / f"{count}.parquet"
    texts = set(schema.avqa_audio_features()) - set(schema.CONTRIBUTION_COLUMNS)
    row = dict.fromkeys(texts, "x") | {"start_s": 0.0, "duration_s": 1.0, "choices": ["a"], "answer": 0}
    audio = lambda: {"bytes": os.urandom(200_000), "path": "x.flac"}
    rows = (row | {"id": str(i), "audio": audio()} for i in range(count))
    parquet.write_parquet(rows, schema.avqa_audio_features(), file)
    label = dict(zip(schema.CONTRIBUTION_COLUMNS, ("weak", 1.0, 1.0, 1)))
    copy_labelled(str(file), file.with_name("copy.parquet"), {str(i): label for i in range(count)})
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

few, many = copy(100), copy(1000)
print(many / few)
"""


def test_ten_times_the_rows_take_no_more_memory(tmp_path) -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= 1.1
