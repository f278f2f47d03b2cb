"""
What a student family is: all that the project has to know about one kind of audio language model.

Each family is one module of this folder: it subclasses `StudentFamily` and names an instance `FAMILY`. Nothing else has to be
edited to add one. Loading, batches, training, checkpoints and vLLM look a family up by the `model_type` of a config or by the
class of a processor. A model that no module describes (any teacher, for one) is handled by `StudentFamily` itself.
"""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sightsound.data.schema import SAMPLING_RATE


if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

    from sightsound.data.frames import Frames


@dataclass(frozen=True)
class Licence:
    """
    The licence of released weights, as their card states it.

    Args:
        id (`str`): The Hub's identifier; `"other"` for one that the Hub does not list.
        name, link (`str`, *optional*): Of a licence that the Hub does not list.
        restriction (`str`, *optional*): What it forbids, in one sentence: shown before training and on the cards.
    """

    id: str
    name: str | None = None
    link: str | None = None
    restriction: str | None = None


@dataclass(eq=False)
class ClipFeatures:
    """
    What a model takes in of one clip. Rows about the same clip hold the same object, which is how they are recognized.

    Args:
        tensors (`tuple[torch.Tensor, ...]`): In the order of `StudentFamily.feature_names`. Usually the mel spectrogram
            `(num_mel_bins, frames)` and its mask `(frames,)`; of a family that cuts a clip into windows, of each window.
        num_tokens (`int`): Placeholder tokens of the clip in a prompt; 0 if it was read from a checkpoint, where prompts are
            tokenized already.
    """

    tensors: tuple[torch.Tensor, ...]
    num_tokens: int = 0


class StudentFamily:
    """
    The common case: a Whisper-like audio tower, a projector and a language model, as most audio models of transformers.

    Attributes:
        model_types (`tuple[str, ...]`): Values of `config.model_type`.
        processors (`tuple[str, ...]`): Class names of the processors.
        licenses (`dict[str, Licence]`): Licence of each released model, by Hub id, as its card says.
        architecture (`str`, *optional*): Class of transformers to load; None for the one that the config names.
        longest_clip_s (`float`): Seconds of a clip that the released models take in. It is for servers, which do not say it; of
            a model in this process, `window_s` reads it from the processor.
        trained_part (`str`, *optional*): What is loaded and trained of a checkpoint that holds more, for messages.
        feature_names (`tuple[str, ...]`): Arguments of the model's forward that hold a clip: first the features, then, where
            the model takes one, their mask.
        audio_tower, language_model (`str`): Paths of the modules in the model.
        never_trained (`tuple[str, ...]`): Paths of modules that are always frozen. By default the tower's sinusoidal positions,
            which are declared fixed in the model's class, a flag that `from_pretrained` loses.
        lora_target_modules (`str`): Regular expression for PEFT: the linear layers of the language model and nothing of the
            audio tower, whose adapters vLLM cannot serve. Recipes take it where their YAML names no modules.
        lora_exclude_modules (`str`, *optional*): Regular expression of what PEFT has to leave out beside it: of some mixtures
            of experts it reads only the last parts of the names that `lora_target_modules` matches.
        shares_prompts (`bool`): Whether a prompt may be packed with several completions under a mask of ours. Needs a decoder
            that takes 2-D positions and any mask; attention implementations are checked apart.
        expands_for_sampling (`bool`): Whether `generate` itself can repeat the media of a prompt for several samples. It
            repeats every row of every argument, which is wrong where a clip or a video has several rows.
        writes_tie_word_embeddings (`bool`): Whether a saved config says so when the output layer is not tied. transformers
            leaves the field out when it equals the class's default; vLLM then takes the text config's default, tied. False
            for families whose embeddings are tied.
        not_in_vllm (`str`, *optional*): Why vLLM cannot sample for this family, in one line.
        no_adapters_in_vllm (`str`, *optional*): Why vLLM cannot serve a LoRA of this family, in one line.
    """

    model_types: tuple[str, ...] = ()
    processors: tuple[str, ...] = ()
    licenses: ClassVar[dict[str, Licence]] = {}
    architecture: str | None = None
    longest_clip_s = 30.0
    trained_part: str | None = None
    feature_names: tuple[str, ...] = ("input_features", "feature_attention_mask")
    audio_tower = "model.audio_tower"
    language_model = "model.language_model"
    never_trained: tuple[str, ...] = ("model.audio_tower.embed_positions",)
    lora_target_modules = r".*language_model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"
    lora_exclude_modules: str | None = None
    shares_prompts = True
    expands_for_sampling = True
    writes_tie_word_embeddings = True
    not_in_vllm: str | None = None
    no_adapters_in_vllm: str | None = None

    # Loading

    def model_config(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """The config of the model that is trained: a part of the checkpoint's, where that describes more than one model."""
        return config

    def model_class(self, config: PreTrainedConfig) -> type[PreTrainedModel] | None:
        """The class that a checkpoint is loaded with; None where transformers has none of its name."""
        import transformers

        return getattr(transformers, self.architecture or (config.architectures or ["none"])[0], None)

    def processor_facts(self, config: PreTrainedConfig, processor: ProcessorMixin) -> dict[str, tuple[int, int]]:
        """What the processor has and what the model expects, by name: they differ if one is another model's."""
        extractor, audio = processor.feature_extractor, config.audio_config
        token = processor.tokenizer.convert_tokens_to_ids(processor.audio_token)
        return {
            "id of the audio token": (token, config.audio_token_id),
            "mel bins": (extractor.feature_size, audio.num_mel_bins),
            # The tower's second convolution has a stride of 2.
            "frames of a window": (extractor.nb_max_frames, 2 * audio.max_source_positions),
        }

    def processor_problem(self, processor: ProcessorMixin) -> str | None:
        """What a processor lacks to write prompts, and the remedy; None if nothing."""
        if getattr(processor, "chat_template", None) is not None:
            return None
        remedy = "give a chat model, or put its chat_template.jinja there"
        return f"has no chat template, which writes questions in the model's own format; {remedy}"

    # Prompts and clips

    def window_s(self, processor: ProcessorMixin) -> float | None:
        """Seconds of a clip that the model takes in: longer clips are cut. None if clips are not cut, or not taken at all."""
        extractor = getattr(processor, "feature_extractor", None)
        return float(extractor.chunk_length) if extractor is not None else None

    def placeholder(self, processor: ProcessorMixin) -> str:
        """The token that stands for a clip in a prompt: once in the chat template's text, then once per audio token."""
        return processor.audio_token

    def media_token_ids(self, config: PreTrainedConfig) -> list[int]:
        """The placeholders of all kinds of media. A sampled one would ask the next forward for a clip that is not there."""
        names = ("audio_token_id", "image_token_id", "video_token_id")
        return [token for token in (getattr(config, name, None) for name in names) if token is not None]

    def render(self, processor: ProcessorMixin, messages: Sequence[dict], *, for_answer: bool) -> str:
        """
        A conversation as the chat template writes it, with one placeholder per clip.

        Args:
            for_answer (`bool`): Open the assistant's turn at the end.
        """
        return processor.apply_chat_template(messages, add_generation_prompt=for_answer, tokenize=False)

    def end_of_turn(self, processor: ProcessorMixin) -> str:
        """What `render` writes after an assistant's text, without the newline, which a model never samples."""
        turn = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
        answered = [*turn, {"role": "assistant", "content": [{"type": "text", "text": "!"}]}]
        before = self.render(processor, turn, for_answer=True)
        return self.render(processor, answered, for_answer=False)[len(before) + 1 :].rstrip("\n")

    def tokenize(self, processor: ProcessorMixin, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts that `render` wrote, of parts of them, or of completions. Placeholders are not expanded."""
        return processor.tokenizer(list(texts), add_special_tokens=False)["input_ids"]

    def encode(
        self,
        processor: ProcessorMixin,
        texts: Sequence[str],
        *,
        audio: Sequence[np.ndarray] = (),
        videos: Sequence[Frames] = (),
        **options: Any,
    ) -> Any:
        """
        Prompts and their media to the model's arguments; without options `input_ids` are lists, unpadded.

        Args:
            texts (`Sequence[str]`): As `render` writes them, one placeholder per clip.
            audio (`Sequence[np.ndarray]`): Waveforms at 16 kHz, of the texts that have one, in order.
            videos (`Sequence[Frames]`): Likewise.
            options: Of the processor, such as `padding` and `return_tensors`.
        """
        # A processor drops arguments whose names it does not know (`audios`) without an error.
        if audio:
            options |= {"audio": list(audio), "sampling_rate": SAMPLING_RATE}
        if videos:
            options |= {"videos": [video.pixels for video in videos], "do_sample_frames": False}
            options["video_metadata"] = [video.metadata() for video in videos]
        return processor(text=list(texts), **options)

    def clip_features(self, processor: ProcessorMixin, waveform: np.ndarray) -> ClipFeatures:
        """The features of one clip, and how many tokens it takes in a prompt."""
        placeholder = self.placeholder(processor)
        encoded = self.encode(processor, [placeholder], audio=[waveform], return_tensors="pt")
        num_tokens = encoded["input_ids"][0].tolist().count(processor.tokenizer.convert_tokens_to_ids(placeholder))
        return ClipFeatures(tuple(encoded[name][0] for name in self.feature_names), num_tokens)

    def stack_features(self, clips: Sequence[ClipFeatures]) -> dict[str, torch.Tensor]:
        """The model's audio arguments for a batch with one clip per sequence."""
        import torch

        columns = zip(*(clip.tensors for clip in clips), strict=True)
        return {name: torch.stack(column) for name, column in zip(self.feature_names, columns, strict=True)}

    # The audio tower

    def audio_tower_of(self, model: Any) -> torch.nn.Module:
        """The audio tower of a model or of a LoRA on it."""
        return _base(model).get_submodule(self.audio_tower)

    def tower_rows(self, clip: ClipFeatures) -> int:
        """Rows of the tower's input that a clip takes."""
        return 1

    def count_rows(self, inputs: dict[str, torch.Tensor]) -> int:
        """Rows that a call of the tower encodes, from its arguments."""
        return len(inputs["input_features"])

    def select_clips(
        self, inputs: dict[str, torch.Tensor], clips: Sequence[ClipFeatures], chosen: Sequence[int]
    ) -> dict[str, torch.Tensor]:
        """
        Reduce the tower's arguments to some of the clips.

        Args:
            inputs (`dict`): Arguments of the tower's forward, by name.
            clips (`Sequence[ClipFeatures]`): Of all sequences of the batch, in order.
            chosen (`Sequence[int]`): Positions in `clips` of those to keep.
        """
        import torch

        rows = torch.tensor(_pieces([self.tower_rows(clip) for clip in clips], chosen))
        total = sum(self.tower_rows(clip) for clip in clips)
        # Masks too, whatever a family calls them: every tensor with a row per row of features.
        is_per_row = {name for name, value in inputs.items() if isinstance(value, torch.Tensor) and len(value) == total}
        return {name: value[rows.to(value.device)] if name in is_per_row else value for name, value in inputs.items()}

    def repeat_clips(self, output: torch.Tensor, clips: Sequence[ClipFeatures], order: Sequence[int]) -> torch.Tensor:
        """
        The tower's output for every sequence, from its output for some clips.

        Args:
            output (`torch.Tensor`): Of the tower, for `clips`.
            clips (`Sequence[ClipFeatures]`): That the tower has encoded.
            order (`Sequence[int]`): For each sequence of the batch, the position in `clips` of its clip.
        """
        import torch

        rows = torch.tensor(_pieces([self.tower_rows(clip) for clip in clips], order))
        return output[rows.to(output.device)]

    def freeze_fixed_parts(self, model: Any) -> None:
        """Exclude the modules of `never_trained` from training, where the model has them."""
        modules = dict(_base(model).named_modules())
        for name in self.never_trained:
            if name in modules:
                modules[name].requires_grad_(False)

    def in_language_model(self, module: str) -> bool:
        """Whether a module, by its path in the model, belongs to the language model."""
        return module.startswith(self.language_model + ".")

    # Checkpoints

    def released_key(self, key: str) -> str:
        """The name in released checkpoints of a weight that `save_pretrained` wrote as `key`."""
        return key

    def released_config(self, config: dict[str, Any]) -> dict[str, Any]:
        """The content of a `config.json` as released, which every engine reads alike, from what `save_pretrained` wrote."""
        if self.writes_tie_word_embeddings:
            config["tie_word_embeddings"] = bool(config.get("tie_word_embeddings", False))
        return config

    def repair_checkpoint(self, folder: Path) -> None:
        """Give what `save_pretrained` wrote the keys and the config of released checkpoints."""
        from safetensors.torch import load_file, save_file

        for file in folder.glob("*.safetensors"):
            weights = load_file(file)
            repaired = {self.released_key(key): weight for key, weight in weights.items()}
            if repaired.keys() != weights.keys():
                save_file(repaired, file, metadata={"format": "pt"})
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            content = json.loads(index.read_text())
            content["weight_map"] = {self.released_key(key): shard for key, shard in content["weight_map"].items()}
            index.write_text(json.dumps(content, indent=2))
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(self.released_config(config), indent=2) + "\n")

    # vLLM

    def vllm_name(self, name: str) -> str:
        """vLLM's name for the weight that transformers calls `name`; the same where vLLM's model maps names itself."""
        return name

    def register_in_vllm(self) -> None:
        """Called in each process of vLLM where the project is installed: the place to replace one of vLLM's models."""


def _pieces(lengths: Sequence[int], order: Sequence[int]) -> list[int]:
    """Positions in a sequence of pieces of these lengths, piece by piece in `order`."""
    starts = list(accumulate(lengths, initial=0))
    return [position for piece in order for position in range(starts[piece], starts[piece + 1])]


def _base(model: Any) -> PreTrainedModel:
    """A model without the LoRA around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def student_families() -> Iterator[StudentFamily]:
    """The `FAMILY` of each module of this folder."""
    from sightsound import models

    for found in pkgutil.iter_modules(models.__path__, f"{models.__name__}."):
        module = import_module(found.name)
        if hasattr(module, "FAMILY"):
            yield module.FAMILY


def family_of(config: PreTrainedConfig) -> StudentFamily:
    """The family that a model's config belongs to."""
    return next((family for family in student_families() if config.model_type in family.model_types), StudentFamily())


def family_of_processor(processor: ProcessorMixin) -> StudentFamily:
    """The family that a processor belongs to."""
    name = type(processor).__name__
    return next((family for family in student_families() if name in family.processors), StudentFamily())


def released_family(model: str) -> StudentFamily | None:
    """The family of a released model, by Hub id; None if no family has it."""
    return next((family for family in student_families() if model in family.licenses), None)


def released_licence(model: str) -> Licence | None:
    """The licence of a released model, by Hub id; None if no family has it, and its publisher has to look it up."""
    family = released_family(model)
    return family.licenses[model] if family else None


def register_in_vllm() -> None:
    """Entry point of vLLM's plugins, run in each of its processes."""
    for family in student_families():
        family.register_in_vllm()
