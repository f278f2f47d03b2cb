r"""
Train a model of the miniature: the student and the teacher from random weights, the checker from the student.

    python recipes/miniature/pretrain.py --config recipes/miniature/student.yaml \
        --world outputs/miniature/seed-0/world --output_dir outputs/miniature/seed-0/models/student

The architectures are those of the real models, with a few hundred thousand parameters. A student is of the family that
`--family` names; the checker is a Qwen2-Audio. The result is an ordinary checkpoint for `from_pretrained`, with processor and
chat template.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sightsound.cli import InputError, run, show_help_and_exit


TOKENIZER = Path(__file__).parent / "tokenizer"
HOP_LENGTH = 320  # samples; two seconds give 100 mel frames and 25 audio tokens
WINDOW_S = 2
TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": None,
    "initializer_range": 0.05,
    "tie_word_embeddings": False,
}


SIDE = 56  # pixels of a frame
VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_heads": 4,
    "patch_size": 14,
    "window_size": 112,
    "out_hidden_size": TEXT["hidden_size"],
    "fullatt_block_indexes": [1],
    "tokens_per_second": 2,
    "initializer_range": 0.05,
}


def make_qwen2_audio() -> tuple[Any, Any]:
    """A Qwen2-Audio with random weights, and its processor."""
    import torch
    from transformers import (
        AutoTokenizer,
        Qwen2AudioConfig,
        Qwen2AudioForConditionalGeneration,
        Qwen2AudioProcessor,
        WhisperFeatureExtractor,
    )

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    audio_id = tokenizer.convert_tokens_to_ids("<|AUDIO|>")
    width, positions = TEXT["hidden_size"], WINDOW_S * 16_000 // HOP_LENGTH // 2
    audio = {"d_model": width, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 128}
    ids = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = Qwen2AudioConfig(
        audio_config={
            "model_type": "qwen2_audio_encoder",
            "max_source_positions": positions,
            "num_mel_bins": 128,
            **audio,
        },
        text_config={"model_type": "qwen2", **TEXT, **ids},
        audio_token_index=audio_id,
    )
    model = Qwen2AudioForConditionalGeneration(config)
    # Whisper's sinusoids: an encoder with random weights needs them to represent order. Halved, because at full size they are
    # much larger than the features of an encoder this narrow. They stay frozen, as in the real model.
    rates = torch.exp(-math.log(10_000) / (width // 2 - 1) * torch.arange(width // 2))
    angles = torch.arange(positions)[:, None] * rates[None]
    model.model.audio_tower.embed_positions.weight.data = 0.5 * torch.cat([angles.sin(), angles.cos()], dim=1)
    extractor = WhisperFeatureExtractor(feature_size=128, hop_length=HOP_LENGTH, chunk_length=WINDOW_S, n_fft=400)
    return model, Qwen2AudioProcessor(feature_extractor=extractor, tokenizer=tokenizer)


# Qwen2.5-Omni's own template, without images and tools.
OMNI_TEMPLATE = """{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] -%}
{% if part['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>
{%- elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif -%}
{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def make_omni() -> tuple[Any, Any]:
    """The thinker of a Qwen2.5-Omni with random weights, and its processor."""
    from transformers import (
        AutoTokenizer,
        Qwen2_5OmniProcessor,
        Qwen2_5OmniThinkerConfig,
        Qwen2_5OmniThinkerForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
        WhisperFeatureExtractor,
    )

    names = {
        "audio_token": "<|AUDIO|>",
        "audio_bos_token": "<|audio_bos|>",
        "audio_eos_token": "<|audio_eos|>",
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "vision_bos_token": "<|vision_start|>",
        "vision_eos_token": "<|vision_end|>",
    }
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER, extra_special_tokens=names)
    token = {name: tokenizer.convert_tokens_to_ids(text) for name, text in names.items()}
    width = TEXT["hidden_size"]
    ids = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10_000.0}
    config = Qwen2_5OmniThinkerConfig(
        audio_config={
            "d_model": width,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "num_mel_bins": 128,
            "n_window": WINDOW_S * 16_000 // HOP_LENGTH // 2,  # the tower attends within parts of two seconds, as the real one
            "max_source_positions": 1500,
            "output_dim": width,
            "initializer_range": 0.05,
        },
        # Positions per second of a video: transformers reads `position_id_per_seconds`, 25, and vLLM this one.
        vision_config={**VISION, "tokens_per_second": 25},
        text_config={**TEXT, **ids, "rope_parameters": rope},
        audio_token_index=token["audio_token"],
        audio_start_token_id=token["audio_bos_token"],
        audio_end_token_id=token["audio_eos_token"],
        image_token_index=token["image_token"],
        video_token_index=token["video_token"],
        vision_start_token_id=token["vision_bos_token"],
        vision_end_token_id=token["vision_eos_token"],
        tie_word_embeddings=False,
    )
    image, video = (
        {"shortest_edge": SIDE * SIDE, "longest_edge": SIDE * SIDE},
        {"shortest_edge": SIDE * SIDE, "longest_edge": SIDE * SIDE * 6},
    )
    processor = Qwen2_5OmniProcessor(
        image_processor=Qwen2VLImageProcessor(size=image),
        video_processor=Qwen2VLVideoProcessor(size=video, do_sample_frames=False),
        feature_extractor=WhisperFeatureExtractor(feature_size=128, hop_length=HOP_LENGTH, chunk_length=300, n_fft=400),
        tokenizer=tokenizer,
        chat_template=OMNI_TEMPLATE,
    )
    model = Qwen2_5OmniThinkerForConditionalGeneration(config)
    # The sinusoids of this tower are no weights and keep their full size. The features are raised instead.
    for convolution in (model.audio_tower.conv1, model.audio_tower.conv2):
        convolution.weight.data *= 3
    return model, processor


# Qwen2.5-VL's own template, without images and tools.
VIDEO_TEMPLATE = """{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}<|im_start|>{{ message['role'] }}
{% for part in message['content'] -%}
{% if part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif -%}
{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def make_teacher() -> tuple[Any, Any]:
    """A Qwen2.5-VL with random weights, and its processor."""
    from transformers import (
        AutoTokenizer,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    special = {
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
    }
    ids = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10_000.0}
    config = Qwen2_5_VLConfig(
        text_config={**TEXT, **ids, "rope_parameters": rope},
        vision_config=VISION,
        **{name: tokenizer.convert_tokens_to_ids(token) for name, token in special.items()},
    )
    frames = {"shortest_edge": SIDE * SIDE, "longest_edge": SIDE * SIDE * 6}
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size={"shortest_edge": SIDE * SIDE, "longest_edge": SIDE * SIDE}),
        video_processor=Qwen2VLVideoProcessor(size=frames, do_sample_frames=False),
        tokenizer=tokenizer,
        chat_template=VIDEO_TEMPLATE,
    )
    return Qwen2_5_VLForConditionalGeneration(config), processor


STUDENTS = {"qwen2_audio": make_qwen2_audio, "qwen2_5_omni": make_omni}


def make_student(family: str = "qwen2_audio") -> tuple[Any, Any]:
    """A student of a family with random weights, and its processor."""
    return STUDENTS[family]()


@dataclass
class PretrainArguments:
    world: str = field(metadata={"help": "folder written by dataset_builders/miniature.py"})
    model: str = field(
        metadata={
            "help": "the model to train; a writing teacher also learns to write questions",
            "choices": ["student", "teacher", "writing_teacher", "checker"],
        }
    )
    family: str = field(default="qwen2_audio", metadata={"help": "family of a student", "choices": list(STUDENTS)})
    init_from: str | None = field(default=None, metadata={"help": "checkpoint to start from instead of random weights"})


def load_rows(world: Path, name: str) -> list[dict[str, Any]]:
    """Pretraining rows as the collator takes them. The videos are tiny and are decoded here, once."""
    from sightsound.data.frames import load_frames
    from sightsound.data.parquet import open_dataset

    folder = world / "pretraining" / name
    if not folder.is_dir():
        raise InputError(f"{world} has no pretraining/{name}: it is of an earlier version; delete it and make it again")
    rows = list(open_dataset(str(folder), "train"))
    for row in rows:
        row["prompt"] = [{"role": "user", "content": row["prompt"]}]
    if name in ("teacher", "questions"):
        paths = {row["video"] for row in rows if row["video"] is not None}
        frames = {p: load_frames(str(folder / p), num_frames=6, max_pixels=SIDE * SIDE) for p in paths}
        return [{**row, "video": frames.get(row["video"])} for row in rows]
    return rows


def alternate(pools: Sequence[np.ndarray], args: Any) -> Iterator[int]:
    """
    Row numbers of all micro-batches. In each optimizer step one is from each pool but the last, and the others from the last.

    Captions are half as long as chains of thought. Micro-batches of one kind need less padding, and every step has all kinds.
    """
    generator = np.random.default_rng(args.seed)
    waiting: list[list[int]] = [[] for _ in pools]
    for micro_batch in range(args.max_steps * args.gradient_accumulation_steps):
        which = min(micro_batch % args.gradient_accumulation_steps, len(pools) - 1)
        while len(waiting[which]) < args.train_batch_size:
            waiting[which].extend(generator.permutation(pools[which]).tolist())
        yield from waiting[which][: args.train_batch_size]
        del waiting[which][: args.train_batch_size]


def main() -> None:
    show_help_and_exit(__doc__, PretrainArguments, inherited="Every field of transformers.TrainingArguments is accepted too.")
    from transformers import (
        AutoProcessor,
        GenerationConfig,
        Qwen2AudioForConditionalGeneration,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    from sightsound.stage import Stage, fingerprint
    from sightsound.training.checkpoints import FullWeightsResume, last_complete_checkpoint, save_checkpoint
    from sightsound.training.collator import CompletionCollator
    from sightsound.training.recipe import parse_config
    from sightsound.training.run import training_settings

    class PretrainTrainer(FullWeightsResume, Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> list[int]:
            return list(alternate(pools, self.args))

    script_args, training_args = parse_config((PretrainArguments, TrainingArguments))
    settings = {**asdict(script_args), **training_settings(training_args)}
    settings |= {"world": fingerprint(script_args.world), "init_from": fingerprint(script_args.init_from)}
    with Stage(training_args.output_dir, settings) as stage:
        if stage.complete:
            print(f"{stage.path} is complete")
            return
        set_seed(training_args.seed)
        writes_questions = script_args.model == "writing_teacher"
        if script_args.model == "checker":
            if script_args.init_from is None:
                raise InputError("the checker is trained from the student: give its model/ folder with --init_from")
            model = Qwen2AudioForConditionalGeneration.from_pretrained(script_args.init_from, use_safetensors=True)
            processor = AutoProcessor.from_pretrained(script_args.init_from)
        else:
            model, processor = make_student(script_args.family) if script_args.model == "student" else make_teacher()
        tokenizer = processor.tokenizer
        model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
        rows = load_rows(Path(script_args.world), "teacher" if writes_questions else script_args.model)
        is_short = [row["completion"].startswith(("A ", "I hear")) for row in rows]
        pools = [np.flatnonzero(np.array(is_short) == short) for short in (True, False)]
        if writes_questions:
            written = load_rows(Path(script_args.world), "questions")
            pools.insert(1, np.arange(len(rows), len(rows) + len(written)))
            rows += written
        pools = [pool for pool in pools if len(pool)]
        if len(pools) > training_args.gradient_accumulation_steps:
            expected = f"expected gradient_accumulation_steps of at least {len(pools)}"
            raise InputError(f"{script_args.model}: {expected}, found {training_args.gradient_accumulation_steps}; raise it")
        trainer = PretrainTrainer(
            model=model,
            args=training_args,
            train_dataset=rows,
            data_collator=CompletionCollator(processor),
            processing_class=processor,
        )
        trainer.train(resume_from_checkpoint=last_complete_checkpoint(stage.path))
        save_checkpoint(model, processor, stage.path / "model")
        stage.finish()


if __name__ == "__main__":
    run(main)
