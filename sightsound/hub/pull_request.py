"""
Bring a repository of the Hub to one build, from whatever state it is in: pull request, read back, merge, tag.

`HfApi.upload_folder` is not enough. It sends all files in one call: over Xet, nothing of a call that was killed can be used
again. It reads every file once more for its digest, and it compares nothing with what the Hub delivers. So the calls beneath
it are used here (`preupload_lfs_files`, `create_commit`), a batch of files at a time.
"""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from sightsound.cli import InputError
from sightsound.data.clips import sha256_of
from sightsound.hub.retries import Conflict, retrying


UPLOAD_BATCH = 16  # files; a kill costs at most one batch

# (config, split) -> its number of rows, and the first of them
Loaded = dict[tuple[str, str], tuple[int, Any]]


class Publication:
    """
    One build on its way to one repository. `publish` may fail anywhere and be called again.

    Args:
        build (`dict[str, str]`): Path in the repository -> sha256 of the file.
        folder (`Path`): Holds these files.
        repo_id (`str`): `organisation/name`.
        owns (`Callable`): Whether a path in the repository belongs to a build; all others are left alone.
    """

    repo_type: str
    loader: str  # what a user calls with the tag

    def __init__(self, build: dict[str, str], folder: Path, repo_id: str, owns: Callable[[str], bool]):
        from huggingface_hub import HfApi

        self.build, self.folder, self.owns, self.api = build, folder, owns, HfApi()
        contents = "".join(f"{path} {sha256}\n" for path, sha256 in build.items())
        self.tag = f"build-{hashlib.sha256(contents.encode()).hexdigest()[:12]}"
        self.repo: dict[str, Any] = {"repo_id": repo_id, "repo_type": self.repo_type}
        self.delivered: set[tuple[str, str]] = set()  # (commit, path) that were read back already

    def check_loading(self, commit: str, expected: Loaded) -> None:
        """Load the pull request as a user would; raises `InputError` where it loads otherwise than the folder."""
        raise NotImplementedError

    def loaded(self, source: str, **options: Any) -> Loaded:
        """What loading the folder, or the repository at a revision, gives."""
        raise NotImplementedError

    def run(self, content: str, private: bool) -> str:
        """
        Publish, with retries; returns the tag.

        Args:
            content (`str`): What the build is, for the user.
            private (`bool`): Refuse a public repository.
        """
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()  # they are one per file
        retrying(lambda: self.open(private))
        self.say(f"{len(self.build)} files, {content}, are {self.tag}")
        return retrying(self.publish)

    def say(self, text: str) -> None:
        print(f"{self.repo['repo_id']}: {text}", flush=True)

    def open(self, private: bool) -> None:
        """Create the repository if it is missing; check the token and who can read what is about to be sent."""
        from huggingface_hub import get_token

        if get_token() is None:
            raise InputError("there is no token; set HF_TOKEN to a token with write access")
        self.user = self.api.whoami()["name"]
        # None, and not False: an organisation may have its new repositories private by default.
        created = self.api.create_repo(**self.repo, private=private or None, exist_ok=True)
        self.repo["repo_id"] = created.repo_id  # with the user's name, where none was given
        if private and not self.api.repo_info(**self.repo).private:
            raise InputError(f"{created.repo_id} is public; make it private in its settings, or publish without --private")

    def publish(self) -> str:
        """Bring the repository to its published state from whatever state it is in."""
        main = self.head()
        if not self.is_build(old := self.tree(main)):
            expected = self.loaded(str(self.folder))  # what cannot be loaded here is not sent
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
        """Path -> `RepoFile` of the files that a build owns."""
        from huggingface_hub import RepoFile

        entries = self.api.list_repo_tree(**self.repo, revision=revision, recursive=True)
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile) and self.owns(entry.path)}

    def is_build(self, tree: dict[str, Any]) -> bool:
        return tree.keys() == self.build.keys() and all(self.is_same(path, tree[path]) for path in tree)

    def is_same(self, path: str, entry: Any) -> bool:
        from huggingface_hub.utils.sha import git_hash

        if entry.lfs is not None:
            return entry.lfs.sha256 == self.build[path]
        return entry.blob_id == git_hash((self.folder / path).read_bytes())  # small: the Hub takes blobs of 10 MB at most

    def find_pull_request(self, main: str) -> tuple[int, str] | None:
        """
        Number and commit of the pull request that an interrupted run left, if it can still be merged.

        This build's other pull requests are closed: those onto another head of main, and those that hold other files.
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
                comment = "Not this build on top of main; superseded by the next attempt."
                self.api.change_discussion_status(**self.repo, discussion_num=pull.num, new_status="closed", comment=comment)
                self.say(f"closed pull request {pull.num}, which is not this build on top of main")
        return found

    def title(self, main: str) -> str:
        return f"Publish {self.tag} onto {main[:12]}"

    def make_pull_request(self, main: str, old: dict[str, Any]) -> tuple[int, str]:
        """Upload what main lacks, and propose the change from `old` to exactly this build as one commit."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete
        from tqdm import tqdm

        adds = []
        for path, sha256 in self.build.items():
            if path not in old or not self.is_same(path, old[path]):
                add = CommitOperationAdd(path, str(self.folder / path))
                add.upload_info.sha256 = bytes.fromhex(sha256)  # or the file would be read once more for it
                adds.append(add)
        deletes = [CommitOperationDelete(path, is_folder=False) for path in sorted(old.keys() - self.build.keys())]
        with tqdm(total=len(adds), desc="uploading", unit="file", disable=None) as progress:
            for batch in (adds[i : i + UPLOAD_BATCH] for i in range(0, len(adds), UPLOAD_BATCH)):
                retrying(partial(self.api.preupload_lfs_files, **self.repo, additions=batch, revision="main"))
                progress.update(len(batch))
        with warnings.catch_warnings():  # predictions go to a model's repository on purpose
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
        """Download everything again and compare; main stays as it is where a file differs."""
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
            with tempfile.TemporaryDirectory(prefix="sightsound-") as cache:  # one file at a time, to need little disk
                get = partial(hf_hub_download, **self.repo, filename=path, revision=commit, cache_dir=cache)
                got = sha256_of(retrying(get))
            if got != sent:
                raise InputError(f"{path} came back with sha256 {got}, not {sent}; main is as it was, publish again")
            self.delivered.add((commit, path))

    def merge(self, number: int, main: str) -> str:
        """Merge into main; returns its new commit. The Hub answers a conflict with 409, which `retrying` knows."""
        if self.head() != main:
            raise Conflict("main moved while the build was on its way")
        if self.api.get_discussion_details(**self.repo, discussion_num=number).status == "draft":
            self.api.change_discussion_status(**self.repo, discussion_num=number, new_status="open")
        self.api.merge_pull_request(**self.repo, discussion_num=number)
        return self.api.get_discussion_details(**self.repo, discussion_num=number).merge_commit_oid or self.head()

    def ensure_tag(self, main: str) -> None:
        """Tag this commit of main. A tag is never moved: people pin it."""
        if self.tag not in [tag.name for tag in self.api.list_repo_refs(**self.repo).tags]:
            self.api.create_tag(**self.repo, tag=self.tag, revision=main, exist_ok=True)
            self.say(f'tagged: {self.loader}("{self.repo["repo_id"]}", revision="{self.tag}")')
        elif self.is_build(self.tree(self.tag)):
            self.say(f"main holds {self.tag}, and it is tagged")
        else:
            raise InputError(f"tag {self.tag} of {self.repo['repo_id']} holds other files; delete that tag and publish again")


class DatasetPublication(Publication):
    """A dataset folder on its way to a dataset repository."""

    repo_type, loader = "dataset", "load_dataset"

    def check_loading(self, commit: str, expected: Loaded) -> None:
        """Open every config and split of the pull request as a user would."""
        loaded = retrying(lambda: self.loaded(self.repo["repo_id"], revision=commit))
        if loaded != expected:
            wrong = next(name for name in {**loaded, **expected} if loaded.get(name) != expected.get(name))
            raise InputError(f"config and split {wrong} load otherwise from the Hub than from {self.folder}; main is as it was")
        opened = ", ".join(f"{config}/{split} ({rows} rows)" for (config, split), (rows, _) in loaded.items())
        self.say(f"read back {len(self.build)} files, all as sent; {opened} can be loaded")

    def loaded(self, source: str, **options: Any) -> Loaded:
        """
        Rows and first row of every config and split. Audio stays encoded: decoding would need a system ffmpeg.

        Args:
            source (`str`): The repository or the folder. In both, the card says which files belong to a config; the rows are
                counted in the folder, which holds the same files.
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
                        wanted = declared.num_examples if declared else "at least 1"
                        raise InputError(f"split {name} of {config} has {rows} rows, expected {wanted}; build the folder again")
                    found[config, str(name)] = rows, next(iter(dataset.decode(False)), None)
        except (ValueError, FileNotFoundError) as error:
            if isinstance(error.__cause__ or error.__context__, OSError):
                raise  # a failure of the Hub, which may pass
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"load_dataset cannot open {source} ({reason}); main is as it was") from error
        return found


class ModelPublication(Publication):
    """A checkpoint on its way to a model repository."""

    repo_type, loader = "model", "from_pretrained"

    def check_loading(self, commit: str, expected: Loaded) -> None:
        """Load config and processor of the pull request; `check_files` has compared the weights."""
        retrying(lambda: self.loaded(self.repo["repo_id"], revision=commit))
        self.say(f"read back {len(self.build)} files, all as sent; config and processor can be loaded")

    def loaded(self, source: str, **options: Any) -> Loaded:
        from peft import PeftConfig
        from transformers import AutoConfig, AutoProcessor

        kind = PeftConfig if "adapter_config.json" in self.build else AutoConfig
        kind.from_pretrained(source, **options)
        AutoProcessor.from_pretrained(source, **options)
        return {}
