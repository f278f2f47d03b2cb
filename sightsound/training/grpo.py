"""
Audio for TRL's GRPOTrainer: TRL 1.16 supports images only, and would silently score a policy without its audio.

The trainer reads `prompt` (messages with string contents) and `audio` (an undecoded `datasets.Audio` cell) from each row.
Each clip is decoded and turned into features once per generation batch. Rows hold *references* to the features of their clip,
which survive TRL's shuffling and splitting, and the audio tower encodes a clip once for all rows that have it. Private methods
of TRL are overridden: `trl` is pinned to 1.16.
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
from transformers import PreTrainedConfig, PreTrainedModel
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler, create_model_from_path

from sightsound.cli import InputError
from sightsound.data.audio import clip_key, decode_audio
from sightsound.engines.sampling import neutral_generation
from sightsound.method.prompts import with_audio
from sightsound.models.family import ClipFeatures, family_of
from sightsound.models.loading import student_class
from sightsound.training.checkpoints import FullWeightsResume
from sightsound.training.distributed import all_ranks_or_none
from sightsound.training.rollout_buffer import buffer_file, load_buffer, save_buffer
from sightsound.training.sharing.attention import use_packed_attention
from sightsound.training.sharing.clips import SharedTower
from sightsound.training.sharing.packing import pack, regroup, supports_custom_masks
from sightsound.training.sharing.sampling import shared_sampling
from sightsound.training.validation import BestByAccuracy
from sightsound.training.vllm_rollouts import audio_rollouts, check_rollouts, read_clips


logger = get_logger(__name__)

# A run is stopped after so many generation batches at its start in which no group has unequal rewards: that is not chance.
ZERO_ADVANTAGE_BATCHES = 10

CANNOT_SHARE = (
    "Each prompt is computed again for every completion, because attention %r does not accept a custom mask. "
    "Set attn_implementation: sdpa to compute it once."
)


def check_fills_a_batch(num_questions: int, args: GRPOConfig) -> None:
    """
    Check that there are enough questions for one generation batch: TRL drops what does not fill one, up to all of them.

    Raises:
        `InputError`: There are too few; the message names settings for which there are enough.
    """
    per_question = args.num_generations
    needed = args.generation_batch_size // per_question
    if num_questions >= needed:
        return
    names = ("per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation", "num_generations")
    settings = ", ".join(f"{name} {getattr(args, name)}" for name in names)
    processes = args.world_size
    remedy = _fitting_settings(num_questions, processes, args.per_device_train_batch_size, per_question)
    raise InputError(
        f"{num_questions} questions do not fill one batch of {needed} ({settings}, {processes} process(es)), and "
        f"TRL would train on none; {remedy}"
    )


def _fitting_settings(num_questions: int, processes: int, rows: int, per_question: int) -> str:
    """Settings for a step with as many questions as possible, with the largest device batch up to `rows`."""
    most = num_questions * per_question
    for batch in range(min(rows, most // processes), 0, -1):
        for steps in range(most // (processes * batch), 0, -1):
            if (processes * batch * steps) % per_question == 0:
                fitting = f"per_device_train_batch_size: {batch} and gradient_accumulation_steps: {steps}"
                others = "without steps_per_generation and generation_batch_size"
                return f"set {fitting} ({others}), or trace more questions"
    return f"start at most {most} processes (--num_processes), or trace more questions"


@contextmanager
def _with_image_token(config: PreTrainedConfig) -> Iterator[None]:
    """TRL reads `image_token_id` from the config of any model with a processor; inside the block there is one."""
    if hasattr(config, "image_token_id"):
        yield
        return
    config.image_token_id = config.audio_token_id
    try:
        yield
    finally:
        del config.image_token_id


class EpochSampler(RepeatSampler):
    """
    TRL's sampler, except that the order of an epoch depends on the seed and the epoch only.

    TRL draws the orders one after the other: a run resumed in its second epoch would get the order of the first.
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


class AudioGRPOTrainer(BestByAccuracy, FullWeightsResume, GRPOTrainer):
    """
    `GRPOTrainer` for audio language models.

    Args:
        model (`str`): Folder or Hub id. The reference model is loaded from there too, so a LoRA from SFT must have been
            merged into it.
        reward_funcs, args, train_dataset, processing_class, ...: As for `GRPOTrainer`; `processing_class` is a processor.
        share_prompts (`bool`): Compute each prompt once for all its completions (see `sharing.packing`). Where attention or
            the student's family cannot, a warning is logged and only the encoding of clips is shared.
        freeze_audio_tower (`bool`): Do not train the audio tower, only projector and language model.

    Logged beside TRL's metrics, as means over an optimizer step: `time/rollout_s` (sampling), `time/score_s` (rewards and
    log-probabilities under the old and the reference policy), `time/train_s` (forward and backward), and
    `audio_tower/rows_saved`: of the rows with a clip that this process sampled for or scored, those not encoded again.

    Raises:
        `InputError`: The engine that `args` asks for is not available (see `vllm_rollouts.check_rollouts`), or sampling or
            the loss that it asks for cannot work.
    """

    _step: int  # TRL's
    _buffered_inputs: Any

    def __init__(self, model: str, *, args: Any, share_prompts: bool = True, freeze_audio_tower: bool = False, **kwargs: Any):
        check_rollouts(args, model, (args.model_init_kwargs or {}).get("revision"))
        if args.distributed_state.distributed_type.value == "FSDP" and not args.use_vllm:
            # Each forward gathers weights from all processes, and their completions end at different steps.
            raise InputError(
                "sampling under FSDP would wait for ever; set use_vllm: true, or use accelerate_configs/zero3.yaml"
            )
        if args.router_aux_loss_coef:
            raise InputError(f"router_aux_loss_coef: {args.router_aux_loss_coef:g} is for SFT alone; leave it out of GRPO")
        if args.chat_template_kwargs:
            expected = "prompts are written as the evaluation writes them, without arguments of the chat template"
            raise InputError(f"chat_template_kwargs: {args.chat_template_kwargs}: {expected}; leave it out")
        # TRL's default, "auto", would spread policy and reference over all GPUs that a process sees.
        options = {"device_map": None, **(args.model_init_kwargs or {})}
        architecture = student_class(model, options.get("revision"))
        policy = create_model_from_path(model, architecture, **options)
        self._family = family_of(policy.config)
        self._family.freeze_fixed_parts(policy)
        if freeze_audio_tower:
            self._family.audio_tower_of(policy).requires_grad_(False)
        settings = args.generation_kwargs, args.model_init_kwargs
        if not args.use_vllm:  # rollouts with vLLM exclude them too, see `vllm_rollouts`
            never = self._family.media_token_ids(policy.config)
            others = args.generation_kwargs or {}
            args.generation_kwargs = {**others, "suppress_tokens": [*never, *(others.get("suppress_tokens") or ())]}
        args.model_init_kwargs = {**options, "architecture": architecture}  # TRL loads the reference model with them
        try:
            with audio_rollouts(policy, args), _with_image_token(policy.config):
                super().__init__(policy, args=args, **kwargs)
        finally:
            args.generation_kwargs, args.model_init_kwargs = settings  # as given: trackers log them, and no class can be logged
        # The load-balancing loss of a mixture of experts: not computed on packed rows.
        self.aux_loss_enabled = False
        self.share_prompts = share_prompts and self._family.shares_prompts and supports_custom_masks(policy)
        if share_prompts and not self._family.shares_prompts:
            reason = "Each prompt is computed again for every completion, because a %s cannot share it."
            logger.warning(reason, architecture.__name__)
        elif share_prompts and not self.share_prompts:
            logger.warning(CANNOT_SHARE, policy.config.get_text_config()._attn_implementation)
        self._audio: list[ClipFeatures] = []  # of the rows being generated for or scored
        self._cells: list[dict[str, Any]] = []  # their audio columns
        models = [self.accelerator.unwrap_model(m) for m in (self.model, self.ref_model) if m is not None]
        self._towers = {id(m): SharedTower(self._family.audio_tower_of(m), self._family) for m in models}
        if self.share_prompts:
            for each in models:
                use_packed_attention(each)
        self._spent: defaultdict[str, float] = defaultdict(float)  # in the current optimizer step: seconds by kind, and rows
        self._rows_encoded_before = 0
        self._zero_advantage_batches: int | None = 0  # None once a group had unequal rewards

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:  # type: ignore[has-type]
            self._signature_columns = ["prompt", "audio"]

    def _get_train_sampler(self, dataset: Any = None) -> EpochSampler:
        return EpochSampler(super()._get_train_sampler(dataset), epoch=lambda: int(self.state.epoch or 0))

    def _tower_of(self, model: torch.nn.Module) -> SharedTower:
        return self._towers[id(self.accelerator.unwrap_model(model))]

    def _read_audio(self, cells: Sequence[dict[str, Any]]) -> list[ClipFeatures]:
        """Features per row, one object per distinct clip (same bytes)."""
        by_clip: dict[bytes | str, ClipFeatures] = {}
        for cell in cells:
            if clip_key(cell) not in by_clip:
                waveform = decode_audio(cell, self._family.window_s(self.processing_class)).waveform
                clip = self._family.clip_features(self.processing_class, waveform)
                clip.tensors = tuple(tensor.to(self.accelerator.device) for tensor in clip.tensors)
                by_clip[clip_key(cell)] = clip
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
            with all_ranks_or_none():  # the metrics are equal in every process
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
            saved = self._spent.pop("rows_with_clips", 0) - (encoded - self._rows_encoded_before)
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
        # Evaluation does not count as time and rows of training.
        self._spent = spent
        self._rows_encoded_before += self._rows_encoded() - before
        return metrics

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        is_used_up = self._step % (self.args.steps_per_generation * self.num_iterations) == 0
        checkpoint = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        checkpoint.mkdir(parents=True, exist_ok=True)
        path = buffer_file(checkpoint, self.accelerator.process_index)
        save_buffer(path, self._step, [] if is_used_up else self._buffered_inputs)
        self.accelerator.wait_for_everyone()  # `trainer_state.json`, written next, marks the checkpoint as complete
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        if self.state.global_step >= ZERO_ADVANTAGE_BATCHES:
            self._zero_advantage_batches = None
        path = buffer_file(checkpoint, self.accelerator.process_index)
        if not path.is_file():
            raise InputError(f"{path} is missing: expected the number of processes that wrote {checkpoint}; resume with it")
        self._step, batches = load_buffer(path, self.accelerator.device)
        self._buffered_inputs = batches or None

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, torch.Tensor]]:
        processor = self.processing_class
        texts = [self._family.render(processor, prompt, for_answer=True) for prompt in prompts]
        placeholder = self._family.placeholder(processor)
        expanded = [
            text.replace(placeholder, placeholder * clip.num_tokens) for text, clip in zip(texts, self._audio, strict=True)
        ]
        # Where prompts are shared, `GroupDecoder` reads the clips from `_audio`.
        features = {} if self.share_prompts or self.use_vllm else self._family.stack_features(self._audio)
        return self._family.tokenize(processor, expanded), None, features

    def _generate_single_turn(self, prompt_ids: list[list[int]], images: None, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        if self.use_vllm:
            clips = read_clips(self._cells, self._family.window_s(self.processing_class))
            output = super()._generate_single_turn(prompt_ids, clips, *args, **kwargs)
            self._spent["rollout_s"] += time.perf_counter() - start
            return output
        self._spent["rows_with_clips"] += sum(map(self._family.tower_rows, self._audio))
        policy = self.accelerator.unwrap_model(self.model)
        with neutral_generation(policy, self.processing_class.tokenizer), ExitStack() as shared:
            if self.share_prompts:
                shared.enter_context(shared_sampling(policy, self._audio, self.eos_token_ids))
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
        self._spent["rows_with_clips"] += sum(map(self._family.tower_rows, self._audio))
        if self.share_prompts:
            return self._score_packed(model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy)
        # TRL scores the rows in order, in chunks, without media: each chunk gets its clips here.
        rows = iter(self._audio)

        def model_with_clips(**inputs: Any) -> Any:
            chunk = [next(rows) for _ in range(len(inputs["input_ids"]))]
            with self._tower_of(model).sharing(chunk):
                return model(**inputs, **self._family.stack_features(chunk))

        return super()._get_per_token_logps_and_entropies(
            model_with_clips, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **kwargs
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
            with self.accelerator.autocast():
                policy = self.accelerator.unwrap_model(model)
                packed = pack(policy, input_ids[rows], attention_mask[rows], completion_length, audio)
                features = self._family.stack_features([audio[row] for row in packed.first])
                output = model(**packed.inputs, **features, fused_lm_head=True)
            logps.append(packed.unpack(output.log_probs))
            if compute_entropy:
                entropies.append(packed.unpack(output.entropy))
        return torch.cat(logps), torch.cat(entropies) if compute_entropy else None, None

    def _compute_loss(self, model: PreTrainedModel, inputs: dict[str, Any]) -> torch.Tensor:
        self._audio = inputs["audio"]
        return super()._compute_loss(model, inputs)
