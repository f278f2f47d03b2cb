"""A builder's own output, published by its own flag to the loopback Hub and loaded back."""

import json
import subprocess
import sys

from tests.support.hub_routes import TOKEN
from tests.support.loopback_hub import REPO, client_environment, loopback_hub, process_arguments
from tests.support.tiny import read_ledger, read_rows


__all__ = ["loopback_hub"]  # the fixture

REPO_ID = "alice/avqa-audio"
LOAD = """
import json, sys
from datasets import Audio, load_dataset
loaded = load_dataset(sys.argv[1], revision=sys.argv[2]).cast_column("audio", Audio(decode=False))
told = {split: [{**row, "audio": row["audio"]["bytes"].hex()} for row in rows] for split, rows in loaded.items()}
print(json.dumps(told))
"""


def run(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)


def test_a_build_is_published_by_its_builder_and_loads_from_the_hub(loopback_hub, tiny_world, tmp_path):
    environment = client_environment(loopback_hub, tmp_path / "home")
    (tmp_path / "home").mkdir()
    folder = tmp_path / "avqa-audio"
    annotations = [
        "--train_annotations",
        f"{tiny_world}/train_qa.json",
        "--validation_annotations",
        f"{tiny_world}/val_qa.json",
    ]
    paths = ["--media_dir", f"{tiny_world}/clips", "--output_dir", str(folder), "--num_proc", "1"]
    command = [str(REPO / "dataset_builders" / "avqa_audio.py"), *annotations, *paths, "--push_to_hub", REPO_ID, "--private"]
    seen = set()

    loopback_hub.watch = lambda *_: seen.update(process_arguments())
    published = run(command, environment)
    assert published.returncode == 0, published.stderr
    tag = published.stdout.split()[-1]
    assert tag.startswith("build-")
    again = run(command, environment)
    assert "is complete" in again.stdout and again.stdout.split()[-1] == tag

    loaded = run(["-c", LOAD, REPO_ID, tag], environment)
    assert loaded.returncode == 0, loaded.stderr
    message = json.loads(loaded.stdout)
    assert [len(message["train"]), len(message["validation"])] == [12, 4]
    assert message["train"] == [{**row, "audio": row["audio"]["bytes"].hex()} for row in read_rows(folder)]
    assert len(read_ledger(folder)) == 16

    said = [text for done in (published, again, loaded) for text in (done.stdout, done.stderr)]
    written = [file.read_bytes().decode(errors="replace") for file in tmp_path.rglob("*") if file.is_file()]
    assert any(REPO_ID in arguments for arguments in seen), "the publisher's own was seen"
    assert all(TOKEN not in text for text in (*said, *written, *seen))
