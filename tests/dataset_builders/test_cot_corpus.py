"""The corpus: what a researcher gets from `load_dataset`, and what is said of every question that is not in it."""

import shutil
from types import SimpleNamespace

import pytest
import yaml

from dataset_builders import cot_corpus
from evaluation.browse import main as browse
from sightsound.benchmarks import avqa, mmau
from sightsound.data import schema
from sightsound.hub.inputs import front_matter_of
from sightsound.method.prompts import COT_PROMPT, question_text, render_trace
from sightsound.method.selection import ARMS, FILTERS, Filter, trace_outcome
from sightsound.training.card import training_funnel
from tests.support.card_rules import validate
from tests.support.tiny import read_ledger, read_rows, run_script, trace, trace_row, write_traces


SCRIPT = "dataset_builders/cot_corpus.py"
CHECKED = {"checker": "scripted", "checker_revision": "2", "verdict_mode": "yes_no", "checker_heard_s": 2.0}


def checked(name: str, answer: int | None, verdict: str | None) -> dict:
    return trace(render_trace(name, "it"), answer, name, verdict)


def rows_of(questions, verdicts: bool) -> list[dict]:
    """Five questions: two accepted, one rejected, one not unanimous, one without a clip."""
    said = [
        [checked("a", 1, "accept"), checked("b", 1, "reject"), checked("c", 1, "accept")],
        [checked("d", 0, "reject"), checked("e", 0, "reject"), checked("f", 0, "invalid")],
        [checked("g", 2, "accept"), checked("h", 3, "accept"), checked("i", 3, "accept")],
        [checked("j", 2, "accept"), checked("k", 2, "accept"), checked("l", 2, "accept")],
    ]
    rows = []
    for question, traces in zip(questions, said, strict=False):
        rows.append(trace_row(question, traces if verdicts else [{**t, "verdict": None} for t in traces]))
    rows.append(trace_row(questions[4], [], outcome=schema.MISSING_MEDIA, teacher_answer=None, unanimous=False))
    return [{**row, **CHECKED} for row in rows] if verdicts else rows


def build(questions, tiny_dataset, folder, change=lambda rows: rows):
    """Run the builder on the five questions, verdicts changed by the test."""
    traces = write_traces(rows_of(questions, verdicts=False), folder / "traces")
    verdicts = write_traces(change(rows_of(questions, verdicts=True)), folder / "verdicts")
    flags = {"dataset": tiny_dataset, "traces": traces, "verdicts": verdicts, "output_dir": folder / "corpus"}
    return run_script(SCRIPT, **flags)


def assert_refused(done, message: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


@pytest.fixture(scope="module")
def corpus(questions, tiny_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    done = build(questions, tiny_dataset, folder)
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(folder=folder / "corpus", stdout=done.stdout)


OUTCOMES = ["accepted", "all_traces_rejected", "not_unanimous", "accepted", "missing_media"]


def test_every_question_is_in_the_ledger_once(corpus, questions):
    ledger = [(entry["id"], entry["outcome"]) for entry in read_ledger(corpus.folder)]
    assert ledger == list(zip([row["id"] for row in questions[:5]], OUTCOMES, strict=True))
    assert corpus.stdout == "5 questions: 2 accepted, 1 all_traces_rejected, 1 not_unanimous, 1 missing_media\n"


def test_the_default_config_is_ready_for_training(corpus, questions):
    from datasets import Audio, load_dataset

    dataset = load_dataset(str(corpus.folder))
    assert list(dataset) == ["train"]
    assert dataset["train"].features == schema.verified_features()
    first, second = dataset["train"].cast_column("audio", Audio(decode=False))
    assert (first["id"], second["id"]) == (questions[0]["id"], questions[3]["id"])
    assert first["completions"] == [render_trace("a", "it"), render_trace("c", "it")], "accepted traces only"
    asked = question_text(questions[0]["question"], questions[0]["choices"], COT_PROMPT)
    assert first["prompt"] == [{"role": "user", "content": asked}]
    assert "video" not in asked
    assert (first["teacher_answer"], first["choices"]) == (1, questions[0]["choices"])
    assert first["audio"]["bytes"] == questions[0]["audio"]["bytes"], "the sound of the question itself"


def test_the_traces_config_is_the_whole_ledger_without_audio(corpus, questions):
    from datasets import load_dataset

    dataset = load_dataset(str(corpus.folder), "traces", split="train")
    assert dataset.features == schema.traces_features()
    assert dataset["outcome"][:] == OUTCOMES
    expected = rows_of(questions, verdicts=True)
    assert list(dataset) == expected, "nothing is changed, nothing is lost"
    # The corpus alone is enough for every arm of the paper's ablation.
    sizes = {name: sum(len(arm.completions(row)) for row in dataset) for name, arm in ARMS.items() if arm.of_ledger}
    assert sizes == {"label": 4, "cot": 4, "agfv": 3, "tts": 9, "tts_agfv": 5, "tts_claims": 5}


def test_the_card_tells_the_funnel_and_where_it_comes_from(corpus):
    card = (corpus.folder / "README.md").read_text()
    for line in (
        "| asked | 5 |",
        "| answered by the teacher | 4 |",
        "| unanimous over 3 traces | 3 |",
        "| not_unanimous | 1 |",
    ):
        assert line in card
    assert "| accepted: at least one trace verified | 2 |" in card
    assert "checker `scripted` (revision `2`), verdict mode `yes_no`" in card
    assert render_trace("a", "it") in card


def test_the_card_says_why_traces_have_no_verdict_apart_from_rejections(questions, tiny_dataset, tmp_path):
    """The verdicts of an earlier version, which say `invalid` alone, are read as well."""

    def change(rows):
        for each, verdict in zip(rows[1]["traces"], ("no_reasoning", "refused", "no_reasoning"), strict=True):
            each["verdict"] = verdict
        rows[1] |= trace_outcome(rows[1]["traces"])
        rows[0]["traces"][1]["verdict"] = "invalid"
        return [rows[0], rows[1], rows[2]]

    done = build(questions, tiny_dataset, tmp_path, change)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        "5 questions: 1 accepted, 1 no_reasoning, 1 not_unanimous, 1 not checked yet, 1 missing_media"
    )
    outcomes = [entry["outcome"] for entry in read_ledger(tmp_path / "corpus")]
    assert outcomes == ["accepted", "no_reasoning", "not_unanimous", "not_verified", "missing_media"]
    card = (tmp_path / "corpus" / "README.md").read_text()
    for line in (
        "| no_reasoning | 1 |",
        "| not checked yet | 1 |",
        "| unanimous over 3 traces | 3 |",
        "| with a verdict of the checker on at least one trace | 1 |",
        "| no_reasoning | 2 | no verdict: the trace has no reasoning to check |",
        "| refused | 1 | no verdict: the checker or its server refused |",
        "| invalid | 1 | no verdict: the reason was not recorded |",
        "| not checked yet | 3 |  |",
    ):
        assert f"{line}\n" in card, line
    assert "all_traces_rejected" not in card and "not_verified" not in card


def test_a_filter_that_is_added_shows_up_in_corpus_cards_and_page(corpus, tiny_dataset, tmp_path, monkeypatch, capsys):
    """One entry of the list, after the verdicts were given: nothing is generated or asked again."""
    toy = Filter(
        name="without a's",
        passes=lambda traces: all(trace["think"] != "a" for trace in traces),
        outcome="has_an_a",
        meaning="a trace says a",
        step="no trace says a",
    )
    monkeypatch.setattr("sightsound.method.selection.FILTERS", [*FILTERS[:2], toy, *FILTERS[2:]])
    flags = {"dataset": tiny_dataset, "output_dir": tmp_path / "corpus"}
    flags |= {name: corpus.folder.parent / name for name in ("traces", "verdicts")}
    monkeypatch.setattr("sys.argv", [SCRIPT, *(str(part) for name, value in flags.items() for part in (f"--{name}", value))])
    cot_corpus.main()
    assert capsys.readouterr().out.startswith("5 questions: 1 has_an_a, 1 all_traces_rejected, 1 not_unanimous, 1 accepted")
    assert [entry["outcome"] for entry in read_ledger(tmp_path / "corpus")] == ["has_an_a", *OUTCOMES[1:]]
    assert len(read_rows(tmp_path / "corpus")) == 1
    card = (tmp_path / "corpus" / "README.md").read_text()
    unanimous, verdict = "| unanimous over 3 traces | 3 |", "| with a verdict of the checker on at least one trace | 2 |"
    assert f"{unanimous}\n| no trace says a | 2 |\n{verdict}\n" in card and "| has_an_a | 1 |" in card
    assert training_funnel("tts_agfv", str(tmp_path / "corpus"), {})["without a's"] == 2
    browse(["--dataset", str(tiny_dataset), "--corpus", str(tmp_path / "corpus"), "--output_dir", str(tmp_path / "page")])
    assert '"has_an_a": "a trace says a"' in (tmp_path / "page" / "index.html").read_text(encoding="utf-8")


def test_the_card_shows_the_funnel_as_a_figure(corpus):
    from PIL import Image

    assert "\n![questions left after each step](funnel.png)\n" in (corpus.folder / "README.md").read_text()
    with Image.open(corpus.folder / "funnel.png") as figure:
        assert figure.format == "PNG" and min(figure.size) > 200
        assert len(figure.convert("L").getcolors()) > 20, "something is drawn"


def test_a_long_ledger_is_cut_into_shards_that_are_read_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(cot_corpus, "TRACES_ROWS_PER_SHARD", 3)
    rows = [{**dict.fromkeys(schema.traces_features()), "id": str(i), "choices": [], "traces": []} for i in range(7)]
    cot_corpus.write_traces(iter(rows), len(rows), tmp_path)
    names = [f"train-{i:05d}-of-00003.parquet" for i in range(3)]
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    assert [row["id"] for row in cot_corpus.read_traces(tmp_path, ["id"])] == [row["id"] for row in rows]


@pytest.mark.parametrize(("rows", "count"), [(0, 1), (1, 1), (500, 1), (501, 2), (20_000, 40)])
def test_there_is_always_a_file(rows, count):
    assert len(cot_corpus.shard_names(rows, 500)) == count


def test_verdicts_on_other_questions_are_refused(questions, tiny_dataset, tmp_path):
    done = build(questions, tiny_dataset, tmp_path, lambda rows: rows[::-1])
    assert_refused(done, f"4 verdicts (first: {questions[3]['id']}) are on no question of the traces, or not in their order")


def test_the_card_tells_columns_sizes_and_the_command(corpus):
    card = (corpus.folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "other" and "states no licence" in card
    rows = {info["config_name"]: info["splits"][0]["num_examples"] for info in front["dataset_info"]}
    assert rows == {"verified": 2, "traces": 5}
    assert [feature["name"] for feature in front["dataset_info"][1]["features"]] == list(schema.verified_features())
    assert f"\npython {SCRIPT} --dataset " in card
    assert '"audio": "(FLAC, 16 kHz, mono)"' in card
    assert validate(card, "dataset") == ([], [])
    assert "{{" not in card and "{%" not in card


MIXED, _ = avqa.describe([{"video_name": name, "video_id": "a"} for name in ("a", "a_000000")])
FRONT_MATTERS = {
    "of AVQA": (avqa.FRONT_MATTER, (), "AVQA, whose questions and clips this builds on"),
    "own": (avqa.OTHER_CLIPS, (), "is not known: this card was written automatically"),
    "mixed": (MIXED, (), "Part of the questions and clips that this builds on is AVQA's"),
    "of a benchmark": (mmau.BENCHMARK.front_matter, (), "`annotations-apache-2.0-clips-of-their-sources`"),
    "without": ({}, (), "states no licence"),
    "own, its licence given": (avqa.OTHER_CLIPS, ("license", "cc-by-4.0"), "`cc-by-4.0`."),
}


@pytest.mark.parametrize("kind", FRONT_MATTERS)
def test_whose_clips_these_are_is_what_their_datasets_card_says(kind, tmp_path):
    stated, flag, message = FRONT_MATTERS[kind]
    (tmp_path / "README.md").write_text(f"---\n{yaml.safe_dump(stated)}---\n# Text\n" if stated else "# Text\n")
    licence = dict([flag] if flag else [])
    front, sentence = cot_corpus.origin(front_matter_of(str(tmp_path)), licence.get("license", "other"))
    names = ("license", "license_name", "language", "source_datasets")
    assert front == ({name: stated[name] for name in names if name in stated} or {"license": "other"}) | licence
    assert message in sentence and ("AVQA" in sentence) == (kind in ("of AVQA", "mixed"))


def test_the_card_of_traces_of_own_clips_does_not_speak_of_avqa(questions, tiny_dataset, tmp_path):
    shutil.copytree(tiny_dataset, tmp_path / "own")
    _, front, text = (tmp_path / "own" / "README.md").read_text().split("---\n", 2)
    kept = {name: yaml.safe_load(front)[name] for name in ("dataset_info", "configs")}
    (tmp_path / "own" / "README.md").write_text(f"---\n{yaml.safe_dump({**avqa.OTHER_CLIPS, **kept})}---\n{text}")
    done = build(questions, tmp_path / "own", tmp_path)
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "corpus" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "unknown" and not {"license_name", "language", "source_datasets"} & front.keys()
    assert "AVQA" not in card and "the publisher of this corpus has to state it" in card
    assert validate(card, "dataset") == ([], [])


def test_a_finished_corpus_can_still_be_published(corpus, tiny_dataset, monkeypatch, capsys):
    sent = []
    monkeypatch.setattr("sightsound.hub.publish.publish_dataset", lambda *given: sent.append(given) or "build-1")
    flags = {"dataset": tiny_dataset, "output_dir": corpus.folder, "push_to_hub": "lab/traces"}
    flags |= {name: corpus.folder.parent / name for name in ("traces", "verdicts")}
    given = [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
    monkeypatch.setattr("sys.argv", [SCRIPT, *given])
    cot_corpus.main()
    assert sent == [(corpus.folder, "lab/traces", False)]
    assert "published: lab/traces, revision build-1" in capsys.readouterr().out


def test_no_accepted_trace_is_an_error_that_keeps_the_ledger(questions, tiny_dataset, tmp_path):
    def reject(rows):
        for row in rows:
            for each in row["traces"]:
                each["verdict"] = "reject"
            row |= trace_outcome(row["traces"]) if row["traces"] else {}
        return rows

    done = build(questions, tiny_dataset, tmp_path, reject)
    assert_refused(done, "no question was accepted (3 all_traces_rejected, 1 not_unanimous, 1 missing_media)")
    assert f"{tmp_path / 'corpus'}/ledger.parquet" in done.stderr
    assert len(read_ledger(tmp_path / "corpus")) == 5
    assert not (tmp_path / "corpus" / "README.md").exists(), "without a card nobody takes it for a dataset"


def test_traces_in_place_of_verdicts_are_refused(questions, tiny_dataset, tmp_path):
    done = build(questions, tiny_dataset, tmp_path, lambda _: rows_of(questions, verdicts=False))
    assert_refused(done, "holds no verdicts; give the output of verdicts.py")


def test_verdicts_on_other_traces_are_refused(questions, tiny_dataset, tmp_path):
    def other(rows):
        rows[3]["traces"][1] |= {"text": "something else"}
        return rows

    message = f"1 questions (first: {questions[3]['id']}) have verdicts on other traces; run verdicts.py on these"
    assert_refused(build(questions, tiny_dataset, tmp_path, other), message)


def test_a_question_that_was_never_verified_is_kept_as_such(questions, tiny_dataset, tmp_path):
    done = build(questions, tiny_dataset, tmp_path, lambda rows: rows[:1])
    assert done.returncode == 0, done.stderr
    outcomes = [entry["outcome"] for entry in read_ledger(tmp_path / "corpus")]
    assert outcomes == ["accepted", "not_verified", "not_unanimous", "not_verified", "missing_media"]
    assert [row["id"] for row in read_rows(tmp_path / "corpus")] == [questions[0]["id"]]


def test_what_the_ledger_calls_accepted_is_what_the_default_config_holds(questions, tiny_dataset, tmp_path):
    # Accepted by the checker, but not in the form that training needs.
    rows = rows_of(questions, verdicts=True)
    for each in rows[0]["traces"]:
        each["text"] += " Indeed."
    rows[0] |= trace_outcome(rows[0]["traces"])
    unverified = [{**row, "traces": [{**t, "verdict": None} for t in row["traces"]]} for row in rows]
    traces, verdicts = write_traces(unverified, tmp_path / "traces"), write_traces(rows, tmp_path / "verdicts")
    flags = {"dataset": tiny_dataset, "traces": traces, "verdicts": verdicts, "output_dir": tmp_path / "corpus"}
    done = run_script(SCRIPT, **flags)
    assert done.returncode == 0, done.stderr
    accepted = [entry["id"] for entry in read_ledger(tmp_path / "corpus") if entry["outcome"] == "accepted"]
    assert [row["id"] for row in read_rows(tmp_path / "corpus")] == accepted
