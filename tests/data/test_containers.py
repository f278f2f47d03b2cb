"""Files that were cut off, files that only look so, and the formats that are found and read."""

import io
from fractions import Fraction

import numpy as np
import pytest
import soundfile

from sightsound.data.audio import load_clip
from sightsound.data.clips import MediaFolder
from sightsound.data.frames import load_frames
from tests.support.clips import beeps_s, outcome_of, pitch_hz, tone, write_placed


CUT = [
    ("a.mkv", "pcm_s16le", True),
    ("a.mkv", "aac", True),
    ("a.mka", "flac", False),
    ("a.webm", "libopus", True),
    ("a.mp4", "aac", True),
    ("a.wav", "pcm_s16le", False),
    ("a.flac", "flac", False),
    ("a.opus", "libopus", False),
    ("a.avi", "pcm_s16le", True),
    ("a.aiff", "pcm_s16be", False),
]


@pytest.mark.parametrize(("file", "codec", "video"), CUT)
def test_a_cut_off_file_is_corrupt(tmp_path, file, codec, video):
    path = write_placed(tmp_path / file, [(0.0, 4.0)], codec, video=(0.0, 4.0) if video else None)
    assert len(load_clip(str(path))) > 60_000, "the whole file is read"
    if video:
        load_frames(str(path), 2, 999)
    content = path.read_bytes()
    cut = tmp_path / f"cut{path.suffix}"
    cut.write_bytes(content[: int(len(content) * 0.6)])
    assert outcome_of(cut) == "corrupt_media"
    if video:
        assert outcome_of(cut, load_frames, num_frames=2, max_pixels=999) == "corrupt_media"


@pytest.mark.parametrize("length", [0, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_a_wav_that_was_piped_does_not_know_its_length_and_is_whole(tmp_path, length):
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(440, 16_000, 2.0), 16_000, format="WAV", subtype="PCM_16")
    content = bytearray(buffer.getvalue())
    at = content.index(b"data") + 4
    content[at : at + 4] = length.to_bytes(4, "little")
    content[4:8] = min(length + 36, 0xFFFFFFFF).to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(content)
    assert len(load_clip(str(tmp_path / "a.wav"))) == 32_000


def test_matroska_that_was_written_live_does_not_know_its_length_and_is_whole(tmp_path):
    import av

    write_placed(tmp_path / "a.mkv", [(0.0, 4.0)])
    with av.open(str(tmp_path / "a.mkv")) as source, av.open(str(tmp_path / "b.mkv"), "w", options={"live": "1"}) as container:
        stream = container.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
    assert np.array_equal(load_clip(str(tmp_path / "b.mkv")), load_clip(str(tmp_path / "a.mkv")))


KINDS = [
    ("a.flv", "flv", "aac"),
    ("a.3gp", "3gp", "aac"),
    ("a.ts", "mpegts", "aac"),
    ("a.m2ts", "mpegts", "ac3"),
    ("a.mpg", "mpeg", "mp2"),
    ("a.vob", "vob", "ac3"),
    ("a.mka", "matroska", "flac"),
    ("a.oga", "ogg", "flac"),
    ("a.ogv", "ogv", "libopus"),
    ("a.wma", "asf", "wmav2"),
    ("a.wmv", "asf", "wmav2"),
    ("a.aiff", "aiff", "pcm_s16be"),
    ("a.AIF", "aiff", "pcm_s16be"),
    ("a.amr", "amr", "libopencore_amrnb"),
    ("a.ac3", "ac3", "ac3"),
    ("a.caf", "caf", "pcm_s16le"),
    ("a.aac", "adts", "aac"),
    ("a.opus", "ogg", "libopus"),
    ("a.m4a", "ipod", "aac"),
    ("a.au", "au", "pcm_s16be"),
]


@pytest.mark.parametrize(("file", "container_format", "codec"), KINDS)
def test_clips_of_every_kind_are_found_and_read(tmp_path, file, container_format, codec):
    import av

    rate = 8_000 if "amr" in codec else 44_100 if "wma" in codec else 48_000
    path = tmp_path / file
    with av.open(str(path), "w", format=container_format) as container:
        stream = container.add_stream(codec, rate=rate, bit_rate=12_200 if "amr" in codec else 64_000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray((tone(440, rate, 2.0)[None] * 32767).astype(np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        fifo = av.AudioFifo()
        fifo.write(frame)
        while (block := fifo.read(stream.codec_context.frame_size or 1024, partial=False)) is not None:
            container.mux(stream.encode(block))
        container.mux(stream.encode())
    found = next(iter(MediaFolder(str(tmp_path)).candidates("a")), None)
    assert found is not None and found.path == str(path)
    waveform = load_clip(found.path)
    assert len(waveform) == pytest.approx(32_000, abs=1_600) and pitch_hz(waveform) == pytest.approx(440, abs=3)


def test_joined_files_go_on_where_the_first_one_ends(tmp_path):
    path = write_placed(tmp_path / "a.ts", [(0.0, 4.0)], "aac", video=(0.0, 4.0))
    path.write_bytes(path.read_bytes() * 2)
    assert beeps_s(load_clip(str(path))) == pytest.approx(np.arange(0.5, 8), abs=0.1)
    frames = load_frames(str(path), 400, 64 * 48)
    assert frames.fps == pytest.approx(50) and len(frames.pixels) == 400
