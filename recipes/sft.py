r"""
Supervised fine-tuning of the student on one arm of the corpus (paper, section 3.3, equation 1).

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/sft.py \
        --config recipes/miniature/sft_tts_agfv.yaml --traces corpus --audio avqa-audio \
        --model_name_or_path models/student/model --output_dir sft-tts_agfv

A LoRA on the language model is trained, with the loss on the completion only. `output_dir` then holds `adapter/`, `model/` (the
adapter merged into the base: GRPO and the evaluation start from it), `trainer_state.json` (the log) and `ledger.parquet` (every
selected trace with its outcome). `selection: ground_truth` is the upper baseline: it trains on the annotated answers of
`--audio` and takes no `--traces`. With `audio_contribution: strong`, it trains only on questions that are not guessed
without their clips.

With `eval_strategy: steps`, validation questions are answered and graded every `eval_steps`, and `load_best_model_at_end: true`
keeps the best checkpoint. A killed run continues with the same command. With `--push_to_hub true --hub_model_id ORG/NAME
[--hub_private_repo true]` the finished `model/` is published, and `adapter/` as ORG/NAME-adapter. A rerun of a finished run
publishes too.
"""

from dataclasses import dataclass, field

from sightsound.cli import show_help_and_exit
from sightsound.method.selection import ARMS
from sightsound.training.distributed import run_distributed
from sightsound.training.recipe import StudentArguments


@dataclass
class SFTScriptArguments(StudentArguments):
    audio: str = field(metadata={"help": "avqa-audio: folder or Hub id"})
    selection: str = field(metadata={"help": f"the arm: {'; '.join(f'{name}, {arm.meaning}' for name, arm in ARMS.items())}"})
    traces: str | None = field(
        default=None, metadata={"help": "the corpus: folder or Hub id with the config `traces`; not for ground_truth"}
    )
    split: str = field(default="train", metadata={"help": "split of avqa-audio that the traces are about"})


def main() -> None:
    show_help_and_exit(
        __doc__,
        SFTScriptArguments,
        inherited="Also accepted: every field of trl.SFTConfig; model and LoRA fields of trl.ModelConfig.",
    )
    from trl import ModelConfig, SFTConfig
    from trl.trainer.utils import create_model_from_path

    from sightsound.models.loading import load_audio_processor, safetensors_only, student_class
    from sightsound.training.audio_rows import audio_rows
    from sightsound.training.collator import CompletionCollator
    from sightsound.training.distributed import all_ranks_or_none
    from sightsound.training.recipe import lora_config, model_init_kwargs, parse_config
    from sightsound.training.run import open_run
    from sightsound.training.sft import AudioSFTTrainer
    from sightsound.training.validation import early_stopping, validation_set

    script_args, training_args, model_args = parse_config((SFTScriptArguments, SFTConfig, ModelConfig))
    with open_run(script_args, training_args, model_args, inputs=("traces", "audio")) as training:
        if training.complete:
            return
        model = model_args.model_name_or_path
        with all_ranks_or_none():
            processor = load_audio_processor(model, model_args.model_revision)
            lora = lora_config(model_args)
            collator = CompletionCollator(processor, training_args.max_length)
            dataset = audio_rows(script_args, collator, training.ledger)
            validation = validation_set(script_args, training_args, ARMS[script_args.selection].prompt)
            training_args.remove_unused_columns = False
            training_args.dataset_kwargs = {"skip_prepare_dataset": True}
        # Apart from the block above, because under ZeRO-3 all processes load the model together.
        with all_ranks_or_none(), safetensors_only(model):
            trainer = AudioSFTTrainer(
                model=create_model_from_path(
                    model, student_class(model, model_args.model_revision), **model_init_kwargs(model_args)
                ),
                args=training_args,
                train_dataset=dataset,
                validation=validation,
                callbacks=early_stopping(script_args),
                processing_class=processor,
                data_collator=collator,
                peft_config=lora,
            )
        trainer.train(resume_from_checkpoint=training.checkpoint)
        training.save_student(trainer, method="SFT")
        training.finish()


if __name__ == "__main__":
    run_distributed(main)
