"""The backbone of a thinker refuses prompts that do not match the clips."""

import pytest
import torch

from sightsound.models.family import family_of
from sightsound.models.loading import load_generator
from tests.support.families import build_family


def test_a_prompt_with_too_few_audio_tokens_is_refused(tmp_path) -> None:
    model, processor, _ = load_generator(str(build_family("qwen2_5_omni", tmp_path / "omni")))
    family = family_of(model.config)
    clip = family.clip_features(processor, torch.zeros(16_000).numpy())
    ids = torch.full((1, clip.num_tokens), model.config.audio_token_id)
    features = family.stack_features([clip])
    model.base_model(input_ids=ids, **features)
    expected = f"{clip.num_tokens - 1} audio tokens in the prompts, but {clip.num_tokens} rows"
    with pytest.raises(ValueError, match=expected):
        model.base_model(input_ids=ids[:, 1:], **features)
