"""For each student family, a tiny model with random weights and the family's real processor class."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.tiny import miniature_builders
from tests.support.voxtral import make_voxtral


# What begins the names of all weights in a released checkpoint, and some whole names.
RELEASED_PREFIXES = {
    "qwen2_audio": ("audio_tower.", "multi_modal_projector.", "language_model.model.", "language_model.lm_head."),
    "qwen2_5_omni": ("thinker.audio_tower.", "thinker.visual.", "thinker.model.", "thinker.lm_head."),
    "qwen3_omni": ("thinker.audio_tower.", "thinker.visual.", "thinker.model.", "thinker.lm_head."),
    "voxtral": ("audio_tower.", "multi_modal_projector.", "language_model.model.", "language_model.lm_head."),
    "audio_flamingo_3": ("audio_tower.", "multi_modal_projector.", "language_model.model.", "language_model.lm_head."),
}
RELEASED_NAMES = {
    "qwen2_audio": (
        "audio_tower.embed_positions.weight",
        "multi_modal_projector.linear.weight",
        "language_model.model.embed_tokens.weight",
        "language_model.model.layers.0.self_attn.q_proj.bias",
        "language_model.lm_head.weight",
    ),
    "qwen2_5_omni": (
        "thinker.audio_tower.audio_bos_eos_token.weight",
        "thinker.audio_tower.layers.0.self_attn.q_proj.bias",
        "thinker.visual.blocks.0.attn.q.weight",
        "thinker.model.layers.0.mlp.gate_proj.weight",
        "thinker.lm_head.weight",
    ),
    "qwen3_omni": (
        "thinker.audio_tower.conv2d3.weight",
        "thinker.audio_tower.layers.0.self_attn.q_proj.bias",
        "thinker.visual.blocks.0.attn.qkv.weight",
        "thinker.model.layers.0.self_attn.q_norm.weight",
        "thinker.model.layers.0.mlp.gate.weight",
        "thinker.model.layers.0.mlp.experts.0.gate_proj.weight",
        "thinker.model.layers.0.mlp.experts.3.up_proj.weight",
        "thinker.model.layers.0.mlp.experts.3.down_proj.weight",
        "thinker.lm_head.weight",
    ),
    "audio_flamingo_3": (
        "audio_tower.embed_positions.weight",
        "audio_tower.layers.0.self_attn.q_proj.bias",
        "multi_modal_projector.linear_1.weight",
        "multi_modal_projector.linear_2.bias",
        "language_model.model.layers.0.self_attn.q_proj.bias",
        "language_model.lm_head.weight",
    ),
    "voxtral": (
        "audio_tower.embed_positions.weight",
        "multi_modal_projector.linear_2.weight",
        "language_model.model.embed_tokens.weight",
        "language_model.model.layers.0.mlp.gate_proj.weight",
        "language_model.lm_head.weight",
    ),
}


def _qwen2_audio() -> tuple[Any, Any]:
    return miniature_builders().make_student()


def _qwen2_5_omni() -> tuple[Any, Any]:
    return miniature_builders().make_omni()


# Audio Flamingo 3's own template, without tools.
FLAMINGO_TEMPLATE = """{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] -%}
{% if part['type'] == 'audio' %}<sound>{% else %}{{ part['text'] }}{% endif -%}
{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def _audio_flamingo_3() -> tuple[Any, Any]:
    """With the real windows: 30 s, and up to 20 of them."""
    from transformers import (
        AudioFlamingo3Config,
        AudioFlamingo3ForConditionalGeneration,
        AudioFlamingo3Processor,
        AutoTokenizer,
        WhisperFeatureExtractor,
    )

    miniature = miniature_builders()
    tokenizer = AutoTokenizer.from_pretrained(miniature.TOKENIZER)
    tokenizer.add_tokens(["<sound>"], special_tokens=True)
    frames = 30 * 16_000 // miniature.HOP_LENGTH
    audio = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    audio |= {"num_mel_bins": 128, "max_source_positions": frames // 2, "initializer_range": 0.05}
    ids = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = AudioFlamingo3Config(
        audio_config=audio,
        text_config={"model_type": "qwen2", **miniature.TEXT, **ids},
        audio_token_id=tokenizer.convert_tokens_to_ids("<sound>"),
    )
    extractor = WhisperFeatureExtractor(feature_size=128, hop_length=miniature.HOP_LENGTH, chunk_length=30, n_fft=400)
    processor = AudioFlamingo3Processor(extractor, tokenizer, chat_template=FLAMINGO_TEMPLATE)
    return AudioFlamingo3ForConditionalGeneration(config), processor


# Qwen3-Omni's own template, without images, tools and reasoning.
QWEN3_OMNI_TEMPLATE = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] -%}
{% if part['type'] == 'audio' %}<|audio_start|><|audio_pad|><|audio_end|>
{%- elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif -%}
{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def _qwen3_omni() -> tuple[Any, Any]:
    """With four experts, of which two are chosen."""
    from transformers import (
        AutoTokenizer,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
        Qwen3OmniMoeProcessor,
        Qwen3OmniMoeThinkerConfig,
        Qwen3OmniMoeThinkerForConditionalGeneration,
        WhisperFeatureExtractor,
    )

    miniature = miniature_builders()
    names = {"audio_token": "<|audio_pad|>", "audio_bos_token": "<|audio_start|>", "audio_eos_token": "<|audio_end|>"}
    names |= {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    names |= {"vision_bos_token": "<|vision_start|>", "vision_eos_token": "<|vision_end|>"}
    tokenizer = AutoTokenizer.from_pretrained(miniature.TOKENIZER, extra_special_tokens=names)
    width, side = miniature.TEXT["hidden_size"], miniature.SIDE
    audio = {"d_model": width, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 128, "num_mel_bins": 128}
    audio |= {"output_dim": width, "downsample_hidden_size": 16, "n_window": 50, "n_window_infer": 400}
    vision = {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "patch_size": 14}
    vision |= {"out_hidden_size": width, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    vision |= {"image_size": side, "apply_vit_abs_pos_embed": True}  # of the released config, which vLLM alone reads
    text = {**miniature.TEXT, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    text |= {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    text |= {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10_000.0}}
    config = Qwen3OmniMoeThinkerConfig(
        audio_config={**audio, "initializer_range": 0.05},
        vision_config={**vision, "initializer_range": 0.05},
        text_config=text,
        initializer_range=0.05,
        **{f"{kind}_token_id": tokenizer.convert_tokens_to_ids(names[f"{kind}_token"]) for kind in ("audio", "image", "video")},
        audio_start_token_id=tokenizer.convert_tokens_to_ids("<|audio_start|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
    )
    extractor = WhisperFeatureExtractor(feature_size=128, hop_length=miniature.HOP_LENGTH, chunk_length=30, n_fft=400)
    frames = {"shortest_edge": side * side, "longest_edge": side * side * 6}
    processor = Qwen3OmniMoeProcessor(
        image_processor=Qwen2VLImageProcessor(size={"shortest_edge": side * side, "longest_edge": side * side}),
        video_processor=Qwen2VLVideoProcessor(size=frames, do_sample_frames=False),
        feature_extractor=extractor,
        tokenizer=tokenizer,
        chat_template=QWEN3_OMNI_TEMPLATE,
    )
    return Qwen3OmniMoeThinkerForConditionalGeneration(config), processor


BUILDERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "qwen2_audio": _qwen2_audio,
    "qwen2_5_omni": _qwen2_5_omni,
    "qwen3_omni": _qwen3_omni,
    "audio_flamingo_3": _audio_flamingo_3,
    "voxtral": make_voxtral,
}


def build_family(name: str, path: Path) -> Path:
    """The checkpoint of a family's tiny model, saved as training saves it."""
    from transformers import GenerationConfig, set_seed

    from sightsound.training.checkpoints import save_checkpoint

    set_seed(0)
    model, processor = BUILDERS[name]()
    ids = {"eos_token_id": processor.tokenizer.eos_token_id, "pad_token_id": processor.tokenizer.pad_token_id}
    model.generation_config = GenerationConfig(**ids)
    save_checkpoint(model, processor, path)
    return path
