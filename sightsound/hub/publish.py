"""What a published artefact says of itself (cards, rendered from `model_cards/`), and how datasets and models reach the Hub."""

from __future__ import annotations

import hashlib
import re
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from sightsound.cli import InputError
from sightsound.data.clips import sha256_of
from sightsound.hub.cards import FUNNEL_FIGURE
from sightsound.hub.retries import Conflict, retrying
from sightsound.stage import fingerprint


UPLOAD_BATCH = 16  # files; a kill costs at most one batch


def publish_dataset(folder: Path, repo_id: str, private: bool) -> str:
    """
    Publish a finished dataset folder: `main` goes from the old build to the new one in a single step, or not at all.

    The files go to a pull request, are read back from there, and only then merged and tagged. Nothing is remembered on
    this machine: whatever an interrupted run left on the Hub is found there and used, so the remedy for every kill is to
    run the same command again. Only `README.md`, `ledger.parquet` and `data/**/*.parquet` are ever sent; of those, what
    an older build had and this one has not is deleted in the same step.

    The token is the environment's (`HF_TOKEN`, or that of `hf auth login`); it is not taken as an argument, which
    other users of the machine could read.

    Args:
        folder (`Path`): A stage's complete output: the card, `data/` and, if there is one, the ledger.
        repo_id (`str`): `organisation/name`; made when missing.
        private (`bool`): Refuse to publish to a repository that everybody can read. A repository that exists is never
            made more or less visible.

    Returns:
        `str`: The tag `build-<12 hexadecimal digits of the contents' digest>`: a `revision` for `load_dataset`.

    Raises:
        `InputError`: The folder is not complete, the token may not write, what the Hub delivers is not what was sent,
            or the Hub did not answer for minutes. Nothing of the build is on `main`, or all of it.
    """
    _refuse_unpublishable(repo_id)
    build, rows = _read_build(folder)
    return _publish(_Publication(build, folder, repo_id), f"{rows} rows", private)


def publish_model(folder: Path, repo_id: str, private: bool) -> str:
    """
    Publish a finished checkpoint folder with its card, in the way of `publish_dataset`.

    Only what `_is_of_checkpoint` names is ever sent: no pickles, no training state. Weights are read back byte by byte;
    config and processor are loaded as a user would.

    Args:
        folder (`Path`): `model/` or `adapter/` of a finished training stage: README.md, config, *.safetensors, processor.
        repo_id, private: As for `publish_dataset`.

    Raises:
        `InputError`: As for `publish_dataset`.
    """
    _refuse_unpublishable(repo_id)
    fingerprint(folder)  # refuses the output of a stage that has not finished
    paths = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    names = sorted(path for path in paths if _is_of_checkpoint(path))
    has_config = "config.json" in names or "adapter_config.json" in names
    if "README.md" not in names or not has_config or not any(name.endswith(".safetensors") for name in names):
        raise InputError(f"{folder} holds no README.md, config.json and *.safetensors; give the `model/` folder of a recipe")
    build = {name: sha256_of(str(folder / name)) for name in names}
    return _publish(_ModelPublication(build, folder, repo_id), "a checkpoint", private)


def refuse_offline() -> None:
    """Before anything is read or hashed."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise InputError("HF_HUB_OFFLINE is set; unset it to publish")


def _refuse_unpublishable(repo_id: str) -> None:
    refuse_offline()
    if Path(repo_id).exists():
        # `load_dataset` and `from_pretrained` would check this folder in place of the repository.
        raise InputError(f"{repo_id} is a folder here; publish from a directory that holds no folder of that name")


def _publish(publication: _Publication, told: str, private: bool) -> str:
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()  # one bar per file
    retrying(lambda: publication.open(private))
    publication.say(f"{len(publication.build)} files, {told}, are {publication.tag}")
    return retrying(publication.publish)


def _is_ours(path: str) -> bool:
    """The allow-list, for what leaves this machine and for what a new build may delete."""
    top, *rest = path.split("/")
    data = top == "data" and path.endswith(".parquet") and not any(part.startswith(".") for part in rest)
    return path in ("README.md", "ledger.parquet", FUNNEL_FIGURE) or data


# What `save_pretrained` of models and processors writes, and our evaluation. By name: a training run leaves other .json and
# .safetensors files, and others may have put results of their own into `.eval_results`.
_OF_CHECKPOINT = re.compile(
    r"README\.md|(?:adapter_|generation_|preprocessor_|processor_|video_preprocessor_|tokenizer_)?config\.json"
    r"|(?:model|adapter_model)(?:-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json|chat_template\.(?:jinja|json)"
    r"|\.eval_results/sightsound-[\w.-]+\.yaml|predictions/[\w.-]+\.parquet|trained_on\.json"
    r"|tokenizer\.json|vocab\.(?:json|txt)|merges\.txt|special_tokens_map\.json|added_tokens\.json"
)


def _is_of_checkpoint(path: str) -> bool:
    """The same for a checkpoint."""
    return _OF_CHECKPOINT.fullmatch(path) is not None


def _read_build(folder: Path) -> tuple[dict[str, str], int]:
    """Path in the repository -> sha256, and how many rows of data that is."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from tqdm import tqdm

    fingerprint(folder)  # refuses the output of a stage that has not finished
    paths = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    ours = sorted(path for path in paths if _is_ours(path))
    data = [path for path in ours if path.startswith("data/")]
    if "README.md" not in ours or not data:
        raise InputError(f"{folder} holds no README.md and data/*.parquet; give the output folder of a dataset builder")
    try:
        rows = sum(pq.read_metadata(folder / path).num_rows for path in data)
    except pa.ArrowInvalid as error:
        raise InputError(f"a file of {folder}/data is not parquet ({error}); build the folder again") from error
    return {path: sha256_of(str(folder / path)) for path in tqdm(ours, "hashing", unit="file", disable=None)}, rows


class _Publication:
    """One build on its way to one repository. `publish` may fail anywhere and be called again."""

    repo_type, loader = "dataset", "load_dataset"
    is_ours = staticmethod(_is_ours)

    def __init__(self, build: dict[str, str], folder: Path, repo_id: str):
        from huggingface_hub import HfApi

        self.build, self.folder, self.api = build, folder, HfApi()
        told = "".join(f"{path} {sha256}\n" for path, sha256 in build.items())
        self.tag = f"build-{hashlib.sha256(told.encode()).hexdigest()[:12]}"
        self.repo: dict[str, Any] = {"repo_id": repo_id, "repo_type": self.repo_type}
        self.delivered: set[tuple[str, str]] = set()  # (commit, path) read back already

    def say(self, text: str) -> None:
        print(f"{self.repo['repo_id']}: {text}", flush=True)

    def open(self, private: bool) -> None:
        """Make the repository if there is none; be sure of the token and of who can read what is about to be sent."""
        from huggingface_hub import get_token

        if get_token() is None:
            raise InputError("there is no token; set HF_TOKEN to a token with write access")
        self.user = self.api.whoami()["name"]
        # None, and not False, leaves it to the organisation whether its new repositories are private.
        created = self.api.create_repo(**self.repo, private=private or None, exist_ok=True)
        self.repo["repo_id"] = created.repo_id  # with the user's name, where none was given
        if private and not self.api.repo_info(**self.repo).private:
            raise InputError(f"{created.repo_id} is public; make it private in its settings, or publish without --private")

    def publish(self) -> str:
        """Bring the repository to its published state from whatever state it is in."""
        main = self.head()
        if not self.is_build(old := self.tree(main)):
            expected = self.loaded(str(self.folder))  # what cannot be loaded here is not sent either
            number, commit = self.find_pull_request(main) or self.make_pull_request(main, old)
            self.check_files(commit, main)
            self.check_loading(commit, expected)
            main = self.merge(number, main)
            if not self.is_build(self.tree(main)):
                raise Conflict("the Hub merged this build with somebody else's change of the data")
            self.say(f"merged pull request {number}: main is {main[:12]}")
        self.ensure_tag(main)
        return self.tag

    def head(self, ref: str = "main") -> str:
        return str(self.api.repo_info(**self.repo, revision=ref).sha)

    def tree(self, revision: str) -> dict[str, Any]:
        """Path -> `RepoFile` of those files that a build owns."""
        from huggingface_hub import RepoFile

        entries = self.api.list_repo_tree(**self.repo, revision=revision, recursive=True)
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile) and self.is_ours(entry.path)}

    def is_build(self, tree: dict[str, Any]) -> bool:
        return tree.keys() == self.build.keys() and all(self.is_same(path, tree[path]) for path in tree)

    def is_same(self, path: str, entry: Any) -> bool:
        from huggingface_hub.utils.sha import git_hash

        if entry.lfs is not None:
            return entry.lfs.sha256 == self.build[path]
        return entry.blob_id == git_hash((self.folder / path).read_bytes())  # small: the Hub takes 10 MB at most as blob

    def find_pull_request(self, main: str) -> tuple[int, str] | None:
        """
        Number and commit of the pull request that an interrupted run left, if it can still be merged.

        Of this build's pull requests, those onto another head of main, or that hold anything else, are closed.
        """
        found = None
        mine = self.api.get_repo_discussions(**self.repo, author=self.user, discussion_type="pull_request")
        for pull in list(mine):
            if pull.status not in ("draft", "open") or not pull.title.startswith(f"Publish {self.tag} "):
                continue
            commit = self.head(f"refs/pr/{pull.num}")
            if found is None and pull.title == self.title(main) and self.is_build(self.tree(commit)):
                found = pull.num, commit
                self.say(f"pull request {pull.num} of an earlier run holds the build already")
            else:
                told = "Not this build on top of main; superseded by the next attempt."
                self.api.change_discussion_status(**self.repo, discussion_num=pull.num, new_status="closed", comment=told)
                self.say(f"closed pull request {pull.num}, which is not this build on top of main")
        return found

    def title(self, main: str) -> str:
        return f"Publish {self.tag} onto {main[:12]}"

    def make_pull_request(self, main: str, old: dict[str, Any]) -> tuple[int, str]:
        """Upload what main does not have, and propose the change from `old` to exactly this build as one commit."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete
        from tqdm import tqdm

        adds = []
        for path, sha256 in self.build.items():
            if path not in old or not self.is_same(path, old[path]):
                add = CommitOperationAdd(path, str(self.folder / path))
                add.upload_info.sha256 = bytes.fromhex(sha256)  # or every file would be read once more for it
                adds.append(add)
        deletes = [CommitOperationDelete(path, is_folder=False) for path in sorted(old.keys() - self.build.keys())]
        with tqdm(total=len(adds), desc="uploading", unit="file", disable=None) as progress:
            for batch in (adds[i : i + UPLOAD_BATCH] for i in range(0, len(adds), UPLOAD_BATCH)):
                retrying(partial(self.api.preupload_lfs_files, **self.repo, additions=batch, revision="main"))
                progress.update(len(batch))
        with warnings.catch_warnings():  # that predictions go to a model's repository is meant
            warnings.filterwarnings("ignore", "It seems that you are about to commit a data file", UserWarning)
            commit: Any = self.api.create_commit(
                **self.repo,
                operations=[*adds, *deletes],
                commit_message=self.title(main),
                parent_commit=main,
                create_pr=True,
            )
        self.say(f"pull request {commit.pr_num} adds {len(adds)} files and deletes {len(deletes)}")
        return commit.pr_num, commit.oid

    def check_files(self, commit: str, main: str) -> None:
        """Download everything again; main is untouched if it is not what was sent."""
        from huggingface_hub import hf_hub_download
        from tqdm import tqdm

        kept = self.tree(commit)
        if not self.is_build(kept):
            if self.head() != main:
                raise Conflict("main moved while the build was on its way")
            lost = sorted(self.build.keys() ^ kept.keys()) or sorted(p for p in kept if not self.is_same(p, kept[p]))
            raise InputError(f"the Hub did not keep {lost[0]} as it was sent; does a .gitignore in the repository name it?")
        for path, sent in tqdm(self.build.items(), "reading back", unit="file", disable=None):
            if (commit, path) in self.delivered:
                continue
            with tempfile.TemporaryDirectory(prefix="sightsound-") as cache:  # one file at a time: the disk stays flat
                get = partial(hf_hub_download, **self.repo, filename=path, revision=commit, cache_dir=cache)
                got = sha256_of(retrying(get))
            if got != sent:
                raise InputError(f"{path} came back with sha256 {got}, not {sent}; main is as it was, publish again")
            self.delivered.add((commit, path))

    def check_loading(self, commit: str, expected: dict[tuple[str, str], tuple[int, Any]]) -> None:
        """Open every config and split of the pull request as a user would."""
        loaded = retrying(lambda: self.loaded(self.repo["repo_id"], revision=commit))
        if loaded != expected:
            wrong = next(name for name in {**loaded, **expected} if loaded.get(name) != expected.get(name))
            raise InputError(f"config and split {wrong} load otherwise from the Hub than from {self.folder}; main is as it was")
        told = ", ".join(f"{config}/{split} ({rows} rows)" for (config, split), (rows, _) in loaded.items())
        self.say(f"read back {len(self.build)} files, all as sent; {told} can be loaded")

    def loaded(self, source: str, **options: Any) -> dict[tuple[str, str], tuple[int, Any]]:
        """
        (config, split) -> its rows, and the first of them with the audio left encoded: decoding would need a system ffmpeg.

        Args:
            source (`str`): The repository or the folder. Either way the card says which files are whose, and the folder
                holds the same files, so that the rows of each are counted there.
        """
        import pyarrow.parquet as pq
        from datasets import get_dataset_config_names, load_dataset_builder

        found = {}
        try:
            for config in get_dataset_config_names(source, **options):
                builder = load_dataset_builder(source, config, **options)
                for name, dataset in builder.as_streaming_dataset().items():
                    files = [f"data/{str(file).rsplit('/data/', 1)[-1]}" for file in builder.config.data_files[name]]
                    rows = sum(pq.read_metadata(self.folder / file).num_rows for file in files)
                    declared = (builder.info.splits or {}).get(name)
                    if rows == 0 or (declared is not None and declared.num_examples != rows):
                        says = declared.num_examples if declared else "at least 1"
                        raise InputError(f"split {name} of {config} has {rows} rows, expected {says}; build the folder again")
                    found[config, str(name)] = rows, next(iter(dataset.decode(False)), None)
        except (ValueError, FileNotFoundError) as error:
            if isinstance(error.__cause__ or error.__context__, OSError):
                raise  # the Hub's doing, perhaps a passing one
            told = " ".join(str(error).split())[:300]
            raise InputError(f"load_dataset cannot open {source} ({told}); main is as it was") from error
        return found

    def merge(self, number: int, main: str) -> str:
        """The change of main; returns its commit. A conflict is an answer (409) of the Hub."""
        if self.head() != main:
            raise Conflict("main moved while the build was on its way")
        if self.api.get_discussion_details(**self.repo, discussion_num=number).status == "draft":
            self.api.change_discussion_status(**self.repo, discussion_num=number, new_status="open")
        self.api.merge_pull_request(**self.repo, discussion_num=number)
        return self.api.get_discussion_details(**self.repo, discussion_num=number).merge_commit_oid or self.head()

    def ensure_tag(self, main: str) -> None:
        """Tag what main is, or was a moment ago; a tag is never moved, since people pin it."""
        if self.tag not in [tag.name for tag in self.api.list_repo_refs(**self.repo).tags]:
            self.api.create_tag(**self.repo, tag=self.tag, revision=main, exist_ok=True)
            self.say(f'tagged: {self.loader}("{self.repo["repo_id"]}", revision="{self.tag}")')
        elif self.is_build(self.tree(self.tag)):
            self.say(f"main holds {self.tag}, and it is tagged")
        else:
            raise InputError(f"tag {self.tag} of {self.repo['repo_id']} holds other files; delete that tag and publish again")


class _ModelPublication(_Publication):
    """A checkpoint on its way to a model repository."""

    repo_type, loader = "model", "from_pretrained"
    is_ours = staticmethod(_is_of_checkpoint)

    def check_loading(self, commit: str, expected: dict[tuple[str, str], tuple[int, Any]]) -> None:
        """Config and processor of the pull request; the weights' bytes have come back as they were sent."""
        retrying(lambda: self.loaded(self.repo["repo_id"], revision=commit))
        self.say(f"read back {len(self.build)} files, all as sent; config and processor can be loaded")

    def loaded(self, source: str, **options: Any) -> dict[tuple[str, str], tuple[int, Any]]:
        from peft import PeftConfig
        from transformers import AutoConfig, AutoProcessor

        kind = PeftConfig if "adapter_config.json" in self.build else AutoConfig
        kind.from_pretrained(source, **options)
        AutoProcessor.from_pretrained(source, **options)
        return {}
