"""The model that a user names: a folder here, or a Hub id at one commit."""

from __future__ import annotations

from pathlib import Path

from sightsound.cli import InputError
from sightsound.hub.inputs import _commit_on_hub
from sightsound.stage import STAGE_FILE, is_complete, read_settings


def pin_model(
    flag: str, model: str, output_dir: str | Path | None = None, revision: str | None = None, base_model: str | None = None
) -> str | None:
    """
    The commits of a model that is about to be loaded in this process: what `generator.load_generator` takes as `revision`.

    Args:
        flag (`str`): Without `--`.
        output_dir (`str`, *optional*): Of the stage: a rerun loads the commits that are recorded there as `model_commit`.
        revision (`str`, *optional*): Of a Hub model.
        base_model (`str`, *optional*): The base of a LoRA.

    Returns:
        `str` or `None`: None of a folder.

    Raises:
        `InputError`: It is neither a folder with a model nor a model of the Hub.
    """
    from sightsound.models.loading import resolved_revision

    settings = (read_settings(Path(output_dir)) or {}) if output_dir is not None else {}
    if settings.get("model_commit") and settings.get(flag) == model:
        return str(settings["model_commit"])
    if Path(model).exists():
        check_model_folder(flag, Path(model))
    else:
        revision = _commit_on_hub(flag, model, "model", revision)
    return resolved_revision(model, revision, base_model)


def check_model_folder(flag: str, folder: Path) -> None:
    """
    Raises:
        `InputError`: The path holds no model that has been written to its end.
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
