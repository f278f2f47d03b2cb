r"""
Train the small verifier that takes the checker's place where every verdict costs money (paper, section 3.2).

    python dataset_builders/verdicts.py --dataset avqa-audio --traces traces --checker models/checker/model \
        --verdict_mode transcript --limit 1200 --output_dir calibration
    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/verifier.py \
        --config recipes/miniature/verifier.yaml --verdicts calibration --audio avqa-audio \
        --model_name_or_path models/student/model --output_dir verifier
    python dataset_builders/verdicts.py --dataset avqa-audio --traces traces --checker verifier/model --output_dir verdicts

With `--push_to_hub true --hub_model_id ORG/NAME [--hub_private_repo true]` the finished `model/` is published, also by a rerun.

The calibration set is what verdicts.py wrote with the checker, here for 1,200 of the questions. Its clips are split by hash:
60 % to train on, 20 % to choose the threshold for `--target_precision` on, 20 % held out for the figures on the card. What a
verifier is, and why not CLAP with a head: `sightsound/training/verifier.py`. Written to `output_dir`: `model/` (a student
checkpoint, LoRA merged, with the threshold and the figures in its config.json, and a card), `trainer_state.json` (the log) and
`ledger.parquet` (what each calibration trace was used for).
"""

from dataclasses import asdict, dataclass, field

from sightsound.cli import InputError, run, show_help_and_exit


@dataclass
class VerifierScriptArguments:
    verdicts: str = field(metadata={"help": "calibration set: output of verdicts.py with the checker to imitate"})
    audio: str = field(metadata={"help": "avqa-audio: folder or Hub id"})
    split: str = field(default="train", metadata={"help": "split of avqa-audio that was traced"})
    max_clips: int | None = field(default=None, metadata={"help": "calibrate on this many clips, drawn by their hash"})
    target_precision: float = field(default=0.9, metadata={"help": "of accepted traces, against the checker's verdicts"})
    nats_per_logit: float = field(default=3.0, metadata={"help": "evidence that moves the odds by a factor of e"})
    even_odds_nats: float = field(default=3.0, metadata={"help": "evidence at which training sees even odds"})


def main() -> None:
    show_help_and_exit(
        __doc__,
        VerifierScriptArguments,
        inherited="Also accepted: every field of transformers.TrainingArguments; model and LoRA fields of trl.ModelConfig.",
    )
    from peft import get_peft_model
    from transformers import TrainingArguments, set_seed
    from trl import ModelConfig, get_peft_config

    from sightsound.data import parquet
    from sightsound.data.kinds import CLIPS, VERDICTS, open_input
    from sightsound.data.sources import shown_source
    from sightsound.method.prompts import CHECKER_TRANSCRIPT, PROMPT_VERSION
    from sightsound.models.loading import load_processor, safetensors_only, student_class
    from sightsound.stage import Stage, fingerprint
    from sightsound.training.card import count_outcomes, hardware, training_time, write_model_card
    from sightsound.training.checkpoints import last_complete_checkpoint, save_checkpoint
    from sightsound.training.distributed import refuse_several_processes
    from sightsound.training.recipe import (
        check_unsupported_fields,
        parse_config,
        pin_inputs,
        take_publication,
        training_settings,
    )
    from sightsound.training.verifier import (
        ExamplesWithAudio,
        PairCollator,
        calibrate,
        calibration_parts,
        score,
        use_of_traces,
    )
    from sightsound.training.verifier_trainer import VerifierTrainer

    script_args, training_args, model_args = parse_config((VerifierScriptArguments, TrainingArguments, ModelConfig))
    publication = take_publication(training_args)
    refuse_several_processes(training_args)
    check_unsupported_fields(training_args, model_args)
    if not model_args.use_peft:
        raise InputError("the verifier is a LoRA on the language model: set use_peft and lora_target_modules")
    commit = pin_inputs(script_args, model_args, training_args.output_dir, ("verdicts", "audio"))
    settings = {**asdict(script_args), **training_settings(training_args), **asdict(model_args)}
    for name in ("verdicts", "audio", "model_name_or_path"):
        settings[name] = fingerprint(settings[name])
    settings["model_commit"] = commit
    model_args.model_revision = commit or model_args.model_revision
    with Stage(training_args.output_dir, settings) as stage:
        if stage.complete:
            print(f"{stage.path} is complete")
            publication.publish_model(stage.path / "model")
            return
        verdicts = open_input(script_args.verdicts, "train", VERDICTS)
        if not any(verdicts["checker"]):
            raise InputError(f"{script_args.verdicts} holds no verdicts; give the output of verdicts.py")
        dataset = open_input(script_args.audio, script_args.split, CLIPS)
        parquet.check_same_clips(verdicts, dataset, f"split '{script_args.split}' of {script_args.audio}")
        audio = parquet.AudioById(dataset)
        parts = calibration_parts(verdicts, script_args.max_clips)
        parquet.write_ledger(use_of_traces(verdicts, parts), stage.path / "ledger.parquet")
        rows = {part: ExamplesWithAudio(examples, audio) for part, examples in parts.items()}
        set_seed(training_args.seed)
        processor = load_processor(model_args.model_name_or_path, model_args.model_revision)
        collator = PairCollator(processor, CHECKER_TRANSCRIPT)
        with safetensors_only(model_args.model_name_or_path):
            base = student_class(model_args.model_name_or_path, model_args.model_revision).from_pretrained(
                model_args.model_name_or_path,
                revision=model_args.model_revision,
                dtype=model_args.dtype,
                attn_implementation=model_args.attn_implementation,
                use_safetensors=True,
            )
        training_args.remove_unused_columns = False
        trainer = VerifierTrainer(
            model=get_peft_model(base, get_peft_config(model_args)),
            args=training_args,
            train_dataset=rows["train"],
            data_collator=collator,
            processing_class=processor,
            nats_per_logit=script_args.nats_per_logit,
            even_odds_nats=script_args.even_odds_nats,
        )
        trainer.train(resume_from_checkpoint=last_complete_checkpoint(stage.path))
        trainer.save_state()
        model = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()

        size = training_args.per_device_eval_batch_size
        evidence = {part: score(model, collator, rows[part], size, part) for part in ("threshold", "held_out")}
        verifier = {
            **calibrate(evidence, parts, script_args.target_precision),
            "prompt": CHECKER_TRANSCRIPT,
            "prompt_version": PROMPT_VERSION,
            "checker": shown_source(verdicts[0]["checker"]),
            "checker_verdict_mode": verdicts[0]["verdict_mode"],
            "base": shown_source(model_args.model_name_or_path),
            "seed": training_args.seed,
        }
        model.config.verifier = verifier
        save_checkpoint(model, processor, stage.path / "model")
        write_model_card(
            stage.path / "model",
            "verifier.md",
            relation="finetune",
            tags=["verifier"],
            sources={"verdicts": script_args.verdicts, "audio": script_args.audio},
            split=script_args.split,
            uses=count_outcomes(stage.path / "ledger.parquet")[0].most_common(),
            hardware=hardware(training_args),
            training_time=training_time(trainer.state),
            **verifier | {"base": model_args.model_name_or_path},
        )
        told = {name: round(verifier["held_out"][name] or 0.0, 3) for name in ("precision", "recall")}
        print(f"accepts from p={verifier['threshold']:.4f} on; held out: {told}")
        stage.finish()
        publication.publish_model(stage.path / "model")


if __name__ == "__main__":
    run(main)
