"""What is written is what is read, whatever `datasets` has in its cache."""

import subprocess
import sys

import pytest

from sightsound.cli import InputError
from sightsound.data import parquet, schema
from sightsound.data.audio import decode_audio, encode_flac
from sightsound.hub.cards import render_card, write_dataset_card
from tests.support.clips import tone


def avqa_row(row_id: str, hz: float = 440.0) -> dict:
    return {
        "id": row_id,
        "video_id": "06GyG4-wONQ",
        "start_s": 6.0,
        "audio": {"bytes": encode_flac(tone(hz, 16_000, 0.1)), "path": f"{row_id}.flac"},
        "duration_s": 0.1,
        "question": "What is in the audio?",
        "video_question": "What is in the video?",
        "choices": ["dog", " bell"],
        "answer": 1,
        "answer_text": " bell",
        "question_relation": "Both",
        "question_type": "Which",
        "media_sha256": "0" * 64,
        "audio_contribution": "strong",
        "text_only_correct": 0.375,
        "silent_correct": None,
        "blind_tries": 8,
    }


def write_avqa(folder, rows, split="train"):
    parquet.write_parquet(rows, schema.avqa_audio_features(), folder / "data" / f"{split}-00000-of-00001.parquet")
    write_dataset_card(folder, "# rows\n", {"default": {split: f"data/{split}-*.parquet"}})
    return str(folder)


def test_rows_with_audio_come_back_byte_for_byte(tmp_path):
    rows = [avqa_row("a"), avqa_row("b", 880.0)]
    dataset = parquet.open_dataset(write_avqa(tmp_path / "set", rows), "train")
    assert list(dataset) == rows
    assert dataset.features["audio"].sampling_rate == schema.SAMPLING_RATE
    assert decode_audio(dataset[1]["audio"]).duration_s == 0.1


def test_nested_traces_with_missing_values_come_back(tmp_path):
    trace = {"text": "x", "think": None, "answer": None, "finish_reason": "length", "verdict": None, "verdict_text": None}
    row = dict.fromkeys(schema.traces_features(), None)
    row |= {"id": "a", "choices": ["dog"], "unanimous": False, "traces": [trace, {**trace, "answer": 0}], "seed": 2**40}
    parquet.write_parquet([row], schema.traces_features(), tmp_path / "set" / "data" / "train.parquet")
    write_dataset_card(tmp_path / "set", "", {"default": {"train": "data/*.parquet"}})
    later = {"claims": None, "rewritten": None}  # fields that traces of earlier versions lack
    expected = row | {"traces": [trace | later for trace in row["traces"]]}
    assert list(parquet.open_dataset(str(tmp_path / "set"), "train")) == [expected]


def test_a_missing_column_is_an_error_and_leaves_no_file(tmp_path):
    row = avqa_row("a")
    del row["choices"]
    with pytest.raises(KeyError, match="choices"):
        parquet.write_parquet([row], schema.avqa_audio_features(), tmp_path / "x.parquet")
    assert list(tmp_path.iterdir()) == []


def test_rows_are_written_as_they_come_and_in_small_groups(tmp_path):
    import pyarrow.parquet as pq

    sound = encode_flac(tone(440.0, 16_000, 0.1))
    rows = ({**avqa_row("a"), "id": str(i), "audio": {"bytes": sound, "path": f"{i}.flac"}} for i in range(250))
    parquet.write_parquet(rows, schema.avqa_audio_features(), tmp_path / "x.parquet")
    metadata = pq.read_metadata(tmp_path / "x.parquet")
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [100, 100, 50]
    assert pq.read_table(tmp_path / "x.parquet")["id"].to_pylist() == [str(i) for i in range(250)]


MEMORY = """
import os, resource, sys
from pathlib import Path
from sightsound.data import parquet, schema

def write(count):
    row = {name: "x" for name in schema.avqa_audio_features() if name not in schema.CONTRIBUTION_COLUMNS}
    row |= {"start_s": 0.0, "duration_s": 1.0, "choices": ["a"], "answer": 0}
    rows = (row | {"audio": {"bytes": os.urandom(200_000), "path": "x.flac"}} for _ in range(count))
    parquet.write_parquet(rows, schema.avqa_audio_features(), Path(sys.argv[1]))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

few, many = write(100), write(1000)
print(many / few)
"""


def test_ten_times_the_rows_take_no_more_memory(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "x.parquet")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= 1.1


def test_a_file_that_was_not_finished_leaves_the_old_one(tmp_path):
    def rows():
        yield from (avqa_row(str(i)) for i in range(150))
        raise OSError("the disk is gone")

    parquet.write_parquet([avqa_row("a")], schema.avqa_audio_features(), tmp_path / "x.parquet")
    before = (tmp_path / "x.parquet").read_bytes()
    with pytest.raises(OSError, match="the disk is gone"):
        parquet.write_parquet(rows(), schema.avqa_audio_features(), tmp_path / "x.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["x.parquet"]
    assert (tmp_path / "x.parquet").read_bytes() == before


def test_two_folders_of_one_name_are_not_confused(tmp_path):
    first = parquet.open_dataset(write_avqa(tmp_path / "one" / "set", [avqa_row("a")]), "train")
    second = parquet.open_dataset(write_avqa(tmp_path / "two" / "set", [avqa_row("b")]), "train")
    assert (first["id"][:], second["id"][:]) == (["a"], ["b"])


def test_a_rebuilt_folder_is_not_read_from_the_cache(tmp_path):
    assert parquet.open_dataset(write_avqa(tmp_path / "set", [avqa_row("a")]), "train")["id"][:] == ["a"]
    # Same names, same sizes: only the content differs.
    assert parquet.open_dataset(write_avqa(tmp_path / "set", [avqa_row("b")]), "train")["id"][:] == ["b"]


def test_configs_and_splits_are_opened_by_name(tmp_path):
    for name in ("traces", "verified"):
        parquet.write_ledger([{"id": name, "outcome": "built"}], tmp_path / "data" / name / "train.parquet")
    configs = {name: {"train": f"data/{name}/*.parquet"} for name in ("verified", "traces")}
    write_dataset_card(tmp_path, "", configs, license="other")
    assert parquet.open_dataset(str(tmp_path), "train")[0]["id"] == "verified", "the first config is the default"
    assert parquet.open_dataset(str(tmp_path), "train", "traces")[0]["id"] == "traces"
    with pytest.raises(InputError, match="cannot open split 'train'"):
        parquet.open_dataset(str(tmp_path), "train", "none")


def test_a_split_that_is_not_there_is_bad_input(tmp_path):
    folder = write_avqa(tmp_path / "set", [avqa_row("a")])
    with pytest.raises(InputError, match=r"cannot open split 'test' of .*expected a dataset folder or a Hub dataset id"):
        parquet.open_dataset(folder, "test")


@pytest.mark.parametrize("source", ["nowhere", "no-organisation/no-dataset", "/nowhere/at/all"])
def test_a_dataset_that_is_not_there_is_bad_input(source):
    with pytest.raises(InputError, match="cannot open split 'train'"):
        parquet.open_dataset(source, "train")


def test_the_ledger_holds_outcome_and_detail_of_every_row(tmp_path):
    import pyarrow.parquet as pq

    parquet.write_ledger(
        [{"id": "a", "outcome": "built"}, {"id": "b", "outcome": "silent", "detail": "x"}], tmp_path / "l.parquet"
    )
    assert pq.read_table(tmp_path / "l.parquet").to_pylist() == [
        {"id": "a", "outcome": "built", "detail": None},
        {"id": "b", "outcome": "silent", "detail": "x"},
    ]


def test_audio_is_looked_up_by_row_id(tmp_path):
    rows = [avqa_row("a"), avqa_row("b", 880.0)]
    audio = parquet.AudioById(parquet.open_dataset(write_avqa(tmp_path / "set", rows), "train"))
    assert audio["b"] == rows[1]["audio"]
    assert ("a" in audio, "c" in audio) == (True, False)
    with pytest.raises(KeyError):
        audio["c"]


def test_a_card_with_a_value_that_nobody_gave_is_an_error():
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError):
        render_card("dataset_traces.md")


def test_a_published_dataset_may_not_name_files_that_did_not_come_with_it(tmp_path):
    from datasets import Audio, Dataset

    from sightsound.cli import InputError

    cells = [{"bytes": b"x", "path": "/etc/hostname"}, {"bytes": None, "path": str(tmp_path / "secret.wav")}]
    dataset = Dataset.from_dict({"audio": cells}).cast_column("audio", Audio(decode=False))
    with pytest.raises(InputError, match=r"someone/sounds holds no audio in 'audio' but the path .*secret\.wav"):
        parquet._check_paths(dataset, "audio", "someone/sounds")
    parquet._check_paths(dataset.select([0]).flatten_indices(), "audio", "someone/sounds")
