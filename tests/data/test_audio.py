"""Sound where its time stamps say, of any rate and number of channels, from the middle of a long file, from a stored path."""

from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import soundfile

from sightsound.cli import run
from sightsound.data import audio
from sightsound.data.audio import decode_audio, load_clip
from sightsound.data.frames import load_frames
from sightsound.data.resampling import resample
from sightsound.data.track import Block, Track, place_by_time
from tests.support.clips import beeps_s, outcome_of, pitch_hz, tone, write_placed


def flashes_s(frames, start_s=0.0) -> list[float]:
    bright = frames.pixels.mean(axis=(1, 2, 3)) > 120
    return [start_s + i / frames.fps for i in np.flatnonzero(bright[1:] & ~bright[:-1]) + 1]


@pytest.mark.parametrize(
    ("file", "codec"),
    [
        ("a.mkv", "pcm_s16le"),
        ("a.mkv", "aac"),
        ("a.mp4", "aac"),
        ("a.ts", "aac"),
        ("a.webm", "libopus"),
        ("a.flv", "aac"),
    ],
)
@pytest.mark.parametrize("parts", [[(1.0, 4.0)], [(0.0, 1.25), (2.25, 4.0)]])
def test_a_track_that_starts_late_or_has_a_hole_keeps_its_place(tmp_path, file, codec, parts):
    path = str(write_placed(tmp_path / file, parts, codec, video=(0.0, 4.0)))
    seen = flashes_s(load_frames(path, 200, 64 * 48))
    assert seen == pytest.approx([0.5, 1.5, 2.5, 3.5], abs=0.03)
    heard = beeps_s(load_clip(path))
    silent = 0.5 if parts[0][0] else 1.5
    assert heard == pytest.approx([second for second in seen if second != pytest.approx(silent, abs=0.04)], abs=0.04)
    part = load_clip(path, start_s=2.25, max_duration_s=1.0)
    assert beeps_s(part) == pytest.approx([0.25], abs=0.04)
    shown = load_frames(path, 200, 64 * 48, start_s=2.25, max_duration_s=1.0)
    assert flashes_s(shown) == pytest.approx(beeps_s(part), abs=0.04)


@pytest.mark.parametrize(("file", "codec"), [("a.mkv", "pcm_s16le"), ("a.mp4", "aac"), ("a.ts", "aac")])
def test_a_video_that_starts_late_is_seen_when_it_is_heard(tmp_path, file, codec):
    path = str(write_placed(tmp_path / file, [(0.0, 4.0)], codec, video=(1.3, 4.0)))
    assert beeps_s(load_clip(path)) == pytest.approx([0.5, 1.5, 2.5, 3.5], abs=0.04)
    part = {"start_s": 1.4, "max_duration_s": 1.0}
    assert flashes_s(load_frames(path, 200, 64 * 48, **part)) == pytest.approx(beeps_s(load_clip(path, **part)), abs=0.04)


def test_time_stamps_that_stray_or_start_anew_put_no_hole_into_the_sound():
    """Jitter below 40 ms, one odd stamp, joined files, stamps without a value."""
    rate = 16_000
    track = Track(None, "", 0, 0.0, 0.001, rate=rate)
    samples = np.random.default_rng(0).standard_normal(rate * 4).astype(np.float32)
    exact = np.arange(0, 4, 0.1)
    jitter = exact + np.where(np.arange(40) % 3, 0.03, -0.03)
    odd = np.where(np.arange(40) == 20, 9.0, exact)
    anew = np.where(exact < 2, exact, exact - 2)
    for times in (exact, jitter, odd, anew, [None] * 40):
        blocks = [
            Block(time if time is None else float(time), samples[i * 1600 : (i + 1) * 1600]) for i, time in enumerate(times)
        ]
        assert np.array_equal(np.concatenate(list(place_by_time(iter(blocks), track, 0))), samples), times


def test_sound_that_overlaps_is_heard_once():
    rate = 16_000
    track = Track(None, "", 0, 0.0, 0.001, rate=rate)
    samples = np.random.default_rng(0).standard_normal(rate * 2).astype(np.float32)
    blocks = [Block(t / 10, samples[t * 1600 : t * 1600 + 1600]) for t in range(10)]
    blocks += [Block(t / 10 - 0.05, samples[t * 1600 - 800 : t * 1600 + 800]) for t in range(10, 20)]
    placed = np.concatenate(list(place_by_time(iter(blocks), track, 0)))
    assert np.array_equal(placed, samples[: len(placed)]) and len(placed) == 32_000 - 800


@pytest.mark.parametrize("channels", [1, 2, 3, 6, 7, 8, 9, 12, 16, 24, 33])
def test_any_number_of_channels_is_mixed_down(tmp_path, channels):
    sound = np.stack([tone(440 if i else 1000, 16_000, 0.5) / (i + 1) for i in range(channels)], axis=1)
    soundfile.write(tmp_path / "a.wav", sound, 16_000, subtype="FLOAT")
    assert np.abs(load_clip(str(tmp_path / "a.wav")) - sound.mean(axis=1)).max() < 1e-6
    if channels <= 8:
        soundfile.write(tmp_path / "a.flac", sound, 16_000)
        assert np.abs(load_clip(str(tmp_path / "a.flac")) - sound.mean(axis=1)).max() < 1e-4


@pytest.mark.parametrize(
    ("file", "codec", "layout"),
    [("a.mp4", "aac", "7.1"), ("a.mka", "flac", "7.1"), ("a.mka", "pcm_f32le", "hexadecagonal")],
)
def test_planar_sound_of_many_channels_does_not_kill_the_process(tmp_path, file, codec, layout):
    import av

    with av.open(str(tmp_path / file), "w") as container:
        stream = container.add_stream(codec, rate=48_000, layout=layout)
        channels = av.AudioLayout(layout).nb_channels
        fifo = av.AudioFifo()
        packed = np.repeat(tone(440, 48_000, 1.0), channels)[None]
        frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = 48_000, 0, Fraction(1, 48_000)
        fifo.write(frame)
        while (block := fifo.read(stream.codec_context.frame_size or 1024)) is not None:
            container.mux(stream.encode(block))
        container.mux(stream.encode())
    waveform = load_clip(str(tmp_path / file))
    assert pitch_hz(waveform) == pytest.approx(440, abs=2) and len(waveform) == pytest.approx(16_000, abs=1_600)


@pytest.mark.parametrize("rate", [16_001, 22_254, 44_099, 44_056, 15_999, 7_350, 8_000, 96_000, 192_000, 384_000])
def test_any_sampling_rate_keeps_pitch_level_and_place_in_little_memory(rate):
    sound = tone(1000, rate, 2.0)
    waveform = resample((sound[i : i + 4096] for i in range(0, len(sound), 4096)), rate, 16_000)
    expected = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(len(waveform)) / 16_000)
    assert len(waveform) == pytest.approx(32_000, abs=2)
    assert np.abs(waveform - expected)[200:-200].max() < 1e-4


def test_a_rate_that_shares_no_divisor_takes_little_memory(tmp_path):
    """torchaudio's filters for 44,099 Hz take 14 GB."""
    import subprocess
    import sys

    soundfile.write(tmp_path / "a.wav", tone(1000, 44_099, 2.0), 44_099)
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))\n"
        "from sightsound.data.audio import load_clip; print(len(load_clip(sys.argv[1])))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.wav")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert abs(int(done.stdout) - 32_000) <= 2


@pytest.mark.parametrize("rate", [44_100, 48_000, 8_000])
def test_long_sound_is_resampled_in_blocks_as_in_one_piece(rate, monkeypatch):
    from sightsound.data import resampling

    sound = np.random.default_rng(0).standard_normal(rate * 7 + 123).astype(np.float32)
    whole = resample([sound], rate, 16_000)
    monkeypatch.setattr(resampling, "_BLOCK_S", 1)
    blocks = resample((sound[i : i + 1000] for i in range(0, len(sound), 1000)), rate, 16_000)
    assert len(blocks) == len(whole) and np.abs(blocks - whole).max() < 1e-6


LONG = [
    ("a.mp4", "aac", True),
    ("a.mkv", "aac", True),
    ("a.mkv", "pcm_s16le", True),
    ("a.webm", "libopus", True),
    ("a.ts", "aac", True),
    ("a.m4a", "aac", False),
    ("a.mka", "libopus", False),
    ("a.mp3", "libmp3lame", False),
    ("a.opus", "libopus", False),
    ("a.flac", "flac", False),
    ("a.wav", "pcm_s16le", False),
]


@pytest.mark.parametrize(("file", "codec", "video"), LONG)
def test_a_sought_part_is_the_part_that_a_pass_from_the_start_finds(tmp_path, monkeypatch, file, codec, video):
    path = str(write_placed(tmp_path / file, [(0.0, 16.0)], codec, video=(0.0, 16.0) if video else None, duration_s=16.0))
    part = {"start_s": 11.3, "max_duration_s": 2.0}
    sound, decoded = load_clip(path, **part), frames_of(path, part) if video else None
    for module in ("track", "frames"):
        monkeypatch.setattr(f"sightsound.data.{module}.MIN_SEEK_S", 5.0)
    began = []
    blocks_from = Track.blocks_from

    def recorded(track, time_s):
        began.append(time_s)
        return blocks_from(track, time_s)

    monkeypatch.setattr(Track, "blocks_from", recorded)
    sought = load_clip(path, **part)
    # A decoder of AAC fills bands with noise that depends on what it decoded before.
    assert len(sought) == len(sound) and np.abs(sought - sound).max() < (1e-2 if codec == "aac" else 1e-7)
    lags = np.correlate(sought, sound[200:-200], "valid")
    assert lags.argmax() == 200
    assert began == [pytest.approx(9.3)]
    assert beeps_s(sound) == pytest.approx([0.2, 1.2], abs=0.04)
    if video:
        assert np.array_equal(frames_of(path, part), decoded)


def frames_of(path, part):
    return load_frames(path, 8, 64 * 48, **part).pixels


def test_a_part_after_the_end_is_too_short(tmp_path, monkeypatch):
    path = write_placed(tmp_path / "a.mkv", [(0.0, 4.0)], video=(0.0, 4.0))
    assert outcome_of(path, start_s=30.0) == "too_short"


def test_a_track_that_cannot_be_decoded_gives_way_to_one_that_can(tmp_path, write_clip):
    import av

    path = write_clip(tmp_path / "a.mp4", [(440.0, 48_000, 2), (880.0, 16_000, 1)])
    for hz in (880, None):
        content = bytearray(path.read_bytes())
        with av.open(str(path)) as container:
            broken = container.streams.audio[0 if hz else 1]
            for packet in container.demux(broken):
                if packet.size:
                    content[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
        path.write_bytes(content)
        if hz:
            assert pitch_hz(load_clip(str(path))) == pytest.approx(hz, abs=2)
        else:
            assert outcome_of(path) == "corrupt_media"


def test_sound_without_a_decoder_is_an_outcome(tmp_path, write_clip):
    path = write_clip(tmp_path / "a.mkv", [(440.0, 48_000, 2), (880.0, 16_000, 1)])
    content = path.read_bytes()
    first = content.index(b"A_PCM/INT/LIT")
    path.write_bytes(content[:first] + b"A_XXX/INT/LIT" + content[first + 13 :])
    assert pitch_hz(load_clip(str(path))) == pytest.approx(880, abs=2)
    path.write_bytes(content.replace(b"A_PCM/INT/LIT", b"A_XXX/INT/LIT"))
    assert outcome_of(path) == "corrupt_media"


def test_an_audio_column_may_hold_a_path(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.stack([tone(440, 44_100, 1.0)] * 2, axis=1), 44_100)
    heard = decode_audio({"bytes": None, "path": str(tmp_path / "a.wav")}, window_s=0.5)
    assert (heard.duration_s, heard.heard_s) == (1.0, 0.5) and pitch_hz(heard.waveform) == pytest.approx(440, abs=2)
    for cell in (
        {"bytes": None, "path": str(tmp_path / "gone.wav")},
        {"bytes": None, "path": None},
        {"bytes": None, "path": "a\0b"},
    ):
        with pytest.raises(audio.MediaError, match=r"cannot be read|neither bytes nor a path"):
            decode_audio(cell)


def test_a_clip_that_cannot_be_read_ends_a_script_without_a_ledger_in_one_line(tmp_path, capsys):
    """Training and the page have no row to record it in."""
    cells = {
        "gone.wav": {"bytes": None, "path": str(tmp_path / "gone.wav")},
        "5.flac": {"bytes": b"no sound", "path": "5.flac"},
    }
    for name, cell in cells.items():
        with pytest.raises(SystemExit) as ended:
            run(partial(decode_audio, cell))
        (line,) = capsys.readouterr().err.splitlines()
        assert ended.value.code == 2 and line.startswith("error: the audio column ") and name in line
