"""Models that are asked questions: a whole one as it is, a LoRA merged into its base."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sightsound.cli import InputError
from sightsound.data.sources import is_hub_id, shown_source
from sightsound.stage import fingerprint


def _read_adapter(model: str, revision: str | None = None) -> dict[str, Any] | None:
    """`adapter_config.json` of a local folder or a Hub model that is an adapter; None where it is none."""
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        file = find_adapter_config_file(model, revision=revision)
    except OSError:  # no such model: whoever loads it says so
        return None
    return None if file is None else json.loads(Path(file).read_text(encoding="utf-8"))


def load_generator(model: str, revision: str | None = None, base_model: str | None = None) -> tuple[Any, Any, str]:
    """
    A model that can be asked questions: a whole one, or a LoRA merged into its base.

    Args:
        model (`str`): Local folder or Hub id.
        revision (`str`, *optional*): Of the Hub model; or what `resolved_revision` gave, so that a LoRA's base is the same too.
        base_model (`str`, *optional*): Where the base of a LoRA is now, if the folder that it names is gone.

    Returns:
        `tuple`: The model, its processor, and what was loaded: a folder's fingerprint, a Hub model's commit.

    Raises:
        `InputError`: It cannot be loaded, has no chat template, or is a LoRA for another base.
    """
    import transformers

    revision, of_base = _split_revisions(model, revision)
    adapter = _read_adapter(model, revision)
    if adapter is None and base_model is not None:
        raise InputError(f"{model} is no adapter, and --base_model is the base of one; leave it out")
    source, of = (model, revision) if adapter is None else _base_of(model, adapter, base_model)
    of = of_base or of
    processor = load_processor(source, of)
    if getattr(processor, "chat_template", None) is None:
        told = "nothing says how it wants to be asked"
        raise InputError(f"{source} has no chat template, so {told}; give a chat model, or put its chat_template.jinja there")
    config = transformers.AutoConfig.from_pretrained(source, revision=of)
    architecture = getattr(transformers, (config.architectures or ["none"])[0], None)
    if architecture is None:
        told = f"transformers has no {', '.join(config.architectures or ['architecture named in its config'])}"
        raise InputError(f"{source} cannot be run in this process ({told}); serve it and give --base_url")
    with safetensors_only(source):
        loaded = architecture.from_pretrained(source, revision=of, dtype="auto", use_safetensors=True)
    # The commit that was loaded, which need not be the Hub's newest.
    told = (fingerprint(source) if Path(source).is_dir() else config._commit_hash) or ""
    if adapter is None:
        return loaded, processor, told
    merged, of_adapter = _merge_adapter(loaded, model, revision)
    return merged, processor, f"{of_adapter} on {shown_source(source)} {told}"


def _split_revisions(model: str, revision: str | None) -> tuple[str | None, str | None]:
    """Of the model and of a LoRA's base, from what `resolved_revision` gave; of a folder there is only the base's."""
    if Path(model).is_dir():
        return None, revision
    own, _, of_base = (revision or "").partition(" on ")
    return own or None, of_base or None


def resolved_revision(model: str, revision: str | None = None, base_model: str | None = None) -> str | None:
    """
    The commits that `load_generator` would load now: of a Hub model or a LoRA, and of a LoRA's base; None of what is a folder.

    Offline they are those in the cache. None too where there is no such model: whoever loads it says so.
    """
    found = [_commit_of(model, revision)]
    if (adapter := _read_adapter(model, revision)) is not None:
        found.append(_commit_of(*_base_of(model, adapter, base_model)))
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


def _base_of(model: str, adapter: dict[str, Any], base_model: str | None) -> tuple[str, str | None]:
    """The base of a LoRA, and its revision."""
    named = str(adapter.get("base_model_name_or_path"))
    is_gone = not Path(named).is_dir() and not is_hub_id(named)
    if base_model is None and is_gone:
        raise InputError(f"{model} is a LoRA on {named}, which is not there; give its base with --base_model")
    if base_model is None or same_model(base_model, named):
        return named, adapter.get("revision")
    if not Path(base_model).is_dir() and not is_hub_id(base_model):
        told = "there is no such folder, and it is no Hub id of a model (ORG/NAME)"
        raise InputError(f"--base_model {base_model}: {told}; give the base that {model} is a LoRA on, {named}")
    if is_gone:
        return base_model, None
    told = "or, if both are the same model, name that one in its adapter_config.json"
    raise InputError(f"{model} is a LoRA on {named}, and not on {base_model}; leave --base_model out, {told}")


def _merge_adapter(base: Any, adapter: str, revision: str | None) -> tuple[Any, str]:
    """A model with a LoRA merged into it, and what the LoRA is."""
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
    except ValueError as error:  # it has none of the layers
        raise InputError(f"{adapter} is a LoRA for another model than {base.name_or_path} ({error})") from error
    check_adapter_weights(adapted, folder)
    set_peft_model_state_dict(adapted, load_file(Path(folder) / "adapter_model.safetensors"))
    return adapted.merge_and_unload(), (fingerprint(folder) if is_local else Path(folder).name) or ""


@contextmanager
def safetensors_only(model: str) -> Iterator[None]:
    """
    For the loading of a model with `use_safetensors=True`: without it transformers would fall back to a pickle.

    Raises:
        `InputError`: The model has no weights in safetensors.
    """
    try:
        yield
    except OSError as error:
        if "safetensors" not in str(error):
            raise
        told = "weights are read from safetensors alone, since a pickle such as pytorch_model.bin can run any code"
        raise InputError(f"{model} has no model.safetensors: {told}; convert it, or give a revision that has one") from error


def load_processor(model: str, revision: str | None = None) -> Any:
    """
    The processor of a local folder or a Hub model.

    Raises:
        `InputError`: There is no such model, or it has no processor.
    """
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(model, revision=revision)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        told = f"expected a model folder or a Hub model id{meant_model(model)}"
        raise InputError(f"{model} cannot be loaded ({reason}); {told}") from error


def meant_model(folder: str | Path) -> str:
    """What an error about a folder without a model ends with, where a recipe has written one into it."""
    inner = Path(folder) / "model"
    return f"; did you mean {inner}?" if (inner / "config.json").is_file() else ""


def load_audio_processor(model: str, revision: str | None = None) -> Any:
    """
    The processor of an audio language model that is about to be trained, if the two belong together.

    Nothing but the config is read of the model: hours may pass before a wrong id in a batch is noticed, if it ever is.

    Raises:
        `InputError`: As for `load_processor`; the folder holds an adapter, no audio model, or another model's processor.
    """
    from transformers import AutoConfig

    if (Path(model) / "adapter_config.json").is_file():
        raise InputError(f"{model} is an adapter; give the merged model, which training writes beside it (model/)")
    processor = load_processor(model, revision)
    config = AutoConfig.from_pretrained(model, revision=revision)
    if not hasattr(config, "audio_config") or not hasattr(config, "audio_token_id"):
        raise InputError(f"{model} is a model of type {config.model_type}; expected an audio model like Qwen2-Audio")
    extractor = getattr(processor, "feature_extractor", None)
    if extractor is None:
        raise InputError(f"{model} has a {type(processor).__name__} and no processor for sound; save the model's own beside it")
    audio, tokenizer = config.audio_config, processor.tokenizer
    facts = {
        "id of the audio token": (tokenizer.convert_tokens_to_ids(processor.audio_token), config.audio_token_id),
        "mel bins": (extractor.feature_size, audio.num_mel_bins),
        "frames of a window": (extractor.nb_max_frames, 2 * audio.max_source_positions),  # its convolution takes every second
    }
    wrong = [f"{name}: {has}, the model's is {expected}" for name, (has, expected) in facts.items() if has != expected]
    if len(tokenizer) > config.text_config.vocab_size:
        wrong.append(f"tokens: {len(tokenizer)}, the model has {config.text_config.vocab_size}")
    if wrong:
        raise InputError(f"the processor in {model} is another model's ({'; '.join(wrong)}); save the model's own there")
    return processor


def check_adapter_weights(model: Any, checkpoint: str) -> None:
    """
    The part of `check_adapter_checkpoint` that looks at places and shapes.

    Raises:
        `InputError`: The folder holds no LoRA, or one of other places or shapes than the model's.
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
    """Whether two names are of one model: a folder's may be relative, or lead over a link."""
    resolved = [str(Path(name).resolve()) if Path(name).is_dir() else name for name in (one, other)]
    return resolved[0] == resolved[1]
