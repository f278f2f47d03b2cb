"""The requests of an evaluation: what is heard, seen and read under each control, modality and method."""

from types import SimpleNamespace

import numpy as np
import pytest

from evaluation.running.arguments import Source
from evaluation.running.controls import CONTROLS
from evaluation.running.requests import METHODS, QuestionFormat, RequestBuilder, check_controls, read_reasoning
from sightsound.cli import InputError
from sightsound.data import schema
from sightsound.data.audio import decode_audio
from sightsound.data.clips import MediaError, video_name
from sightsound.data.parquet import open_dataset
from sightsound.method.prompts import TEACHER_PROMPT, question_text
from tests.support.tiny import trace, trace_row, write_corpus, write_traces


ENGINE = SimpleNamespace(window_s=2.0)


@pytest.fixture
def builder(tiny_dataset):
    def make(video_ids):
        rows = open_dataset(str(tiny_dataset), "train").select(range(len(video_ids)))
        rows = rows.remove_columns("video_id").add_column("video_id", video_ids)
        return rows, RequestBuilder(rows, QuestionFormat(method="cot", controls=tuple(CONTROLS)), ENGINE)

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
    one_clip, _ = builder(["a", "a"])
    with pytest.raises(InputError, match="at least two clips"):
        check_controls(one_clip, ["swapped"])


def test_without_sound_the_text_stays_and_a_call_mixes_no_controls(builder):
    _, build = builder(["a", "b"])
    own, text_only = build("1/none"), build("1/text_only")
    assert text_only.media == () and text_only.text == own.text
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


@pytest.fixture(scope="module")
def rows(tiny_dataset):
    return open_dataset(str(tiny_dataset), "train").select(range(4))


def find_videos_in(folder):
    return Source("avqa", "d", media_dir=str(folder)).find_videos()


@pytest.mark.parametrize("modality", ["audio", "video", "audio_video"])
def test_a_modality_gives_its_clips_and_the_wording_that_goes_with_them(rows, tiny_world, modality):
    asking = QuestionFormat(modality, controls=("silent", "text_only"), num_frames=4, max_pixels=56 * 56)
    build = RequestBuilder(rows, asking, ENGINE, find_videos_in(tiny_world / "clips"))
    request, silent = build("1/none"), build("1/silent")
    assert request.media == {"audio": ("audio",), "video": ("video",), "audio_video": ("audio", "video")}[modality]
    assert ("video" in request.text) == (modality != "audio") and build("1/text_only").text == request.text
    if request.video is not None:
        assert request.video.pixels.shape == (4, 56, 56, 3) and np.array_equal(silent.video.pixels, request.video.pixels)
    if request.audio is not None:
        assert np.array_equal(request.audio, decode_audio(rows[1]["audio"], 2.0).waveform) and not silent.audio.any()


def test_a_broken_video_gives_way_to_a_good_one_in_every_modality(rows, tiny_world, tmp_path):
    for name, extension in ((video_name(row), extension) for row in rows for extension in (".mp4", ".m4v")):
        (tmp_path / f"{name}{extension}").write_bytes((tiny_world / "clips" / f"{name}.mp4").read_bytes())
    asking = QuestionFormat("audio_video", num_frames=4, max_pixels=56 * 56)
    build = RequestBuilder(rows, asking, ENGINE, find_videos_in(tmp_path))
    expected = build("1/none").video.pixels
    broken = tmp_path / f"{video_name(rows[1])}.mp4"
    broken.write_bytes(b"<html>404</html>")
    assert np.array_equal(RequestBuilder(rows, asking, ENGINE, find_videos_in(tmp_path))("1/none").video.pixels, expected)


def test_each_method_ends_the_question_with_its_own_instruction(rows):
    reasoning = dict.fromkeys(rows["id"], "I hear a {dog}.")  # whatever a teacher writes is text
    texts = set()
    for method, instruction in METHODS.items():
        is_distilled = method == "cot_distill"
        text = RequestBuilder(rows, QuestionFormat(method=method), ENGINE, reasoning=reasoning if is_distilled else None)(
            "0/none"
        ).text
        fields = {"think": "I hear a {dog}."} if is_distilled else {}
        assert text == question_text(rows[0]["question"], rows[0]["choices"], instruction, **fields)
        texts.add(text)
    assert len(texts) == len(METHODS) == 5
    assert QuestionFormat("video", "cot").instruction == TEACHER_PROMPT


def test_a_teachers_reasoning_comes_without_its_answer_and_one_that_is_missing_is_told(rows, tmp_path):
    said = trace("<think>I hear a bell.</think><answer>bell</answer>", 0, "I hear a bell.")
    refused, empty = {**said, "think": "I hear a dog.", "verdict": "reject"}, trace("bell", 0, None)
    traced = [
        trace_row(rows[0], [empty, said]),
        trace_row(rows[1], [refused, {**said, "verdict": "accept"}]),
        trace_row(rows[2], [refused, {**refused, "verdict": "invalid"}]),
        trace_row({**rows[3], "id": "of another split"}, [said]),
    ]
    reasoning = read_reasoning(str(write_traces(traced, tmp_path / "traces")), rows)
    assert reasoning == {rows[0]["id"]: "I hear a bell.", rows[1]["id"]: "I hear a bell."}
    build = RequestBuilder(rows, QuestionFormat(method="cot_distill"), ENGINE, reasoning=reasoning)
    assert "I hear a bell." in build("1/none").text and "<answer>bell" not in build("1/none").text
    assert (build.keys(), build.without_reasoning()) == (["0/none", "1/none"], ["2/none", "3/none"])


def test_reasoning_is_read_from_a_corpus_too_and_only_about_these_questions(rows, questions, tmp_path):
    assert set(read_reasoning(str(write_corpus(questions, tmp_path / "corpus")), rows)) == set(rows["id"])
    said = [trace("bell", 0, "I hear a bell.")]
    others = {
        "clip": ([trace_row(rows[0], said, media_sha256="0")], "another clip or other choices; give traces of this dataset"),
        "ids": ([trace_row({**rows[0], "id": "x"}, said)], "has none of the 4 questions; give traces of this dataset"),
    }
    for name, (traced, message) in others.items():
        with pytest.raises(InputError, match=message):
            read_reasoning(str(write_traces(traced, tmp_path / name)), rows)
    with pytest.raises(InputError, match=r"cannot open split 'train' of .*nowhere"):
        read_reasoning(str(tmp_path / "nowhere"), rows)


def test_videos_of_music_avqa_are_found_by_their_id_and_seen_whole(write_clip, tmp_path):
    """594 of its ids look like a YouTube id, of which AVQA means ten seconds."""
    for name in ("00000093", "va00003871", "-0LkeLZqjZ0"):
        write_clip(tmp_path / f"{name}.mp4")
        row = {"video_id": name, "start_s": 0.0, "media_sha256": ""}
        (found,) = Source("music_avqa", "d", media_dir=str(tmp_path)).find_videos()(row)
        assert (found.path, found.start_s, found.max_duration_s) == (str(tmp_path / f"{name}.mp4"), 0.0, None)
    avqa = Source("avqa", "d", media_dir=str(tmp_path)).find_videos()
    (part,) = avqa({"video_id": "-0LkeLZqjZ0", "start_s": 30.0, "media_sha256": ""})
    assert part.max_duration_s == 10.0
    with pytest.raises(MediaError, match=r"no clip named 00000001\.\*") as output:
        Source("music_avqa", "d", media_dir=str(tmp_path)).find_videos()({"video_id": "00000001", "media_sha256": ""})
    assert output.value.outcome == schema.MISSING_MEDIA
