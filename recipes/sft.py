"""
Supervised fine-tuning of the student on one arm of the corpus (paper, section 3.3, equation 1).

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/sft.py \
        --config recipes/miniature/sft_tts_agfv.yaml --traces corpus --audio avqa-audio \
        --model_name_or_path models/student --output_dir sft-tts_agfv

LoRA on the language model only, loss on the completion only. Written to `output_dir`: `adapter/`, `model/` (the adapter
merged, what GRPO and the evaluation start from), `trainer_state.json` (the log) and `ledger.parquet` (every selected trace,
and what became of it).
"""

from dataclasses import asdict, dataclass, field

from sightsound.cli import run, show_help_and_exit
from sightsound.recipe import ValidationArguments


@dataclass
class SFTScriptArguments(ValidationArguments):
    traces: str = field(metadata={"help": "the corpus: folder or Hub id with the config `traces`"})
    audio: str = field(metadata={"help": "avqa-audio: folder or Hub id"})
    selection: str = field(metadata={"help": "the arm: label, cot, agfv, tts or tts_agfv"})
    split: str = field(default="train", metadata={"help": "split of avqa-audio that was traced"})


def main() -> None:
    show_help_and_exit(
        __doc__,
        SFTScriptArguments,
        inherited="Also accepted: every field of trl.SFTConfig; model and LoRA fields of trl.ModelConfig.",
    )
    from trl import ModelConfig, SFTConfig, get_peft_config
    from trl.trainer.utils import create_model_from_path

    from sightsound.checkpoints import last_complete_checkpoint, load_processor, save_checkpoint
    from sightsound.collator import CompletionCollator
    from sightsound.corpus import instruction_of
    from sightsound.journal import Stage, fingerprint
    from sightsound.recipe import (
        audio_rows,
        callbacks_of,
        parse_config,
        refuse_what_would_be_ignored,
        training_settings,
        validation_of,
    )
    from sightsound.sft_trainer import AudioSFTTrainer

    script_args, training_args, model_args = parse_config((SFTScriptArguments, SFTConfig, ModelConfig))
    refuse_what_would_be_ignored(training_args, model_args)
    settings = {**asdict(script_args), **training_settings(training_args), **asdict(model_args)}
    for name in ("traces", "audio", "model_name_or_path"):
        settings[name] = fingerprint(settings[name])
    with Stage(training_args.output_dir, settings) as stage:
        if stage.complete:
            print(f"{stage.path} is complete")
            return
        processor = load_processor(model_args.model_name_or_path, model_args.model_revision)
        collator = CompletionCollator(processor, training_args.max_length)
        dataset = audio_rows(script_args, collator, stage.path / "ledger.parquet")
        validation = validation_of(script_args, training_args, instruction_of(script_args.selection))
        training_args.remove_unused_columns = False
        training_args.dataset_kwargs = {"skip_prepare_dataset": True}
        trainer = AudioSFTTrainer(
            model=create_model_from_path(
                model_args.model_name_or_path,
                revision=model_args.model_revision,
                dtype=model_args.dtype,
                attn_implementation=model_args.attn_implementation,
            ),
            args=training_args,
            train_dataset=dataset,
            eval_dataset=None if validation is None else validation.rows,
            callbacks=callbacks_of(script_args),
            processing_class=processor,
            data_collator=collator,
            peft_config=get_peft_config(model_args),
        )
        trainer.validation = validation
        trainer.train(resume_from_checkpoint=last_complete_checkpoint(stage.path))
        trainer.save_state()
        model = trainer.accelerator.unwrap_model(trainer.model)
        if model_args.use_peft:
            model.save_pretrained(stage.path / "adapter")
            processor.save_pretrained(stage.path / "adapter")
            model = model.merge_and_unload()
        save_checkpoint(model, processor, stage.path / "model")
        stage.finish()


if __name__ == "__main__":
    run(main)
