"""The stage in which a teacher writes questions, run as a user runs it, against real servers with scripted models."""

import base64
import io
import json
import re
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightsound.data import schema
from sightsound.method import question_writing as writing
from sightsound.method.prompts import PROMPT_VERSION
from sightsound.method.question_filters import ANSWERABLE, ASKS_FOR_SIGHT, SAME_CHOICES, SAME_QUESTION
from tests.support.house_server import HouseServer, chat, text_of
from tests.support.malformed_replies import MALFORMED
from tests.support.segments import question, reply, write_segments
from tests.support.tiny import kill_script_when, read_ledger, read_rows, run_script


SCRIPT = "dataset_builders/questions.py"


def run_questions(segments: Path, server: HouseServer | None = None, **flags: Any):
    shared = {"dataset": segments, "media_dir": segments / "segments", "model": "scripted", "num_frames": 2, "concurrency": 4}
    where = {"base_url": server.base_url} if server else {}
    return run_script(SCRIPT, **{**shared, **where, **flags})


def questions_of(folder: Path) -> Counter:
    return Counter(entry["outcome"] for entry in read_ledger(folder) if entry["kind"] == "question")


def test_500_replies_of_malformed_kinds_are_counted_and_none_is_lost(tmp_path: Path) -> None:
    """Which kind a segment gets follows from its request's seed, so it is the same for a request that is made again."""
    kinds: list[tuple[str, Any]] = [(outcome, chat(text)) for outcome, texts in MALFORMED.items() for text in texts]
    kinds += [
        (writing.CUT, {"choices": [{"index": 0, "message": {"role": "assistant", "content": "{"}, "finish_reason": "length"}]}),
        (schema.REFUSED, (400, {"error": {"message": "the prompt is against the policy"}})),
        (SAME_CHOICES, chat(reply(question(1, choices=["a bell", "a bell", "rain", "a car"], answer="rain")))),
        (ASKS_FOR_SIGHT, chat(reply(question(1, question="What colour is the bell that rings?")))),
    ]
    assert len(kinds) >= 25
    sent: dict[int, str] = {}
    asked: Counter = Counter()

    def teacher(body: dict[str, Any]) -> Any:
        number = body["seed"] % (2 * len(kinds))  # half of the replies are good
        outcome, answer = kinds[number] if number < len(kinds) else (schema.BUILT, chat(reply(question(body["seed"]))))
        asked[body["seed"]] += 1
        sent[body["seed"]] = outcome
        return answer

    dataset = write_segments(tmp_path / "segments", 500)
    with HouseServer(teacher) as server:
        out = tmp_path / "out"
        flags = {"dataset": dataset, "media_dir": dataset / "segments", "model": "scripted", "base_url": server.base_url}
        flags |= {"output_dir": out, "questions_per_segment": 1, "num_frames": 2, "concurrency": 4}
        assert 100 <= kill_script_when(out / "journal.jsonl", 100, SCRIPT, **flags) < 500
        done = run_script(SCRIPT, **flags)
    assert done.returncode == 0, done.stderr
    ledger = read_ledger(out)
    assert len([entry for entry in ledger if entry["kind"] == "segment"]) == 500
    assert questions_of(out) == Counter(sent.values()) and len(sent) == 500
    assert all(entry["detail"] for entry in ledger if entry["kind"] == "question" and entry["outcome"] != schema.BUILT)
    assert sum(asked.values()) <= 500 + 4, "only requests in flight at the kill are made again"
    rows = read_rows(out)
    assert len(rows) == questions_of(out)[schema.BUILT] > 200
    letters = Counter(row["answer"] for row in rows)
    assert max(letters.values()) - min(letters.values()) <= 1 and len(letters) == 4
    assert {row["audio_contribution"] for row in rows} == {"unknown"} and {row["text_only_correct"] for row in rows} == {None}
    assert all(row["choices"][row["answer"]] == row["answer_text"] for row in rows)
    for outcome, count in questions_of(out).items():
        assert re.search(rf"\| {outcome} \| \d+ \| {count} \|", done.stdout), outcome
        assert re.search(rf"\| {outcome} \| \d+ \| {count} \|", (out / "README.md").read_text()), outcome


def planted(text: str) -> bool:
    return "loudly" in text


class Studio:
    """A teacher whose every second question gives its answer away, and a model that answers those and guesses the rest."""

    def __init__(self) -> None:
        self.lock, self.media = threading.Lock(), Counter[str]()

    def __call__(self, body: dict[str, Any]) -> Any:
        text, content = text_of(body), body["messages"][0]["content"]
        if "JSON" in text:
            number = body["seed"]
            guessable = question(number, question=f"What rings loudly in part {number} of the video?")
            return chat(reply(guessable, question(number)))
        sounds = [part for part in content if part["type"] == "input_audio"]
        with self.lock:
            self.media["silent" if sounds else "text_only"] += 1
        for part in sounds:
            import soundfile

            waveform, rate = soundfile.read(io.BytesIO(base64.b64decode(part["input_audio"]["data"])))
            assert rate == 16_000 and len(waveform) == 1600 and not np.any(waveform), "silence of the clip's length"
        choices = re.findall(r"^([A-D])\. (.+)$", text, re.MULTILINE)
        right = next(letter for letter, choice in choices if choice.startswith("a bell"))
        return chat(right if planted(text) else "ABCD"[body["seed"] % 4])


def test_questions_that_can_be_guessed_are_dropped_and_the_others_keep_their_figures(tmp_path: Path) -> None:
    dataset, studio = write_segments(tmp_path / "segments", 40), Studio()
    with HouseServer(studio) as server:
        flags = {
            "questions_per_segment": 2,
            "answerer": "ears",
            "answerer_base_url": server.base_url,
            "output_dir": tmp_path / "out",
        }
        done = run_questions(dataset, server, **flags)
    assert done.returncode == 0, done.stderr
    assert studio.media == {"text_only": 40 * 2 * 8, "silent": 40 * 2 * 8}
    rows = read_rows(tmp_path / "out")
    assert questions_of(tmp_path / "out")[ANSWERABLE] >= 40 and not any(planted(row["question"]) for row in rows)
    assert len(rows) >= 0.9 * 40, "at most a tenth of those that are guessed by chance"
    for row in rows:
        assert row["blind_tries"] == 8 and max(row["text_only_correct"], row["silent_correct"]) <= 0.75
        weak = max(row["text_only_correct"], row["silent_correct"]) > 0.5
        assert row["audio_contribution"] == ("weak" if weak else "strong")
    card = (tmp_path / "out" / "README.md").read_text()
    assert re.search(r"\d+\.\d % \[\d+\.\d, \d+\.\d\] of the 80 questions that were tried need the sound", card)


def test_a_server_gets_the_form_of_the_reply_and_may_be_one_without(tmp_path: Path) -> None:
    dataset = write_segments(tmp_path / "segments", 3)

    def plain(body: dict[str, Any]) -> Any:
        if "response_format" in body:
            return 400, {"error": {"message": "This response_format type is unavailable now"}}
        return chat(reply(question(body["seed"])))

    with HouseServer(lambda body: chat(reply(question(body["seed"])))) as server:
        assert run_questions(dataset, server, questions_per_segment=1, output_dir=tmp_path / "a").returncode == 0
        (form,) = {json.dumps(body["response_format"]) for body in server.bodies}
        assert json.loads(form)["type"] == "json_schema" and json.loads(form)["json_schema"]["strict"] is True
        sent = json.loads(form)["json_schema"]["schema"]["properties"]["questions"]["items"]
        assert sent["required"] == list(writing.KEYS) and sent["properties"]["type"]["enum"] == list(writing.SHARES)
        assert {part["type"] for body in server.bodies for part in body["messages"][0]["content"]} == {"video_url", "text"}
    with HouseServer(plain) as server:
        refused = run_questions(dataset, server, questions_per_segment=1, output_dir=tmp_path / "b")
        assert refused.returncode == 2 and "--omit_field response_format leaves it out" in refused.stderr.splitlines()[-1]
        flags = {"questions_per_segment": 1, "output_dir": tmp_path / "b", "omit_field": "response_format"}
        assert run_questions(dataset, server, **flags).returncode == 0


def test_two_ranks_and_one_run_give_the_same_dataset(tmp_path: Path) -> None:
    dataset, studio = write_segments(tmp_path / "segments", 12, per_video=3), Studio()
    with HouseServer(studio) as server:
        for name, more in (("one", {}), ("two", {"num_tasks": 2})):
            flags = {"questions_per_segment": 2, "answerer": "ears", "answerer_base_url": server.base_url, "blind_tries": 2}
            done = run_questions(dataset, server, output_dir=tmp_path / name, **flags, **more)
            assert done.returncode == 0, done.stderr
    files = [sorted((tmp_path / name).glob("**/*.parquet")) for name in ("one", "two")]
    assert [file.name for file in files[0]] == [file.name for file in files[1]] and len(files[0]) == 2
    for first, second in zip(*files, strict=True):
        assert first.read_bytes() == second.read_bytes(), first.name
    assert not (tmp_path / "two" / ".ranks").exists()


def test_what_a_segment_is_stays_in_its_rows_and_later_stages_take_them(tmp_path: Path) -> None:
    dataset = write_segments(tmp_path / "segments", 4, per_video=2)
    (dataset / "takedown.txt").write_text("gone\n")
    same = question(0)  # about each segment of a video: kept once for each video
    own = ["a violin", "speech", "thunder", "a kettle"]

    def teacher(body: dict[str, Any]) -> Any:
        return chat(reply(same, question(body["seed"], question=f"Which comes {body['seed']}th?", choices=own, answer="D")))

    with HouseServer(teacher) as server:
        done = run_questions(dataset, server, questions_per_segment=2, output_dir=tmp_path / "out")
        assert done.returncode == 0, done.stderr
    rows = read_rows(tmp_path / "out")
    assert questions_of(tmp_path / "out") == {schema.BUILT: 6, SAME_QUESTION: 2}
    assert rows[0]["id"] == "video0000_000000-q0" and {row["segment"] for row in rows} == {"clip"}
    assert {(row["license"], row["author"], row["source"]) for row in rows} == {("cc-by-4.0", "somebody", "a film")}
    assert "in part 0 of the audio?" in rows[0]["question"] and "of the video?" in rows[0]["video_question"]
    assert (tmp_path / "out" / "takedown.txt").read_text() == "gone\n"
    trace = "<think>I hear a bell.</think><answer>A</answer>"
    with HouseServer(lambda body: chat(*[trace] * body["n"])) as server:
        flags = {"dataset": tmp_path / "out", "media_dir": dataset / "segments", "model": "scripted", "num_traces": 1}
        traced = run_script("dataset_builders/traces.py", **flags, base_url=server.base_url, output_dir=tmp_path / "traces")
        assert traced.returncode == 0, traced.stderr
    assert len(read_rows(tmp_path / "traces")) == 6
    again = run_questions(dataset, None, base_url="http://127.0.0.1:1/v1", questions_per_segment=2, output_dir=tmp_path / "out")
    assert again.returncode == 0 and "is complete" in again.stdout


def test_a_teacher_that_writes_the_same_question_is_stopped(tmp_path: Path) -> None:
    dataset = write_segments(tmp_path / "segments", 60)
    with HouseServer(lambda body: chat(reply(question(0)))) as server:
        done = run_questions(dataset, server, questions_per_segment=1, concurrency=1, output_dir=tmp_path / "out")
        assert (
            done.returncode == 2 and "wrote the same question about 20 of the first 20 segments" in done.stderr.splitlines()[-1]
        )
        assert len(server.bodies) < 60
        few = run_questions(dataset, server, questions_per_segment=1, limit=6, output_dir=tmp_path / "few")
        assert few.returncode == 2 and "the same question about 6 of the first 6 segments" in few.stderr.splitlines()[-1]


def test_without_a_question_left_there_is_one_clear_line(tmp_path: Path) -> None:
    dataset = write_segments(tmp_path / "segments", 5)
    with HouseServer(lambda body: chat("I see a dog.")) as server:
        done = run_questions(dataset, server, questions_per_segment=2, output_dir=tmp_path / "out")
    line = done.stderr.splitlines()[-1]
    assert (
        done.returncode == 2 and "no question is left of 10 about 5 segments (10 not_json)" in line and "ledger.parquet" in line
    )
    assert questions_of(tmp_path / "out") == {writing.NOT_JSON: 10}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"types": "colour=1"}, "--types colour=1: expected TYPE=SHARE"),
        ({"max_guessed": 2}, "--max_guessed 2: expected a share from 0 to 1"),
        ({"answerer_base_url": "http://localhost:1/v1"}, "--answerer_base_url is the server of --answerer"),
        ({"text_answerer_base_url": "http://localhost:1/v1"}, "--text_answerer_base_url is the server of --text_answerer"),
        ({"answerer": "m", "answerer_base_url": "localhost:1"}, "expected an address that begins with http://"),
        ({"questions_per_segment": 0}, "--questions_per_segment"),
        ({"omit_field": "respnse_format"}, "did you mean response_format?"),
        ({"media_dir": "nowhere"}, "nowhere"),
        ({"dataset": "nowhere"}, "nowhere"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path: Path, flags: dict[str, Any], words: str) -> None:
    dataset = write_segments(tmp_path / "segments", 2)
    with HouseServer(lambda body: chat(reply(question(body["seed"])))) as server:
        done = run_questions(dataset, server, output_dir=tmp_path / "out", **flags)
    assert done.returncode == 2 and words in done.stderr.splitlines()[-1], done.stderr
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("**/*.parquet"))


def test_clips_that_are_not_in_the_folder_are_outcomes(tmp_path: Path) -> None:
    dataset = write_segments(tmp_path / "segments", 3)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "another.mp4").write_bytes((dataset / "segments" / "clip.mp4").read_bytes())
    with HouseServer(lambda body: chat(reply(question(1)))) as server:
        done = run_questions(
            dataset, server, media_dir=tmp_path / "other", questions_per_segment=1, output_dir=tmp_path / "out"
        )
    assert done.returncode == 2 and "3 missing_media" in done.stderr.splitlines()[-1] and not server.bodies


def test_an_answerer_that_refuses_requests_without_sound_needs_another_one(tmp_path: Path) -> None:
    dataset = write_segments(tmp_path / "segments", 12)

    def house(body: dict[str, Any]) -> Any:
        if "JSON" in text_of(body):
            return chat(reply(question(body["seed"])))
        if any(part["type"] == "input_audio" for part in body["messages"][0]["content"]):
            return chat("A")
        return 400, {"error": {"message": "This model requires that either input content or output modality contain audio."}}

    with HouseServer(house) as server:
        flags = {"questions_per_segment": 1, "answerer": "ears", "answerer_base_url": server.base_url, "blind_tries": 4}
        done = run_questions(dataset, server, output_dir=tmp_path / "out", **flags)
    assert done.returncode == 2 and "needs a --text_answerer beside it" in done.stderr.splitlines()[-1]


def test_a_dry_run_asks_nothing_and_names_the_answers_without_the_clip(tmp_path: Path) -> None:
    dataset = write_segments(tmp_path / "segments", 5)
    with HouseServer(lambda body: chat(reply(question(1)))) as server:
        flags = {"answerer": "ears", "answerer_base_url": server.base_url, "output_dir": tmp_path / "out", "dry_run": True}
        done = run_questions(dataset, server, **flags)
    assert done.returncode == 0 and "scripted: 5 requests" in done.stdout and not server.bodies
    assert "ears then answers up to 120 requests (silent)" in done.stdout


def test_rows_without_a_licence_are_not_published(tmp_path: Path) -> None:
    dataset = write_segments(tmp_path / "segments", 2, license="unknown")
    with HouseServer(lambda body: chat(reply(question(body["seed"])))) as server:
        done = run_questions(dataset, server, push_to_hub="me/questions", questions_per_segment=1, output_dir=tmp_path / "out")
    assert done.returncode == 2 and "2 of 2 rows state no licence, so nothing was published" in done.stderr.splitlines()[-1]


def test_the_prompt_and_its_version_are_recorded(tmp_path: Path) -> None:
    dataset = write_segments(tmp_path / "segments", 2)
    (tmp_path / "mine.txt").write_text("JSON, {num_questions} of:\n{types}")
    with HouseServer(lambda body: chat(reply(question(body["seed"], type="why")))) as server:
        done = run_questions(
            dataset,
            server,
            prompt_file=tmp_path / "mine.txt",
            types="why=1",
            questions_per_segment=1,
            output_dir=tmp_path / "out",
        )
        assert done.returncode == 0, done.stderr
        assert {text_of(body).partition(":\n")[0] for body in server.bodies} == {"JSON, 1 of"}
        assert all("1. why: " in text_of(body) for body in server.bodies)
    settings = json.loads((tmp_path / "out" / "stage.json").read_text())["settings"]
    assert settings["prompt_version"].startswith("mine@") and PROMPT_VERSION not in settings["prompt_version"][:1]
