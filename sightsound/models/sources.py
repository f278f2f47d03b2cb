"""The model that a user names: a local folder, or a Hub id at one commit."""

from __future__ import annotations

from pathlib import Path

from sightsound.cli import InputError
from sightsound.hub.inputs import _commit_on_hub
from sightsound.models.adapters import base_of, read_adapter
from sightsound.stage import STAGE_FILE, is_complete, read_settings


def pin_model(
    flag: str, model: str, output_dir: str | Path | None = None, revision: str | None = None, base_model: str | None = None
) -> str | None:
    """
    The commits of a model that is to be loaded in this process, in the form of `resolved_revision`.

    Args:
        flag (`str`): The command-line flag that names the model, without `--`.
        output_dir (`str`, *optional*): Of the stage: a rerun loads the commits that its settings record as `model_commit`.
        revision (`str`, *optional*): Of a Hub model.
        base_model (`str`, *optional*): The base of a LoRA.

    Returns:
        `str` or `None`: None for a folder.

    Raises:
        `InputError`: It is neither a folder with a model nor a model of the Hub.
    """
    settings = (read_settings(Path(output_dir)) or {}) if output_dir is not None else {}
    if settings.get("model_commit") and settings.get(flag) == model:
        return str(settings["model_commit"])
    if Path(model).exists():
        check_model_folder(flag, Path(model))
    else:
        revision = _commit_on_hub(flag, model, "model", revision)
    return resolved_revision(model, revision, base_model)


def resolved_revision(model: str, revision: str | None = None, base_model: str | None = None) -> str | None:
    """
    The commits that `loading.load_generator` would load now: `COMMIT`, or `COMMIT on BASE_COMMIT` for a LoRA.

    Folders have no commit and are left out. Offline, the commits are those in the cache.

    Returns:
        `str` or `None`: None without any commit, also if there is no such model: loading it raises the error.
    """
    found = [_commit_of(model, revision)]
    if (adapter := read_adapter(model, revision)) is not None:
        found.append(_commit_of(*base_of(model, adapter, base_model)))
    return " on ".join(commit for commit in found if commit) or None


def _commit_of(model: str, revision: str | None) -> str | None:
    from transformers.utils.hub import cached_file, extract_commit_hash

    if Path(model).is_dir():
        return None
    for name in ("config.json", "adapter_config.json"):
        try:
            file = cached_file(model, name, revision=revision, _raise_exceptions_for_missing_entries=False)
        except OSError:
            return None
        if file is not None:
            return extract_commit_hash(file, None)
    return None


def check_model_folder(flag: str, folder: Path) -> None:
    """
    Raises:
        `InputError`: The path is no folder with a complete model.
    """
    if not folder.is_dir():
        raise InputError(f"--{flag} {folder} is a file; expected a model folder or a Hub model id")
    if (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
        return
    if (folder / "model" / "config.json").is_file():
        raise InputError(f"--{flag} {folder} holds no config.json; did you mean {folder / 'model'}?")
    if (folder / STAGE_FILE).is_file() and not is_complete(folder):
        raise InputError(f"--{flag} {folder} is not complete; rerun the stage that writes it")
    raise InputError(f"--{flag} {folder} is no model: it holds no config.json; expected a model folder or a Hub model id")
