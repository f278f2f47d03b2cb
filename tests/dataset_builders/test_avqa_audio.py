"""The builder of avqa-audio, run as a user runs it: every annotation is in the ledger, and a killed run continues."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import yaml

from dataset_builders import avqa_audio
from sightsound.benchmarks import avqa
from sightsound.building.audio_dataset import AudioDatasetArguments
from sightsound.building.sounds import MIN_DURATION_S
from sightsound.cli import InputError
from sightsound.data.annotations import MAX_TEXT_CHARACTERS
from sightsound.data.audio import decode_audio
from sightsound.data.parquet import open_dataset
from sightsound.data.schema import avqa_audio_features
from sightsound.hub.publish import PublishArguments
from tests.support.avqa import annotation, command, ledger
from tests.support.clips import media_rows, pitch_hz
from tests.support.tiny import REPO


COLUMNS = ["id", "video_id", "start_s", "audio", "duration_s", "question", "video_question", "choices", "answer"]
COLUMNS += ["answer_text", "question_relation", "question_type", "media_sha256"]
NOBODY_TRIED = {"audio_contribution": "unknown", "text_only_correct": None, "silent_correct": None, "blind_tries": None}
COLUMNS += list(NOBODY_TRIED)


TOKEN = "hf_a_secret_that_no_card_may_tell"


def build(folder: Path, annotations: list | Path, *flags: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "HF_TOKEN": TOKEN}
    return subprocess.run(
        command(folder, annotations, *flags), cwd=folder, env=env, capture_output=True, text=True, check=False
    )


ROWS = {
    "good": (annotation(1, "06GyG4-wONQ_000006"), "built"),
    "missing": (annotation(2, "missing___-_000006"), "missing_media"),
    "corrupt": (annotation(3, "corrupt___-_000006"), "corrupt_media"),
    "no audio": (annotation(4, "noaudio___-_000006"), "no_audio"),
    "silent": (annotation(5, "silent____-_000006"), "silent"),
    "three choices": (annotation(6, "06GyG4-wONQ_000006", multi_choice=["a", "b", "c"]), "wrong_choice_count"),
    "choices are text": (annotation(7, "06GyG4-wONQ_000006", multi_choice="abcd"), "wrong_choice_count"),
    "answer too large": (annotation(8, "06GyG4-wONQ_000006", answer=4), "answer_out_of_range"),
    "answer negative": (annotation(9, "06GyG4-wONQ_000006", answer=-1), "answer_out_of_range"),
    "answer is text": (annotation(10, "06GyG4-wONQ_000006", answer="bell"), "answer_out_of_range"),
    "repeated": (annotation(1, "06GyG4-wONQ_000006"), "duplicate_id"),
    "path": (annotation(11, "../../../secret_000006"), "bad_annotation"),
    "missing, then repeated": (annotation(2, "06GyG4-wONQ_000006"), "duplicate_id"),
    "bad, then good": (annotation(8, "06GyG4-wONQ_000006"), "built"),
    "repeated and bad": (annotation(8, "06GyG4-wONQ_000006", answer=4), "answer_out_of_range"),
    "null": (annotation(None, "06GyG4-wONQ_000006"), "bad_annotation"),
    "null again": (annotation(None, "06GyG4-wONQ_000006"), "bad_annotation"),
    "not an object": ("a string", "bad_annotation"),
    "no question": ({k: v for k, v in annotation(12, "06GyG4-wONQ_000006").items() if k != "question_text"}, "bad_annotation"),
    "good elsewhere": (annotation(13, "-HXwnBVE19E_000002", answer=0), "built"),
    "too short": (annotation(15, "tooshort____000006"), "too_short"),
    "short, but sound": (annotation(16, "justright_-_000006"), "built"),
    "the video has ended": (annotation(17, "-HXwnBVE19E_000020"), "too_short"),
    "the video ends at once": (annotation(18, "-HXwnBVE19E_000013"), "too_short"),
    "the video goes on a little": (annotation(19, "-HXwnBVE19E_000012"), "built"),
    "question null": (annotation(28, "06GyG4-wONQ_000006", question_text=None), "bad_annotation"),
    "name null": (annotation(29, "06GyG4-wONQ_000006", video_name=None), "bad_annotation"),
    "choices null": (annotation(30, "06GyG4-wONQ_000006", multi_choice=None), "wrong_choice_count"),
    "answer null": (annotation(31, "06GyG4-wONQ_000006", answer=None), "answer_out_of_range"),
    "a very long question": (annotation(20, "06GyG4-wONQ_000006", question_text="a" * 10**6), "bad_annotation"),
    "a very long choice": (annotation(21, "06GyG4-wONQ_000006", multi_choice=["a" * 10**6, "b", "c", "d"]), "bad_annotation"),
    "half a character": (annotation(22, "06GyG4-wONQ_000006", question_text="what \ud800?"), "bad_annotation"),
    "half a character as id": (annotation("\udfff", "06GyG4-wONQ_000006"), "bad_annotation"),
    "a choice is null": (annotation(23, "06GyG4-wONQ_000006", multi_choice=["a", None, "c", "d"]), "bad_annotation"),
    "a newline in the name": (annotation(24, "06GyG4-wONQ_000006\n"), "bad_annotation"),
    "NUL in the name": (annotation(25, "06GyG4-wONQ\0000006"), "bad_annotation"),
    "NUL in the question": (annotation(26, "06GyG4-wONQ_000006", question_text="what\0?"), "built"),
    "a blank question": (annotation(27, "06GyG4-wONQ_000006", question_text=" \n"), "bad_annotation"),
}
SAID = {  # part of the ledger's detail
    "missing": "no clip named missing___-_000006.*",
    "too short": "tooshort____000006.wav: 0.100 s of audio, expected at least 0.2 s",
    "the video has ended": "deep/-HXwnBVE19E.mkv: the video ends at 13.00 s, the question's part begins at 20 s",
    "a very long question": f"question is 1000000 characters long, expected at most {MAX_TEXT_CHARACTERS}",
    "a choice is null": "expected text as every choice, found None",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory, write_clip) -> tuple[Path, subprocess.CompletedProcess]:
    folder = tmp_path_factory.mktemp("avqa")
    clips = folder / "clips"
    write_clip(clips / "06GyG4-wONQ_000006.mp4", [(440.0, 44_100, 2)])
    write_clip(clips / "deep" / "-HXwnBVE19E.mkv", [(660.0, 22_050, 1)], duration_s=13.0, fps=2)
    write_clip(clips / "noaudio___-_000006.mp4", tracks=[])
    write_clip(clips / "silent____-_000006.mp4", [(0.0, 44_100, 1)])
    write_clip(clips / "tooshort____000006.wav", [(440.0, 16_000, 1)], duration_s=0.1, fps=0)
    write_clip(clips / "justright_-_000006.wav", [(440.0, 16_000, 1)], duration_s=MIN_DURATION_S, fps=0)
    (clips / "corrupt___-_000006.mp4").write_bytes(b"<html>video unavailable</html>")
    write_clip(folder / "secret_000006.mp4")
    return folder, build(folder, [row for row, _ in ROWS.values()])


def test_every_annotation_is_in_the_ledger_once_with_its_outcome(built):
    folder, done = built
    assert done.returncode == 0, done.stderr
    entries = ledger(folder)
    ids = [str(row["id"]).replace("\udfff", "\\udfff") if isinstance(row, dict) else "" for row, _ in ROWS.values()]
    assert [(e["id"], e["outcome"]) for e in entries] == [
        (row_id, outcome) for row_id, (_, outcome) in zip(ids, ROWS.values(), strict=True)
    ]
    assert all((e["detail"] is None) == (e["outcome"] == "built") for e in entries)
    details = dict(zip(ROWS, [entry["detail"] for entry in entries], strict=True))
    assert {case: details[case] for case in SAID} == SAID
    assert max(len(detail) for detail in details.values() if detail) < 400
    assert f"{len(ROWS)} annotations: " in done.stdout
    table = [f"| {outcome} | {count} |" for outcome, count in Counter(e["outcome"] for e in entries).items()]
    card = (folder / "out" / "README.md").read_text()
    assert all(line in card and line in done.stdout for line in table)
    assert len(table) == 10, "every outcome but one that AVQA's format cannot have"


def test_the_card_tells_what_was_built_and_how(built):
    folder, _ = built
    card = (folder / "out" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert (front["license"], front["license_name"], front["language"]) == ("other", "avqa-states-none", "en")
    assert front["sightsound"] == {"benchmark": "avqa"}
    assert {"pretty_name", "source_datasets", "task_categories", "tags", "configs", "dataset_info"} <= set(front)
    shards = list((folder / "out" / "data").glob("*.parquet"))
    info = front["dataset_info"]
    assert [(split["name"], split["num_examples"]) for split in info["splits"]] == [("train", 6)]
    assert info["download_size"] == sum(shard.stat().st_size for shard in shards)
    assert [feature["name"] for feature in info["features"]] == COLUMNS
    sample = json.loads(re.search(r"```json\n(.*?)\n```", card, re.DOTALL)[1])
    assert list(sample) == COLUMNS
    assert (sample["id"], sample["audio"]) == ("1", "(FLAC, 16 kHz, mono)")
    asked = "--train_annotations train_qa.json --media_dir clips --output_dir out --num_proc 1"
    assert f"\npython dataset_builders/avqa_audio.py {asked}\n" in card
    digest = hashlib.sha256((folder / "train_qa.json").read_bytes()).hexdigest()
    assert f"| train | train_qa.json | {len(ROWS)} | `{digest}` |" in card
    for package in ("datasets", "av", "torchaudio", "soundfile"):
        assert f"{package} {version(package)}" in card
    assert "second of the YouTube video" in card and "AVQA states no licence" in card and "counted from 0" in card
    assert "other" not in card.split("## Licence")[0].split("# avqa-audio")[1].split("## Coverage")[0]
    for secret in (TOKEN, str(REPO), sys.prefix, str(folder)):
        assert secret not in card


def test_a_finished_build_can_still_be_published(built, monkeypatch, capsys):
    folder, _ = built
    sent = []
    monkeypatch.setattr("sightsound.hub.publish.publish_dataset", lambda *given: sent.append(given) or "build-1")
    monkeypatch.chdir(folder)
    given = command(folder, [row for row, _ in ROWS.values()], "--push_to_hub", "lab/avqa-audio", "--private")
    monkeypatch.setattr(sys, "argv", given[1:])
    avqa_audio.main()
    assert sent == [(Path("out"), "lab/avqa-audio", True)]
    complete, published = capsys.readouterr().out.splitlines()
    assert complete.startswith("out is complete: ") and published == "published: lab/avqa-audio, revision build-1"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"push_to_hub": "avqa-audio"}, "expected ORG/NAME"),
        ({"push_to_hub": "https://huggingface.co/lab/x"}, "expected ORG/NAME"),
        ({"push_to_hub": "lab/avqa\n"}, "expected ORG/NAME"),
        ({"private": True}, "give --push_to_hub ORG/NAME as well"),
        ({"push_to_hub": "lab/avqa", "media_dir": "clips", "output_dir": "lab/avqa/"}, "is named like the repository"),
    ],
)
def test_where_to_publish_is_checked_before_anything_is_built(given, message):
    with pytest.raises(InputError, match=message):
        (AudioDatasetArguments if "output_dir" in given else PublishArguments)(**given)


@pytest.mark.parametrize(("file", "count"), [("train_qa.subset.json", 8710), ("val_qa.sample.json", 112)])
def test_the_real_annotations_keep_their_texts(file, count, real_data):
    official = json.loads((real_data / "annotations" / "avqa" / file).read_text(encoding="utf-8"))
    rows = [avqa.to_row(each) for each in official]
    assert len(rows) == count
    for source, row in zip(official, rows, strict=True):
        assert f"{row['video_id']}_{row['start_s']:06.0f}" == source["video_name"], "ids begin with - and _ too"
        assert row["video_question"] == source["question_text"]
        assert row["question"] == source["question_text"].replace("video", "audio")
        assert (row["choices"], row["answer"]) == (source["multi_choice"], source["answer"]), "outer spaces, repeated golds"
        assert row["answer_text"] == source["multi_choice"][source["answer"]]
    if count == 8710:
        assert sum(row["choices"].count(row["answer_text"]) > 1 for row in rows) == 40
        assert sum(choice != choice.strip(" ") for row in rows for choice in row["choices"]) == 239
        assert {row["video_id"][0] for row in rows} >= {"-", "_"}


def test_the_dataset_loads_as_the_published_one(built):
    import datasets

    folder, _ = built
    loaded = datasets.load_dataset(str(folder / "out"), split="train")
    assert loaded.column_names == COLUMNS
    assert loaded.features == avqa_audio_features()
    first, _, second, *_ = open_dataset(str(folder / "out"), "train")
    assert {k: v for k, v in first.items() if k not in ("audio", "media_sha256", "duration_s")} == {
        "id": "1",
        "video_id": "06GyG4-wONQ",
        "start_s": 6.0,
        "question": "What is the main source of sound in the audio?",
        "video_question": "What is the main source of sound in the video?",
        "choices": ["dog", " bell", "siren", "drum"],
        "answer": 1,
        "answer_text": " bell",
        "question_relation": "Both",
        "question_type": "Come From",
        **NOBODY_TRIED,
    }
    for row, hz, duration_s in ((first, 440, 1.0), (second, 660, 10.0)):
        heard = decode_audio(row["audio"])
        assert heard.waveform.ndim == 1
        assert row["duration_s"] == heard.duration_s == pytest.approx(duration_s, abs=0.05), "cut at start..start+10 s"
        assert pitch_hz(heard.waveform) == pytest.approx(hz, abs=1)
        assert len(row["media_sha256"]) == 64


def test_a_finished_build_is_left_alone(built):
    folder, _ = built
    before = {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*.parquet")}
    done = build(folder, [row for row, _ in ROWS.values()])
    outcomes = Counter(outcome for _, outcome in ROWS.values())
    assert done.returncode == 0 and done.stdout.count("\n") == 1
    assert done.stdout.startswith(f"out is complete: {outcomes['built']} of {len(ROWS)} annotations built, 15 bad_annotation, ")
    assert done.stdout.endswith("1 silent; delete the folder to build again\n")
    assert {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*.parquet")} == before


def test_other_annotations_are_not_mixed_into_a_build(built):
    folder, _ = built
    other = folder / "other.json"
    other.write_text("[]")
    done = build(folder, other)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "was started with other settings (train_annotations:" in done.stderr


def test_clips_that_were_added_after_a_run_without_any_are_found(tmp_path, write_clip):
    rows = [annotation(1, "06GyG4-wONQ_000006")]
    assert build(tmp_path, rows).returncode == 2
    write_clip(tmp_path / "clips" / "06GyG4-wONQ_000006.mp4")
    done = build(tmp_path, rows)
    assert done.returncode == 0, done.stderr


def test_a_shard_or_a_split_without_a_usable_row_does_not_spoil_the_others(tmp_path, built):
    import datasets

    (tmp_path / "clips").symlink_to(built[0] / "clips")
    missing = [annotation(i, "missing___-_000006") for i in range(500)]
    (tmp_path / "val_qa.json").write_text(json.dumps(missing[:1]))
    rows = [*missing, annotation(500, "06GyG4-wONQ_000006")]
    done = build(tmp_path, rows, "--validation_annotations", str(tmp_path / "val_qa.json"))
    assert done.returncode == 0, done.stderr
    assert open_dataset(str(tmp_path / "out"), "train")["id"][:] == ["500"]
    # Without a split asked for, `load_dataset` refuses a dataset of which one is empty.
    assert list(datasets.load_dataset(str(tmp_path / "out"))) == ["train"]
    assert Counter(entry["outcome"] for entry in ledger(tmp_path)) == {"missing_media": 501, "built": 1}


def many() -> list[dict]:
    """Three shards; seven rows of eight have no clip, which costs no time."""
    return [annotation(i, "missing___-_000006" if i % 8 else "06GyG4-wONQ_000006") for i in range(1001)]


def data_bytes(folder: Path) -> dict[str, bytes]:
    out = folder / "out"
    files = [*(out / "data").iterdir(), out / "ledger.parquet", out / "README.md"]
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


@pytest.mark.slow
def test_a_killed_build_continues_and_ends_with_the_same_bytes(tmp_path, write_clip):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        write_clip(folder / "clips" / "06GyG4-wONQ_000006.wav", [(440.0, 16_000, 1)], duration_s=0.25, fps=0)
    assert build(whole, many()).returncode == 0
    # A session of its own, so that the kill takes the worker processes as well.
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command(killed, many()), cwd=killed, start_new_session=True, **quiet)
    first_shard = killed / "out" / "ledger" / "train-00000-of-00003.parquet"
    while not first_shard.exists() and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert first_shard.exists()
    assert not (killed / "out" / "ledger.parquet").exists(), "it was killed too late to prove anything"
    kept = first_shard.stat().st_mtime_ns
    assert build(killed, many()).returncode == 0
    assert first_shard.stat().st_mtime_ns == kept, "a finished shard is not made again"
    assert data_bytes(killed) == data_bytes(whole)


def test_real_videos_become_rows_of_the_right_length(tmp_path, real_data):
    videos = media_rows(real_data)
    (tmp_path / "clips").mkdir()
    rows = []
    for i, video in enumerate(videos):
        name = f"real-video{i % 10}_{i:06d}"
        (tmp_path / "clips" / f"{name}{Path(video['file']).suffix}").symlink_to((real_data / video["file"]).resolve())
        rows.append(annotation(i, name))
    done = build(tmp_path, rows)
    assert done.returncode == 0, done.stderr
    outcomes = {Path(video["file"]).stem: entry["outcome"] for video, entry in zip(videos, ledger(tmp_path), strict=True)}
    assert {name: outcome for name, outcome in outcomes.items() if outcome != "built"} == {
        "mdn_bug_no_audio_stream": "no_audio",
        "mdn_flower_silent_track": "silent",
    }
    by_id = {row["id"]: row for row in open_dataset(str(tmp_path / "out"), "train")}
    assert len(by_id) == 23
    for i, video in enumerate(videos):
        if str(i) in by_id:
            row = by_id[str(i)]
            # Container against sound: the two tracks of a real file end a few frames apart.
            assert row["duration_s"] == pytest.approx(float(video["duration_s"]), abs=0.1), video["file"]
            assert row["media_sha256"] == video["sha256"]
            heard = decode_audio(row["audio"])
            assert heard.duration_s == row["duration_s"]
            assert np.abs(heard.waveform).max() > 0.01


def test_the_real_annotations_without_clips_are_all_accounted_for(tmp_path, real_data):
    done = build(tmp_path, real_data / "annotations" / "avqa" / "train_qa.subset.json")
    assert Counter(entry["outcome"] for entry in ledger(tmp_path)) == {"missing_media": 8710}
    assert len({entry["id"] for entry in ledger(tmp_path)}) == 8710
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if not line.lstrip().startswith("annotations:") and line]
    assert len(said) == 1, done.stderr
    assert "no row could be built from 8710 annotations (8710 missing_media)" in said[0]
    assert "no clip named -HXwnBVE19E_000002.*" in said[0] and "holds 0 audio and video files" in said[0]
