"""The requests of an evaluation: what the controls give the model to hear."""

from types import SimpleNamespace

import numpy as np
import pytest

from evaluation.generate import RequestBuilder, RunArguments
from sightsound.cli import InputError
from sightsound.media import decode_audio
from sightsound.schema import open_dataset


@pytest.fixture
def builder(tiny_dataset):
    def make(video_ids):
        rows = open_dataset(str(tiny_dataset), "train").select(range(len(video_ids)))
        rows = rows.remove_columns("video_id").add_column("video_id", video_ids)
        args = RunArguments(model="m", output_dir="o", dataset="d", method="cot", controls=["silent", "swapped"])
        return rows, RequestBuilder(rows, args, SimpleNamespace(window_s=2.0))

    return make


def test_controls_change_the_sound_and_nothing_else(builder):
    rows, build = builder(["a", "b", "c", "d"])
    own, silent, swapped = (build(f"0/{control}") for control in ("none", "silent", "swapped"))
    assert own.text == silent.text == swapped.text
    assert len(silent.audio) == len(own.audio) and not silent.audio.any() and own.audio.any()
    assert np.array_equal(swapped.audio, decode_audio(rows[2]["audio"], 2.0).waveform)


def test_swapped_audio_is_of_another_clip_also_where_questions_share_one(builder):
    rows, build = builder(["a", "b", "a", "a"])
    assert np.array_equal(build("0/swapped").audio, decode_audio(rows[1]["audio"], 2.0).waveform)
    _, build = builder(["a", "a"])
    with pytest.raises(InputError, match="at least two clips"):
        build("0/swapped")
