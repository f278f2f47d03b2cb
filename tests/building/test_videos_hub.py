"""A dataset of videos on a Hub: read file by file, continued after a kill, each byte downloaded once."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sightsound.data import parquet
from tests.support.clients import run_client
from tests.support.hub_routes import STRANGER
from tests.support.loopback_hub import REPO, LoopbackHub, client_environment, loopback_hub
from tests.support.tiny import read_ledger, read_rows
from tests.support.videos import MOVING, write_video


__all__ = ["loopback_hub"]  # the fixture

NAME = "alice/videos"
NUM_SHARDS = 50


@pytest.fixture(scope="module")
def video_files(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("files")
    return [write_video(folder / f"{i}.mp4", i, [(1.5, True, MOVING)], fps=8).read_bytes() for i in range(NUM_SHARDS)]


def finevideo_shard(videos: dict[str, bytes | None]) -> bytes:
    """A parquet file with FineVideo's columns, as far as they are read."""
    details = [
        {"original_json_filename": f"{name}.json", "youtube_channel": f"channel of {name}", "duration_seconds": 2}
        for name in videos
    ]
    buffer = io.BytesIO()
    table = pa.table({"mp4": pa.array(videos.values(), pa.binary()), "json": pa.array(details)})
    pq.write_table(table, buffer, row_group_size=2)
    return buffer.getvalue()


def archive(members: dict[str, bytes], mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def publish(hub: LoopbackHub, files: dict[str, bytes], gated: bool = False) -> None:
    hub.change(NAME, files)
    repo = hub.repos[f"datasets/{NAME}"]
    repo.private, repo.gated = False, gated


def start(hub: LoopbackHub, folder: Path, *flags: Any, token: str | None = None, source: str = NAME) -> subprocess.Popen:
    command = [sys.executable, str(REPO / "dataset_builders" / "videos.py"), "--source", f"hf://datasets/{source}"]
    command += ["--output_dir", str(folder / "out"), "--num_proc", "1", *map(str, flags)]
    (folder / "home").mkdir(exist_ok=True)
    environment = client_environment(hub, folder / "home", token)
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, cwd=folder, start_new_session=True, **quiet)


def build(hub: LoopbackHub, folder: Path, *flags: Any, **options: Any) -> subprocess.CompletedProcess:
    process = start(hub, folder, *flags, **options)
    stdout, stderr = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def test_finevideo_is_read_by_its_preset_and_each_row_has_its_licence(loopback_hub, video_files, tmp_path):
    shards = [{f"video{i}-{j}____"[:11]: video_files[2 * i + j] for j in range(2)} for i in range(3)]
    shards[1]["nothing"] = None
    publish(loopback_hub, {f"data/train-{i:05d}.parquet": finevideo_shard(shard) for i, shard in enumerate(shards)})
    done = build(loopback_hub, tmp_path, "--preset", "finevideo")
    assert done.returncode == 0, done.stderr
    rows, commit = read_rows(tmp_path / "out"), loopback_hub.repos[f"datasets/{NAME}"].resolve("main")
    assert [(row["id"], row["license"], row["author"]) for row in rows] == [
        (f"{name}_000000", "cc-by", f"channel of {name}") for shard in shards for name, content in shard.items() if content
    ]
    assert rows[2]["source"] == f"hf://datasets/{NAME}@{commit}/data/train-00001.parquet#0"
    gone = [(entry["id"], entry["outcome"]) for entry in read_ledger(tmp_path / "out") if entry["outcome"] != "built"]
    assert gone == [("nothing", "missing_media")]
    assert not (tmp_path / "out" / ".work").exists(), "nothing downloaded is left"
    sizes = {f"/storage/{entry.sha256}": entry.size for entry in loopback_hub.repos[f"datasets/{NAME}"].tree().values()}
    footers = loopback_hub.sent("/storage/")
    first = next(iter(footers))
    assert all(sent == sizes[path] for path, sent in footers.items() if path != first)
    assert sizes[first] < footers[first] <= 2 * sizes[first], "the schema is read before anything is written"


@pytest.mark.slow
def test_archives_and_folders_of_the_hub_are_read_too(loopback_hub, video_files, tmp_path):
    clips = {f"set/video/clipclip-{i:02d}_0000{i}0.mp4": video_files[i] for i in range(2)}
    samples = {"s/a.mp4": video_files[2], "s/a.json": json.dumps({"video_id": "the-id", "license": "cc0-1.0"}).encode()}
    publish(loopback_hub, {"vggsound_00.tar.gz": archive(clips), "vggsound_01.tar.gz": archive(samples)})
    broken = archive({"x.mp4": video_files[3], "y.mp4": video_files[4]}, "w")
    publish(loopback_hub, {"z.tar": broken[: len(broken) * 2 // 3]})
    done = build(loopback_hub, tmp_path, "--license_column", "json.license")
    assert done.returncode == 0, done.stderr
    assert [(row["id"], row["start_s"], row["license"]) for row in read_rows(tmp_path / "out")] == [
        ("clipclip-00_000000", 0.0, "unknown"),
        ("clipclip-01_000010", 10.0, "unknown"),
        ("the-id_000000", 0.0, "cc0-1.0"),
        ("x_000000", 0.0, "unknown"),
    ]
    [cut] = [entry for entry in read_ledger(tmp_path / "out") if entry["outcome"] == "corrupt_media"]
    assert cut["detail"].startswith("the archive cannot be read to its end")
    table = io.StringIO()
    csv.writer(table).writerows([["file_name", "license", "uploader"], ["a/b.mp4", "cc-by-4.0", "Ann"]])
    (tmp_path / "second").mkdir()
    loopback_hub.repos.clear()
    videos = {"videos/a/b.mp4": video_files[5], "videos/c.mp4": video_files[6]}
    publish(loopback_hub, videos | {"videos/metadata.csv": table.getvalue().encode()})
    loopback_hub.change("alice/segments", {"takedown.txt": b"c\n"})
    done = build(loopback_hub, tmp_path / "second", "--push_to_hub", "alice/segments", token="hf_loopbackWriterCanary")
    assert done.returncode == 0, done.stderr
    [row] = read_rows(tmp_path / "second" / "out")
    assert (row["id"], row["license"], row["author"]) == ("b_000000", "cc-by-4.0", "Ann")
    assert "published: alice/segments, revision build-" in done.stdout
    published = loopback_hub.repos["datasets/alice/segments"].tree()
    files = {"README.md", "ledger.parquet", "data/train-00000-of-00001.parquet", "takedown.txt"}
    assert set(published) == {".gitattributes", *files}, "what is on the list of the repository stays out, and no video is sent"


def test_nothing_is_published_without_a_licence(loopback_hub, video_files, tmp_path):
    publish(loopback_hub, {"a.mp4": video_files[0]})
    flags, token = ("--push_to_hub", "alice/segments"), "hf_loopbackWriterCanary"
    done = build(loopback_hub, tmp_path, *flags, token=token)
    assert (done.returncode, done.stderr.splitlines()[-1].split(";")[0]) == (
        2,
        "error: 1 of 1 rows state no licence, so nothing was published",
    )
    assert "datasets/alice/segments" not in loopback_hub.repos
    done = build(loopback_hub, tmp_path, *flags, "--license", "cc-by-4.0", token=token)
    assert done.returncode == 0, done.stderr
    assert "license: cc-by-4.0" in (tmp_path / "out" / "README.md").read_text()
    assert loopback_hub.count("GET", "/resolve/.*/a.mp4") == 1, "what is complete needs nothing of its source"


@pytest.mark.parametrize(
    ("make", "flags", "message"),
    [
        (None, (), "the Hub has no dataset of that name, or it is private"),
        ("gated", (), "alice/videos is gated: ask for access on its page, then set HF_TOKEN or run `hf auth login`"),
        ("texts", (), "expected a column that holds videos as bytes, but none of its columns does (text); give --video_column"),
        ("texts", ("--video_column", "film"), "has no column film: it has text; give --video_column"),
        ("texts", ("--video_column", "text", "--id_column", "id"), "has no id there, but text; give one of these"),
        ("cards", (), "holds no videos: expected videos, parquet files with videos in a column, or tar archives"),
    ],
)
def test_a_dataset_that_cannot_be_used_is_one_line(make, flags, message, loopback_hub, video_files, tmp_path):
    texts = io.BytesIO()
    pq.write_table(pa.table({"text": ["a"]}), texts)
    files = {"gated": {"a.parquet": finevideo_shard({"a": video_files[0]})}, "texts": {"a.parquet": texts.getvalue()}}
    if make is not None:
        publish(loopback_hub, files.get(make, {"README.md": b"---\n---\n"}), gated=make == "gated")
    done = build(loopback_hub, tmp_path, *flags, token=STRANGER if make == "gated" else None)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists(), "the corrected command may use the folder"


DOWNLOAD = """
import sys
from pathlib import Path
from sightsound.hub import files
files.BLOCK_BYTES = 10_000
[file] = [each for each in files.list_files(sys.argv[1], sys.argv[2]) if each.path == "big.parquet"]
files.download(sys.argv[1], sys.argv[2], file, Path(sys.argv[3]))
"""


def test_a_killed_download_goes_on_where_it_was(loopback_hub, tmp_path):
    content = os.urandom(123_456)
    publish(loopback_hub, {"big.parquet": content})
    commit = loopback_hub.repos[f"datasets/{NAME}"].resolve("main")
    environment = client_environment(loopback_hub, tmp_path / "home", None)
    (tmp_path / "home").mkdir()
    target = tmp_path / "downloads" / "big"
    process = subprocess.Popen([sys.executable, "-c", DOWNLOAD, NAME, commit, str(target)], env=environment)
    blocks = 0

    def kill(number: int, moment: str, request: Any) -> None:
        nonlocal blocks
        blocks += moment == "asked" and request.path.startswith("/storage/")
        if blocks == 6:
            process.kill()

    loopback_hub.watch = kill
    assert process.wait() == -signal.SIGKILL and not target.exists()
    loopback_hub.watch = lambda *_: None
    assert run_client(DOWNLOAD, [NAME, commit, target], environment).code == 0
    assert target.read_bytes() == content
    [sent] = loopback_hub.sent("/storage/").values()
    assert sent <= len(content) + 10_000, "the block that was on its way, and no other, was sent twice"


@pytest.mark.slow
def test_a_reader_of_50_shards_is_killed_and_downloads_nothing_twice(loopback_hub, video_files, tmp_path):
    shards = {f"data/train-{i:05d}.parquet": finevideo_shard({f"vid-{i:05d}__": video_files[i]}) for i in range(NUM_SHARDS)}
    publish(loopback_hub, shards)
    for kill in range(3):
        process = start(loopback_hub, tmp_path, "--preset", "finevideo")
        deadline = time.monotonic() + 120
        while len(list((tmp_path / "out" / ".work").glob("*/*/*.parquet"))) < 12 * (kill + 1):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert build(loopback_hub, tmp_path, "--preset", "finevideo").returncode == 0
    rows = list(parquet.read_parquet([tmp_path / "out" / "data" / "train-00000-of-00001.parquet"], ["id", "license"]))
    assert rows == [{"id": f"vid-{i:05d}___000000", "license": "cc-by"} for i in range(NUM_SHARDS)]
    sizes = {f"/storage/{entry.sha256}": entry.size for entry in loopback_hub.repos[f"datasets/{NAME}"].tree().values()}
    sent = loopback_hub.sent("/storage/")
    first, *others = sent  # of the first, each of four readers reads the schema
    twice = [path for path in others if sent[path] > sizes[path]]
    print(f"50 shards, {sum(sizes[path] for path in sent)} bytes; sent {sum(sent.values())}; twice: {len(twice)}")
    assert len(sent) == NUM_SHARDS and len(twice) <= 3, "at most the one that was on its way at each kill"
    assert sent[first] <= 5 * sizes[first]
