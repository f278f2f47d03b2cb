"""Students of a given size with random weights, for measurements: only their text and what they hear have no meaning."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.families import BUILDERS


HEAD_SIZE = 128  # of the language models of both families
FRAMES_PER_S = 50  # of the audio towers, after their convolutions and before pooling


@dataclass(frozen=True)
class Shape:
    """What decides the FLOPs of a student: a Qwen language model behind a tower like Whisper's."""

    family: str
    width: int
    layers: int
    inner: int
    key_heads: int
    vocabulary: int
    tower_width: int
    tower_layers: int
    tower_heads: int
    mels: int = 128

    def language_parameters(self) -> int:
        """Without the embedding, which costs nothing, and without the head."""
        attention = 2 * self.width**2 + 2 * self.width * self.key_heads * HEAD_SIZE
        return self.layers * (attention + 3 * self.width * self.inner)

    def tower_parameters(self) -> int:
        return self.tower_layers * 12 * self.tower_width**2 + 3 * self.tower_width * (self.mels + self.tower_width)

    def tower_flops(self, seconds: float) -> float:
        """Of a forward over one clip; the projector, less than a hundredth of it, is left out."""
        frames, seen = TOWER_FRAMES[self.family](seconds)
        convolved = 2 * 3 * self.tower_width * (2 * frames * self.mels + frames * self.tower_width)
        attended = 4 * frames * seen * self.tower_width * self.tower_layers
        return convolved + attended + 2 * frames * self.tower_layers * 12 * self.tower_width**2

    def language_flops(self, tokens: float, seen: float, predicted: float) -> float:
        """Of a forward: tokens through the layers, pairs of a token and one that it sees, tokens through the head."""
        return (
            2 * tokens * self.language_parameters()
            + 4 * seen * self.width * self.layers
            + 2 * predicted * self.width * self.vocabulary
        )


# Frames of a clip that the tower computes, and frames that each of them attends to.
TOWER_FRAMES = {
    "qwen2_audio": lambda seconds: (30 * FRAMES_PER_S, 30 * FRAMES_PER_S),  # padded to its window of 30 s
    "qwen2_5_omni": lambda seconds: (seconds * FRAMES_PER_S, 2 * FRAMES_PER_S),  # in parts of 2 s
}
WINDOW_S = {"qwen2_audio": 30, "qwen2_5_omni": 300}
# The config.json of Qwen/Qwen2-Audio-7B-Instruct and Qwen/Qwen2.5-Omni-7B.
RELEASED = {
    "qwen2_audio": Shape("qwen2_audio", 4096, 32, 11008, 32, 156_032, 1280, 32, 20),
    "qwen2_5_omni": Shape("qwen2_5_omni", 3584, 28, 18944, 4, 152_064, 1280, 32, 20),
}


def tiny_shape(family: str) -> Shape:
    """For the CPU, in seconds."""
    return Shape(family, HEAD_SIZE, 2, 64, 1, 2_048, 32, 2, 2)


def make_model(shape: Shape) -> tuple[Any, Any]:
    """
    A student of this shape, and its processor with the real windows.

    The miniature's tokenizer is filled up with words of no meaning. A vision tower, where the family has one, is as wide and
    deep as the audio tower, as in the released model.
    """
    from transformers import GenerationConfig, WhisperFeatureExtractor

    small, processor = BUILDERS[shape.family]()
    config, tokenizer = small.config, processor.tokenizer
    tokenizer.add_tokens([f"<word-{i}>" for i in range(shape.vocabulary - len(tokenizer))])
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {
        "hidden_size": shape.width,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.width // HEAD_SIZE,
        "num_key_value_heads": shape.key_heads,
        "max_position_embeddings": 4096,
        "bos_token_id": None,
        "tie_word_embeddings": False,
        "vocab_size": shape.vocabulary,
        **ids,
    }
    audio = {
        "d_model": shape.tower_width,
        "encoder_layers": shape.tower_layers,
        "encoder_attention_heads": shape.tower_heads,
        "encoder_ffn_dim": 4 * shape.tower_width,
        "num_mel_bins": shape.mels,
        "max_source_positions": 1500,
    }
    if shape.family == "qwen2_5_omni":
        audio |= {"n_window": FRAMES_PER_S * 2, "output_dim": shape.width}
        vision = {"depth": shape.tower_layers, "hidden_size": shape.tower_width, "out_hidden_size": shape.width}
        config.vision_config = type(config.vision_config)(**vision, num_heads=shape.tower_heads)
    config.audio_config = type(config.audio_config)(**audio)
    config.text_config = type(config.text_config)(**text)
    processor.feature_extractor = WhisperFeatureExtractor(feature_size=shape.mels, chunk_length=WINDOW_S[shape.family])
    model = type(small)(config)
    model.generation_config = GenerationConfig(**ids)
    return model, processor


def save_model(shape: Shape, folder: Path) -> None:
    """Write such a student as a checkpoint."""
    from sightsound.training.checkpoints import save_checkpoint

    save_checkpoint(*make_model(shape), folder)
