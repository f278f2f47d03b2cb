"""
Audio for TRL's GRPOTrainer: TRL 1.16 knows images only, and would score a policy that heard nothing without a word.

The trainer reads `prompt` (messages with string contents) and `audio` (an undecoded `datasets.Audio` cell) from each row.
Every clip is decoded and turned into features once per generation batch, travels as a per-row list of *references* (which
TRL's shuffling and splitting pass through unharmed), and runs through the audio tower once per group instead of once per
completion. Private methods of TRL are overridden: `trl` is pinned to 1.16.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from transformers import PreTrainedModel
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler, create_model_from_path

from sightsound.cli import InputError
from sightsound.data.audio import clip_key, decode_audio
from sightsound.data.schema import SAMPLING_RATE
from sightsound.engines.sampling import neutral_generation
from sightsound.method.prompts import with_audio
from sightsound.models.qwen2_audio import freeze_positions
from sightsound.training.checkpoints import FullWeightsResume
from sightsound.training.distributed import all_ranks_or_none
from sightsound.training.rollout_buffer import load_window, save_window, window_file
from sightsound.training.sharing.attention import use_packed_attention
from sightsound.training.sharing.packing import pack, regroup, supports_custom_masks
from sightsound.training.sharing.sampling import shared_sampling
from sightsound.training.validation import BestByAccuracy
from sightsound.training.vllm_rollouts import check_rollouts, hearing_rollouts, read_clips


logger = get_logger(__name__)

# Generation batches without any group of unequal rewards before a run is stopped: by then it is not chance.
ZERO_ADVANTAGE_BATCHES = 10

CANNOT_SHARE = (
    "Prompts are computed once for each completion: attention %r takes no mask that hides completions from each other. "
    "With attn_implementation: sdpa they are computed once for all."
)

Features = tuple[torch.Tensor, torch.Tensor]  # of one clip: mel `(num_mel_bins, frames)`, its mask `(frames,)`


def stack_features(rows: Sequence[Features]) -> dict[str, torch.Tensor]:
    """The model's audio arguments for a batch: `(batch, num_mel_bins, frames)` and `(batch, frames)`."""
    return {
        "input_features": torch.stack([features for features, _ in rows]),
        "feature_attention_mask": torch.stack([mask for _, mask in rows]),
    }


class EpochSampler(RepeatSampler):
    """
    TRL's sampler, with an order of each epoch that depends on the seed and the epoch only.

    TRL draws the orders one after the other: a run that was resumed in its second epoch would get the order of the first.
    """

    def __init__(self, sampler: RepeatSampler, epoch: Callable[[], int]):
        super().__init__(
            sampler.data_source,
            sampler.mini_repeat_count,
            sampler.batch_size,
            sampler.repeat_count,
            sampler.shuffle,
            sampler.seed,
        )
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed(self.seed + self._epoch())
        return super().__iter__()


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
        share_prompts (`bool`): Compute each prompt once for all its completions (see `prompt_sharing`), where the attention
            implementation can; else it is said once and each clip is shared only.
        freeze_audio_tower (`bool`): Leave the audio tower as it is; projector and language model are trained.

    Logged beside TRL's metrics, in the mean of an optimizer step: `time/rollout_s` (sampling), `time/score_s` (rewards and
    log-probabilities under the old and the reference policy), `time/train_s` (forward and backward), and
    `audio_tower/rows_saved` (clips that were not encoded again, of all that this process sampled for and scored).

    Raises:
        `InputError`: vLLM is to sample and is not there (see `vllm_rollouts.check_rollouts`).
    """

    _step: int  # TRL's
    _buffered_inputs: Any

    def __init__(self, model: str, *, args: Any, share_prompts: bool = True, freeze_audio_tower: bool = False, **kwargs: Any):
        check_rollouts(args, model)
        if args.distributed_state.distributed_type.value == "FSDP" and not args.use_vllm:
            # Each forward gathers weights from all processes, and their completions end at different steps.
            raise InputError(
                "sampling under FSDP would wait for ever; set use_vllm: true, or use accelerate_configs/zero3.yaml"
            )
        # TRL's default, "auto", would spread policy and reference over all GPUs that a process sees.
        args.model_init_kwargs = {"device_map": None, **(args.model_init_kwargs or {})}
        policy = create_model_from_path(model, **args.model_init_kwargs)
        freeze_positions(policy)
        if freeze_audio_tower:
            policy.model.audio_tower.requires_grad_(False)
        # The one image-only line of `GRPOTrainer.__init__` reads this to keep the placeholder from being sampled.
        policy.config.image_token_id = policy.config.audio_token_id
        try:
            with hearing_rollouts(policy, args):
                super().__init__(policy, args=args, **kwargs)
        finally:
            del policy.config.image_token_id
        self.share_prompts = share_prompts and supports_custom_masks(policy)
        if share_prompts > self.share_prompts:
            logger.warning(CANNOT_SHARE, policy.config.get_text_config()._attn_implementation)
        self._audio: list[Features] = []  # of the rows being generated for or scored
        self._cells: list[dict[str, Any]] = []  # their audio columns
        models = [self.accelerator.unwrap_model(m) for m in (self.model, self.ref_model) if m is not None]
        self._towers = {id(m): SharedTower(m) for m in models}
        if self.share_prompts:
            for each in models:
                use_packed_attention(each)
        self._spent: defaultdict[str, float] = defaultdict(float)  # of the current optimizer step: seconds by kind, and rows
        self._rows_encoded_before = 0
        self._zero_advantage_batches: int | None = 0  # None once a group had unequal rewards

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:  # type: ignore[has-type]
            self._signature_columns = ["prompt", "audio"]

    def _get_train_sampler(self, dataset: Any = None) -> EpochSampler:
        return EpochSampler(super()._get_train_sampler(dataset), epoch=lambda: int(self.state.epoch or 0))

    def _tower_of(self, model: torch.nn.Module) -> SharedTower:
        return self._towers[id(self.accelerator.unwrap_model(model))]

    def _read_audio(self, cells: Sequence[dict[str, Any]]) -> list[Features]:
        """Features per row, one object per distinct clip (same bytes)."""
        extractor = self.processing_class.feature_extractor
        window_s = float(extractor.chunk_length)
        by_clip: dict[bytes | str, Features] = {}
        for cell in cells:
            if clip_key(cell) not in by_clip:
                waveform = decode_audio(cell, window_s).waveform
                mel = extractor(
                    waveform,
                    sampling_rate=SAMPLING_RATE,
                    padding="max_length",
                    return_attention_mask=True,
                    return_tensors="pt",
                ).to(self.accelerator.device)
                by_clip[clip_key(cell)] = (mel["input_features"][0], mel["attention_mask"][0])
        return [by_clip[clip_key(cell)] for cell in cells]

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self._buffered_inputs is before:
            return inputs
        self._buffered_inputs = regroup(self._buffered_inputs)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        start, rollout_before = time.perf_counter(), self._spent["rollout_s"]
        self._cells = [row["audio"] for row in inputs]
        self._audio = self._read_audio(self._cells)
        output = super()._generate_and_score_completions([{**r, "prompt": with_audio(r["prompt"])} for r in inputs])
        output["audio"] = self._audio
        rollout_s = self._spent["rollout_s"] - rollout_before
        self._spent["score_s"] += time.perf_counter() - start - rollout_s
        self._stop_if_nothing_can_be_learned()
        return output

    def _stop_if_nothing_can_be_learned(self) -> None:
        if self._zero_advantage_batches is None or not self.model.training:
            return
        alike = self._metrics["train"]["frac_reward_zero_std"][-1] == 1.0
        self._zero_advantage_batches = self._zero_advantage_batches + 1 if alike else None
        if self._zero_advantage_batches == ZERO_ADVANTAGE_BATCHES:
            reward = self._metrics["train"]["reward"][-1]
            with all_ranks_or_none():  # every process finds the same
                raise InputError(
                    f"in each of the first {ZERO_ADVANTAGE_BATCHES} batches all completions of every prompt "
                    f"got equal rewards (mean {reward:.2f} in the last): there is nothing to learn from. Look at the "
                    "completions (log_completions: true); a higher temperature, a longer max_completion_length or a model "
                    "after SFT may help"
                )

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        start, before = time.perf_counter(), self._spent["rollout_s"] + self._spent["score_s"]
        loss = super().training_step(*args, **kwargs)
        sampled_s = self._spent["rollout_s"] + self._spent["score_s"] - before
        self._spent["train_s"] += time.perf_counter() - start - sampled_s
        if self._step % self.current_gradient_accumulation_steps == 0:
            encoded = self._rows_encoded()
            saved = self._spent.pop("rows_heard", 0) - (encoded - self._rows_encoded_before)
            self._rows_encoded_before = encoded
            self._metrics["train"]["audio_tower/rows_saved"].append(saved)
            for part in ("rollout_s", "score_s", "train_s"):
                self._metrics["train"][f"time/{part}"].append(self._spent.pop(part, 0.0))
        return loss

    def _rows_encoded(self) -> int:
        return sum(tower.rows_encoded for tower in self._towers.values())

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        before, spent = self._rows_encoded(), self._spent.copy()
        metrics = super().evaluate(*args, **kwargs)
        # What was spent and encoded here is not training's.
        self._spent = spent
        self._rows_encoded_before += self._rows_encoded() - before
        return metrics

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        is_used_up = self._step % (self.args.steps_per_generation * self.num_iterations) == 0
        checkpoint = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        checkpoint.mkdir(parents=True, exist_ok=True)
        path = window_file(checkpoint, self.accelerator.process_index)
        save_window(path, self._step, [] if is_used_up else self._buffered_inputs)
        self.accelerator.wait_for_everyone()  # `trainer_state.json`, written next, marks the checkpoint as whole
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        if self.state.global_step >= ZERO_ADVANTAGE_BATCHES:
            self._zero_advantage_batches = None
        path = window_file(checkpoint, self.accelerator.process_index)
        if not path.is_file():
            raise InputError(f"{path} is missing: expected the number of processes that wrote {checkpoint}; resume with it")
        self._step, batches = load_window(path, self.accelerator.device)
        self._buffered_inputs = batches or None

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

    def _generate_single_turn(self, prompt_ids: list[list[int]], images: None, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        if self.use_vllm:
            clips = read_clips(self._cells, float(self.processing_class.feature_extractor.chunk_length))
            output = super()._generate_single_turn(prompt_ids, clips, *args, **kwargs)
            self._spent["rollout_s"] += time.perf_counter() - start
            return output
        self._spent["rows_heard"] += len(self._audio)
        policy = self.accelerator.unwrap_model(self.model)
        with neutral_generation(policy, self.processing_class.tokenizer), ExitStack() as shared:
            if self.share_prompts:
                heard = [id(mel) for mel, _ in self._audio]
                shared.enter_context(shared_sampling(policy, heard, self.eos_token_ids))
                shared.enter_context(self.accelerator.autocast())
            else:
                shared.enter_context(self._tower_of(self.model).sharing(self._audio))
            output = super()._generate_single_turn(prompt_ids, images, *args, **kwargs)
        self._spent["rollout_s"] += time.perf_counter() - start
        return output

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
        self._spent["rows_heard"] += len(input_ids)
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
            heard = [id(mel) for mel, _ in audio]
            with self.accelerator.autocast():
                policy = self.accelerator.unwrap_model(model)
                packed = pack(policy, input_ids[rows], attention_mask[rows], completion_length, heard)
                output = model(**packed.inputs, **stack_features([audio[row] for row in packed.first]), fused_lm_head=True)
            logps.append(packed.unpack(output.log_probs))
            if compute_entropy:
                entropies.append(packed.unpack(output.entropy))
        return torch.cat(logps), torch.cat(entropies) if compute_entropy else None, None

    def _compute_loss(self, model: PreTrainedModel, inputs: dict[str, Any]) -> torch.Tensor:
        self._audio = inputs["audio"]
        return super()._compute_loss(model, inputs)
