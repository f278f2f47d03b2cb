"""Publish datasets, models and collections: the flags of every builder and recipe, what is sent, and what is refused."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from sightsound.cli import InputError
from sightsound.data.clips import sha256_of
from sightsound.data.sources import REPO_ID, is_hub_id
from sightsound.hub.cards import FUNNEL_FIGURE, TAKEDOWN_FILE
from sightsound.hub.pull_request import DatasetPublication, ModelPublication
from sightsound.hub.retries import retrying
from sightsound.stage import fingerprint, write_atomically


# What `save_pretrained` of models and processors writes, and our evaluation. By name: a training run leaves other .json and
# .safetensors files, and others may have put results of their own into `.eval_results`.
_OF_CHECKPOINT = re.compile(
    r"README\.md|(?:adapter_|generation_|preprocessor_|processor_|video_preprocessor_|tokenizer_)?config\.json"
    r"|(?:model|adapter_model)(?:-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json|chat_template\.(?:jinja|json)"
    r"|\.eval_results/sightsound-[\w.-]+\.yaml|predictions/[\w.-]+\.parquet|trained_on\.json"
    r"|tokenizer\.json|tekken\.json|vocab\.(?:json|txt)|merges\.txt|special_tokens_map\.json|added_tokens\.json"
)


@dataclass(kw_only=True)
class PublishArguments:
    """The flags that publish what a builder or a recipe has made."""

    push_to_hub: str | None = field(default=None, metadata={"help": "publish the result as ORG/NAME"})
    private: bool = field(default=False, metadata={"help": "publish only to a private repository"})

    def __post_init__(self) -> None:
        # Checked now and not after hours of building.
        if self.push_to_hub is not None and not REPO_ID.fullmatch(self.push_to_hub):
            raise InputError(f"--push_to_hub {self.push_to_hub}: expected ORG/NAME, such as my-lab/avqa-audio")
        if self.private and self.push_to_hub is None:
            raise InputError("--private says how to publish; give --push_to_hub ORG/NAME as well")
        if self.push_to_hub is not None and self.push_to_hub == os.path.normpath(getattr(self, "output_dir", "")):
            raise InputError(
                f"--output_dir {self.push_to_hub} is named like the repository: load_dataset would read that folder"
            )

    def publish(self, folder: Path) -> None:
        """Publish a finished dataset folder, if `--push_to_hub` is given."""
        if self.push_to_hub is not None:
            card = folder / "README.md"
            if card.is_file():  # until now, its lines that load the dataset name the folder
                named = f'load_dataset("{self.push_to_hub}"'
                write_atomically(card, re.sub(r'load_dataset\("[^"]*"', named, card.read_text(encoding="utf-8")))
            self._report(publish_dataset(folder, self.push_to_hub, self.private))

    def publish_model(self, folder: Path) -> None:
        """Publish a finished checkpoint folder, if `--push_to_hub` is given."""
        if self.push_to_hub is not None:
            self._report(publish_model(folder, self.push_to_hub, self.private))

    def publish_student(self, folder: Path) -> None:
        """
        Publish the output of a training recipe: `model/`, and `adapter/` to a second repository, `ORG/NAME-adapter`.

        In one repository, transformers would find the adapter's config first. An adapter is only sent when its base is a
        model of the Hub: nobody else could load it.
        """
        self.publish_model(folder / "model")
        config = folder / "adapter" / "adapter_config.json"
        if self.push_to_hub is None or not config.is_file():
            return
        base = json.loads(config.read_text())["base_model_name_or_path"]
        if not is_hub_id(base):
            print(f"adapter/ is not published: its base {base} is no model of the Hub")
        else:
            replace(self, push_to_hub=f"{self.push_to_hub}-adapter").publish_model(folder / "adapter")

    def _report(self, revision: str) -> None:
        print(f"published: {self.push_to_hub}, revision {revision}")


def publish_dataset(folder: Path, repo_id: str, private: bool) -> str:
    """
    Publish a finished dataset folder: `main` goes from the old build to the new one in a single step, or not at all.

    The files go to a pull request, are read back from there, and only then merged and tagged. This machine remembers
    nothing: a second run finds on the Hub what an interrupted run left there and uses it. So the remedy for every kill is to
    run the same command again. Only `README.md`, `ledger.parquet`, the funnel's figure, `takedown.txt` and `data/**/*.parquet`
    are ever sent.
    The same step deletes those of them that the older build had and the new one lacks.

    The token is the environment's (`HF_TOKEN`, or that of `hf auth login`). It is no argument: other users of the machine
    can read arguments.

    Args:
        folder (`Path`): A stage's complete output: the card, `data/` and, if there is one, the ledger.
        repo_id (`str`): `organisation/name`; created when missing.
        private (`bool`): Refuse to publish to a public repository. The visibility of an existing repository never changes.

    Returns:
        `str`: The tag `build-<12 hexadecimal digits of the contents' digest>`: a `revision` for `load_dataset`.

    Raises:
        `InputError`: The folder is not complete, the token may not write, the Hub delivers other files than it was sent, or
            it did not answer for minutes. `main` then holds all of the build or nothing of it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    _check_publishable(repo_id)
    names = _files(folder, is_of_dataset)
    data = [path for path in names if path.startswith("data/")]
    if "README.md" not in names or not data:
        raise InputError(f"{folder} holds no README.md and data/*.parquet; give the output folder of a dataset builder")
    try:
        rows = sum(pq.read_metadata(folder / path).num_rows for path in data)
    except pa.ArrowInvalid as error:
        raise InputError(f"a file of {folder}/data is not parquet ({error}); build the folder again") from error
    return DatasetPublication(_digests(folder, names), folder, repo_id, is_of_dataset).run(f"{rows} rows", private)


def publish_model(folder: Path, repo_id: str, private: bool) -> str:
    """
    Publish a finished checkpoint folder with its card, in the way of `publish_dataset`.

    Only what `is_of_checkpoint` names is ever sent: no pickles, no training state. Weights are read back and compared byte by
    byte; config and processor are loaded as a user would.

    Args:
        folder (`Path`): `model/` or `adapter/` of a finished training stage: README.md, config, *.safetensors, processor.
        repo_id, private: As for `publish_dataset`.

    Raises:
        `InputError`: As for `publish_dataset`.
    """
    _check_publishable(repo_id)
    names = _files(folder, is_of_checkpoint)
    has_config = "config.json" in names or "adapter_config.json" in names
    if "README.md" not in names or not has_config or not any(name.endswith(".safetensors") for name in names):
        raise InputError(f"{folder} holds no README.md, config.json and *.safetensors; give the `model/` folder of a recipe")
    return ModelPublication(_digests(folder, names), folder, repo_id, is_of_checkpoint).run("a checkpoint", private)


def make_collection(title: str, namespace: str, items: list[tuple[str, str]], private: bool) -> str:
    """
    Group repositories on one page of the Hub. An existing collection of that title is added to and keeps what it holds.

    Args:
        title, namespace (`str`): Its name, and the user or organisation that owns it.
        items (`list[tuple[str, str]]`): Id and kind (`"model"`, `"dataset"` or `"space"`) of each repository.
        private (`bool`): Refuse a public collection.

    Returns:
        `str`: Its address.

    Raises:
        `InputError`: A repository does not exist, the token may not write, or the collection is public against `private`.
    """
    from huggingface_hub import HfApi

    refuse_offline()
    api = HfApi()

    def group() -> str:
        collection = api.create_collection(title, namespace=namespace, private=private, exists_ok=True)
        if private and not collection.private:
            raise InputError(f"{collection.slug} is public; make it private in its settings, or leave --private out")
        for repo_id, kind in items:
            api.add_collection_item(collection.slug, repo_id, kind, exists_ok=True)  # type: ignore[arg-type]
        return collection.url

    # All are looked up first: a missing repository must not leave half a collection behind.
    for repo_id, kind in items:
        retrying(partial(api.repo_info, repo_id, repo_type=kind))
    return retrying(group)


def is_of_dataset(path: str) -> bool:
    """The allow-list of a dataset: what may leave this machine, and what a new build may delete on the Hub."""
    top, *rest = path.split("/")
    data = top == "data" and path.endswith(".parquet") and not any(part.startswith(".") for part in rest)
    return path in ("README.md", "ledger.parquet", FUNNEL_FIGURE, TAKEDOWN_FILE) or data


def is_of_checkpoint(path: str) -> bool:
    """The allow-list of a checkpoint."""
    return _OF_CHECKPOINT.fullmatch(path) is not None


def refuse_offline() -> None:
    """
    Raises:
        `InputError`: `HF_HUB_OFFLINE` is set. Call before anything is read or hashed.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise InputError("HF_HUB_OFFLINE is set; unset it to publish")


def _check_publishable(repo_id: str) -> None:
    refuse_offline()
    if Path(repo_id).exists():
        # `load_dataset` and `from_pretrained` would read this folder in place of the repository.
        raise InputError(f"{repo_id} is a folder here; publish from a directory that holds no folder of that name")


def _files(folder: Path, is_sent: Callable[[str], bool]) -> list[str]:
    """Sorted paths, relative to the folder, of the files to send."""
    fingerprint(folder)  # refuses the output of a stage that has not finished
    paths = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    return sorted(path for path in paths if is_sent(path))


def _digests(folder: Path, names: list[str]) -> dict[str, str]:
    """Path in the repository -> sha256."""
    from tqdm import tqdm

    return {name: sha256_of(str(folder / name)) for name in tqdm(names, "hashing", unit="file", disable=None)}
