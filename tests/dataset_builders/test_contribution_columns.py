"""The columns of the audio contribution on their way from the dataset to the corpus, also in files that are older than they."""

import sys
from pathlib import Path

import pytest

from dataset_builders import cot_corpus, traces, verdicts
from evaluation.benchmarks import load_benchmark
from sightsound.data import parquet, schema
from sightsound.hub.cards import write_dataset_card
from sightsound.method.audio_contribution import STRONG, UNKNOWN, WEAK, contributions_of
from tests.support.openai_server import OpenAIServer
from tests.support.tiny import read_rows


NUM_QUESTIONS = 3
NOBODY_TRIED = {"audio_contribution": UNKNOWN, "text_only_correct": None, "silent_correct": None, "blind_tries": None}
LABELS = [
    {"audio_contribution": STRONG, "text_only_correct": 0.25, "silent_correct": 0.5, "blind_tries": 4},
    {"audio_contribution": WEAK, "text_only_correct": 0.75, "silent_correct": 0.5, "blind_tries": 4},
    NOBODY_TRIED,
]


def write_dataset(rows: list[dict], folder: Path, *, is_old: bool = False) -> Path:
    features = schema.avqa_audio_features()
    for name in schema.CONTRIBUTION_COLUMNS if is_old else ():
        features.pop(name)
    parquet.write_parquet(rows, features, folder / "data" / "train-00000-of-00001.parquet")
    write_dataset_card(folder, "# Questions\n", {"default": {"train": "data/train-*.parquet"}})
    return folder


@pytest.fixture(scope="module")
def labelled(questions, tmp_path_factory) -> Path:
    rows = [row | label for row, label in zip(questions, LABELS, strict=False)]
    return write_dataset(rows, tmp_path_factory.mktemp("labelled"))


@pytest.fixture(scope="module")
def old(questions, tmp_path_factory) -> Path:
    """A dataset that was built before there were such columns."""
    return write_dataset(questions[:NUM_QUESTIONS], tmp_path_factory.mktemp("old"), is_old=True)


def columns_of(folder: Path, config: str | None = None) -> list[dict]:
    return list(contributions_of(parquet.open_dataset(str(folder), "train", config)).values())


def run_main(module, monkeypatch, **flags) -> None:
    given = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", [module.__name__, *given])
    module.main()


def answer(ask) -> list[str]:
    if ask.audio is not None:
        return ["yes"]
    first = ask.text.partition("A. ")[2].splitlines()[0]
    return [f"<think>I hear it.</think><answer>{first}</answer>"] * ask.n


def make_corpus(stages: dict[str, Path], media: Path, folder: Path, monkeypatch) -> Path:
    """Trace, check and build; `stages` says which dataset each of them is given."""
    traced, checked = folder / "traces", folder / "verdicts"
    with OpenAIServer(answer) as server:
        shared = {"base_url": server.base_url}
        flags = {"dataset": stages["traces"], "media_dir": media, "model": "teacher", "num_traces": 2, "limit": NUM_QUESTIONS}
        run_main(traces, monkeypatch, **shared, **flags, output_dir=traced)
        flags = {"dataset": stages["verdicts"], "traces": traced, "checker": "checker"}
        run_main(verdicts, monkeypatch, **shared, **flags, output_dir=checked)
    flags = {"dataset": stages["corpus"], "traces": traced, "verdicts": checked}
    run_main(cot_corpus, monkeypatch, **flags, output_dir=folder / "corpus")
    return folder


def test_each_stage_carries_what_the_dataset_says(labelled, tiny_world, tmp_path, monkeypatch) -> None:
    folder = make_corpus(dict.fromkeys(("traces", "verdicts", "corpus"), labelled), tiny_world / "clips", tmp_path, monkeypatch)
    for found in (folder / "traces", folder / "verdicts"):
        assert columns_of(found) == LABELS, found.name
    for config in ("verified", "traces"):
        assert columns_of(folder / "corpus", config) == LABELS, config
    assert '"audio_contribution": "strong"' in (folder / "corpus" / "README.md").read_text()


def test_a_dataset_that_was_labelled_after_tracing_labels_its_corpus(old, labelled, tiny_world, tmp_path, monkeypatch) -> None:
    stages = {"traces": old, "verdicts": labelled, "corpus": labelled}
    folder = make_corpus(stages, tiny_world / "clips", tmp_path, monkeypatch)
    assert columns_of(folder / "traces") == [NOBODY_TRIED] * NUM_QUESTIONS
    assert columns_of(folder / "verdicts") == LABELS
    assert columns_of(folder / "corpus", "verified") == columns_of(folder / "corpus", "traces") == LABELS


def test_traces_keep_what_they_know_when_the_dataset_is_older(old, labelled, tiny_world, tmp_path, monkeypatch) -> None:
    stages = {"traces": labelled, "verdicts": old, "corpus": old}
    folder = make_corpus(stages, tiny_world / "clips", tmp_path, monkeypatch)
    assert columns_of(folder / "verdicts") == columns_of(folder / "corpus", "traces") == LABELS


def test_ledgers_that_are_older_than_the_columns_are_read(old, labelled, tiny_world, tmp_path, monkeypatch) -> None:
    make_corpus(dict.fromkeys(("traces", "verdicts", "corpus"), old), tiny_world / "clips", tmp_path, monkeypatch)
    features = schema.traces_features()
    for name in schema.CONTRIBUTION_COLUMNS:
        features.pop(name)
    for stage in ("traces", "verdicts"):
        rows = read_rows(tmp_path / stage)
        parquet.write_parquet(rows, features, tmp_path / stage / "data" / "train-00000-of-00001.parquet")
        write_dataset_card(tmp_path / stage, "# Old\n", {"default": {"train": "data/*.parquet"}})
    flags = {"traces": tmp_path / "traces", "verdicts": tmp_path / "verdicts"}
    for dataset, expected in ((old, [NOBODY_TRIED] * NUM_QUESTIONS), (labelled, LABELS)):
        output = tmp_path / f"corpus-{dataset.name}"
        run_main(cot_corpus, monkeypatch, dataset=dataset, **flags, output_dir=output)
        assert columns_of(output, "verified") == columns_of(output, "traces") == expected


def test_the_evaluation_reads_datasets_that_are_older_than_the_columns(old, labelled) -> None:
    for folder in (old, labelled):
        rows, _ = load_benchmark("avqa", str(folder), "train", None)
        assert len(rows) == NUM_QUESTIONS
