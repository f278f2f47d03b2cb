r"""
GRPO of the student, with the teacher's answer as label (paper, section 3.3, equation 2).

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/grpo.py \
        --config recipes/miniature/grpo_tts_agfv.yaml --traces corpus --audio avqa-audio \
        --model_name_or_path sft-tts_agfv/model --output_dir grpo-tts_agfv

Rewards: 1 when the answer is the teacher's, 1 for the format; `reward_funcs` and `reward_weights` choose and weigh those of
`sightsound/method/rewards.py`. KL to the model that training starts from. Written to
`output_dir`: `model/`, `trainer_state.json` (the log) and `ledger.parquet` (every selected question). The best checkpoint,
going on after a kill, publishing: as in `sft.py`. Validation questions are answered in this process, also where vLLM samples.
"""

from dataclasses import asdict, dataclass, field

from sightsound.cli import run, show_help_and_exit
from sightsound.method.rewards import PAPER_REWARDS
from sightsound.method.selection import ARMS
from sightsound.training.recipe import ValidationArguments


@dataclass
class GRPOScriptArguments(ValidationArguments):
    traces: str = field(metadata={"help": "the corpus: folder or Hub id with the config `traces`"})
    audio: str = field(metadata={"help": "avqa-audio: folder or Hub id"})
    selection: str = field(
        metadata={"help": f"whose questions, one of the arms {', '.join(name for name, arm in ARMS.items() if arm.of_ledger)}"}
    )
    split: str = field(default="train", metadata={"help": "split of avqa-audio that was traced"})
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

    from sightsound.method.prompts import COT_INSTRUCTION
    from sightsound.method.rewards import find_rewards, no_reward_warning
    from sightsound.models.loading import load_audio_processor, safetensors_only
    from sightsound.stage import fingerprint
    from sightsound.training.card import chosen_by, count_outcomes, write_student_card
    from sightsound.training.checkpoints import checkpoint_to_resume
    from sightsound.training.collator import CompletionCollator
    from sightsound.training.distributed import (
        SharedStage,
        all_ranks_or_none,
        is_main_process,
        on_main_process,
        refuse_another_launch_than_asked,
        save_trained,
    )
    from sightsound.training.grpo import AudioGRPOTrainer, check_fills_a_batch
    from sightsound.training.recipe import (
        audio_rows,
        callbacks_of,
        check_unsupported_fields,
        lora_of,
        parse_config,
        pin_inputs,
        take_publication,
        training_settings,
        validation_of,
    )
    from sightsound.training.trained_on import write_trained_on
    from sightsound.training.vllm_rollouts import check_rollouts

    with all_ranks_or_none():
        script_args, training_args, model_args = parse_config((GRPOScriptArguments, GRPOConfig, ModelConfig))
        publication = take_publication(training_args)
        refuse_another_launch_than_asked(training_args)
        check_unsupported_fields(training_args, model_args)
        reward_funcs = find_rewards(script_args.reward_funcs, training_args.reward_weights)
    commit = pin_inputs(script_args, model_args, training_args.output_dir, ("traces", "audio"))
    with all_ranks_or_none():
        settings = {**asdict(script_args), **training_settings(training_args), **asdict(model_args)}
        for name in ("traces", "audio", "model_name_or_path"):
            settings[name] = fingerprint(settings[name])
        if script_args.reward_funcs == list(PAPER_REWARDS):
            del settings["reward_funcs"]  # so that a run that was started before this field existed can be resumed
        settings |= {"base_chosen_by": chosen_by(model_args.model_name_or_path) or None, "model_commit": commit}
    model_args.model_revision = commit or model_args.model_revision
    with SharedStage(training_args.output_dir, settings) as stage:
        if stage.complete:
            if is_main_process():
                print(f"{stage.path} is complete")
                publication.publish_student(stage.path)
            return
        checkpoint = on_main_process(lambda: checkpoint_to_resume(training_args.resume_from_checkpoint, stage.path))
        on_main_process(lambda: check_rollouts(training_args, model_args.model_name_or_path))
        with all_ranks_or_none():
            processor = load_audio_processor(model_args.model_name_or_path, model_args.model_revision)
            lora = lora_of(model_args)
            dataset = audio_rows(
                script_args, CompletionCollator(processor), stage.path / "ledger.parquet", samples_its_own=True
            )
            validation = validation_of(script_args, training_args, COT_INSTRUCTION)
            check_fills_a_batch(len(dataset), training_args)
            training_args.model_init_kwargs = {
                "revision": model_args.model_revision,
                "dtype": model_args.dtype,
                "attn_implementation": model_args.attn_implementation,
                "use_safetensors": True,
            }
        # A part of its own: under ZeRO-3 processes load a model in step.
        with all_ranks_or_none(), safetensors_only(model_args.model_name_or_path):
            trainer = AudioGRPOTrainer(
                model_args.model_name_or_path,
                reward_funcs=reward_funcs,
                args=training_args,
                train_dataset=dataset,
                eval_dataset=None if validation is None else validation.rows,
                callbacks=callbacks_of(script_args),
                processing_class=processor,
                peft_config=lora,
                share_prompts=script_args.share_prompts,
                freeze_audio_tower=script_args.freeze_audio_tower,
            )
        trainer.validation = validation
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_state()
        for folder in save_trained(trainer, stage.path):
            commit = trainer.model.config._commit_hash
            write_student_card(folder, "GRPO", script_args, training_args, model_args, trainer.state, commit)
            used = count_outcomes(stage.path / "ledger.parquet")[1]["used"]
            write_trained_on(folder, script_args.audio, script_args.split, used, model_args.model_name_or_path)
        stage.finish()
        if is_main_process():
            publication.publish_student(stage.path)
            if warning := no_reward_warning(trainer.state.log_history):
                print(warning)


if __name__ == "__main__":
    run(main)
