"""LoRA adapters: reading one, finding its base, checking its weights against a model, merging it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sightsound.cli import InputError
from sightsound.data.sources import is_hub_id
from sightsound.stage import fingerprint


def read_adapter(model: str, revision: str | None = None) -> dict[str, Any] | None:
    """`adapter_config.json` of a local folder or a Hub model; None if it is no adapter, or if there is no such model."""
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        file = find_adapter_config_file(model, revision=revision)
    except OSError:  # the error for a missing model is raised where it is loaded
        return None
    return None if file is None else json.loads(Path(file).read_text(encoding="utf-8"))


def base_of(model: str, adapter: dict[str, Any], base_model: str | None) -> tuple[str, str | None]:
    """
    The base model of a LoRA, and its revision.

    Args:
        model (`str`): The adapter, for error messages.
        adapter (`dict`): Of `read_adapter`.
        base_model (`str`, *optional*): Where the base is now, if the folder that the adapter names no longer exists.

    Raises:
        `InputError`: The base does not exist, or `base_model` is another model.
    """
    named = str(adapter.get("base_model_name_or_path"))
    is_gone = not Path(named).is_dir() and not is_hub_id(named)
    if base_model is None and is_gone:
        raise InputError(f"{model} is a LoRA on {named}, which is not there; give its base with --base_model")
    if base_model is None or same_model(base_model, named):
        return named, adapter.get("revision")
    if not Path(base_model).is_dir() and not is_hub_id(base_model):
        found = "there is no such folder, and it is no Hub id of a model (ORG/NAME)"
        raise InputError(f"--base_model {base_model}: {found}; give the base that {model} is a LoRA on, {named}")
    if is_gone:
        return base_model, None
    remedy = "leave --base_model out, or, if both are the same model, name that one in its adapter_config.json"
    raise InputError(f"{model} is a LoRA on {named}, and not on {base_model}; {remedy}")


def merge_adapter(base: Any, adapter: str, revision: str | None) -> tuple[Any, str]:
    """A model with a LoRA merged into it, and the LoRA's fingerprint (folder) or commit (Hub)."""
    from huggingface_hub import snapshot_download
    from peft import PeftConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    is_local = Path(adapter).is_dir()
    names = ["adapter_config.json", "adapter_model.safetensors"]
    folder = adapter if is_local else snapshot_download(adapter, revision=revision, allow_patterns=names)
    config = PeftConfig.from_pretrained(folder)
    config.base_model_name_or_path = base.name_or_path
    try:
        adapted = get_peft_model(base, config)
    except ValueError as error:  # the base has none of the layers
        raise InputError(f"{adapter} is a LoRA for another model than {base.name_or_path} ({error})") from error
    check_adapter_weights(adapted, folder)
    set_peft_model_state_dict(adapted, load_file(Path(folder) / "adapter_model.safetensors"))
    return adapted.merge_and_unload(), (fingerprint(folder) if is_local else Path(folder).name) or ""


def check_adapter_weights(model: Any, checkpoint: str) -> None:
    """
    Compare the names and shapes of a saved LoRA with those of a model that has one; PEFT would only warn.

    Raises:
        `InputError`: The folder holds no LoRA, or one with other names or shapes.
    """
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    file = Path(checkpoint) / "adapter_model.safetensors"
    if not file.is_file():
        raise InputError(f"{checkpoint} holds no LoRA; expected a checkpoint of a run with these LoRA settings")
    with safe_open(file, "pt") as saved:
        found = {name: tuple(saved.get_slice(name).get_shape()) for name in saved.keys()}  # noqa: SIM118 - no mapping
    expected = {name: tuple(weight.shape) for name, weight in get_peft_model_state_dict(model).items()}
    if found != expected:
        wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        raise InputError(
            f"{checkpoint} holds the LoRA of another model, or with other LoRA settings: {len(wrong)} weights differ (first: "
            f"{wrong[0]}, {found.get(wrong[0])} there, {expected.get(wrong[0])} here)"
        )


def same_model(one: str, other: str) -> bool:
    """Whether two names are of one model: a folder may be named by a relative path or through a link."""
    resolved = [str(Path(name).resolve()) if Path(name).is_dir() else name for name in (one, other)]
    return resolved[0] == resolved[1]
