"""Where the tests keep their caches, where they find real data, and how they make clips."""

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest


REPO = Path(__file__).resolve().parents[1]

# Set here and not in a fixture: `datasets` and `huggingface_hub` read them once, when a test module imports them.
_CACHE = tempfile.TemporaryDirectory(prefix="sightsound-tests-")
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HOME": _CACHE.name,
    "HF_DATASETS_CACHE": f"{_CACHE.name}/datasets",
    "TRANSFORMERS_VERBOSITY": "error",
}


def pytest_unconfigure() -> None:
    _CACHE.cleanup()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """`$SIGHTSOUND_REAL_DATA`: real annotations, sounds and videos, which are not part of the repository."""
    folder = Path(os.environ.get("SIGHTSOUND_REAL_DATA", REPO.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set SIGHTSOUND_REAL_DATA to the folder that holds annotations/ and video/")
    return folder


def tone(hz: float, rate: int, duration_s: float) -> np.ndarray:
    """A sine at half of full scale; 0 Hz is silence."""
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(duration_s * rate)) / rate)).astype(np.float32)


def _write_clip(
    path: Path,
    tracks: Sequence[tuple[float, int, int]] = ((440.0, 44_100, 2),),
    duration_s: float = 1.0,
    fps: int = 10,
    size: tuple[int, int] = (64, 48),
    audio_first: bool = False,
) -> Path:
    """
    A media file with one audio stream per `(hz, rate, channels)`, and frames that grow brighter by 10 levels each.

    Args:
        fps: 0 for no video stream.
        audio_first: Put the audio at stream 0, where some real files have it.
    """
    import av

    codec = "aac" if path.suffix.lower() in (".mp4", ".m4a") else "pcm_s16le"
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:

        def add_video():
            video = container.add_stream("libx264", rate=fps, options={"crf": "5", "preset": "ultrafast", "threads": "1"})
            (video.width, video.height), video.pix_fmt = size, "yuv420p"
            return video

        def add_audio(rate: int, channels: int):
            audio = container.add_stream(codec, rate=rate)
            audio.layout = "mono" if channels == 1 else "stereo"
            return audio

        video = add_video() if fps and not audio_first else None
        streams = [add_audio(rate, channels) for _, rate, channels in tracks]
        if fps and audio_first:
            video = add_video()
        if video is not None:
            for i in range(round(duration_s * fps)):
                pixels = np.full((size[1], size[0], 3), min(255, 10 * i), np.uint8)
                container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(video.encode())
        for stream, (hz, rate, channels) in zip(streams, tracks, strict=True):
            samples = np.tile((tone(hz, rate, duration_s) * 32767).astype(np.int16), (channels, 1))
            frame = av.AudioFrame.from_ndarray(samples, format="s16p", layout=stream.layout.name)
            frame.sample_rate = rate
            fifo = av.AudioFifo()
            fifo.write(frame)
            while (block := fifo.read(stream.codec_context.frame_size or 1024, partial=True)) is not None:
                container.mux(stream.encode(block))
            container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def write_clip() -> Callable[..., Path]:
    return _write_clip


pytest_plugins = ["tests.support.fixtures"]
