"""Publishing: readers of `main` see the old build or the new one, whatever fails; and nothing leaves that should not."""

import hashlib
import io
import json
import os
import random
import re
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sightsound.cli import InputError
from sightsound.data import parquet, schema
from sightsound.hub.cards import write_dataset_card
from sightsound.hub.publish import publish_dataset
from sightsound.method.audio_contribution import known_contribution
from tests.support.clients import Done, run_client
from tests.support.hub_routes import STRANGER, TOKEN
from tests.support.loopback_hub import (
    DROP,
    FLIP,
    LOSE,
    REPO,
    Fault,
    LoopbackHub,
    Request,
    client,
    client_environment,
    loopback_hub,
    process_arguments,
)


__all__ = ["loopback_hub"]  # the fixture

REPO_ID = "alice/corpus"
# Small batches: more moments to be killed at. Short delays: the Hub of these tests is back at once.
PUBLISH = """
import sys
from pathlib import Path
from sightsound.hub import publish, pull_request, retries
from sightsound.cli import run
retries.FIRST_DELAY_S, pull_request.UPLOAD_BATCH = 0.005, 4
run(lambda: print(publish.publish_dataset(Path(sys.argv[1]), sys.argv[2], private=sys.argv[3] == "private")))
"""
LOAD = """
import hashlib, json, sys
from datasets import Audio, load_dataset
def told(dataset):
    if "audio" in dataset.features:
        dataset = dataset.cast_column("audio", Audio(decode=False))
    rows = [dict(row) for row in dataset]
    return [row | {"audio": row["audio"]["bytes"].hex()} if "audio" in row else row for row in rows]
repo, tag = sys.argv[1:]
loaded = {
    "default": load_dataset(repo),
    "small": load_dataset(repo, "small"),
    "streaming": load_dataset(repo, streaming=True),
    "pinned": load_dataset(repo, "small", revision=tag),
}
print(json.dumps({name: {split: told(rows) for split, rows in each.items()} for name, each in loaded.items()}))
"""


def verified(name: str, count: int) -> list[dict[str, Any]]:
    """Rows with the sound of a clip, which nobody decodes here."""
    prompt = [{"role": "user", "content": "Which?"}]
    shared = {"prompt": prompt, "completions": [f"<think>{name}</think>"], "teacher_answer": 0, "choices": ["a", "b"]}
    shared |= known_contribution()
    clips = [hashlib.sha256(f"{name} {i}".encode()).digest() * 40 for i in range(count)]
    return [{"id": f"{name}-{i}", "audio": {"bytes": clip, "path": f"{i}.flac"}, **shared} for i, clip in enumerate(clips)]


def small(name: str, count: int) -> list[dict[str, Any]]:
    return [{"id": f"{name}-{i}", "outcome": "accepted", "detail": None} for i in range(count)]


@dataclass(frozen=True)
class Build:
    folder: Path

    @property
    def files(self) -> dict[str, bytes]:
        """What a repository that holds this build holds of it."""
        paths = [*self.folder.glob("data/*/*-of-*.parquet"), self.folder / "README.md", self.folder / "ledger.parquet"]
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in paths}

    @property
    def rows(self) -> dict[str, int]:
        return row_counts(self.files)


def row_counts(files: dict[str, bytes]) -> dict[str, int]:
    tables = {path: content for path, content in files.items() if path.endswith(".parquet")}
    return {path: pq.read_metadata(io.BytesIO(content)).num_rows for path, content in tables.items()}


def make_build(folder: Path, name: str, shards: int, rows_per_shard: int = 3) -> Build:
    """A finished stage: two configs, the default one sharded and with two splits; and what may lie about in a folder."""
    for i in range(shards):
        path = folder / "data" / "verified" / f"train-{i:05d}-of-{shards:05d}.parquet"
        parquet.write_parquet(verified(f"{name}-{i}", rows_per_shard), schema.verified_features(), path)
    last = folder / "data" / "verified" / "validation-00000-of-00001.parquet"
    parquet.write_parquet(verified(f"{name}-validation", 2), schema.verified_features(), last)
    one = folder / "data" / "small" / "train-00000-of-00001.parquet"
    parquet.write_parquet(small(name, shards), schema.ledger_features(), one)
    parquet.write_ledger(small(name, 2 * shards), folder / "ledger.parquet")
    (folder / "data" / ".cache").mkdir()
    for stray in (".env", "journal.jsonl", "data/notes.txt", "data/.cache/old.parquet", "data/.train.parquet.tmp"):
        (folder / stray).write_text("HF_TOKEN=hf_inTheDotEnvFile\n")
    (folder / "stage.json").write_text(json.dumps({"settings": {}, "complete": True}))
    splits = {split: f"data/verified/{split}-*.parquet" for split in ("train", "validation")}
    write_dataset_card(folder, f"# {name}\n", {"verified": splits, "small": {"train": "data/small/*.parquet"}})
    return Build(folder)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return make_build(tmp_path_factory.mktemp("builds") / "first", "first", shards=5)


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return make_build(tmp_path_factory.mktemp("builds") / "second", "second", shards=3)


def publish(hub: LoopbackHub, build: Build, home: Path, private: bool = True, **environment: Any) -> Done:
    arguments = [build.folder, REPO_ID, "private" if private else "public"]
    return run_client(PUBLISH, arguments, client_environment(hub, home, **environment))


def refused(done: Done) -> str:
    """The one line that a user sees."""
    assert done.code == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def on_main(hub: LoopbackHub, revision: str = "main") -> dict[str, bytes]:
    tree = hub.repos[f"datasets/{REPO_ID}"].tree(revision)
    return {path: hub.content(entry) for path, entry in tree.items() if path != ".gitattributes"}


def changes_of_main(hub: LoopbackHub) -> list[str]:
    """Titles of main's commits, newest first."""
    repo = hub.repos[f"datasets/{REPO_ID}"]
    return [repo.commits[sha].title for sha in repo.history("main")]


def pull_requests(hub: LoopbackHub) -> list[str]:
    return [pull.status for pull in hub.repos[f"datasets/{REPO_ID}"].pulls]


def uploads(hub: LoopbackHub) -> Counter[str]:
    """How often each object was stored over LFS."""
    return Counter(asked.path.split("?")[0] for asked in hub.log if asked.method == "PUT" and asked.status == 200)


READER = "reader"


class Reader(threading.Thread):
    """Asks again and again what `main` is, over HTTP; every answer is to be one of the builds, whole."""

    def __init__(self, hub: LoopbackHub):
        super().__init__(daemon=True)
        self.hub, self.seen, self.stopped, self._known = hub, [], threading.Event(), {}

    def get(self, path: str) -> bytes:
        request = urllib.request.Request(self.hub.url + path, headers={"User-Agent": READER})
        request.add_unredirected_header("Authorization", f"Bearer {TOKEN}")  # not to the storage
        with urllib.request.urlopen(request) as answer:
            return answer.read()

    def look(self) -> None:
        about = json.loads(self.get(f"/api/datasets/{REPO_ID}/revision/main"))
        sha, paths = about["sha"], [each["rfilename"] for each in about["siblings"]]
        if sha not in self._known:
            tables = [path for path in paths if path.endswith(".parquet")]
            files = {path: self.get(f"/datasets/{REPO_ID}/resolve/{sha}/{path}") for path in tables}
            self._known[sha] = paths, row_counts(files)
        assert self._known[sha][0] == paths, "a commit never changes"
        if not self.seen or self.seen[-1] != self._known[sha][1]:
            self.seen.append(self._known[sha][1])

    def run(self) -> None:
        while not self.stopped.wait(0.01):
            self.look()

    def __enter__(self) -> "Reader":
        self.look()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.look()
        self.stopped.set()
        self.join()


# Publishing and loading back


def written_below(folder: Path) -> str:
    return "".join(file.read_bytes().decode(errors="replace") for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
def test_what_is_published_is_what_load_dataset_gives(loopback_hub, first, tmp_path, xet):
    commands = set()

    def look_at_processes(number: int, moment: str, request: Request) -> None:
        if number in (1, 12, 20):
            commands.update(process_arguments())

    loopback_hub.watch = look_at_processes
    published = publish(loopback_hub, first, tmp_path, xet=xet)
    tag = published.tag
    assert on_main(loopback_hub) == on_main(loopback_hub, tag) == first.files, "the allow-list and nothing else"
    assert changes_of_main(loopback_hub)[1:] == ["initial commit"], "one change of main"
    assert pull_requests(loopback_hub) == ["merged"]
    assert loopback_hub.repos[f"datasets/{REPO_ID}"].private
    stored = loopback_hub.count("PUT", "/storage/"), loopback_hub.count("POST", "/v1/xorbs/")
    assert stored == ((0, 3) if xet else (8, 0)), "nine files, of which the card is none of LFS, in batches of four"

    loaded = run_client(LOAD, [REPO_ID, tag], client_environment(loopback_hub, tmp_path, xet=xet))
    assert loaded.code == 0, loaded.stderr
    message = json.loads(loaded.stdout)
    expected = [row for i in range(5) for row in verified(f"first-{i}", 3)]
    expected = {"train": expected, "validation": verified("first-validation", 2)}
    expected = {split: [row | {"audio": row["audio"]["bytes"].hex()} for row in rows] for split, rows in expected.items()}
    assert message["default"] == message["streaming"] == expected
    assert message["small"] == message["pinned"] == {"train": small("first", 5)}

    asked = len(loopback_hub.log)
    again = publish(loopback_hub, first, tmp_path, xet=xet)
    assert again.tag == tag
    assert f"main holds {tag}, and it is tagged" in again.stdout
    writes = [each.path for each in loopback_hub.log[asked:] if each.method != "GET"]
    assert writes == ["/api/repos/create"], "nothing to do"

    # The token travels in one header, to one host, and stays nowhere.
    said = [each.stdout + each.stderr for each in (published, loaded, again)]
    repo = loopback_hub.repos[f"datasets/{REPO_ID}"]
    kept = [commit.title for commit in repo.commits.values()] + [pull.title for pull in repo.pulls]
    held = [content.decode(errors="replace") for content in (loopback_hub.blobs | loopback_hub.objects).values()]
    assert any(REPO_ID in command for command in commands), "the publisher's own was seen"
    for text in (*said, *kept, *held, *commands, *(each.path for each in loopback_hub.log), written_below(tmp_path)):
        assert TOKEN not in text and "hf_inTheDotEnvFile" not in text


def test_a_private_dataset_is_missing_to_everybody_else(loopback_hub, first):
    loopback_hub.change(REPO_ID, first.files)
    address = f"{loopback_hub.url}/api/datasets/{REPO_ID}/tree/main"
    for token, status in (("", 401), (STRANGER, 404), (TOKEN, 200)):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as answer:
                assert answer.status == status
        except urllib.error.HTTPError as error:
            assert error.code == status
            error.close()


# Replacing a build


@pytest.mark.slow
def test_sixty_shards_replace_a_build_in_one_change(loopback_hub, second, tmp_path):
    old = publish(loopback_hub, second, tmp_path, private=False).tag
    many = make_build(tmp_path / "many", "many", shards=60, rows_per_shard=1)
    with Reader(loopback_hub) as reader:
        publish(loopback_hub, many, tmp_path, private=False)
    assert reader.seen == [second.rows, many.rows], "the old build, then the new one, never anything else"
    assert on_main(loopback_hub) == many.files, "the shards of the old build are gone"
    assert on_main(loopback_hub, old) == second.files, "who pinned the old build keeps it"
    assert len(changes_of_main(loopback_hub)) == 3
    assert not loopback_hub.repos[f"datasets/{REPO_ID}"].private


def test_what_others_put_beside_the_build_stays(loopback_hub, first, second, tmp_path):
    loopback_hub.change(REPO_ID, first.files)
    loopback_hub.change(REPO_ID, {"NOTICE.md": b"theirs", "data/more.txt": b"theirs too"})
    publish(loopback_hub, second, tmp_path)
    assert on_main(loopback_hub) == second.files | {"NOTICE.md": b"theirs", "data/more.txt": b"theirs too"}


# Kills


Choose = Callable[[int, str, Request], bool]


def publish_and_kill(hub: LoopbackHub, build: Build, home: Path, choose: Choose, after_s: float = 0.0, **options: Any) -> int:
    """SIGKILL the publisher at the chosen moment of a chosen request; returns its exit code."""
    order: dict[int, int] = {}
    with client(PUBLISH, [build.folder, REPO_ID, "private"], client_environment(hub, home, **options)) as process:

        def watch(number: int, moment: str, request: Request) -> None:
            if request.agent != READER and choose(order.setdefault(number, len(order) + 1), moment, request):
                time.sleep(after_s)
                process.kill()

        hub.watch = watch
        process.communicate()
        hub.watch = lambda *_: None
    return process.returncode


def at(method: str, path: str, moment: str) -> Choose:
    return lambda number, now, request: (request.method, now) == (method, moment) and bool(re.search(path, request.path))


def test_killed_at_the_worst_moments_and_run_again(loopback_hub, first, second, tmp_path):
    loopback_hub.change(REPO_ID, first.files)
    kills = at("PUT", "/storage/", "answered"), at("POST", "/commit/", "answered"), at("POST", "/merge", "answered")
    for number, choose in enumerate(kills):
        assert publish_and_kill(loopback_hub, second, tmp_path, choose) == -9
        assert on_main(loopback_hub) == (second if number == 2 else first).files
    tag = publish(loopback_hub, second, tmp_path).tag
    assert on_main(loopback_hub) == on_main(loopback_hub, tag) == second.files
    assert pull_requests(loopback_hub) == ["merged"], "the second run went on with the first run's"
    assert len(changes_of_main(loopback_hub)) == 3
    assert set(uploads(loopback_hub).values()) == {1}, "what was stored is not sent again"


@pytest.mark.slow
def test_killed_in_the_middle_over_xet(loopback_hub, first, tmp_path):
    def second_shard(number: int, moment: str, request: Request) -> bool:
        return moment == "answered" and loopback_hub.count("POST", "/v1/shards") == 2

    assert publish_and_kill(loopback_hub, first, tmp_path, second_shard, xet=True) == -9
    assert publish(loopback_hub, first, tmp_path, xet=True).code == 0
    assert on_main(loopback_hub) == first.files
    assert loopback_hub.count("POST", "/v1/xorbs/") == 4, "of three batches, the one that was cut off is sent again"


@pytest.mark.storm
@pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
def test_fifty_kills(loopback_hub, first, second, tmp_path, storm_seed, xet):
    draw = random.Random(storm_seed)
    loopback_hub.change(REPO_ID, first.files)
    old, new, kills = first, second, 0
    with Reader(loopback_hub) as reader:
        while kills < 50:
            last, moment = draw.randint(1, 45), draw.choice(["asked", "answered"])

            def choose(number: int, now: str, request: Request, last: int = last, moment: str = moment) -> bool:
                return (number, now) == (last, moment)

            after_s = draw.choice([0, 0.02 * draw.random()])
            code = publish_and_kill(loopback_hub, new, tmp_path, choose, after_s, xet=xet)
            assert code in (0, -9)
            kills += code == -9
            assert on_main(loopback_hub) in (old.files, new.files)
            if code == 0:
                assert on_main(loopback_hub) == new.files
                old, new = new, old
        tag = publish(loopback_hub, new, tmp_path, xet=xet).tag
    assert on_main(loopback_hub) == on_main(loopback_hub, tag) == new.files
    assert all(rows in (first.rows, second.rows) for rows in reader.seen)
    assert set(pull_requests(loopback_hub)) == {"merged"}
    assert len(changes_of_main(loopback_hub)) == 2 + len(pull_requests(loopback_hub))
    assert set(uploads(loopback_hub).values()) <= {1}


# A Hub that fails, or that somebody else writes to


def test_passing_failures_are_waited_out(loopback_hub, first, second, tmp_path):
    loopback_hub.change(REPO_ID, first.files)
    loopback_hub.faults += [
        Fault("GET", "/revision/main", 503),
        Fault("GET", "/discussions", 429, headers={"Retry-After": "1"}),
        Fault("POST", "/commit/", 412),
        Fault("POST", "/commit/", LOSE),
        Fault("GET", "/tree/[0-9a-f]+/data", 503),  # when `load_dataset` lists the files
        Fault("POST", "/merge", 409),
        Fault("POST", "/merge", LOSE),
        Fault("POST", "/tag/", DROP),
    ]
    done = publish(loopback_hub, second, tmp_path)
    assert on_main(loopback_hub, done.tag) == on_main(loopback_hub) == second.files
    assert [fault.times for fault in loopback_hub.faults] == [0] * 8
    waits = re.findall(r"; trying again in ([\d.]+) s", done.stdout)
    assert len(waits) == 8 and waits[1] == "1.0", "the Hub's own word on when to come back"
    assert pull_requests(loopback_hub) == ["merged"]
    assert len(changes_of_main(loopback_hub)) == 3
    assert set(uploads(loopback_hub).values()) == {1}


def test_a_hub_that_stays_away_is_given_up(loopback_hub, first, tmp_path):
    loopback_hub.faults.append(Fault("GET", "/tree/", 503, times=1000))
    assert "the Hub answered 503 to GET /api/datasets/alice/corpus/tree/" in refused(publish(loopback_hub, first, tmp_path))
    assert loopback_hub.count("GET", "/tree/") == 8


def test_somebody_else_changes_main_meanwhile(loopback_hub, first, second, tmp_path):
    loopback_hub.change(REPO_ID, first.files)
    stray = second.files["ledger.parquet"]
    loopback_hub.faults += [
        Fault("POST", "/commit/", 200, before=lambda: loopback_hub.change(REPO_ID, {"NOTICE.md": b"theirs"})),
        Fault("POST", "/merge", 200, before=lambda: loopback_hub.change(REPO_ID, {"README.md": b"theirs"})),
        Fault("POST", "/merge", 200, before=lambda: loopback_hub.change(REPO_ID, {"data/train-9.parquet": stray})),
    ]
    done = publish(loopback_hub, second, tmp_path)
    assert done.code == 0, done.stderr
    assert on_main(loopback_hub) == on_main(loopback_hub, done.tag) == second.files | {"NOTICE.md": b"theirs"}
    assert pull_requests(loopback_hub) == ["closed", "closed", "merged", "merged"]


def test_two_publishers_at_once_take_turns(loopback_hub, first, second, tmp_path):
    base = make_build(tmp_path / "base", "base", shards=4)
    loopback_hub.change(REPO_ID, base.files)
    done: dict[str, Done] = {}

    def run(name: str, build: Build) -> None:
        done[name] = publish(loopback_hub, build, tmp_path / name)

    threads = [threading.Thread(target=run, args=each) for each in (("first", first), ("second", second))]
    with Reader(loopback_hub) as reader:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert on_main(loopback_hub, done["first"].tag) == first.files
    assert on_main(loopback_hub, done["second"].tag) == second.files
    assert on_main(loopback_hub) in (first.files, second.files)
    assert all(rows in (base.rows, first.rows, second.rows) for rows in reader.seen)
    assert len(changes_of_main(loopback_hub)) == 4


def test_what_arrives_damaged_is_not_merged(loopback_hub, first, second, tmp_path):
    loopback_hub.change(REPO_ID, first.files)
    for fault, message in (
        (Fault("GET", "/resolve/.*README.md", FLIP), "README.md came back with sha256 "),
        (Fault("GET", "/storage/", FLIP, skip=2), "data/verified/train-00001-of-00003.parquet came back with sha256 "),
        # Read back well, but not by `load_dataset`, which logs a line of its own.
        (Fault("GET", "/storage/", FLIP, skip=6, times=99), f"error: load_dataset cannot open {REPO_ID} (Parquet magic"),
    ):
        loopback_hub.faults = [fault]
        done = publish(loopback_hub, second, tmp_path)
        assert done.code == 2 and message in done.stderr.splitlines()[-1]
        assert on_main(loopback_hub) == first.files
    loopback_hub.faults = []
    publish(loopback_hub, second, tmp_path)
    assert on_main(loopback_hub) == second.files
    assert pull_requests(loopback_hub) == ["merged"], "nothing was uploaded anew"


def test_what_load_dataset_does_not_open_is_not_sent(loopback_hub, tmp_path):
    build = make_build(tmp_path / "build", "build", shards=1)
    write_dataset_card(build.folder, "# Wrong\n", {"verified": {"train": "data/*/nothing-*.parquet"}})
    assert f"load_dataset cannot open {build.folder} (" in refused(publish(loopback_hub, build, tmp_path / "home"))
    assert not uploads(loopback_hub) and not pull_requests(loopback_hub)


def test_a_card_that_counts_other_rows_is_not_sent(loopback_hub, tmp_path):
    build = make_build(tmp_path / "build", "build", shards=1)
    splits = [{"name": "train", "num_bytes": 1, "num_examples": 99}]
    configs = {"verified": {"train": "data/verified/train-*.parquet"}}
    write_dataset_card(build.folder, "# Wrong\n", configs, dataset_info=[{"config_name": "verified", "splits": splits}])
    message = "split train of verified has 3 rows, expected 99; build the folder again"
    assert message in refused(publish(loopback_hub, build, tmp_path / "home"))
    assert not uploads(loopback_hub) and not pull_requests(loopback_hub)


def test_what_the_repository_ignores_is_noticed(loopback_hub, first, second, tmp_path):
    loopback_hub.change(REPO_ID, first.files)
    loopback_hub.change(REPO_ID, {".gitignore": b"data/verified/train-00002-of-00003.parquet\n"})
    message = "the Hub did not keep data/verified/train-00002-of-00003.parquet as it was sent; does a .gitignore"
    assert message in refused(publish(loopback_hub, second, tmp_path))
    assert on_main(loopback_hub).keys() == first.files.keys() | {".gitignore"}


def test_a_tag_that_holds_something_else_is_not_moved(loopback_hub, first, tmp_path):
    loopback_hub.change(REPO_ID, first.files)
    tag = publish(loopback_hub, first, tmp_path).tag
    repo = loopback_hub.repos[f"datasets/{REPO_ID}"]
    assert on_main(loopback_hub, tag) == first.files and not repo.pulls, "all that was missing was the tag"
    repo.refs[f"refs/tags/{tag}"] = repo.history("main")[-1]
    assert f"tag {tag} of {REPO_ID} holds other files; delete that tag" in refused(publish(loopback_hub, first, tmp_path))


# Refusals


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("hf_wrongTokenCanary", "401 to GET /api/whoami-v2"),
        (STRANGER, "403 to POST /api/repos/create"),
        (None, "there is no token"),
    ],
)
def test_a_token_that_may_not_write_is_one_line(loopback_hub, first, tmp_path, token, message):
    done = publish(loopback_hub, first, tmp_path, token=token)
    line = refused(done)
    assert message in line and "HF_TOKEN" in line
    assert ("use an organisation that you may write to" in line) == (token == STRANGER)
    assert "build-" not in done.stdout, "as if something had been sent"
    assert str(token) not in done.stdout + done.stderr
    assert not loopback_hub.repos


def test_private_data_do_not_go_to_a_public_repository(loopback_hub, first, second, tmp_path):
    loopback_hub.change(REPO_ID, first.files)
    loopback_hub.repos[f"datasets/{REPO_ID}"].private = False
    assert f"{REPO_ID} is public; make it private in its settings" in refused(publish(loopback_hub, second, tmp_path))
    assert [each.method for each in loopback_hub.log] == ["GET", "POST", "GET"], "nothing was sent"


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this process could publish: it is refused before it would ask the Hub."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


def test_only_finished_folders_are_published(online, first, tmp_path):
    with pytest.raises(InputError, match=r"holds no README\.md and data/"):
        publish_dataset(tmp_path, "alice/corpus", private=True)
    (tmp_path / "stage.json").write_text('{"settings": {}, "complete": false}')
    with pytest.raises(InputError, match="is not complete; rerun the stage"):
        publish_dataset(tmp_path, "alice/corpus", private=True)
    (tmp_path / "stage.json").unlink()
    broken = make_build(tmp_path / "broken", "broken", shards=1)
    (broken.folder / "data" / "small" / "train-00000-of-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="is not parquet"):
        publish_dataset(broken.folder, "alice/corpus", private=True)


def test_a_folder_named_like_the_repository_is_in_the_way(online, first, tmp_path, monkeypatch):
    (tmp_path / "alice" / "corpus").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="alice/corpus is a folder here"):
        publish_dataset(first.folder, "alice/corpus", private=True)


def test_offline_is_said_at_once(first):
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        publish_dataset(first.folder, "alice/corpus", private=True)


# The real Hub


@pytest.mark.hub
def test_the_real_hub(first, second, tmp_path):
    """Publish two builds to a private repository of the token's owner, load them back, delete it. By hand."""
    if "HF_TOKEN" not in os.environ:
        pytest.skip("set HF_TOKEN to a token with write access")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_TOKEN": os.environ["HF_TOKEN"], "HF_HOME": str(tmp_path), "PYTHONPATH": str(REPO)}
    name = "from huggingface_hub import HfApi; print(HfApi().whoami()['name'])"
    repo_id = f"{run_client(name, [], environment).tag}/sightsound-test-{random.SystemRandom().randrange(10**9)}"
    try:
        for build, label, shards in ((first, "first", 5), (second, "second", 3)):
            tag = run_client(PUBLISH, [build.folder, repo_id, "private"], environment).tag
            message = json.loads(run_client(LOAD, [repo_id, tag], environment).tag)
            assert message["small"] == message["pinned"] == {"train": small(label, shards)}
            assert len(message["default"]["train"]) == len(message["streaming"]["train"]) == 3 * shards
            assert run_client(PUBLISH, [build.folder, repo_id, "private"], environment).tag == tag
    finally:
        delete = "import sys; from huggingface_hub import HfApi; HfApi().delete_repo(sys.argv[1], repo_type='dataset')"
        assert run_client(delete, [repo_id], environment).code == 0
