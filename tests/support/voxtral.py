"""A tiny Voxtral with random weights, and the file of its tokenizer."""

import base64
import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile


# In the order of their ids, as in the released file; ids that mean nothing here are fillers.
SPECIAL = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"]
SPECIAL += ["[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]"]
SPECIAL += ["[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]", *(f"<SPECIAL_{number}>" for number in range(20, 24))]
SPECIAL += ["[AUDIO]", "[BEGIN_AUDIO]", "[TRANSCRIBE]"]
MERGES = [" t", "he", " the", "in", "an", "er", "on", " s", " a", "re", "ou", "nd", "ch", "at", "is", "IN", "ST", "[/", "INST"]


def write_tekken(folder: Path) -> Path:
    """A tokenizer in the form of the released `tekken.json`: all bytes, a few merges, control tokens, audio settings."""
    tokens = [bytes([byte]) for byte in range(256)] + [text.encode() for text in MERGES]
    vocab = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": token.decode(errors="replace")}
        for rank, token in enumerate(tokens)
    ]
    content: dict[str, Any] = {
        "config": {
            "pattern": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            "num_vocab_tokens": len(vocab),
            "default_vocab_size": len(vocab) + len(SPECIAL),
            "default_num_special_tokens": len(SPECIAL),
            "version": "v7",
        },
        "vocab": vocab,
        "special_tokens": [{"rank": rank, "token_str": text, "is_control": True} for rank, text in enumerate(SPECIAL)],
        "audio": {
            "sampling_rate": 16_000,
            "frame_rate": 12.5,
            "audio_encoding_config": {"num_mel_bins": 128, "hop_length": 160, "window_size": 400},
            "chunk_length_s": 30.0,
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tekken.json"
    path.write_text(json.dumps(content))
    return path


def make_voxtral() -> tuple[Any, Any]:
    """A Voxtral of 0.1 M random weights with its real processor: windows of 30 s, which are fixed in the processor's class."""
    from transformers import VoxtralConfig, VoxtralForConditionalGeneration, VoxtralProcessor, WhisperFeatureExtractor
    from transformers.tokenization_mistral_common import MistralCommonBackend

    # The file is copied to where the processor is saved, and so has to outlive this function.
    tokenizer = MistralCommonBackend(write_tekken(Path(tempfile.mkdtemp(prefix="tekken-"))))
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = VoxtralConfig(
        audio_config={
            "hidden_size": 16,
            "intermediate_size": 64,  # four frames make a token
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "num_mel_bins": 128,
            "initializer_range": 0.05,
        },
        text_config={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 4096,
            "vocab_size": len(tokenizer),
            "initializer_range": 0.05,
            **ids,
        },
        audio_token_id=24,
    )
    processor = VoxtralProcessor(WhisperFeatureExtractor(feature_size=128), tokenizer)
    return VoxtralForConditionalGeneration(config), processor


def voxtral_inputs(processor: Any, messages: list[dict[str, Any]], waveforms: Sequence[np.ndarray]) -> dict[str, Any]:
    """What the processor itself makes of a conversation whose audio parts stand for `waveforms`, in order."""
    clips = iter(waveforms)
    filled = []
    for message in messages:
        content = [{"type": "audio", "base64": _wav(next(clips))} if p["type"] == "audio" else p for p in message["content"]]
        filled.append({**message, "content": content})
    return dict(processor.apply_chat_template(filled))


def _wav(waveform: np.ndarray) -> str:
    wav = io.BytesIO()
    soundfile.write(wav, waveform, 16_000, format="WAV", subtype="FLOAT")  # without rounding
    return base64.b64encode(wav.getvalue()).decode()
