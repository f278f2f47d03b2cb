"""A benchmark is added by one file: it is built, asked, scored and reported by its own rules; a dataset names its benchmark."""

import json
from pathlib import Path

import pytest
import yaml

from evaluation import report, score
from evaluation.benchmarks import load_benchmark
from sightsound import benchmarks
from sightsound.benchmarks import benchmark_in, benchmark_names, front_matter_for, get_benchmark, mmau
from sightsound.building.audio_dataset import AudioDatasetArguments, build_dataset
from sightsound.cli import InputError
from sightsound.data import parquet, schema
from sightsound.hub.cards import write_dataset_card
from sightsound.hub.inputs import front_matter_of
from tests.support.evaluation import always, read, run
from tests.support.openai_server import OpenAIServer


TOY = '''
"""
Tempo: is a rhythm slow or fast? One annotation:

    {"number": 7, "clip": "beat-7", "asks": "How fast is the video?", "options": ["slow", "fast"], "right": "fast", "bpm": 140,
     "practice": false}
"""

from sightsound.benchmarks import BREAKDOWNS, Benchmark, Breakdown, OfficialRule
from sightsound.data import schema
from sightsound.data.annotations import audio_question, expect_choices, expect_id, expect_keys, expect_text
from sightsound.data.pinned import PinnedFile


def features():
    from datasets import Features, Value

    return Features({**schema.avqa_audio_features(), "tempo": Value("string"), "in_paper": Value("bool")})


def to_row(annotation):
    expect_keys(annotation, ("number", "clip", "asks", "options", "right", "bpm", "practice"))
    question, choices = expect_text(annotation, "asks"), expect_choices(annotation["options"], 2, 2)
    return {
        "id": expect_id(annotation, "number"),
        "video_id": expect_text(annotation, "clip"),
        "start_s": 0.0,
        "question": audio_question(question),
        "video_question": question,
        "choices": choices,
        "answer": choices.index(annotation["right"]),
        "answer_text": annotation["right"],
        "question_relation": "Sound",
        "question_type": "Tempo",
        "tempo": "over 120" if annotation["bpm"] > 120 else "to 120",
        "in_paper": not annotation["practice"],
    }


BENCHMARK = Benchmark(
    pinned=PinnedFile("tempo.jsonl of nobody", "0" * 64, questions=4),
    official_file="Tempo's tempo.jsonl",
    id_key="number",
    choices_key="options",
    text_keys={"asks": ("video_question",)},
    to_row=to_row,
    features=features,
    card="dataset_audio_build.md",
    front_matter={"license": "cc0-1.0", "pretty_name": "Tempo"},
    breakdowns=BREAKDOWNS | {"by_tempo": Breakdown("tempo", "By tempo in beats per minute")},
    averages_in_paper=True,
    official_rule=OfficialRule("shouted", lambda answer_text, row: answer_text == row["answer_text"].upper() or None),
)
'''
ANNOTATIONS = [
    {"number": i, "clip": f"beat-{i}", "asks": "How fast is the video?", "options": ["slow", "fast"], "right": right}
    | {"bpm": bpm, "practice": i == 3}
    for i, (right, bpm) in enumerate([("fast", 140), ("slow", 60), ("fast", 130), ("slow", 50)])
]


@pytest.fixture
def tempo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the benchmark's one file, which the package reads as its own; returns its annotations."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "tempo.py").write_text(TOY)
    monkeypatch.setattr(benchmarks, "__path__", [*benchmarks.__path__, str(tmp_path / "files")])
    (tmp_path / "tempo.jsonl").write_text("".join(f"{json.dumps(annotation)}\n" for annotation in ANNOTATIONS))
    yield tmp_path / "tempo.jsonl"
    get_benchmark.cache_clear()


def build(annotations: Path, write_clip) -> Path:
    """What the benchmark's builder does, with its `main` as in `dataset_builders/mmau.py`."""
    for annotation in ANNOTATIONS:
        write_clip(annotations.parent / "clips" / f"{annotation['clip']}.wav", fps=0)
    output = annotations.parent / "tempo"
    args = AudioDatasetArguments(media_dir=str(annotations.parent / "clips"), output_dir=str(output), num_proc=1)
    _, revision = get_benchmark("tempo").read(str(annotations), allow_unpinned=True)
    build_dataset("tempo", args, {"test": str(annotations)}, revision=revision)
    return output


def test_a_benchmark_of_one_file_is_built_asked_and_reported(tempo, write_clip, tmp_path, capsys) -> None:
    dataset = build(tempo, write_clip)
    assert benchmark_in(front_matter_of(str(dataset))) == "tempo"
    with OpenAIServer(always("<answer>FAST</answer>")) as server:
        flags = {"benchmark": "tempo", "dataset": dataset, "model": "tiny", "base_url": server.base_url, "arm": "a"}
        run(**flags, output_dir=tmp_path / "run")
    assert {ask.text.splitlines()[0] for ask in server.asked} == {"How fast is the audio?"}
    results, predictions = read(tmp_path / "run")
    assert len(predictions) == 4 and results["benchmark_questions"] == 4
    official, paper = results["official"]["none"], results["results"]["none"]
    assert official["matched_by"] == {"none": 2, "shouted": 2}, "the rule of the file"
    assert (official["n"], official["unanswered"]) == (paper["n"], 100 * paper["accuracy"] / 200) == (3, pytest.approx(100 / 3))
    assert official["all"]["n"] == 4, "the practice question is not averaged"
    assert {name: part["accuracy"] for name, part in official["by_tempo"].items()} == {"over 120": 100.0, "to 120": 0.0}
    report.main(["--runs", str(tmp_path / "run"), "--output_dir", str(tmp_path / "report")])
    text = (tmp_path / "report" / "report.md").read_text()
    assert "## tempo, split test" in text and "### By tempo in beats per minute" in text
    capsys.readouterr()

    from_file = ["--annotations", str(tempo), "--allow_unpinned"]
    for source in (from_file, ["--dataset", str(dataset)]):
        predictions_file = str(tmp_path / "run" / "data" / "predictions-tempo.parquet")
        score.main(["--benchmark", "tempo", *source, "--predictions", predictions_file, "--json"])
        scored = json.loads(capsys.readouterr().out)["protocols"]
        assert scored["official"]["results"]["none"] == official and scored["paper"]["results"]["none"] == paper


def test_its_pinned_file_and_its_own_keys_are_compared(tempo, tmp_path) -> None:
    flags = ["--benchmark", "tempo", "--annotations", str(tempo), "--predictions", str(tmp_path / "p.json")]
    (tmp_path / "p.json").write_text(json.dumps([{"number": 0, "asks": "How loud?", "model_output": "A"}]))
    with pytest.raises(InputError, match=r"tempo\.jsonl is not tempo\.jsonl of nobody"):
        score.main(flags)
    with pytest.raises(InputError, match="question 0 has other texts there than in tempo in this revision"):
        score.main([*flags, "--allow_unpinned"])


def test_an_unknown_benchmark_is_one_error_with_all_names(tempo) -> None:
    assert benchmark_names() == ["avqa", "mmar", "mmau", "music_avqa", "tempo"]
    with pytest.raises(InputError, match=r"^unknown benchmark 'mmua'; expected one of avqa, mmar, mmau, music_avqa, tempo$"):
        get_benchmark("mmua")


def write(questions: list[dict], folder: Path, benchmark: str | None) -> str:
    """A dataset with MMAU's columns, which says that it is of a benchmark."""
    labels = dict.fromkeys(set(mmau.features()) - set(schema.avqa_audio_features()), "x")
    parquet.write_parquet([row | labels for row in questions[:2]], mmau.features(), folder / "data" / "test.parquet")
    metadata = front_matter_for(benchmark) if benchmark else {}
    write_dataset_card(folder, "# Questions\n", {"default": {"test": "data/*.parquet"}}, **metadata)
    return str(folder)


def test_what_a_dataset_says_of_itself_counts_more_than_its_columns(questions, tmp_path) -> None:
    dataset = write(questions, tmp_path / "mmar", "mmar")
    with pytest.raises(InputError, match="is a dataset of mmar, not of mmau; give --benchmark mmar, or mmau's own"):
        load_benchmark("mmau", dataset, None, None)
    assert len(load_benchmark("avqa", write(questions, tmp_path / "more", "avqa"), "test", None)[0]) == 2


def test_a_dataset_that_says_nothing_is_known_by_its_columns(questions, tmp_path) -> None:
    dataset = write(questions, tmp_path / "old", None)
    assert len(load_benchmark("mmau", dataset, None, None)[0]) == 2
    with pytest.raises(InputError, match="is a dataset of mmau, not of avqa"):
        load_benchmark("avqa", dataset, "test", None)


@pytest.mark.parametrize("front", ["sightsound: mmau", "sightsound: {benchmark: 3}", "sightsound: {other: mmau}", "a: b"])
def test_other_front_matter_says_nothing(front: str) -> None:
    assert benchmark_in(yaml.safe_load(front)) is None
