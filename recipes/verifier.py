r"""
Train the small verifier, which replaces the checker where a verdict on every trace costs too much (paper, section 3.2).

    python dataset_builders/verdicts.py --dataset avqa-audio --traces traces --checker models/checker/model \
        --verdict_mode transcript --limit 1200 --output_dir calibration
    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/verifier.py \
        --config recipes/miniature/verifier.yaml --verdicts calibration --audio avqa-audio \
        --model_name_or_path models/student/model --output_dir verifier
    python dataset_builders/verdicts.py --dataset avqa-audio --traces traces --checker verifier/model --output_dir verdicts

The calibration set is a folder that verdicts.py wrote with the checker, here for 1,200 of the questions. Its clips are split by
hash: 60 % for training, 20 % to choose the threshold for `--target_precision`, 20 % held out for the figures on the card. See
`sightsound/training/verifier.py` for what a verifier is, and why it is not a classifier on CLAP embeddings.

`output_dir` then holds `model/` (a student checkpoint with the LoRA merged, the threshold and the figures in its
config.json, and a card), `trainer_state.json` (the log) and `ledger.parquet` (every calibration trace with its use).

With `--push_to_hub true --hub_model_id ORG/NAME [--hub_private_repo true]` the finished `model/` is published. A rerun of a
finished run publishes too.
"""

from dataclasses import asdict, dataclass, field

from sightsound.cli import InputError, run, show_help_and_exit


@dataclass
class VerifierScriptArguments:
    verdicts: str = field(metadata={"help": "calibration set: output of verdicts.py with the checker to imitate"})
    audio: str = field(metadata={"help": "avqa-audio: folder or Hub id"})
    split: str = field(default="train", metadata={"help": "split of avqa-audio that the traces are about"})
    max_clips: int | None = field(
        default=None, metadata={"help": "use at most this many calibration clips, drawn by their hash"}
    )
    target_precision: float = field(
        default=0.9,
        metadata={"help": "precision of accepted traces that the threshold must reach, against the checker's verdicts"},
    )
    nats_per_logit: float = field(
        default=3.0, metadata={"help": "increase of the evidence (nats) that multiplies the odds of acceptance by e"}
    )
    even_odds_nats: float = field(
        default=3.0, metadata={"help": "evidence at which acceptance and rejection are equally likely"}
    )


def main() -> None:
    show_help_and_exit(
        __doc__,
        VerifierScriptArguments,
        inherited="Also accepted: every field of transformers.TrainingArguments; model and LoRA fields of trl.ModelConfig.",
    )
    from peft import get_peft_model
    from transformers import TrainingArguments, set_seed
    from trl import ModelConfig

    from sightsound.data.kinds import CLIPS, VERDICTS, open_input
    from sightsound.data.parquet import AudioById, check_same_clips, write_ledger
    from sightsound.data.sources import shown_source
    from sightsound.method.prompts import CHECKER_TRANSCRIPT, PROMPT_VERSION
    from sightsound.models.loading import load_processor, safetensors_only, student_class
    from sightsound.training.audio_rows import join_audio
    from sightsound.training.calibration import calibrate, calibration_parts, use_of_traces
    from sightsound.training.card import count_outcomes, hardware, training_time, write_model_card
    from sightsound.training.checkpoints import save_checkpoint
    from sightsound.training.distributed import check_single_process
    from sightsound.training.recipe import lora_config, model_init_kwargs, parse_config
    from sightsound.training.run import open_run
    from sightsound.training.verifier import PairCollator, score
    from sightsound.training.verifier_trainer import VerifierTrainer

    script_args, training_args, model_args = parse_config((VerifierScriptArguments, TrainingArguments, ModelConfig))
    if not model_args.use_peft:
        raise InputError("the verifier is a LoRA on the language model: set use_peft: true")
    inputs = ("verdicts", "audio")
    with open_run(script_args, training_args, model_args, inputs=inputs, check_processes=check_single_process) as training:
        if training.complete:
            return
        verdicts = open_input(script_args.verdicts, "train", VERDICTS)
        if not any(verdicts["checker"]):
            raise InputError(f"{script_args.verdicts} holds no verdicts; give the output of verdicts.py")
        dataset = open_input(script_args.audio, script_args.split, CLIPS)
        check_same_clips(verdicts, dataset, f"split '{script_args.split}' of {script_args.audio}")
        audio = AudioById(dataset)
        parts = calibration_parts(verdicts, script_args.max_clips)
        write_ledger(use_of_traces(verdicts, parts), training.ledger)
        rows = {part: join_audio([asdict(each) for each in examples], audio) for part, examples in parts.items()}

        lora = lora_config(model_args)  # draws random numbers: before the seed
        set_seed(training_args.seed)
        processor = load_processor(model_args.model_name_or_path, model_args.model_revision)
        collator = PairCollator(processor, CHECKER_TRANSCRIPT)
        with safetensors_only(model_args.model_name_or_path):
            architecture = student_class(model_args.model_name_or_path, model_args.model_revision)
            base = architecture.from_pretrained(model_args.model_name_or_path, **model_init_kwargs(model_args))
        training_args.remove_unused_columns = False
        trainer = VerifierTrainer(
            model=get_peft_model(base, lora),
            args=training_args,
            train_dataset=rows["train"],
            data_collator=collator,
            processing_class=processor,
            nats_per_logit=script_args.nats_per_logit,
            even_odds_nats=script_args.even_odds_nats,
        )
        trainer.train(resume_from_checkpoint=training.checkpoint)
        trainer.save_state()
        model = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()

        size = training_args.per_device_eval_batch_size
        evidence = {
            part: score(model, collator, rows[part], batch_size=size, description=part) for part in ("threshold", "held_out")
        }
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
        save_checkpoint(model, processor, training.path / "model")
        write_model_card(
            training.path / "model",
            "verifier.md",
            base_revision=model_args.model_revision,
            relation="finetune",
            tags=["verifier"],
            sources={"verdicts": script_args.verdicts, "audio": script_args.audio},
            split=script_args.split,
            uses=count_outcomes(training.ledger)[0].most_common(),
            hardware=hardware(training_args),
            training_time=training_time(trainer.state),
            **verifier | {"base": model_args.model_name_or_path},
        )
        figures = {name: round(verifier["held_out"][name] or 0.0, 3) for name in ("precision", "recall")}
        print(f"accepts traces from p={verifier['threshold']:.4f}; held out: {figures}")
        training.finish()


if __name__ == "__main__":
    run(main)
