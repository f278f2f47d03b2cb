r"""
GRPO of the student, with the teacher's answer as label (paper, section 3.3, equation 2).

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/grpo.py \
        --config recipes/miniature/grpo_tts_agfv.yaml --traces corpus --audio avqa-audio \
        --model_name_or_path sft-tts_agfv/model --output_dir grpo-tts_agfv

Rewards: 1 when the answer is the teacher's, 1 for the format. `reward_funcs` and `reward_weights` select and weight functions
of `sightsound/method/rewards.py`. SFT may use all questions of an arm, and GRPO those that are not guessed without their clips:
`audio_contribution: strong`. `output_dir` then holds `model/`, `trainer_state.json` (the log) and `ledger.parquet` (every
selected question with its outcome). The best checkpoint, continuing a killed run and publishing work as in `sft.py`. Validation
questions are answered by the training processes, also where vLLM samples.

The reference model of the KL term (`beta`) is the model that training starts from. TRL loads it a second time from
`config._name_or_path`, which is `--model_name_or_path`. So give the merged `model/` that `sft.py` writes. Its `adapter/` is
refused: the reference would be the model before SFT. With `use_peft: true` no second model is loaded: the reference is the base
with the adapter turned off.
"""

from dataclasses import dataclass, field

from sightsound.cli import show_help_and_exit
from sightsound.method.rewards import PAPER_REWARDS
from sightsound.method.selection import ARMS
from sightsound.training.distributed import run_distributed
from sightsound.training.recipe import StudentArguments


@dataclass
class GRPOScriptArguments(StudentArguments):
    traces: str = field(metadata={"help": "the corpus: folder or Hub id with the config `traces`"})
    audio: str = field(metadata={"help": "avqa-audio: folder or Hub id"})
    selection: str = field(
        metadata={"help": f"arm with the questions: {', '.join(name for name, arm in ARMS.items() if arm.of_ledger)}"}
    )
    split: str = field(default="train", metadata={"help": "split of avqa-audio that the traces are about"})
    share_prompts: bool = field(default=True, metadata={"help": "compute each prompt once for all its completions"})
    reward_funcs: list[str] = field(
        default_factory=lambda: list(PAPER_REWARDS), metadata={"help": "functions of sightsound/method/rewards.py"}
    )
    freeze_audio_tower: bool = field(default=False, metadata={"help": "train projector and language model only"})


def main() -> None:
    show_help_and_exit(
        __doc__,
        GRPOScriptArguments,
        inherited="Also accepted: every field of trl.GRPOConfig; model and LoRA fields of trl.ModelConfig.",
    )
    from trl import GRPOConfig, ModelConfig

    from sightsound.method.prompts import COT_PROMPT
    from sightsound.method.rewards import find_rewards, no_reward_warning
    from sightsound.models.loading import load_audio_processor, safetensors_only
    from sightsound.training.audio_rows import audio_rows
    from sightsound.training.collator import CompletionCollator
    from sightsound.training.distributed import all_ranks_or_none, is_main_process, on_main_process
    from sightsound.training.grpo import AudioGRPOTrainer, check_fills_a_batch
    from sightsound.training.recipe import lora_config, model_init_kwargs, parse_config
    from sightsound.training.run import open_run
    from sightsound.training.validation import early_stopping, validation_set
    from sightsound.training.vllm_rollouts import check_rollouts

    script_args, training_args, model_args = parse_config((GRPOScriptArguments, GRPOConfig, ModelConfig))
    with all_ranks_or_none():
        reward_funcs = find_rewards(script_args.reward_funcs, training_args.reward_weights)
    # So that a run that was started before this field existed can be continued.
    not_recorded = ["reward_funcs"] if script_args.reward_funcs == list(PAPER_REWARDS) else []
    inputs = ("traces", "audio")
    with open_run(script_args, training_args, model_args, inputs=inputs, not_recorded=not_recorded) as training:
        if training.complete:
            return
        model = model_args.model_name_or_path
        with all_ranks_or_none():
            processor = load_audio_processor(model, model_args.model_revision)
        on_main_process(lambda: check_rollouts(training_args, model, model_args.model_revision))
        with all_ranks_or_none():
            lora = lora_config(model_args)
            dataset = audio_rows(script_args, CompletionCollator(processor), training.ledger, for_grpo=True)
            validation = validation_set(script_args, training_args, COT_PROMPT)
            check_fills_a_batch(len(dataset), training_args)
            training_args.model_init_kwargs = model_init_kwargs(model_args)
        # Apart from the block above, because under ZeRO-3 all processes load the model together.
        with all_ranks_or_none(), safetensors_only(model):
            trainer = AudioGRPOTrainer(
                model,
                reward_funcs=reward_funcs,
                args=training_args,
                train_dataset=dataset,
                validation=validation,
                callbacks=early_stopping(script_args),
                processing_class=processor,
                peft_config=lora,
                share_prompts=script_args.share_prompts,
                freeze_audio_tower=script_args.freeze_audio_tower,
            )
        trainer.train(resume_from_checkpoint=training.checkpoint)
        training.save_student(trainer, method="GRPO")
        training.finish()
        if is_main_process() and (warning := no_reward_warning(trainer.state.log_history)):
            print(warning)


if __name__ == "__main__":
    run_distributed(main)
