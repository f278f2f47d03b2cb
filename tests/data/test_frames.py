"""Pictures as they are shown: turned, with square pixels, at even times; a cover is none."""

from fractions import Fraction

import numpy as np
import pytest

from sightsound.data.audio import load_clip
from sightsound.data.frames import load_frames
from tests.support.clips import outcome_of


CORNER = np.full((48, 64, 3), 20, np.uint8)
CORNER[:16, :16] = 240  # the upper left


def write_video(path, images, times=None, aspect=None, rate=10):
    """A silent video of these pictures, at these times (in 1/1000 s)."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "5", "preset": "ultrafast", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = images[0].shape[1], images[0].shape[0], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for i, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = (1000 * i // rate if times is None else times[i]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def with_matrix(path, a, b, c, d):
    """Write the track's display matrix into an .mp4."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4 + 40  # behind version, times, id, duration, layer and volume
    for i, value in enumerate((a, b, 0, c, d)):
        content[start + 4 * i : start + 4 * i + 4] = (value * 65536).to_bytes(4, "big", signed=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("matrix", "corner"),
    [
        ((1, 0, 0, 1), "upper left"),
        ((0, 1, -1, 0), "upper right"),  # turned clockwise, the common case of a telephone held upright
        ((-1, 0, 0, -1), "lower right"),
        ((0, -1, 1, 0), "lower left"),
        ((-1, 0, 0, 1), "upper right"),  # mirrored
    ],
)
def test_a_telephone_video_is_turned_as_it_is_shown(tmp_path, matrix, corner):
    path = with_matrix(write_video(tmp_path / "a.mp4", [CORNER] * 4), *matrix)
    shown = load_frames(str(path), 2, 64 * 48).pixels[0].mean(axis=2)
    assert shown.shape == ((64, 48) if matrix[0] == 0 else (48, 64))
    row, column = np.unravel_index(shown.argmax(), shown.shape)
    where = f"{'upper' if row < shown.shape[0] / 2 else 'lower'} {'left' if column < shown.shape[1] / 2 else 'right'}"
    assert where == corner


def test_pixels_are_square_when_shown(tmp_path):
    path = write_video(tmp_path / "a.mkv", [CORNER] * 4, aspect=Fraction(2, 1))
    _, height, width, _ = load_frames(str(path), 2, 10_000).pixels.shape
    assert (width, height) == (114, 86) or width / height == pytest.approx(128 / 48, rel=0.05)


@pytest.mark.parametrize("slow_first", [True, False])
def test_a_variable_frame_rate_is_sampled_by_time(tmp_path, slow_first):
    """Ten frames in one half and one hundred in the other are still two halves."""
    times = [*range(0, 5000, 500), *range(5000, 10_000, 50)] if slow_first else [*range(0, 5000, 50), *range(5000, 10_000, 500)]
    images = [np.full((48, 64, 3), 20 + time // 50, np.uint8) for time in times]
    frames = load_frames(str(write_video(tmp_path / "a.mkv", images, times)), 10, 64 * 48)
    shown_s = (frames.pixels.mean(axis=(1, 2, 3)) - 20) * 50 / 1000
    assert shown_s == pytest.approx(np.linspace(0, times[-1] / 1000, 10), abs=0.6)
    assert len(frames.pixels) / frames.fps == pytest.approx(10, rel=0.06)


def test_a_cover_picture_is_no_video(tmp_path, write_clip):
    import av

    picture = tmp_path / "cover.mjpeg"
    with av.open(str(picture), "w", format="mjpeg") as container:
        stream = container.add_stream("mjpeg", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(CORNER, format="rgb24")))
        container.mux(stream.encode())
    sound = write_clip(tmp_path / "a.mp3.wav", fps=0)
    text = b"\x00image/jpeg\x00\x03\x00" + picture.read_bytes()
    tag = b"APIC" + len(text).to_bytes(4, "big") + b"\x00\x00" + text
    size = len(tag)
    syncsafe = bytes((size >> shift) & 0x7F for shift in (21, 14, 7, 0))
    song = tmp_path / "a.mp3"
    with av.open(str(sound)) as source, av.open(str(song), "w") as container:
        stream = container.add_stream("libmp3lame", rate=44_100)
        for frame in source.decode(audio=0):
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    content = song.read_bytes()
    old = 10 + int.from_bytes(content[6:10]) if content[:3] == b"ID3" else 0
    song.write_bytes(b"ID3\x03\x00\x00" + syncsafe + tag + content[old:])
    with av.open(str(song)) as container:
        assert len(container.streams.video) == 1, "the cover is found as a stream"
    assert outcome_of(song, load_frames, num_frames=2, max_pixels=99) == "no_video"
    assert len(load_clip(str(song))) == pytest.approx(16_000, abs=1200)


def test_a_video_without_a_decoder_is_an_outcome(tmp_path):
    path = write_video(tmp_path / "a.mkv", [CORNER] * 4)
    path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_XXXX4/ISO/AVC"))
    assert outcome_of(path, load_frames, num_frames=2, max_pixels=99) == "corrupt_media"
