"""The requests of an evaluation: what the controls give the model to hear."""

from types import SimpleNamespace

import numpy as np
import pytest

from evaluation.controls import CONTROLS
from evaluation.generate import RequestBuilder, RunArguments
from sightsound.cli import InputError
from sightsound.media import decode_audio
from sightsound.schema import open_dataset


@pytest.fixture
def builder(tiny_dataset):
    def make(video_ids):
        rows = open_dataset(str(tiny_dataset), "train").select(range(len(video_ids)))
        rows = rows.remove_columns("video_id").add_column("video_id", video_ids)
        args = RunArguments(model="m", output_dir="o", dataset="d", method="cot", controls=list(CONTROLS))
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


def test_without_sound_the_text_stays_and_a_call_mixes_no_controls(builder):
    _, build = builder(["a", "b"])
    own, text_only = build("1/none"), build("1/text_only")
    assert text_only.audio is None and text_only.media is None and text_only.text == own.text
    assert build.keys() == [f"{i}/{control}" for control in ("none", *CONTROLS) for i in (0, 1)]
    assert [build.block(key) for key in build.keys()] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]  # noqa: SIM118 - not a dict


def test_shuffled_choices_are_asked_in_the_order_that_is_graded(builder):
    rows, build = builder(["a", "b", "c", "d"])
    for i, row in enumerate(rows):
        asked, request = build.row(f"{i}/shuffled"), build(f"{i}/shuffled")
        assert asked["choices"][asked["answer"]] == row["choices"][row["answer"]]
        assert sorted(asked["choices"]) == sorted(row["choices"])
        assert [line[3:] for line in request.text.splitlines()[1:-1]] == asked["choices"]
        assert np.array_equal(request.audio, build(f"{i}/none").audio)
