"""Models and processors from a local folder or the Hub, and the checks before training starts from one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightsound.cli import InputError
from sightsound.data.sources import shown_source
from sightsound.models.adapters import base_of, merge_adapter, read_adapter
from sightsound.models.family import family_of, family_of_processor, student_families
from sightsound.stage import fingerprint


if TYPE_CHECKING:
    import numpy as np


def load_generator(model: str, revision: str | None = None, base_model: str | None = None) -> tuple[Any, Any, str]:
    """
    Load a chat model: a complete one, or a LoRA merged into its base.

    Args:
        model (`str`): Local folder or Hub id.
        revision (`str`, *optional*): Of a Hub model; or what `sources.resolved_revision` returned, which also pins a base.
        base_model (`str`, *optional*): Where the base of a LoRA is now, if the folder that it names no longer exists.

    Returns:
        `tuple`: The model, its processor, and what was loaded: a folder's fingerprint, a Hub model's commit.

    Raises:
        `InputError`: It cannot be loaded, has no chat template, or is a LoRA for another base.
    """
    from transformers import AutoConfig

    revision, base_revision = _split_revisions(model, revision)
    adapter = read_adapter(model, revision)
    if adapter is None and base_model is not None:
        raise InputError(f"{model} is no adapter, and --base_model is the base of one; leave it out")
    source, commit = (model, revision) if adapter is None else base_of(model, adapter, base_model)
    commit = base_revision or commit
    processor = load_processor(source, commit)
    _check_prompts(source, processor)
    config = AutoConfig.from_pretrained(source, revision=commit)
    architecture = family_of(config).model_class(config)
    if architecture is None:
        reason = f"transformers has no {', '.join(config.architectures or ['architecture named in its config'])}"
        raise InputError(f"{source} cannot be run in this process ({reason}); serve it and give --base_url")
    with safetensors_only(source):
        loaded = architecture.from_pretrained(source, revision=commit, dtype="auto", use_safetensors=True)
    # The commit that was loaded, which need not be the Hub's newest.
    identity = (fingerprint(source) if Path(source).is_dir() else config._commit_hash) or ""
    if adapter is None:
        return loaded, processor, identity
    merged, adapter_identity = merge_adapter(loaded, model, revision)
    return merged, processor, f"{adapter_identity} on {shown_source(source)} {identity}"


def clip_facts(model: str, revision: str | None = None) -> tuple[float | None, Callable[[np.ndarray], int]]:
    """
    What a model that `load_generator` would load takes in of clips, from its processor alone.

    Returns:
        `tuple`: Its window in seconds, None if clips are not cut; and what counts the tokens of a clip.
    """
    own, base_revision = _split_revisions(model, revision)
    adapter = read_adapter(model, own)
    source, commit = (model, own) if adapter is None else base_of(model, adapter, None)
    processor = load_processor(source, base_revision or commit)
    family = family_of_processor(processor)
    return family.window_s(processor), lambda waveform: family.clip_features(processor, waveform).num_tokens


def _split_revisions(model: str, revision: str | None) -> tuple[str | None, str | None]:
    """The commits of a model and of a LoRA's base in a result of `resolved_revision`, which has none for a folder."""
    if Path(model).is_dir():
        return None, revision
    own, _, base = (revision or "").partition(" on ")
    return own or None, base or None


@contextmanager
def safetensors_only(model: str) -> Iterator[None]:
    """
    For loading with `use_safetensors=True`: turns the error for a model that has only a pickle into an `InputError`.

    Raises:
        `InputError`: The model has no weights in safetensors.
    """
    try:
        yield
    except OSError as error:
        if "safetensors" not in str(error):
            raise
        reason = "weights are read from safetensors alone, since a pickle such as pytorch_model.bin can run any code"
        raise InputError(f"{model} has no model.safetensors: {reason}; convert it, or give a revision that has one") from error


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
        expected = f"expected a model folder or a Hub model id{meant_model(model)}"
        raise InputError(f"{model} cannot be loaded ({reason}); {expected}") from error


def _check_prompts(model: str, processor: Any) -> None:
    """Raise an `InputError` if the processor cannot write a prompt."""
    problem = family_of_processor(processor).processor_problem(processor)
    if problem is not None:
        raise InputError(f"{model} {problem}")


def meant_model(folder: str | Path) -> str:
    """The end of an error about a folder that holds no model itself, but the `model/` that a recipe has written."""
    inner = Path(folder) / "model"
    return f"; did you mean {inner}?" if (inner / "config.json").is_file() else ""


def student_class(model: str, revision: str | None = None) -> Any:
    """
    The class of transformers with which a student is loaded.

    Raises:
        `InputError`: transformers has no such class.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model, revision=revision)
    found = family_of(config).model_class(config)
    if found is None:
        raise InputError(f"{model}: transformers has no {(config.architectures or ['architecture of its config'])[0]}")
    return found


def load_audio_processor(model: str, revision: str | None = None) -> Any:
    """
    The processor of an audio language model that is to be trained, after a check that the two belong together.

    Only the model's config is read. Without the check a wrong token id in a batch would be noticed after hours, or never.

    Raises:
        `InputError`: As for `load_processor`; the folder holds an adapter, no audio model, or a processor
            that is another model's or cannot write prompts.
    """
    from transformers import AutoConfig

    if (Path(model) / "adapter_config.json").is_file():
        raise InputError(f"{model} is an adapter; give the merged model, which training writes beside it (model/)")
    processor = load_processor(model, revision)
    config = AutoConfig.from_pretrained(model, revision=revision)
    family = family_of(config)
    if not family.model_types:
        known = ", ".join(name for family in student_families() for name in family.model_types)
        raise InputError(f"{model} is a model of type {config.model_type}; expected an audio model, one of {known}")
    if type(processor).__name__ not in family.processors:
        expected = f"expected {' or '.join(family.processors)}"
        raise InputError(f"{model} has a {type(processor).__name__}; {expected}: save the model's own processor beside it")
    _check_prompts(model, processor)
    config = family.model_config(config)
    facts = family.processor_facts(config, processor)
    wrong = [f"{name}: {found}, the model's is {expected}" for name, (found, expected) in facts.items() if found != expected]
    vocabulary = config.get_text_config().vocab_size
    if len(processor.tokenizer) > vocabulary:
        wrong.append(f"tokens: {len(processor.tokenizer)}, the model has {vocabulary}")
    if wrong:
        raise InputError(f"the processor in {model} is another model's ({'; '.join(wrong)}); save the model's own there")
    return processor
