"""From a folder of videos to segments: what is found, what is said of the rest, and that nothing is lost."""

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataset_builders.traces import TracesArguments
from sightsound.building import segments
from sightsound.building.segments import CutSettings, Video, candidate_starts, cut_video
from sightsound.building.video_columns import Columns, read_preset
from sightsound.building.video_sources import open_folder
from sightsound.building.videos_dataset import VideosArguments, build_videos
from sightsound.building.videos_report import check_licenses
from sightsound.cli import InputError
from sightsound.data import frames, track
from sightsound.data.audio import decode_audio
from sightsound.data.clips import MediaFolder
from sightsound.data.frames import frames_of_row
from sightsound.data.parquet import read_parquet
from sightsound.data.schema import RowError
from sightsound.stage import read_settings
from tests.support.clips import beeps_s, write_clip, write_placed
from tests.support.tiny import read_ledger, read_rows, run_script
from tests.support.videos import MOVING, STILL, concatenate, flashes_s, write_video


SCRIPT = "dataset_builders/videos.py"
YOUTUBE = "abcDEF-_123"


def write_folder(folder: Path) -> Path:
    """Videos of every outcome, in two folders."""
    whole = [(4.0, True, MOVING), (4.0, False, MOVING), (4.0, True, STILL), (4.0, True, MOVING)]
    write_video(folder / "a.mp4", 0, whole)
    write_video(folder / "below" / "copy-of-b.webm", 1, [(4.0, True, MOVING)])
    write_video(folder / "b.mp4", 1, [(4.0, True, MOVING)])
    write_video(folder / f"{YOUTUBE}.mp4", 2, [(8.0, True, MOVING)])
    write_video(folder / "zzzDEF-_123_000030.mp4", 3, [(3.0, True, MOVING)])
    shutil.copy(folder / "b.mp4", folder / "below" / "same-bytes.mp4")
    write_clip(folder / "mute.mp4", tracks=())
    (folder / "broken.mp4").write_bytes((folder / "b.mp4").read_bytes()[:500])
    (folder / "notes.txt").write_text("no video")
    (folder / os.fsdecode(b"latin-\xe9.mp4")).write_text("no video either")
    rows = "file_name,license,author\na.mp4,cc-by-4.0,Ann\nb.mp4,cc0-1.0,\n"
    (folder / "metadata.csv").write_text(rows)
    (folder / f"{YOUTUBE}.info.json").write_text(json.dumps({"license": "CC-BY", "channel": "A channel", "id": YOUTUBE}))
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("videos") / "videos")


@pytest.fixture(scope="module")
def built(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "segments"
    done = run_script(SCRIPT, source=videos, output_dir=folder, segment_s=4, num_proc=1)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_video_and_every_place_is_in_the_ledger_once_with_its_outcome(built):
    found = [(entry["kind"], entry["id"], entry["outcome"]) for entry in read_ledger(built)]
    assert found == [
        ("video", "a", "built"),
        ("segment", "a_000000", "built"),
        ("segment", "a_000004", "silent"),
        ("segment", "a_000008", "still_picture"),
        ("segment", "a_000012", "built"),
        ("video", YOUTUBE, "built"),
        ("segment", f"{YOUTUBE}_000000", "built"),
        ("segment", f"{YOUTUBE}_000004", "built"),
        ("video", "b", "built"),
        ("segment", "b_000000", "built"),
        ("video", "copy-of-b", "no_segment"),
        ("segment", "copy-of-b_000000", "same_sound"),
        ("video", "same-bytes", "duplicate_video"),
        ("segment", "same-bytes_000000", "duplicate_video"),
        ("video", "broken", "corrupt_media"),
        ("video", "latin-_-97f95d50", "corrupt_media"),
        ("video", "mute", "no_audio"),
        ("video", "zzzDEF-_123", "built"),
        ("segment", "zzzDEF-_123_000030", "built"),
    ]


def test_rows_have_their_provenance(built):
    rows = {row["id"]: row for row in read_rows(built)}
    assert rows["a_000012"] | {"audio": None, "media_sha256": None, "video_sha256": None, "duration_s": None} == {
        "id": "a_000012",
        "video_id": "a",
        "start_s": 12.0,
        "audio": None,
        "duration_s": None,
        "media_sha256": None,
        "segment": "a_000012",
        "source": "a.mp4",
        "license": "cc-by-4.0",
        "author": "Ann",
        "video_sha256": None,
    }
    said = {row["id"]: (row["license"], row["author"]) for row in rows.values()}
    assert said["b_000000"] == ("cc0-1.0", "unknown") and said[f"{YOUTUBE}_000004"] == ("CC-BY", "A channel")
    assert said["zzzDEF-_123_000030"] == ("unknown", "unknown") and rows["zzzDEF-_123_000030"]["start_s"] == 30.0
    assert len({row["video_sha256"] for row in rows.values()}) == 4
    with pytest.raises(InputError, match="1 of 6 rows state no licence, so nothing was published"):
        check_licenses(built)


def test_the_teacher_finds_the_frames_of_every_row(built):
    media = MediaFolder(str(built / "segments"))
    args = TracesArguments(dataset="", media_dir="", model="", output_dir="", num_frames=8)
    for row in read_rows(built):
        shown = frames_of_row(row, media, args.num_frames, args.max_pixels)
        assert len(shown.pixels) == 8 and shown.pixels.std(axis=0).max() > 10, row["id"]
        assert abs(8 / shown.fps - row["duration_s"]) < 0.3


def build(**flags: Any) -> None:
    """As the script, in this process."""
    build_videos(VideosArguments(**{name: str(value) if isinstance(value, Path) else value for name, value in flags.items()}))


def test_a_takedown_takes_out_of_a_complete_dataset_and_is_kept(built, videos, tmp_path):
    folder = shutil.copytree(built, tmp_path / "segments")
    [sha256] = {row["video_sha256"] for row in read_rows(folder) if row["video_id"] == "b"}
    (tmp_path / "list.txt").write_text(f"{YOUTUBE}  # asked by its author\n{sha256}\n")
    flags = {"source": videos, "output_dir": folder, "segment_s": 4, "num_proc": 1}
    build(**flags, takedown=tmp_path / "list.txt", license="cc-by-sa-4.0")
    assert {row["id"]: row["license"] for row in read_rows(folder)} == {
        "a_000000": "cc-by-4.0",
        "a_000012": "cc-by-4.0",
        "zzzDEF-_123_000030": "cc-by-sa-4.0",
    }
    assert {file.stem for file in (folder / "segments").iterdir()} == {"a_000000", "a_000012", "zzzDEF-_123_000030"}
    taken = [entry["id"] for entry in read_ledger(folder) if entry["outcome"] == "taken_down"]
    assert taken == [YOUTUBE, f"{YOUTUBE}_000000", f"{YOUTUBE}_000004", "b", "b_000000"]
    assert (folder / "takedown.txt").read_text().split() == sorted([YOUTUBE, sha256])
    before = {file: file.read_bytes() for file in folder.rglob("*.parquet")}
    shutil.move(videos, videos.with_name("moved"))
    try:
        build(**flags)  # without its source
    finally:
        shutil.move(videos.with_name("moved"), videos)
    assert {file: file.read_bytes() for file in folder.rglob("*.parquet")} == before
    (tmp_path / "all.txt").write_text("a zzzDEF-_123".replace(" ", "\n"))
    with pytest.raises(InputError, match="the takedown list leaves no segment in"):
        build(**flags, takedown=tmp_path / "all.txt")


@pytest.mark.slow
def test_a_new_build_honours_the_list_of_an_old_one(videos, tmp_path):
    sha256 = hashlib.sha256((videos / "b.mp4").read_bytes()).hexdigest()
    (tmp_path / "list.txt").write_text(f"{YOUTUBE}\n{sha256}\n")
    flags = {"source": videos, "output_dir": tmp_path / "out", "segment_s": 4, "num_proc": 1}
    build(**flags, takedown=tmp_path / "list.txt", files="*.mp4")
    outcomes = {(entry["kind"], entry["id"]): entry["outcome"] for entry in read_ledger(tmp_path / "out")}
    assert outcomes["video", YOUTUBE] == outcomes["video", "b"] == outcomes["segment", "b_000000"] == "taken_down"
    assert ("segment", f"{YOUTUBE}_000000") not in outcomes, "it was not opened"
    assert (tmp_path / "out" / "takedown.txt").is_file()


def test_sound_and_picture_are_in_step_near_the_start_and_deep_in_a_video(tmp_path):
    # A beep and a flash at every half second.
    path = write_placed(tmp_path / "x.mp4", [(0.0, 40.0)], codec="aac", video=(0.0, 40.0), duration_s=40.0)
    part = tmp_path / "part.parquet"
    cut_video(Video(str(path), "x", "x", "unknown", "unknown"), CutSettings(5, 16, None), part)
    rows = list(read_parquet([part]))
    assert [row["start_s"] for row in rows] == [0.0, 16.0, 32.0, None]
    for row in rows:
        if row["kind"] == "segment":
            beeps = beeps_s(decode_audio({"bytes": row["flac"], "path": None}).waveform)
            flashes = flashes_s(tmp_path / row["file"])
            assert beeps == pytest.approx([0.5, 1.5, 2.5, 3.5, 4.5], abs=0.02)
            assert flashes == pytest.approx(beeps, abs=1.01 / 12)  # a frame of the small video
            heard = beeps_s(segments.load_clip(str(tmp_path / row["file"])))
            assert heard == pytest.approx(beeps, abs=0.02)


@pytest.fixture
def packets(monkeypatch) -> Counter:
    """How many packets were decoded, of sound and of picture."""
    counts: Counter = Counter()

    def counted(name, module, function):
        def passed(*args):
            for packet in function(*args):
                counts[name] += 1
                yield packet

        monkeypatch.setattr(module, function.__name__, passed)

    for name, module in (("sound", track), ("picture", frames)):
        counted(name, module, module.all_packets)
        counted(name, module, module.sought_packets)
    return counts


@pytest.mark.parametrize("minutes", [10, pytest.param(40, marks=pytest.mark.slow)])
def test_a_video_costs_as_much_as_its_segments_whatever_its_length(minutes, packets, tmp_path):
    pieces = [write_video(tmp_path / f"{i}.mp4", i, [(20.0, True, MOVING)]) for i in range(3)]
    counts = []
    for length in (2, minutes):
        path = concatenate(tmp_path / f"{length}-minutes.mp4", [pieces[i % 3] for i in range(length * 3)])
        packets.clear()
        part = tmp_path / f"{length}.parquet"
        cut_video(Video(str(path), "x", "x", "unknown", "unknown"), CutSettings(10, 10, 6), part)
        assert sum(row["outcome"] == "built" for row in read_parquet([part]) if row["kind"] == "segment") == 6
        counts.append(dict(packets))
    short, long = counts
    print(f"packets decoded: 2 minutes {short}, {minutes} minutes {long}")
    assert long["sound"] < 1.3 * short["sound"] and long["picture"] < 1.3 * short["picture"]


def test_the_places_of_a_long_video_are_even_and_bounded():
    starts = candidate_starts(2400.0, CutSettings(10, 10, 4))
    assert starts[:4] == [300, 900, 1500, 2100] and len(starts) == len(set(starts)) == 12
    assert candidate_starts(25.0, CutSettings(10, 10, None)) == [0, 10, 20]
    assert candidate_starts(24.9, CutSettings(10, 10, None)) == [0, 10]
    assert candidate_starts(24.9, CutSettings(10, 5, None)) == [0, 5, 10, 15]
    assert candidate_starts(3.0, CutSettings(10, 10, None)) == [0]
    assert candidate_starts(35.0, CutSettings(10, 10, 9)) == [0, 10, 20, 30]


def test_ids_are_file_names_and_two_ids_are_never_one(tmp_path):
    columns = Columns(id_column="json.original_json_filename")
    assert columns.id_of({"json": '{"original_json_filename": "abc.json"}'}, "shard-7") == ("abc", 0)
    assert columns.id_of({}, "shard-7") == ("shard-7", 0)
    assert Columns().id_of({"video_id": 12}, "x") == ("12", 0)
    assert Columns().id_of({}, "zzzDEF-_123_000030") == ("zzzDEF-_123", 30)
    escaped, other = (Columns().id_of({"id": name}, "x")[0] for name in ("../a/b", "___a_b"))
    assert "/" not in escaped and not escaped.startswith(".") and escaped != other
    with pytest.raises(InputError, match="--preset finevidoe: expected one of finevideo, vggsound; did you mean finevideo"):
        read_preset("finevidoe")


def test_archives_and_parquet_files_in_a_folder_are_read_forward_and_what_is_done_is_left_out(tmp_path):
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "a.tar", "w") as tar:
        for name, content in (("1.mp4", b"one"), ("1.json", b'{"id": "first"}'), ("2.txt", b"no video"), ("3.webm", b"three")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    rows = {"id": ["x", "y", "z"], "film": [b"X", b"Y", None], "other": [1, 2, 3]}
    pq.write_table(pa.table(rows), tmp_path / "in" / "b.parquet", row_group_size=2)
    for file, expected in (
        ("a.tar", {0: ("first", b"one"), 1: ("3", b"three")}),
        ("b.parquet", {0: ("x", b"X"), 1: ("y", b"Y")}),
    ):
        source = open_folder(str(tmp_path / "in"), Columns(files=file))
        source.check_columns()
        for done in (set(), {0}):
            found = {}
            for entry in source.entries(file, tmp_path / "in" / file, tmp_path, done.__contains__):
                if entry.index < 2:
                    entry.save(tmp_path / "video")
                    found[entry.index] = (source.columns.id_of(entry.row, entry.name)[0], (tmp_path / "video").read_bytes())
                else:
                    with pytest.raises(RowError, match="the video column holds nothing"):
                        entry.save(tmp_path / "video")
            assert found == {index: value for index, value in expected.items() if index not in done}


@pytest.mark.parametrize(
    ("make", "flags", "message"),
    [
        (lambda folder: None, {}, "is no folder; give a folder of videos, or hf://datasets/ORG/NAME"),
        (lambda folder: folder.mkdir(), {}, "is empty; give a folder of videos"),
        (lambda folder: write_text(folder / "a.txt"), {}, "holds no videos: expected videos, parquet files"),
        (lambda folder: write_text(folder / "a.mp4"), {"files": "*.webm"}, "holds no videos that match --files *.webm"),
        (lambda folder: write_text(folder / "a.mp4"), {}, "no segment is left of 1 videos (1 corrupt_media); give videos"),
        (lambda folder: write_text(folder / "a.mp4"), {"preset": "x"}, "--preset x: expected one of finevideo, vggsound"),
        (lambda folder: write_text(folder / "a.mp4"), {"takedown": "none.txt"}, "--takedown none.txt cannot be read"),
        (
            lambda folder: write_text(folder / "metadata.csv", folder / "a.mp4"),
            {},
            "metadata.csv of the source: expected a column",
        ),
    ],
)
def test_bad_input_is_one_line_and_the_folder_can_be_used_again(make, flags, message, tmp_path):
    make(tmp_path / "videos")
    with pytest.raises(InputError) as raised:
        build(source=tmp_path / "videos", output_dir=tmp_path / "out", num_proc=1, **flags)
    assert message in str(raised.value) and "\n" not in str(raised.value)
    ledger = tmp_path / "out" / "ledger.parquet"
    assert ledger.is_file() == (str(ledger) in str(raised.value)), "where the message names the reasons, they are kept"
    assert (tmp_path / "out").exists() == ledger.is_file()
    assert read_settings(tmp_path / "out") is None


def write_text(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("not a video\nnor a table\n")
