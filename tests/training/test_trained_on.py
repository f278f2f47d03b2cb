"""A run on questions that the model was trained on is known and marked, whatever became of the dataset and the model."""

import json
import shutil
from pathlib import Path

import pytest

from sightsound.data import schema
from sightsound.data.parquet import open_dataset
from sightsound.stage import fingerprint
from sightsound.training.trained_on import TRAINED_FILE, count_trained_on, read_trained_on, write_trained_on
from tests.support.evaluation import read, run, write_benchmark


@pytest.fixture
def trained(student_checkpoint, tiny_dataset, tmp_path) -> Path:
    """A student that was trained on the first three questions."""
    model = shutil.copytree(student_checkpoint, tmp_path / "sft" / "model")
    ids = set(open_dataset(str(tiny_dataset), "train")["id"][:3])
    write_trained_on(model, audio=str(tiny_dataset), split="train", used=ids, base=str(student_checkpoint))
    return model


def test_questions_are_known_in_a_dataset_that_was_built_anew_and_in_a_copied_model(trained, questions, tmp_path):
    rows = [row | {"id": f"another {i}"} for i, row in enumerate(questions[:4])]
    folder = write_benchmark(rows, schema.avqa_audio_features(), "validation", tmp_path / "anew")
    copy = shutil.copytree(trained, tmp_path / "copy")
    for model in (trained, copy):
        assert (
            count_trained_on(str(model), None, open_dataset(str(folder), "validation"), dataset=str(folder), split="validation")
            == 3
        )


def test_ids_that_repeat_in_another_split_are_other_questions(trained, questions, tmp_path):
    changed = ({"media_sha256": "another"}, {"start_s": 99.0}, {"question": "Another one?"})
    rows = [questions[i] | change for i, change in enumerate(changed)]
    folder = write_benchmark(rows, schema.avqa_audio_features(), "validation", tmp_path / "others")
    assert (
        count_trained_on(str(trained), None, open_dataset(str(folder), "validation"), dataset=str(folder), split="validation")
        == 0
    )


def test_what_the_base_was_trained_on_is_handed_on(trained, tiny_dataset, tmp_path):
    last = open_dataset(str(tiny_dataset), "train")["id"][-1]
    (tmp_path / "grpo").mkdir()
    write_trained_on(tmp_path / "grpo", audio=str(tiny_dataset), split="train", used={last}, base=str(trained))
    handed_on = read_trained_on(str(tmp_path / "grpo"))
    assert len(handed_on) == 4 and handed_on > read_trained_on(str(trained))


def test_a_model_that_tells_nothing_is_not_called_clean(student_checkpoint, tiny_dataset, trained):
    rows = open_dataset(str(tiny_dataset), "train")
    assert count_trained_on(str(student_checkpoint), None, rows, dataset=str(tiny_dataset), split="train") is None
    assert count_trained_on("alice/not-in-the-cache", None, rows, dataset=str(tiny_dataset), split="train") is None
    (trained / TRAINED_FILE).unlink()  # by a version that did not write it: its stage says which split it was
    settings = {"audio": fingerprint(str(tiny_dataset)), "split": "train", "selection": "tts"}
    (trained.parent / "stage.json").write_text(json.dumps({"settings": settings, "complete": True}))
    assert count_trained_on(str(trained), None, rows, dataset=str(tiny_dataset), split="train") == len(rows)
    assert count_trained_on(str(trained), None, rows, dataset=str(tiny_dataset), split="validation") is None


def test_the_run_says_so_itself(trained, tiny_dataset, tmp_path, capsys):
    run(model=trained, dataset=tiny_dataset, split="train", output_dir=tmp_path / "run", max_tokens=2, limit=4)
    assert "TRAINED ON 3 of these 4 questions" in capsys.readouterr().out
    results, predictions = read(tmp_path / "run")
    assert results["trained_on"] == 3 and {p["split"] for p in predictions} == {"train"} == {results["split"]}
