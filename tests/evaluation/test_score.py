"""`python -m evaluation score`: files of others in each form; what is wrong with one is one line, or counted."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evaluation.benchmarks import load_benchmark, part_asked, read_annotations
from evaluation.reporting.sections import coverage_lines
from evaluation.run import to_prediction
from evaluation.running.controls import shuffle_choices
from evaluation.score import main
from sightsound.benchmarks import benchmark_names, get_benchmark, mmau
from sightsound.cli import InputError
from sightsound.data import parquet
from sightsound.data.audio import encode_flac
from sightsound.hub.cards import write_dataset_card
from tests.support.avqa import annotation as avqa_annotation
from tests.support.loopback_hub import client, client_environment, loopback_hub
from tests.support.mmau import annotation as mmau_annotation
from tests.support.music_avqa import annotation as music_annotation
from tests.support.scoring import ONE, OUTPUTS, score, write


__all__ = ["loopback_hub"]  # the fixture


@pytest.mark.parametrize("name", ["ours.parquet", "theirs.json", "theirs.jsonl"])
@pytest.mark.parametrize("key", ["output", "model_output", "model_prediction"])
def test_every_form_gives_the_same_figures(mmau_annotations, tmp_path, capsys, name, key):
    rows = [{"id": f"q{i}", key: output, "other": i} for i, output in enumerate(OUTPUTS)]
    message = score(write(tmp_path / name, rows[::-1]), mmau_annotations, capsys, "--protocol", "official,paper")
    figures = {protocol: part["results"]["none"] for protocol, part in message["protocols"].items()}
    assert list(figures) == ["official", "paper"]
    assert {protocol: part["accuracy"] for protocol, part in figures.items()} == {"official": 50.0, "paper": 75.0}
    assert (message["questions"], message["missing"], message["not_text"]) == (4, {"none": 0}, {"none": 0})
    assert {task: part["n"] for task, part in figures["paper"]["by_type"].items()} == {"music": 2, "sound": 2}


def test_what_is_missing_or_no_text_is_counted_and_unanswered(mmau_annotations, tmp_path, capsys):
    rows = [{"id": "q0", "model_output": "Man"}, {"id": "q1", "model_output": None}, {"id": "q2", "model_output": 3}]
    rows.append({"id": "q3"})
    path = write(tmp_path / "p.json", rows)
    message = score(path, mmau_annotations, capsys)
    assert (message["missing"], message["not_text"]) == ({"none": 1}, {"none": 2})
    for part in message["protocols"].values():
        assert (part["results"]["none"]["n"], part["results"]["none"]["accuracy"]) == (4, 25.0)
        assert part["results"]["none"]["unanswered"] == 75.0
    main(["--benchmark", "mmau", "--annotations", str(mmau_annotations), "--allow_unpinned", "--predictions", str(path)])
    text = capsys.readouterr().out
    assert "4 of 1,000 questions, 1 without a prediction, 2 with an output that is not text" in text
    assert "| average | 4 | 25.0 [4.6, 69.9] | 25.0 [4.6, 69.9] |" in text
    assert "| type: sound | 2 | 50.0 [9.5, 90.5] | 50.0 [9.5, 90.5] |" in text
    assert "| unanswered, % | 4 | 75.0 | 75.0 |" in text


BAD: dict[str, tuple[str, object, str]] = {
    "unknown ids": ("p.json", [ONE, {"id": "x", "model_output": ""}], r"1 of 2 ids are no question of mmau .*first: x"),
    "an id twice": ("p.json", [ONE, ONE], "id q0 occurs twice; keep only the output that counts"),
    "no id": (
        "p.json",
        [{"model_output": "Man", "idx": 3}],
        r"row 0 has no id \(under id\), expected a question's id; it has idx, model_output$",
    ),
    "an id that is a place in other data": (
        "p.json",
        [{"doc_id": 0, "resps": [["A"]], "target": "Man"}],
        "it has doc_id, resps, target; doc_id is a position in the harness's data",
    ),
    "an id of no kind": ("p.json", [{"id": [1], "model_output": "Man"}], r"row 0 has \[1\] as id"),
    "no output in any row": ("p.json", [{"id": "q0", "answer": "Man"}], "outputs under one of output, .* but answer, id"),
    "outputs under two names": ("p.json", [ONE | {"output": "Man"}], "found both output and model_output"),
    "an empty list": ("p.json", [], "holds no predictions"),
    "a list of texts": ("p.json", ["Man"], "row 0 is no object with an id and an output but a str"),
    "another kind of file": ("p.csv", [], r"expected a file .* .json \(one list\) or .jsonl, found '.csv'"),
    "another benchmark": ("p.json", [ONE | {"benchmark": "avqa"}], "answers other questions: benchmark avqa, expected mmau"),
    "controls only": ("p.json", [ONE | {"control": "silent"}], r"holds controls only \(silent\)"),
    "no such control": ("p.json", [ONE | {"control": "deaf"}], "'deaf' is no control; expected none, silent"),
    "other choices": ("p.json", [ONE | {"choices": ["Man", "Dog"], "gold": 0}], "question q0 has other texts there"),
    "another gold": ("p.json", [ONE | {"choices": ["Man", "Woman", "Child"], "gold": 1}], "question q0 has other texts there"),
    "another question": (
        "p.json",
        [ONE | {"question": "Who speaks?", "choices": ["Man", "Woman", "Child"], "answer": "Man"}],
        "question q0 has other texts there than in mmau in this revision",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_cannot_be_scored_is_one_line(mmau_annotations, tmp_path, capsys, case):
    name, rows, message = BAD[case]
    with pytest.raises(InputError, match=message) as raised:
        score(write(tmp_path / name, rows), mmau_annotations, capsys)
    assert "\n" not in str(raised.value)


def test_a_file_cut_short_is_told_with_its_line(mmau_annotations, tmp_path, capsys):
    for name, content, message in (
        ("p.jsonl", '{"id": "q0", "model_output": "Man"}\n{"id": "q1', "line 2 is not JSON"),
        ("p.json", '[{"id": "q0"', "is not JSON that can be read"),
        ("p.json", '{"id": "q0", "model_output": "Man"}\n{"id": "q1', "line 2 is not JSON"),
        ("p.parquet", "PAR1", "is no parquet file that can be read"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=message):
            score(tmp_path / name, mmau_annotations, capsys)
    with pytest.raises(InputError, match="cannot be read"):
        score(tmp_path / "gone.jsonl", mmau_annotations, capsys)
    with pytest.raises(InputError, match=r"is a folder; give a file of predictions$"):
        score(tmp_path, mmau_annotations, capsys)
    (tmp_path / "run" / "data").mkdir(parents=True)
    (tmp_path / "run" / "data" / "predictions-mmau.parquet").touch()
    with pytest.raises(InputError, match=r"run is a folder; .*, such as .*run/data/predictions-mmau\.parquet$"):
        score(tmp_path / "run", mmau_annotations, capsys)


def test_questions_come_from_one_place_and_protocols_exist(mmau_annotations, tmp_path):
    predictions = ["--predictions", str(write(tmp_path / "p.json", [ONE]))]
    for flags, message in (
        (["--benchmark", "mmau"], "either --annotations, the official file, or --dataset"),
        (["--benchmark", "mmau", "--annotations", str(mmau_annotations), "--dataset", "d"], "either --annotations"),
        (["--benchmark", "mmau", "--annotations", str(mmau_annotations)], "is not mmau-test-mini.json of .*4 rows instead"),
        (["--benchmark", "avqa", "--annotations", "a", "--protocol", "official"], "no protocol 'official'; expected paper"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            main([*flags, *predictions])


def write_dataset(folder: Path, annotations: list[dict], leave_out: str = "") -> Path:
    sound = {"audio": {"bytes": encode_flac(np.zeros(160, dtype=np.float32)), "path": "a.flac"}}
    clip = {**sound, "duration_s": 0.01, "media_sha256": "0"}
    rows = [get_benchmark("mmau").to_row(each) | clip for each in annotations]
    features = mmau.features()
    features.pop(leave_out, None)
    parquet.write_parquet(rows, features, folder / "data" / "test-00000-of-00001.parquet")
    write_dataset_card(folder, "# Questions\n", {"default": {"test": "data/*.parquet"}})
    return folder


def test_a_dataset_is_scored_like_the_file_it_was_built_from_and_in_its_revision(mmau_annotations, tmp_path, capsys):
    dataset = write_dataset(tmp_path / "built", json.loads(mmau_annotations.read_text()))
    _, revision = load_benchmark("mmau", str(dataset), None, None)
    ours = [{"id": f"q{i}", "output": text, "benchmark_revision": revision} for i, text in enumerate(OUTPUTS)]
    from_file = score(write(tmp_path / "p.parquet", ours), mmau_annotations, capsys)["protocols"]
    main(["--benchmark", "mmau", "--dataset", str(dataset), "--predictions", str(tmp_path / "p.parquet"), "--json"])
    assert json.loads(capsys.readouterr().out)["protocols"] == from_file
    write(tmp_path / "p.parquet", [row | {"benchmark_revision": "0123"} for row in ours])
    with pytest.raises(InputError, match=f"answers other questions: benchmark_revision 0123, expected {revision}"):
        main(["--benchmark", "mmau", "--dataset", str(dataset), "--predictions", str(tmp_path / "p.parquet")])
    write(tmp_path / "p.parquet", [*({"id": row["id"], "output": "A"} for row in ours), {"id": "no clip", "output": "A"}])
    message = "1 of 5 ids are .*; the dataset holds 4 of 1,000 questions; were another .*, or does the dataset lack their clips"
    with pytest.raises(InputError, match=message):
        main(["--benchmark", "mmau", "--dataset", str(dataset), "--predictions", str(tmp_path / "p.parquet")])
    with pytest.raises(InputError, match=r"the annotation file holds 4 of 1,000 questions; .* or revision answered\?$"):
        score(tmp_path / "p.parquet", mmau_annotations, capsys)
    for other in ("avqa", "music_avqa"):
        with pytest.raises(InputError, match=f"is a dataset of mmau, not of {other}; give --benchmark mmau, or {other}'s own"):
            load_benchmark(other, str(dataset), "test", None)


def test_a_dataset_without_a_column_of_the_benchmark_is_refused(mmau_annotations, tmp_path):
    dataset = write_dataset(tmp_path / "built", json.loads(mmau_annotations.read_text()), leave_out="sub_category")
    with pytest.raises(InputError, match="is no dataset of mmau: it lacks sub_category; build one by dataset_builders/"):
        load_benchmark("mmau", str(dataset), None, None)


def test_a_figure_on_a_part_says_so():
    assert part_asked(20, 1000, None) == "20 of 1,000 questions"
    assert part_asked(9129, 9129, True) is None and part_asked(20, None, None) is None
    assert part_asked(1000, 1000, False) == "other questions than the pinned ones"
    assert {name: get_benchmark(name).pinned.questions for name in benchmark_names()} == {
        "avqa": None, "mmar": 1000, "mmau": 1000, "music_avqa": 9129,
    }  # fmt: skip
    figures = {"n": 15, "all": {"n": 20}}  # MUSIC-AVQA's average leaves questions out that were asked
    run = {"arm": "sft", "seed": 0, "results": {"none": figures}, "benchmark_questions": 1000}
    assert coverage_lines([run, run | {"benchmark_questions": 20}, run | {"benchmark_questions": None}]) == [
        "Not the whole benchmark as it is pinned: sft (seed 0): 20 of 1,000 questions.",
        "",
    ]


def test_music_avqa_is_scored_over_the_paper_s_rows_and_over_all(tmp_path, capsys):
    where = {"type": '["Audio-Visual", "Location"]', "question_content": "Where is the performance?", "templ_values": "[]"}
    rows = [music_annotation(1), music_annotation(2), music_annotation(3, **where, anser="indoor")]
    (tmp_path / "music.json").write_text(json.dumps(rows))
    outputs = [{"question_id": i, "model_output": text} for i, text in ((1, "simultaneously"), (2, "A"), (3, "Indoor."))]
    predictions = write(tmp_path / "p.json", outputs)
    flags = ["--annotations", str(tmp_path / "music.json"), "--allow_unpinned", "--predictions", str(predictions), "--json"]
    main(["--benchmark", "music_avqa", *flags])
    message = {name: part["results"]["none"] for name, part in json.loads(capsys.readouterr().out)["protocols"].items()}
    assert {name: (part["n"], part["accuracy"], part["unanswered"]) for name, part in message.items()} == {
        "official": (2, 50.0, 50.0),
        "paper": (2, 50.0, 0.0),
    }
    assert [part["all"]["accuracy"] for part in message.values()] == [pytest.approx(200 / 3)] * 2


def test_an_official_annotation_of_another_revision_is_told_by_its_texts(tmp_path, capsys):
    (tmp_path / "music.json").write_text(json.dumps([music_annotation(1)]))
    flags = ["--benchmark", "music_avqa", "--annotations", str(tmp_path / "music.json"), "--allow_unpinned", "--predictions"]
    main([*flags, str(write(tmp_path / "same.json", [music_annotation(1, model_output="left")]))])
    assert "| average | 1 | 0.0 [0.0, 79.3] | 0.0 [0.0, 79.3] |" in capsys.readouterr().out
    changed = [music_annotation(1, anser="left", model_output="left")]
    with pytest.raises(InputError, match="question 1 has other texts there than in music_avqa in this revision"):
        main([*flags, str(write(tmp_path / "other.json", changed))])


WHERE = {"question_content": "Where is the <Object> in the video?", "templ_values": '["violin"]', "anser": "left"}
# One annotation of each benchmark; the word "video" in it is "audio" in a built dataset.
OFFICIAL = {
    "avqa": avqa_annotation(1, "06GyG4-wONQ_000006"),
    "mmau": mmau_annotation("1"),
    "music_avqa": music_annotation(1, **WHERE),
}


def told_of(benchmark: str, prediction: dict, tmp_path: Path, capsys) -> dict:
    """One prediction for the benchmark's one question, scored by the paper's protocol."""
    (tmp_path / "official.json").write_text(json.dumps([OFFICIAL[benchmark]]))
    path = write(tmp_path / "p.json", [prediction])
    flags = ["--annotations", str(tmp_path / "official.json"), "--allow_unpinned", "--predictions", str(path), "--json"]
    main(["--benchmark", benchmark, *flags])
    return json.loads(capsys.readouterr().out)["protocols"]["paper"]["results"]["none"]


@pytest.mark.parametrize("benchmark", OFFICIAL)
def test_rows_of_the_file_or_of_the_dataset_with_the_output_beside_them_are_scored(benchmark, tmp_path, capsys):
    official, built = OFFICIAL[benchmark], get_benchmark(benchmark).to_row(OFFICIAL[benchmark])
    assert benchmark == "mmau" or built["question"] != built["video_question"]
    for row in (official, built, built | {"question": built["video_question"], "answer": built["answer_text"]}):
        assert told_of(benchmark, row | {"model_output": built["answer_text"]}, tmp_path, capsys)["accuracy"] == 100.0


REPEATED = {
    "avqa": ("question", "video_question", "question_text", "choices", "multi_choice", "answer", "answer_text"),
    "mmau": ("question", "choices", "answer", "answer_text"),
    "music_avqa": ("question", "question_content", "answer", "answer_text", "anser"),
}


@pytest.mark.parametrize(("benchmark", "name"), [(b, name) for b, names in REPEATED.items() for name in names])
@pytest.mark.parametrize("whole", [False, True])
def test_one_text_of_another_revision_is_enough_to_be_told(benchmark, name, whole, tmp_path, capsys):
    other = ["x", "y"] if name in ("choices", "multi_choice") else "something else"
    row = {"id": 1, "model_output": "A"} | (get_benchmark(benchmark).to_row(OFFICIAL[benchmark]) if whole else {})
    with pytest.raises(InputError, match=rf"question 1 has other texts there than in {benchmark} in .*(something|'x')"):
        told_of(benchmark, row | {name: other}, tmp_path, capsys)


def test_another_index_or_filling_is_another_question(tmp_path, capsys):
    for benchmark, change in (("avqa", {"answer": 0}), ("music_avqa", {"templ_values": '["cello"]'})):
        with pytest.raises(InputError, match="question 1 has other texts there"):
            told_of(benchmark, OFFICIAL[benchmark] | change | {"model_output": "A"}, tmp_path, capsys)


def test_what_a_run_wrote_is_scored(tmp_path, capsys):
    row = get_benchmark("mmau").to_row(OFFICIAL["mmau"]) | {"duration_s": 1.0}
    said = {"completions": [{"text": "Woman", "finish_reason": "stop"}]}
    ours = [to_prediction(row, "0/none", said, {"benchmark": "mmau"})]
    ours.append(to_prediction(shuffle_choices(row), "0/shuffled", said, {"benchmark": "mmau"}))
    assert ours[0]["answer"] != ours[0]["gold"], "`answer` is what the model answered"
    (tmp_path / "official.json").write_text(json.dumps([OFFICIAL["mmau"]]))
    message = score(write(tmp_path / "p.parquet", ours), tmp_path / "official.json", capsys)
    assert message["protocols"]["paper"]["results"]["shuffled"]["accuracy"] == 0.0
    assert (message["questions"], message["benchmark_questions"]) == (1, 1000)


def test_controls_in_a_run_s_file_are_scored_and_the_first_line_is_the_verdict(mmau_annotations, tmp_path, capsys):
    rows = [{"id": f"q{i}", "output": "Man", "control": control} for i in range(4) for control in ("none", "silent")]
    predictions = write(tmp_path / "p.parquet", rows)
    main(["--benchmark", "mmau", "--annotations", str(mmau_annotations), "--allow_unpinned", "--predictions", str(predictions)])
    text = capsys.readouterr().out
    assert text.startswith("DEAF: p.parquet does no better with the clip than with silent audio (+0.0 points")
    assert "| silent audio | 100.0 [51.0, 100.0] | +0.0 [+0.0, +0.0] |" in text


def test_a_control_that_is_there_in_part_is_told_and_compared_on_that_part(mmau_annotations, tmp_path, capsys):
    rows = [{"id": f"q{i}", "output": "Man", "control": "none"} for i in range(4)]
    rows += [{"id": f"q{i}", "output": text, "control": "silent"} for i, text in ((0, "Man"), (1, None))]
    rows += [{"id": "q0", "output": None, "control": "swapped"}]
    predictions = write(tmp_path / "p.parquet", rows)
    main(["--benchmark", "mmau", "--annotations", str(mmau_annotations), "--allow_unpinned", "--predictions", str(predictions)])
    text = capsys.readouterr().out
    assert text.startswith("DEAF: p.parquet does no better with the clip than with silent audio (+0.0 points")
    assert "Only questions that got an output both ways are compared: p.parquet with silent audio on 1 of 4.\n" in text
    assert "silent audio: 2 without a prediction, 1 with an output that is not text\n" in text
    assert "another clip's audio: 3 without a prediction, 1 with an output that is not text\n" in text
    assert "| silent audio | 25.0 [4.6, 69.9] | +0.0 [-100.0, +100.0] (n=1) |" in text
    assert "| another clip's audio | 0.0 [0.0, 49.0] | – |" in text


@pytest.mark.parametrize(
    ("name", "file", "count", "counted"),
    [("mmau", "mmau/mmau-test-mini.json", 1000, 1000), ("music_avqa", "music_avqa/avqa-test.json", 9129, 6984)],
)
def test_the_official_files_are_the_pinned_ones(real_data, name, file, count, counted):
    rows, revision = read_annotations(name, str(real_data / "annotations" / file), allow_unpinned=False)
    assert (len(rows), sum(map(get_benchmark(name).counts, rows))) == (count, counted)
    assert revision == f"sha256:{get_benchmark(name).pinned.sha256}"


def test_questions_are_known_by_their_texts_in_any_order(real_data):
    rows, _ = read_annotations("mmau", str(real_data / "annotations" / "mmau" / "mmau-test-mini.json"), allow_unpinned=False)
    before = real_data / "annotations" / "mmau" / "mmau-test-mini.pre-v05.15.25.json"
    others, _ = read_annotations("mmau", str(before), allow_unpinned=True)
    asks = get_benchmark("mmau").pinned.asks
    assert (asks(rows[::-1]), asks(others), asks(rows[1:])) == (True, False, None)
    music, _ = read_annotations("music_avqa", str(real_data / "annotations" / "music_avqa" / "avqa-test.json"), False)
    assert get_benchmark("music_avqa").pinned.asks(music) is True and get_benchmark("avqa").pinned.asks(rows) is None


def test_the_sample_of_avqa_is_read_whole(real_data):
    rows, _ = read_annotations("avqa", str(real_data / "annotations" / "avqa" / "val_qa.sample.json"), allow_unpinned=False)
    assert len(rows) == 112 and rows[0]["choices"] == ["3", "One", "4", "2"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [*rows, rows[0]], "annotation 4: id q0 occurs twice"),
        (lambda rows: [rows[0] | {"answer": "Dog"}], "annotation 0: 'Dog' is none of .*; scoring leaves no question out"),
        (lambda rows: {}, "expected a list of annotations"),
    ],
)
def test_questions_that_cannot_be_used_are_one_line(mmau_annotations, change: Callable[[list], object], message):
    mmau_annotations.write_text(json.dumps(change(json.loads(mmau_annotations.read_text()))))
    with pytest.raises(InputError, match=message):
        read_annotations("mmau", str(mmau_annotations), allow_unpinned=True)


LOAD = """
import sys
from evaluation.benchmarks import load_benchmark
print(load_benchmark("mmau", sys.argv[1], None, None)[1])
"""


@pytest.mark.slow
def test_the_revision_of_a_hub_dataset_is_its_commit(loopback_hub, mmau_annotations, tmp_path):
    folder = write_dataset(tmp_path / "built", json.loads(mmau_annotations.read_text()))
    files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    loopback_hub.change("alice/mmau", files)
    with client(LOAD, ["alice/mmau"], client_environment(loopback_hub, tmp_path)) as process:
        message, error = process.communicate()
    assert message.strip() == loopback_hub.repos["datasets/alice/mmau"].refs["refs/heads/main"], error
