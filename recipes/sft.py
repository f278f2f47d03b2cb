r"""
Supervised fine-tuning of the student on one arm of the corpus (paper, section 3.3, equation 1).

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/sft.py \
        --config recipes/miniature/sft_tts_agfv.yaml --traces corpus --audio avqa-audio \
        --model_name_or_path models/student/model --output_dir sft-tts_agfv

LoRA on the language model only, loss on the completion only. Written to `output_dir`: `adapter/`, `model/` (the adapter
merged, what GRPO and the evaluation start from), `trainer_state.json` (the log) and `ledger.parquet` (every selected trace,
and what became of it). `selection: ground_truth` is the upper baseline: the annotated answers of `--audio`, and no `--traces`.

With `eval_strategy: steps`, validation questions are answered and graded every `eval_steps`, and `load_best_model_at_end: true`
ends with the best checkpoint. A killed run goes on with the same command. With `--push_to_hub true --hub_model_id ORG/NAME
[--hub_private_repo true]` the finished `model/` is published, and `adapter/` as ORG/NAME-adapter, also by a rerun.
"""

from dataclasses import asdict, dataclass, field

from sightsound.cli import run, show_help_and_exit
from sightsound.method.selection import ARMS
from sightsound.training.recipe import ValidationArguments


@dataclass
class SFTScriptArguments(ValidationArguments):
    audio: str = field(metadata={"help": "avqa-audio: folder or Hub id"})
    selection: str = field(metadata={"help": f"the arm: {'; '.join(f'{name}, {arm.meaning}' for name, arm in ARMS.items())}"})
    traces: str | None = field(
        default=None, metadata={"help": "the corpus: folder or Hub id with the config `traces`; not for ground_truth"}
    )
    split: str = field(default="train", metadata={"help": "split of avqa-audio that was traced"})


def main() -> None:
    show_help_and_exit(
        __doc__,
        SFTScriptArguments,
        inherited="Also accepted: every field of trl.SFTConfig; model and LoRA fields of trl.ModelConfig.",
    )
    from trl import ModelConfig, SFTConfig
    from trl.trainer.utils import create_model_from_path

    from sightsound.models.loading import load_audio_processor, safetensors_only, student_class
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
    from sightsound.training.sft import AudioSFTTrainer
    from sightsound.training.trained_on import write_trained_on

    with all_ranks_or_none():
        script_args, training_args, model_args = parse_config((SFTScriptArguments, SFTConfig, ModelConfig))
        publication = take_publication(training_args)
        refuse_another_launch_than_asked(training_args)
        check_unsupported_fields(training_args, model_args)
    commit = pin_inputs(script_args, model_args, training_args.output_dir, ("traces", "audio"))
    with all_ranks_or_none():
        settings = {**asdict(script_args), **training_settings(training_args), **asdict(model_args)}
        for name in ("traces", "audio", "model_name_or_path"):
            settings[name] = fingerprint(settings[name])
        settings |= {"base_chosen_by": chosen_by(model_args.model_name_or_path) or None, "model_commit": commit}
    model_args.model_revision = commit or model_args.model_revision
    with SharedStage(training_args.output_dir, settings) as stage:
        if stage.complete:
            if is_main_process():
                print(f"{stage.path} is complete")
                publication.publish_student(stage.path)
            return
        checkpoint = on_main_process(lambda: checkpoint_to_resume(training_args.resume_from_checkpoint, stage.path))
        with all_ranks_or_none():
            processor = load_audio_processor(model_args.model_name_or_path, model_args.model_revision)
            lora = lora_of(model_args)
            collator = CompletionCollator(processor, training_args.max_length)
            dataset = audio_rows(script_args, collator, stage.path / "ledger.parquet")
            validation = validation_of(script_args, training_args, ARMS[script_args.selection].prompt)
            training_args.remove_unused_columns = False
            training_args.dataset_kwargs = {"skip_prepare_dataset": True}
        # A part of its own: under ZeRO-3 processes load a model in step.
        with all_ranks_or_none(), safetensors_only(model_args.model_name_or_path):
            trainer = AudioSFTTrainer(
                model=create_model_from_path(
                    model_args.model_name_or_path,
                    student_class(model_args.model_name_or_path, model_args.model_revision),
                    revision=model_args.model_revision,
                    dtype=model_args.dtype,
                    attn_implementation=model_args.attn_implementation,
                    use_safetensors=True,
                    device_map=None,  # TRL's default would spread the model over all GPUs that a process sees
                ),
                args=training_args,
                train_dataset=dataset,
                eval_dataset=None if validation is None else validation.rows,
                callbacks=callbacks_of(script_args),
                processing_class=processor,
                data_collator=collator,
                peft_config=lora,
            )
        trainer.validation = validation
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_state()
        for folder in save_trained(trainer, stage.path):
            commit = trainer.model.config._commit_hash
            write_student_card(folder, "SFT", script_args, training_args, model_args, trainer.state, commit)
            used = count_outcomes(stage.path / "ledger.parquet")[1]["used"]
            write_trained_on(folder, script_args.audio, script_args.split, used, model_args.model_name_or_path)
        stage.finish()
        if is_main_process():
            publication.publish_student(stage.path)


if __name__ == "__main__":
    run(main)
