"""Common mistakes at every script: one line that names what is wrong, exit code 2, and nothing left behind."""

import gc
import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support import tiny
from tests.support.tiny import REPO


# A script that ends with an error leaves its journal to the interpreter.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
MINIATURE = REPO / "recipes" / "miniature"
GOOD = {
    "dataset_builders/traces.py": {
        "dataset": "avqa", "media_dir": "clips", "model": "teacher", "num_traces": 1, "max_tokens": 2, "limit": 1
    },
    "dataset_builders/verdicts.py": {"dataset": "avqa", "traces": "traces", "checker": "student", "max_tokens": 2, "limit": 1},
    "dataset_builders/cot_corpus.py": {"dataset": "avqa", "traces": "traces", "verdicts": "verdicts"},
    "recipes/sft.py": {
        "config": MINIATURE / "sft_cot.yaml", "traces": "corpus", "audio": "avqa", "model_name_or_path": "student"
    },
    "recipes/grpo.py": {
        "config": MINIATURE / "grpo_tts_agfv.yaml", "traces": "corpus", "audio": "avqa", "model_name_or_path": "student"
    },
    "recipes/verifier.py": {
        "config": MINIATURE / "verifier.yaml", "verdicts": "verdicts", "audio": "avqa", "model_name_or_path": "student"
    },
    "evaluation": {"dataset": "avqa", "model": "student", "split": "validation", "limit": 1, "max_tokens": 2},
}  # fmt: skip
DATASETS, MODELS = ("dataset", "traces", "verdicts", "audio"), ("model", "checker", "model_name_or_path")
# What is given -> what is said of it.
NO_DATASET = {
    "./gone": "there is no such folder",
    "gone": "there is no folder gone here, HF_HUB_OFFLINE is set, and the cache has no dataset of that name",
    "lab/gone": "there is no folder lab/gone here, HF_HUB_OFFLINE is set, and the cache has no dataset of that name",
    "avqq": "there is no folder avqq here (did you mean avqa?)",
    "a/b/gone": "there is no such folder",
    "file": "file is a file; expected a dataset folder or a Hub dataset id",
    "empty": "empty is no dataset folder: it holds no data/*.parquet",
    "clips": "clips is no dataset folder: it holds no data/*.parquet",
    "unfinished": "unfinished is not complete; rerun the stage that writes it",
    "cut": "cannot open split",
}
NO_MODEL = {
    "./gone": "there is no such folder",
    "lab/gone": "there is no folder lab/gone here, HF_HUB_OFFLINE is set, and the cache has no model of that name",
    "file": "file is a file; expected a model folder or a Hub model id",
    "empty": "empty is no model: it holds no config.json",
    "trained": "trained holds no config.json; did you mean trained/model?",
    "avqa": "avqa is no model: it holds no config.json",
    "unfinished": "unfinished is not complete; rerun the stage that writes it",
}
OTHER_KINDS = {"dataset": "traces", "audio": "corpus", "traces": "avqa", "verdicts": "avqa"}


@pytest.fixture(scope="module")
def place(tiny_dataset, tiny_world, student_checkpoint, teacher_checkpoint, questions, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    links = {"avqa": tiny_dataset, "clips": tiny_world / "clips", "student": student_checkpoint, "teacher": teacher_checkpoint}
    for name, target in links.items():
        (folder / name).symlink_to(target)
    said = [tiny.trace("<think>I hear a bell.</think><answer>bell</answer>", 0, "I hear a bell.")]
    tiny.write_traces([tiny.trace_row(question, said) for question in questions], folder / "traces")
    judged = [tiny.trace(said[0]["text"], 0, said[0]["think"], "accept")]
    checker = {"checker": "scripted", "checker_revision": "1", "verdict_mode": "yes_no"}
    tiny.write_traces([tiny.trace_row(question, judged, **checker) for question in questions], folder / "verdicts")
    tiny.write_corpus(questions, folder / "corpus")
    for name in ("empty", "unfinished", "trained", "cut/data", "lab"):
        (folder / name).mkdir(parents=True)
    (folder / "file").write_text("[]")
    (folder / "trained" / "model").symlink_to(student_checkpoint)
    (folder / "unfinished" / "stage.json").write_text(json.dumps({"settings": {"seed": 0}, "complete": False}))
    (folder / "cut" / "data" / "train-00000-of-00001.parquet").write_bytes(b"PAR1 and no more")
    return folder


@pytest.fixture
def start(place, monkeypatch, capsys):
    """Run a script as it is launched, with its good flags but for some; returns exit code and standard error."""
    monkeypatch.chdir(place)

    def run(script: str, further: tuple[str, ...] = (), **changed) -> SimpleNamespace:
        flags = GOOD[script] | {"output_dir": "out"} | changed
        given = [str(part) for name, value in flags.items() if value is not None for part in (f"--{name}", value)]
        module = script == "evaluation"
        monkeypatch.setattr(sys, "argv", [script, *(["run"] if module else []), *given, *further])
        with pytest.raises(SystemExit) as ended:
            if module:
                monkeypatch.delitem(sys.modules, "evaluation.__main__", raising=False)  # runpy warns of one that is imported
                runpy.run_module("evaluation", run_name="__main__")
            else:
                runpy.run_path(str(REPO / script), run_name="__main__")
        return SimpleNamespace(code=ended.value.code, message=capsys.readouterr().err)

    yield run
    gc.collect()  # a journal that the script left open is told of here, and not in the next test


def assert_one_line(done: SimpleNamespace, message: str, place: Path) -> None:
    assert done.code == 2, done.message
    lines = [line for line in done.message.splitlines() if not line.startswith(("Generating", "Using the latest"))]
    assert len([line for line in lines if line.strip()]) == 1 and lines[-1].startswith("error: "), done.message
    assert message in lines[-1], lines[-1]
    assert not (place / "out").exists(), "the corrected command may use the folder"


FLAGS = [(script, flag) for script, flags in GOOD.items() for flag in flags]


@pytest.mark.parametrize(("script", "flag"), [each for each in FLAGS if each[1] in DATASETS])
def test_a_dataset_that_is_none_is_named_at_once(script, flag, start, place):
    for source, message in NO_DATASET.items():
        done = start(script, **{flag: source})
        assert_one_line(done, message, place)
        assert source in done.message


@pytest.mark.parametrize(("script", "flag"), [each for each in FLAGS if each[1] in DATASETS])
def test_a_dataset_of_another_kind_is_named_with_what_it_lacks(script, flag, start, place):
    done = start(script, **{flag: OTHER_KINDS[flag]}, **({"split": "train"} if script == "evaluation" else {}))
    assert done.code == 2 and done.message.count("\n") == 1, done.message
    assert OTHER_KINDS[flag] in done.message
    assert "lacks" in done.message or "BuilderConfig 'traces' not found" in done.message
    assert not (place / "out").exists()


@pytest.mark.parametrize("script", GOOD)
def test_a_wrong_split_is_named(script, start, place):
    done = start(script, split="trian")
    assert_one_line(done, "cannot open split 'trian' of avqa (Unknown split", place)


@pytest.mark.parametrize(("script", "flag"), [each for each in FLAGS if each[1] in MODELS])
def test_a_model_that_is_none_is_named_at_once(script, flag, start, place):
    for source, message in NO_MODEL.items():
        assert_one_line(start(script, **{flag: source}), message, place)


@pytest.mark.parametrize("script", GOOD)
def test_an_output_folder_that_cannot_be_one_and_mistyped_flags_are_one_line(script, start, place):
    assert_one_line(start(script, output_dir="file"), "--output_dir file cannot be created", place)
    message = "unrecognized arguments: --limt 1" if script == "dataset_builders/cot_corpus.py" else "did you mean --"
    assert_one_line(start(script, ("--sedd" if "recipes" in script else "--limt", "1")), message, place)
    missing = next(flag for flag in GOOD[script] if flag in DATASETS)
    done = start(script, (f"--{missing[:-1]}", "avqa"), **{missing: None})
    assert_one_line(done, f"; --{missing[:-1]}: did you mean --{missing}?", place)


@pytest.mark.parametrize(
    ("script", "changed", "message"),
    [
        ("dataset_builders/traces.py", {"media_dir": "gone"}, "--media_dir gone is not a folder"),
        ("dataset_builders/traces.py", {"num_traces": "many"}, "invalid int value: 'many'"),
        ("dataset_builders/traces.py", {"executor": "slurm", "num_tasks": 2, "slurm_partition": "cpu"}, "no sbatch here"),
        ("dataset_builders/traces.py", {"model": "student"}, "takes no video"),
        ("dataset_builders/verdicts.py", {"checker": "teacher"}, "takes no audio"),
        ("recipes/sft.py", {"model_name_or_path": "teacher"}, "expected an audio model"),
        ("recipes/sft.py", {"selection": "ttss"}, "unknown selection 'ttss'"),
        ("recipes/sft.py", {"learning_rate": "fast"}, "invalid float value: 'fast'"),
        ("recipes/sft.py", {"config": "gone.yaml"}, "gone.yaml"),
        ("recipes/sft.py", {"eval_strategy": "steps", "eval_steps": 1, "validation_split": "val"}, "cannot open split 'val'"),
        ("recipes/grpo.py", {"per_device_train_batch_size": 200}, "12 questions do not fill one batch of 25"),
        ("recipes/verifier.py", {"verdicts": "traces"}, "traces holds no verdicts"),
        ("evaluation", {"method": "cot_distill", "traces": "avqa", "split": "train"}, "does not hold teacher traces: it lacks"),
        ("evaluation", {"benchmark": "mmau"}, "avqa is a dataset of avqa, not of mmau"),
    ],
)  # fmt: skip
def test_a_start_that_made_nothing_leaves_nothing(script, changed, message, start, place):
    done = start(script, **changed)
    assert done.code == 2, done.message
    assert message in done.message.splitlines()[-1], done.message
    assert not (place / "out").exists(), sorted((place / "out").rglob("*"))
