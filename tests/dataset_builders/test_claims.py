"""Verdicts on the claims of traces, and traces that are written again, with real servers and scripted models."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from sightsound.data.parquet import read_parquet, write_parquet
from sightsound.data.schema import NOT_UNANIMOUS, avqa_audio_features
from sightsound.hub.cards import write_dataset_card
from sightsound.method.selection import ARMS, select
from tests.support.house_server import HouseServer, chat, text_of
from tests.support.tiny import kill_script_when, read_rows, run_script, trace, trace_row, write_traces


SCRIPT = "dataset_builders/verdicts.py"
HEARD = ("bell", "dog")  # in every clip


def checker(body: dict[str, Any]) -> Any:
    """Says yes to what is heard, about one claim or as a list."""
    text = text_of(body)
    if text.startswith("List the sounds"):
        return chat("I hear bell, then dog.")
    claim = text.splitlines()[0].removeprefix("Claim about this audio: ")
    words = set(re.findall(r"[a-z]+", claim.lower()))
    return chat("Yes." if words & set(HEARD) and not words & {"siren", "drum"} else "No.")


def rewriter(body: dict[str, Any]) -> Any:
    """Writes from the notes, and answers with the first choice."""
    assert [part["type"] for part in body["messages"][0]["content"]] == ["text"], "it gets no clip"
    notes, first = (re.search(pattern, text_of(body), re.MULTILINE) for pattern in (r"^Notes: (.+)\.$", r"^A\. (.+)$"))
    return chat(f"<think>I hear {notes[1]}.</think><answer>{first[1]}</answer>")


def thought(think: str, answer: int, question: dict[str, Any]) -> dict[str, Any]:
    return trace(f"<think>{think}</think><answer>{question['choices'][answer]}</answer>", answer, think)


@pytest.fixture(scope="module")
def traces(questions: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of each question: a true trace, one with a false claim, one with false claims alone, and one that claims nothing."""
    rows = []
    for question in questions:
        written = [
            thought("I hear bell, then dog. The bell rings.", 0, question),
            thought("I hear bell, then dog, then siren.", 1, question),
            thought("I hear drum. The siren wails.", 1, question),
            thought("The man moves.", 0, question),
        ]
        rows.append(trace_row(question, written))
    return write_traces(rows, tmp_path_factory.mktemp("claimed") / "traces")


def verify(dataset: Path, traces: Path, server: HouseServer, writer: HouseServer | None, **flags: Any):
    again = {"rewriter": "writer", "rewriter_base_url": writer.base_url} if writer else {}
    shared = {"dataset": dataset, "split": "train", "traces": traces, "checker": "ears", "base_url": server.base_url}
    return run_script(SCRIPT, **{**shared, "verdict_mode": "claims", **again, **flags})


def test_false_claims_are_taken_out_and_the_rest_is_written_and_verified_again(
    tiny_dataset: Path, traces: Path, tmp_path: Path
) -> None:
    with HouseServer(checker) as server, HouseServer(rewriter) as writer:
        done = verify(tiny_dataset, traces, server, writer, output_dir=tmp_path / "out")
        assert done.returncode == 0, done.stderr
        asked = [json.dumps(body["messages"]) for body in server.bodies]
        assert len(asked) == len(set(asked)) == 12 * 6, "each claim of a clip once: three sounds, a drum and two sentences"
        assert len(writer.bodies) == 12, "one trace of each question has both"
    for row in read_rows(tmp_path / "out"):
        true, mixed, false, silent = row["traces"]
        assert [each["verdict"] for each in row["traces"]] == ["accept", "reject", "reject", "no_claims"]
        assert [(each["claim"], each["verdict"]) for each in true["claims"]] == [
            ("bell", "accept"),
            ("dog", "accept"),
            ("The bell rings", "accept"),
        ]
        assert mixed["verdict_text"] == "siren: reject" and "siren" in mixed["text"]
        assert mixed["rewritten"]["think"] == "I hear bell, then dog." and mixed["rewritten"]["verdict"] == "accept"
        assert mixed["rewritten"]["answer"] == 0, "the answer is derived again"
        assert (true["rewritten"], false["rewritten"], silent["rewritten"]) == (None, None, None)
        assert (row["rewriter"], row["verdict_mode"], row["outcome"]) == ("writer", "claims", NOT_UNANIMOUS)
    selected = select(read_rows(tmp_path / "out"), "tts_claims")
    assert len(selected) == 2 * 12 and {row["teacher_answer"] for row in selected} == {0}
    assert not any("siren" in row["completion"] for row in selected)


def test_survivors_that_disagree_are_dropped(tiny_dataset: Path, traces: Path, tmp_path: Path) -> None:
    def other(body: dict[str, Any]) -> Any:
        second = re.search(r"^B\. (.+)$", text_of(body), re.MULTILINE)
        return chat(f"<think>I hear bell.</think><answer>{second[1]}</answer>")

    with HouseServer(checker) as server, HouseServer(other) as writer:
        assert verify(tiny_dataset, traces, server, writer, output_dir=tmp_path / "out").returncode == 0
    assert all(ARMS["tts_claims"].completions(row) == [] for row in read_rows(tmp_path / "out"))


def test_what_is_written_again_is_verified_again(tiny_dataset: Path, traces: Path, tmp_path: Path) -> None:
    def inventing(body: dict[str, Any]) -> Any:
        first = re.search(r"^A\. (.+)$", text_of(body), re.MULTILINE)
        return chat(f"<think>I hear bell, then drum.</think><answer>{first[1]}</answer>")

    def unfinished(body: dict[str, Any]) -> Any:
        return chat("<think>I hear bell.</think> It is a bell.")

    for name, write, verdict in (("a", inventing, "reject"), ("b", unfinished, "bad_format")):
        with HouseServer(checker) as server, HouseServer(write) as writer:
            assert verify(tiny_dataset, traces, server, writer, output_dir=tmp_path / name).returncode == 0
        assert {row["traces"][1]["rewritten"]["verdict"] for row in read_rows(tmp_path / name)} == {verdict}


def test_claims_are_looked_up_in_one_transcript_per_clip(tiny_dataset: Path, traces: Path, tmp_path: Path) -> None:
    with HouseServer(checker) as server, HouseServer(rewriter) as writer:
        done = verify(tiny_dataset, traces, server, writer, verdict_mode="transcript_claims", output_dir=tmp_path / "out")
        assert done.returncode == 0, done.stderr
        assert len(server.bodies) == 12
    for row in read_rows(tmp_path / "out"):
        assert [each["verdict"] for each in row["traces"]] == ["accept", "reject", "reject", "no_claims"]
        assert [each["verdict"] for each in row["traces"][1]["claims"]] == ["accept", "accept", "reject"]
        assert row["traces"][1]["rewritten"]["verdict"] == "accept" and row["traces"][2]["rewritten"] is None


def test_an_id_that_begins_with_w_and_a_list_over_two_lines(questions: list[dict[str, Any]], tmp_path: Path) -> None:
    rows = [row | {"id": f"w{row['id']}"} for row in questions[:2]]
    dataset = tmp_path / "avqa-audio"
    write_parquet(rows, avqa_audio_features(), dataset / "data" / "train-00000-of-00001.parquet")
    write_dataset_card(dataset, "# Questions\n", {"default": {"train": "data/*.parquet"}})
    listed = [trace_row(row, [thought("I hear bell,\nthen dog, then siren.", 1, row)]) for row in rows]
    traces = write_traces(listed, tmp_path / "traces")
    with HouseServer(checker) as server, HouseServer(rewriter) as writer:
        done = verify(dataset, traces, server, writer, verdict_mode="transcript_claims", output_dir=tmp_path / "out")
        assert done.returncode == 0, done.stderr
    for row in read_rows(tmp_path / "out"):
        assert row["checker_heard_s"] > 0 and row["checker_sampling"], "a transcript is no request to the rewriter"
        assert row["traces"][0]["rewritten"]["think"] == "I hear bell, then dog.", "each true sound is in the notes"


def test_a_killed_run_and_ranks_give_the_same_verdicts(tiny_dataset: Path, traces: Path, tmp_path: Path) -> None:
    with HouseServer(checker) as server, HouseServer(rewriter) as writer:
        whole, killed, ranks = (tmp_path / name for name in ("whole", "killed", "ranks"))
        assert verify(tiny_dataset, traces, server, writer, output_dir=whole).returncode == 0
        flags = {"dataset": tiny_dataset, "split": "train", "traces": traces, "checker": "ears", "verdict_mode": "claims"}
        flags |= {"rewriter": "writer", "rewriter_base_url": writer.base_url, "concurrency": 1, "output_dir": killed}
        for lines in (20, 74):  # among the claims, and among the traces that are written again
            kill_script_when(killed / "journal.jsonl", lines, SCRIPT, base_url=server.base_url, **flags)
        assert verify(tiny_dataset, traces, server, writer, concurrency=1, output_dir=killed).returncode == 0
        assert verify(tiny_dataset, traces, server, writer, num_tasks=2, output_dir=ranks).returncode == 0
    data = [(folder / "data" / "train-00000-of-00001.parquet").read_bytes() for folder in (whole, killed, ranks)]
    assert data[0] == data[1] == data[2]


def test_the_corpus_keeps_claims_and_what_was_written_again(tiny_dataset: Path, traces: Path, tmp_path: Path) -> None:
    agreeing = []
    for row in read_rows(traces):
        row["traces"] = [thought("I hear bell, then dog.", 0, row), thought("I hear bell, then siren.", 0, row)]
        agreeing.append(trace_row(row, row["traces"]))
    same = write_traces(agreeing, tmp_path / "traces")
    with HouseServer(checker) as server, HouseServer(rewriter) as writer:
        assert verify(tiny_dataset, same, server, writer, output_dir=tmp_path / "verdicts").returncode == 0
    done = run_script(
        "dataset_builders/cot_corpus.py",
        dataset=tiny_dataset,
        traces=same,
        verdicts=tmp_path / "verdicts",
        output_dir=tmp_path / "corpus",
    )
    assert done.returncode == 0, done.stderr
    ledger = list(read_parquet(sorted((tmp_path / "corpus" / "data" / "traces").glob("*.parquet"))))
    assert [each["claim"] for each in ledger[0]["traces"][1]["claims"]] == ["bell", "siren"]
    assert len(select(ledger, "tts_agfv")) == 12 and len(select(ledger, "tts_claims")) == 24
    card = " ".join((tmp_path / "corpus" / "README.md").read_text().split())
    assert "36 of 48 claims of the traces are true and 12 are false" in card
    assert "12 of 12 traces that were written again were accepted" in card


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"verdict_mode": "yes_no", "rewriter": "m"}, "--verdict_mode claims or transcript_claims, not yes_no"),
        ({"rewriter_base_url": "http://localhost:1/v1"}, "--rewriter_base_url is the server of --rewriter"),
        ({"rewriter": "m", "rewriter_base_url": "localhost:1"}, "expected an address that begins with http://"),
    ],
)  # fmt: skip
def test_flags_that_do_not_go_together(tiny_dataset: Path, traces: Path, tmp_path: Path, flags: dict, words: str) -> None:
    with HouseServer(checker) as server:
        done = verify(tiny_dataset, traces, server, None, output_dir=tmp_path / "out", **flags)
    assert done.returncode == 2 and words in done.stderr.splitlines()[-1]
