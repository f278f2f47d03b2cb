"""
Audio for TRL's GRPOTrainer: TRL 1.16 knows images only, and would score a policy that heard nothing without a word.

The trainer reads `prompt` (messages with string contents) and `audio` (an undecoded `datasets.Audio` cell) from each row.
Every clip is decoded and turned into features once per generation batch, travels as a per-row list of *references* (which
TRL's shuffling and splitting pass through unharmed), and runs through the audio tower once per group instead of once per
completion. Private methods of TRL are overridden: `trl` is pinned to 1.16.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel
from trl import GRPOTrainer
from trl.trainer.utils import create_model_from_path

from .checkpoints import FullWeightsResume
from .cli import InputError
from .media import decode_audio
from .prompt_sharing import pack, regroup, shared_prefill
from .prompts import with_audio
from .schema import SAMPLING_RATE
from .validation import BestByAccuracy


Features = tuple[torch.Tensor, torch.Tensor]  # of one clip: mel `(num_mel_bins, frames)`, its mask `(frames,)`


def stack_features(rows: Sequence[Features]) -> dict[str, torch.Tensor]:
    """The model's audio arguments for a batch: `(batch, num_mel_bins, frames)` and `(batch, frames)`."""
    return {
        "input_features": torch.stack([features for features, _ in rows]),
        "feature_attention_mask": torch.stack([mask for _, mask in rows]),
    }


class SharedTower:
    """
    Makes a model's `audio_tower` run once per distinct clip of a batch; outside `sharing` it runs as ever.

    The model prepares one row of features per sequence. Inside `sharing`, a hook hands the tower only the first row of each
    clip, and a second one gives every sequence its clip's output.
    """

    def __init__(self, model: torch.nn.Module):
        self.module = next(module for name, module in model.named_modules() if name.rsplit(".", 1)[-1] == "audio_tower")
        self.module.register_forward_pre_hook(self._reduce, with_kwargs=True)
        self.module.register_forward_hook(self._expand)
        self._first: torch.Tensor | None = None
        self._clip: torch.Tensor | None = None
        self.rows_encoded = 0

    @contextmanager
    def sharing(self, rows: Sequence[Features]) -> Iterator[None]:
        """Declare which clip each row of the next forward has: rows with the same tensor object share it."""
        positions: dict[int, int] = {}
        clip = [positions.setdefault(id(features), len(positions)) for features, _ in rows]
        device = rows[0][0].device
        self._first = torch.tensor([clip.index(position) for position in positions.values()], device=device)
        self._clip = torch.tensor(clip, device=device)
        try:
            yield
        finally:
            self._first = self._clip = None

    def _reduce(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        features = args[0] if args else kwargs.pop("input_features")
        if self._first is not None:
            features = features[self._first]
            if kwargs.get("attention_mask") is not None:
                kwargs["attention_mask"] = kwargs["attention_mask"][self._first]
        self.rows_encoded += len(features)
        return (features, *args[1:]), kwargs

    def _expand(self, _: Any, __: Any, output: Any) -> Any:
        if self._clip is not None:
            output.last_hidden_state = output.last_hidden_state[self._clip]
        return output


class AudioGRPOTrainer(BestByAccuracy, FullWeightsResume, GRPOTrainer):
    """
    `GRPOTrainer` for audio language models of the Qwen2-Audio kind.

    Args:
        model (`str`): Folder or Hub id. The reference model is loaded from there too, so a LoRA from SFT must have been
            merged into it.
        reward_funcs, args, train_dataset, processing_class, ...: As for `GRPOTrainer`; `processing_class` is a processor.

    Raises:
        `InputError`: vLLM rollouts are asked for: TRL would send the prompts without the clips.
    """

    def __init__(self, model: str, *, args: Any, share_prompts: bool = True, **kwargs: Any):
        if args.use_vllm:
            raise InputError("vLLM rollouts would not hear the clips with TRL 1.16; set use_vllm: false")
        policy = create_model_from_path(model, **(args.model_init_kwargs or {}))
        # The one image-only line of `GRPOTrainer.__init__` reads this to keep the placeholder from being sampled.
        policy.config.image_token_id = policy.config.audio_token_id
        try:
            super().__init__(policy, args=args, **kwargs)
        finally:
            del policy.config.image_token_id
        self.share_prompts = share_prompts
        self._audio: list[Features] = []  # of the rows being generated for or scored
        self._towers = {id(m): SharedTower(m) for m in (self.model, self.ref_model) if m is not None}

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:  # type: ignore[has-type]
            self._signature_columns = ["prompt", "audio"]

    def _tower_of(self, model: torch.nn.Module) -> SharedTower:
        return self._towers[id(self.accelerator.unwrap_model(model))]

    def _read_audio(self, cells: Sequence[dict[str, Any]]) -> list[Features]:
        """Features per row, one object per distinct clip (same bytes)."""
        extractor = self.processing_class.feature_extractor
        window_s = float(extractor.chunk_length)
        by_clip: dict[bytes, Features] = {}
        for cell in cells:
            if cell["bytes"] not in by_clip:
                waveform = decode_audio(cell, window_s).waveform
                mel = extractor(
                    waveform,
                    sampling_rate=SAMPLING_RATE,
                    padding="max_length",
                    return_attention_mask=True,
                    return_tensors="pt",
                ).to(self.accelerator.device)
                by_clip[cell["bytes"]] = (mel["input_features"][0], mel["attention_mask"][0])
        return [by_clip[cell["bytes"]] for cell in cells]

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self._buffered_inputs is before:
            return inputs
        self._buffered_inputs = regroup(self._buffered_inputs)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._audio = self._read_audio([row["audio"] for row in inputs])
        output = super()._generate_and_score_completions([{**r, "prompt": with_audio(r["prompt"])} for r in inputs])
        output["audio"] = self._audio
        return output

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, torch.Tensor]]:
        processor = self.processing_class
        texts = processor.apply_chat_template(prompts, tokenize=False, add_generation_prompt=True, **self.chat_template_kwargs)
        expanded = [
            text.replace(processor.audio_token, processor.audio_token * self._num_audio_tokens(mask))
            for text, (_, mask) in zip(texts, self._audio, strict=True)
        ]
        prompt_ids = processor.tokenizer(expanded, add_special_tokens=False)["input_ids"]
        return prompt_ids, None, stack_features(self._audio)

    def _num_audio_tokens(self, mask: torch.Tensor) -> int:
        """Tokens of a clip after the tower's convolution and pooling, as the model itself counts them."""
        return int(self._tower_of(self.model).module._get_feat_extract_output_lengths(mask.sum())[1])

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        if self.share_prompts:
            with shared_prefill(self.accelerator.unwrap_model(self.model), [id(mel) for mel, _ in self._audio]):
                return super()._generate_single_turn(*args, **kwargs)
        with self._tower_of(self.model).sharing(self._audio):
            return super()._generate_single_turn(*args, **kwargs)

    def _get_per_token_logps_and_entropies(
        self,
        model: torch.nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **kwargs: Any,
    ) -> Any:
        if self.share_prompts:
            return self._score_packed(model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy)
        # TRL scores the rows in order, in chunks: each chunk gets its clips. Image arguments are all None here.
        rows = iter(self._audio)

        def hearing_model(**inputs: Any) -> Any:
            chunk = [next(rows) for _ in range(len(inputs["input_ids"]))]
            with self._tower_of(model).sharing(chunk):
                return model(**inputs, **stack_features(chunk))

        return super()._get_per_token_logps_and_entropies(
            hearing_model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **kwargs
        )

    def _score_packed(
        self,
        model: torch.nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        completion_length: int,
        batch_size: int | None,
        compute_entropy: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        logps, entropies = [], []
        size = batch_size or len(input_ids)
        for start in range(0, len(input_ids), size):
            rows = slice(start, start + size)
            audio = self._audio[rows]
            packed = pack(input_ids[rows], attention_mask[rows], completion_length, [id(mel) for mel, _ in audio])
            with self.accelerator.autocast():
                output = model(**packed.inputs, **stack_features([audio[row] for row in packed.first]), fused_lm_head=True)
            logps.append(packed.unpack(output.log_probs))
            if compute_entropy:
                entropies.append(packed.unpack(output.entropy))
        return torch.cat(logps), torch.cat(entropies) if compute_entropy else None, None

    def _compute_loss(self, model: PreTrainedModel, inputs: dict[str, Any]) -> torch.Tensor:
        self._audio = inputs["audio"]
        return super()._compute_loss(model, inputs)
