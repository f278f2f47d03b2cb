"""Clips as they are found in the wild: which stream, how long, how fast, and what is said of a broken one."""

import numpy as np
import pytest
import soundfile

from sightsound.cli import InputError
from sightsound.data import frames as frames_module
from sightsound.data.audio import decode_audio, encode_flac, encode_wav, is_silent, load_clip
from sightsound.data.clips import Clip, MediaError, MediaFolder, video_name
from sightsound.data.frames import load_frames
from tests.support.clips import media_rows, outcome_of, pitch_hz, tone


def duration_s(frames) -> float:
    return len(frames.pixels) / frames.fps


@pytest.mark.parametrize(("rate", "channels"), [(44_100, 2), (16_000, 1), (8_000, 1), (48_000, 2)])
def test_sound_becomes_mono_at_16_khz_of_the_right_length_and_pitch(tmp_path, write_clip, rate, channels):
    waveform = load_clip(str(write_clip(tmp_path / "a.mkv", [(440.0, rate, channels)], duration_s=1.5)))
    assert (waveform.dtype, waveform.shape) == (np.float32, (24_000,))
    assert pitch_hz(waveform) == pytest.approx(440, abs=1)
    assert np.abs(waveform).max() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("audio_first", [False, True])
def test_audio_is_found_wherever_it_stands(tmp_path, write_clip, audio_first):
    path = str(write_clip(tmp_path / "a.mp4", audio_first=audio_first))
    waveform = load_clip(path)
    # AAC works in blocks of 1,024 samples, of which the first primes the decoder.
    assert len(waveform) == pytest.approx(16_000, abs=16_000 * 2048 / 44_100)
    assert pitch_hz(waveform) == pytest.approx(440, abs=1)
    assert len(load_frames(path, 4, 10_000).pixels) == 4


@pytest.mark.parametrize("richest_first", [False, True])
def test_of_several_audio_streams_the_default_or_else_the_richest_is_taken(tmp_path, write_clip, richest_first):
    tracks = [(1000.0, 44_100, 2), (300.0, 16_000, 1)]
    tracks = tracks if richest_first else tracks[::-1]
    # PyAV flags the first stream of an .mp4 as the default one, and none of an .mkv.
    assert pitch_hz(load_clip(str(write_clip(tmp_path / "a.mp4", tracks)))) == pytest.approx(tracks[0][0], abs=2)
    assert pitch_hz(load_clip(str(write_clip(tmp_path / "a.mkv", tracks)))) == pytest.approx(1000, abs=2)


def test_a_part_of_a_clip_is_cut_where_it_was_asked(tmp_path, write_clip):
    path = str(write_clip(tmp_path / "a.wav", duration_s=2.0, fps=0))
    whole = load_clip(path)
    part = load_clip(path, start_s=0.5, max_duration_s=1.0)
    assert len(part) == 16_000
    # Away from the edges, where the resampler sees the cut.
    assert np.abs(part[200:-200] - whole[8_200 : 24_000 - 200]).max() < 1e-3
    assert len(load_clip(path, start_s=1.5, max_duration_s=10.0)) == 8_000, "trimmed, never padded"
    assert outcome_of(path, start_s=2.5) == "too_short"


def test_no_audio_stream_and_a_silent_one_are_told_apart(tmp_path, write_clip):
    assert outcome_of(write_clip(tmp_path / "none.mp4", tracks=[])) == "no_audio"
    assert is_silent(load_clip(str(write_clip(tmp_path / "silent.mp4", [(0.0, 44_100, 2)]))))
    assert not is_silent(tone(440, 16_000, 0.1) / 1000)


def test_samples_that_are_not_numbers_are_corrupt(tmp_path):
    waveform = tone(440, 16_000, 0.1)
    waveform[7] = np.nan
    soundfile.write(tmp_path / "nan.wav", waveform, 16_000, subtype="FLOAT")
    assert outcome_of(tmp_path / "nan.wav") == "corrupt_media"


def test_a_file_that_cannot_be_decoded_is_corrupt(tmp_path, write_clip):
    whole = write_clip(tmp_path / "whole.mp4").read_bytes()
    for name, content in {"cut.mp4": whole[: len(whole) // 2], "empty.mp4": b"", "text.mp4": b"not found\n" * 99}.items():
        (tmp_path / name).write_bytes(content)
        assert outcome_of(tmp_path / name) == "corrupt_media"
        assert outcome_of(tmp_path / name, load_frames, num_frames=2, max_pixels=99) == "corrupt_media"
    (tmp_path / "dangling.mp4").symlink_to(tmp_path / "gone.mp4")
    assert outcome_of(tmp_path / "dangling.mp4") == "corrupt_media"


def adts(path, channels: int, rate: int) -> bytes:
    """A second of 440 Hz as bare AAC frames, which may be concatenated."""
    import av

    with av.open(str(path), "w", format="adts") as container:
        stream = container.add_stream("aac", rate=rate)
        stream.layout = "mono" if channels == 1 else "stereo"
        samples = np.tile((tone(440, rate, 1.0) * 32767).astype(np.int16), (channels, 1))
        for start in range(0, samples.shape[1] - 1023, 1024):
            frame = av.AudioFrame.from_ndarray(samples[:, start : start + 1024].copy(), "s16p", stream.layout.name)
            frame.sample_rate = rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.read_bytes()


@pytest.mark.parametrize("second", [(2, 44_100), (1, 22_050)])
def test_a_stream_that_changes_on_the_way_is_read_right_or_refused(tmp_path, second):
    path = tmp_path / "a.aac"
    path.write_bytes(adts(tmp_path / "first.aac", 1, 44_100) + adts(tmp_path / "second.aac", *second))
    try:
        waveform = load_clip(str(path))
    except MediaError:
        return
    assert len(waveform) == pytest.approx(32_000, rel=0.1)
    assert pitch_hz(waveform[:14_000]) == pytest.approx(440, abs=2)


@pytest.mark.parametrize(("channels", "rate", "message"), [(1, 22_050, "corrupt_media"), (2, 44_100, None), (1, 44_100, None)])
def test_sound_of_another_kind_midway_is_read_on_or_said(tmp_path, channels, rate, message):
    """FLAC frames carry their own format, so joined files decode; unlike AAC's, their samples are integers."""
    joined = tmp_path / "joined.flac"
    for file, channels_of, rate_of in (("a.flac", 1, 44_100), ("b.flac", channels, rate)):
        soundfile.write(tmp_path / file, np.stack([tone(440, rate_of, 1.0)] * channels_of, axis=1), rate_of)
    first, last = (tmp_path / "a.flac").read_bytes(), (tmp_path / "b.flac").read_bytes()
    joined.write_bytes(first + last[last.index(b"\xff\xf8") :])
    if message is not None:
        assert outcome_of(joined) == message
    else:
        assert len(load_clip(str(joined))) == pytest.approx(32_000, rel=0.01)


def test_tags_in_another_encoding_are_no_reason_to_lose_a_clip(tmp_path):
    """Old recorders write Latin-1 where UTF-8 is expected."""
    path = tmp_path / "tagged.wav"
    soundfile.write(path, tone(440, 16_000, 1.0), 16_000)
    name = b"INAM" + (6).to_bytes(4, "little") + b"caf\xe9\x00\x00"
    content = path.read_bytes() + b"LIST" + (4 + len(name)).to_bytes(4, "little") + b"INFO" + name
    path.write_bytes(content[:4] + (len(content) - 8).to_bytes(4, "little") + content[8:])
    assert len(load_clip(str(path))) == 16_000


def test_a_late_start_gives_the_same_part(tmp_path, write_clip):
    path = str(write_clip(tmp_path / "long.mkv", duration_s=30.0, fps=2))
    part, whole = load_clip(path, start_s=25.0, max_duration_s=2.0), load_clip(path)
    assert len(part) == 32_000
    # Away from the edges, where the resampler sees the cut.
    assert np.abs(part - whole[25 * 16_000 : 27 * 16_000])[200:-200].max() < 1e-3


@pytest.mark.parametrize(("asked", "given"), [(4, 4), (5, 4), (10, 10), (99, 10), (1, 1)])
def test_frames_are_even_in_number_and_span_the_clip(tmp_path, write_clip, asked, given):
    frames = load_frames(str(write_clip(tmp_path / "a.mp4")), asked, max_pixels=64 * 48)
    assert (frames.pixels.dtype, frames.pixels.shape) == (np.uint8, (given, 48, 64, 3))
    assert (frames.fps, duration_s(frames)) == (pytest.approx(given), pytest.approx(1.0))
    levels = frames.pixels.mean(axis=(1, 2, 3))
    # The clip's frames grow brighter from 0 to 90.
    assert levels[0] == pytest.approx(0, abs=3)
    assert given == 1 or levels[-1] == pytest.approx(90, abs=3)
    assert np.all(np.diff(levels) > 5)


@pytest.mark.parametrize(("asked", "declared_fps", "declared_s"), [(2, 2.0, 1.0), (4, 2.0, 2.0), (10, 2.0, 5.0)])
def test_frames_are_declared_at_no_more_than_two_per_second(tmp_path, write_clip, asked, declared_fps, declared_s):
    metadata = load_frames(str(write_clip(tmp_path / "a.mp4")), asked, 9999).metadata()
    assert metadata == {"fps": declared_fps, "total_num_frames": asked, "duration": declared_s}


def test_frames_of_a_part_come_from_that_part(tmp_path, write_clip):
    path = str(write_clip(tmp_path / "a.mp4", duration_s=2.0))
    frames = load_frames(path, 4, 64 * 48, start_s=0.5, max_duration_s=1.0)
    levels = frames.pixels.mean(axis=(1, 2, 3))
    assert (levels[0], levels[-1]) == (pytest.approx(50, abs=3), pytest.approx(140, abs=3))
    assert duration_s(frames) == pytest.approx(1.0)
    assert outcome_of(path, load_frames, num_frames=4, max_pixels=999, start_s=9.0) == "corrupt_media"


def test_of_a_long_video_the_same_frames_come_without_holding_them_all(tmp_path, write_clip, monkeypatch):
    path = str(write_clip(tmp_path / "a.mp4", duration_s=2.0))
    for part in ({}, {"start_s": 0.5, "max_duration_s": 1.0}):
        monkeypatch.setattr(frames_module, "MAX_PIXELS_HELD", 640 * 64 * 48)
        short = load_frames(path, 4, 40 * 30, **part)
        monkeypatch.setattr(frames_module, "MAX_PIXELS_HELD", 3 * 64 * 48)
        long = load_frames(path, 4, 40 * 30, **part)
        assert np.array_equal(long.pixels, short.pixels) and long.fps == short.fps


@pytest.mark.parametrize("size", [(64, 48), (320, 180), (128, 96), (90, 160)])
@pytest.mark.parametrize("max_pixels", [1000, 3072])
def test_large_frames_are_scaled_down_in_shape(tmp_path, write_clip, size, max_pixels):
    frames = load_frames(str(write_clip(tmp_path / "a.mp4", size=size, duration_s=0.2)), 2, max_pixels)
    _, height, width, _ = frames.pixels.shape
    assert width * height <= max_pixels
    assert width * height > 0.8 * min(max_pixels, size[0] * size[1])
    assert width / height == pytest.approx(size[0] / size[1], rel=0.1)


def test_frames_need_a_video_stream(tmp_path, write_clip):
    assert outcome_of(write_clip(tmp_path / "a.wav", fps=0), load_frames, num_frames=2, max_pixels=99) == "no_video"


NAMES = {
    "06GyG4-wONQ_000006": "06GyG4-wONQ_000006.mp4",
    "-HXwnBVE19E_000002": "train/deep/-HXwnBVE19E_2.webm",
    "_abcdefghij_000000": "_abcdefghij_000000.WAV",
    "--________-_000030": "x/--________-_30.Mp4",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_clip_is_found_by_its_avqa_name(tmp_path, name):
    for file in [*NAMES.values(), f"{name}.json"]:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    assert MediaFolder(str(tmp_path)).candidates(name)[0] == Clip(str(tmp_path / NAMES[name]))


def test_a_whole_video_is_cut_and_a_clip_goes_before_it(tmp_path):
    (tmp_path / "06GyG4-wONQ.mp4").touch()
    found = next(iter(MediaFolder(str(tmp_path)).candidates("06GyG4-wONQ_000006")), None)
    assert found == Clip(str(tmp_path / "06GyG4-wONQ.mp4"), start_s=6.0, max_duration_s=10.0)
    (tmp_path / "06GyG4-wONQ_6.mp4").touch()
    assert MediaFolder(str(tmp_path)).candidates("06GyG4-wONQ_000006")[0] == Clip(str(tmp_path / "06GyG4-wONQ_6.mp4"))
    assert MediaFolder(str(tmp_path)).candidates("06GyG4-wONQ_000007")[0] == Clip(found.path, 7.0, 10.0)


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "../../etc/passwd",
        "/etc/passwd",
        "06GyG4-wONQ",
        "../06GyG4-w_000006",
        "06GyG4-wONQ_000006\n",
        "../inside____-_000006",
        "",
    ],
)
def test_a_name_cannot_leave_the_folder(tmp_path, name):
    (tmp_path / "clips").mkdir()
    for file in ("secret.mp4", "06GyG4-wONQ_000006.mp4", "06GyG4-w_000006.mp4"):
        (tmp_path / file).touch()
    (tmp_path / "clips" / "inside____-.mp4").touch()
    folder = MediaFolder(str(tmp_path / "clips"))
    assert not folder.candidates(name)
    assert not folder.candidates("06GyG4-wONQ_000006")


def test_a_missing_media_folder_is_bad_input(tmp_path):
    with pytest.raises(InputError, match="nowhere is not a folder"):
        MediaFolder(str(tmp_path / "nowhere"))


def test_the_avqa_name_of_a_row():
    assert video_name({"video_id": "06GyG4-wONQ", "start_s": 6.0}) == "06GyG4-wONQ_000006"


def test_stored_audio_is_decoded_and_cut_knowingly():
    waveform = tone(440, 16_000, 2.0)
    stored = {"bytes": encode_flac(waveform), "path": "a.flac"}
    heard = decode_audio(stored)
    assert (heard.duration_s, heard.heard_s) == (2.0, 2.0)
    assert np.abs(heard.waveform - waveform).max() < 1e-4
    heard = decode_audio(stored, window_s=0.5)
    assert (heard.duration_s, heard.heard_s, heard.waveform.shape) == (2.0, 0.5, (8_000,))
    assert decode_audio({"bytes": encode_wav(waveform), "path": "a.wav"}, window_s=30.0).heard_s == 2.0


def test_samples_beyond_full_scale_are_clipped_and_do_not_wrap():
    loud = decode_audio({"bytes": encode_flac(np.array([1.5, -1.5, 0.0], np.float32)), "path": None}).waveform
    assert loud == pytest.approx([1.0, -1.0, 0.0], abs=1e-4)


def test_stored_audio_of_another_kind_is_refused():
    for broken in (
        b"",
        b"not audio",
        encode_flac(tone(440, 44_100, 0.1), 44_100),
        encode_flac(np.zeros((99, 2), np.float32)),
    ):
        with pytest.raises(MediaError, match=r"cannot be decoded|expected mono at 16000 Hz"):
            decode_audio({"bytes": broken, "path": None})


def test_every_real_video_is_heard_and_seen(real_data):
    rows = media_rows(real_data)
    assert len(rows) == 25
    for row in rows:
        path = str(real_data / row["file"])
        frames = load_frames(path, 8, 50_000)
        assert len(frames.pixels) == 8
        videos = [stream for stream in row["streams"].split(" + ") if stream.startswith("v:")]
        # `v:h264 640x360@30.00`; one file holds two videos, and the table counts the frames of both.
        fps = sum(float(stream.split("@")[1]) for stream in videos)
        assert duration_s(frames) == pytest.approx(int(row["video_frames"]) / fps, rel=0.01), path
        if row["audio_samples"] == "0":
            assert outcome_of(path) == "no_audio"
            continue
        waveform = load_clip(path)
        # `a:aac@44100x2`; samples of several audio streams are counted together as well.
        rate = sum(int(stream.split("@")[1].split("x")[0]) for stream in row["streams"].split(" + ") if stream[0] == "a")
        assert len(waveform) / 16_000 == pytest.approx(int(row["audio_samples"]) / rate, abs=0.01), path
        assert is_silent(waveform) == ("silent_track" in path), path
