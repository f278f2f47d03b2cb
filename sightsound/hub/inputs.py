"""
The inputs of a stage: a folder here, or a repository of the Hub, pinned to one commit.

A stage reads its inputs more than once, and may be killed and continued days later, while the Hub's `main` moves. So a Hub
dataset is looked up once, and from then on its name is `ORG/NAME@COMMIT`, also in the stage's settings: a rerun reads the same
commit. Users can pin a revision in the same way (`--dataset ORG/NAME@build-0123456789ab`).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sightsound.cli import InputError, nearest
from sightsound.data.sources import COMMIT, REPO_ID, split_revision
from sightsound.hub.retries import TRANSIENT, what_happened
from sightsound.stage import STAGE_FILE, is_complete, read_settings


CARD = "README.md"
LOOK_UP_TIMEOUT_S = 10.0
LOOK_UPS = 3  # of a busy Hub; one that cannot be reached is tried once


def dataset_file(source: str, name: str) -> Path | None:
    """
    A file beside the data of a dataset, such as its card; None if it has none.

    Args:
        source (`str`): A folder, a Hub id, or `ORG/NAME@REVISION`.

    Raises:
        `InputError`: It cannot be downloaded, and the cache has none.
    """
    import httpx
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    if Path(source).exists():
        file = Path(source, name)
        return file if file.is_file() else None
    repository, revision = split_revision(source)
    try:
        return Path(hf_hub_download(repository, name, repo_type="dataset", revision=revision))
    except RemoteEntryNotFoundError:
        return None
    except (httpx.HTTPError, OSError, ValueError) as error:
        what = "the card" if name == CARD else name
        problem = f"{what} of {source} cannot be read ({what_happened(error)})"
        raise InputError(f"{problem}; check the network, HF_HUB_OFFLINE and HF_TOKEN, then run this again") from error


def front_matter_of(source: str) -> dict[str, Any]:
    """
    The front matter of a dataset's card; empty if it has no card.

    Args:
        source (`str`): A folder, a Hub id, or `ORG/NAME@REVISION`.

    Raises:
        `InputError`: As for `dataset_file`.
    """
    from huggingface_hub import DatasetCard

    card = dataset_file(source, CARD)
    return DatasetCard.load(card).data.to_dict() if card is not None else {}


def pin_dataset(flag: str, source: str, output_dir: str | Path | None = None) -> str:
    """
    Check the dataset that a flag names, and pin it: a folder stays as it is, a Hub id gets its commit.

    Args:
        flag (`str`): Without `--`; the stage's setting has the same name.
        output_dir (`str`, *optional*): Of the stage. A rerun takes the commit that is recorded there.

    Raises:
        `InputError`: It is neither a readable folder nor a dataset of the Hub.
    """
    if Path(source).exists():
        _check_dataset_folder(flag, Path(source))
        return source
    return pin_repository(flag, *split_revision(source), output_dir)


def pin_repository(flag: str, name: str, revision: str | None, output_dir: str | Path | None = None) -> str:
    """
    Pin a dataset of the Hub: `ORG/NAME@COMMIT`.

    Args:
        flag (`str`): Without `--`; the stage's setting has the same name.
        name, revision (`str`): Of the dataset; without a revision, `main`.
        output_dir (`str`, *optional*): Of the stage. A rerun takes the commit that is recorded there.

    Raises:
        `InputError`: There is no such dataset or revision, no access, or no connection.
    """
    recorded = (read_settings(Path(output_dir)) or {}).get(flag) if output_dir is not None else None
    if revision is None and recorded is not None and split_revision(str(recorded))[0] == name:
        return str(recorded)
    return f"{name}@{_commit_on_hub(flag, name, 'dataset', revision)}"


def pin_datasets(arguments: Any, flags: Sequence[str], output_dir: str) -> None:
    """Apply `pin_dataset` to fields of a stage's arguments, in place, except those that are None."""
    for flag in flags:
        if (source := getattr(arguments, flag)) is not None:
            setattr(arguments, flag, pin_dataset(flag, source, output_dir))


def _check_dataset_folder(flag: str, folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(f"--{flag} {folder} is a file; expected a dataset folder or a Hub dataset id")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise InputError(f"--{flag} {folder} cannot be read; check its permissions")
    if (folder / STAGE_FILE).is_file() and not is_complete(folder):
        raise InputError(f"--{flag} {folder} is not complete; rerun the stage that writes it")
    # Checked here because without a card `load_dataset` would take any data files that it finds.
    if next(folder.glob("data/**/*.parquet"), None) is None and next(folder.glob("*.parquet"), None) is None:
        inner = next((each for each in sorted(folder.iterdir()) if (each / "data").is_dir()), None)
        meant = f"; did you mean {inner}?" if inner is not None else "; expected what a stage or dataset builder has written"
        raise InputError(f"--{flag} {folder} is no dataset folder: it holds no data/*.parquet{meant}")


def _commit_on_hub(flag: str, name: str, repo_type: str, revision: str | None) -> str:
    """
    The commit of a repository.

    Raises:
        `InputError`: No such repository, no access with this token, or no connection to the Hub.
    """
    import httpx
    from huggingface_hub import HfApi, constants

    given = f"--{flag} {name}{f'@{revision}' if revision else ''}"
    if name.startswith((".", "/", "~")) or not (REPO_ID.fullmatch(name) or re.fullmatch(r"[\w.-]+", name, re.ASCII)):
        raise InputError(f"--{flag} {name}: there is no such folder{_similar_folder(name, repo_type)}")
    missing = f"{given}: there is no folder {name} here{_similar_folder(name, repo_type)}"
    if constants.HF_HUB_OFFLINE:
        if cached := _cached_commit(name, repo_type, revision):
            return cached
        raise InputError(f"{missing}, HF_HUB_OFFLINE is set, and the cache has no {repo_type} of that name")
    for attempt in range(1, LOOK_UPS + 1):
        try:
            info = HfApi().repo_info(name, repo_type=repo_type, revision=revision, timeout=LOOK_UP_TIMEOUT_S)
            return str(info.sha)
        except (httpx.HTTPError, OSError, ValueError) as error:
            response = getattr(error, "response", None)
            if response is not None and response.status_code in TRANSIENT and attempt < LOOK_UPS:
                time.sleep(attempt)
                continue
            if response is None or response.status_code in TRANSIENT:
                if cached := _cached_commit(name, repo_type, revision):
                    print(f"the Hub does not answer ({what_happened(error)}); {name} is taken from the cache, commit {cached}")
                    return cached
                raise InputError(f"{missing}, and the Hub does not answer ({what_happened(error)})") from error
            raise InputError(_refusal(missing, name, repo_type, revision, error)) from error
    raise AssertionError("unreachable")


def _refusal(missing: str, name: str, repo_type: str, revision: str | None, error: Any) -> str:
    """One line on why the Hub refuses access to a repository."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    is_sent = get_token() is not None
    if isinstance(error, RevisionNotFoundError):
        return f"{name} has no revision {revision} on the Hub; give a branch, a tag or a commit of it"
    if isinstance(error, GatedRepoError):
        return f"{name} is gated: ask for access on its page, then set HF_TOKEN or run `hf auth login` ({what_happened(error)})"
    is_missing = isinstance(error, RepositoryNotFoundError) or error.response.status_code == 404
    if is_missing and not (is_sent and "credentials" in what_happened(error)):
        may = "this token may not read it" if is_sent else "it is private: set HF_TOKEN or run `hf auth login`"
        return f"{missing}, and the Hub has no {repo_type} of that name, or {may}"
    return f"{name} cannot be read: {what_happened(error)}"


def _similar_folder(name: str, repo_type: str) -> str:
    """` (did you mean ...?)` if there is a folder of a similar name. For a model, it must hold a model."""
    parent = Path(name).parent
    beside = [each.name for each in parent.iterdir() if each.is_dir()] if parent.is_dir() and os.access(parent, os.R_OK) else []
    if repo_type == "model":
        configs = ("config.json", "adapter_config.json", "model/config.json")
        beside = [each for each in beside if any((parent / each / config).is_file() for config in configs)]
    found = nearest(Path(name).name, beside)
    return f" (did you mean {parent / found}?)" if found else ""


def _cached_commit(name: str, repo_type: str, revision: str | None) -> str | None:
    """The commit of a revision in the caches here: of the Hub's client (branches, tags) and of `datasets` (commits)."""
    from datasets import config
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=repo_type)
    if revision and (folder / "snapshots" / revision).is_dir():
        return revision
    ref = folder / "refs" / (revision or "main")
    if ref.is_file():
        return ref.read_text().strip()
    prepared = Path(config.HF_DATASETS_CACHE, name.replace("/", "___")).glob("*/*/*") if repo_type == "dataset" else ()
    commits = [each for each in prepared if COMMIT.fullmatch(each.name) and revision in (None, each.name)]
    return max(commits, key=lambda each: each.stat().st_mtime).name if commits else None
