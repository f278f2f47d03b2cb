"""A stage that is killed at any moment continues, and never mixes two settings."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest

from sightsound.building.workers import leave_with_parent, worker_pool
from sightsound.cli import InputError
from sightsound.stage import Journal, Stage, fingerprint, is_complete, replace_folder, write_atomically


def journal_of(path, items=()) -> Journal:
    journal = Journal(path)
    journal.append(items)
    journal.close()
    return journal


def test_a_journal_is_read_back(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal_of(path, [("a", {"text": "été\n"}), ("b", None)])
    journal = journal_of(path, [("c", 3)])
    assert list(journal) == ["a", "b", "c"]
    assert (journal["a"], journal["b"], len(journal.entries), "c" in journal, "d" in journal) == (
        {"text": "été\n"},
        None,
        3,
        True,
        False,
    )


def test_what_was_appended_is_on_disk_at_once(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append([("a", 1)])
    assert json.loads((tmp_path / "journal.jsonl").read_text()) == ["a", 1]
    journal.close()


@pytest.mark.parametrize("bytes_lost", range(1, 12))
def test_half_a_line_is_cut_off_and_made_again(tmp_path, bytes_lost):
    path = tmp_path / "journal.jsonl"
    journal_of(path, [("a", 1), ("b", "é")])
    whole = path.read_bytes()
    path.write_bytes(whole[:-bytes_lost])
    journal = Journal(path)
    assert list(journal) == ["a"]
    journal.append([("b", "é")])
    journal.close()
    assert path.read_bytes() == whole


@pytest.mark.parametrize("torn", [b"\0" * 40, b"\0" * 40 + b"\n", b'["b", 2\n'], ids=["zeros", "a line of zeros", "no bracket"])
def test_a_torn_line_ends_the_journal(tmp_path, torn):
    path = tmp_path / "journal.jsonl"
    journal_of(path, [("a", 1)])
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert list(journal_of(path)) == ["a"]
    assert path.read_bytes() == whole


def test_a_stage_with_the_same_settings_continues_and_a_complete_one_says_so(tmp_path):
    with Stage(tmp_path / "out", {"seed": 0, "names": ("a", "b")}) as stage:
        assert not stage.complete
        journal_of(stage.path / "journal.jsonl", [("a", 1)])
    with Stage(tmp_path / "out", {"seed": 0, "names": ("a", "b")}) as stage:
        assert not stage.complete
        assert "a" in journal_of(stage.path / "journal.jsonl")
        stage.finish()
    assert not (tmp_path / "out" / "journal.jsonl").exists()
    with Stage(tmp_path / "out", {"seed": 0, "names": ("a", "b")}) as stage:
        assert stage.complete


def test_a_stage_that_failed_is_not_complete(tmp_path):
    with pytest.raises(RuntimeError), Stage(tmp_path, {}):
        raise RuntimeError
    assert json.loads((tmp_path / "stage.json").read_text())["complete"] is False


def test_a_folder_with_files_of_another_origin_is_left_alone(tmp_path):
    (tmp_path / "README.md").write_text("my notes")
    with pytest.raises(InputError, match=r"holds files already \(first: README.md\)"), Stage(tmp_path, {}):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "README.md"]
    (tmp_path / "README.md").unlink()
    with Stage(tmp_path, {}) as stage:
        assert not stage.complete


def test_an_output_folder_that_cannot_be_one_is_said_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be created"), Stage(tmp_path / "file", {}):
        pass


def test_a_stage_that_kept_nothing_can_be_run_with_other_settings(tmp_path):
    with Stage(tmp_path, {"limit": 1}) as stage:
        stage.forget_settings()
    with Stage(tmp_path, {"limit": 2}) as stage:
        assert not stage.complete
    with pytest.raises(InputError, match="limit: 2 then, 3 now"), Stage(tmp_path, {"limit": 3}):
        pass


def test_other_settings_are_refused_by_name(tmp_path):
    with Stage(tmp_path, {"seed": 0, "temperature": 1.0}):
        pass
    with pytest.raises(InputError, match=r"other settings \(seed: 0 then, 1 now\); delete it or choose another folder"):
        Stage(tmp_path, {"seed": 1, "temperature": 1.0}).__enter__()
    with pytest.raises(InputError, match=r"top_p: None then, 0\.9 now"):
        Stage(tmp_path, {"seed": 0, "temperature": 1.0, "top_p": 0.9}).__enter__()


def test_a_refused_stage_does_not_keep_the_lock(tmp_path):
    with Stage(tmp_path, {"seed": 0}):
        pass
    refused = Stage(tmp_path, {"seed": 1})
    with pytest.raises(InputError, match="other settings"):
        refused.__enter__()
    with Stage(tmp_path, {"seed": 0}) as stage:
        assert not stage.complete


def test_another_process_is_refused_while_the_stage_runs(tmp_path):
    script = (
        "import sys\nfrom sightsound.cli import run\nfrom sightsound.stage import Stage\n"
        "run(lambda: Stage(sys.argv[1], {}).__enter__())"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with Stage(tmp_path, {}):
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert refused.stderr == f"error: {tmp_path} is being written by another process; wait for it or stop it\n"
    assert subprocess.run(command, check=False).returncode == 0


def test_a_fingerprint_changes_when_its_source_does(tmp_path):
    file, folder, stage = tmp_path / "a.json", tmp_path / "clips", tmp_path / "stage"
    file.write_text("1")
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "x.mp4").write_text("1")
    write_stage(stage, b"weights 1")
    sources = (file, folder, stage, stage / "model", stage / "checkpoint-1")
    before = [fingerprint(source) for source in sources]
    assert before == [fingerprint(str(source)) for source in sources]
    assert len(set(before)) == len(before), "a folder inside a stage is not the stage, nor another folder of it"
    file.write_text("2")
    (folder / "inner" / "x.mp4").write_text("2")  # as large as before
    shutil.rmtree(stage)
    write_stage(stage, b"weights 2")  # the same settings, other results
    assert all(old != fingerprint(source) for old, source in zip(before, sources, strict=True))


def write_stage(folder, weights):
    with Stage(folder, {"seed": 0}) as stage:
        for name in ("model", "checkpoint-1"):
            (folder / name).mkdir()
            (folder / name / "model.safetensors").write_bytes(weights)
        stage.finish()


def test_the_same_results_have_the_same_fingerprint(tmp_path):
    for name in "ab":
        write_stage(tmp_path / name, b"weights")
    (tmp_path / "b" / "README.md").write_text("a card is no result")
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")


def test_a_stage_that_is_not_complete_cannot_be_built_on(tmp_path):
    with Stage(tmp_path, {"seed": 0}):
        pass
    with pytest.raises(InputError, match="is not complete; rerun the stage that writes it"):
        fingerprint(tmp_path)


def test_workers_leave_with_their_parent_and_let_go_of_the_lock(tmp_path):
    script = (
        "import sys, time\nfrom concurrent.futures import ProcessPoolExecutor\n"
        "from sightsound.building.workers import leave_with_parent\nfrom sightsound.stage import Stage\n"
        "with Stage(sys.argv[1], {}), ProcessPoolExecutor(2, initializer=leave_with_parent) as pool:\n"
        "    list(pool.map(abs, range(8)))\n    print('ready', flush=True)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.kill()  # the main process alone, as the kernel does when memory runs out
    process.wait()
    process.stdout.close()
    for _ in range(100):
        try:
            with Stage(tmp_path, {}):
                return
        except InputError:
            time.sleep(0.1)
    pytest.fail("the workers of a killed process still hold the lock")


def test_a_fingerprint_of_a_hub_id_is_its_name():
    assert fingerprint("Qwen/Qwen2-Audio-7B-Instruct") == "Qwen/Qwen2-Audio-7B-Instruct"
    assert fingerprint(None) is None


def test_atomic_writing_replaces_the_whole_file_or_nothing(tmp_path):
    path = tmp_path / "results.json"
    write_atomically(path, "old")
    with open(path) as reader:
        write_atomically(path, "new")
        # A reader keeps the file that it opened: the new text never went into it.
        assert (reader.read(), path.read_text()) == ("old", "new")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "half \ud800")
    assert path.read_text() == "new"


def test_a_finished_folder_replaces_what_was_there(tmp_path):
    new, final = tmp_path / "new", tmp_path / "final"
    for folder, name in ((new, "b"), (final, "a")):
        folder.mkdir()
        (folder / name).touch()
    replace_folder(new, final)
    assert os.listdir(final) == ["b"]
    assert not new.exists()


def test_a_folder_in_which_bad_input_left_nothing_takes_the_corrected_command(tmp_path):
    with (
        pytest.raises(InputError, match="no such dataset"),
        Stage(tmp_path / "runs" / "x" / "avqa", {"dataset": "typo"}) as stage,
    ):
        journal_of(stage.path / "journal.jsonl")
        raise InputError("no such dataset")
    assert os.listdir(tmp_path) == [], "whoever takes all of runs/* would find a run that is not complete"
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match="no such dataset"), Stage(tmp_path / "run", {"dataset": "typo"}):
        raise InputError("no such dataset")
    assert os.listdir(tmp_path / "run") == [], "the folder was there before"
    with Stage(tmp_path / "run", {"dataset": "right"}) as stage:
        (stage.path / "ledger.parquet").write_bytes(b"rows")
    with pytest.raises(InputError, match="other settings"), Stage(tmp_path / "run", {"dataset": "another"}):
        pass


def test_a_folder_of_another_stage_is_not_offered_for_deletion(tmp_path):
    with Stage(tmp_path, {"media_dir": "clips", "limit": None}):
        pass
    expected = r"holds the output of another stage .its settings: limit, media_dir.; choose another"
    with pytest.raises(InputError, match=expected) as raised:
        Stage(tmp_path, {"model": "m", "method": "cot", "limit": None}).__enter__()
    assert "delete" not in str(raised.value)
    with pytest.raises(InputError, match="other settings") as raised:
        Stage(tmp_path, {"media_dir": "other", "limit": None, "split": "test"}).__enter__()
    assert str(raised.value).endswith("; choose another folder"), "another version may have written it, or a like stage"


def test_settings_that_are_fingerprints_say_what_changes_them(tmp_path):
    with Stage(tmp_path, {"model": "0123456789abcdef"}):
        pass
    with pytest.raises(InputError, match="a folder that was copied or edited counts as another one"):
        Stage(tmp_path, {"model": "fedcba9876543210"}).__enter__()


HELD = threading.Lock()


def take() -> bool:
    return HELD.acquire(timeout=2)


def test_a_lock_that_a_thread_holds_is_not_held_in_a_worker_for_ever() -> None:
    """A build once waited for one of pyarrow's, in a forked worker."""
    with HELD, worker_pool(1, leave_with_parent) as pool:
        assert pool.submit(take).result()


def test_the_folder_of_the_clips_may_be_written_in_any_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "videos").mkdir()
    ways = ["videos", "videos/", "./videos", str(tmp_path / "videos"), "videos/../videos"]
    for way in ways:
        with Stage("out", {"media_dir": way, "limit": None}) as stage:
            journal_of(stage.path / "journal.jsonl")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with Stage(tmp_path / "out", {"media_dir": "../videos", "limit": None}):
        pass
    with pytest.raises(InputError, match="other settings"), Stage(tmp_path / "out", {"media_dir": "videos", "limit": None}):
        pass


def test_a_folder_that_recorded_a_relative_path_of_the_clips_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "stage.json").write_text('{"settings": {"media_dir": "videos", "limit": null}, "complete": false}')
    with Stage("out", {"media_dir": "./videos/", "limit": None}) as stage:
        stage.finish()
    assert is_complete(tmp_path / "out")


def test_outcomes_without_an_answer_do_not_keep_the_settings(tmp_path):
    for value, is_kept in (({"outcome": "missing_media", "detail": None}, False), ({"prompt": "", "completions": []}, True)):
        with pytest.raises(InputError), Stage(tmp_path / "out", {"seed": 0}) as stage:
            journal = Journal(stage.path / "journal.jsonl")
            journal.append([("a", value)])
            journal.close()
            raise InputError("refused")
        assert (tmp_path / "out").exists() == is_kept


def test_a_kill_before_the_first_settings_are_there_does_not_block_the_folder(tmp_path, monkeypatch):
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sightsound.stage.os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_atomically(tmp_path / "stage.json", "{}")
    assert len(list(tmp_path.iterdir())) == 1
    with Stage(tmp_path, {"seed": 0}) as stage:
        assert not stage.complete
