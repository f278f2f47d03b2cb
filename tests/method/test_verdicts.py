"""The checker's stage: how an answer is read, what is asked again, and what becomes of every trace."""

import hashlib
import itertools
import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from sightsound.data import parquet, schema
from sightsound.data.audio import decode_audio
from sightsound.engines.base import Completion
from sightsound.engines.openai_batch import BATCHES_FILE
from sightsound.engines.sampling import NEUTRAL
from sightsound.hub.cards import write_dataset_card
from sightsound.method.prompts import CHECKER_TRANSCRIPT, CHECKER_YES_NO
from sightsound.method.verdicts import (
    ACCEPT,
    CUT,
    NO_CLAIMS,
    NO_REASONING,
    REJECT,
    UNCLEAR,
    compare_with_transcript,
    parse_cut_yes_no,
    parse_yes_no,
)
from sightsound.stage import read_settings
from tests.support.batch_server import BatchServer, Plan
from tests.support.house_server import HouseServer, choice
from tests.support.openai_server import Ask, OpenAIServer
from tests.support.tiny import read_ledger, read_rows, run_script, trace, trace_row, write_traces


SCRIPT = "dataset_builders/verdicts.py"


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("Yes.", ACCEPT),
        ("yes", ACCEPT),
        (" YES, all of them.", ACCEPT),
        ("**Yes**", ACCEPT),
        ('"Yes": a dog barks and no bell rings.', UNCLEAR),
        ("No.", REJECT),
        ("**No**, there is no dog", REJECT),
        ("No, no dog barks.", REJECT),
        ("yes and no", UNCLEAR),
        ("Yes, and no.", UNCLEAR),
        ("Yes or no?", UNCLEAR),
        ("yes/no", UNCLEAR),
        ("maybe", UNCLEAR),
        ("Not really", UNCLEAR),
        ("Yesterday", UNCLEAR),
        ("I think so, yes", UNCLEAR),
        ("Yes, the dog is heard, but the bell is not.", UNCLEAR),
        ("Yes, although no bell is heard.", UNCLEAR),
        ("No doubt, all of them are there.", UNCLEAR),
        ("No, but the dog is.", REJECT),
        ("", UNCLEAR),
        (" \n", UNCLEAR),
    ],
)
def test_only_a_clear_yes_or_no_is_a_verdict(said, verdict):
    assert parse_yes_no(said) == verdict


REPLIES = [
    json.loads(line) for line in (Path(__file__).parents[1] / "labelled" / "verdict_replies.jsonl").read_text().splitlines()
]


def test_no_hand_written_reply_is_wrongly_accepted_and_few_are_wrongly_left_open():
    """`expected` is the reading of a person; `other` is neither a clear yes nor a clear no."""
    read = [(reply, parse_yes_no(reply["reply"])) for reply in REPLIES]
    assert [reply["reply"] for reply, verdict in read if verdict == ACCEPT and reply["expected"] != ACCEPT] == []
    for expected in (ACCEPT, REJECT):
        given = [verdict for reply, verdict in read if reply["expected"] == expected]
        assert len(given) >= 100 and given.count(expected) >= 0.95 * len(given), expected
    assert [reply["reply"] for reply, verdict in read if verdict == REJECT and reply["expected"] == ACCEPT] == []


def test_a_refusal_is_told_from_an_unclear_reply():
    given = {reply["reply"]: parse_yes_no(reply["reply"]) for reply in REPLIES if reply["note"] == "refusals"}
    assert len(given) >= 15 and set(given.values()) == {"refused"}, given
    assert parse_yes_no("I cannot hear the bell.") == REJECT, "a sound that is not heard is no refusal"


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("Yes", ACCEPT),
        ("**Yes**", ACCEPT),
        ("Yes, the dog is heard and the", CUT),
        ("No, there is no", REJECT),
        ("The dog is heard at first, and", CUT),
        ("<think>Yes, the dog", CUT),
        ("", CUT),
    ],
)
def test_a_yes_that_was_cut_stands_only_alone(said, verdict):
    assert parse_cut_yes_no(said) == verdict


@pytest.mark.parametrize("part", [".", "yes ", "answer: ", "[", "<a", "<think>", "no sound ", " -", "and ", "yes, i am "])
def test_a_reply_of_any_length_is_read_in_linear_time(part):
    times = []
    for size in (20_000, 80_000):
        started = time.perf_counter()
        parse_yes_no("yes, a " + part * (size // len(part)))
        times.append(time.perf_counter() - started)
    assert times[1] < 0.5 + 8 * times[0], times


@pytest.mark.parametrize(
    ("think", "transcript", "verdict"),
    [
        ("I hear a dog, then a bell. The first is the dog.", "I hear a dog, then a bell.", ACCEPT),
        ("I hear a Dog and then the bell.", "I hear a dog, then a bell.", ACCEPT),
        ("I hear nothing.", "I hear nothing.", ACCEPT),
        ("I hear a bell, then a dog.", "I hear a dog, then a bell.", REJECT),
        ("I hear a dog.", "I hear a dog, then a dog.", REJECT),
        ("I hear a dog.", "I hear nothing.", REJECT),
        ("I hear nothing.", "I hear a dog.", REJECT),
        ("I hear a dog.", "I hear a dog, but no bell.", ACCEPT),
        ("I hear a dog, then a bell.", "I hear a dog, but no bell.", REJECT),
        ("I hear a dog.", "I hear no dog.", REJECT),
        ("I hear no dog.", "I hear no dog.", ACCEPT),
        ("I hear a dog.", "I hear nothing at all.", REJECT),
        ("I hear a dog.", "I hear nothing but a dog.", ACCEPT),
        ("I hear a dog.", "I can hear a dog!", ACCEPT),
        ("I hear a dog.", "<think>I hear a cat, no...</think>I hear a dog.", ACCEPT),
        ("I hear a dog.", "<think>I hear a dog", UNCLEAR),
        ("I hear a dog.", "I hear maybe a dog.", UNCLEAR),
        ("I hear a dog.", "I hear a dog?", UNCLEAR),
        ("I hear a dog.", "I do not hear a dog.", UNCLEAR),
        ("I hear a dog.", "I'm sorry, I can't listen to audio. If I could, I would say: I hear a dog.", "refused"),
        ("I hear a dog.", 'List the sounds in order, starting with "I hear".', UNCLEAR),
        ("There must be a dog.", "I hear a dog.", NO_CLAIMS),
        (None, "I hear a dog.", NO_REASONING),
        ("I hear a dog.", "A dog.", UNCLEAR),
        ("I hear a dog.", "", UNCLEAR),
    ],
)
def test_a_trace_is_compared_with_what_the_checker_hears(think, transcript, verdict):
    assert compare_with_transcript(think, transcript) == verdict


def written(think: str | None, answer: int | None = 0) -> dict:
    return trace(f"<think>{think}</think><answer>{answer}</answer>" if think else "dog", answer, think)


@pytest.fixture(scope="module")
def traces(questions, tmp_path_factory):
    """Traces whose reasoning tells the scripted checker what to say; the last question has none at all."""
    thinks = [
        ("I hear good.", "I hear bad."),
        ("I hear bad.", "I hear bad."),
        ("I hear unclear.", "I hear unclear."),
        ("I hear clear later.", None),
    ]
    rows = [trace_row(question, [written(a), written(b)]) for question, (a, b) in zip(questions, thinks, strict=False)]
    rows.append(trace_row(questions[4], [], outcome=schema.MISSING_MEDIA, teacher_answer=None, unanimous=False))
    rows.append(trace_row(questions[5], [written("I hear good.", 0), written("I hear good.", 1)]))
    return write_traces(rows, tmp_path_factory.mktemp("traces") / "traces")


def checker(ask: Ask) -> list[str]:
    if "unclear" in ask.text:
        return [f"maybe ({ask.seed})"]
    if "clear later" in ask.text:
        return ["yes and no" if ask.temperature == 0 else "yes"]
    return ["Yes, it does." if "good" in ask.text else "No."]


@pytest.fixture(scope="module")
def verified(traces, tiny_dataset):
    out = traces.parent / "verdicts"
    with OpenAIServer(checker) as server:
        flags = {"dataset": tiny_dataset, "traces": traces, "checker": "scripted", "base_url": server.base_url}
        done = run_script(SCRIPT, **flags, num_retries=3, output_dir=out)
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(folder=out, rows=read_rows(out), asked=server.asked, stdout=done.stdout)


def verdicts_of(row) -> list[str | None]:
    return [trace["verdict"] for trace in row["traces"]]


def test_every_trace_gets_its_verdict(verified):
    assert [verdicts_of(row) for row in verified.rows] == [
        [ACCEPT, REJECT],
        [REJECT, REJECT],
        [UNCLEAR, UNCLEAR],
        [ACCEPT, NO_REASONING],
        [],
        [ACCEPT, ACCEPT],
    ]
    assert verified.stdout.endswith("10 traces: 4 accept, 3 reject, 2 unclear, 1 no_reasoning\n")


def test_every_row_says_how_its_verdicts_were_drawn(verified):
    """The first question is greedy; where it was repeated, the row says that too. Nobody was asked about the fifth."""
    greedy, repeated = ({"n": 1, "temperature": t, "max_tokens": 64, **NEUTRAL} for t in (0.0, 1.0))
    message = [json.loads(row["checker_sampling"] or "null") for row in verified.rows]
    assert message == [[greedy], [greedy], [greedy, repeated], [greedy, repeated], None, [greedy]]


def test_an_accepted_trace_makes_a_question_accepted_unless_the_teacher_disagreed_with_itself(verified):
    outcomes = ["accepted", "all_traces_rejected", "unclear", "accepted", "missing_media", "not_unanimous"]
    assert [row["outcome"] for row in verified.rows] == outcomes
    ledger = read_ledger(verified.folder)
    assert [(entry["id"], entry["outcome"]) for entry in ledger] == [(row["id"], row["outcome"]) for row in verified.rows]
    assert [entry["detail"] for entry in ledger] == [None, None, "2 unclear", "1 no_reasoning", None, None]


def test_an_unclear_answer_is_asked_again_at_most_num_retries_times(verified):
    unclear = [ask for ask in verified.asked if "unclear" in ask.text]
    assert len(unclear) == 2 * (1 + 3)
    assert len([ask for ask in verified.asked if "clear later" in ask.text]) == 2
    assert len([ask for ask in verified.asked if "good" in ask.text or "bad" in ask.text]) == 6, "a clear one is asked once"
    # Greedy first, since a draw would add noise to a clear answer; then sampled, since greedy would repeat itself.
    assert sorted(ask.temperature for ask in unclear) == [0.0] * 2 + [1.0] * 6
    assert len({ask.seed for ask in unclear}) == 8
    # The last answer is the one that is kept.
    kept = {trace["verdict_text"] for trace in verified.rows[2]["traces"]}
    assert kept <= {f"maybe ({ask.seed})" for ask in unclear if ask.temperature == 1.0}
    assert len(kept) == 2


def test_a_trace_without_reasoning_is_said_to_have_none_without_being_asked(verified):
    assert verified.rows[3]["traces"][1]["verdict_text"] is None
    assert not [ask for ask in verified.asked if "None" in ask.text]


def test_the_checker_hears_the_clip_and_reads_the_reasoning_alone(verified, questions):
    (ask, *_) = [ask for ask in verified.asked if ask.text == CHECKER_YES_NO.format(think="I hear bad.")]
    heard = [decode_audio(question["audio"]).waveform for question in questions[:2]]
    assert any((ask.audio == waveform).all() for waveform in heard)
    assert all(ask.audio is not None and ask.video is None and ask.n == 1 for ask in verified.asked)
    assert [row["checker_heard_s"] for row in verified.rows] == [2.0, 2.0, 2.0, 2.0, None, 2.0]


def test_the_columns_are_those_of_the_contract(verified, traces):
    from datasets import load_dataset

    dataset = load_dataset(str(verified.folder), split="train")
    assert dataset.features == schema.traces_features()
    before = read_rows(traces)
    for name in ("id", "question", "choices", "teacher_answer", "unanimous", "teacher", "seed", "media_sha256"):
        assert list(dataset[name]) == [row[name] for row in before], name
    assert set(dataset["checker"]) == {"scripted"}
    assert set(dataset["verdict_mode"]) == {"yes_no"}


def test_a_transcript_is_taken_once_per_clip(traces, tiny_dataset, tmp_path):
    with OpenAIServer(lambda ask: ["I hear good."]) as server:
        flags = {"dataset": tiny_dataset, "traces": traces, "checker": "scripted", "base_url": server.base_url}
        done = run_script(SCRIPT, **flags, verdict_mode="transcript", output_dir=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [ask.text for ask in server.asked] == [CHECKER_TRANSCRIPT] * 5, "a question without traces is not asked about"
    rows = read_rows(tmp_path)
    assert [verdicts_of(row) for row in rows] == [
        [ACCEPT, REJECT],
        [REJECT, REJECT],
        [REJECT, REJECT],
        [REJECT, NO_REASONING],
        [],
        [ACCEPT, ACCEPT],
    ]
    assert rows[0]["traces"][1]["verdict_text"] == "I hear good."
    assert (rows[0]["verdict_mode"], rows[4]["outcome"]) == ("transcript", schema.MISSING_MEDIA)


def test_a_checkers_prompt_file_is_asked_and_recorded_beside_the_teachers(traces, tiny_dataset, verified, tmp_path):
    prompt = tmp_path / "strict.txt"
    prompt.write_text("{think}\nIs all of this in the clip? Answer yes or no.\n")
    flags = {"dataset": tiny_dataset, "traces": traces, "checker": "scripted", "prompt_file": prompt}
    with OpenAIServer(checker) as server:
        done = run_script(SCRIPT, **flags, base_url=server.base_url, output_dir=tmp_path / "out")
        wrong = run_script(SCRIPT, **flags, base_url=server.base_url, verdict_mode="transcript", output_dir=tmp_path / "other")
    assert done.returncode == 0, done.stderr
    assert "I hear good.\nIs all of this in the clip? Answer yes or no." in {ask.text for ask in server.asked}
    version = f"strict@{hashlib.sha256(prompt.read_bytes()).hexdigest()[:12]}"
    assert {row["prompt_version"] for row in read_rows(tmp_path / "out")} == {f"1, checker {version}"}
    assert {row["prompt_version"] for row in verified.rows} == {"1"}
    settings, usual = (read_settings(folder) for folder in (tmp_path / "out", verified.folder))
    assert settings["prompt_version"] == version and settings.keys() - usual.keys() == {"prompt_sha256"}
    assert wrong.returncode == 2 and "unknown field {think}; here a prompt is without fields" in wrong.stderr
    assert not (tmp_path / "other").exists()


def test_what_a_checker_reasons_is_no_verdict(traces, tiny_dataset, tmp_path):
    """Its server tells the reasoning apart, or the template opened it, or it was cut in the middle."""
    replies = [
        {"choices": [choice(content="I hear good.", reasoning_content="I hear bad, or is it?")]},
        {"choices": [choice(content="I hear bad, or is it?</think>I hear good.")]},
        {"choices": [choice("stop", content="<think>I hear good.")]},
        {"choices": [choice("length", content=None, reasoning="I hear good.")]},
    ]
    left = itertools.cycle(replies)
    with HouseServer(lambda _: next(left)) as server:
        flags = {"dataset": tiny_dataset, "traces": traces, "checker": "scripted", "base_url": server.base_url}
        done = run_script(SCRIPT, **flags, verdict_mode="transcript", concurrency=1, output_dir=tmp_path)
    assert done.returncode == 0, done.stderr
    judged = [(row["traces"][0]["verdict_text"], row["traces"][0]["verdict"]) for row in read_rows(tmp_path) if row["traces"]]
    assert {verdict for text, verdict in judged if text.endswith("</think>I hear good.")} <= {ACCEPT, REJECT}
    assert sorted(verdict for text, verdict in judged if "</think>" not in text) == ["cut", "unclear"], judged


def test_a_clip_that_cannot_be_read_rejects_its_traces_alone_and_is_said(traces, questions, tmp_path):
    broken = [{**row, "audio": {"bytes": b"not audio", "path": None}} if row["id"] == "0" else row for row in questions]
    parquet.write_parquet(broken, schema.avqa_audio_features(), tmp_path / "dataset" / "data" / "train.parquet")
    write_dataset_card(tmp_path / "dataset", "# Broken\n", {"default": {"train": "data/*.parquet"}})
    with OpenAIServer(lambda ask: ["I hear good."]) as server:
        flags = {"dataset": tmp_path / "dataset", "traces": traces, "checker": "scripted", "base_url": server.base_url}
        done = run_script(SCRIPT, **flags, verdict_mode="transcript", output_dir=tmp_path / "out")
    assert done.returncode == 0, done.stderr
    rows = read_rows(tmp_path / "out")
    assert verdicts_of(rows[0]) == ["corrupt_media", "corrupt_media"]
    assert verdicts_of(rows[5]) == [ACCEPT, ACCEPT]
    assert "cannot be decoded" in read_ledger(tmp_path / "out")[0]["detail"], "a broken clip is not a judgement on the traces"


@pytest.mark.parametrize("changed", [{"id": "elsewhere"}, {"media_sha256": "0" * 64}])
def test_traces_of_another_dataset_are_refused(changed, questions, tiny_dataset, tmp_path):
    row = {**questions[0], **changed}
    traces = write_traces([trace_row(row, [written("I hear.")])], tmp_path / "traces")
    flags = {"dataset": tiny_dataset, "traces": traces, "checker": "scripted", "base_url": "http://127.0.0.1:1/v1"}
    done = run_script(SCRIPT, **flags, output_dir=tmp_path / "out")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    seen = f"1 traced questions (first: {row['id']}) are missing in split 'train' of {tiny_dataset}"
    assert done.stderr.startswith(f"error: {seen} or are about another clip; give the dataset and split that were traced")


def test_verdicts_through_the_batch_api_are_those_of_single_requests(questions, tiny_dataset, tmp_path):
    """In three attempts, the first of which is cancelled half-way."""
    thinks = [f"I hear {i} and {j}." for i in range(len(questions)) for j in range(2)]
    rows = [
        trace_row(question, [trace(f"<think>{t}</think><answer>0</answer>", 0, t) for t in thinks[2 * i : 2 * i + 2]])
        for i, question in enumerate(questions)
    ]
    flags = {"dataset": tiny_dataset, "traces": write_traces(rows, tmp_path / "traces"), "checker": "scripted"}
    with BatchServer([Plan("cancelled", num_begun=3)]) as server:
        flags["base_url"] = server.base_url
        online = run_script(SCRIPT, **flags, output_dir=tmp_path / "online")
        assert online.returncode == 0, online.stderr
        refused = run_script(SCRIPT, **flags, batch_api=True, num_tasks=2, output_dir=tmp_path / "batch")
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        stopped = run_script(SCRIPT, **flags, batch_api=True, output_dir=tmp_path / "batch")
        assert stopped.returncode == 2 and "batch batch_0 at" in stopped.stderr, stopped.stderr
        without = run_script(SCRIPT, **flags, output_dir=tmp_path / "batch")
        assert without.returncode == 2 and "records batches that are paid for" in without.stderr
        done = run_script(SCRIPT, **flags, batch_api=True, output_dir=tmp_path / "batch")
        assert done.returncode == 0, done.stderr
    assert read_rows(tmp_path / "batch") == read_rows(tmp_path / "online")
    assert read_ledger(tmp_path / "batch") == read_ledger(tmp_path / "online")
    assert set(server.billed.values()) == {1}
    assert {key[-1] for key in server.billed} == {"0", "1", "2"}, "three attempts"
    assert not (tmp_path / "batch" / BATCHES_FILE).exists()


def test_more_refusals_than_a_server_may_give_in_a_row_are_not_asked_again(questions, tiny_dataset, tmp_path):
    """They stay without a verdict, with their reason; only what was answered unclearly is asked again."""
    thinks = [f"I hear {i}." for i in range(4)]
    rows = [trace_row(question, [written(think) for think in thinks]) for question in questions]
    flags = {"dataset": tiny_dataset, "traces": write_traces(rows, tmp_path / "traces"), "checker": "scripted"}
    refused = {f"I hear {i}." for i in range(3)}

    def fault_of(text: str) -> int | None:
        return 400 if any(think in text for think in refused) else None

    with OpenAIServer(lambda ask: ["maybe"], fault_of=fault_of) as server:
        done = run_script(SCRIPT, **flags, base_url=server.base_url, concurrency=4, output_dir=tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert (len(server.faulted), len(server.asked)) == (3 * 12, 3 * 12), "twelve unclear ones, in three attempts"
    rows = read_rows(tmp_path / "out")
    assert {tuple(verdicts_of(row)) for row in rows} == {("refused", "refused", "refused", UNCLEAR)}
    entry = read_ledger(tmp_path / "out")[0]
    assert entry["outcome"] == "refused" and entry["detail"].startswith("3 refused, 1 unclear: ")
    assert "answered 400" in entry["detail"]
    assert "9 all_traces" not in done.stdout and done.stdout.endswith("48 traces: 36 refused, 12 unclear\n")


@pytest.mark.parametrize(
    ("reason", "verdict"), [("length", CUT), ("refusal", "refused"), ("content_filter", "refused"), ("eos_token", REJECT)]
)
def test_a_transcript_that_was_cut_or_refused_judges_nothing(reason, verdict, traces, tiny_dataset, tmp_path):
    with OpenAIServer(lambda ask: [Completion("I hear something.", reason)]) as server:
        flags = {"dataset": tiny_dataset, "traces": traces, "checker": "scripted", "base_url": server.base_url}
        done = run_script(SCRIPT, **flags, verdict_mode="transcript", output_dir=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {trace["verdict"] for row in read_rows(tmp_path) for trace in row["traces"]} == {verdict, NO_REASONING}
    assert ("9 replies were cut: give a larger --max_tokens (now 64)." in done.stdout) == (verdict == CUT)


@pytest.mark.parametrize("mode", ["yes_no", "transcript"])
def test_a_stage_that_asked_nothing_reports_no_rejection(mode, questions, tiny_dataset, tmp_path):
    rows = [trace_row(question, [written(None), written(None)]) for question in questions]
    traces = write_traces(rows, tmp_path / "traces")
    with OpenAIServer(lambda ask: ["No."]) as server:
        flags = {"dataset": tiny_dataset, "traces": traces, "checker": "scripted", "base_url": server.base_url}
        done = run_script(SCRIPT, **flags, verdict_mode=mode, output_dir=tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert server.asked == []
    said = "24 traces: 24 no_reasoning\nThe checker got no request: no trace has reasoning inside <think></think>.\n"
    assert done.stdout.endswith(said) and "reject" not in done.stdout
    assert {entry["outcome"] for entry in read_ledger(tmp_path / "out")} == {"no_reasoning"}
    corpus = {"dataset": tiny_dataset, "traces": traces, "verdicts": tmp_path / "out", "output_dir": tmp_path / "corpus"}
    refused = run_script("dataset_builders/cot_corpus.py", **corpus)
    assert refused.returncode == 2 and "no question was accepted (12 no_reasoning)" in refused.stderr
