"""The teacher's stage, run as a user runs it: what it asks, what it keeps, and what happens when things go wrong."""

import hashlib
import json
import re
import threading
from collections import Counter
from types import SimpleNamespace

import pytest

from dataset_builders.traces import TracesArguments, settings_of
from sightsound.cli import parse_arguments
from sightsound.data import schema
from sightsound.engines.base import Completion, Sampling
from sightsound.engines.sampling import NEUTRAL
from sightsound.engines.transformers import TransformersEngine
from sightsound.method.prompts import PROMPT_VERSION, TEACHER_PROMPT, ZERO_SHOT_AUDIO_COT_PROMPT, question_text
from tests.support.openai_server import Ask, OpenAIServer, model_answer
from tests.support.tiny import kill_script_when, read_ledger, read_rows, run_script


SCRIPT = "dataset_builders/traces.py"
# What becomes of a question, by its id in the tiny dataset; the others are answered unanimously.
MISSING, CORRUPT, SPLIT, CUT, MUTE = "1", "4", "5", "7", "8"


def good(choice: str) -> str:
    return f"<think>I hear a {choice}.</think><answer>{choice}</answer>"


def run_traces(**flags):
    return run_script(SCRIPT, **{"split": "train", "num_traces": 2, "num_frames": 6, "model": "scripted", **flags})


@pytest.fixture(scope="module")
def traced(questions, tiny_dataset, tiny_world, tmp_path_factory):
    """One run over the tiny dataset with a scripted teacher, and clips of which one is gone and one is garbage."""
    folder = tmp_path_factory.mktemp("traced")
    clips = folder / "clips"
    clips.mkdir()
    for clip in sorted((tiny_world / "clips").glob("tr*.mp4")):
        number = str(int(clip.name[5:11]))
        if number == CORRUPT:
            (clips / clip.name).write_bytes(clip.read_bytes()[:2000])
        elif number != MISSING:
            (clips / clip.name).symlink_to(clip)
    by_id = {row["id"]: question_text(row["video_question"], row["choices"], TEACHER_PROMPT) for row in questions}
    assert list(by_id.values()).count(by_id[SPLIT]) == list(by_id.values()).count(by_id[CUT]) == 1

    def teacher(ask: Ask):
        first, second = re.findall(r"^[A-D]\. (.+)$", ask.text, re.MULTILINE)[:2]
        if ask.text == by_id[SPLIT]:
            return [good(first), good(second)]
        if ask.text == by_id[CUT]:  # the answer is there, but nobody knows what would have followed
            return [Completion(good(first), "stop"), Completion(good(first), "length")]
        if ask.text == by_id[MUTE]:
            return ["", "<think>I hear"]
        return [good(second), f"<think>I hear it.</think>The answer is B. {second}"]

    with OpenAIServer(teacher) as server:
        done = run_traces(dataset=tiny_dataset, media_dir=clips, output_dir=folder / "traces", base_url=server.base_url, seed=5)
    assert done.returncode == 0, done.stderr
    rows = {row["id"]: row for row in read_rows(folder / "traces")}
    return SimpleNamespace(folder=folder / "traces", rows=rows, asked=server.asked, stdout=done.stdout)


def test_every_question_is_in_the_ledger_once_with_its_outcome(traced, questions):
    expected = dict.fromkeys([row["id"] for row in questions], schema.NOT_VERIFIED)
    expected |= {MISSING: schema.MISSING_MEDIA, CORRUPT: schema.CORRUPT_MEDIA, MUTE: schema.NO_ANSWER}
    expected |= {SPLIT: schema.NOT_UNANIMOUS, CUT: schema.NOT_UNANIMOUS}
    ledger = read_ledger(traced.folder)
    assert [(entry["id"], entry["outcome"]) for entry in ledger] == list(expected.items())
    assert {row_id: row["outcome"] for row_id, row in traced.rows.items()} == expected
    assert traced.stdout.startswith("12 questions: 7 not checked yet, ")


def test_the_ledger_says_what_was_wrong_with_a_clip(traced):
    details = {entry["id"]: entry["detail"] for entry in read_ledger(traced.folder)}
    assert details[MISSING] == "no clip named tr000000001_000000.*"
    assert details[CORRUPT].startswith("cannot be opened")
    assert details["0"] is None


def test_the_columns_are_those_of_the_contract(traced):
    from datasets import load_dataset

    dataset = load_dataset(str(traced.folder), split="train")
    assert dataset.features == schema.traces_features()
    assert sorted(path.name for path in traced.folder.iterdir()) == [
        ".lock",
        "README.md",
        "data",
        "ledger.parquet",
        "stage.json",
    ]


def test_the_teacher_sees_frames_and_the_video_wording_and_hears_nothing(traced, questions):
    ids = [row["id"] for row in questions if row["id"] not in (MISSING, CORRUPT)]
    wordings = {row["id"]: row["video_question"] for row in questions}
    assert len(traced.asked) == len(ids)
    for ask in traced.asked:
        assert ask.audio is None
        assert ask.video.pixels.shape == (6, 56, 56, 3)
        assert (ask.n, ask.temperature, ask.max_tokens) == (2, 1.0, 512)
    asked = sorted(ask.text.splitlines()[0] for ask in traced.asked)
    assert asked == sorted(wordings[row_id] for row_id in ids)
    assert all("video" in text for text in asked)
    assert len({ask.seed for ask in traced.asked}) == len(ids)


def test_no_ground_truth_reaches_the_traces(traced, questions):
    gold = {row["id"]: row["answer"] for row in questions}
    answers = {row_id: row["teacher_answer"] for row_id, row in traced.rows.items() if row["teacher_answer"] is not None}
    assert any(answers[row_id] != gold[row_id] for row_id in answers), "the teacher is often wrong here"
    assert not {"answer", "answer_text"} & set(next(iter(traced.rows.values())))


def test_a_trace_holds_its_text_its_reasoning_and_its_answer(traced, questions):
    second = questions[0]["choices"][1]
    row = traced.rows["0"]
    assert row["traces"] == [
        {
            "text": good(second),
            "think": f"I hear a {second}.",
            "answer": 1,
            "finish_reason": "stop",
            "verdict": None,
            "verdict_text": None,
            "claims": None,
            "rewritten": None,
        },
        {
            "text": f"<think>I hear it.</think>The answer is B. {second}",
            "think": "I hear it.",
            "answer": 1,
            "finish_reason": "stop",
            "verdict": None,
            "verdict_text": None,
            "claims": None,
            "rewritten": None,
        },
    ]
    names = ("teacher", "teacher_revision", "prompt_version", "num_traces", "temperature", "max_tokens", "seed", "checker")
    message = ["scripted", "scripted at its server", "1", 2, 1.0, 512, 5, None]
    assert [row[name] for name in names] == message
    assert row["media_sha256"] == questions[0]["media_sha256"]


def test_every_row_says_how_it_was_drawn(traced):
    """A question that nobody was asked about has no draw."""
    drawn = {row_id: row["sampling"] for row_id, row in traced.rows.items()}
    unread = [drawn.pop(MISSING), drawn.pop(CORRUPT)]
    assert unread == [None, None]
    sent = {"n": 2, "temperature": 1.0, "max_tokens": 512, **NEUTRAL}
    assert [json.loads(each) for each in drawn.values()] == [sent] * 10
    assert {row["checker_sampling"] for row in traced.rows.values()} == {None}


def test_a_text_cut_at_the_limit_is_not_an_answer(traced):
    cut = traced.rows[CUT]
    assert [trace["answer"] for trace in cut["traces"]] == [0, None]
    assert [trace["finish_reason"] for trace in cut["traces"]] == ["stop", "length"]
    assert (cut["unanimous"], cut["teacher_answer"]) == (False, 0)


def test_a_complete_stage_is_not_run_again(traced, tiny_dataset):
    # No server listens any more, and the clips are elsewhere: nothing of it is needed.
    stage = json.loads((traced.folder / "stage.json").read_text())
    flags = {key: stage["settings"][key] for key in ("media_dir", "seed")}
    done = run_traces(dataset=tiny_dataset, output_dir=traced.folder, base_url="http://127.0.0.1:1/v1", **flags)
    assert (done.returncode, done.stdout) == (0, f"{traced.folder} is complete\n")


def test_replicas_may_change_and_the_engine_may_not(traced, tiny_dataset):
    stage = json.loads((traced.folder / "stage.json").read_text())
    args = {key: stage["settings"][key] for key in ("media_dir", "seed")} | {
        "num_traces": 2,
        "num_frames": 6,
        "model": "scripted",
    }
    args |= {"dataset": str(tiny_dataset), "output_dir": str(traced.folder)}
    urls = ["http://127.0.0.1:1/v1", "http://127.0.0.1:2/v1"]
    assert settings_of(TracesArguments(**args, base_url=urls)) == settings_of(TracesArguments(**args, base_url=urls[:1]))
    assert settings_of(TracesArguments(**args, base_url=urls)) == stage["settings"]
    assert settings_of(TracesArguments(**args | {"concurrency": 99}, base_url=urls)) == stage["settings"]
    assert settings_of(TracesArguments(**args)) != stage["settings"], "in this process other completions are drawn"


def test_replicas_are_given_by_one_flag_or_several():
    required = ["--dataset", "d", "--media_dir", "m", "--model", "t", "--output_dir", "o"]
    for flags in (["--base_url", "a", "b"], ["--base_url", "a", "--base_url", "b"]):
        assert parse_arguments(TracesArguments, None, required + flags).base_url == ["a", "b"]
    assert parse_arguments(TracesArguments, None, required).base_url is None


def test_a_baseline_prompt_is_asked_and_recorded(tiny_dataset, tiny_world, tmp_path):
    with OpenAIServer(lambda ask: [good("dog")] * ask.n) as server:
        flags = {"dataset": tiny_dataset, "media_dir": tiny_world / "clips", "output_dir": tmp_path, "limit": 1}
        done = run_traces(**flags, base_url=server.base_url, prompt="zero_shot_audio_cot")
    assert done.returncode in (0, 2), done.stderr  # whether a dog is among the choices is not the point
    assert server.asked[0].text.endswith(ZERO_SHOT_AUDIO_COT_PROMPT.splitlines()[-1])
    assert read_rows(tmp_path)[0]["prompt_version"] == f"{PROMPT_VERSION} zero_shot_audio_cot"


def test_a_prompt_file_is_asked_and_its_digest_recorded(tiny_dataset, tiny_world, tmp_path, traced):
    """Another text in the same folder is refused; without a file the settings have nothing new."""
    prompt, out = tmp_path / "mine.txt", tmp_path / "traces"
    prompt.write_text("Choose.\n{choices}\n{question}\n")
    flags = {"dataset": tiny_dataset, "media_dir": tiny_world / "clips", "output_dir": out, "limit": 1, "prompt_file": prompt}
    with OpenAIServer(lambda ask: [good(re.findall(r"^A. (.*)", ask.text, re.MULTILINE)[0])] * ask.n) as server:
        done = run_traces(**flags, base_url=server.base_url)
        assert done.returncode == 0, done.stderr
        two = run_traces(**flags, base_url=server.base_url, prompt="zero_shot_cot")
        assert two.returncode == 2 and "are two prompts; give one of them" in two.stderr
        before = hashlib.sha256(prompt.read_bytes()).hexdigest()
        prompt.write_text("Pick.\n{choices}\n{question}\n")
        other = run_traces(**flags, base_url=server.base_url)
    assert other.returncode == 2 and "was started with other settings (prompt_sha256" in other.stderr
    assert server.asked[0].text.startswith("Choose.\nA. ")
    assert read_rows(out)[0]["prompt_version"] == f"mine@{before[:12]}"
    settings, usual = (json.loads((folder / "stage.json").read_text())["settings"] for folder in (out, traced.folder))
    assert (settings.pop("prompt_sha256"), settings["prompt_version"]) == (before, f"mine@{before[:12]}")
    assert settings.keys() == usual.keys() and (usual["prompt"], usual["prompt_version"]) == ("audio_focused", "1")


@pytest.mark.slow  # five waits
def test_a_request_that_the_server_never_answers_well_is_in_the_ledger(tiny_dataset, tiny_world, tmp_path):
    """Its body is asked for again, a number of times; the others are not held up."""
    with OpenAIServer(lambda ask: [good("dog")] * (ask.n - (ask.seed in broken))) as server:
        broken: set[int] = set()
        flags = {"dataset": tiny_dataset, "media_dir": tiny_world / "clips", "base_url": server.base_url, "limit": 3}
        assert run_traces(**flags, output_dir=tmp_path / "well").returncode in (0, 2)
        broken.add(server.asked[0].seed)
        assert run_traces(**flags, output_dir=tmp_path / "broken").returncode in (0, 2)
    outcomes = Counter(entry["outcome"] for entry in read_ledger(tmp_path / "broken"))
    assert (outcomes["bad_response"], outcomes.total()) == (1, 3)
    assert [len(row["traces"]) for row in read_rows(tmp_path / "broken")].count(0) == 1


def test_a_teacher_that_never_answers_is_said_in_one_line(tiny_dataset, tiny_world, tmp_path):
    with OpenAIServer(lambda ask: ["I would rather not."] * ask.n) as server:
        done = run_traces(
            dataset=tiny_dataset, media_dir=tiny_world / "clips", output_dir=tmp_path, base_url=server.base_url, limit=3
        )
    assert done.returncode == 2
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert message.startswith(f"error: scripted answered none of 3 questions (3 no_answer); {tmp_path} has every one's outcome")
    assert [entry["outcome"] for entry in read_ledger(tmp_path)] == [schema.NO_ANSWER] * 3
    assert read_rows(tmp_path)[0]["traces"][0]["text"] == "I would rather not."
    assert not json.loads((tmp_path / "stage.json").read_text())["complete"]


def test_greedy_traces_are_refused_since_they_would_all_be_the_same(tiny_dataset, tiny_world, teacher_checkpoint, tmp_path):
    flags = {"dataset": tiny_dataset, "media_dir": tiny_world / "clips", "model": teacher_checkpoint, "output_dir": tmp_path}
    done = run_traces(**flags, temperature=0, max_tokens=4, limit=1)
    assert done.returncode == 2, done.stderr[-500:]
    assert "temperature" in done.stderr.splitlines()[-1]


def test_a_killed_run_continues_to_the_same_rows(tiny_dataset, tiny_world, teacher_checkpoint, tmp_path):
    engine = TransformersEngine.load(str(teacher_checkpoint), batch_size=2, sampling=Sampling(2, 1.0, 16, 0))
    draw, killed_now = model_answer(engine), threading.Event()

    def teacher(ask: Ask):
        # One call is four questions: the second call hangs until the process is gone.
        if len(server.asked) > 4:
            killed_now.wait(timeout=60)
        return draw(ask)

    with OpenAIServer(teacher) as server:
        flags = {"dataset": tiny_dataset, "media_dir": tiny_world / "clips", "model": "tiny", "base_url": server.base_url}
        flags |= {"num_traces": 2, "max_tokens": 16, "num_frames": 6, "concurrency": 1}
        killed, whole = tmp_path / "killed", tmp_path / "whole"
        finished = kill_script_when(killed / "journal.jsonl", 4, SCRIPT, **flags, output_dir=killed)
        killed_now.set()
        assert (finished, (killed / "data").exists()) == (4, False), "the kill has to hit the middle"
        before = [json.loads(line) for line in (killed / "journal.jsonl").read_text().splitlines()]
        # Random weights may or may not happen to answer something: that is the exit code, and not the point here.
        again = run_script(SCRIPT, **flags, output_dir=killed)
        assert 12 <= len(server.asked) <= 13, "what was finished is not asked again; one request was in flight"
        done = run_script(SCRIPT, **flags, output_dir=whole)
    assert again.returncode == done.returncode in (0, 2), again.stderr
    rows = read_rows(killed)
    assert rows == read_rows(whole)
    assert read_ledger(killed) == read_ledger(whole)
    kept = dict(before)
    for row in rows:
        if row["id"] in kept:
            assert [t["text"] for t in row["traces"]] == [c["text"] for c in kept[row["id"]]["completions"]]
    assert len({trace["text"] for row in rows for trace in row["traces"]}) == 24, "drawn, not repeated"
